"""What the explorer knows of a Flow: where each token's influence goes, and between which tokens each head carries."""

from typing import Any

import torch

from lens_scopes.results.flow import Flow
from lens_scopes.results.labelled import whole
from lens_scopes.results.provenance import UNITS, scope_text, target_text, tokens_of, unit_text
from lens_scopes.views import markup
from lens_scopes.views.flow import EDGE_KINDS, flow_title
from lens_scopes.views.packing import packed

#: Numbers in one explorer of a Flow; more sources than fit are left out, the weakest first.
MOST_NUMBERS = 150_000
# Edges of one head that are kept, the strongest.
_EDGES = 20


def flow_data(flow: Flow, name: str) -> dict[str, Any] | None:
    """What the explorer needs to know, JSON-like; None for a flow whose sources go together."""
    if flow.meta.get("together"):
        return None
    flow.refuse_row_shares("show")
    end = max(flow.meta.get("positions", (flow.position,))) + 1
    parts = {"heads": flow.heads, "mlps": flow.mlps, "skip": flow.skip, "stream": flow.stream}
    parts |= {} if flow.last is None else {"last": flow.last}
    room = max(1, MOST_NUMBERS // sum(part[0].numel() for part in parts.values()))
    reaching = [i for i, source in enumerate(flow.sources) if source < end]
    kept = sorted(sorted(reaching, key=lambda i: -abs(float(flow.total[i])))[:room], key=lambda i: flow.sources[i])
    if not kept:
        return None
    layers, heads = flow.heads.shape[1:]
    return {
        "kind": "flow",
        "id": name,
        **_asked(flow),
        "tokens": [markup.visible(token) for token in flow.tokens],
        "texts": [whole(token) for token in flow.tokens],
        "end": end,
        "sources": [flow.sources[i] for i in kept],
        "total": packed(flow.total[kept]),
        "stderr": None if flow.stderr is None else packed(flow.stderr[kept]),
        "whole": float(flow.total.double().sum()),
        **{part: packed(values[kept]) for part, values in parts.items()},
        "composition": None if flow.composition is None else packed(flow.composition[kept]),
        "branches": [*(f"H{head}" for head in range(heads)), "MLP"],
        "layers": [f"layer {layer}" for layer in range(layers)],
        "depths": ["embed", *(f"after {layer}" for layer in range(flow.stream.shape[1] - 1))],
        "edges": _edges(flow),
    }


def _asked(flow: Flow) -> dict[str, Any]:
    """What was asked of which model."""
    targets = [target for target in flow.meta.get("targets") or () if target is not None]
    about = [" against ".join(map(markup.explained, tokens_of(target))) for target in targets]
    return {
        "title": markup.plain(flow_title(flow)),
        "question": markup.plain(scope_text(flow.meta, "a scope")),
        "model": markup.plain(str(flow.meta.get("model", "a model"))),
        "units": UNITS[flow.units] if flow.units == "share" else unit_text(flow.meta),
        "said": markup.plain(", ".join(about)) or f"the prediction after position {flow.position}",
        "target": "".join(whole(target_text(target)) or "" for target in targets) or None,
    }


def _edges(flow: Flow) -> list[dict[str, Any]]:
    """By head its strongest edges of both kinds, summed over the sources, the strongest first."""
    found = []
    for which, (layer, head) in enumerate(flow.edge_heads):
        maps = flow.edges.flatten(1, -3)[:, which]  # pyright: ignore[reportOptionalMemberAccess]
        count = int(maps.count_nonzero())
        order = maps.abs().flatten().nan_to_num().sort(descending=True, stable=True).indices[: min(_EDGES, count)]
        places = torch.stack(torch.unravel_index(order, maps.shape), 1)
        found.append(
            {
                "layer": layer,
                "head": head,
                "count": count,
                "places": [[EDGE_KINDS[kind], key, query] for kind, query, key in places.tolist()],
                "values": packed(maps.flatten()[order]),
            }
        )
    return found
