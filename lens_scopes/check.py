"""Finite differences on the live model: an opinion on scores that shares no derivative with how they were computed."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_scopes.calculus.pullback import Rows, pull_back
from lens_scopes.calculus.trace import trace
from lens_scopes.host import Host, run_to_last_residual
from lens_scopes.host.readout import final_norm
from lens_scopes.results.flow import Flow
from lens_scopes.results.scores import Scores
from lens_scopes.scopes.protocol import Scope, cotangents_of, scope_from, site_of
from lens_scopes.scopes.state import Cotangents
from lens_scopes.score import score
from lens_scopes.sites import EMBED, FINAL, HEADS

# Steps relative to the length of the activation, each a quarter of the one before: large ones suffer from curvature,
# small ones from rounding; where neighbours agree best the two are balanced.
_STEPS = tuple(0.08 / 4**i for i in range(5))


def check_scores(scores: Scores, model: Any, *, scope: Scope | None = None, places: int = 4) -> dict[str, Any]:
    """Perturb the largest places on the live model and compare what happens with what the scores say.

    At each place (site, position) the activation is moved by ±h along the direction u that the pulled-back cotangents
    g_i say is the strongest, and along a random one; the change δy of the final state, measured, gives Σ w_i⟨v_i, δy⟩²,
    predicted as Σ w_i⟨g_i, u⟩². Nothing of the backward pass enters the measurement.

    Args:
        scores: what ``score`` returned, whole or loaded from a file.
        model: the model that they came from.
        scope: the scope, where ``meta`` does not determine it (a function, a Metric, a Direction).
        places: how many places to perturb, the largest first.

    Returns:
        "places": a list of dicts with site, pos, head, direction, predicted, measured, error (relative to the score
        there); "max_error": the largest of those errors, NaN where all scores are 0 and nothing can be compared;
        "stored_error": the largest difference between stored and recomputed
        scores at the places, relative to the largest score (None where the scores were selected, summed or joined).

    Raises:
        ValueError: a difference of two results, or a scope that cannot be remade and is not given.

    """
    if "difference" in scores.meta:
        msg = "a difference cannot be checked by itself: check both of its sides"
        raise ValueError(msg)
    host = Host(model)
    scope = scope if scope is not None else scope_from(scores.meta["scope"])
    tokens = torch.tensor(scores.meta["token_ids"], device=host.device)[None]
    position = scores.meta.get("selected", {}).get("target_pos", scores.meta["positions"][0])
    chosen = _largest(scores, places)
    names = tuple(dict.fromkeys(place["site"] for place in chosen))
    inner = site_of(scope)
    run = trace(host, tokens, [*names, *({inner} - {FINAL})], [position], scores.meta.get("freeze", ()))
    made = cotangents_of(scope, run.state(0, 0))
    rows = Rows.of([[made]])
    parts = [{name: found[name][:, 0] for name in names} for _, found in pull_back(run, rows, made.site)]
    gradients = {name: torch.cat([part[name] for part in parts]) for name in names}
    activations = {name: run.sites[name][0].detach() for name in names}
    del run
    report, stored = [], []
    for place in chosen:
        at = (place["pos"], place["head"]) if "head" in place else (place["pos"],)
        g = gradients[place["site"]][(slice(None), *at)].double()
        if place["stored"] is not None and scores.meta.get("along") != "tensor":
            stored.append(abs(place.pop("stored") - _score(g, made, scores, activations[place["site"]][at])))
        generator = torch.Generator().manual_seed(0)
        directions = {
            "strongest": torch.linalg.svd(_weighted(g, made), full_matrices=False).Vh[0],
            "random": torch.randn(g.shape[1], generator=generator, dtype=torch.float64).to(g.device),
        }
        for kind, u in directions.items():
            u = u / u.norm()
            length = activations[place["site"]][at].double().norm()
            change = _change(host, tokens, position, made.site, place["site"], at, u, length)
            predicted = float(_weighted(g, made).matmul(u).norm())
            measured = float(_weighted(change[None] @ made.vectors.double().T, made, columns=True).norm())
            # A random direction may hardly be felt: what is wrong there is wrong relative to the score.
            scale = max(float(_weighted(g, made).norm()), predicted, measured, 1e-30)
            error = abs(predicted - measured) / scale
            clean = {key: value for key, value in place.items() if key != "stored"}
            report.append({**clean, "direction": kind, "predicted": predicted, "measured": measured, "error": error})
    largest = float(scores.values.abs().max()) or 1.0
    return {
        "places": report,
        "max_error": max(entry["error"] for entry in report) if scores.values.any() else float("nan"),
        "stored_error": max(stored) / largest if stored else None,
    }


def check_flow(flow: Flow, model: Any, *, scope: Scope | None = None, heads: int = 3) -> dict[str, Any]:
    """Hold a flow against the live model by two ways that it did not take.

    Args:
        flow: what ``flow`` returned.
        model: the model that it came from.
        scope: the scope, where ``meta`` does not determine it.
        heads: how many of the strongest heads to check.

    Returns:
        "total_error": the difference between the flow's totals and scores at the embedding, relative; "scores": those
        scores against finite differences (see ``check_scores``); "heads": for the strongest heads, the share from the
        flow and from a backward pass masked to that head alone; "max_error": the largest relative difference of those.

    """
    scope = scope if scope is not None else scope_from(flow.meta["scope"])
    at, freeze = flow.position, flow.meta["freeze"]
    scores = score(model, flow.meta["token_ids"], scope, position=at, sites="embed", freeze=freeze)
    total = scores.values[0].sum() if flow.meta["together"] else scores.values[0][list(flow.sources)].sum()
    frame = flow.top(10**6)
    chosen = frame[frame.kind == "head"].head(heads)
    found = []
    for layer, head, influence in zip(chosen.layer, chosen["head"], chosen.influence, strict=True):
        alone = _masked_backward(Host(model), flow, scope, int(layer), int(head))
        found.append({"layer": int(layer), "head": int(head), "flow": influence, "masked_backward": alone})
    scale = float(flow.total.abs().max()) or 1.0
    return {
        "total_error": abs(float(flow.total.sum() - total)) / scale,
        "scores": check_scores(scores, model, scope=scope),
        "heads": found,
        "max_error": max(abs(row["flow"] - row["masked_backward"]) / scale for row in found),
    }


def _masked_backward(host: Host, flow: Flow, scope: Scope, layer: int, head: int) -> float:
    """Σ_t ⟨the part of g_t that comes back through one head, d_t⟩: no forward-mode pass in it."""
    z = HEADS["z"].format(layer)
    tokens = torch.tensor(flow.meta["token_ids"], device=host.device)[None]
    run = trace(host, tokens, [EMBED, z], [flow.position], flow.meta["freeze"])
    made = cotangents_of(scope, run.state(0, 0))
    weights = torch.ones(len(made.vectors)) if made.weights is None else made.weights
    parts = [found for _, found in pull_back(run, Rows.of([[made]]), FINAL)]
    g, at_z = (torch.cat([part[name] for part in parts])[:, 0] for name in (EMBED, z))
    squares = (g.double().square().sum(-1) * weights.double().to(g.device)[:, None]).sum(0)
    length = torch.ones_like(squares) if made.squared else squares.sqrt().clamp(min=1e-300)
    kept = torch.zeros_like(squares)
    kept[list(range(len(squares)) if flow.meta["together"] else flow.sources)] = 1
    total = 0.0
    for row, cotangent in enumerate(at_z):
        mask = torch.zeros_like(cotangent)
        mask[:, head] = cotangent[:, head]
        (back,) = torch.autograd.grad(run.sites[z], run.sites[EMBED], mask[None], retain_graph=True)
        through = (back[0].double() * g[row].double()).sum(-1) * float(weights[row])
        total += float((through / length * kept).sum())
    return total


def _largest(scores: Scores, places: int) -> list[dict[str, Any]]:
    """The places with the largest scores at the first position explained, as site, pos(, head) and stored value."""
    values = scores.values
    whole = not any(key in scores.meta for key in ("summed", "aggregated"))
    if "target_pos" in scores.dims:
        values = values[0]
    selected = scores.meta.get("selected", {})
    dims = [dim for dim in scores.dims if dim != "target_pos"]
    found = []
    for flat in values.abs().flatten().argsort(descending=True)[:places].tolist():
        index = [int(i) for i in torch.unravel_index(torch.tensor(flat), values.shape)]
        place = dict(selected) | {dim: scores.coords[dim][i] for dim, i in zip(dims, index, strict=True)}
        place = {key: place[key] for key in ("site", "pos", "head") if key in place}
        place.setdefault("site", "hook_embed")
        place.setdefault("pos", 0)
        found.append(place | {"stored": float(values[tuple(index)]) if whole else None})
    return found


def _weighted(rows: Float[Tensor, "a b"], made: Cotangents, *, columns: bool = False) -> Float[Tensor, "a b"]:
    """Rows (or columns) times the square roots of the cotangents' weights."""
    root = made.root_weights().to(rows)
    return rows * (root if columns else root[:, None])


