"""A run of a corpus in a process of its own, for tests that kill it: ``corpus_run.py PROMPTS OUT WORKERS [FAULT]``.

FAULT "fsync" or "rename" ends the process there, in the second unit, as a power failure would; "room" lets no file
become as large as a part.
"""

import os
import resource
import signal
import sys
from pathlib import Path

import torch

import lens_scopes as ls


def fail_at(where: str) -> None:
    """End this process at its second part."""
    kind, name = (os, "fsync") if where == "fsync" else (Path, "replace")
    real, parts = getattr(kind, name), []

    def ends(first, *others):
        target = str(Path(f"/proc/self/fd/{first}").readlink()) if where == "fsync" else str(first)
        if ".part-" in target:
            parts.append(target)
        if len(parts) == 2:
            os._exit(9)
        return real(first, *others)

    setattr(kind, name, ends)


def main(prompts: str, out: str, workers: str = "0", fault: str = "") -> None:
    torch.set_num_threads(1)
    if fault in ("fsync", "rename"):
        fail_at(fault)
    if fault == "room":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
    found = ls.corpus.run(ls.demo.load, prompts, ls.Semantic(), out, unit_tokens=200, workers=int(workers))
    print(found.done, found.failed, found.todo)


if __name__ == "__main__":
    main(*sys.argv[1:])
