"""Predicted against measured patches: the tables of docs/patching.md.

    python benchmarks/patching_effects.py --pairs 200                                # the demo model
    python benchmarks/patching_effects.py --model ~/.cache/lens_scopes/gemma3-270m   # a language model, on pairs.jsonl
    python benchmarks/patching_effects.py --tables                                   # of the rows that there are

Rows go to a file, pair by pair, and a run goes on where the last one stopped; ``--most`` ends it after so many. Clean
and corrupted prompts have one length, and the metric is the logit difference of their two answers. "denoising" patches
clean activations into the corrupted run, "noising" the reverse. The pairs for a language model are those of pairs.jsonl
that have one length and answers of one token, and move the metric by more than 1.
"""

import argparse
import json
import statistics
import warnings
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tables import markdown, write
from tqdm.auto import tqdm

import lens_scopes as ls

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "patching.md"
KINDS = ("ioi", "induction", "translation")
DIRECTIONS = ("denoising", "noising")
#: Sites of one result; those by head are measured as whole heads.
STREAM, BY_HEAD = ("mlp_out", "attn_out", "resid_post"), (("z", "q"), ("k", "v"))
SITES = {"z": "z, whole heads", "q": "q, whole heads", "k": "k, whole heads", "v": "v, whole heads"}
METHODS = ("gradient", "fixed", "path", "two-scale")
#: Places below this share of the largest effect, measured and predicted, are left out: rounding has a rank too.
NOTHING = 1e-5
#: How many pairs are held against TransformerLens's attribution_patch: what it says does not depend on the pair.
_PARITY = 10


