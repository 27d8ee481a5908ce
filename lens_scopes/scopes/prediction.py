"""A distribution over words as its likeliest and the rest, in log space: digits also where p_top rounds to 1."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Prediction:
    """A distribution over words, apart from its likeliest."""

    top: int
    log_rest: Float[Tensor, "*run"]
    """log ρ = log(1 − p_top)."""
    log_top: Float[Tensor, "*run"]
    """log p_top: −ρ where that is small, not 0."""
    log_others: Float[Tensor, "*run vocab"]
    """log q, which sums to 1; −inf at top."""

    @classmethod
    def of(cls, logits: Float[Tensor, "*run vocab"], top: int | None = None) -> "Prediction":
        """From logits; apart from another word than the likeliest (of several runs, one's) where ``top`` names it."""
        top = int(logits.argmax()) % logits.shape[-1] if top is None else top
        above = logits.double() - logits.double()[..., top, None]
        above[..., top] = -torch.inf
        odds = above.logsumexp(-1)
        softplus = torch.nn.functional.softplus
        return cls(top, -softplus(-odds), -softplus(odds), above - odds[..., None])

    def entropy(self) -> Float[Tensor, "*run"]:
        """H(p) = H(p_top, ρ) + ρ H(q), in nats."""
        of_others = -(self.log_others.exp() * self.finite_log_others()).sum(-1)
        return self.log_rest.exp() * (of_others - self.log_rest) - self.log_top.exp() * self.log_top

    def finite_log_others(self) -> Float[Tensor, "*run vocab"]:
        """log q with 0 where q is 0: q log q, and its gradient, are no NaN there."""
        return self.log_others.nan_to_num(neginf=0.0)

    def divergence_from(self, reference: "Prediction") -> Float[Tensor, "*run"]:
        """KL(reference ‖ self) in nats, of two that are apart from the same word: KL of (p_top, ρ) + ρ KL of q."""
        rest = reference.log_rest.exp()
        q = reference.log_others.exp()
        apart = (q * (reference.log_others - self.log_others)).nan_to_num(nan=0.0).sum(-1)
        one_of_two = (reference.log_top - self.log_top) * reference.log_top.exp()
        return rest * (reference.log_rest - self.log_rest + apart) + one_of_two
