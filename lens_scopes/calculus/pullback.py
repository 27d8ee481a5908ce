"""Batched vector-Jacobian products: every cotangent pulled back to every open site, chunk by chunk."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lens_scopes.calculus.memory import rows_at_once
from lens_scopes.calculus.reach import refuse_lost
from lens_scopes.calculus.trace import Trace
from lens_scopes.scopes.state import Cotangents


@dataclass(frozen=True, eq=False)
class Rows:
    """Cotangents of several prompts and positions, laid out for one output tensor [batch, position, d_model].

    Prompts do not mix, so row r of every prompt is pulled back at the same time; positions of one prompt do: either
    each has rows of its own, or a row has a vector at every position.
    """

    vectors: tuple[Tensor, ...]
    """By prompt, [rows, d_model] or [rows, position, d_model]; each has as many rows as it needs, and shorter ones are
    padded with zero rows."""
    position: tuple[tuple[int, ...] | None, ...]
    """By prompt and row, the index of the position; None for rows that span positions."""

    @classmethod
    def of(cls, cotangents: Sequence[Sequence[Cotangents]]) -> "Rows":
        """From cotangents by prompt, and by position where rows do not span them."""
        return cls(
            tuple(
                torch.cat([c.vectors for c in row]) if row else torch.empty(0, 0, device="cpu") for row in cotangents
            ),
            tuple(
                None if row and row[0].spans else tuple(n for n, c in enumerate(row) for _ in range(len(c.vectors)))
                for row in cotangents
            ),
        )

    def __len__(self) -> int:
        """How many passes the longest prompt needs."""
        return max(map(len, self.vectors))

    def at(
        self, rows: slice, output: Float[Tensor, "batch position d_model"]
    ) -> Float[Tensor, "rows batch position d_model"]:
        """Those rows as cotangents of the output tensor, zero but at their own positions."""
        chunk = range(*rows.indices(len(self)))
        grid = output.new_zeros(len(chunk), *output.shape)
        for b, (vectors, position) in enumerate(zip(self.vectors, self.position, strict=True)):
            mine = [r for r in chunk if r < len(vectors)]
            if not mine:
                continue
            here = [r - chunk.start for r in mine]
            at = slice(None) if position is None else [position[r] for r in mine]
            grid[here, b, at] = vectors[mine].to(output.dtype)
        return grid


def pull_back(run: Trace, rows: Rows, site: str) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """Jᵀv for all rows at all open sites of the trace, from cotangents at ``site``; zero where nothing flows.

    A site before ``site`` that no gradient comes back to is warned of or refused (``reach.refuse_lost``).

    Yields runs of rows with, by site name, gradients [row, batch, pos, ...] in the model's dtype. The caller reduces
    them at once: gradients of all sites and rows never exist together.
    """
    output = run.output(site)
    size = rows_at_once(run, len(rows))
    for start in range(0, len(rows), size):
        chunk = slice(start, min(start + size, len(rows)))
        found, unreached = vjp(run, output, rows.at(chunk, output), tuple(run.handles))
        if start == 0:
            refuse_lost(run.host, unreached, site, {name for name, _ in run.held})
        yield chunk, found


def vjp(
    run: Trace, output: Float[Tensor, "batch ..."], cotangents: Float[Tensor, "row batch ..."], sites: Sequence[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """One step of a chain rule: cotangents of any tensor of the trace pulled back to some of its sites.

    By site name, gradients [row, batch, pos, ...], zero where nothing flows; and the sites that nothing comes back to.
    """
    found, unreached = {}, []
    for name, got in zip(sites, _vjp(output, [run.handles[name] for name in sites], cotangents), strict=True):
        unreached += [name] if got is None else []
        zero = run.sites[name].new_zeros(()).expand(len(cotangents), *run.sites[name].shape)
        found[name] = zero if got is None else got
    return found, unreached


def _vjp(output: Tensor, inputs: list[Tensor], cotangents: Tensor) -> tuple[Tensor | None, ...]:
    """One backward for all rows; one for each where an operation of the model cannot be batched."""
    if not output.requires_grad:
        return (None,) * len(inputs)

    def single(row: Tensor) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(output, inputs, row, retain_graph=True, allow_unused=True)

    with torch.inference_mode(mode=False):
        if len(cotangents) > 1:
            try:
                return torch.autograd.grad(
                    output, inputs, cotangents, retain_graph=True, allow_unused=True, is_grads_batched=True
                )
            except (RuntimeError, NotImplementedError) as failure:
                if isinstance(failure, torch.OutOfMemoryError):
                    raise
        by_row = [single(row) for row in cotangents]
        return tuple(None if g[0] is None else torch.stack(g) for g in zip(*by_row, strict=True))
