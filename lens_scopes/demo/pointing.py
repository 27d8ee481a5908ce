"""Play the pointing game: is the token that an attribution method points at one of the labelled causes?

The methods: three scopes of this package (the norm of the pulled-back cotangent at the token embeddings; the largest
wins, the earlier of equals), and three yardsticks: gradient x input (the absolute value of the sum over the embedding's
coordinates, for the logit of the model's first choice), attention rollout (Abnar & Zuidema 2020: the mean over heads,
half attention and half identity, multiplied through all layers), and a random token.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

import lens_scopes as ls
from lens_scopes.demo.draft import Case
from lens_scopes.evaluate import attribute
from lens_scopes.evaluate.protocol import ask

Method = Callable[[Any, Sequence[Case]], list[Float[Tensor, " pos"]]]


def methods() -> dict[str, Method]:
    """Each method by name: (model, cases) -> one score per token of each case."""
    return {
        "Semantic": lambda model, cases: _scope(model, cases, [ls.Semantic() for _ in cases]),
        "Semantic, versus": lambda model, cases: _scope(
            model, cases, [ls.Semantic(case.answer, versus=case.versus) for case in cases]
        ),
        "Temperature": lambda model, cases: _scope(model, cases, ls.Temperature()),
        "Fisher": lambda model, cases: _scope(model, cases, ls.Fisher(passes=None)),
        "gradient x input": lambda model, cases: [
            score.abs() for score in _scope(model, cases, ls.Semantic(), along="activation")
        ],
        "attention rollout": lambda model, cases: [
            attribute(question, "attention_rollout") for question in ask(model, [case.prompt for case in cases], None)
        ],
        "random": _random,
    }


def points_at(scores: Float[Tensor, " pos"], first: int, end: int) -> int:
    """The position of the largest score in first .. end - 1; the earlier of equals."""
    window = scores[first:end].tolist()
    return first + window.index(max(window))


def _scope(model: Any, cases: Sequence[Case], scopes: Any, along: Any = None) -> list[Tensor]:
    prompts = [case.prompt for case in cases]
    scores = ls.score_batch(model, prompts, scopes, sites="embed", along=along)
    return [score.values[0] for score in scores]


def _random(_: Any, cases: Sequence[Case]) -> list[Tensor]:
    rng = Random("random pointing")
    return [torch.tensor([rng.random() for _ in case.tokens]) for case in cases]
