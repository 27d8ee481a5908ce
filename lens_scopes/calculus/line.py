"""The straight line between two prompts' embeddings, and the model's runs on it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from lens_scopes.calculus.memory import prompts_at_once
from lens_scopes.calculus.trace import Trace, trace
from lens_scopes.host import Host
from lens_scopes.sites import EMBED

# Points that miss more than this share of the metric's difference are too few to be silent about.
LARGE_GAP = 0.05


def midpoints(steps: int) -> Float[Tensor, " point"]:
    """The middles of so many equal parts of the way from 0 to 1."""
    return (torch.arange(steps, dtype=torch.float64, device="cpu") + 0.5) / steps


@dataclass(frozen=True, eq=False)
class Line:
    """x(α) = start + α · velocity at the embeddings: the first prompt's at α = 0, the second's at α = 1."""

    host: Host
    tokens: Int[Tensor, " pos"]
    """Of the first prompt. They run at every α; what they embed to is replaced."""
    start: Float[Tensor, "pos d_model"]
    velocity: Float[Tensor, "pos d_model"]

    @classmethod
    def between(cls, first: Trace, second: Trace) -> "Line":
        """From runs of one prompt each, of one length, with the embedding open."""
        start, end = (run.sites[EMBED][0].detach() for run in (first, second))
        # Half precision is subtracted in float32.
        work = torch.promote_types(start.dtype, torch.float32)
        return cls(first.host, first.tokens[0], start, (end.to(work) - start.to(work)).to(start))

    @contextmanager
    def at(self, alphas: Float[Tensor, " point"]) -> Iterator[Int[Tensor, "point pos"]]:
        """Runs inside are those at the points; yields the ids to run, a row for each."""
        embeddings = self.start + alphas.to(self.start)[:, None, None] * self.velocity

        def place(activation: Tensor, hook: object) -> Tensor:  # noqa: ARG001 - TransformerLens's signature
            return embeddings.to(activation)

        with self.host.hooks([(EMBED, place)]):
            yield self.tokens.expand(len(alphas), -1)

    def runs(
        self, alphas: Float[Tensor, " point"], sites: Sequence[str], positions: Sequence[int]
    ) -> Iterator[tuple[slice, Trace]]:
        """The runs at the points, as many in a batch as fit: which points, and their trace with the sites open."""
        size = prompts_at_once(self.host, len(self.tokens))
        for begin in tqdm(range(0, len(alphas), size), desc="line", leave=False, disable=len(alphas) <= size):
            some = slice(begin, min(begin + size, len(alphas)))
            with self.at(alphas[some]) as tokens:
                run = trace(self.host, tokens, sites, positions)
            yield some, run
