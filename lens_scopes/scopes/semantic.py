"""The Semantic Scope: the sensitivity of one logit, or of a logit difference (arXiv 2601.16407)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from lens_scopes.results.arguments import Integer, integer, listed
from lens_scopes.scopes.state import Cotangents, FinalState
from lens_scopes.scopes.twins import doubt

Token = str | Integer


@dataclass(frozen=True)
class Semantic:
    """Semantic Scope: sensitivity of one logit, or of a logit difference. Score ‖J_tᵀ w̃_target‖, in logits per unit.

    Args:
        target: a token, as a string or id; or one per requested position; None is the model's top-1 at the position;
            "next" is the text's own next token (write the id of the token "next" where that one is meant).
        versus: the token whose logit is subtracted: v = w̃_target − w̃_versus. Unlike a single logit, a difference does
            not depend on whether the unembedding is centred.

    Warns (when called): a string whose twin with (or without) a leading blank is ten times likelier; ids never warn.

    Raises (when called):
        ValueError: a string that is not one token or unknown to the tokenizer, an id outside the vocabulary, not one
            target per position, or "next" at the end of the text.

    Raises (at once):
        TypeError: neither text nor an integer.

    """

    target: Token | Sequence[Token] | Tensor | np.ndarray | None = None
    versus: Token | Sequence[Token] | Tensor | np.ndarray | None = None

    def __post_init__(self) -> None:
        """Keep tokens as text or Python's integers, several of them as a tuple, so that the scope stays hashable."""
        for name in ("target", "versus"):
            value = getattr(self, name)
            if value is None or isinstance(value, str):
                continue
            what = f"Semantic's {name} is a string or an id; an id"
            each = tuple(one if one is None or isinstance(one, str) else integer(one, what) for one in listed(value))
            several = isinstance(value, Sequence) or getattr(value, "ndim", 0) > 0
            object.__setattr__(self, name, each if several else each[0])

    def __repr__(self) -> str:
        """As it is written, without what was left out."""
        given = {"target": self.target, "versus": self.versus}
        written = ", ".join(f"{name}={value!r}" for name, value in given.items() if value is not None)
        return f"{type(self).__name__}({written})"

    def __call__(self, state: FinalState) -> Cotangents:
        """v = w̃_target [− w̃_versus], one cotangent."""
        target, versus = self._ids(state)
        if versus is None:
            return Cotangents(state.rows(target)[None], notes={"target": target})
        vector = state.rows(target) - state.rows(versus)
        return Cotangents(vector[None], notes={"target": target, "versus": versus})

    def value(self, state: FinalState) -> Float[Tensor, "*run"]:
        """The logit, or the difference of the two."""
        target, versus = self._ids(state)
        return state.logit(target) - (0.0 if versus is None else state.logit(versus))

    def resolve(self, state: FinalState) -> "Semantic":
        """With the ids of the tokens that are meant at this state."""
        target, versus = self._ids(state)
        return replace(self, target=target, versus=versus)

    def _ids(self, state: FinalState) -> tuple[int, int | None]:
        target, versus = (self._pick(name, state) for name in ("target", "versus"))
        if target is None:
            if state.y.ndim > 1:
                msg = "Semantic() aims at the top-1 of one state, and was asked about many: resolve(state) it first"
                raise ValueError(msg)
            target = int(state.logits.argmax())
        found, other = _id(target, state), None if versus is None else _id(versus, state)
        if found == other:
            msg = f"Semantic holds the token {found} against itself, and every score would be 0; write another versus"
            raise ValueError(msg)
        return found, other

    def _pick(self, name: str, state: FinalState) -> str | int | None:
        """The token for this position out of "one for all", "the next" or "one per requested position"."""
        wanted: Any = getattr(self, name)
        if isinstance(wanted, str) and wanted == "next":
            return state.next_token
        if not isinstance(wanted, tuple):
            return wanted
        if len(wanted) != state.count:
            msg = (
                f"Semantic got {len(wanted)} values of {name} for {state.count} positions; give one, or one per "
                "position"
            )
            raise ValueError(msg)
        return wanted[state.index]


def _id(token: str | int, state: FinalState) -> int:
    """The token's id; with a warning where the text with (or without) a leading blank is what the model would say."""
    found = state.token_id(token)
    if isinstance(token, str):
        doubt(state, token, found)
    return found
