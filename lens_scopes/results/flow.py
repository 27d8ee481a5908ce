"""Flow, the result: every head's, MLP's and position's share of a scope score, conserved at every cut.

At every depth the positions sum to the total; in every block what goes through its heads and what goes past them
(``skip``) do. Heads of different blocks do not: what goes through one goes through or past the next.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lens_scopes.results import files, labelled, wellformed
from lens_scopes.results.arguments import Integer, integer
from lens_scopes.results.circuit import Circuit, circuit_of
from lens_scopes.results.flow_tables import by_last_head, carriers, dataset, long_form
from lens_scopes.results.provenance import Meta, Units, scope_text, taken_text

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from lens_scopes.views.show import Shown

# What has a row for each source, and everything that is saved.
_ROWS = ("total", "heads", "last", "mlps", "skip", "stream", "composition")
_TENSORS = (*_ROWS, "edges", "probes")


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
    edges: Float[Tensor, "edge *layer_head query key"] | None
    """Edge 0 = value, 1 = pattern; summed over the sources. Of every head [edge, layer, head, query, key], or [edge,
    head, query, key] of the heads that ``meta["edge_heads"]`` names."""
    residual: float
    """The largest violation of any conservation law, divided by the largest |total|."""
    tokens: tuple[str, ...]
    sources: tuple[int, ...]
    """The positions of the rows (all of them where they go together)."""
    meta: Meta = field(default_factory=Meta)
    probes: Float[Tensor, "probe source"] | None = None
    """What each random probe of an estimate contributed to the totals."""
    last: Float[Tensor, "source layer head"] | None = None
    """What goes through each head and no later one; see ``last_heads``. None in files of 0.1.0."""
    replay: Callable[..., "pd.DataFrame"] | None = None
    """Asks the routes on the live model; lost when saved."""

    @property
    def stderr(self) -> Float[Tensor, " source"] | None:
        """Standard error of the totals; None for what is not an estimate."""
        return None if self.probes is None else labelled.standard_error(self.probes)

    @property
    def position(self) -> int:
        """The position explained; of several that are explained as one, the first (``meta["positions"]`` has all)."""
        return self.meta["positions"][0] if "positions" in self.meta else len(self.tokens) - 1

    @property
    def units(self) -> Units:
        """ "norm" or "squared", "signed" of a whole change; "share" after ``share()``."""
        return self.meta.get("units", "norm")

    @property
    def edge_heads(self) -> list[tuple[int, int]]:
        """The heads (layer, head) that edges are of, in their order; empty without edges."""
        if self.edges is None:
            return []
        if "edge_heads" in self.meta:
            return [(layer, head) for layer, head in self.meta["edge_heads"]]
        layers, heads = self.heads.shape[1:]
        return [(layer, head) for layer in range(layers) for head in range(heads)]

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
        rows = {name: getattr(self, name) for name in _ROWS}
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

        rows = {name: getattr(self, name) for name in _ROWS}
        return replace(
            self,
            **{name: None if part is None else divided(part, self.total) for name, part in rows.items()},
            edges=None if self.edges is None else divided(self.edges[None], self.total.sum()[None])[0],
            meta=self.meta | {"units": "share"},
            probes=None,
        )

    def top(self, k: Integer = 10, kind: Literal["head", "mlp"] | None = None) -> "pd.DataFrame":
        """The heads and MLPs that carry most (``kind``: one of the two alone), summed over the sources.

        "skip" is the share of the total that goes past the heads of that block: with the block's heads it makes the
        whole. Shares of different blocks do not sum to it. q, k and v are there where ``composition`` is.

        Raises:
            ValueError: rows that were divided by their own totals, which do not add up; or another kind.

        """
        self.refuse_row_shares("top")
        k, total = integer(k, "top: k", 0), float(self.total.sum())
        return carriers(self.heads, self.mlps, self.skip, self.composition, total, kind).head(k)

    def last_heads(self) -> "pd.DataFrame":
        """Influence by the last head on its way, summed over the sources: who hands it to the prediction.

        Every route source → head → head → ... → prediction is counted once, under its last head, or as "straight"
        where it goes through MLPs and skip connections only. So, unlike those of ``top``, the rows sum to the total.

        Returns:
            A row per head and one for "straight", strongest first: kind, layer, head, influence, share.

        Raises:
            ValueError: a flow from a file of 0.1.0, which did not keep it; or rows that were divided by their own
                totals, which do not add up.

        """
        self.refuse_row_shares("last_heads")
        if self.last is None:
            msg = "this flow's file is of 0.1.0, which did not keep the last heads; run lens_scopes.flow again"
            raise ValueError(msg)
        return by_last_head(self.last, float(self.total.double().sum()))

    def circuit(self, share: float = 0.9) -> Circuit:
        """The smallest set of last heads that holds a share of the total, and what else cannot be spared on the way.

        Of the parts of ``last_heads`` (each head, and "straight": MLPs and skip connections alone) the fewest that make
        the share; and every other head or MLP that more goes through than the rest, 1 − share. How faithful that is,
        patching says: ``patching.measure(corrupted, clean, where=<all other heads>, together=True)``.

        Args:
            share: of the total, above 0 and at most 1.

        Returns:
            A Circuit: ``nodes``, ``edges`` (of a flow with edges), ``positions``, ``heads``, ``save(path)`` as JSON.

        Raises:
            ValueError: a share outside of that, a total of 0, or see ``last_heads``.

        """
        return circuit_of(self, share)

    def orders(self, K: Integer = 8) -> "pd.DataFrame":  # noqa: N803 - the contract's letter
        """Influence by how many heads are on its way, summed over the sources: whether short routes say anything.

        Runs on the live model: one forward pass, and one backward for each number of heads.

        Args:
            K: routes through K heads or more are counted together.

        Returns:
            A row per number of heads: heads ("0", "1", ..., "8 or more"), influence, share. They sum to the total.

        Raises:
            ValueError: a negative K.
            RuntimeError: the flow was loaded from a file, or its model is gone.

        """
        return self._ask("orders", self.sources, integer(K, "orders: K, a number of heads,", 0))

    def paths(self, k: Integer = 10, *, budget: Integer = 48, source: Integer | None = None) -> "pd.DataFrame":
        """The strongest routes source → head → head → ... → prediction that a search finds, and the rest.

        A route chooses at each block the skip connection (with that block's MLP) or one head. Each influence is exact,
        and all (H+1)^L routes sum to the total. The search goes backwards from the prediction, over chains of last
        heads, and looks into the strongest first; a route whose chain carries little because its parts cancel is
        missed. In a deep model single routes carry little: see ``last_heads`` and ``orders`` for what adds up.

        Args:
            k: how many to return.
            budget: how many chains are looked into, each of which completes one route; more misses less.
            source: the position of one source row; None: all rows of this flow together.

        Returns:
            A row per route, strongest first: path, influence, share, and a last row "rest", which is everything else,
            summed by itself: the rows add up to the total.

        Raises:
            ValueError: a budget that cannot complete k routes.
            RuntimeError: the flow was loaded from a file, or its model is gone.
            KeyError: a source that is no row of this flow.

        """
        k, budget = integer(k, "paths: k", 1), integer(budget, "paths: budget", 1)
        if k > budget:
            msg = f"each route found costs one of the budget, got k={k} with budget={budget}; write budget={k}"
            raise ValueError(msg)
        every = {"source": self.sources}
        rows = self.sources if source is None else (self.sources[labelled.index_of(every, "source", source)],)
        return self._ask("strongest", rows, k, budget)

    def _ask(self, what: str, sources: Sequence[int], *given: int) -> "pd.DataFrame":
        if self.units == "share":
            msg = "paths and orders give influence and shares themselves: ask the flow, not flow.share()"
            raise ValueError(msg)
        if "corrupted_token_ids" in self.meta:
            msg = (
                "paths and orders follow one linearisation, and a whole change has one at every point of its line; "
                "last_heads() splits the whole change, and flow(model, prompt, scope) has the routes at one prompt"
            )
            raise ValueError(msg)
        if self.replay is None:
            msg = (
                "paths and orders ask the live model, which a loaded flow does not have; run lens_scopes.flow again "
                "(last_heads needs no model)"
            )
            raise RuntimeError(msg)
        return self.replay(what, list(sources), *given)

    def refuse_row_shares(self, verb: str) -> None:
        """Refuse to sum over rows that were divided by their own totals.

        Raises ValueError.
        """
        if self.units == "share" and len(self.total) > 1:
            msg = (
                f"shares of several sources do not add up: write flow.{verb}() before flow.share(), or sel(source=...)"
            )
            raise ValueError(msg)

    def to_dataframe(self) -> "pd.DataFrame":
        """Long form: kind (head, last, mlp, skip, stream), source, layer or depth, head, pos, influence."""
        return long_form(self)

    def to_xarray(self) -> "xr.Dataset":
        """A Dataset of every part, and ``stderr`` of the totals where there is one; ``token`` lies along pos.

        The axes are source ("all" where they go together), layer, head, depth, pos, qkv, edge, query and key; edges of
        some heads have one axis edge_head ("layer.head") for them. Parts
        that this flow does not have are left out. ``attrs["meta"]`` is ``meta`` as JSON text, ``attrs["residual"]`` a
        number.

        Raises:
            ImportError: xarray is not installed.

        """
        return dataset(self)

    def save(self, path: str | Path) -> Path:
        """Write to one safetensors file with a JSON header, whole or not at all."""
        tensors = {name: t for name in _TENSORS if (t := getattr(self, name)) is not None}
        header = {"residual": self.residual, "tokens": self.tokens, "sources": self.sources, "meta": self.meta}
        return files.save(path, "Flow", tensors, header, self._of)

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
        wellformed.refuse_misfit(header, wellformed.FlowHeader)
        optional = ("skip", "last", "composition", "edges", "probes")
        parts: dict[str, Any] = {name: tensors.get(name) if name in optional else tensors[name] for name in _TENSORS}
        if parts["skip"] is None:  # 0.1.0 did not keep it
            parts["skip"] = tensors["total"][:, None] - tensors["heads"].sum(-1)
        tokens, sources, meta = tuple(header["tokens"]), tuple(header["sources"]), header["meta"]
        wellformed.refuse_flow(parts, tokens, sources, meta)
        return cls(**parts, residual=header["residual"], tokens=tokens, sources=sources, meta=meta)

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
        (layers, heads), scope = self.heads.shape[1:], scope_text(self.meta, "?")
        taken = f", {told}" if (told := taken_text(self.meta)) else ""
        return f"Flow({rows}, {layers} layers x {heads} heads; {scope}, residual {self.residual:.1e}{taken})"

    def show(self, view: str | None = None, **options: Any) -> "Shown":
        """A view ("last", "heads", "stream", "edges", "tokens", "explorer") and a static one; see ``show``."""
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
