"""Every scope of the package through everything that takes a scope, and every view of every result through every door.

Nothing here knows a scope by name but ``EXAMPLES``: a scope that is public and not in it makes a test fail, and so does
one that a list elsewhere has left out.
"""

import json
import re
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import lens_scopes as ls
import tiny
from lens_scopes import evaluate, patching, scopes
from lens_scopes.calculus.question import ask as ask_about
from lens_scopes.calculus.trace import trace
from lens_scopes.commands.main import app
from lens_scopes.evaluate.protocol import ask
from lens_scopes.host import Host
from lens_scopes.host.readout import raw_logits
from lens_scopes.results.provenance import Meta, ScopeData
from lens_scopes.scopes.protocol import (
    aimed,
    cotangents_at,
    cotangents_of,
    data_of,
    resolve,
    scope_from,
    spans_positions,
    writable,
)
from lens_scopes.scopes.quantity import quantities
from lens_scopes.views import dispatch
from report import assert_close

pytestmark = pytest.mark.host

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
CLEAN, CORRUPTED = [7, 9, 11, 13, 8], [7, 9, 12, 13, 8]


def margin(logits):
    return logits[0, -1, 7] - logits[0, -1].logsumexp(-1)


EXAMPLES = {
    "Continuation": ls.Continuation([15, 8]),
    "Direction": ls.Direction(torch.linspace(-1, 1, tiny.D_MODEL), name="probe"),
    "Entropy": ls.Entropy(),
    "Fisher": ls.Fisher(4),
    "Metric": ls.Metric(margin),
    "Semantic": ls.Semantic(7, 9),
    "Temperature": ls.Temperature(),
}
every_scope = pytest.mark.parametrize("name", sorted(scopes.__all__))


def model(backend="bridge"):
    return tiny.host("llama", backend if backend in tiny.BACKENDS else tiny.BACKENDS[0])


def test_every_public_scope_has_an_example_here_and_a_line_in_the_readme():
    public = {
        name for name in ls.__all__ if isinstance(getattr(ls, name), type) and "__call__" in vars(getattr(ls, name))
    }
    assert public == set(scopes.__all__) == set(EXAMPLES)
    table = re.findall(r"^\| `(\w+)\(", README, re.M)
    assert set(table) == set(scopes.__all__)


@every_scope
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_score_flow_check(name, backend):
    scope = EXAMPLES[name]
    scores = ls.score(model(backend), CLEAN, scope)
    last = scores.meta["positions"][-1]  # what comes after it is explained, and reaches nothing
    assert (scores.values[:, last] > 0).all()
    assert (scores.values[0, : last + 1] > 0).all()
    assert not scores.values[:, last + 1 :].any()
    assert scores.check(model(backend), scope=scope)["max_error"] < 1e-3
    along = ls.score(model(backend), CLEAN, scope, along="activation", sites="embed")
    assert along.units == ("squared" if scores.units == "squared" else "signed")
    flow = ls.flow(model(backend), CLEAN, scope)
    assert_close(flow.total.sum(), scores.sel(site="embed").values.sum(), 1e-5, name)
    assert flow.residual < 1e-5
    assert flow.check(model(backend), scope=scope)["max_error"] < 1e-3
    if spans_positions(scope):
        return
    several = ls.score(model(backend), CLEAN, scope, position=[2, -1], sites="embed")
    assert_close(several.sel(target_pos=4).values, scores.sel(site="embed").values[None], 1e-5, name)


@every_scope
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_predict_and_measure(name, backend):
    scope, sites = EXAMPLES[name], ["blocks.1.hook_resid_post"]
    predicted = ls.patching.predict(model(backend), CLEAN, CORRUPTED, scope, sites=sites)
    measured = ls.patching.measure(model(backend), CLEAN, CORRUPTED, scope, sites=sites)
    assert predicted.units == measured.units
    # Positions that do not differ, or come too late, have no effect; one that does has both.
    assert bool((predicted.values[0, :2] == 0).all())
    assert float(measured.values[0, measured.meta["positions"][-1]].abs()) > 0
    assert ls.patching.compare(predicted, measured).summary()["places"] == len(measured.tokens)


