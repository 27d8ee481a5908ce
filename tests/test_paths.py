"""Paths against explicit products of dense Jacobians of the bare Hugging Face model, block by block."""

import collections
import functools
import itertools
import re
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
    frame = paths_of(pair, ALL, source=source, budget=ALL)
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
    frame = paths_of(pair, ALL, scope=scope, freeze=freeze, budget=ALL)
    total = float(flow_of(pair, scope, freeze).total.sum())
    assert frame.influence[:-1].sum() == pytest.approx(total, rel=1e-10)
    assert abs(frame.influence.iloc[-1]) < 1e-10 * total  # nothing is left


@pytest.mark.parametrize("pair", [("deep-llama", b) for b in tiny.BACKENDS], ids=tiny.host_id)
def test_all_paths_sum_to_the_total_in_float32(pair):
    flow = ls.flow(tiny.host(*pair, torch.float32), ids(), ls.Semantic(TARGET))
    frame = flow.paths(ALL, budget=ALL)
    assert frame.influence[:-1].sum() == pytest.approx(float(flow.total.sum()), rel=1e-5)


@pytest.mark.parametrize("pair", PAIRS, ids=tiny.host_id)
def test_a_search_finds_what_an_exhaustive_one_finds(pair):
    best = sorted(truth(pair[0]).items(), key=lambda entry: -abs(float(entry[1].sum())))[:8]
    frame = paths_of(pair, 8)
    assert frame.path.tolist() == [*(name(path) for path, _ in best), "rest"]


@pytest.mark.parametrize("pair", PAIRS, ids=tiny.host_id)
@pytest.mark.parametrize("scope", [ls.Semantic(TARGET), ls.Fisher(3)], ids=["semantic", "fisher"])
@pytest.mark.parametrize("budget", [1, 2, 5, 17, ALL - 1])
def test_whatever_the_budget_nothing_is_lost(pair, scope, budget):
    """The rest is summed by itself, from what was completed and not listed and what was left open."""
    total = float(flow_of(pair, scope).total.sum())
    for k in {1, min(4, budget), budget}:
        frame = paths_of(pair, k, scope=scope, budget=budget)
        assert len(frame) == k + 1
        assert abs(frame.influence.sum() - total) < 1e-9 * total
        assert frame.share.tolist() == pytest.approx((frame.influence / total).tolist())


@pytest.mark.parametrize("pair", PAIRS, ids=tiny.host_id)
def test_a_narrow_search_is_still_exact_and_says_what_it_leaves(pair):
    exact = {name(path): float(by_source.sum()) for path, by_source in truth(pair[0]).items()}
    total = float(flow_of(pair).total.sum())
    frame = paths_of(pair, 4, budget=4)
    assert len(frame) == 5
    for path, influence in zip(frame.path[:-1], frame.influence[:-1], strict=True):
        assert influence == pytest.approx(exact[path], abs=tolerance(pair) * total)
    rest = total - sum(exact[path] for path in frame.path[:-1])
    assert abs(rest) > 0.01 * total
    assert frame.influence.iloc[-1] == pytest.approx(rest, abs=tolerance(pair) * total)


@pytest.mark.parametrize("pair", PAIRS, ids=tiny.host_id)
@pytest.mark.parametrize("source", [None, 2])
def test_last_heads_are_sums_over_all_paths(pair, source):
    flow = flow_of(pair) if source is None else flow_of(pair).sel(source=source)
    expected = dict.fromkeys([None, *itertools.product(range(LAYERS), range(tiny.HEADS))], 0.0)
    for path, by_source in truth(pair[0]).items():
        heads = [(layer, head) for layer, head in enumerate(path) if head != SKIP]
        expected[heads[-1] if heads else None] += float(by_source.sum() if source is None else by_source[source])
    frame = flow.last_heads()
    rows = zip(frame.kind, frame.layer, frame["head"], frame.influence, strict=True)
    found = {None if kind == "straight" else (layer, head): part for kind, layer, head, part in rows}
    total = float(flow.total.sum())
    assert found == pytest.approx(expected, abs=tolerance(pair) * total)
    assert abs(frame.influence.sum() - total) < 1e-12 * total
    assert (frame.influence.abs().diff().dropna() <= 0).all()


