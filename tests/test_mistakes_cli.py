"""Mistakes on the command line: each is one line on stderr with what was got, what is allowed, what to write; exit code 2."""

import json

import pytest
from typer.testing import CliRunner

import tiny
from lens_scopes.commands.main import app

pytestmark = pytest.mark.host

PROMPT = "The cat sat on the"
runner = CliRunner()


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Files of prompts: a good one, one that is no JSON, one of numbers, one without any."""
    folder = tmp_path_factory.mktemp("prompts")
    lines = {"good": json.dumps(PROMPT), "words": PROMPT, "numbers": "3", "none": ""}
    for name, line in lines.items():
        (folder / name).write_text(line + "\n", encoding="utf-8")
    return folder


SCORE, FLOW = ["score", PROMPT], ["flow", PROMPT]
BENCH, COMPARE = ["bench", "--out", "{out}"], ["compare"]

#: By name: the words, and what the answer says: what was got, what is allowed, what to write.
MISTAKES = {
    "neither a prompt nor a file": (["score"], ("give a PROMPT", "--prompts FILE", "score --help")),
    "several tokens for a target": ([*SCORE, "--target", "zebra"], ("'zebra'", "not one token", "write one of their ids")),
    "an id outside the vocabulary": ([*SCORE, "--target", "#999999"], ("999999", "0 to 319", "write an id in it")),
    "half a character": ([*SCORE, "--target", "\udcff"], ("'\\udcff'", "whole characters", "write the whole")),
    "no such scope": ([*SCORE, "--scope", "fischer"], ("got 'fischer'", "--scope is one of", "'fisher'")),
    "a target for Fisher": ([*SCORE, "--scope", "fisher", "--target", "a"], ("not --target", "--scope fisher takes", "--passes")),
    "a rank for Temperature": (
        [*SCORE, "--scope", "temperature", "--rank", "3"],
        ("not --rank", "no further options", "--scope temperature takes"),
    ),
    "passes and rank": (
        [*SCORE, "--scope", "fisher", "--rank", "3", "--passes", "4"],
        ("--passes and --rank", "two ways to spend a budget", "give one of them"),
    ),
    "one pass": ([*SCORE, "--scope", "fisher", "--passes", "1"], ("got 1", "one has no standard error", "write 2 or more")),
    "passes in words": (
        [*SCORE, "--scope", "fisher", "--passes", "many"],
        ("--passes got 'many'", "a whole number", "write a whole number or 'exact'"),
    ),
    "a position outside": ([*SCORE, "--position", "99"], ("position 99", "has 6 tokens", "write -6 to 5")),
    "a position in words": (
        [*SCORE, "--position", "last"],
        ("--position got 'last'", "not a number", "write a whole number or 'all'"),
    ),
    "a position twice": ([*SCORE, "--position", "5,-1"], ("[5, -1]", "twice", "name each once")),
    "no such site": ([*SCORE, "--sites", "nowhere"], ("no site 'nowhere'", "it has hook_embed", "blocks.0.hook_resid_post")),
    "sites with and without heads": ([*SCORE, "--sites", "z,embed"], ("'hook_embed'", "do not fit", "make two calls")),
    "fewer than no prompts": (
        [*BENCH, "--prompts", "{prompts}/good", "--limit", "-1"],
        ("--limit is an integer, got -1", "got -1", "write 1 or more"),
    ),
    "no prompts at all": (
        [*BENCH, "--prompts", "{prompts}/good", "--limit", "0"],
        ("--limit is an integer", "got 0", "write 1 or more"),
    ),
    "no tokens to generate": ([*SCORE, "--generate", "0"], ("max_new_tokens is an integer", "got 0", "write 1 or more")),
    "no rank": ([*SCORE, "--scope", "fisher", "--rank", "0"], ("rank", "got 0", "write 1 or more")),
    "no labels": (["corpus", "--show", "{out}", "--top", "0"], ("--top is an integer", "got 0", "write 1 or more")),
    "a seed below all": ([*BENCH, "--prompts", "{prompts}/good", "--seed", "-1"], ("seed", "got -1", "write 0 or more")),
    "fewer than no workers": (
        ["corpus", "{prompts}/good", "--out", "{out}", "--workers", "-1"],
        ("workers is an integer", "got -1", "write 0 or more"),
    ),
    "a port below all": (["serve", "--port", "-1"], ("port", "got -1", "write 0 or more")),
    "no such joining": ([*SCORE, "--aggregate", "verse"], ("got 'verse'", "knows 'word'", "write aggregate('word')")),
    "no such direction": ([*SCORE, "--along", "sideways"], ("got 'sideways'", "None, 'activation'", "write along='activation'")),
    "no such model": ([*SCORE, "--model", "/no/such/place"], ("/no/such/place", "a name on the hub, a directory", "write one")),
    "no such directory to save to": ([*SCORE, "--save", "/no/such/place/x"], ("/no/such/place", "to write x to", "make it first")),
    "a table to save": ([*SCORE, "--save", "x.csv"], ("got 'x.csv'", "a .safetensors file", "write to_dataframe().to_csv")),
    "a prompt without tokens": (["score", ""], ("got ''", "nothing to explain", "write at least one token")),
    "a prompt that is too long": (["score", "cat " * 100], ("tokens", "a context of 32", "write a shorter one")),
    "a source that is no token": ([*FLOW, "--sources", "sieht"], ("got 'sieht'", "positions or tokens", "write one of 0 ")),
    "a source outside": ([*FLOW, "--sources", "99"], ("position 99", "has 6 tokens", "write -6 to 5")),
    "a negative number of heads": ([*FLOW, "--top", "-1"], ("got -1", "is an integer", "write 0 or more")),
    "a negative number of paths": ([*FLOW, "--paths", "-1"], ("got -1", "is an integer", "write 1 or more")),
    "prompts of two lengths": (
        [*COMPARE, "The cat", "The cat sat"],
        ("clean has", "position by position", "write prompts of one length"),
    ),
    "no steps": ([*COMPARE, "The cat", "The dog", "--steps", "0"], ("got 0", "the points of the path", "write 1 or more")),
    "no such file": ([*BENCH, "--prompts", "/no/such/file"], ("/no/such/file", "No such file", "bench --help")),
    "prompts that are no JSON": ([*BENCH, "--prompts", "{prompts}/words"], ("line 1 of", "is not JSON", 'write {"text": "..."}')),
    "numbers for prompts": ([*BENCH, "--prompts", "{prompts}/numbers"], ("line 1 of", "got 3", 'write {"text": "..."}')),
    "a file without prompts": ([*BENCH, "--prompts", "{prompts}/none"], ("got none", "at least one prompt", "write")),
    "no such method": (
        [*BENCH, "--prompts", "{prompts}/good", "--methods", "semantics"],
        ("no method 'semantics'", "fisher_low_rank_<k>", "write one of semantic"),
    ),
    "shares in percent": (
        [*BENCH, "--prompts", "{prompts}/good", "--fractions", "5"],
        ("got (5.0,)", "between 0 and 1", "write e.g. (0.05"),
    ),
    "shares in words": (
        [*BENCH, "--prompts", "{prompts}/good", "--fractions", "few"],
        ("--fractions got 'few'", "between 0 and 1", "write numbers"),
    ),
}  # fmt: skip


def called(arguments):
    return runner.invoke(app, [str(one) for one in arguments], env={"COLUMNS": "120"})


def test_there_are_enough_of_them():
    assert len(MISTAKES) >= 25


WRONG_TYPES = {"no such direction"}


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[pytest.mark.wrong_types] * (one in WRONG_TYPES)) for one in MISTAKES]
)
def test_a_mistake_is_answered(name, prompts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, parts = MISTAKES[name]
    filled = [one.replace("{prompts}", str(prompts)).replace("{out}", str(tmp_path / "out")) for one in arguments]
    filled += [] if "--model" in filled else ["--model", str(tiny.directory("gpt2")), "--backend", tiny.BACKENDS[-1]]
    result = called(filled)
    assert result.exit_code == 2, result.output
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("lens-scopes: ")
    assert [part for part in (*parts, f"lens-scopes {arguments[0]} --help") if part not in last] == [], last
    assert "Traceback" not in result.output
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([*SCORE, "--positoin", "1"], "--positoin"),
        ([*SCORE, "--backend", "tf"], "hooked"),
        ([*FLOW, "--position", "last"], "Invalid value"),
        (["scores", PROMPT], "scores"),
        (["bench"], "--prompts"),
    ],
)
def test_what_is_no_command_line_at_all_is_told_by_the_parser(arguments, says):
    """An option that is missing, unknown or of the wrong kind: with the usage, and exit code 2."""
    result = called(arguments)
    assert result.exit_code == 2
    assert says.lower() in result.output.lower()
    assert "Usage" in result.output
    assert "Traceback" not in result.output
