"""Data sets of prompts: every row is what ``score`` says of that prompt, whatever happens on the way."""

import json
import random

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import lens_scopes as ls
import tiny
from lens_scopes.corpus import parts
from lens_scopes.corpus.plan import Plan
from lens_scopes.corpus.rows import Row, rows_of

PROMPTS = ("The cat", "A dog and a cat", "The cat sat on the mat.", "it", "a dog, then the cat", "cat cat dog")
TOO_LONG = "the cat " * 40


@pytest.fixture(scope="module")
def model():
    return ls.load(tiny.directory("gpt2"))


def run(model, prompts, out, scope=None, **options):
    return ls.corpus.run(model, prompts, scope or ls.Semantic(), out, **options)


def equal(found: ls.Scores, expected: ls.Scores, allowed: float = 1e-5) -> None:
    """The same labels and facts, and the same numbers up to rounding."""
    assert (found.dims, found.coords, found.tokens) == (expected.dims, expected.coords, expected.tokens)
    assert found.values.dtype == expected.values.dtype
    torch.testing.assert_close(found.values, expected.values, rtol=0, atol=allowed * float(expected.values.abs().max()))
    assert (found.probes is None) == (expected.probes is None)
    if expected.probes is not None:
        largest = float(expected.probes.abs().max())
        torch.testing.assert_close(found.probes, expected.probes, rtol=0, atol=allowed * largest)
    near = ("targets", "predictions", "coverage", "notes", "value")  # rounded as the numbers are
    plain = {key: value for key, value in found.meta.items() if key not in near}
    assert plain == {key: value for key, value in expected.meta.items() if key not in near}
    assert found.meta.keys() == expected.meta.keys()
    for one, other in zip(found.meta["targets"], expected.meta["targets"], strict=True):
        assert (one is None) == (other is None)
        assert one is None or (one["id"], one["text"], one.keys()) == (other["id"], other["text"], other.keys())


def test_every_row_is_the_score_of_its_prompt(model, tmp_path):
    rows = [{"id": f"p{n}", "prompt": text, "kind": text[:1], "n": n} for n, text in enumerate(PROMPTS)]
    rows[2:2] = [{"id": "empty", "prompt": "", "n": 9}, {"id": "long", "prompt": TOO_LONG}]
    found = run(model, rows, tmp_path / "a", unit_tokens=8)
    assert (found.done, found.failed, found.todo) == (6, 2, 0)
    for n, text in enumerate(PROMPTS):
        equal(found.scores(f"p{n}"), ls.score(model, text, ls.Semantic()))
    assert sorted("".join(one.tokens) for one in found.scores()) == sorted(
        "".join(ls.score(model, text, ls.Semantic()).tokens) for text in PROMPTS
    )
    table = found.prompts().df().sort_values("row")
    assert table["id"].tolist() == [row["id"] for row in rows]
    assert table["kind"].fillna("").tolist() == [row.get("kind", "") for row in rows]


def test_a_bad_prompt_is_recorded_with_the_error_of_the_call(model, tmp_path):
    rows = [
        *PROMPTS,
        "",
        TOO_LONG,
        {"prompt": "The cat", "target": "no such token at all"},
        {"prompt": "it", "position": 9},
    ]
    found = run(model, rows, tmp_path)
    errors = found.errors().set_index("row")
    assert errors.index.tolist() == [6, 7, 8, 9]
    for row, call in {
        6: lambda: ls.score(model, "", ls.Semantic()),
        7: lambda: ls.score(model, TOO_LONG, ls.Semantic()),
        8: lambda: ls.score(model, "The cat", ls.Semantic("no such token at all")),
        9: lambda: ls.score(model, "it", ls.Semantic(), position=9),
    }.items():
        with pytest.raises(Exception) as raised:  # noqa: PT011 - whatever it is
            call()
        assert (errors.error_kind[row], errors.error[row]) == (type(raised.value).__name__, str(raised.value))
    with pytest.raises(ValueError, match="prompt '7' has no scores: ValueError: the prompt has"):
        found.scores("7")
    with pytest.raises(KeyError, match="has the id 'x'"):
        found.scores("x")


def test_on_error_stop_raises_it(model, tmp_path):
    with pytest.raises(ValueError, match="the prompt is empty"):
        run(model, ["The cat", ""], tmp_path, on_error="stop")
    assert not parts.path_of(tmp_path, 0).exists()


def test_a_model_leaves_a_run_with_bad_prompts_as_it_came(model, tmp_path):
    model.requires_grad_(True)
    run(model, [*PROMPTS, ""], tmp_path)
    assert all(p.requires_grad for p in model.parameters())
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


