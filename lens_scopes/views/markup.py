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
_GREY = (158, 158, 158)
MISSING = "#{:02x}{:02x}{:02x}".format(*_GREY)
#: How a token stands in a cell, and how a row's name does.
CELL = "padding:1px 3px;border-radius:2px;font-family:ui-monospace,monospace;white-space:pre;unicode-bidi:isolate"
LABEL = "padding:0 6px;text-align:right;white-space:nowrap;font-weight:normal;opacity:.75"
_MARKS = {"\n": "↵", "\r": "␍", "\t": "⇥", "": "∅"}
# Characters that reorder or hide what stands around them.
_UNSAFE = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\ufffe\uffff\U000e0000-\U000e0fff]"
)
# Blanks that are not the one that they look like.
_BLANKS = re.compile("[\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]")
# Words of a right-to-left script: one after the other they keep their order, whatever stands beside them theirs.
_RIGHT = "\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff"
_RIGHT_TO_LEFT = re.compile(f"[{_RIGHT}]+(?: +[{_RIGHT}]+)*")


def token(text: str, longest: int = 24) -> str:
    """A token's text for a page: ``visible`` and escaped."""
    return html.escape(visible(text, longest), quote=True)


def visible(text: str, longest: int = 24) -> str:
    """A token's text for display: blanks and control characters made visible, long ones cut; not escaped."""
    shown = _MARKS.get(text) or "".join(_MARKS.get(c, c) for c in text)
    shown = _UNSAFE.sub(lambda found: f"\\u{ord(found.group()):04x}", shown)
    shown = _BLANKS.sub(lambda found: f"\\u{ord(found.group()):04x}", shown)
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


def explanations(meta: Mapping[str, Any]) -> list[str]:
    """What is explained at each position that a result is about, where it is a token; not escaped."""
    only = meta.get("selected", {}).get("target_pos")
    about = zip(meta.get("positions", ()), meta.get("targets", ()), strict=False)
    tokens = [tokens_of(target) for position, target in about if only is None or position == only]
    return [" against ".join(map(explained, some)) for some in tokens if some]


def plain(text: str) -> str:
    """Running text: whole, characters that hide or reorder made visible, line breaks kept; not escaped."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def escaped(text: str) -> str:
    """``plain`` text for a page."""
    return html.escape(plain(text), quote=True)


def prose(text: str) -> str:
    """``escaped`` words around tokens: right-to-left ones are isolated, or they would reorder quotes and numbers."""
    return _RIGHT_TO_LEFT.sub(lambda found: f"<bdi>{found.group()}</bdi>", escaped(text))


def number(value: float) -> str:
    """Three significant digits."""
    return "NaN" if math.isnan(value) else f"{value:.3g}"


def bound(values: Matrix, skip_first: bool = False) -> float:
    """The largest finite magnitude: the end of the colour scale (1 where all is zero)."""
    finite = [abs(v) for row in values for v in row[int(skip_first) :] if math.isfinite(v)]
    return max(finite, default=0.0) or 1.0


def shade(value: float, largest: float) -> tuple[int, int, int]:
    """Red, green and blue of a value on the scale 0..largest (or -largest..largest); grey without a number."""
    if not math.isfinite(value):
        return _GREY
    share = min(1.0, abs(value) / largest)
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(LOW, NEGATIVE if value < 0 else HIGH, strict=True))
    return red, green, blue


def colour(value: float, largest: float) -> tuple[str, str]:
    """Background and text colour of a value: its ``shade``, and what can be read on it."""
    rgb = shade(value, largest)
    # Black or white, whichever stands out more: by WCAG 2's luminance one of the two always has a contrast of 4.5.
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return f"rgb({rgb[0]},{rgb[1]},{rgb[2]})", "#000" if luminance > 0.179 else "#fff"


def beside(*parts: str) -> str:
    """Parts side by side where there is room, one below the other where there is not."""
    box = (
        '<div style="display:inline-block;vertical-align:top;padding-right:24px;box-sizing:border-box;max-width:100%">'
    )
    return "".join(f"{box}{part}</div>" for part in parts)


def predictions(meta: Mapping[str, Any], most: int = 3) -> str:
    """What the model says next and what is explained, for the first few positions that a result is about."""
    lines = []
    known = list(enumerate(zip(meta.get("positions", ()), meta.get("predictions", ()), strict=False)))
    only = meta.get("selected", {}).get("target_pos")
    known = [one for one in known if only is None or one[1][0] == only]
    for n, (position, top) in known[:most]:
        guesses = "".join(
            f'<span style="margin-right:10px;display:inline-block;white-space:nowrap">'
            f'<span style="{CELL}">{html.escape(named(guess["text"]), quote=True)}</span> {guess["p"]:.1%}</span>'
            for guess in top
        )
        about = tokens_of(meta["targets"][n]) if meta.get("targets") else []
        aim = f"explained: {' against '.join(prose(explained(one)) for one in about)}; " if about else ""
        lines.append(f'<div style="opacity:.8;font-size:90%">{aim}predicted after position {position}: {guesses}</div>')
    more = f"({len(known) - most} later positions are explained too)" if len(known) > most else ""
    return "".join(lines) + (remark(more) if more else "")


def heading(text: str) -> str:
    """A small heading inside a figure."""
    return f'<div style="margin-top:8px;opacity:.85">{prose(text)}</div>'


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
    return f'<div style="font-size:85%;opacity:.75">{prose(text)}</div>'


def figure(title: str, *parts: str, note: str = "") -> str:
    """A titled block of the parts above."""
    foot = remark(note) if note else ""
    return (
        '<div style="margin:6px 0;font-family:system-ui,sans-serif;font-size:14px">'
        f'<div style="font-weight:600;margin-bottom:4px">{prose(title)}</div>{"".join(parts)}{foot}</div>'
    )


def numbers(columns: Sequence[str], rows: Sequence[Sequence[str]], bars: Sequence[str] = ()) -> str:
    """A plain table of words and numbers; the first column names the row; at the end a ``bar`` where there are some."""
    cell = "padding:2px 5px;text-align:right;white-space:nowrap;font-size:12px"
    head = "".join(f'<th style="{cell}">{html.escape(name)}</th>' for name in columns)
    ends = [f'<td style="{cell};text-align:left">{one}</td>' for one in bars] or [""] * len(rows)
    body = "".join(
        f'<tr style="background:none"><th style="{LABEL}">{prose(first)}</th>'
        + "".join(f'<td style="{cell}">{prose(text)}</td>' for text in rest)
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
        f'<tr style="background:none"><th style="{LABEL};vertical-align:top">{html.escape(name)}</th>'
        f'<td style="{cell}">{prose(text)}</td></tr>'
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
