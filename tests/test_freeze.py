"""Frozen linearisations against forward passes written out by hand, with scales, patterns and secants held."""

import copy
import functools
import itertools
from contextlib import nullcontext

import pytest
import torch
import transformers
from torch import Tensor

import lens_scopes as ls
import oracles
import tiny
from double import Double
from report import assert_close

pytestmark = pytest.mark.host

POSITION, TARGET = 4, 7
PARTS = ("norm", "attention", "mlp")
SUBSETS = [subset for n in range(4) for subset in itertools.combinations(PARTS, n)]
START = "blocks.0.hook_resid_pre"


def ids() -> list[int]:
    return tiny.tokens(6)


class Held:
    """Values of a first pass that a second one takes instead of its own, part by part."""

    def __init__(self, parts=()):
        self.parts, self.values, self.replaying, self.at = parts, [], False, 0

    def __call__(self, part: str, value: Tensor) -> Tensor:
        if not self.replaying:
            self.values.append(value.detach())
            return value
        found = self.values[self.at]
        self.at += 1
        return found if part in self.parts else value

    def again(self) -> "Held":
        self.replaying, self.at = True, 0
        return self


def attention(q: Tensor, k: Tensor, v: Tensor, held: Held) -> Tensor:
    """[pos, head, d] each, causal."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    future = torch.triu(torch.ones(len(q), len(q), dtype=torch.bool), 1)
    pattern = held("attention", scores.masked_fill(future, -torch.inf).softmax(-1))
    return torch.einsum("hqk,khd->qhd", pattern, v).flatten(1)


def llama(hf, x: Tensor, held: Held) -> Tensor:
    """y of a Llama at every position from its first residual stream."""
    eps = hf.config.rms_norm_eps

    def norm(module, x):
        return x / held("norm", (x.square().mean(-1, keepdim=True) + eps).sqrt()) * module.weight

    def rotated(x):
        # Hugging Face keeps its frequencies in float32.
        half = x.shape[-1] // 2
        frequency = hf.model.rotary_emb.inv_freq.double()
        angle = torch.arange(len(x)).double()[:, None, None] * torch.cat([frequency, frequency])
        turned = torch.cat([-x[..., half:], x[..., :half]], -1)
        return x * angle.cos() + turned * angle.sin()

    for layer in hf.model.layers:
        a, n = layer.self_attn, norm(layer.input_layernorm, x)
        q, k, v = ((n @ p.weight.T).unflatten(-1, (-1, tiny.D_HEAD)) for p in (a.q_proj, a.k_proj, a.v_proj))
        x = x + attention(rotated(q), rotated(k), v, held) @ a.o_proj.weight.T
        m, n = layer.mlp, norm(layer.post_attention_layernorm, x)
        gate = held("mlp", torch.nn.functional.silu(n @ m.gate_proj.weight.T))
        x = x + (gate * (n @ m.up_proj.weight.T)) @ m.down_proj.weight.T
    return norm(hf.model.norm, x)


def gpt2(hf, x: Tensor, held: Held) -> Tensor:
    """The same for a GPT-2, with all its biases."""

    def norm(module, x):
        x = x - x.mean(-1, keepdim=True)
        return x / held("norm", (x.square().mean(-1, keepdim=True) + module.eps).sqrt()) * module.weight + module.bias

    def secant(x):
        # A product with x at hand, so that there is no 0/0 in it: at 0 it is the slope of the activation.
        if hf.config.activation_function == "relu":
            return (x > 0).double()
        return 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))

    for layer in hf.transformer.h:
        a, n = layer.attn, norm(layer.ln_1, x)
        q, k, v = ((n @ a.c_attn.weight + a.c_attn.bias).unflatten(-1, (3, -1, tiny.D_HEAD))).unbind(1)
        x = x + attention(q, k, v, held) @ a.c_proj.weight + a.c_proj.bias
        m, n = layer.mlp, norm(layer.ln_2, x)
        pre = n @ m.c_fc.weight + m.c_fc.bias
        x = x + pre * held("mlp", secant(pre)) @ m.c_proj.weight + m.c_proj.bias
    return norm(hf.transformer.ln_f, x)


FORWARD = {"llama": llama, "gpt2": gpt2}


@functools.cache
def by_hand(architecture: str, parts: tuple[str, ...]) -> Tensor:
    """∂y/∂x [pos, d, d] at the position."""
    hf = tiny.hugging_face(architecture)
    x = torch.zeros(len(ids()), tiny.D_MODEL, dtype=torch.float64)
    seen = []
    layers = hf.transformer.h if architecture == "gpt2" else hf.model.layers
    handle = layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    y, _ = oracles.final_state(hf, ids(), POSITION, {})
    handle.remove()
    x = seen[0][0]
    held = Held(parts)
    assert_close(FORWARD[architecture](hf, x, held)[POSITION], y, 1e-12, "the forward pass by hand")
    jacobian = torch.autograd.functional.jacobian(lambda x: FORWARD[architecture](hf, x, held.again())[POSITION], x)
    return jacobian.transpose(0, 1)


def doubled(pair):
    return Double() if pair[1] == "bridge" else nullcontext()


def tolerance(pair) -> float:
    if pair == ("llama", "bridge"):
        return 1e-7  # Hugging Face makes its rotary tables in float32, in whichever precision the model then runs
    return 1e-10 if pair[1] == "bridge" or pair[0] == "gpt2" else 2e-5


BY_HAND = [pair for pair in tiny.HOSTS if pair[0] in FORWARD]


@pytest.mark.parametrize("parts", SUBSETS, ids=lambda parts: "+".join(parts) or "nothing")
@pytest.mark.parametrize("pair", BY_HAND, ids=tiny.host_id)
def test_every_combination_against_a_forward_pass_by_hand(pair, parts):
    expected, model = by_hand(pair[0], parts), tiny.host(*pair)
    v = model.W_U.detach()[:, TARGET]
    u = torch.randn(1, len(ids()), tiny.D_MODEL, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with doubled(pair):
        jacobian = ls.jacobian(model, ids(), START, position=POSITION, freeze=parts)
        scores = ls.score(model, ids(), ls.Semantic(TARGET), sites=[START], position=POSITION, freeze=parts)
        flow = ls.flow(model, ids(), ls.Semantic(TARGET), position=POSITION, sources="each", freeze=parts)
        pushed = jacobian.jvp(u)
        assert_close(jacobian.dense(), expected, tolerance(pair), "reverse")
    assert_close(pushed[0], torch.einsum("toi,ti->o", expected, u[0]), tolerance(pair), "forward mode")
    norms = torch.einsum("toi,o->ti", expected, v).norm(dim=-1)
    assert_close(scores.values[0], norms, tolerance(pair), "scores")
    assert_close(flow.total, norms, tolerance(pair), "flow")  # hook_embed only lacks the positions
    assert flow.residual < 1e-10
    assert tuple(flow.meta["freeze"]) == tuple(scores.meta["freeze"]) == parts
    if parts:
        plain = by_hand(pair[0], ())
        assert float((plain - expected).abs().max()) > 1e-3 * float(plain.abs().max())  # it does change something


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_the_secant_at_a_pre_activation_of_exactly_zero(backend, activation, tmp_path):
    """Two channels are equal as they reach a neuron that reads their difference: 0, but not constant.

    The secant there is act′(0): 1/2 for gelu, 0 for relu.
    """
    hf = copy.deepcopy(tiny.hugging_face("gpt2"))
    hf.config.activation_function = activation
    with torch.no_grad():
        for layer in hf.transformer.h:
            layer.mlp.act = transformers.activations.ACT2FN[activation]
        first = hf.transformer.h[0]
        first.attn.c_proj.weight[:, :2] = 0  # a sum of products could be rounded differently in each channel
        embeddings = hf.transformer.wte.weight.T, hf.transformer.wpe.weight.T
        for equal in (*embeddings, first.attn.c_proj.bias, first.ln_2.weight, first.ln_2.bias):
            equal[1] = equal[0]
        first.mlp.c_fc.weight[:, ::2] = 0
        first.mlp.c_fc.weight[0, ::2], first.mlp.c_fc.weight[1, ::2] = 1, -1
        first.mlp.c_fc.bias[::2] = 0
    hf.save_pretrained(tmp_path / "tiny-gpt2")
    tiny.byte_level_tokenizer().save_pretrained(tmp_path / "tiny-gpt2")
    with Double.off():
        model = ls.load(tmp_path / "tiny-gpt2", backend=backend, dtype=torch.float64)
    with doubled(("gpt2", backend)):
        _, cache = model.run_with_cache(torch.tensor([ids()]))
        found = ls.jacobian(model, ids(), START, position=POSITION, freeze=("mlp",)).dense()
    assert (cache["blocks.0.mlp.hook_pre"][0, :, ::2] == 0).all()
    x, held = cache[START][0].detach(), Held(("mlp",))
    y, _ = oracles.final_state(hf, ids(), POSITION, {})
    assert_close(gpt2(hf, x, held)[POSITION], y, 1e-12, "the forward pass by hand")
    expected = torch.autograd.functional.jacobian(lambda x: gpt2(hf, x, held.again())[POSITION], x)
    assert_close(found, expected.transpose(0, 1), tolerance(("gpt2", backend)), activation)


@pytest.mark.parametrize("pair", [p for p in tiny.HOSTS if p[0] != "mixtral"], ids=tiny.host_id)
def test_a_model_without_biases_is_linear_in_its_input(pair):
    """Σ_t J_t x_t = y, for sequential, parallel and post-norm blocks, q/k norms and soft-caps."""
    model = tiny.fresh_host(*pair)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.rsplit(".", 1)[-1].startswith("b_") or name.endswith((".b", "bias")):
                parameter.zero_()
    with doubled(pair):
        jacobian = ls.jacobian(model, ids(), START, position=POSITION, freeze=PARTS)
        _, cache = model.run_with_cache(torch.tensor([ids()]))
        moved = jacobian.jvp(cache[START].detach())[0]
        y = jacobian.run.y[0, 0].detach()
        pulled = torch.einsum("toi,ti->o", jacobian.dense(), cache[START][0].detach())
    for sum_of_jx in (moved, pulled):
        # Norms hold √(mean + ε), so it is exact.
        assert_close(sum_of_jx, y, 1e-10, "Σ Jx")
    for left_out in PARTS:
        if (pair[0], left_out) == ("qwen3", "attention"):
            continue  # normed queries and keys do not see how long their input is
        parts = [part for part in PARTS if part != left_out]
        partly = ls.jacobian(model, ids(), START, position=POSITION, freeze=parts).jvp(cache[START].detach())[0]
        assert float((partly - y).norm() / y.norm()) > 1e-3, left_out


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("pair", [p for p in tiny.HOSTS if p[0] != "mixtral"], ids=tiny.host_id)
def test_values_do_not_change_and_both_directions_agree(pair, part):
    model = tiny.host(*pair)
    plain, frozen = (ls.flow(model, ids(), ls.Semantic(TARGET), freeze=freeze) for freeze in ((), (part,)))
    for a, b in zip(plain.meta["predictions"][0], frozen.meta["predictions"][0], strict=True):
        assert (a["id"], a["text"]) == (b["id"], b["text"])
        assert a["p"] == pytest.approx(b["p"], rel=1e-6)
    assert frozen.residual < (1e-10 if pair[1] == "hooked" or pair[0] in ("gpt2", "neox") else 1e-6)
    assert abs(float(frozen.total - plain.total)) > 1e-4 * float(plain.total)
    if part == "attention":  # what is held does not move: no influence through queries and keys
        assert float(frozen.composition[..., :2].abs().max()) < 1e-9 * float(frozen.total)
        assert float(plain.composition[..., :2].abs().max()) > 1e-3 * float(plain.total)


@pytest.mark.parametrize("pair", BY_HAND, ids=tiny.host_id)
def test_one_part_may_be_a_string_and_order_does_not_matter(pair):
    model = tiny.host(*pair)
    one, listed = (ls.score(model, ids(), ls.Semantic(TARGET), freeze=freeze) for freeze in ("norm", ["norm"]))
    assert torch.equal(one.values, listed.values)
    assert one.meta["freeze"] == ["norm"]
    a, b = (ls.score(model, ids(), ls.Semantic(TARGET), freeze=freeze).values for freeze in (PARTS, PARTS[::-1]))
    assert torch.equal(a, b)


def test_an_unknown_part():
    for call in (ls.score, ls.flow):
        with pytest.raises(ValueError, match="freeze knows norm, attention, mlp, got 'norms'"):
            call(tiny.host(*BY_HAND[0]), ids(), ls.Semantic(TARGET), freeze=("norms",))


@pytest.mark.skipif("bridge" not in tiny.BACKENDS, reason="no Bridge in this TransformerLens")
@pytest.mark.parametrize("architecture", ["opt", "gptj"])
def test_attention_that_hugging_face_computes_itself(architecture):
    model = tiny.host(architecture, "bridge")
    with pytest.raises(ValueError, match=r"cannot freeze 'attention'.*does not reach the output"):
        ls.score(model, ids(), ls.Semantic(TARGET), freeze=("attention",))
    assert ls.flow(model, ids(), ls.Semantic(TARGET), freeze=("norm",)).residual < 1e-6


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_a_mixture_of_experts_has_a_router(backend):
    model = tiny.host("mixtral", backend)
    with pytest.raises(ValueError, match="mixture of experts"):
        ls.score(model, ids(), ls.Semantic(TARGET), freeze=("mlp",))
    assert ls.flow(model, ids(), ls.Semantic(TARGET), freeze=("norm", "attention")).residual < 1e-5
