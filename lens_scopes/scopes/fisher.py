"""The Fisher Scope: how far the whole next-token distribution moves, exactly, at a budget, or truncated.

F = E_{w~p}[g_w g_wᵀ] with g_w = ∂ log p_w/∂y = w̃_w − E_p[w̃]; score_t = tr(J_tᵀ F J_t), because KL ≈ ½ εᵀJᵀFJε
(arXiv 2601.16407, Fisher Scope). Exact, truncated and estimated scores are one computation with other cotangents: rows
V with E[VᵀV] = F. Which rows a budget of n passes is best spent on:

1. k = ⌊n/2⌋ leading eigenvectors of F, each a pass of its own: exact for the part of F that they carry;
2. m = n − k *partition probes* of what is left: every remaining eigenvector is dealt to one probe, in runs of m
   consecutive ones, with a random sign. Signs are independent, so cross terms vanish on average and Σ_j ‖J_tᵀV_j‖² is
   unbiased; two directions interfere only inside one probe.

The eigenvectors are those of F at y. On a real vocabulary F is split into likely words, whose eigenvectors these are,
and all others, which go into the probes one by one: see ``factor``. F is found divided by 1 − p_top, which is a weight
of the cotangents, so that a prediction that is nearly certain keeps its digits.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lens_scopes.results.arguments import Integer, integer
from lens_scopes.scopes.factor import Factored, leading, split, whole
from lens_scopes.scopes.prediction import Prediction
from lens_scopes.scopes.state import Cotangents, FinalState
from lens_scopes.scopes.summands import Summands
from lens_scopes.scopes.sweeps import distances, log_prob_gradients

# Directions that together carry less than this share of tr F are left out of an "exact" sum.
_NOTHING = 1e-9
# Above this vocabulary a total over positions draws from tokens, and forms no F.
_DENSE_UP_TO = 4096
# Tokens that together carry less than this share of tr F have no row of their own in a total.
_LEFT_OUT = 1e-4
# A trace below this has no digits left in float64.
_LEAST_LOG_TRACE = math.log(1e-305)


@dataclass(frozen=True)
class Fisher:
    """Fisher Scope: first-order sensitivity of the next-token distribution. Score tr(J_tᵀFJ_t), squared units.

    Args:
        passes: how many cotangents are pulled back, which is what the scope costs, beside one sweep over the
            unembedding: an unbiased estimate with a standard error per score (exact where so many passes suffice).
            None: exact, up to d_model passes.
        rank: the paper's truncation instead: the k leading eigenvectors of F at y. Biased low. A large vocabulary
            counts with the words that carry 99 % of tr F.
        seed: of the random signs, which depend on (seed, prompt, position) only.

    ``meta["coverage"]`` is the share of tr F that eigenvectors carry. Of a truncation the rest is missing from the
    scores. Of an estimate nothing is: the rest is in its random probes, and how well it is known is ``stderr``.

    The exact score is the same whether the weights are folded or not; a truncation is not, and an estimate differs
    within its error. ``meta["notes"]`` says what was done (see ``results.provenance.Note``). A call raises a ValueError
    where 1 − p is so small that tr F is below 1e-305.

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
        if self.rank is not None:
            made = leading(state, self.rank)
            return _cotangents(made, made.directions[: self.rank], "truncated")
        if self.passes is None:
            made = whole(state)
            return _cotangents(made, made.directions[: _effective_rank(made)], "exact")
        probes = self.passes - self._exact
        generator = self._generator(state)
        made = split(state, self._exact, probes, generator)
        if made.tail <= _NOTHING * made.trace() and (left := _effective_rank(made)) <= self.passes:
            return _cotangents(made, made.directions[:left], "exact")
        kept, rest = made.directions.tensor_split([self._exact])
        slots, signs = _deal(len(rest), probes, generator, rest.device)
        swept = made.rows.swept.to(rest) if made.tail else rest.new_zeros(probes, rest.shape[1])
        return _cotangents(made, kept, "estimate", swept.index_add(0, slots, rest * signs.to(rest)[:, None]))

    def summands(self, states: Sequence[FinalState], passes: int | None) -> list[Summands]:
        """F at every position as rows √λ_i u_i; or, of a large vocabulary of which not all is asked, as √p_w g_w."""
        if passes is not None and self.rank is None and len(states[0].logits) > _DENSE_UP_TO:
            return by_token(states)
        made = [(self if self.rank else Fisher(None))(state) for state in states]
        return [
            Summands.of(one.vectors.double() * one.root_weights().to(one.vectors.device)[:, None], one.notes)
            for one in made
        ]

    @property
    def _exact(self) -> int:
        """How many directions have a pass of their own: half of them, but two probes at least have a scatter."""
        return min((self.passes or 0) // 2, (self.passes or 0) - 2)

    def divergence(self, state: FinalState, reference: FinalState) -> Float[Tensor, "*run"]:
        """KL(p_reference ‖ p), in nats: the form that F is the second order of."""
        before = Prediction.of(reference.logits)
        return Prediction.of(state.logits, before.top).divergence_from(before)

    def _generator(self, state: FinalState) -> torch.Generator:
        """Random numbers of this seed, prompt and position: the same alone and in a batch, on every device."""
        key = ",".join(map(str, (self.seed, state.position, *state.tokens[: state.position + 1])))
        seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest(), "big")
        return torch.Generator().manual_seed(seed)


