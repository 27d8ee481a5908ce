"""A call of the package as data: it can be run and written down as Python, so that page and recipe cannot differ."""

import hashlib
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

import lens_scopes as ls

Prompt = str | tuple[int, ...]
#: An index into a table of places: site, position and, where there is one, head.
Place = tuple[int, ...]


@dataclass(frozen=True)
class Mask:
    """Some places of a table, as ``where=`` takes them."""

    shape: tuple[int, ...]
    places: tuple[Place, ...]

    def make(self) -> Bool[Tensor, "site pos ..."]:
        """True at the places."""
        found = torch.zeros(self.shape, dtype=torch.bool, device="cpu")
        for place in self.places:
            found[place] = True
        return found

    def __repr__(self) -> str:
        """As a recipe writes it."""
        return f"mask({self.shape}, {list(self.places)})"


@dataclass(frozen=True)
class Call:
    """One call of the package: what it takes, without the model."""

    verb: str
    prompts: tuple[Prompt, ...]
    scope: Any
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def key(self) -> str:
        """Under what its result is kept, and found by a browser."""
        return hashlib.sha256(self.source().encode()).hexdigest()[:24]

    def run(self, model: Any, **more: Any) -> Any:
        """Its result."""
        given = {name: _made(value) for name, value in self.options}
        scope = () if self.scope is None else (self.scope,)
        return attrgetter(self.verb)(ls)(model, *map(_made, self.prompts), *scope, **given, **more)

    def source(self, more: str = "") -> str:
        """The same as Python."""
        scope = [] if self.scope is None else [f"ls.{self.scope!r}"]
        given = [f"{name}={_made(value, masks=False)!r}" for name, value in self.options]
        parts = ["model", *(repr(_made(prompt)) for prompt in self.prompts), *scope, *given, more]
        return f"ls.{self.verb}({', '.join(filter(None, parts))})"


def plain_prompt(prompt: Prompt) -> str | list[int]:
    """A prompt as the package takes it."""
    return prompt if isinstance(prompt, str) else list(prompt)


def _made(value: Any, masks: bool = True) -> Any:
    """A plain value as the package takes it."""
    if isinstance(value, Mask):
        return value.make() if masks else value
    return list(value) if isinstance(value, tuple) else value
