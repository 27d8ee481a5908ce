"""The way out of the model: verified against the model itself, looked at again whenever the weights change."""

import pytest
import torch

import lens_scopes as ls
import oracles
import tiny
from lens_scopes.host import Host, read_out
from report import assert_close

pytestmark = pytest.mark.host

IDS = torch.tensor([tiny.tokens()])


@pytest.fixture(params=[p for p in tiny.HOSTS if p[0] in ("gpt2", "llama", "gemma2")], ids=tiny.host_id)
def pair(request):
    return request.param


BROKEN = {
    "scaled": lambda logits: logits * 1.5,
    "capped": lambda logits: 3 * torch.tanh(logits / 3),
    "one token pushed": lambda logits: logits + torch.nn.functional.one_hot(torch.tensor(9), logits.shape[-1]),
    "mixed": lambda logits: logits.roll(1, -1),
}


@pytest.mark.parametrize("how", BROKEN)
def test_logits_that_come_from_somewhere_else_are_found_out(pair, how):
    """Whatever happens to the logits after the unembedding is unknown to the readout, which must not pass as right."""
    model = tiny.fresh_host(*pair, torch.float32)

    class Wrapped(type(model)):
        def forward(self, *args, **kwargs):
            return BROKEN[how](super().forward(*args, **kwargs))

    model.__class__ = Wrapped
    with pytest.raises(RuntimeError, match="do not reproduce its logits"):
        ls.score(model, tiny.tokens(), ls.Semantic())


def test_an_edit_between_the_blocks_and_the_norm_is_found_out(pair):
    model = tiny.fresh_host(*pair, torch.float32)

    class Wrapped(type(model)):
        def forward(self, *args, **kwargs):
            handle = self.ln_final.register_forward_pre_hook(lambda _, inputs: (inputs[0].flip(-1), *inputs[1:]))
            try:
                return super().forward(*args, **kwargs)
            finally:
                handle.remove()

    model.__class__ = Wrapped
    with pytest.raises(RuntimeError, match="do not reproduce its logits"):
        ls.score(model, tiny.tokens(), ls.Semantic())


def weight_of(model, backend):
    return model.ln_final.w if backend == "hooked" else model.ln_final.weight


def test_edits_in_place_are_noticed(pair):
    """Folded by hand after a first call: the second call must not believe the first one's findings."""
    model, backend = tiny.fresh_host(*pair, torch.float32), pair[1]
    assert not ls.score(model, tiny.tokens(), ls.Temperature()).meta["folded"]
    with torch.no_grad():
        # Gemma on a Bridge keeps its weight minus one.
        weight_of(model, backend).fill_(0.0 if pair == ("gemma2", "bridge") else 1.0)
        if pair[0] == "gpt2":
            (model.ln_final.b if backend == "hooked" else model.ln_final.bias).zero_()
    with pytest.raises(ValueError, match="folded"):
        ls.score(model, tiny.tokens(), ls.Temperature())
    assert ls.score(model, tiny.tokens(), ls.Semantic()).meta["folded"]


def test_an_unembedding_edited_in_place_is_used(pair):
    model, backend = tiny.fresh_host(*pair, torch.float32), pair[1]
    before = ls.score(model, tiny.tokens(), ls.Semantic(7))
    with torch.no_grad():
        if backend == "hooked":
            model.unembed.W_U.mul_(0.5)
        else:
            getattr(model.unembed, "original_component", model.unembed).weight.mul_(0.5)
    with torch.no_grad():
        logits = model(IDS)[0, -1]
    after = ls.score(model, tiny.tokens(), ls.Semantic(7))
    assert_close([p["p"] for p in after.meta["predictions"][0]], logits.softmax(-1).topk(5).values, 1e-5)
    assert not torch.allclose(after.values, before.values, rtol=1e-2)


@pytest.mark.skipif("bridge" not in tiny.BACKENDS, reason="this TransformerLens has no Bridge")
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "neox"])
def test_compatibility_mode_is_noticed(architecture):
    model = tiny.fresh_host(architecture, "bridge", torch.float32)
    before = ls.score(model, tiny.tokens(), ls.Fisher(None))
    assert (before.meta["folded"], before.meta["centred"]) == (False, False)
    model.enable_compatibility_mode()
    after = ls.score(model, tiny.tokens(), ls.Fisher(None))
    assert (after.meta["folded"], after.meta["centred"]) == (True, True)
    assert_close(after.values[0], before.values[0], 1e-4)
    with pytest.raises(ValueError, match="folded"):
        ls.score(model, tiny.tokens(), ls.Temperature())


