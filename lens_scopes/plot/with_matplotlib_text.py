"""Titles and notes that stay inside the figure: broken at its edges, and room made for them in axes of the user's."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.transforms import Bbox

_POINTS = 72  # of an inch
_LEADING = 1.4  # height of a line over the size of its letters
_HINTED = 1.08  # letters are set on whole pixels, which makes a line wider where these are few
_LEAST = 1.0  # inches of a line, however narrow the axes
# Inches between what is drawn and the edge of the figure.
_MARGIN = 0.03


def wide(text: str, size: float) -> float:
    """Inches that a line of text takes, its letters being ``size`` points."""
    points = text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)[0]
    return points * _HINTED / _POINTS


def high(text: str, size: float) -> float:
    """Inches that lines of text take; none where there is no text."""
    return len(text.splitlines()) * size * _LEADING / _POINTS


def broken(text: str, room: float, size: float) -> str:
    """The same text in lines of at most ``room`` inches: between words, and inside those that have no room."""
    lines, room = [""], max(room, _LEAST)
    for word in text.split(" "):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if wide(joined, size) <= room:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        rest = word
        while wide(rest, size) > room and len(rest) > 1:
            fits = next((n for n in range(len(rest) - 1, 1, -1) if wide(rest[:n], size) <= room), 1)
            lines[-1:] = [rest[:fits], ""]
            rest = rest[fits:]
        lines[-1] = rest
    return "\n".join(lines)


def room_of(axes: Axes) -> tuple[float, float]:
    """Inches of axes as they are: across and down."""
    box = axes.get_window_extent()
    return box.width / axes.figure.dpi, box.height / axes.figure.dpi


def inside(axes: Sequence[Axes], *scales: Axes) -> None:
    """Move the user's axes, and their colour scales, in as far as their texts would leave the figure.

    A figure with a layout of its own ("constrained", "tight") does that itself. Only axes that stick out are moved.
    """
    if not axes or axes[0].figure.get_layout_engine() is not None:
        return
    figure, every = axes[0].figure, [*axes, *scales]
    drawn = Bbox.union([box for one in every if (box := one.get_tightbbox()) is not None])
    edge, margin = figure.bbox, _MARGIN * figure.dpi
    left, below = (max(0.0, edge.min[i] + margin - drawn.min[i]) / edge.size[i] for i in (0, 1))
    right, above = (max(0.0, drawn.max[i] + margin - edge.max[i]) / edge.size[i] for i in (0, 1))
    frame = Bbox.union([one.get_position() for one in every])
    wanted = Bbox.from_extents(frame.x0 + left, frame.y0 + below, frame.x1 - right, frame.y1 - above)
    if wanted == frame or wanted.width <= 0 or wanted.height <= 0:
        return
    for one in every:
        part = (one.get_position().get_points() - frame.min) / frame.size
        one.set_position(Bbox(wanted.min + part * wanted.size))
        one.set_in_layout(True)  # which set_position takes away
