"""The front door to pictures: a result as an interactive view with its static one under it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lens_scopes.results import files
from lens_scopes.views import circuits, dispatch, explorer, grids, markup
from lens_scopes.views.grids import First

_MOST_HEIGHT = 760
# Their interactive view colours by one row at a time: the map of all rows is open below it.
_BY_ROW = ("layers", "heads", "targets", "stream")


@dataclass(frozen=True)
class Shown:
    """A view, ready for a notebook cell or a file."""

    title: str
    view: str | None
    document: str | None
    """The interactive view as a page of its own; None where there is only a static one."""
    static: str
    height: int
    note: str = ""

    def _repr_html_(self) -> str:
        """The interactive view in a sandboxed frame, and the static view, which untrusted notebooks show too."""
        if self.document is None:
            return self._alone()
        more = " allow-downloads" if self.view == explorer.EXPLORER else ""
        frame = re.sub('[&"]', lambda found: {"&": "&amp;", '"': "&quot;"}[found.group()], self.document)
        return (
            f'<iframe sandbox="allow-scripts{more}" srcdoc="{frame}" title="{markup.token(self.title, 200)}" '
            f'style="width:100%;height:{self.height}px;border:0;background:#fff;color-scheme:light"></iframe>'
            f'<details{self._open}><summary style="cursor:pointer">Static view (works without script)</summary>'
            f"{self.static}</details>"
        )

    def save(self, path: str | Path) -> Path:
        """Write a page of its own that loads nothing: both views, one below the other.

        Raises:
            FileNotFoundError: the directory is not there.

        """
        text = markup.page(self.title, self._alone()) if self.document is None else self._whole(self.document)
        return files.write(path, text)

    def _alone(self) -> str:
        return self.static + (markup.remark(self.note) if self.note else "")

    def _whole(self, document: str) -> str:
        return document.replace(
            "<!--static-->", f"<details{self._open}><summary>Static view</summary>{self.static}</details>", 1
        )

    @property
    def _open(self) -> str:
        return " open" if self.view in _BY_ROW else ""

    def __repr__(self) -> str:
        """One line."""
        what = "static" if self.document is None else "interactive"
        return f"Shown({self.title}; view {self.view!r}, {what}; save(path) writes it as a page)"


def show(result: Any, view: str | None = None, *, first: First = "show") -> Shown:
    """A result as an interactive view (circuitsvis, inlined: no network) with a static one under it.

    Args:
        result: Scores ("layers", "heads" or "targets" by their axes, and "tokens"), a Flow ("last", "heads", "stream",
            "edges", "tokens"), or another result, which has one static view. A list of Scores, or of Flows, stands
            side by side: a static view, one colour scale for all numbers of one unit, each named by what tells it from
            the others.
        view: one of these; None for the first. "explorer", of Scores, of a list of Scores, or of a Flow with
            ``sources="each"``, is a page to click in: what each token depends on, or where its influence goes; what it
            shows can be saved as SVG, PNG and CSV.
        first: "show", "hide" or "share": what to do with position 0, which often swallows everything.

    Returns:
        What a notebook displays; ``save(path)`` writes it as a page of its own.

    Raises:
        ValueError: a view that the result does not have, or not all that stand side by side.
        TypeError: not a result.

    """
    if view == explorer.EXPLORER:
        return _explorer(result, first)
    view = dispatch.choose(result, view, (explorer.EXPLORER,))
    static = dispatch.static(result, view, first)
    figures, note = dispatch.figures(result, view, first)
    if not figures:
        return Shown(dispatch.title(result), view, None, static, 0, note)
    named = {f"figure-{i}": figure for i, figure in enumerate(figures)}
    parts = "".join(circuits.figure_html(figure, name) for name, figure in named.items())
    heading = f'<div style="font-weight:600">{markup.prose(dispatch.title(result))}</div>'
    beside = markup.predictions(result.meta)
    body = f"{heading}{beside}{markup.remark(note) if note else ''}{parts}<!--static-->"
    document = circuits.page(dispatch.title(result), body, named)
    height = min(_MOST_HEIGHT, 110 + sum(figure.height + 40 for figure in figures))
    return Shown(dispatch.title(result), view, document, static, height, note)


def _explorer(result: Any, first: First) -> Shown:
    """The explorer of a result, or of Scores side by side, over the first of the static views.

    Raises:
        ValueError: a result that has none.

    """
    grids.check_first(first)
    data = explorer.explorer_data(result, explorer.EXPLORER, first)
    if data is None:
        msg = f"there is no explorer of a {type(result).__name__} like this: {explorer.missing(result)}"
        raise ValueError(msg)
    title = dispatch.title(result)
    heading = f'<div style="font-weight:600">{markup.prose(title)}</div>'
    body = f"{heading}{explorer.place(data)}<!--static-->{explorer.data_block([data])}"
    document = circuits.page(title, body, {}, explorer.style(), [explorer.script()])
    there = dispatch.views(result)  # of results side by side there may be none in common
    static = dispatch.static(result, there[0], first) if there else ""
    return Shown(title, explorer.EXPLORER, document, static, _MOST_HEIGHT)
