"""Flow: conservation on every form of block, sources together and apart, scopes, the result, and the model left as it came."""

import doctest
import functools
import inspect
import json
import re
import sys
from contextlib import nullcontext
from html.parser import HTMLParser
from typing import ClassVar

import pytest
import torch
from torch.autograd import forward_ad

import lens_scopes as ls
import tiny
from double import Double
from lens_scopes.views.flow import strongest_edges
from report import assert_close

pytestmark = pytest.mark.host

POSITION, TARGET, VERSUS = 5, 7, 11
PAIRS = [*tiny.HOSTS, *(pair for pair in tiny.OTHER_HOSTS if not pair[0].startswith("deep"))]
MIXED = ("olmo2",)  # a norm over all heads of q and k
#: Bridges whose own code is float64 throughout when asked; the others go through float32 in norm, softmax or rotary.
TRUE = {"gpt2", "neox", "falcon"}


@functools.cache
def flow_of(pair, dtype=None, *, double: bool = False, sources=None, edges: bool = False, scope=None):
    model = tiny.host(*pair, dtype)
    with Double() if double else nullcontext():
        return ls.flow(
            model, tiny.tokens(), scope or ls.Semantic(TARGET), position=POSITION, sources=sources, edges=edges
        )


def adds_up(flow: ls.Flow, tolerance: float) -> None:
    """The laws that the kept tensors themselves can show, and the residual of those that they cannot."""
    assert 0 < flow.residual < tolerance
    total = float(flow.total.abs().max())
    assert_close(flow.stream.sum(-1), flow.total[:, None].expand(flow.stream.shape[:2]), tolerance, "stream", total)
    if flow.composition is not None:
        assert_close(flow.composition.sum(-1), flow.heads, tolerance, "composition", total)
    if flow.edges is not None:
        assert_close(flow.edges.sum((0, 3, 4)), flow.heads.sum(0), tolerance, "edges", float(flow.total.sum()))


# Conservation


@pytest.mark.parametrize("pair", PAIRS, ids=tiny.host_id)
def test_float32_conserves_to_1e_5(pair):
    flow = flow_of(pair, torch.float32, sources="each", edges=pair[0] not in MIXED)
    adds_up(flow, 1e-5)
    assert flow.heads.dtype == torch.float32
    assert flow.meta["units"] == "norm"


@pytest.mark.parametrize("pair", [p for p in PAIRS if p != ("mixtral", "hooked")], ids=tiny.host_id)
def test_float64_conserves_to_1e_10_where_the_host_does_not_upcast(pair):
    true = pair[1] == "hooked" or pair[0] in TRUE
    flow = flow_of(pair, torch.float64, sources="each", edges=pair[0] not in MIXED)
    adds_up(flow, 1e-10 if true else 1e-6)
    assert flow.heads.dtype == torch.float64


@pytest.mark.parametrize("pair", [p for p in PAIRS if p[1] == "bridge" and p[0] not in TRUE], ids=tiny.host_id)
def test_float64_conserves_to_1e_10_with_the_upcast_patched_away(pair):
    adds_up(flow_of(pair, torch.float64, double=True, sources="each", edges=pair[0] not in MIXED), 1e-10)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
@pytest.mark.parametrize("scope", [ls.Semantic(), ls.Fisher(8)], ids=["semantic", "fisher"])
def test_a_trained_model_conserves(stories260k, backend, scope):
    prompt = "Once upon a time, there was a little girl named Lily. She loved"
    single = ls.flow(ls.load(stories260k, backend=backend), prompt, scope, edges=True)
    adds_up(single, 1e-5)
    model = ls.load(stories260k, backend=backend, dtype=torch.float64)
    adds_up(ls.flow(model, prompt, scope, edges=True), 1e-10 if backend == "hooked" else 1e-6)
    with Double():
        adds_up(ls.flow(model, prompt, scope, edges=True), 1e-10)


