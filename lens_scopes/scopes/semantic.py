"""The Semantic Scope: the sensitivity of one logit, or of a logit difference (arXiv 2601.16407)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lens_scopes.scopes.state import Cotangents, FinalState

Token = str | int


@dataclass(frozen=True)
class Semantic:
    """Semantic Scope: sensitivity of one logit, or of a logit difference. Score ‖J_tᵀ w̃_target‖, in logits per unit.

    Args:
        target: a token, as a string or id; or one per requested position; None is the model's top-1 at the position.
        versus: the token whose logit is subtracted: v = w̃_target − w̃_versus. Unlike a single logit, a difference does
            not depend on whether the unembedding is centred.

    Raises (when called):
        ValueError: a string that is not one token, an id outside the vocabulary, or not one target per position.

    """

    target: Token | Sequence[Token] | Tensor | None = None
    versus: Token | Sequence[Token] | Tensor | None = None

    def __post_init__(self) -> None:
        """Keep sequences as tuples, so that the scope stays hashable."""
        for name in ("target", "versus"):
            value = getattr(self, name)
            if isinstance(value, Tensor):
                value = value.tolist()
            if isinstance(value, Sequence) and not isinstance(value, str | bytes):
                object.__setattr__(self, name, tuple(value))

    def __repr__(self) -> str:
        """As it is written, without what was left out."""
        given = {"target": self.target, "versus": self.versus}
        return f"Semantic({', '.join(f'{name}={value!r}' for name, value in given.items() if value is not None)})"

    def __call__(self, state: FinalState) -> Cotangents:
        """v = w̃_target [− w̃_versus], one cotangent."""
        target = _pick(self.target, state, "target")
        target = int(state.logits.argmax()) if target is None else state.token_id(target)
        vector, notes = state.rows(target), {"target": target}
        versus = _pick(self.versus, state, "versus")
        if versus is not None:
            versus = state.token_id(versus)
            vector, notes = vector - state.rows(versus), {"target": target, "versus": versus}
        return Cotangents(vector[None], notes=notes)


def _pick(wanted: Any, state: FinalState, name: str) -> Token | None:
    """The token for this position out of "one for all" or "one per requested position"."""
    if not isinstance(wanted, tuple):
        return wanted
    if len(wanted) != state.count:
        msg = f"Semantic got {len(wanted)} values of {name} for {state.count} positions; give one, or one per position"
        raise ValueError(msg)
    return wanted[state.index]
