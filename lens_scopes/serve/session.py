"""A model that answers questions one after the other, on a thread of its own: with progress, and so that one can leave.

Leaving raises ``Cancelled`` out of a hook at the end of a block, in a forward or a backward pass: like Ctrl-C it goes
through every ``finally``, and the model is as it was. Nothing is ever raised into the thread from outside.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lens_scopes.host import Host
from lens_scopes.host.fingerprint import fingerprint
from lens_scopes.host.undo import guarded
from lens_scopes.serve import answers
from lens_scopes.serve.asks import Ask
from lens_scopes.serve.calls import Call
from lens_scopes.sites import STREAM

#: Results that are kept (numbers alone), and questions that may wait.
KEPT, WAITING = 64, 32

#: What is heard while a question waits and runs: {"queued": n}, {"progress": [done, of], "what": ...}.
Say = Callable[[dict[str, Any]], None]


class Cancelled(BaseException):
    """Nobody waits for this answer any more. Not an Exception: nothing on its way may take it for a failure."""


class Busy(RuntimeError):  # noqa: N818 - what it is
    """As many questions wait as may."""


@dataclass(eq=False)
class Job:
    """A question on its way."""

    say: Say
    left: threading.Event = field(default_factory=threading.Event)
    future: "Future[dict[str, Any]]" = field(default_factory=Future)

    def cancel(self) -> None:
        """Leave: a question that waits never runs, one that runs stops at the next block."""
        self.left.set()
        self.future.cancel()

    def check(self) -> None:
        """Stop here if nobody waits.

        Raises:
            Cancelled: so it is.

        """
        if self.left.is_set():
            raise Cancelled


class Session:
    """Answers questions about one model. Every method may be called from any thread.

    Args:
        model: a HookedTransformer or TransformerBridge, in eval mode. It is left as it came after every answer.

    Raises:
        TypeError: not a model.

    Example:
        >>> import lens_scopes as ls
        >>> from lens_scopes.serve import Session, read
        >>> session = Session(ls.demo.load())
        >>> answer = session.ask(read("tokens", {"prompt": "wug : tove , dax : blick , wug :"}))
        >>> answer["next"][0]["text"].strip()
        'tove'

    """

    def __init__(self, model: Any) -> None:
        """See the class."""
        self.host = Host(model)
        self._worker = ThreadPoolExecutor(1, "lens-scopes")
        self._lock = threading.Lock()
        self._results: OrderedDict[str, Any] = OrderedDict()
        self._pair: tuple[Any, dict[str, Any]] = (None, {})
        self._jobs: set[Job] = set()
        self._made_by = ""

    def ask(self, ask: Ask, say: Say = lambda _: None) -> dict[str, Any]:
        """The answer, when it is there.

        Raises:
            ValueError: whatever the package says about the question; TypeError, IndexError and RuntimeError too.

        """
        return self.submit(ask, say).future.result()

    def submit(self, ask: Ask, say: Say = lambda _: None) -> Job:
        """Let a question wait for its turn.

        Raises:
            Busy: too many wait already.

        """
        job = Job(say)
        with self._lock:
            if len(self._jobs) > WAITING:
                msg = f"{WAITING} questions wait already; ask again when some are answered"
                raise Busy(msg)
            if self._jobs:
                say({"queued": len(self._jobs)})
            self._jobs.add(job)
            job.future = self._worker.submit(self._answer, ask, job)
        job.future.add_done_callback(lambda _: self._done(job))
        return job

    def kept(self, key: str) -> Any:
        """A result that is kept, by the key of its picture; None where it is gone."""
        return self._results.get(key)

    def close(self) -> None:
        """Take no more questions, and drop those that wait or run."""
        for job in tuple(self._jobs):
            job.cancel()
        self._worker.shutdown(wait=False)

    def _done(self, job: Job) -> None:
        with self._lock:
            self._jobs.discard(job)

    @guarded
    def _answer(self, ask: Ask, job: Job) -> dict[str, Any]:
        self._forget_another_model()
        engine = Engine(self, job)
        beats = [(STREAM["resid_post"].format(layer), engine.beat) for layer in range(self.host.n_layers)]
        with self.host.hooks(beats):
            return answers.answer(ask, engine)

    def _forget_another_model(self) -> None:
        """What is kept is of the model as it was: a notebook may have changed its weights or hooks since."""
        with self.host.alone():
            now = fingerprint(self.host)
        if now != self._made_by:
            self._made_by, self._pair = now, (None, {})
            self._results.clear()

    def result(self, call: Call) -> Any:
        """What a call gives, or gave before; of measuring, with the activations of the last pair."""
        key = call.key
        if key in self._results:
            self._results.move_to_end(key)
            return self._results[key]
        more = {}
        if call.verb == "patching.measure":
            if self._pair[0] != call.prompts:
                self._pair = (call.prompts, {})
            more["cache"] = self._pair[1]
        found = call.run(self.host.model, **more)
        self._results[key] = found
        while len(self._results) > KEPT:
            self._results.popitem(last=False)
        return found


@dataclass(eq=False)
class Engine:
    """What an answer is made with: results of calls, and a way to say how far it is."""

    session: Session
    job: Job
    blocks: int = 0
    """Ends of blocks that went by."""
    counted: tuple[int, str] | None = None
    """How many passes there will be, and of what; None: nobody knows."""

    @property
    def host(self) -> Host:
        """The model."""
        return self.session.host

    def result(self, call: Call) -> Any:
        """What a call gives."""
        self.job.check()
        return self.session.result(call)

    def say(self, done: int, of: int, what: str) -> None:
        """How far it is."""
        self.job.say({"progress": [done, of], "what": what})

    def count(self, of: int, what: str) -> None:
        """Say how far it is after each pass of the model from now on."""
        self.blocks, self.counted = 0, (of, what)

    def beat(self, activation: Tensor, hook: object) -> None:  # noqa: ARG002 - TransformerLens's signature
        """At the end of a block: stop here if nobody waits, and when a gradient comes back to it."""
        self.job.check()
        if activation.requires_grad and torch.is_grad_enabled():
            activation.register_hook(self._back)
        self.blocks += 1
        if self.counted is not None and self.blocks % self.host.n_layers == 0:
            of, what = self.counted
            self.say(min(of, self.blocks // self.host.n_layers), of, what)

    def _back(self, _: Tensor) -> None:
        self.job.check()
