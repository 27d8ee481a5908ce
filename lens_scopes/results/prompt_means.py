"""Means over prompts: what each prompt has for each label, and what may stand in one mean."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, get_args

import torch

from lens_scopes.results.arguments import integer, shown
from lens_scopes.results.flow import Flow
from lens_scopes.results.profiles import By, Profile
from lens_scopes.results.provenance import Meta, unit_text
from lens_scopes.results.scores import Scores
from lens_scopes.sites import layer_of, short

_BINS, _MOST_BINS = 10, 1000
_NAMED = ("role", "span")
#: The axes that a profile is about; all others but those that it joins have to be picked or summed before.
_KEPT: Mapping[str, tuple[str, ...]] = {"site": ("site",), "head": ("site", "head")}
_JOINED: Mapping[str, tuple[str, ...]] = {"site": ("pos", "head"), "head": ("pos",)}
# Facts in which the results of one profile agree.
_ALIKE = (
    "model", "folded", "centred", "freeze", "hooks", "along", "patching", "steps", "aggregated", "reduce", "replace",
    "protocol", "end",
)  # fmt: skip

# What may differ from prompt to prompt: which token is explained, and the random draw.
_OWN = ("target", "versus", "seed")


def profile(results: Sequence[Scores | Flow], by: By, *, bins: int = _BINS) -> Profile:
    """Means over prompts with standard errors: each prompt gives one number to a label, whatever its length.

    Args:
        results: Scores of many prompts (what ``score_batch`` returns); for "head" also Flows.
        by: "site": all positions (and heads) joined, as ``aggregate`` joins; "head": all positions joined, or what goes
            through each head of a Flow; "relative_position": the mean over tokens by their place between the beginning
            of the prompt (0) and the position explained (1); "token": the mean over the places of each text; "span":
            the spans of ``aggregate``, or those that the prompts came with.
        bins: how many places "relative_position" tells apart; no more than the longest prompt has tokens, so that none
            is empty.

    Returns:
        A Profile: ``mean``, ``stderr`` (over prompts), ``plot()``, ``to_dataframe()``.

    Raises:
        ValueError: fewer than two results; results of different units, scopes, models or treatments (the text says
            which); axes left that have to be picked (``sel``) or summed; spans without names; another word for ``by``.
        TypeError: something else than Scores or Flows.

    Example:
        >>> import lens_scopes as ls
        >>> model = ls.demo.load()  # doctest: +SKIP
        >>> prompts = [case.prompt for case in ls.demo.cases("ioi", n=50)]
        >>> ls.profile(ls.score_batch(model, prompts, ls.Semantic()), "site").plot()  # doctest: +SKIP

    """
    if isinstance(results, str | Scores | Flow | Mapping) or not isinstance(results, Iterable):
        msg = f"profile takes a list of results, got {shown(results)}; write what score_batch returned"
        raise TypeError(msg)
    results, bins = list(results), integer(bins, "bins (places that are told apart)", 1, _MOST_BINS)
    if by not in get_args(By):
        msg = f"profile is by one of {', '.join(map(repr, get_args(By)))}, got {by!r}"
        raise ValueError(msg)
    strangers = [type(one).__name__ for one in results if not isinstance(one, Scores | Flow)]
    if strangers:
        msg = f"profile takes a list of Scores (or Flows, by='head'), got a {strangers[0]} in it"
        raise TypeError(msg)
    if len(results) < 2:
        msg = f"a mean over prompts needs at least two, got {len(results)}"
        raise ValueError(msg)
    if any(isinstance(one, Flow) for one in results) and by != "head":
        msg = f"a Flow has heads: profile(flows, 'head'); for {by!r} give Scores"
        raise ValueError(msg)
    if by == "span":
        results = [_with_spans(one) for one in results if isinstance(one, Scores)]
    _refuse_mixed(results)
    if by == "relative_position":
        bins = fewest(bins, (_end(one) for one in results if isinstance(one, Scores)))
    found = [_numbers(one, by, bins) for one in results]
    labels = _labels(by, bins, found)
    each = torch.tensor(
        [[numbers.get(label, math.nan) for label in labels] for numbers in found], dtype=torch.float64, device="cpu"
    )
    return Profile(
        each, labels, by, _unit(results[0]), _lengths(results, labels) if by == "span" else None, _meta(results)
    )


def _with_spans(scores: Scores) -> Scores:
    if scores.meta.get("aggregated") in _NAMED:
        return scores
    if "aggregated" in scores.meta or not scores.meta.get("spans"):
        msg = "by='span' needs spans with names: [s.aggregate({'question': ..., ...}) for s in results], or 'role'"
        raise ValueError(msg)
    return scores.aggregate("span")


def _refuse_mixed(results: Sequence[Scores | Flow]) -> None:
    """Refuse to average numbers that say different things.

    Raises:
        ValueError: naming what differs, and how.

    """
    told: list[tuple[str, Callable[[Any], Any]]] = [
        ("kinds of results", lambda one: type(one).__name__),
        ("units", _unit),
        ("sites", lambda one: one.coords.get("site") if isinstance(one, Scores) else None),
        (
            "sources",
            lambda one: "some tokens" if isinstance(one, Flow) and len(one.sources) < len(one.tokens) else "all",
        ),
        ("selections", lambda one: _taken(one.meta.get("selected", {}))),
        ("sums", lambda one: one.meta.get("summed")),
        ("methods", lambda one: one.meta.get("method") if "patching" in one.meta else None),
        ("kinds of flows", lambda one: "against another prompt" if "corrupted_token_ids" in one.meta else "of one"),
    ]
    _refuse_unequal(results, told)
    refuse_mixed_facts([one.meta for one in results])


def refuse_mixed_facts(metas: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to average numbers that were obtained in different ways, or of different scopes.

    Raises:
        ValueError: naming what differs, and how.

    """
    _refuse_unequal(metas, [("scopes", _scope), *((name, lambda one, name=name: one.get(name)) for name in _ALIKE)])


