"""What users give, whatever library it comes from: one integer, one tensor of numbers, one list.

A token id may come from numpy, a position from ``logits.argmax()``, a probe from scikit-learn: they mean what they say.
A bool is no number here, and 1.9 is no integer.
"""

import math
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


def integer(value: Any, what: str, least: int | None = None, most: int | None = None) -> int:
    """One integer, as Python's own.

    Args:
        value: what was given.
        what: what it is, for the text of the error.
        least: the smallest that is allowed.
        most: the largest.

    Raises:
        TypeError: a bool, a fraction, text, several numbers.
        ValueError: less than the least, more than the most.

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
    if most is not None and number > most:
        msg = f"{what} is an integer, got {number}; write {most} or less"
        raise ValueError(msg)
    return number


def seeded(value: Any, what: str = "seed") -> int:
    """The seed of a random generator.

    Raises:
        TypeError: no integer.
        ValueError: one that torch's generators do not take.

    """
    return integer(value, f"{what} (of what is drawn)", 0, 2**63 - 1)


def number(value: Any, what: str, *, above: float = -math.inf, most: float = math.inf, example: float = 0.5) -> float:
    """One finite number, as Python's own.

    Args:
        value: what was given: of Python, of numpy, or a tensor or array without axes.
        what: what it is, for the text of the error.
        above: it has to be larger than that.
        most: the largest that is allowed.
        example: one that is.

    Raises:
        TypeError: a bool, text, several numbers.
        ValueError: out of range, NaN or infinity.

    """
    one = (
        isinstance(value, Tensor | np.ndarray) and value.ndim == 0 and str(value.dtype).removeprefix("torch.") != "bool"
    )
    plain = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not one and not plain:
        msg = f"{what} is a number, got {shown(value)}; write e.g. {example}"
        raise TypeError(msg)
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not above < found <= most or math.isinf(found):
        ends = [f"above {above:g}"] if above > -math.inf else []
        ends += [f"at most {most:g}"] if most < math.inf else []
        msg = f"{what} is a number{', ' * bool(ends)}{' and '.join(ends)}, got {shown(value)}; write e.g. {example}"
        raise ValueError(msg)
    return found


def flag(value: Any, what: str) -> bool:
    """True or False, and nothing that is only taken for one: "no" would be true.

    Raises:
        TypeError: something else.

    """
    if not isinstance(value, bool | np.bool_):
        msg = f"{what} is True or False, got {shown(value)}; write one of them"
        raise TypeError(msg)
    return bool(value)


def probability(value: Any, what: str) -> float:
    """A probability between 0 and 1, neither of them.

    Raises:
        TypeError: no number.
        ValueError: out of range.

    """
    found = number(value, f"{what} (a probability between 0 and 1)", above=0, example=0.95)
    if not found < 1:
        msg = f"{what} is a probability between 0 and 1, got {shown(value)}; write e.g. 0.95"
        raise ValueError(msg)
    return found


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
