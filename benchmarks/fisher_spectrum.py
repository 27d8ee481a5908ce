"""Where the eigenpairs of a Fisher matrix come from: the dense d x d matrix, or products alone; time and what is missed.

    python benchmarks/fisher_spectrum.py [--widths 768 2048] [--vocab 32000]

Random unembeddings with a decaying spectrum, a prediction with one likely token; one thread pool, alternating runs. The
last column is the share of tr F that the leading vectors carry, relative to the best that as many vectors can carry:
what is missed there is scatter, not bias (see ``Fisher``).
"""

import argparse
import statistics
import time

import torch

from lens_scopes.scopes.fisher import CentredRows, Fisher, fisher_matrix
from lens_scopes.scopes.state import FinalState


def state_of(width: int, vocab: int) -> FinalState:
    """The end of a model that does not exist: W_U with decaying spectrum, p peaked."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(vocab, width, generator=generator) * (1 + torch.arange(width)) ** -0.5
    weight = basis + 0.05 * torch.randn(vocab, width, generator=generator)
    y = torch.randn(width, generator=generator)
    logits = 2 * weight @ y / y.norm()
    return FinalState(
        y=y, logits=logits, weight=weight, slope=None, tokens=(0,), position=0, index=0, count=1, constant_norm=False,
        norm_has_bias=False, token_id=int,
    )  # fmt: skip


def seconds(call) -> tuple[float, object]:
    start = time.perf_counter()
    found = call()
    return time.perf_counter() - start, found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[768, 2048])
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    scope = Fisher(16)
    print("| d_model | dense, s | matrix-free, s | matrix-free / dense | leading 8 carry, of the ideal |")
    print("|---|---|---|---|---|")
    for width in options.widths:
        state = state_of(width, options.vocab)
        dense, free = [], []
        for _ in range(options.rounds):
            dense.append(seconds(lambda state=state: torch.linalg.eigh(fisher_matrix(state)))[0])
            took, made = seconds(lambda state=state: scope._matrix_free(state, 16))
            free.append(took)
        ideal = torch.linalg.eigvalsh(fisher_matrix(state))[-8:].sum() / CentredRows.of(state).energy.sum()
        ratio = statistics.median(f / d for f, d in zip(free, dense, strict=True))
        carried = made.notes["coverage"] / float(ideal)
        row = (
            width,
            f"{statistics.median(dense):.2f}",
            f"{statistics.median(free):.2f}",
            f"{ratio:.2f}",
            f"{carried:.4f}",
        )
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


if __name__ == "__main__":
    main()