def _refuse_unequal(some: Sequence[Any], told: Sequence[tuple[str, Callable[[Any], Any]]]) -> None:
    for what, of in told:
        first = of(some[0])
        other = next((value for value in map(of, some) if value != first), first)
        if other != first:
            write = ""
            if what == "scopes" and "'is': {" in f"{first}{other}":
                write = "; functions that mean the same get one name: ls.Metric(fn, name=...)"
            msg = f"a mean is over results of one kind, and these have different {what}: {first} and {other}{write}"
            raise ValueError(msg)


def _taken(selected: Mapping[str, Any]) -> Mapping[str, Any]:
    """What was picked; of each prompt a position of its own may be."""
    return {dim: "one" if dim == "pos" else label for dim, label in selected.items() if dim != "target_pos"}


def _unit(result: Scores | Flow) -> str:
    return (
        f"score ({unit_text(result.meta)})" if isinstance(result, Scores) else f"influence ({unit_text(result.meta)})"
    )


def _scope(meta: Mapping[str, Any]) -> Any:
    """A scope without what may differ from prompt to prompt; but whether there is a contrast does not.

    A function is what it does, unless its scope was given a name: that says that functions mean the same.
    """
    if "difference" in meta:
        return [_scope(side) for side in meta["difference"]]
    scope = meta.get("scope", {"kind": "?", "fields": {}})
    kept = {key: value for key, value in scope["fields"].items() if key not in _OWN}
    if kept.get("name") is not None and scope["kind"] != "function":
        kept = {key: value for key, value in kept.items() if not (isinstance(value, Mapping) and "function" in value)}
    return scope["kind"], kept, "against another token" if scope["fields"].get("versus") is not None else "one token"


