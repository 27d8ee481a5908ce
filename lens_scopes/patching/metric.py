"""A scope as the number that it is the gradient of: a metric for TransformerLens's own patching tools.

The scope says which (``scopes.protocol.quantity``): its ``value`` at the state of a run, or in squared units its
``divergence`` from the prompt that the metric was made for. README's table of scopes lists them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_scopes.calculus.pair import one_output
from lens_scopes.calculus.question import Asked
from lens_scopes.calculus.trace import trace
from lens_scopes.host import Host, Seen, watching
from lens_scopes.host.prompts import Positions, Prompt
from lens_scopes.host.undo import guarded
from lens_scopes.scopes.protocol import Scope, site_of, text_of
from lens_scopes.scopes.quantity import Quantities, one_per_run, quantities
from lens_scopes.scopes.state import FinalState
from lens_scopes.sites import FINAL


@dataclass(eq=False)
class ScopeMetric:
    """What a scope measures, as a function of the logits of the model's latest run.

    ``metric(logits)`` is the mean over the batch (a scalar, as TransformerLens's getters want it), ``metric.each
    (logits)`` one number per row (for ``reduce="none"``). Gradients flow. Scopes that look at the final state instead
    of the logits get it from a hook, so a metric lives only inside its ``with`` block.
    """

    name: str
    site: str
    positions: tuple[int, ...]
    value: Quantities
    reference: Sequence[FinalState] = field(repr=False)
    """The end of the prompt that the metric was made for, at the positions."""
    transform: Callable[[Tensor], Tensor] = field(repr=False)
    """What the model does to its raw logits."""
    seen: Seen = field(default_factory=Seen, repr=False)
    """What the latest run of the model left behind."""

    def __call__(self, logits: Float[Tensor, "batch pos vocab"]) -> Float[Tensor, ""]:
        """The mean over the batch."""
        return self.each(logits).mean()

    def each(self, logits: Float[Tensor, "batch pos vocab"]) -> Float[Tensor, " batch"]:
        """One number per prompt.

        Raises:
            ValueError: logits that do not reach the positions, or a scope whose ``value`` is not one number per run.
            RuntimeError: logits of another run than the model's latest, or used after the ``with`` block.

        """
        last = max(self.positions)
        if logits.ndim != 3 or logits.shape[1] <= last:
            msg = f"{self.name} at position {last} needs logits [batch, pos, vocab], got {tuple(logits.shape)}"
            raise ValueError(msg)
        activation = self.seen.activation
        if activation is None or activation.shape[:2] != logits.shape[:2] or not self._made(logits[:, last]):
            msg = (
                f"{self.name} has not seen the run that these logits {tuple(logits.shape)} come from, or another came "
                "after it; run the model and call the metric on its logits at once, inside 'with "
                "lens_scopes.patching.metric(...) as metric:'"
            )
            raise RuntimeError(msg)
        states = []
        for position, reference in zip(self.positions, self.reference, strict=True):
            read = activation[:, position].clone()  # a scope may edit what it gets
            states.append(replace(reference, y=read, logits=logits[:, position].clone(), stream={self.site: read}))
        return one_per_run(self.value(states), len(logits), self.name)

    def _made(self, logits: Float[Tensor, "batch vocab"]) -> bool:
        """Whether the latest run made these logits."""
        if self.seen.raw is None or self.seen.raw.shape != logits.shape:
            return False
        ours, theirs = self.transform(self.seen.raw).float(), logits.detach().float()
        rounding = 1e-5 if logits.dtype in (torch.float32, torch.float64) else 1e-2
        return bool((ours - theirs).abs().max() <= rounding * ours.abs().max())


@contextmanager
def metric(model: Any, prompt: Prompt, scope: Scope, *, position: Positions = -1) -> Iterator[ScopeMetric]:
    """The scope as a callable on logits, for ``transformer_lens.patching`` and ``attribution_patch``.

    Args:
        model: a HookedTransformer or TransformerBridge; hooks are on it within the block only.
        prompt: what token targets are resolved on (the clean prompt); for Fisher and for a scope that is a function,
            the prompt whose distribution, or cotangent, is the reference (the corrupted one). For a ``Continuation``
            join the answer to the prompts that you run.
        scope: see ``score``.
        position: whose next-token prediction is measured.

    Yields:
        A ``ScopeMetric``.

    Raises:
        ValueError: a scope of several cotangents that is not Fisher has no metric; or see ``score``.

    """
    host = Host(model)
    asked = one_output(host, prompt, scope, position)
    site = site_of(scope)
    found = _prepared(host, asked, site)
    with watching(host, site, max(asked.positions)) as found.seen:
        yield found


@guarded
def _prepared(host: Host, asked: Asked, site: str) -> ScopeMetric:
    """The metric before any run of the user's."""
    opened = () if site == FINAL else host.sites([site]).names
    run = trace(host, asked.tokens, opened, asked.positions)
    reference = run.ends(0)
    value = quantities(asked.scope, reference)
    return ScopeMetric(text_of(asked.scope), site, asked.positions, value, reference, run.readout.transform)
