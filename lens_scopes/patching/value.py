"""What a scope measures of runs with their patches: each begins at the block that it changes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lens_scopes.calculus.trace import Trace
from lens_scopes.calculus.variants import Kept, Variant
from lens_scopes.host import Host
from lens_scopes.scopes.protocol import Scope, site_of, text_of
from lens_scopes.scopes.quantity import Quantities, one_per_run, quantities
from lens_scopes.scopes.state import FinalState
from lens_scopes.sites import FINAL, STREAM, layer_of

# Logits that are held at one time, where a scope looks at all of them.
_LOGITS = 2**24


def begins(names: Sequence[str]) -> list[str]:
    """The streams that their blocks begin with."""
    return [STREAM["resid_pre"].format(layer_of(name) or 0) for name in names]


def opened(host: Host, names: Sequence[str], scope: Scope) -> list[str]:
    """The sites themselves, where their blocks begin, and what the scope reads."""
    inner = site_of(scope)
    return list(dict.fromkeys([*names, *begins(names), *(() if inner == FINAL else host.sites([inner]).names)]))


@dataclass(frozen=True, eq=False)
class Value:
    """What the scope measures, of runs that end as the corrupted one does."""

    run: Trace
    reference: Sequence[FinalState]
    """Its ends at the positions."""
    quantity: Quantities
    site: str
    name: str

    @classmethod
    def at_end_of(cls, run: Trace, scope: Scope) -> "Value":
        """Of a scope whose tokens are resolved, at the positions of a run of one prompt."""
        reference = run.ends(0)
        return cls(run, reference, quantities(scope, reference), site_of(scope), text_of(scope))

    def of(self, run: Trace) -> Tensor:
        """Of one of the two prompts' own runs."""
        inner = None if self.site == FINAL else run.sites[self.site][:, list(run.positions)]
        return self._at(run.last, inner).reshape(())

    def of_patched(self, kept: Kept, patches: Sequence[Variant]) -> Float[Tensor, " run"]:
        """Of each run with its patches."""
        at = list(self.run.positions)
        found = torch.zeros(len(patches), dtype=torch.float64, device="cpu")
        for rows, last, inner in kept.run(patches, self.site):
            found[rows] = self._at(last[:, at], None if inner is None else inner[:, at]).double().cpu()
        return found

    @torch.no_grad()
    def _at(
        self, last: Float[Tensor, "row position d_model"], inner: Float[Tensor, "row position d_model"] | None
    ) -> Float[Tensor, " row"]:
        """A scope may look at all logits, so only so many rows at a time."""
        size = max(1, _LOGITS // (self.run.host.vocab * len(self.reference)))
        parts = zip(last.split(size), [None] * len(last) if inner is None else inner.split(size), strict=False)
        states = (
            [
                self.run.states(end, x[:, n], {} if y is None else {self.site: y[:, n]})
                for n, end in enumerate(self.reference)
            ]
            for x, y in parts
        )
        return torch.cat([one_per_run(self.quantity(some), len(some[0].y), self.name) for some in states])
