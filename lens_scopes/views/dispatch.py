"""What each result can show: the names of its views, their circuitsvis figures, their static HTML."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from lens_scopes.results.arguments import shown
from lens_scopes.results.flow import Flow
from lens_scopes.results.profiles import Profile
from lens_scopes.results.scores import Scores
from lens_scopes.views import markup
from lens_scopes.views.circuits import Figure, attention_heads, colored_tokens, colored_tokens_multi
from lens_scopes.views.flow import EDGE_KINDS, edges_kept, flow_body, flow_grids, flow_html, flow_title, flow_views
from lens_scopes.views.grids import First, Grid, check_first
from lens_scopes.views.profiles import profile_body
from lens_scopes.views.scores import scores_body, scores_grids, scores_html, scores_title, scores_views
from lens_scopes.views.side_by_side import one_picture, together_body, together_html, together_title, together_views

#: What circuitsvis draws in a few seconds (measured): more is left out, and said.
MOST_EDGES = 12 * 64 * 64
MOST_HEADS = 12
MOST_VALUES = 65_536
MOST_TOKENS = 5_000
MOST_FIGURES = 8


def views(result: Any) -> tuple[str, ...]:
    """The names of a result's views; none for results that have one static view only.

    Raises:
        TypeError: not a result.

    """
    if isinstance(result, list | tuple):
        return together_views(result)
    if isinstance(result, Scores):
        return scores_views(result)
    if isinstance(result, Flow):
        return flow_views(result)
    if not hasattr(result, "_repr_html_"):
        msg = f"show and report take Scores, Flow and the like, got {shown(result)}; write what score or flow returned"
        raise TypeError(msg)
    return ()


def choose(result: Any, view: str | None, more: Sequence[str] = ()) -> str | None:
    """The view asked for, or the first; ``more``: views that are had elsewhere, for the text of an error.

    Raises:
        TypeError: not a result.
        ValueError: a view that it does not have; the text lists those it has.

    """
    there = views(result)
    if view is None and (there or not isinstance(result, list | tuple)):
        return there[0] if there else None
    if view not in there:
        listed = f"it has {', '.join(map(repr, (*there, *more)))}" if there else "it has one view only: leave view out"
        extra = "; run flow(..., edges=True) for edges" if view == "edges" and isinstance(result, Flow) else ""
        msg = f"a {type(result).__name__} like this has no view {view!r}; {listed}{extra}"
        if isinstance(result, list | tuple):
            common = ", ".join(map(repr, (*there, *more) if there else ())) or "none (the edges of a flow stand alone)"
            msg = f"side by side there is no view {view!r}; the views that all {len(result)} have: {common}"
        raise ValueError(msg)
    return view


def title(result: Any) -> str:
    """One line about a result, or about some side by side."""
    if isinstance(result, list | tuple):
        return together_title(result)
    if isinstance(result, Scores):
        return scores_title(result)
    return flow_title(result) if isinstance(result, Flow) else getattr(result, "title", type(result).__name__)


def grids(result: Any, view: str, first: First = "show") -> list[Grid]:
    """A view as labelled tables on one colour scale.

    Raises:
        ValueError: results of several units side by side.

    """
    if isinstance(result, list | tuple):
        return one_picture(result, view, first)
    if isinstance(result, Scores):
        return scores_grids(result, view, first)
    return flow_grids(result, view, first)


def static(result: Any, view: str | None, first: First = "show") -> str:
    """A view without script, with title and prediction; with None the result's own way of showing itself."""
    check_first(first)
    if isinstance(result, list | tuple):
        return together_html(result, choose(result, view) or "", first)
    if isinstance(result, Scores):
        return scores_html(result, view, first)
    return flow_html(result, view, first) if isinstance(result, Flow) else result._repr_html_()


def body(result: Any, view: str | None, first: First = "show") -> str:
    """A view without script, title and prediction, for pages that say these once."""
    if view is None:
        return profile_body(result) if isinstance(result, Profile) else static(result, None, first)
    if isinstance(result, list | tuple):
        return together_body(result, view, first)
    if isinstance(result, Scores):
        return scores_body(result, view, first)
    return flow_body(result, view, first)


