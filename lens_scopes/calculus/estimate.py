"""What a call will cost, before it is made: passes, memory and time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lens_scopes.calculus.graph_size import held_by
from lens_scopes.calculus.memory import chunk_bytes
from lens_scopes.host import Host
from lens_scopes.host.differentiable import refuse_dropout
from lens_scopes.host.undo import guarded
from lens_scopes.results.arguments import Integer, flag, integer
from lens_scopes.scopes.protocol import Scope, site_of

# In floors: a further cotangent, and what a flow takes beyond its score, for each cotangent.
_COTANGENT, _FLOW = 0.4, 1.5
# A floor, in forward passes.
_FORWARDS = 2.0


@dataclass(frozen=True)
class Estimate:
    """What one prompt costs. A floor is one forward pass and one backward pass to the embeddings."""

    forwards: int
    backwards: int
    tangents: int
    """Forward-mode passes."""
    bytes: int
    """The peak above the loaded model."""
    floors: float
    """Time in floors of this prompt."""
    seconds: float
    """Time, from a short forward pass on this machine: a rough guess."""

    @property
    def passes(self) -> int:
        """All of them."""
        return self.forwards + self.backwards + self.tangents

    def __str__(self) -> str:
        """One line."""
        kinds = (("forward", self.forwards), ("backward", self.backwards), ("forward-mode", self.tangents))
        told = " + ".join(f"{count} {kind}" for kind, count in kinds if count)
        return (
            f"{told} passes, about {self.floors:.1f} floors ({self.seconds:,.0f} s), {self.bytes / 2**20:,.0f} MiB "
            "above the model"
        )


@guarded
def estimate(
    model: Any, n_tokens: Integer, scope: Scope, *, sites: str | Sequence[str] | None = None, flow: bool = False
) -> Estimate:
    """Passes, memory and time of ``score`` (or ``flow``) of one prompt at one position.

    Forward passes of 16, 32 and 64 tokens say what a graph of this model holds; they are made once per model.

    Args:
        model: see ``score``.
        n_tokens: how long the prompt is.
        scope: see ``score``; how many cotangents it has is what it says: its ``passes`` or ``rank``, else one.
        sites: see ``score``.
        flow: whether a flow is asked, all sources together.

    Raises:
        ValueError: no tokens, or more than the context; a site that the model lacks.
        RuntimeError: a model in train mode with dropout.
        TypeError: not a model, or no scope.

    Example:
        >>> import lens_scopes as ls
        >>> found = ls.estimate(ls.demo.load(), 100, ls.Fisher(passes=8))
        >>> found.forwards, found.backwards, found.tangents
        (1, 8, 0)

    """
    host, n, flow = Host(model), integer(n_tokens, "n_tokens", 1), flag(flow, "flow (whether one is asked)")
    if n > host.n_ctx:
        msg = f"{host.name} has a context of {host.n_ctx} tokens, got n_tokens={n}; write at most {host.n_ctx}"
        raise ValueError(msg)
    end = site_of(scope)
    refuse_dropout(model)
    asked, rows, held = host.sites(sites, end).names, _rows(host, scope), held_by(host)
    peak = held.peak(n, flow=flow) + chunk_bytes(host, n, len(asked), rows)
    floors = 1 + _COTANGENT * (rows - 1) + (_FLOW * rows if flow else 0)
    return Estimate(1, rows, rows if flow else 0, peak, floors, floors * _FORWARDS * held.seconds * n)


def _rows(host: Host, scope: Scope) -> int:
    """How many cotangents a scope has at a position."""
    passes = getattr(scope, "rank", None) or getattr(scope, "passes", 1)
    return int(host.cfg.d_model if passes is None else passes)
