"""Models that no derivative can be had of: those that roll dice, and those made under inference_mode."""

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from torch import nn


def refuse_dropout(model: nn.Module) -> None:
    """Scores of a model that rolls dice are noise.

    Raises:
        RuntimeError: the model is in train mode and has dropout.

    """
    for module in model.modules():
        for name, p in _dice(module) if module.training else ():
            msg = (
                f"the model is in train mode with dropout {p} ({name} of {type(module).__name__}): every pass would "
                "differ; call model.eval() first"
            )
            raise RuntimeError(msg)


def refuse_inference(model: nn.Module) -> None:
    """Nothing can be differentiated through tensors that were made under inference_mode.

    Raises:
        RuntimeError: a weight or a buffer is one.

    """
    if any(tensor.is_inference() for tensor in chain(model.parameters(), model.buffers())):
        named = chain(model.named_parameters(), model.named_buffers())
        made = next(name for name, tensor in named if tensor.is_inference())
        msg = (
            f"{made!r} was made under torch.inference_mode(): nothing can be differentiated through it; load the model "
            "outside"
        )
        raise RuntimeError(msg)


def _dice(module: nn.Module) -> Iterator[tuple[str, float]]:
    """What a module draws at random in train mode: modules of that kind, and probabilities for functions of it.

    Hugging Face keeps the second on the module (OPT: dropout, layerdrop), or reads its configuration (Falcon).
    """
    if "drop" in type(module).__name__.lower():
        yield from _above_zero({"p": getattr(module, "p", 0.0)})
    written = vars(getattr(module, "config", None) or object) if hasattr(module, "config") else {}
    heads = ("summary_", "classifier_")  # of models that are not language models
    named = {**{key: p for key, p in written.items() if not key.startswith(heads)}, **vars(module)}
    yield from _above_zero({key: p for key, p in named.items() if "drop" in key or "jitter" in key})


def _above_zero(numbers: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    yield from ((key, p) for key, p in numbers.items() if isinstance(p, int | float) and not isinstance(p, bool) and p)
