"""The views of Scores: a line of tokens, or tables of sites (heads, target positions) by tokens; and as HTML."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lens_scopes.results.provenance import lengths, tokens_of, unit_text
from lens_scopes.sites import EMBED, short
from lens_scopes.views import markup
from lens_scopes.views.cells import MOST_COLUMNS
from lens_scopes.views.grids import First, Grid, measure, on_one_scale
from lens_scopes.views.long import MOST_PIXELS, drawn
from lens_scopes.views.naming import title_of

if TYPE_CHECKING:
    from lens_scopes.results.scores import Scores

_MOST_CELLS = 20_000
_MOST_TABLES = 12
_MOST_TOKENS = 5_000
_LISTED = 20
_ROWS = {"site": "layers", "head": "heads", "target_pos": "targets"}


def scores_views(scores: "Scores") -> tuple[str, ...]:
    """The views these scores have, the fullest first: "layers", "heads" or "targets" by their axes, and "tokens"."""
    if "pos" not in scores.dims:
        return ()
    others = [dim for dim in scores.dims if dim != "pos"]
    # A table with a single row is a line of tokens.
    alone = "head" not in others and all(len(scores.coords[dim]) == 1 for dim in others)
    rows = [_ROWS.get(others[-1], others[-1])] if others and not alone else []
    return (*rows, *(() if "head" in others else ("tokens",)))


def scores_grids(scores: "Scores", view: str, first: First = "show") -> list[Grid]:
    """One view as labelled tables on one colour scale."""
    return on_one_scale(scores_tables(scores, view), first, by_row=view == "layers")


def scores_tables(scores: "Scores", view: str) -> list[Grid]:
    """The same before there is a scale."""
    note = ""
    if view == "tokens":
        scores, note = _one_line(scores)
    columns, said = columns_of(scores)
    joined = scores.meta.get("joined", [[0]])
    return [
        Grid(
            values=values.tolist(),
            rows=rows,
            columns=columns,
            unit=f"score ({measure(unit_text(scores.meta), scores.values, scores.stderr)})",
            signed=scores.units == "signed",
            title=name,
            positions=scores.coords["pos"],
            alone=len(joined[0]) == 1,
            explained=explained,
            note="; ".join(filter(None, (note, said))),
        )
        for name, rows, values, explained in _slices(scores)
    ]


def scores_title(scores: "Scores") -> str:
    """What was asked of which model; of effects of patches, whether they were predicted or measured."""
    return title_of(scores.meta)


def scores_html(scores: "Scores", view: str | None = None, first: First = "show") -> str:
    """A self-contained fragment: title, prediction, and a view."""
    if not scores_views(scores):
        return markup.figure(scores_title(scores), f"<pre>{markup.token(repr(scores), 200)}</pre>")
    return markup.figure(scores_title(scores), markup.predictions(scores.meta), scores_body(scores, view, first))


def scores_body(scores: "Scores", view: str | None = None, first: First = "show") -> str:
    """A view without title and prediction; caps what it draws and says so."""
    views = scores_views(scores)
    view, more = view or views[0], ""
    most = MOST_PIXELS if len(scores.tokens) > MOST_COLUMNS else _MOST_CELLS
    if scores.values.numel() > most and view != "tokens":
        more = f"{scores.values.numel()} values, more than the {most} drawn here: select a part with sel(...)"
        if "tokens" not in views or len(scores.tokens) > _MOST_TOKENS:
            return _largest(scores) + markup.remark(more)
        view = "tokens"
    if len(scores.tokens) > _MOST_TOKENS:
        return _largest(scores) + markup.remark(f"{len(scores.tokens)} tokens, more than the {_MOST_TOKENS} drawn here")
    grids = scores_grids(scores, view, first)
    if len(grids) > _MOST_TABLES:
        more = f"first {_MOST_TABLES} of {len(grids)} tables; select others with sel(...)"
    note = "; ".join(filter(None, (grids[0].note, more)))
    return drawn(grids[:_MOST_TABLES]) + (markup.remark(note) if note else "")


def columns_of(scores: "Scores") -> tuple[tuple[str, ...], str]:
    """What stands over each position: its token, or what was joined with its number of tokens; and a note on those."""
    meta = scores.meta
    counts = lengths(meta)
    if not counts:
        return scores.tokens, ""
    # In front, because long names are cut.
    many = tuple(text if n == "1" else f"{n}× {text.strip(' ')}" for text, n in zip(scores.tokens, counts, strict=True))
    notes = ["×: of so many tokens" if many != scores.tokens else ""]
    left = len(meta.get("joined_tokens", ())) - sum(map(len, meta["joined"]))
    notes.append(f"{left} of {len(meta['joined_tokens'])} tokens are in no span" if left > 0 else "")
    astride = meta.get("straddling", ())
    at = ", ".join(f"{markup.named(meta['joined_tokens'][i])} at {i}" for i in astride[:3]) + (
        ", …" if len(astride) > 3 else ""
    )
    notes.append(f"partly outside of its span: {at}" if astride else "")
    return many, "; ".join(filter(None, notes))


def _one_line(scores: "Scores") -> tuple["Scores", str]:
    """The scores at one site and target position: the input's where it is there, and the last."""
    notes = []
    if all(len(scores.coords[dim]) == 1 for dim in scores.dims if dim != "pos"):
        return scores, ""
    if "site" in scores.dims:
        sites = scores.coords["site"]
        site = EMBED if EMBED in sites else sites[0]
        notes += [f"at {site}, one of {len(sites)} sites"] if len(sites) > 1 else []
        scores = scores.sel(site=site)
    if "target_pos" in scores.dims:
        target = scores.coords["target_pos"][-1]
        notes.append(f"for the prediction after position {target}")
        scores = scores.sel(target_pos=target)
    return scores, "; ".join(notes)


