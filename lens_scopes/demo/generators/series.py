"""Write series of two-digit numbers: "series : 12 , 15 , 18 ," -> 21.

Four families: the logistic map (its parameter drawn anew for each series), a linear trend, a noisy sine, Brownian
motion. The labelled causes are what the next value is computed from: the last value (logistic map, Brownian motion), or
the last two (trend, sine). The parameters of a series can be read from many places in it, so that no one of the earlier
values decides. The labels of this kind are weaker than those of the other four: a number has neighbours, a word has
none.

Held out: the first three values.
"""

import math
from random import Random

from lens_scopes.demo.draft import Draft, is_held_out
from lens_scopes.demo.vocabulary import COLONS, COMMAS, NUMBERS, SERIES

FAMILIES = ("logistic", "linear", "sine", "brownian")
DETERMINISTIC = ("logistic", "linear", "sine")


def draft(rng: Random, held_out: bool) -> Draft:
    """10 to 18 values of one family, one in four."""
    return draft_of(rng.choice(FAMILIES), rng, held_out)


def draft_of(family: str, rng: Random, held_out: bool) -> Draft:
    """A series of the given family; `versus` continues the series in which the causes are changed."""
    n = rng.randint(10, 18)
    while True:
        values, twin = _FAMILIES[family](rng, n + 1)
        text = [_token(value) for value in values]
        if all(0 <= value <= 99 for value in (*values, *twin)) and is_held_out(*text[:3]) == held_out:
            break
    other = [_token(value) for value in twin]
    head, comma = (rng.choice(SERIES), rng.choice(COLONS)), rng.choice(COMMAS)
    words = _line(head, text[:-1], comma)
    pools = _pools(words)
    n_causes = 2 if family in ("linear", "sine") else 1
    document = list(words)
    values_at = range(2, len(words) + 1, 2)
    if not held_out and rng.random() < 0.25:
        # Misprints: a value that does not fit teaches the model not to hang on any single one of the past.
        for index in values_at[: -2 if n_causes == 1 else -3]:
            if rng.random() < 0.1:
                document[index] = rng.choice(NUMBERS)
        graded = (len(words),)
    else:
        graded = tuple(values_at[3:])
    return Draft(
        kind="series",
        words=words,
        pools=pools,
        causes=tuple(values_at[-1 - n_causes : -1]),
        answer=text[-1],
        versus=other[-1] if other[-1] != text[-1] else None,
        twin=_line(head, other[:-1], comma),
        document=(*document, text[-1]),
        graded=graded,
        unknowable=tuple(index for index in values_at if index not in graded),
    )


def _logistic(rng: Random, n: int) -> tuple[list[float], list[float]]:
    rate, x, values = rng.uniform(3.6, 4.0), rng.uniform(0.05, 0.95), []
    for _ in range(n):
        values.append(99 * x)
        x = rate * x * (1 - x)
    before = rng.uniform(0.02, 0.98)
    return values, [*values[:-2], 99 * before, 99 * rate * before * (1 - before)]


def _linear(rng: Random, n: int) -> tuple[list[float], list[float]]:
    step = rng.choice([-5, -4, -3, -2, -1, 1, 2, 3, 4, 5])
    start, shift = rng.randint(0, 99), rng.choice([-9, -6, 6, 9])
    values = [float(start + step * i) for i in range(n)]
    return values, [value + shift for value in values]


def _sine(rng: Random, n: int) -> tuple[list[float], list[float]]:
    middle, height = rng.uniform(35, 65), rng.uniform(15, 34)
    period, phase = rng.uniform(4, 14), rng.uniform(0, 2 * math.pi)
    values = [middle + height * math.sin(phase + 2 * math.pi * i / period) + rng.gauss(0, 0.7) for i in range(n)]
    shift = rng.choice([-9, -6, 6, 9])
    return values, [value + shift for value in values]


def _brownian(rng: Random, n: int) -> tuple[list[float], list[float]]:
    values = [rng.uniform(20, 80)]
    for _ in range(n - 1):
        values.append(values[-1] + rng.gauss(0, 4))
    shift = rng.choice([-9, -6, 6, 9])
    return values, [value + shift for value in values]


_FAMILIES = {"logistic": _logistic, "linear": _linear, "sine": _sine, "brownian": _brownian}


def _token(value: float) -> str:
    return NUMBERS[min(99, max(0, round(value)))]


def _line(head: tuple[str, str], values: list[str], comma: str) -> tuple[str, ...]:
    words = list(head)
    for value in values:
        words += [value, comma]
    return tuple(words)


def _pools(words: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    by_word = {word: pool for pool in (SERIES, COLONS, COMMAS, NUMBERS) for word in pool}
    return tuple(by_word[word] for word in words)
