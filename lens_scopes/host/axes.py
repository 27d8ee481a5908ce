"""Which axis of an activation is which: read from the model itself, since hosts do not agree.

A site is [batch, pos, d], or by head [batch, pos, head, d_head]. Multi-head latent attention (DeepSeek) has its heads
before its positions on some hosts, which no shape betrays where there are as many tokens as heads.
"""

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lens_scopes.host.capture import run_to_last_residual
from lens_scopes.host.model import Host
from lens_scopes.sites import has_heads

# Sites whose positions were seen to move with the length of the prompt.
_seen: "weakref.WeakKeyDictionary[Any, set[str]]" = weakref.WeakKeyDictionary()


def refuse_axes(host: Host, tokens: Int[Tensor, "batch pos"], found: Mapping[str, Tensor]) -> None:
    """Refuse activations that are not laid out by position, and then by head where there are heads.

    Raises:
        ValueError: naming the site, its shape and what was expected.

    """
    doubtful = []
    for name, activation in found.items():
        shape = tuple(activation.shape)
        if shape[:2] != tuple(tokens.shape) or len(shape) not in (3, 4) or shape[-1] == 1:
            _refuse(host, name, shape)
        if len(shape) == 4 and shape[2] != _heads(host, name):
            _refuse(host, name, shape)
        if len(shape) == 3 and has_heads(name):
            _refuse(host, name, shape)
        if len(shape) == 4 and shape[1] == shape[2]:
            doubtful.append(name)
    seen = _seen.setdefault(host.model, set())
    doubtful = [name for name in doubtful if name not in seen]
    if not doubtful:
        return
    length = tokens.shape[1]
    other = torch.cat([tokens[:1], tokens[:1, :1]], 1) if length < host.n_ctx else tokens[:1, :-1]
    again = run_to_last_residual(host, other, doubtful, grad=False).sites
    for name in doubtful:
        shape = tuple(again[name].shape)
        if shape[1] != other.shape[1] or shape[2:] != tuple(found[name].shape[2:]):
            _refuse(host, name, shape)
        seen.add(name)


def _heads(host: Host, name: str) -> int:
    by_key = getattr(host.cfg, "n_key_value_heads", None) if name.endswith((".hook_k", ".hook_v")) else None
    return int(by_key or host.cfg.n_heads)


def _refuse(host: Host, name: str, shape: tuple[int, ...]) -> None:
    if has_heads(name):
        msg = (
            f"{name} of {host.name} has shape {shape}, not [batch, pos, head={_heads(host, name)}, d_head]: this host "
            "lays its attention out in another way (multi-head latent attention), so there are no scores by head; "
            "write sites='attn_out' or a site of the stream"
        )
    else:
        msg = (
            f"{name} has shape {shape}: a site is an activation [batch, pos, d] with d > 1, and this is none (patterns "
            "and scales are not); write e.g. sites='resid_post' or 'z'"
        )
    raise ValueError(msg)
