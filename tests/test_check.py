"""The finite differences that results are checked with, against derivatives that are known."""

from itertools import pairwise

import pytest
import torch

from lens_scopes.check import slope_at_zero


def curve(x: float) -> torch.Tensor:
    x = torch.tensor(x, dtype=torch.float64)
    return torch.stack([x.exp(), (1 + x).log(), (2 * x + 0.3).sin()])


def slope(function, steps):
    return slope_at_zero(torch.stack([torch.stack([function(step), function(-step)]) for step in steps]), steps)


SLOPE = torch.tensor([1, 1, 2 * torch.cos(torch.tensor(0.3, dtype=torch.float64))], dtype=torch.float64)


def test_a_cubic_is_differentiated_exactly():
    """Its central differences are off by exactly the square of the step, which the extrapolation removes."""
    found, doubt = slope(lambda x: torch.tensor([2 + 3 * x - x**2 + 5 * x**3], dtype=torch.float64), [1.0, 0.25])
    assert doubt == pytest.approx((8 - 3.3125) / 8)
    assert float(found) == pytest.approx(3, abs=1e-14)


def test_the_error_falls_with_the_fourth_power_of_the_step():
    errors = [(slope(curve, [step, step / 4])[0] - SLOPE).abs() for step in (0.08, 0.04, 0.02)]
    for coarse, fine in pairwise(errors):
        assert torch.log2(coarse / fine).tolist() == pytest.approx([4, 4, 4], abs=0.05)


def test_neighbours_that_agree_best_are_taken():
    """Rounding spoils the smallest steps and curvature the largest; the best pair is between."""

    def rounded(x: float) -> torch.Tensor:
        return curve(x).float().double()

    steps = [0.32 / 4**i for i in range(8)]
    best = (slope(rounded, steps)[0] - SLOPE).norm()
    assert best < 1e-4
    for pair in (steps[:2], steps[-2:]):
        assert best < (slope(rounded, pair)[0] - SLOPE).norm()
