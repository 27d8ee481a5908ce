"""Many prompts: a run of a corpus against one call per prompt, and against the bare forward and backward at batch.

``python benchmarks/corpus.py demo`` (512 prompts of 8 to 64 tokens), ``python benchmarks/corpus.py gemma``; CPU time of one thread,
the two alternate, medians of the rounds' ratios.
"""

import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

import lens_scopes as ls
from lens_scopes.host import Host, run_to_last_residual

GEMMA = Path(os.environ.get("LENS_SCOPES_REAL_MODEL", "~/.cache/lens_scopes/gemma3-270m")).expanduser()


def timed(call) -> float:
    begun = time.process_time()
    call()
    return time.process_time() - begun


def whole_run(model, prompts) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert ls.corpus.run(model, prompts, ls.Semantic(), folder).done == len(prompts)


def demo(rounds: int = 3) -> None:
    model, rng = ls.demo.load(), random.Random(0)
    prompts = [[1, *(rng.randrange(3, 200) for _ in range(rng.randrange(7, 64)))] for _ in range(512)]
    found = []
    for _ in range(rounds):
        together = timed(lambda: whole_run(model, prompts))
        alone = timed(lambda: [ls.score(model, prompt, ls.Semantic()) for prompt in prompts])
        found.append((alone / together, alone, together))
    ratio, alone, together = (statistics.median(column) for column in zip(*found, strict=True))
    print(
        f"512 prompts: one by one {alone:.1f} s, a run {together:.1f} s, ratio {ratio:.1f} ({min(found)[0]:.1f}..{max(found)[0]:.1f})"
    )


def gemma(prompts: int = 32, length: int = 32, rounds: int = 3) -> None:
    """Bare: the blocks on the same batch, the model's own final norm and unembedding at the end, one logit each."""
    model = ls.load(GEMMA)
    model.requires_grad_(False)
    rng, host = random.Random(0), Host(model)
    texts = [[2, *(rng.randrange(3, 50_000) for _ in range(length - 1))] for _ in range(prompts)]

    def bare() -> None:
        run = run_to_last_residual(host, torch.tensor(texts), ["hook_embed"])
        with torch.enable_grad():
            logits = model.unembed(model.ln_final(run.last[:, -1:]))
        torch.autograd.grad(logits[:, 0, 7].sum(), run.handles["hook_embed"])

    bare()
    found = []
    for _ in range(rounds):
        floor, run = timed(bare), timed(lambda: whole_run(model, texts))
        found.append((run / floor, floor, run))
    ratio, floor, run = (statistics.median(column) for column in zip(*found, strict=True))
    tokens = prompts * length
    print(
        f"Gemma, {prompts} prompts of {length} tokens, 19 sites: bare {floor:.1f} s, a run {run:.1f} s ({tokens / run:.0f} tokens/s), ratio {ratio:.2f}"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"demo": demo, "gemma": gemma}[sys.argv[1]]()
