"""The page's questions without a server: validated, answered one after the other, left at any moment, written as Python."""

import contextlib
import json
import random
import sys
import threading
import time
from concurrent.futures import CancelledError

import pytest
import torch

import lens_scopes as ls
from lens_scopes.serve import Busy, Cancelled, Session, read
from lens_scopes.serve.asks import VERBS
from lens_scopes.serve.session import WAITING

CASE = ls.demo.cases("ioi", n=1, seed=1)[0]
SEMANTIC = {"kind": "semantic", "target": CASE.answer, "versus": CASE.versus}
ABOUT = {"prompt": CASE.prompt, "scope": SEMANTIC}
PAIR = {"clean": CASE.prompt, "corrupted": CASE.corrupted, "scope": SEMANTIC}
PATCH = {"prompt": CASE.corrupted, "clean": CASE.prompt, "scope": SEMANTIC, "by": "patch"}

#: Every verb, every scope and every kind of place.
ASKED = [
    ("tokens", {"prompt": CASE.prompt}),
    ("tokens", {"prompt": [1, 100, 55], "position": 1}),
    ("generate", {"prompt": CASE.prompt, "n": 3, "temperature": 1.5, "seed": 4}),
    ("score", ABOUT),
    ("score", {**ABOUT, "sites": "z", "level": "word", "first": "hide"}),
    ("score", {**ABOUT, "along": "activation", "first": "share"}),
    ("score", {"prompt": CASE.prompt, "scope": {"kind": "fisher", "passes": 4}, "position": 5}),
    ("score", {"prompt": CASE.prompt, "scope": {"kind": "temperature"}, "level": "sentence"}),
    ("score", {"prompt": CASE.prompt, "scope": {"kind": "entropy"}, "sites": "mlp_out"}),
    ("score", {"prompt": CASE.prompt, "scope": {"kind": "continuation"}, "position": [3, 4, 5]}),
    ("flow", ABOUT),
    ("edges", {**ABOUT, "layer": 1, "head": 2, "most": 5}),
    ("predict", PAIR),
    ("measure", {**PAIR, "largest": 11}),
    ("measure", {**PAIR, "largest": 5, "sites": "z"}),
    ("cut", {**PATCH, "site": 2, "pos": 10}),
    ("cut", {**PATCH, "sites": "z", "site": 1, "pos": 14, "head": 0}),
    ("cut", {**PATCH, "sites": "z", "site": 1, "head": 0}),
    ("cut", {**ABOUT, "site": 1, "pos": 4, "by": "mean"}),
    ("cut", {**ABOUT, "site": 0, "pos": 2, "by": "zero"}),
    ("cut", {**ABOUT, "sites": "z", "site": 2, "head": 3, "by": "zero"}),
    ("cut", {"prompt": CASE.prompt, "scope": {"kind": "fisher", "passes": 8}, "site": 1, "pos": 4, "by": "mean"}),
]
NAMED = [f"{verb}-{n}" for n, (verb, _) in enumerate(ASKED)]


@pytest.fixture(scope="module")
def model():
    return ls.demo.load()


@pytest.fixture
def session(model):
    session = Session(model)
    yield session
    session.close()


def shape_of(model):
    """What must be as it was: hooks, gradient flags, mode, random state."""
    places = [*model.hook_dict.values(), *model.modules()]
    return (
        [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in places],
        [p.requires_grad for p in model.parameters()],
        model.training,
        torch.get_rng_state().tolist(),
        [block.__dict__.get("forward") for block in model.blocks],
    )


def numbers(value):
    """Every number of an answer, in order."""
    if isinstance(value, dict):
        return [n for one in value.values() for n in numbers(one)]
    if isinstance(value, list | tuple):
        return [n for one in value for n in numbers(one)]
    return [value] if isinstance(value, float | int) else []


@pytest.mark.parametrize(("verb", "fields"), ASKED, ids=NAMED)
def test_the_recipe_gives_the_page_s_results_bit_for_bit(session, model, verb, fields, monkeypatch):
    ask = read(verb, fields)
    answer = session.ask(ask)
    text = session.ask(read("export", {"kind": "python", "asks": [[verb, fields]]}))["text"]
    monkeypatch.setattr(ls.demo, "load", lambda: model)
    space: dict = {}
    exec(text, space)
    found = space["answers"]
    if verb == "tokens":
        p = [one["p"] for one in answer["next"]]
        assert torch.equal(found[0][[one["id"] for one in answer["next"]]], torch.tensor(p, dtype=torch.float64))
        return
    own = [session.result(call) for call in ask.calls(session.result)]
    assert len(own) == len(found) > 0
    for one, other in zip(own, found, strict=True):
        assert type(one) is type(other)
        for name in ("values", "probes", "heads", "mlps", "stream", "edges", "ids"):
            mine, theirs = getattr(one, name, None), getattr(other, name, None)
            same = (
                torch.equal(mine.nan_to_num(7.5), theirs.nan_to_num(7.5)) if torch.is_tensor(mine) else mine == theirs
            )
            assert same, name
        if verb == "cut" and hasattr(one, "measured"):
            assert torch.equal(one.measured.values.nan_to_num(7.5), other.measured.values.nan_to_num(7.5))
            assert torch.equal(one.predicted.values.nan_to_num(7.5), other.predicted.values.nan_to_num(7.5))
    json.dumps(answer, allow_nan=False)