@pytest.mark.parametrize(
    ("scope", "options"),
    [
        (ls.Semantic(), {}),
        (ls.Semantic(), {"along": "activation"}),
        (ls.Semantic(), {"sites": "z"}),
        (ls.Semantic(), {"position": [0, -1]}),
        (ls.Fisher(passes=4), {"sites": ["embed", "blocks.1.hook_resid_post"]}),
        (ls.Continuation([264]), {"sites": "embed"}),
    ],
    ids=["norm", "signed", "heads", "positions", "estimate", "continuation"],
)
def test_what_is_read_back_is_what_was_computed(model, tmp_path, scope, options):
    prompts = [text for text in PROMPTS if text != "it"]
    found = run(model, prompts, tmp_path, scope, **options)
    assert found.failed == 0, found.errors().error.tolist()
    for n, text in enumerate(prompts):
        one = found.scores(str(n))
        equal(one, ls.score(model, text, scope, **options))
        if n == 0:  # nor does anything change on the way through a file of its own
            equal(ls.Scores.load(one.save(tmp_path / "one.safetensors")), one, 0.0)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_other_precisions(tmp_path, dtype):
    spec = {"path": tiny.directory("llama"), "dtype": dtype}
    found = run(spec, PROMPTS[:3], tmp_path)
    expected = ls.load(tiny.directory("llama"), dtype=getattr(torch, dtype))
    for n in range(3):
        equal(found.scores(str(n)), ls.score(expected, PROMPTS[n], ls.Semantic()), 1e-5 if dtype == "float64" else 0.05)


def test_flows_are_those_of_flow(model, tmp_path):
    found = run(model, PROMPTS[:4], tmp_path, flow=True)
    heads = found.heads().df()
    for n, text in enumerate(PROMPTS[:4]):
        flow = ls.flow(model, text, ls.Semantic())
        mine = heads[heads.id == str(n)].sort_values(["layer", "head"], na_position="last")
        every = torch.cat([flow.heads[0], flow.mlps[0][:, None]], 1).flatten()
        assert mine.influence.tolist() == pytest.approx(every.tolist(), abs=1e-5 * float(every.abs().max()))
        assert mine.share.tolist() == pytest.approx((every / flow.total).tolist(), abs=1e-4)


def test_a_prompt_has_its_own_target_position_and_scope(model, tmp_path):
    rows = [
        {"prompt": "The cat", "target": " dog"},
        {"prompt": "The cat", "versus": " cat", "target": " dog"},
        {"prompt": "The cat sat", "position": 0},
        {"prompt": "The cat sat", "position": [0, 1]},
    ]
    found = run(model, rows, tmp_path / "a")
    assert found.failed == 0, found.errors().error.tolist()
    equal(found.scores("0"), ls.score(model, "The cat", ls.Semantic(" dog")))
    equal(found.scores("1"), ls.score(model, "The cat", ls.Semantic(" dog", " cat")))
    equal(found.scores("2"), ls.score(model, "The cat sat", ls.Semantic(), position=0))
    equal(found.scores("3"), ls.score(model, "The cat sat", ls.Semantic(), position=[0, 1]))
    twice = run(model, rows[:1], tmp_path / "b", ls.Semantic(" cat"))
    assert "has a target of its own" in twice.errors().error[0]
    by_row = run(model, [{"prompt": "The cat", "of": " dog"}], tmp_path / "c", "test_corpus:made_of_row")
    equal(by_row.scores("0"), ls.score(model, "The cat", ls.Semantic(" dog")))


def made_of_row(row):
    assert set(row) == {"id", "prompt", "of"}
    return ls.Semantic(row["of"])


def test_prompts_come_in_any_form(model, tmp_path):
    rows = [{"prompt": text, "id": f"p{n}", "n": n, "position": None if n else 0} for n, text in enumerate(PROMPTS)]
    jsonl, parquet = tmp_path / "p.jsonl", tmp_path / "p.parquet"
    jsonl.write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), parquet)
    forms = [jsonl, str(parquet), pd.DataFrame(rows), iter(rows), tuple(rows), pa.Table.from_pylist(rows)]
    datasets = pytest.importorskip("datasets")
    forms.append(datasets.Dataset.from_list(rows))
    expected = rows_of(rows)
    for form in forms:
        assert rows_of(form) == expected, type(form)
    with pytest.raises(TypeError, match=r"prompts\['train'\]"):
        rows_of(datasets.DatasetDict(train=forms[-1]))


