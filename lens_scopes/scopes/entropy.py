"""The entropy scope: how a token moves the model's uncertainty about what comes next."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from lens_scopes.scopes.prediction import Prediction
from lens_scopes.scopes.state import NO_LENGTH, Cotangents, FinalState


@dataclass(frozen=True)
class Entropy:
    """Sensitivity of the entropy H(p) = −Σ_w p_w log p_w. Score ‖J_tᵀ ∂H/∂y‖, in nats per unit.

    ∂H/∂z_w = −p_w (log p_w + H), so that v = W̃ᵀ ∂H/∂z. Unlike Temperature it does not depend on whether the final norm
    is folded, and unlike Fisher it has a sign along a direction: whether the model grows surer.

    p is taken apart into its likeliest word and the rest, in log space: a prediction that is nearly certain keeps its
    digits. One that is certain to 1e-30 raises ValueError.

    Example:
        >>> import lens_scopes as ls
        >>> model, case = ls.demo.load(), ls.demo.cases("translation", n=1)[0]
        >>> ls.score(model, case.prompt, ls.Entropy(), along="activation").units
        'signed'

    """

    def __call__(self, state: FinalState) -> Cotangents:
        """v = W̃ᵀ ∂H/∂z, one cotangent."""
        made = Prediction.of(state.logits)
        entropy = made.entropy()
        if made.log_rest < math.log(NO_LENGTH):
            msg = (
                f"Entropy: the prediction is certain (1 − p = 1e{float(made.log_rest) / math.log(10):.0f}): its "
                "entropy cannot move; use Semantic or Temperature"
            )
            raise ValueError(msg)
        rest = made.log_rest.exp()
        # Everything is of the order of ρ = 1 − p_top: found divided by it, which is the cotangent's weight.
        slope = -made.log_others.exp() * (made.log_rest + made.finite_log_others() + entropy)
        slope[made.top] = -made.log_top.exp() * (made.log_top + entropy) / rest
        return Cotangents(state.pull(slope)[None], rest[None] ** 2, notes={"entropy": float(entropy)})

    def value(self, state: FinalState) -> Float[Tensor, "*run"]:
        """H(p), in nats."""
        return Prediction.of(state.logits).entropy()
