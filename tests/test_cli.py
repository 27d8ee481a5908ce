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
    torch.testing.assert_close(torch.tensor(content["values"]), wanted.values)
    torch.testing.assert_close(torch.tensor(content["stderr"]), wanted.stderr)
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


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--target", "zzzzz"], "is not one token"),
        (["--position", "99"], "outside the prompt"),
        (["--position", "last"], "not a number"),
        (["--sites", "nowhere"], "has no site"),
        (["--aggregate", "paragraph"], "knows 'word'"),
        (["--scope", "fisher", "--target", "a"], "--target"),
        (["--scope", "temperature", "--rank", "3"], "--rank"),
        (["--scope", "fisher", "--rank", "3", "--passes", "4"], "one of them"),
        (["--scope", "fisher", "--passes", "1"], "at least 2"),
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
    wanted = ls.flow(ls.load(tiny.directory("gpt2"), backend=backend), PROMPT, ls.Semantic(), sources="each")
    top = wanted.top(3)
    found = re.findall(r"^ +(MLP (\d+)|(\d+)\.(\d+)) +(-?[\d.e-]+) +(-?[\d.]+) %", shown, flags=re.MULTILINE)
    assert [(row[3] or None) for row in found] == [None if h is pd.NA else str(h) for h in top["head"].tolist()]
    assert [float(row[4]) for row in found] == pytest.approx(top.influence.tolist(), rel=0.01)
    assert [float(row[5]) for row in found] == pytest.approx((100 * top.share).tolist(), abs=0.06)
    assert len(re.findall("→ prediction$", shown, flags=re.MULTILINE)) == 2
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
    assert "--sources got 'all'" in result.stderr


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
