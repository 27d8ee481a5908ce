"""Tensors as text for a page: their bytes in base64, which are exact, and shorter than digits."""

import base64
from typing import Any

import torch
from torch import Tensor


def packed(values: Tensor) -> dict[str, Any]:
    """A tensor as JSON: its shape, its bytes from the lowest on, and whether numbers have four of them or eight."""
    wide = values.dtype == torch.float64
    numbers = values.detach().cpu().contiguous().numpy().astype("<f8" if wide else "<f4")
    return {"shape": list(values.shape), "wide": wide, "bytes": base64.b64encode(numbers.tobytes()).decode()}