def run_of(scope, *prompts):
    """The prompts' run at the positions that the scope explains, and the scope bound to it."""
    host = Host(model())
    asked = [ask_about(host, prompt, scope) for prompt in prompts]
    return trace(host, torch.stack([one.ids for one in asked]), [], asked[0].positions), asked[0].scope


@every_scope
def test_what_it_measures_is_what_it_is_the_gradient_of(name):
    """∂value/∂y, by autograd through the model's own readout, against the cotangent; of a divergence ½ its Hessian."""
    run, scope = run_of(EXAMPLES[name], CLEAN)
    states = run.ends(0)
    (made,), value = cotangents_at(scope, states), quantities(scope, states)

    def of_y(y):
        logits = run.readout.transform(raw_logits(run.host, y))
        return value([replace(state, y=y[n], logits=logits[n]) for n, state in enumerate(states)])

    y = torch.stack([state.y for state in states]).requires_grad_()
    (gradient,) = torch.autograd.grad(of_y(y), y)
    if not made.squared:
        vectors = made.vectors * float(made.root_weights())
        assert_close(gradient, vectors[0] if made.spans else vectors, 1e-6, name)
        return
    assert float(gradient.abs().max()) < 1e-6
    hessian = torch.autograd.functional.hessian(lambda one: of_y(one[None]), states[0].y)
    exact = cotangents_of(ls.Fisher(None), states[0])
    rows = exact.vectors * exact.root_weights()[:, None]
    assert_close(hessian, rows.T @ rows, 1e-6, name)


@every_scope
def test_many_runs_at_once_are_its_runs_one_by_one(name):
    run, scope = run_of(EXAMPLES[name], CLEAN, CORRUPTED)
    runs = [run.ends(b) for b in range(2)]
    value = quantities(scope, runs[0])
    both = [
        replace(a, y=torch.stack([a.y, b.y]), logits=torch.stack([a.logits, b.logits]))
        for a, b in zip(*runs, strict=True)
    ]
    assert_close(value(both), torch.stack([value(states) for states in runs]), 1e-12, name)


@every_scope
def test_tokens_stay_what_they_are(name):
    open_ = EXAMPLES[name] if name not in {n.capitalize() for n in writable()} else getattr(ls, name)()
    run, scope = run_of(EXAMPLES[name] if spans_positions(open_) else open_, CLEAN, CORRUPTED)
    fixed = resolve(scope, run.state(0, 0))
    assert type(fixed) is type(scope)
    for b in range(2):
        notes = cotangents_of(fixed, run.state(b, 0)).notes
        assert notes.get("target") == cotangents_of(scope, run.state(0, 0)).notes.get("target")


@every_scope
def test_its_provenance_is_data_that_survives_a_file(name, tmp_path):
    scope = EXAMPLES[name]
    scores = ls.score(model(), CLEAN, scope, sites="embed")
    found = ls.Scores.load(scores.save(tmp_path / "scores.safetensors"))
    data = found.meta["scope"]
    assert data == scores.meta["scope"] == json.loads(json.dumps(data_of(scope)))
    assert set(data) == set(ScopeData.__annotations__)
    assert data["kind"] == name
    assert data["text"] == repr(scope)
    if any(isinstance(value, dict) for value in data["fields"].values()):
        with pytest.raises(ValueError, match=f"{name!r} holds a function or a tensor .* pass it: scope=..."):
            scope_from(data)
    else:
        assert repr(scope_from(data)) == repr(scope)
        assert found.check(model())["max_error"] < 1e-3


