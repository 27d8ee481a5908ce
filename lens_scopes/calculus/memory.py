"""How much runs at one time: cotangents and tangents go in chunks that fit a budget; results do not depend on it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from lens_scopes.calculus.trace import Trace

_budget: ContextVar[int | None] = ContextVar("memory budget in bytes", default=None)


@contextmanager
def memory_budget(size: int) -> Iterator[None]:
    """How many bytes one chunk of cotangents or tangents may take, within the block.

    Without it: a quarter of the free GPU memory; on the CPU 64 MiB, since chunks that outgrow the caches are slower (a
    12-layer model: 16 cotangents at once took twice as long as four by four).
    """
    token = _budget.set(int(size))
    try:
        yield
    finally:
        _budget.reset(token)


def rows_at_once(run: Trace, rows: int) -> int:
    """How many cotangents to pull back together, in chunks of nearly equal size."""
    batch, pos = run.tokens.shape
    # Per row: the gradients of all sites, and the widest layer's own.
    held = sum(handle.numel() for handles in run.handles.values() for handle in handles)
    most = max(1, _bytes(run) // (run.y.element_size() * (held + batch * pos * _widest(run))))
    return -(-rows // -(-rows // most))


def lanes_at_once(run: Trace) -> int:
    """How many tangents to push forward together: value and tangent of the widest layer, gradients of every site."""
    held = sum(site.numel() for site in run.sites.values())
    return max(1, _bytes(run) // (run.y.element_size() * (held + run.tokens.shape[1] * 2 * _widest(run))))


def _widest(run: Trace) -> int:
    """Numbers per position in the widest part of a block: MLP (three tensors), patterns (three), stream (a dozen)."""
    cfg = run.host.cfg
    return (
        3 * (getattr(cfg, "d_mlp", None) or 4 * cfg.d_model) + 3 * cfg.n_heads * run.tokens.shape[1] + 12 * cfg.d_model
    )


def _bytes(run: Trace) -> int:
    given = _budget.get()
    if given is not None:
        return given
    device = run.y.device
    return torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else 2**26
