"""The scopes: recipes from the final state of a model to the cotangents that are pulled back through its Jacobian.

Each is a frozen value that prints, compares and serialises; none of them touches a model. A user's own scope is a plain
function ``scope(state) -> [d_model] | [k, d_model] | Cotangents``. The Fisher Scope has a file of its own.

Source of Semantic and Temperature (and Fisher): Jacobian Scopes, arXiv 2601.16407. y, z, W̃, J_t: see ``state``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_scopes.sites import FINAL
from lens_scopes.state import Cotangents, FinalState

Token = str | int


@dataclass(frozen=True)
class Semantic:
    """Semantic Scope: sensitivity of one logit, or of a logit difference. Score ‖J_tᵀ w̃_target‖, in logits per unit.

    Args:
        target: a token, as a string or id; or one per requested position; None is the model's top-1 at the position.
        versus: the token whose logit is subtracted: v = w̃_target − w̃_versus. Unlike a single logit, a difference does
            not depend on whether the unembedding is centred.

    Raises (when called):
        ValueError: a string that is not one token, an id outside the vocabulary, or not one target per position.

    """

    target: Token | Sequence[Token] | Tensor | None = None
    versus: Token | Sequence[Token] | Tensor | None = None

    def __post_init__(self) -> None:
        """Keep sequences as tuples, so that the scope stays hashable."""
        for name in ("target", "versus"):
            value = getattr(self, name)
            if isinstance(value, Tensor):
                value = value.tolist()
            if isinstance(value, Sequence) and not isinstance(value, str | bytes):
                object.__setattr__(self, name, tuple(value))

    def __repr__(self) -> str:
        """As it is written, without what was left out."""
        given = {"target": self.target, "versus": self.versus}
        return f"Semantic({', '.join(f'{name}={value!r}' for name, value in given.items() if value is not None)})"

    def __call__(self, state: FinalState) -> Cotangents:
        """v = w̃_target [− w̃_versus], one cotangent."""
        target = _pick(self.target, state, "target")
        target = int(state.logits.argmax()) if target is None else state.token_id(target)
        vector, notes = state.rows(target), {"target": target}
        versus = _pick(self.versus, state, "versus")
        if versus is not None:
            versus = state.token_id(versus)
            vector, notes = vector - state.rows(versus), {"target": target, "versus": versus}
        return Cotangents(vector[None], notes=notes)


@dataclass(frozen=True, eq=False)
class Temperature:
    """Temperature Scope: sensitivity of ‖y‖, the inverse temperature (z = ‖y‖ · W̃ŷ up to b_U). Score ‖J_tᵀŷ‖.

    The paper's scope needs the final norm's weight where the model keeps it: folded into the unembedding, y has a
    constant length, and its sensitivity is rounding noise. Then the weight can be given back.

    Args:
        norm_weight: [d_model], the *effective* multiplier of the folded final norm (Gemma: 1 + the stored weight).
        norm_bias: [d_model], its bias; required with ``norm_weight`` for a LayerNorm model.

    Raises (when called):
        ValueError: the final norm is folded or untrained and no weight is given, or a weight is given and it is not.

    """

    norm_weight: Float[Tensor, " d_model"] | None = None
    norm_bias: Float[Tensor, " d_model"] | None = None

    def __repr__(self) -> str:
        """Which vectors were given, not the numbers."""
        given = {"norm_weight": self.norm_weight, "norm_bias": self.norm_bias}
        return f"Temperature({', '.join(f'{name}=<{len(x)}>' for name, x in given.items() if x is not None)})"

    def __call__(self, state: FinalState) -> Cotangents:
        """v = ŷ; with the weight w of a folded norm v = w ⊙ ŷ_raw, y_raw = w ⊙ y + b."""
        if self.norm_weight is None and self.norm_bias is None:
            if state.constant_norm:
                raise ValueError(_FOLDED)
            return Cotangents((state.y / state.y.norm())[None])
        weight, bias = self._given(state)
        raw = weight * state.y + bias
        return Cotangents((weight * raw / raw.norm())[None], notes={"norm_weight": "given"})

    def _given(self, state: FinalState) -> tuple[Tensor, Tensor]:
        if not state.constant_norm:
            msg = (
                "Temperature got norm_weight or norm_bias, but this model's final norm still carries its own; "
                "write ls.Temperature()"
            )
            raise ValueError(msg)
        if self.norm_weight is None or (state.norm_has_bias and self.norm_bias is None):
            missing = "norm_weight" if self.norm_weight is None else "norm_bias"
            msg = (
                f"the folded final norm is a {'LayerNorm' if state.norm_has_bias else 'RMSNorm'}: {missing} is missing;"
                " write ls.Temperature(norm_weight=..., norm_bias=...)"
            )
            raise ValueError(msg)
        bias = torch.zeros_like(self.norm_weight) if self.norm_bias is None else self.norm_bias
        for name, value in (("norm_weight", self.norm_weight), ("norm_bias", bias)):
            if value.shape != state.y.shape:
                msg = f"{name} has shape {tuple(value.shape)}, the final state {tuple(state.y.shape)}"
                raise ValueError(msg)
        return self.norm_weight.detach().to(state.y), bias.detach().to(state.y)


_FOLDED = (
    "the Temperature Scope is the sensitivity of ‖y‖, and this model's final norm makes ‖y‖ constant: its weight is "
    "folded into the unembedding (TransformerLens does this by default), or untrained. Three ways out: (1) load raw "
    "weights: lens_scopes.load(...), HookedTransformer.from_pretrained_no_processing(...), or a TransformerBridge "
    "without enable_compatibility_mode(); (2) give the weight back: Temperature(norm_weight=..., norm_bias=...); "
    "(3) use Fisher(), which folding does not change."
)


@dataclass(frozen=True, eq=False)
class Metric:
    """Any differentiable function of the logits. Score ‖J_tᵀv‖ with v = ∂ fn(z)/∂y, in units of fn per unit.

    Args:
        fn: gets the logits at the position alone, [1, 1, vocab] (so that ``logits[0, -1]`` and ``logits[:, -1]`` work
            as in TransformerLens), and returns one element.
        name: what the result calls it; by default the function's name.

    Raises (when called):
        ValueError: fn returns more than one element, or something that does not depend on the logits.

    """

    fn: Callable[[Tensor], Tensor]
    name: str | None = None

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
                msg = f"{self!r}: what fn returns does not depend on the logits, so it has no gradient"
                raise ValueError(msg)
            (gradient,) = torch.autograd.grad(value.reshape(()), logits)
        return Cotangents(state.pull(gradient)[None], notes={"value": float(value.detach())})


@dataclass(frozen=True, eq=False)
class Direction:
    """A fixed vector: a probe, a steering vector, the *encoder* row of an SAE feature. Score ‖J_tᵀ vector‖.

    Args:
        vector: [d_model], used as it is (it is not normalised).
        site: where the vector reads the model: "final" (y) or the hook name of a residual-stream site; sources at or
            after an inner site are an error.
        name: what the result calls it.

    """

    vector: Float[Tensor, " d_model"]
    site: str = FINAL
    name: str | None = None

    def __repr__(self) -> str:
        """Name and place, not the numbers."""
        what = self.name or f"[{len(self.vector)}]"
        return f"Direction({what})" if self.site == FINAL else f"Direction({what}, site={self.site!r})"

    def __call__(self, state: FinalState) -> Cotangents:
        """v = the vector."""
        return Cotangents(self.vector.detach().to(state.y).reshape(1, -1), site=self.site)


def _pick(wanted: Any, state: FinalState, name: str) -> Token | None:
    """The token for this position out of "one for all" or "one per requested position"."""
    if not isinstance(wanted, tuple):
        return wanted
    if len(wanted) != state.count:
        msg = f"Semantic got {len(wanted)} values of {name} for {state.count} positions; give one, or one per position"
        raise ValueError(msg)
    return wanted[state.index]
