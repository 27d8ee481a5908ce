"""What a scatter shows, whichever library draws it."""

from collections.abc import Sequence
from dataclasses import dataclass

#: From the first group to the last: told apart with any colour vision, and seen on white.
GROUPS = ("#440154", "#3b528b", "#21918c", "#5ec962")
_MOST_NAMED = 14


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
