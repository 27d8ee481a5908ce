"""What a trace knows about how a result was obtained, in the words of ``results.provenance``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lens_scopes.calculus.trace import Trace
from lens_scopes.host import Host, special_ids, token_id, token_texts
from lens_scopes.host.prompts import Prompt, brings_its_bos
from lens_scopes.results.given import is_integer, listed
from lens_scopes.results.provenance import Meta, Target, Token, plain, versions
from lens_scopes.scopes.protocol import Scope, data_of
from lens_scopes.scopes.state import Cotangents


def describe(
    run: Trace,
    prompt: int,
    made: Sequence[Cotangents],
    scope: Scope,
    freeze: Sequence[str],
    written: Prompt,
    *,
    several: bool = False,
) -> Meta:
    """JSON-like facts of one prompt of a trace: what was explained, on which model, processed how.

    Args:
        run: the forward pass.
        prompt: which prompt of its batch.
        made: the cotangents at each of its positions.
        scope: what made them.
        freeze: the parts held constant.
        written: the prompt as the user wrote it.
        several: whether a list of positions was asked for (then position and coverage are lists).

    """
    host, ids = run.host, run.tokens[prompt].tolist()
    notes = [plain(one.notes) for one in made]
    places = [_Place.of(run, prompt, n) for n in range(len(run.positions))]
    coverage = [note.get("coverage", 1.0) for note in notes]
    special = special_ids(host)
    return {
        "token_ids": ids,
        "own_bos": brings_its_bos(host, written),
        "special": [i for i, token in enumerate(ids) if token in special],
        "scope": data_of(scope),
        "position": list(run.positions) if several else run.positions[0],
        "positions": list(run.positions),
        "targets": [place.target(note, scope) for place, note in zip(places, notes, strict=True)],
        "predictions": [place.predictions() for place in places],
        "model": host.name,
        "host": type(host.model).__name__,
        "dtype": str(host.dtype).removeprefix("torch."),
        "folded": run.readout.constant_norm,
        "centred": run.readout.centred,
        "coverage": coverage if several else coverage[0],
        "notes": notes,
        "freeze": listed(freeze),
        "hooks": list(host.hooked()),
        "versions": versions(),
    }


@dataclass(frozen=True, eq=False)
class _Place:
    """One position of one prompt: what the model says next there."""

    host: Host
    before: int
    """The token at the position."""
    p: Float[Tensor, " vocab"]

    @classmethod
    def of(cls, run: Trace, prompt: int, n: int) -> "_Place":
        return cls(run.host, int(run.tokens[prompt, run.positions[n]]), run.probs(prompt, n))

    def target(self, note: Mapping[str, Any], scope: Scope) -> Target | None:
        """The token explained, and the one that it is held against; None for a scope that is not about a token."""
        about = note.get("target", getattr(scope, "target", None))
        if about is None or not (isinstance(about, str) or is_integer(about)):
            return None
        target: Target = {**self.token(token_id(self.host, about))}
        if note.get("versus") is not None:
            target["versus"] = self.token(token_id(self.host, note["versus"]))
        return target

    def predictions(self, k: int = 5) -> list[Token]:
        """The model's first choices."""
        return [self.token(i) for i in self.p.topk(min(k, len(self.p))).indices.tolist()]

    def token(self, token: int) -> Token:
        """A token after the position, with the text that it would add there: alone, some decoders drop its blank."""
        text = token_texts(self.host, [self.before, token])[1]
        p = self.p[token]
        return {"id": token, "text": text, "p": float(p), "rank": int((self.p > p).sum())}
