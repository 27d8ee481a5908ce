"""Labelled tensors: what every result of this package shares. Checked, looked up and listed here, once."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lens_scopes.results.arguments import is_integer, shown

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

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
    """Where a label stands on an axis. Integers may be numpy's or tensors; a bool or a fraction is no label.

    Raises:
        KeyError: no such axis, or no such label on it; the text lists what there is.

    """
    if dim not in coords:
        msg = f"there is no axis {dim!r}; write one of {', '.join(coords)}"
        raise KeyError(msg)
    as_kind = int if is_integer(label) else next((kind for kind in (str, float) if isinstance(label, kind)), None)
    found = None if as_kind is None else as_kind(label)
    if as_kind is None or found not in coords[dim] or type(coords[dim][coords[dim].index(found)]) is not as_kind:
        there = ", ".join(map(repr, coords[dim][:20])) + (", ..." if len(coords[dim]) > 20 else "")
        msg = f"axis {dim!r} has no label {shown(label)}; write one of {there}"
        raise KeyError(msg)
    return coords[dim].index(found)


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
            frame[f"{dim}_token"] = [whole(extra[dim].get(label)) for label in labels]
    frame |= {name: values.reshape(-1).tolist() for name, values in columns.items()}
    return pd.DataFrame(frame)


def whole(text: str | None) -> str | None:
    """Text that a column of texts can hold: half of a surrogate pair as an escape."""
    return None if text is None else text.encode(errors="backslashreplace").decode()


def dataset(
    variables: Mapping[str, tuple[Sequence[str], Tensor]], coords: Coords, tokens: Sequence[str], facts: str
) -> "xr.Dataset":
    """The tensors with their axes and labels, for xarray.

    Args:
        variables: by name, the axes and the values.
        coords: the labels of every axis that a variable has; others are left out.
        tokens: what stands at each position: the coordinate "token" along "pos".
        facts: JSON text of how the result was obtained; ``attrs["meta"]``, because netCDF and Zarr keep texts.

    Raises:
        ImportError: xarray is not installed.

    """
    try:
        import xarray as xr
    except ImportError as missing:
        msg = "xarray is not installed: pip install 'lens-scopes[xarray]'"
        raise ImportError(msg) from missing
    used = {dim for dims, _ in variables.values() for dim in dims}
    # Labels as a list: xarray takes a tuple for a variable of its own.
    labels: dict[str, Any] = {dim: list(values) for dim, values in coords.items() if dim in used}
    if "pos" in used:
        labels["token"] = ("pos", [whole(token) for token in tokens])
    data = {name: (tuple(dims), values.numpy()) for name, (dims, values) in variables.items()}
    return xr.Dataset(data, labels, {"meta": facts})


def precision(computed: torch.dtype, units: str) -> torch.dtype:
    """What results are kept in: float32, but float64 for squared units and of a float64 model."""
    return torch.float64 if units == "squared" or computed == torch.float64 else torch.float32


def standard_error(probes: Tensor) -> Tensor:
    """√(m/(m−1) Σ_j (X_j − X̄)²) over the first axis: the error of the *sum* of m partition probes; NaN of one."""
    m = len(probes)
    if m < 2:
        return torch.full_like(probes[0], torch.nan)
    return (m / (m - 1) * (probes - probes.mean(0)).square().sum(0)).sqrt()
