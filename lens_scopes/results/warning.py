"""Warnings that point at the user's own line, however deep in the package they arise."""

import sys
import warnings
from pathlib import Path

import jaxtyping
import torch

# What stands between the user's line and the warning: this package, torch's decorators, and what checks types.
_BETWEEN = (
    str(Path(__file__).parents[1]),
    str(Path(torch.__file__).parent),
    str(Path(jaxtyping.__file__).parent),
    "<@beartype",
)


def warn(text: str) -> None:
    """A UserWarning at the first line outside of the package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_BETWEEN):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, UserWarning, stacklevel=level)