@pytest.mark.skipif(not (ls.demo.MODEL_DIR / "config.json").is_file(), reason="the demo model is not there yet")
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_the_demo_model_conserves(backend):
    model, case = ls.demo.load(backend), ls.demo.cases("induction", n=1)[0]
    adds_up(ls.flow(model, case.prompt, ls.Semantic(case.answer, versus=case.versus), edges=True), 1e-5)


class Lie(torch.autograd.Function):
    """The identity, whose backward pass says so many times what its forward-mode derivative says."""

    @staticmethod
    def forward(x, times):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.times = inputs[1]

    @staticmethod
    def backward(ctx, g):
        return ctx.times * g, None

    @staticmethod
    def jvp(ctx, tangent, _):
        return tangent.clone()


def lying(pair, dtype, times):
    model = tiny.fresh_host(*pair, dtype)
    model.add_hook("blocks.1.hook_mlp_out", lambda x, hook: Lie.apply(x, times))
    return ls.flow(model, tiny.tokens(), ls.Semantic(TARGET))


#: How much of the total a conservation law may be broken by.
BROKEN = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 5e-2}


@pytest.mark.parametrize("dtype", BROKEN, ids=str)
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_the_residual_sees_a_backward_pass_that_lies(backend, dtype):
    """A user's hook whose derivative is wrong in one direction only: the ledger does not add up, and is not handed out."""
    pair, limit = ("gpt2", backend), BROKEN[dtype]
    message = r"do not balance: a conservation law is broken by (\S+) of the total"
    with pytest.raises(RuntimeError, match=message) as refusal:
        lying(pair, torch.float64, 1.001)
    by = float(re.search(message, str(refusal.value))[1]) / 0.001  # for each part of a lie
    with pytest.raises(RuntimeError, match=message):
        lying(pair, dtype, 1 + 3 * limit / by)
    assert 0.1 * limit < lying(pair, dtype, 1 + 0.3 * limit / by).residual < limit


