"""Whether two results are about the same thing: the facts in which they have to agree, and how they differ in words."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lens_scopes.results.provenance import tokens_of

Facts = Mapping[str, Any]
#: By name, what a result says about it; None where it says nothing.
Told = Sequence[tuple[str, Callable[[Facts], Any]]]

_LISTED = 3
# Of a scope, what its token is (which has a fact of its own), and how a form is worked out that a patch measures whole.
_TOKENS, _BUDGET = ("target", "versus"), ("passes", "rank", "seed")
# Numbers of one metric, from runs of one model, agree to this share of it, in half precision to the
# next; where it is hardly a number, of the last.
_CLOSE, _HALF, _LEAST = 1e-3, 5e-2, 0.1


def unlike(a: Facts, b: Facts, told: Told) -> str:
    """The facts in which two sides differ, each with what both say; empty where they agree. Who says nothing agrees."""
    every = ((what, of(a), of(b)) for what, of in told)
    return "; ".join(f"{what}: {both(x, y)}" for what, x, y in every if x is not None and y is not None and x != y)


def both(left: Any, right: Any) -> str:
    """Both sides; of two lists of one length the entries that differ."""
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        if len(left) != len(right):
            return f"{len(left)} ({_few(left)}) and {len(right)} ({_few(right)})"
        differ = [(n, x, y) for n, (x, y) in enumerate(zip(left, right, strict=True)) if x != y]
        shown = ", ".join(f"{x!r} and {y!r} at {n}" for n, x, y in differ[:_LISTED])
        return shown + (f", and {len(differ) - _LISTED} more" if len(differ) > _LISTED else "")
    return f"{left!r} and {right!r}"


def _few(labels: Sequence[Any]) -> str:
    return ", ".join(map(repr, labels[:_LISTED])) + (", ..." if len(labels) > _LISTED else "")


def refuse_other_places(names: str, a: Any, b: Any) -> None:
    """Refuse numbers of other places than those that they are held against.

    Raises:
        ValueError: naming the axes or labels that differ.

    """
    axes = [dim for dim in a.dims if a.dims == b.dims and a.coords[dim] != b.coords[dim]]
    told = [f"{dim}: {both(a.coords[dim], b.coords[dim])}" for dim in axes]
    told += [f"axes: {both(a.dims, b.dims)}"] if a.dims != b.dims else []
    if told:
        msg = (
            f"compare needs results about the same places, and {names} differ in {'; '.join(told)}; write the same "
            "sites, sums and selections in both"
        )
        raise ValueError(msg)


def refuse_other_patches(predicted: Facts, measured: Facts) -> None:
    """Refuse to hold effects of patches against a prediction of other ones.

    Raises:
        ValueError: naming what differs, and what both sides say.

    """
    for name, meta, other in (("predicted", predicted, "measured"), ("measured", measured, "predicted")):
        if meta.get("patching") == other:
            msg = f"{name} got {other} effects; write compare(predicted, measured), in this order"
            raise ValueError(msg)
    found = unlike(predicted, measured, _PATCHES)
    if not found and (apart := _apart(predicted, measured)):
        found = f"what the metric is on the {apart} (the weights differ, or the hooks do)"
    if found:
        msg = (
            "compare holds a prediction against what it predicts, and predicted and measured differ in "
            f"{found}; write the same prompts, scope, position, sites and model in both"
        )
        raise ValueError(msg)


def _apart(predicted: Facts, measured: Facts) -> str:
    """The prompt on which the metric is not the same number on both sides."""
    a, b = (meta.get("metric") or {} for meta in (predicted, measured))
    whole = all(meta.get("dtype", "float32") in ("float32", "float64") for meta in (predicted, measured))
    scale = max(_LEAST, *map(abs, (0.0, *a.values(), *b.values())))
    for name in sorted(a.keys() & b.keys()):
        if not abs(a[name] - b[name]) <= (_CLOSE if whole else _HALF) * scale:
            return f"{name} prompt: {a[name]:.4g} and {b[name]:.4g}"
    return ""


def _scope(meta: Facts) -> Any:
    """What is explained, whatever its token; of files of 0.1.0, and of what was written by hand, nothing is known."""
    scope = meta.get("scope")
    if not isinstance(scope, Mapping) or "kind" not in scope:
        return None
    left = (*_TOKENS, *(_BUDGET if meta.get("units") == "squared" else ()))
    kept = {key: value for key, value in scope.get("fields", {}).items() if key not in left}
    return f"{scope['kind']}({', '.join(f'{key}={value!r}' for key, value in kept.items())})"


def target_ids(meta: Facts) -> list[tuple[int, ...]] | None:
    """By position, the tokens explained and held against."""
    found = [tuple(int(one["id"]) for one in tokens_of(target)) for target in meta.get("targets") or ()]
    return found if any(found) else None


def _from_where(meta: Facts) -> Any:
    """What is put in the places' stead."""
    return meta["replace"] if "replace" in meta else meta.get("clean_token_ids")


def _processing(meta: Facts) -> str | None:
    if "folded" not in meta:
        return None
    return f"final norm {'folded' if meta['folded'] else 'not folded'}, logits " + (
        "centred" if meta.get("centred") else "not centred"
    )


def _sums(meta: Facts) -> list[str]:
    """Axes that were summed; positions aside: a prediction's sum over them is held against whole heads."""
    return sorted(dim for dim in meta.get("summed", ()) if dim != "pos")


def _along(meta: Facts) -> str | None:
    return meta.get("along") if meta.get("units") == "signed" else None


_PATCHES: Told = (
    ("units", lambda meta: meta.get("units", "norm")),
    ("model", lambda meta: meta.get("model")),
    ("processing", _processing),
    ("scope", _scope),
    ("tokens explained", target_ids),
    ("positions", lambda meta: meta.get("positions")),
    ("ids of the prompt that is patched", lambda meta: meta.get("token_ids")),
    ("what is put in", _from_where),
    ("direction", _along),
    ("hooks", lambda meta: meta.get("hooks")),
    ("selections", lambda meta: meta.get("selected", {})),
    ("sums", _sums),
    ("joined tokens", lambda meta: meta.get("joined", [])),
    ("places patched together", lambda meta: meta.get("places", [])),
)
