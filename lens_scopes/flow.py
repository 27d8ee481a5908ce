"""Flow: an exact ledger of how a token's influence travels through heads, MLPs and positions to the prediction."""

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_scopes.calculus.account import account, by_lane
from lens_scopes.calculus.blocks import Extent
from lens_scopes.calculus.branches import Branches
from lens_scopes.calculus.describe import describe
from lens_scopes.calculus.directions import directions, lengths
from lens_scopes.calculus.finite import refuse_nonfinite
from lens_scopes.calculus.flow_options import Edges, Sources, heads_of, sources_of
from lens_scopes.calculus.ledger import Books
from lens_scopes.calculus.line import LARGE_GAP, Line
from lens_scopes.calculus.memory import portions
from lens_scopes.calculus.pair import Pair
from lens_scopes.calculus.pullback import Rows, pull_back
from lens_scopes.calculus.question import Asked, ask
from lens_scopes.calculus.replay import Replay
from lens_scopes.calculus.trace import Trace, trace
from lens_scopes.calculus.whole import along, signed
from lens_scopes.host import Host, token_texts
from lens_scopes.host.fingerprint import fingerprint
from lens_scopes.host.prompts import Positions, Prompt
from lens_scopes.host.undo import guarded
from lens_scopes.results.arguments import Integer, integer, listed
from lens_scopes.results.flow import Flow
from lens_scopes.results.labelled import precision
from lens_scopes.results.provenance import Meta
from lens_scopes.results.warning import warn
from lens_scopes.scopes.protocol import Scope, cotangents_at, site_of, text_of
from lens_scopes.sites import EMBED

_POINTS = 16
# A violation of the laws inside heads above this share of the total means that the block's form has no such split.
_NO_SPLIT = {torch.float64: 1e-5, torch.float32: 1e-4}
# A violation above this share of the total is no rounding: the books do not balance, and are not handed out.
_BROKEN = {torch.float64: 1e-6, torch.float32: 1e-3}


