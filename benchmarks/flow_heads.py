"""The heads that flow names on the demo model, held against what the heads look at and what patching each of them does.

    python benchmarks/flow_heads.py [--cases 100] [--backend hooked] [--write docs/flow.md]

Induction: prefix matching is measured in the usual way, on words drawn at random and said twice (from each word of the
second round, the attention to the word after its first occurrence), and on the prompts themselves, "key : value ,
key : value , ... key :": attention from the last token to the value that follows the same key and mark, less that to the
other values on average. Indirect objects: TransformerLens's own patching puts each head's output of the clean
run into the corrupted one, at all positions; 1 is the whole way from the corrupted to the clean logit difference.
"""

import argparse
import random
import warnings
from pathlib import Path

import torch
from scipy.stats import pearsonr, spearmanr
from transformer_lens.patching import get_act_patch_attn_head_out_all_pos

import lens_scopes as ls

MARK = "<!-- flow_heads -->"


def flows(model, cases, sources=None) -> torch.Tensor:
    """Every head's share of the score, [case, layer, head]."""
    found = []
    for case in cases:
        scope = ls.Semantic(case.answer, versus=case.versus)
        flow = ls.flow(model, case.prompt, scope, sources=sources and sources(case))
        found.append(flow.heads.sum(0) / flow.total.sum())
    return torch.stack(found)


def patched(model, cases) -> torch.Tensor:
    """Share of the logit difference that patching each head restores, [case, layer, head]."""
    found = []
    for case in cases:
        clean, corrupted = model.to_tokens(case.prompt), model.to_tokens(case.corrupted)
        right, wrong = (model.to_single_token(" " + word) for word in (case.answer, case.versus))

        def difference(logits, right=right, wrong=wrong):
            return logits[0, -1, right] - logits[0, -1, wrong]

        with torch.no_grad():
            clean_logits, cache = model.run_with_cache(clean)
            low, high = difference(model(corrupted)), difference(clean_logits)
            effect = get_act_patch_attn_head_out_all_pos(model, corrupted, cache, difference)
        found.append((effect - low) / (high - low))
    return torch.stack(found)


def prefix_matching(model, rounds: int = 50, length: int = 20) -> torch.Tensor:
    """Attention from words said a second time to the word after the first time, [layer, head]."""
    generator = random.Random(0)
    words = sorted({case.answer for case in ls.demo.cases("induction", n=200)})
    found = []
    for _ in range(rounds):
        said = generator.sample(words, min(length, len(words)))
        tokens = model.to_tokens(" ".join(said * 2))
        start = tokens.shape[1] - 2 * len(said)
        with torch.no_grad():
            _, cache = model.run_with_cache(tokens)
        second = torch.arange(start + len(said), tokens.shape[1])
        target = second - len(said) + 1
        found.append(torch.stack([p[0][:, second, target].mean(-1) for p in patterns(model, cache)]))
    return torch.stack(found).mean(0)


def patterns(model, cache):
    return [cache[f"blocks.{layer}.attn.hook_pattern"] for layer in range(model.cfg.n_layers)]


def attention(model, cases, to) -> torch.Tensor:
    """Attention from the last token to one position of each case, [case, layer, head]."""
    found = []
    for case in cases:
        with torch.no_grad():
            _, cache = model.run_with_cache(model.to_tokens(case.prompt))
        found.append(torch.stack([p[0, :, -1, to(case)] for p in patterns(model, cache)]))
    return torch.stack(found)


def matching(model, cases) -> torch.Tensor:
    """Attention from the last token to the asked value, less its mean over the other values, [case, layer, head]."""
    found = []
    for case in cases:
        with torch.no_grad():
            _, cache = model.run_with_cache(model.to_tokens(case.prompt))
        _, value, query = case.causes
        others = [i for i in range(3, query, 4) if i != value]  # <bos> key : value , key : value , ...
        look = torch.stack([p[0, :, -1] for p in patterns(model, cache)])
        found.append(look[..., value] - look[..., others].mean(-1))
    return torch.stack(found)


def changed(case) -> list[int]:
    return [i for i, (a, b) in enumerate(zip(case.tokens, case.corrupted_tokens, strict=True)) if a != b]


def table(columns: dict[str, torch.Tensor], by: str) -> list[str]:
    """A row per head, the strongest by one column first."""
    heads = columns[by].shape[1]
    order = columns[by].abs().flatten().argsort(descending=True).tolist()
    rows = [
        f"| {i // heads}.{i % heads} | " + " | ".join(f"{float(c.flatten()[i]):.3f}" for c in columns.values()) + " |"
        for i in order
    ]
    return ["| head | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|", *rows]


