"""Prompts too long for a table: a map of all numbers, one row as running text, and lists of what is largest.

Nothing here needs a script. What the map shows as colours, the lists say in words and numbers.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from lens_scopes.views import markup
from lens_scopes.views.grids import Grid, column_explained, percent
from lens_scopes.views.maps import map_html
from lens_scopes.views.markup import named, number

#: Numbers that a map draws, each as a pixel; it costs about a byte a number.
MOST_PIXELS = 100_000
#: Tokens in a list of the largest.
LISTED = 20
# Below this share of the scale's end a token is plain text, and so are all but so many of the largest.
_QUIET, _BOXES = 0.05, 400
# Plain text of more tokens than that is folded in a prompt of many, but for some tokens at its ends.
_FOLD, _MANY, _KEPT = 40, 600, 8
# Neighbours that are shown of a token; rows that the lists, and steps that a line of blocks have room for.
_AROUND = 4
_MOST_ROWS, _MOST_STEPS = 100, 40
_EACH = 3
_ROUND = "padding:1px 2px;border-radius:3px"
_STEPS = "▁▂▃▄▅▆▇█"


def drawn(grids: Sequence[Grid]) -> str:
    """Tables of one unit as static HTML with their legend; of a long prompt an overview."""
    if not grids[0].is_long:
        return "".join(grid.html() for grid in grids) + grids[0].legend()
    whole = _joined(grids)
    row = _told(whole)
    if grids[0].is_strip:
        return (
            (markup.heading(whole.title) if whole.title else "")
            + _text(whole, row)
            + grids[0].legend()
            + _top(whole, row)
        )
    maps = "".join(map_html(grid) for grid in grids) + grids[0].legend()
    name = f"{whole.rows[row]}, full colour at {number(whole.ends[row])}"
    return maps + markup.heading(name) + _text(whole, row) + _top(whole, row) + _each_row(whole)


def largest(values: Sequence[float], most: int = LISTED) -> list[int]:
    """Where the largest magnitudes are, the largest first, equal ones in order; without what is no number."""
    there = [i for i, value in enumerate(values) if math.isfinite(value)]
    return sorted(there, key=lambda i: -abs(values[i]))[:most]


def total(values: Sequence[float]) -> float:
    """The sum of magnitudes of the numbers that are some."""
    return math.fsum(abs(value) for value in values if math.isfinite(value))


def around(tokens: Sequence[str], at: int, breaks: Sequence[int] = (), width: int = 28) -> tuple[str, str]:
    """What stands before and after a token, a few tokens and ``width`` characters of it; not escaped."""
    start, stop = max(0, at - _AROUND), min(len(tokens), at + 1 + _AROUND)
    start = max([start, *(i for i in breaks if i <= at)])
    stop = min([stop, *(i for i in breaks if i > at)])
    before, after = ("".join(part).replace("\n", "↵") for part in (tokens[start:at], tokens[at + 1 : stop]))
    left, right = start > 0 or len(before) > width, stop < len(tokens) or len(after) > width
    return "…" * left + before[-width:], after[:width] + "…" * right


def _joined(grids: Sequence[Grid]) -> Grid:
    """All rows of some tables as one, which the lists are made of."""
    names = tuple(f"{grid.title}, {row}".strip(", ") for grid in grids for row in grid.rows)
    return replace(
        grids[0],
        values=[line for grid in grids for line in grid.values],
        rows=names if len(grids) > 1 else grids[0].rows,
        explained=tuple(position for grid in grids for position in grid.explained),
        ends=tuple(end for grid in grids for end in grid.ends or (grid.largest,) * len(grid.rows)),
    )


def _told(grid: Grid) -> int:
    """The row that stands as text: the first, or where rows are about several positions the first about the last."""
    return grid.explained.index(max(grid.explained)) if grid.explained else 0


def _text(grid: Grid, row: int) -> str:
    """One row as running text: what is large on its colour, what is small as plain text that says how much it is."""
    line, end = grid.values[row], grid.ends[row]
    loud = {i for i in largest(line, _BOXES) if abs(line[i]) >= _QUIET * end}
    loud |= {i for i, value in enumerate(line) if not math.isfinite(value)}
    parts = []
    for run in _runs(len(line), loud, grid.breaks):
        parts.append("… " if run[0] in grid.breaks else "")
        parts.append(_box(grid, row, run[0]) if run[0] in loud else _plain(grid, row, run))
    plain = [line[i] for i in range(len(line)) if i not in loud]
    share = percent(total(plain), total(line))
    told = f"plain: {len(plain)} of {len(line)} tokens, {_small(plain, end)}, {share} of the row's sum of magnitudes"
    style = "font-family:ui-monospace,monospace;font-size:13px;line-height:1.6;white-space:pre-wrap"
    text = f'<div dir="ltr" style="{style};overflow-wrap:anywhere">{"".join(parts)}</div>'
    return text + (markup.remark(told) if plain else "")


def _runs(count: int, loud: set[int], breaks: Sequence[int]) -> Iterator[list[int]]:
    """The columns in order, each loud one by itself, the others together as far as they are neighbours in the text."""
    run: list[int] = []
    for i in range(count):
        if run and (i in loud or run[-1] in loud or i in breaks):
            yield run
            run = []
        run.append(i)
    if run:
        yield run


def _box(grid: Grid, row: int, i: int) -> str:
    background, ink = markup.colour(grid.values[row][i], grid.ends[row])
    hover = f"{grid.rows[row]} {grid.columns[i]!r} at {grid.positions[i]}: {number(grid.values[row][i])}".strip()
    style = f"background:{background};color:{ink};{_ROUND}"
    ends = "\n" * grid.columns[i].count("\n")
    return f'<bdi style="{style}" title="{markup.escaped(hover)}">{markup.token(grid.columns[i])}</bdi>{ends}'


def _plain(grid: Grid, row: int, run: Sequence[int]) -> str:
    """Small tokens as text; in a very long prompt folded, but for those beside others."""
    if len(grid.columns) <= _MANY or len(run) <= _FOLD:
        return _words(grid, row, run)
    inner = run[_KEPT:-_KEPT]
    summary = f'<summary style="cursor:pointer;font-size:85%;opacity:.75">… {_sums(grid, row, inner)} …</summary>'
    style = "display:inline-block;vertical-align:top;margin:0 4px"
    folded = f'<details style="{style}">{summary}{_prose(grid, inner)}</details>'
    return _words(grid, row, run[:_KEPT]) + folded + _words(grid, row, run[-_KEPT:])


def _words(grid: Grid, row: int, run: Sequence[int]) -> str:
    return f'<span title="{_sums(grid, row, run)}">{_prose(grid, run)}</span>'


def _prose(grid: Grid, run: Sequence[int]) -> str:
    return markup.prose("".join(grid.columns[i] for i in run))


def _sums(grid: Grid, row: int, run: Sequence[int]) -> str:
    """A run of small tokens in words: how many, how large at most, and how much together."""
    line = grid.values[row]
    values = [line[i] for i in run]
    count = f"{len(run)} token{'s' * (len(run) > 1)}"
    return f"{count}, {_small(values, grid.ends[row])}, {percent(total(values), total(line))} of the row's sum"


def _small(values: Sequence[float], end: float) -> str:
    most = max((abs(value) for value in values), default=0.0)
    return (
        f"all below {percent(_QUIET, 1.0)} of the scale"
        if most < _QUIET * end
        else f"at most {percent(most, end)} of the scale"
    )


def _top(grid: Grid, row: int) -> str:
    """The largest tokens of a row: where they stand, how large they are, and in which row they are largest."""
    line, whole = grid.values[row], [total(values) for values in grid.values]
    top = largest(line)
    columns, rows, words = ["position", grid.unit, "of the row's sum"], [], []
    several = len(grid.rows) > 1
    columns += ["most of a row's sum"] if several else []
    columns += ["by row"] if several and len(grid.rows) <= _MOST_STEPS else []
    for i in top:
        shares = [abs(v[i]) / s if s and math.isfinite(v[i]) else 0.0 for v, s in zip(grid.values, whole, strict=True)]
        peak = shares.index(max(shares))
        cells = [str(grid.positions[i]), number(line[i]), _share(line[i], whole[row])]
        cells += [f"{_share(shares[peak], 1.0)} in {grid.rows[peak]}"] if several else []
        rows.append([*cells, *([_steps(shares)] if "by row" in columns else [])])
        words.append(_context(grid, row, i))
    held = percent(total([line[i] for i in top]), whole[row])
    where = f" of {grid.rows[row]}" if several or grid.rows[row] else ""
    said = f"the {len(top)} largest of {len(line)} tokens{where}: {held} of the row's sum of magnitudes"
    return markup.heading(said) + _list(columns, rows, "token", words)


def _list(columns: Sequence[str], rows: Sequence[Sequence[str]], what: str, words: Sequence[str]) -> str:
    """Numbers in columns, and a last column of HTML; what cells have in common is said once, as lists are long."""
    cell, last = "padding:1px 5px", "padding:1px 5px;text-align:left"
    head = "".join(f'<th style="{cell}">{markup.escaped(name)}</th>' for name in columns)
    body = "".join(
        f'<tr style="background:none"><th style="{cell};font-weight:normal">{markup.prose(first)}</th>'
        + "".join(f'<td style="{cell}">{markup.prose(text)}</td>' for text in rest)
        + f'<td style="{last}">{word}</td></tr>'
        for (first, *rest), word in zip(rows, words, strict=True)
    )
    style = "border-collapse:collapse;width:auto;margin:0;font-size:12px;text-align:right;white-space:nowrap"
    return (
        f'<div style="overflow-x:auto"><table style="{style}"><thead><tr style="background:none">{head}'
        f'<th style="{last}">{what}</th></tr></thead><tbody>{body}</tbody></table></div>'
    )


def _context(grid: Grid, row: int, i: int) -> str:
    before, after = around(grid.columns, i, grid.breaks)
    background, ink = markup.colour(grid.values[row][i], grid.ends[row])
    box = f'<bdi style="background:{background};color:{ink};{_ROUND}">{markup.token(grid.columns[i])}</bdi>'
    style = "white-space:pre;font-family:ui-monospace,monospace"
    return f'<span style="{style}">{markup.prose(before)}{box}{markup.prose(after)}</span>'


def _steps(shares: Sequence[float]) -> str:
    """Shares as blocks of their heights, on a scale of their own."""
    end = max(shares) or 1.0
    return "".join(_STEPS[min(len(_STEPS) - 1, int(len(_STEPS) * share / end))] for share in shares)


def _share(part: float, whole: float) -> str:
    return "< 0.1 %" if 0 < abs(part) < 0.001 * whole else percent(abs(part), whole)


def _each_row(grid: Grid) -> str:
    """Row by row: the end of its scale, the numbers that may be off it, and the largest others."""
    first, about = grid.positions[:1] == (0,), bool(grid.explained)
    columns = ("row", "full colour at", *["position 0"] * first, *["position explained"] * about)
    rows, words = [], []
    for row, (line, end) in enumerate(zip(grid.values[:_MOST_ROWS], grid.ends, strict=False)):
        whole, explained = total(line), column_explained(grid, row)
        apart = [0] * first + [explained] * about
        said = ["–" if i is None else f"{number(line[i])} ({_share(line[i], whole)})" for i in apart]
        others = [i for i in largest(line, _EACH + 2) if i not in apart and line[i]][:_EACH]
        named_ = [f"{named(grid.columns[i])} {grid.positions[i]} ({_share(line[i], whole)})" for i in others]
        rows.append((grid.rows[row], number(end), *said))
        words.append(markup.prose(", ".join(named_)))
    left = len(grid.rows) - len(rows)
    more = markup.remark(f"{left} more rows; select some with sel(...)") if left else ""
    shares = "row by row; in parentheses shares of the row's sum of magnitudes"
    return markup.heading(shares) + _list(columns, rows, "largest others", words) + more
