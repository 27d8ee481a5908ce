"""Drawing with matplotlib: without pyplot, so that no figure is shown twice or stays open."""

import io
import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import BoundaryNorm, Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from lens_scopes.plot.points import BAND, GROUPS, Points, said_of, shown_of
from lens_scopes.plot.with_matplotlib_text import broken, high, inside, room_of, wide
from lens_scopes.results.profiles import Profile
from lens_scopes.views import cells, markup
from lens_scopes.views.circuits import NEGATIVE, POSITIVE
from lens_scopes.views.grids import Grid

_LINE = 96  # characters in a line of tokens
# A map is as wide as a page; where its columns get thin, only some are named.
_WIDEST, _MOST_TICKS = 12.0, 56
_NARROW = 20  # columns of a map that has room for its numbers
_MANY = 100  # steps of a series, from where on they are drawn smaller
# Width of a character and height of a line in inches, at the size used for tokens.
_CHARACTER, _HIGH = 0.078, 0.24
# Inches that are no room for titles: of a figure's width, and of its axes', where labels and numbers stand.
_EDGE, _LABELS = 0.35, 1.0
_STEPS = 6  # numbers at a scale: as many in a layout's first try as in its last
_BESIDE = 0.5  # inches that axes of the user's have for the names of rows


class Picture(Figure):
    """A Figure that notebooks show even where pyplot was never imported."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
        return buffer.getvalue()


def colours(signed: bool) -> Colormap:
    """White to blue, or orange through white to blue; grey where there is no number."""
    low, high, negative = ([c / 255 for c in rgb] for rgb in (markup.LOW, markup.HIGH, markup.NEGATIVE))
    made = LinearSegmentedColormap.from_list("lens", [negative, low, high] if signed else [low, high])
    return made.with_extremes(bad=markup.MISSING)


def grids(tables: Sequence[Grid], title: str, own: Sequence[Axes] = ()) -> Any:
    """One under the other with one scale, or each in the user's own axes; lines of tokens all in one."""
    if all(table.is_strip for table in tables):
        return _strips(tables, title, own[0] if own else None)
    first, columns = tables[0], max(len(table.columns) for table in tables)
    drawn = list(own) or _rows_of_axes(tables, columns, title)
    for axes, table in zip(drawn, tables, strict=True):
        shown, _, _ = table.on_scale()
        axes.imshow(shown, aspect="auto", cmap=colours(table.signed), norm=_norm(table), interpolation="nearest")
        _ticks(axes, table)
        if columns <= _NARROW:
            _numbers(axes, table)
        if own:
            room = room_of(axes)[0] - max(0.0, _labels([table]) - _BESIDE)
            heading = broken(_plain(table.title or title), room, 9)
            axes.set_title(heading, fontsize=9, loc="left", parse_math=False)
    if own:
        drawn[-1].set_xlabel(broken(_note(tables), room_of(drawn[-1])[0], 8), fontsize=8)
    figure: Any = drawn[0].figure
    tall = sum(room_of(axes)[1] for axes in drawn) if own else 0.6 + _HIGH * sum(len(table.rows) for table in tables)
    bar: Colorbar = figure.colorbar(
        ScalarMappable(_norm(first), colours(first.signed)),
        ax=list(drawn) if len(drawn) > 1 else drawn[0],  # one alone keeps to any layout
        fraction=0.03,
        pad=0.01,
        ticks=MaxNLocator(_STEPS),
    )
    bar.set_label(broken(first.on_scale()[2], tall, 8), fontsize=8)
    bar.ax.tick_params(labelsize=8)
    inside(own, bar.ax)
    return figure


def _rows_of_axes(tables: Sequence[Grid], columns: int, title: str) -> list[Axes]:
    """A figure of the tables' size, with a row for each."""
    width = min(_WIDEST, max(5.0, 2.2 + (0.36 if columns <= _NARROW else 0.26) * columns))
    headings = [broken(_plain(table.title), width - _labels(tables) - _EDGE, 9) for table in tables]
    above, below = broken(_plain(title), width - _EDGE, 10), broken(_note(tables), width - _EDGE, 8)
    heights = [0.95 + high(one, 9) + _HIGH * len(table.rows) for one, table in zip(headings, tables, strict=True)]
    size = (width, sum(heights) + high(above, 10) + high(below, 8) + 0.6)
    figure = Picture(figsize=size, layout="constrained")
    figure.suptitle(above, fontsize=10, parse_math=False)
    figure.supxlabel(below, fontsize=8)
    made = list(figure.subplots(len(tables), 1, squeeze=False, height_ratios=heights)[:, 0])
    for axes, heading in zip(made, headings, strict=True):
        axes.set_title(heading, fontsize=9, loc="left", parse_math=False)
    return made