def test_ids_messages_and_texts_are_prompts_too(model, tmp_path):
    ids = ls.score(model, "The cat", ls.Semantic()).meta["token_ids"]
    text = ls.join(model, "The cat", " dog")
    found = run(model, [ids, torch.tensor(ids), text, {"prompt": text, "position": "completion"}], tmp_path)
    assert found.failed == 0, found.errors().error.tolist()
    for n in "01":
        equal(found.scores(n), ls.score(model, ids, ls.Semantic()))
    equal(found.scores("2"), ls.score(model, text, ls.Semantic()))
    equal(found.scores("3"), ls.score(model, text, ls.Semantic(), position="completion"))
    assert rows_of([[{"role": "user", "content": "hi"}]])[0].length > 1


def test_a_bad_line_is_recorded_with_its_number(model, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('"The cat"\n{"prompt": \n\n{"text": "it"}\n7\n', encoding="utf-8")
    errors = run(model, path, tmp_path / "out").errors()
    assert [text.split(":")[0] for text in errors.error] == [
        "line 2 of p.jsonl is not JSON",
        "line 4 of p.jsonl is no prompt",
        "line 5 of p.jsonl is no prompt",
    ]


@pytest.mark.parametrize(
    ("prompts", "kind", "text"),
    [
        ("p.csv", ValueError, "ends in .jsonl or .parquet"),
        ("p.jsonl", FileNotFoundError, "no file p.jsonl"),
        ([], ValueError, "no prompt"),
        ([{"text": "a"}], ValueError, "has the columns 'text'"),
        ([{"id": 1, "prompt": "a"}, {"id": 1, "prompt": "b"}], ValueError, "rows 0 and 1 have the same id '1'"),
        ([{"id": "1", "prompt": "a"}, "b"], ValueError, "same id '1'"),
        ([{"prompt": "a", "scores": 1}], ValueError, "column 'scores' of their own"),
        (3, TypeError, r"got 3 \(int\)"),
    ],
)
@pytest.mark.wrong_types
def test_prompts_that_are_none(model, tmp_path, prompts, kind, text):
    with pytest.raises(kind, match=text):
        run(model, prompts, tmp_path)


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"along": "x"}, ValueError, "along is one of None, 'activation'"),
        ({"on_error": "skip"}, ValueError, "on_error is one of 'record', 'stop'"),
        ({"sites": "resid"}, ValueError, "has no site"),
        ({"scope": "semantic"}, ValueError, "'module:function'"),
        ({"scope": "nowhere:f"}, ValueError, "No module named 'nowhere'"),
        ({"scope": ls.Semantic}, TypeError, r"write ls.Semantic\(\)"),
        ({"workers": -1}, ValueError, "write 0 or more"),
        ({"unit_tokens": 0}, ValueError, "write 1 or more"),
        ({"workers": 1}, ValueError, "a loaded model stays in this process"),
    ],
)
@pytest.mark.wrong_types
def test_what_would_fail_for_every_prompt_fails_at_once(model, tmp_path, options, kind, text):
    with pytest.raises(kind, match=text):
        run(model, PROMPTS, tmp_path, **options)
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_run_of_another_question_is_refused_with_the_field(model, tmp_path):
    run(model, PROMPTS, tmp_path)
    for change, text in (
        ({"scope": ls.Semantic(" dog")}, r"scope was Semantic\(\), and is Semantic\(target=' dog'\) now"),
        ({"prompts": PROMPTS[:2]}, "prompts was '6 prompts, .*and is '2 prompts"),
        ({"sites": "embed"}, "sites was"),
        ({"position": 0}, "position was -1, and is 0 now"),
        ({"along": "activation"}, "along was None"),
        ({"flow": True}, "flow was False, and is True now"),
        ({"model": str(tiny.directory("llama"))}, "model was"),
    ):
        given = {"model": model, "prompts": PROMPTS, "out": tmp_path} | change
        with pytest.raises(ValueError, match=text):
            run(**given)
    with pytest.raises(ValueError, match="holds a run already"):
        run(model, PROMPTS, tmp_path, resume=False)


def test_other_weights_and_versions_are_another_question(model, tmp_path):
    run(model, PROMPTS[:2], tmp_path)
    about = json.loads((tmp_path / "run.json").read_text())
    about["question"]["versions"]["torch"] = "1.0"
    (tmp_path / "run.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="versions was"):
        run(model, PROMPTS[:2], tmp_path)
    changed = ls.load(tiny.directory("gpt2"))
    next(p for p in changed.parameters() if p.ndim == 1).data[0] += 1
    with pytest.raises(ValueError, match="weights was"):
        run(changed, PROMPTS[:2], tmp_path)


def test_another_format_is_refused(model, tmp_path):
    run(model, PROMPTS[:1], tmp_path)
    text = (tmp_path / "run.json").read_text().replace('"format": 1', '"format": 2')
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match="has format 2"):
        ls.corpus.open(tmp_path)
    with pytest.raises(FileNotFoundError, match="no run in"):
        ls.corpus.open(tmp_path / "parts")


