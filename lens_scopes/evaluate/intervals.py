"""Paired statistics over prompts: intervals, tests and a correction for many comparisons. All seeded."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

#: Fewer prompts than this give no interval: what a resample of a handful says about the mean's scatter is chance.
FEWEST = 10
# One less than a round number: the ends of the usual levels are then order statistics.
_DRAWS = 9_999
# Numbers drawn at one time (64 MB of float64).
_AT_ONCE = 2**23
# A resample with less than this share of the variance is one value over and over, and rounding.
_NO_SPREAD = 1e-12


def bootstrap_interval(
    values: Float[Tensor, "prompt ..."], level: float = 0.95, seed: int = 0, draws: int = _DRAWS
) -> Float[Tensor, "2 ..."]:
    """Studentised bootstrap of the mean over prompts (Efron 1981, Hall 1988); the same resamples for every column.

    Of each resample t* = (mean* − mean) / se*; the interval is mean − se · (upper, lower quantile of t*). Skewed data
    get an interval that reaches further to the side of their tail; percentiles of mean* cover too little, most of
    all of few prompts (``benchmarks/coverage.py``). scipy has percentile, basic and BCa intervals, not this one.

    NaN for fewer than ``FEWEST`` prompts. An end is infinite where the data do not bound it: where so many resamples
    are one value over and over that a quantile is among them.

    Raises:
        ValueError: level not between 0 and 1.

    """
    if not 0 < level < 1:
        msg = f"level is a probability between 0 and 1, got {level}"
        raise ValueError(msg)
    n = len(values)
    if n < FEWEST:
        return torch.full((2, *values.shape[1:]), torch.nan, dtype=torch.float64, device="cpu")
    flat = values.double().reshape(n, -1)
    mean, spread = flat.mean(0), flat.var(0)
    centred, generator = flat - mean, torch.Generator().manual_seed(seed)
    found = []
    for size in _portions(draws, n):
        chosen = torch.randint(n, (size, n), generator=generator, device="cpu")
        counts = flat.new_zeros(size, n).scatter_add_(1, chosen, flat.new_ones(size, n))
        moved = counts @ centred / n
        variance = (counts @ centred.square() - n * moved.square()) / (n - 1)
        variance = torch.where(variance < _NO_SPREAD * spread, 0.0, variance)
        found.append(torch.where(spread > 0, moved / (variance / n).sqrt(), 0.0))
    t = torch.cat(found).sort(0).values
    # The k-th smallest of so many draws, and the k-th largest.
    k = max(1, int((draws + 1) * (1 - level) / 2 + 1e-9))
    ends = torch.stack([mean - t[draws - k] * (spread / n).sqrt(), mean - t[k - 1] * (spread / n).sqrt()])
    return torch.where(spread > 0, ends, mean).reshape(2, *values.shape[1:])


def interval_text(low: float, high: float, prompts: int, form: str = "+.3f") -> str:
    """The ends of an interval as tables print them: "[-0.300, +0.100]", or "too few" prompts for one."""
    return "too few" if prompts < FEWEST else f"[{low:{form}}, {high:{form}}]"


def sign_flip_p(differences: Float[Tensor, "prompt ..."], seed: int = 0, draws: int = _DRAWS) -> Float[Tensor, "..."]:
    """Two-sided paired permutation test of mean 0: how often random signs give a mean at least as far from 0.

    By ``scipy.stats.permutation_test``: exact where all 2ⁿ signs are no more than the draws. What equals the observed
    mean up to rounding counts as at least as far.
    """
    from scipy.stats import permutation_test

    n = len(differences)
    if n < 2:  # either sign is as far from 0 as the other
        return differences.double().new_ones(differences.shape[1:])
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
    return torch.as_tensor(found.pvalue, device="cpu").reshape(differences.shape[1:])


def holm(p: Float[Tensor, " *shape"]) -> Float[Tensor, " *shape"]:
    """P-values adjusted for all comparisons at once (Holm 1979): the family-wise error stays below the level.

    scipy has Benjamini and Hochberg's correction alone, which bounds another error.

    >>> holm(torch.tensor([0.01, 0.04, 0.03], dtype=torch.float64))
    tensor([0.0300, 0.0600, 0.0600], dtype=torch.float64)
    """
    flat = p.reshape(-1)
    ordered, order = flat.sort()
    steps = torch.arange(len(flat), 0, -1, dtype=flat.dtype, device=flat.device)
    adjusted = (ordered * steps).cummax(0).values.clamp(max=1) if len(flat) else flat
    return torch.empty_like(flat).scatter_(0, order, adjusted).reshape(p.shape)


def _portions(draws: int, n: int) -> list[int]:
    size = max(1, _AT_ONCE // n)
    return [min(size, draws - start) for start in range(0, draws, size)]
