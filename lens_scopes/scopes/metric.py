"""Metric: the sensitivity of any differentiable function of the logits."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lens_scopes.results.arguments import shown
from lens_scopes.scopes.state import Cotangents, FinalState


@dataclass(frozen=True, eq=False)
class Metric:
    """Any differentiable function of the logits. Score ‖J_tᵀv‖ with v = ∂ fn(z)/∂y, in units of fn per unit.

    Args:
        fn: gets the logits at the position alone, [1, 1, vocab] (so that ``logits[0, -1]`` and ``logits[:, -1]`` work
            as in TransformerLens), and returns one element.
        name: what the result calls it; by default the function's name.

    Raises:
        TypeError: fn is no function.

    Raises (when called):
        ValueError: fn returns more than one element, or something that does not depend on the logits.

    """

    fn: Callable[[Tensor], Tensor]
    name: str | None = None

    def __post_init__(self) -> None:
        """Refuse a name."""
        if not callable(self.fn):
            msg = (
                f"Metric takes a function of the logits [1, 1, vocab], got {shown(self.fn)}; write e.g. "
                "ls.Metric(lambda logits: logits[0, -1, 42]), or another scope, e.g. ls.Entropy()"
            )
            raise TypeError(msg)

    def __repr__(self) -> str:
        """The name only: a function's address would differ from run to run."""
        return f"Metric({self.name or getattr(self.fn, '__name__', type(self.fn).__name__)})"

    def __call__(self, state: FinalState) -> Cotangents:
        """v = W̃ᵀ ∂fn/∂z."""
        with torch.inference_mode(mode=False), torch.enable_grad():
            logits = state.logits.detach().clone().requires_grad_()
            value = self.fn(logits[None, None])
            if not isinstance(value, Tensor) or value.numel() != 1:
                got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                msg = f"{self!r}: fn must return one element, got {got}; e.g. lambda logits: logits[0, -1, 42]"
                raise ValueError(msg)
            if not value.requires_grad:
                msg = (
                    f"{self!r}: fn must return what depends on the logits, got a constant without gradient; write it "
                    "in torch, e.g. lambda logits: logits[0, -1, 42]"
                )
                raise ValueError(msg)
            (gradient,) = torch.autograd.grad(value.reshape(()), logits)
        return Cotangents(state.pull(gradient)[None], notes={"value": float(value.detach())})

    def value(self, state: FinalState) -> Float[Tensor, "*run"]:
        """What fn returns, one run at a time."""
        rows = state.logits.reshape(-1, state.logits.shape[-1])
        each = torch.stack([self.fn(row[None, None]).reshape(()) for row in rows])
        return each.reshape(state.logits.shape[:-1])
