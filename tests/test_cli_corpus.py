"""The command corpus: a run from a file, what a folder holds, and how it fails."""

import json

import pytest

import lens_scopes as ls
import tiny
from test_cli import call

PROMPTS = ["The cat sat", "A dog", "a cat, the dog", ""]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(map(json.dumps, PROMPTS)), encoding="utf-8")
    return path


def corpus(*arguments, code=0):
    return call("corpus", *arguments, "--model", tiny.directory("gpt2"), code=code)


def test_a_run_says_what_is_done_and_what_failed(prompts, tmp_path):
    said = corpus(prompts, "--out", tmp_path / "out", "--target", " dog", "--sites", "embed").stdout
    assert "Semantic(target=' dog') on tiny-gpt2: 3 of 4 prompts done, 1 failed" in said
    assert "3: ValueError: the prompt is empty" in said
    found = ls.corpus.open(tmp_path / "out")
    expected = ls.score(ls.load(tiny.directory("gpt2")), PROMPTS[1], ls.Semantic(" dog"), sites="embed")
    assert found.scores("1").values.tolist() == [pytest.approx(expected.values[0].tolist(), rel=1e-5)]
    assert f"{float(found.profile('site').mean[0]):.3g}" in said


@pytest.mark.parametrize(("by", "label"), [("site", "0 resid_post"), ("head", "1.2"), ("token", "dog")])
def test_show_prints_means(prompts, tmp_path, by, label):
    corpus(prompts, "--out", tmp_path / "out", "--flow")
    said = call("corpus", "--show", tmp_path / "out", "--by", by, "--site", "embed", "--top", 9).stdout
    assert "3 of 4 prompts done" in said
    assert "± stderr" in said
    assert label in said


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "give PROMPTS and --out"),
        (("p.jsonl",), "give PROMPTS and --out"),
        (("p.jsonl", "--show", "x"), "give PROMPTS and --out"),
        (("nothing.jsonl", "--out", "out"), "no file nothing.jsonl"),
        (("p.jsonl", "--out", "out", "--scope", "x"), "--scope is one of"),
        (("p.jsonl", "--out", "out", "--position", "x"), "--position got 'x'"),
        (("--show", "nowhere"), "no run in nowhere"),
    ],
)
def test_errors_are_one_line(prompts, tmp_path, monkeypatch, arguments, text):
    monkeypatch.chdir(tmp_path)
    result = (
        corpus(*arguments, code=2)
        if "--show" not in arguments or "p.jsonl" in arguments
        else call("corpus", *arguments, code=2)
    )
    assert text in result.stderr
    assert result.stderr.strip().splitlines()[-1].endswith("(lens-scopes corpus --help)")
