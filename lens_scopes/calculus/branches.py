"""Cotangents that come back through chosen branches only, one block at a time, on the graph of one forward pass.

A block hands the stream on in two ways: past its heads (the skip connection, with the MLP) and through each head. A
cotangent g after the block comes back either way, g_past = pastᵀg and g_h = (through head h)ᵀg, and ⟨g_past, δ⟩ +
Σ_h⟨g_h, δ⟩ = ⟨Jᵀg, δ⟩ for every tangent δ. What passes through a head is read off at its z, so that one backward pass
through half a block serves all choices at once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lens_scopes.calculus.blocks import Extent, form_of
from lens_scopes.calculus.memory import block_lanes_at_once
from lens_scopes.calculus.pullback import Rows, vjp
from lens_scopes.calculus.trace import Trace
from lens_scopes.scopes.state import Cotangents
from lens_scopes.sites import EMBED, HEADS, STREAM


@dataclass(frozen=True, eq=False)
class Branches:
    """The blocks of a trace whose ``extent.branches`` are open."""

    run: Trace
    extent: Extent

    def end(self, made: Cotangents) -> Float[Tensor, "row pos d_model"]:
        """Cotangents pulled back to where the last block's part ends."""
        end = self.run.output(made.site)
        return self._back(end, Rows.of([[made]]).at(slice(None), end), [self.extent.output])[self.extent.output][:, 0]

    def at_embedding(self, end: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos d_model"]:
        """Cotangents at the end of the last block's part, pulled back all the way by every route."""
        output = self.run.sites[self.extent.output]
        (found,) = self._in_portions(end, lambda part: (self._back(output, part, [EMBED])[EMBED],))
        return found

    def split(
        self, layer: int, after: Float[Tensor, "*lane pos d_model"]
    ) -> tuple[Float[Tensor, "*lane pos d_model"], Float[Tensor, "*lane pos head d_head"]]:
        """A cotangent at the output of a block as what comes back past its heads, and what arrives at each z."""
        run, form = self.run, form_of(self.run.host, layer)
        names = {kind: pattern.format(layer) for kind, pattern in (STREAM | HEADS).items()}
        last = layer == self.extent.layers - 1
        output = run.sites[self.extent.output if last else STREAM["resid_pre"].format(layer + 1)]

        def back(part: Tensor) -> tuple[Tensor, Tensor]:
            if form == "sequential":
                found = self._back(output, part, [names["resid_mid"], names["z"]])
                return found[names["resid_mid"]], found[names["z"]]
            if form == "attention only":
                found = self._back(output, part, [names["resid_post"], names["z"]])
                return found[names["resid_post"]], found[names["z"]]
            found = self._back(output, part, [names["resid_post"], names["mlp_out"], names["z"]])
            mlp = self._back(run.sites[names["mlp_out"]], found[names["mlp_out"]], [names["resid_pre"]])
            return found[names["resid_post"]] + mlp[names["resid_pre"]], found[names["z"]]

        past, heads = self._in_portions(after, back)
        return past, heads

    def into(self, layer: int, heads: Float[Tensor, "*lane pos head d_head"]) -> Float[Tensor, "*lane pos d_model"]:
        """Cotangents at z, pulled back through the attention of their block to its input."""
        z, before = HEADS["z"].format(layer), STREAM["resid_pre"].format(layer)
        (found,) = self._in_portions(
            heads, lambda part: (self._back(self.run.sites[z], part, [before])[before],), own=3
        )
        return found

    def straight(self, end: Float[Tensor, "row pos d_model"]) -> dict[str, Tensor]:
        """What comes back past every later head: at each z [row, pos, head, d_head], and at the first block's input.

        ⟨that at z_h, δz_h⟩ is the influence of everything that goes through head h last.
        """
        found, g = {}, end
        for layer in reversed(range(self.extent.layers)):
            g, found[HEADS["z"].format(layer)] = self.split(layer, g)
        return found | {STREAM["resid_pre"].format(0): g}

    def _back(self, output: Tensor, part: Tensor, sites: list[str]) -> dict[str, Tensor]:
        """What flow's own backward pass has not refused may be zero here: nothing comes back through that branch."""
        return self.extent.up_to_end(vjp(self.run, output, part, sites)[0])

    def _in_portions(
        self, lanes: Tensor, back: Callable[[Tensor], tuple[Tensor, ...]], own: int = 2
    ) -> tuple[Tensor, ...]:
        """Pull lanes back so many at a time; ``own`` counts the last axes that are not lanes.

        Where the trace has several prompts, the last axis of the lanes is theirs.
        """
        flat = lanes.reshape(-1, len(self.run.tokens), *lanes.shape[-own:])
        parts = [back(part) for part in flat.split(block_lanes_at_once(self.run))]
        whole = [torch.cat(part) for part in zip(*parts, strict=True)]
        return tuple(part.reshape(*lanes.shape[:-own], *part.shape[2:]) for part in whole)
