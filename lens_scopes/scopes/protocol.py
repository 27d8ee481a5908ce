"""What a scope is: the one protocol that everything which handles scopes asks.

A scope is any function of the final state that returns cotangents, ``scope(state) -> [d_model] | [k, d_model] |
Cotangents``. That is enough for ``score``, ``flow`` and ``check``. It may say more about itself; whoever needs that
asks the functions below and in ``quantity``, never for its class:

| attribute | what it says | without it |
|---|---|---|
| ``site`` | where its cotangents live: "final", or the hook name of a residual-stream site | "final" |
| ``target`` | the token it is about, text or id; None is open, and ``evaluate`` aims it | nothing to aim |
| ``resolve(state)`` | the same scope with its tokens fixed to what they are at this state | itself |
| ``value(state)`` | the number whose gradient its cotangent is, or None | ⟨v, y⟩, its one cotangent v held |
| ``divergence(state, reference)`` | in squared units: what the form is the second order of, at a reference | none |
| ``joint(states)`` | one set of cotangents over several positions, vectors [k, position, d_model] | one set for each |
| ``continues(tail)`` | the scope bound to a prompt, and the ids that it adds to it | nothing added |
| ``summands(states, passes)`` | in squared units: by position, the rows that a total adds up | its cotangents |
| ``fields()`` | what it was made with, for ``meta`` | a dataclass's fields; of a function its name |

``value`` and ``divergence`` are also asked about many runs at once: ``state.y`` and ``state.logits`` then have a
leading axis, and so has the answer. Formulas that index from the end (``state.logits[..., token]``) just work.

A scope that spans positions (it has ``joint``) is asked with the states of all of them, in order, also by ``value``.
``continues`` gets a function from text or ids to the ids that they add to the prompt; a scope that adds nothing
explains the positions asked for, by default those of a Text's "completion".

``meta["targets"]`` names the ids in the cotangents' ``notes["target"]`` and ``notes["versus"]``, which may differ from
position to position; without them the attribute ``target``, if it is one token.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import fields, is_dataclass, replace
from functools import partial
from importlib import import_module
from inspect import Parameter, signature
from types import BuiltinFunctionType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from lens_scopes.results.arguments import shown, vector
from lens_scopes.results.provenance import ScopeData, plain
from lens_scopes.results.sameness import identity
from lens_scopes.scopes.state import Cotangents, FinalState
from lens_scopes.sites import FINAL, one

#: A scope is a recipe: final state -> cotangents. A plain function or lambda is a legal scope.
Scope = Callable[[FinalState], "Cotangents | Tensor"]


def cotangents_of(scope: Scope, state: FinalState) -> Cotangents:
    """Call a scope and bring what it returns into one form.

    Raises:
        TypeError: the scope is not callable, or returns something else than a tensor or Cotangents.
        ValueError: the vectors do not have shape [d_model] or [k, d_model], contain NaN or infinity, or live at another
            site than the scope's attribute ``site`` says.
        RuntimeError: the scope changed the model's unembedding.

    """
    made = _unedited(scope, scope, state)
    if not isinstance(made, Cotangents):
        made = vector(made, f"what {scope!r} returns (or ls.Cotangents)")
        if made.ndim not in (1, 2):
            msg = f"{scope!r} returned shape {tuple(made.shape)}; a scope returns [d_model] or [k, d_model]"
            raise ValueError(msg)
        made = Cotangents(made.reshape(-1, made.shape[-1]))
    return _checked(scope, made, (len(state.y),), state)


def cotangents_at(scope: Scope, states: Sequence[FinalState]) -> list[Cotangents]:
    """The cotangents of a scope at some positions of a prompt: one set for each, or a single one that spans them.

    Raises:
        TypeError: see ``cotangents_of``.
        ValueError: see ``cotangents_of``.
        RuntimeError: see ``cotangents_of``.

    """
    joint = said_by(scope, "joint")
    if joint is None:
        return [cotangents_of(scope, state) for state in states]
    made = _unedited(scope, lambda _: joint(states), states[0])
    return [_checked(scope, made, (len(states), len(states[0].y)), states[0])]


def spans_positions(scope: Scope) -> bool:
    """Whether a scope is about several positions as one."""
    return said_by(scope, "joint") is not None


def said_by(scope: Scope, what: str) -> Callable[..., Any] | None:
    """What a scope says about itself, if it does: one of the methods above."""
    found: Any = getattr(scope, what, None)
    return cast("Callable[..., Any]", found) if callable(found) else None


def _unedited(scope: Scope, call: Callable[[FinalState], Any], state: FinalState) -> Any:
    """What a scope returns, if it left the unembedding as it was."""
    site_of(scope)  # refuses what is no scope
    edits = None if state.weight.is_inference() else state.weight._version
    made = call(state)
    if edits is not None and state.weight._version != edits:
        msg = (
            f"{scope!r} changed state.weight in place, which is the model's own unembedding: the model is no longer "
            "what it was, load it again; write state.weight.clone() where a scope edits"
        )
        raise RuntimeError(msg)
    return made


def _checked(scope: Scope, made: Any, shape: tuple[int, ...], state: FinalState) -> Cotangents:
    """What a scope returned, if its rows have this shape and live where it says."""
    read = site_of(scope)
    if not isinstance(made, Cotangents):
        msg = f"what joint of {scope!r} returns is ls.Cotangents with vectors [k, position, d_model], got {shown(made)}"
        raise TypeError(msg)
    found = tuple(made.vectors.shape[1:])
    if found != shape:
        d_model = shape[-1]
        msg = f"{scope!r} gave vectors of length {found[-1]}, the model has d_model = {d_model}; write [{d_model}]"
        if len(found) + len(shape) > 2:
            msg = f"{scope!r} gave rows of shape {list(found)}; write [k, {', '.join(map(str, shape))}]"
        raise ValueError(msg)
    if made.site != read:
        msg = (
            f"{scope!r} returned cotangents at {made.site}, but says that it reads {read}; give the scope an "
            f"attribute site = {made.site!r}"
        )
        raise ValueError(msg)
    if not made.vectors.isfinite().all():
        msg = f"{scope!r} returned a cotangent with NaN or infinity (final state: {state.y.dtype})"
        raise ValueError(msg)
    weights = None if made.weights is None else made.weights.detach()
    made = replace(made, vectors=made.vectors.detach(), weights=weights)  # results hold no graph
    return made.of_ordinary_length(text_of(scope))


def _refuse_no_scope(scope: Any) -> None:
    """Refuse what cannot be called, and a class where an instance of it is meant.

    Raises:
        TypeError: neither a function nor an instance of a scope's class.

    """
    if isinstance(scope, type):
        msg = f"a scope is made of its class, got the class {scope.__name__}; write ls.{scope.__name__}()"
        if _kinds().get(scope.__name__) is not scope:
            msg = (
                f"a scope is a function of the final state, got the class {scope.__name__}; write {scope.__name__}(...)"
            )
        raise TypeError(msg)
    if not callable(scope) or isinstance(scope, BuiltinFunctionType):
        known = {name.lower(): name for name in _kinds()}
        meant = f"ls.{known.get(str(scope).lower(), 'Semantic')}()"
        msg = f"a scope is a function of the final state, got {shown(scope)}; write e.g. {meant}"
        raise TypeError(msg)


def site_of(scope: Scope) -> str:
    """Where a scope's cotangents live, before it is called.

    Raises:
        TypeError: no scope, or the class of one.
        ValueError: its site is not one place of the residual stream.

    """
    _refuse_no_scope(scope)
    return one(getattr(scope, "site", FINAL))


def resolve(scope: Scope, state: FinalState) -> Scope:
    """The same scope with its tokens fixed: what they mean at this state they then mean at any other."""
    fixed = said_by(scope, "resolve")
    return scope if fixed is None else fixed(state)


def aimed(scope: Scope, target: int) -> Scope:
    """A scope whose attribute ``target`` is open (None), about this token; any other as it is.

    Raises:
        TypeError: a scope that is open and cannot be copied with another target.

    """
    if getattr(scope, "target", 0) is not None:
        return scope
    if is_dataclass(scope) and not isinstance(scope, type):
        return cast("Scope", replace(scope, target=target))
    if isinstance(scope, tuple):  # with named fields: another tuple has no target
        return cast("Scope", cast("Any", scope)._replace(target=target))
    found: Any = copy(scope)
    if found is not scope:  # of a function there is no copy
        with suppress(AttributeError, TypeError):
            found.target = target
            return cast("Scope", found)
    msg = f"{text_of(scope)} has an open target, and no copy of it can be given one; write a dataclass with target"
    raise TypeError(msg)


def text_of(scope: Scope) -> str:
    """A scope in words: as a built-in one is written, a function by its name."""
    if is_dataclass(scope) or isinstance(scope, tuple):
        return repr(scope)
    if isinstance(scope, partial):
        given = [*map(repr, scope.args), *(f"{name}={value!r}" for name, value in scope.keywords.items())]
        return f"{text_of(scope.func)}({', '.join(given)})"
    return getattr(scope, "__name__", type(scope).__name__)


def data_of(scope: Scope) -> ScopeData:
    """A scope as data for ``meta``, JSON-like.

    The kind is the bare name of this package's scopes and the full name of anybody else's. Tensors are named by shape
    and digest, functions and anybody else's classes by name and, as "is", by what they do (``sameness``): results of
    different probes differ in their provenance, though it cannot remake them.
    """
    kind, text = type(scope), text_of(scope)
    own = getattr(scope, "fields", None)
    if callable(own):
        given: Any = own()
    elif is_dataclass(scope):
        given = {one.name: getattr(scope, one.name) for one in fields(scope)}
    elif isinstance(scope, tuple) and hasattr(scope, "_asdict"):
        given = scope._asdict()  # type: ignore[attr-defined] - of a NamedTuple
    else:
        given = {"name": _full_name(scope)} | _bound(scope) | {"is": identity(scope)}
        return {"kind": "function", "fields": given, "text": text}
    known = {str(key): _plain(value) for key, value in given.items()}
    if _kinds().get(kind.__name__) is kind:
        return {"kind": kind.__name__, "fields": known, "text": text}
    return {"kind": f"{kind.__module__}.{kind.__qualname__}", "fields": known | {"is": identity(kind)}, "text": text}


def _full_name(function: Any) -> str:
    while isinstance(function, partial):
        function = function.func
    kind = type(function)
    name = getattr(function, "__qualname__", kind.__qualname__)
    return f"{getattr(function, '__module__', kind.__module__)}.{name}"


def _bound(function: Any) -> dict[str, Any]:
    """What a partial was given, its own partials included: two of one function are two scopes."""
    if not isinstance(function, partial):
        return {}
    inner = _bound(function.func)
    keywords = {**inner.get("keywords", {}), **_plain(function.keywords)}
    return {"args": [*inner.get("args", ()), *_plain(function.args)], "keywords": keywords}


def scope_from(data: ScopeData) -> Scope:
    """The scope that ``data_of`` wrote down.

    Raises:
        ValueError: a scope that is not this package's own, or one that holds a function or a tensor.

    """
    if not isinstance(data, Mapping) or not {"kind", "fields"} <= set(data):
        msg = f"meta['scope'] is {{'kind', 'fields', 'text'}}, got {shown(data)}; pass the scope: scope=..."
        raise ValueError(msg)
    kind, given = _kinds().get(data["kind"]), data["fields"]
    if kind is None or any(map(opaque, given.values())):
        what = "holds a function or a tensor" if kind is not None else "is not one of this package's"
        msg = f"the scope {data['kind']!r} {what} and cannot be remade from its provenance; pass it: scope=..."
        raise ValueError(msg)
    return kind(**given)


def writable() -> dict[str, type]:
    """The scopes that can be made without an argument, by name in lower case: what a command line can offer."""
    return {name.lower(): kind for name, kind in _kinds().items() if _needs_nothing(kind)}


def _needs_nothing(kind: type) -> bool:
    return all(one.default is not Parameter.empty for one in signature(kind).parameters.values())


def _kinds() -> dict[str, type]:
    """The package's own scopes by name: what ``lens_scopes.scopes`` lists."""
    scopes = import_module("lens_scopes.scopes")
    return {name: getattr(scopes, name) for name in scopes.__all__}


def opaque(value: Any) -> bool:
    """Whether something written down names a tensor or a function that it does not hold."""
    return isinstance(value, Mapping) or (isinstance(value, list) and any(map(opaque, value)))


def _plain(value: Any) -> Any:
    """Tensors and functions by name, inside of lists and dicts too; the rest as ``provenance.plain`` has it."""
    if isinstance(value, Tensor | np.ndarray):
        whole = value.detach().cpu() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
        whole = whole.to(torch.complex128 if whole.is_complex() else torch.float64).contiguous()
        return {
            "tensor": list(value.shape),
            "digest": hashlib.blake2b(whole.numpy().tobytes(), digest_size=8).hexdigest(),
        }
    if callable(value):
        return {"function": getattr(value, "__qualname__", type(value).__qualname__), "is": identity(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else plain(value)
