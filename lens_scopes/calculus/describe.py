"""How a result was obtained: the facts that travel with every score and flow in ``meta``."""

from collections.abc import Sequence
from typing import Any

import torch

from lens_scopes.calculus.trace import Trace
from lens_scopes.host import special_ids, token_texts
from lens_scopes.results import provenance
from lens_scopes.scopes.state import Cotangents, Scope


def describe(
    run: Trace, prompt: int, made: Sequence[Cotangents], scope: Scope, freeze: Sequence[str], *, several: bool = False
) -> dict[str, Any]:
    """JSON-like facts of one prompt of a trace: what was explained, on which model, processed how.

    Args:
        run: the forward pass.
        prompt: which prompt of its batch.
        made: the cotangents at each of its positions.
        scope: what made them.
        freeze: the parts held constant.
        several: whether a list of positions was asked for (then position and coverage are lists).

    """
    host, ids = run.host, run.tokens[prompt].tolist()
    notes = [dict(one.notes) for one in made]
    coverage = [note.get("coverage", 1.0) for note in notes]
    special = special_ids(host)
    return {
        "token_ids": ids,
        "special": [i for i, token in enumerate(ids) if token in special],
        "scope": scope_text(scope),
        "position": list(run.positions) if several else run.positions[0],
        "positions": list(run.positions),
        "targets": [_target(run, prompt, n, note) for n, note in enumerate(notes)],
        "predictions": [_predictions(run, prompt, n) for n in range(len(run.positions))],
        "model": host.name,
        "host": type(host.model).__name__,
        "dtype": str(host.dtype).removeprefix("torch."),
        "folded": run.readout.constant_norm,
        "centred": run.readout.centred,
        "coverage": coverage if several else coverage[0],
        "notes": notes,
        "freeze": [freeze] if isinstance(freeze, str) else list(freeze),
        "versions": provenance.versions(),
    }


def scope_text(scope: Scope) -> str:
    """A scope as text: how a built-in one is written, a function's name."""
    if hasattr(scope, "__dataclass_fields__"):
        return repr(scope)
    return getattr(scope, "__name__", type(scope).__name__)


def _target(run: Trace, prompt: int, n: int, note: dict[str, Any]) -> dict[str, Any]:
    ids = {key: note[key] for key in ("target", "versus") if key in note}
    return {key: {"id": i, "text": _next_text(run, prompt, n, i)} for key, i in ids.items()}


def _predictions(run: Trace, prompt: int, n: int, k: int = 5) -> list[dict[str, Any]]:
    p = torch.softmax(run.readout.transform(run.raw[prompt, n]).double(), -1)
    top = p.topk(min(k, len(p)))
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [{"id": i, "text": _next_text(run, prompt, n, i), "p": share} for i, share in pairs]


def _next_text(run: Trace, prompt: int, n: int, token: int) -> str:
    """The text that a token would add after the position: some decoders drop the blank of a token alone."""
    return token_texts(run.host, [int(run.tokens[prompt, run.positions[n]]), token])[1]
