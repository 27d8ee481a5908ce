"""A clean and a corrupted prompt of one length, and the scope that is asked about them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lens_scopes.calculus.finite import refuse_nonfinite
from lens_scopes.calculus.question import Asked, ask
from lens_scopes.calculus.reach import refuse_late
from lens_scopes.calculus.trace import Trace, trace
from lens_scopes.host import Host
from lens_scopes.host.prompts import Positions, Prompt
from lens_scopes.scopes.protocol import Scope, site_of, spans_positions, text_of
from lens_scopes.scopes.quantity import quantities
from lens_scopes.scopes.state import Cotangents
from lens_scopes.sites import FINAL


@dataclass(frozen=True, eq=False)
class Pair:
    """Two prompts whose activations match position by position, and what is asked about both."""

    host: Host
    clean: Int[Tensor, " pos"]
    corrupted: Int[Tensor, " pos"]
    asked: Asked
    """About the corrupted prompt; ``resolved`` fixes its scope to what it means on the clean one."""

    @classmethod
    def of(cls, model: Any, clean: Prompt, corrupted: Prompt, scope: Scope, position: Positions) -> "Pair":
        """Encode both.

        Raises:
            ValueError: prompts of different length, more than one position, or answers that differ between the two.
            IndexError: a position outside the prompts.

        """
        host = Host(model)
        both = [one_output(host, prompt, scope, position) for prompt in (clean, corrupted)]
        lengths = [len(one.ids) for one in both]
        if lengths[0] != lengths[1]:
            msg = (
                f"clean and corrupted are held against each other position by position, but clean has {lengths[0]} "
                f"tokens and corrupted {lengths[1]}; write prompts of one length"
            )
            raise ValueError(msg)
        if spans_positions(scope):
            answers = [[int(one.ids[p + 1]) if p + 1 < len(one.ids) else -1 for p in one.positions] for one in both]
            if both[0].positions != both[1].positions or answers[0] != answers[1]:
                msg = (
                    "patching asks about one answer: clean and corrupted have to go on with the same tokens, at the "
                    f"same positions, got {answers[0]} after {both[0].positions[0]} and {answers[1]} after "
                    f"{both[1].positions[0]}; join the answer to both prompts"
                )
                raise ValueError(msg)
        return cls(host, both[0].ids, both[1].ids, both[1])

    @property
    def scope(self) -> Scope:
        """What is asked."""
        return self.asked.scope

    @property
    def positions(self) -> tuple[int, ...]:
        """Where."""
        return self.asked.positions

    def resolved(self, clean: Trace) -> "Pair":
        """The same with the scope's tokens fixed to what they are on the clean run."""
        return replace(self, asked=self.asked.resolved(clean))

    def trace(self, tokens: Int[Tensor, " pos"], names: Sequence[str], freeze: Sequence[str] = ()) -> Trace:
        """One of the prompts with the sites open, and the site that the scope reads."""
        return trace(self.host, tokens[None], [*names, *self.inner(names)], self.positions, freeze)

    def metric(self, corrupted: Trace, clean: Trace) -> dict[str, float]:
        """What the scope measures on both runs.

        Raises:
            ValueError: a scope that is the gradient of no number, or a number that is not finite.

        """
        value = quantities(self.scope, corrupted.ends(0))
        found = {name: value(run.ends(0)) for name, run in (("corrupted", corrupted), ("clean", clean))}
        refuse_nonfinite(self.host, corrupted.tokens, found, f"the number of {text_of(self.scope)}")
        return {name: float(number) for name, number in found.items()}

    def inner(self, names: Sequence[str]) -> list[str]:
        """The site that the scope reads, if it is an inner one that is not among the names."""
        site = site_of(self.scope)
        return [] if site == FINAL or site in names else list(self.host.sites([site]).names)


def one_output(host: Host, prompt: Prompt, scope: Scope, position: Positions) -> Asked:
    """The question about one position, or about those that a scope spans.

    Raises:
        ValueError: several positions, each on its own.
        IndexError: outside the prompt.

    """
    return ask(host, prompt, scope, position).alone("patching")


def refuse_unpredictable(host: Host, names: Sequence[str], made: Cotangents) -> None:
    """Refuse cotangents without a common sign, and places that a direction does not see.

    Raises:
        ValueError: several cotangents in norm units, or sites at or after the one that they live at.

    """
    if not made.squared and len(made.vectors) > 1:
        msg = f"{len(made.vectors)} cotangents in norm units have no common sign; return one, or squared=True"
        raise ValueError(msg)
    refuse_late(host, names, made.site, "patches")


def changed(clean: Tensor, corrupted: Tensor) -> Tensor:
    """Places whose activation differs between the runs: patching any other changes nothing. [pos(, head)]."""
    return torch.ne(clean, corrupted).any(-1)
