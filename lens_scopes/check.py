"""Finite differences on the live model: an opinion on scores that shares no derivative with how they were computed."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_scopes.calculus.checkable import (
    first_choices,
    refuse_incomparable,
    refuse_other_model,
    refuse_other_scope,
    refuse_unknown,
)
from lens_scopes.calculus.finite import refuse_nonfinite
from lens_scopes.calculus.pullback import Rows, pull_back
from lens_scopes.calculus.question import Asked
from lens_scopes.calculus.signs import total
from lens_scopes.calculus.trace import Trace, trace
from lens_scopes.calculus.variants import Kept, RowEdit
from lens_scopes.host import Host
from lens_scopes.host.readout import final_norm
from lens_scopes.host.undo import guarded
from lens_scopes.results.arguments import integer
from lens_scopes.results.flow import Flow
from lens_scopes.results.scores import Scores
from lens_scopes.scopes.protocol import Scope, cotangents_at, cotangents_of, scope_from, site_of, spans_positions
from lens_scopes.scopes.state import Cotangents
from lens_scopes.score import Options, answer
from lens_scopes.sites import EMBED, FINAL, HEADS, STREAM, layer_of

# Steps relative to the length of the activation, each a quarter of the one before: large ones suffer from curvature,
# small ones from rounding; where neighbours agree best the two are balanced. The middle ones suffice unless even those
# neighbours differ by more than this.
_STEPS = tuple(0.08 / 4**i for i in range(9))
_MIDDLE = slice(2, 5)
_AGREE = 1e-2


@guarded
def check_scores(scores: Scores, model: Any, *, scope: Scope | None = None, places: int = 4) -> dict[str, Any]:
    """Perturb the largest places on the live model and compare what happens with what the scores say.

    At each place (site, position) the activation is moved by ±h along the direction u that the pulled-back cotangents
    g_i say is the strongest, and along a random one; the change δy of the final state, measured, gives Σ w_i⟨v_i, δy⟩²,
    predicted as Σ w_i⟨g_i, u⟩². Nothing of the backward pass enters the measurement. The steps are 0.5 to 0.03 % of the
    activation's length, and others where those disagree; a bend that all of these are past looks like a wrong gradient.
    Where several positions are explained as one, or summed, δy is measured at all of them; an estimated sum is checked
    with the signs it drew. Of a matrix of positions the first is checked: ``scores.sel(target_pos=p).check(model)``
    checks another.

    Args:
        scores: what ``score`` returned, whole or loaded from a file.
        model: the model that they came from.
        scope: the scope, where ``meta`` does not determine it (a function, a Metric, a Direction).
        places: how many places to perturb, the largest first.

    Returns:
        "places": a list of dicts with site, pos, head, direction, predicted, measured, error (relative to the score
        there); "max_error": the largest of those errors, NaN where all scores are 0 and nothing can be compared;
        "stored_error": the largest difference between stored and recomputed scores at the places, relative to the
        largest score (None where the scores were joined to words, and of products with a direction given as a tensor;
        a part picked by ``sel`` is compared).

    Raises:
        ValueError: nothing that finite differences of the model could confirm: effects of patches, sums, scores of a
            frozen linearisation; scores that do not say how they were obtained, or a scope that ``meta`` does not
            determine; a difference of two results; or see ``score``.

    """
    places = integer(places, "places (how many are perturbed)", 1)
    if "difference" in scores.meta:
        msg = "a difference cannot be checked by itself: check both of its sides"
        raise ValueError(msg)
    host = Host(model)
    refuse_unknown(scores.meta, "token_ids", "positions", *(("scope",) if scope is None else ()))
    refuse_incomparable(scores)
    if scope is not None:
        refuse_other_scope(scores.meta.get("scope"), scope)
    scope = scope if scope is not None else scope_from(scores.meta["scope"])
    # All positions, as they were asked for: a scope may have a target for each.
    asked = Asked.again(host, scores.meta, scope)
    tokens = asked.tokens
    chosen = _largest(scores, places)
    names = tuple(dict.fromkeys(place["site"] for place in chosen))
    inner = site_of(scope)
    begin = dict.fromkeys(STREAM["resid_pre"].format(layer_of(name) or 0) for name in names)
    opened = dict.fromkeys([*names, *begin, *({inner} - {FINAL})])
    run = trace(host, tokens, list(opened), asked.positions)
    first = enumerate(first_choices(scores.meta))
    refuse_other_model(scores.meta, host, [float(run.logits(0, n).softmax(-1)[token]) for n, token in first])
    made, rows = _planted(run, asked, scores)
    root = torch.cat([one.root_weights() for one in made])
    cotangents = rows.at(slice(None), run.output(inner))[:, 0].detach().double()
    parts = [{name: found[name][:, 0] for name in names} for _, found in pull_back(run, rows, inner)]
    gradients = {name: torch.cat([part[name] for part in parts]) for name in names}
    activations = {name: run.sites[name][0].detach() for name in names}
    kept = Kept(host, tokens[0], {name: run.sites[name].detach() for name in begin})
    del run
    moves, stored = [], []
    for place in chosen:
        at = (place["pos"], place["head"]) if "head" in place else (place["pos"],)
        g = gradients[place["site"]][(slice(None), *at)].double()
        activation = activations[place["site"]][at]
        known = place.pop("stored")
        if known is not None and scores.meta.get("along") != "tensor" and _same_probes(scores, made):
            stored.append(abs(known - _score(g, root, scores, activation)))
        generator = torch.Generator().manual_seed(0)
        directions = {
            "strongest": torch.linalg.svd(_weighted(g, root), full_matrices=False).Vh[0],
            "random": torch.randn(g.shape[1], generator=generator, dtype=torch.float64, device="cpu").to(g.device),
        }
        for kind, u in directions.items():
            length = float(activation.detach().double().norm()) or 1.0  # what a hook sets to zero has no length
            moves.append(_Move(place | {"direction": kind}, g, at, u / u.norm(), length))
    report = []
    for move, change in zip(moves, _changes(kept, asked.positions, inner, moves), strict=True):
        predicted = float(_weighted(move.g, root).matmul(move.u).norm())
        refuse_nonfinite(host, tokens, {move.place["site"]: change}, "the finite difference")
        measured = float(_weighted((cotangents * change).sum((1, 2))[:, None], root).norm())
        # A random direction may hardly be felt: what is wrong there is wrong relative to the score.
        scale = max(float(_weighted(move.g, root).norm()), predicted, measured) or 1.0
        error = abs(predicted - measured) / scale
        report.append({**move.place, "predicted": predicted, "measured": measured, "error": error})
    largest = float(scores.values.abs().max()) or 1.0
    return {
        "places": report,
        "max_error": max(entry["error"] for entry in report) if scores.values.any() else float("nan"),
        "stored_error": max(stored) / largest if stored else None,
    }


@guarded
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
        "scores" is None for a frozen linearisation, which is not the derivative of what the model computes.

    Raises:
        ValueError: shares, which have lost their totals; or see ``score``.

    """
    heads = integer(heads, "heads (how many are checked)", 1)
    if flow.units == "share":
        msg = "shares have lost the totals that could be checked; write flow.check(model) before flow.share()"
        raise ValueError(msg)
    if "corrupted_token_ids" in flow.meta:
        msg = "a whole change is held against both prompts' runs already: flow.meta['gap'] says what it misses"
        raise ValueError(msg)
    refuse_unknown(flow.meta, "token_ids", "freeze", "together", *(("scope",) if scope is None else ()))
    host, freeze = Host(model), flow.meta["freeze"]
    if scope is not None:
        refuse_other_scope(flow.meta.get("scope"), scope)
    scope = scope if scope is not None else scope_from(flow.meta["scope"])
    asked = Asked.again(host, flow.meta, scope)
    (scores,) = answer(host, [asked], Options(host.sites("embed"), freeze=freeze))
    live = [{one["id"]: one.get("p", 0.0) for one in there} for there in scores.meta.get("predictions", ())]
    said = [there.get(token, 0.0) for there, token in zip(live, first_choices(flow.meta), strict=False)]
    refuse_other_model(flow.meta, host, said)
    total = scores.values[0].sum() if flow.meta["together"] else scores.values[0][list(flow.sources)].sum()
    frame = flow.top(10**6)
    chosen = frame[frame.kind == "head"].head(heads)
    found = []
    for layer, head, influence in zip(chosen.layer, chosen["head"], chosen.influence, strict=True):
        alone = _masked_backward(host, flow, asked, int(layer), int(head))
        found.append({"layer": int(layer), "head": int(head), "flow": influence, "masked_backward": alone})
    scale = float(flow.total.abs().max()) or 1.0
    return {
        "total_error": abs(float(flow.total.sum() - total)) / scale,
        "scores": None if freeze else check_scores(scores, model, scope=scope),
        "heads": found,
        "max_error": max(abs(row["flow"] - row["masked_backward"]) / scale for row in found),
    }


