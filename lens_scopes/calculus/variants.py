"""Many runs that differ from one kept run by an edit each: each is a row, and begins at the first block it changes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from lens_scopes.calculus.memory import prompts_at_once
from lens_scopes.host import Host, is_causal, run_to_last_residual, starting_at, starts_at
from lens_scopes.sites import FINAL, STREAM, layer_of

#: Changes one row of an activation, [pos, ...], in place.
RowEdit = Callable[[Tensor], None]
#: The edits of one run, each at its site, in order.
Variant = Sequence[tuple[str, RowEdit]]

# What calling a block costs beside its rows, and what comes behind the blocks, in rows and blocks: Gemma 3 270M.
_CALL, _END = 0.5, 0.3


@dataclass(frozen=True, eq=False)
class Kept:
    """One prompt that was run, and its stream: what variants start from."""

    host: Host
    tokens: Int[Tensor, " pos"]
    stream: Mapping[str, Float[Tensor, "1 pos d_model"]]
    """At ``hook_resid_pre`` of the blocks that are edited; a run whose block is missing here begins at the tokens."""

    def cut(self, length: int) -> "Kept":
        """The same for the first tokens alone, where what comes after them changes nothing; else all of it."""
        if length >= len(self.tokens) or not is_causal(self.host):
            return self
        return Kept(self.host, self.tokens[:length], {name: at[:, :length] for name, at in self.stream.items()})

    def begin(self, variant: Variant, output: str = FINAL) -> int:
        """The first block that a variant can begin at, and still reach the output."""
        sites = [*(site for site, _ in variant), *({output} - {FINAL})]
        layer = min(layer_of(site) or 0 for site in sites)
        return layer if STREAM["resid_pre"].format(layer) in self.stream and starts_at(self.host, layer) else 0

    def run(
        self, variants: Sequence[Variant], output: str = FINAL
    ) -> Iterator[tuple[list[int], Float[Tensor, "row pos d_model"], Float[Tensor, "row pos d_model"] | None]]:
        """Run every variant, in batches that make the whole cheapest.

        Args:
            variants: the edits of each.
            output: an inner site that is read as well.

        Yields:
            Which variants, their last residual streams, and what they have at the inner site (None for "final").

        """
        begins = [self.begin(variant, output) for variant in variants]
        order = sorted(range(len(variants)), key=begins.__getitem__)
        most = prompts_at_once(self.host, len(self.tokens))
        groups = batches([begins[n] for n in order], self.host.n_layers, most)
        for group in tqdm(groups, desc="runs", leave=False, disable=len(groups) < 8):
            which = order[group]
            layer = begins[which[0]]
            by_site: dict[str, list[tuple[int, RowEdit]]] = {}
            for row, n in enumerate(which):
                for site, edit in variants[n]:
                    by_site.setdefault(site, []).append((row, edit))
            edits = {site: _in_rows(some) for site, some in by_site.items()}
            inner = () if output == FINAL else (output,)
            with starting_at(self.host, layer, self.stream.get(STREAM["resid_pre"].format(layer))), torch.no_grad():
                rows = self.tokens.expand(len(which), -1)
                found = run_to_last_residual(self.host, rows, inner, grad=False, edits=edits)
            yield which, found.last.detach(), found.sites[output].detach() if inner else None


def _in_rows(edits: Sequence[tuple[int, RowEdit]]) -> Callable[[Tensor], None]:
    def change(activation: Tensor) -> None:
        for row, edit in edits:
            edit(activation[row])

    return change


def batches(begins: Sequence[int], n_layers: int, most: int) -> list[slice]:
    """Runs in the order of the block that they begin at, in batches that each begin where their first one does.

    The cheapest: few batches pay few calls, many let late runs begin late. By dynamic programming over the ends of
    batches, best[j] = min over i of best[i] + (n_layers − begins[i] + end)(call + j − i).

    Args:
        begins: the block of each run, rising.
        n_layers: how many blocks there are.
        most: the longest batch.

    """
    left = n_layers - np.asarray(begins, dtype=float) + _END
    best, came_from = np.zeros(len(begins) + 1), np.zeros(len(begins) + 1, dtype=int)
    for end in range(1, len(begins) + 1):
        start = np.arange(max(0, end - most), end)
        cost = best[start] + left[start] * (_CALL + end - start)
        came_from[end] = start[cost.argmin()]
        best[end] = cost.min()
    found, end = [], len(begins)
    while end:
        found.append(slice(int(came_from[end]), end))
        end = int(came_from[end])
    return found[::-1]
