"""What the page may ask: each question validates itself, and says which calls of the package answer it.

Questions are frozen and made of plain values, so that they can be kept, compared and written into an address.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from lens_scopes.results.arguments import shown
from lens_scopes.serve.calls import Call, Mask, Place
from lens_scopes.serve.fields import (
    MOST_NEW,
    MOST_PLACES,
    MOST_TOKENS,
    number,
    one_of,
    position_of,
    prompt_of,
    scope_of,
    whole,
)
from lens_scopes.views.grids import check_first

#: Patches that are measured in one call, between two words of progress.
BATCH = 8

LEVELS = ("token", "word", "line", "sentence")
#: Shorthands that the page offers; None: the embedding and every block's residual stream.
SITES = (None, "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z")

Result = Callable[[Call], Any]


class Ask:
    """A question: fields, and the calls that answer it."""

    def call(self) -> Call | None:
        """The call that answers it, where one does."""
        return None

    def calls(self, result: Result) -> Iterator[Call]:  # noqa: ARG002 - of those that ask what was found
        """All its calls, in order; ``result`` has what earlier ones found."""
        one = self.call()
        if one is not None:
            yield one


@dataclass(frozen=True)
class _About(Ask):
    """A question about what a scope explains on a prompt."""

    prompt: Any
    scope: Any
    position: Any = -1

    def __post_init__(self) -> None:
        """Plain values of the right kinds.

        Raises:
            ValueError: anything else.

        """
        _set(self, prompt=prompt_of(self.prompt), scope=scope_of(self.scope), position=position_of(self.position))


@dataclass(frozen=True)
class Tokens(Ask):
    """How a prompt is cut into tokens, and what comes next."""

    prompt: Any
    position: Any = -1

    def __post_init__(self) -> None:
        """See ``_About``."""
        _set(self, prompt=prompt_of(self.prompt), position=whole(self.position, "position", -MOST_TOKENS, MOST_TOKENS))


@dataclass(frozen=True)
class Generate(Ask):
    """What the model goes on to say."""

    prompt: Any
    n: Any = 16
    temperature: Any = 0.0
    seed: Any = 0

    def __post_init__(self) -> None:
        """See ``_About``."""
        _set(self, prompt=prompt_of(self.prompt), n=whole(self.n, "n", 1, MOST_NEW))
        _set(self, temperature=number(self.temperature, "temperature", 0, 10), seed=whole(self.seed, "seed", 0, 2**31))

    def call(self) -> Call:
        """The call."""
        options = (("max_new_tokens", self.n), ("temperature", self.temperature), ("seed", self.seed))
        return Call("generate", (self.prompt,), None, options)


@dataclass(frozen=True)
class Score(_About):
    """How much each token moves the scope, at every site."""

    sites: Any = None
    along: Any = None
    level: Any = "token"
    first: Any = "show"

    def __post_init__(self) -> None:
        """See ``_About``."""
        super().__post_init__()
        one_of(self.sites, "sites", SITES)
        one_of(self.along, "along", (None, "activation"))
        one_of(self.level, "level", LEVELS)
        check_first(self.first)

    def call(self) -> Call:
        """The call; joining tokens to words costs nothing."""
        options = {"position": self.position, "sites": self.sites, "along": self.along}
        return Call("score", (self.prompt,), self.scope, _given(options))


@dataclass(frozen=True)
class Flow(_About):
    """Which heads and MLPs it goes through."""

    def call(self) -> Call:
        """The call."""
        return Call("flow", (self.prompt,), self.scope, _given({"position": self.position}))


@dataclass(frozen=True)
class Edges(_About):
    """What one head reads where."""

    layer: Any = 0
    head: Any = 0
    most: Any = 30

    def __post_init__(self) -> None:
        """See ``_About``."""
        super().__post_init__()
        _set(self, layer=whole(self.layer, "layer", 0, 1000), head=whole(self.head, "head", 0, 1000))
        _set(self, most=whole(self.most, "most", 1, 200))

    def call(self) -> Call:
        """A flow that keeps this head's edges."""
        options = {"position": self.position, "edges": ((self.layer, self.head),)}
        return Call("flow", (self.prompt,), self.scope, _given(options))


@dataclass(frozen=True)
class _Pair(Ask):
    """A question about patches from a clean into a corrupted run."""

    clean: Any
    corrupted: Any
    scope: Any
    position: Any = -1
    sites: Any = None

    def __post_init__(self) -> None:
        """See ``_About``."""
        _set(self, clean=prompt_of(self.clean), corrupted=prompt_of(self.corrupted), scope=scope_of(self.scope))
        _set(self, position=position_of(self.position))
        one_of(self.sites, "sites", SITES)

    @property
    def options(self) -> tuple[tuple[str, Any], ...]:
        """What both calls take."""
        return _given({"position": self.position, "sites": self.sites})

    def predicted(self) -> Call:
        """The prediction of every place."""
        return Call("patching.predict", (self.clean, self.corrupted), self.scope, self.options)

    def measured(self, where: Mask | tuple[tuple[int, int], ...]) -> Call:
        """The true effect of some."""
        return Call("patching.measure", (self.clean, self.corrupted), self.scope, (*self.options, ("where", where)))


@dataclass(frozen=True)
class Predict(_Pair):
    """What every patch should do."""

    def call(self) -> Call:
        """The call."""
        return self.predicted()


