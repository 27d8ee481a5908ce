"""Files of earlier schemas, brought up to the present one when they are read.

Schema 1 (version 0.1.0) kept the scope as text, of a target its id and text alone, and joined positions as "spans".
"""

import ast
from collections.abc import Mapping
from typing import Any

# The scopes of 0.1.0 that its text says in full.
_KINDS = ("Fisher", "Semantic", "Temperature")


def from_schema_1(header: Mapping[str, Any]) -> dict[str, Any]:
    """The header of a file of version 0.1.0 in the words of today."""
    meta = header.get("meta", {})
    if header.get("kind") == "Comparison":
        return {**header, "meta": {side: _meta(one) for side, one in meta.items()}}
    return {**header, "meta": _meta(meta)}


def _meta(meta: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(meta)
    if isinstance(meta.get("scope"), str):
        found["scope"] = {**_scope(meta["scope"]), "text": meta["scope"]}
    if "aggregated" in meta:  # "spans" has become the name of those that a prompt comes with
        found["joined"] = found.pop("spans")
    if "targets" in meta:
        found["targets"] = [_target(one) for one in meta["targets"]]
    return found


def _scope(text: str) -> dict[str, Any]:
    """Kind and fields out of the text that 0.1.0 wrote, where they stand in it; else a name that nothing remakes."""
    try:
        call = ast.parse(text, mode="eval").body
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in _KINDS and not call.args:
            given = {str(one.arg): ast.literal_eval(one.value) for one in call.keywords}
            return {"kind": call.func.id, "fields": given}
    except (SyntaxError, ValueError):  # a name, or something that stands for a tensor
        pass
    return {"kind": "function", "fields": {"name": text}}


def _target(named: Mapping[str, Any]) -> dict[str, Any] | None:
    if "target" not in named:
        return None
    return {**named["target"], **({"versus": named["versus"]} if "versus" in named else {})}
