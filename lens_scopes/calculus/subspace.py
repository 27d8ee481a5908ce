"""The largest singular triplets of a matrix that is only multiplied: a block Krylov method (Musco & Musco 2015)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

# Vectors beside those asked for: a block converges as fast as the gap behind its last one is wide.
_BESIDE = 6


class Triplets(NamedTuple):
    """J ≈ Σ_i S_i U_i V_iᵀ."""

    U: Float[Tensor, "k out"]
    S: Float[Tensor, " k"]
    V: Float[Tensor, "k in"]
    residual: Float[Tensor, " k"]
    """‖J V_i − S_i U_i‖ / S_0; U_iᵀJ = S_i V_iᵀ holds by construction."""


def largest(
    pull: Callable[[Tensor], Tensor], push: Callable[[Tensor], Tensor], size: int, k: int, tol: float
) -> Triplets:
    """The k largest, from products with whole blocks of vectors.

    With an orthonormal basis K of a part of the output space, UᵀJ = S Vᵀ holds for the singular vectors of KᵀJ; what
    J V has outside of K is by how much they are wrong, and enlarges K. When K is half of the space the rest is added.

    Args:
        pull: [n, size] -> [n, in], rows times J.
        push: [n, in] -> [n, size], J times rows.
        size: of the output space.
        k: how many.
        tol: the largest residual, of the largest singular value.

    """
    generator = torch.Generator().manual_seed(0)  # the global one stays untouched
    width = min(k + _BESIDE, size)
    basis = torch.linalg.qr(torch.randn(size, width, generator=generator, dtype=torch.float64, device="cpu"))[0].T
    pulled = pull(basis)
    while True:
        u, s, v = torch.linalg.svd(pulled, full_matrices=False)
        u, s, v = u.T[:width] @ basis, s[:width], v[:width]
        if len(basis) == size:
            return Triplets(u[:k], s[:k], v[:k], torch.zeros(k, dtype=torch.float64, device="cpu"))
        wrong = push(v) - s[:, None] * u
        residual = wrong[:k].norm(dim=-1) / s[0].clamp(min=1e-300)
        if float(residual.max()) <= tol:
            return Triplets(u[:k], s[:k], v[:k], residual)
        more = wrong if 2 * (len(basis) + width) <= size else torch.eye(size, dtype=torch.float64, device="cpu")
        added = _outside(more, basis)
        if not len(added):
            return Triplets(u[:k], s[:k], v[:k], residual)
        basis, pulled = torch.cat([basis, added]), torch.cat([pulled, pull(added)])


def _outside(vectors: Float[Tensor, "n size"], basis: Float[Tensor, "m size"]) -> Float[Tensor, "r size"]:
    """An orthonormal basis of what the vectors have outside of a basis; twice, since once leaves rounding."""
    for _ in range(2):
        vectors = vectors - (vectors @ basis.T) @ basis
    found, length, _ = torch.linalg.svd(vectors.T, full_matrices=False)
    kept = found[:, length > 1e-12 * length[0].clamp(min=1e-300)].T[: basis.shape[1] - len(basis)]
    kept = kept - (kept @ basis.T) @ basis
    return torch.linalg.qr(kept.T)[0].T
