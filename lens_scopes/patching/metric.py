"""A scope as the number that it is the gradient of: a metric for TransformerLens's own patching tools.

| scope | metric |
|---|---|
| Semantic(target[, versus]) | the logit (difference) |
| Temperature | ‖y‖ |
| Metric(fn) | fn(logits) |
| Direction(vector, site) | ⟨vector, activation at the site⟩ |
| Fisher | KL(p ‖ p_patched), p the distribution after the prompt that the metric was made for |
| a function with one cotangent v | ⟨v, y⟩, v taken at the prompt that the metric was made for |
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_scopes.calculus.describe import scope_text
from lens_scopes.calculus.trace import trace
from lens_scopes.host import Host, encode
from lens_scopes.host.prompts import Prompt
from lens_scopes.patching.pair import one_position
from lens_scopes.scopes import Direction, Metric, Semantic, Temperature
from lens_scopes.scopes.fisher import Fisher
from lens_scopes.scopes.state import FinalState, Scope, cotangents_of
from lens_scopes.sites import FINAL

#: (activation at the scope's site, logits) of a batch -> one number each.
Value = Callable[[Float[Tensor, "batch d_model"], Float[Tensor, "batch vocab"]], Float[Tensor, " batch"]]


@dataclass(eq=False)
class ScopeMetric:
    """What a scope measures, as a function of the logits of the model's latest run.

    ``metric(logits)`` is the mean over the batch (a scalar, as TransformerLens's getters want it), ``metric.each
    (logits)`` one number per row (for ``reduce="none"``). Gradients flow. Scopes that look at the final state instead
    of the logits get it from a hook, so a metric lives only inside its ``with`` block.
    """

    name: str
    position: int
    value: Value
    seen: list[Tensor] = field(default_factory=list, repr=False)
    """The latest activation at the scope's site, [batch, pos, d_model]."""

    def __call__(self, logits: Float[Tensor, "batch pos vocab"]) -> Float[Tensor, ""]:
        """The mean over the batch."""
        return self.each(logits).mean()

    def each(self, logits: Float[Tensor, "batch pos vocab"]) -> Float[Tensor, " batch"]:
        """One number per prompt.

        Raises:
            ValueError: logits that do not reach the position.
            RuntimeError: logits of another run than the model's latest, or used after the ``with`` block.

        """
        if logits.ndim != 3 or logits.shape[1] <= self.position:
            msg = f"{self.name} at position {self.position} needs logits [batch, pos, vocab], got {tuple(logits.shape)}"
            raise ValueError(msg)
        if not self.seen or self.seen[0].shape[:2] != logits.shape[:2]:
            msg = (
                f"{self.name} has not seen the run that these logits {tuple(logits.shape)} come from; run the model "
                "and call the metric inside 'with lens_scopes.patching.metric(...) as metric:'"
            )
            raise RuntimeError(msg)
        return self.value(self.seen[0][:, self.position], logits[:, self.position])


@contextmanager
def metric(model: Any, prompt: Prompt, scope: Scope, *, position: int = -1) -> Iterator[ScopeMetric]:
    """The scope as a callable on logits, for ``transformer_lens.patching`` and ``attribution_patch``.

    Args:
        model: a HookedTransformer or TransformerBridge; hooks are on it within the block only.
        prompt: what token targets are resolved on (the clean prompt); for Fisher and for a scope that is a function,
            the prompt whose distribution, or cotangent, is the reference (the corrupted one).
        scope: see the table above.
        position: whose next-token prediction is measured.

    Yields:
        A ``ScopeMetric``.

    Raises:
        ValueError: a scope of several cotangents that is not Fisher has no metric; or see ``score``.

    """
    host = Host(model)
    tokens = encode(host, prompt)
    at = one_position(position, len(tokens))
    inner = getattr(scope, "site", FINAL)
    sites = [] if inner == FINAL else list(host.sites([inner]).names)
    state = trace(host, tokens[None], sites, [at]).state(0, 0)
    found = ScopeMetric(scope_text(scope), at, quantity(scope, state))

    def read(activation: Tensor) -> None:
        found.seen[:] = [activation]

    def read_hook(activation: Tensor, hook: object) -> None:  # noqa: ARG001 - TransformerLens's signature
        read(activation)

    handle = None
    if not sites:  # y is the input of the unembedding; no hook of that name exists on every host
        handle = host.model.unembed.register_forward_pre_hook(lambda _, args: read(args[0]))
    try:
        with host.hooks([(site, read_hook) for site in sites]):
            yield found
    finally:
        if handle is not None:
            handle.remove()
        found.seen.clear()


def quantity(scope: Scope, state: FinalState) -> Value:
    """The function of (activation, logits) whose gradient the scope's cotangent is, resolved at a state."""
    made = cotangents_of(scope, state)  # resolves tokens and refuses what the scope refuses
    if isinstance(scope, Semantic):
        target, versus = made.notes["target"], made.notes.get("versus")
        return lambda _, z: z[:, target] - (0.0 if versus is None else z[:, versus])
    if isinstance(scope, Metric):
        return lambda _, z: torch.stack([scope.fn(row[None, None]).reshape(()) for row in z])
    if isinstance(scope, Fisher):
        p = state.probs
        return lambda _, z: (p * (p.log() - z.double().log_softmax(-1))).nan_to_num().sum(-1)
    if isinstance(scope, Temperature):
        return lambda y, _: _rescaled(scope, y).norm(dim=-1)
    if made.squared or len(made.vectors) != 1:
        msg = (
            f"{scope_text(scope)} returns {len(made.vectors)} cotangents in {'squared' if made.squared else 'norm'} "
            "units: there is no one number that they are the gradient of; write ls.Metric(fn) or ls.Fisher()"
        )
        raise ValueError(msg)
    vector = made.vectors[0]
    name = Direction.__name__ if isinstance(scope, Direction) else scope_text(scope)
    return lambda a, _: _inner_product(a, vector, name)


def _rescaled(scope: Temperature, y: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch d_model"]:
    """y as it was before the final norm's weight was folded away."""
    if scope.norm_weight is None:
        return y
    raw = y * scope.norm_weight.to(y)
    return raw if scope.norm_bias is None else raw + scope.norm_bias.to(y)


def _inner_product(a: Float[Tensor, "batch d_model"], vector: Float[Tensor, " d_model"], name: str) -> Tensor:
    if a.shape[-1] != len(vector):
        msg = f"{name} has length {len(vector)}, the activation that it reads {a.shape[-1]}"
        raise ValueError(msg)
    return a @ vector.to(a)