def _labels(tables: Sequence[Grid]) -> float:
    """Inches that the names of rows take."""
    return max(wide(_plain(row), 8) for table in tables for row in table.labels)


def profile(found: Profile, title: str, own: Axes | None = None) -> Any:
    """Means over prompts: a line with a band where the labels have an order, else points with bars."""
    labels, means, errors = shown_of(found)
    at = range(len(labels))
    width = max(4.6, min(_WIDEST, 1.6 + 0.34 * len(labels)))
    drawn: Any = own or Picture(figsize=(width, 4.2), layout="constrained").subplots()
    room, tall = room_of(own) if own else (width - _LABELS, 4.2 - _LABELS)
    if found.ordered:
        low, high = ([m + sign * e for m, e in zip(means, errors, strict=True)] for sign in (-1, 1))
        drawn.fill_between(at, low, high, color=POSITIVE, alpha=0.25, linewidth=0, label=BAND)
        drawn.plot(at, means, color=POSITIVE, marker="o", markersize=4, label="mean")
    else:
        drawn.errorbar(at, means, errors, color=POSITIVE, fmt="o", markersize=5, capsize=3, label=f"mean, {BAND}")
    if min(means, default=0.0) < 0:
        drawn.axhline(0, color="#888888", linewidth=0.8)
    every = max(1, math.ceil(len(labels) / _MOST_TICKS))
    names = [markup.visible(label) for label in labels[::every]]
    drawn.set_xticks(list(at)[::every], names, rotation=90, fontsize=8, parse_math=False)
    drawn.set_xlabel(broken(said_of(found, labels, errors), room, 9), fontsize=9)
    drawn.set_ylabel(broken(found.unit, tall, 9), fontsize=9)
    drawn.set_title(broken(_plain(title), room, 10), fontsize=10, loc="left", parse_math=False)
    drawn.legend(frameon=False, fontsize=8)
    inside([own] if own else [])
    return drawn.figure


