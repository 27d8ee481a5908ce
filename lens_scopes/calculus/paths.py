"""Routes through the heads, searched for from the prediction backwards; their influence is exact.

A route chooses at each block its skip connection (with that block's MLP) or one head. All routes that end with the same
heads share what comes back of the cotangent through those heads: its product with the tangent that arrives there is
their sum. So the search goes over chains of last heads, the strongest first, and what it has not looked into is known
exactly: complete routes + chains left open = the total, wherever it stops.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from lens_scopes.calculus.blocks import Extent
from lens_scopes.calculus.branches import Branches
from lens_scopes.calculus.directions import directions, lengths
from lens_scopes.calculus.finite import refuse_nonfinite
from lens_scopes.calculus.memory import lanes_at_once
from lens_scopes.calculus.pushforward import push_forward
from lens_scopes.calculus.trace import Trace
from lens_scopes.scopes.state import Cotangents
from lens_scopes.sites import EMBED, HEADS, STREAM

if TYPE_CHECKING:
    import pandas as pd

# Chains looked into together: more share the work of a pass, fewer are chosen knowing more.
_TOGETHER = 8
_FIRST = STREAM["resid_pre"].format(0)


@dataclass(frozen=True, eq=False)
class _Chain:
    """All routes whose last heads are these: their summed influence, and what is needed to tell them apart."""

    heads: tuple[tuple[int, int], ...]
    """(layer, head), in the order in which they are passed."""
    influence: float
    cotangent: Float[Tensor, "row pos d_head"] | None = None
    """What comes back to the first head's z; None of a complete route, and of all routes together."""


@dataclass(eq=False)
class _Agenda:
    """Chains to look into, the strongest first, within a budget; nothing is lost that is not looked into."""

    left: int
    waiting: list[_Chain]
    complete: list[_Chain] = field(default_factory=list)
    closed: float = 0.0
    """The influence of chains that nobody will look into."""

    def next(self) -> list[_Chain]:
        """Those to look into now."""
        chosen = self.waiting[: min(_TOGETHER, self.left)]
        self.waiting = self.waiting[len(chosen) :]
        self.left -= len(chosen)
        return chosen

    def add(self, found: Sequence[_Chain]) -> None:
        """Longer chains; only as many are kept as may still be looked into."""
        ranked = _ranked([*self.waiting, *found])
        self.waiting = ranked[: self.left]
        self.closed += sum(chain.influence for chain in ranked[self.left :])


