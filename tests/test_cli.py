"""The command line: what it prints, what it writes, and how it fails."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import lens_scopes as ls
import tiny
from lens_scopes.commands.main import app

HAS_DEMO_MODEL = (ls.demo.MODEL_DIR / "config.json").is_file()
PROMPT = "The cat sat on the"
runner = CliRunner()


def plain(text: str) -> str:
    """Without colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def call(*arguments: object, code: int = 0):
    result = runner.invoke(app, [str(a) for a in arguments], env={"COLUMNS": "120"})
    assert result.exit_code == code, result.output
    return result


def score(*arguments: object, code: int = 0):
    return call("score", PROMPT, "--model", tiny.directory("gpt2"), *arguments, code=code)


def expected(scope, **options) -> ls.Scores:
    return ls.score(ls.load(tiny.directory("gpt2")), PROMPT, scope, **options)


@pytest.mark.host
@pytest.mark.parametrize("backend", tiny.BACKENDS)
@pytest.mark.parametrize("scope", ["semantic", "fisher", "temperature"])
def test_the_table_has_every_token_with_its_score(scope, backend):
    lines = score("--scope", scope, "--backend", backend).stdout.splitlines()
    scopes = {"semantic": ls.Semantic(), "fisher": ls.Fisher(), "temperature": ls.Temperature()}
    scores = expected(scopes[scope]).sel(site="embed")
    assert scores.units in lines[0]
    assert "predicts" in lines[1]
    rows = [line for line in lines if re.match(r" +\d+ ", line)]
    assert len(rows) == len(scores.tokens)
    for i, (row, token, value) in enumerate(zip(rows, scores.tokens, scores.values.tolist(), strict=True)):
        assert row.split()[0] == str(i)
        assert token.strip() in row
        shown = float(row[row.index(token.strip()) + len(token.strip()) :].split()[0])
        assert shown == pytest.approx(value, rel=0.01)


def test_the_token_explained_has_its_probability_and_rank():
    """It is not the model's first choice: both are said, and a blank at an end is seen."""
    (_, target, *_) = ls.score(ls.load(tiny.directory("gpt2")), PROMPT, ls.Semantic()).meta["predictions"][0]
    told = re.escape(f"({100 * target['p']:.2f}%, rank 1)")
    for command in ("score", "flow"):
        shown = call(command, PROMPT, "--model", tiny.directory("gpt2"), "--target", f"#{target['id']}").stdout
        assert re.search(f"Explained: .*{told}", shown), shown


def test_an_estimate_shows_its_standard_error():
    assert "stderr" in score("--scope", "fisher", "--passes", 4).stdout
    assert "stderr" not in score("--scope", "fisher", "--passes", "exact").stdout


@pytest.mark.parametrize(
    ("arguments", "scope", "options"),
    [
        (["--target", "#7", "--versus", "#9"], ls.Semantic(7, 9), {}),
        (["--scope", "fisher", "--passes", "exact", "--sites", "embed"], ls.Fisher(None), {"sites": "embed"}),
        (["--scope", "fisher", "--rank", "3"], ls.Fisher(rank=3), {}),
        (["--sites", "z"], ls.Semantic(), {"sites": "z"}),
        (["--sites", "resid_pre, mlp_out"], ls.Semantic(), {"sites": ["resid_pre", "mlp_out"]}),
        (["--position", "all", "--along", "activation"], ls.Semantic(), {"position": "all", "along": "activation"}),
        (["--position", "2,-1"], ls.Semantic(), {"position": [2, -1]}),
    ],
)
def test_options_reach_the_scores(tmp_path, arguments, scope, options):
    path = tmp_path / "scores.safetensors"
    score(*arguments, "--save", path)
    saved, wanted = ls.Scores.load(path), expected(scope, **options)
    assert saved.dims == wanted.dims
    assert saved.meta["scope"]["text"] == repr(scope)
    torch.testing.assert_close(saved.values, wanted.values)
    assert score(*arguments).stdout  # and every shape of result has a table


def test_json_is_the_whole_result_and_nothing_else_is_on_stdout():
    content = json.loads(score("--scope", "fisher", "--passes", 4, "--json", "-").stdout)
    wanted = expected(ls.Fisher(4))
    assert content["tokens"] == list(wanted.tokens)
    assert content["dims"] == ["site", "pos"]
    torch.testing.assert_close(torch.tensor(content["values"]).to(wanted.values), wanted.values)
    torch.testing.assert_close(torch.tensor(content["stderr"]).to(wanted.stderr), wanted.stderr)
    assert content["meta"]["units"] == "squared"


