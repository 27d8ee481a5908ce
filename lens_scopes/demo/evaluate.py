"""Measure the demo model and write the tables of its page: `python -m lens_scopes.demo.evaluate --write FILE`.

A table stands between `<!-- begin NAME -->` and `<!-- end NAME -->`; the rest of the file is left as it is.
"""

import argparse
import re
from collections.abc import Sequence
from importlib.metadata import version
from math import sqrt
from pathlib import Path
from random import Random
from typing import Any

from lens_scopes.demo import MODEL_DIR, cases, load
from lens_scopes.demo.answers import accuracy, mean_error
from lens_scopes.demo.generators.series import DETERMINISTIC, FAMILIES, draft_of
from lens_scopes.demo.truth import replacements

WORDS = ("induction", "ioi", "translation", "persona")


def accuracy_table(model: Any, n: int, seed: int) -> str:
    """The held-out accuracy of each kind, with its interval."""
    rows = []
    for kind in WORDS:
        right = accuracy(model, cases(kind, n=n, seed=seed))
        rows.append([kind, n, _share(round(right * n), n)])
    return _table(["kind", "held-out cases", "first choice is the answer (95 % interval)"], rows)


def series_table(model: Any, n: int, seed: int) -> str:
    """The mean absolute error of each family of series, and of predicting the last value again."""
    rows, model_errors, last_errors = [], [], []
    for family in FAMILIES:
        rng = Random(f"series {family} {seed}")
        items = [draft_of(family, rng, True).case() for _ in range(n)]
        error = mean_error(model, items)
        last = sum(abs(int(case.tokens[-2]) - int(case.answer)) for case in items) / n
        rows.append([family, n, f"{error:.2f}", f"{last:.2f}", f"{error / last:.2f}"])
        if family in DETERMINISTIC:
            model_errors.append(error)
            last_errors.append(last)
    error, last = sum(model_errors) / len(model_errors), sum(last_errors) / len(last_errors)
    rows.append(
        [f"all but {FAMILIES[-1]}", n * len(DETERMINISTIC), f"{error:.2f}", f"{last:.2f}", f"{error / last:.2f}"]
    )
    return _table(["family", "held-out series", "model", "last value again", "ratio"], rows)


def truth_table(model: Any, n: int, seed: int) -> str:
    """How often the first choice changes when a cause, or another word, is replaced."""
    rows = []
    for kind in (*WORDS, "series"):
        tried = replacements(model, cases(kind, n=n, seed=seed), seed)
        cells = []
        for at_cause in (True, False):
            changed = [one.changed for one in tried if one.at_cause == at_cause]
            cells += [len(changed), _share(sum(changed), len(changed))]
        rows.append([kind, *cells])
    return _table(["kind", "causes replaced", "answer changed", "other words replaced", "answer changed"], rows)


def hosts_table(hf_model: Any, n: int) -> str:
    """How far the logits of each host are from those of the Hugging Face model, over cases of all kinds."""
    import torch

    rows = []
    for backend in ("hooked", "bridge"):
        try:
            model = load(backend)
        except (ImportError, ValueError):
            continue
        worst, scale = 0.0, 0.0
        with torch.no_grad():
            for case in cases(n=n):
                tokens = model.to_tokens(case.prompt)
                expected = hf_model(tokens).logits
                worst = max(worst, (model(tokens) - expected).abs().max().item())
                scale = max(scale, expected.abs().max().item())
        name = type(model).__name__
        rows.append([f"{name}, TransformerLens {version('transformer-lens')}", f"{worst:.1e}", f"{scale:.1f}"])
    return _table(["host", "largest difference of a logit", "largest logit"], rows)


def pointing_tables(model: Any, n: int, seed: int) -> tuple[str, str]:
    """How often each method points at a cause: among the tokens between the ends, and among all."""
    from lens_scopes.demo.pointing import methods, points_at

    items = {kind: cases(kind, n=n, seed=seed) for kind in WORDS}
    chance: tuple[list[Any], list[Any]] = (["chance"], ["chance"])
    for kind in WORDS:
        for table, first, beyond in ((0, 1, 0), (1, 0, 1)):
            shares = [
                sum(first <= cause < case.position + beyond for cause in case.causes) / (case.position + beyond - first)
                for case in items[kind]
            ]
            chance[table].append(f"{100 * sum(shares) / n:.1f}")
    tables: tuple[list[list[Any]], list[list[Any]]] = ([chance[0]], [chance[1]])
    for name, method in methods().items():
        rows: tuple[list[Any], list[Any]] = ([name], [name])
        for kind in WORDS:
            scores = method(model, items[kind])
            for table, first, beyond in ((0, 1, 0), (1, 0, 1)):
                hits = sum(
                    points_at(score, first, case.position + beyond) in case.causes
                    for score, case in zip(scores, items[kind], strict=True)
                )
                rows[table].append(_share(hits, n))
        tables[0].append(rows[0])
        tables[1].append(rows[1])
    head = ["method", *WORDS]
    return _table(head, tables[0]), _table(head, tables[1])


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share after Wilson."""
    z = 1.959964
    middle = (hits + z * z / 2) / (n + z * z)
    half = z * sqrt(hits * (n - hits) / n + z * z / 4) / (n + z * z)
    return max(0.0, middle - half), min(1.0, middle + half)


def write_into(text: str, name: str, table: str) -> str:
    """The text with the table put between the marks of that name."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        msg = f"the text needs {begin!r} and {end!r} once each, as the place for the table {name!r}"
        raise ValueError(msg)
    return re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n{table}\n{end}", text, flags=re.DOTALL)


def _share(hits: int, n: int) -> str:
    low, high = wilson(hits, n)
    return f"{100 * hits / n:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def main() -> None:
    """Measure what is asked for, print the tables, and write them into a file if one is given."""
    import torch
    from transformers import LlamaForCausalLM

    parser = argparse.ArgumentParser(description="Measures the demo model and writes its tables.")
    parser.add_argument("--only", nargs="+", choices=("accuracy", "series", "truth", "hosts", "pointing"))
    parser.add_argument("--n", type=int, default=500, help="cases of each kind")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--model", type=Path, default=MODEL_DIR)
    parser.add_argument("--write", type=Path, help="a text with marks for the tables, such as docs/demo_model.md")
    args = parser.parse_args()
    asked = args.only or ("accuracy", "series", "truth", "hosts", "pointing")

    hf_model = LlamaForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    tables: dict[str, str] = {}
    if "accuracy" in asked:
        tables["accuracy"] = accuracy_table(hf_model, args.n, args.seed)
    if "series" in asked:
        tables["series"] = series_table(hf_model, args.n, args.seed)
    if "truth" in asked:
        tables["truth"] = truth_table(hf_model, args.n, args.seed)
    if "hosts" in asked:
        tables[f"hosts {version('transformer-lens')}"] = hosts_table(hf_model, 25)
    if "pointing" in asked:
        import lens_scopes as ls

        inner, whole = pointing_tables(ls.load(str(args.model)), args.n, args.seed)
        tables |= {"pointing": inner, "pointing with ends": whole}
    for name, table in tables.items():
        print(name, table, sep="\n", end="\n\n")  # noqa: T201
    if args.write:
        text = args.write.read_text()
        for name, table in tables.items():
            text = write_into(text, name, table)
        args.write.write_text(text)


if __name__ == "__main__":
    main()
