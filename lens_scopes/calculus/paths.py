"""Routes through the heads: a beam search over paths whose influence is exact, not a product of edge shares.

A path chooses at each block the skip connection (with that block's MLP) or one head. Its influence is ⟨g, δ⟩ where only
the chosen branches' tangents go on; a partial path's influence is the exact sum over all of its continuations, so the
choices at one block are compared without running any of them to the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_scopes.calculus.directions import directions, lengths
from lens_scopes.calculus.finite import refuse_nonfinite
from lens_scopes.calculus.ledger import is_parallel
from lens_scopes.calculus.memory import lanes_at_once
from lens_scopes.calculus.pullback import Rows, pull_back
from lens_scopes.calculus.pushforward import push_forward
from lens_scopes.calculus.trace import Trace
from lens_scopes.host import Host
from lens_scopes.host.model import Hook
from lens_scopes.scopes.state import Cotangents
from lens_scopes.sites import EMBED, FINAL, HEADS, STREAM

if TYPE_CHECKING:
    import pandas as pd

SKIP = -1


@dataclass(frozen=True, eq=False)
class _Beam:
    """Partial paths: the choices made, the tangents they carry [path, row, pos, d], their influence [path]."""

    choices: Int[Tensor, "path layer"]
    tangents: Float[Tensor, "path row pos d_model"]
    influence: Float[Tensor, " path"]


def search(run: Trace, made: Cotangents, sources: Sequence[int] | None, k: int, beam: int) -> "pd.DataFrame":
    """The strongest routes of one prompt; see ``Flow.paths``.

    Args:
        run: its forward pass, with ``path_sites`` open.
        made: the cotangents.
        sources: the positions that routes start from, together; None is all.
        k: how many paths to return.
        beam: how many partial paths to keep.

    """
    parts = [found for _, found in pull_back(run, Rows.of([[made]]), FINAL)]
    gradients = {name: torch.cat([part[name] for part in parts])[:, 0] for name in run.sites}
    starts = directions(made, slice(None), gradients[EMBED], sources, lengths(run, made)).sum(1)
    return strongest_paths(run, gradients, starts.to(run.y.dtype), k, beam)


def path_sites(host: Host) -> list[str]:
    """The sites whose gradients a search needs."""
    needed = [HEADS["z"], STREAM["resid_post"], *([STREAM["mlp_out"]] if host.has_mlps else [])]
    needed += [] if is_parallel(host, 0) else [STREAM["resid_mid"]]
    return [EMBED, *(kind.format(layer) for layer in range(host.n_layers) for kind in needed)]


def strongest_paths(
    run: Trace,
    gradients: dict[str, Float[Tensor, "row pos ..."]],
    directions: Float[Tensor, "row pos d_model"],
    k: int,
    beam: int,
) -> "pd.DataFrame":
    """Beam search; see ``Flow.paths``.

    Args:
        run: one prompt's forward pass, for the host, tokens and frozen parts.
        gradients: of every cotangent (row) at resid_mid, resid_post, mlp_out and z of every block.
        directions: the tangents at the embedding; row r goes with gradient row r, and rows are summed.
        k: how many paths to return.
        beam: how many partial paths to keep.

    """
    import pandas as pd

    total = float((gradients[EMBED].double() * directions.double()).sum())
    first = STREAM["resid_pre"].format(0)
    start = _tangents_at(run, EMBED, directions[None], first)
    now = _Beam(
        start.new_empty((1, 0), dtype=torch.long, device="cpu"),
        start,
        start.new_full((1,), total, dtype=torch.float64, device="cpu"),
    )
    for layer in range(run.host.n_layers):
        now = _extend(run, gradients, now, layer, beam)
    refuse_nonfinite(run.host, run.tokens, {EMBED: now.influence})
    order = now.influence.abs().argsort(descending=True)[:k].tolist()
    rows = [
        {
            "path": _text(now.choices[i].tolist()),
            "influence": float(now.influence[i]),
            "share": float(now.influence[i]) / total,
        }
        for i in order
    ]
    rest = total - sum(row["influence"] for row in rows)
    return pd.DataFrame([*rows, {"path": "rest", "influence": rest, "share": rest / total}])


def _extend(run: Trace, gradients: dict[str, Tensor], now: _Beam, layer: int, beam: int) -> _Beam:
    """Every partial path with every choice at one block; the strongest ``beam`` of them go on."""
    z, before = HEADS["z"].format(layer), STREAM["resid_pre"].format(layer)
    moved = _tangents_at(run, before, now.tangents, z)
    by_head = torch.einsum("rqhd,prqhd->ph", gradients[z].double(), moved.double())
    if is_parallel(run.host, layer):
        skip = torch.einsum(
            "rtd,prtd->p", gradients[STREAM["resid_post"].format(layer)].double(), now.tangents.double()
        )
        if run.host.has_mlps:
            mlp = STREAM["mlp_out"].format(layer)
            through_mlp = _tangents_at(run, before, now.tangents, mlp)
            skip = skip + torch.einsum("rtd,prtd->p", gradients[mlp].double(), through_mlp.double())
    else:
        middle = gradients[STREAM["resid_mid"].format(layer)]
        skip = torch.einsum("rtd,prtd->p", middle.double(), now.tangents.double())
    influence = torch.cat([skip[:, None], by_head], 1)  # choice 0 is the skip, choice h + 1 head h
    kept = influence.abs().flatten().argsort(descending=True)[:beam]
    path, choice = kept // influence.shape[1], kept % influence.shape[1] - 1
    tangents = _through(run, now.tangents[path], layer, choice)
    choices = torch.cat([now.choices[path.cpu()], choice.cpu()[:, None]], 1)
    return _Beam(choices, tangents, influence.flatten()[kept].cpu())


def _through(run: Trace, tangents: Tensor, layer: int, choice: Int[Tensor, " path"]) -> Tensor:
    """The tangents after one block in which only the chosen branches go on."""
    after = STREAM["resid_post"].format(layer)
    rows = tangents.shape[1]
    return _tangents_at(run, STREAM["resid_pre"].format(layer), tangents, after, choice.repeat_interleave(rows), layer)


def _tangents_at(
    run: Trace,
    source: str,
    tangents: Float[Tensor, "path row pos d"],
    site: str,
    choice: Int[Tensor, " lane"] | None = None,
    layer: int = 0,
) -> Tensor:
    """What becomes of the tangents at one later site, [path, row, pos, ...], in portions of lanes."""
    flat = tangents.flatten(0, 1)
    found: list[Tensor] = []
    most = lanes_at_once(run)
    for begin in range(0, len(flat), most):
        lanes = slice(begin, begin + most)
        masks = [] if choice is None else _masks(run, layer, choice[lanes])
        pushed = push_forward(
            run.host, run.tokens[0], source, flat[lanes], position=run.positions[0], sites=[site], until=site,
            hooks=[*run.held, *masks],
        )  # fmt: skip
        found.append(pushed.visitor.at[site])
    return torch.cat(found).unflatten(0, tangents.shape[:2])


def _masks(run: Trace, layer: int, choice: Int[Tensor, " lane"]) -> list[Hook]:
    """Hooks that let only the chosen branch's tangent through a block; every value stays what it was.

    Where a head is chosen, the skip connection's tangent is taken away from what a branch adds to the stream.
    """
    host = run.host
    box: dict[str, Tensor] = {}
    is_head = (choice != SKIP).to(run.y.dtype)[:, None, None]

    def keep(activation: Tensor, hook: object) -> Tensor:  # noqa: ARG001
        box["before"] = activation
        return activation

    def one_head(activation: Tensor, hook: object) -> Tensor:  # noqa: ARG001
        chosen = torch.arange(activation.shape[2], device=activation.device) == choice[:, None]
        return activation.detach() + chosen[:, None, :, None] * (activation - activation.detach())

    def without_skip(activation: Tensor, hook: object) -> Tensor:  # noqa: ARG001
        return activation + is_head * (box["before"].detach() - box["before"])

    def skip_or_nothing(activation: Tensor, hook: object) -> Tensor:
        moved = (1 - is_head) * (activation - activation.detach())
        return without_skip(activation.detach() + moved, hook)

    hooks: list[Hook] = [(STREAM["resid_pre"].format(layer), keep), (HEADS["z"].format(layer), one_head)]
    if is_parallel(host, layer) and host.has_mlps:
        return [*hooks, (STREAM["mlp_out"].format(layer), skip_or_nothing)]
    return [*hooks, (STREAM["attn_out"].format(layer), without_skip)]


def _text(choices: Sequence[int]) -> str:
    heads = [f"{layer}.{head}" for layer, head in enumerate(choices) if head != SKIP]
    return " → ".join(["source", *heads, "prediction"])
