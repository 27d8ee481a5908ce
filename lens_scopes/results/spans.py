"""Spans of a prompt: its tokens joined to words, sentences, lines, chat messages, or to spans with names.

Characters are those of the tokens' joined text. A token belongs to the span that has most of its visible characters:
the blank before a word goes with the word.
"""

import operator
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from types import EllipsisType
from typing import Any

from lens_scopes.results.arguments import shown

Range = tuple[int, int] | Sequence[int]
#: By name: tokens from start to stop, a text that stands once in the prompt, or all tokens that no other span has.
Spans = Mapping[str, Range | str | EllipsisType]
KNOWN = ("word", "sentence", "line", "role", "span")

# Where one sentence, and where one line, is over.
_END = re.compile(r"(?:[.!?…]+[\"'”’»)\]]*(?=\s|$)|[。！？]+[」』）]*|\r?\n)\s*")
_LINE = re.compile(r"(?:\r?\n)+")
_BYTE = re.compile(rb"\\x([0-9a-f]{2})")
_NOBODY = -1


@dataclass(frozen=True)
class Joined:
    """Which positions are joined to what."""

    by: str
    names: tuple[str, ...]
    positions: tuple[tuple[int, ...], ...]
    straddling: tuple[int, ...] = ()
    """Tokens that are partly outside of their span."""


def joined(
    tokens: Sequence[str], meta: Mapping[str, Any], by: str | Spans | None, chars: Mapping[str, Range] | None = None
) -> Joined:
    """The spans that a user asks for.

    Args:
        tokens: the text that each token adds.
        meta: of the result: special tokens, the spans and the roles of its prompt.
        by: one of the words above, or named spans; None for words, or for ``chars`` alone.
        chars: by name, characters from start to stop, counted after the special tokens that the prompt begins with.

    Raises:
        ValueError: another word; spans that overlap, hold no token or lie outside the prompt; a text that does not
            stand exactly once; roles of a prompt that is no chat, or whose template hides where messages begin.
        TypeError: a span that is neither a range, a text nor ``...``.

    """
    if chars is not None and isinstance(by, str):
        msg = f"chars= names spans, and aggregate({by!r}) finds its own: leave one of the two out"
        raise ValueError(msg)
    special = frozenset(meta.get("special", ()))
    if isinstance(by, Mapping) or chars is not None:
        return _named(tokens, special, by if isinstance(by, Mapping) else {}, chars or {})
    if by is None or by == "word":
        return _texts("word", tokens, words(tokens, special))
    if by in ("sentence", "line"):
        positions, straddling = _pieces(tokens, special, _END if by == "sentence" else _LINE)
        return _texts(by, tokens, positions, straddling)
    if by == "role":
        return _roles(tokens, meta)
    if by == "span":
        if not meta.get("spans"):
            msg = "the prompt has no named spans of its own; write them down: aggregate({'question': (3, 9), ...})"
            raise ValueError(msg)
        return _named(tokens, special, meta["spans"], {})
    known = ", ".join(map(repr, KNOWN))
    msg = f"aggregate knows {known} and a mapping of names to spans, got {by!r}; write aggregate('word')"
    raise ValueError(msg)


def words(tokens: Sequence[str], special: frozenset[int]) -> list[list[int]]:
    """Positions joined to words by the character offsets of the tokens in their joined text."""
    text = "".join(tokens)
    starts = {found.start() for found in re.finditer(r"\S+", text)}
    spans: list[list[int]] = []
    offset = 0
    for i, token in enumerate(tokens):
        first = offset + len(token) - len(token.lstrip())
        # A token opens a word if its own first visible character does, or if nothing can be joined to what precedes.
        opens = first in starts or i in special or i - 1 in special or not spans
        if opens and not (spans and token.strip() == "" and i not in special):
            spans.append([i])
        else:
            spans[-1].append(i)
        offset += len(token)
    return spans


def _texts(
    by: str, tokens: Sequence[str], positions: Sequence[Sequence[int]], straddling: Sequence[int] = ()
) -> Joined:
    """Spans that are called by their own text."""
    names = tuple("".join(tokens[i] for i in span) for span in positions)
    return Joined(by, names, tuple(map(tuple, positions)), tuple(straddling))


