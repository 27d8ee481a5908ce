"""Strings and floats -> safe HTML: escaped, styled inline, without script, so that it survives untrusted notebooks.

This file never sees a tensor or a result. Colours: white to blue for unsigned numbers, orange through white to blue for
signed ones (told apart with any colour vision); numbers on hover and in the legend. Every coloured cell sets its own
text colour, so that light and dark pages both work; everything else inherits the page's.
"""

import html
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lens_scopes.results.provenance import Token, tokens_of

Matrix = Sequence[Sequence[float]]

#: The ends of the scales, red, green and blue: white, blue, orange; and what has no number.
LOW, HIGH = (247, 251, 255), (8, 69, 148)
NEGATIVE = (179, 88, 6)
MISSING = "#9e9e9e"
_CELL = "padding:1px 3px;border-radius:2px;font-family:ui-monospace,monospace;white-space:pre;unicode-bidi:isolate"
_LABEL = "padding:0 6px;text-align:right;white-space:nowrap;font-weight:normal;opacity:.75"
# Columns in one block of a table, and how many at most have their numbers written in the cells.
_BLOCK, _NARROW = 50, 20
# Tokens in one piece of a long line of tokens, and from where on a line is long.
_PIECE, _LONG = 100, 600
# What stays below this share of the scale everywhere in a block (or piece) is folded away: it would look empty.
_QUIET = 0.05
_MARKS = {"\n": "↵", "\r": "␍", "\t": "⇥", "": "∅"}
# Characters that reorder or hide what stands around them.
_UNSAFE = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")


def token(text: str, longest: int = 24) -> str:
    """A token's text for a page: ``visible`` and escaped."""
    return html.escape(visible(text, longest), quote=True)


def visible(text: str, longest: int = 24) -> str:
    """A token's text for display: blanks and control characters made visible, long ones cut; not escaped."""
    shown = _MARKS.get(text) or "".join(_MARKS.get(c, c) for c in text)
    shown = _UNSAFE.sub(lambda found: f"\\u{ord(found.group()):04x}", shown)
    if shown.strip() == "":
        shown = "".join("·" if c == " " else f"\\u{ord(c):04x}" for c in shown)
    if len(shown) > longest:
        shown = shown[: longest - 1] + "…"
    return shown


def named(text: str, longest: int = 24) -> str:
    """A token by itself, in words: ``visible``, and blanks at its ends are seen; not escaped."""
    bare = text.strip(" ")
    if not bare:
        return visible(text, longest)
    left, right = len(text) - len(text.lstrip(" ")), len(text) - len(text.rstrip(" "))
    return "␣" * left + visible(bare, longest) + "␣" * right


def explained(token: Token) -> str:
    """A token that is explained, with how likely the model finds it and its rank where that is known; not escaped."""
    known = f" ({token['p']:.2%}, rank {token['rank']})" if "p" in token and "rank" in token else ""
    return f"“{named(token['text'])}”{known}"


def escaped(text: str) -> str:
    """Running text for a page: whole, characters that hide or reorder made visible, line breaks kept."""
    return html.escape(_UNSAFE.sub(lambda found: f"\\u{ord(found.group()):04x}", text), quote=True)


def number(value: float) -> str:
    """Three significant digits."""
    return "NaN" if math.isnan(value) else f"{value:.3g}"


def bound(values: Matrix, skip_first: bool = False) -> float:
    """The largest finite magnitude: the end of the colour scale (1 where all is zero)."""
    finite = [abs(v) for row in values for v in row[int(skip_first) :] if math.isfinite(v)]
    return max(finite, default=0.0) or 1.0


def colour(value: float, largest: float) -> tuple[str, str]:
    """Background and text colour of a value on the scale 0..largest (or -largest..largest)."""
    if not math.isfinite(value):
        return MISSING, "#000"
    share = min(1.0, abs(value) / largest)
    end = NEGATIVE if value < 0 else HIGH
    rgb = [round(low + (high - low) * share) for low, high in zip(LOW, end, strict=True)]
    # Black or white, whichever stands out more: by WCAG 2's luminance one of the two always has a contrast of 4.5.
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return f"rgb({rgb[0]},{rgb[1]},{rgb[2]})", "#000" if luminance > 0.179 else "#fff"


