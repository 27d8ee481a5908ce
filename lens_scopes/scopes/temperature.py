"""The Temperature Scope: the sensitivity of the length of the final state (arXiv 2601.16407)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lens_scopes.results.arguments import vector
from lens_scopes.scopes.state import Cotangents, FinalState


@dataclass(frozen=True, eq=False)
class Temperature:
    """Temperature Scope: sensitivity of ‖y‖, the inverse temperature (z = ‖y‖ · W̃ŷ up to b_U). Score ‖J_tᵀŷ‖.

    The paper's scope needs the final norm's weight where the model keeps it: folded into the unembedding, y has a
    constant length, and its sensitivity is rounding noise. Then the weight can be given back.

    Args:
        norm_weight: [d_model], the *effective* multiplier of the folded final norm (Gemma: 1 + the stored weight).
        norm_bias: [d_model], its bias; required with ``norm_weight`` for a LayerNorm model.

    Raises:
        TypeError: a weight or bias that is no numbers.

    Raises (when called):
        ValueError: the final norm is folded or untrained and no weight is given, or a weight is given and it is not.

    """

    norm_weight: Float[Tensor, " d_model"] | Float[np.ndarray, " d_model"] | Sequence[float] | None = None
    norm_bias: Float[Tensor, " d_model"] | Float[np.ndarray, " d_model"] | Sequence[float] | None = None

    def __post_init__(self) -> None:
        """Keep the numbers as tensors."""
        for name in ("norm_weight", "norm_bias"):
            given = getattr(self, name)
            if given is not None:
                object.__setattr__(self, name, vector(given, f"Temperature's {name}", "d_model"))

    def __repr__(self) -> str:
        """Which vectors were given, not the numbers."""
        given = {"norm_weight": self.norm_weight, "norm_bias": self.norm_bias}
        return f"Temperature({', '.join(f'{name}=<{len(x)}>' for name, x in given.items() if x is not None)})"

    def __call__(self, state: FinalState) -> Cotangents:
        """v = ŷ; with the weight w of a folded norm v = w ⊙ ŷ_raw, y_raw = w ⊙ y + b."""
        if self.norm_weight is None and self.norm_bias is None:
            if state.constant_norm:
                raise ValueError(_FOLDED)
            return Cotangents((state.y / state.y.norm())[None])
        weight, bias = self._given(state)
        raw = weight * state.y + bias
        return Cotangents((weight * raw / raw.norm())[None], notes={"norm_weight": "given"})

    def value(self, state: FinalState) -> Float[Tensor, "*run"]:
        """‖y‖, y as it was before the final norm's weight was folded away where that is given."""
        if self.norm_weight is None:
            return state.y.norm(dim=-1)
        weight, bias = self._given(state)
        return (weight * state.y + bias).norm(dim=-1)

    def _given(self, state: FinalState) -> tuple[Tensor, Tensor]:
        if not state.constant_norm:
            msg = (
                "Temperature got norm_weight or norm_bias, but this model's final norm still carries its own; "
                "write ls.Temperature()"
            )
            raise ValueError(msg)
        if self.norm_weight is None or (state.norm_has_bias and self.norm_bias is None):
            missing = "norm_weight" if self.norm_weight is None else "norm_bias"
            msg = (
                f"the folded final norm is a {'LayerNorm' if state.norm_has_bias else 'RMSNorm'}: {missing} is missing;"
                " write ls.Temperature(norm_weight=..., norm_bias=...)"
            )
            raise ValueError(msg)
        weight = cast("Tensor", self.norm_weight)
        bias = torch.zeros_like(weight) if self.norm_bias is None else cast("Tensor", self.norm_bias)
        for name, value in (("norm_weight", weight), ("norm_bias", bias)):
            if value.shape != state.y.shape[-1:]:
                msg = f"{name} has shape {tuple(value.shape)}, the final state {tuple(state.y.shape[-1:])}"
                raise ValueError(msg)
        return weight.to(state.y), bias.to(state.y)


_FOLDED = (
    "the Temperature Scope is the sensitivity of ‖y‖, and this model's final norm makes ‖y‖ constant: its weight is "
    "folded into the unembedding (TransformerLens does this by default), or untrained. Three ways out: (1) load raw "
    "weights: lens_scopes.load(...), HookedTransformer.from_pretrained_no_processing(...), or a TransformerBridge "
    "without enable_compatibility_mode(); (2) give the weight back: Temperature(norm_weight=..., norm_bias=...); "
    "(3) use Fisher(), which folding does not change."
)
