"""Paths against explicit products of dense Jacobians of the bare Hugging Face model, block by block."""

import functools
import itertools
from contextlib import nullcontext

import pytest
import torch

import lens_scopes as ls
import masked
import tiny
from double import Double
from report import assert_close

pytestmark = pytest.mark.host

POSITION, TARGET = 4, 7
LAYERS, SKIP = 3, -1
PAIRS = [pair for pair in tiny.OTHER_HOSTS if pair[0].startswith("deep")]
ALL = (tiny.HEADS + 1) ** LAYERS


def ids() -> list[int]:
    return tiny.tokens(6)


@functools.cache
def truth(architecture: str):
    """By path, the influence of every source: g · M_2 M_1 M_0 d_t, each M the dense Jacobian of one branch."""
    run = masked.run(tiny.hugging_face(architecture), ids(), POSITION)
    v = masked.unembed(tiny.hugging_face(architecture), ids(), POSITION)[TARGET]
    size = run.embed[0].numel()
    maps = []
    for layer in range(LAYERS):
        block = f"blocks.{layer}."
        before, z, after = (run.at[block + name] for name in ("hook_resid_pre", "attn.hook_z", "hook_resid_post"))
        rows = torch.eye(size, dtype=v.dtype).reshape(size, *after.shape)
        (whole,) = torch.autograd.grad(after, before, rows, retain_graph=True, is_grads_batched=True)
        (to_z,) = torch.autograd.grad(after, z, rows, retain_graph=True, is_grads_batched=True)
        branch = {}
        for head in range(tiny.HEADS):
            only = to_z * run.mask(block + "attn.hook_z", slice(None), head).reshape(z.shape)
            (back,) = torch.autograd.grad(z, before, only, retain_graph=True, is_grads_batched=True)
            branch[head] = back.reshape(size, size)
        branch[SKIP] = whole.reshape(size, size) - sum(branch.values())
        maps.append(branch)
    g = run.gradient(v, f"blocks.{LAYERS - 1}.hook_resid_post").flatten()
    d = run.directions(v)
    moved = torch.stack([torch.where(torch.arange(len(d))[:, None] == t, d, 0.0).flatten() for t in range(len(d))], 1)
    return {
        path: g @ maps[2][path[2]] @ maps[1][path[1]] @ maps[0][path[0]] @ moved
        for path in itertools.product(range(SKIP, tiny.HEADS), repeat=LAYERS)
    }


def name(path: tuple[int, ...]) -> str:
    return " → ".join(["source", *(f"{layer}.{head}" for layer, head in enumerate(path) if head != SKIP), "prediction"])


@functools.cache
def flow_of(pair, scope=None, freeze=()):
    with doubled(pair):
        return ls.flow(
            tiny.host(*pair), ids(), scope or ls.Semantic(TARGET), position=POSITION, sources="each", freeze=freeze
        )


def doubled(pair):
    return Double() if pair[1] == "bridge" else nullcontext()


def paths_of(pair, k, *, scope=None, freeze=(), **options):
    flow = flow_of(pair, scope, freeze)
    with doubled(pair):
        return flow.paths(k, **options)


def tolerance(pair) -> float:
    return 1e-10 if pair[1] == "bridge" else 2e-5  # HookedTransformer's rotary tables differ in the seventh digit


@pytest.mark.parametrize("pair", PAIRS, ids=tiny.host_id)
@pytest.mark.parametrize("source", [None, 2])
def test_every_path_is_a_product_of_dense_jacobians(pair, source):
    frame = paths_of(pair, ALL, source=source, beam=ALL)
    assert len(frame) == ALL + 1
    found = dict(zip(frame.path, frame.influence, strict=True))
    expected = {
        name(path): by_source.sum() if source is None else by_source[source]
        for path, by_source in truth(pair[0]).items()
    }
    assert set(found) == {*expected, "rest"}
    total = float(flow_of(pair).total.sum() if source is None else flow_of(pair).total[source])
    in_order = [found[path] for path in expected]
    assert_close(
        torch.tensor(in_order, dtype=torch.float64),
        torch.stack(list(expected.values())),
        tolerance(pair),
        "paths",
        total,
    )
    assert frame.share.tolist() == pytest.approx((frame.influence / total).tolist())
    strengths = frame.influence[:-1].abs()
    assert (strengths.diff().dropna() <= 0).all()


@pytest.mark.parametrize("pair", PAIRS, ids=tiny.host_id)
@pytest.mark.parametrize("freeze", [(), ("norm", "attention")], ids=["plain", "frozen"])
@pytest.mark.parametrize("scope", [ls.Semantic(TARGET), ls.Fisher(3)], ids=["semantic", "fisher"])
def test_all_paths_sum_to_the_total(pair, scope, freeze):
    frame = paths_of(pair, ALL, scope=scope, freeze=freeze, beam=ALL)
    total = float(flow_of(pair, scope, freeze).total.sum())
    assert frame.influence[:-1].sum() == pytest.approx(total, rel=1e-10)
    assert abs(frame.influence.iloc[-1]) < 1e-10 * total  # nothing is left


@pytest.mark.parametrize("pair", [("deep-llama", b) for b in tiny.BACKENDS], ids=tiny.host_id)
def test_all_paths_sum_to_the_total_in_float32(pair):
    flow = ls.flow(tiny.host(*pair, torch.float32), ids(), ls.Semantic(TARGET))
    frame = flow.paths(ALL, beam=ALL)
    assert frame.influence[:-1].sum() == pytest.approx(float(flow.total.sum()), rel=1e-5)


@pytest.mark.parametrize("pair", PAIRS, ids=tiny.host_id)
def test_a_wide_beam_finds_what_an_exhaustive_search_finds(pair):
    best = sorted(truth(pair[0]).items(), key=lambda entry: -abs(float(entry[1].sum())))[:8]
    frame = paths_of(pair, 8)
    assert frame.path.tolist() == [*(name(path) for path, _ in best), "rest"]


@pytest.mark.parametrize("pair", PAIRS, ids=tiny.host_id)
def test_a_narrow_beam_is_still_exact_and_says_what_it_leaves(pair):
    exact = {name(path): float(by_source.sum()) for path, by_source in truth(pair[0]).items()}
    total = float(flow_of(pair).total.sum())
    frame = paths_of(pair, 4, beam=4)
    assert len(frame) == 5
    for path, influence in zip(frame.path[:-1], frame.influence[:-1], strict=True):
        assert influence == pytest.approx(exact[path], abs=tolerance(pair) * total)
    rest = total - sum(exact[path] for path in frame.path[:-1])
    assert abs(rest) > 0.01 * total
    assert frame.influence.iloc[-1] == pytest.approx(rest, abs=tolerance(pair) * total)


def test_paths_of_one_source_are_paths_of_a_row():
    with doubled(PAIRS[0]):
        flow = ls.flow(tiny.host(*PAIRS[0]), ids(), ls.Semantic(TARGET), sources=[1, 3])
        both, *apart = (flow.paths(ALL, source=s, beam=ALL).set_index("path").influence for s in (None, 1, 3))
    assert both.to_dict() == pytest.approx((apart[0] + apart[1]).to_dict(), abs=1e-10 * float(flow.total.sum()))
    with pytest.raises(KeyError, match="source 2"):
        flow.paths(3, source=2)