def figures(result: Any, view: str | None, first: First = "show") -> tuple[list[Figure], str]:
    """A view's circuitsvis figures, capped by size, and what was left out.

    Layers by heads, and results side by side, are no pictures that circuitsvis has: those views are static.
    """
    still = ("last", "heads") if isinstance(result, Flow) else ()
    if view is None or isinstance(result, list | tuple) or view in still:
        return [], ""
    if view == "edges":
        return _edges(*edges_kept(result, first))
    tables = grids(result, view, first)
    if len(tables[0].columns) > MOST_TOKENS:
        return [], f"{len(tables[0].columns)} tokens are more than the {MOST_TOKENS} of an interactive view"
    notes = [tables[0].note]
    if len(tables) > MOST_FIGURES:
        notes.append(f"first {MOST_FIGURES} of {len(tables)}; select others with sel(...)")
    drawn = []
    for grid in tables[:MOST_FIGURES]:
        kept = _spread(len(grid.rows), max(1, MOST_VALUES // len(tables[:MOST_FIGURES]) // len(grid.columns)))
        if len(kept) < len(grid.rows):
            notes.append(f"{len(kept)} of {len(grid.rows)} rows, evenly spaced: all would be too much for a page")
        drawn.append(_tokens_figure(grid, kept))
    return drawn, "; ".join(dict.fromkeys(filter(None, notes)))


def _tokens_figure(grid: Grid, kept: Sequence[int]) -> Figure:
    if grid.is_strip:
        made = colored_tokens(grid.columns, grid.values[0], grid.largest)
        note = f"{grid.unit}; colours end at {markup.number(grid.largest)}"
        note += f", orange at {markup.number(-grid.largest)}" if grid.signed else ""
    else:
        rows, values = [grid.rows[i] for i in kept], [grid.values[i] for i in kept]
        ends = [grid.ends[i] for i in kept] if grid.is_long else ()
        made = colored_tokens_multi(grid.columns, rows, values, grid.has_first, ends)
        note = f"{grid.unit}; {made.note}"
    return Figure(made.component, made.props, made.height, title=grid.title, note=note)


def _edges(flow: Flow, about_first: str) -> tuple[list[Figure], str]:
    """Value and pattern edges of the heads that carry most, as many as can be drawn."""
    if flow.edges is None:
        return [], ""
    end = max(flow.meta.get("positions", (flow.position,))) + 1
    room = min(MOST_HEADS, MOST_EDGES // end**2) // len(EDGE_KINDS)
    if not room:
        size = f"{end} x {end}"
        return [], f"maps of {size} edges are more than an interactive view can draw; the strongest are listed"
    edges = flow.edges.flatten(1, -3)[..., :end, :end]
    strength = edges.abs().sum((0, 2, 3))
    kept = strength.argsort(descending=True, stable=True)[:room].tolist()
    names, maps = [], []
    for which in kept:
        for kind, name in enumerate(EDGE_KINDS):
            names.append("{}.{} {}".format(*flow.edge_heads[which], name))
            maps.append(edges[kind, which])
    # Where a head looks at position 0 only, all other edges would be white.
    rest = torch.stack(maps)[:, 1:, 1:].abs()
    full, others = (float(x.max()) if x.numel() else 0.0 for x in (torch.stack(maps).abs(), rest))
    largest = (others if 0 < 3 * others < full else full) or 1.0
    made = attention_heads(flow.tokens[:end], names, [one.tolist() for one in maps], largest)
    note = (
        f"influence from source token (key, across) to destination token (query, down), {flow.units} units: through "
        f"what is read (value) and where the head looks (pattern); blue adds, orange takes away, full colour at "
        f"±{markup.number(largest)}"
    )
    if math.isfinite(full) and largest < full:
        note += f"; edges at position 0 reach {markup.number(full)}"
    left = len(strength) - len(kept)
    those = "the head" if len(kept) == 1 else f"the {len(kept)} heads"
    capped = (
        f"{those} whose edges have the largest sums of magnitudes, largest first; {left} others are not drawn"
        if left
        else ""
    )
    said = "; ".join(filter(None, (about_first, capped)))
    return [Figure(made.component, made.props, made.height, note=note)], said


def _spread(count: int, most: int) -> list[int]:
    """At most so many of the indices below count, evenly spaced, first and last among them."""
    if count <= most:
        return list(range(count))
    if most == 1:
        return [0]
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})
