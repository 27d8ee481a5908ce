"""Blocks that keep their input alone and compute the rest again in the backward pass: memory for time.

The second time the hooks of the first are gone: what they read does not matter, what they change would be missing. So
nothing is checkpointed with hooks of the user's, nor by a caller whose own hooks change activations.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from lens_scopes.host.model import Host
from lens_scopes.host.starting import forwards
from lens_scopes.host.undo import undone


@contextmanager
def checkpointing(host: Host) -> Iterator[None]:
    """Passes that begin inside keep the inputs of the blocks; their graphs may be used after it.

    The last block keeps everything: passes of this package end inside it. Something before the blocks has to be open
    for differentiation, so that all that is in them is.
    """
    first = [True]  # until the block is left

    def wrapped(own: Callable[..., Any]) -> Callable[..., Any]:
        def whole(*args: Any, **kwargs: Any) -> Any:
            if first:
                return own(*args, **kwargs)
            with host.frozen(), undone(host.notes()):
                return own(*args, **kwargs)

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():  # forward mode holds nothing
                return own(*args, **kwargs)
            args, kwargs = tuple(map(_uncached, args)), {name: _uncached(one) for name, one in kwargs.items()}
            return checkpoint(whole, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

        return forward

    blocks = list(host.model.blocks)[:-1]
    try:
        with host.alone(), forwards(blocks, [wrapped(block.forward) for block in blocks]):
            yield
    finally:
        first.clear()


def _uncached(given: Any) -> Any:
    """Without a cache of keys and values, to which a block would add its own a second time."""
    return None if hasattr(given, "get_seq_length") else given
