"""Predicted against measured patches on the embedded model: the tables of docs/patching.md.

    python benchmarks/patching_effects.py --pairs 200

Clean and corrupted prompts come in pairs of one template and length (``ls.demo.cases``): indirect object identification,
dictionary (induction), translation. The metric is the logit difference of the two answers, unless said otherwise.
"""

import argparse
import statistics
import warnings
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch
from tables import markdown, write
from tqdm.auto import tqdm

import lens_scopes as ls
from lens_scopes.sites import HEADS, STREAM

PAGE = Path(__file__).parents[1] / "docs" / "patching.md"
KINDS = ("ioi", "induction", "translation")
#: Families of sites that fit one result.
TOGETHER = (("embed", "resid_post", "attn_out", "mlp_out"), ("z", "q"), ("k", "v"))


def pairs(count):
    """Clean prompt, corrupted prompt, scope; the kinds in turn."""
    streams = [ls.demo.cases(kind, n=count // len(KINDS) + 1) for kind in KINDS]
    for n in range(count):
        case = streams[n % len(KINDS)][n // len(KINDS)]
        yield case.prompt, case.corrupted, ls.Semantic(case.answer, case.versus)


def differing(comparison):
    """Without the places that are the same in both runs, which no sensible order would try."""
    same = (comparison.measured.values == 0) & (comparison.predicted.values == 0)
    measured = comparison.measured
    return replace(comparison, measured=replace(measured, values=measured.values.masked_fill(same, torch.nan)))


def agreement(model, chosen):
    """By (scope, family, steps) the summaries of all pairs; and of the pairs' places that differ. Yields as it grows."""
    found, apart = defaultdict(list), defaultdict(list)
    for n, (clean, corrupted, scope) in enumerate(tqdm(chosen, desc="pairs"), 1):
        for together in TOGETHER:
            sites = [site for family in together for site in of_family(model, family)]
            measured = ls.patching.measure(model, clean, corrupted, scope, sites=sites)
            for steps in (1, 10):
                predicted = ls.patching.predict(model, clean, corrupted, scope, sites=sites, steps=steps)
                for family in together:
                    both = (only(scores, of_family(model, family)) for scores in (predicted, measured))
                    keep(found, apart, ("Semantic", family, steps), ls.patching.compare(*both))
                if steps == 1 and "embed" in together:
                    stream(model, corrupted, scope, predicted, measured, found, apart)
        for name, other in (("Fisher", ls.Fisher(None)), ("Temperature", ls.Temperature())):
            predicted, measured = (
                f(model, clean, corrupted, other, sites="resid_post")
                for f in (ls.patching.predict, ls.patching.measure)
            )
            keep(found, apart, (name, "resid_post", 1), ls.patching.compare(predicted, measured))
        yield n, found, apart


def of_family(model, family):
    return (
        ["hook_embed"]
        if family == "embed"
        else [form.format(n) for n in range(model.cfg.n_layers) for form in [{**STREAM, **HEADS}[family]]]
    )


def only(scores, sites):
    """The part of a result about some of its sites."""
    rows = [scores.coords["site"].index(site) for site in sites]
    return replace(scores, values=scores.values[rows], coords={**scores.coords, "site": tuple(sites)})


def stream(model, corrupted, scope, predicted, measured, found, apart):
    """Embedding and every layer together, in the order of a norm score and of a flow of the corrupted prompt."""
    sites = [*of_family(model, "embed"), *of_family(model, "resid_post")]
    orders = {
        "norm": ls.score(model, corrupted, scope).values,
        "flow": ls.flow(model, corrupted, scope).stream[0],
    }
    both = (only(scores, sites) for scores in (predicted, measured))
    keep(found, apart, ("Semantic", "stream", 1), ls.patching.compare(*both, orders=orders))


def keep(found, apart, key, comparison):
    found[key].append(comparison.summary())
    reduced = differing(comparison)
    if reduced.where.any():
        apart[key].append(reduced.summary())


def mean(rows, name):
    values = [row[name] for row in rows if row[name] == row[name]]
    return statistics.fmean(values) if values else float("nan")


def agreement_table(found, apart):
    rows = []
    for key, summaries in found.items():
        scope, family, steps = key
        needed = {name: sum(s[f"patches_{name}"] for s in summaries) for name in ("scope", "random", "best")}
        among = {name: sum(s[f"patches_{name}"] for s in apart[key]) for name in ("scope", "random")}
        rows.append(
            [
                f"{scope}, {family}",
                str(steps),
                f"{mean(summaries, 'places'):.0f}",
                *(f"{mean(apart[key], name):.2f}" for name in ("spearman", "pearson", "sign_agreement")),
                f"{statistics.median(row['slope'] for row in apart[key]):.2f}",
                *(f"{needed[name] / len(summaries):.1f}" for name in ("best", "scope", "random")),
                f"{needed['scope'] / needed['random']:.2f}",
                f"{among['scope'] / among['random']:.2f}",
            ]
        )
    columns = ["scope, sites", "steps", "places", "Spearman", "Pearson", "sign", "slope", "best", "scope", "random"]
    return markdown([*columns, "scope / random", "the same, differing places"], rows)


def order_table(found):
    summaries = found["Semantic", "stream", 1]
    names = {"best": "best", "scope": "predict", "norm": "norm scores", "flow": "flow", "random": "random"}
    rows = [
        [text, f"{sum(s[f'patches_{name}'] for s in summaries) / len(summaries):.1f}"] for name, text in names.items()
    ]
    return markdown(["order", "patches"], rows)


def completeness(model, chosen, steps=50):
    """|Σ_t predicted at embed − difference of the metric|, relative to the larger of it and a tenth of its median."""
    gaps, totals = [], []
    for clean, corrupted, scope in tqdm(chosen, desc="completeness"):
        predicted = ls.patching.predict(model, clean, corrupted, scope, sites="embed", steps=steps)
        total = predicted.meta["metric"]["clean"] - predicted.meta["metric"]["corrupted"]
        gaps.append(abs(float(predicted.values.sum()) - total))
        totals.append(abs(total))
    floor = statistics.median(totals) / 10
    relative = sorted(gap / max(total, floor) for gap, total in zip(gaps, totals, strict=True))
    within = sum(gap < 0.01 for gap in relative)
    return (
        f"{steps} midpoints, {len(relative)} pairs: gap under 1 % in {within}; median {statistics.median(relative):.1e}, "
        f"95th percentile {relative[int(0.95 * len(relative))]:.1e}, largest {relative[-1]:.1e}."
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--skip-completeness", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model = ls.demo.load(arguments.backend)
    chosen = list(pairs(arguments.pairs))
    if not arguments.skip_completeness:
        whole = completeness(model, chosen)
        print(whole, flush=True)
        write(PAGE, "completeness", whole)
    for n, found, apart in agreement(model, chosen):
        if n % 25 == 0 or n == len(chosen):
            write(PAGE, "agreement", f"{n} pairs.\n\n{agreement_table(found, apart)}")
            write(PAGE, "orders", order_table(found))
    print(agreement_table(found, apart), order_table(found), sep="\n")


if __name__ == "__main__":
    main()
