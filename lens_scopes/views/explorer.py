"""The explorer: click a token, see what it depends on, or where its influence goes. Data as JSON, drawn by scripts."""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from lens_scopes.results.flow import Flow
from lens_scopes.results.scores import Scores
from lens_scopes.views import circuits, markup
from lens_scopes.views.explorer_flow import flow_data
from lens_scopes.views.explorer_scores import MOST_NUMBERS, scores_data
from lens_scopes.views.grids import First

#: What ``show`` calls it.
EXPLORER = "explorer"

STYLE = (
    ".lens-explorer{margin:8px 0}"
    ".lens-tokens{font:13px/1.7 ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere;direction:ltr}"
    ".lens-tokens button{font:inherit;line-height:1.35;white-space:pre-wrap;border:0;margin:0;padding:1px 2px;"
    "border-radius:3px;cursor:pointer;unicode-bidi:isolate;background:none;color:inherit;text-align:left}"
    ".lens-flow .lens-tokens button{margin:1px;padding:1px 4px}"
    ".lens-tokens button:disabled{cursor:default;background:none;color:inherit;opacity:.5}"
    ".lens-tokens button[aria-pressed=true]{outline:2px solid #e69f00;outline-offset:1px}"
    ".lens-scores .lens-tokens bdi{border-radius:3px;padding:1px 2px;margin:0 .5px}.lens-scores .lens-tokens bdi bdi{padding:0;margin:0}"
    ".lens-tokens .later{color:color-mix(in srgb,currentcolor 60%,transparent)}.lens-tokens .explained{outline:2px solid #e69f00;outline-offset:1px}"
    ".lens-scores .lens-tokens button{text-decoration:underline dotted;text-underline-offset:3px}"
    ".lens-rule{border-top:1px solid #8888;margin:8px 0 4px;padding-top:2px;font-size:11px;opacity:.75}"
    ".lens-choices{display:flex;flex-wrap:wrap;gap:4px 14px;margin:6px 0;align-items:center}"
    ".lens-choices label{display:inline-flex;gap:6px;align-items:center;min-width:0;max-width:100%}"
    ".lens-choices select{min-width:0}.lens-scale{font-size:85%;margin-top:4px}"
    ".lens-choices select,.lens-choices button{font:inherit;font-size:13px;padding:2px 6px;max-width:100%;"
    "min-height:26px}"
    ".lens-swatches{display:inline-flex;vertical-align:middle;margin:0 6px}.lens-swatches i{width:16px;height:10px}"
    ".lens-list{border-collapse:collapse;font-size:12px;margin:4px 0}.lens-list th,.lens-list td{padding:1px 8px 1px 0;"
    "text-align:right;font-weight:normal;white-space:nowrap}.lens-list .word{text-align:left;white-space:pre;"
    "font-family:ui-monospace,monospace;max-width:60vw;overflow:hidden;text-overflow:ellipsis}"
    ".lens-maps{display:flex;flex-wrap:wrap;gap:8px 28px;align-items:flex-end}"
    ".lens-map{max-width:100%}.lens-said{margin:6px 0}"
    ".lens-heading{margin:8px 0 2px;opacity:.85}.lens-scroll{overflow-x:auto}"
    ".lens-map table{border-collapse:separate;border-spacing:1px}.lens-map td{padding:0;min-width:14px;height:15px;"
    "text-align:center;font-size:10px}.lens-map th{font-weight:normal;font-size:13px;padding:0 2px;white-space:nowrap;"
    "vertical-align:bottom;text-align:right}.lens-map td.chosen{outline:2px solid #e69f00}"
    ".lens-map td[tabindex]{cursor:pointer}"
    ".lens-map thead th:not(:has(.lens-upright)){min-width:30px;text-align:center}"
    ".lens-upright{display:inline-block;writing-mode:vertical-rl;transform:rotate(180deg);white-space:pre;"
    "font:12px/1 ui-monospace,monospace;padding:2px 0;unicode-bidi:isolate}"
)


def script() -> str:
    """The explorer's JavaScript: what draws Scores, what draws a Flow, and what both need, which begins."""
    parts = ("explorer_scores.js", "explorer_flow.js", "explorer.js")
    return "".join(files("lens_scopes.views").joinpath(part).read_text(encoding="utf-8") for part in parts)


def explorer_data(result: Any, name: str, first: First = "show") -> dict[str, Any] | None:
    """What the explorer of a result, or of Scores side by side, needs to know; None where there is none."""
    if isinstance(result, Flow):
        return flow_data(result, name)
    several = list(result) if isinstance(result, list | tuple) else [result]
    if not several or not all(isinstance(one, Scores) for one in several):
        return None
    return scores_data(several, name, first)


def has_choice(scores: Scores) -> bool:
    """Whether there is more than one row of tokens to look at."""
    return "pos" in scores.dims and scores.values.numel() > len(scores.tokens)


def missing(result: Any) -> str:
    """Why a result has no explorer, and what to write."""
    if isinstance(result, Flow):
        return 'for an explorer run flow(..., sources="each")'
    return f"more than the {MOST_NUMBERS} numbers of an explorer, or none by token: select a part with sel(...)"


def place(data: dict[str, Any]) -> str:
    """Where an explorer goes in a page."""
    if data["kind"] == "scores":
        what = "click a token that is underlined (or use the arrow keys) to see what it depends on"
        what = what if len(data["results"][0]["targets"]) > 1 else "choose what to see"
        note = data["note"]
    else:
        what = "click a token (or use the arrow keys) to see where its influence goes; a head, to see its edges"
        left = len(data["tokens"]) - len(data["sources"])
        note = f"{left} tokens (grey) have no row here" if left else ""
    return (
        f"{markup.heading(f'explorer: {what}')}{markup.remark(note) if note else ''}"
        f'<div id="{data["id"]}" class="lens-explorer lens-{data["kind"]}">'
        "<noscript>The explorer needs JavaScript; the other views do not.</noscript></div>"
    )


def data_block(explorers: Sequence[dict[str, Any]]) -> str:
    """The data of a page's explorers, for the script."""
    return f'<script type="application/json" id="lens-explorers">{circuits.to_json(list(explorers))}</script>\n'
