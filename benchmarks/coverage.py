"""How often a nominal 95 % interval of ``evaluate`` holds the true mean: the table of docs/faithfulness_tables.md.

    python benchmarks/coverage.py

Data sets are drawn from distributions whose mean is known, 4,000 for each row; "percentile" is the plain bootstrap.
"""

import math
from pathlib import Path

import torch
from tables import markdown, write

from lens_scopes.evaluate.intervals import bootstrap_interval

PAGE = Path(__file__).parents[1] / "docs" / "faithfulness_tables.md"
SIZES = (10, 12, 15, 20, 30, 60)
SETS, AT_ONCE = 4000, 200
#: By name: how to draw, and the true mean.
KINDS = {
    "normal": (lambda *shape, generator: torch.randn(*shape, generator=generator, dtype=torch.float64), 0.0),
    "lognormal": (
        lambda *shape, generator: torch.randn(*shape, generator=generator, dtype=torch.float64).exp(),
        math.exp(0.5),
    ),
}


def percentile(values, seed):
    """The interval that was here before: quantiles of the resampled means."""
    n, generator = len(values), torch.Generator().manual_seed(seed)
    chosen = torch.randint(n, (9_999, n), generator=generator)
    counts = torch.zeros(9_999, n, dtype=torch.float64).scatter_add_(1, chosen, torch.ones(9_999, n).double())
    means = (counts @ values / n).sort(0).values
    return torch.stack([means[249], means[9_749]])


def coverage(kind, n, interval, sets=SETS, seed=0):
    """The share of data sets whose interval holds the mean."""
    draw, mean = KINDS[kind]
    generator, held = torch.Generator().manual_seed(seed), 0
    for part in range(sets // AT_ONCE):
        low, high = interval(draw(n, AT_ONCE, generator=generator), part)
        held += int(((low <= mean) & (mean <= high)).sum())
    return held / (sets // AT_ONCE * AT_ONCE)


def studentised(values, seed):
    return bootstrap_interval(values, seed=seed)


def main():
    torch.set_num_threads(1)
    rows = [
        [str(n), *(f"{100 * coverage(kind, n, way):.1f} %" for kind in KINDS for way in (studentised, percentile))]
        for n in SIZES
    ]
    columns = ["prompts", *(f"{kind}, {way}" for kind in KINDS for way in ("studentised", "percentile"))]
    text = markdown(columns, rows)
    write(PAGE, "coverage", text)
    print(text)


if __name__ == "__main__":
    main()
