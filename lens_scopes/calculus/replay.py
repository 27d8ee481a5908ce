"""The routes of a flow, asked again of the live model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from lens_scopes.calculus.blocks import Extent
from lens_scopes.calculus.paths import Routes
from lens_scopes.calculus.trace import trace
from lens_scopes.host import Host
from lens_scopes.host.fingerprint import refuse_changed
from lens_scopes.host.undo import guarded
from lens_scopes.scopes.protocol import Scope, cotangents_at, site_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Replay:
    """The routes of a flow on the live model, by a fresh forward pass: it holds a recipe, no graph and no model."""

    model: Callable[[], Any]
    """A weak reference; gives None when the model is gone."""
    ids: list[int]
    scope: Scope | None
    positions: tuple[int, ...]
    freeze: tuple[str, ...]
    state: str
    """The model's weights and hooks when the flow was made."""

    @guarded
    def __call__(self, question: Literal["strongest", "orders"], sources: Sequence[int], *given: int) -> "pd.DataFrame":
        """What ``Routes`` says of the routes from these positions, together.

        Raises:
            RuntimeError: the model is gone, or is no longer what it was.

        """
        model = self.model()
        if model is None or self.scope is None:
            msg = (
                "paths and orders ask the live model, and this flow's is gone (deleted, or left behind in another "
                "process); run lens_scopes.flow again"
            )
            raise RuntimeError(msg)
        host = Host(model)
        refuse_changed(host, self.state, "paths and orders ask the live model", "flow")
        ids = torch.tensor([self.ids], device=host.device)
        run = trace(host, ids, Extent.of(host, site_of(self.scope)).branches, self.positions, self.freeze)
        made, scale = cotangents_at(self.scope, run.ends(0))[0].scaled()
        found = getattr(Routes.of(run, made, sources), question)(*given)
        return found.assign(influence=found.influence * scale)

    def __deepcopy__(self, memo: object) -> "Replay":
        """A copy in this process still knows the model."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Neither a model nor a function goes to another process."""
        return Replay, (_gone, self.ids, None, self.positions, self.freeze, self.state)


def _gone() -> None:
    """The weak reference of a flow that came from another process."""
