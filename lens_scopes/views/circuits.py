"""circuitsvis without its network: the bundle from its wheel, figures as data, and a page that may load nothing.

circuitsvis's own ``str()`` points at a CDN, its ``_repr_html_`` asks a web site whether there is a network, and it
puts tokens into the page as HTML. Here the bundle is inlined once per page, figures are JSON, tokens are made harmless,
and a content-security policy names the page's scripts by their hashes: nothing else runs, nothing is fetched.
"""

import base64
import functools
import hashlib
import html as escape
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from lens_scopes.views import markup

#: Colours of the ends of the scales, as everywhere in this package.
NEGATIVE, POSITIVE = ("#{:02x}{:02x}{:02x}".format(*rgb) for rgb in (markup.NEGATIVE, markup.HIGH))
_WORD_JOINER = "\u2060"

# Draws every figure that is not inside a closed <details>, and those when they are opened.
_DRAW = """\
"use strict";
for (const figure of JSON.parse(document.getElementById("lens-figures").textContent)) {
  const draw = () => CircuitsVis.render(figure.id, CircuitsVis[figure.component], figure.props);
  const closed = document.getElementById(figure.id).closest("details:not([open])");
  if (closed) closed.addEventListener("toggle", draw, { once: true });
  else draw();
}
"""


@dataclass(frozen=True)
class Figure:
    """One circuitsvis component with its properties: JSON-like, no tensors."""

    component: str
    props: Mapping[str, Any]
    height: int
    """Pixels that it needs on a page some 900 wide; a guess, the frame scrolls."""
    title: str = ""
    note: str = ""


def colored_tokens(tokens: Sequence[str], values: Sequence[float], largest: float) -> Figure:
    """Tokens in a line, on a symmetric scale; a value that is missing is written behind its token."""
    props = {
        "tokens": harmless(tokens, [math.isnan(v) for v in values]),
        "values": [rounded(v) for v in values],
        "minValue": -largest,
        "maxValue": largest,
        "negativeColor": NEGATIVE,
        "positiveColor": POSITIVE,
    }
    return Figure("ColoredTokens", props, 60 + _lines(tokens) * 24)


def colored_tokens_multi(
    tokens: Sequence[str],
    rows: Sequence[str],
    values: Sequence[Sequence[float]],
    skip_first: bool,
    ends: Sequence[float] = (),
) -> Figure:
    """Tokens in a line, with a choice of rows to colour them by.

    The component keeps the bounds of the row shown first, so every row is divided by its own scale's end, which stands
    in its name. ``skip_first``: a first token that exceeds all others threefold does not set the scale. ``ends``: of
    the rows' scales, where these are known.
    """
    full = [markup.bound([line]) for line in values]
    rest = [markup.bound([line], skip_first=skip_first) for line in values]
    ends = ends or [r if skip_first and f > 3 * r else f for f, r in zip(full, rest, strict=True)]
    # A row that is nothing but rounding stays white.
    floor = 1e-5 * markup.bound(values, skip_first=skip_first)
    ends = [max(end, floor) for end in ends]
    missing = [any(math.isnan(line[i]) for line in values) for i in range(len(tokens))]
    props = {
        "tokens": harmless(tokens, missing),
        "values": [
            [rounded(0.0 if math.isnan(line[i]) else line[i] / end) for line, end in zip(values, ends, strict=True)]
            for i in range(len(tokens))
        ],
        "labels": [f"{row} [{markup.number(end)}]" for row, end in zip(rows, ends, strict=True)],
        "positiveBounds": [1.0] * len(rows),
        "negativeBounds": [-1.0] * len(rows),
    }
    note = "point at a name to colour by it; values on hover are divided by the number in its brackets"
    names = _lines(props["labels"]) * 20
    return Figure("ColoredTokensMulti", props, 70 + names + _lines(tokens) * 24 + 20 * len(rows), note=note)


def attention_heads(
    tokens: Sequence[str], names: Sequence[str], maps: Sequence[Sequence[Sequence[float]]], largest: float
) -> Figure:
    """Maps from source to destination tokens, one per name, all on one symmetric scale."""
    props = {
        "tokens": harmless(tokens, [False] * len(tokens), longest=14),
        "attention": [[[rounded(v, 4) for v in line] for line in one] for one in maps],
        "attentionHeadNames": list(names),
        "minValue": -largest,
        "maxValue": largest,
        "negativeColor": NEGATIVE,
        "positiveColor": POSITIVE,
    }
    rows = math.ceil(len(names) / 6)
    return Figure("AttentionHeads", props, 160 + 150 * rows + min(900, 130 * len(tokens)))


