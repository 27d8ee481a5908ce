"""Numbers as coloured cells: a line of tokens, a table, bars, and a map of counts. See ``markup`` for the colours."""

import math
from collections.abc import Sequence

from lens_scopes.views import markup

#: Columns that a page has room for side by side.
MOST_COLUMNS = 50
# And how many at most have their numbers written in the cells.
_NARROW = 20


def strip(tokens: Sequence[str], values: Sequence[float], hovers: Sequence[str], largest: float) -> str:
    """Tokens in a line of text, each on the colour of its value."""
    spans = []
    for text, value, hover in zip(tokens, values, hovers, strict=True):
        background, ink = markup.colour(value, largest)
        style = f"{markup.CELL};display:inline-block;margin:1px;background:{background};color:{ink}"
        spans.append(f'<span style="{style}" title="{markup.escaped(hover)}">{markup.token(text)}</span>')
    return f'<div style="line-height:1.7">{"".join(spans)}</div>'


def table(
    columns: Sequence[str],
    rows: Sequence[str],
    values: markup.Matrix,
    hovers: Sequence[Sequence[str]],
    ends: Sequence[float],
) -> str:
    """Rows by columns as coloured cells; numbers on hover, and in the cells of a narrow table.

    Long column names stand upright. A table with more columns than fit a page is broken into blocks. ``ends``: of each
    row's colour scale.
    """
    blocks = []
    for start in range(0, max(1, len(columns)), MOST_COLUMNS):
        part = slice(start, start + MOST_COLUMNS)
        cut = [line[part] for line in values]
        blocks.append(_block(columns[part], rows, cut, [h[part] for h in hovers], ends, len(columns) <= _NARROW))
    return "".join(blocks)


def _block(
    columns: Sequence[str],
    rows: Sequence[str],
    values: markup.Matrix,
    hovers: Sequence[Sequence[str]],
    ends: Sequence[float],
    narrow: bool,
) -> str:
    flat = all(len(markup.visible(name)) <= 4 for name in columns) and narrow
    turn = "" if flat else ";padding:3px 0;line-height:1;writing-mode:vertical-rl;transform:rotate(180deg)"
    width = 34 if narrow else 14
    head = "".join(
        f'<th style="font-weight:normal;padding:0;vertical-align:bottom;text-align:center;min-width:{width}px">'
        f'<div style="{markup.CELL};font-size:12px{turn};display:inline-block">{markup.token(name, 16)}</div></th>'
        for name in columns
    )
    body = []
    for name, row, row_hovers, end in zip(rows, values, hovers, ends, strict=True):
        cells = []
        for value, hover in zip(row, row_hovers, strict=True):
            background, ink = markup.colour(value, end)
            style = f"background:{background};padding:0"
            text = ""
            if narrow:
                style += f";color:{ink};text-align:center;font-size:10px"
                text = short(value, end)
            cells.append(f'<td style="{style}" title="{markup.escaped(hover)}">{text}</td>')
        label = f'<th style="{markup.LABEL}">{markup.prose(name)}</th>'
        body.append(f'<tr style="height:15px;background:none">{label}{"".join(cells)}</tr>')
    return (
        '<div style="overflow-x:auto"><table style="border-collapse:separate;border-spacing:1px;width:auto;margin:0">'
        f'<thead><tr style="background:none"><th></th>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )


def short(value: float, largest: float) -> str:
    """A number for a cell: as many places as make a hundredth of the scale's end visible; nothing below that."""
    if math.isnan(value):
        return "NaN"
    if abs(value) < 0.005 * largest:
        return ""
    if not 0.01 <= largest < 1000:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    text = f"{value:.{max(0, 1 - math.floor(math.log10(largest / 4)))}f}"
    if not float(text):
        return ""
    return text.replace("0.", ".", 1) if largest < 0.1 else text  # four places fit a cell without the zero only


def bar(value: float, largest: float) -> str:
    """A bar of the value's length, in a shade of its sign's colour that is seen on light and on dark pages."""
    background, _ = markup.colour(math.copysign(0.7 * largest, value) if math.isfinite(value) else value, largest)
    width = round(90 * min(1.0, abs(value) / largest)) if math.isfinite(value) else 0
    return f'<div style="background:{background};height:10px;width:{width}px;min-width:1px"></div>'


def scatter(x: Sequence[float], y: Sequence[float], names: Sequence[str], size: int = 32) -> str:
    """Measured (up) against predicted (across) as a map of counts, with the line where both are equal in grey."""
    low, high = min(*x, *y), max(*x, *y)
    step = (high - low) / size or 1.0
    found: dict[tuple[int, int], list[str]] = {}
    for across, up, name in zip(x, y, names, strict=True):
        row, column = (min(size - 1, int((value - low) / step)) for value in (up, across))
        found.setdefault((row, column), []).append(
            f"{name}: predicted {markup.number(across)}, measured {markup.number(up)}"
        )
    most = math.log1p(max(map(len, found.values())))
    box = "padding:0;width:8px;height:8px;min-width:8px;border:0"
    body = []
    for up in reversed(range(size)):
        cells = []
        for across in range(size):
            here = found.get((up, across), [])
            # A single place is seen too: the scale of counts is logarithmic and begins at a third.
            shade = markup.colour(1 / 3 + 2 / 3 * math.log1p(len(here)) / most, 1.0)[0] if here else "#9e9e9e55"
            ground = f";background:{shade}" if here or up == across else ""
            more = [f"and {len(here) - 4} more"] if len(here) > 4 else []
            hover = f' title="{markup.escaped("; ".join([*here[:4], *more]))}"' if here else ""
            cells.append(f'<td style="{box}{ground}"{hover}></td>')
        body.append(f'<tr style="background:none">{"".join(cells)}</tr>')
    span = f"both from {markup.number(low)} to {markup.number(high)}"
    said = markup.remark(f"measured (up) against predicted (across), {span}; grey: equal")
    frame = "border-collapse:collapse;border:1px solid #9e9e9e;width:auto;margin:0"
    return f'<table style="{frame}"><tbody>{"".join(body)}</tbody></table><div style="width:270px">{said}</div>'
