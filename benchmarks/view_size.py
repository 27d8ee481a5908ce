"""What a notebook has to carry for one static view: kB of Scores and of a Flow, by the number of tokens.

    python benchmarks/view_size.py [--model DIRECTORY] [--tokens 12 60 300 2000]

The prompt is the beginning of this project's README and of its pages. Without a model the scores are made up: a few
tokens have most of them, there are 19 rows.
"""

import argparse
from pathlib import Path

import torch

import lens_scopes as ls

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Print the sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--tokens", type=int, nargs="+", default=[12, 60, 300, 2000])
    options = parser.parse_args()
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/flow.md"))
    if options.model is None:
        for count in options.tokens:
            print(f"{count} tokens: made-up scores {_kilobytes(_made_up(text, count))} kB")
        return
    model = ls.load(options.model)
    ids = model.to_tokens(text)[0].tolist()
    for count in options.tokens:
        scores = ls.score(model, ids[:count], ls.Semantic())
        flow = ls.flow(model, ids[:count], ls.Semantic())
        print(f"{count} tokens: scores {_kilobytes(scores)} kB, flow {_kilobytes(flow)} kB", flush=True)


def _made_up(text: str, count: int) -> ls.Scores:
    generator = torch.Generator().manual_seed(0)
    each = torch.randn(count, generator=generator).mul(1.2).exp()
    values = each * torch.randn(19, count, generator=generator).mul(0.6).exp() * 2.0 ** (-torch.arange(19)[:, None] / 3)
    values[:, 0] *= 30
    tokens = tuple(text[5 * i : 5 * i + 5] for i in range(count))
    sites = ("hook_embed", *(f"blocks.{layer}.hook_resid_post" for layer in range(18)))
    return ls.Scores(values, ("site", "pos"), {"site": sites, "pos": tuple(range(count))}, tokens, {"units": "norm"})


def _kilobytes(result: ls.Scores | ls.Flow) -> int:
    return round(len(result._repr_html_().encode()) / 1000)


if __name__ == "__main__":
    main()