def pairs(count):
    """Kind, clean prompt, corrupted prompt, scope; the kinds in turn."""
    if count is not None:
        streams = {kind: ls.demo.cases(kind, n=count // len(KINDS) + 1) for kind in KINDS}
        for n in range(count):
            kind = KINDS[n % len(KINDS)]
            case = streams[kind][n // len(KINDS)]
            yield kind, case.prompt, case.corrupted, ls.Semantic(case.answer, case.versus)
        return
    by_kind = defaultdict(list)
    for line in (HERE / "pairs.jsonl").read_text(encoding="utf-8").splitlines():
        one = json.loads(line)
        by_kind[one["kind"]].append(one)
    for n in range(max(map(len, by_kind.values()))):
        for kind, some in by_kind.items():
            if n < len(some):
                one = some[n]
                yield kind, one["clean"], one["corrupted"], ls.Semantic(one["target"], one["versus"])


def difference(model, clean, corrupted, scope):
    """What the pair changes; 0 where the prompts do not match position by position."""
    ids = [model.to_tokens(prompt) for prompt in (clean, corrupted)]
    answers = [model.tokenizer.encode(text, add_special_tokens=False) for text in (scope.target, scope.versus)]
    if ids[0].shape != ids[1].shape or any(len(answer) != 1 for answer in answers):
        return 0.0
    with torch.no_grad():
        logits = torch.cat([model(one)[:, -1] for one in ids])
    values = logits[:, answers[0][0]] - logits[:, answers[1][0]]
    return float(values[0] - values[1])


def rows_of(model, clean, corrupted, scope):
    """By kind of site: the prediction, and what was measured where there is something to predict."""
    cache, layers = {}, range(model.cfg.n_layers)
    found = {}
    names = [f"blocks.{n}.hook_{site}" for site in STREAM for n in layers]
    found |= both(model, (clean, corrupted, scope), names, STREAM, cache, None)
    for together in BY_HEAD:
        names = [f"blocks.{n}.attn.hook_{site}" for site in together for n in layers]
        found |= both(model, (clean, corrupted, scope), names, together, cache, layers)
    return found


def both(model, pair, names, kinds, cache, heads):
    predicted = ls.patching.predict(model, *pair, sites=names)
    parts = {}
    for kind in kinds:
        rows = [n for n, name in enumerate(names) if name.endswith(f"_{kind}")]
        at = tuple(names[n] for n in rows)

        def pick(x, axis, rows=rows):
            return x.index_select(axis, torch.tensor(rows))

        of_kind = predicted.reduced("site", pick, coords={**predicted.coords, "site": at})
        where = None
        if heads is not None:
            of_kind = of_kind.sum("pos")
            where = [(layer, head) for layer in heads for head in of_kind.coords["head"]]
        measured = ls.patching.measure(model, *pair, sites=at, where=where, cache=cache)
        least = NOTHING * measured.values.abs().max()
        moved = (measured.values.abs() > least) | (of_kind.values.abs() > least)
        parts[kind] = (of_kind, replace(measured, values=measured.values.where(moved, torch.nan)))
    return parts


def numbers(predicted, measured):
    """What the tables are made of, by method."""
    for method in METHODS:
        values = predicted.values if method == "two-scale" else predicted.estimates[method]
        found = ls.patching.compare(replace(predicted, values=values), measured)
        error = (values - measured.values)[found.where].norm() / measured.values[found.where].norm()
        patches = found.patches_to(0.9)
        yield (
            method,
            {
                "places": int(found.where.sum()),
                "pearson": found.pearson,
                "spearman": found.spearman,
                "sign": found.largest_sign,
                "rank": found.largest_rank,
                "overlap": found.overlap(min(5, int(found.where.sum()))),
                "error": float(error),
                "patches": patches["scope"],
                "best": patches["best"],
                "random": patches["random"],
            },
        )


def attribution(model, clean, corrupted, scope):
    """The largest difference between "gradient" and TransformerLens's attribution_patch, of the largest score."""
    from transformer_lens.tools.analysis import EdgeAttributionConfig, attribution_patch

    tokens = [model.to_tokens(prompt) for prompt in (clean, corrupted)]
    with ls.patching.metric(model, clean, scope) as metric:
        nodes = attribution_patch(model, *tokens, metric, EdgeAttributionConfig(granularity="node")).node_scores
    ours = {
        kind: ls.patching.predict(model, clean, corrupted, scope, sites=sites, method="gradient").values
        for kind, sites in (("attn_head_out", "z"), ("mlp_out", "mlp_out"))
    }
    apart = [
        float(ours[node.kind][(node.layer, node.position, *([node.head] if node.kind == "attn_head_out" else []))])
        - float(score)
        for node, score in nodes.items()
        if node.kind in ours
    ]
    return max(map(abs, apart)) / max(float(values.abs().max()) for values in ours.values())


def run(model, name, chosen, path, most, parity):
    """Every pair in both directions, unless its rows are there already."""
    done = {(row["pair"], row["direction"]) for row in read(path) if row["model"] == name}
    left = [(n, d) for n in range(len(chosen)) for d in DIRECTIONS if (n, d) not in done][:most]
    for n, direction in tqdm(left, desc="pairs"):
        kind, clean, corrupted, scope = chosen[n]
        moved = difference(model, clean, corrupted, scope)
        row = {"model": name, "pair": n, "direction": direction, "kind": kind, "difference": moved}
        if moved > 1 or name == "demo":
            ends = (clean, corrupted) if direction == "denoising" else (corrupted, clean)
            found = rows_of(model, *ends, scope)
            row["sites"] = {site: dict(numbers(*pair)) for site, pair in found.items()}
            meta = found["resid_post"][0].meta
            row |= {"gap": abs(meta["gap"] / moved), "points": meta["points"], "tokens": len(meta["token_ids"])}
            if parity and n < _PARITY:
                row["attribution"] = attribution(model, *ends, scope)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def mean(values):
    kept = [value for value in values if value == value]
    return statistics.fmean(kept) if kept else float("nan")


def interval(values, seed=0):
    """Of the mean, by 2,000 resamples of the pairs."""
    kept = np.array([value for value in values if value == value])
    draws = np.random.default_rng(seed).integers(0, len(kept), (2000, len(kept)))
    low, high = np.percentile(kept[draws].mean(1), [2.5, 97.5])
    return f"[{low:.2f}, {high:.2f}]"


def table(rows):
    """Pearson (interval) / Spearman / sign of the largest / rank of the largest / error, by site and method."""
    made = []
    for site in ("z", *STREAM, "q", "k", "v"):
        for method in METHODS:
            cells = [row["sites"][site][method] for row in rows]
            column = {key: [cell[key] for cell in cells] for key in cells[0]}
            made.append(
                [
                    SITES.get(site, f"{site}, position") if method == METHODS[0] else "",
                    method,
                    f"{mean(column['pearson']):.2f} {interval(column['pearson'])}",
                    f"{mean(column['spearman']):.2f}",
                    f"{sum(column['sign']):.0f} of {len(cells)}",
                    f"{mean(column['rank']):.1f}",
                    f"{mean(column['overlap']):.2f}",
                    f"{statistics.median(column['error']):.2f}",
                    f"{mean(column['patches']):.1f}",
                    f"{mean(column['best']):.1f}, {mean(column['random']):.1f}" if method == METHODS[0] else "",
                ]
            )
    columns = ["sites", "method", "Pearson", "Spearman", "sign of the largest", "its rank", "top 5", "error"]
    return markdown([*columns, "patches to 90 %", "best, random"], made)


def tables(path):
    for name, mark in (("gemma3-270m", "gemma"), ("demo", "demo")):
        text = []
        for direction in DIRECTIONS:
            there = [row for row in read(path) if row["model"] == name and row["direction"] == direction]
            rows = [row for row in there if "sites" in row]
            if not rows:
                continue
            gaps, points = sorted(row["gap"] for row in rows), [row["points"] for row in rows]
            exact = [row["attribution"] for row in rows if "attribution" in row]
            said = (
                f"**{direction}**: {len(rows)} pairs of {min(r['tokens'] for r in rows)} to "
                f"{max(r['tokens'] for r in rows)} tokens. Points of the path: median {statistics.median(points):.0f}, "
                f"most {max(points)}; gap: median {statistics.median(gaps):.2%}, largest {gaps[-1]:.2%}."
            )
            if exact:
                how = f"within {max(exact):.0e} of the largest score" if any(exact) else "the same number for number"
                said += (
                    f" TransformerLens's `attribution_patch` and `gradient` are {how} ({len(exact)} pairs, z and mlp_out "
                    "by position)."
                )
            text += [said, table(rows)]
        if text:
            write(PAGE, mark, "\n\n".join(text))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a name or directory; without it the demo model")
    parser.add_argument("--pairs", type=int, default=200, help="of the demo model")
    parser.add_argument("--rows", type=Path, default=HERE.parent / "build" / "patching_effects.jsonl")
    parser.add_argument("--most", type=int, help="end after so many pairs and directions")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--tables", action="store_true")
    arguments = parser.parse_args()
    if arguments.tables:
        tables(arguments.rows)
        return
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    arguments.rows.parent.mkdir(parents=True, exist_ok=True)
    if arguments.model is None:
        model, name = ls.demo.load(arguments.backend), "demo"
        chosen = list(pairs(arguments.pairs))
    else:
        model, name = ls.load(arguments.model, backend=arguments.backend), Path(arguments.model).name
        chosen = list(pairs(None))
    run(model, name, chosen, arguments.rows, arguments.most, parity=type(model).__name__ == "TransformerBridge")


if __name__ == "__main__":
    main()