def test_what_is_done_is_not_done_again(model, tmp_path):
    first = run(model, PROMPTS, tmp_path, unit_tokens=6)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    assert len(before) == first.plan.units > 2
    run(model, PROMPTS, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()} == before


def test_a_part_cut_short_is_done_again_and_half_written_files_go(model, tmp_path):
    first = run(model, PROMPTS, tmp_path, unit_tokens=6)
    path = parts.path_of(tmp_path, 1)
    whole = first.prompts().df()
    path.write_bytes(path.read_bytes()[:-100])
    stray = path.with_name(f".{path.name}.1.abc")
    stray.write_bytes(b"half")
    again = run(model, PROMPTS, tmp_path).prompts().df()
    assert not stray.exists()
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), whole.drop(columns="seconds"))


def test_a_part_of_another_run_is_refused(model, tmp_path):
    run(model, PROMPTS, tmp_path / "a")
    run(model, PROMPTS, tmp_path / "b", ls.Fisher())
    path = parts.path_of(tmp_path / "a", 0)
    path.write_bytes(parts.path_of(tmp_path / "b", 0).read_bytes())
    with pytest.raises(ValueError, match="belongs to another run"):
        run(model, PROMPTS, tmp_path / "a")
    for read in (lambda found: list(found.scores()), lambda found: found.done, lambda found: found.profile("site")):
        with pytest.raises(ValueError, match="belongs to another run"):
            read(ls.corpus.open(tmp_path / "a"))


def test_two_runs_in_one_folder_are_one_too_many(model, tmp_path):
    refused = []

    def scope(state):
        if not refused:
            with pytest.raises(RuntimeError, match="another run is at work in") as raised:
                run(model, PROMPTS, tmp_path)
            refused.append(raised)
        return ls.Semantic()(state)

    found = run(model, PROMPTS, tmp_path, scope)
    assert refused
    assert found.failed == 0


def test_units_of_any_size_and_prompts_in_any_order_give_the_same_rows(model, tmp_path):
    seed = random.SystemRandom().randrange(10**6)
    print("seed", seed)
    rng = random.Random(seed)
    expected = {text: ls.score(model, text, ls.Semantic()) for text in PROMPTS}
    for trial in range(4):
        rows = [{"prompt": rng.choice(PROMPTS), "id": f"{n}"} for n in range(rng.randrange(1, 30))]
        found = run(model, rows, tmp_path / str(trial), unit_tokens=rng.randrange(1, 60))
        table = found.prompts().df()
        assert sorted(table["row"]) == list(range(len(rows)))
        assert (found.done, found.failed, found.todo) == (len(rows), 0, 0)
        for row in rows:
            equal(found.scores(row["id"]), expected[row["prompt"]])


def test_a_plan_has_each_prompt_once_and_the_longest_first(tmp_path):
    seed = random.SystemRandom().randrange(10**6)
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(20):
        rows = [Row(str(n), "x" * rng.randrange(200)) for n in range(rng.randrange(1, 60))]
        size = rng.randrange(1, 100)
        plan = Plan.make(tmp_path, rows, {}, size)
        assert sorted(plan.table["row"].to_pylist()) == list(range(len(rows)))
        lengths = plan.table["length"].to_pylist()
        assert lengths == sorted(lengths, reverse=True)
        units = dict(plan.slices())
        assert list(units) == list(range(plan.units))
        assert sum(map(len, units.values())) == len(rows)
        assert all(len(unit) == 1 or sum(unit["length"].to_pylist()) <= size for unit in units.values())


def test_columns_of_mixed_types_are_kept_as_json(model, tmp_path):
    rows = [{"prompt": "The cat", "x": 1, "y": 1.5, "z": None}, {"prompt": "it", "x": "a", "y": None, "z": None}]
    table = run(model, rows, tmp_path).prompts().df().sort_values("row")
    assert table.x.tolist() == ["1", '"a"']
    assert table.y.tolist()[0] == 1.5
    assert table.z.isna().all()


def test_texts_that_no_file_can_hold(model, tmp_path):
    found = run(model, [{"prompt": "The cat", "id": "\ud800"}, "it \udc00"], tmp_path)
    assert found.errors().id.tolist() == ["1"]
    assert found.scores("\\ud800").tokens
