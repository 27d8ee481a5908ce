"""Labelled tensors: what every result of this package shares. Checked, saved, loaded and listed here, once.

A file is safetensors with one JSON header: the tensors as stored, everything else in the header, with the kind of
result and the schema. It is written whole or not at all, and never unpickled.
"""

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
_KEY = "lens_scopes"

Coords = Mapping[str, tuple]


def check_labels(values: Tensor, dims: Sequence[str], coords: Coords) -> None:
    """Every axis has a name and a label for each of its entries.

    Raises:
        ValueError: naming the axis that does not fit.

    """
    if values.ndim != len(dims):
        msg = f"values have {values.ndim} axes, {tuple(values.shape)}, but dims names {len(dims)}: {tuple(dims)}"
        raise ValueError(msg)
    for dim, size in zip(dims, values.shape, strict=True):
        if dim not in coords or len(coords[dim]) != size:
            msg = f"axis {dim!r} has {size} entries, its coords {len(coords.get(dim, ()))} labels"
            raise ValueError(msg)


def index_of(coords: Coords, dim: str, label: Any) -> int:
    """Where a label stands on an axis.

    Raises:
        KeyError: no such axis, or no such label on it; the text lists what there is.

    """
    if dim not in coords:
        msg = f"there is no axis {dim!r}; there are {', '.join(coords)}"
        raise KeyError(msg)
    if label not in coords[dim]:
        shown = ", ".join(map(repr, coords[dim][:20])) + (", ..." if len(coords[dim]) > 20 else "")
        msg = f"axis {dim!r} has no label {label!r}; it has {shown}"
        raise KeyError(msg)
    return coords[dim].index(label)


def save(path: str | Path, kind: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Path:
    """Write tensors and a JSON header to one file, whole or not at all."""
    from safetensors.torch import save as to_bytes

    text = json.dumps({"schema": SCHEMA, "kind": kind, **header}, ensure_ascii=False, default=_plain)
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
    if not isinstance(header, dict) or header.get("schema") != SCHEMA:
        found = header.get("schema") if isinstance(header, dict) else None
        msg = f"{path} has schema {found}, this version reads schema {SCHEMA}"
        raise ValueError(msg)
    if header.get("kind") != kind:
        msg = f"{path} holds a {header.get('kind')}, not a {kind}; load it with lens_scopes.{header.get('kind')}.load"
        raise ValueError(msg)
    return tensors, header


def dataframe(
    columns: Mapping[str, Tensor], dims: Sequence[str], coords: Coords, extra: Mapping[str, Mapping[Any, Any]]
) -> "pd.DataFrame":
    """Long form: one row per entry, one column per axis, then the values.

    Args:
        columns: value columns, all of the shape that dims and coords describe.
        dims: the axes' names.
        coords: the axes' labels.
        extra: by axis, a further column for it: {"pos": {0: "<s>", 1: "Once"}} adds pos_token.

    """
    import pandas as pd

    shape = next(iter(columns.values())).shape
    index = list(product(*map(range, shape)))  # one empty tuple for a single number
    frame: dict[str, Any] = {}
    for axis, dim in enumerate(dims):
        labels = [coords[dim][where[axis]] for where in index]
        frame[dim] = labels
        if dim in extra:
            frame[f"{dim}_token"] = [extra[dim].get(label) for label in labels]
    frame |= {name: values.reshape(-1).tolist() for name, values in columns.items()}
    return pd.DataFrame(frame)


def standard_error(probes: Tensor) -> Tensor:
    """√(m/(m−1) Σ_j (X_j − X̄)²) over the first axis: the error of the *sum* of m partition probes."""
    m = len(probes)
    return (m / (m - 1) * (probes - probes.mean(0)).square().sum(0)).sqrt()


def versions() -> dict[str, str]:
    """What made a result: this package, TransformerLens, torch."""
    found = {}
    for package in ("lens-scopes", "transformer-lens", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def _plain(value: Any) -> Any:
    """JSON for what is not quite: tensors and numpy numbers as lists and numbers, the rest as text."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