@pytest.mark.parametrize("at", [f"blocks.{tiny.LAYERS - 1}.hook_resid_post", "ln_final.hook_normalized"])
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_a_pass_that_begins_anew_gets_new_books(backend, at):
    """An operation without a forward-mode derivative after the first block: two reverse passes, and each entry once."""

    class ReverseOnly(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return g

    model = tiny.fresh_host("llama", backend)
    expected = ls.flow(model, tiny.tokens(), ls.Semantic(TARGET))
    model.add_hook(at, lambda x, hook: ReverseOnly.apply(x))
    flow = ls.flow(model, tiny.tokens(), ls.Semantic(TARGET))
    assert flow.meta["method"] == "two reverse passes"
    for name in ("total", "heads", "last", "mlps", "stream"):
        assert_close(getattr(flow, name), getattr(expected, name), 1e-5, name)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_a_kept_flow_holds_neither_the_graph_nor_the_model(backend):
    import copy
    import gc
    import pickle
    import weakref

    def graphs():
        gc.collect()
        return sum(1 for x in gc.get_objects() if torch.is_tensor(x) and x.grad_fn is not None)

    before = graphs()  # what other tests have kept
    model = tiny.fresh_host("gpt2", backend)
    flow = ls.flow(model, tiny.tokens(), ls.Metric(lambda z: z[0, -1, TARGET]))
    assert graphs() <= before
    best = flow.paths(2)
    assert flow.orders().influence.sum() == pytest.approx(float(flow.total), rel=1e-5)
    assert copy.deepcopy(flow).paths(2).equals(best)
    there = pickle.loads(pickle.dumps(flow))
    assert torch.equal(there.heads, flow.heads)
    with pytest.raises(RuntimeError, match="left behind in another process"):
        there.paths(2)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None, gc.get_referrers(gone())
    assert graphs() <= before  # a Bridge itself keeps some tensors of its last pass
    with pytest.raises(RuntimeError, match="this flow's is gone"):
        flow.paths(2)
    with pytest.raises(RuntimeError, match="this flow's is gone"):
        flow.orders()


@pytest.mark.parametrize("pair", [p for p in PAIRS if p[0] in MIXED], ids=tiny.host_id)
def test_a_norm_that_mixes_heads_has_no_composition_and_no_edges(pair):
    flow = flow_of(pair, torch.float32, sources="each")
    assert flow.composition is None
    assert flow.edges is None
    assert flow.meta["residual_inside_heads"] > 1e-3 > flow.residual
    with pytest.raises(ValueError, match=r"no exact edges .* a norm mixes heads"):
        ls.flow(tiny.host(*pair, torch.float32), tiny.tokens(), ls.Semantic(TARGET), edges=True)


@pytest.mark.parametrize("pair", PAIRS, ids=tiny.host_id)
def test_the_method_is_named(pair):
    reverse = pair == ("bloom", "bridge")  # a custom autograd function without forward mode
    expected = "two reverse passes" if reverse else "forward mode"
    assert flow_of(pair, torch.float32, sources="each", edges=pair[0] not in MIXED).meta["method"] == expected


# Sources and scopes


@pytest.mark.parametrize("scope", [ls.Semantic(TARGET), ls.Temperature(), ls.Fisher(None), ls.Fisher(6)], ids=repr)
@pytest.mark.parametrize("pair", [p for p in tiny.HOSTS if p[0] in ("gpt2", "llama", "neox")], ids=tiny.host_id)
def test_sources_together_each_and_listed_agree(pair, scope):
    model, ids = tiny.host(*pair), tiny.tokens()
    tolerance = 1e-12 if pair[1] == "hooked" or pair[0] in TRUE else 1e-6
    together, each, some = (
        ls.flow(model, ids, scope, position=POSITION, sources=s, edges=True) for s in (None, "each", [4, 0, -2])
    )
    assert each.sources == tuple(range(len(ids)))
    assert some.sources == (4, 0, 5)
    for name in ("total", "heads", "last", "mlps", "stream", "composition"):
        size = float(each.total.sum()) if name in ("total", "stream") else float(getattr(each, name).abs().sum())
        assert_close(getattr(each, name).sum(0, keepdim=True), getattr(together, name), tolerance, name, size)
        assert_close(getattr(some, name), getattr(each, name)[[4, 0, 5]], tolerance, name, size)
        after = getattr(each, name)[POSITION + 1 :]
        assert torch.equal(after, torch.zeros_like(after)), name
    assert_close(each.edges, together.edges, tolerance, "edges", float(each.total.sum()))
    scores = ls.score(model, ids, scope, position=POSITION, sites="embed")
    assert_close(each.total, scores.values[0], tolerance, "scores")
    assert together.meta["units"] == scores.units
    if scores.stderr is not None:
        assert_close(together.stderr, scores.sum("pos").stderr, tolerance, "stderr of the sum")
        assert_close(each.stderr, scores.stderr[0], tolerance, "stderr")
    else:
        assert each.stderr is None


@pytest.mark.parametrize("backend", tiny.BACKENDS[:1])
def test_an_estimate_of_fisher_goes_to_the_exact_ledger(backend):
    """Unbiased: the mean over seeds is off by what the scatter allows, head by head."""
    model, ids = tiny.host("gpt2", backend), tiny.tokens()
    exact = ls.flow(model, ids, ls.Fisher(None)).heads[0]
    drawn = torch.stack([ls.flow(model, ids, ls.Fisher(4, seed=seed)).heads[0] for seed in range(24)])
    error = (drawn.mean(0) - exact).abs() / (drawn.std(0) / 24**0.5)
    assert float(drawn.std(0).min()) > 0
    assert float(error.max()) < 4


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_chunks_do_not_change_the_ledger(backend):
    model, ids = tiny.host("llama", backend), tiny.tokens()
    whole = ls.flow(model, ids, ls.Fisher(3), sources="each", edges=True)
    with ls.memory_budget(1):
        parts = ls.flow(model, ids, ls.Fisher(3), sources="each", edges=True)
    for name in ("total", "heads", "last", "mlps", "stream", "composition", "edges"):
        size = float(whole.total.sum())
        assert_close(getattr(parts, name), getattr(whole, name), 1e-6, name, size)


@pytest.mark.wrong_types
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_what_flow_refuses(backend):
    model, ids = tiny.host("gpt2", backend), tiny.tokens()
    with pytest.raises(ValueError, match="'each'"):
        ls.flow(model, ids, ls.Semantic(), sources="all")
    with pytest.raises(IndexError, match="position 7 is outside"):
        ls.flow(model, ids, ls.Semantic(), sources=[0, 7])
    with pytest.raises(ValueError, match="there is no block"):
        ls.flow(model, ids, ls.Direction(torch.ones(tiny.D_MODEL), site="hook_embed"))


# The model is left as it came


@pytest.mark.parametrize("backend", tiny.BACKENDS)
@pytest.mark.parametrize("freeze", [(), ("norm", "attention", "mlp")], ids=["plain", "frozen"])
def test_the_model_is_left_as_it_came(backend, freeze):
    model, ids = tiny.fresh_host("gpt2", backend, torch.float32), torch.tensor([tiny.tokens()])
    next(model.parameters()).requires_grad_(False)
    passes: dict[str, int | None] = {"seen": 0, "stop at": None}

    class Interrupted(Exception):
        pass

    def count(x, hook):
        passes["seen"] += 1
        if passes["seen"] == passes["stop at"]:
            raise Interrupted

    model.add_hook("blocks.1.hook_mlp_out", count)

    def state():
        hooks = [len(point._forward_hooks) + len(point._backward_hooks) for point in model.hook_dict.values()]
        flags = [(p.requires_grad, p.grad is None) for p in model.parameters()]
        return hooks, flags, [m.training for m in model.modules()], torch.get_rng_state().tolist(), model(ids).tolist()

    before = state()
    ls.flow(model, ids, ls.Fisher(4), sources="each", edges=True, freeze=freeze).paths(2)
    ls.flow(model, ids, ls.Semantic(), freeze=freeze).orders()
    ls.jacobian(model, ids, freeze=freeze).svd(2)
    assert state() == before

    passes["seen"] = 0
    ls.flow(model, ids, ls.Fisher(2), freeze=freeze)
    needed = passes["seen"]
    assert needed == 2  # one forward pass, one in forward mode for both cotangents
    for stop_at in range(1, needed + 1):
        passes.update({"seen": 0, "stop at": stop_at})
        with pytest.raises(Interrupted):
            ls.flow(model, ids, ls.Fisher(2), freeze=freeze)
        passes["stop at"] = None
        assert state() == before
        with forward_ad.dual_level():  # levels do not nest: flow has left its own
            pass


# The result


@pytest.fixture(params=tiny.BACKENDS)
def whole(request):
    return flow_of(("gpt2", request.param), torch.float32, sources="each", edges=True)


@pytest.mark.parametrize("sources", [None, "each"])
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_edges_of_some_heads_are_those_of_all(backend, sources, tmp_path):
    """In the order asked for, layers mixed, named in meta, in views, in the dataset, and after loading."""
    heads = [(1, 2), (0, 3), (1, 0)]
    every = flow_of(("gpt2", backend), torch.float32, sources=sources, edges=True)
    model, at = tiny.host("gpt2", backend, torch.float32), torch.tensor(heads).T
    some = ls.flow(model, tiny.tokens(), ls.Semantic(TARGET), position=POSITION, sources=sources, edges=at.T.numpy())
    assert torch.equal(some.edges, every.edges[:, at[0], at[1]])
    assert torch.equal(some.heads, every.heads)
    back = ls.Flow.load(some.save(tmp_path / "flow.safetensors"))
    for one in (some, back):
        assert one.meta["edge_heads"] == [list(head) for head in heads]
        assert one.edge_heads == heads
        assert_close(one.share().edges * one.total.sum(), one.edges, 1e-6)
    assert every.edge_heads == [(layer, head) for layer in range(tiny.LAYERS) for head in range(tiny.HEADS)]
    assert "edge_heads" not in every.meta
    known = {edge: edge.influence for edge in strongest_edges(every, every.edges.numel()) if edge.influence}
    listed = [edge for edge in strongest_edges(some, some.edges.numel()) if edge.influence]
    assert {edge: edge.influence for edge in listed}.items() <= known.items()
    assert {(edge.layer, edge.head) for edge in listed} == set(heads)
    pytest.importorskip("xarray")
    picked = some.to_xarray().edges.sel(edge="pattern", edge_head="0.3").values
    assert torch.equal(torch.as_tensor(picked), every.edges[1, 0, 3])


def test_save_and_load(whole, tmp_path):
    path = whole.save(tmp_path / "flow.safetensors")
    back = ls.Flow.load(path)
    for name in ("total", "heads", "last", "mlps", "stream", "composition", "edges"):
        assert torch.equal(getattr(back, name), getattr(whole, name)), name
    assert (back.residual, back.tokens, back.sources) == (whole.residual, whole.tokens, whole.sources)
    assert dict(back.meta) == dict(whole.meta)
    for ask in (lambda: back.paths(3), back.orders):
        with pytest.raises(RuntimeError, match=r"live model.*last_heads"):
            ask()
    assert back.last_heads().equals(whole.last_heads())
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="cut"):
        ls.Flow.load(cut)
    with pytest.raises(ValueError, match="Flow"):
        ls.Scores.load(path)


