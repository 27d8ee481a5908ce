"""Every number of a flow against backward passes of the bare Hugging Face model, masked to one part at a time."""

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

pytestmark = pytest.mark.host

POSITION, TARGET, VERSUS = 5, 7, 11
EVERYWHERE = slice(None)


@functools.cache
def truth(architecture: str) -> masked.Run:
    return masked.run(tiny.hugging_face(architecture), tiny.tokens(), POSITION)


@functools.cache
def unembed(architecture: str) -> torch.Tensor:
    return masked.unembed(tiny.hugging_face(architecture), tiny.tokens(), POSITION)


def flow(pair, scope, **options):
    """In float64 throughout, where the host lets itself be made to."""
    model = tiny.host(*pair)
    with Double() if pair[1] == "bridge" else nullcontext():
        return ls.flow(model, tiny.tokens(), scope, position=POSITION, **options)


def tolerance(pair) -> float:
    # HookedTransformer's own rotary tables and norm constants differ from Hugging Face's in the seventh digit.
    return 1e-10 if pair[1] == "bridge" or pair[0] == "gpt2" else 2e-5


@functools.cache
def found(pair):
    return flow(pair, ls.Semantic(TARGET), sources="each")


@pytest.mark.parametrize("pair", tiny.HOSTS, ids=tiny.host_id)
def test_heads_are_masked_backward_passes(pair):
    run, v = truth(pair[0]), unembed(pair[0])[TARGET]
    expected = [
        [run.influence(v, (f"blocks.{layer}.attn.hook_z", (EVERYWHERE, head))) for head in range(tiny.HEADS)]
        for layer in range(tiny.LAYERS)
    ]
    heads = torch.stack([torch.stack(row) for row in expected]).permute(2, 0, 1)
    total = float((run.gradient(v, "hook_embed")[0] * run.directions(v)).sum(-1).max())
    assert_close(found(pair).heads, heads, tolerance(pair), "heads", total)


@pytest.mark.parametrize("pair", tiny.HOSTS, ids=tiny.host_id)
def test_mlps_are_masked_backward_passes(pair):
    run, v = truth(pair[0]), unembed(pair[0])[TARGET]
    sites = [f"blocks.{layer}.hook_mlp_out" for layer in range(tiny.LAYERS)]
    expected = torch.stack([run.influence(v, (site, (EVERYWHERE,))) for site in sites], 1)
    assert_close(found(pair).mlps, expected, tolerance(pair), "MLPs")


@pytest.mark.parametrize("pair", tiny.HOSTS, ids=tiny.host_id)
def test_the_stream_is_masked_to_one_position_at_one_depth(pair):
    run, v = truth(pair[0]), unembed(pair[0])[TARGET]
    sites = [
        *(f"blocks.{layer}.hook_resid_pre" for layer in range(tiny.LAYERS)),
        f"blocks.{tiny.LAYERS - 1}.hook_resid_post",
    ]
    places = range(len(tiny.tokens()))
    expected = torch.stack([torch.stack([run.influence(v, (s, (p,))) for p in places], 1) for s in sites], 1)
    assert_close(found(pair).stream, expected, tolerance(pair), "stream")


@pytest.mark.parametrize("pair", tiny.HOSTS, ids=tiny.host_id)
def test_totals_are_the_lengths_of_the_gradients(pair):
    run, v = truth(pair[0]), unembed(pair[0])[TARGET]
    assert_close(found(pair).total, run.gradient(v, "hook_embed")[0].norm(dim=-1), tolerance(pair), "total")


@pytest.mark.parametrize("pair", tiny.HOSTS, ids=tiny.host_id)
def test_composition_is_a_backward_pass_through_one_head_and_its_queries_keys_or_values(pair):
    run, v = truth(pair[0]), unembed(pair[0])[TARGET]

    def through(layer: int, head: int, kind: str) -> torch.Tensor:
        block, shared = f"blocks.{layer}.attn.hook_", run.where[f"blocks.{layer}.attn.hook_{kind}"].shape[0]
        read = head * shared // tiny.HEADS  # queries share keys and values in groups
        return run.influence(v, (block + "z", (EVERYWHERE, head)), (block + kind, (EVERYWHERE, read)))

    expected = torch.stack(
        [
            torch.stack(
                [torch.stack([through(layer, head, kind) for kind in "qkv"], -1) for head in range(tiny.HEADS)], 1
            )
            for layer in range(tiny.LAYERS)
        ],
        1,
    )
    total = float(found(pair).total.max())
    assert_close(found(pair).composition, expected, tolerance(pair), "composition", total)


