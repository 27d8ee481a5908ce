"""Labelled tables of floats on one colour scale: what every drawing (static, interactive, printed) is made from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from lens_scopes.views import cells, markup

First = Literal["show", "hide", "share"]

#: An attention sink is one that exceeds everything else by this factor; the colour scale then ends at the others.
#: Rows whose largest numbers differ by this factor get scales of their own, where they may.
_SINK = 3
#: A row below this share of the largest number is rounding, which a scale of its own would paint in full colour.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Grid:
    """Rows by columns of numbers in one unit. A single row without a name is drawn as a line of tokens."""

    values: Sequence[Sequence[float]]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    unit: str
    signed: bool = False
    title: str = ""
    positions: tuple[int, ...] = ()
    """Where the columns are tokens of a prompt: their positions."""
    alone: bool = True
    """Whether a column at position 0 is that token alone, and not a span that begins there."""
    explained: tuple[int, ...] = ()
    """Where it is known: of each row, the position whose prediction it is about."""
    breaks: tuple[int, ...] = ()
    """The columns before which tokens of the prompt are left out."""
    largest: float = 1.0
    """The end of the colour scale."""
    ends: tuple[float, ...] = ()
    """Where rows have scales of their own: their ends."""
    note: str = ""

    @property
    def is_strip(self) -> bool:
        """Whether it is one line of tokens."""
        return bool(self.positions) and len(self.rows) == 1

    @property
    def has_first(self) -> bool:
        """Whether the first column is position 0, which often swallows everything, beside others."""
        return self.positions[:1] == (0,) and self.alone and len(self.columns) > 1

    @property
    def is_long(self) -> bool:
        """Whether the tokens are too many for a table: ``long`` draws such a prompt."""
        return len(self.positions) > cells.MOST_COLUMNS

    @property
    def labels(self) -> tuple[str, ...]:
        """The rows' names, with the ends of their own scales in brackets."""
        if not self.ends:
            return self.rows
        return tuple(f"{row} [{markup.number(end)}]" for row, end in zip(self.rows, self.ends, strict=True))

    def on_scale(self) -> tuple[Sequence[Sequence[float]], float, str]:
        """What a drawing with one scale shows: the numbers, the end of its scale, and what to call it."""
        if not self.ends:
            return self.values, self.largest, self.unit
        shares = [[value / end for value in line] for line, end in zip(self.values, self.ends, strict=True)]
        return shares, 1.0, f"{self.unit} / its row's […]"

    def hovers(self) -> list[list[str]]:
        """What each cell says: row, column, number."""
        names = [f"{token!r} at {at}" for token, at in zip(self.columns, self.positions, strict=False)] or self.columns
        between = " " if self.positions else ", "
        return [
            [
                f"{row}{between}{name}: {markup.number(value)}".strip(" ,")
                for name, value in zip(names, line, strict=True)
            ]
            for row, line in zip(self.rows, self.values, strict=True)
        ]

    def html(self) -> str:
        """The table as a fragment of static HTML, without its legend."""
        head = markup.heading(self.title) if self.title else ""
        if self.is_strip:
            return head + cells.strip(self.columns, self.values[0], self.hovers()[0], self.largest)
        ends = self.ends or (self.largest,) * len(self.rows)
        return head + cells.table(self.columns, self.labels, self.values, self.hovers(), ends)

    def legend(self) -> str:
        """The colour scale with its numbers."""
        return markup.legend(self.largest, self.signed, self.unit, by_row=bool(self.ends))


def measure(what: str, values: Tensor, stderr: Tensor | None) -> str:
    """What numbers are, with the standard error of an estimate: "squared units, ± 12 %" (its sum over theirs)."""
    return what if stderr is None else f"{what}, {plus_minus(values.abs().sum(), stderr.sum())}"


def plus_minus(value: Tensor, stderr: Tensor) -> str:
    """A standard error as a share of its value; blank where there is nothing to be wrong about."""
    share = float(stderr / value.abs())
    return f"± {100 * share:.2g} %" if math.isfinite(share) else ""


def on_one_scale(
    grids: Sequence[Grid], first: First = "show", by_row: bool = False, *, together: bool = False
) -> list[Grid]:
    """Give tables of one unit one colour scale, and treat their first position as asked.

    Args:
        grids: tables of the same unit.
        first: what to do with position 0, which often swallows everything (an attention sink). "show" keeps it and,
            where it exceeds the others threefold, ends the scale at the others; "hide" leaves it out; "share" leaves
            it out and says in each row's name which share of the row's sum of magnitudes it had.
        by_row: rows may have scales of their own, as layers do: the stream grows, and scores shrink with it, so that
            one scale would leave all but the first white. They get them where their ends differ threefold. Rows of a
            long prompt always have them, and there the position explained may be off its row's scale as position 0
            may.
        together: the tables are results side by side: rows of one name have one scale in all of them, and several
            single lines of a long prompt stay tables of their own, where they otherwise become the rows of one.

    Returns:
        The tables with ``largest`` (or ``ends``) and ``note`` filled in.

    Raises:
        ValueError: another word for ``first``.

    """
    check_first(first)
    if not together and len(grids) > 1 and all(grid.is_long and len(grid.rows) == 1 for grid in grids):
        grids = [stacked(grids)]
    names = [[(0 if together else n, row) for row in grid.rows] for n, grid in enumerate(grids)]
    if first != "show":
        grids = [_without_first(grid, share=first == "share") for grid in grids]
    long = any(grid.is_long for grid in grids)
    shared = _shared(grids, names)
    own = list(shared.values())
    floor = _ROUNDING * max(own, default=0.0)
    by_row = (by_row and len(set(own)) > 1 and max(own) > _SINK * max(min(own), floor)) or long
    if by_row and any(len(grid.rows) > 1 for grid in grids):  # a strip has no name to say its end
        ends = [tuple(max(shared[name], floor) or 1.0 for name in rows) for rows in names]
        return [_by_row(grid, of_rows) for grid, of_rows in zip(grids, ends, strict=True)]
    if long:
        largest = max(own) or 1.0
        note = _off(grids, [(largest,) * len(grid.rows) for grid in grids], "this scale")
    else:
        full = max((markup.bound(grid.values) for grid in grids), default=1.0)
        rest = max((markup.bound(grid.values, skip_first=grid.has_first) for grid in grids), default=1.0)
        clipped = full > _SINK * rest
        note = f"position 0 reaches {markup.number(full)}, off this scale" if clipped else ""
        largest = rest if clipped else full
    return [replace(grid, largest=largest, note="; ".join(filter(None, (grid.note, note)))) for grid in grids]