def test_an_estimate_keeps_its_standard_error_when_saved(tmp_path):
    flow = flow_of(("gpt2", tiny.BACKENDS[0]), torch.float32, scope=ls.Fisher(6))
    assert float(flow.stderr) > 0
    assert torch.equal(ls.Flow.load(flow.save(tmp_path / "f.safetensors")).stderr, flow.stderr)


def test_share_is_a_fraction_of_the_row(whole):
    share = whole.share()
    some = whole.total > 0
    assert_close(share.total[some], torch.ones(int(some.sum())), 1e-6)
    assert float(share.total[~some].abs().sum()) == 0
    assert_close(share.heads[some] * whole.total[some][:, None, None], whole.heads[some], 1e-6)
    assert_close(share.stream[some].sum(-1), torch.ones(int(some.sum()), tiny.LAYERS + 1), 1e-5)
    assert_close(share.edges.sum((0, 3, 4)), whole.heads.sum(0) / whole.total.sum(), 1e-5)
    assert share.units == "share"
    assert share.stderr is None


def test_top_is_sorted_and_complete(whole):
    frame = whole.top(1000)
    assert len(frame) == tiny.LAYERS * (tiny.HEADS + 1)
    assert (frame.influence.abs().diff().dropna() <= 0).all()
    assert frame.influence.sum() == pytest.approx(float(whole.heads.sum() + whole.mlps.sum()), rel=1e-5)
    first = frame[frame.kind == "head"].iloc[0]
    assert first.influence == pytest.approx(float(whole.heads[:, first.layer, first["head"]].sum()))
    assert first.q + first.k + first.v == pytest.approx(first.influence, rel=1e-4, abs=1e-6)
    assert first.share == pytest.approx(first.influence / float(whole.total.sum()))
    assert len(whole.top(3)) == 3
    for kind in ("head", "mlp"):
        only = frame[frame.kind == kind].reset_index(drop=True)
        assert whole.top(1000, kind=kind).equals(only)
        assert whole.top(2, kind).equals(only.head(2))


