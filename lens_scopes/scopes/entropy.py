"""The entropy scope: how a token moves the model's uncertainty about what comes next."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lens_scopes.scopes.state import Cotangents, FinalState


@dataclass(frozen=True)
class Entropy:
    """Sensitivity of the entropy H(p) = −Σ_w p_w log p_w. Score ‖J_tᵀ ∂H/∂y‖, in nats per unit.

    ∂H/∂z_w = −p_w (log p_w + H), so that v = W̃ᵀ ∂H/∂z. Unlike Temperature it does not depend on whether the final norm
    is folded, and unlike Fisher it has a sign along a direction: whether the model grows surer.

    Example:
        >>> import lens_scopes as ls
        >>> model, case = ls.demo.load(), ls.demo.cases("translation", n=1)[0]
        >>> ls.score(model, case.prompt, ls.Entropy(), along="activation").units
        'signed'

    """

    def __call__(self, state: FinalState) -> Cotangents:
        """v = W̃ᵀ ∂H/∂z, one cotangent."""
        log_p, entropy = self._parts(state)
        vector = state.pull(-log_p.exp() * (log_p + entropy))
        return Cotangents(vector[None], notes={"entropy": float(entropy)})

    def value(self, state: FinalState) -> Float[Tensor, "*run"]:
        """H(p), in nats."""
        return self._parts(state)[1]

    def _parts(self, state: FinalState) -> tuple[Float[Tensor, "*run vocab"], Float[Tensor, "*run"]]:
        log_p = state.logits.double().log_softmax(-1)
        return log_p, torch.special.entr(log_p.exp()).sum(-1)
