"""Names of places in the residual stream, and of the places beside it that heads read and write.

A *site* is a TransformerLens hook name: ``"hook_embed"``, ``"blocks.3.hook_resid_post"``. This file turns what users
write (a shorthand for all layers, or hook names) into hook names in the order asked; which of them a given model has
is the host's business.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

#: Shorthands whose sites are tensors [pos, d_model].
STREAM = {
    "resid_pre": "blocks.{}.hook_resid_pre",
    "resid_mid": "blocks.{}.hook_resid_mid",
    "resid_post": "blocks.{}.hook_resid_post",
    "attn_out": "blocks.{}.hook_attn_out",
    "mlp_out": "blocks.{}.hook_mlp_out",
}
#: Shorthands whose sites are tensors [pos, head, d_head] (k and v: one head per key/value head).
HEADS = {kind: "blocks.{}.attn.hook_" + kind for kind in "zqkv"}

EMBED = "hook_embed"
FINAL = "final"  # not a hook: y, the input of the unembedding (DESIGN: after the final norm, its weight and bias)

_LAYER = re.compile(r"blocks\.(\d+)\.")
# Where a site stands inside its block, in the order of the forward pass.
_ORDER = ("resid_pre", "q", "k", "v", "z", "attn_out", "resid_mid", "mlp_out", "resid_post")


@dataclass(frozen=True)
class Sites:
    """Hook names in the order asked, and whether they carry a head axis."""

    names: tuple[str, ...]
    per_head: bool


def resolve(sites: str | Sequence[str] | None, n_layers: int, ends: Iterable[str] = ()) -> Sites:
    """What the user asked for, as hook names.

    ``None`` is the input and every layer: ``hook_embed`` and ``hook_resid_post`` of each block, n_layers + 1 names; or
    those of them that come before all the places where scopes read the model (``ends``), if any does.

    Raises:
        TypeError: neither None, a string nor a sequence of strings.
        ValueError: nothing asked for, the same site twice, or sites with and without a head axis in one call.
    """
    if sites is None:
        every = (EMBED, *(STREAM["resid_post"].format(layer) for layer in range(n_layers)))
        late = {name for end in ends for name in at_or_after(end, every, n_layers)}
        return Sites(tuple(name for name in every if name not in late) or every, per_head=False)
    asked = list(sites) if isinstance(sites, Sequence) and not isinstance(sites, str) else [sites]
    if not all(isinstance(name, str) for name in asked):
        msg = f"sites must be hook names or shorthands, got {asked!r}; write e.g. sites='resid_post'"
        raise TypeError(msg)
    names = [name for entry in asked for name in _expand(entry, n_layers)]
    if not names:
        msg = "sites is empty; leave it out (None) for the embedding and every hook_resid_post"
        raise ValueError(msg)
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        msg = f"asked for the same site twice: {twice}; name each once"
        raise ValueError(msg)
    with_head = [has_heads(name) for name in names]
    if any(with_head) and not all(with_head):
        msg = f"sites with a head axis (z, q, k, v) and without it do not fit one result: {names}; make two calls"
        raise ValueError(msg)
    return Sites(tuple(names), per_head=any(with_head))


def one(site: str) -> str:
    """The hook name of the one place that a vector [d_model] reads: of the residual stream, or the final state.

    Raises:
        ValueError: a shorthand for a site in every layer, or a site by head.
        TypeError: no text.

    """
    if not isinstance(site, str):
        msg = f"site is the hook name of one place, got {site!r}; write e.g. site='blocks.3.hook_resid_post'"
        raise TypeError(msg)
    every = STREAM.get(site) or HEADS.get(site)
    name = site if every else _expand(site, 0)[0]
    if every or has_heads(name):
        why = "is one in every layer" if every else "is split by head"
        msg = f"site is one place of the residual stream, and {site!r} {why}; write e.g. 'blocks.3.hook_resid_post'"
        raise ValueError(msg)
    return name


def has_heads(name: str) -> bool:
    """Whether a site is [pos, head, d_head] instead of [pos, d_model]."""
    return any(name.endswith(f".attn.hook_{kind}") for kind in HEADS)


def layer_of(name: str) -> int | None:
    """The block that a site belongs to; None for the embedding and the final state."""
    found = _LAYER.match(name)
    return int(found.group(1)) if found else None


def depth(name: str, n_layers: int) -> tuple[int, int]:
    """A sort key: sites in the order in which the forward pass reaches them."""
    if name == FINAL:
        return (n_layers, 0)
    layer = layer_of(name)
    if layer is None:
        return (-1, 0 if name == EMBED else 1)
    kind = name.rsplit("hook_", 1)[-1]
    return (layer, _ORDER.index(kind) if kind in _ORDER else len(_ORDER))


def short(name: str) -> str:
    """How pictures and tables call a site: its layer and its kind, "1 resid_post"."""
    layer, kind = layer_of(name), name.rsplit("hook_", 1)[-1]
    return kind if layer is None else f"{layer} {kind}"


def named(label: Any, names: Sequence[str]) -> Any:
    """Which of some sites is meant: by its hook name, as pictures call it, or by its kind where one only has that.

    Raises:
        KeyError: a kind that several of them have.

    """
    if not isinstance(label, str) or label in names:
        return label
    meant = [name for name in names if label in (short(name), short(name).rpartition(" ")[2])]
    if len(meant) > 1:
        msg = f"{label!r} is one of each of {len(meant)} layers; write e.g. {short(meant[0])!r} or {meant[-1]!r}"
        raise KeyError(msg)
    return meant[0] if meant else label


def at_or_after(site: str, names: Sequence[str], n_layers: int) -> list[str]:
    """Those of the names that are not reached before a site: what stands there cannot be read at it."""
    return [name for name in names if depth(name, n_layers) >= depth(site, n_layers)]


def _expand(entry: str, n_layers: int) -> list[str]:
    if entry == "embed":
        return [EMBED]
    pattern = STREAM.get(entry) or HEADS.get(entry)
    return [pattern.format(layer) for layer in range(n_layers)] if pattern else [entry]
