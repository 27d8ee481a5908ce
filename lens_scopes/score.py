"""The front door: scope scores of a prompt's tokens, at the input and at every layer, from one forward pass."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lens_scopes.calculus.describe import describe
from lens_scopes.calculus.finite import refuse_nonfinite
from lens_scopes.calculus.memory import prompts_at_once
from lens_scopes.calculus.pullback import Rows
from lens_scopes.calculus.question import Asked, ask
from lens_scopes.calculus.reach import refuse_late
from lens_scopes.calculus.reduction import combined, reduced, units_of
from lens_scopes.calculus.signs import passes_of, total
from lens_scopes.calculus.trace import Trace, trace
from lens_scopes.host import Host, roles_of, token_texts
from lens_scopes.host.prompts import Positions, Prompt
from lens_scopes.host.undo import guarded
from lens_scopes.results.arguments import Integer, shown, vector
from lens_scopes.results.provenance import Units
from lens_scopes.results.scores import Scores
from lens_scopes.scopes.protocol import Scope, cotangents_at, site_of
from lens_scopes.scopes.state import Cotangents
from lens_scopes.sites import FINAL, Sites

Along = (
    Literal["activation"]
    | Float[Tensor, "site pos *head d"]
    | Float[np.ndarray, "site pos *head d"]
    | Sequence[Sequence[Sequence[float]]]
    | None
)


def score(
    model: Any,
    prompt: Prompt,
    scope: Scope,
    *,
    position: Positions = -1,
    sites: str | Sequence[str] | None = None,
    along: Along = None,
    freeze: Sequence[str] = (),
    reduce: Literal["sum"] | Integer | None = None,
) -> Scores:
    """How much each token, at each site, moves what the scope looks at: ‖J_tᵀv‖ for every place, from one forward.

    J_t = ∂y/∂a_t is the Jacobian of the final state y with respect to the site's activation at position t; v are the
    scope's cotangents. At the embedding this is the score of arXiv 2601.16407; a site of any layer works the same.

    Args:
        model: a HookedTransformer or TransformerBridge, in eval mode. It is left as it came.
        prompt: a string (the host's own BOS rule, never cut), token ids or a Text (exactly these), or chat messages.
        scope: ``Semantic()``, ``Temperature()``, ``Fisher()``, ``Metric(fn)``, ``Direction(vector)``, a function; or
            ``Continuation()``, which explains several tokens as one.
        position: the position(s) whose next-token prediction is explained: an index, a list, "all", or the name of a
            Text's span: the positions that predict its tokens.
        sites: None for the embedding and every ``hook_resid_post``, up to where a Direction reads; a shorthand for all
            layers ("embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", or "z", "q", "k", "v" by
            head); or hook names.
        along: None for norms; "activation" or a tensor [site, pos, d_model] x for ⟨J_tᵀv, x⟩, signed (for a squared
            scope Σ_i w_i⟨J_tᵀv_i, x⟩²).
        freeze: parts of the model held constant in the linearisation: "norm" (scales), "attention" (patterns), "mlp"
            (the activation's secant).
        reduce: "sum" for the total over the positions, Σ_p ‖J_pᵀv_p‖², in squared units (Σ_p ⟨J_pᵀv_p, x⟩² with
            ``along``; a signed sum is what ``Continuation`` gives): from 16 passes (for ``Fisher`` its own), or a
            number of passes, rounded down to a power of two. Exact where they suffice, else estimated: ``stderr``.

    Returns:
        Scores with axes ("site", "pos"), ("target_pos", "site", "pos") for several positions that are not summed, and
        "head" last for sites by head. Positions after the one explained score exactly 0.

    Raises:
        ValueError: sites, positions, targets or prompts that the model does not have; NaN or infinity anywhere.
        IndexError: a position outside the prompt.
        RuntimeError: a model in train mode with dropout, or one whose readout cannot be reproduced.
        TypeError: not a model, a prompt or a scope.

    """
    return score_batch(
        model, [prompt], [scope], position=position, sites=sites, along=along, freeze=freeze, reduce=reduce
    )[0]


@guarded
def score_batch(
    model: Any,
    prompts: Sequence[Prompt],
    scopes: Scope | Sequence[Scope],
    *,
    position: Positions = -1,
    sites: str | Sequence[str] | None = None,
    along: Along = None,
    freeze: Sequence[str] = (),
    reduce: Literal["sum"] | Integer | None = None,
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
        reduce: see ``score``.

    Returns:
        One Scores per prompt, equal to scoring them one by one up to rounding. Estimates draw the same signs in both;
        where rounding decides the sign of an eigenvector in them, they differ by a small part of their standard error.

    Raises:
        ValueError: see ``score``; or not one scope per prompt.
        IndexError: see ``score``.
        RuntimeError: see ``score``.
        TypeError: see ``score``; or a single string instead of a list of prompts.

    """
    host = Host(model)
    if isinstance(prompts, str) or not isinstance(prompts, Sequence | Tensor | np.ndarray):
        msg = f"score_batch takes a list of prompts, got {shown(prompts)}; for one prompt write score(...)"
        raise TypeError(msg)
    # A string is a mistake that the check of each scope names; a tuple that can be called is a scope with named fields.
    several = isinstance(scopes, Sequence) and not isinstance(scopes, str) and not callable(scopes)
    each = cast("list[Scope]", list(cast("Sequence[Scope]", scopes)) if several else [scopes] * len(prompts))
    if len(each) != len(prompts):
        msg = f"{len(prompts)} prompts but {len(each)} scopes; give one for all or one per prompt"
        raise ValueError(msg)
    options = Options(host.sites(sites, *map(site_of, each)), along, freeze, reduce)
    asked = [ask(host, prompt, scope, position) for prompt, scope in zip(prompts, each, strict=True)]
    alike: dict[tuple[int, tuple[int, ...]], list[int]] = defaultdict(list)
    for i, one in enumerate(asked):
        alike[len(one.ids), one.positions].append(i)
    found: dict[int, Scores] = {}
    for (length, _), group in alike.items():
        size = prompts_at_once(host, length)
        for members in (group[start : start + size] for start in range(0, len(group), size)):
            found.update(zip(members, answer(host, [asked[i] for i in members], options), strict=True))
    return [_with_roles(host, prompt, found[i]) for i, prompt in enumerate(prompts)]


@dataclass(frozen=True)
class Options:
    """What a call asks of every prompt."""

    wanted: Sites
    along: Along = None
    freeze: Sequence[str] = ()
    reduce: Literal["sum"] | Integer | None = None


def answer(host: Host, asked: Sequence[Asked], options: Options) -> list[Scores]:
    """Questions about texts of one length and the same positions: one forward, pulled back site by site."""
    names = options.wanted.names
    inner = [site for site in dict.fromkeys(site_of(one.scope) for one in asked) if site != FINAL and site not in names]
    for site in inner:
        host.sites([site])
    tokens = torch.stack([one.ids for one in asked])
    run = trace(host, tokens, [*names, *inner], asked[0].positions, options.freeze)
    if options.reduce is None:
        made = [cotangents_at(one.scope, run.ends(b)) for b, one in enumerate(asked)]
    else:
        made = [total(run, b, one, passes_of(options.reduce, one.scope)) for b, one in enumerate(asked)]
    signed = options.along is not None
    units, along = units_of(made, signed), _directions(run, options)
    found: list[Scores | None] = [None] * len(asked)
    for site in dict.fromkeys(row[0].site for row in made):
        refuse_late(host, names, site, "sources")
        # Prompts whose cotangents live elsewhere take part with no rows at all.
        rows = Rows.of([row if row[0].site == site else [] for row in made])
        for b, own in enumerate(reduced(run, rows, site, names, along)):
            if made[b][0].site == site:
                values, probes = combined(own, made[b], units, signed)
                if options.reduce is not None:
                    values = values.sum(0, keepdim=True)
                found[b] = _labelled(run, b, made[b], asked[b], options, values, probes, units)
    return [scores for scores in found if scores is not None]


def _labelled(
    run: Trace,
    b: int,
    made: list[Cotangents],
    asked: Asked,
    options: Options,
    values: Float[Tensor, "target site pos *head"],
    probes: Tensor | None,
    units: Units,
) -> Scores:
    """One prompt's numbers with their names and where they come from."""
    refuse_nonfinite(run.host, run.tokens, {name: values[:, s] for s, name in enumerate(options.wanted.names)})
    dims = ("target_pos", "site", "pos", "head")[: values.ndim]
    labels: tuple[tuple, ...] = (
        run.positions,
        options.wanted.names,
        *(tuple(range(size)) for size in values.shape[2:]),
    )
    meta = describe(run, b, made, asked, options.freeze)
    meta |= {"units": units, "along": options.along if isinstance(options.along, str | None) else "tensor"}
    texts = token_texts(run.host, run.tokens[b].tolist())
    if options.reduce is not None:
        meta |= {"reduce": "sum", "passes": sum(len(one.vectors) for one in made)}
    if not asked.several or options.reduce is not None:
        values, probes, dims, labels = values[0], None if probes is None else probes[:, 0], dims[1:], labels[1:]
    return Scores(values, dims, dict(zip(dims, labels, strict=True)), texts, meta, probes)


def _with_roles(host: Host, prompt: Prompt, scores: Scores) -> Scores:
    """Of a chat, the tokens of each message go into ``meta``."""
    roles = roles_of(host, prompt)
    return scores if roles is None else replace(scores, meta=scores.meta | {"roles": roles})


def _directions(run: Trace, options: Options) -> list[Tensor] | None:
    """By site, [batch, pos(, head), d] or what broadcasts to it."""
    along = options.along
    if along is None:
        return None
    activations = [run.sites[name].detach() for name in options.wanted.names]
    if isinstance(along, str) and along == "activation":
        return activations
    if isinstance(along, str):
        msg = f"along is None, 'activation' or numbers [site, pos, d_model], got {along!r}; write along='activation'"
        raise ValueError(msg)  # noqa: TRY004 - an unknown word
    given = vector(along, "along (None, 'activation' or [site, pos, d_model])")
    shape = (len(activations), *activations[0].shape[1:])
    if tuple(given.shape) != shape:
        msg = f"along is [site, pos, d_model] of these sites, got shape {tuple(given.shape)}; write shape {shape}"
        raise ValueError(msg)
    return list(given.to(run.y.device))
