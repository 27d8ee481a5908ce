"""Frozen linearisations: parts of the model held constant while the rest is differentiated.

"norm": the scales of the norms in the blocks, after the blocks' branches and before the unembedding. "attention": the
attention patterns. "mlp": the activation's secant, post = pre · stopgrad(post/pre) (gated: the activated gate). With
all three a model without biases is linear in its input, Σ_t J_t x_t = y (the locally linear view of arXiv 2505.24293).

Every hook returns the value that it got: the forward pass does not change, only what is differentiated.
"""

import re
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from lens_scopes.host.model import Hook, Host
from lens_scopes.results.arguments import listed

PARTS = ("norm", "attention", "mlp")

_SCALE = re.compile(r"(blocks\.\d+\.(ln1|ln2|ln1_post|ln2_post)|ln_final)\.hook_scale")
_PRE = re.compile(r"blocks\.\d+\.mlp\.hook_pre")


def freezing_hooks(host: Host, freeze: Sequence[str]) -> list[Hook]:
    """Hooks that hold the named parts constant, in either direction of differentiation.

    Raises:
        ValueError: an unknown part, or one that this host cannot hold: attention that Hugging Face computes by itself,
            a mixture of experts, a norm without a scale hook.

    """
    parts = list(dict.fromkeys(map(str, listed(freeze))))
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        msg = f"freeze knows {', '.join(PARTS)}, got {unknown[0]!r}; write e.g. freeze=('norm', 'attention')"
        raise ValueError(msg)
    hooks = [hook for part in parts for hook in _HOOKS[part](host)]
    for part in parts:
        _refuse_dead(host, part)
    return hooks


def holding(host: Host, held: Sequence[Hook]) -> AbstractContextManager:
    """The frozen parts as a context, for what runs outside the blocks."""
    return host.hooks(held) if held else nullcontext()


def _norm(host: Host) -> list[Hook]:
    names = [name for name in sorted(host.available) if _SCALE.fullmatch(name)]
    if not any(name.startswith("blocks.") for name in names):
        msg = f"{host.name} has no scale hooks on its norms, so they cannot be frozen"
        raise ValueError(msg)
    return [(name, _hold) for name in names]


def _attention(host: Host) -> list[Hook]:
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(host.n_layers)]
    missing = [name for name in names if name not in host.available]
    if missing:
        msg = (
            f"{host.name} has no {missing[0]!r}: that block mixes positions by other means than an attention pattern, "
            "which cannot be frozen; freeze norm or mlp"
        )
        raise ValueError(msg)
    return [(name, _hold) for name in names]


def _mlp(host: Host) -> list[Hook]:
    if getattr(host.cfg, "num_experts", None) or any(
        ".mlp.experts" in name or "expert" in name for name in host.available
    ):
        msg = (
            f"{host.name} is a mixture of experts: its router would have to be held as well; freeze norm and attention"
        )
        raise ValueError(msg)
    hooks: list[Hook] = []
    for pre in (name for name in sorted(host.available) if _PRE.fullmatch(name)):
        if pre.replace("hook_pre", "hook_pre_linear") in host.available:
            hooks.append((pre, _hold))
        else:
            hooks += _secant(pre, pre.replace("hook_pre", "hook_post"), _slope_at_zero(host))
    if not hooks:
        msg = f"{host.name} has no hook_pre in its MLPs, so they cannot be frozen"
        raise ValueError(msg)
    return hooks


_HOOKS: dict[str, Callable[[Host], list[Hook]]] = {"norm": _norm, "attention": _attention, "mlp": _mlp}


def _hold(activation: Tensor, hook: object) -> Tensor:  # noqa: ARG001 - TransformerLens's signature
    return activation.detach()


def _secant(pre: str, post: str, slope_at_zero: float) -> list[Hook]:
    """post as a line through the origin and its own value: post = pre · stopgrad(post/pre)."""
    box: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: object) -> Tensor:  # noqa: ARG001
        box["pre"] = activation
        return activation

    def line(activation: Tensor, hook: object) -> Tensor:  # noqa: ARG001
        x = box.pop("pre").reshape(activation.shape)
        ratio = torch.where(x == 0, slope_at_zero, activation / torch.where(x == 0, torch.ones_like(x), x)).detach()
        # The value stays what it was, to the last bit; only the derivative is the secant's.
        return activation.detach() + ratio * (x - x.detach())

    return [(pre, keep), (post, line)]


def _slope_at_zero(host: Host) -> float:
    """act′(0): 0 for the rectifiers, 1/2 for everything of the form x·σ(x) (gelu and its approximations, silu)."""
    return 0.0 if "relu" in str(getattr(host.cfg, "act_fn", "")) else 0.5


_alive: "weakref.WeakKeyDictionary[Any, set[str]]" = weakref.WeakKeyDictionary()


def _refuse_dead(host: Host, part: str) -> None:
    """Once per model: does what a hook returns reach the output? Some hooks fire after the value was used."""
    from lens_scopes.host.capture import run_to_last_residual
    from lens_scopes.host.readout import final_norm

    if part in _alive.setdefault(host.model, set()):
        return
    leaves: dict[str, Tensor] = {}

    def leaf(name: str) -> Callable[..., Tensor]:
        def hook(activation: Tensor, hook: object) -> Tensor:  # noqa: ARG001
            leaves[name] = activation.detach().requires_grad_()
            return leaves[name]

        return hook

    # Of a secant's two hooks it is the second whose value must go on.
    names = [name for name, function in _HOOKS[part](host) if function is _hold or name.endswith("hook_post")]
    hooks = [(name, leaf(name)) for name in names]
    tokens = torch.arange(min(4, host.vocab), device=host.device)[None]
    try:
        last = run_to_last_residual(host, tokens, hooks=hooks).last
        with torch.inference_mode(mode=False), torch.enable_grad(), host.frozen(), holding(host, hooks):
            total = final_norm(host, last).sum()
    except AttributeError as failure:  # a hooked norm is computed by TransformerLens, which asks for its weight
        msg = (
            f"{host.name} cannot freeze {part!r}: TransformerLens does not compute it where it is hooked ({failure}); "
            "leave it out, or use the other host class"
        )
        raise ValueError(msg) from failure
    none = [None] * len(leaves)
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True) if total.requires_grad else none
    dead = [name for name in names if name not in leaves] + [
        name for name, gradient in zip(leaves, found, strict=True) if gradient is None
    ]
    if dead:
        msg = (
            f"{host.name} cannot freeze {part!r}: what the hook {dead[0]!r} returns does not reach the output (Hugging "
            "Face computes this part by itself); leave it out, or use the other host class"
        )
        raise ValueError(msg)
    _alive[host.model].add(part)
