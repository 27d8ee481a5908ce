"""The true effect of activation patching, place by place, through TransformerLens's own patching."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from lens_scopes.calculus.describe import describe
from lens_scopes.calculus.finite import refuse_nonfinite
from lens_scopes.calculus.memory import prompts_at_once
from lens_scopes.host import Host, token_texts
from lens_scopes.host.patching import patching_name, run_patched
from lens_scopes.host.prompts import Prompt
from lens_scopes.host.undo import guarded
from lens_scopes.patching.metric import ScopeMetric, metric
from lens_scopes.patching.pair import Pair, changed
from lens_scopes.patching.predict import axes
from lens_scopes.results.given import Integer, shown
from lens_scopes.results.scores import Scores
from lens_scopes.scopes.protocol import Scope, cotangents_of, resolve
from lens_scopes.sites import EMBED, STREAM

# Places patched in one forward: as many as run together, and at most so many logits.
_LOGITS = 2**26

#: A place: (site, pos) or (site, pos, head), as indices.
Place = tuple[int, ...]


@guarded
def measure(
    model: Any,
    clean: Prompt,
    corrupted: Prompt,
    scope: Scope,
    *,
    position: Integer = -1,
    sites: str | list[str] | tuple[str, ...] | None = None,
    where: Bool[Tensor, "site pos ..."] | Bool[np.ndarray, "site pos ..."] | None = None,
) -> Scores:
    """metric(patched run) − metric(corrupted run) for every place, one patch at a time.

    Runs ``transformer_lens.patching.generic_activation_patch``, which all of its getters are made of, with many places
    in the batch of one forward. Places that cannot matter are not run and are exactly 0: positions after the one
    explained, and places where the two runs have the same activation.

    Args:
        model: a HookedTransformer or TransformerBridge, in eval mode. It is left as it came.
        clean: the prompt that activations are taken from.
        corrupted: the prompt that they are patched into, of the same length.
        scope: what is measured (``patching.metric``); for Fisher KL(p_corrupted ‖ p_patched).
        position: whose next-token prediction is measured.
        sites: see ``score``.
        where: the places to measure, shaped like the values; NaN elsewhere. None: all of them.

    Returns:
        Scores with axes ("site", "pos"(, "head")), units "signed" ("squared" for Fisher).

    Raises:
        ValueError: prompts of different length, ``where`` of another shape, a scope without a metric; or see ``score``.
        IndexError: a position outside the prompts.

    """
    pair = Pair.of(model, clean, corrupted, position)
    host = pair.host
    wanted = host.sites(sites)
    # Patching the embedding is patching the first block's input: nothing else reads it (position embeddings are equal).
    hooks = {name: STREAM["resid_pre"].format(0) if name == EMBED else name for name in wanted.names}
    opened = tuple(dict.fromkeys([*wanted.names, *hooks.values()]))
    clean_run = pair.trace(pair.clean, opened, scope)
    scope = resolve(scope, clean_run.state(0, 0))
    cache = {name: clean_run.sites[name].detach() for name in opened}
    run = pair.trace(pair.corrupted, opened, scope)
    differs = torch.stack([changed(cache[name][0], run.sites[name][0].detach()) for name in wanted.names]).cpu()
    differs[:, pair.position + 1 :] = False
    asked = _asked(where, differs)
    made = cotangents_of(scope, run.state(0, 0))
    meta = describe(run, 0, [made], scope, (), corrupted)
    del run, clean_run
    effects = torch.zeros(differs.shape, dtype=torch.float64, device="cpu")
    with host.alone(), torch.no_grad(), metric(model, pair.corrupted, scope, position=pair.position) as value:
        before, clean_value = (float(value(host.run(ids[None]))) for ids in (pair.corrupted, pair.clean))
        for kind in dict.fromkeys(map(_kind, wanted.names)):
            rows = [s for s, name in enumerate(wanted.names) if _kind(name) == kind]
            places = [(s, *place) for s in rows for place in (asked & differs)[s].nonzero().tolist()]
            for place, patched in _patched(pair, places, [hooks[name] for name in wanted.names], cache, value):
                effects[place] = patched - before
    refuse_nonfinite(host, pair.corrupted[None], dict(zip(wanted.names, effects, strict=True)), "the effect of patches")
    effects = effects.to(torch.float64 if host.dtype == torch.float64 else torch.float32)
    meta |= {
        "units": "squared" if made.squared else "signed",
        "along": "tensor",
        "patching": "measured",
        "clean_token_ids": pair.clean.tolist(),
        "metric": {"corrupted": before, "clean": clean_value},
        "measured": int((asked & differs).sum()),
    }
    effects = effects.masked_fill(~asked, torch.nan)
    return Scores(effects, *axes(wanted, effects.shape), token_texts(host, pair.corrupted.tolist()), meta)


def _asked(where: Tensor | np.ndarray | None, differs: Tensor) -> Tensor:
    if where is None:
        return torch.ones_like(differs)
    found = torch.from_numpy(where.copy()) if isinstance(where, np.ndarray) and where.dtype == np.bool_ else where
    if not isinstance(found, Tensor) or found.shape != differs.shape or found.dtype != torch.bool:
        msg = (
            f"where is a bool tensor shaped like the values, {tuple(differs.shape)} for these sites, got "
            f"{shown(where)}; write e.g. where=predicted.values.abs() > 0.1"
        )
        raise ValueError(msg)
    return found.cpu()


def _kind(name: str) -> str:
    """Sites of one kind go in one call; the embedding stands apart from the resid_pre that it is patched as."""
    return name if name == EMBED else patching_name(name) or name


def _patched(
    pair: Pair, places: list[Place], hooks: list[str], cache: Mapping[str, Tensor], value: ScopeMetric
) -> list[tuple[Place, float]]:
    """The metric with each place patched: as many places of one site as fit in the batch of a forward."""
    if not places:
        return []
    by_site = [[place for place in places if place[0] == s] for s in sorted({place[0] for place in places})]
    size = min(max(map(len, by_site)), _rows(pair.host, len(pair.corrupted)))
    groups = [group[i : i + size] for group in by_site for i in range(0, len(group), size)]

    def edit(group: list[Place]) -> Callable[[Tensor], None]:
        def patch(activation: Tensor) -> None:
            for row, (site, *at) in enumerate(group):
                activation[(row, *at)] = cache[hooks[site]][(0, *at)]

        return patch

    found: list[tuple[Place, float]] = []

    def read(job: int, logits: Tensor) -> None:
        effects = value.each(logits).tolist()[: len(groups[job])]  # rows left over hold no patch
        found.extend(zip(groups[job], effects, strict=True))

    jobs = [(hooks[group[0][0]], edit(group)) for group in groups]
    run_patched(pair.host, pair.corrupted.expand(size, -1), jobs, read)
    return found


def _rows(host: Host, length: int) -> int:
    return max(1, min(prompts_at_once(host, length), _LOGITS // (length * host.vocab)))
