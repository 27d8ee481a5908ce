"""From results to what goes over the wire: JSON-like, tables as they are drawn everywhere else."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

import lens_scopes as ls
from lens_scopes.calculus.trace import trace
from lens_scopes.host import Host, encode, token_texts
from lens_scopes.results.scores import Scores
from lens_scopes.serve import asks
from lens_scopes.serve.calls import Call, plain_prompt
from lens_scopes.serve.fields import MOST_TOKENS
from lens_scopes.serve.recipe import recipe
from lens_scopes.views import dispatch
from lens_scopes.views.flow import strongest_edges
from lens_scopes.views.grids import Grid
from lens_scopes.views.report import page
from lens_scopes.views.scores import scores_views

#: How many tokens a distribution lists, and up to how many circuitsvis draws a head's edges.
LISTED, MOST_DRAWN = 20, 64


@runtime_checkable
class Engine(Protocol):
    """What an answer is made with."""

    @property
    def host(self) -> Host:
        """The model."""
        ...

    def result(self, call: Call) -> Any:
        """What a call gives."""
        ...

    def say(self, done: int, of: int, what: str) -> None:
        """How far it is."""
        ...

    def count(self, of: int, what: str) -> None:
        """Say how far it is after each pass of the model from now on."""
        ...


def answer(ask: asks.Ask, engine: Engine) -> dict[str, Any]:
    """The answer to a question.

    Raises:
        ValueError: a prompt of too many tokens; or what the package says about the question.

    """
    for name in ("prompt", "clean", "corrupted"):
        prompt = getattr(ask, name, None)
        if prompt is not None:
            _refuse_long(engine.host, prompt)
    return _ANSWERS[type(ask)](ask, engine)


def _refuse_long(host: Host, prompt: Any) -> None:
    count = len(encode(host, plain_prompt(prompt)))
    if count > MOST_TOKENS:
        msg = f"the prompt has {count} tokens, the page takes at most {MOST_TOKENS}; write a shorter one"
        raise ValueError(msg)


def _only(ask: "asks.Generate | asks.Score | asks.Flow | asks.Predict", engine: Engine) -> Any:
    return engine.result(ask.call())


def _tokens(ask: asks.Tokens, engine: Engine) -> dict[str, Any]:
    host = engine.host
    ids = encode(host, plain_prompt(ask.prompt))
    if not -len(ids) <= ask.position < len(ids):
        msg = f"position {ask.position} is outside the prompt, which has {len(ids)} tokens"
        raise IndexError(msg)
    position = ask.position % len(ids)
    p = trace(host, ids[None], [], [position]).logits(0, 0).double().softmax(-1)
    top = p.topk(min(LISTED, len(p)))
    return {
        "ids": ids.tolist(),
        "tokens": list(token_texts(host, ids.tolist())),
        "position": position,
        "next": [
            {"id": i, "text": token_texts(host, [int(ids[position]), i])[1], "p": share}
            for i, share in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ],
    }


def _generate(ask: asks.Generate, engine: Engine) -> dict[str, Any]:
    engine.count(ask.n, "tokens")
    text = _only(ask, engine)
    return {"ids": list(text.ids), "tokens": list(text.tokens), "start": text.spans["completion"][0]}


def _score(ask: asks.Score, engine: Engine) -> dict[str, Any]:
    scores = _only(ask, engine)
    joined = scores if ask.level == "token" else scores.aggregate(ask.level)
    return _facts(scores) | _tables(scores, dispatch.grids(joined, scores_views(joined)[0], ask.first))


def _flow(ask: asks.Flow, engine: Engine) -> dict[str, Any]:
    flow = _only(ask, engine)
    views = [view for view in ("heads", "last", "stream") if view in dispatch.views(flow)]
    return _facts(flow) | {
        "grids": [grid_of(dispatch.grids(flow, view)[0]) for view in views],
        "total": float(flow.total.double().sum()),
        "residual": flow.residual,
    }


def _edges(ask: asks.Edges, engine: Engine) -> dict[str, Any]:
    flow = engine.result(ask.call())
    total = float(flow.total.double().sum())
    return _facts(flow) | {
        "head": [ask.layer, ask.head],
        "edges": [
            {"kind": e.kind, "query": e.query, "key": e.key, "value": e.influence, "share": number(e.influence / total)}
            for e in strongest_edges(flow, ask.most)
            if e.influence
        ],
        "figure": ask.call().key if flow.position < MOST_DRAWN else None,
    }


def _predict(ask: asks.Predict, engine: Engine) -> dict[str, Any]:
    return _effects([_only(ask, engine)])


def _measure(ask: asks.Measure, engine: Engine) -> dict[str, Any]:
    predicted: Any = None
    measured: Any = None
    for call in ask.calls(engine.result):
        found = engine.result(call)
        if predicted is None:
            predicted = found
            continue
        kept = found.values if measured is None else torch.where(found.values.isnan(), measured.values, found.values)
        measured = replace(found, values=kept)
        of = min(ask.largest, kept.numel())
        engine.say(int((~kept.isnan()).sum()), of, "places measured")
    compared = ls.patching.compare(predicted, measured)
    where = compared.where
    pairs = zip(predicted.values[where].tolist(), measured.values[where].tolist(), strict=True)
    return _effects([predicted, measured]) | {
        "places": where.nonzero().tolist(),
        "pairs": [list(pair) for pair in pairs],
        "spearman": number(compared.spearman),
        "sign_agreement": number(compared.sign_agreement),
    }


def _effects(results: list[Scores]) -> dict[str, Any]:
    """Effects of patches side by side on one scale, and what the metric is on both prompts."""
    one, meta = results[0], results[0].meta
    grids = dispatch.grids(results if len(results) > 1 else one, scores_views(one)[0])
    gap = number(float(meta.get("gap", math.nan)))
    return _facts(one) | _tables(one, grids) | {"metric": meta.get("metric"), "gap": gap}


def _cut(ask: asks.Cut, engine: Engine) -> dict[str, Any]:
    found = [engine.result(call) for call in ask.calls(engine.result)]
    predicted, measured = found if ask.by == "patch" else (found[0].predicted, found[0].measured)
    metric = dict(measured.meta["metric"])
    before, effect = metric.get("run", metric.get("corrupted")), float(measured.values[ask.place])
    if before is None or measured.units == "squared":  # a divergence, which has no number before
        before = after = None
    else:
        after = before + effect
    return _facts(measured) | {
        "predicted": _predicted(predicted.values, ask),
        "measured": effect,
        "before": before,
        "after": after,
        "where": {dim: measured.coords[dim][i] for dim, i in zip(measured.dims, ask.place, strict=True)},
        "token": None if ask.pos is None else measured.tokens[ask.pos],
    }


def _predicted(values: Tensor, ask: asks.Cut) -> float:
    """Of a head at all positions, the sum of what each would do."""
    if ask.pos is None and values.ndim == 3:
        return float(values[ask.site, :, ask.head].sum())
    return float(values[ask.place])


def _export(ask: asks.Export, engine: Engine) -> dict[str, Any]:
    if ask.kind == "python":
        return {"name": "lens_scopes_page.py", "text": recipe(ask.asks, engine.host, engine.result)}
    results = [engine.result(call) for one in ask.asks for call in one.calls(engine.result)]
    if ask.kind == "csv":
        frames = [one.to_dataframe() for one in results if hasattr(one, "to_dataframe")]
        if len(frames) != 1:
            msg = f"csv is one table, got {len(frames)} results; ask for one of them"
            raise ValueError(msg)
        return {"name": "lens_scopes.csv", "text": frames[0].to_csv(index=False)}
    shown = [one for one in results if hasattr(one, "_repr_html_")]
    return {"name": "lens_scopes_report.html", "text": page(shown)}


_ANSWERS: Mapping[type[asks.Ask], Callable[[Any, Engine], dict[str, Any]]] = {
    asks.Tokens: _tokens,
    asks.Generate: _generate,
    asks.Score: _score,
    asks.Flow: _flow,
    asks.Edges: _edges,
    asks.Predict: _predict,
    asks.Measure: _measure,
    asks.Cut: _cut,
    asks.Export: _export,
}


def _facts(result: Any) -> dict[str, Any]:
    """What was asked of which model, and what is explained."""
    meta = result.meta
    return {
        "title": dispatch.title(result),
        "tokens": list(result.tokens),
        "positions": list(meta["positions"]),
        "targets": [None if one is None else dict(one) for one in meta.get("targets") or ()],
        "units": result.units,
    }


def _tables(scores: Scores, grids: list[Grid]) -> dict[str, Any]:
    return {
        "grids": [grid_of(grid) for grid in grids],
        "sites": list(scores.coords["site"]),
        "heads": "head" in scores.dims,
    }


def grid_of(grid: Grid) -> dict[str, Any]:
    """A table with its colour scale, as every other drawing has it; NaN is null."""
    return {
        "values": [[number(value) for value in line] for line in grid.values],
        "rows": list(grid.rows),
        "columns": list(grid.columns),
        "positions": list(grid.positions),
        "unit": grid.unit,
        "signed": grid.signed,
        "title": grid.title,
        "largest": grid.largest,
        "ends": list(grid.ends),
        "explained": list(grid.explained),
        "note": grid.note,
    }


def number(value: float) -> float | None:
    """A number as JSON has it, with all digits of float32; null where there is none."""
    return float(f"{value:.9g}") if math.isfinite(value) else None
