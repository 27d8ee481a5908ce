"""Effects of patches from the straight line between two prompts' embeddings: secants of the activations along it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lens_scopes.calculus.line import Line, midpoints
from lens_scopes.calculus.pair import Pair
from lens_scopes.calculus.trace import Trace
from lens_scopes.patching.contract import contract, gradients, wide
from lens_scopes.scopes.protocol import cotangents_at
from lens_scopes.sites import EMBED

# Intervals at first, and at most: nothing but the gap decides in between, and a path of 16 left none of 25 pairs open.
_FEWEST, _MOST = 2, 32


@dataclass(eq=False)
class Path:
    """What has been run of a path: activations and gradients of every open site, at equidistant points."""

    pair: Pair
    corrupted: Trace
    clean: Trace
    """The ends, with every site of the path open, the embedding among them."""
    found: dict[float, tuple[Mapping[str, Tensor], Mapping[str, Tensor]]] = field(default_factory=dict)
    """By α: the activations and the gradients, by site, each [pos(, head), d]."""

    def run(self, difference: float, tol: float, intervals: int | None) -> float:
        """Run points, twice as many intervals each time, until they sum to the metric's difference at the embedding.

        Args:
            difference: of the metric, between the ends.
            tol: how much of it may be missed.
            intervals: so many, whatever they miss.

        Returns:
            What they miss.

        """
        line = Line.between(self.corrupted, self.clean)
        for alpha, end in ((0.0, self.corrupted), (1.0, self.clean)):
            self._keep([alpha], end)
        n = intervals or _FEWEST
        while True:
            new = [i / n for i in range(n + 1) if i / n not in self.found]
            alphas = torch.tensor(new, dtype=torch.float64, device="cpu")
            for some, run in line.runs(alphas, list(self.corrupted.sites), self.pair.positions):
                self._keep(new[some], run)
            gap = difference - float(self.estimates(EMBED)["path"].double().sum())
            if intervals or abs(gap) <= tol * abs(difference) or n >= _MOST:
                return gap
            n *= 2

    def _keep(self, alphas: list[float], run: Trace) -> None:
        made = [cotangents_at(self.pair.scope, run.ends(b))[0] for b in range(len(alphas))]
        g = gradients(run, made)
        for b, alpha in enumerate(alphas):
            at = {name: wide(run.sites[name][b].detach()) for name in g}
            self.found[alpha] = (at, {name: rows[b] for name, rows in g.items()})

    def estimates(self, site: str) -> dict[str, Tensor]:
        """Each predictor's effects at the places of a site, [pos(, head)]; 0 where a patch changes nothing."""
        activations, slopes = (
            torch.stack([self.found[alpha][n][site] for alpha in sorted(self.found)]) for n in (0, 1)
        )
        change = activations[-1] - activations[0]
        between = (slopes[1:] + slopes[:-1]) / 2
        found = {
            "gradient": (slopes[0] * change).sum(-1),
            "clean_gradient": (slopes[-1] * change).sum(-1),
            "fixed": (between.mean(0) * change).sum(-1),
            "path": (between * activations.diff(dim=0)).sum(-1).sum(0),
        }
        return {name: torch.where(change.any(-1), effects, 0).cpu() for name, effects in found.items()}


def fixed(pair: Pair, line: Line, change: Mapping[str, Tensor], steps: int) -> dict[str, Tensor]:
    """⟨mean gradient over midpoints of the line, Δa⟩, each site with its own whole change: [row, pos(, head)]."""
    total = dict.fromkeys(change, torch.zeros((), device="cpu"))
    for _, run in line.runs(midpoints(steps), [*change, *pair.inner(list(change))], pair.positions):
        made = [cotangents_at(pair.scope, run.ends(b))[0] for b in range(len(run.tokens))]
        for name, rows in contract(run, made, change).items():
            total[name] = total[name] + rows.sum(0)
    return {name: rows / steps for name, rows in total.items()}