def test_a_page_escapes_what_is_in_the_prompt(tmp_path):
    path = tmp_path / "page.html"
    call("score", "<script>a</script>", "--model", tiny.directory("gpt2"), "--html", path)
    page = path.read_text(encoding="utf-8")
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_tokens_do_not_steer_the_terminal():
    shown = call("score", "The \x1b[31mcat\x07 [bold]sat", "--model", tiny.directory("gpt2")).stdout
    assert "\x1b" not in shown
    assert "\x07" not in shown


def test_words_can_be_joined():
    rows = [line for line in score("--aggregate", "word").stdout.splitlines() if re.match(r" +\d+ ", line)]
    assert [row.split()[1] for row in rows][1:] == PROMPT.split()


def test_spans_are_joined_by_name(tmp_path):
    path = tmp_path / "scores.safetensors"
    spans = ["--spans", "who=The cat", "--spans", "others=..."]
    score(*spans, "--save", path)
    wanted = expected(ls.Semantic()).aggregate({"who": "The cat", "others": ...})
    saved = ls.Scores.load(path)
    assert saved.tokens == ("who", "others")
    torch.testing.assert_close(saved.values, wanted.values)
    rows = [line.split() for line in score(*spans).stdout.splitlines() if re.match(r" +\d+ ", line)]
    assert [row[1:3] for row in rows] == [
        [f"{len(span)}×", n] for span, n in zip(wanted.meta["joined"], wanted.tokens, strict=True)
    ]
    assert "tokens are in no span" in " ".join(score(*spans[:2]).stdout.split())


@pytest.mark.parametrize("view", ["layers", "tokens"])
def test_the_page_has_the_view_asked_for(tmp_path, view):
    path = tmp_path / "page.html"
    score("--view", view, "--html", path)
    assert ("0 resid_post" in path.read_text(encoding="utf-8")) == (view == "layers")


def test_every_token_of_a_generation_has_its_explorer(tmp_path):
    path = tmp_path / "page.html"
    options = ("--scope", "semantic", "--target", "next", "--position", "completion", "--sites", "embed")
    score("--generate", 4, *options, "--view", "explorer", "--html", path)
    data = json.loads(re.search(r'id="lens-explorers">(.*?)</script>', path.read_text(encoding="utf-8"))[1])
    (result,) = data[0]["results"]
    text = ls.generate(ls.load(tiny.directory("gpt2")), PROMPT, max_new_tokens=4)
    start, stop = text.spans["completion"]
    assert [one["text"] for one in result["targets"]] == list(text.tokens[start:stop])
    assert data[0]["texts"][0]["completion"] == start
    said = score("--view", "heads", "--html", path, code=2).stderr
    assert "'explorer'" in said


LINES = ["The cat", "A dog and a cat", ""]


@pytest.mark.parametrize("kind", ["lines", "stdin", "jsonl"])
def test_many_prompts_come_from_a_file(tmp_path, kind):
    path = tmp_path / ("prompts.jsonl" if kind == "jsonl" else "prompts.txt")
    jsonl = [json.dumps("The cat"), json.dumps({"prompt": "A dog and a cat"}), json.dumps([7, 9, 8])]
    path.write_text("\n".join(jsonl if kind == "jsonl" else LINES), encoding="utf-8")
    model = tiny.directory("gpt2")
    source = "-" if kind == "stdin" else str(path)
    text = path.read_text(encoding="utf-8") if kind == "stdin" else None
    arguments = ["score", "--prompts", source, "--model", str(model), "--sites", "embed"]
    result = runner.invoke(app, [*arguments, "--json", "-"], input=text, env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    found = [json.loads(line) for line in result.stdout.splitlines()]
    prompts = ["The cat", "A dog and a cat", *([[7, 9, 8]] if kind == "jsonl" else [])]
    wanted = ls.score_batch(ls.load(model), prompts, ls.Semantic(), sites="embed")
    assert len(found) == len(wanted)
    for one, scores in zip(found, wanted, strict=True):
        assert one["tokens"] == list(scores.tokens)
        torch.testing.assert_close(torch.tensor(one["values"]), scores.values, rtol=1e-4, atol=1e-6)
    table = runner.invoke(app, arguments, input=text, env={"COLUMNS": "120"}).stdout
    assert re.search(r"^2: .*A dog and a cat$", table, re.MULTILINE)
    html = tmp_path / "page.html"
    assert runner.invoke(app, [*arguments, "--html", str(html)], input=text).exit_code == 0
    assert html.read_text(encoding="utf-8").count("score (norm)") == len(prompts)


@pytest.mark.parametrize(
    ("lines", "arguments", "says"),
    [
        (["a", "b"], ["--save", "x"], "--save keeps the scores of one prompt, and there are 2"),
        ([" "], [], "there is no prompt in"),
        (["{"], [], "line 1 of"),
        (['"a"', "3"], [], "is no prompt"),
    ],
)
def test_a_file_that_is_none_of_prompts(tmp_path, lines, arguments, says):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(line) if len(lines) == 2 and lines[0] == "a" else line for line in lines))
    result = call("score", "--prompts", path, "--model", tiny.directory("gpt2"), *arguments, code=2)
    assert says in result.stderr


