"""The explorer of a report: click a token, see where its influence goes. Data as JSON, drawn by ``explorer.js``."""

from importlib.resources import files
from typing import Any

import torch

from lens_scopes.results.flow import Flow
from lens_scopes.results.provenance import UNITS
from lens_scopes.views import markup
from lens_scopes.views.circuits import rounded

#: Numbers in one explorer; more sources than fit are left out, the weakest first.
_MOST_NUMBERS = 150_000

STYLE = (
    ".lens-tokens button{font:13px ui-monospace,monospace;white-space:pre;border:2px solid transparent;margin:1px;"
    "padding:1px 3px;border-radius:4px;cursor:pointer;unicode-bidi:isolate}"
    ".lens-tokens button:disabled{cursor:default;background:none;color:inherit;opacity:.5}"
    ".lens-tokens button[aria-pressed=true]{border-color:currentcolor;outline:2px solid #e69f00}"
    ".lens-maps{display:flex;flex-wrap:wrap;gap:8px 28px;align-items:flex-end}"
    ".lens-map{max-width:100%}.lens-said{margin:6px 0}"
    ".lens-heading{margin:8px 0 2px;opacity:.85}.lens-scroll{overflow-x:auto}"
    ".lens-map table{border-collapse:separate;border-spacing:1px}.lens-map td{padding:0;min-width:14px;height:15px;"
    "text-align:center;font-size:10px}.lens-map th{font-weight:normal;font-size:13px;padding:0 2px;white-space:nowrap;"
    "vertical-align:bottom;text-align:right}"
    ".lens-map thead th:not(:has(.lens-upright)){min-width:30px;text-align:center}"
    ".lens-upright{display:inline-block;writing-mode:vertical-rl;transform:rotate(180deg);white-space:pre;"
    "font:12px/1 ui-monospace,monospace;padding:2px 0;unicode-bidi:isolate}"
)


def script() -> str:
    """The explorer's JavaScript."""
    return files("lens_scopes.views").joinpath("explorer.js").read_text(encoding="utf-8")


def place(name: str, data: dict[str, Any]) -> str:
    """Where an explorer goes in a page."""
    left = len(data["tokens"]) - len(data["sources"])
    note = markup.remark(f"{left} tokens (grey) have no row here") if left else ""
    return (
        f"{markup.heading('explorer: click a token (or use the arrow keys) to see where its influence goes')}{note}"
        f'<div id="{name}"><noscript>The explorer needs JavaScript; the other views do not.</noscript></div>'
    )


def explorer_data(flow: Flow, name: str) -> dict[str, Any] | None:
    """What the explorer needs to know, JSON-like; None for a flow whose sources go together."""
    if flow.meta.get("together"):
        return None
    flow.refuse_row_shares("show")
    end = max(flow.meta.get("positions", (flow.position,))) + 1
    branches = torch.cat([flow.heads, flow.mlps[..., None]], -1)
    stream = flow.stream[..., :end]
    room = max(1, _MOST_NUMBERS // (branches[0].numel() + flow.skip[0].numel() + stream[0].numel()))
    reaching = [i for i, source in enumerate(flow.sources) if source < end]
    kept = sorted(sorted(reaching, key=lambda i: -abs(float(flow.total[i])))[:room], key=lambda i: flow.sources[i])
    if not kept:
        return None
    layers = flow.heads.shape[1]
    return {
        "id": name,
        "tokens": [markup.visible(token) for token in flow.tokens],
        "end": end,
        "sources": [flow.sources[i] for i in kept],
        "total": _rounded(flow.total[kept].tolist()),
        "whole": rounded(float(flow.total.double().sum())),
        "heads": _rounded(branches[kept].tolist()),
        "skip": _rounded(flow.skip[kept].tolist()),
        "stream": _rounded(stream[kept].tolist()),
        "branches": [*(f"H{head}" for head in range(flow.heads.shape[2])), "MLP"],
        "layers": [f"layer {layer}" for layer in range(layers)],
        "depths": ["embed", *(f"after {layer}" for layer in range(flow.stream.shape[1] - 1))],
        "units": UNITS[flow.units],
    }


def _rounded(values: Any) -> Any:
    return [_rounded(v) for v in values] if isinstance(values, list) else rounded(values, 4)
