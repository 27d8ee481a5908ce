"""Fields of a question: what comes from outside as plain values of the right kinds, or refused in one sentence."""

from collections.abc import Mapping, Sequence
from typing import Any

import lens_scopes as ls
from lens_scopes.results.arguments import integer, shown
from lens_scopes.serve.calls import Prompt

#: What one question may be about.
MOST_CHARACTERS, MOST_TOKENS, MOST_NEW, MOST_PASSES, MOST_PLACES = 20_000, 2_048, 64, 64, 64
SCOPES = ("semantic", "continuation", "fisher", "temperature", "entropy")


def prompt_of(given: Any) -> Prompt:
    """A text, or token ids.

    Raises:
        ValueError: neither, or too long.

    """
    if isinstance(given, str):
        if not 0 < len(given) <= MOST_CHARACTERS:
            msg = f"a prompt has 1 to {MOST_CHARACTERS} characters, got {len(given)}"
            raise ValueError(msg)
        return given
    if isinstance(given, list | tuple) and 0 < len(given) <= MOST_TOKENS:
        return tuple(whole(one, "a token id", 0, 2**31) for one in given)
    msg = f"a prompt is a text or a list of 1 to {MOST_TOKENS} token ids, got {shown(given)}"
    raise ValueError(msg)


def scope_of(given: Any) -> Any:
    """A scope from {"kind", "target", "versus", "passes"}.

    Raises:
        ValueError: another kind, or a field that it does not take.

    """
    if not isinstance(given, Mapping):
        if _is_scope(given):
            return given
        msg = f"scope is an object with a kind, got {shown(given)}"
        raise ValueError(msg)
    rest = {name: value for name, value in given.items() if name != "kind" and value is not None}
    kind = given.get("kind")
    one_of(kind, "scope.kind", SCOPES)
    takes = {"semantic": ("target", "versus"), "fisher": ("passes",)}.get(str(kind), ())
    wrong = sorted(set(rest) - set(takes))
    if wrong:
        msg = f"the scope {kind!r} takes {' and '.join(takes) or 'no further fields'}, got {wrong[0]!r}"
        raise ValueError(msg)
    for name in {"target", "versus"} & set(rest):
        if not isinstance(rest[name], str):
            rest[name] = whole(rest[name], f"scope.{name} (a text or a token id)", 0, 2**31)
    if "passes" in rest:
        rest["passes"] = whole(rest["passes"], "scope.passes", 1, MOST_PASSES)
    return getattr(ls, str(kind).capitalize())(**rest)


def _is_scope(given: Any) -> bool:
    """Whether it is one of the scopes that a question can hold."""
    return type(given).__name__.lower() in SCOPES and type(given).__module__.startswith("lens_scopes.scopes")


def position_of(given: Any) -> int | tuple[int, ...]:
    """One position, or several that are explained as one.

    Raises:
        ValueError: anything else.

    """
    if isinstance(given, list | tuple):
        if not 0 < len(given) <= MOST_TOKENS:
            msg = f"position is a number or a list of 1 to {MOST_TOKENS}, got {len(given)}"
            raise ValueError(msg)
        return tuple(whole(one, "a position", -MOST_TOKENS, MOST_TOKENS) for one in given)
    return whole(given, "position", -MOST_TOKENS, MOST_TOKENS)


def whole(value: Any, what: str, least: int, most: int) -> int:
    """An integer between two.

    Raises:
        ValueError: another number.
        TypeError: none.

    """
    number = integer(value, what)
    if not least <= number <= most:
        msg = f"{what} is a number from {least} to {most}, got {number}"
        raise ValueError(msg)
    return number


def number(value: Any, what: str, least: float, most: float) -> float:
    """A number between two.

    Raises:
        ValueError: another, or none.

    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        msg = f"{what} is a number from {least} to {most}, got {shown(value)}"
        raise ValueError(msg)
    return float(value)


def one_of(value: Any, what: str, known: Sequence[Any]) -> None:
    """Refuse what is not among those known.

    Raises:
        ValueError: it is not.

    """
    if not any(value is one or (isinstance(value, str) and value == one) for one in known):
        msg = f"{what} is one of {', '.join(map(repr, known))}, got {shown(value)}"
        raise ValueError(msg)
