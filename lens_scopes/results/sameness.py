"""What a function is, as data, so that a later process can tell another one from it: its code and all that it reads.

Code, defaults, arguments of a partial, values remembered from where it was written, globals, and the attributes of the
object that a method is bound to. What can be imported from an installed package is known by its name (versions are
facts of their own). What is none of that (a model, a file, a compiled object) has no identity in data, and neither has
a function that reads it. Random numbers and files that a function opens are nowhere to be seen.
"""

import dis
import hashlib
import json
import sys
import sysconfig
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from functools import cached_property, partial
from pathlib import Path, PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NoReturn
from uuid import uuid4
from weakref import finalize

import numpy as np
import torch
from torch import Tensor

from lens_scopes.results.provenance import digest

#: How deep a function's own functions and values may go.
_DEEPEST = 60
#: Tensors with more numbers are not read through for every result.
_LARGEST = 2**20
_PLACES = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))
#: Bases that keep nothing outside of an object's ``__dict__``.
_BARE = ("builtins.object", "abc.ABC", "typing.Generic", "typing.Protocol")
_NOT_CODE = ("__dict__", "__weakref__", "__module__", "__qualname__", "__doc__", "__annotations__", "__slots__")
_DESCRIPTORS = ("member_descriptor", "getset_descriptor", "_tuplegetter")
_tokens: dict[int, str] = {}


class UntoldError(ValueError):
    """Something has no identity in data."""


def identity(value: Any) -> dict[str, str]:
    """A function in one word, or which object of this process it is and why no word can be had: for provenance."""
    try:
        return {"code": told(value)}
    except UntoldError as failure:
        return {"object": _token(value), "untold": str(failure)}


def told(value: Any) -> str:
    """A function in one word, the same in every process.

    Raises:
        UntoldError: naming what it reads that cannot be told from others.

    """
    try:
        return digest(_Teller().tell(value))
    except RecursionError:
        msg = "it holds what holds itself"
        raise UntoldError(msg) from None


def untold(data: Any) -> str:
    """Of what was written down with ``identity``, why something in it cannot be told from others; empty if it can."""
    if isinstance(data, Mapping):
        found = data.get("untold")
        return found if isinstance(found, str) else next(filter(None, map(untold, data.values())), "")
    return next(filter(None, map(untold, data)), "") if isinstance(data, list | tuple) else ""


def _token(value: Any) -> str:
    """A word that no other object has had. Of a method, one for its object's: methods are made anew when asked for."""
    if isinstance(value, MethodType):
        return f"{_token(value.__self__)}.{value.__name__}"
    if id(value) not in _tokens:
        try:
            finalize(value, _tokens.pop, id(value), None)
        except TypeError:  # nothing says when it goes, and its id may be another's then
            return uuid4().hex
        _tokens[id(value)] = uuid4().hex
    return _tokens[id(value)]


def _installed(name: str | None) -> bool:
    """Whether a module comes from Python or from an installed package, whose versions are known."""
    top = str(name).partition(".")[0]
    if top == "lens_scopes" or top in sys.stdlib_module_names:
        return True
    path = getattr(sys.modules.get(str(name)), "__file__", None) or getattr(sys.modules.get(top), "__file__", None)
    return path is not None and any(Path(path).resolve().is_relative_to(place) for place in _PLACES)


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


