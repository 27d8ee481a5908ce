"""The books of a flow: what passes through every head, MLP and position of each block, each entry from its own parts.

For a cotangent with L = vᵀy let g_a = ∂L/∂a; for a tangent d at the embedding let δa be what becomes of it at a. The
influence that passes through a is I(a) = ⟨g_a, δa⟩, and it is conserved at every cut of the network. Inside a head
I(z_h) splits into value edges A[q,k]⟨g_z[q], δv[k]⟩ and pattern edges δA[q,k]⟨g_z[q], v[k] − z[q]⟩; subtracting z[q]
changes no sum, since Σ_k δA[q,k] = 0, and makes the edge independent of where a value bias is stored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from einops import einsum, repeat
from jaxtyping import Float
from torch import Tensor

from lens_scopes.calculus.blocks import Extent, block_sites
from lens_scopes.sites import STREAM


@dataclass(eq=False)
class Ledger:
    """Collects a forward-mode pass block by block, against the gradients of the backward pass.

    Lanes are independent pairs of a cotangent (whose gradients are given) and a tangent. Nothing is derived from the
    laws that the entries must satisfy: ``violation`` holds them up against each other afterwards.
    """

    extent: Extent
    gradients: Mapping[str, Tensor]
    """By site, [lane, pos, ...]."""
    total: Float[Tensor, " lane"]
    """What every cut must carry: the score, computed from the gradient at the embedding alone."""
    mapped: Sequence[tuple[int, int]]
    """The heads (layer, head) whose edges are kept."""
    straight: Mapping[str, Tensor]
    """Gradients that come back past all later heads, at every z and at the first block's input; see ``Branches``."""
    heads: list[Tensor] = field(default_factory=list)
    last: list[Tensor] = field(default_factory=list)
    mlps: list[Tensor] = field(default_factory=list)
    skip: list[Tensor] = field(default_factory=list)
    stream: list[Tensor] = field(default_factory=list)
    composition: list[Tensor] = field(default_factory=list)
    edges: dict[tuple[int, int], Float[Tensor, "edge query key"]] = field(default_factory=dict)
    worst: float = 0.0
    """The largest violation of a law of the stream, heads and MLPs."""
    worst_inside: float = 0.0
    """The same for the laws inside heads."""
    _block: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _past_all: Tensor = field(default_factory=lambda: torch.zeros((), device="cpu"))
    """What goes past every head."""

    def visit(self, name: str, value: Tensor, tangent: Tensor) -> None:
        """Take one site's value and tangent; a block is booked when its last site has come."""
        kind, layer = name.rsplit("hook_", 1)[-1], len(self.mlps)
        if kind == "resid_post":
            self.stream.append(self._influence(name, tangent).sum(-1))
            return
        self._block[kind] = (value, tangent.reshape(self.gradients[name].shape) if name in self.gradients else tangent)
        if name in self.straight and kind == "resid_pre":
            self._past_all = (self.straight[name] * tangent).double().sum((1, 2))
        if name == block_sites(self.extent.host, layer)[-1]:
            self._book(layer)
            self._block = {}

    def _influence(self, name: str, tangent: Tensor) -> Tensor:
        gradient = self.gradients[name]
        return (gradient * tangent.reshape(gradient.shape)).double()

    def _book(self, layer: int) -> None:
        names = {name.rsplit("hook_", 1)[-1]: name for name in block_sites(self.extent.host, layer)}
        influence = {kind: self._influence(names[kind], self._block[kind][1]) for kind in names if kind != "pattern"}
        heads = influence["z"].sum((1, 3))
        self.heads.append(heads)
        self.last.append((self.straight[names["z"]] * self._block["z"][1]).double().sum((1, 3)))
        self.mlps.append(influence["mlp_out"].sum((1, 2)) if "mlp_out" in names else torch.zeros_like(self.total))
        self.stream.append(influence["resid_pre"].sum(-1))
        # What goes past the branches of the block: the old tangent against the gradient after it.
        after = self.gradients[STREAM["resid_post"].format(layer)]
        before = self._block["resid_pre"][1]
        if "resid_mid" not in names:
            self.skip.append((after * before).double().sum((1, 2)) + self.mlps[-1])
        else:
            self.skip.append((self.gradients[names["resid_mid"]] * before).double().sum((1, 2)))
            middle = self._block["resid_mid"][1].reshape(after.shape)
            if self.extent.end == names["resid_mid"]:
                self._law((self.gradients[names["resid_mid"]] * middle).double().sum((1, 2)))
            elif self.extent.end != STREAM["attn_out"].format(layer):  # before this cut
                self._law((after * middle).double().sum((1, 2)) + self.mlps[-1])
        self._law(self.skip[-1] + heads.sum(1))
        self._law(self.stream[-1].sum(-1))
        self._inside(layer, heads, influence, names)

    def _inside(self, layer: int, heads: Tensor, influence: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        """Value and pattern edges of one layer's heads, and what they compose with."""
        a, da = self._block["pattern"]
        (v, dv), (z, _) = self._block["v"], self._block["z"]
        group = z.shape[2] // v.shape[2]
        v, dv = (repeat(x, "lane k kv d -> lane k (kv group) d", group=group) for x in (v, dv))
        g = self.gradients[names["z"]]
        value = a * einsum(g, dv, "lane q h d, lane k h d -> lane h q k")
        reach = (
            einsum(g, v, "lane q h d, lane k h d -> lane h q k")
            - einsum(g, z, "lane q h d, lane q h d -> lane h q")[..., None]
        )
        pattern = da * reach
        by_value, by_pattern = value.double().sum((2, 3)), pattern.double().sum((2, 3))
        by_query = influence["q"].sum((1, 3))
        by_key = by_pattern - by_query
        self.composition.append(torch.stack([by_query, by_key, by_value], -1))
        for at, head in self.mapped:
            if at == layer:
                self.edges[at, head] = torch.stack([value[:, head], pattern[:, head]]).sum(1)

        def grouped(per_query_head: Tensor) -> Tensor:
            return per_query_head.reshape(*per_query_head.shape[:-1], -1, group).sum(-1)

        self._law_inside(by_value + by_pattern - heads)
        self._law_inside(grouped(by_key) - influence["k"].sum((1, 3)))
        self._law_inside(grouped(by_value) - influence["v"].sum((1, 3)))

    def _law(self, carried: Float[Tensor, " lane"]) -> None:
        self.worst = max(self.worst, float((carried - self.total).abs().max()))

    def _law_inside(self, difference: Float[Tensor, "lane head"]) -> None:
        self.worst_inside = max(self.worst_inside, float(difference.abs().max()))

    def close(self) -> None:
        """The last cut, the stream after all blocks; and the one by which head comes last."""
        self._law(self.stream[-1].sum(-1))
        self._law(self._past_all + torch.stack(self.last, 1).sum((1, 2)))


@dataclass(eq=False)
class Books:
    """Closed ledgers added up over cotangents, source by source."""

    sources: int
    parts: dict[str, Tensor] = field(default_factory=dict)
    """heads, last, mlps, skip, stream and composition, each [source, ...]."""
    edges: Float[Tensor, "edge mapped query key"] | None = None
    """Of the heads asked for, in their order, summed over the sources; None where none is."""
    largest: float = 0.0
    """The largest total of a lane: violations are relative to it, since a lane whose own total is zero has no scale."""
    _worst: float = 0.0
    _worst_inside: float = 0.0

    @property
    def worst(self) -> float:
        """The largest violation of a law of the stream, heads and MLPs, in units of the largest total."""
        return self._worst / max(self.largest, 1e-300)

    @property
    def worst_inside(self) -> float:
        """The same for the laws inside heads."""
        return self._worst_inside / max(self.largest, 1e-300)

    def add(self, ledger: Ledger, sources: Sequence[int]) -> None:
        """Close a ledger whose lanes are [row, source] with these sources, and add it."""
        ledger.close()
        self.largest = max(self.largest, float(ledger.total.abs().max()))
        self._worst = max(self._worst, ledger.worst)
        self._worst_inside = max(self._worst_inside, ledger.worst_inside)
        for name in ("heads", "last", "mlps", "skip", "stream", "composition"):
            part = torch.stack(getattr(ledger, name), 1)
            by_source = part.reshape(-1, len(sources), *part.shape[1:]).sum(0).cpu()
            if name not in self.parts:
                self.parts[name] = by_source.new_zeros(self.sources, *by_source.shape[1:])
            self.parts[name][list(sources)] += by_source
        if ledger.mapped:
            edges = torch.stack([ledger.edges[head] for head in ledger.mapped], 1).cpu()
            self.edges = edges if self.edges is None else self.edges + edges