def series(values: Sequence[float], weights: Sequence[float], unit: str, signed: bool) -> Figure:
    """The series, and below it the influence of each step."""
    largest = markup.bound([weights])
    norm = Normalize(-largest if signed else 0, largest)
    figure = Picture(figsize=(max(6.0, min(16.0, 2 + 0.12 * len(values))), 4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    steps = range(len(values))
    above.plot(steps, values, color="#888888", linewidth=1, zorder=1)
    points = above.scatter(
        steps, values, c=weights, cmap=colours(signed), norm=norm, edgecolors="#444444", linewidths=0.6,
        s=36 if len(values) <= _MANY else 14, zorder=2, plotnonfinite=True,
    )  # fmt: skip
    above.set_ylabel("value")
    below.bar(steps, weights, color=[NEGATIVE if w < 0 else POSITIVE for w in weights], width=0.8)
    below.axhline(0, color="#888888", linewidth=0.8)
    below.set(ylabel=unit, xlabel="step")
    figure.colorbar(points, ax=[above, below], label=unit, fraction=0.04, pad=0.01)
    return figure


def scatter(points: Points, title: str, axes: Axes | None = None) -> Any:
    """Points, and the line where both are equal; in ``axes`` if there are some."""
    width = 5.4 if points.groups else 4.6
    drawn: Any = axes or Picture(figsize=(width, 4.4), layout="constrained").subplots()
    room = room_of(axes)[0] if axes else width - _LABELS
    drawn.plot(points.ends, points.ends, color="#888888", linewidth=1, label="measured = predicted")
    shades, scales = [POSITIVE] * len(points.x), []
    if points.groups:
        count = len(points.groups)
        ramp = LinearSegmentedColormap.from_list("groups", GROUPS, N=count)
        shades = [ramp(group) for group in points.group]
        steps = BoundaryNorm([i - 0.5 for i in range(count + 1)], count)
        bar = drawn.figure.colorbar(ScalarMappable(steps, ramp), ax=drawn, ticks=points.named_groups())
        bar.ax.set_yticklabels([_plain(points.groups[i]) for i in points.named_groups()], fontsize=8)
        bar.ax.invert_yaxis()
        scales = [bar.ax]
    drawn.scatter(points.x, points.y, s=18, c=shades, alpha=0.8, linewidths=0, zorder=2)
    drawn.set(xlabel="predicted effect", ylabel="measured effect")
    drawn.set_title(broken(_plain(title), room, 10), fontsize=10, loc="left", parse_math=False)
    drawn.legend(frameon=False, fontsize=8)
    inside([axes] if axes else [], *scales)
    return drawn.figure


def _strips(tables: Sequence[Grid], title: str, own: Axes | None = None) -> Any:
    """Lines of tokens on their colours, broken like text."""
    room, tall = (_LINE, 0.0) if own is None else _room(own)
    lines = [_lines(table, room) for table in tables]
    width = max(40, *(start + len(text) for line in lines for part in line for start, text, _ in part))
    inches = width * _CHARACTER if own is None else room_of(own)[0]
    headings = [broken(_plain(table.title), inches, 8).splitlines() for table in tables]
    heading, scale = (
        broken(text, inches, size)
        for text, size in ((_plain(title), 10), (f"{tables[0].unit}  {_note(tables)}".strip(), 8))
    )
    rows = sum(len(line) + len(above) for line, above in zip(lines, headings, strict=True))
    size = (inches + _EDGE, _HIGH * rows + high(heading, 10) + high(scale, 8) + 0.95)
    axes: Axes = own or Picture(figsize=size, layout="constrained").subplots()
    norm, shades, y = _norm(tables[0]), colours(tables[0].signed), 0
    for table, above, of_table in zip(tables, headings, lines, strict=True):
        for text in above:
            axes.text(0, y + 0.5, text, fontsize=8, va="center", parse_math=False)
            y += 1
        for line in of_table:
            for start, text, value in line:
                shade = markup.MISSING if math.isnan(value) else shades(norm(value))
                box = {"facecolor": shade, "linewidth": 0}
                axes.add_patch(_rectangle(start, y, len(text), box))
                ink = markup.colour(value, table.largest)[1]
                at = start + len(text) / 2
                axes.text(
                    at,
                    y + 0.5,
                    text,
                    ha="center",
                    va="center",
                    family="monospace",
                    fontsize=9,
                    color=ink,
                    parse_math=False,
                )
            y += 1
    axes.set(xlim=(-0.5, (width if own is None else max(width, room)) + 0.5), ylim=(max(1, y, tall), 0))
    axes.axis("off")
    axes.set_title(heading, fontsize=10, loc="left", parse_math=False)
    figure: Any = axes.figure
    bar = figure.colorbar(
        ScalarMappable(norm, shades),
        ax=axes,
        location="bottom",
        fraction=0.1,
        shrink=0.5,
        aspect=40,
        ticks=MaxNLocator(_STEPS),
    )
    bar.set_label(scale, fontsize=8)
    bar.ax.tick_params(labelsize=8)
    inside([own] if own else [], bar.ax)
    return figure


def _room(axes: Axes) -> tuple[int, float]:
    """How many characters, and lines of them, fit into axes as they are."""
    across, down = room_of(axes)
    return max(24, int(across / _CHARACTER)), down / _HIGH


def _lines(table: Grid, room: int) -> list[list[tuple[int, str, float]]]:
    """Tokens with their columns and values, line by line."""
    lines: list[list[tuple[int, str, float]]] = [[]]
    at = 0
    for token, value in zip(table.columns, table.values[0], strict=True):
        text = markup.visible(token)
        if at + len(text) > room and lines[-1]:
            lines.append([])
            at = 0
        lines[-1].append((at, text, value))
        at += len(text) + 1
    return lines


def _rectangle(x: int, y: int, width: int, style: dict) -> Rectangle:
    return Rectangle((x - 0.35, y + 0.06), width + 0.7, 0.88, **style)


def _ticks(axes: Axes, table: Grid) -> None:
    every = max(1, math.ceil(len(table.columns) / _MOST_TICKS))
    at = range(0, len(table.columns), every)
    names = [
        markup.visible(table.columns[i], 14) + (f" {table.positions[i]}" if every > 1 and table.positions else "")
        for i in at
    ]
    axes.set_xticks(list(at), names, rotation=90, fontsize=8, family="monospace", parse_math=False)
    axes.set_yticks(range(len(table.rows)), [_plain(row) for row in table.labels], fontsize=8, parse_math=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _numbers(axes: Axes, table: Grid) -> None:
    """A number in each cell where it is not too small to matter."""
    ends = table.ends or (table.largest,) * len(table.rows)
    for row, (line, end) in enumerate(zip(table.values, ends, strict=True)):
        for column, value in enumerate(line):
            ink = markup.colour(value, end)[1]
            axes.text(column, row, cells.short(value, end), ha="center", va="center", fontsize=6.5, color=ink)


def _norm(table: Grid) -> Normalize:
    _, largest, _ = table.on_scale()
    return Normalize(-largest if table.signed else 0.0, largest, clip=True)


def _note(tables: Sequence[Grid]) -> str:
    return "; ".join(dict.fromkeys(filter(None, (table.note for table in tables))))


def _plain(text: str) -> str:
    return markup.visible(text, 200) if text else ""
