"""One piece of a flow: tangents pushed forward against the gradients that came back, and booked on the way."""

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from lens_scopes.calculus.blocks import Extent
from lens_scopes.calculus.ledger import Ledger
from lens_scopes.calculus.pushforward import Pushed, push_forward
from lens_scopes.calculus.trace import Trace
from lens_scopes.sites import EMBED


def account(
    run: Trace,
    extent: Extent,
    gradients: Mapping[str, Tensor],
    straight: Mapping[str, Tensor],
    tangents: Float[Tensor, "lane pos d"],
    mapped: Sequence[tuple[int, int]],
) -> Pushed:
    """A pass whose visitor is the ledger of its lanes.

    Args:
        run: the trace that the gradients came from; hooks in force move its lanes to where they are.
        extent: how far the ledger goes.
        gradients: by site, [lane, pos, ...].
        straight: those past all later heads, likewise; see ``Branches.straight``.
        tangents: at the embedding.
        mapped: the heads whose edges are kept.

    """
    total = (gradients[EMBED].double() * tangents).sum((1, 2))
    return push_forward(
        run.host, run.tokens[0], EMBED, tangents.to(gradients[EMBED].dtype), position=list(run.positions),
        sites=extent.visited, visitor=lambda: Ledger(extent, gradients, total, mapped, straight), hooks=run.held,
        until=extent.visited[-1] if extent.is_inner else None,
    )  # fmt: skip


def by_lane(parts: Mapping[str, Tensor], times: int) -> dict[str, Tensor]:
    """Rows repeated for the tangents that each meets."""
    return {name: part.repeat_interleave(times, 0) for name, part in parts.items()}