def test_a_prompt_or_a_file():
    assert "give a PROMPT or --prompts FILE" in call("score", code=2).stderr
    assert "not both" in call("score", "a", "--prompts", "x", code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--spans", "who"], "is not NAME=TEXT"),
        (["--spans", "who=The", "--spans", "who=cat"], "a second time"),
        (["--spans", "who=zebra"], "stands 0 times"),
        (["--spans", "who=The", "--aggregate", "word"], "two ways to join"),
        (["--view", "tokens"], "add --html"),
        (["--view", "heads", "--html", "x.html"], "has no view 'heads'"),
        (["--target", "zzzzz"], "is not one token"),
        (["--position", "99"], "outside the prompt"),
        (["--position", "last"], "not a number"),
        (["--sites", "nowhere"], "has no site"),
        (["--aggregate", "paragraph"], "knows 'word'"),
        (["--scope", "fisher", "--target", "a"], "--target"),
        (["--scope", "temperature", "--rank", "3"], "--rank"),
        (["--scope", "fisher", "--rank", "3", "--passes", "4"], "one of them"),
        (["--scope", "fisher", "--passes", "1"], "write 2 or more"),
        (["--model", "/no/such/directory"], "/no/such/directory"),
        (["--save", "/no/such/directory/x"], "/no/such/directory"),
        (["--along", "sideways"], "activation"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_code_2(arguments, says):
    result = score(*arguments, code=2)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("lens-scopes: ")
    assert says in last
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_the_traceback_is_there_on_request():
    result = runner.invoke(app, ["score", "a", "--model", "/no/such/directory"], env={"LENS_SCOPES_TRACEBACK": "1"})
    assert isinstance(result.exception, FileNotFoundError)


@pytest.mark.host
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_flow_prints_what_carries_most_and_writes_it(tmp_path, backend):
    saved, page = tmp_path / "flow.safetensors", tmp_path / "flow.html"
    options = ["--sources", "each", "--top", 3, "--paths", 2, "--edges", "--save", saved, "--html", page]
    shown = call("flow", PROMPT, "--model", tiny.directory("gpt2"), "--backend", backend, *options).stdout
    model = ls.load(tiny.directory("gpt2"), backend=backend)
    wanted = ls.flow(model, PROMPT, ls.Semantic(), sources="each")
    top = wanted.top(3)
    partitions, parts = shown.split("What passes through each part")
    pattern = r"^ +(MLP (\d+)|(\d+)\.(\d+)|straight|\d+ others) +(-?[\d.e-]+) +(-?[\d.]+) %"
    found = re.findall(pattern, partitions, flags=re.MULTILINE)
    assert [float(row[5]) for row in found[:3]] == pytest.approx(
        (100 * wanted.last_heads().share[:3]).tolist(), abs=0.06
    )
    assert sum(float(row[5]) for row in found) == pytest.approx(100, abs=0.2)
    counts = re.findall(r"(\d+): (-?[\d.]+) %", partitions.split("By how many heads")[1])
    assert [float(share) for _, share in counts] == pytest.approx((100 * wanted.orders().share).tolist(), abs=0.06)
    found = re.findall(pattern, parts, flags=re.MULTILINE)
    assert [(row[3] or None) for row in found] == [None if h is pd.NA else str(h) for h in top["head"].tolist()]
    assert [float(row[4]) for row in found] == pytest.approx(top.influence.tolist(), rel=0.01)
    assert [float(row[5]) for row in found] == pytest.approx((100 * top.share).tolist(), abs=0.06)
    assert len(re.findall("→ prediction$", shown, flags=re.MULTILINE)) == 2
    listed = 100 * wanted.paths(2).share[:-1].sum()
    assert float(re.search(r"these 2 carry (-?[\d.]+) %", shown)[1]) == pytest.approx(listed, abs=0.06)
    assert "rest" in shown
    loaded = ls.Flow.load(saved)
    torch.testing.assert_close(loaded.heads, wanted.heads)
    assert loaded.edges is not None
    assert "lens-explorers" in page.read_text(encoding="utf-8")


def test_flow_of_some_sources():
    shown = call("flow", PROMPT, "--model", tiny.directory("gpt2"), "--sources", "1,2", "--scope", "fisher").stdout
    assert "2 source tokens" in shown
    assert "squared" in shown
    result = call("flow", PROMPT, "--model", tiny.directory("gpt2"), "--sources", "all", code=2)
    assert "got 'all': no token is that; write one of 0 " in result.stderr
    assert "lens-scopes flow --help" in result.stderr
    by_text = call(
        "flow", PROMPT, "--model", tiny.directory("gpt2"), "--sources", "cat, sat", "--scope", "fisher"
    ).stdout
    assert (
        by_text
        == call("flow", PROMPT, "--model", tiny.directory("gpt2"), "--sources", "2,3", "--scope", "fisher").stdout
    )


@pytest.mark.parametrize("command", ["score", "flow", "demo"])
def test_help_has_an_example(command):
    assert f"lens-scopes {command}" in " ".join(plain(call(command, "--help").stdout).split())


def test_as_a_program(tmp_path):
    """The entry point of the console script, in a process of its own: nothing but the table on stdout."""
    root = Path(ls.__file__).parents[1]
    program = "from lens_scopes.commands.main import main; main()"
    arguments = ["score", PROMPT, "--model", str(tiny.directory("gpt2"))]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root), "PYTHONIOENCODING": "utf-8"},
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Semantic(")
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments, "--position", "99"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=False,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "outside the prompt" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.host
@pytest.mark.skipif(not HAS_DEMO_MODEL, reason="the demo model is not trained yet")
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_the_demo_finds_known_causes(tmp_path, backend):
    path = tmp_path / "demo.html"
    shown = call("demo", "--backend", backend, "--out", path).stdout
    assert str(path) in shown.replace("\n", "")
    assert ": a known cause" in shown
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


PROGRAM = "from lens_scopes.commands.main import main; main()"


def run(*arguments: object, encoding: str):
    """The console script in a process whose stdout has another encoding."""
    root = Path(ls.__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *(str(one) for one in arguments)],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(root), "PYTHONIOENCODING": encoding, "COLUMNS": "120"},
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_the_table_is_there_whatever_stdout_can_say(encoding, tmp_path):
    prompt = "The cat → sat ‹on› the"
    model = ["--model", tiny.directory("gpt2")]
    done = run("score", prompt, *model, encoding=encoding)
    assert done.returncode == 0, done.stderr
    shown = done.stdout.decode(encoding)
    rows = [line for line in shown.splitlines() if re.match(r" +\d+ ", line)]
    scores = ls.score(ls.load(tiny.directory("gpt2")), prompt, ls.Semantic()).sel(site="embed")
    assert len(rows) == len(scores.tokens)
    bar = "█" if encoding == "utf-8" else "#"
    longest = max(rows, key=lambda row: row.count(bar))
    assert longest.count(bar) == 24
    assert shown.isascii() == (encoding == "ascii")
    done = run("flow", prompt, *model, "--paths", 2, encoding=encoding)
    assert done.returncode == 0, done.stderr
    assert f"source {'→' if encoding == 'utf-8' else '>'} " in done.stdout.decode(encoding)
    done = run("score", prompt, *model, "--json", "-", encoding=encoding)
    assert json.loads(done.stdout.decode(encoding))["tokens"] == list(scores.tokens)
    done = run("score", prompt, *model, "--position", "99", encoding=encoding)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


