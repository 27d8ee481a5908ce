"""What the command line reads: prompts from a file or from stdin, and spans with names."""

import json
import re
import sys
from pathlib import Path
from typing import Any


def prompts_of(prompt: str | None, path: Path | None) -> list[Any]:
    """The prompt itself, or those of a file: a line each, or JSON Lines where its name ends in .jsonl.

    JSON is a string, a list of token ids, a list of chat messages, or an object with one of these as "prompt".

    Raises:
        ValueError: both or neither given, an empty file, or a line that is no JSON; the text says which.

    """
    if (prompt is None) == (path is None):
        msg = "give a PROMPT or --prompts FILE" + (", not both" if prompt is not None else "")
        raise ValueError(msg)
    if path is None:
        return [prompt]
    lines = [(n, line) for n, line in enumerate(lines_of(path), 1) if line.strip()]
    if not lines:
        msg = f"there is no prompt in {path}: one line each"
        raise ValueError(msg)
    return [_from_json(path, n, line) for n, line in lines] if path.suffix == ".jsonl" else [line for _, line in lines]


def lines_of(path: Path) -> list[str]:
    r"""The lines of a file, or of stdin for "-": they end at \n or \r\n, and a form feed or a U+2028 is part of one."""
    whole = sys.stdin.read() if str(path) == "-" else path.read_bytes().decode("utf-8")
    return re.split("\r?\n", whole)


def _from_json(path: Path, n: int, line: str) -> Any:
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        msg = f"line {n} of {path} is not JSON: {error}"
        raise ValueError(msg) from error
    found = found.get("prompt") if isinstance(found, dict) else found
    if not isinstance(found, str | list):
        msg = f'line {n} of {path} is no prompt: write "text", a list of ids or messages, or {{"prompt": ...}}'
        raise ValueError(msg)  # noqa: TRY004 - what is wrong is the file
    return found


def spans_of(given: list[str]) -> dict[str, Any]:
    """NAME=TEXT, several times, as ``Scores.aggregate`` takes them; the text ``...`` is all other tokens.

    Raises:
        ValueError: something else, or a name twice.

    """
    found: dict[str, Any] = {}
    for one in given:
        name, equal, text = one.partition("=")
        if not (name and equal and text) or name in found:
            what = "names a span a second time" if name in found else "is not NAME=TEXT"
            msg = f"--spans {one!r} {what}; write --spans question='What is it?' --spans rest=..."
            raise ValueError(msg)
        found[name] = ... if text == "..." else text
    return found