def _masked_backward(host: Host, flow: Flow, asked: Asked, layer: int, head: int) -> float:
    """Σ_t ⟨the part of g_t that comes back through one head, d_t⟩: no forward-mode pass in it."""
    z = HEADS["z"].format(layer)
    inner = site_of(asked.scope)
    opened = [EMBED, z, *({inner} - {FINAL})]
    run = trace(host, asked.tokens, opened, asked.positions, flow.meta["freeze"])
    (made,) = cotangents_at(asked.scope, run.ends(0))
    weights = torch.ones(len(made.vectors), device="cpu") if made.weights is None else made.weights
    parts = [found for _, found in pull_back(run, Rows.of([[made]]), inner)]
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
    whole = "aggregated" not in scores.meta
    if "target_pos" in scores.dims:
        values = values[0]
    selected = scores.meta.get("selected", {})
    dims = [dim for dim in scores.dims if dim != "target_pos"]
    found = []
    for flat in values.abs().flatten().argsort(descending=True)[:places].tolist():
        index = [int(i) for i in torch.unravel_index(torch.tensor(flat, device="cpu"), values.shape)]
        place = dict(selected) | {dim: scores.coords[dim][i] for dim, i in zip(dims, index, strict=True)}
        place = {key: place[key] for key in ("site", "pos", "head") if key in place}
        found.append(place | {"stored": float(values[tuple(index)]) if whole else None})
    return found


