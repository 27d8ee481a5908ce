"""Flow, the result: every head's, MLP's and position's share of a scope score, conserved at every cut.

At every depth the positions sum to the total; in every block what goes through its heads and what goes past them
(``skip``) do. Heads of different blocks do not: what goes through one goes through or past the next.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_scopes.results import files, labelled
from lens_scopes.results.given import Integer, integer
from lens_scopes.results.provenance import Meta, Units, scope_text

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from lens_scopes.views.show import Shown

_TENSORS = ("total", "heads", "mlps", "skip", "stream", "composition", "edges", "probes")


@dataclass(frozen=True, eq=False, repr=False)
class Flow:
    """How influence travels from the input tokens to one prediction. Rows ("source") are tokens, or all together."""

    total: Float[Tensor, " source"]
    """The scope scores at the embedding (their sum where all sources go together)."""
    heads: Float[Tensor, "source layer head"]
    mlps: Float[Tensor, "source layer"]
    skip: Float[Tensor, "source layer"]
    """What goes past a block's heads: skip + Σ heads = total, in every block."""
    stream: Float[Tensor, "source depth pos"]
    """Where the influence sits at each depth: 0 is the input of the first block, l the output of block l − 1."""
    composition: Float[Tensor, "source layer head qkv"] | None
    """Each head's share by what the source moved: its queries, its keys, its values (Elhage et al. 2021)."""
    edges: Float[Tensor, "edge layer head query key"] | None
    """Edge 0 = value, 1 = pattern; summed over the sources."""
    residual: float
    """The largest violation of any conservation law, divided by the largest |total|."""
    tokens: tuple[str, ...]
    sources: tuple[int, ...]
    """The positions of the rows (all of them where they go together)."""
    meta: Meta = field(default_factory=Meta)
    probes: Float[Tensor, "probe source"] | None = None
    """What each random probe of an estimate contributed to the totals."""
    replay: Callable[..., "pd.DataFrame"] | None = None
    """The search for paths on the live model; lost when saved."""

    @property
    def stderr(self) -> Float[Tensor, " source"] | None:
        """Standard error of the totals; None for what is not an estimate."""
        return None if self.probes is None else labelled.standard_error(self.probes)

    @property
    def position(self) -> int:
        """The position explained."""
        return self.meta["positions"][0] if "positions" in self.meta else len(self.tokens) - 1

    @property
    def units(self) -> Units:
        """ "norm" or "squared"; "share" after ``share()``."""
        return self.meta.get("units", "norm")

    def sel(self, *, source: Integer) -> "Flow":
        """The row of one source as a flow of its own: where that token's influence goes. Edges are sums and go.

        Raises:
            ValueError: all sources go together.
            KeyError: a position that is no row of this flow.

        """
        if self.meta.get("together"):
            msg = "all sources go together in this flow; run flow(..., sources='each') or sources=[...]"
            raise ValueError(msg)
        row = labelled.index_of({"source": self.sources}, "source", source)
        source = self.sources[row]
        rows = {name: getattr(self, name) for name in ("total", "heads", "mlps", "skip", "stream", "composition")}
        return replace(
            self,
            **{name: None if part is None else part[row : row + 1] for name, part in rows.items()},
            edges=self.edges if len(self.sources) == 1 else None,
            sources=(source,),
            probes=None if self.probes is None else self.probes[:, row : row + 1],
        )

    def share(self) -> "Flow":
        """Everything as a fraction of its row's total (edges: of the sum of the totals); 0 where a total is 0.

        Shares of shares are the same shares.
        """
        if self.units == "share":
            return self

        def divided(part: Tensor, by: Tensor) -> Tensor:
            by = by.reshape(-1, *[1] * (part.ndim - 1))
            return torch.where(by == 0, 0.0, part / torch.where(by == 0, 1.0, by))

        rows = {name: getattr(self, name) for name in ("total", "heads", "mlps", "skip", "stream", "composition")}
        return replace(
            self,
            **{name: None if part is None else divided(part, self.total) for name, part in rows.items()},
            edges=None if self.edges is None else divided(self.edges[None], self.total.sum()[None])[0],
            meta=self.meta | {"units": "share"},
            probes=None,
        )

    def top(self, k: Integer = 10) -> "pd.DataFrame":
        """The heads and MLPs that carry most, summed over the sources: kind, layer, head, influence, share, Q, K, V.

        "skip" is the share of the total that goes past the heads of that block: with the block's heads it makes the
        whole. Shares of different blocks do not sum to it.

        Raises:
            ValueError: rows that were divided by their own totals, which do not add up.

        """
        if self.units == "share" and len(self.total) > 1:
            msg = "shares of several sources do not add up: write flow.top() before flow.share(), or sel(source=...)"
            raise ValueError(msg)
        import pandas as pd

        k, total = integer(k, "top: k", 0), float(self.total.sum())
        rows = []
        for layer in range(self.heads.shape[1]):
            for head in range(self.heads.shape[2]):
                row = {
                    "kind": "head",
                    "layer": layer,
                    "head": head,
                    "influence": float(self.heads[:, layer, head].sum()),
                }
                if self.composition is not None:
                    row |= dict(zip("qkv", self.composition[:, layer, head].sum(0).tolist(), strict=True))
                rows.append(row)
            rows.append({"kind": "mlp", "layer": layer, "head": None, "influence": float(self.mlps[:, layer].sum())})
        frame = pd.DataFrame(rows)
        frame.insert(4, "share", frame.influence / total if total else 0.0)
        past = self.skip.sum(0).tolist()
        frame.insert(5, "skip", [past[layer] / total if total else 0.0 for layer in frame.layer])
        frame["head"] = frame["head"].astype("Int64")
        order = frame.influence.abs().sort_values(ascending=False, kind="stable").index
        return frame.loc[order].head(k).reset_index(drop=True)

    def paths(self, k: Integer = 10, *, source: Integer | None = None, beam: Integer = 64) -> "pd.DataFrame":
        """The strongest routes source → head → head → ... → prediction, each with its exact share, and the rest.

        A path chooses at each block the skip connection (with that block's MLP) or one head; its influence is one
        forward-mode pass in which only the chosen branches' tangents go on. All (H+1)^L paths sum to the total.

        Args:
            k: how many to return.
            source: the position of one source row; None: all rows of this flow together.
            beam: how many partial paths are kept at each block; a wider beam misses less.

        Returns:
            A row per path, strongest first: path, influence, share, and a last row "rest".

        Raises:
            RuntimeError: the flow was loaded from a file, so that there is no model to search.
            KeyError: a source that is no row of this flow.

        """
        if self.replay is None:
            msg = "paths searches the live model, which a loaded flow does not have; run lens_scopes.flow again"
            raise RuntimeError(msg)
        k, beam = integer(k, "paths: k", 1), integer(beam, "paths: beam", 1)
        every = {"source": self.sources}
        rows = self.sources if source is None else (self.sources[labelled.index_of(every, "source", source)],)
        return self.replay(k, list(rows), beam)

    def to_dataframe(self) -> "pd.DataFrame":
        """Long form: kind (head, mlp, skip, stream), source, layer or depth, head, pos, influence."""
        import pandas as pd

        together = bool(self.meta.get("together"))
        rows = ("all",) if together else self.sources
        names = {} if together else {i: self.tokens[i] for i in self.sources}
        layers, heads = range(self.heads.shape[1]), range(self.heads.shape[2])
        parts = {
            "head": (self.heads, {"source": rows, "layer": tuple(layers), "head": tuple(heads)}),
            "mlp": (self.mlps, {"source": rows, "layer": tuple(layers)}),
            "skip": (self.skip, {"source": rows, "layer": tuple(layers)}),
            "stream": (
                self.stream,
                {"source": rows, "depth": tuple(range(self.stream.shape[1])), "pos": tuple(range(len(self.tokens)))},
            ),
        }
        by_position = dict(enumerate(self.tokens))
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

    def to_xarray(self) -> "xr.Dataset":
        """A Dataset of every part, and ``stderr`` of the totals where there is one; ``token`` lies along pos.

        The axes are source ("all" where they go together), layer, head, depth, pos, qkv, edge, query and key. Parts
        that this flow does not have are left out. ``attrs["meta"]`` is ``meta`` as JSON text, ``attrs["residual"]`` a
        number.

        Raises:
            ImportError: xarray is not installed.

        """
        parts: dict[str, tuple[tuple[str, ...], Tensor | None]] = {
            "total": (("source",), self.total),
            "stderr": (("source",), self.stderr),
            "heads": (("source", "layer", "head"), self.heads),
            "mlps": (("source", "layer"), self.mlps),
            "skip": (("source", "layer"), self.skip),
            "stream": (("source", "depth", "pos"), self.stream),
            "composition": (("source", "layer", "head", "qkv"), self.composition),
            "edges": (("edge", "layer", "head", "query", "key"), self.edges),
        }
        positions = tuple(range(len(self.tokens)))
        coords = {
            "source": ("all",) if self.meta.get("together") else self.sources,
            "layer": tuple(range(self.heads.shape[1])),
            "head": tuple(range(self.heads.shape[2])),
            "depth": tuple(range(self.stream.shape[1])),
            "qkv": ("q", "k", "v"),
            "edge": ("value", "pattern"),
            **dict.fromkeys(("pos", "query", "key"), positions),
        }
        variables = {name: (dims, values) for name, (dims, values) in parts.items() if values is not None}
        dataset = labelled.dataset(variables, coords, self.tokens, files.as_text(self.meta))
        return dataset.assign_attrs(residual=self.residual)

    def save(self, path: str | Path) -> Path:
        """Write to one safetensors file with a JSON header, whole or not at all."""
        tensors = {name: t for name in _TENSORS if (t := getattr(self, name)) is not None}
        header = {"residual": self.residual, "tokens": self.tokens, "sources": self.sources, "meta": self.meta}
        return files.save(path, "Flow", tensors, header)

    @classmethod
    def load(cls, path: str | Path) -> "Flow":
        """Read what ``save`` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a file that is cut short, of another kind or of another schema.

        """
        return files.load(path, "Flow", cls._of)

    @classmethod
    def _of(cls, tensors: dict[str, Tensor], header: dict[str, Any]) -> "Flow":
        optional = ("skip", "composition", "edges", "probes")
        parts: dict[str, Any] = {name: tensors.get(name) if name in optional else tensors[name] for name in _TENSORS}
        if parts["skip"] is None:  # 0.1.0 did not keep it
            parts["skip"] = tensors["total"][:, None] - tensors["heads"].sum(-1)
        return cls(
            **parts,
            residual=header["residual"],
            tokens=tuple(header["tokens"]),
            sources=tuple(header["sources"]),
            meta=header["meta"],
        )

    def check(self, model: Any, *, scope: Any = None, heads: int = 3) -> dict[str, Any]:
        """The totals against finite differences, the strongest heads against a masked backward pass of their own.

        Args:
            model: the model that the flow came from.
            scope: the scope, where it cannot be rebuilt from ``meta``.
            heads: how many heads to check.

        Returns:
            See ``lens_scopes.check.check_flow``.

        """
        from lens_scopes.check import check_flow

        return check_flow(self, model, scope=scope, heads=heads)

    def __repr__(self) -> str:
        """One line."""
        rows = "all sources together" if self.meta.get("together") else f"{len(self.sources)} sources"
        layers, heads = self.heads.shape[1:]
        scope = scope_text(self.meta, "?")
        return f"Flow({rows}, {layers} layers x {heads} heads; {scope}, residual {self.residual:.1e})"

    def show(self, view: str | None = None, **options: Any) -> "Shown":
        """An interactive view ("heads", "stream", "edges", "tokens") with a static one under it; see ``show``."""
        from lens_scopes.views.show import show

        return show(self, view, **options)

    def plot(self, view: str | None = None, **options: Any) -> Any:
        """A matplotlib Figure (or a plotly one) of a view; see ``lens_scopes.plot.plot``."""
        from lens_scopes.plot import plot  # pyright: ignore[reportMissingImports]

        return plot(self, view, **options)

    def _repr_html_(self) -> str:
        """Layers by heads and MLP, and the stream by depth and position, as shares of the total: static, no script."""
        from lens_scopes.views.flow import flow_html

        return flow_html(self)
