"""What a click on the live page costs on a real model, in units of one bare forward + backward to the embeddings.

    python benchmarks/serve_cost.py [--rounds 5] [--model DIRECTORY]

Gemma 3 270M on the Bridge, one thread. Each question is asked of a session that has answered nothing before, or only what its
row says; it stands between two floors on the same prompt, all of it CPU time in one process, and the median of the ratios to
the two floors' mean is quoted.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from models import floor
from real_model import DIRECTORY, seconds

import lens_scopes as ls
from lens_scopes.serve import Session, read

PROMPT = "The capital of France is the city of Paris, the capital of Germany is the city of Berlin, and the capital of Italy is"
OTHER = PROMPT.replace("Italy", "Spain")
ABOUT = {"prompt": PROMPT, "scope": {"kind": "semantic"}}
PATCH = {"prompt": OTHER, "clean": PROMPT, "scope": {"kind": "semantic"}, "by": "patch", "pos": 23}

#: By name: what was asked before, and the question.
CASES: dict[str, tuple[list[tuple[str, dict[str, Any]]], tuple[str, dict[str, Any]]]] = {
    "next tokens": ([], ("tokens", {"prompt": PROMPT})),
    "Semantic at all sites": ([], ("score", ABOUT)),
    "the same by words": ([("score", ABOUT)], ("score", {**ABOUT, "level": "word"})),
    "mean, in the embedding": ([("score", ABOUT)], ("cut", {**ABOUT, "site": 0, "pos": 23, "by": "mean"})),
    "mean, after block 8": ([("score", ABOUT)], ("cut", {**ABOUT, "site": 9, "pos": 23, "by": "mean"})),
    "zero, after block 8": ([("score", ABOUT)], ("cut", {**ABOUT, "site": 9, "pos": 23, "by": "zero"})),
    "first patch of a pair": ([], ("cut", {**PATCH, "site": 9})),
    "next patch, after block 8": ([("cut", {**PATCH, "site": 3})], ("cut", {**PATCH, "site": 9})),
    "next patch, in the embedding": ([("cut", {**PATCH, "site": 3})], ("cut", {**PATCH, "site": 0})),
    "flow": ([], ("flow", ABOUT)),
    "flow with one head's edges": ([], ("edges", {**ABOUT, "layer": 5, "head": 1})),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DIRECTORY)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = ls.load(given.model, backend="bridge", device="cpu", dtype=torch.float32)
    tokens = model.to_tokens(PROMPT)
    print(f"| question ({tokens.shape[1]} tokens) | CPU / floor | min..max | s | floor, s |\n|---|---|---|---|---|")
    for name, (before, (verb, fields)) in CASES.items():
        ratios, own, floors = [], [], []
        for _ in range(given.rounds + 1):
            session = Session(model)
            for one in before:
                session.ask(read(*one))
            first, _ = seconds(lambda: floor(model, tokens))
            mine, _ = seconds(lambda: session.ask(read(verb, fields)))  # noqa: B023 - called at once
            last, _ = seconds(lambda: floor(model, tokens))
            session.close()
            ratios.append(2 * mine / (first + last))
            own.append(mine)
            floors += [first, last]
        ratios, own = ratios[1:], own[1:]  # the first round tries what is tried once per model
        print(
            f"| {name} | {statistics.median(ratios):.2f} | {min(ratios):.2f}..{max(ratios):.2f} | {statistics.median(own):.2f} | {statistics.median(floors):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
