"""A flow as tables: which heads and MLPs its influence passes, which it passes last, and every number once."""

from typing import TYPE_CHECKING, Literal

from jaxtyping import Float
from torch import Tensor

from lens_scopes.results import files, labelled
from lens_scopes.results.arguments import shown

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from lens_scopes.results.flow import Flow


def carriers(
    heads: Float[Tensor, "source layer head"],
    mlps: Float[Tensor, "source layer"],
    skip: Float[Tensor, "source layer"],
    composition: Float[Tensor, "source layer head qkv"] | None,
    total: float,
    kind: Literal["head", "mlp"] | None = None,
) -> "pd.DataFrame":
    """See ``Flow.top``: a row per head and MLP, or of one kind, the strongest first.

    Raises:
        ValueError: another kind.

    """
    import pandas as pd

    if kind not in (None, "head", "mlp"):
        msg = f"top's kind is 'head' or 'mlp', or None for both, got {shown(kind)}; write kind='head'"
        raise ValueError(msg)
    rows = []
    for layer in range(heads.shape[1]):
        for head in range(heads.shape[2]):
            row = {"kind": "head", "layer": layer, "head": head, "influence": float(heads[:, layer, head].sum())}
            if composition is not None:
                row |= dict(zip("qkv", composition[:, layer, head].sum(0).tolist(), strict=True))
            rows.append(row)
        rows.append({"kind": "mlp", "layer": layer, "head": None, "influence": float(mlps[:, layer].sum())})
    frame = pd.DataFrame(rows)
    frame = frame.query("kind == @kind").reset_index(drop=True) if kind else frame
    frame.insert(4, "share", frame.influence / total if total else 0.0)
    past = skip.sum(0).tolist()
    frame.insert(5, "skip", [past[layer] / total if total else 0.0 for layer in frame.layer])
    return _strongest_first(frame)


def by_last_head(last: Float[Tensor, "source layer head"], total: float) -> "pd.DataFrame":
    """See ``Flow.last_heads``: a row per head and one for what goes past them all, the strongest first."""
    import pandas as pd

    whole = last.double().sum(0)
    rows = [("straight", None, None, total - float(whole.sum()))]
    rows += [("head", layer, h, part) for layer, parts in enumerate(whole.tolist()) for h, part in enumerate(parts)]
    frame = pd.DataFrame(rows, columns=["kind", "layer", "head", "influence"])
    frame["share"] = frame.influence / total if total else 0.0
    frame["layer"] = frame["layer"].astype("Int64")
    return _strongest_first(frame)


def long_form(flow: "Flow") -> "pd.DataFrame":
    """See ``Flow.to_dataframe``."""
    import pandas as pd

    together = bool(flow.meta.get("together"))
    rows = ("all",) if together else flow.sources
    names = {} if together else {i: flow.tokens[i] for i in flow.sources}
    layers, heads = range(flow.heads.shape[1]), range(flow.heads.shape[2])
    by_head = {"source": rows, "layer": tuple(layers), "head": tuple(heads)}
    parts = {
        "head": (flow.heads, by_head),
        **({} if flow.last is None else {"last": (flow.last, by_head)}),
        "mlp": (flow.mlps, {"source": rows, "layer": tuple(layers)}),
        "skip": (flow.skip, {"source": rows, "layer": tuple(layers)}),
        "stream": (
            flow.stream,
            {"source": rows, "depth": tuple(range(flow.stream.shape[1])), "pos": tuple(range(len(flow.tokens)))},
        ),
    }
    by_position = dict(enumerate(flow.tokens))
    frames = []
    for kind, (values, coords) in parts.items():
        extra = {"source": names, "pos": by_position}
        frame = labelled.dataframe({"influence": values}, tuple(coords), coords, extra)
        frame.insert(0, "kind", kind)
        frames.append(frame)
    whole = pd.concat(frames, ignore_index=True)
    for column in ("layer", "head", "depth", "pos"):
        whole[column] = whole[column].astype("Int64")
    return whole


def dataset(flow: "Flow") -> "xr.Dataset":
    """See ``Flow.to_xarray``."""
    some = "edge_heads" in flow.meta
    parts: dict[str, tuple[tuple[str, ...], Tensor | None]] = {
        "total": (("source",), flow.total),
        "stderr": (("source",), flow.stderr),
        "heads": (("source", "layer", "head"), flow.heads),
        "last": (("source", "layer", "head"), flow.last),
        "mlps": (("source", "layer"), flow.mlps),
        "skip": (("source", "layer"), flow.skip),
        "stream": (("source", "depth", "pos"), flow.stream),
        "composition": (("source", "layer", "head", "qkv"), flow.composition),
        "edges": (("edge", *(("edge_head",) if some else ("layer", "head")), "query", "key"), flow.edges),
    }
    positions = tuple(range(len(flow.tokens)))
    coords = {
        "source": ("all",) if flow.meta.get("together") else flow.sources,
        "layer": tuple(range(flow.heads.shape[1])),
        "head": tuple(range(flow.heads.shape[2])),
        "depth": tuple(range(flow.stream.shape[1])),
        "qkv": ("q", "k", "v"),
        "edge": ("value", "pattern"),
        "edge_head": tuple(f"{layer}.{head}" for layer, head in flow.edge_heads),
        **dict.fromkeys(("pos", "query", "key"), positions),
    }
    variables = {name: (dims, values) for name, (dims, values) in parts.items() if values is not None}
    made = labelled.dataset(variables, coords, flow.tokens, files.as_text(flow.meta))
    return made.assign_attrs(residual=flow.residual)


def _strongest_first(frame: "pd.DataFrame") -> "pd.DataFrame":
    frame["head"] = frame["head"].astype("Int64")
    order = frame.influence.abs().sort_values(ascending=False, kind="stable").index
    return frame.loc[order].reset_index(drop=True)