def by_token(states: Sequence[FinalState]) -> list[Summands]:
    """F = Σ_w p_w g_w g_wᵀ at every position with a row √p_w g_w for each token, by two sweeps over the unembedding.

    Tokens that together carry less than 1e-4 of tr F are left out; ``notes["coverage"]`` says what the others carry.
    """
    tops = [int(state.logits.argmax()) for state in states]
    g_top, _ = log_prob_gradients(states, tops)
    mean = torch.stack([state.rows(top) for state, top in zip(states, tops, strict=True)]) - g_top
    apart = distances(states, mean)
    return [_likely(state, top, g, d) for state, top, g, d in zip(states, tops, g_top, apart, strict=True)]


def _likely(state: FinalState, top: int, g_top: Float[Tensor, " d_model"], apart: Float[Tensor, " vocab"]) -> Summands:
    """The tokens that carry F at one position; ``apart`` is ‖g_w‖², but for the likeliest token's."""
    p = state.probs
    energy = p * apart
    energy[top] = p[top] * g_top.double().square().sum()  # a small difference of large numbers else
    whole = energy.sum()
    order = energy.float().argsort(descending=True)  # which are kept is no matter of digits
    carried = energy[order].cumsum(0)
    kept = order[: int((carried < (1 - _LEFT_OUT) * whole).sum()) + 1]
    roots = p[kept].sqrt()

    def mix(coefficients: Tensor) -> Tensor:
        rows = state.rows(kept).sub_(state.rows(top) - g_top)
        rows[kept == top] = g_top  # which that difference has lost where p is nearly 1
        return ((coefficients * roots).to(rows) @ rows).double()

    return Summands(energy[kept].sqrt(), mix, {"coverage": float(carried[len(kept) - 1] / whole)})


def _effective_rank(made: Factored) -> int:
    """How many directions an exact sum needs."""
    beyond = made.energy.flip(0).cumsum(0).flip(0)
    return max(1, int((beyond > _NOTHING * beyond[0]).sum()))


def _deal(n: int, m: int, generator: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which of m probes each of n directions goes to (every run of m meets every probe once), and its sign."""
    slots = torch.cat([torch.randperm(m, generator=generator, device="cpu") for _ in range(max(1, -(-n // m)))])[:n]
    signs = torch.randint(0, 2, (n,), generator=generator, device="cpu") * 2 - 1
    return slots.to(device), signs.to(device)


def _cotangents(made: Factored, kept: Tensor, method: str, probes: Tensor | None = None) -> Cotangents:
    """Cotangents of trace 1 with the trace of F as their weight.

    Raises:
        ValueError: the trace is too small for float64.

    """
    trace = made.trace()
    notes = {"method": method, "heavy_words": made.heavy, "basis": "y"}
    if not trace:  # all rows of W̃ are equal: no logit moves against another
        return Cotangents(kept[:1].to(made.rows.offset), squared=True, notes={**notes, "coverage": 1.0, "passes": 1})
    log_trace = made.log_rest + math.log(trace)
    if log_trace < _LEAST_LOG_TRACE:
        msg = (
            f"Fisher: the prediction is certain (1 − p = 1e{made.log_rest / math.log(10):.0f}): every score is 0 in "
            "float64; use Semantic or Temperature"
        )
        raise ValueError(msg)
    vectors = (kept if probes is None else torch.cat([kept, probes])).double() / trace**0.5
    share = float(kept.double().square().sum()) / trace
    return Cotangents(
        vectors.to(made.rows.offset),
        torch.full_like(vectors[:, 0], math.exp(log_trace)),
        squared=True,
        probes=0 if probes is None else len(probes),
        notes={**notes, "coverage": share, "passes": len(vectors), "log_trace": log_trace},
    )
