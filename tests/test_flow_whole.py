"""Integrated flow: the ledger of a whole difference. Against masked backward passes and plain hooks at every point."""

import functools
from contextlib import nullcontext

import pytest
import torch

import lens_scopes as ls
import masked
import oracles
import tiny
from double import Double
from report import assert_close

POSITION, TARGET, VERSUS = 5, 7, 11
CLEAN = tiny.tokens()
#: Two tokens changed before the position, one after it.
CORRUPTED = [CLEAN[0], CLEAN[1] + 1, CLEAN[2], CLEAN[3] + 1, CLEAN[4], CLEAN[5], CLEAN[6] + 1]
PAIRS = [*tiny.HOSTS, *(pair for pair in tiny.OTHER_HOSTS if not pair[0].startswith("deep"))]
MIXED = ("olmo2",)  # a norm over all heads of q and k
DIFFERENCE = ls.Semantic(TARGET, versus=VERSUS)
pytestmark = [pytest.mark.host, pytest.mark.filterwarnings("ignore:.*points of the line miss:UserWarning")]


def whole(pair, scope=DIFFERENCE, **options):
    with Double() if pair[1] == "bridge" else nullcontext():
        return ls.flow(tiny.host(*pair), CLEAN, scope, position=POSITION, against=CORRUPTED, **options)


@functools.cache
def found(pair):
    return whole(pair, sources="each", steps=3)


@functools.cache
def points(architecture: str, steps: int = 3):
    """At each midpoint of the line: the bare model's run, and the gradient of the logit difference at y."""
    hf = tiny.hugging_face(architecture)
    start, end = (masked.run(hf, ids, POSITION).embed.detach() for ids in (CORRUPTED, CLEAN))
    made = []
    for i in range(steps):
        run = masked.run(hf, CLEAN, POSITION, start + (i + 0.5) / steps * (end - start))
        y = run.y.detach().requires_grad_()
        logits = oracles.logits_of(hf, y)
        (v,) = torch.autograd.grad(logits[TARGET] - logits[VERSUS], y)
        made.append((run, v))
    return made, (end - start)[0]


def influence(architecture: str, *chain) -> torch.Tensor:
    """By position: the mean over points of ⟨what comes back through a part, the velocity⟩."""
    made, velocity = points(architecture)
    return sum((run.through(v, *chain) * velocity).sum(-1) for run, v in made)[[1, 3, 6]] / len(made)


def measured(model, ids) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([ids]))[0, POSITION].double()
    return float(logits[TARGET] - logits[VERSUS])


@pytest.mark.parametrize("pair", tiny.HOSTS, ids=tiny.host_id)
def test_every_part_is_a_masked_backward_pass_at_every_point(pair):
    flow, close, everywhere = found(pair), 1e-9 if pair[1] == "bridge" or pair[0] == "gpt2" else 2e-5, slice(None)
    made, velocity = points(pair[0])
    totals = torch.stack([(run.gradient(v, "hook_embed")[0] * velocity).sum(-1) for run, v in made])
    scale = float(totals.sum(1).abs().max())
    assert flow.sources == (1, 3, 6)
    assert_close(flow.total, totals.mean(0)[[1, 3, 6]], close, "total", scale)
    for layer in range(tiny.LAYERS):
        z, kinds = f"blocks.{layer}.attn.hook_z", [f"blocks.{layer}.attn.hook_{kind}" for kind in "qkv"]
        heads = [influence(pair[0], (z, (everywhere, head))) for head in range(tiny.HEADS)]
        assert_close(flow.heads[:, layer], torch.stack(heads, 1), close, f"heads of layer {layer}", scale)
        mlp = influence(pair[0], (f"blocks.{layer}.hook_mlp_out", (everywhere,)))
        assert_close(flow.mlps[:, layer], mlp, close, f"MLP of layer {layer}", scale)
        stream = [influence(pair[0], (f"blocks.{layer}.hook_resid_pre", (p,))) for p in range(len(CLEAN))]
        assert_close(flow.stream[:, layer], torch.stack(stream, 1), close, f"stream before layer {layer}", scale)
        for head in (0, tiny.HEADS - 1):
            parts = []
            for kind in kinds:
                read = head * points(pair[0])[0][0][0].where[kind].shape[0] // tiny.HEADS
                parts.append(influence(pair[0], (z, (everywhere, head)), (kind, (everywhere, read))))
            assert_close(flow.composition[:, layer, head], torch.stack(parts, 1), close, f"{layer}.{head}", scale)


