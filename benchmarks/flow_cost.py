"""What a flow costs, in units of one bare forward + backward to the embeddings, beside one masked backward per head.

    python benchmarks/flow_cost.py [--rounds 5] [--tokens 128] [--write docs/flow.md]

The model is Llama-shaped with random weights: 12 layers, d_model 768, 12 heads. Cases alternate within each round, in one
process, and the median of the ratios to the floors just before and after is quoted. Time is CPU time on one thread, since
the machine may be shared. The masked backward passes go through a
graph that is already there: one from each head's output to the embeddings; their sum over tokens is compared with the
flow's heads, so that both columns are about the same numbers.
"""

import argparse
import gc
import importlib.util
import statistics
import time
import warnings
from pathlib import Path

import torch
from models import floor, llama_shaped

import lens_scopes as ls

MARK = "<!-- flow_cost -->"


def masked_heads(model, tokens: torch.Tensor) -> torch.Tensor:
    """All sources' influence through each head by plain hooks: one backward pass per head, masked to it."""
    at = {}

    def keep(name):
        def hook(x, hook):  # noqa: ARG001
            at[name] = x if x.requires_grad else x.detach().requires_grad_()
            return at[name]

        return hook

    names = ["hook_embed", *(f"blocks.{layer}.attn.hook_z" for layer in range(model.cfg.n_layers))]
    with torch.enable_grad(), model.hooks(fwd_hooks=[(name, keep(name)) for name in names]):
        logits = model(tokens[None])[0, -1]
    embed, *zs = (at[name] for name in names)
    g, *gs = torch.autograd.grad(logits[logits.argmax()], [embed, *zs], retain_graph=True)
    d = g / g.norm(dim=-1, keepdim=True)
    shares = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)
    for layer, (z, g_z) in enumerate(zip(zs, gs, strict=True)):
        for head in range(model.cfg.n_heads):
            mask = torch.zeros_like(g_z)
            mask[:, :, head] = g_z[:, :, head]
            (back,) = torch.autograd.grad(z, embed, mask, retain_graph=True, allow_unused=True)
            shares[layer, head] = 0.0 if back is None else float((back * d).sum())
    return shares


CASES = {
    "`ls.flow`: all heads, MLPs and positions, Q/K/V": lambda model, tokens: ls.flow(model, tokens, ls.Semantic()),
    "`ls.flow(edges=True)`": lambda model, tokens: ls.flow(model, tokens, ls.Semantic(), edges=True),
    "`ls.score`, 13 sites": lambda model, tokens: ls.score(model, tokens, ls.Semantic()),
    "one masked backward per head": masked_heads,
}


def seconds(call, *arguments) -> float:
    gc.collect()
    start = time.process_time()
    call(*arguments)
    return time.process_time() - start


def measure(backend: str, options: argparse.Namespace) -> list[str]:
    model = llama_shaped(backend)
    tokens = torch.randint(0, 32_000, (options.tokens,), generator=torch.Generator().manual_seed(1))
    found = ls.flow(model, tokens, ls.Semantic())
    oracle = masked_heads(model, tokens)
    difference = float((found.heads[0] - oracle).abs().max() / found.total[0])
    floor(model, tokens[None])
    ratios = {case: [] for case in CASES}
    for n in range(options.rounds):
        for case, call in CASES.items():
            if case.startswith("one masked") and n >= options.masked_rounds:
                continue
            before = seconds(floor, model, tokens[None])
            mine = seconds(call, model, tokens)
            after = seconds(floor, model, tokens[None])
            ratios[case].append(2 * mine / (before + after))
    rows = [
        f"| {backend} | {case} | {statistics.median(r):.2f} | {min(r):.2f}..{max(r):.2f} | {len(r)} |"
        for case, r in ratios.items()
    ]
    flow, masked = (statistics.median(ratios[case]) for case in (next(iter(CASES)), "one masked backward per head"))
    return [
        *rows,
        f"| {backend} | masked / flow | {masked / flow:.1f} | | |",
        f"| {backend} | largest difference of a head's share between the two, of the total | {difference:.1e} | | |",
        f"| {backend} | residual of the flow | {found.residual:.1e} | | |",
    ]


def main() -> None:
    """Print the table, or write it between the marks in a document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--masked-rounds", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backend", choices=["bridge", "hooked"], action="append")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    known = importlib.util.find_spec("transformer_lens.HookedTransformer") is not None
    backends = options.backend or (["hooked", "bridge"] if known else ["bridge"])
    lines = ["| host | case | time / floor (median) | min..max | rounds |", "|---|---|---|---|---|"]
    for backend in backends:
        lines += measure(backend, options)
        print("\n".join(lines), flush=True)
    if options.write:
        text = options.write.read_text(encoding="utf-8")
        before, _, after = text.split(MARK)
        options.write.write_text(before + MARK + "\n" + "\n".join(lines) + "\n" + MARK + after, encoding="utf-8")


if __name__ == "__main__":
    main()