def _pieces(
    tokens: Sequence[str], special: frozenset[int], end: re.Pattern[str]
) -> tuple[list[list[int]], tuple[int, ...]]:
    """The text between special tokens cut after each end; a special token is a piece of its own."""
    positions: list[list[int]] = []
    straddling: list[int] = []
    for run in _runs(len(tokens), special):
        text, places = layout([tokens[i] for i in run])
        cuts = [0, *(found.end() for found in end.finditer(text) if found.end() < len(text)), len(text)]
        owner = [piece for piece, (start, stop) in enumerate(pairwise(cuts)) for _ in range(stop - start)]
        found: dict[int, list[int]] = {}
        for i, place in zip(run, places, strict=True):
            piece, whole = _owner(owner, text, place)
            found.setdefault(piece, []).append(i)
            straddling += [] if whole else [i]
        positions += [found[piece] for piece in sorted(found)]
    return positions, tuple(straddling)


def _runs(count: int, special: frozenset[int]) -> Iterator[list[int]]:
    run: list[int] = []
    for i in range(count):
        if i in special:
            yield from ([run] if run else [])
            yield [i]
            run = []
        else:
            run.append(i)
    yield from ([run] if run else [])


def _named(
    tokens: Sequence[str], special: frozenset[int], asked: Mapping[str, Any], chars: Mapping[str, Range]
) -> Joined:
    if not isinstance(chars, Mapping):
        msg = f"chars are ranges of characters by name, got {shown(chars)}; write chars={{'question': (0, 12)}}"
        raise TypeError(msg)
    twice = [name for name in chars if name in asked]
    if twice or not (asked or chars):
        msg = f"{twice[0]!r} is named twice, as a span and in chars" if twice else "there is no span to join tokens to"
        raise ValueError(msg)
    text, places = layout(tokens)
    begin = next((place[0] for i, place in enumerate(places) if i not in special), len(text))
    names, owner, rest = (*asked, *chars), [_NOBODY] * len(text), None
    holders: list[int] = [_NOBODY] * len(tokens)
    for n, name in enumerate(names):
        wanted = asked.get(name)
        if name in chars:
            start, stop = _range(name, chars[name], len(text) - begin, "characters")
            _take(owner, n, names, slice(begin + start, begin + stop), "characters")
        elif isinstance(wanted, str):
            _take(owner, n, names, _found_once(name, wanted, text), "characters")
        elif wanted is ...:
            if rest is not None:
                msg = f"{names[rest]!r} and {name!r} are both `...`: the rest can have one name only"
                raise ValueError(msg)
            rest = n
        else:
            _take(holders, n, names, slice(*_range(name, wanted, len(tokens), "tokens")), "tokens")
    straddling = []
    for i, place in enumerate(places):
        n, whole = _owner(owner, text, place)
        if n != _NOBODY:
            _take(holders, n, names, slice(i, i + 1), "tokens")
        straddling += [] if whole else [i]
    if rest is not None:
        holders = [rest if n == _NOBODY else n for n in holders]
    positions = tuple(tuple(i for i, n in enumerate(holders) if n == m) for m in range(len(names)))
    empty = [name for name, span in zip(names, positions, strict=True) if not span]
    if empty:
        msg = f"the span {empty[0]!r} has no token: the others have them all, or most of the characters of each"
        raise ValueError(msg)
    return Joined("span", tuple(map(str, names)), positions, tuple(straddling))


def _range(name: str, given: Any, size: int, what: str) -> tuple[int, int]:
    """A range as numbers.

    Raises:
        TypeError: something else.
        ValueError: outside, or empty.

    """
    pair = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else []
    if len(pair) != 2 or any(isinstance(end, bool) or not hasattr(end, "__index__") for end in pair):
        msg = f"the span {name!r} is {given!r}; write (start, stop) of its {what}, a text that stands once, or `...`"
        raise TypeError(msg)
    start, stop = map(operator.index, pair)
    if not 0 <= start < stop <= size:
        msg = f"the span {name!r} is {what} {start} to {stop}, and there are {size}: 0 <= start < stop <= {size}"
        raise ValueError(msg)
    return start, stop