def test_help_and_versions_in_ascii():
    for arguments in (["--help"], ["score", "--help"], ["flow", "--help"], ["bench", "--help"]):
        done = run(*arguments, encoding="ascii")
        assert done.returncode == 0, done.stderr
    shown = run("--version", encoding="ascii").stdout.decode()
    assert re.fullmatch(rf"lens-scopes {re.escape(ls.__version__)} \(transformer-lens \S+, torch \S+\)\s*", shown)


def test_it_says_where_it_wrote(tmp_path):
    paths = {f"--{kind}": tmp_path / f"x.{kind}" for kind in ("save", "html", "json")}
    arguments = [part for option, path in paths.items() for part in (option, path)]
    shown = score(*arguments).stdout.replace("\n", "")
    assert all(str(path.resolve()) in shown and path.is_file() for path in paths.values())
    result = score("--json", "-", "--save", paths["--save"])
    assert json.loads(result.stdout)["dims"]
    assert str(paths["--save"]) in result.stderr.replace("\n", "")
    shown = call("flow", PROMPT, "--model", tiny.directory("gpt2"), "--save", tmp_path / "flow").stdout
    assert str(tmp_path / "flow") in shown.replace("\n", "")
    shown = call("compare", "The cat", "The dog", "--model", tiny.directory("gpt2"), "--out", tmp_path / "pair").stdout
    assert str(tmp_path / "pair") in shown.replace("\n", "")


