"""Prompts as users have them (a file, a data set, a table, a list), row by row and JSON-like."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lens_scopes.results.arguments import shown
from lens_scopes.results.provenance import plain
from lens_scopes.results.text import Text

# What a row may say about itself besides its prompt and its id; everything else is carried along.
ASKED = ("target", "versus", "position")
_WRITE = '"text", a list of ids or messages, or {"prompt": ..., "id": ..., "target": ...}'
# Of a text, how many characters a token is taken for: a guess, for the order and the size of units alone.
_CHARACTERS = 4


@dataclass(frozen=True)
class Row:
    """One prompt, and what is asked about it."""

    id: str
    prompt: Any = None
    """A string, ids, chat messages or a Text."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """Its own target, versus and position, where it has them."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further columns, which results carry along."""
    problem: str | None = None
    """Why it is no prompt."""

    def as_json(self) -> str:
        """The prompt and what is asked, as text that ``of_json`` reads."""
        prompt = self.prompt
        if isinstance(prompt, Text):
            prompt = {"ids": prompt.ids, "tokens": prompt.tokens, "spans": dict(prompt.spans)}
        return json.dumps(plain({"prompt": prompt, **self.asked}))

    @staticmethod
    def of_json(text: str) -> dict[str, Any]:
        """The prompt and what is asked about it."""
        found = json.loads(text)
        if isinstance(found["prompt"], dict):
            parts = found["prompt"]
            spans = {name: (start, stop) for name, (start, stop) in parts["spans"].items()}
            found["prompt"] = Text(parts["ids"], parts["tokens"], spans)
        return found

    @property
    def length(self) -> int:
        """About how many tokens."""
        if self.problem is not None:
            return 0
        if isinstance(self.prompt, str):
            return 1 + len(self.prompt) // _CHARACTERS
        messages = isinstance(self.prompt, list) and any(isinstance(one, Mapping) for one in self.prompt)
        return 1 + len(json.dumps(plain(self.prompt))) // _CHARACTERS if messages else len(self.prompt)


def rows_of(prompts: Any) -> list[Row]:
    """The rows of a JSONL or Parquet file, a Hugging Face data set, a DataFrame, or an iterable of prompts.

    A row that is no prompt is one with a ``problem``; ids that are not given are the row's number.

    Raises:
        ValueError: nothing in it, no column "prompt", or an id twice.
        FileNotFoundError: there is no such file.
        TypeError: something else.

    """
    rows = [_row(n, where, given, problem) for n, (where, given, problem) in enumerate(_given(prompts))]
    if not rows:
        msg = f"there is no prompt in {shown(prompts)}; write at least one"
        raise ValueError(msg)
    if all(row.problem for row in rows):
        msg = f"there is no prompt in these {len(rows)} rows: {rows[0].problem}"
        raise ValueError(msg)
    seen: dict[str, int] = {}
    for n, row in enumerate(rows):
        if seen.setdefault(row.id, n) != n:
            msg = f"rows {seen[row.id]} and {n} have the same id {row.id!r}; ids name prompts, write each once"
            raise ValueError(msg)
    return rows


def _row(n: int, where: str, given: Any, problem: str | None) -> Row:
    fields = dict(given) if isinstance(given, Mapping) else {"prompt": given}
    prompt, name = fields.pop("prompt", None), fields.pop("id", None)
    name = str(n if name is None else plain(name))
    if problem is None and not isinstance(prompt, str | list | Text):
        what = f"has the columns {', '.join(map(repr, given))}" if isinstance(given, Mapping) else shown(given)
        problem = f"{where} is no prompt: {what}; write {_WRITE}"
    asked = {key: _whole(value) for key in ASKED if (value := fields.pop(key, None)) is not None}
    if problem is not None:
        return Row(name, extra=fields, problem=problem)
    return Row(name, prompt, asked, fields)


def _whole(value: Any) -> Any:
    """JSON-like; a table writes whole numbers as 3.0 where some are missing."""
    value = plain(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _given(prompts: Any) -> Iterator[tuple[str, Any, str | None]]:
    """What a row is called in errors, what stands in it, and why nothing can be read from it."""
    if isinstance(prompts, str | Path):
        path = Path(prompts)
        if path.suffix not in (".jsonl", ".parquet"):
            msg = f"prompts are a path that ends in .jsonl or .parquet, or a list of them, got {shown(prompts)}"
            raise ValueError(msg)
        if not path.is_file():
            msg = f"there is no file {path}; write the path of a .jsonl or .parquet file with prompts"
            raise FileNotFoundError(msg)
        yield from _lines(path) if path.suffix == ".jsonl" else _table(path)
        return
    if isinstance(prompts, Mapping):
        msg = f"prompts are one data set, got a mapping of {', '.join(map(repr, prompts))}; write e.g. prompts['train']"
        raise TypeError(msg)
    if hasattr(prompts, "to_dict") and hasattr(prompts, "columns"):  # a DataFrame
        import pyarrow as pa

        prompts = pa.Table.from_pandas(prompts, preserve_index=False)
    if hasattr(prompts, "to_pylist"):
        prompts = prompts.to_pylist()
    if not isinstance(prompts, Iterable):
        msg = f"prompts are a path, a data set, a table or a list of prompts, got {shown(prompts)}"
        raise TypeError(msg)
    for n, one in enumerate(prompts):
        yield f"row {n}", one.reshape(-1).tolist() if isinstance(one, Tensor | np.ndarray) else one, None


def _lines(path: Path) -> Iterator[tuple[str, Any, str | None]]:
    with path.open(encoding="utf-8") as file:
        for n, line in enumerate(file, 1):
            where = f"line {n} of {path.name}"
            if line.strip():
                try:
                    yield where, json.loads(line), None
                except json.JSONDecodeError as failure:
                    yield where, None, f"{where} is not JSON: {failure}"


def _table(path: Path) -> Iterator[tuple[str, Any, str | None]]:
    import pyarrow.parquet as pq

    for n, given in enumerate(pq.read_table(path).to_pylist()):
        yield f"row {n} of {path.name}", given, None
