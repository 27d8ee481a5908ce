"""Define what a generator writes: words, what each may be replaced by, and which of them the answer hangs on.

The label rests on one definition. Every word of a prompt belongs to a class of words that could stand in its place. A
word is a *cause* when a replacement from its class changes the answer by the rule of the generator; its substitutes are
those replacements. A word is no cause when no replacement from its class changes the answer; all of them are its
substitutes. Replacements are made one at a time.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from lens_scopes.demo.vocabulary import BOS


@dataclass(frozen=True)
class Case:
    """A prompt whose next word is known, and known to hang on the words at `causes`.

    Attributes:
        kind: "induction", "ioi", "translation", "persona" or "series".
        prompt: the text; `tokens` without the leading "<bos>", joined by spaces.
        tokens: one string per token, "<bos>" first.
        position: the index whose next token is asked for: the last.
        answer: the right next token.
        versus: the right next token of `corrupted`: the natural competitor.
        corrupted: a prompt of the same template and length with another answer.
        corrupted_tokens: its tokens.
        causes: the positions that the answer hangs on.
        substitutes: for each position the words that could stand there instead; at a cause each one changes the
            answer, elsewhere none does; empty where nothing else fits.
    """

    kind: str
    prompt: str
    tokens: tuple[str, ...]
    position: int
    answer: str
    versus: str | None
    corrupted: str
    corrupted_tokens: tuple[str, ...]
    causes: tuple[int, ...]
    substitutes: tuple[tuple[str, ...], ...] = field(repr=False)


@dataclass(frozen=True)
class Draft:
    """A prompt as its generator wrote it; `document` is what the model is trained on.

    `graded` are the indices of words of `document` that are determined by what comes before them; `unknowable` are
    those that cannot be learnt (random words, or words put in to teach the model to overlook them).
    """

    kind: str
    words: tuple[str, ...]
    pools: tuple[tuple[str, ...], ...]
    causes: tuple[int, ...]
    answer: str
    versus: str | None
    twin: tuple[str, ...]
    document: tuple[str, ...]
    graded: tuple[int, ...]
    unknowable: tuple[int, ...] = ()

    def case(self) -> Case:
        """The public form, with positions counted from "<bos>"."""
        tokens = (BOS, *self.words)
        substitutes = tuple(
            tuple(sorted({other for other in pool if other != word}))
            for word, pool in zip(self.words, self.pools, strict=True)
        )
        return Case(
            kind=self.kind,
            prompt=" ".join(self.words),
            tokens=tokens,
            position=len(tokens) - 1,
            answer=self.answer,
            versus=self.versus,
            corrupted=" ".join(self.twin),
            corrupted_tokens=(BOS, *self.twin),
            causes=tuple(sorted(index + 1 for index in self.causes)),
            substitutes=((), *substitutes),
        )


class Writer:
    """Collect the words of a prompt, with the class that each one comes from."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.pools: list[tuple[str, ...]] = []

    def add(self, word: str, pool: Sequence[str] = ()) -> int:
        """Append a word that any of `pool` could stand in for; return its index."""
        self.words.append(word)
        self.pools.append(tuple(pool))
        return len(self.words) - 1

    def usual(self, rng: Random, *pools: Sequence[str]) -> int:
        """Append one word of each class, preferring the first of the class; return the index of the last."""
        for pool in pools:
            self.add(pool[0] if rng.random() < 0.5 else rng.choice(pool), pool)
        return len(self.words) - 1

    def any(self, rng: Random, pool: Sequence[str]) -> int:
        """Append a word of the class, each as likely as the other; return its index."""
        return self.add(rng.choice(pool), pool)

    def twin(self, index: int, word: str) -> tuple[str, ...]:
        """The words with the one at `index` replaced."""
        return (*self.words[:index], word, *self.words[index + 1 :])


def is_held_out(*words: str) -> bool:
    """Whether a combination of words is kept for `cases`, out of training: one in eight, by a fixed hash."""
    return zlib.crc32(" ".join(words).encode()) % 8 == 0
