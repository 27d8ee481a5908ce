"""Drawing with plotly: the same pictures, with numbers on hover."""

import html as escape
import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lens_scopes.plot.points import BAND, GROUPS, Points, said_of, shown_of
from lens_scopes.results.profiles import Profile
from lens_scopes.views import markup
from lens_scopes.views.circuits import NEGATIVE, POSITIVE
from lens_scopes.views.grids import Grid

_GREY = "#888888"
_WRAP = 16  # tokens in a line of text
_MOST_TICKS = 60
_MANY = 100  # steps of a series, from where on they are drawn smaller


def colours(signed: bool) -> list[list]:
    """White to blue, or orange through white to blue."""
    low, high, negative = (f"rgb{rgb}" for rgb in (markup.LOW, markup.HIGH, markup.NEGATIVE))
    return [[0, negative], [0.5, low], [1, high]] if signed else [[0, low], [1, high]]


def grids(tables: Sequence[Grid], title: str) -> go.Figure:
    """Heat maps one under the other, with one scale; a line of tokens is text on one, broken into rows."""
    strips = all(table.is_strip for table in tables)
    rows = [-(-len(t.columns) // _WRAP) if strips else len(t.rows) for t in tables]
    heights = [30 + 26 * count for count in rows]
    gap = 40 if strips else 130  # room for upright tokens and the next title
    height = sum(heights) + gap * (len(tables) - 1)
    figure = make_subplots(
        len(tables),
        1,
        subplot_titles=[_plain(table.title) for table in tables],
        row_heights=heights,
        vertical_spacing=gap / height if len(tables) > 1 else 0,
    )
    for n, table in enumerate(tables, start=1):
        shown, largest, unit = table.on_scale()
        lines = 1 if len(table.columns) <= _MOST_TICKS else 0
        figure.add_trace(
            go.Heatmap(
                z=_wrapped(shown[0], None) if strips else shown,
                hovertext=[[_plain(hover) for hover in line] for line in _hovers(table, strips)],
                hovertemplate="%{hovertext}<extra></extra>",
                text=_wrapped([_plain(token) for token in table.columns], "") if strips else None,
                texttemplate="%{text}" if strips else None,
                textfont={"size": 11},
                colorscale=colours(table.signed),
                zmin=-largest if table.signed else 0,
                zmax=largest,
                colorbar={
                    "title": unit.replace(" / ", "<br>/ "),
                    "lenmode": "pixels",
                    "len": 160,
                    "y": 1,
                    "yanchor": "top",
                },
                showscale=n == 1,
                xgap=lines,
                ygap=lines,
            ),
            row=n,
            col=1,
        )
        figure.update_yaxes(autorange="reversed", showgrid=False, zeroline=False, row=n, col=1)
        figure.update_xaxes(showgrid=False, zeroline=False, row=n, col=1)
        if strips:
            figure.update_xaxes(visible=False, row=n, col=1)
            figure.update_yaxes(visible=False, row=n, col=1)
            continue
        # Tokens repeat and plotly reads tags in labels: columns are numbers, their names are escaped.
        every = math.ceil(len(table.columns) / _MOST_TICKS)
        at = list(range(0, len(table.columns), every))
        names = [
            _plain(table.columns[i], 14) + (f" {table.positions[i]}" if every > 1 and table.positions else "")
            for i in at
        ]
        figure.update_xaxes(tickvals=at, ticktext=names, tickangle=-90, row=n, col=1)
        labels = [_plain(row) for row in table.labels]
        figure.update_yaxes(tickvals=list(range(len(labels))), ticktext=labels, row=n, col=1)
    note = "; ".join(dict.fromkeys(filter(None, (table.note for table in tables))))
    heading = _plain(title) + (f"<br><sup>{_plain(note)}</sup>" if note else "")
    # Behind maps a cell without a number is grey; in a line of tokens its text says so, and the last row ends early.
    ground = "#ffffff" if strips else markup.MISSING
    figure.update_layout(title=heading, height=max(340, height + 190), template="plotly_white", plot_bgcolor=ground)
    return figure


def _wrapped(line: Sequence[Any], blank: Any) -> list[list[Any]]:
    """One row as rows of a line's length, the last filled up."""
    width = min(_WRAP, len(line))
    rows = [list(line[i : i + width]) for i in range(0, len(line), width)]
    rows[-1] += [blank] * (width - len(rows[-1]))
    return rows


def _hovers(table: Grid, strips: bool) -> list[list[str]]:
    return _wrapped(table.hovers()[0], "") if strips else table.hovers()


def profile(found: Profile, title: str) -> go.Figure:
    """Means over prompts: a line with a band where the labels have an order, else points with bars."""
    labels, means, errors = shown_of(found)
    at = list(range(len(labels)))
    names = [_plain(label, 24) for label in labels]
    figure = go.Figure()
    if found.ordered:
        known = [i for i in at if math.isfinite(errors[i])]
        low, high = ([means[i] + sign * errors[i] for i in known] for sign in (-1, 1))
        band = {"fill": "toself", "fillcolor": "rgba({},{},{},0.25)".format(*markup.HIGH), "line": {"width": 0}}
        figure.add_trace(
            go.Scatter(x=known + known[::-1], y=high + low[::-1], mode="lines", name=BAND, hoverinfo="skip", **band)
        )
    figure.add_trace(
        go.Scatter(
            x=at,
            y=means,
            error_y=None if found.ordered else {"array": errors},
            mode="lines+markers" if found.ordered else "markers",
            marker={"color": POSITIVE, "size": 7},
            line={"color": POSITIVE},
            text=names,
            customdata=errors,
            hovertemplate="%{text}: %{y:.3g} ± %{customdata:.2g}<extra></extra>",
            name="mean" if found.ordered else f"mean, {BAND}",
        )
    )
    figure.update_xaxes(tickvals=at, ticktext=names, tickangle=-90, title=_plain(said_of(found, labels, errors)))
    figure.update_yaxes(title=_plain(found.unit))
    figure.update_layout(title=_plain(title), template="plotly_white")
    return figure


def series(values: Sequence[float], weights: Sequence[float], unit: str, signed: bool) -> go.Figure:
    """The series, and below it the influence of each step."""
    largest = markup.bound([weights])
    figure = make_subplots(2, 1, shared_xaxes=True, row_heights=[0.67, 0.33], vertical_spacing=0.06)
    steps = list(range(len(values)))
    scale = {"colorscale": colours(signed), "cmin": -largest if signed else 0, "cmax": largest}
    marker = {
        "color": list(weights),
        **scale,
        "size": 9 if len(values) <= _MANY else 5,
        "line": {"color": "#444444", "width": 1},
        "showscale": True,
    }
    marker["colorbar"] = {"title": unit}
    figure.add_trace(
        go.Scatter(x=steps, y=list(values), mode="lines+markers", line={"color": _GREY}, marker=marker), row=1, col=1
    )
    bars = [NEGATIVE if w < 0 else POSITIVE for w in weights]
    figure.add_trace(go.Bar(x=steps, y=list(weights), marker={"color": bars}), row=2, col=1)
    figure.update_yaxes(title="value", row=1, col=1)
    figure.update_yaxes(title=unit, row=2, col=1)
    figure.update_xaxes(title="step", row=2, col=1)
    figure.update_layout(showlegend=False, template="plotly_white")
    return figure


def scatter(points: Points, title: str) -> go.Figure:
    """Points, and the line where both are equal."""
    figure = go.Figure()
    line = {"color": _GREY, "width": 1}
    figure.add_trace(go.Scatter(x=points.ends, y=points.ends, mode="lines", line=line, name="measured = predicted"))
    marker: dict[str, Any] = {"color": POSITIVE, "size": 7, "opacity": 0.8}
    if points.groups:
        at = points.named_groups()
        names = {"tickvals": at, "ticktext": [_plain(points.groups[i]) for i in at]}
        last = len(points.groups) - 1
        scale = [[i / (len(GROUPS) - 1), shade] for i, shade in enumerate(GROUPS)]
        marker |= {"color": list(points.group), "colorscale": scale, "cmin": 0, "cmax": max(1, last)}
        marker["colorbar"] = names
    figure.add_trace(
        go.Scatter(
            x=list(points.x),
            y=list(points.y),
            mode="markers",
            marker=marker,
            text=[_plain(n) for n in points.names],
            hovertemplate="%{text}<br>predicted %{x:.3g}, measured %{y:.3g}<extra></extra>",
            name="places",
        )
    )
    figure.update_layout(title=_plain(title), xaxis_title="predicted effect", yaxis_title="measured effect")
    above = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    figure.update_layout(template="plotly_white", width=600, height=540, legend=above)
    return figure


def _plain(text: str, longest: int = 200) -> str:
    # Quotes stay: plotly reads tags and a few entities, and would show others as they are written.
    return escape.escape(markup.visible(text, longest), quote=False) if text else ""
