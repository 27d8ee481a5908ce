"""Direction: the sensitivity of a fixed vector's inner product with the stream: a probe, a feature's encoder row."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from lens_scopes.scopes.state import Cotangents, FinalState
from lens_scopes.sites import FINAL


@dataclass(frozen=True, eq=False)
class Direction:
    """A fixed vector: a probe, a steering vector, the *encoder* row of an SAE feature. Score ‖J_tᵀ vector‖.

    Args:
        vector: [d_model], used as it is (it is not normalised).
        site: where the vector reads the model: "final" (y) or the hook name of a residual-stream site; sources at or
            after an inner site are an error.
        name: what the result calls it.

    """

    vector: Float[Tensor, " d_model"]
    site: str = FINAL
    name: str | None = None

    def __repr__(self) -> str:
        """Name and place, not the numbers."""
        what = self.name or f"[{len(self.vector)}]"
        return f"Direction({what})" if self.site == FINAL else f"Direction({what}, site={self.site!r})"

    def __call__(self, state: FinalState) -> Cotangents:
        """v = the vector."""
        return Cotangents(self.vector.detach().to(state.y).reshape(1, -1), site=self.site)

    def value(self, state: FinalState) -> Float[Tensor, "*run"]:
        """⟨vector, activation⟩ at the site."""
        activation = state.at(self.site)
        return activation @ self.vector.detach().to(activation)