@guarded
def flow(
    model: Any,
    prompt: Prompt,
    scope: Scope,
    *,
    position: Positions = -1,
    sources: Sources = None,
    edges: Edges = False,
    freeze: Sequence[str] = (),
    against: Prompt | None = None,
    steps: Integer = _POINTS,
) -> Flow:
    """Split the scope scores of the input tokens over every head, MLP and position, exactly.

    For one cotangent v, L = vᵀy and g_a = ∂L/∂a. The score of token t is ⟨g_t, d_t⟩ with d_t = g_t/‖g_t‖; d_t is pushed
    forward (δa at every activation a), and I(a) = ⟨g_a, δa⟩ is what passes through a: conserved at every cut. All
    sources together cost one forward, one backward and one forward-mode pass.

    With ``against`` it is the difference of what the scope measures between two prompts that is split (integrated
    flow): at midpoints of the straight line between their embeddings the line's velocity is pushed forward, and the
    points' ledgers are averaged. Heads that switch on the way have their part, which no derivative at one prompt sees.
    It is what each part carried when everything moved together, not what patching it alone does.

    Args:
        model: a HookedTransformer or TransformerBridge in eval mode; left as it came.
        prompt: see ``score``.
        scope: see ``score``; for a scope of several cotangents the ledger sums over them. Of a direction at an inner
            site the ledger ends there: layers after it are left out, in the site's own block what comes after the site
            carries 0, and ``meta["end"]`` names the site.
        position: the position whose prediction is explained; for a scope that spans several, see ``score``.
        sources: None: all tokens together, one row; "each": a row per token; a list of positions, or of tokens by their
            text where that stands once in the prompt.
        edges: keep value and pattern edges, summed over the sources: True for every head, [2, layer, head, query, key];
            a list of heads [(layer, head), ...] for theirs alone, [2, head, query, key] in that order, which
            ``meta["edge_heads"]`` names.
        freeze: see ``score``.
        against: a corrupted prompt of the same length, of which ``prompt`` is the clean one: token targets mean what
            they mean there. Sources are then the positions that change.
        steps: the points of the line.

    Returns:
        The Flow. ``flow.residual`` is the largest violation of any conservation law, from independent parts, relative
        to the largest total: of a source, of a cotangent, or of a point of the line. With ``against`` units are
        "signed", and ``meta["gap"]`` is what the points miss of the difference of ``meta["metric"]``, clean minus
        corrupted: that difference minus the total of all positions that change.

    Raises:
        ValueError: see ``score``; several positions, each on its own; a direction at a site that no block is before;
            edges of a model whose heads cannot be split, or of heads that it does not have, or that the direction does
            not read; a source by a text that no token of the prompt has, or several; with ``against`` prompts of
            different length or that are the same, a scope that is no one number, ``freeze``, a source that does not
            change.
        IndexError: a position or source outside the prompt.
        RuntimeError: see ``score``; or a conservation law is broken by more than rounding: 1e-6 of the total in
            float64, 1e-3 in float32, 5e-2 in half precision.
        TypeError: see ``score``.

    Warns:
        UserWarning: the points miss more than a twentieth of the difference.

    Example:
        How does the model that comes with the package look a word up in a list?

        >>> import lens_scopes as ls
        >>> model = ls.demo.load()
        >>> case = ls.demo.cases("induction", n=1, seed=3)[0]
        >>> print(case.prompt, "...", case.answer)
        plim = tove ; jorn = moop ; fep = kern ; gax = snark ; fep = ... kern
        >>> flow = ls.flow(model, case.prompt, ls.Semantic(case.answer, versus=case.versus))
        >>> flow.heads.shape  # source, layer, head
        torch.Size([1, 4, 4])

        What left the embedding is there at every depth, at one position or another, and no conservation law is broken:

        >>> bool((flow.stream.sum(-1) / flow.total - 1).abs().max() < 1e-4), flow.residual < 1e-4
        (True, True)

        Through how many heads does it go, and which is the last one? Both are partitions of the whole:

        >>> orders, last = flow.orders(), flow.last_heads()
        >>> orders.heads[int(orders.influence.argmax())], f"{last.layer[0]}.{last['head'][0]}"
        ('1', '1.1')
        >>> [round(float(found.share.sum()), 4) for found in (orders, last)]
        [1.0, 1.0]

        The strongest route through two heads is a lookup: 0.1 looks two words back, so that each value knows its key;
        1.1 looks from the last mark at the value whose key is asked for.

        >>> next(path for path in flow.paths(10).path if path.count("→") == 3)
        'source → 0.1 → 1.1 → prediction'

        What does another key change, and through which heads?

        >>> scope = ls.Semantic(case.answer, versus=case.versus)
        >>> change = ls.flow(model, case.prompt, scope, against=case.corrupted, steps=64)
        >>> [change.tokens[i] for i in change.sources], change.units
        ([' fep'], 'signed')
        >>> change.top(3)[["kind", "layer", "head"]].values.tolist()
        [['head', 0, 0], ['head', 1, 1], ['head', 1, 0]]
        >>> metric = change.meta["metric"]
        >>> bool(abs(float(change.total) + change.meta["gap"] - metric["clean"] + metric["corrupted"]) < 1e-4)
        True

    """
    host = Host(model)
    asked = ask(host, prompt, scope, position).alone("flow")
    extent = Extent.of(host, site_of(scope))
    wanted = sources_of(sources, token_texts(host, asked.ids.tolist()))
    mapped = heads_of(host, edges, extent.layers)
    about: Meta = {"end": extent.end} if extent.is_inner else {}
    if not isinstance(edges, bool):
        about["edge_heads"] = [list(head) for head in mapped]
    points = integer(steps, "steps (they count the points of the line)", 1, 10_000)
    if against is not None:
        _refuse_frozen(freeze)
        pair = Pair.of(model, prompt, against, scope, position)
        return _whole_change(pair, asked, extent, sources, wanted, mapped, points, about)
    if points != _POINTS:
        msg = f"steps={points} are points on the way from another prompt; name it: against=..., or leave steps out"
        raise ValueError(msg)
    run = trace(host, asked.tokens, extent.opened, asked.positions, freeze)
    made, scale = cotangents_at(asked.scope, run.ends(0))[0].scaled()
    books, totals, method = Books(1 if wanted is None else len(wanted)), [], ""
    norms = lengths(run, made)
    for chunk, gradients in pull_back(run, Rows.of([[made]]), extent.end):
        g = extent.up_to_end({name: found[:, 0] for name, found in gradients.items()})
        d = directions(made, chunk, g[EMBED], wanted, norms)
        totals.append((g[EMBED].double()[:, None] * d).sum((2, 3)).cpu())
        straight = Branches(run, extent).straight(g[extent.output])
        for row, source in portions(run, *d.shape[:2]):
            lanes, past = (
                by_lane({name: found[row] for name, found in part.items()}, len(source)) for part in (g, straight)
            )
            pushed = account(run, extent, lanes, past, d[row][:, source].flatten(0, 1), mapped)
            books.add(pushed.visitor, source)
            method = pushed.method
    meta = describe(run, 0, [made], asked, freeze) | about
    meta |= {"units": "squared" if made.squared else "norm", "method": method, "together": wanted is None}
    replay = Replay(
        weakref.ref(model), asked.ids.tolist(), asked.scope, asked.positions, tuple(meta["freeze"]), fingerprint(host)
    )
    found = _result(run, scale, books, torch.cat(totals), range(len(asked.ids)) if wanted is None else wanted, meta)
    probes = (torch.cat(totals)[-made.probes :] * scale).to(found.total) if made.probes else None
    return replace(found, probes=probes, replay=replay)