def weights_and_vectors(architecture: str, scope: str) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Cotangents, their weights and whether units are squared, by the formulas."""
    hf, w = tiny.hugging_face(architecture), unembed(architecture)
    run = truth(architecture)
    if scope == "difference":
        return (w[TARGET] - w[VERSUS])[None], torch.ones(1), False
    if scope == "temperature":
        return (run.y / run.y.norm()).detach()[None], torch.ones(1), False
    p = oracles.logits_of(hf, run.y).softmax(-1).detach()
    return w - p @ w, p, True


SCOPES = {"difference": ls.Semantic(TARGET, VERSUS), "temperature": ls.Temperature(), "fisher": ls.Fisher(None)}


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("pair", [p for p in tiny.HOSTS if p[0] in ("gpt2", "gemma2")], ids=tiny.host_id)
def test_every_scope_is_the_sum_over_its_cotangents(pair, scope):
    """Fisher token by token, one backward pass for each of the whole vocabulary: squared units, d = g."""
    run = truth(pair[0])
    vectors, weights, squared = weights_and_vectors(pair[0], scope)
    got = flow(pair, SCOPES[scope], sources="each")
    site = f"blocks.{tiny.LAYERS - 1}.attn.hook_z"
    expected = torch.zeros(len(tiny.tokens()), dtype=torch.float64)
    for v, weight in zip(vectors, weights, strict=True):
        d = run.gradient(v, "hook_embed")[0] * weight if squared else run.directions(v)
        expected += (run.through(v, (site, (EVERYWHERE, 2))) * d).sum(-1)
    assert_close(got.heads[:, -1, 2], expected, tolerance(pair), scope, float(got.total.max()))


@pytest.mark.parametrize("pair", [p for p in tiny.HOSTS if p[0] == "llama"], ids=tiny.host_id)
def test_a_function_of_several_cotangents_in_norm_units(pair):
    """d_t of cotangent i is g_it over the joint length √Σ‖g_it‖²: the totals are the scores."""
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(3, tiny.D_MODEL, generator=generator, dtype=torch.float64)
    weights = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)

    def scope(state):
        return ls.Cotangents(vectors, weights)

    got = flow(pair, scope, sources="each")
    run = truth("llama")
    gradients = [run.gradient(v, "hook_embed")[0] for v in vectors]
    squares = sum(w * g.square().sum(-1) for w, g in zip(weights, gradients, strict=True))
    length = squares.sqrt()
    assert_close(got.total, length, tolerance(pair), "total")
    expected = torch.zeros_like(length)
    for v, w, g in zip(vectors, weights, gradients, strict=True):
        expected += (
            w * (run.through(v, ("blocks.0.attn.hook_z", (EVERYWHERE, 1))) * g).sum(-1) / length.clamp(min=1e-300)
        )
    assert_close(got.heads[:, 0, 1], expected, tolerance(pair), "head", float(length.max()))


@pytest.mark.parametrize("weight", [4.0, 0.25])
@pytest.mark.parametrize("pair", [p for p in tiny.HOSTS if p[0] in ("gpt2", "llama")], ids=tiny.host_id)
def test_one_weighted_cotangent_in_norm_units(pair, weight):
    """The score is √w‖Jᵀv‖, and everything that adds up to it is √w times what it is without a weight."""
    v = torch.randn(tiny.D_MODEL, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def weighted(state):
        return ls.Cotangents(v[None].to(state.y), weights=torch.tensor([weight]))

    for sources in (None, "each"):
        plain, got = flow(pair, ls.Direction(v), sources=sources), flow(pair, weighted, sources=sources)
        for name in ("total", "heads", "last", "mlps", "stream", "composition"):
            assert_close(getattr(got, name), weight**0.5 * getattr(plain, name), 1e-10, name)
        assert got.residual < 1e-6
    lengths = truth(pair[0]).gradient(v, "hook_embed")[0].norm(dim=-1)
    assert_close(got.total, weight**0.5 * lengths, tolerance(pair), "√w‖Jᵀv‖")
    scores = ls.score(tiny.host(*pair), tiny.tokens(), weighted, position=POSITION, sites="embed")
    assert_close(scores.values[0], got.total, 1e-6, "score")


# Edges: gates on single edges of the pattern, on TransformerLens with plain hooks


def edges_by_gates(model, ids: list[int], layer: int, v: torch.Tensor) -> torch.Tensor:
    """[2, head, query, key], summed over the sources.

    The derivative of L with respect to a copy of v[k] that only z[q] reads, and with respect to moving A[q, k] while
    the rest of its row shrinks in proportion; each times its change along the source's direction.
    """
    name = f"blocks.{layer}.attn.hook_"
    tokens = torch.tensor([ids])

    def y_of(**hooks):
        box = {}

        def last(x, hook):
            box["y"] = model.ln_final(x)[0, POSITION]
            return x

        end = (f"blocks.{model.cfg.n_layers - 1}.hook_resid_post", last)
        with torch.enable_grad(), model.hooks(fwd_hooks=[*((k, f) for k, f in hooks.values()), end]):
            model(tokens)
        return box["y"]

    def inner(delta):
        """Pattern and (for each query head) values when the embedding is moved."""
        box = {}

        def keep(kind):
            return lambda x, hook: box.__setitem__(kind, x) or x

        y_of(e=("hook_embed", lambda x, hook: x + delta), a=(name + "pattern", keep("a")), v=(name + "v", keep("v")))
        values = box["v"].repeat_interleave(model.cfg.n_heads // box["v"].shape[2], 2)
        return box["a"][0], values[0]

    zero = torch.zeros(1, len(ids), tiny.D_MODEL, dtype=v.dtype)
    start = zero.clone().requires_grad_()
    (g,) = torch.autograd.grad(y_of(e=("hook_embed", lambda x, hook: x + start)) @ v, start)
    d = g / g.norm(dim=-1, keepdim=True).clamp(min=1e-300)
    (a, values), (da, dv) = torch.autograd.functional.jvp(inner, zero, d)  # two reverse passes
    a, values = a.detach(), values.detach()

    copies = values[None].expand(len(ids), -1, -1, -1).clone().requires_grad_()  # [query, key, head, d]
    z = torch.einsum("hqk,qkhd->qhd", a, copies)
    (by_copy,) = torch.autograd.grad(y_of(z=(name + "z", lambda x, hook: z.reshape(x.shape))) @ v, copies)
    gate = torch.zeros_like(a, requires_grad=True)
    moved = a + gate - gate.sum(-1, keepdim=True) * a
    (by_gate,) = torch.autograd.grad(y_of(a=(name + "pattern", lambda x, hook: moved[None])) @ v, gate)
    return torch.stack([torch.einsum("qkhd,khd->hqk", by_copy, dv), by_gate * da])


@pytest.mark.parametrize("pair", [p for p in tiny.HOSTS if p[0] != "mixtral"], ids=tiny.host_id)
def test_edges_are_gates_on_single_edges(pair):
    model, v = tiny.host(*pair), unembed(pair[0])[TARGET]
    got = flow(pair, ls.Semantic(TARGET), edges=True)
    for layer in range(tiny.LAYERS):
        with Double() if pair[1] == "bridge" else nullcontext():
            expected = edges_by_gates(model, tiny.tokens(), layer, v)
        assert_close(got.edges[:, layer], expected, tolerance(pair), f"layer {layer}", float(got.total.sum()))


@pytest.mark.skipif("hooked" not in tiny.BACKENDS, reason="a Bridge cannot fold value biases alone")
@pytest.mark.parametrize("by", ["hand", "TransformerLens"])
def test_edges_do_not_depend_on_where_the_value_bias_is(by):
    raw, folded = tiny.host("gpt2", "hooked"), tiny.fresh_host("gpt2", "hooked")
    assert float(raw.blocks[0].attn.b_V.detach().abs().max()) > 0.1
    if by == "hand":
        with torch.no_grad():
            for block in folded.blocks:
                block.attn.b_O += torch.einsum("hd,hdm->m", block.attn.b_V, block.attn.W_O)
                block.attn.b_V.zero_()
    else:
        state = {name: value.clone() for name, value in raw.state_dict().items()}
        keep = {"fold_ln": False, "center_writing_weights": False, "center_unembed": False}
        folded.load_and_process_state_dict(state, fold_value_biases=True, **keep)
    assert float(folded.blocks[0].attn.b_V.detach().abs().max()) == 0
    a, b = (ls.flow(model, tiny.tokens(), ls.Semantic(TARGET), edges=True) for model in (raw, folded))
    for name in ("total", "heads", "last", "mlps", "stream", "composition", "edges"):
        # TransformerLens rounds what it folds to float32.
        assert_close(getattr(b, name), getattr(a, name), 1e-10 if by == "hand" else 1e-6, name)
