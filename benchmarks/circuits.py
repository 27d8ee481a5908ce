"""How faithful circuits of a whole change are: kept share against kept metric, a table of docs/flow.md.

    python benchmarks/circuits.py [--pairs 20] [--real DIRECTORY --real-pairs FILE] [--write docs/flow.md]

For a share s: the heads of ``flow(..., against=).circuit(s)`` stay as they are in the clean run, all other heads are
patched from the corrupted one (MLPs run as they will), and what is left of the metric's difference is the share kept.
Beside it the same number of heads by the size of their predicted patches (``patching.predict``), and at random.
"""

import argparse
import random
import statistics
import warnings
from pathlib import Path

import torch
from integrated_flow import demo_pairs, real_pairs
from tables import markdown

import lens_scopes as ls

MARK = "<!-- circuits -->"
SHARES = (0.5, 0.7, 0.8, 0.9, 0.95)
DRAWS = 5


def kept(model, clean, corrupted, scope, heads, every, difference, cache):
    """What is left of the difference when all heads but these are patched from the corrupted run."""
    rest = [head for head in every if head not in heads]
    if not rest:
        return 1.0
    lost = ls.patching.measure(model, corrupted, clean, scope, where=rest, together=True, cache=cache)
    return 1 + float(lost.values) / difference


def curve(model, clean, corrupted, scope, steps):
    """By share: how many heads, and the metric kept by the circuit, by predicted patches, by random sets."""
    every = [(layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]
    flow = ls.flow(model, clean, scope, against=corrupted, steps=steps)
    difference = flow.meta["metric"]["clean"] - flow.meta["metric"]["corrupted"]
    predicted = ls.patching.predict(model, clean, corrupted, scope, sites="z").values.sum(1).abs()
    order = [divmod(i, model.cfg.n_heads) for i in predicted.flatten().argsort(descending=True).tolist()]
    draw, cache, found = random.Random(0), {}, {}
    for share in SHARES:
        heads = flow.circuit(share).heads
        sets = [heads, order[: len(heads)], *(draw.sample(every, len(heads)) for _ in range(DRAWS))]
        values = [kept(model, clean, corrupted, scope, one, every, difference, cache) for one in sets]
        found[share] = (len(heads), values[0], values[1], statistics.fmean(values[2:]))
    return found


def rows_of(name, curves, heads):
    return [
        [
            f"{name} ({len(curves)})",
            f"{share:g}",
            f"{statistics.fmean(one[share][0] for one in curves):.1f} of {heads}",
            *(f"{statistics.median(one[share][i] for one in curves):.2f}" for i in (1, 2, 3)),
        ]
        for share in SHARES
    ]


def main():
    """Print the table, and write it between the marks in a document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--real", type=Path)
    parser.add_argument("--real-pairs", type=Path)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    model, rows = ls.demo.load(), []
    for kind in ("induction", "ioi"):
        rows += rows_of(kind, [curve(model, *pair, 32) for pair in demo_pairs(kind, options.pairs)], 16)
    if options.real:
        real = ls.load(options.real)
        heads = real.cfg.n_layers * real.cfg.n_heads
        for clean, corrupted, scope in real_pairs(options.real_pairs, 3):
            rows += rows_of(f"Gemma 3 270M, “{clean}”", [curve(real, clean, corrupted, scope, 16)], heads)
    columns = [
        "pairs",
        "share asked",
        "heads, mean",
        "metric kept, median",
        "as many by predicted patches",
        "at random",
    ]
    print(text := markdown(columns, rows))
    if options.write:
        before, _, after = options.write.read_text(encoding="utf-8").split(MARK)
        options.write.write_text(before + MARK + "\n" + text + "\n" + MARK + after, encoding="utf-8")


if __name__ == "__main__":
    main()