@pytest.mark.parametrize("pair", PAIRS, ids=tiny.host_id)
@pytest.mark.parametrize("dtype", [torch.float32, None], ids=["float32", "precise"])
def test_every_cut_carries_the_total_and_with_the_gap_the_measured_difference(pair, dtype):
    model = tiny.host(*pair, dtype)
    with Double() if pair[1] == "bridge" and dtype is None else nullcontext():
        flow = ls.flow(
            model, CLEAN, DIFFERENCE, position=POSITION, against=CORRUPTED, steps=5, edges=pair[0] not in MIXED
        )
        difference = measured(model, CLEAN) - measured(model, CORRUPTED)
    close = 1e-5 if dtype == torch.float32 or tiny.precise(*pair) == torch.float32 else 1e-6
    assert 0 < flow.residual < close
    total, scale = flow.total[:, None], max(float(flow.total.abs().max()), abs(difference))
    assert_close(flow.stream.sum(-1), total.expand(1, tiny.LAYERS + 1), 10 * close, "stream", scale)
    assert_close(flow.skip + flow.heads.sum(-1), total.expand(1, tiny.LAYERS), 10 * close, "block", scale)
    assert flow.last_heads().influence.sum() == pytest.approx(float(flow.total), abs=10 * close * scale)
    if pair[0] not in MIXED:
        assert_close(flow.composition.sum(-1), flow.heads, 10 * close, "composition", scale)
        assert_close(flow.edges.sum((0, 3, 4)), flow.heads.sum(0), 10 * close, "edges", scale)
    assert flow.meta["metric"]["clean"] - flow.meta["metric"]["corrupted"] == pytest.approx(difference, abs=1e-5)
    assert float(flow.total) + flow.meta["gap"] == pytest.approx(difference, abs=1e-5 * max(1, abs(difference)))
    assert (flow.meta["steps"], flow.meta["units"], flow.meta["together"]) == (5, "signed", True)
    assert flow.meta["token_ids"] == CLEAN
    assert flow.meta["corrupted_token_ids"] == CORRUPTED


@pytest.mark.parametrize("pair", [p for p in tiny.HOSTS if p[0] in ("gpt2", "llama")], ids=tiny.host_id)
def test_more_points_miss_less_and_each_point_stands_in_the_mean(pair):
    gaps = [abs(whole(pair, steps=steps).meta["gap"]) for steps in (4, 64)]
    assert gaps[1] < min(gaps[0], 0.01 * abs(float(whole(pair, steps=64).total)))
    # What a checkpointed block runs again in a backward pass is outside of ``Double``, which that host needs.
    with nullcontext() if pair == ("llama", "bridge") else ls.memory_budget(1):
        alone = whole(pair, sources="each", steps=3)
    for name in ("total", "heads", "last", "mlps", "skip", "stream", "composition"):
        assert_close(getattr(alone, name), getattr(found(pair), name), 1e-9, name, float(alone.total.abs().max()))
        assert_close(getattr(alone, name).sum(0), getattr(whole(pair, steps=3), name)[0], 1e-9, name)


