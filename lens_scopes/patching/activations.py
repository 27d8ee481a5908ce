"""What the two runs of a pair hold, from one forward each; kept in the caller's dict for the next call."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lens_scopes.calculus.pair import Pair
from lens_scopes.calculus.trace import Trace, trace_of
from lens_scopes.host import run_to_last_residual
from lens_scopes.host.axes import refuse_axes
from lens_scopes.host.capture import Captured
from lens_scopes.host.fingerprint import fingerprint
from lens_scopes.results.arguments import shown

_WHOSE = "pair"


@dataclass(frozen=True, eq=False)
class Activations:
    """Detached activations [1, pos, ...] of the clean and the corrupted run, by hook name."""

    pair: Pair
    clean: dict[str, Tensor]
    corrupted: dict[str, Tensor]

    @classmethod
    def of(cls, pair: Pair, names: Iterable[str], cache: dict[str, Any] | None) -> "Activations":
        """At the names and at the end: what the cache lacks is run, and put there.

        Raises:
            ValueError: a cache of another pair or model, or of a model that has changed since.

        """
        if cache is not None and not isinstance(cache, dict):
            msg = f"cache is a dict of yours, at first empty, got {shown(cache)}; write cache = {{}} and cache=cache"
            raise TypeError(msg)
        kept = {} if cache is None else cache
        whose = {"clean": pair.clean.tolist(), "corrupted": pair.corrupted.tolist(), "model": fingerprint(pair.host)}
        if kept and kept.get(_WHOSE) != whose:
            known = kept.get(_WHOSE)
            differs = next(key for key in whose if not isinstance(known, dict) or known.get(key) != whose[key])
            what = "another model, or this one has changed since (weights, hooks)"
            what = what if differs == "model" else f"another {differs} prompt"
            msg = f"the cache was filled by {what if known else 'somebody else'}; write cache={{}} for a new one"
            raise ValueError(msg)
        kept.setdefault(_WHOSE, whose)
        found = cls(pair, kept.setdefault("clean", {}), kept.setdefault("corrupted", {}))
        wanted = (*names, pair.host.last_residual)
        for tokens, at in ((pair.clean, found.clean), (pair.corrupted, found.corrupted)):
            missing = [name for name in dict.fromkeys(wanted) if name not in at]
            if missing:
                ran = run_to_last_residual(pair.host, tokens[None], missing, grad=False)
                refuse_axes(pair.host, tokens[None], ran.sites)
                at |= {name: ran.sites[name].detach() for name in missing}
        return found

    def traces(self) -> tuple[Trace, Trace]:
        """The ends of both runs: clean, corrupted."""
        pair = self.pair
        return tuple(  # pyright: ignore[reportReturnType]
            trace_of(pair.host, ids[None], Captured(at, {}, at[pair.host.last_residual]), pair.positions)
            for ids, at in ((pair.clean, self.clean), (pair.corrupted, self.corrupted))
        )