def _whole_change(
    pair: Pair,
    asked: Asked,
    extent: Extent,
    sources: Sources,
    wanted: list[int] | None,
    mapped: Sequence[tuple[int, int]],
    points: int,
    about: Meta,
) -> Flow:
    """Integrated flow, from the corrupted prompt to the clean one, which ``asked`` is about."""
    clean = pair.trace(pair.clean, extent.opened)
    pair = pair.resolved(clean)
    corrupted = pair.trace(pair.corrupted, extent.opened)
    made = signed(pair.scope, cotangents_at(pair.scope, clean.ends(0))[0])
    metric = pair.metric(corrupted, clean)
    line = Line.between(corrupted, clean)
    changed = line.velocity.ne(0).any(-1).nonzero().flatten().tolist()
    rows = _changed(wanted, changed, every=isinstance(sources, str) and sources == "each")
    moved = torch.zeros(len(rows), len(asked.ids), dtype=torch.bool, device=line.velocity.device)
    for row, positions in zip(moved, rows, strict=True):
        row[positions] = True
    found = along(line, clean, pair.scope, extent, moved, mapped, points)
    difference = metric["clean"] - metric["corrupted"]
    gap = difference - float(found.all_sources.mean())
    if abs(gap) > LARGE_GAP * abs(difference):
        msg = (
            f"{points} points of the line miss {gap:.3g} of the difference {difference:.3g} of {text_of(pair.scope)} "
            f"between the prompts; write steps={2 * points}"
        )
        warn(msg)
    meta = describe(clean, 0, [made], replace(asked, scope=pair.scope), ()) | about
    meta |= {
        "units": "signed",
        "method": found.method,
        "together": wanted is None,
        "corrupted_token_ids": pair.corrupted.tolist(),
        "corrupted_tokens": list(token_texts(pair.host, pair.corrupted.tolist())),
        "metric": metric,
        "steps": points,
        "gap": gap,
    }
    flat = changed if wanted is None else [position for row in rows for position in row]
    return _result(clean, 1 / points, found.books, found.totals, flat, meta)


def _changed(wanted: list[int] | None, changed: list[int], *, every: bool) -> list[list[int]]:
    """By row, the positions whose change is followed."""
    if not changed:
        msg = "the prompt and the one it is held against are the same: nothing changes; write another against=..."
        raise ValueError(msg)
    if wanted is None:
        return [changed]
    still = [] if every else [position for position in wanted if position not in changed]
    if still:
        msg = f"sources of a change are positions that change ({changed}), got {still}, the same in both prompts"
        raise ValueError(msg)
    return [[position] for position in wanted if position in changed]


def _refuse_frozen(freeze: Sequence[str]) -> None:
    if listed(freeze):
        msg = f"freeze={freeze!r} with against=...: what is held is no part of the difference; leave freeze out"
        raise ValueError(msg)


def _refuse_unbalanced(run: Trace, books: Books, totals: Tensor) -> None:
    every = torch.cat([part.flatten() for part in (totals, *books.parts.values())])
    refuse_nonfinite(run.host, run.tokens, {EMBED: every})
    if not books.worst <= _BROKEN.get(run.y.dtype, 5e-2):
        hooks = ", ".join(run.host.hooked())
        why = (
            f"with hooks of yours in force ({hooks}): their two derivatives do not agree, or they edit the stream at a "
            "hook_resid_post, after the block's books are closed (the next block's hook_resid_pre is the same tensor: "
            "hang them there); without them: model.reset_hooks(), or run score(...)"
            if hooks
            else "so that tangents or gradients go past its hooks; run score(...), try the other host class, or a "
            "model that is not compiled"
        )
        msg = (
            f"the books of this flow do not balance: a conservation law is broken by {books.worst:.1e} of the total on "
            f"{run.host.name} ({str(run.y.dtype).removeprefix('torch.')}), {why}"
        )
        raise RuntimeError(msg)


def _result(
    run: Trace,
    scale: float,
    books: Books,
    totals: Float[Tensor, "row source"],
    sources: Iterable[int],
    meta: Meta,
) -> Flow:
    """The sums as a Flow, without what the block's form does not have."""
    _refuse_unbalanced(run, books, totals)
    split = books.worst_inside <= _NO_SPLIT.get(run.y.dtype, 5e-2)
    if books.edges is not None and not split:
        msg = (
            f"the heads of {run.host.name} have no exact edges (violation {books.worst_inside:.1e} of the total): a "
            "norm mixes heads, or attention is computed where hooks do not reach; write edges=False"
        )
        raise ValueError(msg)
    edges, each = books.edges, books.parts["heads"].shape[1:]
    if edges is not None and "edge_heads" not in meta:
        edges = edges.unflatten(1, each)
    kept = precision(run.y.dtype, meta["units"])
    parts = {name: (part * scale).to(kept) for name, part in books.parts.items()}
    return Flow(
        total=(totals.sum(0) * scale).to(kept),
        heads=parts["heads"],
        last=parts["last"],
        mlps=parts["mlps"],
        skip=parts["skip"],
        stream=parts["stream"],
        composition=parts["composition"] if split else None,
        edges=None if edges is None else (edges.double() * scale).to(kept),
        residual=max(books.worst, books.worst_inside) if split else books.worst,
        tokens=token_texts(run.host, meta["token_ids"]),
        sources=tuple(sources),
        meta=meta | {"residual_inside_heads": books.worst_inside},
    )