def _slices(scores: "Scores") -> list[tuple[str, tuple[str, ...], Tensor, tuple[int, ...]]]:
    """The values as tables [row, pos], each with a name, its rows' labels, and the position that each row is about."""
    values = scores.values.movedim(scores.dims.index("pos"), -1)
    about = _next_tokens(scores)
    at = _explained(scores)
    others = [dim for dim in scores.dims if dim != "pos"]
    if not others:
        return [("", ("",), values[None], at)]
    *outer, row = others
    tables = [("", values, at)]
    for dim in outer:
        tables = [
            (f"{name} {label_text(dim, label, about)}".strip(), part, of)
            for name, block, before in tables
            for label, part in zip(scores.coords[dim], block, strict=True)
            for of in [_column(scores, label) if dim == "target_pos" else before]
        ]
    rows = scores.coords[row]
    labels = tuple(label_text(row, label, about) for label in rows)
    if row == "target_pos":
        each = tuple(position for label in rows for position in _column(scores, label))
        return [(name, labels, part, each) for name, part, _ in tables]
    return [(name, labels, part, of * len(rows)) for name, part, of in tables]


def _explained(scores: "Scores") -> tuple[int, ...]:
    """The one position that all scores are about; none where it is an axis, or they are about several together."""
    positions = scores.meta.get("positions", ())
    only = scores.meta.get("selected", {}).get("target_pos", positions[0] if len(positions) == 1 else None)
    return () if only is None else _column(scores, only)


def _column(scores: "Scores", position: int) -> tuple[int, ...]:
    """The position by which a column is called that holds a position: of joined ones the first."""
    return (next((span[0] for span in scores.meta.get("joined", ()) if position in span), position),)


def _largest(scores: "Scores") -> str:
    """Where there is too much to draw: the largest scores as a list."""
    flat, (columns, _) = scores.values.flatten(), columns_of(scores)
    finite = flat.abs().nan_to_num(nan=-1.0)
    rows = []
    for i in finite.topk(min(_LISTED, len(flat))).indices.tolist():
        rest, labels = i, {}
        for dim, size in zip(reversed(scores.dims), reversed(scores.values.shape), strict=True):
            rest, at = divmod(rest, size)
            labels[dim] = (at, scores.coords[dim][at])
        at, position = labels.pop("pos")
        where = " ".join(label_text(dim, label) for dim, (_, label) in reversed(labels.items()))
        rows.append((str(position), markup.visible(columns[at]), where, markup.number(float(flat[i]))))
    return markup.heading(f"the {len(rows)} largest") + markup.numbers(("position", "token", "where", "score"), rows)


def _next_tokens(scores: "Scores") -> dict[int, str]:
    """By position, in words: the token explained there, else what is predicted."""
    positions = scores.meta.get("positions", ())
    found = {}
    for position, top in zip(positions, scores.meta.get("predictions", ()), strict=False):
        if top:
            found[position] = f"predicts {markup.named(top[0]['text'])}"
    for position, target in zip(positions, scores.meta.get("targets") or (), strict=False):
        if target is not None:
            found[position] = " against ".join(markup.named(one["text"]) for one in tokens_of(target))
    return found


def label_text(dim: str, label: Any, about: Mapping[int, str] = MappingProxyType({})) -> str:
    """A label of an axis in words; a target position with the token that is explained there."""
    if dim == "site":
        return short(str(label))
    if dim == "target_pos":
        return f"target {label}" + (f": {about[label]}" if label in about else "")
    return f"{dim} {label}"
