"""A squared form at one position, before anything of it is drawn: rows whose squares add up to it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Summands:
    """Rows V at y with Σ_i ‖J_tᵀV_i‖² the form; they may be too many to be held, and are mixed as they are made."""

    size: Float[Tensor, " row"]
    """About how long each is, float64: only the scatter of an estimate depends on it."""
    mix: Callable[[Int[Tensor, "pass row"]], Float[Tensor, "pass d_model"]]
    """Σ_i c_i V_i for each row of coefficients c, in float64."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Facts for the result's ``meta``."""

    def __len__(self) -> int:
        """How many rows."""
        return len(self.size)

    def rows(self) -> Float[Tensor, "row d_model"]:
        """All of them."""
        return self.mix(torch.eye(len(self), dtype=torch.float64, device=self.size.device))

    @classmethod
    def of(
        cls, rows: Float[Tensor, "row d_model"], notes: Mapping[str, Any], size: Float[Tensor, " row"] | None = None
    ) -> "Summands":
        """From rows that are there."""
        wide = rows.double()
        return cls(wide.norm(dim=-1) if size is None else size.double(), lambda c: c @ wide, notes)
