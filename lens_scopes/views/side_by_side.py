"""Results side by side: one view of each, one colour scale for all that have one unit, named by what differs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lens_scopes.results.flow import Flow
from lens_scopes.results.provenance import UNITS, unit_text
from lens_scopes.results.scores import Scores
from lens_scopes.views import markup, naming
from lens_scopes.views.flow import flow_tables, flow_views
from lens_scopes.views.grids import First, Grid, measure, on_one_scale
from lens_scopes.views.long import MOST_PIXELS, drawn
from lens_scopes.views.scores import scores_tables, scores_views

_MOST_CELLS = 20_000
_MOST_TABLES = 12


def refuse_unlike(results: Sequence[Any]) -> None:
    """Refuse what cannot stand side by side.

    Raises:
        TypeError: others than Scores or Flows, or both.
        ValueError: none.

    """
    if not results:
        msg = "nothing to show side by side: the list is empty"
        raise ValueError(msg)
    kinds = list(dict.fromkeys(type(one) for one in results))
    if len(kinds) != 1 or not issubclass(kinds[0], Scores | Flow):
        found = ", ".join(kind.__name__ for kind in kinds)
        msg = f"side by side stand Scores, or Flows, and not {found}; ls.report takes any results, one after the other"
        raise TypeError(msg)


def together_views(results: Sequence[Any]) -> tuple[str, ...]:
    """The views that all of them have."""
    refuse_unlike(results)
    there = [scores_views(one) if isinstance(one, Scores) else flow_views(one) for one in results]
    return tuple(view for view in there[0] if view != "edges" and all(view in others for others in there))


def together_title(results: Sequence[Any]) -> str:
    """What they have in common."""
    text = naming.common([one.meta for one in results])
    return f"Flow of {text}" if isinstance(results[0], Flow) else text


def together_names(results: Sequence[Any]) -> list[str]:
    """What tells each from the others."""
    return naming.differing([one.meta for one in results], naming.prompts_of(results))


def together_grids(results: Sequence[Any], view: str, first: First = "show") -> list[list[Grid]]:
    """By result its tables; all tables of one unit are on one scale, and each kind of scope has a unit of its own."""
    made = [scores_tables(r, view) if isinstance(r, Scores) else flow_tables(r, view, first) for r in results]
    kinds = [kind_of(r.meta) for r in results]
    whose = ["" if len(set(kinds)) == 1 else f", {kind}" for kind in kinds]
    made = [
        [replace(g, unit=_unit(r, g) + own) for g in tables]
        for r, own, tables in zip(results, whose, made, strict=True)
    ]
    flat = [grid for tables in made for grid in tables]
    scaled: dict[int, Grid] = {}
    for unit in dict.fromkeys((grid.unit, grid.signed) for grid in flat):
        same = [n for n, grid in enumerate(flat) if (grid.unit, grid.signed) == unit]
        of_unit = on_one_scale([flat[n] for n in same], first, by_row=view == "layers", together=True)
        scaled |= dict(zip(same, of_unit, strict=True))
    drawn = iter(scaled[n] for n in range(len(flat)))
    return [[next(drawn) for _ in tables] for tables in made]


def kind_of(meta: Mapping[str, Any]) -> str:
    """The kind of scope that numbers are of: only numbers of one kind are on one scale."""
    if "difference" in meta:
        return " − ".join(dict.fromkeys(map(kind_of, meta["difference"])))
    scope = meta.get("scope", "")
    return str(scope.get("kind", "")) if isinstance(scope, Mapping) else str(scope)


def _known(result: Any) -> str:
    """How well the numbers of an estimate are known."""
    if result.stderr is None:
        return ""
    values = result.values if isinstance(result, Scores) else result.total
    return markup.remark(measure("estimate", values, result.stderr))


def _unit(result: Any, grid: Grid) -> str:
    """What its numbers are, without how well they are known, which is every result's own."""
    if isinstance(result, Flow):
        return f"score ({UNITS[result.units]})" if result.stderr is not None and grid.is_strip else grid.unit
    return f"score ({unit_text(result.meta)})"


def one_picture(results: Sequence[Any], view: str, first: First = "show") -> list[Grid]:
    """The tables of all, each titled by what tells its result from the others.

    Raises:
        ValueError: results of several units, which have no scale in common.

    """
    made = together_grids(results, view, first)
    units = list(dict.fromkeys(grid.unit for tables in made for grid in tables))
    if len(units) > 1:
        msg = f"one picture has one colour scale, and these have {len(units)} units: {', '.join(units)}; plot each"
        raise ValueError(msg)
    return [
        replace(grid, title=f"{name}: {grid.title}" if grid.title else name)
        for name, tables in zip(together_names(results), made, strict=True)
        for grid in tables
    ]


def together_html(results: Sequence[Any], view: str, first: First = "show") -> str:
    """A self-contained fragment: what they have in common, and a view of each."""
    return markup.figure(together_title(results), together_body(results, view, first))


def together_body(results: Sequence[Any], view: str, first: First = "show") -> str:
    """One view of each beside the others, with the prediction that it is about; the scale under each is the unit's."""
    made = together_grids(results, view, first)
    flat = [grid for tables in made for grid in tables]
    cells = sum(len(grid.rows) * len(grid.columns) for grid in flat)
    most = MOST_PIXELS if any(grid.is_long for grid in flat) else _MOST_CELLS
    if cells > most or len(flat) > _MOST_TABLES:
        size = f"{len(flat)} tables of {cells} cells"
        return markup.remark(f"{size} are more than the {_MOST_TABLES} of {most} drawn here: select with sel(...)")
    boxes = [
        markup.heading(name) + markup.predictions(result.meta) + _known(result) + drawn(tables)
        for name, result, tables in zip(together_names(results), results, made, strict=True)
    ]
    notes = list(dict.fromkeys(grid.note for grid in flat if grid.note))
    if len({grid.unit for grid in flat}) > 1:
        notes.append("numbers of different units are on scales of their own")
    return markup.beside(*boxes) + "".join(map(markup.remark, notes))
