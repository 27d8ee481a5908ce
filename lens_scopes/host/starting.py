"""Starting in the middle: a run that begins at a block, from a residual stream that was kept.

What lies before the block cannot change what is behind it but through the stream, so a run that differs from a kept
one from block l on costs 1 - l/L of a forward pass. Neither host class offers it on every version: here the blocks
before l hand on what they are given, and the stream is put in where block l reads it.

Whether a model's blocks exchange nothing but the stream, and whether its attention is causal, is tried once on a few
tokens; a model that fails is run whole, for ever.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_scopes.host.capture import run_to_last_residual
from lens_scopes.host.model import Host
from lens_scopes.host.undo import undone
from lens_scopes.sites import STREAM, layer_of

# Tokens that the trial runs on.
_TOKENS = 8


@dataclass(frozen=True)
class _Tried:
    """What a trial showed."""

    starts: bool = False
    """A run from a block in the middle ends as the whole run does."""
    causal: bool = False
    """The last token changes nothing before it."""
    among: int | None = None
    """Blocks return the stream as the first of so many; None: alone."""


_tried: "weakref.WeakKeyDictionary[Any, tuple[tuple, _Tried]]" = weakref.WeakKeyDictionary()


def starts_at(host: Host, layer: int) -> bool:
    """Whether a run may begin at a block.

    Not where the blocks exchange more than the stream; nor where hooks of the user's stand before and behind: those
    before have acted on the kept stream, but may hand something on to the others beside it.
    """
    if not 0 < layer < host.n_layers:
        return False
    sides = {_is_behind(name, layer) for name in host.hooked()}
    return sides in (set(), {True}, {False}) and _try(host).starts


def is_causal(host: Host) -> bool:
    """Whether tokens after a position can be cut off: the host says that attention is causal, and a trial agrees.

    Hooks of the user's may count on a prompt's length: with any of them nothing is cut.
    """
    return getattr(host.cfg, "attention_dir", None) == "causal" and not host.hooked() and _try(host).causal


@contextmanager
def starting_at(host: Host, layer: int, stream: Float[Tensor, "#batch pos d_model"] | None) -> Iterator[None]:
    """Runs inside begin at a block, if they can (``starts_at``); else they are whole runs, as they are at layer 0.

    Args:
        host: the model.
        layer: the block.
        stream: what ``blocks.{layer}.hook_resid_pre`` held in a run on the same tokens, the user's own hooks in force:
            one row for all, or one for each. Not needed where nothing is skipped.

    """
    if stream is None or not starts_at(host, layer):
        yield
        return
    with host.alone(), _handing_on(host, layer, _try(host).among), host.hooks([_placing(layer, stream)]):
        yield


def _is_behind(name: str, layer: int) -> bool | None:
    """Whether a hooked place is reached from a block on; None for a module of a host's own, which may be anywhere."""
    if name.startswith("blocks."):
        return (layer_of(f"{name}.") or 0) >= layer
    if name.startswith(("ln_final", "unembed")):
        return True
    return False if "embed" in name else None


def _placing(layer: int, stream: Tensor) -> tuple[str, Callable[..., Tensor]]:
    """The hook that puts the stream in: behind the user's own at this place, which have acted on it already."""

    def place(activation: Tensor, hook: object) -> Tensor:  # noqa: ARG001 - TransformerLens's signature
        return stream.expand_as(activation).clone()  # edits in place come after it

    return (STREAM["resid_pre"].format(layer), place)


@contextmanager
def _handing_on(host: Host, layer: int, among: int | None) -> Iterator[None]:
    """The blocks before this one return what they are given."""

    def hand_on(*args: Any, **kwargs: Any) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        return given if among is None else (given, *[None] * (among - 1))

    with forwards(list(host.model.blocks)[:layer], [hand_on] * layer):
        yield


@contextmanager
def forwards(blocks: Sequence[Any], instead: Sequence[Callable[..., Any]]) -> Iterator[None]:
    """Other forwards on the instances, and what was there before afterwards."""
    before = [block.__dict__.get("forward") for block in blocks]

    def undo() -> None:
        for block, own in zip(blocks, before, strict=True):
            block.__dict__.pop("forward", None)
            if own is not None:
                block.__dict__["forward"] = own

    with undone(undo):
        for block, forward in zip(blocks, instead, strict=True):
            block.__dict__["forward"] = forward
        yield


def _try(host: Host) -> _Tried:
    with host.alone():
        state = tuple(getattr(host.model, name, None) for name in ("_weights_processed", "compatibility_mode"))
        known = _tried.get(host.model)
        if known is not None and known[0] == state:
            return known[1]
        found = _trial(host)
        # Hooks of the user's may be what failed.
        if found.starts or not host.hooked():
            _tried[host.model] = (state, found)
        return found


def _trial(host: Host) -> _Tried:
    """A whole run of two prompts that differ in their last token, and the same from the middle and the last block."""
    ids = torch.arange(min(_TOKENS, host.n_ctx), device=host.device) % host.vocab
    other = ids.clone()
    other[-1] = (other[-1] + 1) % host.vocab
    tokens = torch.stack([ids, other])
    layers = sorted({host.n_layers // 2, host.n_layers - 1} - {0})
    returned: list[int | None] = []
    try:
        first = host.model.blocks[0]
        own = first.forward

        def noting(*args: Any, **kwargs: Any) -> Any:
            out = own(*args, **kwargs)
            returned.append(len(out) if isinstance(out, tuple) else None)
            return out

        with forwards([first], [noting]):
            whole = run_to_last_residual(host, tokens, [STREAM["resid_pre"].format(n) for n in layers], grad=False)
        found = _Tried(causal=_same(host, whole.last[0, :-1], whole.last[1, :-1]), among=returned[0])
    except Exception:  # whatever it is, this model is run whole
        return _Tried()
    try:
        for layer in layers:
            # In the other order: what a skipped block left behind in the whole run belongs to the other prompt now.
            stream = whole.sites[STREAM["resid_pre"].format(layer)].detach().flip(0)
            with _handing_on(host, layer, found.among), host.hooks([_placing(layer, stream)]):
                last = run_to_last_residual(host, tokens.flip(0), grad=False).last
            if not _same(host, last.flip(0), whole.last):
                return found
    except Exception:
        return found
    return _Tried(bool(layers), found.causal, found.among)


def _same(host: Host, found: Tensor, expected: Tensor) -> bool:
    allowed = 1e-4 if host.dtype in (torch.float32, torch.float64) else 3e-2
    return float((found - expected).abs().max()) <= allowed * float(expected.abs().max())