@dataclass(eq=False)
class _Teller:
    """Tells one value; what it has met before it names, so that a function may call itself."""

    met: dict[int, tuple[Any, int]] = field(default_factory=dict)

    def tell(self, value: Any, depth: int = 0) -> Any:
        if depth > _DEEPEST:
            raise RecursionError
        if value is None or value is ... or isinstance(value, bool | int | float | str):
            return value if type(value) in (bool, int, float, str, type(None)) else [type(value).__name__, repr(value)]
        if isinstance(value, complex | bytes | range | slice | PurePath | torch.dtype | torch.device | np.dtype):
            return [type(value).__name__, repr(value)]
        if isinstance(value, Tensor | np.ndarray | np.generic):
            return _array(value)
        return self._met(value) or self._tell(value, depth + 1)

    def _met(self, value: Any) -> Any:
        if isinstance(value, tuple | list | Mapping | set | frozenset | MethodType):
            return None
        if id(value) in self.met:
            return {"again": self.met[id(value)][1]}
        self.met[id(value)] = value, len(self.met)  # held: another one shall not have its id meanwhile
        return None

    def _tell(self, value: Any, depth: int) -> Any:
        if type(value) in (list, tuple):
            return [type(value).__name__, *(self.tell(one, depth) for one in value)]
        if type(value) is dict:
            return {"dict": [[self.tell(key, depth), self.tell(one, depth)] for key, one in value.items()]}
        if type(value) in (set, frozenset):
            return ["set", *sorted(json.dumps(self.tell(one, depth)) for one in value)]
        if isinstance(value, CodeType):
            return self._code(value, depth)
        if isinstance(value, partial):
            return ["partial", *(self.tell(one, depth) for one in (value.func, value.args, value.keywords))]
        if isinstance(value, MethodType):
            return ["method", self.tell(value.__func__, depth), self.tell(value.__self__, depth)]
        if isinstance(value, FunctionType):
            return self._function(value, depth)
        if isinstance(value, BuiltinFunctionType):
            owner = value.__self__
            return ["builtin", value.__qualname__, None if owner is None else self.tell(owner, depth)]
        if isinstance(value, ModuleType):
            return ["module", value.__name__]
        if isinstance(value, type):
            return self._class(value, depth)
        return self._object(value, depth)

    def _function(self, function: FunctionType, depth: int) -> Any:
        inner = [self._cell(cell, depth) for cell in function.__closure__ or ()]
        given = self.tell([function.__defaults__, function.__kwdefaults__], depth)
        if _installed(function.__globals__.get("__name__")):  # not __module__, which a decorator writes
            return ["function", _name(function), inner, given]
        read = {name: self._read(function, name, depth) for name in sorted(_globals(function.__code__))}
        return ["function", self._code(function.__code__, depth), inner, given, read]

    def _cell(self, cell: Any, depth: int) -> Any:
        try:
            return self.tell(cell.cell_contents, depth)
        except ValueError as failure:
            if isinstance(failure, UntoldError):
                raise
            return "empty"

    def _read(self, function: FunctionType, name: str, depth: int) -> Any:
        value = function.__globals__.get(name, "not there, or a builtin")
        return self._attributes(value, _names(function.__code__), depth)

    def _attributes(self, value: Any, names: frozenset[str], depth: int) -> Any:
        """A global; of a module of the user's own all that the function may read of it."""
        if not isinstance(value, ModuleType) or _installed(value.__name__):
            return self.tell(value, depth)
        if depth > _DEEPEST:
            raise RecursionError
        there = sorted(names & vars(value).keys())
        return [value.__name__, {one: self._attributes(getattr(value, one), names, depth + 1) for one in there}]

    def _code(self, code: CodeType, depth: int) -> Any:
        return [code.co_code.hex(), code.co_names, code.co_varnames, self.tell(code.co_consts, depth)]

    def _class(self, kind: type, depth: int) -> Any:
        if _installed(kind.__module__):
            return ["class", _name(kind)]
        if type(kind) is not type and not _installed(type(kind).__module__):
            _refuse("a class with a class of its own")
        own = {name: _bare(one) for name, one in vars(kind).items() if _is_code(name, one)}
        bases = [self.tell(base, depth) for base in kind.__bases__]
        return ["class", kind.__qualname__, bases, {name: self.tell(one, depth) for name, one in own.items()}]

    def _object(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if isinstance(value, Enum):
            return [self.tell(kind, depth), value.name]
        if is_dataclass(value):
            given = {one.name: getattr(value, one.name) for one in fields(value)}
        elif isinstance(value, tuple) and hasattr(value, "_asdict"):
            given = value._asdict()  # type: ignore[attr-defined] - of a NamedTuple
        else:
            own = [base for base in kind.__mro__ if _installed(base.__module__) and _name(base) not in _BARE]
            if own or not hasattr(value, "__dict__") or _installed(kind.__module__):
                _refuse(f"an object of class {kind.__qualname__}")
            given = dict(vars(value))
        return ["object", self.tell(kind, depth), self.tell(given, depth)]


def _refuse(what: str) -> NoReturn:
    msg = f"it holds or reads {what}, which has no identity in data"
    raise UntoldError(msg)


def _bare(one: Any) -> Any:
    """What stands in a class, without what wraps it."""
    if isinstance(one, property):
        return [one.fget, one.fset]
    if isinstance(one, cached_property):
        return one.func
    return one.__func__ if isinstance(one, staticmethod | classmethod) else one


def _is_code(name: str, one: Any) -> bool:
    """Whether it is the class's own: not what Python or ``dataclass`` notes there, nor a field's descriptor."""
    if name.startswith("__") and name.endswith("__"):
        return name not in _NOT_CODE and isinstance(one, FunctionType) and one.__code__.co_filename != "<string>"
    return name != "_abc_impl" and type(one).__name__ not in _DESCRIPTORS


def _nested(code: CodeType) -> list[CodeType]:
    return [code, *(inner for one in code.co_consts if isinstance(one, CodeType) for inner in _nested(one))]


def _globals(code: CodeType) -> set[str]:
    """The globals that a function reads, its inner functions too."""
    found = (one for inner in _nested(code) for one in dis.get_instructions(inner))
    return {one.argval for one in found if one.opname in ("LOAD_GLOBAL", "LOAD_NAME")}


def _names(code: CodeType) -> frozenset[str]:
    return frozenset(name for inner in _nested(code) for name in inner.co_names)


def _array(value: Any) -> Any:
    """A tensor or an array: its type, its shape and every number of it."""
    size, raw = value.numel() if isinstance(value, Tensor) else value.size, None
    if size <= _LARGEST and value.dtype != object:
        with suppress(RuntimeError, NotImplementedError, TypeError):  # sparse, quantised, or without numbers
            raw = _bytes(value)
    if raw is None:
        _refuse(f"an array of {size:,} {value.dtype} numbers")
    return [type(value).__name__, str(value.dtype), list(value.shape), hashlib.blake2b(raw, digest_size=16).hexdigest()]


def _bytes(value: Any) -> bytes:
    if not isinstance(value, Tensor):
        return value.tobytes()
    return (
        value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    )
