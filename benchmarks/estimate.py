"""What ``ls.estimate`` says against the peak that is seen: each case in a process of its own.

``python benchmarks/estimate.py``; Gemma 3 270M where it is (``make real``). Linux: the peak is reset before the call.
"""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

GEMMA = Path(os.environ.get("LENS_SCOPES_REAL_MODEL", "~/.cache/lens_scopes/gemma3-270m")).expanduser()
# model, tokens, scope, sites, flow
CASES = [
    ("llama-12 bridge", 256, "Semantic()", "embed", False),
    ("llama-12 bridge", 512, "Semantic()", "embed", False),
    ("llama-12 bridge", 512, "Semantic()", None, False),
    ("llama-12 bridge", 256, "Semantic()", None, True),
    ("llama-12 bridge", 256, "ls.Fisher(16)", None, False),
    ("llama-12 hooked", 256, "Semantic()", None, False),
    ("llama-12 hooked", 512, "Semantic()", None, False),
    ("llama-12 hooked", 256, "Semantic()", None, True),
    ("gemma", 256, "Semantic()", None, False),
    ("gemma", 512, "Semantic()", "embed", False),
    ("gemma", 512, "Semantic()", None, False),
    ("gemma", 256, "Semantic()", None, True),
]


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def measure(name: str, n: int, scope: str, sites: str | None, flow: bool) -> None:
    import torch
    from models import llama_shaped

    import lens_scopes as ls

    torch.set_num_threads(1)
    model = ls.load(GEMMA) if name == "gemma" else llama_shaped(name.split()[1])
    recipe = eval(scope if "ls." in scope else f"ls.{scope}")
    options = {} if flow else {"sites": sites}
    call = ls.flow if flow else ls.score
    call(model, list(range(8)), recipe, **options)  # what a first call loads is not the prompt's
    said = ls.estimate(model, n, recipe, sites=sites, flow=flow)
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what loading freed is not there to be used again
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    call(model, [7 * i % 1000 for i in range(n)], recipe, **options)
    print(json.dumps({"said": said.bytes, "seen": resident("VmHWM") - before}))


def main() -> None:
    print(
        "| model | tokens | case | estimate, MiB | peak above the model, MiB | error |\n|---|---|---|---|---|---|",
        flush=True,
    )
    for case in CASES:
        name, n, scope, sites, flow = case
        if name == "gemma" and not GEMMA.is_dir():
            continue
        command = [sys.executable, __file__, json.dumps(case)]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(run.stdout.splitlines()[-1])
        what = f"{'flow, ' if flow else ''}{scope.removeprefix('ls.')}, {'embed' if sites else 'all sites'}"
        said, seen = found["said"] / 2**20, found["seen"] / 2**20
        print(f"| {name} | {n} | {what} | {said:,.0f} | {seen:,.0f} | {said / seen - 1:+.0%} |", flush=True)


if __name__ == "__main__":
    measure(*json.loads(sys.argv[1])) if len(sys.argv) > 1 else main()
