"""a − b of two results with the same labels: which labels differ, and what is known of the error of the difference."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lens_scopes.results.alike import both
from lens_scopes.results.labelled import Coords
from lens_scopes.results.provenance import Meta

# Of what a difference is made of: the axes and labels of one side, its tokens and its facts.
Side = tuple[Sequence[str], Coords, Sequence[str], Mapping[str, Any]]
_NAMED = ("role", "span")


def refuse_other_labels(a: Side, b: Side) -> None:
    """Refuse to subtract numbers of different places.

    Raises:
        ValueError: naming the labels that differ.

    """
    (dims, coords, tokens, meta), (other_dims, other_coords, other_tokens, other_meta) = a, b
    found: list[tuple[str, Any, Any]] = []
    units = [one.get("units", "norm") for one in (meta, other_meta)]
    kinds = [one.get("aggregated") for one in (meta, other_meta)]
    if units[0] != units[1]:
        found.append(("units", units[0], units[1]))
    if kinds[0] != kinds[1]:
        found.append(("joined to", kinds[0], kinds[1]))
    if tuple(dims) != tuple(other_dims):
        found.append(("axes", tuple(dims), tuple(other_dims)))
    # Spans are the same if they are called the same: those of another prompt begin elsewhere.
    named = kinds[0] == kinds[1] and kinds[0] in _NAMED
    if not found:
        axes = [dim for dim in dims if not (named and dim == "pos")]
        found = [
            (f"labels of the axis {d!r}", coords[d], other_coords[d]) for d in axes if coords[d] != other_coords[d]
        ]
    if not found and tuple(tokens) != tuple(other_tokens):
        found.append(("span names" if named else "tokens", tuple(tokens), tuple(other_tokens)))
    if found:
        told = "; ".join(f"{what}: {both(left, right)}" for what, left, right in found)
        advice = "" if named or "tokens" not in told else "; join both to spans of the same names: aggregate({...})"
        msg = f"a - b is for scores with the same labels, and these differ in {told}{advice}"
        raise ValueError(msg)


def facts_of(a: Mapping[str, Any], b: Mapping[str, Any]) -> Meta:
    """What both sides have in common, and each as it was: no fact of one side stands for both."""
    common = {key: value for key, value in a.items() if key in b and b[key] == value}
    kept = {key: a[key] for key in ("joined", "joined_tokens", "special") if key in a}
    return common | kept | {"units": "signed", "difference": [dict(a), dict(b)]}  # pyright: ignore[reportReturnType]


def probes_of(
    a: Tensor | None, b: Tensor | None, meta: Mapping[str, Any], other: Mapping[str, Any]
) -> tuple[Tensor | None, int]:
    """Probes whose scatter gives the standard error of the difference, and of its sums; and their degrees of freedom.

    The random signs of an estimate depend on its seed, prompt and position: where they agree, probe j of one side
    belongs to probe j of the other, and the pairs are subtracted. Otherwise the sides are independent: their centred
    probes stand one after the other, scaled so that the error of all is √(error_a² + error_b²), with the degrees of the
    smaller side.

    Raises:
        ValueError: estimates that draw the same signs but spend different numbers of probes: neither holds.

    """
    if a is None or b is None:
        one = a if b is None else -b
        return one, 0 if one is None else len(one) - 1
    if not _draws(meta) & _draws(other):
        total = len(a) + len(b)
        parts = [
            (len(x) / (len(x) - 1) * (total - 1) / total) ** 0.5 * (x - x.mean(0)) if len(x) > 1 else x * torch.nan
            for x in (a, b)
        ]
        return torch.cat([parts[0], -parts[1]]), min(len(a), len(b)) - 1
    if len(a) != len(b):
        msg = (
            f"both are estimates that draw the same random signs, but with {len(a)} and {len(b)} probes: their errors "
            "are neither independent nor paired; give one of them another seed, or both the same passes"
        )
        raise ValueError(msg)
    return a - b, len(a) - 1


def _draws(meta: Mapping[str, Any]) -> set[tuple[Any, ...]]:
    """What the random signs of an estimate depend on, for each position explained."""
    seed, ids = meta.get("scope", {}).get("fields", {}).get("seed"), tuple(meta.get("token_ids", ()))
    return {(seed, ids[: position + 1]) for position in meta.get("positions", ())}
