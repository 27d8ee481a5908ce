"""The directions of a flow: where each source token is pushed, so that what arrives is its score.

For a norm over weighted cotangents d_{i,t} = w_i g_{i,t} / score_t, in squared units d_{i,t} = w_i g_{i,t}; in both
Σ_i ⟨g_{i,t}, d_{i,t}⟩ is the score of token t.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lens_scopes.calculus.pullback import Rows, pull_back
from lens_scopes.calculus.trace import Trace
from lens_scopes.scopes.state import Cotangents
from lens_scopes.sites import EMBED


def directions(
    made: Cotangents,
    chunk: slice,
    g: Float[Tensor, "row pos d"],
    sources: Sequence[int] | None,
    norms: Float[Tensor, " pos"] | None,
) -> Float[Tensor, "row source pos d"]:
    """d_t at each source's own position, for the cotangents of one chunk; all positions in one row without sources.

    Args:
        made: the cotangents.
        chunk: which of them.
        g: their gradients at the embedding.
        sources: the positions, a row each; None for all together.
        norms: see ``lengths``.

    """
    weight = torch.ones(len(g), device=g.device) if made.weights is None else made.weights[chunk]
    d = g.double() * weight.double()[:, None, None]
    if not made.squared:
        length = g.double().norm(dim=-1) * weight.double().sqrt()[:, None] if norms is None else norms
        d = torch.where(length[..., None] > 0, d / length[..., None].clamp(min=1e-300), 0.0)
    if sources is None:
        return d[:, None]
    at = torch.zeros(len(sources), d.shape[1], 1, dtype=d.dtype, device=d.device)
    at[range(len(sources)), list(sources)] = 1
    return d[:, None] * at


def lengths(run: Trace, made: Cotangents) -> Float[Tensor, " pos"] | None:
    """√Σ_i w_i‖g_i,t‖² over all cotangents, which a norm of several needs before the first is pushed; else None."""
    if made.squared or len(made.vectors) == 1:
        return None
    weights = made.weights
    squares = torch.zeros(run.tokens.shape[1], dtype=torch.float64, device=run.y.device)
    for chunk, gradients in pull_back(run, Rows.of([[made]]), made.site):
        part = gradients[EMBED][:, 0].double().square().sum(-1)
        squares += (part if weights is None else part * weights[chunk].double()[:, None]).sum(0)
    return squares.sqrt()
