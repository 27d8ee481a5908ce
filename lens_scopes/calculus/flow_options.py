"""Which rows and maps a flow keeps: sources by position or by text, and the heads whose edges are wanted."""

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Literal

import numpy as np
from torch import Tensor

from lens_scopes.host import Host
from lens_scopes.host.prompts import positions_of
from lens_scopes.results.arguments import Integer, integer, is_integer, listed, shown
from lens_scopes.results.text import places_of

Sources = Literal["each"] | str | Integer | Sequence[Integer | str] | Tensor | np.ndarray | None
Edges = bool | Iterable[Sequence[Integer]] | Tensor | np.ndarray

# Tokens that an error lists.
_LISTED = 40
_A_SOURCE = "sources is None (all together), 'each' or a list of positions or tokens; a position"


def sources_of(sources: Sources, tokens: Sequence[str]) -> list[int] | None:
    """The positions that have a row each; None for all together.

    Raises:
        ValueError: a text that no token of the prompt has, or several.
        IndexError: a position outside the prompt.
        TypeError: neither.

    """
    if sources is None:
        return None
    if isinstance(sources, str) and sources == "each":
        return list(range(len(tokens)))
    each = [_position_of(one, tokens) if isinstance(one, str) else one for one in listed(sources)]
    return list(positions_of([integer(one, _A_SOURCE) for one in each], len(tokens)))


def _position_of(text: str, tokens: Sequence[str]) -> int:
    there = places_of(text, tokens)
    if len(there) == 1:
        return there[0]
    if there:
        hint = f"that stands at {', '.join(map(str, there))}: write one of these positions"
    else:
        known = ", ".join(f"{i} {token!r}" for i, token in enumerate(tokens[:_LISTED]))
        hint = f"no token is that; write one of {known}{', ...' if len(tokens) > _LISTED else ''}"
    msg = f"sources is None (all together), 'each' or a list of positions or tokens, got {text!r}: {hint}"
    raise ValueError(msg)


def heads_of(host: Host, edges: Edges, layers: int) -> list[tuple[int, int]]:
    """The heads (layer, head) whose edges are kept, in the order asked for; all of the first layers for True.

    Raises:
        TypeError: neither a bool nor a list of pairs of integers.
        ValueError: no heads, a head twice, or one that the model does not have.

    """
    each = int(host.cfg.n_heads)
    if isinstance(edges, bool):
        return list(product(range(layers), range(each))) if edges else []
    pairs = listed(edges)
    for pair in pairs:
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2 or not all(map(is_integer, pair)):
            msg = (
                "edges is False, True (every head) or a list of heads (layer, head), got "
                f"{shown(edges if pair is edges else pair)}; write e.g. edges=[(1, 0), (2, 3)]"
            )
            raise TypeError(msg)
    heads = [(int(layer), int(head)) for layer, head in pairs]
    if not heads:
        msg = "edges is an empty list of heads; write edges=False for none, edges=True for every head"
        raise ValueError(msg)
    for layer, head in heads:
        if not (0 <= layer < layers and 0 <= head < each):
            where = f"{host.name} has" if layers == host.n_layers else "on the way to the direction's site are"
            msg = f"edges names head {layer}.{head}; {where} layers 0 to {layers - 1}, heads 0 to {each - 1}"
            raise ValueError(msg)
        if heads.count((layer, head)) > 1:
            msg = f"edges names head {layer}.{head} more than once; write each head once"
            raise ValueError(msg)
    return heads
