"""What each method says of programs compiled to weights, whose true effects are known: a table of docs/flow.md.

    python benchmarks/tracr.py [--write docs/flow.md]

The programs (Tracr, Lindner et al. 2023) are looked for in LENS_SCOPES_REFERENCE, by default ../shared beside the
checkout. Each is asked about one output at one position: the dimension of the last residual stream that differs most
between the two prompts. Rows are the tokens' embeddings that differ; true effect: that one patched from the clean into the corrupted run, and
the last one taken from the clean prompt (clean minus the clean run with it corrupted).
"""

import argparse
import sys
import warnings
from pathlib import Path

import torch
from tables import markdown

import lens_scopes as ls

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from compiled import compiled

MARK = "<!-- tracr -->"
#: Program, clean ids, corrupted ids, position; what it computes.
CASES = (
    ("frac_prevs", [0, 2, 3, 4, 2, 3, 2, 4], [0, 3, 3, 4, 3, 3, 3, 4], -1, "share of x so far"),
    ("hist", [0, 1, 2, 1, 3, 5, 1], [0, 1, 2, 2, 3, 5, 1], -1, "how often the token occurs"),
    ("reverse", [0, 1, 2, 3, 5, 1], [0, 2, 2, 3, 5, 1], -1, "the sequence reversed"),
    ("sort_unique", [5, 0, 1, 2, 3, 4], [5, 4, 1, 2, 3, 0], 1, "the sequence sorted"),
)
STEPS = 64


def numbers(values) -> str:
    return ", ".join(f"{float(value) + 0:.3f}" for value in values)


def rows_of(name, clean, corrupted, position, what):
    model, _ = compiled(name)
    with torch.no_grad():
        ends = model(torch.tensor([clean, corrupted]))[:, position]
    dimension = int((ends[0] - ends[1]).argmax())
    scope = ls.Direction(torch.eye(model.cfg.d_model)[dimension])
    changed = [i for i, (a, b) in enumerate(zip(clean, corrupted, strict=True)) if a != b]
    asked = {"position": position, "sites": "embed"}
    restored = ls.patching.measure(model, clean, corrupted, scope, **asked).values[0]
    broken = -ls.patching.measure(model, corrupted, clean, scope, **asked).values[0]
    found = {
        "true effect, restored alone": restored,
        "true effect, broken alone": broken,
        **{
            method: ls.patching.predict(model, clean, corrupted, scope, method=method, **extra, **asked).values[0]
            for method, extra in (
                ("gradient", {}),
                ("path", {"steps": STEPS}),
                ("two-scale", {"steps": STEPS}),
                ("fixed", {"steps": STEPS}),
            )
        },
    }
    flow = ls.flow(model, clean, scope, position=position, against=corrupted, sources="each", steps=STEPS)
    difference = float(ends[0, dimension] - ends[1, dimension])
    rows = [[name, what, label, numbers(values[changed]), ""] for label, values in found.items()]
    rows.append([name, what, f"integrated flow, {STEPS} points", numbers(flow.total), f"{flow.meta['gap']:.3f}"])
    rows.append([name, what, "the whole difference", f"{difference:.3f}", ""])
    return rows


def main():
    """Print the table, and write it between the marks in a document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows = [row for case in CASES for row in rows_of(*case)]
    print(text := markdown(["program", "what it computes", "method", "at each token that changes", "gap"], rows))
    if options.write:
        before, _, after = options.write.read_text(encoding="utf-8").split(MARK)
        options.write.write_text(before + MARK + "\n" + text + "\n" + MARK + after, encoding="utf-8")


if __name__ == "__main__":
    main()
