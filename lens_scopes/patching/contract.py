"""Cotangents pulled back to every open site and contracted with a change of the activations there."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lens_scopes.calculus.pullback import Rows, pull_back
from lens_scopes.calculus.trace import Trace
from lens_scopes.scopes.state import Cotangents


def contract(run: Trace, made: Sequence[Cotangents], change: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """√w_i⟨J_tᵀv_i, Δa_t⟩ for every prompt of the run, cotangent and place: by site, each [batch, row, pos(, head)].

    Args:
        run: prompts of one length; all of its open sites have a change.
        made: the cotangents of each prompt.
        change: Δa by site, [pos(, head), d], the same for all prompts.

    """
    parts = [
        {name: (wide(gradients[name]) * moved).sum(-1).transpose(0, 1).cpu() for name, moved in change.items()}
        for _, gradients in pull_back(run, Rows.of([[one] for one in made]), made[0].site)
    ]
    found = {name: torch.cat([part[name] for part in parts], 1) for name in change}
    weights = torch.stack([one.root_weights() for one in made])
    if made[0].squared:  # a weight may be no number in float32
        found = {name: rows.double() for name, rows in found.items()}
    return {
        name: rows * weights.to(rows).reshape(*weights.shape, *[1] * (rows.ndim - 2)) for name, rows in found.items()
    }


def gradients(run: Trace, made: Sequence[Cotangents]) -> dict[str, Tensor]:
    """√w J_tᵀv of the one cotangent of each prompt of the run: by site, [batch, pos(, head), d]."""
    ((_, found),) = pull_back(run, Rows.of([[one] for one in made]), made[0].site)
    weights = torch.cat([one.root_weights() for one in made])
    return {
        name: wide(rows[0]) * weights.to(wide(rows)).reshape(-1, *[1] * (rows.ndim - 2)) for name, rows in found.items()
    }


def wide(x: Tensor) -> Tensor:
    """Half precision is contracted in float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
