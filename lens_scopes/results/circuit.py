"""A circuit: the few heads and MLPs that most of a flow goes through, as JSON that other tools read."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lens_scopes.results import files
from lens_scopes.results.arguments import number
from lens_scopes.results.provenance import Meta

if TYPE_CHECKING:
    import pandas as pd

    from lens_scopes.results.flow import Flow


@dataclass(frozen=True, eq=False, repr=False)
class Circuit:
    """Heads and MLPs, what each carries, which tokens its heads read, and where the influence sits."""

    share: float
    """What the chosen parts of the last-head partition carry of the total."""
    nodes: tuple[dict[str, Any], ...]
    """id ("head 1.0", "mlp 2", "straight"), kind, layer, head; share: of the total that goes through it; last: of the
    total that goes through it last, where it was chosen for that. The strongest first."""
    edges: tuple[dict[str, Any], ...]
    """By head of a flow with edges, the token pairs that hold the same share of its magnitudes: node, kind ("value" or
    "pattern"), source and destination (positions), influence."""
    positions: tuple[dict[str, Any], ...]
    """By depth the positions that hold the same share of its magnitudes: depth, pos, token, influence."""
    meta: Meta

    @property
    def heads(self) -> list[tuple[int, int]]:
        """The heads (layer, head): what ``patching.measure(where=)`` takes."""
        return [(node["layer"], node["head"]) for node in self.nodes if node["kind"] == "head"]

    def to_json(self) -> str:
        """Everything as JSON text."""
        whole = {"share": self.share, "nodes": self.nodes, "edges": self.edges, "positions": self.positions}
        return json.dumps(whole | {"meta": json.loads(files.as_text(self.meta))}, ensure_ascii=False, allow_nan=False)

    def save(self, path: str | Path) -> Path:
        """Write ``to_json`` to a file, whole or not at all."""
        return files.write(path, self.to_json())

    def __repr__(self) -> str:
        """One line."""
        names = ", ".join(node["id"] for node in self.nodes[:8])
        more = f", ... ({len(self.nodes)})" if len(self.nodes) > 8 else ""
        return f"Circuit({100 * self.share:.3g} % of the total; {names}{more})"


def circuit_of(flow: "Flow", share: float) -> Circuit:
    """See ``Flow.circuit``."""
    share = number(share, "circuit: a share of the total", above=0, most=1, example=0.9)
    if not float(flow.total.sum()):
        msg = "circuit: the total of this flow is 0, so that nothing has a share of it"
        raise ValueError(msg)
    last, through = flow.last_heads(), flow.top(flow.heads[0].numel() + len(flow.mlps[0]))
    chosen = _fewest(last, share)
    missing = 1 - share
    picked = {_name(row): float(row.share) for row in _rows(chosen)}
    nodes = []
    for row in _rows(through):
        name = _name(row)
        if name in picked or abs(float(row.share)) > missing:
            head = None if row.kind == "mlp" else int(row.head)
            node = {"id": name, "kind": row.kind, "layer": int(row.layer), "head": head, "share": float(row.share)}
            nodes.append(node | ({"last": picked[name]} if name in picked else {}))
    if "straight" in picked:
        nodes.append({"id": "straight", "kind": "straight", "layer": None, "head": None, "last": picked["straight"]})
    kept = [node["id"] for node in nodes]
    return Circuit(sum(picked.values()), tuple(nodes), _edges(flow, kept, share), _positions(flow, share), flow.meta)


def _fewest(parts: "pd.DataFrame", share: float) -> "pd.DataFrame":
    """The smallest set of parts of a whole that makes this share of it: the largest shares first."""
    ordered = parts.sort_values("share", ascending=False, kind="stable")
    reached = ordered.share.cumsum() >= share - 1e-9
    return ordered.iloc[: int(reached.to_numpy().argmax()) + 1] if reached.any() else ordered


def _rows(frame: "pd.DataFrame") -> list[Any]:
    return list(frame.itertuples())


def _name(row: Any) -> str:
    if row.kind == "head":
        return f"head {row.layer}.{row.head}"
    return "straight" if row.kind == "straight" else f"mlp {row.layer}"


def _edges(flow: "Flow", kept: list[str], share: float) -> tuple[dict[str, Any], ...]:
    if flow.edges is None:
        return ()
    found = []
    for which, (layer, head) in enumerate(flow.edge_heads):
        name = f"head {layer}.{head}"
        if name in kept:
            maps = flow.edges.flatten(1, -3)[:, which]
            for kind, query, key in _largest(maps, share):
                ends = {"source": key, "destination": query, "influence": float(maps[kind, query, key])}
                found.append({"node": name, "kind": ("value", "pattern")[kind], **ends})
    return tuple(found)


def _positions(flow: "Flow", share: float) -> tuple[dict[str, Any], ...]:
    stream = flow.stream.double().sum(0)
    return tuple(
        {"depth": depth, "pos": pos, "token": flow.tokens[pos], "influence": float(row[pos])}
        for depth, row in enumerate(stream)
        for (pos,) in _largest(row, share)
    )


def _largest(values: Tensor, share: float) -> list[list[int]]:
    """Where the fewest entries are that hold a share of all magnitudes, the largest first."""
    sizes, order = values.double().abs().flatten().sort(descending=True, stable=True)
    if not float(sizes.sum()):
        return []
    count = int((sizes.cumsum(0) < (share - 1e-9) * sizes.sum()).sum()) + 1
    return torch.stack(torch.unravel_index(order[:count], values.shape), 1).tolist()