def test_dataframe_holds_every_number_once(whole):
    frame = whole.to_dataframe()
    pos, layers, heads = len(tiny.tokens()), tiny.LAYERS, tiny.HEADS
    assert frame.kind.value_counts().to_dict() == {
        "stream": pos * (layers + 1) * pos,
        "head": pos * layers * heads,
        "last": pos * layers * heads,
        "mlp": pos * layers,
        "skip": pos * layers,
    }
    one = frame[(frame.kind == "head") & (frame.source == 2) & (frame.layer == 1) & (frame["head"] == 3)]
    assert one.influence.tolist() == pytest.approx([float(whole.heads[2, 1, 3])])
    one = frame[(frame.kind == "stream") & (frame.source == 4) & (frame.depth == 1) & (frame.pos == 5)]
    assert one.influence.tolist() == pytest.approx([float(whole.stream[4, 1, 5])])


def test_a_dataset_has_the_same_numbers_and_labels(whole):
    pytest.importorskip("xarray")
    found = whole.to_xarray()
    axes = {
        "total": ("source",),
        "heads": ("source", "layer", "head"),
        "last": ("source", "layer", "head"),
        "mlps": ("source", "layer"),
        "skip": ("source", "layer"),
        "stream": ("source", "depth", "pos"),
        "composition": ("source", "layer", "head", "qkv"),
        "edges": ("edge", "layer", "head", "query", "key"),
    }
    assert {name: part.dims for name, part in found.data_vars.items()} == axes
    for name in axes:
        assert torch.equal(torch.as_tensor(found[name].values), getattr(whole, name)), name
    assert found.sel(source=2, layer=1, head=3).heads.item() == float(whole.heads[2, 1, 3])
    assert found.edges.sel(edge="pattern", layer=0, head=1, query=4, key=2).item() == float(whole.edges[1, 0, 1, 4, 2])
    assert found.composition.sel(qkv="v").values.tolist() == whole.composition[..., 2].tolist()
    assert tuple(found.token.values) == whole.tokens
    assert found.token.dims == ("pos",)
    assert found.attrs["residual"] == whole.residual
    assert json.loads(found.attrs["meta"]) == json.loads(json.dumps(whole.meta))
    one = whole.sel(source=3).to_xarray()
    assert one.source.values.tolist() == [3]
    assert "edges" not in one
    estimate = flow_of(("gpt2", tiny.BACKENDS[0]), torch.float32, scope=ls.Fisher(4)).to_xarray()
    assert estimate.source.values.tolist() == ["all"]
    assert estimate.stderr.dims == ("source",)
    assert estimate.stderr.item() > 0


