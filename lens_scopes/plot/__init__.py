"""Figures to save: matplotlib (PNG, SVG, PDF), or plotly where it is installed.

>>> from lens_scopes.plot import plot, series
>>> plot(scores, "layers").savefig("layers.svg")                       # doctest: +SKIP
>>> series([0.1, 0.4, 0.2], scores.sel(site="embed"))                  # doctest: +SKIP
"""

import math
from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from lens_scopes.plot.points import Points
from lens_scopes.results.arguments import shown
from lens_scopes.results.profiles import Profile
from lens_scopes.results.scores import Scores
from lens_scopes.views import dispatch, markup
from lens_scopes.views.grids import First, check_first

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

Backend = Literal["matplotlib", "plotly"]
_BACKENDS = ("matplotlib", "plotly")
# Tokens explained that a title names.
_LISTED = 3

__all__ = ["plot", "scatter", "series"]


def plot(
    result: Any,
    view: str | None = None,
    *,
    backend: Backend = "matplotlib",
    first: First = "show",
    ax: "Axes | Sequence[Axes] | None" = None,
) -> Any:
    """Draw a view of a result: a line of tokens, or a heat map with its scale; of a profile, means with their errors.

    Args:
        result: Scores, a Flow or a Profile; or a list of Scores or of Flows, drawn one under the other on one scale.
        view: one of its views; None for the first. A flow's "edges" have no picture here: see ``show``.
        backend: "matplotlib" or "plotly".
        first: "show", "hide" or "share": what to do with position 0, which often swallows everything.
        ax: matplotlib's axes to draw in, one for each table (lines of tokens need one); None for a figure of its own.

    Returns:
        A ``matplotlib.figure.Figure`` (``savefig`` writes PNG, SVG or PDF), or a ``plotly.graph_objects.Figure``.

    Raises:
        ValueError: a view that the result does not have, or that is no picture; another backend; results of several
            units, which have no scale in common; ``ax`` with plotly, or not one for each table.
        TypeError: a result without views.
        ImportError: the backend is not installed.

    """
    if isinstance(result, Profile):
        check_first(first)
        if view is not None:
            msg = f"a Profile has one view only: leave view={view!r} out"
            raise ValueError(msg)
        return _drawing(backend).profile(result, result.title, *_own(ax, 1, backend))
    there = dispatch.views(result)
    if not there:
        why = (
            "these Scores have no positions left: plot them before sel(pos=...) or sum('pos'), or write to_dataframe()"
            if isinstance(result, Scores)
            else f"a {type(result).__name__} has its own plot() if any"
        )
        msg = f"plot draws Scores (with positions) and Flows; {why}"
        raise TypeError(msg)
    chosen = dispatch.choose(result, view)
    if chosen in (None, "edges"):
        rest = ", ".join(repr(name) for name in there if name != "edges")
        msg = f"edges have more axes than a picture; show(flow, 'edges') has them, plot draws {rest}"
        raise ValueError(msg)
    tables = dispatch.grids(result, chosen, first)
    own = _own(ax, 1 if all(table.is_strip for table in tables) else len(tables), backend)
    return _drawing(backend).grids(tables, _heading(result), *([own] if own else []))


def series(
    values: "Sequence[float] | Tensor", scores: "Scores | Sequence[float] | Tensor", *, backend: Backend = "matplotlib"
) -> Any:
    """A time series with the influence of each of its steps on the prediction: the paper's figure.

    Args:
        values: the numbers that the prompt spells, one per step.
        scores: their influence, one per step: Scores with the axis "pos" alone (``aggregate`` and ``sel`` get there;
            picks of steps from a longer prompt as a plain list), or numbers. NaN where there is none.
        backend: see ``plot``.

    Returns:
        See ``plot``: the series above, each point in the colour of its influence, the influence as bars below.

    Raises:
        ValueError: not one score per value, or scores with more axes.
        ImportError: the backend is not installed.

    """
    unit, signed = "influence", False
    if isinstance(scores, Scores):
        if scores.dims != ("pos",):
            msg = f"series needs scores with the axis 'pos' alone, got {scores.dims}; pick with sel(site='embed')"
            raise ValueError(msg)
        unit, signed = f"influence ({scores.units})", scores.units == "signed"
        scores = scores.values
    numbers, weights = _numbers(values), _numbers(scores)
    if len(numbers) != len(weights) or not numbers:
        msg = f"series needs one score per value, got {len(numbers)} values and {len(weights)} scores"
        raise ValueError(msg)
    signed = signed or any(w < 0 for w in weights)
    return _drawing(backend).series(numbers, weights, unit, signed)