def _planted(run: Trace, asked: Asked, scores: Scores) -> tuple[list[Cotangents], Rows]:
    """What the scores are made of, laid out for the positions; of an estimated sum with the signs that it drew."""
    if "reduce" in scores.meta:
        made = total(run, 0, asked, None if scores.probes is None else scores.meta["passes"])
    elif spans_positions(asked.scope):
        made = cotangents_at(asked.scope, run.ends(0))
    else:
        index = asked.positions.index(scores.meta.get("selected", {}).get("target_pos", asked.positions[0]))
        one = cotangents_of(asked.scope, run.state(0, index))
        return [one], Rows((one.vectors,), ((index,) * len(one.vectors),))
    return made, Rows.of([made])


def _same_probes(scores: Scores, made: Sequence[Cotangents]) -> bool:
    """Whether an estimate is drawn as it was: up to 0.1.0 its directions were those of the last residual stream."""
    notes = scores.meta.get("notes") or [{}]
    return "reduce" in scores.meta or not made[0].probes or notes[0].get("basis") == made[0].notes.get("basis")


def _weighted(rows: Float[Tensor, "a b"], root: Float[Tensor, " a"]) -> Float[Tensor, "a b"]:
    """Rows times the square roots of the cotangents' weights."""
    return rows * root.to(rows)[:, None]


