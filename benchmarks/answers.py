"""What answers of many tokens cost, in units of one bare forward + backward of the whole text to the embeddings.

    python benchmarks/answers.py [--model DIRECTORY] [--new 100] [--rounds 3] [--exact] [--write docs/cost.md]

The model is a local Hugging Face directory (Gemma 3 270M in the tables; `make real` makes it), as a TransformerBridge; the
text is a prompt and what the model itself says after it. Cases alternate with the floor in one process, and the median of the
ratios to the floors just before and after is quoted. Time is CPU time on one thread, since the machine may be shared.
With ``--exact`` the estimates of the total are held against all passes: median relative error over the prompt's tokens
but the first at the embedding and the middle layer, and how many of their 95 % intervals hold the exact value.
"""

import argparse
import gc
import statistics
import time
import warnings
from functools import partial
from pathlib import Path

import tables
import torch
from models import floor

import lens_scopes as ls

PROMPT = "The capital of Germany is Berlin and its most famous landmark is the"
CASES = {
    "`Continuation()`, Σ log p": {"scope": ls.Continuation()},
    '`Continuation(kind="logit")`': {"scope": ls.Continuation(kind="logit")},
    "total of log p, 16 passes": {"scope": ls.Continuation(), "reduce": 16},
    'total of logits, `Semantic("next")`, 16 passes': {"scope": ls.Semantic("next"), "reduce": 16},
    "total of Fisher, 16 passes": {"scope": ls.Fisher(16), "reduce": "sum"},
}


def seconds(call) -> float:
    gc.collect()
    start = time.process_time()
    call()
    return time.process_time() - start


def scored(model, text: ls.Text, scope, **options) -> ls.Scores:
    return ls.score(model, text, scope, position="completion", **options)


def measured(model, text: ls.Text, rounds: int) -> list[list[str]]:
    ids = torch.tensor([text.ids])
    floor(model, ids)
    scored(model, text, ls.Continuation())  # the readout is verified once per model
    ratios: dict[str, list[float]] = {case: [] for case in ("floor", *CASES)}
    for _ in range(rounds):
        for case in ratios:
            before = seconds(lambda: floor(model, ids))
            own = seconds(
                partial(floor, model, ids) if case == "floor" else partial(scored, model, text, **CASES[case])
            )
            after = seconds(lambda: floor(model, ids))
            ratios[case].append(2 * own / (before + after))
    return [
        [case, f"{statistics.median(found):.2f}", f"{min(found):.2f}..{max(found):.2f}"]
        for case, found in ratios.items()
    ]


def held_against_all(model, text: ls.Text) -> list[list[str]]:
    sites = ["hook_embed", f"blocks.{model.cfg.n_layers // 2}.hook_resid_post"]
    rows = []
    for case, scope in (("log p", ls.Continuation()), ("logits", ls.Semantic("next"))):
        sources = slice(1, text.spans["prompt"][1])
        exact = scored(model, text, scope, sites=sites, reduce=len(text)).values[:, sources]
        for passes in (4, 8, 16, 32):
            found = scored(model, text, scope, sites=sites, reduce=passes)
            error = ((found.values[:, sources] - exact) / exact).abs()
            low, high = (end[:, sources] for end in found.interval())
            inside = float(((low <= exact) & (exact <= high)).double().mean())
            rows.append(
                [
                    case,
                    str(passes),
                    f"{float(error.median()):.3f}",
                    f"{float(error.quantile(0.95)):.3f}",
                    f"{inside:.0%}",
                ]
            )
    return rows


def main() -> None:
    """Print the tables, or write them between the marks in a document."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path.home() / ".cache" / "lens_scopes" / "gemma3-270m"
    parser.add_argument("--model", type=Path, default=default)
    parser.add_argument("--new", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    model = ls.load(options.model, backend="bridge", device="cpu", dtype=torch.float32)
    text = ls.generate(model, PROMPT, max_new_tokens=options.new)
    print(repr(text), flush=True)
    rows = measured(model, text, options.rounds)
    cost = tables.markdown(["case, all sites", "time / floor", "min..max"], rows)
    print(cost, flush=True)
    held = ""
    if options.exact:
        held = tables.markdown(
            ["total of", "passes", "median error", "95th percentile", "intervals that hold"],
            held_against_all(model, text),
        )
        print(held, flush=True)
    if options.write:
        tables.write(options.write, "answers", f"{cost}\n\n{held}".strip())


if __name__ == "__main__":
    main()