def harmless(tokens: Sequence[str], missing: Sequence[bool], longest: int = 24) -> list[str]:
    """Tokens that circuitsvis may put into a page as HTML: nothing in them is a tag or an entity.

    A word joiner (invisible, no width) after each "<" and "&" keeps the text as it reads and ends the markup.
    """
    texts = [
        markup.visible(token, longest) + ("[NaN]" if gone else "") for token, gone in zip(tokens, missing, strict=True)
    ]
    return [re.sub("[<&]", lambda found: found.group() + _WORD_JOINER, text) for text in texts]


def rounded(value: float, digits: int = 6) -> float | None:
    """A number as it goes into a page; what is no number goes as null."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def to_json(data: Any) -> str:
    """JSON that can stand inside a script element."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda found: f"\\u{ord(found.group()):04x}", text)


@functools.cache
def bundle() -> str:
    """circuitsvis's JavaScript as a classic script, without an address in it and with this package's two colours.

    Raises:
        RuntimeError: a circuitsvis whose wheel has no bundle.

    """
    path = files("circuitsvis") / "dist" / "cdn" / "iife.js"
    if not path.is_file():
        msg = f"circuitsvis {version('circuitsvis')} has no dist/cdn/iife.js; version 1.43.3 has"
        raise RuntimeError(msg)
    script = re.sub(r"\n//# sourceMappingURL=\S*\s*$", "\n", path.read_text(encoding="utf-8"))
    script = re.sub("</(script)", r"<\\/\1", script, flags=re.IGNORECASE)
    # Strings keep their meaning ("\/" is "/"), and a search for addresses in a page finds none.
    script = re.sub("(https?):" + "//", r"\1:\\/\\/", script)
    # colored_tokens_multi takes no colours: its "red" and "blue" come from this table of names.
    return script.replace(',red:"#ff0000"', f',red:"{NEGATIVE}"').replace(',blue:"#0000ff"', f',blue:"{POSITIVE}"')


def figure_html(figure: Figure, name: str) -> str:
    """The place of a figure in a page: its heading, its note, and an empty element for circuitsvis to fill."""
    head = markup.heading(figure.title) if figure.title else ""
    note = f'<div class="note">{escape.escape(figure.note)}</div>' if figure.note else ""
    return f'{head}{note}<div class="circuits"><div id="{name}"></div></div>'


def page(title: str, body: str, figures: Mapping[str, Figure], style: str = "", scripts: Sequence[str] = ()) -> str:
    """A whole page: its scripts named by their hashes, its data as JSON, nothing from outside.

    Args:
        title: of the page.
        body: HTML with a place (``figure_html``) for every figure.
        figures: by the name of their places.
        style: further CSS.
        scripts: further scripts, run after the figures are there.

    """
    drawing = [bundle(), _DRAW] if figures else []
    code = [*drawing, *scripts]
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in code) or "'none'"
    policy = f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:"
    data = [{"id": name, "component": f.component, "props": f.props} for name, f in figures.items()]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">'
        f"<title>{escape.escape(title)}</title><style>{_STYLE}{style}</style></head>\n<body>{body}\n"
        + (f'<script type="application/json" id="lens-figures">{to_json(data)}</script>\n' if figures else "")
        + "\n".join(f"<script>{script}</script>" for script in code)
        + "</body></html>\n"
    )


_STYLE = (
    "body{max-width:1100px;margin:24px auto;padding:0 16px;font-family:system-ui,sans-serif;font-size:14px}"
    # circuitsvis writes in black: it gets a white sheet of its own on dark pages too.
    ".circuits{background:#fff;color:#111;color-scheme:light;padding:8px;border-radius:4px;overflow-x:auto}"
    ".circuits h3{margin:4px 0;font-size:14px}.circuits h4{font-size:10px}.circuits h2{font-size:13px}"
    ".circuits .colored-tokens,.circuits span{unicode-bidi:isolate}"
    # The scale is set here, and the component's own fields for it hide the tokens.
    ".circuits label,.circuits input,.circuits input+button{display:none}"
    ".note{font-size:85%;opacity:.75;margin:2px 0 6px}"
)


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _lines(texts: Sequence[str]) -> int:
    """How many lines some texts fill, at about 110 characters a line."""
    return 1 + sum(len(text) + 1 for text in texts) // 110
