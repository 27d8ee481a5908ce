"""What a score costs, in units of one bare forward + backward to the embeddings: time and peak memory, side by side.

    python benchmarks/overhead.py [--rounds 7] [--tokens 128]

Times alternate floor, score, floor, ... in one process and the median ratio is quoted; peak memory is that of a fresh
process for each case, as the operating system counts it.
"""

import argparse
import gc
import importlib.util
import resource
import statistics
import subprocess
import sys
import time
import warnings

import torch
from models import floor, llama_shaped

import lens_scopes as ls

CASES = {
    "floor": lambda model, tokens: floor(model, tokens[None]),
    "Semantic, all 13 sites": lambda model, tokens: ls.score(model, tokens, ls.Semantic()),
    "Temperature, all 13 sites": lambda model, tokens: ls.score(model, tokens, ls.Temperature()),
    "Fisher(16), all 13 sites": lambda model, tokens: ls.score(model, tokens, ls.Fisher(16)),
    "Semantic at 16 positions": lambda model, tokens: ls.score(model, tokens, ls.Semantic(), position=range(-16, 0)),
}


def seconds(call, *arguments) -> float:
    gc.collect()
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--backend", choices=["bridge", "hooked"], action="append")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    known = importlib.util.find_spec("transformer_lens.HookedTransformer") is not None
    backends = options.backend or (["bridge", "hooked"] if known else ["bridge"])
    tokens = torch.randint(0, 32_000, (options.tokens,), generator=torch.Generator().manual_seed(1))
    if options.memory_of:
        model = llama_shaped(backends[0])
        loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(2):
            CASES[options.memory_of](model, tokens)
        print(loaded, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    print(
        f"| host | case | time / floor (median of {options.rounds}) | min..max | peak memory / floor's | MB above the model |"
    )
    print("|---|---|---|---|---|---|")
    for backend in backends:
        model = llama_shaped(backend)
        memory = {case: _peak(case, backend, options) for case in CASES}
        for case, call in CASES.items():
            call(model, tokens)
            pairs = [
                (seconds(call, model, tokens), seconds(CASES["floor"], model, tokens)) for _ in range(options.rounds)
            ]
            ratios = sorted(a / b for a, b in pairs)
            loaded, peak = memory[case]
            print(
                f"| {backend} | {case} | {statistics.median(ratios):.2f} | {ratios[0]:.2f}..{ratios[-1]:.2f} "
                f"| {peak / memory['floor'][1]:.2f} | {(peak - loaded) / 1024:.0f} |",
                flush=True,
            )


def _peak(case: str, backend: str, options: argparse.Namespace) -> tuple[int, int]:
    command = [sys.executable, __file__, "--memory-of", case, "--backend", backend, "--tokens", str(options.tokens)]
    out = subprocess.run(
        [*command, "--threads", str(options.threads)], check=True, capture_output=True, text=True
    ).stdout
    loaded, peak = out.split()[-2:]
    return int(loaded), int(peak)


if __name__ == "__main__":
    main()
