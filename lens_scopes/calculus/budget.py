"""The memory budget: what the user gives, and what there is without it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from lens_scopes.calculus.graph_size import held_by
from lens_scopes.host import Host
from lens_scopes.results.arguments import Integer, integer

_budget: ContextVar[int | None] = ContextVar("memory budget in bytes", default=None)


@contextmanager
def memory_budget(size: Integer | float) -> Iterator[None]:
    """How many bytes one chunk of cotangents, tangents or prompts may take, within the block.

    Without it: a quarter of the free GPU memory; on the CPU 64 MiB, since chunks that outgrow the caches are slower (a
    12-layer model: 16 cotangents at once took twice as long as four by four).

    Where the graph of a single prompt is estimated to take more than is given here (without it, than the GPU has free),
    its blocks are checkpointed: they keep their input and compute the rest again in each backward pass. Not with
    ``freeze`` or hooks of the user's.
    """
    if not isinstance(size, float) or not size.is_integer():  # 2e9 is a whole number of bytes
        integer(size, "a memory budget (in bytes)", 1)
    token = _budget.set(int(size))
    try:
        yield
    finally:
        _budget.reset(token)


def given() -> int | None:
    """What the user gives, if he does."""
    return _budget.get()


def bytes_on(device: torch.device) -> int:
    """What a chunk may take."""
    if (most := given()) is not None:
        return most
    return torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else 2**26


def outgrows_budget(host: Host, prompts: int, length: int) -> bool:
    """Whether the graph of these prompts takes more than there is."""
    most = given()
    if most is None and host.device.type == "cuda":
        most = torch.cuda.mem_get_info(host.device)[0]
    return most is not None and held_by(host).peak(length, prompts) > most
