"""The front door: scope scores of a prompt's tokens, at the input and at every layer, from one forward pass."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from lens_scopes.calculus.describe import describe
from lens_scopes.calculus.pullback import Rows, pull_back
from lens_scopes.calculus.trace import trace
from lens_scopes.host import Host, encode, token_texts
from lens_scopes.host.prompts import Positions, Prompt, positions_of
from lens_scopes.results.scores import Scores
from lens_scopes.scopes.state import Cotangents, Scope, cotangents_of
from lens_scopes.sites import FINAL, Sites, depth

Along = Literal["activation"] | Float[Tensor, "site pos d_model"] | None

# Prompts of one length run together up to this many tokens.
_BATCH_TOKENS = 4096


def score(
    model: Any,
    prompt: Prompt,
    scope: Scope,
    *,
    position: Positions = -1,
    sites: str | Sequence[str] | None = None,
    along: Along = None,
    freeze: Sequence[str] = (),
) -> Scores:
    """How much each token, at each site, moves what the scope looks at: ‖J_tᵀv‖ for every place, from one forward.

    J_t = ∂y/∂a_t is the Jacobian of the final state y with respect to the site's activation at position t; v are the
    scope's cotangents. At the embedding this is the score of arXiv 2601.16407; a site of any layer works the same.

    Args:
        model: a HookedTransformer or TransformerBridge, in eval mode. It is left as it came.
        prompt: a string (the host's BOS rule, never cut), token ids (exactly these), or chat messages.
        scope: ``Semantic()``, ``Temperature()``, ``Fisher()``, ``Metric(fn)``, ``Direction(vector)``, or a function.
        position: the position(s) whose next-token prediction is explained: an index, a list, or "all".
        sites: None for the embedding and every ``hook_resid_post``; a shorthand for all layers ("embed", "resid_pre",
            "resid_mid", "resid_post", "attn_out", "mlp_out", or "z", "q", "k", "v" by head); or hook names.
        along: None for norms; "activation" or a tensor [site, pos, d_model] x for ⟨J_tᵀv, x⟩, signed (for a squared
            scope Σ_i w_i⟨J_tᵀv_i, x⟩²).
        freeze: parts of the model held constant in the linearisation: "norm" (scales), "attention" (patterns), "mlp"
            (the activation's secant).

    Returns:
        Scores with axes ("site", "pos"), ("target_pos", "site", "pos") for several positions, and "head" last for
        sites by head. Positions after the one explained score exactly 0.

    Raises:
        ValueError: sites, positions, targets or prompts that the model does not have; NaN or infinity anywhere.
        IndexError: a position outside the prompt.
        RuntimeError: a model in train mode with dropout, or one whose readout cannot be reproduced.
        TypeError: not a model, a prompt or a scope.

    """
    return score_batch(model, [prompt], [scope], position=position, sites=sites, along=along, freeze=freeze)[0]


def score_batch(
    model: Any,
    prompts: Sequence[Prompt],
    scopes: Scope | Sequence[Scope],
    *,
    position: Positions = -1,
    sites: str | Sequence[str] | None = None,
    along: Along = None,
    freeze: Sequence[str] = (),
) -> list[Scores]:
    """``score`` for many prompts: those of equal length run together, nothing is padded; results in the order given.

    Args:
        model: see ``score``.
        prompts: see ``score``; a negative position counts from each prompt's own end.
        scopes: one for all, or one per prompt.
        position: see ``score``.
        sites: see ``score``.
        along: see ``score``; a tensor fits prompts of its own length only.
        freeze: see ``score``.

    Returns:
        One Scores per prompt, equal to scoring them one by one up to rounding.

    Raises:
        ValueError: see ``score``; or not one scope per prompt.
        IndexError: see ``score``.
        RuntimeError: see ``score``.
        TypeError: see ``score``; or a single string instead of a list of prompts.

    """
    host = Host(model)
    if isinstance(prompts, str):
        msg = "score_batch takes a list of prompts; for one prompt write score(...)"
        raise TypeError(msg)
    # A string is a mistake that the check of each scope names.
    several = isinstance(scopes, Sequence) and not isinstance(scopes, str)
    each = cast("list[Scope]", list(cast("Sequence[Scope]", scopes)) if several else [scopes] * len(prompts))
    if len(each) != len(prompts):
        msg = f"{len(prompts)} prompts but {len(each)} scopes; give one for all or one per prompt"
        raise ValueError(msg)
    wanted = host.sites(sites)
    encoded = [encode(host, prompt) for prompt in prompts]
    by_length: dict[int, list[int]] = defaultdict(list)
    for i, ids in enumerate(encoded):
        by_length[len(ids)].append(i)
    found: dict[int, Scores] = {}
    for length, group in by_length.items():
        size = max(1, _BATCH_TOKENS // length)
        positions = positions_of(position, length)
        for members in (group[start : start + size] for start in range(0, len(group), size)):
            tokens = torch.stack([encoded[i] for i in members])
            listed = not isinstance(position, int)
            batch = _Batch(host, tokens, [each[i] for i in members], wanted, positions, listed, along, freeze)
            found.update(zip(members, batch.scores(), strict=True))
    return [found[i] for i in range(len(prompts))]


class _Batch:
    """Prompts of one length on their way through the model; made, asked for its scores, and dropped."""

    def __init__(
        self,
        host: Host,
        tokens: Tensor,
        scopes: list[Scope],
        wanted: Sites,
        positions: tuple[int, ...],
        several: bool,
        along: Along,
        freeze: Sequence[str],
    ) -> None:
        self.host, self.scopes, self.wanted, self.positions, self.several = host, scopes, wanted, positions, several
        inner = {site for scope in scopes if (site := getattr(scope, "site", FINAL)) != FINAL}
        for site in inner - set(wanted.names):
            host.sites([site])
        self.run = trace(host, tokens, [*wanted.names, *sorted(inner - set(wanted.names))], positions, freeze)
        self.freeze = freeze
        self.cotangents = [
            [cotangents_of(scope, self.run.state(b, n)) for n in range(len(positions))]
            for b, scope in enumerate(scopes)
        ]
        self.units = _units(self.cotangents, along)
        self.along = self._directions(along)
        self.along_name = "tensor" if isinstance(along, Tensor) else along

    def scores(self) -> list[Scores]:
        """Pull everything back, site of the cotangents by site, and reduce chunk by chunk."""
        found: list[Scores | None] = [None] * len(self.scopes)
        by_site: dict[str, list[int]] = defaultdict(list)
        for b, row in enumerate(self.cotangents):
            by_site[row[0].site].append(b)
        for site, members in by_site.items():
            self._refuse_later_sources(site)
            # Prompts whose cotangents live elsewhere take part with no rows at all.
            rows = Rows.of([row if b in members else [] for b, row in enumerate(self.cotangents)])
            lengths = self._squares(rows, site)
            for b in members:
                found[b] = self._assemble(b, lengths[b])
        return [s for s in found if s is not None]

    def _squares(self, rows: Rows, site: str) -> list[Tensor]:
        """By prompt, [row, site, pos(, head)]: ‖g‖², or ⟨g, x⟩ where a direction was given."""
        collected: list[list[Tensor]] = [[] for _ in self.scopes]
        for chunk, gradients in pull_back(self.run, rows, site):
            stacked = torch.stack([self._reduce(gradients[name], s) for s, name in enumerate(self.wanted.names)], 2)
            for b in range(len(self.scopes)):
                collected[b].append(stacked[: max(0, min(chunk.stop, len(rows.position[b])) - chunk.start), b].cpu())
        return [torch.cat(parts) for parts in collected]

    def _reduce(self, gradient: Tensor, site: int) -> Tensor:
        """[row, batch, pos(, head), d] -> [row, batch, pos(, head)]."""
        work = torch.promote_types(gradient.dtype, torch.float32)
        if self.along is None:
            return torch.linalg.vector_norm(gradient, dim=-1, dtype=work).square()
        return (gradient.to(work) * self.along[site].to(work)).sum(-1)

    def _assemble(self, b: int, reduced: Tensor) -> Scores:
        """The scores of one prompt from its reduced rows."""
        quadratic = reduced if self.along is None else reduced.square()
        values, probes, start = [], [], 0
        for made in self.cotangents[b]:
            part = quadratic[start : start + len(made.vectors)]
            signed = reduced[start : start + len(made.vectors)]
            start += len(made.vectors)
            if made.weights is not None:
                part = part * made.weights.cpu().reshape(-1, *[1] * (part.ndim - 1)).to(part.dtype)
            if made.probes:
                probes.append(part[-made.probes :])
            if self.units == "signed":
                weight = 1.0 if made.weights is None else float(made.weights[0]) ** 0.5
                values.append(signed[0] * weight)
            else:
                values.append(part.sum(0) if self.units == "squared" else part.sum(0).sqrt())
        value = torch.stack(values)
        scatter = torch.stack(probes, 1) if len(probes) == len(values) and len({len(p) for p in probes}) == 1 else None
        self._refuse_nonfinite(value)
        dims, coords = ["target_pos", "site", "pos"], {"target_pos": self.positions, "site": self.wanted.names}
        coords["pos"] = tuple(range(value.shape[2]))
        if self.wanted.per_head:
            dims, coords["head"] = [*dims, "head"], tuple(range(value.shape[3]))
        ids = self.run.tokens[b].tolist()
        meta = describe(self.run, b, self.cotangents[b], self.scopes[b], self.freeze, several=self.several)
        meta |= {"units": self.units, "along": self.along_name}
        scores = Scores(value, tuple(dims), coords, token_texts(self.host, ids), meta, scatter)
        return scores if self.several else _without_target(scores)

    def _directions(self, along: Along) -> list[Tensor] | None:
        """By site, [batch, pos(, head), d] or what broadcasts to it."""
        if along is None:
            return None
        activations = [self.run.sites[name].detach() for name in self.wanted.names]
        if isinstance(along, Tensor):
            shape = (len(activations), *activations[0].shape[1:])
            if tuple(along.shape) != shape:
                msg = f"along has shape {tuple(along.shape)}, the sites need [site, pos, d_model] = {shape}"
                raise ValueError(msg)
            return list(along.detach().to(self.run.y.device))
        if along != "activation":
            msg = f"along is None, 'activation' or a tensor [site, pos, d_model], got {along!r}"
            raise ValueError(msg)
        return activations

    def _refuse_later_sources(self, site: str) -> None:
        n = self.host.n_layers
        late = [name for name in self.wanted.names if site != FINAL and depth(name, n) >= depth(site, n)]
        if late:
            msg = f"the direction reads {site}; sources at or after it do not reach it: {', '.join(late)}"
            raise ValueError(msg)

    def _refuse_nonfinite(self, values: Tensor) -> None:
        if values.isfinite().all():
            return
        sites = {n: self.run.sites[n] for n in sorted(self.wanted.names, key=lambda n: depth(n, self.host.n_layers))}
        where = next((name for name, a in sites.items() if not a.isfinite().all()), None)
        what = "the activation"
        if where is None:  # gradients run backwards: the last site that has it is where it begins
            bad = [s for s, name in enumerate(self.wanted.names) if not values.select(1, s).isfinite().all()]
            where = max((self.wanted.names[s] for s in bad), key=lambda n: depth(n, self.host.n_layers))
            what = "the gradient"
        dtype = str(sites[where].dtype).removeprefix("torch.")
        msg = f"NaN or infinity: {what} at {where} is the first that has it, in {dtype}; try float32 or bfloat16"
        raise ValueError(msg)


def _units(cotangents: list[list[Cotangents]], along: Along) -> str:
    """ "norm", "squared" or "signed", the same for every prompt and position."""
    every = [made for row in cotangents for made in row]
    squared = {made.squared for made in every}
    if len(squared) > 1:
        msg = "scopes in norm and in squared units do not fit one call; score them separately"
        raise ValueError(msg)
    if squared == {True}:
        return "squared"
    if along is None:
        return "norm"
    if any(len(made.vectors) > 1 for made in every):
        msg = "a signed product needs one cotangent; return ls.Cotangents(vectors, squared=True) for several"
        raise ValueError(msg)
    return "signed"


def _without_target(scores: Scores) -> Scores:
    bare = scores.sel(target_pos=scores.coords["target_pos"][0])
    return replace(bare, meta={key: value for key, value in bare.meta.items() if key != "selected"})
