"""Patches where they are worth it: every place predicted, and measured from the top until the top stands."""

from dataclasses import replace
from typing import Any

import torch

from lens_scopes.host.prompts import Positions, Prompt
from lens_scopes.host.undo import guarded
from lens_scopes.patching.compare import Comparison, compare
from lens_scopes.patching.measure import measure
from lens_scopes.patching.predict import predict
from lens_scopes.results.arguments import Integer, integer
from lens_scopes.results.scores import Scores
from lens_scopes.scopes.protocol import Scope

# Patches before the first look at what they changed; how many of the latest are looked at; how many are the top.
_FIRST, _LATEST, _TOP = 10, 5, 5


@guarded
def screen(
    model: Any,
    clean: Prompt,
    corrupted: Prompt,
    scope: Scope,
    *,
    sites: str | list[str] | tuple[str, ...] | None,
    budget: Integer = 20,
    position: Positions = -1,
) -> Comparison:
    """Predict every place, and measure the largest predictions until the five largest effects stand.

    Places are tried from the largest magnitude of ``predict`` down: ten, and five more as long as the latest five
    brought a new member of the five largest measured effects. With no more than ``budget`` places where anything is
    predicted, all of them are measured.

    Args:
        model: a HookedTransformer or TransformerBridge, in eval mode. It is left as it came.
        clean: the prompt that activations are taken from.
        corrupted: the prompt that they are patched into, of the same length.
        scope: see ``predict`` and ``measure``.
        sites: see ``score``.
        budget: the most patches.
        position: whose next-token prediction is measured.

    Returns:
        A Comparison, measured NaN at places not tried; ``measured.meta["measured"]`` is how many patches were run.

    Raises:
        ValueError: a budget below 1; or see ``predict`` and ``measure``.
        IndexError: a position outside the prompts.

    Example:
        >>> import lens_scopes as ls
        >>> model, case = ls.demo.load(), ls.demo.cases("induction", n=1)[0]
        >>> scope = ls.Semantic(case.answer, case.versus)
        >>> found = ls.patching.screen(model, case.prompt, case.corrupted, scope, sites="mlp_out", budget=15)
        >>> found.measured.meta["measured"] <= 15
        True

    """
    budget = integer(budget, "budget (how many places are patched at most)", 1)
    predicted = predict(model, clean, corrupted, scope, position=position, sites=sites)
    size = predicted.values.abs().flatten()
    order, cache = size.argsort(descending=True, stable=True), {}

    def run(start: int, stop: int) -> Scores:
        where = torch.zeros_like(size, dtype=torch.bool)
        where[order[start:stop]] = True
        where = where.reshape(predicted.values.shape)
        return measure(
            model, clean, corrupted, scope, position=position, sites=list(predicted.coords["site"]), where=where,
            cache=cache,
        )  # fmt: skip

    few = int(torch.count_nonzero(size)) <= budget
    stop = budget if few else min(_FIRST, budget)
    measured = run(0, stop)
    while stop < budget and _changed(measured.values.flatten(), order[max(0, stop - _LATEST) : stop]):
        start, stop = stop, min(stop + _LATEST, budget)
        more = run(start, stop)
        values = torch.where(more.values.isnan(), measured.values, more.values)
        count = measured.meta.get("measured", 0) + more.meta.get("measured", 0)
        measured = replace(measured, values=values, meta=measured.meta | {"measured": count})
    return compare(predicted, measured)


def _changed(effects: torch.Tensor, latest: torch.Tensor) -> bool:
    """Whether any of the latest is among the largest measured."""
    largest = effects.abs().nan_to_num(nan=-1).topk(_TOP).indices
    return bool(torch.isin(latest, largest).any())
