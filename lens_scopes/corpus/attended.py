"""A run and whoever started it: one at a time in a folder, one bar, and Ctrl-C between two units."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lens_scopes.corpus.parts import Answer


@dataclass(frozen=True)
class Done:
    """What a unit came to."""

    prompts: int
    failed: int
    tokens: int

    @classmethod
    def of(cls, answers: list[Answer]) -> "Done":
        """Of its answers."""
        found = [answer.scores for answer in answers if answer.scores is not None]
        return cls(len(answers), len(answers) - len(found), sum(len(scores.tokens) for scores in found))


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Nobody else runs in the folder inside; the lock goes with the process, however it ends.

    Raises:
        RuntimeError: somebody does.

    """
    from filelock import FileLock, Timeout

    lock = FileLock(out / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        msg = f"another run is at work in {out}; wait for it, or write another folder"
        raise RuntimeError(msg) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def between_units(say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Ctrl-C inside waits for the function that is yielded, which is called after each unit; a second one does not."""
    asked = False

    def note(*signal_and_frame: Any) -> None:
        nonlocal asked
        if asked:
            signal.default_int_handler(*signal_and_frame)
        asked = True
        say("Ctrl-C: the unit in work is finished first; once more stops at once")

    def raise_now() -> None:
        if asked:
            msg = "stopped between two units; the same call goes on from here"
            raise KeyboardInterrupt(msg)

    mine = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if mine else None
    if before is not signal.default_int_handler:  # somebody else's: it is not ours to replace
        yield raise_now
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield raise_now
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def bar(prompts: int, done: int) -> Iterator[tuple[Callable[[Done], None], Callable[[str], None]]]:
    """A bar in prompts with tokens per second: functions that count a unit and that say a line, on stderr."""
    from tqdm.auto import tqdm

    with tqdm(total=prompts, initial=done, desc="corpus", unit=" prompts", file=sys.stderr) as shown:
        failed = tokens = 0

        def count(unit: Done) -> None:
            nonlocal failed, tokens
            failed, tokens = failed + unit.failed, tokens + unit.tokens
            seconds = max(shown.format_dict["elapsed"], 1e-9)
            shown.set_postfix_str(f"{tokens / seconds:,.0f} tokens/s, {failed} failed", refresh=False)
            shown.update(unit.prompts)

        yield count, lambda text: shown.write(text, file=sys.stderr)
