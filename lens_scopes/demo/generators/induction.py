"""Write dictionaries of nonsense words and ask for one entry: "blick : tove , dax : wug , blick :" -> tove.

The rule: the answer is the value that stands beside the asked key; "nothing" where no key is the asked one. So the
answer hangs on three words, the asked key, the same key in the dictionary and its value: with a new word in place of
either key there is no match any more, and a new value is the new answer.

Held out: the pair of key and value. No dictionary seen in training holds a held-out pair; every pair of a held-out
case is one.

A quarter of what is trained on is plainer: a list of values, said twice. It is the test that induction heads are known
by, so the model has to have met it; no case is of this form.
"""

from random import Random

from lens_scopes.demo.draft import Draft, Writer, is_held_out
from lens_scopes.demo.vocabulary import COLONS, COMMAS, KEYS, NOTHING, VALUES


def draft(rng: Random, held_out: bool) -> Draft:
    """A dictionary of two to six pairs with one query (in training up to four)."""
    if not held_out and rng.random() < 0.25:
        return _said_twice(rng)
    pairs = _pairs(rng, rng.randint(2, 6), held_out)
    asked, other = rng.sample(pairs, 2)
    keys, values = [key for key, _ in pairs], [value for _, value in pairs]
    new_keys = [key for key in KEYS if key not in keys]
    new_values = [value for value in VALUES if value not in values]
    colon, comma = _mark(rng, COLONS), _mark(rng, COMMAS)

    writer, causes = Writer(), []
    for key, value in pairs:
        at_key = writer.add(key, new_keys)
        writer.add(colon(), COLONS)
        at_value = writer.add(value, new_values)
        writer.add(comma(), COMMAS)
        if key == asked[0]:
            causes += [at_key, at_value]
    at_query = writer.add(asked[0], KEYS)
    writer.add(colon(), COLONS)
    causes.append(at_query)
    twin = writer.twin(at_query, other[0])

    words, document = tuple(writer.words), list(writer.words)
    answers = [asked[1]]
    if not held_out:
        if rng.random() < 0.2:
            document[at_query], answers[0] = rng.choice(new_keys), NOTHING
        for key, value in rng.choices(pairs, k=rng.randint(0, 3)):
            unknown = rng.random() < 0.15
            document += [answers[-1], comma(), rng.choice(new_keys) if unknown else key, colon()]
            answers.append(NOTHING if unknown else value)
    document.append(answers[-1])
    return Draft(
        kind="induction",
        words=words,
        pools=tuple(writer.pools),
        causes=tuple(causes),
        answer=asked[1],
        versus=other[1],
        twin=twin,
        document=tuple(document),
        graded=tuple(range(len(words), len(document), 4)),
        unknowable=tuple(i for i in range(len(document)) if i % 2 == 0 and (i < len(words) or i % 4 == 0)),
    )


def _said_twice(rng: Random) -> Draft:
    """A list said twice, for training alone: from its second word on, the second round is determined."""
    said = rng.sample(VALUES, rng.randint(5, 14))
    document, n = (*said, *said), len(said)
    return Draft(
        kind="induction",
        words=document[: n + 1],
        pools=((),) * (n + 1),
        causes=(0, 1, n),
        answer=said[1],
        versus=None,
        twin=document[: n + 1],
        document=document,
        graded=tuple(range(n + 1, 2 * n)),
        unknowable=tuple(range(n + 1)),
    )


def _pairs(rng: Random, n: int, held_out: bool) -> list[tuple[str, str]]:
    """Pairs of a key and a value, no word twice, all held out or none."""
    while True:
        pairs: list[tuple[str, str]] = []
        for key in rng.sample(KEYS, n):
            taken = {value for _, value in pairs}
            fitting = [value for value in VALUES if value not in taken and is_held_out(key, value) == held_out]
            if not fitting:
                break
            pairs.append((key, rng.choice(fitting)))
        else:
            return pairs


def _mark(rng: Random, marks: tuple[str, ...]):
    """A writer of punctuation that keeps to one mark, or in a third of the prompts mixes them."""
    mixed, usual = rng.random() < 1 / 3, rng.choice(marks)
    return lambda: rng.choice(marks) if mixed else usual