@pytest.mark.parametrize("pair", PAIRS, ids=tiny.host_id)
@pytest.mark.parametrize("most", [0, 1, 2, 3, 8])
@pytest.mark.parametrize("source", [None, 2])
def test_orders_are_sums_over_all_paths(pair, most, source):
    flow = flow_of(pair) if source is None else flow_of(pair).sel(source=source)
    with doubled(pair):
        frame = flow.orders(most)
    expected = [0.0] * (min(most, LAYERS) + 1)
    for path, by_source in truth(pair[0]).items():
        count = sum(head != SKIP for head in path)
        expected[min(count, most)] += float(by_source.sum() if source is None else by_source[source])
    total = float(flow.total.sum())
    assert frame.influence.tolist() == pytest.approx(expected, abs=tolerance(pair) * total)
    assert abs(frame.influence.sum() - total) < 1e-9 * total
    names = [str(count) for count in range(len(expected))]
    assert frame.heads.tolist() == (names if most >= LAYERS else [*names[:-1], f"{most} or more"])


@pytest.mark.parametrize("pair", PAIRS, ids=tiny.host_id)
@pytest.mark.parametrize("freeze", [(), ("norm", "attention")], ids=["plain", "frozen"])
@pytest.mark.parametrize("scope", [ls.Fisher(3), ls.Fisher(None)], ids=["estimate", "exact"])
def test_partitions_of_several_cotangents_are_sums_over_all_paths(pair, scope, freeze):
    flow, every = flow_of(pair, scope, freeze), paths_of(pair, ALL, scope=scope, freeze=freeze, budget=ALL)
    with doubled(pair):
        orders = flow.orders()
    heads = [re.findall(r"\d+\.\d+", path) for path in every.path[:-1]]
    by_count, by_last = collections.Counter(), collections.Counter()
    for found, influence in zip(heads, every.influence[:-1], strict=True):
        by_count[str(len(found))] += influence
        by_last[found[-1] if found else "straight"] += influence
    total = float(flow.total.sum())
    assert dict(zip(orders.heads, orders.influence, strict=True)) == pytest.approx(by_count, abs=1e-9 * total)
    last = flow.last_heads()
    rows = zip(last.kind, last.layer, last["head"], strict=True)
    names = ["straight" if kind == "straight" else f"{layer}.{head}" for kind, layer, head in rows]
    assert dict(zip(names, last.influence, strict=True)) == pytest.approx(by_last, abs=1e-9 * total)


@pytest.mark.parametrize("pair", tiny.HOSTS + tiny.OTHER_HOSTS, ids=tiny.host_id)
def test_partitions_add_up_on_every_form_of_block(pair):
    """Grouped queries, norms after the branches, norms that mix heads, parallel attention, experts; float32."""
    flow = ls.flow(tiny.host(*pair, torch.float32), ids(), ls.Semantic(TARGET), position=POSITION)
    total, layers = float(flow.total.sum()), flow.heads.shape[1]
    every = (tiny.HEADS + 1) ** layers if layers < LAYERS else 16
    for frame in (flow.last_heads(), flow.orders(), flow.orders(1), flow.paths(every, budget=every)):
        assert frame.influence.sum() == pytest.approx(total, rel=1e-4)
    heads = flow.last_heads()
    top = heads[(heads.kind == "head") & (heads.layer == layers - 1)].set_index("head").influence
    for head in range(tiny.HEADS):  # nothing comes after the last block
        assert top[head] == pytest.approx(float(flow.heads[0, -1, head]), abs=1e-5 * total)


@pytest.mark.skipif("hooked" not in tiny.BACKENDS, reason="a HookedTransformer is made by hand")
@pytest.mark.parametrize("norm", ["LN", None])
@pytest.mark.parametrize("alone", [True, False], ids=["attention only", "with MLPs"])
def test_models_without_mlps_or_norms(alone, norm):
    model = by_hand(alone, norm)
    flow = ls.flow(model, [1, 2, 3, 4], ls.Semantic(TARGET), edges=True)
    total = float(flow.total.sum())
    assert flow.residual < 1e-12
    assert (float(flow.mlps.abs().sum()) == 0) == alone
    for frame in (flow.last_heads(), flow.orders(), flow.paths(3), flow.paths(25, budget=25)):
        assert abs(frame.influence.sum() - total) < 1e-10 * total
    every = flow.paths(25, budget=25)
    by_hook = masked_route(model, (0, 3), (1, 3))
    assert every.set_index("path").influence["source → 0.3 → 1.3 → prediction"] == pytest.approx(by_hook, rel=1e-8)


