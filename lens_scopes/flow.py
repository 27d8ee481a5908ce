"""Flow: an exact ledger of how a token's influence travels through heads, MLPs and positions to the prediction."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lens_scopes.calculus.describe import describe
from lens_scopes.calculus.ledger import Ledger, block_sites, is_parallel
from lens_scopes.calculus.memory import lanes_at_once
from lens_scopes.calculus.paths import strongest_paths
from lens_scopes.calculus.pullback import Rows, pull_back
from lens_scopes.calculus.pushforward import push_forward
from lens_scopes.calculus.trace import Trace, trace
from lens_scopes.host import Host, encode, token_texts
from lens_scopes.host.prompts import Prompt, positions_of
from lens_scopes.results.flow import Flow
from lens_scopes.scopes.state import Cotangents, Scope, cotangents_of
from lens_scopes.sites import EMBED, FINAL, HEADS, STREAM

if TYPE_CHECKING:
    import pandas as pd

Sources = Literal["each"] | Sequence[int] | None

# A violation of the laws inside heads above this share of the total means that the block's form has no such split.
_NO_SPLIT = {torch.float64: 1e-5, torch.float32: 1e-4}


def flow(
    model: Any,
    prompt: Prompt,
    scope: Scope,
    *,
    position: int = -1,
    sources: Sources = None,
    edges: bool = False,
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
        position: the position whose prediction is explained.
        sources: None: all tokens together, one row; "each": a row per token; a list of positions.
        edges: keep value and pattern edges [2, layer, head, query, key], summed over the sources.
        freeze: see ``score``.

    Returns:
        The Flow. ``flow.residual`` is the largest violation of any conservation law, from independent parts.

    Raises:
        ValueError: see ``score``; a direction at an inner site; or edges of a model whose heads cannot be split.
        IndexError: a position or source outside the prompt.
        RuntimeError: see ``score``.
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

        The strongest route through two heads is a lookup: 0.1 looks two words back, so that each value knows its key;
        1.1 looks from the last mark at the value whose key is asked for.

        >>> next(path for path in flow.paths(10).path if path.count("→") == 3)
        'source → 0.1 → 1.1 → prediction'

    """
    host = Host(model)
    ids = encode(host, prompt)
    (at,) = positions_of(position, len(ids))
    rows_wanted = _sources(sources, len(ids))
    books = [name for layer in range(host.n_layers) for name in block_sites(host, layer)]
    posts = [STREAM["resid_post"].format(layer) for layer in range(host.n_layers)]
    _refuse_missing(host, books)
    open_sites = [EMBED, *(name for name in books if not name.endswith("hook_pattern")), *posts]
    run = trace(host, ids[None], open_sites, [at], freeze)
    made = cotangents_of(scope, run.state(0, 0))
    if made.site != FINAL:
        msg = "flow follows influence to the end of the model; for a direction at an inner site use score or jacobian"
        raise ValueError(msg)
    lanes = _Lanes(run, made, rows_wanted, edges, freeze)
    for chunk, gradients in pull_back(run, Rows.of([[made]]), FINAL):
        lanes.add(chunk, {name: g[:, 0] for name, g in gradients.items()}, [*books, posts[-1]])
    meta = describe(run, 0, [made], scope, freeze) | {
        "position": at,
        "units": "squared" if made.squared else "norm",
        "method": lanes.method,
    }
    return lanes.result(ids.tolist(), meta)


def _sources(sources: Sources, length: int) -> list[int] | None:
    if sources is None:
        return None
    if isinstance(sources, str):
        if sources != "each":
            msg = f"sources is None (all together), 'each' or a list of positions, got {sources!r}"
            raise ValueError(msg)
        return list(range(length))
    return list(positions_of(list(sources), length))


def _refuse_missing(host: Host, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in host.available]
    if missing:
        msg = f"{host.name} has no {missing[0]!r}: blocks of this form have no exact split over heads and MLP"
        raise ValueError(msg)


