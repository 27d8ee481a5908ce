"""What the routes of a flow cost on a real model beyond the flow itself, and what they carry.

    python benchmarks/flow_routes.py [--model DIRECTORY] [--rounds 5] [--write docs/flow.md]

The model is a Hugging Face directory (by default Gemma 3 270M where ``make real`` puts it), the prompt has 25 tokens. Cases
alternate within each round, in one process, and the median of the ratios to the floors just before and after is quoted (a
floor: forward and backward to the embeddings, one logit row). Time is CPU time on one thread.
"""

import argparse
import statistics
import warnings
from pathlib import Path

import torch
from flow_cost import seconds
from models import floor

import lens_scopes as ls

MARK = "<!-- flow_routes -->"
PROMPT = "The Eiffel Tower was built for the World Fair, and today, millions of visitors come to see it in the city of"
GEMMA = Path.home() / ".cache" / "lens_scopes" / "gemma3-270m"
CASES = {
    "`ls.flow`, with its last heads": lambda _, again: again(),
    "`flow.last_heads()`": lambda flow, _: flow.last_heads(),
    "`flow.orders()`": lambda flow, _: flow.orders(),
    "`flow.paths(10, budget=16)`": lambda flow, _: flow.paths(10, budget=16),
    "`flow.paths(10)`": lambda flow, _: flow.paths(10),
}


def costs(model, ids: torch.Tensor, rounds: int) -> list[str]:
    """Floors of every case, in the order of CASES."""

    def again() -> ls.Flow:
        return ls.flow(model, ids, ls.Semantic())

    flow = again()
    ratios: dict[str, list[float]] = {case: [] for case in CASES}
    floor(model, ids[None])
    for _ in range(rounds):
        for case, call in CASES.items():
            before = seconds(floor, model, ids[None])
            mine = seconds(call, flow, again)
            after = seconds(floor, model, ids[None])
            ratios[case].append(2 * mine / (before + after))
    head = ["| case | time / floor (median) | min..max |", "|---|---|---|"]
    return [*head, *(f"| {c} | {statistics.median(r):.2f} | {min(r):.2f}..{max(r):.2f} |" for c, r in ratios.items())]


def carried(model, ids: torch.Tensor) -> list[str]:
    """What single routes carry of the total, beside the partitions."""
    flow = ls.flow(model, ids, ls.Semantic())
    lines = ["| routes through ... heads | " + " | ".join(flow.orders().heads) + " |"]
    lines += ["|---" * (len(flow.orders()) + 1) + "|"]
    lines += ["| share of the total | " + " | ".join(f"{100 * s:.1f} %" for s in flow.orders().share) + " |", ""]
    last = flow.last_heads().head(8)
    names = ["straight" if r.kind == "straight" else f"{r.layer}.{r.head}" for r in last.itertuples()]
    lines += ["| last head | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    lines += ["| share of the total | " + " | ".join(f"{100 * s:.1f} %" for s in last.share) + " |", ""]
    for budget in (16, 48, 128):
        found = flow.paths(10, budget=budget)
        listed, first = found.share[:-1].sum(), found.share[0]
        error = abs(float(found.influence.sum() / flow.total.sum()) - 1)
        lines += [
            f"- ten strongest of {budget} routes looked into: {100 * listed:.1f} % of the total, the first {100 * first:.1f}"
            f" % ({found.path[0]}); listed and rest make the total within {error:.0e}"
        ]
    return lines


def main() -> None:
    """Print the tables, or write them between the marks in a document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=GEMMA)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    model = ls.load(options.model, device="cpu")
    ids = torch.tensor(ls.score(model, PROMPT, ls.Semantic(), sites="embed").meta["token_ids"])
    lines = [f"{len(ids)} tokens, {options.rounds} rounds.", "", *costs(model, ids, options.rounds), ""]
    lines += carried(model, ids)
    print("\n".join(lines), flush=True)
    if options.write:
        text = options.write.read_text(encoding="utf-8")
        before, _, after = text.split(MARK)
        options.write.write_text(before + MARK + "\n" + "\n".join(lines) + "\n" + MARK + after, encoding="utf-8")


if __name__ == "__main__":
    main()