def _found_once(name: str, wanted: str, text: str) -> slice:
    # A look ahead finds those that overlap too.
    hits = [found.start() for found in re.finditer(f"(?={re.escape(wanted)})", text)] if wanted else []
    if len(hits) != 1:
        more = "more of the words around it, or " if len(hits) > 1 else ""
        msg = (
            f"the text of the span {name!r}, {wanted!r}, stands {len(hits)} times in the prompt and has to stand once; "
            f"give {more}its tokens (start, stop)"
        )
        raise ValueError(msg)
    return slice(hits[0], hits[0] + len(wanted))


def _take(owner: list[int], n: int, names: Sequence[str], which: slice, what: str) -> None:
    for at in range(which.start, which.stop):
        if owner[at] not in (_NOBODY, n):
            msg = f"the spans {names[owner[at]]!r} and {names[n]!r} overlap at {what[:-1]} {at}: spans may not overlap"
            raise ValueError(msg)
        owner[at] = n


def _owner(owner: Sequence[int], text: str, place: tuple[int, int]) -> tuple[int, bool]:
    """Who has most of a token's visible characters (in a tie a span, and the first), and whether all of them."""
    start, stop = place
    piece = text[start:stop]
    if piece.strip():
        start, stop = start + len(piece) - len(piece.lstrip()), stop - len(piece) + len(piece.rstrip())
    if start == stop:  # a token that adds no text goes with what follows it
        return (owner[min(start, len(owner) - 1)] if owner else 0), True
    counts = Counter(owner[start:stop])
    best = max(counts, key=lambda n: (counts[n], n != _NOBODY, -n))
    return best, len(counts) == 1


def _roles(tokens: Sequence[str], meta: Mapping[str, Any]) -> Joined:
    if "roles" not in meta:
        msg = "the prompt was no list of chat messages, so that it has no roles; name its spans: aggregate({...})"
        raise ValueError(msg)
    roles = meta["roles"]
    if not roles:
        msg = (
            "the chat template does not say where messages begin: rendered with one message more, the text before it "
            "changes, or does not hold a message; name the spans: aggregate({'system': 'You are ...', ...})"
        )
        raise ValueError(msg)
    often = Counter(one["role"] for one in roles)
    seen: Counter[str] = Counter()
    names, positions = [], []
    if roles[0]["start"]:  # the BOS
        names.append("".join(tokens[: roles[0]["start"]]))
        positions.append(tuple(range(roles[0]["start"])))
    for one in roles:
        role = one["role"]
        seen[role] += 1
        names.append(f"{role} {seen[role]}" if often[role] > 1 else role)
        positions.append(tuple(range(one["start"], one["stop"])))
    return Joined("role", tuple(names), tuple(positions))


def layout(tokens: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    r"""The text of some tokens, and which characters of it each token has a part in.

    Bytes written as \xNN are put together to the characters whose parts they are, where that gives text.
    """
    raw = [_BYTE.sub(lambda found: bytes.fromhex(found[1].decode()), _bytes(token)) for token in tokens]
    whole = b"".join(raw)
    try:
        text = whole.decode()
    except UnicodeDecodeError:
        raw = [_bytes(token) for token in tokens]
        whole = b"".join(raw)
        text = whole.decode("utf-8", "surrogatepass")
    begins = [byte & 0xC0 != 0x80 for byte in whole]
    before = [0, *accumulate(begins)]  # characters begun before each byte
    ends = [0, *accumulate(map(len, raw))]
    inside = [at < len(whole) and not begins[at] for at in ends]
    return text, [(before[a] - inside[n], before[b]) for n, (a, b) in enumerate(pairwise(ends))]


def _bytes(token: str) -> bytes:
    """A token as UTF-8; half of a surrogate pair as if it were a character."""
    return token.encode("utf-8", "surrogatepass")
