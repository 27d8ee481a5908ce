"""What users give, whatever library it comes from: one integer, one tensor of numbers, one list.

A token id may come from numpy, a position from ``logits.argmax()``, a probe from scikit-learn: they mean what they say.
A bool is no number here, and 1.9 is no integer.
"""

from collections.abc import Iterable
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor

#: A Python, numpy or 0-d tensor integer; bool is refused.
Integer = SupportsIndex


def is_integer(value: Any) -> bool:
    """Whether something is one integer: of Python, of numpy, or a tensor or array without axes."""
    if isinstance(value, Tensor | np.ndarray):
        kind = value.dtype
        whole = not (kind.is_floating_point or kind.is_complex) if isinstance(kind, torch.dtype) else kind.kind in "iu"
        return value.ndim == 0 and whole and kind != torch.bool
    return isinstance(value, SupportsIndex) and not isinstance(value, bool | np.bool_)


def integer(value: Any, what: str, least: int | None = None) -> int:
    """One integer, as Python's own.

    Args:
        value: what was given.
        what: what it is, for the text of the error.
        least: the smallest that is allowed.

    Raises:
        TypeError: a bool, a fraction, text, several numbers.
        ValueError: less than the least.

    """
    if not is_integer(value):
        example = 3 if least is None else max(3, least)
        msg = (
            f"{what} is an integer, got {shown(value)}; write e.g. {example}, of Python, numpy or a tensor without axes"
        )
        raise TypeError(msg)
    number = int(value)
    if least is not None and number < least:
        msg = f"{what} is an integer, got {number}; write {least} or more"
        raise ValueError(msg)
    return number


def listed(values: Any) -> list[Any]:
    """The entries of a list, tuple, range, array or tensor; a single value (text too) is a list of one."""
    if isinstance(values, Tensor | np.ndarray):
        return [values.tolist()] if values.ndim == 0 else values.tolist()
    return list(values) if isinstance(values, Iterable) and not isinstance(values, str | bytes) else [values]


def vector(value: Any, what: str, *axes: str) -> Tensor:
    """Numbers as a tensor outside any graph: of a tensor, an array, or lists of them; float64 where they have no dtype.

    Args:
        value: what was given.
        what: what it is, for the text of the error.
        axes: what its axes are; none for any number of them.

    Raises:
        TypeError: text, bools, complex numbers, or something that is no numbers at all.
        ValueError: other axes, or lists of unequal length.

    """
    wanted = f"[{', '.join(axes)}]" if axes else "numbers"
    found = _tensor(value)
    if found is None or found.dtype == torch.bool or found.is_complex():
        msg = f"{what} is a tensor, an array or a list of numbers, got {shown(value)}; write {wanted}"
        raise TypeError(msg)
    if axes and found.ndim != len(axes):
        msg = f"{what} has axes {wanted}, got shape {tuple(found.shape)}; write a tensor of {len(axes)}"
        raise ValueError(msg)
    return found


def shown(value: Any) -> str:
    """A value in the text of an error: short, and with what it is."""
    if isinstance(value, Tensor | np.ndarray):
        return f"{type(value).__name__} {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(value).__name__})"


def _tensor(value: Any) -> Tensor | None:
    """None for what is no numbers."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, list | tuple) and any(isinstance(one, Tensor) for one in value):
        parts = [_tensor(one) for one in value]
        if any(part is None for part in parts):
            return None
        return torch.stack([part for part in parts if part is not None])
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):  # lists of unequal length
        return None
    if array.dtype.kind not in "fiu":
        return None
    kept = isinstance(value, np.ndarray | np.generic) and array.dtype in (np.float16, np.float32)
    return torch.from_numpy(np.array(array, dtype=array.dtype if kept else np.float64))  # a copy, on the CPU
