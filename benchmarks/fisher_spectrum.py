"""What a Fisher scope does before its passes: F from all words and its eigenvectors, or the vocabulary split; CPU time.

    python benchmarks/fisher_spectrum.py [--shape 768 32000 --shape 2048 128000]

Random unembeddings with a decaying spectrum, a prediction with one likely word; one thread, alternating runs. The last
column is the share of tr F that the leading vectors carry, relative to the best that as many vectors can carry: what is
missed there is scatter, not bias (see ``Fisher``).
"""

import argparse
import statistics
import time

import torch
from tables import markdown

import lens_scopes as ls
from lens_scopes.scopes.factor import fisher_matrix


def state_of(width: int, vocab: int) -> ls.FinalState:
    """The end of a model that does not exist: W_U with decaying spectrum, p peaked."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(vocab, width, generator=generator) * (1 + torch.arange(width)) ** -0.5
    weight = basis + 0.05 * torch.randn(vocab, width, generator=generator)
    y = torch.randn(width, generator=generator)
    logits = weight @ y
    logits *= 4.5 / logits.std()
    return ls.FinalState(
        y=y, logits=logits, weight=weight, slope=None, tokens=(0,), position=0, index=0, count=1, constant_norm=False,
        norm_has_bias=False, token_id=int,
    )  # fmt: skip


def seconds(call) -> float:
    """CPU time."""
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=2, action="append", metavar=("D_MODEL", "VOCAB"))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for width, vocab in options.shape or [(768, 32_000), (2048, 128_000)]:
        state = state_of(width, vocab)
        calls = {
            "all": lambda state=state: torch.linalg.eigh(fisher_matrix(state)),
            "estimate": lambda state=state: ls.Fisher(16)(state),
            "rank": lambda state=state: ls.Fisher(rank=1)(state),
        }
        times = {name: [seconds(call) for _ in range(options.rounds)] for name, call in calls.items()}
        energy = torch.linalg.eigvalsh(fisher_matrix(state)).flip(0)
        made = ls.Fisher(16)(state).notes
        carried = made["coverage"] / float(energy[:8].sum() / energy.sum())
        shown = [f"{statistics.median(taken):.2f}" for taken in times.values()]
        lines.append([width, vocab, *shown, made["heavy_words"], f"{carried:.3f}"])
    columns = ["d_model", "vocabulary", "all words, s", "Fisher(16), s", "Fisher(rank=1), s", "heavy words"]
    print(markdown([*columns, "leading 8 carry, of the ideal"], lines))


if __name__ == "__main__":
    main()
