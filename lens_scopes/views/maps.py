"""A table too wide for cells as a picture: one pixel per number, each row on its own scale, with words at its edges."""

import math
from collections.abc import Sequence

from lens_scopes.views import markup, pixels
from lens_scopes.views.grids import Grid, column_explained

# Columns side by side, each at least one pixel wide, and the height of a row.
_BAND, _HEIGHT = 800, 14
# Positions that are named under a band, and beginnings of lines above it.
_TICKS, _LINES = 8, 16
_SMALL = "font-size:11px;line-height:1.2;white-space:nowrap;overflow:hidden;text-align:left"
_TABLE = "border-collapse:collapse;width:100%;margin:0"


def map_html(grid: Grid) -> str:
    """All columns of a long prompt in view: bands one below the other, with the rows, the lines and the positions."""
    count = math.ceil(len(grid.columns) / _BAND)
    size = math.ceil(len(grid.columns) / count)
    starts = range(0, len(grid.columns), size)
    bands = "".join(_band(grid, range(start, min(start + size, len(grid.columns)))) for start in starts)
    return (markup.heading(grid.title) if grid.title else "") + bands


def _band(grid: Grid, part: range) -> str:
    cell = f"height:{_HEIGHT}px;line-height:{_HEIGHT}px;white-space:nowrap"
    names = "".join(f'<div style="{cell}">{markup.prose(name)}</div>' for name in _names(grid))
    rows = list(zip(grid.values, grid.ends, strict=True))
    picture = pixels.address([[markup.shade(line[i], end) for i in part] for line, end in rows])
    image = (
        f'<img src="{picture}" alt="{markup.escaped(_said(grid, part))}" style="display:block;margin:0;width:100%;'
        f"min-width:{len(part)}px;max-width:none;height:{_HEIGHT * len(grid.rows)}px;image-rendering:pixelated"
        '">'
    )
    left = "padding:0 6px 0 0;text-align:right;vertical-align:top;width:1%;font-size:11px;opacity:.75"
    right = "padding:0;text-align:left;vertical-align:top;width:99%"
    lines = "".join(
        f'<tr style="background:none"><td style="{left}">{name}</td><td style="{right}">{drawn}</td></tr>'
        for name, drawn in (("", _lines(grid, part)), (names, image), ("", _positions(grid, part)))
        if drawn
    )
    return f'<div style="overflow-x:auto"><table style="{_TABLE}"><tbody>{lines}</tbody></table></div>'


def _names(grid: Grid) -> list[str]:
    """The rows with the ends of their scales, and what is off these: position 0, the position explained."""
    found = []
    for label, line, end in zip(grid.labels, grid.values, grid.ends, strict=True):
        off = [
            f"{at}: {markup.number(value)}" for at, value in zip(grid.positions, line, strict=True) if abs(value) > end
        ]
        found.append(" · ".join([label, *off]))
    return found


def _said(grid: Grid, part: range) -> str:
    """The picture in words: its size, and where its rows are darkest."""
    places = sorted(
        ((abs(line[i]) / end, row, i) for row, (line, end) in enumerate(zip(grid.values, grid.ends, strict=True))
         for i in part if abs(line[i]) <= end),
        key=lambda place: (-place[0], place[1:]),
    )[:3]  # fmt: skip
    best = ", ".join(
        f"{markup.named(grid.columns[i])} at {grid.positions[i]} in {grid.rows[row]}" for _, row, i in places
    )
    return f"map of {len(grid.rows)} rows by {len(part)} tokens; darkest: {best}; the lists below have the numbers"


def _positions(grid: Grid, part: range) -> str:
    """Round positions with their tokens, and the position explained."""
    marks = ticks([grid.positions[i] for i in part])
    named = [(i, f"{grid.positions[part[i]]} {markup.named(grid.columns[part[i]], 12)}") for i in marks]
    return _marked(named, len(part)) + _explained(grid, part)


def ticks(positions: Sequence[int]) -> list[int]:
    """The columns to name: the first, and the first at or after every multiple of a round number."""
    span = positions[-1] - positions[0] + 1
    step = next(unit * 10**power for power in range(9) for unit in (1, 2, 5) if unit * 10**power * _TICKS >= span)
    found = [i for i in range(1, len(positions)) if positions[i] // step > positions[i - 1] // step]
    # Not two names on top of each other.
    return [0, *found] if not found or 2 * found[0] >= len(positions) / _TICKS else found


def _explained(grid: Grid, part: range) -> str:
    columns = {column_explained(grid, row) for row in range(len(grid.rows))}
    if len(columns) != 1 or (column := columns.pop()) is None or column not in part:
        return ""
    at = column - part.start
    text = f"position {grid.positions[column]}, which is explained"
    if 2 * at < len(part):
        return _marked([(at, f"▲ {text}")], len(part), line=False)
    width = 100 * (at + 1) / len(part)
    cell = f"{_SMALL};padding:0;opacity:.75;text-align:right"
    return f'<div style="width:{width:.6g}%"><div style="{cell}">{text} ▲</div></div>'


def _lines(grid: Grid, part: range) -> str:
    """Where the text has lines, how they begin; evenly spaced ones of many."""
    starts = [i - part.start for i in part if i and "\n" in grid.columns[i - 1]]
    every = math.ceil(len(starts) / _LINES)
    shown = starts[::every] if starts else []
    texts = ["".join(grid.columns[part.start + i : part.start + i + 12]).split("\n")[0] for i in shown]
    named = [(i, f"↵ {markup.visible(text, 40)}") for i, text in zip(shown, texts, strict=True) if text.strip()]
    return _marked(named, len(part)) if named else ""


def _marked(marks: Sequence[tuple[int, str]], size: int, line: bool = True) -> str:
    """Words at columns: each begins at its own and ends before the next."""
    cell = f"{_SMALL};opacity:.75" + (";border-left:1px solid #9e9e9e;padding:0 0 0 2px" if line else ";padding:0")
    lead = f'<td style="padding:0;width:{100 * marks[0][0] / size:.6g}%"></td>' if marks[0][0] else ""
    ends = [*(i for i, _ in marks[1:]), size]
    cells = "".join(
        f'<td style="{cell};width:{100 * (end - i) / size:.6g}%">{markup.prose(text)}</td>'
        for (i, text), end in zip(marks, ends, strict=True)
    )
    row = f'<tr style="background:none">{lead}{cells}</tr>'
    return f'<table style="{_TABLE};table-layout:fixed"><tbody>{row}</tbody></table>'