def correlations(name: str, a: torch.Tensor, b: torch.Tensor) -> str:
    """Over the heads, of the means; and the median over the cases of the correlation within each."""
    means = a.mean(0).flatten(), b.mean(0).flatten()
    within = [
        (pearsonr(x, y)[0], spearmanr(x, y)[0]) for x, y in zip(a.flatten(1).numpy(), b.flatten(1).numpy(), strict=True)
    ]
    pearson, spearman = (sorted(column)[len(within) // 2] for column in zip(*within, strict=True))
    first = (a.flatten(1).abs().argmax(1) == b.flatten(1).abs().argmax(1)).float().mean()
    return (
        f"| {name} | {pearsonr(*means)[0]:.2f} | {spearmanr(*means)[0]:.2f} | {pearson:.2f} | {spearman:.2f} "
        f"| {100 * float(first):.0f} % |"
    )


HEADER = [
    "| against the effect of patching | Pearson, mean over cases | Spearman, mean | Pearson within a case (median) | Spearman within "
    "| same head first |",
    "|---|---|---|---|---|---|",
]


def induction(model, n: int) -> list[str]:
    cases = ls.demo.cases("induction", n=n)
    share, change, effect = flows(model, cases), flows(model, cases, changed), patched(model, cases)
    carried = flows(model, cases, lambda case: [case.causes[1]])
    prefix, match = prefix_matching(model), matching(model, cases)
    columns = {
        "share of the flow": share.mean(0),
        "share of the value's": carried.mean(0),
        "share of the changed token's": change.mean(0),
        "prefix matching, in the prompt": match.mean(0),
        "prefix matching, random words": prefix,
        "patching the head": effect.mean(0),
    }
    above = share.clone()
    above[:, 0] = 0
    later = share.mean(0)[1:].flatten(), match.mean(0)[1:].flatten()
    return [
        f"### Induction, {n} held-out prompts",
        "",
        *table(columns, "share of the flow"),
        "",
        _first("Of all heads", share, columns),
        _first("Of the heads above layer 0, which alone can match,", above, columns),
        f"Over the heads above layer 0, the share of the flow and prefix matching in the prompt correlate with Pearson {pearsonr(*later)[0]:.2f}, "
        f"Spearman {spearmanr(*later)[0]:.2f}.",
        "",
        *HEADER,
        correlations("flow, all tokens together", share, effect),
        correlations("flow of the token that is changed", change, effect),
        correlations("prefix matching, in the prompt", match, effect),
    ]


def _first(whose: str, share: torch.Tensor, columns: dict[str, torch.Tensor]) -> str:
    best, heads = int(share.mean(0).flatten().abs().argmax()), share.shape[2]
    ranks = ", ".join(f"{1 + int((c > c.flatten()[best]).sum())} by {name}" for name, c in columns.items())
    often = float((share.flatten(1).abs().argmax(1) == best).float().mean())
    return f"{whose} flow ranks {best // heads}.{best % heads} first (in {100 * often:.0f} % of the prompts). Its ranks among all: {ranks}."


def indirect_objects(model, n: int) -> list[str]:
    cases = ls.demo.cases("ioi", n=n)
    share, change, effect = flows(model, cases), flows(model, cases, changed), patched(model, cases)
    name = attention(model, cases, lambda case: case.tokens.index(case.answer))
    columns = {
        "share of the flow": share.mean(0),
        "share of the changed token's": change.mean(0),
        "attention to the answer's name": name.mean(0),
        "patching the head": effect.mean(0),
    }
    return [
        f"### Indirect objects, {n} held-out prompts",
        "",
        *table(columns, "patching the head"),
        "",
        *HEADER,
        correlations("flow, all tokens together", share, effect),
        correlations("flow of the token that is changed", change, effect),
        correlations("attention to the answer's name", name, effect),
    ]


def main() -> None:
    """Print the tables, or write them between the marks in a document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--backend", choices=["bridge", "hooked", "auto"], default="auto")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    model = ls.demo.load(options.backend)
    lines = [*induction(model, options.cases), "", *indirect_objects(model, options.cases)]
    print("\n".join(lines))
    if options.write:
        before, _, after = options.write.read_text(encoding="utf-8").split(MARK)
        options.write.write_text(before + MARK + "\n" + "\n".join(lines) + "\n" + MARK + after, encoding="utf-8")


if __name__ == "__main__":
    main()
