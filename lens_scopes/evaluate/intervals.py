"""Paired statistics over prompts: intervals, tests and a correction for many comparisons. All seeded."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_DRAWS = 10_000
# Numbers drawn at one time (64 MB of float64).
_AT_ONCE = 2**23


def bootstrap_interval(
    values: Float[Tensor, "prompt ..."], level: float = 0.95, seed: int = 0, draws: int = _DRAWS
) -> Float[Tensor, "2 ..."]:
    """Percentile bootstrap of the mean over prompts (Efron 1979); the same resamples for every column.

    Raises:
        ValueError: level not between 0 and 1.

    """
    if not 0 < level < 1:
        msg = f"level is a probability between 0 and 1, got {level}"
        raise ValueError(msg)
    generator = torch.Generator().manual_seed(seed)
    n = len(values)
    flat = values.double().reshape(n, -1)
    means = []
    for size in _portions(draws, n):
        chosen = torch.randint(n, (size, n), generator=generator)
        counts = torch.zeros(size, n, dtype=torch.float64).scatter_add_(1, chosen, torch.ones(size, n).double())
        means.append(counts @ flat / n)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    return torch.quantile(torch.cat(means), ends, dim=0).reshape(2, *values.shape[1:])


def sign_flip_p(differences: Float[Tensor, "prompt ..."], seed: int = 0, draws: int = _DRAWS) -> Float[Tensor, "..."]:
    """Two-sided paired permutation test of mean 0: how often random signs give a mean at least as far from 0.

    By ``scipy.stats.permutation_test``: exact where all 2ⁿ signs are no more than the draws. What equals the observed
    mean up to rounding counts as at least as far.
    """
    from scipy.stats import permutation_test

    n = len(differences)
    flat = differences.double().reshape(n, -1)
    seeded: Any = {"random_state": np.random.default_rng(seed)}  # the newer name, rng, is not in scipy 1.11
    found = permutation_test(
        (flat.numpy(),),
        lambda x, axis: x.mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=draws,
        batch=max(1, _AT_ONCE // flat.numel()),
        **seeded,
    )
    return torch.as_tensor(found.pvalue).reshape(differences.shape[1:])


def holm(p: Float[Tensor, " *shape"]) -> Float[Tensor, " *shape"]:
    """P-values adjusted for all comparisons at once (Holm 1979): the family-wise error stays below the level.

    scipy has Benjamini and Hochberg's correction alone, which bounds another error.

    >>> holm(torch.tensor([0.01, 0.04, 0.03], dtype=torch.float64))
    tensor([0.0300, 0.0600, 0.0600], dtype=torch.float64)
    """
    flat = p.reshape(-1)
    ordered, order = flat.sort()
    steps = torch.arange(len(flat), 0, -1, dtype=flat.dtype)
    adjusted = (ordered * steps).cummax(0).values.clamp(max=1) if len(flat) else flat
    return torch.empty_like(flat).scatter_(0, order, adjusted).reshape(p.shape)


def _portions(draws: int, n: int) -> list[int]:
    size = max(1, _AT_ONCE // n)
    return [min(size, draws - start) for start in range(0, draws, size)]
