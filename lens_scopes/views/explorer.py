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


def style() -> str:
    """The explorer's CSS."""
    return _read("explorer.css")


def script() -> str:
    """The explorer's JavaScript: what draws Scores, what draws a Flow, and what both need, which begins."""
    parts = ("explorer_scores.js", "explorer_flow.js", "explorer.js")
    return "".join(map(_read, parts))


def explorer_data(result: Any, name: str, first: First = "show") -> dict[str, Any] | None:
    """What the explorer of a result, or of Scores side by side, needs to know; None where there is none."""
    if isinstance(result, Flow):
        return flow_data(result, name)
    scores = _scores_in(result)
    return scores_data(scores, name, first) if scores else None


def has_choice(scores: Scores) -> bool:
    """Whether there is more than one row of tokens to look at."""
    return "pos" in scores.dims and scores.values.numel() > len(scores.tokens)


def missing(result: Any) -> str:
    """Why a result has no explorer, and what to write."""
    if isinstance(result, Flow):
        return 'for an explorer run flow(..., sources="each")'
    if not _scores_in(result):
        return "an explorer is of Scores, of a list of Scores, or of one Flow"
    return f"more than the {MOST_NUMBERS} numbers of an explorer, or none by token: select a part with sel(...)"


def _scores_in(result: Any) -> list[Scores]:
    """The Scores that one explorer shows; none in a result of another kind."""
    several = list(result) if isinstance(result, list | tuple) else [result]
    return several if all(isinstance(one, Scores) for one in several) else []


def place(data: dict[str, Any]) -> str:
    """Where an explorer goes in a page."""
    if data["kind"] == "scores":
        what = "click a token that is underlined (or use the arrow keys) to see what it depends on"
        several = any(len(one["targets"]) > 1 for one in data["results"])
        what = what if several else "choose what to see (or use the arrow keys in the text)"
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


def _read(name: str) -> str:
    return files("lens_scopes.views").joinpath(name).read_text(encoding="utf-8")
