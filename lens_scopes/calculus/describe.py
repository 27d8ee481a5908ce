"""What a trace knows about how a result was obtained, in the words of ``results.provenance``."""

from collections.abc import Mapping, Sequence
from typing import Any

from lens_scopes.calculus.trace import Trace
from lens_scopes.host import special_ids, token_texts
from lens_scopes.results.provenance import Meta, Target, Token, versions
from lens_scopes.scopes.protocol import Scope, data_of
from lens_scopes.scopes.state import Cotangents


def describe(
    run: Trace, prompt: int, made: Sequence[Cotangents], scope: Scope, freeze: Sequence[str], *, several: bool = False
) -> Meta:
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
        "scope": data_of(scope),
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
        "versions": versions(),
    }


def _target(run: Trace, prompt: int, n: int, note: Mapping[str, Any]) -> Target | None:
    """The token explained, and the one that it is held against; None for a scope that is not about a token."""
    if "target" not in note:
        return None
    target: Target = {**_token(run, prompt, n, note["target"])}
    if "versus" in note:
        target["versus"] = _token(run, prompt, n, note["versus"])
    return target


def _predictions(run: Trace, prompt: int, n: int, k: int = 5) -> list[Token]:
    p = run.probs(prompt, n)
    return [_token(run, prompt, n, i) for i in p.topk(min(k, len(p))).indices.tolist()]


def _token(run: Trace, prompt: int, n: int, token: int) -> Token:
    """A token after a position. Its text is what it would add there: some decoders drop the blank of a token alone."""
    p = run.probs(prompt, n)
    text = token_texts(run.host, [int(run.tokens[prompt, run.positions[n]]), token])[1]
    return {"id": token, "text": text, "p": float(p[token]), "rank": int((p > p[token]).sum())}