@every_scope
def test_the_command_line(name):
    runner = CliRunner()
    arguments = ["The cat sat", "--model", str(tiny.directory("gpt2")), "--scope", name.lower()]
    arguments += ["--continuation", " on"] if spans_positions(EXAMPLES[name]) else []
    for command in (["score"], ["flow"]):
        done = runner.invoke(app, [*command, *arguments])
        if name.lower() in writable():
            assert done.exit_code == 0, done.output
            assert done.stdout.startswith(name)
        else:
            assert done.exit_code == 2
            assert all(f"'{other}'" in done.output for other in writable())


@every_scope
def test_it_is_a_method_of_attribution(name):
    from lens_scopes.evaluate import attribute
    from lens_scopes.evaluate.protocol import ask

    (question,) = ask(model(), [CLEAN], None)
    values = attribute(question, EXAMPLES[name])
    assert values.shape == (len(CLEAN),)
    if name.lower() in writable() and name.lower() not in ls.evaluate.METHODS:
        assert_close(attribute(question, name.lower()), attribute(question, getattr(ls, name)()), 1e-12, name)


def scored(scope=EXAMPLES["Semantic"], **options):
    return ls.score(model(), CLEAN, scope, **options)


def patches(verb):
    return verb(model(), CLEAN, CORRUPTED, EXAMPLES["Semantic"], sites="resid_post")


def table():
    return ls.evaluate.compare_methods(model(), [CLEAN, CORRUPTED], ["semantic", "random"], baseline="random")


RESULTS = {
    "sites": scored,
    "one site": lambda: scored(sites="embed"),
    "a strip": lambda: scored(sites="embed").sel(site="embed"),
    "heads": lambda: scored(sites="z"),
    "signed": lambda: scored(along="activation"),
    "an estimate": lambda: scored(ls.Fisher(4)),
    "an answer": lambda: scored(EXAMPLES["Continuation"]),
    "the next tokens": lambda: scored(ls.Semantic("next"), position=[1, 2, 3]),
    "a total": lambda: scored(ls.Fisher(4), position=[1, 2, 3], reduce="sum"),
    "positions": lambda: scored(position="all"),
    "strips": lambda: scored(position="all", sites="embed"),
    "words": lambda: scored().aggregate("word"),
    "no positions": lambda: scored().sum("pos"),
    "flow": lambda: ls.flow(model(), CLEAN, EXAMPLES["Semantic"], edges=True),
    "flow of an answer": lambda: ls.flow(model(), CLEAN, EXAMPLES["Continuation"], edges=True),
    "flow of each": lambda: ls.flow(model(), CLEAN, EXAMPLES["Semantic"], sources="each"),
    "whole change": lambda: ls.flow(model(), CLEAN, EXAMPLES["Semantic"], against=CORRUPTED, steps=64, edges=True),
    "whole change of each": lambda: ls.flow(
        model(), CLEAN, EXAMPLES["Semantic"], against=CORRUPTED, steps=64, sources="each", edges=[(0, 1)]
    ),
    "predicted": lambda: patches(ls.patching.predict),
    "measured": lambda: patches(ls.patching.measure),
    "comparison": lambda: ls.patching.compare(patches(ls.patching.predict), patches(ls.patching.measure)),
    "table": table,
    "curve": lambda: table().curve("semantic"),
    "profile": lambda: ls.profile([scored(), scored(position=-2)], by="site"),
}
#: Those that are drawn as cells with a number on hover; the others have a table or a scatter of their own.
DRAWN = [name for name in RESULTS if name not in ("no positions", "comparison", "table", "curve", "profile")]


