"""What a scatter and a profile show, whichever library draws them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lens_scopes.results.profiles import Profile

#: From the first group to the last: told apart with any colour vision, and seen on white.
GROUPS = ("#440154", "#3b528b", "#21918c", "#5ec962")
_MOST_NAMED = 14
BAND = "± 1 standard error"
# Where labels have no order there may be many: those with the largest means are drawn.
_MOST_LABELS = 40


def shown_of(found: Profile) -> tuple[list[str], list[float], list[float]]:
    """The labels that a picture of a profile has room for, their means and their errors (NaN where there is none).

    Spans have their mean number of tokens in front.
    """
    names = list(found.labels)
    if found.lengths is not None:
        names = [f"{n:.3g}× {name}" for n, name in zip(found.lengths, names, strict=True)]
    order = list(range(len(names)))
    if not found.ordered and len(order) > _MOST_LABELS:
        order = found.mean.abs().argsort(descending=True, stable=True)[:_MOST_LABELS].tolist()
    return [names[i] for i in order], found.mean[order].tolist(), found.stderr[order].tolist()


def said_of(found: Profile, labels: Sequence[str], errors: Sequence[float]) -> str:
    """What the labels are, how many are not drawn, and what it means that there is no error."""
    left = len(found.labels) - len(labels)
    notes = [found.axis, f"{left} with smaller means are left out" if left else ""]
    notes.append("no error: only one prompt has it" if any(math.isnan(one) for one in errors) else "")
    return "; ".join(filter(None, notes))


@dataclass(frozen=True)
class Points:
    """Predicted and measured numbers, and what each is about."""

    x: Sequence[float]
    y: Sequence[float]
    names: Sequence[str] = ()
    group: Sequence[int] = ()
    """Of each point: an index into ``groups``."""
    groups: tuple[str, ...] = ()
    """In order, for instance the layers."""

    @property
    def ends(self) -> list[float]:
        """The smallest and the largest number of both sides."""
        return [min(*self.x, *self.y), max(*self.x, *self.y)]

    def named_groups(self) -> list[int]:
        """The groups that a legend has room for, evenly spaced."""
        every = -(-len(self.groups) // _MOST_NAMED)
        return list(range(0, len(self.groups), every))