def test_a_table_on_the_page_has_the_numbers_of_the_score(session, model):
    (grid,) = session.ask(read("score", ABOUT))["grids"]
    values = ls.score(model, CASE.prompt, ls.Semantic(CASE.answer, CASE.versus)).values
    assert torch.equal(torch.tensor(grid["values"]), values)


def test_a_patch_says_what_predict_and_measure_say(session, model):
    answer = session.ask(read("cut", {**PATCH, "site": 2, "pos": 10}))
    scope = ls.Semantic(CASE.answer, CASE.versus)
    predicted = ls.patching.predict(model, CASE.prompt, CASE.corrupted, scope).values[2, 10]
    measured = ls.patching.measure(model, CASE.prompt, CASE.corrupted, scope)
    assert answer["predicted"] == float(predicted)
    assert answer["measured"] == pytest.approx(float(measured.values[2, 10]), abs=1e-5)
    assert answer["after"] - answer["before"] == pytest.approx(answer["measured"])
    assert answer["before"] == measured.meta["metric"]["corrupted"]


@pytest.mark.parametrize("by", ["mean", "zero"])
def test_a_cut_is_predicted_by_the_gradient_along_what_is_taken_away(session, model, by):
    answer = session.ask(read("cut", {**ABOUT, "site": 1, "pos": 4, "by": by}))
    activations = {}
    model.run_with_hooks(
        model.to_tokens(CASE.prompt),
        fwd_hooks=[("blocks.0.hook_resid_post", lambda x, hook: activations.update(x=x[0].detach().clone()))],
    )
    x = activations["x"]
    others = (x.sum(0) - x[4]) / (len(x) - 1)
    new = others if by == "mean" else torch.zeros_like(others)
    along = torch.zeros(1, *x.shape)
    along[0, 4] = new - x[4]
    scope = ls.Semantic(CASE.answer, CASE.versus)
    expected = ls.score(model, CASE.prompt, scope, sites=["blocks.0.hook_resid_post"], along=along).values[0, 4]
    assert answer["predicted"] == pytest.approx(float(expected), rel=1e-4, abs=1e-6)

    def replace(activation, hook):
        activation[0, 4] = new
        return activation

    tokens = model.to_tokens(CASE.prompt)
    ids = [model.tokenizer.convert_tokens_to_ids(word) for word in (CASE.answer, CASE.versus)]
    with torch.no_grad():
        runs = [model(tokens), model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.hook_resid_post", replace)])]
    before, after = (float(run[0, -1, ids[0]] - run[0, -1, ids[1]]) for run in runs)
    assert answer["measured"] == pytest.approx(after - before, rel=1e-3, abs=1e-4)


def test_measuring_says_how_far_it_is_and_measures_the_largest(session):
    said = []
    answer = session.ask(read("measure", {**PAIR, "largest": 11}), said.append)
    assert [line["progress"] for line in said] == [[8, 11], [11, 11]]
    predicted = torch.tensor(session.ask(read("predict", PAIR))["grids"][0]["values"]).abs()
    least = min(predicted[tuple(place)] for place in answer["places"])
    assert len(answer["places"]) == 11
    assert int((predicted > least).sum()) < 11


def test_a_result_is_kept_whatever_is_shown_of_it(session, monkeypatch):
    session.ask(read("score", ABOUT))
    from lens_scopes.serve.calls import Call

    monkeypatch.setattr(Call, "run", lambda *_, **__: pytest.fail("asked the model again"))
    assert len(session.ask(read("score", {**ABOUT, "level": "word", "first": "hide"}))["grids"]) == 1


def test_what_is_kept_is_of_the_model_as_it_is(session, model):
    weight = model.blocks[1].mlp.out.original_component.weight
    before = numbers(session.ask(read("score", ABOUT)))
    patched = numbers(session.ask(read("cut", {**PATCH, "site": 2, "pos": 10})))
    kept = weight.data.clone()
    weight.data.mul_(1.5)
    try:
        changed = numbers(session.ask(read("score", ABOUT)))
        assert changed == numbers(Session(model).ask(read("score", ABOUT))) != before
        other = numbers(session.ask(read("cut", {**PATCH, "site": 2, "pos": 10})))
        assert other != patched
    finally:
        weight.data.copy_(kept)
    assert numbers(session.ask(read("score", ABOUT))) == before


def test_twenty_at_a_time_get_what_one_after_the_other_gets(model):
    asked = [("score", {**ABOUT, "position": n % 15, "scope": {"kind": kind}}) for n, kind in
             zip(range(20), ["semantic", "entropy", "temperature", "semantic"] * 5, strict=True)]  # fmt: skip
    one = Session(model)
    serial = [one.ask(read(*ask)) for ask in asked]
    one.close()
    many, found = Session(model), {}
    threads = [
        threading.Thread(target=lambda n=n, ask=ask: found.update({n: many.ask(read(*ask))}))
        for n, ask in enumerate(asked)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    many.close()
    for n, answer in enumerate(serial):
        assert numbers(found[n]) == pytest.approx(numbers(answer), rel=1e-6)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_leaving_at_any_moment_leaves_the_model_as_it_was(model, seed):
    """Fifty times, somewhere in a forward, a backward or a forward-mode pass."""
    chance = random.Random(seed)
    session = Session(model)
    expected = numbers(session.ask(read("score", {**ABOUT, "sites": "attn_out"})))
    before = shape_of(model)  # a Bridge hangs hooks of its own into its modules in its first run
    asked = [
        ("flow", ABOUT),
        ("score", {"prompt": CASE.prompt, "scope": {"kind": "fisher", "passes": 16}}),
        ("measure", {**PAIR, "largest": 20}),
        ("generate", {"prompt": CASE.prompt, "n": 8}),
    ]
    answered, takes = 0, []
    for one in asked:  # how long each is at work on this machine, the second time
        Session(model).ask(read(*one))
        begun = time.perf_counter()
        Session(model).ask(read(*one))
        takes.append(time.perf_counter() - begun)
    for n in range(50):
        fresh = Session(model)  # nothing is kept
        job = fresh.submit(read(*asked[n % len(asked)]))
        time.sleep(chance.random() * takes[n % len(asked)])
        job.cancel()
        with contextlib.suppress(Cancelled, CancelledError):
            job.future.result()
            answered += 1
        fresh.close()
        assert shape_of(model) == before
    assert answered < 40
    session._results.clear()
    assert numbers(session.ask(read("score", {**ABOUT, "sites": "attn_out"}))) == expected
    session.close()


def test_one_can_leave_in_the_middle_of_a_backward_pass(model):
    """The block's hook hears a gradient come back; nothing waits for the whole pass."""
    session, backs = Session(model), []
    from lens_scopes.serve.session import Engine

    class Leaving(Engine):
        def _back(self, gradient):
            backs.append(gradient)
            self.job.left.set()
            super()._back(gradient)

    import lens_scopes.serve.session as place

    original, place.Engine = place.Engine, Leaving
    try:
        with pytest.raises(Cancelled):
            session.ask(read("score", ABOUT))
    finally:
        place.Engine = original
    assert len(backs) == 1
    assert numbers(session.ask(read("score", ABOUT)))
    session.close()


def test_who_leaves_the_queue_never_runs(session, monkeypatch):
    ran, go = [], threading.Event()
    from lens_scopes.serve import answers

    answered = answers.answer

    def answer(ask, engine):
        ran.append(ask)
        go.wait(10)
        return answered(ask, engine)

    monkeypatch.setattr(answers, "answer", answer)
    said = []
    first = session.submit(read("tokens", {"prompt": "a"}))
    second = session.submit(read("tokens", {"prompt": "the"}), said.append)
    third = session.submit(read("tokens", {"prompt": "of"}), said.append)
    second.cancel()
    go.set()
    assert first.future.result()
    assert third.future.result()
    assert [ask.prompt for ask in ran] == ["a", "of"]
    assert said == [{"queued": 1}, {"queued": 2}]


def test_no_more_wait_than_may(session, monkeypatch):
    go = threading.Event()
    from lens_scopes.serve import answers

    monkeypatch.setattr(answers, "answer", lambda ask, engine: go.wait(10) and {})
    jobs = [session.submit(read("tokens", {"prompt": "a"})) for _ in range(WAITING + 1)]
    with pytest.raises(Busy, match="wait already"):
        session.submit(read("tokens", {"prompt": "a"}))
    go.set()
    assert all(job.future.result() == {} for job in jobs)


def test_an_error_in_a_question_is_the_package_s_own_and_the_next_is_answered(session, model):
    before = shape_of(model)
    for verb, fields, what in [
        ("score", {**ABOUT, "scope": {"kind": "semantic", "target": "two words"}}, "two words"),
        ("score", {**ABOUT, "position": 99}, "outside the prompt"),
        ("predict", {**PAIR, "corrupted": "the cat"}, "one length"),
        ("cut", {**ABOUT, "site": 99, "pos": 0}, "no place"),
        ("edges", {**ABOUT, "layer": 9, "head": 0}, "9"),
        ("tokens", {"prompt": "a " * 300}, "context"),
    ]:
        with pytest.raises((ValueError, IndexError), match=what):
            session.ask(read(verb, fields))
    assert shape_of(model) == before
    assert session.ask(read("tokens", {"prompt": "the"}))["tokens"]


@pytest.mark.parametrize(
    ("verb", "fields", "what"),
    [
        ("tokens", {}, "needs the field 'prompt'"),
        ("tokens", [], "a question is an object"),
        ("tokens", {"prompt": "a", "path": "/etc/passwd"}, "no field 'path'"),
        ("tokens", {"prompt": ""}, "1 to 20000 characters"),
        ("tokens", {"prompt": "a" * 20_001}, "1 to 20000 characters"),
        ("tokens", {"prompt": {"model": "gpt2"}}, "a text or a list"),
        ("tokens", {"prompt": [1.5]}, "a token id is an integer"),
        ("tokens", {"prompt": [True]}, "a token id is an integer"),
        ("tokens", {"prompt": "a", "position": "all"}, "position is an integer"),
        ("generate", {"prompt": "a", "n": 65}, "n is a number from 1 to 64"),
        ("generate", {"prompt": "a", "temperature": -1}, "temperature is a number from 0"),
        ("generate", {"prompt": "a", "temperature": float("nan")}, "temperature is a number from 0"),
        ("score", {"prompt": "a", "scope": "semantic"}, "scope is an object"),
        ("score", {"prompt": "a", "scope": {"kind": "metric"}}, "scope.kind is one of"),
        ("score", {"prompt": "a", "scope": {"kind": "entropy", "target": 3}}, "no further fields"),
        ("score", {"prompt": "a", "scope": {"kind": "fisher", "passes": 65}}, "from 1 to 64"),
        ("score", {**ABOUT, "sites": "blocks.0.hook_resid_pre"}, "sites is one of"),
        ("score", {**ABOUT, "first": "no"}, "first"),
        ("score", {**ABOUT, "level": 3}, "level is one of"),
        ("score", {**ABOUT, "position": []}, "position"),
        ("measure", {**PAIR, "largest": 0}, "largest is a number from 1"),
        ("cut", {**ABOUT, "site": 0, "pos": 0, "by": "patch"}, "with a clean prompt"),
        ("cut", {**ABOUT, "site": 0, "by": "zero"}, "a place is"),
        ("cut", {**ABOUT, "site": 0, "pos": 0, "head": 1, "by": "zero"}, "a place is"),
        ("cut", {**ABOUT, "site": -1, "pos": 0, "by": "zero"}, "site"),
        ("export", {"kind": "pickle", "asks": [["score", ABOUT]]}, "kind is one of"),
        ("export", {"kind": "csv", "asks": [["export", {}]]}, "each of asks"),
        ("export", {"kind": "csv", "asks": []}, "1 to 64 questions"),
    ],
)
def test_what_a_question_may_not_hold(verb, fields, what):
    with pytest.raises(ValueError, match=what):
        read(verb, fields)


def test_an_unknown_verb():
    with pytest.raises(KeyError):
        read("shell", {})
    assert set(VERBS) == {verb for verb, _ in ASKED} | {"export"}


def test_exports(session, model, tmp_path):
    import io

    import pandas as pd

    csv = session.ask(read("export", {"kind": "csv", "asks": [["score", ABOUT]]}))["text"]
    frame = ls.score(model, CASE.prompt, ls.Semantic(CASE.answer, CASE.versus)).to_dataframe()
    found = pd.read_csv(io.StringIO(csv), keep_default_na=False)
    assert list(found.columns) == list(frame.columns)
    torch.testing.assert_close(
        torch.tensor(found.score.values), torch.tensor(frame.score.values).double(), rtol=1e-6, atol=0
    )
    report = session.ask(read("export", {"kind": "report", "asks": [["score", ABOUT], ["flow", ABOUT]]}))["text"]
    assert report.count("<section>") == 2
    assert "http://" not in report.replace("http://www.w3.org", "")


def test_without_the_extra_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    for name in [name for name in sys.modules if name.startswith("lens_scopes.serve.server")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r'pip install "lens-scopes\[serve\]"'):
        ls.serve(object())


def test_the_folder_is_the_function_whichever_came_first(model):
    import lens_scopes.serve as folder

    assert ls.serve is folder
    assert callable(ls.serve)
    with pytest.raises(ValueError, match="0 to 65535"):
        ls.serve(model, 70_000)
    with pytest.raises(TypeError, match="expected a TransformerLens model"):
        ls.serve("gpt2")
