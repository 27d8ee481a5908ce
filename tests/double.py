"""float64 throughout, also where a model's own code asks for float32."""

from contextlib import contextmanager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Double(TorchFunctionMode):
    """Hugging Face's norms, softmaxes and rotary embeddings go through float32 otherwise."""

    _off = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if Double._off:
            return function(*args, **(kwargs or {}))
        if function is Tensor.float:
            function = Tensor.double

        def wide(value):
            return torch.float64 if value is torch.float32 else value

        return function(*map(wide, args), **{name: wide(value) for name, value in (kwargs or {}).items()})

    @staticmethod
    @contextmanager
    def off():
        """Models are loaded in here, whoever asks first: a rotary table made in float64 would be another one."""
        Double._off += 1
        try:
            yield
        finally:
            Double._off -= 1
