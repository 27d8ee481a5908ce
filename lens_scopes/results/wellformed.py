"""Whether what a file holds is a result: every fact of its type, every tensor of its axes, labels that fit one another.

``save`` asks the same before it writes, so that what is in a file can be read.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypedDict, get_args, get_origin, get_type_hints, is_typeddict

from torch import Tensor

from lens_scopes.results.arguments import shown
from lens_scopes.results.provenance import Meta, Note, ScopeData


class _Labels(TypedDict):
    dims: list[str]
    coords: dict[str, list[str] | list[int]]
    tokens: list[str]


class ScoresHeader(_Labels):
    """What the header of Scores holds, beside its kind and schema; and so the others."""

    meta: Meta


class FlowHeader(TypedDict):
    """Of a Flow."""

    residual: float
    tokens: list[str]
    sources: list[int]
    meta: Meta


class ProfileHeader(TypedDict):
    """Of a Profile."""

    labels: list[str]
    by: Literal["site", "relative_position", "token", "span", "head"]
    unit: str
    lengths: list[float]
    meta: Meta


class Sides(TypedDict):
    """The facts of both sides of a Comparison."""

    predicted: Meta
    measured: Meta


class ComparisonHeader(_Labels):
    """Of a Comparison."""

    orders: list[str]
    seed: int
    meta: Sides


class CurveHeader(TypedDict):
    """Of a Curve."""

    fractions: list[float]
    meta: Meta


class TableHeader(TypedDict):
    """Of a Table."""

    methods: list[str]
    measures: list[str]
    baseline: str
    seed: int
    meta: Meta


_UNIONS = (UnionType, get_origin(Literal[0] | None))
_PLACES = ("pos", "target_pos", "head")
_KINDS: Mapping[Any, str] = {int: "an integer", float: "a finite number", str: "text", bool: "true or false"}


def refuse_misfit(header: Any, kind: Any) -> None:
    """Refuse a header that lacks a key, or has one of another type.

    Raises:
        ValueError: naming the key, what it is and what it has to be.

    """
    found = misfit(header, kind, "")
    if found:
        raise ValueError(found)


def misfit(value: Any, kind: Any, name: str) -> str:
    """What of a value out of JSON is not of a type, in words; empty where all of it is.

    Args:
        value: what stands there.
        kind: the type, as annotations write it; keys that a TypedDict does not name are whatever they are.
        name: of the value.

    """
    if kind is Any:
        return ""
    if is_typeddict(kind):
        return _misfit_facts(value, kind, name)
    origin, args = get_origin(kind), get_args(kind)
    if origin in _UNIONS:
        told = [misfit(value, one, name) for one in args]
        return "" if "" in told else told[0]
    if origin is Literal:
        return "" if value in args else f"{name} is {shown(value)}, and not one of {', '.join(map(repr, args))}"
    if origin is list:
        if not isinstance(value, list):
            return f"{name} is {shown(value)}, and no list"
        return next(filter(None, (misfit(one, args[0], f"{name}[{n}]") for n, one in enumerate(value))), "")
    if origin is dict:
        if not isinstance(value, Mapping):
            return f"{name} is {shown(value)}, and no dict"
        return next(filter(None, (misfit(one, args[1], f"{name}[{key!r}]") for key, one in value.items())), "")
    if kind in (None, NoneType):
        return "" if value is None else f"{name} is {shown(value)}, and not null"
    if kind is float:
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    else:
        good = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    return "" if good else f"{name} is {shown(value)}, and not {_KINDS.get(kind, kind)}"


@cache
def _hints(kind: Any) -> Mapping[str, Any]:
    return get_type_hints(kind)


def _misfit_facts(value: Any, kind: Any, name: str) -> str:
    # A scope may be a word that somebody wrote by hand; what it says in its notes is its own.
    if kind is ScopeData and isinstance(value, str):
        return ""
    if not isinstance(value, Mapping):
        return f"{name or 'the header'} is {shown(value)}, and no dict"
    if kind is Note:
        return ""
    for key in sorted(kind.__required_keys__ - value.keys()):
        return f"{f'{name}[{key!r}]' if name else repr(key)} is missing"
    hints = _hints(kind)
    inside = (
        misfit(one, hints[key], f"{name}[{key!r}]" if name else key) for key, one in value.items() if key in hints
    )
    return next(filter(None, inside), "")


def refuse_shape(name: str, found: Tensor | None, *axes: int) -> None:
    """Refuse a tensor of other axes or of no floating point; None, which is not there, is as it should be.

    Raises:
        ValueError: naming the tensor.

    """
    if found is None:
        return
    if not found.is_floating_point():
        msg = f"the tensor {name!r} is of {str(found.dtype).removeprefix('torch.')}, and not of floating point"
        raise ValueError(msg)
    if tuple(found.shape) != axes:
        msg = f"the tensor {name!r} has shape {tuple(found.shape)}, and its labels {axes}"
        raise ValueError(msg)


def refuse_values(name: str, found: Tensor | None, *, gaps: bool = False) -> None:
    """Refuse numbers that no result has: infinity, and NaN but for places that were not asked for.

    Raises:
        ValueError: naming the tensor.

    """
    if found is not None and not (found.isfinite() | (found.isnan() & gaps)).all():
        msg = f"the tensor {name!r} holds {'infinity' if gaps else 'NaN or infinity'}"
        raise ValueError(msg)


def refuse_scores(
    values: Tensor, dims: Sequence[str], coords: Mapping[str, Sequence], tokens: Sequence[str], meta: Meta
) -> None:
    """Refuse labels that no scores have, facts that are not about them, and numbers that cannot be.

    Raises:
        ValueError: naming what does not fit.

    """
    refuse_shape("values", values, *(len(coords[dim]) for dim in dims))
    refuse_values("values", values, gaps="patching" in meta or not meta)
    if set(dims) != set(coords) or len(set(dims)) < len(dims):
        msg = f"dims name the axes {list(dims)}, and coords {list(coords)}"
        raise ValueError(msg)
    for dim in dims:
        wanted = int if dim in _PLACES else str if dim == "site" else (int, str)
        if not all(isinstance(label, wanted) for label in coords[dim]) or len(set(coords[dim])) < len(coords[dim]):
            msg = f"the axis {dim!r} has labels {shown(list(coords[dim]))}, which are not one each, of its kind"
            raise ValueError(msg)
    if meta.get("units", "norm") == "norm" and (values < 0).any():
        msg = "the tensor 'values' holds negative numbers, and its units are norms"
        raise ValueError(msg)
    if meta.get("units") == "signed" and meta.get("along", "") is None and "difference" not in meta:
        msg = "meta['along'] is null, and the units are signed, which products with a direction have"
        raise ValueError(msg)
    if "pos" in dims:
        joined = meta.get("joined")
        there = [span[0] for span in joined] if joined else list(range(len(tokens)))
        if list(coords["pos"]) != there:
            msg = f"the axis 'pos' has labels {shown(list(coords['pos']))}, and the tokens stand at {shown(there)}"
            raise ValueError(msg)
    refuse_facts(meta, meta.get("joined_tokens", tokens) if "pos" in dims or "joined_tokens" in meta else None)


def refuse_facts(meta: Meta, tokens: Sequence[str] | None) -> None:
    """Refuse facts that are not about these tokens, or not about one another.

    Args:
        meta: the facts.
        tokens: of the prompt; None where nothing says what they are.

    Raises:
        ValueError: naming the fact.

    """
    length = len(meta["token_ids"]) if "token_ids" in meta else None if tokens is None else len(tokens)
    if length is None:
        return
    if tokens is not None and len(tokens) != length:
        msg = f"meta['token_ids'] has {length} ids, and there are {len(tokens)} tokens"
        raise ValueError(msg)
    positions = meta.get("positions")
    asked = meta.get("position", [])
    places = {"positions": positions or [], "special": meta.get("special", []), "position": asked}
    for name, some in places.items():
        outside = [one for one in (some if isinstance(some, list) else [some]) if not 0 <= one < length]
        if outside:
            msg = f"meta[{name!r}] names the position {outside[0]}, and there are {length} tokens"
            raise ValueError(msg)
    if positions is not None and "position" in meta and (asked if isinstance(asked, list) else [asked]) != positions:
        msg = f"meta['position'] is {shown(asked)}, and meta['positions'] {shown(positions)}"
        raise ValueError(msg)
    for name in ("targets", "predictions", "notes"):
        if positions is not None and name in meta and len(meta[name]) != len(positions):
            msg = f"meta[{name!r}] has {len(meta[name])} entries, and there are {len(positions)} positions"
            raise ValueError(msg)
    ends = [role.get("stop", 0) for role in meta.get("roles", [])] + [
        max(span) for span in meta.get("spans", {}).values() if span
    ]
    ends += [one + 1 for span in meta.get("joined", []) for one in span]
    if ends and max(ends) > length:
        msg = f"meta names a span that ends at {max(ends)}, and there are {length} tokens"
        raise ValueError(msg)
    if any(
        len(ids) != length for key in ("clean_token_ids", "corrupted_token_ids") if (ids := meta.get(key)) is not None
    ):
        msg = f"meta has another prompt that is not of {length} tokens"
        raise ValueError(msg)


def refuse_prompts(values: Tensor, prompts: int, meta: Meta) -> None:
    """Refuse numbers by prompt that are none, or facts about other prompts.

    Raises:
        ValueError: naming the fact.

    """
    refuse_values("values", values)
    for name in ("lengths", "watched", "taken"):
        if name in meta and len(meta[name]) != prompts:
            msg = f"meta[{name!r}] has {len(meta[name])} entries, and there are {prompts} prompts"
            raise ValueError(msg)


def refuse_flow(parts: Mapping[str, Tensor | None], tokens: Sequence[str], sources: Sequence[int], meta: Meta) -> None:
    """Refuse parts of a flow whose axes are not those of the others.

    Raises:
        ValueError: naming the part, or the fact.

    """
    heads = parts["heads"]
    if heads is None or heads.ndim != 3:
        msg = "the tensor 'heads' is [source, layer, head]"
        raise ValueError(msg)
    rows, layers, count = heads.shape
    if rows != (1 if meta.get("together") else len(sources)) or len(set(sources)) < len(sources):
        msg = f"the tensor 'heads' has {rows} rows, and sources are {shown(list(sources))}"
        raise ValueError(msg)
    if any(not 0 <= source < len(tokens) for source in sources):
        msg = f"sources are {shown(list(sources))}, and there are {len(tokens)} tokens"
        raise ValueError(msg)
    named = meta.get("edge_heads")
    mapped = (layers, count) if named is None else (len(named),)
    probes, stream = parts["probes"], parts["stream"]
    # A ledger that ends inside of a block has no stream after it.
    inner = "end" in meta and stream is not None and stream.ndim == 3 and stream.shape[1] == layers
    depths = layers if inner else layers + 1
    shapes: dict[str, tuple[int, ...]] = {
        "total": (rows,),
        "heads": (rows, layers, count),
        "last": (rows, layers, count),
        "mlps": (rows, layers),
        "skip": (rows, layers),
        "stream": (rows, depths, len(tokens)),
        "composition": (rows, layers, count, 3),
        "edges": (2, *mapped, len(tokens), len(tokens)),
        "probes": (0 if probes is None else len(probes), rows),
    }
    for name, shape in shapes.items():
        refuse_shape(name, parts[name], *shape)
        refuse_values(name, parts[name])
    outside = [head for head in named or () if not (len(head) == 2 and 0 <= head[0] < layers and 0 <= head[1] < count)]
    if outside:
        msg = f"meta['edge_heads'] names {outside[0]}, and there are {layers} layers of {count} heads"
        raise ValueError(msg)
    refuse_facts(meta, tokens)
