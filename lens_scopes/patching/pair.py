"""A clean and a corrupted prompt of one length, and the scope that is asked about them."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lens_scopes.calculus.trace import Trace, trace
from lens_scopes.host import Host, encode
from lens_scopes.host.prompts import Prompt, one_position
from lens_scopes.results.given import Integer
from lens_scopes.scopes.protocol import Scope, site_of
from lens_scopes.sites import FINAL


@dataclass(frozen=True, eq=False)
class Pair:
    """Two prompts whose activations match position by position."""

    host: Host
    clean: Int[Tensor, " pos"]
    corrupted: Int[Tensor, " pos"]
    position: int

    @classmethod
    def of(cls, model: Any, clean: Prompt, corrupted: Prompt, position: Integer) -> "Pair":
        """Encode both.

        Raises:
            ValueError: prompts of different length, or more than one position.
            IndexError: a position outside the prompts.

        """
        host = Host(model)
        ids = encode(host, clean), encode(host, corrupted)
        if len(ids[0]) != len(ids[1]):
            msg = (
                f"patching moves activations position by position, but clean has {len(ids[0])} tokens and corrupted "
                f"{len(ids[1])}; write prompts of one length"
            )
            raise ValueError(msg)
        return cls(host, *ids, one_position(position, len(ids[0])))

    def trace(self, tokens: Int[Tensor, " pos"], names: tuple[str, ...], scope: Scope) -> Trace:
        """One of the prompts with the sites open, and the site that the scope reads."""
        inner = site_of(scope)
        extra = [] if inner == FINAL or inner in names else list(self.host.sites([inner]).names)
        return trace(self.host, tokens[None], [*names, *extra], [self.position])


def changed(clean: Tensor, corrupted: Tensor) -> Tensor:
    """Places whose activation differs between the runs: patching any other changes nothing. [pos(, head)]."""
    return torch.ne(clean, corrupted).any(-1)
