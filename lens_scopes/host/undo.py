"""Models leave every call as they came: what is changed for a block is undone at its end, whatever happens.

``finally`` alone is not enough: Ctrl-C may hit in the middle of it, or inside TransformerLens's own bookkeeping. What
has to be undone is therefore written down before it is done, and a guarded call does whatever is left of it once more.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

# What autocast may be on for.
_DEVICES = ("cpu", "cuda", "mps", "xpu")


class _Pending(threading.local):
    """What the calls of this thread have yet to undo, the latest last."""

    def __init__(self) -> None:
        self.undos: list[Callable[[], None]] = []
        self.depth = 0


_pending = _Pending()


@contextmanager
def undone(undo: Callable[[], None]) -> Iterator[None]:
    """Run ``undo`` at the end of the block; it may run twice, and before anything was done."""
    undos = _pending.undos  # of the thread that opens: another may close
    undos.append(undo)
    try:
        yield
    finally:
        undo()
        if undo in undos:
            undos.remove(undo)


def depth() -> int:
    """How many guarded calls this thread is inside of: runs of the model at another depth are somebody else's."""
    return _pending.depth


def guarded(function: Callable[P, R]) -> Callable[P, R]:
    """A public function, with everything undone that an exception left behind, and without autocast inside.

    Under autocast products are rounded to half precision, whatever the dtype of the model is.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        undos, before = _pending.undos, list(_pending.undos)
        grad, cast = torch.is_grad_enabled(), [one for one in _DEVICES if torch.is_autocast_enabled(one)]
        outside = _pending.depth
        try:
            _pending.depth = outside + 1
            for device in cast:
                torch.set_autocast_enabled(device, False)
            return function(*args, **kwargs)
        except BaseException:
            for undo in [one for one in reversed(undos) if one not in before]:
                undo()
                undos.remove(undo)
            torch.set_grad_enabled(grad)
            raise
        finally:
            _pending.depth = outside
            for device in cast:
                torch.set_autocast_enabled(device, True)

    return call
