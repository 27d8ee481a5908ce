"""Measure whether the labels of the demo's cases are true: the answer should hang on the causes and on nothing else.

Every word of a prompt that has substitutes is replaced by one of them, drawn at random, one word at a time. At a cause
the model's first choice should change; elsewhere it should not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from torch import nn

from lens_scopes.demo.answers import next_words
from lens_scopes.demo.draft import Case


@dataclass(frozen=True)
class Replacement:
    """One word of one case replaced, and what the model answered before and after."""

    case: Case
    position: int
    tokens: tuple[str, ...]
    before: str
    after: str

    @property
    def at_cause(self) -> bool:
        """Whether the word is labelled a cause."""
        return self.position in self.case.causes

    @property
    def changed(self) -> bool:
        """Whether the first choice is another one."""
        return self.before != self.after


def replacements(model: nn.Module, cases: Sequence[Case], seed: int = 0) -> list[Replacement]:
    """Replace each replaceable word of each case once, and ask the model again."""
    rng = Random(f"replacements {seed}")
    before = next_words(model, [case.tokens for case in cases])
    tried = [
        (case, clean, position, replaced(case, position, rng.choice(pool)))
        for case, clean in zip(cases, before, strict=True)
        for position, pool in enumerate(case.substitutes)
        if pool
    ]
    after = next_words(model, [tokens for *_, tokens in tried])
    return [
        Replacement(case, position, tokens, clean, word)
        for (case, clean, position, tokens), word in zip(tried, after, strict=True)
    ]


def replaced(case: Case, position: int, word: str) -> tuple[str, ...]:
    """The tokens of the case with the one at `position` replaced."""
    return (*case.tokens[:position], word, *case.tokens[position + 1 :])