@dataclass(frozen=True, eq=False)
class Routes:
    """The routes of one prompt on the graph of one forward pass, which lives as long as this object does."""

    run: Trace
    branches: Branches
    end: Float[Tensor, "row pos d_model"]
    """The cotangents where the last block's part ends."""
    starts: Float[Tensor, "row pos d_model"]
    """The tangents at the embedding; row r goes with cotangent r, and rows are summed."""
    total: float

    @classmethod
    def of(cls, run: Trace, made: Cotangents, sources: Sequence[int]) -> "Routes":
        """By one backward pass on a trace whose ``Extent.branches`` are open.

        Args:
            run: the forward pass of one prompt.
            made: the cotangents.
            sources: the positions that routes start from, together.

        """
        branches = Branches(run, Extent.of(run.host, made.site))
        end = branches.end(made)
        g = branches.at_embedding(end)
        refuse_nonfinite(run.host, run.tokens, {EMBED: g})
        starts = directions(made, slice(None), g, sources, lengths(run, made)).sum(1)
        return cls(run, branches, end, starts.to(run.y.dtype), float((g.double() * starts).sum()))

    def orders(self, most: int) -> "pd.DataFrame":
        """See ``Flow.orders``: lane k carries what comes back through k heads, the last lane all that is more."""
        branches, lanes, layers = self.branches, self.end[None], self.branches.extent.layers
        for layer in reversed(range(layers)):
            past, heads = branches.split(layer, lanes)
            lanes = torch.cat([past, torch.zeros_like(past[:1])])
            lanes[1:] += branches.into(layer, heads)
            if len(lanes) > most + 1:
                lanes = torch.cat([lanes[:most], lanes[most:].sum(0, keepdim=True)])
        arrived = self._pushed([_FIRST])[_FIRST]
        influence = torch.einsum("orpd,rpd->o", lanes.double(), arrived.double())
        names = [str(k) for k in range(len(influence))]
        if most < layers:
            names[-1] += " or more"
        return _frame("heads", names, influence.tolist(), self.total)

    def strongest(self, k: int, budget: int) -> "pd.DataFrame":
        """See ``Flow.paths``."""
        agenda = _Agenda(budget, [_Chain((), self.total)])
        while chosen := agenda.next():
            self._look_into(chosen, agenda)
        complete = _ranked(agenda.complete)
        rest = agenda.closed + sum(chain.influence for chain in complete[k:])
        names = [*(_text(chain) for chain in complete[:k]), "rest"]
        return _frame("path", names, [*(chain.influence for chain in complete[:k]), rest], self.total)

    def _look_into(self, chosen: Sequence[_Chain], agenda: _Agenda) -> None:
        """Every chain that is one head longer, and each chosen one as a complete route, straight from the source."""
        branches, layers = self.branches, self.branches.extent.layers
        inside: list[_Chain] = []
        g = self.end.new_zeros(0, *self.end.shape)
        for boundary in range(layers, -1, -1):
            entering = [chain for chain in chosen if (chain.heads[0][0] if chain.heads else layers) == boundary]
            if entering:
                inside += entering
                g = torch.cat([g, *self._before(boundary, entering)])
            if boundary and inside:
                g, heads = branches.split(boundary - 1, g)
                agenda.add(list(self._longer(inside, boundary - 1, heads)))
        influence = torch.einsum("crpd,rpd->c", g.double(), self._arrived[_FIRST].double())
        agenda.complete += [_Chain(chain.heads, part) for chain, part in zip(inside, influence.tolist(), strict=True)]

    def _before(self, boundary: int, chains: Sequence[_Chain]) -> Iterator[Float[Tensor, "chain row pos d_model"]]:
        """What comes back of the cotangent through the first heads of chains, to the input of their block."""
        cotangents = [chain.cotangent for chain in chains if chain.cotangent is not None]
        if len(cotangents) < len(chains):
            yield self.end[None]
        if cotangents:
            z = self.run.sites[HEADS["z"].format(boundary)]
            heads = z.new_zeros(len(cotangents), len(self.end), *z.shape[1:])
            for lane, chain, cotangent in zip(heads, chains, cotangents, strict=True):
                lane[:, :, chain.heads[0][1]] = cotangent
            yield self.branches.into(boundary, heads)

    def _longer(
        self, chains: Sequence[_Chain], layer: int, heads: Float[Tensor, "chain row pos head d_head"]
    ) -> Iterator[_Chain]:
        arrived = self._arrived[HEADS["z"].format(layer)].double()
        influence = torch.einsum("crphd,rphd->ch", heads.double(), arrived).tolist()
        for chain, back, parts in zip(chains, heads, influence, strict=True):
            for head, part in enumerate(parts):
                # A copy: a view would keep those of all heads.
                yield _Chain(((layer, head), *chain.heads), part, back[:, :, head].clone())

    @cached_property
    def _arrived(self) -> Mapping[str, Float[Tensor, "row pos ..."]]:
        """The tangents at the first block's input and at every z."""
        return self._pushed([_FIRST, *(HEADS["z"].format(layer) for layer in range(self.branches.extent.layers))])

    def _pushed(self, sites: Sequence[str]) -> dict[str, Float[Tensor, "row pos ..."]]:
        parts = [
            push_forward(
                self.run.host, self.run.tokens[0], EMBED, rows, position=self.run.positions[0], sites=sites,
                hooks=self.run.held, until=sites[-1],
            ).visitor.at
            for rows in self.starts.split(lanes_at_once(self.run))
        ]  # fmt: skip
        shapes = {name: self.run.sites[name].shape[1:] for name in sites}  # some hosts join the heads of z
        return {name: torch.cat([part[name] for part in parts]).reshape(-1, *shapes[name]) for name in sites}


def _ranked(chains: Sequence[_Chain]) -> list[_Chain]:
    return sorted(chains, key=lambda chain: -abs(chain.influence))


def _frame(name: str, labels: Sequence[str], influence: Sequence[float], total: float) -> "pd.DataFrame":
    import pandas as pd

    share = [part / total if total else 0.0 for part in influence]
    return pd.DataFrame({name: labels, "influence": influence, "share": share})


def _text(chain: _Chain) -> str:
    return " → ".join(["source", *(f"{layer}.{head}" for layer, head in chain.heads), "prediction"])
