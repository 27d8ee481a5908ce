"""Flow: an exact ledger of how a token's influence travels through heads, MLPs and positions to the prediction."""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lens_scopes.calculus.asked import ask
from lens_scopes.calculus.branches import Branches, branch_sites
from lens_scopes.calculus.chosen import Edges, Sources, heads_of, sources_of
from lens_scopes.calculus.describe import describe
from lens_scopes.calculus.directions import directions, lengths
from lens_scopes.calculus.finite import refuse_nonfinite
from lens_scopes.calculus.ledger import Books, Ledger, block_sites
from lens_scopes.calculus.memory import portions
from lens_scopes.calculus.paths import Routes
from lens_scopes.calculus.pullback import Rows, pull_back
from lens_scopes.calculus.pushforward import Pushed, push_forward
from lens_scopes.calculus.trace import Trace, trace
from lens_scopes.host import Host, token_texts
from lens_scopes.host.prompts import Positions, Prompt
from lens_scopes.host.undo import guarded
from lens_scopes.results.flow import Flow
from lens_scopes.results.provenance import Meta
from lens_scopes.scopes.protocol import Scope, cotangents_at, site_of
from lens_scopes.scopes.state import Cotangents
from lens_scopes.sites import EMBED, FINAL, STREAM

if TYPE_CHECKING:
    import pandas as pd

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
) -> Flow:
    """Split the scope scores of the input tokens over every head, MLP and position, exactly.

    For one cotangent v, L = vᵀy and g_a = ∂L/∂a. The score of token t is ⟨g_t, d_t⟩ with d_t = g_t/‖g_t‖; d_t is pushed
    forward (δa at every activation a), and I(a) = ⟨g_a, δa⟩ is what passes through a: conserved at every cut. All
    sources together cost one forward, one backward and one forward-mode pass.

    Args:
        model: a HookedTransformer or TransformerBridge in eval mode; left as it came.
        prompt: see ``score``.
        scope: see ``score``; for a scope of several cotangents the ledger sums over them.
        position: the position whose prediction is explained; for a scope that spans several, see ``score``.
        sources: None: all tokens together, one row; "each": a row per token; a list of positions, or of tokens by their
            text where that stands once in the prompt.
        edges: keep value and pattern edges, summed over the sources: True for every head, [2, layer, head, query, key];
            a list of heads [(layer, head), ...] for theirs alone, [2, head, query, key] in that order, which
            ``meta["edge_heads"]`` names.
        freeze: see ``score``.

    Returns:
        The Flow. ``flow.residual`` is the largest violation of any conservation law, from independent parts.

    Raises:
        ValueError: see ``score``; several positions, each on its own; a direction at an inner site; edges of a model
            whose heads cannot be split, or of heads that it does not have; a source by a text that no token of the
            prompt has, or several.
        IndexError: a position or source outside the prompt.
        RuntimeError: see ``score``; or a conservation law is broken by more than rounding: 1e-6 of the total in
            float64, 1e-3 in float32, 5e-2 in half precision.
        TypeError: see ``score``.

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

    """
    host = Host(model)
    asked = ask(host, prompt, scope, position).alone("flow")
    wanted = sources_of(sources, token_texts(host, asked.ids.tolist()))
    mapped = heads_of(host, edges)
    books_of = [name for layer in range(host.n_layers) for name in block_sites(host, layer)]
    posts = [STREAM["resid_post"].format(layer) for layer in range(host.n_layers)]
    _refuse_missing(host, books_of)
    open_sites = [EMBED, *(name for name in books_of if not name.endswith("hook_pattern")), *posts]
    run = trace(host, asked.tokens, open_sites, asked.positions, freeze)
    if site_of(scope) != FINAL:
        msg = "flow follows influence to the end of the model; for a direction at an inner site use score or jacobian"
        raise ValueError(msg)
    made, scale = cotangents_at(asked.scope, run.ends(0))[0].scaled()
    books, totals, method = Books(1 if wanted is None else len(wanted)), [], ""
    norms = lengths(run, made)
    for chunk, gradients in pull_back(run, Rows.of([[made]]), FINAL):
        g = {name: found[:, 0] for name, found in gradients.items()}
        d = directions(made, chunk, g[EMBED], wanted, norms)
        totals.append((g[EMBED].double()[:, None] * d).sum((2, 3)).cpu())
        straight = Branches(run).straight(g[posts[-1]])
        for row, source in portions(run, *d.shape[:2]):
            lanes, past = (
                {name: found[row].repeat_interleave(len(source), 0) for name, found in part.items()}
                for part in (g, straight)
            )
            pushed = _pushed(run, lanes, past, d[row][:, source].flatten(0, 1), [*books_of, posts[-1]], mapped)
            books.add(pushed.visitor, source)
            method = pushed.method
    meta = describe(run, 0, [made], asked, freeze)
    meta |= {"units": "squared" if made.squared else "norm", "method": method}
    if not isinstance(edges, bool):
        meta["edge_heads"] = [list(head) for head in mapped]
    replay = Replay(weakref.ref(model), asked.ids.tolist(), asked.scope, asked.positions, tuple(meta["freeze"]))
    return _result(run, made, scale, books, torch.cat(totals), wanted, meta, replay)