def scatter(
    predicted: "Sequence[float] | Tensor",
    measured: "Sequence[float] | Tensor",
    *,
    names: Sequence[str] = (),
    groups: Sequence[str] = (),
    title: str = "",
    backend: Backend = "matplotlib",
    ax: "Axes | None" = None,
) -> Any:
    """Predicted against measured effects, with the line where they are equal.

    Args:
        predicted: one number per place.
        measured: the same places; those that are NaN are left out.
        names: of the places, shown on hover by plotly.
        groups: of each place, its group: coloured from the first to the last in the order in which they come.
        title: of the figure.
        backend: see ``plot``.
        ax: matplotlib's axes to draw in; None for a figure of its own.

    Returns:
        See ``plot``.

    Raises:
        ValueError: not as many predicted as measured numbers, or none; ``ax`` with plotly.
        ImportError: the backend is not installed.

    """
    x, y = _numbers(predicted), _numbers(measured)
    if len(x) != len(y) or any(each and len(each) != len(x) for each in (names, groups)):
        given = f"{len(x)} and {len(y)} ({len(names)} names, {len(groups)} groups)"
        msg = f"scatter needs one measured number per predicted one, got {given}"
        raise ValueError(msg)
    kept = [i for i in range(len(x)) if math.isfinite(x[i]) and math.isfinite(y[i])]
    if not kept:
        msg = "nothing to draw: no place has both a predicted and a measured number"
        raise ValueError(msg)
    order = tuple(dict.fromkeys(groups))
    points = Points(
        x=[x[i] for i in kept],
        y=[y[i] for i in kept],
        names=[names[i] for i in kept] if names else [],
        group=[order.index(groups[i]) for i in kept] if groups else [],
        groups=order,
    )
    return _drawing(backend).scatter(points, title, *_own(ax, 1, backend))


def _heading(result: Any) -> str:
    """A result's title with the tokens explained, how likely each is and its rank; rows by target have names."""
    title, meta = dispatch.title(result), getattr(result, "meta", {})
    several = "target_pos" in getattr(result, "dims", ())
    about = [] if several or isinstance(result, list | tuple) else markup.explanations(meta)
    more = f" and {len(about) - _LISTED} more" if len(about) > _LISTED else ""
    return f"{title}; explained: {', '.join(about[:_LISTED])}{more}" if about else title


def _own(ax: Any, count: int, backend: str) -> "list[Axes]":
    """The user's axes, one for each table; none where a figure of its own is wanted.

    Raises:
        ValueError: with plotly, or not as many as tables.

    """
    if ax is None:
        return []
    if backend != "matplotlib":
        msg = f"ax is matplotlib's, and backend is {backend!r}: leave one of the two out"
        raise ValueError(msg)
    flat = getattr(ax, "flat", ax)
    axes = [ax] if hasattr(ax, "get_figure") else list(flat) if isinstance(flat, Iterable) else [ax]
    if not all(hasattr(one, "get_figure") for one in axes):
        msg = f"ax is matplotlib's axes, or a list of them, got {shown(ax)}; write ax=plt.subplots()[1]"
        raise TypeError(msg)
    if len(axes) != count:
        msg = (
            f"there {'is 1 table' if count == 1 else f'are {count} tables'} to draw and {len(axes)} axes: one for each"
        )
        raise ValueError(msg)
    return axes


def _drawing(backend: str) -> Any:
    """The module that draws with a backend."""
    if backend not in _BACKENDS:
        msg = f"backend is 'matplotlib' or 'plotly', got {backend!r}; write backend='matplotlib'"
        raise ValueError(msg)
    if find_spec(backend) is None:
        extra = "plot" if backend == "matplotlib" else "plotly"
        msg = f"{backend} is not installed: pip install 'lens-scopes[{extra}]'"
        raise ImportError(msg)
    return import_module(f"lens_scopes.plot.with_{backend}")


def _numbers(values: Any) -> list[float]:
    listed = values.tolist() if hasattr(values, "tolist") else list(values)
    if any(isinstance(value, list) for value in listed):
        msg = "one number per place is needed, in one dimension"
        raise ValueError(msg)
    return [float(value) for value in listed]
