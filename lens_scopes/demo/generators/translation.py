"""Write German and the beginning of its English: "German : heute schläft der Hund . English : today the" -> dog.

Three word orders against one: "der Hund sieht die Katze", with the verb before the subject after an adverb ("heute
sieht der Hund ..."), and with the verb at the end of a subordinate clause ("weil der Hund die Katze sieht"). Nouns have
gender and number, articles and adjectives agree with them, verbs agree with their subject.

The rule: an English word hangs on the German word that it translates. A replacement keeps the German grammatical, so
that "Hund" may become "Mann", but not "Hunde". One word hangs on two: "sie" is "she" with a singular verb and "they"
with a plural one, and both verbs are grammatical. The English words so far say only how far the translation has come:
in training some of them are wrong on purpose, and some German articles too.

Held out: the pair of subject and verb.
"""

from dataclasses import dataclass
from random import Random

from lens_scopes.demo import vocabulary as v
from lens_scopes.demo.draft import Draft, Writer, is_held_out


@dataclass(frozen=True)
class Word:
    """A German word with its English, and the pairs (German, English) that could stand in its place."""

    german: str
    english: str
    options: tuple[tuple[str, str], ...]
    role: str


@dataclass(frozen=True)
class Clause:
    """The parts of a sentence; a phrase is article, adjective (or none) and noun, or one pronoun."""

    opening: Word | None
    subject: tuple[Word, ...]
    verb: Word
    object: tuple[Word, ...]
    verb_final: bool
    flipped: tuple[tuple[str, str], ...]  # the forms of such a verb for the other number

    def german(self) -> list[Word]:
        """The words in German order."""
        opening = [] if self.opening is None else [self.opening]
        if self.verb_final:
            return [*opening, *self.subject, *self.object, self.verb]
        if opening:
            return [*opening, self.verb, *self.subject, *self.object]
        return [*self.subject, self.verb, *self.object]

    def english(self) -> list[Word]:
        """The same words in English order."""
        opening = [] if self.opening is None else [self.opening]
        return [*opening, *self.subject, self.verb, *self.object]


def draft(rng: Random, held_out: bool) -> Draft:
    """A sentence whose translation stops before any word that is not an article."""
    clause = _clause(rng, held_out)
    german, english = clause.german(), clause.english()
    cut = rng.choice([i for i, word in enumerate(english) if word.role != "article"])
    target = english[cut]

    writer, at, causes = Writer(), {}, []
    writer.usual(rng, v.GERMAN, v.COLONS)
    for word in german:
        pool = [other for other, _ in word.options]
        if word is clause.verb and target.german == "sie":
            pool = [other for other, _ in clause.flipped]
        at[id(word)] = writer.add(word.german, pool)
    start = writer.usual(rng, v.STOPS, v.ENGLISH, v.COLONS) + 1
    for word in english[:cut]:
        writer.add(word.english, [other for _, other in word.options] if word.role != "article" else v.DETERMINERS)

    causes.append(at[id(target)])
    if target.german == "sie":
        causes.append(at[id(clause.verb)])
        twin = writer.twin(causes[1], rng.choice(clause.flipped)[0])
        versus = "they" if target.english == "she" else "she"
    else:
        other, versus = rng.choice([option for option in target.options if option[0] != target.german])
        twin = writer.twin(causes[0], other)

    document = [*writer.words[:start], *(word.english for word in english), rng.choice(v.STOPS)]
    wrong = []
    if not held_out and rng.random() < 0.4:
        wrong = _spoil(rng, document, german, english, start)
    return Draft(
        kind="translation",
        words=tuple(writer.words),
        pools=tuple(writer.pools),
        causes=tuple(causes),
        answer=target.english,
        versus=versus,
        twin=twin,
        document=tuple(document),
        graded=tuple(i for i in range(start, len(document) - 1) if i not in wrong),
        unknowable=tuple(wrong),
    )


def _spoil(rng: Random, document: list[str], german: list[Word], english: list[Word], start: int) -> list[int]:
    """Put wrong words into the English, and wrong articles into the German; return where the English is wrong."""
    wrong = []
    for offset, word in enumerate(english):
        if rng.random() < 0.25:
            pool = v.DETERMINERS if word.role == "article" else [other for _, other in word.options]
            document[start + offset] = rng.choice(pool)
            wrong.append(start + offset)
    for offset, word in enumerate(german):
        if word.role == "article" and rng.random() < 0.25:
            document[2 + offset] = rng.choice(v.ARTICLES)
    return wrong


def _clause(rng: Random, held_out: bool) -> Clause:
    while True:
        verbs = v.TRANSITIVE if rng.random() < 0.6 else v.INTRANSITIVE
        verb = rng.choice(verbs)
        if rng.random() < 0.25:
            pronoun = rng.choice(v.PRONOUNS)
            number, name, subject = pronoun[1], f"{pronoun[0]}{pronoun[1]}", (_pronoun(pronoun),)
        else:
            number = rng.randint(0, 1)
            subject, name = _phrase(rng, number, accusative=False)
        if is_held_out(name, verb[0]) == held_out:
            break
    parts: tuple[Word, ...] = ()
    while verbs is v.TRANSITIVE:
        parts, object_name = _phrase(rng, rng.randint(0, 1), accusative=True)
        if object_name != name:
            break
    frame = rng.choice(("main", "inverted", "subordinate"))
    opening = None
    if frame != "main":
        openings = v.TIMES if frame == "inverted" else v.CONJUNCTIONS
        opening = Word(*rng.choice(openings), openings, "opening")
    forms = [tuple((row[n], row[2 + n]) for row in verbs) for n in (0, 1)]
    return Clause(
        opening=opening,
        subject=subject,
        verb=Word(verb[number], verb[2 + number], forms[number], "verb"),
        object=parts,
        verb_final=frame == "subordinate",
        flipped=forms[1 - number],
    )


def _pronoun(pronoun: tuple[str, int, str]) -> Word:
    german, number, english = pronoun
    options = tuple((other, translation) for other, n, translation in v.PRONOUNS if n == number)
    return Word(german, english, options, "pronoun")


def _phrase(rng: Random, number: int, accusative: bool) -> tuple[tuple[Word, ...], str]:
    """Article, adjective (in half of the phrases) and noun, and the noun's name in the dictionary."""
    gender = rng.choice(tuple(v.NOUNS))
    nouns = v.NOUNS[gender]
    noun = rng.choice(nouns)
    masculine_object = accusative and gender == "m" and not number
    article = "die" if number else "den" if masculine_object else {"m": "der", "f": "die", "n": "das"}[gender]
    words = [Word(article, "the", tuple((other, "the") for other in v.ARTICLES), "article")]
    if rng.random() < 0.5:
        ending = 1 if number or masculine_object else 0
        options = tuple((row[ending], row[2]) for row in v.ADJECTIVES)
        words.append(Word(*rng.choice(options), options, "adjective"))
    options = tuple((row[number], row[2 + number]) for row in nouns)
    words.append(Word(noun[number], noun[2 + number], options, "noun"))
    return tuple(words), noun[0]
