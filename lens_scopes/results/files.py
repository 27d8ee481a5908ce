"""Files: safetensors with one JSON header, written whole or not at all, and never unpickled.

The tensors are stored as they are, everything else in the header, with the kind of result and the schema.
"""

import json
import os
import secrets
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from lens_scopes.results.old_schemas import from_schema_1
from lens_scopes.results.provenance import plain

#: 2: ``meta`` has the scope as data, and p and rank of every target.
SCHEMA = 2
_KEY = "lens_scopes"


#: What files that end so hold, and how to write one.
_OTHERS = {
    "a table": ((".parquet", ".csv", ".tsv", ".feather", ".xlsx", ".json", ".jsonl"), "to_dataframe()", ".to_{}(...)"),
    "a page": ((".html", ".htm"), "lens_scopes.report(result, path)", ""),
    "a picture": ((".png", ".svg", ".pdf", ".jpg"), "plot()", ".savefig(path)"),
    "a data set": ((".nc", ".zarr", ".h5", ".hdf5"), "to_xarray()", ".to_netcdf(path)"),
    "numbers alone": ((".npy", ".npz"), "numpy.save(path, ...)", ""),
    "weights": ((".pt", ".pth", ".pkl"), "a name that ends in .safetensors", ""),
}


def _refuse_other_kinds(path: Path) -> None:
    suffix = path.suffix.lower()
    for what, (suffixes, write_instead, then) in _OTHERS.items():
        if suffix in suffixes:
            how = write_instead + then.format("excel" if suffix == ".xlsx" else suffix[1:].removesuffix("l"))
            msg = f"save writes a .safetensors file, got {path.name!r}, which others take for {what}: write {how}"
            raise ValueError(msg)


def save(path: str | Path, kind: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Path:
    """Write tensors and a JSON header to one file, whole or not at all.

    Raises:
        ValueError: a name that ends as another kind of file does.
        FileNotFoundError: the directory is not there.

    """
    from safetensors.torch import save as to_bytes

    _refuse_other_kinds(Path(path))
    text = as_text({"schema": SCHEMA, "kind": kind, **header})
    payload = to_bytes({name: t.detach().contiguous().cpu() for name, t in tensors.items()}, metadata={_KEY: text})
    return write(path, payload)


def write(path: str | Path, payload: bytes | str) -> Path:
    """Write a file whole or not at all: beside its place and then moved there, so that no reader sees half of it.

    A link stays a link, to a new file, and a file that is overwritten keeps its mode. A pipe or a terminal, which
    cannot be moved to, is written to. Text goes in UTF-8, what has none (half of a surrogate pair) as an escape.

    Raises:
        FileNotFoundError: the directory is not there.
        IsADirectoryError: the path is a directory.
        TypeError: no path.

    """
    if not isinstance(path, str | Path):
        msg = f"a path is a string or a Path, got a {type(path).__name__}; write e.g. 'scores.safetensors'"
        raise TypeError(msg)
    path = Path(path)
    payload = payload.encode(errors="backslashreplace") if isinstance(payload, str) else payload
    if path.exists() and not path.is_file():
        path.write_bytes(payload)
        return path
    if not path.parent.is_dir():
        msg = f"there is no directory {path.parent} to write {path.name} to; make it first, or write to another"
        raise FileNotFoundError(msg)
    place = path.resolve()
    temporary = place.with_name(f".{place.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        if place.exists():
            temporary.chmod(stat.S_IMODE(place.stat().st_mode))
        temporary.replace(place)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


Result = TypeVar("Result")


def load(path: str | Path, kind: str, made: Callable[[dict[str, Tensor], dict[str, Any]], Result]) -> Result:
    """The result in a file that ``save`` wrote.

    Args:
        path: the file.
        kind: what it is to hold.
        made: makes the result of the tensors and the header.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: cut short, not one of ours, of another kind or another schema, or parts of it are not there.

    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        msg = f"there is no file {path}; write the path that save returned"
        raise FileNotFoundError(msg)
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(_KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, json.JSONDecodeError) as failure:
        msg = f"{path} is not a complete lens_scopes result: {failure}"
        raise ValueError(msg) from failure
    if not isinstance(header, dict):
        msg = f"{path} is no lens_scopes result (schema None): it has no header of ours; load it with safetensors"
        raise ValueError(msg)  # noqa: TRY004 - the file's content, not a Python type
    schema = header.get("schema")
    if schema not in (1, SCHEMA):
        msg = f"{path} has schema {schema}, this version reads schema {SCHEMA} and the one before it"
        raise ValueError(msg)
    if header.get("kind") != kind:
        msg = f"{path} holds a {header.get('kind')}, not a {kind}; load it with {header.get('kind')}.load"
        raise ValueError(msg)
    empty = [key for key, value in header.items() if value is None]
    if empty:
        msg = f"{path} is not a complete lens_scopes result: {empty[0]!r} is null in its header; save the result again"
        raise ValueError(msg)
    try:
        return made(tensors, from_schema_1(header) if schema == 1 else header)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as failure:
        what = f"{failure} is missing" if isinstance(failure, KeyError) else failure
        msg = f"{path} is not a complete lens_scopes result: {what}; save the result again"
        raise ValueError(msg) from failure


def as_text(facts: Mapping[str, Any]) -> str:
    """JSON text of facts, in ASCII: half of a surrogate pair, which some tokens are, has no other form in a file."""
    return json.dumps(plain(facts))
