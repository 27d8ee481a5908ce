"""The total over several positions, Σ_p ‖J_pᵀv_p‖², from a few passes whatever their number: Hadamard signs.

Every pass plants all rows at once, each with a sign: X_k = ‖Σ_i s_{k,i} J_iᵀv_i‖² has the total as its mean. A row gets
a column of a Hadamard matrix times a random sign; rows in different columns do not interfere in the mean over k, so
that X̄ is as good as if each column had a pass of its own, while every pass estimates the whole and their scatter is
honest:

    Var X̄ ≈ (1 − K/n) · E[Σ_k (X_k − X̄)²] / (K(K−1))

with the factor of a sample without replacement. Columns are dealt by weight: rows are sorted by their length, and every
K consecutive ones get all K columns, shuffled. K ≥ n is exact: a pass for each row.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_scopes.calculus.question import Asked
from lens_scopes.calculus.trace import Trace
from lens_scopes.results.arguments import Integer, integer
from lens_scopes.scopes.protocol import Scope, cotangents_at, said_by, site_of
from lens_scopes.scopes.state import Cotangents
from lens_scopes.scopes.summands import Summands
from lens_scopes.sites import FINAL

#: Passes of a total where neither the call nor the scope says how many.
PASSES = 16


def passes_of(reduce: str | Integer, scope: Scope) -> int | None:
    """How many passes a total may take: the number given, the scope's own, or 16; None is exact.

    Raises:
        ValueError: a word other than "sum", or less than two passes.
        TypeError: neither a word nor an integer.

    """
    if isinstance(reduce, str):
        if reduce != "sum":
            msg = f"reduce is None, 'sum' or a number of passes, got {reduce!r}; write reduce='sum'"
            raise ValueError(msg)
        return getattr(scope, "passes", PASSES)
    return integer(reduce, "reduce (None, 'sum' or a number of passes; one has no standard error)", 2)


def total(run: Trace, prompt: int, asked: Asked, passes: int | None) -> list[Cotangents]:
    """The cotangents of a total: a single set of sign rows that span the positions, or the rows of each where exact.

    Args:
        run: the forward pass.
        prompt: which prompt of its batch.
        asked: the question; a scope that spans positions is taken apart into what it plants at each.
        passes: how many passes at most, rounded down to a power of two; None for exact.

    """
    parts = _summands(run, prompt, asked.scope, passes)
    sizes = torch.cat([part.size for part in parts])
    scale = float(sizes.max()) or 1.0  # outside of what is pulled back: a sure model's rows are no numbers in float32
    n = len(sizes)

    def made(vectors: Tensor, weight: float, **facts: Any) -> Cotangents:
        weights = vectors.new_full((len(vectors),), weight * scale**2)
        return Cotangents((vectors / scale).to(run.y), weights, squared=True, site=site_of(asked.scope), **facts)

    if passes is None or n <= passes:
        told = {"passes": n, "method": "exact"}
        return [made(part.rows(), 1.0, notes={**part.notes, **told}) for part in parts]
    k = 2 ** (passes.bit_length() - 1)
    signs = deal(sizes, k, _generator(asked)).to(sizes)
    dealt = signs.split([len(part) for part in parts], 1)
    vectors = torch.stack([part.mix(own) for part, own in zip(parts, dealt, strict=True)], 1)
    share = sum(part.notes.get("coverage", 1.0) for part in parts) / len(parts)
    each = [{**part.notes, "passes": k, "method": "estimate"} for part in parts]
    notes = {"each": each, "coverage": share}
    return [made(vectors, 1 / k, probes=k, scatter=(1 - k / n) ** 0.5, notes=notes)]


def deal(size: Float[Tensor, " row"], k: int, generator: torch.Generator) -> Int[Tensor, "pass row"]:
    """The sign of every row in each of k passes: columns of a Hadamard matrix dealt by weight, times random signs."""
    n = len(size)
    order = size.double().cpu().argsort(descending=True, stable=True)
    runs = torch.rand(-(-n // k), k, generator=generator, device="cpu").argsort(
        1
    )  # each run of k in an order of its own
    dealt = runs.flatten()[:n]
    column = torch.empty(n, dtype=torch.long, device="cpu")
    column[order] = dealt
    signs = torch.randint(0, 2, (n,), generator=generator, device="cpu") * 2 - 1
    return hadamard(k)[:, column] * signs


def hadamard(k: int) -> Int[Tensor, "k k"]:
    """Sylvester's matrix of ±1 with orthogonal columns, k a power of two."""
    h = torch.ones(1, 1, dtype=torch.long, device="cpu")
    while len(h) < k:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h


def _summands(run: Trace, prompt: int, scope: Scope, passes: int | None) -> list[Summands]:
    """What the total adds up, by position."""
    states = run.ends(prompt)
    own = said_by(scope, "summands")
    if own is not None:
        return own(states, passes)
    made = cotangents_at(scope, states)
    if made[0].spans:
        (one,) = made
        each = one.notes.get("each") or [{}] * len(states)
        rows = list((one.vectors * one.root_weights().to(one.vectors)[:, None, None]).unbind(1))
    else:
        each = [one.notes for one in made]
        rows = [one.vectors * one.root_weights().to(one.vectors)[:, None] for one in made]
    sizes = _lengths(run, prompt, rows) if made[0].site == FINAL else [None] * len(rows)
    return [Summands.of(part, note, size) for part, note, size in zip(rows, each, sizes, strict=True)]


def _lengths(run: Trace, prompt: int, rows: Sequence[Float[Tensor, "_row d_model"]]) -> list[Float[Tensor, " _row"]]:
    """‖Dᵀv‖ of every row, D = ∂y/∂(the last residual stream) at its own position: the final norm alone."""
    found = [row.new_zeros(len(row)) for row in rows]
    with torch.inference_mode(mode=False):
        for r in range(max(map(len, rows))):
            grid = torch.zeros_like(run.y)
            here = [p for p, row in enumerate(rows) if r < len(row)]
            grid[prompt, here] = torch.stack([rows[p][r] for p in here]).to(grid)
            (back,) = torch.autograd.grad(run.y, run.last, grid, retain_graph=True)
            for p in here:
                found[p][r] = back[prompt, p].norm()
    return found


def _generator(asked: Asked) -> torch.Generator:
    """Random numbers of this seed, text and positions: the same alone and in a batch, on every device."""
    last = max(asked.positions)
    key = (getattr(asked.scope, "seed", 0), asked.positions, *asked.ids[: last + 1].tolist())
    seed = int.from_bytes(hashlib.blake2b(",".join(map(str, key)).encode(), digest_size=7).digest(), "big")
    return torch.Generator("cpu").manual_seed(seed)
