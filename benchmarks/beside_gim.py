"""Patches predicted by GIM's own package beside ours: the small table of docs/patching.md.

    pip install gim-explain
    python benchmarks/beside_gim.py --pairs 15                                              # the demo model
    python benchmarks/beside_gim.py --model ~/.cache/lens_scopes/gemma3-270m --pairs 9      # the first pairs of pairs.jsonl

GIM (Edin et al. 2025, arXiv 2505.17630) changes the backward pass: norms held, softmax at temperature 2, the gradients of q, k and
v scaled. Its package hooks a HookedTransformer; the estimate is its gradient times the difference of the two activations, as its
README says for circuit discovery. Denoising, on the pairs of patching_effects.py.
"""

import argparse
import warnings
from dataclasses import replace

import gim
import torch
from patching_effects import difference, mean, numbers, pairs
from tables import markdown
from tqdm.auto import tqdm

import lens_scopes as ls

SITES = {
    "z": "z, whole heads",
    "mlp_out": "mlp_out, position",
    "attn_out": "attn_out, position",
    "resid_post": "resid_post, position",
}
METHODS = ("gradient", "GIM", "path", "two-scale")


def estimate(model, clean, corrupted, scope, names):
    """⟨GIM's gradient at the corrupted run, difference of the activations⟩: [site, pos] or [site, pos, head]."""
    with torch.no_grad():
        there = model.run_with_cache(model.to_tokens(clean), names_filter=names)[1]
    seen = {}

    def keep(activation, hook):
        activation.retain_grad()
        seen[hook.name] = activation

    answers = [model.to_single_token(text) for text in (scope.target, scope.versus)]
    with model.hooks(fwd_hooks=[(name, keep) for name in names]), gim.GIM(model):
        logits = model(model.to_tokens(corrupted))[0, -1]
        (logits[answers[0]] - logits[answers[1]]).backward()
    model.zero_grad()
    return torch.stack([(seen[n].grad * (there[n] - seen[n].detach()))[0].sum(-1) for n in names])


def rows(model, chosen):
    """By site and method, what compare says of each pair."""
    found = {site: {method: [] for method in METHODS} for site in SITES}
    for clean, corrupted, scope in tqdm(chosen, desc="pairs"):
        layers, cache = range(model.cfg.n_layers), {}
        for site in SITES:
            names = [f"blocks.{n}.{'attn.' if site == 'z' else ''}hook_{site}" for n in layers]
            predicted = ls.patching.predict(model, clean, corrupted, scope, sites=names)
            theirs = estimate(model, clean, corrupted, scope, names)
            where = None
            if site == "z":
                predicted, theirs = predicted.sum("pos"), theirs.sum(1)
                where = [(layer, head) for layer in layers for head in predicted.coords["head"]]
            measured = ls.patching.measure(model, clean, corrupted, scope, sites=names, where=where, cache=cache)
            for method, said in numbers(predicted, measured):
                if method in METHODS:
                    found[site][method].append(said)
            of_gim = replace(predicted, values=theirs.to(predicted.values))
            found[site]["GIM"].append(dict(numbers(of_gim, measured))["two-scale"])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a directory; without it the demo model")
    parser.add_argument("--pairs", type=int, default=15)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model = ls.load(options.model, backend="hooked") if options.model else ls.demo.load("hooked")
    every = [one[1:] for one in pairs(None if options.model else options.pairs)]
    chosen = [one for one in every if difference(model, *one) > 1][: options.pairs]
    table = [
        [
            SITES[site] if method == METHODS[0] else "",
            method,
            *(f"{mean([cell[key] for cell in cells]):.2f}" for key in ("pearson", "spearman")),
            f"{sum(cell['sign'] for cell in cells):.0f} of {len(cells)}",
        ]
        for site, by_method in rows(model, chosen).items()
        for method, cells in by_method.items()
    ]
    print(markdown(["sites", "method", "Pearson", "Spearman", "sign of the largest"], table))


if __name__ == "__main__":
    main()
