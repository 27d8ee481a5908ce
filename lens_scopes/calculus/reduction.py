"""From gradients to scores: each row reduced as soon as it is there, the rows of one cotangent set combined at the end.

With g_i = J_tᵀv_i and weights w_i: √Σ w_i‖g_i‖² (norm), Σ w_i‖g_i‖² (squared), along a direction x √w⟨g, x⟩ (signed) or
Σ w_i⟨g_i, x⟩² (squared).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lens_scopes.calculus.pullback import Rows, pull_back
from lens_scopes.calculus.trace import Trace
from lens_scopes.results.provenance import Units
from lens_scopes.scopes.state import Cotangents


def units_of(cotangents: Sequence[Sequence[Cotangents]], signed: bool) -> Units:
    """ "norm", "squared" or "signed", the same for every prompt and position.

    Raises:
        ValueError: norms and squares in one call, or a sign asked of several cotangents.

    """
    every = [made for row in cotangents for made in row]
    squared = {made.squared for made in every}
    if len(squared) > 1:
        msg = "scopes in norm and in squared units do not fit one call; score them separately"
        raise ValueError(msg)
    if squared == {True}:
        return "squared"
    if not signed:
        return "norm"
    if any(len(made.vectors) > 1 for made in every):
        msg = "a signed product needs one cotangent; return ls.Cotangents(vectors, squared=True) for several"
        raise ValueError(msg)
    return "signed"


def reduced(
    run: Trace, rows: Rows, site: str, names: Sequence[str], along: Sequence[Tensor] | None
) -> list[Float[Tensor, "_row site pos *head"]]:
    """By prompt: ‖g‖² of every row at every named site, or ⟨g, x⟩ where directions x are given by site.

    Args:
        run: the forward pass.
        rows: the cotangents.
        site: where they live.
        names: the sites, in the order of the result's axis.
        along: by site, [batch, pos(, head), d] or what broadcasts to it.

    """
    collected: list[list[Tensor]] = [[] for _ in rows.vectors]
    for chunk, gradients in pull_back(run, rows, site):
        directions = [None] * len(names) if along is None else along
        pairs = zip(names, directions, strict=True)
        stacked = torch.stack([_reduce(gradients[name], x) for name, x in pairs], 2)
        for b, vectors in enumerate(rows.vectors):
            collected[b].append(stacked[: max(0, min(chunk.stop, len(vectors)) - chunk.start), b].cpu())
    return [torch.cat(parts) for parts in collected]


def combined(
    rows: Float[Tensor, "row site pos *head"], cotangents: Sequence[Cotangents], units: Units, signed: bool
) -> tuple[Float[Tensor, "target site pos *head"], Float[Tensor, "probe target site pos *head"] | None]:
    """The scores of one prompt from its reduced rows, position by position; and what each random probe contributed.

    Raises:
        ValueError: positions estimated by different numbers of probes.

    """
    dtype = torch.float64 if units == "squared" else rows.dtype
    if dtype == torch.float64 or any(made.weights is not None for made in cotangents):
        rows = rows.double()  # weights may be far below what float32 holds
    quadratic = rows.square() if signed else rows
    drawn_at = {made.probes for made in cotangents} - {0}
    if len(drawn_at) > 1:
        msg = f"the scope made {sorted(drawn_at)} random probes at different positions: make the same number at each"
        raise ValueError(msg)
    values, probes, start = [], [], 0
    for made in cotangents:
        mine = slice(start, start + len(made.vectors))
        part, start = quadratic[mine], mine.stop
        if made.weights is not None:
            part = part * made.weights.cpu().reshape(-1, *[1] * (part.ndim - 1)).to(part.dtype)
        if made.probes:
            drawn = part[-made.probes :]
            probes.append(drawn.mean(0) + made.scatter * (drawn - drawn.mean(0)))
        elif drawn_at:  # known exactly here: nothing scatters
            probes.append(part.new_zeros(max(drawn_at), *part.shape[1:]))
        if units == "signed":
            part = rows[mine] * made.root_weights()[0].to(rows)
        values.append(part.sum(0) if units in ("squared", "signed") else part.sum(0).sqrt())
    return torch.stack(values).to(dtype), torch.stack(probes, 1) if probes else None


def _reduce(gradient: Tensor, along: Tensor | None) -> Tensor:
    """[row, batch, pos(, head), d] -> [row, batch, pos(, head)]."""
    work = torch.promote_types(gradient.dtype, torch.float32)
    if along is None:
        return torch.linalg.vector_norm(gradient, dim=-1, dtype=work).square()
    return (gradient.to(work) * along.to(work)).sum(-1)