class _Lanes:
    """Adds up ledgers over cotangents and sources."""

    def __init__(
        self, run: Trace, made: Cotangents, sources: list[int] | None, edges: bool, freeze: Sequence[str]
    ) -> None:
        self.run, self.made, self.sources, self.keep_edges = run, made, sources, edges
        self.freeze = freeze
        self.method, self.residual, self.inside = "", 0.0, 0.0
        self.sums: dict[str, Tensor] = {}
        self.edges: Tensor | None = None
        self.total: list[Tensor] = []
        self.score = self._scores() if not made.squared and len(made.vectors) > 1 else None

    def add(self, chunk: slice, gradients: dict[str, Tensor], sites: list[str]) -> None:
        """Push the directions of these cotangents forward, lane by lane, and book what passes."""
        directions = self.directions(chunk, gradients[EMBED])
        self.total.append((gradients[EMBED].double()[:, None] * directions).sum((2, 3)).cpu())
        for row, source in self._portions(*directions.shape[:2]):
            lane = {name: g[row].repeat_interleave(len(source), 0) for name, g in gradients.items()}
            tangents = directions[row][:, source].flatten(0, 1)
            total = (lane[EMBED].double() * tangents).sum((1, 2))
            ledger = Ledger(self.run.host, lane, total, self.keep_edges)
            pushed = push_forward(
                self.run.host, self.run.tokens[0], EMBED, tangents.to(lane[EMBED].dtype),
                position=self.run.positions[0], sites=sites, visit=ledger.visit, hooks=self.run.held,
            )  # fmt: skip
            ledger.close()
            self.method = pushed.method
            self.residual, self.inside = max(self.residual, ledger.worst), max(self.inside, ledger.worst_inside)
            self._add_up(ledger, source, directions.shape[1])

    def directions(self, chunk: slice, g: Float[Tensor, "row pos d"]) -> Float[Tensor, "row source pos d"]:
        """d_t at each source's own position: w_i g_{i,t} for squared units, divided by the score for norms."""
        weight = torch.ones(len(g), device=g.device) if self.made.weights is None else self.made.weights[chunk]
        d = g.double() * weight.double()[:, None, None]
        if not self.made.squared:
            length = g.double().norm(dim=-1) * weight.double().sqrt()[:, None] if self.score is None else self.score
            d = torch.where(length[..., None] > 0, d / length[..., None].clamp(min=1e-300), 0.0)
        if self.sources is None:
            return d[:, None]
        at = torch.zeros(len(self.sources), d.shape[1], 1, dtype=d.dtype, device=d.device)
        at[range(len(self.sources)), self.sources] = 1
        return d[:, None] * at

    def _scores(self) -> Float[Tensor, " pos"]:
        """√Σ_i w_i‖g_i,t‖² over all cotangents, which a norm of several needs before the first is pushed."""
        weights = self.made.weights
        squares = torch.zeros(self.run.tokens.shape[1], dtype=torch.float64, device=self.run.y.device)
        for chunk, gradients in pull_back(self.run, Rows.of([[self.made]]), FINAL):
            part = gradients[EMBED][:, 0].double().square().sum(-1)
            squares += (part if weights is None else part * weights[chunk].double()[:, None]).sum(0)
        return squares.sqrt()

    def _portions(self, rows: int, sources: int) -> Iterator[tuple[slice, list[int]]]:
        """Rows and sources that fit the memory budget as lanes of one pass; a progress bar where it takes many."""
        from tqdm.auto import tqdm

        most = lanes_at_once(self.run)
        per_row = max(1, most // sources)
        portions = [
            (slice(r, min(r + per_row, rows)), list(range(s, min(s + most, sources))))
            for r in range(0, rows, per_row)
            for s in range(0, sources, most)
        ]
        yield from tqdm(portions, desc="flow", leave=False, disable=len(portions) < 8)

    def _add_up(self, ledger: Ledger, source: list[int], n_sources: int) -> None:
        parts = {
            "heads": torch.stack(ledger.heads, 1),
            "mlps": torch.stack(ledger.mlps, 1),
            "stream": torch.stack(ledger.stream, 1),
            "composition": torch.stack(ledger.composition, 1),
        }
        for name, part in parts.items():
            by_source = part.reshape(-1, len(source), *part.shape[1:]).sum(0).cpu()
            if name not in self.sums:
                self.sums[name] = by_source.new_zeros(n_sources, *by_source.shape[1:])
            self.sums[name][source] += by_source
        if self.keep_edges:
            edges = torch.stack(ledger.edges, 1).cpu()
            self.edges = edges if self.edges is None else self.edges + edges

    def replay(self, k: int, sources: list[int], beam: int) -> "pd.DataFrame":
        """A search for paths on a fresh forward pass of the same prompt (this one's graph is not kept)."""
        host, made = self.run.host, self.made
        needed = [HEADS["z"], STREAM["resid_post"], STREAM["mlp_out"]]
        needed += [] if is_parallel(host, 0) else [STREAM["resid_mid"]]
        names = [EMBED, *(kind.format(layer) for layer in range(host.n_layers) for kind in needed)]
        run = trace(host, self.run.tokens, names, self.run.positions, self.freeze)
        parts = [found for _, found in pull_back(run, Rows.of([[made]]), FINAL)]
        gradients = {name: torch.cat([part[name] for part in parts])[:, 0] for name in names}
        directions = _Lanes(run, made, sources, False, self.freeze).directions(slice(None), gradients[EMBED]).sum(1)
        return strongest_paths(run, gradients, directions.to(run.y.dtype), k, beam)

    def result(self, ids: list[int], meta: dict[str, Any]) -> Flow:
        """The sums as a Flow, without what the block's form does not have."""
        split = self.inside <= _NO_SPLIT.get(self.run.y.dtype, 5e-2)
        if self.keep_edges and not split:
            msg = (
                f"the heads of {self.run.host.name} have no exact edges (violation {self.inside:.1e} of the total): a "
                "norm mixes heads, or attention is computed where hooks do not reach; write edges=False"
            )
            raise ValueError(msg)
        totals = torch.cat(self.total)
        kept = torch.float64 if self.run.y.dtype == torch.float64 else torch.float32
        probes = totals[-self.made.probes :] if self.made.probes else None
        return Flow(
            total=totals.sum(0).to(kept),
            heads=self.sums["heads"].to(kept),
            mlps=self.sums["mlps"].to(kept),
            stream=self.sums["stream"].to(kept),
            composition=self.sums["composition"].to(kept) if split else None,
            edges=None if self.edges is None else self.edges.to(kept),
            residual=max(self.residual, self.inside) if split else self.residual,
            tokens=token_texts(self.run.host, ids),
            sources=tuple(range(len(ids))) if self.sources is None else tuple(self.sources),
            probes=None if probes is None else probes.to(kept),
            replay=self.replay,
            meta=meta | {"together": self.sources is None, "residual_inside_heads": self.inside},
        )