def strip(tokens: Sequence[str], values: Sequence[float], hovers: Sequence[str], largest: float) -> str:
    """Tokens in a line of text, each on the colour of its value; pieces of a very long one are folded where pale."""
    size = _PIECE if len(tokens) > _LONG else max(1, len(tokens))
    pieces = []
    for start in range(0, len(tokens), size):
        part = slice(start, start + size)
        drawn = _line(tokens[part], values[part], hovers[part], largest)
        pieces.append((start, drawn, _quiet([values[part]], [largest])))
    return _folded(pieces, tokens, "tokens")


def _line(tokens: Sequence[str], values: Sequence[float], hovers: Sequence[str], largest: float) -> str:
    spans = []
    for text, value, hover in zip(tokens, values, hovers, strict=True):
        background, ink = colour(value, largest)
        style = f"{_CELL};display:inline-block;margin:1px;background:{background};color:{ink}"
        spans.append(f'<span style="{style}" title="{escaped(hover)}">{token(text)}</span>')
    return f'<div style="line-height:1.7">{"".join(spans)}</div>'


def table(
    columns: Sequence[str],
    rows: Sequence[str],
    values: Matrix,
    hovers: Sequence[Sequence[str]],
    ends: Sequence[float],
    what: str = "columns",
) -> str:
    """Rows by columns as coloured cells; numbers on hover, and in the cells of a narrow table.

    Long column names stand upright. A table with more columns than fit a page is broken into blocks, and those in
    which nothing would be seen are folded. ``ends``: of each row's colour scale; ``what`` the columns are.
    """
    blocks = []
    for start in range(0, max(1, len(columns)), _BLOCK):
        part = slice(start, start + _BLOCK)
        cut = [line[part] for line in values]
        drawn = _block(columns[part], rows, cut, [h[part] for h in hovers], ends, len(columns) <= _NARROW)
        blocks.append((start, drawn, len(columns) > _BLOCK and _quiet(cut, ends)))
    return _folded(blocks, columns, what)


def _quiet(values: Matrix, ends: Sequence[float]) -> bool:
    return all(abs(v) < _QUIET * end for line, end in zip(values, ends, strict=True) for v in line)


def _folded(pieces: Sequence[tuple[int, str, bool]], names: Sequence[str], what: str) -> str:
    """The pieces one after the other; neighbours that are quiet together in one closed element that says so."""
    if all(quiet for _, _, quiet in pieces):
        return "".join(drawn for _, drawn, _ in pieces)
    found, at = [], 0
    while at < len(pieces):
        after = at
        while after < len(pieces) and pieces[after][2]:
            after += 1
        if after == at:
            found.append(pieces[at][1])
            at += 1
            continue
        start, stop = pieces[at][0], pieces[after][0] if after < len(pieces) else len(names)
        said = f"{stop - start} {what}, “{token(names[start])}” to “{token(names[stop - 1])}”"
        inside = "".join(drawn for _, drawn, _ in pieces[at:after])
        found.append(
            f'<details><summary style="cursor:pointer;font-size:85%;opacity:.75">{said}: '
            f"all below {_QUIET:.0%} of the scale</summary>{inside}</details>"
        )
        at = after
    return "".join(found)


