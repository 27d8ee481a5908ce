"""The commands bench and compare: what they write, that they go on where they stopped, and how they fail."""

import errno
import json
import os

import pytest
import torch
from typer.testing import CliRunner

import lens_scopes as ls
import tiny
from lens_scopes.commands.main import app

PROMPTS = ["The cat sat on the mat", {"text": "A dog and a cat; the dog"}, {"tokens": tiny.tokens(8)}]


def call(*arguments, code=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "120"})
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(p) + "\n" for p in PROMPTS), encoding="utf-8")
    return path


def bench(prompts, out, *more, code=0):
    model, methods = tiny.directory("gpt2"), "semantic,random"
    return call("bench", "--model", model, "--prompts", prompts, "--methods", methods, "--out", out, *more, code=code)


def test_bench_writes_what_compare_methods_says(prompts, tmp_path):
    import pandas as pd

    result = bench(prompts, tmp_path / "out", "--leave-one-out", "--replace", "mean", "--skip-first")
    plain = ["The cat sat on the mat", "A dog and a cat; the dog", tiny.tokens(8)]
    expected = ls.evaluate.compare_methods(
        ls.load(tiny.directory("gpt2")), plain, ["semantic", "random"], leave_one_out=True, replace="mean", skip=(0,)
    )
    found = ls.evaluate.Table.load(tmp_path / "out" / "table.safetensors")
    assert torch.equal(found.values, expected.values)
    assert found.methods == ("semantic", "random", "gradient_x_input", "last_first", "first_first")
    assert (tmp_path / "out" / "table.md").read_text(encoding="utf-8") == expected.to_markdown() + "\n"
    assert expected.to_markdown().splitlines()[2] in result.stdout
    assert len(pd.read_parquet(tmp_path / "out" / "per_prompt.parquet")) == found.values.numel()
    assert len(pd.read_parquet(tmp_path / "out" / "summary.parquet")) == 5 * 5


def test_bench_goes_on_where_it_stopped(prompts, tmp_path, monkeypatch):
    out = tmp_path / "out"
    bench(prompts, out)
    whole, rows = (out / "table.md").read_text(encoding="utf-8"), (out / "rows.jsonl").read_text(encoding="utf-8")
    lines = rows.splitlines(keepends=True)
    (out / "rows.jsonl").write_text("".join(lines[:2]) + lines[2][:30], encoding="utf-8")  # killed while writing
    asked = []
    original = ls.evaluate.table.attribute
    monkeypatch.setattr(ls.evaluate.table, "attribute", lambda q, m: asked.append(q.ids) or original(q, m))
    bench(prompts, out)
    assert (out / "table.md").read_text(encoding="utf-8") == whole
    assert (out / "rows.jsonl").read_text(encoding="utf-8") == rows
    assert len(asked) == 2 * 5  # two prompts, three methods and two references
    assert "rows of another comparison" in bench(prompts, out, "--seed", 1, code=2).stderr


@pytest.mark.parametrize(
    ("content", "options", "text"),
    [
        ("{", (), "line 1 of"),
        ('{"words": 3}', (), 'write {"text"'),
        ("", (), "got none"),
        ('"The cat"', ("--fractions", "much"), "--fractions got 'much'"),
        ('"The cat"', ("--baseline", "nothing"), "there is no method 'nothing'"),
    ],
)
def test_bench_errors_are_one_line(tmp_path, content, options, text):
    path = tmp_path / "prompts.jsonl"
    path.write_text(content, encoding="utf-8")
    result = bench(path, tmp_path / "out", *options, code=2)
    last = [line for line in result.stderr.splitlines() if line.startswith("lens-scopes:")]
    assert len(last) == 1
    assert text in last[0]


def test_compare_writes_a_comparison(tmp_path):
    clean, corrupted = "The cat sat", "The dog sat"
    model = ls.load(tiny.directory("gpt2"))
    if model.to_tokens(clean).shape != model.to_tokens(corrupted).shape:
        pytest.skip("the tokenizer splits them differently")
    result = call("compare", clean, corrupted, "--model", tiny.directory("gpt2"), "--sites", "z", "--out", tmp_path)
    found = ls.patching.Comparison.load(tmp_path / "comparison.safetensors")
    expected = ls.patching.measure(model, clean, corrupted, ls.Semantic(), sites="z")
    assert torch.equal(found.measured.values, expected.values)
    assert "spearman" in result.stdout
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "://" not in page
    assert clean in page
    assert corrupted in page
    assert "largest measured effects" in page


def test_compare_offers_no_scope_that_it_has_no_argument_for():
    shown = call("compare", "--help").stdout
    assert "semantic|" in shown
    assert "continuation" not in shown


@pytest.mark.filterwarnings("ignore:.*points of the path miss")
def test_compare_along_a_path_says_what_the_points_missed():
    prompts, options = ("The cat sat", "The dog sat"), ("--model", tiny.directory("gpt2"), "--sites", "z")
    stdout = call("compare", *prompts, *options, "--method", "fixed", "--steps", 3).stdout
    model = ls.load(tiny.directory("gpt2"))
    expected = ls.patching.predict(model, *prompts, ls.Semantic(), sites="z", method="fixed", steps=3)
    (shown,) = [float(line.split()[1]) for line in stdout.splitlines() if line.split()[0] == "gap"]
    assert shown == pytest.approx(expected.meta["gap"], rel=0.01)
    gradient = call("compare", *prompts, *options, "--method", "gradient").stdout
    assert "gap" not in gradient
    assert ["method", "gradient"] in [line.split() for line in gradient.splitlines()]


@pytest.mark.parametrize(
    ("command", "files"),
    [
        ("bench", ("table.safetensors", "summary.parquet", "per_prompt.parquet", "table.md", "rows.jsonl")),
        ("compare", ("comparison.safetensors", "comparison.parquet", "comparison.html")),
    ],
)
def test_a_disk_that_is_full_costs_no_file_that_was_there(prompts, tmp_path, monkeypatch, command, files):
    out = tmp_path / "out"

    def run(code=0):
        if command == "bench":
            return bench(prompts, out, code=code)
        return call("compare", "The cat sat", "The dog sat", "--model", tiny.directory("gpt2"), "--out", out, code=code)

    run()
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(before) == set(files)

    for turn in range(len(files)):
        written = []

        def full(file, turn=turn, written=written):
            written.append(file)
            if len(written) > turn:
                raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            assert "No space left" in run(code=2).stderr
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_compare_refuses_prompts_of_different_length():
    result = call("compare", "The cat", "The cat sat on", "--model", tiny.directory("gpt2"), code=2)
    assert "write prompts of one length" in result.stderr