@dataclass(frozen=True, eq=False)
class Replay:
    """The routes of a flow on the live model, by a fresh forward pass: it holds a recipe, no graph and no model."""

    model: Callable[[], Any]
    """A weak reference; gives None when the model is gone."""
    ids: list[int]
    scope: Scope | None
    positions: tuple[int, ...]
    freeze: tuple[str, ...]

    @guarded
    def __call__(self, question: Literal["strongest", "orders"], sources: Sequence[int], *given: int) -> "pd.DataFrame":
        """What ``Routes`` says of the routes from these positions, together.

        Raises:
            RuntimeError: the model is gone.

        """
        model = self.model()
        if model is None or self.scope is None:
            msg = (
                "paths and orders ask the live model, and this flow's is gone (deleted, or left behind in another "
                "process); run lens_scopes.flow again"
            )
            raise RuntimeError(msg)
        host = Host(model)
        ids = torch.tensor([self.ids], device=host.device)
        run = trace(host, ids, branch_sites(host), self.positions, self.freeze)
        made, scale = cotangents_at(self.scope, run.ends(0))[0].scaled()
        found = getattr(Routes.of(run, made, sources), question)(*given)
        return found.assign(influence=found.influence * scale)

    def __deepcopy__(self, memo: object) -> "Replay":
        """A copy in this process still knows the model."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Neither a model nor a function goes to another process."""
        return Replay, (_gone, self.ids, None, self.positions, self.freeze)


def _gone() -> None:
    """The weak reference of a flow that came from another process."""


def _refuse_missing(host: Host, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in host.available]
    if missing:
        msg = f"{host.name} has no {missing[0]!r}: blocks of this form have no exact split over heads and MLP"
        raise ValueError(msg)


def _pushed(
    run: Trace,
    gradients: dict[str, Tensor],
    straight: dict[str, Tensor],
    tangents: Float[Tensor, "lane pos d"],
    sites: list[str],
    mapped: Sequence[tuple[int, int]],
) -> Pushed:
    """Push the directions of some lanes forward and book what passes."""
    total = (gradients[EMBED].double() * tangents).sum((1, 2))
    return push_forward(
        run.host, run.tokens[0], EMBED, tangents.to(gradients[EMBED].dtype), position=list(run.positions), sites=sites,
        visitor=lambda: Ledger(run.host, gradients, total, mapped, straight), hooks=run.held,
    )  # fmt: skip


def _refuse_unbalanced(run: Trace, books: Books, totals: Tensor) -> None:
    every = torch.cat([part.flatten() for part in (totals, *books.parts.values())])
    refuse_nonfinite(run.host, run.tokens, {EMBED: every})
    if not books.worst <= _BROKEN.get(run.y.dtype, 5e-2):
        msg = (
            f"the books of this flow do not balance: a conservation law is broken by {books.worst:.1e} of the total on "
            f"{run.host.name} ({str(run.y.dtype).removeprefix('torch.')}), so that tangents or gradients go past its "
            "hooks; run score(...), try the other host class, or a model that is not compiled"
        )
        raise RuntimeError(msg)


def _result(
    run: Trace,
    made: Cotangents,
    scale: float,
    books: Books,
    totals: Float[Tensor, "row source"],
    sources: list[int] | None,
    meta: Meta,
    replay: Replay,
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
    kept = torch.float64 if made.squared or run.y.dtype == torch.float64 else torch.float32
    totals = totals * scale
    parts = {name: (part * scale).to(kept) for name, part in books.parts.items()}
    return Flow(
        total=totals.sum(0).to(kept),
        heads=parts["heads"],
        last=parts["last"],
        mlps=parts["mlps"],
        skip=parts["skip"],
        stream=parts["stream"],
        composition=parts["composition"] if split else None,
        edges=None if edges is None else (edges.double() * scale).to(kept),
        residual=max(books.worst, books.worst_inside) if split else books.worst,
        tokens=token_texts(run.host, meta["token_ids"]),
        sources=tuple(range(len(meta["token_ids"]))) if sources is None else tuple(sources),
        probes=totals[-made.probes :].to(kept) if made.probes else None,
        replay=replay,
        meta=meta | {"together": sources is None, "residual_inside_heads": books.worst_inside},
    )