@pytest.mark.skipif(not HAS_DEMO_MODEL, reason="the demo model is not trained yet")
def test_a_prompt_that_goes_on():
    """An answer that is given, one that the model makes, a prompt from stdin; each token or all as one."""
    model = ls.demo.load()
    case = ls.demo.cases("translation", n=1, seed=1)[0]
    answer = f" {case.answer} !"
    asked = ls.score(model, case.prompt, ls.Continuation(answer), sites="embed")
    given = call("score", case.prompt, "--continuation", answer, "--sites", "embed", "--json", "-")
    found = json.loads(given.stdout)
    assert torch.allclose(torch.tensor(found["values"]), asked.values, rtol=1e-5)
    assert [target["text"] for target in found["meta"]["targets"]] == [f" {case.answer}", " !"]
    shown = call("score", case.prompt, "--continuation", answer).stdout
    assert re.search(rf"Explained as one: .*{case.answer}.*!.*; together -", shown)
    made = call(
        "score", case.prompt, "--generate", "2", "--scope", "semantic", "--target", "next", "--position", "completion"
    )
    assert made.stdout.count("After position") == 2
    total = runner.invoke(app, ["score", "-", "--generate", "2", "--reduce", "sum"], input=f"{case.prompt}\n")
    assert total.exit_code == 0, total.output
    assert "Summed over" in total.stdout
    assert "squared" in total.stdout
    assert "Explained as one" in call("flow", case.prompt, "--continuation", answer).stdout
    wrong = call("score", case.prompt, "--continuation", answer, "--generate", "2", code=2)
    assert "give one of them" in wrong.output


@pytest.mark.parametrize("mark", ["\f", "\v", "\u2028", "\x85", "\x1c"])
def test_a_prompt_ends_where_its_line_does(mark, tmp_path):
    """Of all that Python calls the end of a line, two are: a form feed is a character of the prompt."""
    from lens_scopes.commands.bench import _prompts
    from lens_scopes.commands.prompts import prompts_of

    path = tmp_path / "prompts.txt"
    path.write_bytes(f"one{mark}two\r\nthree\n".encode())
    assert prompts_of(None, path) == [f"one{mark}two", "three"]
    path.write_bytes(f'"one{mark}two"\n'.encode() if ord(mark) > 31 else b'"one"\n')
    assert len(_prompts(path)) == 1


def test_a_line_of_a_text_ends_where_a_line_does():
    tokens = ("a\f", "b\u2028", "c\r", "d\r\n", "e")
    found = ls.Scores(torch.ones(5), ("pos",), {"pos": tuple(range(5))}, tokens, {"units": "signed"})
    assert found.aggregate("line").meta["joined"] == [[0, 1, 2, 3], [4]]