@pytest.mark.parametrize("pair", [p for p in tiny.HOSTS if p[0] in ("gpt2", "gemma2")], ids=tiny.host_id)
@pytest.mark.parametrize(
    "scope",
    [
        ls.Temperature(),
        ls.Entropy(),
        ls.Metric(lambda logits: logits[0, -1].logsumexp(-1)),
        ls.Direction(torch.arange(16.0) - 7, site="blocks.1.hook_resid_mid"),
        lambda state: torch.linspace(-1, 1, len(state.y)),
        lambda state: ls.Cotangents(torch.linspace(-1, 1, len(state.y))[None], weights=torch.tensor([4.0])),
    ],
    ids=["temperature", "entropy", "metric", "inner direction", "function", "weighted"],
)
def test_whatever_number_a_scope_is_the_change_of_it_is_the_total(pair, scope):
    flow = whole(pair, scope, steps=48)
    metric = flow.meta["metric"]
    with ls.patching.metric(tiny.host(*pair), CLEAN, scope, position=POSITION) as value, torch.no_grad():
        ends = [float(value(tiny.host(*pair)(torch.tensor([ids])))) for ids in (CLEAN, CORRUPTED)]
    assert [metric["clean"], metric["corrupted"]] == pytest.approx(ends, abs=1e-5)
    assert abs(flow.meta["gap"]) < 0.02 * max(abs(ends[0] - ends[1]), float(flow.heads.abs().max()))
    assert flow.residual < 1e-6
    assert flow.heads.shape[1] == 2


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_an_answer_of_several_tokens(backend):
    model = tiny.host("gpt2", backend)
    flow = ls.flow(model, CLEAN, ls.Continuation(), position=[4, 5], against=[CLEAN[0] + 1, *CLEAN[1:]], steps=32)
    assert flow.residual < 1e-6
    assert flow.meta["positions"] == [4, 5]
    assert abs(flow.meta["gap"]) < 0.02 * abs(float(flow.total))


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_a_whole_change_is_a_result_like_any_other(backend, tmp_path):
    model = tiny.host("gpt2", backend, torch.float32)
    flow = ls.flow(model, CLEAN, DIFFERENCE, position=POSITION, against=CORRUPTED, steps=8, sources=[3, 1])
    back = ls.Flow.load(flow.save(tmp_path / "flow.safetensors"))
    assert back.sources == (3, 1)
    for name in ("total", "heads", "last", "mlps", "skip", "stream", "composition"):
        assert torch.equal(getattr(back, name), getattr(flow, name)), name
    assert dict(back.meta) == dict(flow.meta)
    assert back.top(3).equals(flow.top(3))
    for result in (flow, back):
        with pytest.raises(ValueError, match="every point of its line"):
            result.orders()
    assert "Whole change of Semantic" in flow.show("heads").static
    missed = f"{flow.meta['gap']:.3g}"
    assert f"but for {missed}" in flow._repr_html_()
    assert_close(flow.share().heads * flow.total[:, None, None], flow.heads, 1e-5)
    page = ls.report(flow, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Whole change" in page


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_the_model_is_left_as_it_came(backend):
    model = tiny.fresh_host("gpt2", backend, torch.float32)
    before = [(p.requires_grad, p.grad) for p in model.parameters()]
    logits = model(torch.tensor([CLEAN]))

    def broken(state):
        if state.y.sum() > -1e9 and state.tokens[1] == CORRUPTED[1]:
            raise KeyError
        return torch.ones_like(state.y)

    with pytest.raises(KeyError):
        ls.flow(model, CLEAN, broken, position=POSITION, against=CORRUPTED)
    ls.flow(model, CLEAN, DIFFERENCE, position=POSITION, against=CORRUPTED, steps=2)
    assert [(p.requires_grad, p.grad) for p in model.parameters()] == before
    assert torch.equal(model(torch.tensor([CLEAN])), logits)


# The demo model, against the path integral of plain hooks


@pytest.mark.parametrize("kind", ["induction", "ioi", "translation"])
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_with_many_points_it_is_the_path_integral_of_every_head_and_mlp(kind, backend):
    """Σ_i ½⟨g_i + g_{i+1}, a_{i+1} − a_i⟩ from 65 plain runs of the model, to a hundredth of the largest entry."""
    model, (case,) = ls.demo.load(backend), ls.demo.cases(kind, n=1, seed=5)
    layers, heads = model.cfg.n_layers, model.cfg.n_heads
    answer, versus = (model.tokenizer.encode(word)[-1] for word in (case.answer, case.versus))
    flow = ls.flow(model, case.prompt, ls.Semantic(answer, versus=versus), against=case.corrupted, steps=64)
    at = flow.position
    ids = torch.tensor([flow.meta["corrupted_token_ids"], flow.meta["token_ids"]])
    with torch.no_grad():
        embedded = model.run_with_cache(ids, names_filter="hook_embed")[1]["hook_embed"]
    alphas = torch.linspace(0, 1, 65)[:, None, None]
    kept = {}

    def start(value, hook):
        return (embedded[0] + alphas * (embedded[1] - embedded[0])).requires_grad_()

    def keep(name):
        def hook(value, hook):
            value.retain_grad()
            kept[name] = value
            return value

        return hook

    names = [f"blocks.{layer}.{kind}" for layer in range(layers) for kind in ("attn.hook_z", "hook_mlp_out")]
    with torch.enable_grad(), model.hooks(fwd_hooks=[("hook_embed", start), *((name, keep(name)) for name in names)]):
        logits = model(ids[:1].expand(65, -1))
        (logits[:, at, answer] - logits[:, at, versus]).sum().backward()
    model.zero_grad()
    path = {}
    for name in names:
        a, g = kept[name].detach(), kept[name].grad
        path[name] = ((g[1:] + g[:-1]) / 2 * (a[1:] - a[:-1])).sum((0, 1))
    by_head = torch.stack([path[f"blocks.{i}.attn.hook_z"].reshape(heads, -1).sum(-1) for i in range(layers)])
    by_mlp = torch.stack([path[f"blocks.{i}.hook_mlp_out"].sum() for i in range(layers)])
    assert_close(flow.heads[0], by_head, 1e-2, "heads")
    assert_close(flow.mlps[0], by_mlp, 1e-2, "MLPs")
    assert flow.residual < 1e-5
