"""The views of a Flow: last heads, all heads and MLPs, the stream by depth and position, edges, sources; as HTML."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from lens_scopes.results.provenance import UNITS, scope_text, taken_text
from lens_scopes.sites import short
from lens_scopes.views import cells, markup
from lens_scopes.views.grids import First, Grid, check_first, measure, on_one_scale, percent
from lens_scopes.views.long import MOST_PIXELS, drawn

if TYPE_CHECKING:
    from lens_scopes.results.flow import Flow

_MOST_CELLS = 20_000
_LISTED = 20
EDGE_KINDS = ("value", "pattern")


@dataclass(frozen=True)
class Edge:
    """One head's influence from a key position (source) to a query position (destination)."""

    layer: int
    head: int
    kind: str
    query: int
    key: int
    influence: float


def flow_views(flow: "Flow") -> tuple[str, ...]:
    """The views this flow has."""
    edges = ("edges",) if flow.edges is not None else ()
    alone = flow.meta.get("together") or len(flow.sources) == 1
    last = ("last",) if flow.last is not None else ()
    return (*last, "heads", "stream", *edges, *(() if alone else ("tokens",)))


def flow_grids(flow: "Flow", view: str, first: First = "show") -> list[Grid]:
    """One view as a labelled table on its own colour scale; none for "edges", which has more than two axes."""
    return on_one_scale(flow_tables(flow, view, first), first)


def flow_tables(flow: "Flow", view: str, first: First = "show") -> list[Grid]:
    """The same before there is a scale."""
    check_first(first)
    if view == "tokens":
        positions, columns = flow.sources, tuple(flow.tokens[i] for i in flow.sources)
        unit = (
            "share of the source's total"
            if flow.units == "share"
            else f"score ({measure(UNITS[flow.units], flow.total, flow.stderr)})"
        )
        grid = Grid([flow.total.tolist()], ("",), columns, unit, title="score of each source", positions=positions)
        breaks = tuple(i for i, source in enumerate(positions) if source != (positions[i - 1] + 1 if i else 0))
        return [replace(grid, explained=_explained(flow), breaks=breaks)]
    flow.refuse_row_shares("show")
    rows, left_out = _sources(flow, first)
    if view == "heads" and flow.meta.get("together") and first != "show" and 0 in flow.sources:
        left_out = "position 0 is in these sums: run flow(..., sources='each') to tell the sources apart"
    end = f"it ends at {short(flow.meta['end'])}: what comes after is not on the way" if "end" in flow.meta else ""
    note = "; ".join(filter(None, (left_out, end)))
    whole = float(flow.total[rows].double().sum())
    if view == "last" and flow.last is not None:
        return [_last(flow, _shares(flow.last[rows].double().sum(0), whole), note)]
    if view == "heads":
        branches = torch.cat([flow.heads, flow.mlps[..., None]], -1)[rows].double().sum(0)
        past = _shares(flow.skip[rows].double().sum(0), whole)
        return [_heads(flow, _shares(branches, whole), past, note)]
    if view == "stream":
        stream = flow.stream[rows].double().sum(0)
        return [_stream(flow, _shares(stream, whole), note)]
    return []


def flow_title(flow: "Flow") -> str:
    """What was asked of which model."""
    what = "Whole change" if "corrupted_token_ids" in flow.meta else "Flow"
    taken = f" ({told})" if (told := taken_text(flow.meta)) else ""
    return f"{what} of {scope_text(flow.meta, 'a scope')} on {flow.meta.get('model', 'a model')}{taken}"


def flow_html(flow: "Flow", view: str | None = None, first: First = "show") -> str:
    """A self-contained fragment: title, prediction, one view (or what adds up and where), total and residual."""
    if view is None and flow.units == "share" and len(flow.total) > 1:  # a notebook shows whatever there is
        return markup.remark(f"{flow!r}: shares of each source's own total; choose one, sel(source=...)")
    chosen = [name for name in flow_views(flow) if name in ("last", "heads", "stream")] if view is None else [view]
    body = "".join(flow_body(flow, name, first) for name in chosen)
    total, residual = markup.number(float(flow.total.sum())), f"{flow.residual:.1e}"
    what = measure(UNITS[flow.units], flow.total, flow.stderr)
    if "gap" in flow.meta:
        missed = markup.number(flow.meta["gap"])
        what += f"; the difference between the prompts but for {missed}, which {flow.meta['steps']} points miss"
    note = f"total {total} ({what}); largest violation of a conservation law {residual}"
    return markup.figure(flow_title(flow), markup.predictions(flow.meta), body, note=note)


def flow_body(flow: "Flow", view: str, first: First = "show") -> str:
    """A view without title and prediction; caps what it draws and says so."""
    if view == "edges":
        kept, note = edges_kept(flow, first)
        return _listed_edges(kept) + (markup.remark(note) if note else "")
    (grid,) = flow_grids(flow, view, first)
    most = MOST_PIXELS if grid.is_long else _MOST_CELLS
    if len(grid.rows) * len(grid.columns) > most:
        size = f"{len(grid.rows)} x {len(grid.columns)}"
        return markup.heading(f"{grid.title}: {size} cells are more than the {most} drawn here")
    return drawn([grid]) + (markup.remark(grid.note) if grid.note else "")