@pytest.mark.parametrize("name", RESULTS)
def test_every_view_of_every_result(name, tmp_path):
    result = RESULTS[name]()
    assert ls.show(result)._repr_html_()
    for view in dispatch.views(result):
        shown = ls.show(result, view)
        assert shown.view == view
        assert shown._repr_html_()
        assert shown.save(tmp_path / f"{view}.html").stat().st_size > 500
        if view != "edges":
            from lens_scopes.plot import plot

            plot(result, view).savefig(tmp_path / f"{view}.png")
    page = ls.report(result, tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(
        f"result-0-{view}" in page or f"{view}, interactive" in page or view in ("last", "heads")
        for view in dispatch.views(result)
    )
    written = getattr(result, "meta", {})
    assert set(written) <= set(Meta.__annotations__), set(written) - set(Meta.__annotations__)


@pytest.mark.parametrize("name", RESULTS)
def test_every_result_is_free_of_graphs_and_can_be_pickled_and_copied(name):
    import copy
    import pickle

    result = RESULTS[name]()
    for one in (result, copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert type(one) is type(result)
        assert one._repr_html_() == result._repr_html_()
        tensors = [value for value in vars(one).values() if torch.is_tensor(value)]
        assert not any(value.requires_grad for value in tensors)
    assert len(pickle.dumps(result)) < 200_000, "it holds the model"


def test_no_result_is_left_out():
    """Every public class that can be saved, or that shows itself, is among the results above."""
    kinds = {type(make()) for make in RESULTS.values()}
    public = [getattr(space, name) for space in (ls, ls.patching, ls.evaluate) for name in space.__all__]
    savable = {kind for kind in public if isinstance(kind, type) and hasattr(kind, "load")}
    assert savable == kinds


def test_keys_of_meta_are_in_the_schema():
    """What the package reads and writes of ``meta`` by name, it has a sentence for."""
    package = Path(ls.__file__).parent
    text = "\n".join(path.read_text(encoding="utf-8") for path in package.rglob("*.py"))
    used = set(re.findall(r"\bmeta(?:\.get\(|\[)[\"'](\w+)[\"']", text))
    assert len(used) > 15
    assert used <= set(Meta.__annotations__)
    source = (package / "results" / "provenance.py").read_text(encoding="utf-8")
    body = source[source.index("class Meta") : source.index("def tokens_of")]
    for key in Meta.__annotations__:
        assert re.search(rf'^    {key}: .+\n    """.+\."""', body, re.M), f"{key} has no sentence"


@pytest.mark.parametrize("name", DRAWN)
def test_colours_and_numbers_of_a_page_are_those_of_the_tensor(name):
    """Every cell: the number on hover, its row's or the legend's end, and the colour that these two make."""
    from lens_scopes.views import markup

    result = RESULTS[name]()
    for view in dispatch.views(result):
        if view == "edges":
            continue
        page = dispatch.body(result, view)
        grids = dispatch.grids(result, view)
        expected = [
            (f"{value:.3g}", markup.colour(value, end)[0])
            for grid in grids
            for line, end in zip(grid.values, grid.ends or (grid.largest,) * len(grid.rows), strict=True)
            for value in line
        ]
        cells = re.findall(r'<(?:td|span) style="([^"]*background:[^"]*)" title="([^"]*)"', page)
        found = [
            (hover.rsplit(": ", 1)[1], re.search(r"background:(rgb\([^)]*\)|#\w+)", style)[1]) for style, hover in cells
        ]
        assert found == expected
        shades = {shade for _, shade in found}
        assert len(shades) > 1 or len(grids[0].columns) == 1  # no table in one colour
        by_row = any(grid.ends for grid in grids)
        assert ("its end is in brackets" in page) == by_row
        if by_row:
            assert all(f"[{markup.number(end)}]" in page for grid in grids for end in grid.ends)
        else:
            assert markup.number(grids[0].largest) in page


# Scopes of one's own


class Named(NamedTuple):
    """A scope with named fields: a tuple, and callable."""

    weight: float = 2.0
    target: int | None = None

    def __call__(self, state):
        return self.weight * state.rows(7 if self.target is None else self.target)


class Plain:
    """A scope that is no dataclass."""

    def __init__(self, target=None):
        self.target = target

    def __call__(self, state):
        return state.rows(7 if self.target is None else self.target)


class Closed(Plain):
    """One that lets nothing be set."""

    def __setattr__(self, name, value):
        if "target" in self.__dict__:
            raise AttributeError(name)
        super().__setattr__(name, value)


def raised(state, token, power=1):
    return state.rows(token) * power


def test_a_scope_with_named_fields_is_one_scope_not_several():
    alone, batch = ls.score(model(), CLEAN, Named()), ls.score_batch(model(), [CLEAN, CORRUPTED], Named(3.0))
    assert_close(batch[0].values, 1.5 * alone.values, 1e-6)
    fields = alone.meta["scope"]["fields"]
    assert fields == {"weight": 2.0, "target": None, "is": fields["is"]}
    assert alone.meta["scope"]["text"] == "Named(weight=2.0, target=None)"
    assert alone.meta["scope"]["kind"].endswith(".Named")


@pytest.mark.parametrize("scope", [Named(), Plain(), ls.Semantic()], ids=lambda scope: type(scope).__name__)
def test_an_open_target_is_aimed_whatever_the_scope_is_made_of(scope):
    made = aimed(scope, 9)
    assert made.target == 9
    assert scope.target is None
    assert aimed(made, 5) is made
    (question,) = ask(model(), [CLEAN], None)
    direct = evaluate.attribute(question, aimed(scope, question.target))
    assert torch.equal(evaluate.attribute(question, scope), direct)


def test_an_open_target_that_cannot_be_aimed_says_so():
    def function(state):
        return state.rows(7)

    function.target = None
    for scope in (function, Closed()):
        with pytest.raises(TypeError, match=r"has an open target, .* write a dataclass with target"):
            aimed(scope, 9)
        assert scope.target is None


def test_partials_of_one_function_differ_in_their_provenance():
    one, two = partial(raised, token=5), partial(partial(raised, token=5), power=2)
    first, second = ls.score(model(), CLEAN, one), ls.score(model(), CLEAN, two)
    fields = {key: value for key, value in first.meta["scope"]["fields"].items() if key != "is"}
    assert fields == {"name": f"{__name__}.raised", "args": [], "keywords": {"token": 5}}
    assert second.meta["scope"]["fields"]["keywords"] == {"token": 5, "power": 2}
    assert first.meta["scope"]["text"] == "raised(token=5)"
    assert (
        len({json.dumps(s.meta["scope"]) for s in (first, second, ls.score(model(), CLEAN, partial(raised, token=6)))})
        == 3
    )


@dataclass(frozen=True, eq=False)
class Holder:
    """A scope with everything in it that a user may put there."""

    listed: list = field(default_factory=lambda: [torch.ones(2), {"deep": [torch.zeros(3), np.float32(0.5)]}])
    plain: dict = field(default_factory=lambda: {"a": (1, 2), 3: "b"})
    odd: object = torch.float32

    def __call__(self, state):
        return ls.Cotangents(
            state.rows(7)[None], notes={"kept": self.plain, "tensor": torch.ones(2), "array": np.ones(1)}
        )


def test_provenance_is_a_copy_and_json_through_and_through():
    scope = Holder()
    scores = ls.score(model(), CLEAN, scope)
    before = json.dumps(scores.meta, allow_nan=False)
    scope.listed.append("changed")
    scope.plain["a"] = "changed"
    assert json.dumps(scores.meta) == before
    fields = scores.meta["scope"]["fields"]
    assert fields["listed"][0]["tensor"] == [2]
    assert fields["listed"][1]["deep"][0]["tensor"] == [3]
    assert fields["listed"][1]["deep"][1] == 0.5
    assert fields["plain"] == {"a": [1, 2], "3": "b"}
    assert fields["odd"] == "torch.float32"
    assert scores.meta["notes"][0]["tensor"] == [1.0, 1.0]
    assert scores.meta["notes"][0]["kept"] == {"a": [1, 2], "3": "b"}
    parts = ["embed", "resid_post"]
    freeze = ["norm"]
    again = ls.score(model(), CLEAN, ls.Semantic(7), sites=parts, freeze=freeze)
    freeze.append("mlp")
    assert again.meta["freeze"] == ["norm"]


@pytest.mark.parametrize(
    ("notes", "attribute", "expected"),
    [({"target": 9}, 5, 9), ({}, 5, 5), ({}, None, None), ({"target": 9, "versus": 5}, None, 9), ({}, (5, 6), None)],
)
def test_the_target_is_named_by_the_notes_else_by_the_attribute(notes, attribute, expected):
    def scope(state):
        return ls.Cotangents(state.rows(7)[None], notes=notes)

    scope.target = attribute
    (target,) = ls.score(model(), CLEAN, scope).meta["targets"]
    assert (None if target is None else target["id"]) == expected
    if target is not None:
        assert ("versus" in target) == ("versus" in notes)


@pytest.mark.parametrize("wrong", [-1, 10**6])
@pytest.mark.parametrize("key", ["target", "versus"])
def test_a_target_in_the_notes_that_is_no_token_is_refused(wrong, key):
    def scope(state):
        return ls.Cotangents(state.rows(7)[None], notes={"target": 7, key: wrong})

    with pytest.raises(ValueError, match=f"token id {wrong} is outside the vocabulary"):
        ls.score(model(), CLEAN, scope)


def test_shorthands_of_a_direction_s_site():
    vector = torch.ones(tiny.D_MODEL)
    assert ls.Direction(vector, site="embed").site == "hook_embed"
    with pytest.raises(ValueError, match="sources at or after it do not reach it"):
        ls.score(model(), CLEAN, ls.Direction(vector, site="embed"))

    def scope(state):
        return ls.Cotangents(vector[None], site="embed")

    scope.site = "embed"
    for one in (scope, ls.Direction(vector, site="embed")):
        with pytest.raises(ValueError, match="do not reach it"):
            ls.score(model(), CLEAN, one)
        with pytest.raises(ValueError, match="do not reach it"):
            patching.measure(model(), CLEAN, CORRUPTED, one, sites="embed", position=2)
    for site in ("resid_post", "z", "blocks.0.attn.hook_z"):
        with pytest.raises((ValueError, TypeError), match="write e"):
            ls.Direction(vector, site=site)
    with pytest.raises(ValueError, match=r"no site 'blocks\.9\.hook_resid_post'"):
        ls.score(model(), CLEAN, ls.Direction(vector, site="blocks.9.hook_resid_post"))


@pytest.mark.wrong_types
def test_results_written_by_hand_show_what_they_have(tmp_path):
    """Without meta, or with a scope as text: everything but check works, and check says what it needs."""
    coords = {"site": ("hook_embed", "blocks.0.hook_resid_post"), "pos": (0, 1, 2)}
    values, tokens = torch.rand(2, 3), ("a", " b", "c")
    for meta in ({}, {"scope": "mine"}, {"scope": "mine", "units": "signed"}):
        scores = ls.Scores(values, ("site", "pos"), coords, tokens, meta)
        assert ("mine" in repr(scores)) == bool(meta)
        assert ("mine" in scores._repr_html_()) == bool(meta)
        for view in dispatch.views(scores):
            scores.show(view)._repr_html_()
        scores.aggregate().to_dataframe()
        ls.report(scores, tmp_path / "page.html")
        assert ls.Scores.load(scores.save(tmp_path / "file")).meta == meta
        with pytest.raises(ValueError, match="its meta has no 'token_ids'"):
            scores.check(model())
    flow = ls.flow(model(), CLEAN, ls.Semantic(7))
    bare = replace(flow, meta={})
    assert "Flow(" in repr(bare)
    assert bare._repr_html_()
    with pytest.raises(ValueError, match="its meta has no"):
        bare.check(model())
    known = ls.score(model(), CLEAN, ls.Semantic(7))
    by_hand = replace(known, meta={**known.meta, "scope": "mine"})
    with pytest.raises(ValueError, match="pass the scope: scope="):
        by_hand.check(model())
    assert by_hand.check(model(), scope=ls.Semantic(7))["stored_error"] < 1e-5
