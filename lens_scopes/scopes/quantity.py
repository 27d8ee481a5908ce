"""The number that a scope is the gradient of: what patching measures, of one run or of many at once."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lens_scopes.scopes.protocol import (
    Scope,
    cotangents_at,
    cotangents_of,
    resolve,
    said_by,
    spans_positions,
    text_of,
)
from lens_scopes.scopes.state import FinalState

#: What a scope measures, as a function of the state.
Quantity = Callable[[FinalState], Tensor]
#: The same of the states at the positions explained: one, or all that the scope spans.
Quantities = Callable[[Sequence[FinalState]], Tensor]


def quantity(scope: Scope, reference: FinalState) -> Quantity:
    """The number whose change a scope predicts, as a function of the state: what patching measures.

    The scope's ``value`` with its tokens resolved at the reference; its ``divergence`` from the reference; or, of any
    other scope of one cotangent v in norm units, ⟨v, y⟩ with v taken at the reference.

    Raises:
        ValueError: several cotangents without a number of their own; a number that depends on which other runs it is
            asked about with; or what the scope refuses.

    """
    made = cotangents_of(scope, reference)  # resolves tokens and refuses what the scope refuses
    scope = resolve(scope, reference)
    value, divergence = said_by(scope, "value"), said_by(scope, "divergence")
    if not made.squared and value is not None and value(reference) is not None:
        _refuse_mixing(value, scope, reference, _beside(reference))
        return value
    if made.squared and divergence is not None:
        from_reference = partial(divergence, reference=reference)
        _refuse_mixing(from_reference, scope, reference, _beside(reference))
        return from_reference
    if made.squared or len(made.vectors) != 1:
        msg = (
            f"{text_of(scope)} returns {len(made.vectors)} cotangents in {'squared' if made.squared else 'norm'} "
            "units: there is no one number that they are the gradient of; write ls.Metric(fn) or ls.Fisher()"
        )
        raise ValueError(msg)
    weight = 1.0 if made.weights is None else float(made.weights[0]) ** 0.5
    return lambda state: state.at(made.site) @ (made.vectors[0] * weight).to(state.y)


def quantities(scope: Scope, references: Sequence[FinalState]) -> Quantities:
    """``quantity`` for the positions that a question is about: all that a scope spans, or one.

    Raises:
        ValueError: see ``quantity``.

    """
    if not spans_positions(scope):
        (reference,) = references
        one = quantity(scope, reference)
        return lambda states: one(states[0])
    cotangents_at(scope, references)  # refuses what the scope refuses
    value = said_by(scope, "value")
    if value is None:
        msg = f"{text_of(scope)} spans positions and has no value(states): there is no number to measure; write one"
        raise ValueError(msg)
    _refuse_mixing(value, scope, references, [_beside(reference) for reference in references])
    return value


def one_per_run(values: Any, runs: int, name: str) -> Tensor:
    """What a scope's ``value`` says of many runs.

    Raises:
        ValueError: another shape than [run].

    """
    if not isinstance(values, Tensor) or values.shape != (runs,):
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        msg = (
            f"value of {name} returns one number per run, shape ({runs},) for {runs} runs, got {got}; index from the "
            "end, e.g. state.logits[..., token]"
        )
        raise ValueError(msg)
    return values


def _beside(reference: FinalState) -> FinalState:
    """A state and another run's, as one with a leading axis."""

    def beside(x: Tensor) -> Tensor:
        return torch.stack([x, 0.5 * x + 0.1])

    stream = {site: beside(x) for site, x in reference.stream.items()}
    return replace(reference, y=beside(reference.y), logits=beside(reference.logits), stream=stream)


def _refuse_mixing(value: Callable[[Any], Tensor], scope: Scope, alone: Any, beside: Any) -> None:
    """Refuse a number that is not the same for a run alone and beside another."""
    name = text_of(scope)
    with torch.no_grad():
        one, first = value(alone), one_per_run(value(beside), 2, name)[0]
    if not torch.allclose(
        torch.as_tensor(one, device=first.device).double(), first.double(), rtol=1e-4, atol=1e-6, equal_nan=True
    ):
        msg = (
            f"value of {name} is {float(one):.6g} for one run and {float(first):.6g} for the same beside another: it "
            "must not mix runs; index and reduce from the end, e.g. state.y.norm(dim=-1)"
        )
        raise ValueError(msg)
