"""What the graph of a forward pass holds, as a function of its length: measured once per model, on short texts.

Autograd saves a + b·n + c·n² bytes of n tokens, whatever the architecture: weights that the host has laid out anew,
activations, and patterns. Three lengths give a, b and c.
"""

import time
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lens_scopes.host import Host, run_to_last_residual
from lens_scopes.sites import EMBED

# Peak of resident memory over what a graph holds, of a score and of a flow: fitted on two models at 256 and 512
# tokens. Weights that the host lays out anew are there once.
_PEAK, _PEAK_OF_FLOW = 1.7, 3.2
# Tokens of the texts, where the context has room for them.
_LONGEST = 64


@dataclass(frozen=True)
class Held:
    """What one prompt's graph holds, and what its forward pass takes."""

    fixed: float
    """Bytes, however short it is."""
    linear: float
    """Bytes per token."""
    quadratic: float
    """Bytes per token squared."""
    seconds: float
    """Of a forward pass, per token, when it was measured."""

    def bytes(self, n_tokens: int) -> int:
        """Of a prompt of this length."""
        return round(self.fixed + self.linear * n_tokens + self.quadratic * n_tokens**2)

    def peak(self, n_tokens: int, prompts: int = 1, *, flow: bool = False) -> int:
        """The most that is resident above the model while prompts of this length are scored together."""
        own = self.bytes(n_tokens) - self.fixed
        return round(self.fixed + (_PEAK_OF_FLOW if flow else _PEAK) * prompts * own)


_known: "weakref.WeakKeyDictionary[Any, dict[tuple, Held]]" = weakref.WeakKeyDictionary()


def held_by(host: Host) -> Held:
    """What the graphs of this model hold, with the user's own hooks in force."""
    with host.alone():
        state = (host.dtype, host.device, host.hooked())
        found = _known.setdefault(host.model, {})
        if state not in found:
            found[state] = _measured(host)
        return found[state]


def _measured(host: Host) -> Held:
    most = min(_LONGEST, host.n_ctx)
    lengths = sorted({max(1, most // over) for over in (4, 2, 1)})
    found = [_saved(host, n) for n in lengths]
    powers = [[n**k for k in range(len(lengths))] for n in lengths]
    law = torch.linalg.solve(
        torch.tensor(powers, dtype=torch.float64, device="cpu"),
        torch.tensor([float(kept) for kept, _ in found], dtype=torch.float64, device="cpu"),
    ).tolist()
    fixed, linear, quadratic = (*law, 0.0, 0.0)[:3]
    return Held(fixed, linear, quadratic, found[-1][1] / most)


def _saved(host: Host, length: int) -> tuple[int, float]:
    """Bytes that autograd saves of a text of this length, each storage once and without the weights; and seconds."""
    weights = {p.untyped_storage().data_ptr() for p in (*host.model.parameters(), *host.model.buffers())}
    found: dict[int, int] = {}

    def note(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return saved

    tokens = torch.arange(length, device=host.device)[None] % host.vocab
    begun = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        graph = run_to_last_residual(host, tokens, [EMBED])
    seconds = time.perf_counter() - begun
    del graph  # until here every storage had a place of its own
    return sum(found.values()), seconds
