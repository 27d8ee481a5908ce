"""Integrated flow held against measured patches, what its points miss, and what it costs: a table of docs/flow.md.

    python benchmarks/integrated_flow.py [--pairs 60] [--real DIRECTORY --real-pairs FILE] [--write docs/flow.md]

The model that comes with the package: clean and corrupted prompts of three kinds (``ls.demo.cases``), metric the logit
difference of the two answers; whole heads patched one by one, clean into corrupted. A real model, if one is given: pairs
from a file of JSON lines (clean, corrupted, target, versus). Pearson correlations are within a pair, over all heads.
"""

import argparse
import gc
import json
import statistics
import time
import warnings
from pathlib import Path

import torch
from models import floor
from tables import markdown

import lens_scopes as ls

MARK = "<!-- integrated_flow -->"
KINDS = ("induction", "ioi", "translation")
POINTS = (8, 16, 30, 50)


def demo_pairs(kind, count):
    for case in ls.demo.cases(kind, n=count):
        yield case.prompt, case.corrupted, ls.Semantic(case.answer, versus=case.versus)


def real_pairs(path, count):
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    kinds = list(dict.fromkeys(one["kind"] for one in lines))
    by_kind = [[one for one in lines if one["kind"] == kind] for kind in kinds]
    taken = [row[i] for i in range(len(lines)) for row in by_kind if i < len(row)]  # the kinds in turn
    for one in taken[:count]:
        yield one["clean"], one["corrupted"], ls.Semantic(one["target"], versus=one["versus"])


def pearson(a, b):
    return float(torch.corrcoef(torch.stack([a.flatten().double(), b.flatten().double()]))[0, 1])


def one_pair(model, clean, corrupted, scope, points):
    """Pearson of flow and of the gradient with patches of whole heads, and the gap by number of points, relative."""
    every = [(layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]
    measured = ls.patching.measure(model, clean, corrupted, scope, where=every).values
    gradient = ls.patching.predict(model, clean, corrupted, scope, sites="z", method="gradient").values.sum(1)
    flows = {n: ls.flow(model, clean, scope, against=corrupted, steps=n) for n in points}
    metric = flows[points[0]].meta["metric"]
    gaps = {n: abs(flow.meta["gap"] / (metric["clean"] - metric["corrupted"])) for n, flow in flows.items()}
    agree = {n: pearson(flow.heads[0], measured) for n, flow in flows.items()}
    return {"first": pearson(gradient, measured), "flow": agree, "gap": gaps, "residual": flows[points[0]].residual}


def table(found, points):
    rows = []
    for name, pairs in found.items():
        gaps = {n: [pair["gap"][n] for pair in pairs if n in pair["gap"]] for n in points}
        flow = {n: statistics.fmean(pair["flow"][n] for pair in pairs) for n in points if gaps[n]}
        rows.append(
            [
                name,
                str(len(pairs)),
                f"{statistics.fmean(pair['first'] for pair in pairs):.2f}",
                *(f"{flow[n]:.2f}" if n in flow else "" for n in (16, points[-1])),
                *(
                    f"{100 * statistics.median(row):.2g} % / {100 * sorted(row)[int(0.9 * len(row))]:.2g} %"
                    if row
                    else ""
                    for row in gaps.values()
                ),
                f"{max(pair['residual'] for pair in pairs):.0e}",
            ]
        )
    columns = ["pairs of", "n", "first order", "flow, 16 points", f"flow, {points[-1]} points"]
    return markdown([*columns, *(f"gap, {n} points" for n in points), "largest residual"], rows)


def cost(model, clean, corrupted, scope, rounds):
    """CPU seconds of a flow in floors: medians of ratios to the floors just before and after."""
    tokens = torch.tensor([ls.flow(model, clean, scope).meta["token_ids"]])

    def seconds(call):
        gc.collect()
        start = time.process_time()
        call()
        return time.process_time() - start

    cases = {
        "flow of one prompt": lambda: ls.flow(model, clean, scope),
        **{
            f"integrated flow, {n} points": lambda n=n: ls.flow(model, clean, scope, against=corrupted, steps=n)
            for n in (8, 16)
        },
    }
    rows = []
    for name, call in cases.items():
        call()
        ratios = []
        for _ in range(rounds):
            before, mine, after = (
                seconds(lambda: floor(model, tokens)),
                seconds(call),
                seconds(lambda: floor(model, tokens)),
            )
            ratios.append(2 * mine / (before + after))
        rows.append(
            [name, str(tokens.shape[1]), f"{statistics.median(ratios):.1f}", f"{min(ratios):.1f}..{max(ratios):.1f}"]
        )
    return markdown(["case", "tokens", "time / floor (median)", "min..max"], rows)


def main():
    """Print the tables, and write them between the marks in a document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--real", type=Path)
    parser.add_argument("--real-pairs", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    model, found = ls.demo.load(), {}
    for kind in KINDS:
        found[kind] = [one_pair(model, *pair, POINTS) for pair in demo_pairs(kind, options.pairs)]
        print(table(found, POINTS), flush=True)
    text = [""]
    if options.real:
        real, pairs = ls.load(options.real), list(real_pairs(options.real_pairs, 20))
        found["Gemma 3 270M"] = [one_pair(real, *pair, (8, 16)) for pair in pairs]
        longest = max(pairs, key=lambda pair: len(real.tokenizer.encode(pair[0])))
        text = ["", cost(real, *longest, options.rounds)]
    lines = [table(found, POINTS), *text]
    print("\n".join(lines))
    if options.write:
        before, _, after = options.write.read_text(encoding="utf-8").split(MARK)
        options.write.write_text(
            before + MARK + "\n" + "\n".join(lines).strip() + "\n" + MARK + after, encoding="utf-8"
        )


if __name__ == "__main__":
    main()
