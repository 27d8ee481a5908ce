"""Profiles of a run: what ``ls.profile`` says of all its Scores, by SQL over the parts."""

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch

from lens_scopes.corpus import queries
from lens_scopes.corpus.plan import Plan
from lens_scopes.corpus.rows import Row
from lens_scopes.results.arguments import Integer, integer
from lens_scopes.results.profiles import Profile
from lens_scopes.results.prompt_means import fewest, place_label, refuse_mixed_facts, site_labels
from lens_scopes.results.provenance import Meta, unit_text
from lens_scopes.sites import has_heads, named

if TYPE_CHECKING:
    import duckdb

# Labels of a profile by token where nobody says how many.
_TOP = 50


def profile(
    tables: "duckdb.DuckDBPyConnection", plan: Plan, by: str, site: str | None, top: Integer | None, bins: Integer
) -> Profile:
    """See ``Corpus.profile``.

    Raises:
        ValueError: another word for ``by``, fewer than two prompts, several units, scopes or positions, or a site that
            has to be named.

    """
    bins = integer(bins, "bins", 1)
    kind = "flow" if by == "head" and plan.question["flow"] else by
    sites = [_site(plan, kind, site)] if kind in queries.OF_ONE_SITE else plan.question["sites"]
    if kind == "relative_position":
        bins = fewest(bins, *tables.execute("select coalesce(max(target_pos), 0) from tokens").fetchall())
    units = _units(tables, kind)
    metas = tables.sql("select distinct meta from prompts where error is null").fetchall()
    refuse_mixed_facts([json.loads(meta) for (meta,) in metas])
    query = queries.each(kind, units, sites[0], bins)
    if by == "token":
        query = queries.commonest(query, _TOP if top is None else integer(top, "top", 1))
    found = {name: column.tolist() for name, column in tables.execute(query).fetchnumpy().items()}
    shown = _labels(kind, sites, bins, found["label"])
    prompts = {row: n for n, row in enumerate(sorted(set(found["row"])))}
    columns = {label: n for n, label in enumerate(shown)}
    each = torch.full((len(prompts), len(columns)), torch.nan, dtype=torch.float64, device="cpu")
    places = [prompts[row] for row in found["row"]], [columns[label] for label in found["label"]]
    each[places] = torch.tensor(found["value"], dtype=torch.float64, device="cpu")
    unit = f"{'influence' if kind == 'flow' else 'score'} ({unit_text({'units': units})})"
    return Profile(each, tuple(shown.values()), by, unit, meta=_meta(plan))


def _site(plan: Plan, by: str, site: str | None) -> str:
    """The one site that a profile is about.

    Raises:
        ValueError: the run has several and none was named, or not that one.

    """
    sites = plan.question["sites"]
    if site is None and len(sites) > 1:
        msg = f"by={by!r} is about one site, and the run has {len(sites)}; write profile({by!r}, site={sites[0]!r})"
        raise ValueError(msg)
    found = sites[0] if site is None else named(site, sites)
    if found not in sites or has_heads(found):
        msg = f"by={by!r} is about one site of the stream, got {found!r}; the run has {', '.join(sites)}"
        raise ValueError(msg)
    return found


def _units(tables: "duckdb.DuckDBPyConnection", kind: str) -> Any:
    """The units of all prompts.

    Raises:
        ValueError: fewer than two prompts, several units, or several positions explained.

    """
    rows = tables.sql(
        "select units, count(*), max(shape[1]), min(shape[4]) from prompts where error is null group by 1"
    )
    found = rows.fetchall()
    if sum(count for _, count, *_ in found) < 2:
        msg = "a mean over prompts needs at least two that have scores; .errors() says why others have none"
        raise ValueError(msg)
    (units, _, targets, heads), *others = found
    if others:
        msg = f"scores in {units} and in {others[0][0]} units do not fit one profile; .sql(...) can tell them apart"
        raise ValueError(msg)
    if targets > 1:
        msg = "a profile is about one position explained, and this run has several for a prompt; see .tokens()"
        raise ValueError(msg)
    if kind == "head" and not heads:
        msg = "by='head' needs a run with flow=True, or with sites='z'; this one has neither"
        raise ValueError(msg)
    return units


def _labels(kind: str, sites: Any, bins: int, found: list[Any]) -> dict[Any, str]:
    """By what the query calls them, how they are shown; in order."""
    if kind == "site":
        return dict(zip(sites, site_labels(sites, "site"), strict=True))
    if kind == "relative_position":
        return {n: place_label(n, bins) for n in range(bins)}
    if kind == "token":
        return {label: label for label, _ in Counter(sorted(found)).most_common()}
    if kind == "flow":
        return {label: label for label in sorted(set(found), key=lambda label: [int(n) for n in label.split(".")])}
    layers = dict(zip(sites, site_labels(sites, "head"), strict=True))
    every = sorted({(sites.index(label.rpartition("|")[0]), int(label.rpartition("|")[2])) for label in found})
    return {f"{sites[at]}|{head}": f"{layers[sites[at]]}.{head}" for at, head in every}


def _meta(plan: Plan) -> Meta:
    """The facts in which all results agree."""
    question = plan.question
    scope = question["scope"]
    own = {"target", "versus"} & scope.get("fields", {}).keys()
    if any(own & Row.of_json(text).keys() for text in plan.table["asked"].to_pylist()):
        scope = {"kind": scope["kind"], "fields": {}, "text": f"{scope['kind']} of each prompt's own target"}
    kept = {key: question[key] for key in ("model", "host", "dtype", "along", "versions", "hooks") if key in question}
    return {"scope": scope, **kept}  # pyright: ignore[reportReturnType]
