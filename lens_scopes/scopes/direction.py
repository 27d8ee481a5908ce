"""Direction: the sensitivity of a fixed vector's inner product with the stream: a probe, a feature's encoder row."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import Float
from torch import Tensor

from lens_scopes.results.arguments import vector
from lens_scopes.scopes.state import Cotangents, FinalState
from lens_scopes.sites import FINAL, one


@dataclass(frozen=True, eq=False)
class Direction:
    """A fixed vector: a probe, a steering vector, the *encoder* row of an SAE feature. Score ‖J_tᵀ vector‖.

    Args:
        vector: [d_model], a tensor, array or list of numbers, used as it is (it is not normalised).
        site: where the vector reads the model: "final" (y) or the hook name of a residual-stream site; sources at or
            after an inner site are an error.
        name: what the result calls it.

    Raises:
        TypeError: no numbers.
        ValueError: more than one axis; all zeros; a shorthand for a site in every layer, or a site by head.

    """

    vector: Float[Tensor, " d_model"] | Float[np.ndarray, " d_model"] | Sequence[float]
    site: str = FINAL
    name: str | None = None

    def __post_init__(self) -> None:
        """Keep the numbers as a tensor, and the site by its hook name."""
        object.__setattr__(self, "site", one(self.site))
        object.__setattr__(self, "vector", vector(self.vector, "a Direction's vector", "d_model"))
        if not self._numbers.any():
            msg = "a Direction's vector is all zeros: every score would be 0; write another vector"
            raise ValueError(msg)

    def __repr__(self) -> str:
        """Name and place, not the numbers."""
        what = self.name or f"[{len(self.vector)}]"
        return f"Direction({what})" if self.site == FINAL else f"Direction({what}, site={self.site!r})"

    def __call__(self, state: FinalState) -> Cotangents:
        """v = the vector."""
        return Cotangents(self._numbers.to(state.y).reshape(1, -1), site=self.site)

    def value(self, state: FinalState) -> Float[Tensor, "*run"]:
        """⟨vector, activation⟩ at the site."""
        activation = state.at(self.site)
        return activation @ self._numbers.to(activation)

    @property
    def _numbers(self) -> Float[Tensor, " d_model"]:
        return cast("Tensor", self.vector)
