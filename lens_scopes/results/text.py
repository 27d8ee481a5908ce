"""Text: a prompt whose parts have names, as ``generate`` and ``join`` make it; what the names mean as positions."""

from collections.abc import ItemsView, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from jaxtyping import Int
from torch import Tensor

from lens_scopes.results.arguments import integer, listed, shown


def places_of(text: str, tokens: Sequence[str]) -> list[int]:
    """Where the tokens stand that have this text, blanks at its ends aside unless they tell two apart."""
    return [i for i, token in enumerate(tokens) if token == text] or [
        i for i, token in enumerate(tokens) if token.strip() == text.strip()
    ]


def position_of(text: str, tokens: Sequence[str]) -> int | str:
    """Where the one token stands that has this text; the text itself where none has it.

    Raises:
        KeyError: several have it; the text says where.

    """
    there = places_of(text, tokens)
    if len(there) > 1:
        msg = f"{text!r} stands at {', '.join(map(str, there))}; write one of these positions, sel(pos={there[0]})"
        raise KeyError(msg)
    return there[0] if there else text


@dataclass(frozen=True, repr=False)
class Text:
    """Token ids with named spans: a legal prompt wherever a prompt is, exactly these ids.

    A span's name is a legal ``position=``: the positions that *predict* its tokens, start − 1 to stop − 2.

    Args:
        ids: the token ids; a list or a tensor [pos] becomes a tuple.
        tokens: the text that each token adds; "".join(tokens) is the decoded text.
        spans: by name, (start, stop) in tokens. ``generate`` and ``join`` write "prompt" and "completion".

    Raises:
        TypeError: ids or ends of spans that are no integers, tokens that are no strings.
        ValueError: not one text per id, a span outside of the text or without a token, or a span called "all".

    Example:
        >>> import lens_scopes as ls
        >>> text = ls.Text([7, 9, 11], ("The", " cat", " sat"), {"prompt": (0, 1), "completion": (1, 3)})
        >>> str(text), text.part("completion"), text.predicting("completion")
        ('The cat sat', ' cat sat', range(0, 2))

    """

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def __init__(
        self,
        ids: "tuple[int, ...] | list[int] | Int[Tensor, ' pos']",
        tokens: tuple[str, ...] | list[str],
        spans: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        """See the class."""
        object.__setattr__(self, "ids", tuple(integer(one, "a Text's ids are integers; one") for one in listed(ids)))
        if (
            isinstance(tokens, str)
            or not isinstance(tokens, Sequence)
            or not all(isinstance(one, str) for one in tokens)
        ):
            msg = f"a Text's tokens are a list of strings, one per id, got {shown(tokens)}; write ['The', ' cat']"
            raise TypeError(msg)
        object.__setattr__(self, "tokens", tuple(tokens))
        named = {str(name): _ends(name, span) for name, span in _items(spans)}
        object.__setattr__(self, "spans", MappingProxyType(named))
        if len(self.ids) != len(self.tokens):
            msg = f"a Text has one text per id, got {len(self.ids)} ids and {len(self.tokens)} tokens"
            raise ValueError(msg)
        for name, (start, stop) in named.items():
            if not 0 <= start < stop <= len(self.ids):
                msg = f"the span {name!r} is ({start}, {stop}), the text has {len(self.ids)} tokens: 0 <= start < stop"
                raise ValueError(msg)
        if "all" in named:
            msg = "a span cannot be called 'all': that is the name of all positions; choose another name"
            raise ValueError(msg)

    def part(self, name: str) -> str:
        """The text of a span.

        Raises:
            KeyError: no such span; the text lists those there are.

        """
        start, stop = self._span(name)
        return "".join(self.tokens[start:stop])

    def predicting(self, name: str) -> range:
        """The positions that predict a span's tokens, one before each of them.

        Raises:
            KeyError: no such span.
            ValueError: a span that begins the text: nothing predicts its first token.

        """
        return predicting(name, *self._span(name))

    def _span(self, name: str) -> tuple[int, int]:
        if not isinstance(name, str) or name not in self.spans:
            msg = f"there is no span {name!r} in this text; it has {', '.join(map(repr, self.spans)) or 'none'}"
            raise KeyError(msg)
        return self.spans[name]

    def __len__(self) -> int:
        """How many tokens."""
        return len(self.ids)

    def __str__(self) -> str:
        """The whole text."""
        return "".join(self.tokens)

    def __repr__(self) -> str:
        """The text, shortened, and its spans."""
        text = str(self)
        shown = text if len(text) <= 60 else f"{text[:28]} … {text[-28:]}"
        spans = "".join(f", {name} {start}:{stop}" for name, (start, stop) in self.spans.items())
        return f"Text({shown!r}, {len(self)} tokens{spans})"

    def __hash__(self) -> int:
        """Texts are compared by all they have; few that differ share their ids."""
        return hash(self.ids)

    def __reduce__(self) -> tuple[Any, ...]:
        """Spans travel as a dict: a view of one cannot be pickled."""
        return Text, (self.ids, self.tokens, dict(self.spans))


def _items(spans: Any) -> "ItemsView[str, Any]":
    if spans is not None and not isinstance(spans, Mapping):
        msg = f"a Text's spans are a dict, got {shown(spans)}; write {{'question': (3, 8)}}"
        raise TypeError(msg)
    return (spans or {}).items()


def _ends(name: str, span: Any) -> tuple[int, int]:
    ends = listed(span) if isinstance(span, Sequence | Tensor) and not isinstance(span, str) else ()
    if len(ends) != 2:
        msg = f"the span {name!r} is (start, stop) in tokens, got {shown(span)}; write (3, 8)"
        raise TypeError(msg)
    start, stop = (integer(one, f"the span {name!r} is (start, stop) in tokens; an end") for one in ends)
    return start, stop


def predicting(name: str, start: int, stop: int) -> range:
    """The positions that predict the tokens start to stop − 1.

    Raises:
        ValueError: start is 0: nothing predicts the first token of a text.

    """
    if start == 0:
        msg = (
            f"the span {name!r} begins the text, and nothing predicts the first token of a text; as positions write "
            f"range({stop - 1}) for the tokens after it"
        )
        raise ValueError(msg)
    return range(start - 1, stop - 1)
