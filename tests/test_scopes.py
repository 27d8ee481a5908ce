"""Each scope's cotangent against its formula, on raw and processed weights; targets; what is refused and how."""

import functools

import pytest
import torch

import lens_scopes as ls
import oracles
import tiny
from report import assert_close

pytestmark = pytest.mark.host

POSITION, TARGET, VERSUS = 5, 7, 11
NORMS = [pair for pair in tiny.HOSTS if pair[0] in ("gpt2", "llama", "gemma2", "neox", "qwen3")]


@functools.cache
def truth_of(architecture: str) -> oracles.Dense:
    return oracles.dense(tiny.hugging_face(architecture), tiny.tokens(), POSITION, sites=["hook_embed"])


@functools.cache
def processed(architecture: str, backend: str):
    return tiny.processed_host(architecture, backend)


def at_embed(model, scope, **options) -> ls.Scores:
    return ls.score(model, tiny.tokens(), scope, **{"position": POSITION, "sites": "embed", **options})


def close(scores: ls.Scores, expected, tolerance: float = 1e-5) -> None:
    assert_close(scores.sel(site="embed").values, expected, tolerance)


# Temperature


def final_norm_of(architecture: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Effective weight and bias of the raw final norm, from the Hugging Face model."""
    base = tiny.hugging_face(architecture).base_model
    norm = next(getattr(base, name) for name in ("ln_f", "final_layer_norm", "norm") if hasattr(base, name))
    return norm.weight + (architecture == "gemma2"), getattr(norm, "bias", None)


@pytest.mark.parametrize("pair", NORMS, ids=tiny.host_id)
def test_temperature_refuses_a_folded_norm_and_names_three_ways_out(pair):
    with pytest.raises(ValueError, match="folded") as refusal:
        at_embed(processed(*pair), ls.Temperature())
    for way in ("lens_scopes.load", "from_pretrained_no_processing", "norm_weight=", "norm_bias=", "Fisher()"):
        assert way in str(refusal.value)


@pytest.mark.parametrize("pair", NORMS, ids=tiny.host_id)
def test_temperature_with_the_weight_given_back_is_the_raw_one(pair):
    weight, bias = final_norm_of(pair[0])
    scores = at_embed(processed(*pair), ls.Temperature(norm_weight=weight, norm_bias=bias))
    close(scores, truth_of(pair[0]).temperature("hook_embed"))
    assert scores.meta["folded"]


@pytest.mark.parametrize("pair", [p for p in NORMS if p[0] in ("gpt2", "neox")], ids=tiny.host_id)
def test_a_layer_norm_needs_its_bias_too(pair):
    weight, bias = final_norm_of(pair[0])
    with pytest.raises(ValueError, match=r"LayerNorm.*norm_bias is missing"):
        at_embed(processed(*pair), ls.Temperature(norm_weight=weight))
    with pytest.raises(ValueError, match="norm_weight is missing"):
        at_embed(processed(*pair), ls.Temperature(norm_bias=bias))
    # It matters: leaving it out would have been wrong by more than any tolerance here.
    wrong = at_embed(processed(*pair), ls.Temperature(norm_weight=weight, norm_bias=torch.zeros_like(bias)))
    truth = truth_of(pair[0]).temperature("hook_embed")
    assert ((wrong.values[0] - truth).abs().max() / truth.max()) > 0.01


@pytest.mark.parametrize("pair", NORMS, ids=tiny.host_id)
def test_a_weight_for_a_norm_that_has_its_own_is_refused(pair):
    weight, bias = final_norm_of(pair[0])
    with pytest.raises(ValueError, match="still carries its own"):
        at_embed(tiny.host(*pair), ls.Temperature(norm_weight=weight, norm_bias=bias))


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_a_weight_of_another_size_is_refused(backend):
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        at_embed(processed("llama", backend), ls.Temperature(norm_weight=torch.ones(3)))


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_an_untrained_norm_is_as_constant_as_a_folded_one(backend):
    model = tiny.fresh_host("llama", backend)
    with torch.no_grad():
        (model.ln_final.w if backend == "hooked" else model.ln_final.weight).fill_(1.7)
    with pytest.raises(ValueError, match="untrained"):
        at_embed(model, ls.Temperature())


# Semantic


@pytest.mark.parametrize("pair", NORMS, ids=tiny.host_id)
def test_a_difference_survives_centring_and_a_single_logit_says_it_is_centred(pair):
    raw, changed = tiny.host(*pair), processed(*pair)
    close(at_embed(changed, ls.Semantic(TARGET, VERSUS)), truth_of(pair[0]).semantic("hook_embed", TARGET, VERSUS))
    single, centred = at_embed(raw, ls.Semantic(TARGET)), at_embed(changed, ls.Semantic(TARGET))
    assert not single.meta["centred"]
    if pair[0] == "gemma2":  # a soft-cap is not a shift
        assert not centred.meta["centred"]
        close(centred, single.values[0])
    else:
        assert centred.meta["centred"]
        truth = truth_of(pair[0])
        close(centred, truth.norms("hook_embed", truth.unembed[TARGET] - truth.unembed.mean(0)))
        assert not torch.allclose(centred.values, single.values, rtol=1e-2)


@pytest.mark.parametrize("pair", NORMS, ids=tiny.host_id)
def test_without_a_target_it_is_the_models_own_top_one(pair):
    truth = truth_of(pair[0])
    top = int(truth.logits.argmax())
    scores = at_embed(tiny.host(*pair), ls.Semantic())
    close(scores, truth.semantic("hook_embed", top))
    assert scores.meta["targets"][0]["id"] == top
    predictions = scores.meta["predictions"][0]
    best = truth.probs.topk(5)
    assert [p["id"] for p in predictions] == best.indices.tolist()
    assert_close([p["p"] for p in predictions], best.values, 1e-5)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_one_target_per_position(backend):
    model, targets = tiny.host("llama", backend), [7, 11, 13]
    together = at_embed(model, ls.Semantic(targets), position=[2, 4, 5])
    for position, target in zip([2, 4, 5], targets, strict=True):
        alone = at_embed(model, ls.Semantic(target), position=position)
        assert_close(together.sel(target_pos=position).values, alone.values, 1e-12)
    assert [t["id"] for t in together.meta["targets"]] == targets
    assert ls.Semantic(torch.tensor(targets)) == ls.Semantic(targets)
    with pytest.raises(ValueError, match="3 values of target for 4 positions"):
        at_embed(model, ls.Semantic(targets), position=[1, 2, 3, 4])


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_as_many_targets_as_positions_and_not_more(backend):
    """Three targets for two positions is a mistake of the caller, not a choice of the first two."""
    with pytest.raises(ValueError, match="one per"):
        at_embed(tiny.host("llama", backend), ls.Semantic([7, 11, 13]), position=[2, 4])


@pytest.mark.parametrize("target", [-1, tiny.VOCAB, 10**6])
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_ids_outside_the_vocabulary(backend, target):
    with pytest.raises(ValueError, match=f"{target} is outside the vocabulary 0 to {tiny.VOCAB - 1}"):
        at_embed(tiny.host("llama", backend), ls.Semantic(target))
    with pytest.raises(ValueError, match=f"{target} is outside the vocabulary"):
        at_embed(tiny.host("llama", backend), ls.Semantic(3, versus=target))


@pytest.mark.wrong_types
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_targets_that_are_no_tokens(backend):
    for wrong in (1.5, True, b"cat"):
        with pytest.raises(TypeError, match="string or an id"):
            at_embed(tiny.host("llama", backend), ls.Semantic(wrong))


# Metric


@pytest.mark.parametrize("pair", NORMS, ids=tiny.host_id)
def test_a_metric_of_logits_is_the_scope_of_those_logits(pair):
    model, truth = tiny.host(*pair), truth_of(pair[0])
    close(at_embed(model, ls.Metric(lambda z: z[0, -1, TARGET])), truth.semantic("hook_embed", TARGET))
    difference = ls.Metric(lambda z: (z[:, -1, TARGET] - z[:, -1, VERSUS]).mean(), name="difference")
    scores = at_embed(model, difference)
    close(scores, truth.semantic("hook_embed", TARGET, VERSUS))
    assert scores.meta["scope"]["text"] == "Metric(difference)"
    assert_close(scores.meta["notes"][0]["value"], truth.logits[TARGET] - truth.logits[VERSUS], 1e-5)
    entropy = ls.Metric(lambda z: -(z.softmax(-1) * z.log_softmax(-1)).sum())
    p, log_p = truth.probs, truth.logits.log_softmax(-1)
    slope = -p * (log_p - (p * log_p).sum())
    close(at_embed(model, entropy), truth.norms("hook_embed", slope @ truth.unembed))


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_a_metric_gets_the_logits_of_its_position_alone(backend):
    shapes = []

    def spy(logits):
        shapes.append(tuple(logits.shape))
        return logits[0, 0, 3]

    at_embed(tiny.host("llama", backend), ls.Metric(spy), position=[1, 3])
    assert shapes == [(1, 1, tiny.VOCAB)] * 2


@pytest.mark.parametrize(
    ("fn", "text"),
    [
        (lambda z: z[0, 0], rf"one element, got shape \({tiny.VOCAB},\)"),
        (lambda z: z[0, 0, :2], r"one element, got shape \(2,\)"),
        (lambda z: 1.0, "one element, got float"),
        (lambda z: z.detach().sum(), "must return what depends on the logits"),
    ],
)
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_metrics_that_are_none(backend, fn, text):
    with pytest.raises(ValueError, match=text):
        at_embed(tiny.host("llama", backend), ls.Metric(fn))


# Direction


@pytest.mark.parametrize("pair", tiny.HOSTS, ids=tiny.host_id)
def test_a_direction_at_the_end(pair):
    vector = torch.randn(tiny.D_MODEL, generator=torch.Generator().manual_seed(5))
    scores = at_embed(tiny.host(*pair), ls.Direction(vector, name="probe"))
    truth = truth_of(pair[0]) if pair in NORMS else oracles.dense(
        tiny.hugging_face(pair[0]), tiny.tokens(), POSITION, sites=["hook_embed"]
    )  # fmt: skip
    close(scores, truth.norms("hook_embed", vector.double()), 2e-5)
    assert scores.meta["scope"]["text"] == "Direction(probe)"


@pytest.mark.parametrize("site", ["blocks.0.hook_resid_post", "blocks.1.hook_resid_pre", "blocks.1.hook_mlp_out"])
@pytest.mark.parametrize("pair", NORMS, ids=tiny.host_id)
def test_a_direction_at_an_inner_site(pair, site):
    """Against automatic differentiation of that activation itself, in the bare Hugging Face model."""
    vector = torch.randn(tiny.D_MODEL, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    hf, ids = tiny.hugging_face(pair[0]), tiny.tokens()
    where = oracles.places(hf)

    def activation(delta):
        seen = []

        def into(_module, args, kwargs):
            seen.append(args[0] if args else kwargs["hidden_states"])

        def out(_module, _args, output):
            seen.append(output if isinstance(output, torch.Tensor) else output[0])

        place = where[site]
        register = place.module.register_forward_hook if place.side == "out" else place.module.register_forward_pre_hook
        handle = register(out) if place.side == "out" else register(into, with_kwargs=True)
        try:
            oracles.final_state(hf, ids, POSITION, {"hook_embed": delta})
        finally:
            handle.remove()
        return seen[0][0, POSITION]

    zero = torch.zeros(len(ids), tiny.D_MODEL, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(activation, zero)
    scores = at_embed(tiny.host(*pair), ls.Direction(vector, site=site))
    close(scores, torch.tensordot(vector, jacobian, 1).norm(dim=-1), tiny.tolerance(*pair))


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_sources_at_or_after_an_inner_direction_are_an_error(backend):
    model, inner = tiny.host("llama", backend), ls.Direction(torch.ones(tiny.D_MODEL), site="blocks.0.hook_resid_post")
    for sites in ("resid_post", ["blocks.0.hook_resid_post"], ["embed", "blocks.1.hook_attn_out"]):
        with pytest.raises(ValueError, match="sources at or after it"):
            at_embed(model, inner, sites=sites)
    for sites in (None, "embed", ["blocks.0.hook_resid_mid", "blocks.0.hook_mlp_out"]):
        assert at_embed(model, inner, sites=sites).values.abs().max() > 0
    with pytest.raises(ValueError, match="no site"):
        at_embed(model, ls.Direction(torch.ones(tiny.D_MODEL), site="blocks.9.hook_resid_post"))


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_a_direction_of_another_length_is_refused(backend):
    for site in ("final", "blocks.1.hook_resid_pre"):
        with pytest.raises(ValueError, match="7"):
            at_embed(tiny.host("llama", backend), ls.Direction(torch.ones(7), site=site))


# A user's own function


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_a_function_is_a_scope(backend):
    model, truth = tiny.host("gpt2", backend), truth_of("gpt2")
    w = truth.unembed
    close(at_embed(model, lambda state: state.unembed[TARGET]), truth.semantic("hook_embed", TARGET), 1e-10)
    both = torch.stack([w[TARGET], w[VERSUS]])
    squares = torch.stack([truth.norms("hook_embed", v).square() for v in both])
    close(at_embed(model, lambda state: state.unembed[[TARGET, VERSUS]]), squares.sum(0).sqrt(), 1e-10)
    weights = torch.tensor([0.3, 2.0], dtype=torch.float64)

    def weighted(state):
        return ls.Cotangents(state.rows([TARGET, VERSUS]), weights, squared=True, notes={"why": "because"})

    scores = at_embed(model, weighted)
    close(scores, (weights[:, None] * squares).sum(0), 1e-10)
    assert scores.units == "squared"
    assert scores.meta["scope"]["text"] == "weighted"
    assert scores.meta["notes"][0]["why"] == "because"


@pytest.mark.parametrize("pair", NORMS, ids=tiny.host_id)
def test_what_a_scope_gets_to_see(pair):
    """y, logits and ∂logits/∂y are the bare model's; ``pull`` and ``rows`` are parts of the same matrix."""
    seen, truth = [], truth_of(pair[0])
    at_embed(tiny.host(*pair), lambda state: (seen.append(state), state.y)[1])
    state, c = seen[0], torch.randn(2, tiny.VOCAB, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    assert_close(state.y, truth.y, 1e-6)
    assert_close(state.logits, truth.logits, 1e-6)
    assert_close(state.unembed, truth.unembed, 1e-6)
    assert_close(state.pull(c), c @ truth.unembed, 1e-6)
    assert_close(torch.cat([rows for _, rows in state.chunks()]), truth.unembed, 1e-6)
    assert_close(state.probs, truth.probs, 1e-6)
    assert state.tokens == tuple(tiny.tokens())
    assert state.position == POSITION
    right = torch.randn(tiny.D_MODEL, 3, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    assert_close(state.times(right.to(state.y)), truth.unembed @ right, 1e-6)
    assert_close(state.square_lengths(), truth.unembed.square().sum(1), 1e-6)


@pytest.mark.parametrize(
    ("scope", "error", "text"),
    [
        ("Semantic", TypeError, "write e.g. ls.Semantic"),
        (None, TypeError, "scope is a function"),
        (lambda state: state.y[:3], ValueError, "length 3"),
        (lambda state: state.y.expand(2, 2, -1), ValueError, r"\[k, d_model\]"),
        (lambda state: "y", TypeError, "what .* returns .* is a tensor, an array or a list of numbers"),
        (lambda state: [1.0, 2.0], ValueError, "gave vectors of length 2"),
        (lambda state: state.y * float("nan"), ValueError, "NaN or infinity"),
        (lambda state: ls.Cotangents(state.y), ValueError, r"\[k, d_model\]"),
        (lambda state: ls.Cotangents(state.y[None], torch.ones(2)), ValueError, "weights"),
        (lambda state: ls.Cotangents(state.y[None], probes=1), ValueError, "squared=True"),
    ],
)
@pytest.mark.wrong_types
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_functions_that_are_no_scopes(backend, scope, error, text):
    with pytest.raises(error, match=text):
        at_embed(tiny.host("llama", backend), scope)


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (dict(weights=torch.tensor([-1.0])), "not negative"),
        (dict(weights=torch.tensor([torch.nan])), "finite"),
        (dict(squared=True, probes=5), "0 to 1 of them"),
        (dict(squared=True, probes=-1), "got -1"),
    ],
)
def test_cotangents_that_mean_nothing_are_refused(made, text):
    with pytest.raises(ValueError, match=text):
        ls.Cotangents(torch.ones(1, 4), **made)
    with pytest.raises(ValueError, match="at least one vector"):
        ls.Cotangents(torch.ones(0, 4))


def test_a_subclass_stays_one_where_tokens_are_resolved():
    class Twice(ls.Semantic):
        def __call__(self, state):
            made = super().__call__(state)
            return ls.Cotangents(2 * made.vectors, notes=made.notes)

        def value(self, state):
            return 2 * super().value(state)

    model = tiny.host("llama", tiny.BACKENDS[0])
    once, twice = (
        ls.patching.predict(model, [7, 9, 11], [7, 8, 11], scope(7), sites="embed") for scope in (ls.Semantic, Twice)
    )
    assert_close(twice.values, 2 * once.values, 1e-12)
    assert twice.meta["scope"]["text"] == "Twice(target=7)"
    assert twice.meta["scope"]["kind"] != "Semantic"