def by_hand(alone: bool, norm: str | None):
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=2, d_model=16, d_head=4, n_heads=4, d_vocab=50, n_ctx=16, d_mlp=None if alone else 24, attn_only=alone,
        act_fn="gelu", normalization_type=norm, dtype=torch.float64, seed=0, device="cpu",
    )  # fmt: skip
    model, generator = HookedTransformer(config).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(1 + 0.3 * noise if name.endswith(".w") else 0.4 * noise)
    return model


def masked_route(model, first: tuple[int, int], second: tuple[int, int]) -> float:
    """Through two heads of two blocks, by plain autograd on the model with its hooks."""
    at = {}

    def keep(x, hook):
        at[hook.name] = x if x.requires_grad else x.detach().requires_grad_()
        return at[hook.name]

    names = [
        "hook_embed",
        *(f"blocks.{layer}.{kind}" for layer in (0, 1) for kind in ("attn.hook_z", "hook_resid_pre")),
    ]
    with torch.enable_grad(), model.hooks(fwd_hooks=[(name, keep) for name in names]):
        logits = model(torch.tensor([[1, 2, 3, 4]]))[0, -1]

    def pull(output, site, cotangent):
        return torch.autograd.grad(output, at[site], cotangent, retain_graph=True)[0]

    def only(cotangent, head):
        return cotangent * (torch.arange(4) == head)[:, None]

    g = pull(logits[TARGET], "hook_embed", None)
    d = g / g.norm(dim=-1, keepdim=True)
    back = pull(
        at["blocks.1.attn.hook_z"],
        "blocks.1.hook_resid_pre",
        only(pull(logits[TARGET], "blocks.1.attn.hook_z", None), second[1]),
    )
    back = pull(at["blocks.1.hook_resid_pre"], "blocks.0.attn.hook_z", back)
    return float((pull(at["blocks.0.attn.hook_z"], "hook_embed", only(back, first[1])) * d).sum())


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_portions_do_not_change_paths_and_partitions(backend):
    flow = ls.flow(tiny.host("llama", backend), ids(), ls.Fisher(3))
    whole = flow.paths(8), flow.orders(), flow.last_heads()
    with ls.memory_budget(1):
        again = ls.flow(tiny.host("llama", backend), ids(), ls.Fisher(3))
        parts = again.paths(8), again.orders(), again.last_heads()
    for one, other in zip(parts, whole, strict=True):
        assert one.influence.tolist() == pytest.approx(other.influence.tolist(), abs=1e-6 * float(flow.total))


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_a_search_costs_its_budget(backend, monkeypatch):
    """Each chain looked into goes backwards through attention once, and once through each block below it."""
    from lens_scopes.calculus.branches import Branches

    flow = ls.flow(tiny.host("deep-llama", backend), ids(), ls.Semantic(TARGET))
    seen = collections.Counter()
    for kind in ("split", "into"):
        whole = getattr(Branches, kind)

        def counted(self, layer, lanes, kind=kind, whole=whole):
            seen[kind] += len(lanes)
            return whole(self, layer, lanes)

        monkeypatch.setattr(Branches, kind, counted)
    for budget in (1, 6, 30):
        seen.clear()
        frame = flow.paths(1, budget=budget)
        assert len(frame) == 2
        assert seen["into"] == budget - 1
        assert LAYERS <= seen["split"] <= LAYERS * budget


def test_what_paths_and_orders_refuse():
    flow = ls.flow(tiny.host(*PAIRS[0]), ids(), ls.Semantic(TARGET))
    with pytest.raises(ValueError, match="k=60 with budget=48; write budget=60"):
        flow.paths(60)
    with pytest.raises(ValueError, match="k is an integer, got 0; write 1 or more"):
        flow.paths(0)
    with pytest.raises(ValueError, match="K, a number of heads, is an integer, got -1; write 0 or more"):
        flow.orders(-1)


def test_paths_of_one_source_are_paths_of_a_row():
    with doubled(PAIRS[0]):
        flow = ls.flow(tiny.host(*PAIRS[0]), ids(), ls.Semantic(TARGET), sources=[1, 3])
        both, *apart = (flow.paths(ALL, source=s, budget=ALL).set_index("path").influence for s in (None, 1, 3))
    assert both.to_dict() == pytest.approx((apart[0] + apart[1]).to_dict(), abs=1e-10 * float(flow.total.sum()))
    with pytest.raises(KeyError, match=r"no label 2 .*write one of 1, 3"):
        flow.paths(3, source=2)