def _score(g: Float[Tensor, "k d"], root: Float[Tensor, " k"], scores: Scores, activation: Tensor) -> float:
    """The stored quantity, recomputed in float64 (no value for a direction that was given as a tensor)."""
    rows = _weighted(g, root)
    if scores.meta.get("along") == "activation":
        rows = rows @ activation.double()[:, None]
        if scores.units == "signed":
            return float(rows.sum())
    return float(rows.square().sum() if scores.units == "squared" else rows.norm())


def _changes(
    kept: Kept, positions: Sequence[int], output: str, moves: Sequence["_Move"]
) -> list[Float[Tensor, "position d_model"]]:
    """∂(output at the positions)/∂(site at ``at``) · u of every move, by central differences that run together."""
    kept = kept.cut(max(*positions, *(move.at[0] for move in moves)) + 1)
    where = list(positions)

    def ends(some: Sequence[_Move], steps: Sequence[float]) -> list[Float[Tensor, "step sign position d_model"]]:
        variants = [[move.by(sign * step)] for move in some for step in steps for sign in (1, -1)]
        found: dict[int, Tensor] = {}
        for rows, last, inner in kept.run(variants, output):
            with torch.no_grad():
                y = final_norm(kept.host, last[:, where]) if inner is None else inner[:, where]
            found |= zip(rows, y.double(), strict=True)
        every = torch.stack([found[row] for row in range(len(variants))])
        return list(every.unflatten(0, (len(some), len(steps), 2)))

    def slopes(values: Sequence[Tensor], some: Sequence[_Move], steps: Sequence[float]) -> list[tuple[Tensor, float]]:
        return [slope_at_zero(x, [step * move.length for step in steps]) for x, move in zip(values, some, strict=True)]

    middle = ends(moves, _STEPS[_MIDDLE])
    found = slopes(middle, moves, _STEPS[_MIDDLE])
    doubted = [n for n, (_, doubt) in enumerate(found) if not doubt <= _AGREE]
    if doubted:
        again = [moves[n] for n in doubted]
        larger, smaller = (ends(again, _STEPS[part]) for part in (slice(_MIDDLE.start), slice(_MIDDLE.stop, None)))
        every = [torch.cat(parts) for parts in zip(larger, [middle[n] for n in doubted], smaller, strict=True)]
        for n, slope in zip(doubted, slopes(every, again, _STEPS), strict=True):
            found[n] = slope
    return [slope for slope, _ in found]


@dataclass(frozen=True, eq=False)
class _Move:
    """A place, the pulled-back cotangents there, and a direction to move its activation along."""

    place: dict[str, Any]
    g: Float[Tensor, "k d"]
    at: tuple[int, ...]
    u: Float[Tensor, " d"]
    length: float
    """Of the activation."""

    def by(self, step: float) -> tuple[str, RowEdit]:
        """The edit that moves it by a step, in parts of its length."""

        def edit(row: Tensor) -> None:
            row[self.at] += (step * self.length * self.u).to(row)

        return self.place["site"], edit


def slope_at_zero(values: Float[Tensor, "step sign *d"], steps: Sequence[float]) -> tuple[Float[Tensor, "*d"], float]:
    """The derivative at 0, from the central differences of two neighbouring steps that agree best (Richardson 1911).

    Args:
        values: what is differentiated, at every step forwards and backwards.
        steps: falling, each a quarter of the one before.

    Returns:
        The derivative, and by how much the two differ, as a part of the larger. It is that part that is smallest: steps
        so large that nothing follows them any more differ little, and agree on nothing; nor do steps that move nothing.

    """
    slopes = [(ahead - behind) / (2 * step) for (ahead, behind), step in zip(values, steps, strict=True)]

    def differ(pair: tuple[Tensor, Tensor]) -> float:
        longest = float(torch.maximum(pair[0].norm(), pair[1].norm()))
        return float((pair[0] - pair[1]).norm()) / longest if longest else float("inf")

    far, near = min(pairwise(slopes), key=differ)
    # The error of a central difference falls with the square of the step: near is 16 times as close as far.
    return near + (near - far) / 15, differ((far, near))
