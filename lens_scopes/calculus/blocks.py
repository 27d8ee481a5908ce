"""The blocks between the embedding and the place that is explained, and what a ledger reads in each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lens_scopes.host import Host
from lens_scopes.sites import EMBED, FINAL, HEADS, STREAM, depth, layer_of

PATTERN = "blocks.{}.attn.hook_pattern"
Form = Literal["sequential", "parallel", "attention only"]
_AFTER_HEADS: dict[Form, tuple[str, ...]] = {
    "sequential": ("resid_mid", "mlp_out"),
    "parallel": ("mlp_out",),
    "attention only": (),
}


def form_of(host: Host, layer: int) -> Form:
    """How a block is built: in a parallel one attention and MLP read the same stream, so that there is no resid_mid."""
    if not host.has_mlps:
        return "attention only"
    return "sequential" if STREAM["resid_mid"].format(layer) in host.available else "parallel"


def block_sites(host: Host, layer: int) -> list[str]:
    """What the ledger reads in one block, in the order of the forward pass."""
    kinds = ["resid_pre", "q", "k", "v", "pattern", "z", *_AFTER_HEADS[form_of(host, layer)]]
    patterns = STREAM | HEADS | {"pattern": PATTERN}
    return [patterns[kind].format(layer) for kind in kinds]


@dataclass(frozen=True, eq=False)
class Extent:
    """How far a ledger goes: through whole blocks, or into the last of them as far as a site inside."""

    host: Host
    end: str
    """Where the cotangents live: "final" or a site of the residual stream."""
    layers: int
    """How many blocks are entered."""
    output: str
    """The site at which the last block's part ends: its output, or the end itself where that lies inside the block."""

    @classmethod
    def of(cls, host: Host, end: str) -> "Extent":
        """As far as a scope's site.

        Raises:
            ValueError: blocks of a form that has no exact split, or a site before the first block, or one that is not
                of the residual stream.

        """
        layer, kind = layer_of(end), end.rsplit("hook_", 1)[-1]
        if end == FINAL:
            layers, output = host.n_layers, STREAM["resid_post"].format(host.n_layers - 1)
        elif end == EMBED or (layer == 0 and kind == "resid_pre"):
            msg = f"flow splits what happens between the embedding and {end}: there is no block; write a later site"
            raise ValueError(msg)
        elif layer is None or end not in (STREAM[name].format(layer) for name in STREAM):
            kinds = ", ".join(STREAM)
            msg = f"flow goes to the end of the model or to a site of the residual stream ({kinds}), got {end!r}"
            raise ValueError(msg)
        else:
            host.sites([end])  # refuses what this model does not have
            layers = layer if kind == "resid_pre" else layer + 1
            whole = kind in ("resid_pre", "resid_post")
            output = STREAM["resid_post"].format(layers - 1) if whole else end
        found = cls(host, end, layers, output)
        missing = [name for name in found.visited if name not in host.available]
        if missing:
            msg = f"{host.name} has no {missing[0]!r}: blocks of this form have no exact split over heads and MLP"
            raise ValueError(msg)
        return found

    @property
    def is_inner(self) -> bool:
        """Whether the model goes on after the end."""
        return self.end != FINAL

    @property
    def visited(self) -> list[str]:
        """What a ledger sees of a forward-mode pass, in order."""
        inside = self.output == self.end and not self.end.endswith("hook_resid_post")
        every = [name for layer in range(self.layers) for name in block_sites(self.host, layer)]
        return every if inside else [*every, self.output]

    @property
    def opened(self) -> list[str]:
        """What must be open in the trace of a ledger."""
        gradients = [name for name in self.visited if not name.endswith("hook_pattern")]
        return list(dict.fromkeys([EMBED, *gradients, *self._posts, *self._inner]))

    @property
    def branches(self) -> list[str]:
        """What must be open in the trace of the branches: see ``calculus.branches``."""
        names = [EMBED]
        for layer in range(self.layers):
            kinds = ["resid_pre", "z", "resid_post"]
            kinds += {"sequential": ["resid_mid"], "parallel": ["mlp_out"], "attention only": []}[
                form_of(self.host, layer)
            ]
            names += [(STREAM | HEADS)[kind].format(layer) for kind in kinds]
        return list(dict.fromkeys([*names, *self._inner]))

    def up_to_end(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gradients by site, zero after the end: hosts that read two sites at one tensor give one both have."""
        last = depth(self.end, self.host.n_layers)
        return {
            name: torch.zeros_like(found) if depth(name, self.host.n_layers) > last else found
            for name, found in gradients.items()
        }

    @property
    def _posts(self) -> list[str]:
        return [STREAM["resid_post"].format(layer) for layer in range(self.layers)]

    @property
    def _inner(self) -> list[str]:
        return [self.end] if self.is_inner else []