def _block(
    columns: Sequence[str],
    rows: Sequence[str],
    values: Matrix,
    hovers: Sequence[Sequence[str]],
    ends: Sequence[float],
    narrow: bool,
) -> str:
    flat = all(len(visible(name)) <= 4 for name in columns) and narrow
    turn = "" if flat else ";padding:3px 0;line-height:1;writing-mode:vertical-rl;transform:rotate(180deg)"
    width = 34 if narrow else 14
    head = "".join(
        f'<th style="font-weight:normal;padding:0;vertical-align:bottom;text-align:center;min-width:{width}px">'
        f'<div style="{_CELL};font-size:12px{turn};display:inline-block">{token(name, 16)}</div></th>'
        for name in columns
    )
    body = []
    for name, row, row_hovers, end in zip(rows, values, hovers, ends, strict=True):
        cells = []
        for value, hover in zip(row, row_hovers, strict=True):
            background, ink = colour(value, end)
            style = f"background:{background};padding:0"
            text = ""
            if narrow:
                style += f";color:{ink};text-align:center;font-size:10px"
                text = short(value, end)
            cells.append(f'<td style="{style}" title="{escaped(hover)}">{text}</td>')
        label = f'<th style="{_LABEL}">{html.escape(name)}</th>'
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
    background, _ = colour(math.copysign(0.7 * largest, value) if math.isfinite(value) else value, largest)
    width = round(90 * min(1.0, abs(value) / largest)) if math.isfinite(value) else 0
    return f'<div style="background:{background};height:10px;width:{width}px;min-width:1px"></div>'


def scatter(x: Sequence[float], y: Sequence[float], names: Sequence[str], size: int = 32) -> str:
    """Measured (up) against predicted (across) as a map of counts, with the line where both are equal in grey."""
    low, high = min(*x, *y), max(*x, *y)
    step = (high - low) / size or 1.0
    found: dict[tuple[int, int], list[str]] = {}
    for across, up, name in zip(x, y, names, strict=True):
        row, column = (min(size - 1, int((value - low) / step)) for value in (up, across))
        found.setdefault((row, column), []).append(f"{name}: predicted {number(across)}, measured {number(up)}")
    most = math.log1p(max(map(len, found.values())))
    box = "padding:0;width:8px;height:8px;min-width:8px;border:0"
    body = []
    for up in reversed(range(size)):
        cells = []
        for across in range(size):
            here = found.get((up, across), [])
            # A single place is seen too: the scale of counts is logarithmic and begins at a third.
            shade = colour(1 / 3 + 2 / 3 * math.log1p(len(here)) / most, 1.0)[0] if here else "#9e9e9e55"
            ground = f";background:{shade}" if here or up == across else ""
            more = [f"and {len(here) - 4} more"] if len(here) > 4 else []
            hover = f' title="{escaped("; ".join([*here[:4], *more]))}"' if here else ""
            cells.append(f'<td style="{box}{ground}"{hover}></td>')
        body.append(f'<tr style="background:none">{"".join(cells)}</tr>')
    said = f"measured (up) against predicted (across), both from {number(low)} to {number(high)}; grey: equal"
    frame = "border-collapse:collapse;border:1px solid #9e9e9e;width:auto;margin:0"
    return f'<table style="{frame}"><tbody>{"".join(body)}</tbody></table><div style="width:270px">{remark(said)}</div>'


def beside(*parts: str) -> str:
    """Parts side by side where there is room, one below the other where there is not."""
    box = '<div style="display:inline-block;vertical-align:top;margin-right:24px;max-width:100%">'
    return "".join(f"{box}{part}</div>" for part in parts)


def predictions(meta: Mapping[str, Any], most: int = 3) -> str:
    """What the model says next and what is explained, for the last few positions that a result is about."""
    lines = []
    known = list(enumerate(zip(meta.get("positions", ()), meta.get("predictions", ()), strict=False)))
    only = meta.get("selected", {}).get("target_pos")
    known = [one for one in known if only is None or one[1][0] == only]
    for n, (position, top) in known[-most:]:
        guesses = "".join(
            f'<span style="margin-right:10px;display:inline-block;white-space:nowrap">'
            f'<span style="{_CELL}">{html.escape(named(guess["text"]), quote=True)}</span> {guess["p"]:.1%}</span>'
            for guess in top
        )
        about = tokens_of(meta["targets"][n]) if meta.get("targets") else []
        aim = (
            f"explained: {' against '.join(html.escape(explained(one), quote=True) for one in about)}; "
            if about
            else ""
        )
        lines.append(f'<div style="opacity:.8;font-size:90%">{aim}predicted after position {position}: {guesses}</div>')
    more = f"({len(known) - most} earlier positions are explained too)" if len(known) > most else ""
    return (remark(more) if more else "") + "".join(lines)


