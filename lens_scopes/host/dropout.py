"""What is random in train mode: two passes differ, and scores of them are noise."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn


def refuse_dropout(model: nn.Module) -> None:
    """Refuse by what is drawn, not by class.

    Raises:
        RuntimeError: a module in train mode draws something.

    """
    for module in model.modules():
        for name, p in _dice(module) if module.training else ():
            msg = (
                f"the model is in train mode with dropout {p} ({name} of {type(module).__name__}): every pass "
                "would differ; call model.eval() first"
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