def edges_kept(flow: "Flow", first: First) -> tuple["Flow", str]:
    """The flow without the edges that start at position 0 (as zeros) where they are not to be shown, and a note."""
    check_first(first)
    if first == "show" or flow.edges is None or flow.edges.shape[-1] < 2:
        return flow, ""
    sizes = flow.edges.abs().flatten(0, -2).sum(0).double()
    told = f": they have {percent(float(sizes[0]), float(sizes.sum()))} of the sum of magnitudes"
    rest = torch.cat([torch.zeros_like(flow.edges[..., :1]), flow.edges[..., 1:]], -1)
    return replace(flow, edges=rest), f"edges from position 0 are left out{told if first == 'share' else ''}"


def strongest_edges(flow: "Flow", k: int) -> list[Edge]:
    """The k edges with the largest magnitude.

    Raises:
        ValueError: the flow was made without edges.

    """
    flow.refuse_row_shares("show")
    if flow.edges is None:
        msg = "this flow has no edges; write lens_scopes.flow(..., edges=True)"
        raise ValueError(msg)
    maps = flow.edges.flatten(1, -3)
    order = maps.flatten().abs().topk(min(k, maps.numel())).indices
    places = torch.stack(torch.unravel_index(order, maps.shape), 1).tolist()
    found = []
    for kind, which, query, key in places:
        layer, head = flow.edge_heads[which]
        found.append(Edge(layer, head, EDGE_KINDS[kind], query, key, float(maps[kind, which, query, key])))
    return found


def _last(flow: "Flow", shares: Float[Tensor, "layer head"], note: str) -> Grid:
    straight = percent(1 - float(shares.sum()), 1.0)
    return Grid(
        shares.tolist(),
        tuple(f"layer {layer}" for layer in range(len(shares))),
        tuple(f"H{head}" for head in range(shares.shape[1])),
        "share of the total",
        signed=True,
        title=f"share of the total{_whose(flow)} by the last head on its way (straight from the source: {straight})",
        note="; ".join(filter(None, ("together they are the total", note))),
    )


def _heads(flow: "Flow", shares: Float[Tensor, "layer branch"], past: Float[Tensor, " layer"], note: str) -> Grid:
    branches = shares.shape[1]
    return Grid(
        shares.tolist(),
        tuple(f"layer {layer} (past its heads {percent(part, 1.0)})" for layer, part in enumerate(past.tolist())),
        (*(f"H{head}" for head in range(branches - 1)), "MLP"),
        "share of the total",
        signed=True,
        title=f"share of the total{_whose(flow)} through each head and MLP",
        note=note,
    )


def _stream(flow: "Flow", shares: Float[Tensor, "depth pos"], note: str) -> Grid:
    # Influence sits at the positions explained or before them: what follows is zero and not worth the space.
    end = max(flow.meta.get("positions", (flow.position,))) + 1
    return Grid(
        shares[:, :end].tolist(),
        ("embed", *(f"after {layer}" for layer in range(len(shares) - 1))),
        flow.tokens[:end],
        "share of the total",
        signed=True,
        title=f"where the influence{_whose(flow)} sits: depth by position",
        positions=tuple(range(end)),
        explained=_explained(flow) * len(shares),
        note=note,
    )


def _explained(flow: "Flow") -> tuple[int, ...]:
    """The position explained; of several that are explained as one, none stands out."""
    return () if len(flow.meta.get("positions", ())) > 1 else (flow.position,)


def _whose(flow: "Flow") -> str:
    if flow.meta.get("together") or len(flow.sources) != 1:
        return ""
    return f" of “{markup.named(flow.tokens[flow.sources[0]])}” (position {flow.sources[0]})"


def _sources(flow: "Flow", first: First) -> tuple[list[int], str]:
    """Which rows to sum, and a note about the one left out."""
    every = list(range(len(flow.total)))
    if first == "show" or flow.meta.get("together") or 0 not in flow.sources or len(every) < 2:
        return every, ""
    sink = flow.sources.index(0)
    share = percent(float(flow.total[sink]), float(flow.total.sum()))
    told = f": it has {share} of the total" if first == "share" else ""
    return [i for i in every if i != sink], f"source 0 is left out{told}"


def _shares(part: Tensor, whole: float) -> Tensor:
    return part / whole if whole else torch.zeros_like(part)


def _listed_edges(flow: "Flow") -> str:
    whole = float(flow.total.sum())
    edges, count = strongest_edges(flow, _LISTED), 0 if flow.edges is None else flow.edges.numel()
    largest = markup.bound([[edge.influence for edge in edges]])
    rows = []
    for edge in edges:
        source, destination = (f"{markup.visible(flow.tokens[i])} ({i})" for i in (edge.key, edge.query))
        share = percent(edge.influence, whole)
        rows.append((f"{edge.layer}.{edge.head}", edge.kind, source, destination, markup.number(edge.influence), share))
    columns = ("head", "edge", "source token", "destination token", "influence", "share")
    bars = [cells.bar(edge.influence, largest) for edge in edges]
    return markup.heading(f"the {len(rows)} strongest edges of {count}") + markup.numbers(columns, rows, bars)
