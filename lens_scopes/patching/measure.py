"""The true effect of activation patching: each patch a row of a batch that begins at the block it changes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from lens_scopes.calculus.describe import describe
from lens_scopes.calculus.finite import refuse_nonfinite
from lens_scopes.calculus.pair import Pair, changed
from lens_scopes.calculus.reach import refuse_late
from lens_scopes.calculus.variants import Kept, RowEdit
from lens_scopes.host import token_texts
from lens_scopes.host.differentiable import refuse_dropout
from lens_scopes.host.prompts import Positions, Prompt
from lens_scopes.host.undo import guarded
from lens_scopes.patching.activations import Activations
from lens_scopes.patching.places import At, places_of, sites_of
from lens_scopes.patching.value import Value, begins, opened
from lens_scopes.results.arguments import flag
from lens_scopes.results.labelled import precision
from lens_scopes.results.scores import Scores
from lens_scopes.scopes.protocol import Scope, cotangents_at, site_of
from lens_scopes.sites import EMBED, STREAM


@guarded
def measure(
    model: Any,
    clean: Prompt,
    corrupted: Prompt,
    scope: Scope,
    *,
    position: Positions = -1,
    sites: str | list[str] | tuple[str, ...] | None = None,
    where: Bool[Tensor, "site pos ..."] | Bool[np.ndarray, "site pos ..."] | Sequence[Any] | None = None,
    together: bool = False,
    cache: dict[str, Any] | None = None,
) -> Scores:
    """metric(patched run) − metric(corrupted run) for every place, one patch at a time.

    What ``transformer_lens.patching`` measures place by place. Here each patch is a row of a batch; a batch begins at
    the first block that it changes, from the corrupted run's residual stream, and is read out at the position alone.
    Models whose blocks exchange more than the stream, and models with hooks of the user's before and behind that block,
    are run whole. Places that cannot matter are not run and are exactly 0: places where the two runs have the same
    activation and, where attention is causal, positions after the one explained.

    Args:
        model: a HookedTransformer or TransformerBridge, in eval mode. It is left as it came.
        clean: the prompt that activations are taken from.
        corrupted: the prompt that they are patched into, of the same length.
        scope: what is measured (``patching.metric``); for Fisher KL(p_corrupted ‖ p_patched).
        position: whose next-token prediction is measured.
        sites: see ``score``.
        where: the places to measure, shaped like the values, NaN elsewhere; or heads, [(layer, head), ...], each
            patched at all positions at once. None: all places.
        together: patch all of those places in one run.
        cache: a dict of yours, at first empty. It keeps the activations of this pair, so that the next call with it
            runs patches alone. They are as large as the sites.

    Returns:
        Scores with axes ("site", "pos"(, "head")), for heads ("site", "head"), units "signed" ("squared" for Fisher);
        with ``together`` a single number without axes, its places in ``meta["places"]``.

    Raises:
        ValueError: prompts of different length, ``where`` of another shape or heads that the model does not have, a
            cache of another pair or model, a scope without a metric; or see ``score``.
        IndexError: a position outside the prompts.

    Example:
        >>> import lens_scopes as ls
        >>> model, case = ls.demo.load(), ls.demo.cases("ioi", n=1)[0]
        >>> pair = (case.prompt, case.corrupted, ls.Semantic(case.answer, case.versus))
        >>> ls.patching.measure(model, *pair, where=[(1, 0), (2, 3)], together=True).values.shape
        torch.Size([])

    """
    together = flag(together, "together (all places in one run)")
    pair = Pair.of(model, clean, corrupted, scope, position)
    host = pair.host
    wanted = sites_of(host, sites, where, site_of(scope))
    refuse_late(host, wanted.names, site_of(scope), "patches")
    refuse_dropout(host.model)
    with host.alone():
        found = Activations.of(pair, opened(host, wanted.names, scope), cache)
        clean_run, run = found.traces()
        pair = pair.resolved(clean_run)
        (made,) = cotangents_at(pair.scope, run.ends(0))
        differs = torch.stack([changed(found.clean[name][0], found.corrupted[name][0]) for name in wanted.names]).cpu()
        places = places_of(host, wanted, where, differs)
        begin = {name: found.corrupted[name] for name in begins(wanted.names)}
        kept = Kept(host, pair.corrupted, begin).cut(max(pair.positions) + 1)
        differs[:, len(kept.tokens) :] = False
        # Together, a place where the runs agree still matters: what is patched before it may change it.
        indices = [i for i in places.asked.nonzero().tolist() if together or differs[i[0]][places.at(i)].any()]
        if together and not indices:
            msg = "together patches a set of places in one run, and where asks for no place; set one of its entries"
            raise ValueError(msg)
        patches = [_patch(found.clean, wanted.names[i[0]], places.at(i)) for i in indices]
        value = Value.at_end_of(run, pair.scope)
        before, clean_value = (float(value.of(one)) for one in (run, clean_run))
        patched = value.of_patched(kept, [patches] if together else [[patch] for patch in patches])
    effects = torch.full(places.asked.shape, torch.nan, dtype=torch.float64, device="cpu")
    effects = effects.masked_fill(places.asked, 0.0)
    texts = token_texts(host, pair.corrupted.tolist())
    meta = describe(run, 0, [made], pair.asked, ())
    meta |= {
        "units": "squared" if made.squared else "signed",
        "along": "tensor",
        "patching": "measured",
        "clean_token_ids": pair.clean.tolist(),
        "clean_tokens": list(token_texts(host, pair.clean.tolist())),
        "metric": {"corrupted": before, "clean": clean_value},
        "measured": len(patched),
    }
    dtype = precision(host.dtype, meta["units"])
    if together:
        refuse_nonfinite(host, pair.corrupted[None], {wanted.names[indices[-1][0]]: patched}, "the effect of patches")
        meta["places"] = [places.labels(i) for i in indices]
        return Scores((patched.sum() - before * len(patched)).to(dtype), (), {}, texts, meta)
    by_site = {name: patched[[i[0] == s for i in indices]] for s, name in enumerate(wanted.names)}
    refuse_nonfinite(host, pair.corrupted[None], by_site, "the effect of patches")
    for index, effect in zip(indices, (patched - before).tolist(), strict=True):
        effects[tuple(index)] = effect
    return Scores(effects.to(dtype), places.dims, places.coords, texts, meta)


def _patch(clean: Mapping[str, Tensor], site: str, at: At) -> tuple[str, RowEdit]:
    """Where the edit is made, and the edit: the clean activation, of those positions that the row has."""
    # Patching the embedding is patching the first block's input: nothing else reads it (position embeddings are equal).
    site = STREAM["resid_pre"].format(0) if site == EMBED else site

    def edit(row: Tensor) -> None:
        if not isinstance(at[0], int) or at[0] < len(row):
            row[at] = clean[site][0, : len(row)][at]

    return site, edit