def heading(text: str) -> str:
    """A small heading inside a figure."""
    return f'<div style="margin-top:8px;opacity:.85">{html.escape(text)}</div>'


def legend(largest: float, signed: bool, unit: str, by_row: bool = False) -> str:
    """The colour scale with its numbers; ``by_row``: these stand in the rows' names."""
    low = -largest if signed else 0.0
    ends = (number(low), number(largest))
    if by_row:
        ends, unit = ("−[…]" if signed else "0", "[…]"), f"{unit}, each row on its own scale: its end is in brackets"
    steps = [low + (largest - low) * i / 8 for i in range(9)]
    box = "display:inline-block;width:18px;height:10px;background:"
    swatches = "".join(f'<span style="{box}{colour(step, largest)[0]}"></span>' for step in steps)
    return (
        f'<div style="font-size:85%;margin-top:4px">{ends[0]} {swatches} {ends[1]} '
        f'<span style="opacity:.75">{html.escape(unit)}</span></div>'
    )


def remark(text: str) -> str:
    """A remark under a figure."""
    return f'<div style="font-size:85%;opacity:.75">{html.escape(text)}</div>'


def figure(title: str, *parts: str, note: str = "") -> str:
    """A titled block of the parts above."""
    foot = remark(note) if note else ""
    return (
        '<div style="margin:6px 0;font-family:system-ui,sans-serif;font-size:14px">'
        f'<div style="font-weight:600;margin-bottom:4px">{html.escape(title)}</div>{"".join(parts)}{foot}</div>'
    )


def numbers(columns: Sequence[str], rows: Sequence[Sequence[str]], bars: Sequence[str] = ()) -> str:
    """A plain table of words and numbers; the first column names the row; at the end a ``bar`` where there are some."""
    cell = "padding:2px 5px;text-align:right;white-space:nowrap;font-size:12px"
    head = "".join(f'<th style="{cell}">{html.escape(name)}</th>' for name in columns)
    ends = [f'<td style="{cell};text-align:left">{one}</td>' for one in bars] or [""] * len(rows)
    body = "".join(
        f'<tr style="background:none"><th style="{_LABEL}">{html.escape(first)}</th>'
        + "".join(f'<td style="{cell}">{html.escape(text)}</td>' for text in rest)
        + f"{end}</tr>"
        for (first, *rest), end in zip(rows, ends, strict=True)
    )
    return (
        '<div style="overflow-x:auto"><table style="border-collapse:collapse;width:auto">'
        f'<thead><tr style="background:none">{head}{"<th></th>" if bars else ""}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and what they are, one per line."""
    cell = "padding:1px 8px;text-align:left;white-space:normal;overflow-wrap:anywhere"
    body = "".join(
        f'<tr style="background:none"><th style="{_LABEL};vertical-align:top">{html.escape(name)}</th>'
        f'<td style="{cell}">{escaped(text)}</td></tr>'
        for name, text in pairs
    )
    return f'<table style="border-collapse:collapse;width:auto;font-size:90%"><tbody>{body}</tbody></table>'


def page(title: str, *figures: str) -> str:
    """A whole page that loads nothing: no script and, by its own policy, no outside address."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:"><meta name="color-scheme" content="light dark">'
        f"<title>{html.escape(title)}</title></head>"
        f'<body style="max-width:1100px;margin:24px auto;padding:0 16px;font-family:system-ui,sans-serif">'
        f"{''.join(figures)}</body></html>\n"
    )
