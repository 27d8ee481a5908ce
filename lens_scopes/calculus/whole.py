"""The ledger of a whole change: flow at points of the straight line between two prompts' embeddings, added up.

At x(α) = x_r + α(x_c − x_r) let g_a(α) be the gradient of what the scope measures, and δa(α) what becomes of the line's
velocity x_c − x_r at a. ∫⟨g_a, δa⟩dα is what passes through a on the whole way (the conductance of Dhamdhere et al.
2018, for heads, positions and edges too). Each point's ledger is conserved at every cut, so that the sums are; at the
embedding they make the difference of the scope's number between the prompts, up to what the midpoints miss.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from lens_scopes.calculus.account import account, by_lane
from lens_scopes.calculus.blocks import Extent
from lens_scopes.calculus.branches import Branches
from lens_scopes.calculus.ledger import Books
from lens_scopes.calculus.line import Line, midpoints
from lens_scopes.calculus.memory import lanes_at_once
from lens_scopes.calculus.pullback import Rows, pull_back
from lens_scopes.calculus.trace import Trace, trace
from lens_scopes.scopes.protocol import Scope, cotangents_at, text_of
from lens_scopes.scopes.state import Cotangents
from lens_scopes.sites import EMBED


@dataclass(frozen=True, eq=False)
class Whole:
    """What the points of a line add up to; ``books`` and totals are sums, not yet divided by their number."""

    books: Books
    totals: Float[Tensor, "point source"]
    all_sources: Float[Tensor, " point"]
    """The total of every position that changes, whether or not it has a row."""
    method: str


def along(
    line: Line,
    like: Trace,
    scope: Scope,
    extent: Extent,
    moved: Bool[Tensor, "source pos"],
    mapped: Sequence[tuple[int, int]],
    steps: int,
) -> Whole:
    """Book the change at the midpoints of ``steps`` equal parts of a line, as many at a time as fit.

    Args:
        line: from the corrupted prompt to the clean one.
        like: a trace of one of its ends with the same sites open.
        scope: its tokens resolved; asked at every point anew.
        extent: how far the ledger goes.
        moved: by row, the positions whose change is followed.
        mapped: the heads whose edges are kept.
        steps: how many points.

    """
    starts = moved[..., None] * line.velocity
    books, totals, all_sources, method = Books(len(moved)), [], [], ""
    most = lanes_at_once(like)
    pieces = midpoints(steps).split(max(1, most // len(moved)))
    for alphas in tqdm(pieces, desc="flow", leave=False, disable=len(pieces) < 8):
        with line.at(alphas) as tokens:
            run = trace(line.host, tokens, extent.opened, like.positions)
        made = [signed(scope, cotangents_at(scope, run.ends(point))[0]) for point in range(len(alphas))]
        ((_, found),) = pull_back(run, Rows.of([[one] for one in made]), extent.end)
        g = extent.up_to_end({name: gradient[0] for name, gradient in found.items()})
        straight = Branches(run, extent).straight(g[extent.output])
        totals.append(torch.einsum("npd,spd->ns", g[EMBED].double(), starts.double()).cpu())
        all_sources.append(torch.einsum("npd,pd->n", g[EMBED].double(), line.velocity.double()).cpu())
        for first in range(0, len(moved), most):
            rows = range(first, min(first + most, len(moved)))
            tangents = starts[list(rows)].repeat(len(alphas), 1, 1)
            with line.at(alphas.repeat_interleave(len(rows))):
                pushed = account(run, extent, by_lane(g, len(rows)), by_lane(straight, len(rows)), tangents, mapped)
            books.add(pushed.visitor, rows)
            method = pushed.method
    return Whole(books, torch.cat(totals), torch.cat(all_sources), method)


def signed(scope: Scope, made: Cotangents) -> Cotangents:
    """The one cotangent of a number, its weight multiplied in.

    Raises:
        ValueError: a squared form, or several cotangents without a common sign.

    """
    if made.squared or len(made.vectors) > 1:
        what = "a squared form" if made.squared else f"{len(made.vectors)} cotangents without a common sign"
        msg = (
            f"flow(..., against=) follows the change of a number, and {text_of(scope)} is {what}; write a scope of one "
            "cotangent, e.g. ls.Semantic(target, versus=other) or ls.Metric(fn)"
        )
        raise ValueError(msg)
    root = made.root_weights().to(made.vectors).reshape(-1, *[1] * (made.vectors.ndim - 1))
    return replace(made, vectors=made.vectors * root, weights=None)
