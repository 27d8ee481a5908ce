"""Flow to a direction inside the model: the ledger ends there. Against masked backward passes of the bare model."""

import functools
from contextlib import nullcontext

import pytest
import torch

import lens_scopes as ls
import masked
import tiny
from double import Double
from report import assert_close

pytestmark = pytest.mark.host

POSITION = 5
V = torch.randn(tiny.D_MODEL, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
KINDS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
#: Bridges and blocks of every form; a norm over all heads of q and k has no composition by head.
PAIRS = [*tiny.HOSTS, *(pair for pair in tiny.OTHER_HOSTS if pair[0] != "olmo2")]


def parallel(pair) -> bool:
    return pair[0] in ("neox", "deep-neox", "gptj", "phi", "falcon")


def to(kind: str, layer: int = 1) -> ls.Direction:
    return ls.Direction(V, site=f"blocks.{layer}.hook_{kind}", name="v")


CASES = [(pair, kind) for pair in PAIRS for kind in KINDS if not (parallel(pair) and kind == "resid_mid")]
ORACLES = [(pair, kind) for pair, kind in CASES if pair in tiny.HOSTS]


def case_id(value) -> str:
    return value if isinstance(value, str) else tiny.host_id(value)


@functools.cache
def found(pair, kind: str):
    with Double() if pair[1] == "bridge" else nullcontext():
        return ls.flow(tiny.host(*pair), tiny.tokens(), to(kind), position=POSITION, sources="each", edges=True)


def layers_of(kind: str) -> int:
    return 1 if kind == "resid_pre" else 2


@pytest.mark.parametrize(("pair", "kind"), CASES, ids=case_id)
def test_laws_hold_and_the_totals_are_the_scores(pair, kind):
    flow, layers = found(pair, kind), layers_of(kind)
    inside = kind in ("resid_mid", "attn_out", "mlp_out")
    assert 0 < flow.residual < 1e-6
    total = float(flow.total.max())
    assert total > 0
    assert flow.heads.shape == flow.last.shape == (len(tiny.tokens()), layers, tiny.HEADS)
    assert flow.mlps.shape == flow.skip.shape == (len(tiny.tokens()), layers)
    assert flow.stream.shape[1] == layers + (not inside)
    assert flow.meta["end"] == f"blocks.1.hook_{kind}"
    assert_close(flow.stream.sum(-1), flow.total[:, None].expand(flow.stream.shape[:2]), 1e-6, "stream", total)
    assert_close(flow.skip + flow.heads.sum(-1), flow.total[:, None].expand(flow.skip.shape), 1e-6, "block", total)
    assert_close(flow.composition.sum(-1), flow.heads, 1e-6, "composition", total)
    assert_close(flow.edges.sum((0, 3, 4)), flow.heads.sum(0), 1e-6, "edges", total)
    with Double() if pair[1] == "bridge" else nullcontext():
        scores = ls.score(tiny.host(*pair), tiny.tokens(), to(kind), position=POSITION, sites="embed")
    assert_close(flow.total, scores.values[0], 1e-6, "embed", total)


@pytest.mark.parametrize(("pair", "kind"), ORACLES, ids=case_id)
def test_every_part_is_a_masked_backward_pass(pair, kind):
    run = masked.run(tiny.hugging_face(pair[0]), tiny.tokens(), POSITION).to(f"blocks.1.hook_{kind}", POSITION)
    flow, close = found(pair, kind), 1e-10 if pair[1] == "bridge" or pair[0] == "gpt2" else 2e-5
    everywhere, total = slice(None), float(found(pair, kind).total.max())
    reads_heads = [0] if kind == "resid_pre" or (parallel(pair) and kind == "mlp_out") else [0, 1]
    for layer in range(flow.heads.shape[1]):
        heads = torch.zeros_like(flow.heads[:, layer])
        if layer in reads_heads:
            z = f"blocks.{layer}.attn.hook_z"
            heads = torch.stack([run.influence(V, (z, (everywhere, head))) for head in range(tiny.HEADS)], 1)
        assert_close(flow.heads[:, layer], heads, close, f"heads of layer {layer}", total)
        mlp = torch.zeros_like(flow.mlps[:, layer])
        if layer == 0 or kind in ("resid_post", "mlp_out"):
            mlp = run.influence(V, (f"blocks.{layer}.hook_mlp_out", (everywhere,)))
        assert_close(flow.mlps[:, layer], mlp, close, f"MLP of layer {layer}", total)
    places = range(len(tiny.tokens()))
    expected = torch.stack([run.influence(V, ("blocks.1.hook_resid_pre", (p,))) for p in places], 1)
    assert_close(flow.stream[:, 1], expected, close, "stream", total)


@pytest.mark.parametrize(("pair", "kind"), CASES, ids=case_id)
def test_routes_add_up_and_last_heads_are_their_groups(pair, kind):
    """All routes, grouped by the last head on them, are ``last_heads``; by how many, ``orders``."""
    with Double() if pair[1] == "bridge" else nullcontext():
        paths = found(pair, kind).paths(30, budget=30).iloc[:-1]
        orders = found(pair, kind).orders()
    total = float(found(pair, kind).total.sum())
    steps = paths.path.str.split(" → ").map(lambda parts: parts[1:-1])
    last = paths.influence.groupby(steps.map(lambda heads: heads[-1] if heads else "straight")).sum()
    for row in found(pair, kind).last_heads().itertuples():
        name = "straight" if row.kind == "straight" else f"{row.layer}.{row.head}"
        assert row.influence == pytest.approx(last.get(name, 0.0), abs=1e-6 * total)
    by_length = paths.influence.groupby(steps.map(len)).sum()
    assert orders.influence.sum() == pytest.approx(total, rel=1e-6)
    for length, influence in zip(orders.heads, orders.influence, strict=True):
        assert influence == pytest.approx(by_length.get(int(length), 0.0), abs=1e-6 * total)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_a_flow_to_the_output_of_a_block_is_one_to_the_input_of_the_next(backend):
    model, ids = tiny.host("gpt2", backend), tiny.tokens()
    one, other = (ls.flow(model, ids, to(*place), position=POSITION) for place in (("resid_post", 0), ("resid_pre", 1)))
    for name in ("total", "heads", "last", "mlps", "skip", "stream", "composition"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_a_flow_to_an_inner_site_is_a_result_like_any_other(backend, tmp_path):
    model, ids = tiny.host("gpt2", backend, torch.float32), tiny.tokens()
    flow = ls.flow(model, ids, to("resid_mid"), position=POSITION, edges=[(1, 2), (0, 3)])
    back = ls.Flow.load(flow.save(tmp_path / "flow.safetensors"))
    assert torch.equal(back.heads, flow.heads)
    assert flow.edge_heads == [(1, 2), (0, 3)]
    assert_close(flow.edges.sum((0, 2, 3)), torch.stack([flow.heads[0, 1, 2], flow.heads[0, 0, 3]]), 1e-5)
    for view in ("last", "heads", "stream", "edges"):
        assert "site=&#x27;blocks.1.hook_resid_mid&#x27;" in back.show(view).static
    assert "ends at 1 resid_mid" in back.show("heads").static
    checked = flow.check(model, scope=to("resid_mid"))
    assert checked["total_error"] < 1e-5
    assert checked["max_error"] < 1e-5
    with ls.memory_budget(1):
        parts = ls.flow(model, ids, to("resid_mid"), position=POSITION, sources="each")
    assert_close(parts.heads.sum(0, keepdim=True), flow.heads, 1e-5)


@pytest.mark.parametrize("pair", [p for p in tiny.HOSTS if p[0] in ("gpt2", "neox", "gemma2")], ids=tiny.host_id)
def test_what_is_held_stays_held_on_the_way(pair):
    flow = ls.flow(tiny.host(*pair), tiny.tokens(), to("resid_post"), position=POSITION, freeze="attention")
    assert flow.residual < 1e-6
    assert float(flow.composition[..., :2].abs().max()) < 1e-12  # queries and keys move nothing
    assert float(flow.composition[..., 2].abs().max()) > 1e-3
