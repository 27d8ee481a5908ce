"""Which places are patched: every one of some sites, those of a mask, or whole heads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from lens_scopes.host import Host
from lens_scopes.results.arguments import integer
from lens_scopes.sites import HEADS, Sites, layer_of

#: What of a site [pos, ...] is patched.
At = tuple[int | slice, ...]


@dataclass(frozen=True, eq=False)
class Places:
    """The sites, and a mask over them of what was asked for: [site, pos(, head)], or [site, head] for whole heads."""

    sites: Sites
    asked: Bool[Tensor, "site ..."]
    whole_heads: bool

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the mask's axes."""
        return ("site", "head") if self.whole_heads else ("site", "pos", "head")[: self.asked.ndim]

    @property
    def coords(self) -> dict[str, tuple]:
        """Labels of the mask's axes."""
        numbers = {dim: tuple(range(n)) for dim, n in zip(self.dims, self.asked.shape, strict=True)}
        return numbers | {"site": self.sites.names}

    def at(self, index: Sequence[int]) -> At:
        """What an entry of the mask stands for, inside its site."""
        return (slice(None), index[1]) if self.whole_heads else tuple(index[1:])

    def labels(self, index: Sequence[int]) -> list[str | int]:
        """An entry of the mask in words."""
        return [self.sites.names[index[0]], *index[1:]]


def is_heads(where: Any) -> bool:
    """Whether places are given as a list of heads."""
    return isinstance(where, Sequence) and not isinstance(where, str)


def sites_of(host: Host, sites: Any, where: Any, end: str) -> Sites:
    """The sites that are patched, of a scope that reads at ``end``: of heads z, unless q, k or v is asked for.

    Raises:
        ValueError: heads at sites without a head axis; or see ``Host.sites``.

    """
    found = host.sites(sites if sites is not None or not is_heads(where) else "z", end)
    if is_heads(where) and not found.per_head:
        msg = f"where lists heads, which {found.names[0]} does not have; leave sites out, or write 'z', 'q', 'k' or 'v'"
        raise ValueError(msg)
    return found


def places_of(host: Host, sites: Sites, where: Any, differs: Bool[Tensor, "site pos ..."]) -> Places:
    """The mask.

    Args:
        host: the model.
        sites: see ``sites_of``.
        where: None for every place, a mask, or a list of heads [(layer, head), ...].
        differs: shaped like the values.

    Raises:
        ValueError: a mask of another shape or type, no heads, or heads that the model does not have.

    """
    if is_heads(where):
        asked = torch.zeros(len(sites.names), differs.shape[-1], dtype=torch.bool, device="cpu")
        for site, head in _heads(host, sites, where, differs.shape[-1]):
            asked[site, head] = True
        return Places(sites, asked, whole_heads=True)
    if where is None:
        return Places(sites, torch.ones_like(differs), whole_heads=False)
    if isinstance(where, np.ndarray) and where.dtype == np.bool_:
        where = torch.from_numpy(where.copy())
    if not isinstance(where, Tensor) or where.shape != differs.shape or where.dtype != torch.bool:
        got = f"{where.dtype} {tuple(where.shape)}" if isinstance(where, Tensor) else type(where).__name__
        msg = (
            f"where is a bool tensor shaped like the values, {tuple(differs.shape)} for these sites, or heads "
            f"[(layer, head), ...], got {got}; write e.g. where=predicted.values.abs() > 0.1"
        )
        raise ValueError(msg)
    return Places(sites, where.cpu(), whole_heads=False)


def _heads(host: Host, sites: Sites, where: Sequence[Any], heads: int) -> list[tuple[int, int]]:
    """Which site and head each entry names."""
    if not where:
        msg = "where is an empty list of heads; name at least one: [(layer, head), ...]"
        raise ValueError(msg)
    by_layer = {layer_of(name): s for s, name in enumerate(sites.names)}
    if len(by_layer) < len(sites.names):
        msg = f"a head (layer, head) names one site, and there are several of a layer: {sites.names}; write one kind"
        raise ValueError(msg)
    kinds = ", ".join(HEADS)
    found = []
    for entry in where:
        try:
            layer, head = (integer(number, "of a head (layer, head), each") for number in entry)
        except (TypeError, ValueError):
            msg = f"where lists heads as (layer, head), got {entry!r}; write e.g. where=[(5, 1), (7, 0)]"
            raise ValueError(msg) from None
        if layer not in by_layer or not 0 <= head < heads:
            msg = (
                f"where names head {head} of layer {layer}; here are layers {sorted(x or 0 for x in by_layer)} with "
                f"heads 0 to {heads - 1} (sites: one of {kinds}) of {host.name}"
            )
            raise ValueError(msg)
        found.append((by_layer[layer], head))
    return found
