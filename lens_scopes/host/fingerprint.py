"""What a model computes with, in short: whether what was kept from it still holds."""

import hashlib
from typing import Any

import torch

from lens_scopes.host.model import Host

# Numbers of each weight that are looked at.
_LOOKED_AT = 64


def fingerprint(host: Host) -> str:
    """The model's class, its weights and the hooks in force, as one word.

    Of each weight its version and some of its numbers, since edits through ``.data`` leave no other trace.
    """
    places = dict(host.model.named_modules()) | dict(host.model.hook_dict)
    seen: list[Any] = [type(host.model).__name__, {name: list(places[name]._forward_hooks) for name in host.hooked()}]
    with torch.no_grad():
        for name, p in (*host.model.named_parameters(), *host.model.named_buffers()):
            some = p.detach().flatten()[:: max(1, p.numel() // _LOOKED_AT)].double().cpu()
            seen += [name, p.dtype, tuple(p.shape), 0 if p.is_inference() else p._version, some.numpy().tobytes()]
    return hashlib.blake2b(repr(seen).encode(), digest_size=16).hexdigest()
