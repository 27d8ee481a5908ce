"""Drawing with plotly: the same pictures, with numbers on hover."""

import html as escape
from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lens_scopes import html
from lens_scopes.circuits import NEGATIVE, POSITIVE
from lens_scopes.grids import Grid

_GREY = "#888888"


def colours(signed: bool) -> list[list]:
    """White to blue, or orange through white to blue."""
    low, high, negative = (f"rgb{rgb}" for rgb in (html.LOW, html.HIGH, html.NEGATIVE))
    return [[0, negative], [0.5, low], [1, high]] if signed else [[0, low], [1, high]]


def grids(tables: Sequence[Grid], title: str) -> go.Figure:
    """Heat maps one under the other, with one scale; a line of tokens is one row of it."""
    figure = make_subplots(len(tables), 1, subplot_titles=[_plain(table.title) for table in tables])
    for n, table in enumerate(tables, start=1):
        figure.add_trace(
            go.Heatmap(
                z=table.values,
                text=[[_plain(hover) for hover in line] for line in table.hovers()],
                hovertemplate="%{text}<extra></extra>",
                colorscale=colours(table.signed),
                zmin=-table.largest if table.signed else 0,
                zmax=table.largest,
                colorbar={"title": table.unit},
                showscale=n == 1,
                xgap=1,
                ygap=1,
            ),
            row=n,
            col=1,
        )
        # Tokens repeat and plotly reads tags in labels: columns are numbers, their names are escaped.
        names = [_plain(column) for column in table.columns]
        figure.update_xaxes(tickvals=list(range(len(names))), ticktext=names, tickangle=-90, row=n, col=1)
        rows = [_plain(row) for row in table.rows]
        figure.update_yaxes(tickvals=list(range(len(rows))), ticktext=rows, autorange="reversed", row=n, col=1)
    heights = sum(120 + 22 * len(table.rows) for table in tables)
    note = "; ".join(dict.fromkeys(filter(None, (table.note for table in tables))))
    heading = _plain(title) + (f"<br><sup>{_plain(note)}</sup>" if note else "")
    figure.update_layout(title=heading, height=120 + heights, template="plotly_white", plot_bgcolor=html.MISSING)
    return figure


def series(values: Sequence[float], weights: Sequence[float], unit: str, signed: bool) -> go.Figure:
    """The series, and below it the influence of each step."""
    largest = html.bound([weights])
    figure = make_subplots(2, 1, shared_xaxes=True, row_heights=[0.67, 0.33], vertical_spacing=0.06)
    steps = list(range(len(values)))
    scale = {"colorscale": colours(signed), "cmin": -largest if signed else 0, "cmax": largest}
    marker = {"color": list(weights), **scale, "size": 9, "line": {"color": "#444444", "width": 1}, "showscale": True}
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


def scatter(x: Sequence[float], y: Sequence[float], names: Sequence[str], title: str) -> go.Figure:
    """Points, and the line where both are equal."""
    ends = [min(*x, *y), max(*x, *y)]
    figure = go.Figure()
    line = {"color": _GREY, "width": 1}
    figure.add_trace(go.Scatter(x=ends, y=ends, mode="lines", line=line, name="measured = predicted"))
    figure.add_trace(
        go.Scatter(
            x=list(x),
            y=list(y),
            mode="markers",
            marker={"color": POSITIVE},
            text=[_plain(n) for n in names],
            name="places",
        )
    )
    figure.update_layout(title=_plain(title), xaxis_title="predicted effect", yaxis_title="measured effect")
    figure.update_layout(template="plotly_white")
    return figure


def _plain(text: str) -> str:
    return escape.escape(html.visible(text, 200)) if text else ""