def stacked(grids: Sequence[Grid]) -> Grid:
    """The rows of some tables of the same columns as one table; what named a table names its rows."""
    return replace(
        grids[0],
        values=[line for grid in grids for line in grid.values],
        rows=tuple(f"{grid.title} {row}".strip() for grid in grids for row in grid.rows),
        explained=tuple(position for grid in grids for position in grid.explained),
        title="",
    )


def _ends(grid: Grid) -> list[tuple[float, list[int]]]:
    """The end of each row's own scale, and the columns off it; 0 for a row without a number above 0."""
    found = []
    for row, line in enumerate(grid.values):
        sizes = [abs(v) if math.isfinite(v) else 0.0 for v in line]
        apart = _apart(grid, row)
        rest = max((size for i, size in enumerate(sizes) if i not in apart), default=0.0)
        off = [i for i in apart if sizes[i] > _SINK * rest and rest > _ROUNDING * sizes[i]]
        found.append((max((size for i, size in enumerate(sizes) if i not in off), default=0.0), off))
    return found


def _apart(grid: Grid, row: int) -> list[int]:
    """The columns that do not set a row's scale where they exceed the others by far: position 0, the one explained."""
    sink = [0] if grid.has_first else []
    explained = column_explained(grid, row) if grid.is_long else None
    return sink if explained is None or explained in sink else [*sink, explained]


def column_explained(grid: Grid, row: int) -> int | None:
    """The column of the position that a row is about; None where it is not known or not there."""
    if not grid.explained or grid.explained[row] not in grid.positions:
        return None
    return grid.positions.index(grid.explained[row])


def _shared(grids: Sequence[Grid], names: Sequence[Sequence[tuple[int, str]]]) -> dict[tuple[int, str], float]:
    """By name, the end of the scale of all rows of that name."""
    found: dict[tuple[int, str], float] = {}
    for grid, rows in zip(grids, names, strict=True):
        for name, (end, _) in zip(rows, _ends(grid), strict=True):
            found[name] = max(found.get(name, 0.0), end)
    return found


def _by_row(grid: Grid, ends: tuple[float, ...]) -> Grid:
    note = _off([grid], [ends], "its row's scale")
    return replace(grid, ends=ends, note="; ".join(filter(None, (grid.note, note))))


def _off(grids: Sequence[Grid], scales: Sequence[Sequence[float]], what: str) -> str:
    """What is off the scale, in words."""
    first, explained = [], []
    for grid, ends in zip(grids, scales, strict=True):
        for line, end, (_, off) in zip(grid.values, ends, _ends(grid), strict=True):
            for i in (i for i in off if abs(line[i]) > end):
                (explained if grid.positions[i] else first).append(abs(line[i]))
    parts = [("position 0", first), ("the position explained", explained)]
    said = [f"{name} reaches {markup.number(max(sizes))}" for name, sizes in parts if sizes]
    return f"{' and '.join(said)}, off {what}" if said else ""


def check_first(first: str) -> None:
    """Refuse what ``first`` does not know.

    Raises:
        ValueError: neither "show", "hide" nor "share".

    """
    if first not in ("show", "hide", "share"):
        msg = f"first says what to do with position 0: 'show', 'hide' or 'share', got {first!r}; write first='hide'"
        raise ValueError(msg)


def percent(part: float, whole: float) -> str:
    """A share as text; a dash where there is no whole."""
    return f"{100 * part / whole:.3g} %" if whole and math.isfinite(part) and math.isfinite(whole) else "–"


def _without_first(grid: Grid, share: bool) -> Grid:
    if not grid.has_first:
        stays = "position 0 is part of the first column and stays" if grid.positions[:1] == (0,) else ""
        return replace(grid, note="; ".join(filter(None, (grid.note, stays))))
    rows, notes = grid.rows, ["position 0 is left out"]
    if share:
        sums = [sum(abs(v) for v in line if math.isfinite(v)) for line in grid.values]
        shares = [percent(abs(line[0]), whole) for line, whole in zip(grid.values, sums, strict=True)]
        if grid.is_strip:
            notes = [f"position 0 is left out: it has {shares[0]} of the sum of magnitudes"]
        else:
            rows = tuple(f"{row} ({one})" for row, one in zip(rows, shares, strict=True))
            notes = ["position 0 is left out: in parentheses its share of each row's sum of magnitudes"]
    return replace(
        grid,
        values=[line[1:] for line in grid.values],
        rows=rows,
        columns=grid.columns[1:],
        positions=grid.positions[1:],
        note="; ".join(filter(None, (grid.note, *notes))),
    )
