"""What is computed: a model and the prompts of a unit in, their answers out. The same in this process and in others."""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from lens_scopes.corpus import parts
from lens_scopes.corpus.parts import Answer
from lens_scopes.corpus.plan import COLUMNS
from lens_scopes.corpus.rows import Row
from lens_scopes.flow import flow
from lens_scopes.host import Host, load
from lens_scopes.host.fingerprint import weights
from lens_scopes.results import sameness
from lens_scopes.results.arguments import shown
from lens_scopes.results.provenance import plain
from lens_scopes.scopes.protocol import Scope, data_of
from lens_scopes.score import score_batch

if TYPE_CHECKING:
    import pyarrow as pa

OnError = Literal["record", "stop"]
#: How a worker gets its model.
Model = str | Path | Mapping[str, Any] | Callable[[], Any] | Any


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked of every prompt."""

    scope: Scope | str
    """A scope, or "module:function" of one that makes it of a row."""
    sites: tuple[str, ...]
    position: Any = -1
    along: Literal["activation"] | None = None
    flow: bool = False

    def as_data(self) -> dict[str, Any]:
        """JSON-like, for the provenance."""
        if isinstance(self.scope, str):
            scope = {"kind": "by row", "text": self.scope, "is": sameness.identity(function_of(self.scope))}
        else:
            scope = data_of(self.scope)
        one = plain(self.position)
        return {"scope": scope, "sites": list(self.sites), "position": one, "along": self.along, "flow": self.flow}

    def scope_of(self, row: Mapping[str, Any]) -> Scope:
        """The scope of one row: with its own target and versus, where it has them.

        Raises:
            ValueError: the scope has a target of its own besides.

        """
        if isinstance(self.scope, str):
            return function_of(self.scope)(row)
        own = {name: row[name] for name in ("target", "versus") if row.get(name) is not None}
        known = {one.name for one in fields(self.scope)} if is_dataclass(self.scope) else set()
        own = {name: tuple(value) if isinstance(value, list) else value for name, value in own.items() if name in known}
        twice = [name for name in own if getattr(self.scope, name) is not None]
        if twice:
            msg = f"the scope has a {twice[0]} of its own and so has the prompt; leave it out in one of the two"
            raise ValueError(msg)
        return cast("Scope", replace(cast("Any", self.scope), **own) if own else self.scope)


@dataclass(frozen=True, eq=False)
class Worker:
    """A model that answers units of a run; None where it is yet to be loaded."""

    model: Any
    question: Question
    out: Path
    digest: str
    on_error: OnError = "record"

    def __call__(self, planned: "pa.Table", alone: Callable[[int], bool] | None = None) -> list[Answer]:
        """Answer a unit and write its part; ``alone``: see ``answers``."""
        answers = self.answers(planned, alone)
        parts.write(self.out, planned, answers, self.question.sites, self.digest)
        return answers

    def answers(self, planned: "pa.Table", alone: Callable[[int], bool] | None = None) -> list[Answer]:
        """An answer to each prompt of a unit, in order.

        Args:
            planned: rows of the plan.
            alone: with it, prompts run one by one, and only those that it allows; the others have killed a worker.

        """
        rows = planned.to_pylist()
        given = [None if row["problem"] else _asked(row) for row in rows]
        found = {n: Answer(error=row["problem"], kind="ValueError") for n, row in enumerate(rows) if row["problem"]}
        if alone is not None:
            for n in (n for n, one in enumerate(given) if one is not None):
                killed = Answer(error="a worker died twice while it ran this prompt alone", kind="killed")
                found |= self._some({n: cast("dict", given[n])}) if alone(n) else {n: killed}
            return [found[n] for n in range(len(rows))]
        # The prompts of one call are explained at the same position.
        alike: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
        for n, one in enumerate(given):
            if one is not None:
                alike[json.dumps(one.get("position"))][n] = one
        for some in alike.values():
            found |= self._some(some)
        return [found[n] for n in range(len(rows))]

    def _some(self, given: dict[int, dict[str, Any]]) -> dict[int, Answer]:
        """Answers to prompts that are explained at one position; should one fail, halves of them on their own."""
        numbers = list(given)
        try:
            return self._all(given)
        except Exception as failure:
            if self.on_error == "stop":
                raise
            if len(given) == 1:
                return {numbers[0]: Answer(error=str(failure), kind=type(failure).__name__)}
        # Not while the exception is handled: its traceback holds what was computed.
        middle = len(given) // 2
        halves = ({n: given[n] for n in some} for some in (numbers[:middle], numbers[middle:]))
        return {n: answer for half in halves for n, answer in self._some(half).items()}

    def _all(self, given: Mapping[int, dict[str, Any]]) -> dict[int, Answer]:
        asked, rows, begun = self.question, list(given.values()), time.perf_counter()
        scopes = [asked.scope_of(row) for row in rows]
        position = rows[0].get("position", asked.position)
        prompts = [row["prompt"] for row in rows]
        found = score_batch(self.model, prompts, scopes, position=position, sites=list(asked.sites), along=asked.along)
        seconds = (time.perf_counter() - begun) / len(rows)
        answers = {}
        for n, prompt, scope, scores in zip(given, prompts, scopes, found, strict=True):
            begun = time.perf_counter()
            routes = replace(flow(self.model, prompt, scope, position=position), replay=None) if asked.flow else None
            answers[n] = Answer(scores, routes, seconds=seconds + time.perf_counter() - begun)
        return answers


def _asked(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the plan as a scope's function gets it: id, prompt, target, versus, position and the input's columns."""
    extra = {name: value for name, value in row.items() if name not in COLUMNS}
    return extra | {"id": row["id"]} | Row.of_json(row["asked"])


def model_of(model: Model) -> Any:
    """The model that a spec describes.

    Raises:
        TypeError: something else than a spec.
        ValueError: a mapping without "path".

    """
    if is_loaded(model):
        return model
    if isinstance(model, str | Path):
        return load(model)
    if isinstance(model, Mapping):
        options = dict(model)
        if "path" not in options:
            msg = f"a model as a mapping has a 'path', got {shown(model)}; write {{'path': ..., 'dtype': 'bfloat16'}}"
            raise ValueError(msg)
        if isinstance(options.get("dtype"), str):
            options["dtype"] = getattr(torch, options["dtype"])
        return load(options.pop("path"), **options)
    if callable(model):
        return model()
    msg = f"model is a name, a directory, a mapping with 'path' or a function that loads one, got {shown(model)}"
    raise TypeError(msg)


def is_loaded(model: Model) -> bool:
    """Whether it is a model, and not how to load one."""
    return isinstance(model, torch.nn.Module)


def function_of(name: str) -> Callable[..., Any]:
    """The function that "module:function" names.

    Raises:
        ValueError: it is not written so, or there is no such function.

    """
    module, colon, function = name.partition(":")
    found = None
    if colon:
        try:
            found = getattr(import_module(module), function, None)
        except ImportError as failure:
            msg = f"the scope of a row is made by {name!r}, and {failure}"
            raise ValueError(msg) from failure
    if not callable(found):
        msg = f"a scope as text is 'module:function', a function of the row, got {name!r}; or write e.g. ls.Semantic()"
        raise ValueError(msg)  # noqa: TRY004 - an unknown name
    return found


def identity(host: Host) -> dict[str, Any]:
    """Which model it is: its name, class, dtype, and its weights in one word."""
    about: dict[str, Any] = {
        "model": host.name,
        "layers": host.n_layers,
        "host": type(host.model).__name__,
        "dtype": str(host.dtype).removeprefix("torch."),
    }
    return about | {"weights": weights(host)}