def test_verification_costs_one_forward_and_only_once(pair):
    model, calls = tiny.fresh_host(*pair, torch.float32), []
    model.unembed.register_forward_hook(lambda *_: calls.append(1))
    counts = []
    for _ in range(3):
        calls.clear()
        ls.score(model, tiny.tokens(), ls.Semantic())
        counts.append(len(calls))
    assert counts[0] > counts[1] == counts[2] == 1


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_the_soft_caps_slope_is_in_every_row(backend):
    """Gemma-2: ∂z/∂y = diag(1 − tanh²)·W_U, where the cap bites."""
    seen = []
    ls.score(tiny.host("gemma2", backend), tiny.tokens(), lambda state: (seen.append(state), state.y)[1])
    (state,) = seen
    assert state.slope is not None
    assert state.slope.min() < 0.2
    truth = oracles.dense(tiny.hugging_face("gemma2"), tiny.tokens(), -1, sites=["hook_embed"])
    assert_close(state.unembed, truth.unembed, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_found_does_not_depend_on_the_dtype(pair, dtype):
    found = read_out(Host(tiny.host(*pair, dtype)), IDS)
    assert (found.constant_norm, found.centred) == (False, False)
    assert found.norm_has_bias == (pair[0] == "gpt2")
    model = tiny.processed_host(*pair, dtype)
    found = read_out(Host(model), IDS)
    assert (found.constant_norm, found.centred) == (True, pair[0] != "gemma2")
    assert found.norm_has_bias == (pair[0] == "gpt2")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_scores_come_in_full_and_close(pair, dtype):
    half = ls.score(tiny.host(*pair, dtype), tiny.tokens(), ls.Fisher(None))
    full = ls.score(tiny.host(*pair, torch.float32), tiny.tokens(), ls.Fisher(None))
    assert half.values.dtype == torch.float64
    assert half.meta["dtype"] == str(dtype).removeprefix("torch.")
    assert_close(half.values, full.values, 0.1)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_an_edit_that_leaves_no_trace_is_seen(backend):
    """``.data`` does not count versions: the norm made constant, and the unembedding centred, after a first score."""
    model = tiny.fresh_host("llama", backend)
    ids = tiny.tokens()
    before = ls.score(model, ids, ls.Temperature(), sites="embed")
    assert not before.meta["folded"]
    for parameter in model.ln_final.parameters():
        parameter.data.fill_(1)
    with pytest.raises(ValueError, match="folded"):
        ls.score(model, ids, ls.Temperature(), sites="embed")
    assert not before.meta["centred"]
    model.W_U.data.sub_(model.W_U.data.mean(1, keepdim=True))
    assert ls.score(model, ids, ls.Semantic(7), sites="embed").meta["centred"]


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_another_soft_cap_is_seen(backend):
    """Set after a first score, where the model's own code reads it; what was made before is another model's."""
    model, ids = tiny.fresh_host("gemma2", backend), tiny.tokens()
    before, flow = ls.score(model, ids, ls.Semantic(7)), ls.flow(model, ids, ls.Semantic(7))
    model.cfg.output_logits_soft_cap = 0.5
    if backend == "bridge":
        model.original_model.config.final_logit_softcapping = 0.5
    with torch.no_grad():
        p = model(IDS)[0, -1].softmax(-1)
    after = ls.score(model, ids, ls.Semantic(7))
    assert after.meta["targets"][0]["p"] == pytest.approx(float(p[7]), rel=1e-5)
    assert not torch.allclose(after.values, before.values, rtol=0.1)
    assert after.check(model)["max_error"] < 1e-3
    with pytest.raises(RuntimeError, match="has changed since"):
        flow.paths(2)


@pytest.mark.skipif("bridge" not in tiny.BACKENDS, reason="this TransformerLens has no Bridge")
@pytest.mark.parametrize("alone", [0, 1])
def test_half_a_soft_cap_is_refused(alone):
    """On a Bridge it stands in two places, and Hugging Face's code reads one of them: ours was the old one in silence."""
    model = tiny.fresh_host("gemma2", "bridge")
    ls.score(model, tiny.tokens(), ls.Semantic(7))
    places = [(model.cfg, "output_logits_soft_cap"), (model.original_model.config, "final_logit_softcapping")]
    setattr(*places[alone], 0.5)
    with pytest.raises(RuntimeError, match="do not reproduce its logits"):
        ls.score(model, tiny.tokens(), ls.Semantic(7))