def test_html_is_well_formed_and_safe():
    model, ids = tiny.host("gpt2", tiny.BACKENDS[0], torch.float32), tiny.tokens()
    flow = ls.flow(model, ids, ls.Semantic(TARGET))
    bad = ("<script>a()", '"><img src=x onerror=alert(1)>', *flow.tokens[2:])
    text = ls.Flow(**{f: getattr(flow, f) for f in flow.__dataclass_fields__} | {"tokens": bad})._repr_html_()

    class Reader(HTMLParser):
        open_tags: ClassVar[list[str]] = []
        said = ""
        hovers: ClassVar[list[str]] = []

        def handle_starttag(self, tag, attrs):
            assert tag not in ("script", "img", "iframe", "link")
            assert not any(name.startswith("on") or "http" in (value or "") for name, value in attrs)
            self.hovers += [value for name, value in attrs if name == "title"]
            if tag not in ("br", "meta", "hr"):
                self.open_tags.append(tag)

        def handle_endtag(self, tag):
            assert self.open_tags.pop() == tag

        def handle_data(self, data):
            self.said += data

    reader = Reader()
    reader.feed(text)
    assert reader.open_tags == []
    assert "<script>a()" in reader.said
    assert "H3" in reader.said
    assert "MLP" in reader.said
    assert len(reader.hovers) >= tiny.LAYERS * (tiny.HEADS + 1) + (tiny.LAYERS + 1) * len(bad)  # a cell each


@pytest.mark.parametrize("pair", [p for p in tiny.HOSTS if p[0] in ("llama", "neox")], ids=tiny.host_id)
@pytest.mark.parametrize("sources", [None, [1, 3]])
def test_check_finds_right_flows_right_and_wrong_ones_wrong(pair, sources):
    model = tiny.host(*pair)
    flow = ls.flow(model, tiny.tokens(), ls.Fisher(2), position=POSITION, sources=sources)
    report = flow.check(model)
    assert report["max_error"] < 1e-6
    assert report["total_error"] < 1e-6
    assert report["scores"]["max_error"] < 1e-3
    assert len(report["heads"]) == 3
    fields = {f: getattr(flow, f) for f in flow.__dataclass_fields__}
    wrong = ls.Flow(**fields | {"heads": flow.heads * 1.1, "total": flow.total * 1.2}).check(model)
    assert wrong["max_error"] > 1e-3
    assert wrong["total_error"] > 1e-1


