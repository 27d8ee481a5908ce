"""Continuation: several forced tokens explained as one, by a cotangent spread over the positions before them."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lens_scopes.results.arguments import Integer, integer, listed, shown
from lens_scopes.scopes.state import Cotangents, FinalState
from lens_scopes.scopes.sweeps import log_prob, log_prob_gradients
from lens_scopes.scopes.twins import doubt

Kind = Literal["logprob", "logit"]


@dataclass(frozen=True)
class Continuation:
    """Sensitivity of a whole answer, Σ_p log p(x_p | before): one gradient, one backward pass for any number of tokens.

    Score ‖Σ_p J_{p,t}ᵀ v_p‖ with v_p = w̃_{x_p} − W̃ᵀp_p, in nats per unit; p runs over the positions that predict the
    tokens. The tokens are data: what goes through the choice of a generated token is not in it. Tokens of the answer
    are sources like any other; the last one reaches nothing and scores 0.

    Args:
        target: the answer, as text or ids that are joined to the prompt (``join``); None: the span "completion" of a
            Text, or the tokens after the positions asked for.
        versus: another answer after the same prompt, whose log p is subtracted. It has to differ in its last token
            alone, so that both are read off one forward pass.
        kind: "logprob", or "logit" for Σ_p z_{x_p}, whose cotangents do not fade where the model is sure.

    Warns (when called): text whose first word, with (or without) a leading blank, is ten times likelier.

    Raises:
        TypeError: neither text nor integers.
        ValueError: another kind. When called: no completion; a position that nothing follows; a continuation that
            cannot be joined (see ``join``); a ``versus`` that is another text before its last token.

    Example:
        >>> import lens_scopes as ls
        >>> model, case = ls.demo.load(), ls.demo.cases("translation", n=1)[0]
        >>> scores = ls.score(model, case.prompt, ls.Continuation(f" {case.answer} the"))
        >>> [target["text"] for target in scores.meta["targets"]] == [f" {case.answer}", " the"]
        True

    """

    target: str | Integer | Sequence[Integer] | Tensor | np.ndarray | None = None
    versus: str | Integer | Sequence[Integer] | Tensor | np.ndarray | None = None
    kind: Kind = field(default="logprob", kw_only=True)

    def __post_init__(self) -> None:
        """Keep ids as tuples, so that the scope stays hashable."""
        for name in ("target", "versus"):
            value: Any = getattr(self, name)
            if value is not None and not isinstance(value, str):
                what = f"Continuation's {name} is text or token ids; an id"
                object.__setattr__(self, name, tuple(integer(one, what) for one in listed(value)))
        if self.kind not in ("logprob", "logit"):
            msg = f"Continuation's kind is 'logprob' or 'logit', got {shown(self.kind)}; write kind='logit'"
            raise ValueError(msg)

    def __repr__(self) -> str:
        """As it is written, without what was left out."""
        given = {"target": self.target, "versus": self.versus, "kind": None if self.kind == "logprob" else self.kind}
        written = ", ".join(f"{name}={value!r}" for name, value in given.items() if value is not None)
        return f"Continuation({written})"

    def continues(
        self, tail: Callable[[str | tuple[int, ...]], tuple[int, ...]]
    ) -> tuple["Continuation", tuple[int, ...]]:
        """The scope with ``versus`` as ids, and the ids of its target."""
        added = () if self.target is None else tail(self.target)  # type: ignore[arg-type] - no tensor is left
        return (self if self.versus is None else replace(self, versus=tail(self.versus))), added  # type: ignore[arg-type]

    def joint(self, states: Sequence[FinalState]) -> Cotangents:
        """v_p at every position, as one row."""
        ids, other = self._ids(states)
        if isinstance(self.target, str) and (word := re.match(r"\s*\S+", self.target)):
            doubt(states[0], word.group(), ids[0])
        each: list[dict[str, Any]] = [{"target": token} for token in ids]
        notes: dict[str, Any] = {"each": each}
        if other is not None:
            # All tokens before the last are shared, and so are the normalisers: what is left is a logit difference.
            vectors = states[0].y.new_zeros(len(states), len(states[0].y))
            vectors[-1] = states[-1].rows(ids[-1]) - states[-1].rows(other)
            each[-1]["versus"] = other
        elif self.kind == "logit":
            vectors = torch.stack([state.rows(token) for state, token in zip(states, ids, strict=True)])
        else:
            vectors, log_p = log_prob_gradients(states, ids)
            notes["value"] = float(log_p.sum())
            if not vectors.any():
                msg = (
                    "Continuation: every token is certain (1 − p is 0 in float32): log p cannot move; write "
                    "kind='logit'"
                )
                raise ValueError(msg)
        return Cotangents(vectors[None], notes=notes)

    def __call__(self, state: FinalState) -> Cotangents:
        """The part at one position: the cotangent of its own next token."""
        made = self.joint([state])
        return Cotangents(made.vectors[:, 0], notes=made.notes["each"][0])

    def value(self, states: Sequence[FinalState]) -> Float[Tensor, "*run"]:
        """Σ_p log p(x_p | before), Σ_p z_{x_p}, or the difference to the other answer."""
        ids, other = self._ids(states)
        if other is not None:
            return states[-1].logit(ids[-1]) - states[-1].logit(other)
        if self.kind == "logit":
            return torch.stack([s.logit(token) for s, token in zip(states, ids, strict=True)]).sum(0)
        return torch.stack([log_prob(s.logits, token) for s, token in zip(states, ids, strict=True)]).sum(0)

    def _ids(self, states: Sequence[FinalState]) -> tuple[list[int], int | None]:
        """The forced tokens, and the last one of the other answer."""
        ids = [state.next_token for state in states]
        if self.versus is None:
            return ids, None
        if isinstance(self.versus, str):
            msg = "versus is text until the scope is bound to a prompt: call score, flow or patching with it"
            raise ValueError(msg)  # noqa: TRY004 - it is how it is asked that is wrong
        other = [int(one) for one in listed(self.versus)]
        if other == ids:
            msg = (
                f"Continuation holds the answer {ids} against itself, and every score would be 0; write another versus"
            )
            raise ValueError(msg)
        if len(other) != len(ids) or other[:-1] != ids[:-1]:
            msg = (
                f"versus is {len(other)} tokens {other}, the answer {ids}: before their last token "
                "they are two texts, which no single forward pass reads; write answers that differ in the last token "
                "alone, or score both with along='activation' and compare their prompts"
            )
            raise ValueError(msg)
        return ids, other[-1]