def _numbers(result: Scores | Flow, by: str, bins: int) -> dict[str, float]:
    """What one prompt has for each label."""
    if isinstance(result, Flow):
        result.refuse_row_shares("heads")
        rows = result.heads.double().sum(0).tolist()
        return {f"{layer}.{head}": value for layer, row in enumerate(rows) for head, value in enumerate(row)}
    scores = _narrow(result, by)
    values, end = scores.values.double(), _end(scores)
    if by in _KEPT:
        axes = [n for n, dim in enumerate(scores.dims) if dim in _JOINED[by]]
        if axes:
            values = values.square().sum(axes).sqrt() if scores.units == "norm" else values.sum(axes)
        sites = scores.coords["site"]
        labels = site_labels(sites, by)
        if by == "site":
            return dict(zip(labels, values.tolist(), strict=True))
        return {
            f"{layer}.{head}": value
            for layer, row in zip(labels, values.tolist(), strict=True)
            for head, value in zip(scores.coords["head"], row, strict=True)
        }
    places = list(zip(scores.coords["pos"], scores.tokens, values.tolist(), strict=True))
    if by == "span":
        return {name: value for _, name, value in places}
    gathered: dict[str, list[float]] = {}
    for at, text, value in places:
        if at <= end:
            label = text if by == "token" else place_label(min(bins - 1, at * bins // max(1, end)), bins)
            gathered.setdefault(label, []).append(value)
    return {label: sum(some) / len(some) for label, some in gathered.items()}


def _narrow(scores: Scores, by: str) -> Scores:
    """Without the axes that have one label.

    Raises:
        ValueError: axes that the profile is about are not there, or others are left.

    """
    if by == "relative_position" and "aggregated" in scores.meta:
        msg = "by='relative_position' is about single tokens, and these were joined"
        raise ValueError(msg)
    kept = _KEPT.get(by, ("pos",))
    for dim in scores.dims:
        if dim not in (*kept, *_JOINED.get(by, ())) and len(scores.coords[dim]) == 1:
            scores = scores.sel(**{dim: scores.coords[dim][0]})
    left = [dim for dim in scores.dims if dim not in (*kept, *_JOINED.get(by, ()))]
    if left:
        label = scores.coords[left[0]][0]
        msg = f"by={by!r} needs one number per {kept[-1]}, and the axis {left[0]!r} is left: sel({left[0]}={label!r})"
        raise ValueError(msg)
    missing = [dim for dim in kept if dim not in scores.dims]
    if missing:
        advice = "; score with sites='z'" if "head" in missing else ""
        msg = f"by={by!r} needs the axis {missing[0]!r}, and these scores have {scores.dims}{advice}"
        raise ValueError(msg)
    return scores


def _end(scores: Scores) -> int:
    """The position explained: what stands after it has no score."""
    known = scores.meta.get("positions") or [max(scores.coords.get("pos", (0,)))]
    return scores.meta.get("selected", {}).get("target_pos", max(known))


def site_labels(sites: Sequence[str], by: str) -> Sequence[str]:
    """What a profile by site calls them, and one by head their layers; the hook names where that is ambiguous."""
    short_ones = [short(site) if by == "site" else str(layer_of(site)) for site in sites]
    return short_ones if len(set(short_ones)) == len(short_ones) else sites


def fewest(bins: int, ends: Iterable[int]) -> int:
    """So many places that prompts explained at these positions leave none empty."""
    return min(bins, max(ends) + 1)


def place_label(n: int, bins: int) -> str:
    """What a profile by relative position calls a part of the prompt."""
    return f"{n / bins:.2g}–{(n + 1) / bins:.2g}"


def _labels(by: str, bins: int, found: Sequence[Mapping[str, float]]) -> tuple[str, ...]:
    if by == "relative_position":
        return tuple(place_label(n, bins) for n in range(bins))
    return tuple(dict.fromkeys(label for numbers in found for label in numbers))


def _lengths(results: Sequence[Any], labels: Sequence[str]) -> tuple[float, ...]:
    """The mean number of tokens of each span, over the prompts that have it."""
    sizes: dict[str, list[int]] = {label: [] for label in labels}
    for one in results:
        for name, span in zip(one.tokens, one.meta["joined"], strict=True):
            sizes[name].append(len(span))
    return tuple(sum(some) / len(some) for some in sizes.values())


def _meta(results: Sequence[Any]) -> Meta:
    """What all have in common; of scopes that differ by their token, the kind."""
    first, *others = (one.meta for one in results)
    common = {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}
    if "selected" in first and "selected" not in common:  # a position of each prompt's own
        common["selected"] = {dim: "of its own" if dim == "pos" else label for dim, label in first["selected"].items()}
    if "scope" in first and "scope" not in common:
        kind = first["scope"]["kind"]
        common["scope"] = {"kind": kind, "fields": {}, "text": f"{kind} of each prompt's own target"}
    return common  # pyright: ignore[reportReturnType]
