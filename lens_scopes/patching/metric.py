"""A scope as the number that it is the gradient of: a metric for TransformerLens's own patching tools.

The scope says which (``scopes.protocol.quantity``): its ``value`` at the state of a run, or in squared units its
``divergence`` from the prompt that the metric was made for. README's table of scopes lists them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lens_scopes.calculus.trace import trace
from lens_scopes.given import Integer
from lens_scopes.host import Host, encode, watching
from lens_scopes.host.prompts import Prompt, one_position
from lens_scopes.scopes.protocol import Quantity, Scope, quantity, site_of, text_of
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
    position: int
    value: Quantity
    reference: FinalState = field(repr=False)
    """The end of the prompt that the metric was made for."""
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
        read = self.seen[0][:, self.position]
        state = replace(self.reference, y=read, logits=logits[:, self.position], stream={self.site: read})
        return self.value(state)


@contextmanager
def metric(model: Any, prompt: Prompt, scope: Scope, *, position: Integer = -1) -> Iterator[ScopeMetric]:
    """The scope as a callable on logits, for ``transformer_lens.patching`` and ``attribution_patch``.

    Args:
        model: a HookedTransformer or TransformerBridge; hooks are on it within the block only.
        prompt: what token targets are resolved on (the clean prompt); for Fisher and for a scope that is a function,
            the prompt whose distribution, or cotangent, is the reference (the corrupted one).
        scope: see ``score``.
        position: whose next-token prediction is measured.

    Yields:
        A ``ScopeMetric``.

    Raises:
        ValueError: a scope of several cotangents that is not Fisher has no metric; or see ``score``.

    """
    host = Host(model)
    tokens = encode(host, prompt)
    at = one_position(position, len(tokens))
    site = site_of(scope)
    opened = () if site == FINAL else host.sites([site]).names
    reference = trace(host, tokens[None], opened, [at]).state(0, 0)
    found = ScopeMetric(text_of(scope), site, at, quantity(scope, reference), reference)
    with watching(host, site) as found.seen:
        yield found
