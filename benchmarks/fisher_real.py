"""Fisher Scope on a real vocabulary (Gemma 3 270M, 262,144 words): what it costs, how far off it is, how often its interval holds.

    python benchmarks/fisher_real.py cost [--rounds 5]
    python benchmarks/fisher_real.py accuracy --keep fisher_real.jsonl [--prompt G0 --prompt G1 ...] [--seeds 60]
    python benchmarks/fisher_real.py table --keep fisher_real.jsonl [--write docs/fisher_budget.md]

``accuracy`` appends a line per prompt, so that it can run in pieces; every basis direction of the final state is pulled
back once per prompt, as in ``fisher_budget``. Costs are CPU time of one thread, in floors (``models.floor``).
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import torch
from fisher_budget import Draw, Prompt
from models import floor
from tables import markdown, write

import lens_scopes as ls
from lens_scopes.scopes.factor import fisher_matrix

PROMPTS = {
    "G0": "The capital of France is",
    "G1": "import numpy as",
    "G2": "Once upon a time, there was a",
    "G3": "2 + 2 =",
    "G4": "The Eiffel Tower is in the city of",
    "G5": "She was very",
    "G6": "Monday, Tuesday, Wednesday, Thursday,",
    "G7": "Water boils at 100 degrees",
    "G8": "def add(a, b): return a +",
    "G9": "The cat sat on the",
}
PASSES, RANKS = (16,), (1, 4, 16)
LONG = (
    "As a lifelong socialist, he believes that the state should own the means of production and that every worker deserves "
    "a fair share of what is made. But then, as he grows older, he sees that the plans of the state are not the wishes of "
    "the people, and that a shop on the corner knows more about bread than"
)
CASES = {
    "Semantic": ls.Semantic(),
    "Fisher(16)": ls.Fisher(16),
    "Fisher(rank=1)": ls.Fisher(rank=1),
    "Fisher(rank=16)": ls.Fisher(rank=16),
}
LENGTHS = (6, 25, 66)


def accuracy(prompt: Prompt, name: str, seeds: int) -> dict:
    """One prompt: errors of every token and seed in per cent, and how often the 95 % interval holds the exact score."""
    p = float(prompt.state.probs.max())
    found: dict = {"prompt": name, "tokens": len(prompt.tokens), "p": p, "seeds": seeds}
    for passes in PASSES:
        draws = [Draw.of(prompt, passes, seed) for seed in range(seeds)]
        inside = [(d.low <= prompt.exact) & (prompt.exact <= d.high) for d in draws]
        found[f"error {passes}"] = [
            float(e) for d in draws for e in 100 * (d.value - prompt.exact).abs() / prompt.exact
        ]
        found[f"inside {passes}"] = float(torch.stack(inside).double().mean())
    found["heavy"] = ls.Fisher(16)(prompt.state).notes["heavy_words"]
    energy, vectors = torch.linalg.eigh(fisher_matrix(prompt.state))
    for rank in RANKS:
        rows = (vectors[:, -rank:] * energy[-rank:].sqrt()).T
        expected = prompt.parts(ls.Cotangents(rows)).sum(0)
        made = ls.Fisher(rank=rank)(prompt.state)
        found[f"rank {rank}"] = float(100 * (prompt.parts(made).sum(0) / expected - 1).abs().max())
        found["heavy of a rank"] = made.notes["heavy_words"]
    return found


def table(rows: list[dict]) -> str:
    """The page's table: a line per prompt, and all of them pooled."""
    columns = ["prompt", "tokens, p", "heavy words", *(f"{n} passes" for n in PASSES)]
    columns += [f"rank {k}, worst token" for k in RANKS]
    lines = []
    for row in sorted(rows, key=lambda row: row["prompt"]):
        lines.append([row["prompt"], f"{row['tokens']}, {row['p']:.3g}", f"{row['heavy']}; {row['heavy of a rank']}"])
        lines[-1] += [_cell(row[f"error {n}"], row[f"inside {n}"]) for n in PASSES]
        lines[-1] += [f"{row[f'rank {k}']:.2f} %" for k in RANKS]
    pooled = ["pooled", "", ""]
    for n in PASSES:
        errors = [e for row in rows for e in row[f"error {n}"]]
        weights = [len(row[f"error {n}"]) for row in rows]
        inside = sum(w * row[f"inside {n}"] for w, row in zip(weights, rows, strict=True)) / sum(weights)
        pooled.append(_cell(errors, inside))
    return markdown(columns, [*lines, [*pooled, *("" for _ in RANKS)]])


def _cell(errors: list[float], inside: float) -> str:
    found = torch.tensor(errors, dtype=torch.float64)
    return f"{float(found.quantile(0.5)):.2g} / {float(found.quantile(0.95)):.2g} [{100 * inside:.1f}]"


def cost(model, rounds: int) -> str:
    """Ratios to the floor, alternating; the median of the rounds."""
    lines = []
    for length in LENGTHS:
        tokens = model.to_tokens(LONG)[:, :length]
        for name, scope in CASES.items():
            ls.score(model, tokens, scope, sites="embed")
            ratios, times = [], []
            for _ in range(rounds):
                base = seconds(lambda tokens=tokens: floor(model, tokens))
                taken = seconds(lambda tokens=tokens, scope=scope: ls.score(model, tokens, scope, sites="embed"))
                ratios.append(taken / base)
                times.append(base)
            row = [length, name, f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f}..{max(ratios):.2f}"]
            lines.append([*row, f"{statistics.median(times):.2f}"])
    return markdown(["tokens", "case", "CPU / floor", "min..max", "floor, s"], lines)


def seconds(call) -> float:
    """CPU time."""
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["accuracy", "cost", "table"])
    cached = Path.home() / ".cache" / "lens_scopes" / "gemma3-270m"
    parser.add_argument("--model", type=Path, default=Path(os.environ.get("LENS_SCOPES_REAL_MODEL", cached)))
    parser.add_argument("--prompt", choices=PROMPTS, action="append")
    parser.add_argument("--seeds", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=Path, default=Path("fisher_real.jsonl"))
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "table":
        rows = [json.loads(line) for line in options.keep.read_text(encoding="utf-8").splitlines()]
        print(text := table(rows))
        if options.write:
            write(options.write, "real", text)
        return
    model = ls.load(options.model)
    if options.what == "cost":
        print(cost(model, options.rounds))
        return
    for name in options.prompt or PROMPTS:
        ids = model.to_tokens(PROMPTS[name])[0].tolist()
        row = accuracy(Prompt.of(model, ids, len(ids) - 1), name, options.seeds)
        with options.keep.open("a", encoding="utf-8") as file:
            print(json.dumps(row), file=file)
        print(table([row]), flush=True)


if __name__ == "__main__":
    main()
