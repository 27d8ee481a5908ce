"""The way out of the model: last residual stream -> y -> logits, at the wanted positions only, and what it is like."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_scopes.host.capture import run_to_last_residual
from lens_scopes.host.differentiable import refuse_inference
from lens_scopes.host.fingerprint import settings
from lens_scopes.host.model import Host


@dataclass(frozen=True, eq=False)
class Readout:
    """How one model, in its present processing state, turns y into logits."""

    weight: Float[Tensor, "vocab d_model"]
    """W_U, transposed (a view)."""
    transform: Callable[[Tensor], Tensor]
    """Element by element: soft-cap, logit scale; the identity for most models."""
    constant_norm: bool
    """The final norm makes ‖y‖ constant: its effective weight is constant and its bias zero."""
    norm_has_bias: bool
    """The final norm subtracts the mean (LayerNorm), so that folding also took a bias."""
    centred: bool
    """The unembedding's mean over the vocabulary is zero: single logits are centred."""

    def slope(self, raw: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch vocab"] | None:
        """∂z/∂(raw logits); None where the transform is the identity."""
        with torch.enable_grad():
            leaf = raw.detach().requires_grad_()
            out = self.transform(leaf)
            if out is leaf:
                return None
            (slope,) = torch.autograd.grad(out.sum(), leaf)
        return None if bool((slope == 1).all()) else slope


def final_norm(host: Host, residual: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
    """y: the residual stream after the model's own final norm (none in an attention-only toy without norms)."""
    norm = getattr(host.model, "ln_final", None)
    if norm is None or getattr(host.cfg, "normalization_type", "LN") is None:
        return residual
    # The norm's hooks expect [batch, pos, d_model].
    return norm(residual.reshape(1, -1, residual.shape[-1])).reshape(residual.shape)


def raw_logits(host: Host, y: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
    """The unembedding itself, before any soft-cap or scale."""
    return host.model.unembed(y.reshape(1, -1, y.shape[-1])).reshape(*y.shape[:-1], -1)


# Rows of the unembedding whose numbers are compared with those of an earlier call.
_LOOKED_AT = 256

_known: "weakref.WeakKeyDictionary[Any, tuple[tuple, Readout]]" = weakref.WeakKeyDictionary()


def read_out(host: Host, tokens: Int[Tensor, "batch pos"]) -> Readout:
    """The model's readout, verified against ``model(tokens)`` once per model and processing state.

    Raises:
        RuntimeError: final norm + unembedding + output transform do not reproduce the model's own logits.

    """
    with host.alone():
        refuse_inference(host.model)
        state = _fingerprint(host)
        known = _known.get(host.model)
        if known is not None and known[0] == state:
            return known[1]
        readout = _inspect(host)
        if _verify(host, readout, tokens[:1, :8]):
            _known[host.model] = (state, readout)
        return readout


def _fingerprint(host: Host) -> tuple:
    """Changes whenever the unembedding or the final norm is replaced, processed, edited, moved, cast or capped.

    Edits through ``.data`` leave no trace but the numbers: those of the norm are looked at, and some rows of W_U.
    """
    norm = getattr(host.model, "ln_final", None)
    weight = host.model.W_U
    parameters = [*(norm.parameters() if norm is not None else ()), weight]
    flags = tuple(getattr(host.model, name, None) for name in ("_weights_processed", "compatibility_mode"))
    flags += settings(host)
    looked_at = [*parameters[:-1], weight[:, :: max(1, weight.shape[1] // _LOOKED_AT)]]
    with torch.no_grad():
        sums = [tuple(x.detach().double().flatten().add(k).square().sum().item() for k in (0, 1)) for x in looked_at]
    made = ((p.data_ptr(), 0 if p.is_inference() else p._version, p.dtype, p.device) for p in parameters)
    return (flags, *sums, *made)


@torch.no_grad()
def _inspect(host: Host) -> Readout:
    weight = host.model.W_U.detach().T
    d_model = weight.shape[1]
    # A residual stream without mean and with equal magnitudes comes out of any norm as ±(its effective weight) + bias,
    # whatever the norm's class, stored form (Gemma keeps weight - 1) or folding.
    signs = torch.ones(d_model, dtype=weight.dtype, device=weight.device)
    signs[1::2] = -1
    if d_model % 2:
        signs[-3:] = signs.new_tensor([1.0, 1.0, -2.0])
    plus, minus = final_norm(host, torch.stack([signs, -signs])).double()
    effective, bias = (plus - minus) / 2 / signs.double(), (plus + minus) / 2
    shifted = final_norm(host, torch.stack([signs + 1, 2 * signs])).double()
    subtracts_mean = bool((shifted[0] - plus).abs().max() < 0.1 * plus.abs().max())
    normalises = bool((shifted[1] - plus).abs().max() < 0.1 * plus.abs().max())
    scale = effective.abs().mean()
    constant = bool((effective - effective.mean()).abs().max() < 1e-5 * scale) and bool(bias.abs().max() < 1e-5 * scale)
    # Half precision leaves a mean of its own rounding.
    noise = 1e-5 if weight.dtype in (torch.float32, torch.float64) else 1e-2
    mean, spread = weight.mean(0, dtype=torch.float32).abs().max(), weight[:4096].float().std()
    return Readout(weight, _transform(host), normalises and constant, subtracts_mean, bool(mean < noise * spread))


def _transform(host: Host) -> Callable[[Tensor], Tensor]:
    if host.is_bridge:
        return getattr(host.model.adapter, "apply_output_logits_transform", None) or (lambda logits: logits)
    cap = float(getattr(host.cfg, "output_logits_soft_cap", -1.0) or -1.0)
    return (lambda logits: cap * torch.tanh(logits / cap)) if cap > 0 else (lambda logits: logits)


@torch.no_grad()
def _verify(host: Host, readout: Readout, tokens: Int[Tensor, "1 pos"]) -> bool:
    """False where nothing can be said: logits that are not finite (whoever asked for them finds out where it began)."""
    with torch.inference_mode(mode=False):
        own = host.run(tokens).float()
        if not own.isfinite().all():
            return False
        last = run_to_last_residual(host, tokens, grad=False).last
        ours = readout.transform(raw_logits(host, final_norm(host, last))).float()
    error = float((ours - own).abs().max() / own.abs().max().clamp(min=1e-30))
    allowed = 1e-4 if host.dtype in (torch.float32, torch.float64) else 3e-2
    if not error < allowed:
        msg = (
            f"final norm and unembedding of {host.name} do not reproduce its logits (relative error {error:.1e}): this "
            "TransformerLens version does not support the architecture in this mode; try the other host class or a "
            "newer version"
        )
        raise RuntimeError(msg)
    return True
