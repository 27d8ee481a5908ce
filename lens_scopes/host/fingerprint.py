"""What a model computes with, in short: whether what was kept from it still holds."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lens_scopes.host.model import Host

# Numbers of each weight that are looked at.
_LOOKED_AT = 64


def fingerprint(host: Host) -> str:
    """The model's class, its weights and the hooks in force, as one word. Of this process: it counts edits.

    Of each weight its version and some of its numbers, since edits through ``.data`` leave no other trace.
    """
    places = dict(host.model.named_modules()) | dict(host.model.hook_dict)
    hooks = {name: list(places[name]._forward_hooks) for name in host.hooked()}
    seen: list[Any] = [type(host.model).__name__, hooks, settings(host)]
    for name, p, some in _looked_at(host):
        seen += [name, p.dtype, tuple(p.shape), 0 if p.is_inference() else p._version, some]
    return _word(seen)


def settings(host: Host) -> tuple:
    """What is no weight and yet makes the logits: a soft-cap, and on a Bridge all that Hugging Face's code reads."""
    cap, original = getattr(host.cfg, "output_logits_soft_cap", None), getattr(host.model, "original_model", None)
    if original is None:
        return (cap,)
    own = tuple((name, value) for name, value in vars(original).items() if isinstance(value, float))
    return cap, own, repr(vars(original.config)) if hasattr(original, "config") else None


def refuse_changed(host: Host, known: str, what: str, verb: str) -> None:
    """Refuse to ask a model that is no longer what it was when its fingerprint was taken.

    Raises:
        RuntimeError: another word now.

    """
    if fingerprint(host) != known:
        msg = (
            f"{what}, and {host.name} has changed since (weights, or hooks of yours): the answer would be another "
            f"model's; put it back, or run lens_scopes.{verb} again"
        )
        raise RuntimeError(msg)


def weights(host: Host) -> str:
    """The model's weights as one word, the same in every process and on every device: some numbers of each."""
    return _word([(name, str(p.dtype), tuple(p.shape), some) for name, p, some in _looked_at(host)])


def _looked_at(host: Host) -> Iterator[tuple[str, Tensor, bytes]]:
    """Parameters and buffers by name, with some of their numbers."""
    with torch.no_grad():
        for name, p in (*host.model.named_parameters(), *host.model.named_buffers()):
            some = p.detach().flatten()[:: max(1, p.numel() // _LOOKED_AT)].double().cpu()
            yield name, p, some.numpy().tobytes()


def _word(seen: list[Any]) -> str:
    return hashlib.blake2b(repr(seen).encode(), digest_size=16).hexdigest()
