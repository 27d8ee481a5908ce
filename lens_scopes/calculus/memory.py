"""How much runs at one time: cotangents and tangents go in chunks that fit a budget; results do not depend on it."""

from collections.abc import Iterator

from lens_scopes.calculus.budget import bytes_on, given
from lens_scopes.calculus.graph_size import held_by
from lens_scopes.calculus.trace import Trace
from lens_scopes.host import Host

# Tokens of prompts that run together where no budget is given: more gain nothing on a CPU, and fit any GPU.
_TOKENS = 4096


def rows_at_once(run: Trace, rows: int) -> int:
    """How many cotangents to pull back together, in chunks of nearly equal size."""
    batch, pos = run.tokens.shape
    # Per row: the gradients of all sites, and the widest layer's own.
    held = sum(handle.numel() for handle in run.handles.values())
    most = max(1, bytes_on(run.y.device) // (run.y.element_size() * (held + batch * pos * _widest(run.host, pos))))
    return -(-rows // -(-rows // most))


def lanes_at_once(run: Trace) -> int:
    """How many tangents to push forward together: value and tangent of the widest layer, gradients of every site."""
    held = sum(site.numel() for site in run.sites.values())
    pos = run.tokens.shape[1]
    return max(1, bytes_on(run.y.device) // (run.y.element_size() * (held + pos * 2 * _widest(run.host, pos))))


def block_lanes_at_once(run: Trace) -> int:
    """How many cotangents to pull back together through one block, where no more than its own graph is in play."""
    pos = run.tokens.shape[1]
    return max(1, bytes_on(run.y.device) // (run.y.element_size() * pos * _widest(run.host, pos)))


def portions(run: Trace, rows: int, sources: int) -> Iterator[tuple[slice, list[int]]]:
    """Rows by sources in pieces that go together as lanes of one pass; with a progress bar where there are many."""
    from tqdm.auto import tqdm

    most = lanes_at_once(run)
    per_row = max(1, most // sources)
    pieces = [
        (slice(r, min(r + per_row, rows)), list(range(s, min(s + most, sources))))
        for r in range(0, rows, per_row)
        for s in range(0, sources, most)
    ]
    yield from tqdm(pieces, desc="flow", leave=False, disable=len(pieces) < 8)


def prompts_at_once(host: Host, length: int) -> int:
    """How many prompts of one length run together: some 4,096 tokens, or what a budget holds of their graph."""
    most = given()
    if most is None:
        return max(1, _TOKENS // length)
    return max(1, most // max(1, held_by(host).bytes(length)))


def chunk_bytes(host: Host, length: int, sites: int, rows: int) -> int:
    """What a chunk of cotangents takes beside the graph: gradients of the sites, of several rows the widest layer's."""
    held = length * sites * host.cfg.d_model
    if rows == 1:
        return host.dtype.itemsize * held
    one = host.dtype.itemsize * (held + length * _widest(host, length))
    return 2 * one * max(1, min(rows, bytes_on(host.device) // one))


def _widest(host: Host, length: int) -> int:
    """Numbers per position in the widest part of a block: MLP (three tensors), patterns (three), stream (a dozen)."""
    cfg = host.cfg
    return 3 * (getattr(cfg, "d_mlp", None) or 4 * cfg.d_model) + 3 * cfg.n_heads * length + 12 * cfg.d_model