@dataclass(frozen=True)
class Measure(_Pair):
    """What the patches do whose prediction is largest."""

    largest: Any = 16

    def __post_init__(self) -> None:
        """See ``_About``."""
        super().__post_init__()
        _set(self, largest=whole(self.largest, "largest", 1, MOST_PLACES))

    def calls(self, result: Result) -> Iterator[Call]:
        """The prediction, and the largest places in batches."""
        predicted = self.predicted()
        yield predicted
        values = result(predicted).values
        order = values.abs().flatten().argsort(descending=True, stable=True)[: self.largest]
        places = [tuple(int(i) for i in torch.unravel_index(order[n], values.shape)) for n in range(len(order))]
        for start in range(0, len(places), BATCH):
            yield self.measured(Mask(tuple(values.shape), tuple(places[start : start + BATCH])))


@dataclass(frozen=True)
class Cut(_About):
    """One place cut for real: by a patch from a clean prompt, the mean over the other positions, or zero."""

    site: Any = 0
    pos: Any = None
    head: Any = None
    by: Any = "mean"
    clean: Any = None
    sites: Any = None

    def __post_init__(self) -> None:
        """See ``_About``."""
        super().__post_init__()
        one_of(self.by, "by", ("patch", "mean", "zero"))
        one_of(self.sites, "sites", SITES)
        if (self.by == "patch") != (self.clean is not None):
            msg = "by is 'patch' with a clean prompt, and 'mean' or 'zero' without one"
            raise ValueError(msg)
        _set(self, site=whole(self.site, "site (a row of the sites)", 0, 10_000))
        if (self.head is not None) != (self.sites == "z") or (self.pos is None and self.head is None):
            msg = "a place is a site and pos; at sites='z' a site and head, at one pos or, without pos, at all"
            raise ValueError(msg)
        _set(self, pos=None if self.pos is None else whole(self.pos, "pos", 0, MOST_TOKENS))
        _set(self, head=None if self.head is None else whole(self.head, "head", 0, 10_000))
        _set(self, clean=None if self.clean is None else prompt_of(self.clean))

    def calls(self, result: Result) -> Iterator[Call]:
        """Of a patch the prediction of every place, which the next one needs too, and its true effect; else one."""
        if self.by == "patch":
            pair = Predict(self.clean, self.prompt, self.scope, self.position, self.sites)
            predicted = pair.predicted()
            yield predicted
            yield pair.measured(self._where(result(predicted).values))
        else:
            scored = Score(self.prompt, self.scope, self.position, self.sites).call()
            options = {"position": self.position, "sites": self.sites, "by": self.by}
            where = self._where(result(scored).values)
            yield Call("patching.ablate", (self.prompt,), self.scope, (*_given(options), ("where", where)))

    def _where(self, values: Tensor) -> Mask | tuple[tuple[int, int], ...]:
        """One place of a table, or a whole head.

        Raises:
            IndexError: there is no such place.

        """
        if self.pos is None:
            return ((self.site, self.head),)
        if values.ndim != len(self.place) or any(i >= n for i, n in zip(self.place, values.shape, strict=False)):
            msg = f"there is no place {self.place} (site, pos, head) in a table {tuple(values.shape)}"
            raise IndexError(msg)
        return Mask(tuple(values.shape), (self.place,))

    @property
    def place(self) -> Place:
        """Its index in the table of places."""
        return tuple(i for i in (self.site, self.pos, self.head) if i is not None)


@dataclass(frozen=True)
class Export(Ask):
    """What the page shows, for elsewhere: Python that repeats it, its numbers, or a page that needs no server."""

    kind: Any
    asks: Any

    KINDS: ClassVar = ("python", "csv", "report")

    def __post_init__(self) -> None:
        """See ``_About``."""
        one_of(self.kind, "kind", self.KINDS)
        if not isinstance(self.asks, list | tuple) or not 1 <= len(self.asks) <= 64:
            msg = f"asks is a list of 1 to 64 questions [verb, fields], got {shown(self.asks)}"
            raise ValueError(msg)
        _set(self, asks=tuple(one if isinstance(one, Ask) else _named(one) for one in self.asks))

    def calls(self, result: Result) -> Iterator[Call]:
        """Those of all that is exported."""
        for ask in self.asks:
            yield from ask.calls(result)


#: By the last part of their address.
VERBS: Mapping[str, type[Ask]] = {
    kind.__name__.lower(): kind for kind in (Tokens, Generate, Score, Flow, Edges, Predict, Measure, Cut, Export)
}


def read(verb: str, data: Any) -> Ask:
    """A question from JSON.

    Raises:
        KeyError: another verb.
        ValueError: another field, one that is missing, or one that holds something else.

    """
    kind = VERBS[verb]
    if not isinstance(data, Mapping):
        msg = f"a question is an object, got {shown(data)}"
        raise ValueError(msg)  # noqa: TRY004 - what is wrong is the text of a request
    known = fields(kind)  # type: ignore[arg-type] - every kind is a dataclass
    unknown = sorted(set(data) - {one.name for one in known})
    missing = [one.name for one in known if one.default is MISSING and one.name not in data]
    if unknown or missing:
        what = f"has no field {unknown[0]!r}" if unknown else f"needs the field {missing[0]!r}"
        msg = f"{verb} {what}; its fields are {', '.join(one.name for one in known)}"
        raise ValueError(msg)
    try:
        return kind(**data)
    except TypeError as error:
        raise ValueError(str(error)) from error


def _named(given: Any) -> Ask:
    if not isinstance(given, list | tuple) or len(given) != 2 or given[0] not in VERBS or given[0] == "export":
        msg = f"each of asks is [verb, fields] with a verb of {', '.join(sorted(set(VERBS) - {'export'}))}"
        raise ValueError(msg)
    return read(*given)


def _set(ask: Any, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(ask, name, value)


def _given(options: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Without what is left out."""
    return tuple((name, value) for name, value in options.items() if value is not None)
