"""Cutting places of one run: what the gradient says that it will do, and what it does."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_scopes.calculus.describe import describe
from lens_scopes.calculus.finite import refuse_nonfinite
from lens_scopes.calculus.pair import one_output, refuse_unpredictable
from lens_scopes.calculus.trace import Trace, trace
from lens_scopes.calculus.variants import Kept, RowEdit
from lens_scopes.host import Host, token_texts
from lens_scopes.host.prompts import Positions, Prompt
from lens_scopes.host.undo import guarded
from lens_scopes.patching.compare import Comparison
from lens_scopes.patching.contract import contract, wide
from lens_scopes.patching.places import At, places_of, sites_of
from lens_scopes.patching.value import Value, begins, opened
from lens_scopes.results.arguments import shown, vector
from lens_scopes.results.labelled import precision
from lens_scopes.results.scores import Scores
from lens_scopes.scopes.protocol import Scope, cotangents_at, site_of


@guarded
def ablate(
    model: Any,
    prompt: Prompt,
    scope: Scope,
    *,
    where: Bool[Tensor, "site pos ..."] | Bool[np.ndarray, "site pos ..."] | Sequence[Any] | None,
    by: Literal["mean", "zero"] | Float[Tensor, "..."] | Float[np.ndarray, "..."] = "mean",
    position: Positions = -1,
    sites: str | list[str] | tuple[str, ...] | None = None,
) -> Comparison:
    """What replacing the activation a of a place by a' does to what the scope measures, a place at a time.

    Predicted: ⟨J_{a,t}ᵀv, a'_t − a_t⟩ to first order (in squared units ½ Σ λ_i ⟨J_tᵀu_i, a'_t − a_t⟩²). Measured:
    metric(cut run) − metric(run). Zero is far outside of what an activation ever is, and the two differ most there.

    One forward and one backward pass for the prediction, whatever the places; each cut is a row of a batch that begins
    at the first block that it changes.

    Args:
        model: a HookedTransformer or TransformerBridge, in eval mode. It is left as it came.
        prompt: see ``score``.
        scope: what is measured (``patching.metric``); for Fisher KL(p ‖ p_cut).
        where: the places, shaped like the values at these sites; or heads, [(layer, head), ...], each cut at all
            positions at once. None: all places.
        by: "mean": the mean of the same site (and head) over all *other* positions of this prompt, special tokens and
            positions after the one explained among them, so that nothing of the place itself is left. "zero". Or a
            tensor of activations that broadcasts to [site, pos(, head), d]: one vector [d] for every place, or a site's
            activations in another run.
        position: whose next-token prediction is measured.
        sites: see ``score``; for heads "z", unless "q", "k" or "v" is asked for.

    Returns:
        A Comparison with axes ("site", "pos"(, "head")), for heads ("site", "head"), NaN at places not asked for. The
        metric of the run itself is ``measured.meta["metric"]["run"]``.

    Raises:
        ValueError: ``where`` of another shape or without a place, heads that the model does not have, a tensor that
            does not fit or is not finite, a mean over a prompt of one token, a scope without a metric; or see
            ``score``.
        IndexError: a position outside the prompt.

    Example:
        >>> import lens_scopes as ls
        >>> model, case = ls.demo.load(), ls.demo.cases("induction", n=1)[0]
        >>> cut = ls.patching.ablate(model, case.prompt, ls.Semantic(case.answer), where=[(1, 0), (2, 3)], by="mean")
        >>> int(cut.where.sum()), cut.measured.meta["metric"].keys()
        (2, dict_keys(['run']))

    """
    host = Host(model)
    asked = one_output(host, prompt, scope, position)
    wanted = sites_of(host, sites, where, site_of(scope))
    with host.alone():
        run = trace(host, asked.tokens, opened(host, wanted.names, scope), asked.positions)
        asked = asked.resolved(run)
        (made,) = cotangents_at(asked.scope, run.ends(0))
        refuse_unpredictable(host, wanted.names, made)
        value = Value.at_end_of(run, asked.scope)
        shape = torch.Size([len(wanted.names), *run.sites[wanted.names[0]].shape[1:-1]])
        places = places_of(host, wanted, where, torch.zeros(shape, dtype=torch.bool, device="cpu"))
        indices = places.asked.nonzero().tolist()
        if not indices:
            msg = "ablate cuts places, and where asks for none; set one of its entries"
            raise ValueError(msg)
        cut = {wanted.names[s]: _replacement(by, s, wanted.names[s], run) for s in dict.fromkeys(i[0] for i in indices)}
        change = {name: other - wide(run.sites[name][0].detach()) for name, other in cut.items()}
        # No further back than to the first place that is cut.
        reached = replace(run, handles={name: run.handles[name] for name in cut})
        rows = contract(reached, [made], change)
        kept = Kept(host, asked.ids, {name: run.sites[name].detach() for name in begins(list(cut))})
        kept = kept.cut(max(asked.positions) + 1)
        # What comes after the position does nothing.
        reaching = [n for n, i in enumerate(indices) if places.whole_heads or i[1] < len(kept.tokens)]
        cuts = [[_cut(cut, wanted.names[indices[n][0]], places.at(indices[n]))] for n in reaching]
        before = float(value.of(run))
        measured = torch.zeros(len(indices), dtype=torch.float64, device="cpu")
        measured[reaching] = value.of_patched(kept, cuts) - before
    by_row = [rows[name][0].sum(1) if places.whole_heads else rows[name][0] for name in cut]
    named = [wanted.names.index(name) for name in cut]
    predicted = torch.cat([some[:, places.asked[s]] for s, some in zip(named, by_row, strict=True)], 1).double()
    if made.squared:
        predicted = predicted.square() / 2
    at = torch.tensor([i[0] for i in indices], device="cpu")
    for what, values in (("predicted effects of cuts", predicted.sum(0)), ("effects of cuts", measured)):
        refuse_nonfinite(host, asked.tokens, {wanted.names[s]: values[at == s] for s in named}, what)
    meta = describe(run, 0, [made], asked, ())
    meta |= {
        "units": "squared" if made.squared else "signed",
        "along": "tensor",
        "replace": by if isinstance(by, str) else "tensor",
        "metric": {"run": before},
    }
    dtype = precision(host.dtype, meta["units"])

    def laid_out(values: Float[Tensor, "*row place"]) -> Float[Tensor, "..."]:
        whole = torch.full((*values.shape[:-1], *places.asked.shape), torch.nan, dtype=dtype, device="cpu")
        whole[..., places.asked] = values.to(dtype)
        return whole

    labels = (places.dims, places.coords, token_texts(host, asked.ids.tolist()))
    probes = laid_out(predicted[-made.probes :]) if made.probes else None
    return Comparison(
        Scores(laid_out(predicted.sum(0)), *labels, meta | {"patching": "predicted"}, probes),
        Scores(laid_out(measured), *labels, meta | {"patching": "measured", "measured": len(reaching)}),
    )


def _replacement(by: Any, number: int, name: str, run: Trace) -> Float[Tensor, "pos *head d"]:
    """What the activation of a site is replaced by, at every place; in float32 or wider."""
    activation = wide(run.sites[name][0].detach())
    if isinstance(by, str):
        if by == "zero":
            return torch.zeros_like(activation)
        if by != "mean":
            msg = f'by is "mean", "zero" or a tensor of activations, got {by!r}; write by="mean"'
            raise ValueError(msg)
        if len(activation) == 1:
            msg = 'by="mean" is the mean over the other positions, and the prompt has one token; write by="zero"'
            raise ValueError(msg)
        return (activation.sum(0) - activation) / (len(activation) - 1)
    given = vector(by, "by (what activations are replaced by)").to(activation)
    if not given.isfinite().all():
        msg = f"by replaces activations, and holds NaN or infinity, got {shown(by)}; write finite numbers"
        raise ValueError(msg)
    try:
        return (given[number] if given.ndim > activation.ndim else given).expand_as(activation)
    except (RuntimeError, IndexError):
        msg = (
            f"by is a tensor that broadcasts to [site, pos(, head), d], at {name} to {tuple(activation.shape)}, got "
            f"{shown(by)}; write e.g. a vector [{activation.shape[-1]}]"
        )
        raise ValueError(msg) from None


def _cut(cut: dict[str, Tensor], site: str, at: At) -> tuple[str, RowEdit]:
    def edit(row: Tensor) -> None:
        row[at] = cut[site][: len(row)][at].to(row)

    return site, edit
