"""Files: safetensors with one JSON header, written whole or not at all, and never unpickled.

The tensors are stored as they are, everything else in the header, with the kind of result and the schema.
"""

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lens_scopes.results.older import from_schema_1

#: 2: ``meta`` has the scope as data, and p and rank of every target.
SCHEMA = 2
_KEY = "lens_scopes"


def save(path: str | Path, kind: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Path:
    """Write tensors and a JSON header to one file, whole or not at all."""
    from safetensors.torch import save as to_bytes

    text = as_text({"schema": SCHEMA, "kind": kind, **header})
    payload = to_bytes({name: t.detach().contiguous().cpu() for name, t in tensors.items()}, metadata={_KEY: text})
    return write(path, payload)


def write(path: str | Path, payload: bytes) -> Path:
    """Write a file whole or not at all: beside its place and then moved there, so that no reader sees half of it.

    A link stays a link, to a new file. A pipe or a terminal, which cannot be moved to, is written to.

    Raises:
        FileNotFoundError: the directory is not there.
        IsADirectoryError: the path is a directory.

    """
    path = Path(path)
    if path.exists() and not path.is_file():
        path.write_bytes(payload)
        return path
    if not path.parent.is_dir():
        msg = f"there is no directory {path.parent} to write {path.name} to"
        raise FileNotFoundError(msg)
    place = path.resolve()
    temporary = place.with_name(f".{place.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(place)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def load(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the header of a file that ``save`` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: cut short, not one of ours, of another kind or another schema.

    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        msg = f"there is no file {path}"
        raise FileNotFoundError(msg)
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(_KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, json.JSONDecodeError) as failure:
        msg = f"{path} is not a complete lens_scopes result: {failure}"
        raise ValueError(msg) from failure
    schema = header.get("schema") if isinstance(header, dict) else None
    if schema == 1:
        header = from_schema_1(header)
    elif schema != SCHEMA:
        msg = f"{path} has schema {schema}, this version reads schema {SCHEMA} and the one before it"
        raise ValueError(msg)
    if header.get("kind") != kind:
        msg = f"{path} holds a {header.get('kind')}, not a {kind}; load it with lens_scopes.{header.get('kind')}.load"
        raise ValueError(msg)
    return tensors, header


def as_text(facts: Mapping[str, Any]) -> str:
    """JSON text of facts that are JSON-like."""
    return json.dumps(facts, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    """JSON for what is not quite: tensors and numpy numbers as lists and numbers, the rest as text."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