def _score(g: Float[Tensor, "k d"], made: Cotangents, scores: Scores, activation: Tensor) -> float:
    """The stored quantity, recomputed in float64 (no value for a direction that was given as a tensor)."""
    rows = _weighted(g, made)
    if scores.meta.get("along") == "activation":
        rows = rows @ activation.double()[:, None]
        if scores.units == "signed":
            return float(rows.sum())
    return float(rows.square().sum() if scores.units == "squared" else rows.norm())


def _change(
    host: Host, tokens: Tensor, position: int, output: str, site: str, at: tuple[int, ...], u: Tensor, length: Tensor
) -> Float[Tensor, " d_model"]:
    """∂(output at position)/∂(site at ``at``) · u, by central differences, extrapolated from the best pair of steps."""

    def moved(by: float) -> Tensor:
        def edit(activation: Tensor) -> None:
            activation[(0, *at)] += (by * u).to(activation)

        sites = () if output == FINAL else (output,)
        with torch.no_grad():
            captured = run_to_last_residual(host, tokens, sites, grad=False, edits={site: edit})
            if output == FINAL:
                return final_norm(host, captured.last[0, position]).double()
            return captured.sites[output][0, position].double()

    return slope_at_zero(moved, [step * float(length) for step in _STEPS])


def slope_at_zero(function: Callable[[float], Float[Tensor, " d"]], steps: Sequence[float]) -> Float[Tensor, " d"]:
    """The derivative at 0, from the central differences of two neighbouring steps that agree best (Richardson 1911).

    Args:
        function: what is differentiated.
        steps: falling, each a quarter of the one before.

    """
    slopes = [(function(step) - function(-step)) / (2 * step) for step in steps]
    far, near = min(pairwise(slopes), key=lambda pair: float((pair[0] - pair[1]).norm()))
    # The error of a central difference falls with the square of the step: near is 16 times as close as far.
    return near + (near - far) / 15
