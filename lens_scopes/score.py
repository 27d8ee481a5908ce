"""The front door: scope scores of a prompt's tokens, at the input and at every layer, from one forward pass."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_scopes.calculus.describe import describe
from lens_scopes.calculus.finite import refuse_nonfinite
from lens_scopes.calculus.memory import prompts_at_once
from lens_scopes.calculus.pullback import Rows
from lens_scopes.calculus.reduction import combined, reduced, units_of
from lens_scopes.calculus.trace import Trace, trace
from lens_scopes.host import Host, encode, roles_of, token_texts
from lens_scopes.host.prompts import Positions, Prompt, positions_of
from lens_scopes.host.undo import guarded
from lens_scopes.results.given import is_integer, shown, vector
from lens_scopes.results.provenance import Units
from lens_scopes.results.scores import Scores
from lens_scopes.scopes.protocol import Scope, cotangents_of, site_of
from lens_scopes.scopes.state import Cotangents
from lens_scopes.sites import FINAL, Sites, at_or_after

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
    if isinstance(prompts, str) or not isinstance(prompts, Sequence | Tensor | np.ndarray):
        msg = f"score_batch takes a list of prompts, got {shown(prompts)}; for one prompt write score(...)"
        raise TypeError(msg)
    # A string is a mistake that the check of each scope names; a tuple that can be called is a scope with named fields.
    several = isinstance(scopes, Sequence) and not isinstance(scopes, str) and not callable(scopes)
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
        size = prompts_at_once(host, length)
        asked = _Asked(wanted, positions_of(position, length), not is_integer(position), along, freeze)
        for members in (group[start : start + size] for start in range(0, len(group), size)):
            tokens = torch.stack([encoded[i] for i in members])
            found.update(
                zip(members, _together(host, tokens, [(prompts[i], each[i]) for i in members], asked), strict=True)
            )
    return [_with_roles(host, prompt, found[i]) for i, prompt in enumerate(prompts)]


@dataclass(frozen=True)
class _Asked:
    """What a call asks of every prompt."""

    wanted: Sites
    positions: tuple[int, ...]
    several: bool
    """Whether a list of positions was asked for, which gives the scores an axis for them."""
    along: Along
    freeze: Sequence[str]


def _together(
    host: Host, tokens: Int[Tensor, "batch pos"], members: list[tuple[Prompt, Scope]], asked: _Asked
) -> list[Scores]:
    """Prompts of one length: one forward, everything pulled back site of the cotangents by site."""
    scopes = [scope for _, scope in members]
    names = asked.wanted.names
    inner = [site for site in dict.fromkeys(map(site_of, scopes)) if site != FINAL and site not in names]
    for site in inner:
        host.sites([site])
    run = trace(host, tokens, [*names, *inner], asked.positions, asked.freeze)
    made = [
        [cotangents_of(scope, run.state(b, n)) for n in range(len(asked.positions))] for b, scope in enumerate(scopes)
    ]
    signed = asked.along is not None
    units, along = units_of(made, signed), _directions(run, asked)
    found: list[Scores | None] = [None] * len(scopes)
    for site in dict.fromkeys(row[0].site for row in made):
        _refuse_later_sources(host, site, names)
        # Prompts whose cotangents live elsewhere take part with no rows at all.
        rows = Rows.of([row if row[0].site == site else [] for row in made])
        for b, own in enumerate(reduced(run, rows, site, names, along)):
            if made[b][0].site == site:
                values, probes = combined(own, made[b], units, signed)
                found[b] = _labelled(run, b, made[b], members[b], asked, values, probes, units)
    return [scores for scores in found if scores is not None]


def _labelled(
    run: Trace,
    b: int,
    made: list[Cotangents],
    member: tuple[Prompt, Scope],
    asked: _Asked,
    values: Float[Tensor, "target site pos *head"],
    probes: Tensor | None,
    units: Units,
) -> Scores:
    """One prompt's numbers with their names and where they come from."""
    refuse_nonfinite(run.host, run.tokens, {name: values[:, s] for s, name in enumerate(asked.wanted.names)})
    dims = ("target_pos", "site", "pos", "head")[: values.ndim]
    labels = (asked.positions, asked.wanted.names, *(tuple(range(size)) for size in values.shape[2:]))
    prompt, scope = member
    meta = describe(run, b, made, scope, asked.freeze, prompt, several=asked.several)
    meta |= {"units": units, "along": asked.along if isinstance(asked.along, str | None) else "tensor"}
    texts = token_texts(run.host, run.tokens[b].tolist())
    if not asked.several:
        values, probes, dims, labels = values[0], None if probes is None else probes[:, 0], dims[1:], labels[1:]
    return Scores(values, dims, dict(zip(dims, labels, strict=True)), texts, meta, probes)


def _with_roles(host: Host, prompt: Prompt, scores: Scores) -> Scores:
    """Of a chat, the tokens of each message go into ``meta``."""
    roles = roles_of(host, prompt)
    return scores if roles is None else replace(scores, meta=scores.meta | {"roles": roles})


def _directions(run: Trace, asked: _Asked) -> list[Tensor] | None:
    """By site, [batch, pos(, head), d] or what broadcasts to it."""
    along = asked.along
    if along is None:
        return None
    activations = [run.sites[name].detach() for name in asked.wanted.names]
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


def _refuse_later_sources(host: Host, site: str, names: Sequence[str]) -> None:
    late = at_or_after(site, names, host.n_layers)
    if late:
        msg = (
            f"the direction reads {site}; sources at or after it do not reach it, got {', '.join(late)}; write sites= "
            "of earlier ones, e.g. 'embed'"
        )
        raise ValueError(msg)
