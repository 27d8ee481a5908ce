"""One assertion for numbers, which says where and by how much."""

import torch


def assert_close(found, expected, tolerance: float, what: str = "", relative_to: float | None = None) -> float:
    """|found − expected| ≤ tolerance · (largest |expected|), everywhere; returns the largest error in those units."""
    found, expected = (torch.as_tensor(x).detach().double().cpu() for x in (found, expected))
    assert found.shape == expected.shape, f"{what}: shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    assert found.numel(), f"{what}: nothing to compare"
    assert expected.isfinite().all(), f"{what}: the expected values are not finite"
    scale = float(expected.abs().max()) if relative_to is None else relative_to
    assert scale > 0, f"{what}: all expected values are zero, so the comparison says nothing"
    error = (found - expected).abs() / scale
    worst = int(torch.nan_to_num(error, nan=float("inf")).argmax())
    where = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), error.shape)) if error.ndim else ()
    a, b = float(found.reshape(-1)[worst]), float(expected.reshape(-1)[worst])
    off = int((~(error <= tolerance)).sum())
    assert not off, (
        f"{what}: {off} of {error.numel()} are off by more than {tolerance:.1e} of {scale:.4g}; the worst at {where}: "
        f"found {a:.9g}, expected {b:.9g}, ratio {a / b if b else float('nan'):.6g}, error {float(error.reshape(-1)[worst]):.2e}"
    )
    return float(error.max())