def test_one_line(whole):
    assert repr(whole).startswith("Flow(7 sources, 2 layers x 4 heads; Semantic(")
    assert "all sources together" in repr(flow_of(("gpt2", tiny.BACKENDS[0]), torch.float32))


@pytest.mark.skipif(not (ls.demo.MODEL_DIR / "config.json").is_file(), reason="the demo model is not there yet")
def test_the_example_in_the_docstring():
    result = doctest.testmod(sys.modules["lens_scopes.flow"])
    assert result.attempted >= 8
    assert result.failed == 0


def test_the_docstring_names_every_argument():
    for name in inspect.signature(ls.flow).parameters:
        assert f"{name}:" in ls.flow.__doc__


@pytest.mark.parametrize("pair", PAIRS, ids=tiny.host_id)
def test_heads_and_what_goes_past_them_make_the_whole_in_every_block(pair):
    flow = flow_of(pair, None, sources="each")
    tolerance = 1e-5 if flow.total.dtype == torch.float32 else 1e-6
    assert_close(flow.skip + flow.heads.sum(-1), flow.total[:, None].expand_as(flow.skip), tolerance, "skip + heads")
    top = flow.top(100)
    heads = top[top.kind == "head"].groupby("layer")["share"].sum()
    assert heads.add(top.groupby("layer")["skip"].first()).tolist() == pytest.approx([1.0] * len(heads), abs=tolerance)


@pytest.mark.host
@pytest.mark.parametrize("pair", [(a, b) for a in ("gpt2", "llama", "mixtral") for b in tiny.BACKENDS])
@pytest.mark.parametrize("by_row", [False, True])
def test_lanes_that_share_their_value_share_its_products(pair, by_row, monkeypatch):
    """Layers run for one lane, the numbers stay; a hook that moves one lane alone parts them."""
    from lens_scopes.calculus import pushforward

    model, ids = tiny.fresh_host(*pair, tiny.precise(*pair)), tiny.tokens(6)
    if by_row:

        def move(activation, hook):
            moved = activation.clone()
            moved[-1] = moved[-1] * 1.01
            return moved

        model.add_hook("blocks.0.hook_mlp_out", move)
    tangents = torch.randn(3, 6, tiny.D_MODEL, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = []

    def push():
        host = ls.host.Host(model)
        return pushforward.push_forward(host, torch.tensor(ids), "hook_embed", tangents, position=5)

    once = pushforward._StillWeights._once

    def counting(self, layer, value):
        share = [] if not value.numel() else rows  # an expert that no token goes to
        return once(self, lambda x: share.append(x.numel() / max(value.numel(), 1)) or layer(x), value)

    monkeypatch.setattr(pushforward._StillWeights, "_once", counting)
    shared = push()
    assert shared.method == "forward mode"
    assert min(rows) == pytest.approx(1 / 3)
    assert (max(rows) == 1) == by_row or pair[0] == "mixtral"
    monkeypatch.setattr(pushforward._StillWeights, "_once", lambda self, layer, value: layer(value))
    assert_close(shared.y, push().y, 1e-12 if pair[0] != "mixtral" else 1e-5)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_books_that_a_hook_upsets_name_the_hook(backend):
    model = tiny.host("gpt2", backend, torch.float32)
    with (
        model.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", lambda x, hook: Lie.apply(x, 2.0))]),
        pytest.raises(RuntimeError, match=r"do not balance: .* hooks of yours in force \(blocks.1.hook_mlp_out\)"),
    ):
        ls.flow(model, tiny.tokens(5), ls.Semantic(7))
