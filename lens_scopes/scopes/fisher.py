"""The Fisher Scope: how far the whole next-token distribution moves, exactly, at a budget, or truncated.

F = E_{w~p}[g_w g_wᵀ] with g_w = ∂ log p_w/∂y = w̃_w − E_p[w̃]; score_t = tr(J_tᵀ F J_t), because KL ≈ ½ εᵀJᵀFJε
(arXiv 2601.16407, Fisher Scope). Exact, truncated and estimated scores are one computation with other cotangents: rows
V with E[VᵀV] = F. Which rows a budget of n passes is best spent on:

1. k = ⌊n/2⌋ leading eigenvectors of F, each a pass of its own: exact for the part of F that they carry;
2. m = n − k *partition probes* of what is left: every remaining eigenvector is dealt to one probe, in runs of m
   consecutive ones, with a random sign. Signs are independent, so cross terms vanish on average and Σ_j ‖J_tᵀV_j‖² is
   unbiased; two directions interfere only inside one probe.

The eigenvectors are taken at x, the last residual stream before the final norm (F_x = DᵀFD, D = ∂y/∂x): the same
scores, less scatter, and an estimate that does not depend on whether the norm's weight is folded.

F is never formed as S − μμᵀ: the difference loses all its digits when the model is confident. Rows are centred first.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lens_scopes.results.given import Integer, integer
from lens_scopes.scopes.state import Cotangents, FinalState

# Directions that together carry less than this share of tr F are left out of an "exact" sum.
_NOTHING = 1e-9
# Above this width the d x d matrix is not formed (benchmarks/fisher_spectrum.py); the subspace is found matrix-free.
_DENSE_UP_TO = 4096
_OVERSAMPLE, _ITERATIONS = 8, 4


@dataclass(frozen=True)
class Fisher:
    """Fisher Scope: first-order sensitivity of the next-token distribution. Score tr(J_tᵀFJ_t), squared units.

    Args:
        passes: how many cotangents are pulled back, which is what the scope costs: an unbiased estimate with a standard
            error per score (exact where so many passes suffice). None: exact, up to d_model passes.
        rank: the paper's truncation instead: the k leading eigenvectors of F at y. Biased low; the share of tr F it
            carries is in ``meta["coverage"]``. It depends on whether the weights are folded, the other two do not.
        seed: of the random signs, which depend on (seed, prompt, position) only.

    Raises:
        ValueError: passes below 2 or rank below 1.
        TypeError: no integers.

    """

    passes: int | None = 16
    rank: int | None = None
    seed: int = 0

    def __init__(self, passes: Integer | None = 16, *, rank: Integer | None = None, seed: Integer = 0) -> None:
        """See the class."""
        if rank is not None:
            rank = integer(rank, "Fisher's rank (it counts eigenvectors)", 1)
        if passes is not None:
            passes = integer(passes, "Fisher's passes (None for the exact score; one has no standard error)", 2)
        object.__setattr__(self, "passes", None if rank else passes)
        object.__setattr__(self, "rank", rank)
        object.__setattr__(self, "seed", integer(seed, "Fisher's seed"))

    def __repr__(self) -> str:
        """As it is written, without what does not matter."""
        if self.rank:
            return f"Fisher(rank={self.rank})"
        return f"Fisher(passes={self.passes})" if not self.seed else f"Fisher(passes={self.passes}, seed={self.seed})"

    def __call__(self, state: FinalState) -> Cotangents:
        """Rows V with E[VᵀV] = F, or its truncation."""
        passes = self.rank or self.passes
        if passes is not None and len(state.y) > _DENSE_UP_TO:
            return self._matrix_free(state, passes)
        fisher = fisher_matrix(state)
        if self.passes is None:
            rows, energy = _factor(fisher)
            kept = self.rank or _effective_rank(energy)
            return _cotangents(state, rows[:kept], energy[:kept].sum() / energy.sum(), exact=self.rank is None)
        rows, energy = _factor_at_last_residual(fisher, state.norm_jacobian().double())
        kept, left = self.passes // 2, _effective_rank(energy)
        if left <= self.passes:
            return _cotangents(state, rows[:left], energy[:left].sum() / energy.sum(), exact=True)
        slots, signs = _deal(len(rows) - kept, self.passes - kept, self._generator(state), rows.device)
        probes = rows.new_zeros(self.passes - kept, rows.shape[1])
        probes.index_add_(0, slots, rows[kept:] * signs.to(rows)[:, None])
        return _cotangents(state, rows[:kept], energy[:kept].sum() / energy.sum(), probes)

    def divergence(self, state: FinalState, reference: FinalState) -> Float[Tensor, "*run"]:
        """KL(p_reference ‖ p), in nats: the form that F is the second order of."""
        p = reference.probs
        return (p * (p.log() - state.logits.double().log_softmax(-1))).nan_to_num().sum(-1)

    def _matrix_free(self, state: FinalState, passes: int) -> Cotangents:
        """The same without F: F = BᵀQQᵀB + Bᵀ(1 − QQᵀ)B holds for every orthonormal Q [vocab, k], B = √p ⊙ g.

        So an inexact leading subspace costs scatter, never a bias. The remainder is probed in vocabulary space: each
        token, in descending order of what it carries, is dealt to one probe and projected off Q.
        """
        factor = CentredRows.of(state)
        exact = self.rank or passes // 2
        generator = self._generator(state)
        inside = torch.linalg.qr(factor.times(_leading_subspace(factor, exact, generator))).Q
        rows = factor.transposed(inside)
        share = rows.square().sum() / factor.energy.sum()
        if self.rank:
            return _cotangents(state, rows, share)
        order = factor.energy.argsort(descending=True)
        slots, signs = _deal(len(order), passes - exact, generator, order.device)
        in_vocabulary = rows.new_zeros(len(order), passes - exact)
        in_vocabulary[order, slots] = signs.to(rows)
        probes = factor.transposed(in_vocabulary - inside @ (inside.T @ in_vocabulary))
        return _cotangents(state, rows, share, probes)

    def _generator(self, state: FinalState) -> torch.Generator:
        """Random numbers of this seed, prompt and position: the same alone and in a batch, on every device."""
        key = ",".join(map(str, (self.seed, state.position, *state.tokens[: state.position + 1])))
        seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest(), "big")
        return torch.Generator().manual_seed(seed)


@dataclass(frozen=True, eq=False)
class CentredRows:
    """The factor B [vocab, d_model] of F = BᵀB, row w = √p_w g_w, as products that never hold it whole."""

    state: FinalState
    root_p: Float[Tensor, " vocab"]
    mean: Float[Tensor, " d_model"]
    energy: Float[Tensor, " vocab"]
    """p_w‖g_w‖², what each token carries of tr F."""

    @classmethod
    def of(cls, state: FinalState) -> "CentredRows":
        """Mean and energies in two sweeps over the vocabulary."""
        p = state.probs.to(state.y.dtype)
        # The mean as a step away from the likeliest token's row: exact digits also where p is nearly 1 there.
        top = state.rows(int(p.argmax()))
        mean = top + sum(p[which] @ (rows - top) for which, rows in state.chunks())
        energy = torch.cat([p[which] * (rows - mean).square().sum(-1) for which, rows in state.chunks()])
        return cls(state, p.sqrt(), mean, energy)

    def chunks(self) -> Iterator[tuple[slice, Float[Tensor, "rows d_model"]]]:
        """Rows of B, centred before they are weighted."""
        for which, rows in self.state.chunks():
            yield which, (rows - self.mean) * self.root_p[which, None]

    def times(self, right: Float[Tensor, "d_model k"]) -> Float[Tensor, "vocab k"]:
        """B @ right."""
        return torch.cat([rows @ right for _, rows in self.chunks()])

    def transposed(self, right: Float[Tensor, "vocab k"]) -> Float[Tensor, "k d_model"]:
        """(Bᵀ @ right)ᵀ."""
        return sum((right[which].T @ rows for which, rows in self.chunks()), right.new_zeros(()))


def fisher_matrix(state: FinalState) -> Float[Tensor, "d_model d_model"]:
    """F = E_{w~p}[g_w g_wᵀ] at y, accumulated over the vocabulary in float64.

    Equivalent to ``W.T @ (diag(p) - outer(p, p)) @ W`` with W = ``state.unembed``, without its cancellation.
    """
    d_model = len(state.y)
    fisher = state.y.new_zeros(d_model, d_model, dtype=torch.float64)
    for _, rows in CentredRows.of(state).chunks():
        fisher += rows.T @ rows
    return fisher


def _factor(fisher: Float[Tensor, "d d"]) -> tuple[Float[Tensor, "d d"], Float[Tensor, " d"]]:
    """Rows √λ_i u_i of a positive matrix and their λ_i, descending; rounding below zero is cut."""
    energy, vectors = torch.linalg.eigh(fisher)
    energy = energy.clamp(min=0)
    return (vectors * energy.sqrt()).T.flip(0), energy.flip(0)


def _factor_at_last_residual(
    fisher: Float[Tensor, "d d"], jacobian: Float[Tensor, "d d"]
) -> tuple[Float[Tensor, "r d"], Float[Tensor, " r"]]:
    """Rows V at y whose images VD are √λ_i u_i for the eigenpairs of DᵀFD: V_i = F D u_i / √λ_i; and the λ_i.

    Signs are fixed (the largest component of u_i is positive), so that random signs mean the same on every machine.
    """
    half = fisher @ jacobian
    energy, vectors = torch.linalg.eigh(jacobian.T @ half)
    kept = energy > energy[-1] * 1e-13
    energy, vectors = energy[kept].flip(0), vectors[:, kept].flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return (half @ (vectors * largest.sign()) / energy.sqrt()).T, energy


def _effective_rank(energy: Float[Tensor, " d"]) -> int:
    """How many leading eigenvalues carry all of the trace but a share that is rounding noise; at least one."""
    tail = energy.flip(0).cumsum(0).flip(0)
    return max(1, int((tail > _NOTHING * energy.sum()).sum()))


def _leading_subspace(factor: CentredRows, k: int, generator: torch.Generator) -> Float[Tensor, "d_model k"]:
    """Approximate leading eigenvectors of F by block subspace iteration with products alone."""
    d_model = len(factor.mean)
    width = min(k + _OVERSAMPLE, d_model)
    block = torch.randn(d_model, width, generator=generator, device="cpu").to(factor.mean)
    for _ in range(_ITERATIONS):
        block = factor.transposed(factor.times(torch.linalg.qr(block).Q)).T
    basis = torch.linalg.qr(block).Q
    seen = factor.times(basis)
    return basis @ torch.linalg.eigh(seen.T @ seen).eigenvectors.flip(1)[:, :k]


def _deal(n: int, m: int, generator: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which of m probes each of n directions goes to (every run of m meets every probe once), and its sign."""
    slots = torch.cat([torch.randperm(m, generator=generator, device="cpu") for _ in range(-(-n // m))])[:n]
    signs = torch.randint(0, 2, (n,), generator=generator, device="cpu") * 2 - 1
    return slots.to(device), signs.to(device)


def _cotangents(
    state: FinalState, rows: Tensor, share: Tensor, probes: Tensor | None = None, *, exact: bool = False
) -> Cotangents:
    vectors = rows if probes is None else torch.cat([rows, probes])
    method = "exact" if exact else "truncated" if probes is None else "estimate"
    return Cotangents(
        vectors.to(state.y.dtype),
        squared=True,
        probes=0 if probes is None else len(probes),
        notes={"method": method, "coverage": float(share), "passes": len(vectors)},
    )
