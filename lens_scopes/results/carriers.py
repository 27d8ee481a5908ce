"""Which heads and MLPs carry the influence of a flow, as tables: where it passes, and where it passes last."""

from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd


def carriers(
    heads: Float[Tensor, "source layer head"],
    mlps: Float[Tensor, "source layer"],
    skip: Float[Tensor, "source layer"],
    composition: Float[Tensor, "source layer head qkv"] | None,
    total: float,
) -> "pd.DataFrame":
    """See ``Flow.top``: a row per head and MLP, the strongest first."""
    import pandas as pd

    rows = []
    for layer in range(heads.shape[1]):
        for head in range(heads.shape[2]):
            row = {"kind": "head", "layer": layer, "head": head, "influence": float(heads[:, layer, head].sum())}
            if composition is not None:
                row |= dict(zip("qkv", composition[:, layer, head].sum(0).tolist(), strict=True))
            rows.append(row)
        rows.append({"kind": "mlp", "layer": layer, "head": None, "influence": float(mlps[:, layer].sum())})
    frame = pd.DataFrame(rows)
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


def _strongest_first(frame: "pd.DataFrame") -> "pd.DataFrame":
    frame["head"] = frame["head"].astype("Int64")
    order = frame.influence.abs().sort_values(ascending=False, kind="stable").index
    return frame.loc[order].reset_index(drop=True)
