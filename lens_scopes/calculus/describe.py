"""What a trace knows about how a result was obtained, in the words of ``results.provenance``."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_scopes.calculus.question import Asked
from lens_scopes.calculus.trace import Trace
from lens_scopes.host import Host, special_ids, token_id, token_texts
from lens_scopes.results.arguments import is_integer, listed
from lens_scopes.results.provenance import Meta, Target, Token, plain, versions
from lens_scopes.scopes.protocol import Scope, data_of, said_by, spans_positions
from lens_scopes.scopes.state import Cotangents


def describe(run: Trace, prompt: int, made: Sequence[Cotangents], asked: Asked, freeze: Sequence[str]) -> Meta:
    """JSON-like facts of one prompt of a trace: what was explained, on which model, processed how.

    Args:
        run: the forward pass.
        prompt: which prompt of its batch.
        made: the cotangents at each of its positions, or those that span them.
        asked: the question.
        freeze: the parts held constant.

    """
    host, ids = run.host, run.tokens[prompt].tolist()
    together = made[0].spans
    each = made[0].notes.get("each") or [{}] * len(run.positions) if together else [one.notes for one in made]
    notes = [plain(note) for note in each]
    places = [_Place.of(run, prompt, n) for n in range(len(run.positions))]
    coverage = [float(one.notes.get("coverage", 1.0)) for one in made]
    special = special_ids(host)
    value = said_by(asked.scope, "value")
    about: Meta = {}
    if spans_positions(asked.scope) and value is not None:
        known = made[0].notes.get("value")
        about["value"] = float(value(run.ends(prompt))) if known is None else known
    if asked.spans:
        about["spans"] = {name: list(span) for name, span in asked.spans.items()}
    return about | {
        "token_ids": ids,
        "own_bos": asked.own_bos,
        "special": [i for i, token in enumerate(ids) if token in special],
        "scope": data_of(asked.scope),
        "position": list(run.positions) if asked.several or together else run.positions[0],
        "positions": list(run.positions),
        "targets": [place.target(note, asked.scope) for place, note in zip(places, notes, strict=True)],
        "predictions": [place.predictions() for place in places],
        "model": host.name,
        "host": type(host.model).__name__,
        "dtype": str(host.dtype).removeprefix("torch."),
        "folded": run.readout.constant_norm,
        "centred": run.readout.centred,
        "coverage": coverage if asked.several and not together else coverage[0],
        "notes": notes,
        "freeze": listed(freeze),
        "hooks": list(run.hooked),
        "versions": versions(),
    }


# How many of the model's first choices a result names.
_NAMED = 5


@dataclass(frozen=True, eq=False)
class _Place:
    """One position of one prompt: what the model says next there."""

    host: Host
    before: int
    """The token at the position."""
    logits: Float[Tensor, " vocab"]
    normaliser: float
    """log Σ exp(z), in float64."""
    first: tuple[int, ...]
    """The likeliest tokens, in order."""
    largest: Float[Tensor, " k"]
    """Their logits."""

    @classmethod
    def of(cls, run: Trace, prompt: int, n: int) -> "_Place":
        logits = run.logits(prompt, n)
        top = logits.max()
        # The exponentials in the logits' own dtype, their sum in float64: digits enough, at a third of the time.
        normaliser = top.double() + (logits - top).exp().sum(dtype=torch.float64).log()
        largest = logits.topk(min(_NAMED, len(logits)))
        before = int(run.tokens[prompt, run.positions[n]])
        return cls(run.host, before, logits, float(normaliser), tuple(largest.indices.tolist()), largest.values)

    def target(self, note: Mapping[str, Any], scope: Scope) -> Target | None:
        """The token explained, and the one that it is held against; None for a scope that is not about a token."""
        about = note.get("target", getattr(scope, "target", None))
        if about is None or not (isinstance(about, str) or is_integer(about)):
            return None
        target: Target = {**self.token(token_id(self.host, about))}
        if note.get("versus") is not None:
            target["versus"] = self.token(token_id(self.host, note["versus"]))
        return target

    def predictions(self) -> list[Token]:
        """The model's first choices."""
        return [self.token(i) for i in self.first]

    def token(self, token: int) -> Token:
        """A token after the position, with the text that it would add there: alone, some decoders drop its blank."""
        text = token_texts(self.host, [self.before, token])[1]
        z = self.logits[token]
        p = math.exp(float(z) - self.normaliser)
        # Those before a token among the first are the first ones themselves.
        above = self.largest if token in self.first else self.logits
        return {"id": token, "text": text, "p": p, "rank": int(torch.count_nonzero(above > z))}
