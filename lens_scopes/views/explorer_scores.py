"""What the explorer knows of Scores: every row of numbers, by scope, level, target, site and head, with its scale."""

from collections.abc import Mapping, Sequence
from typing import Any

from lens_scopes.results.labelled import whole
from lens_scopes.results.provenance import Target, lengths, part_text, target_text, tokens_of, unit_text
from lens_scopes.results.scores import Scores
from lens_scopes.results.spans import KNOWN
from lens_scopes.views import markup
from lens_scopes.views.grids import First, Grid, on_one_scale, percent, plus_minus, stacked
from lens_scopes.views.long import total
from lens_scopes.views.naming import differing, prompts_of, question_of, title_of
from lens_scopes.views.packing import packed
from lens_scopes.views.scores import label_text, scores_tables, scores_views
from lens_scopes.views.side_by_side import kind_of

#: Numbers in one explorer of Scores: some two megabytes. Levels that do not fit are left out.
MOST_NUMBERS = 400_000


def scores_data(results: Sequence[Scores], name: str, first: First = "show") -> dict[str, Any] | None:
    """What the explorer of some Scores needs, JSON-like; None where nothing has positions, or there is too much."""
    if not all(map(scores_views, results)) or not fits(results):
        return None
    levels, left = _levels(results)
    scaled = _scaled(levels, first)
    names = differing([one.meta for one in results], prompts_of(results)) if len(results) > 1 else [""]
    texts: list[dict[str, Any]] = []
    made = []
    for one, called, own, grids in zip(results, names, levels, scaled, strict=True):
        text = _text(one)
        if text not in texts:
            texts.append(text)
        parts = {by: _level(joined, *grids[by], first) for by, joined in own.items()}
        made.append(_result(one) | {"name": markup.plain(called), "text": texts.index(text), "levels": parts})
    note = f"too many numbers for a page, and left out: {', '.join(left)}" if left else ""
    return {"kind": "scores", "id": name, "results": made, "texts": texts, "note": note}


def fits(results: Sequence[Scores]) -> bool:
    """Whether there is room for all of their numbers in one explorer."""
    return sum(map(_numbers, results)) <= MOST_NUMBERS


def _numbers(scores: Scores) -> int:
    return scores.values.numel() * (1 if scores.stderr is None else 2)


def _levels(results: Sequence[Scores]) -> tuple[list[dict[str, Scores]], list[str]]:
    """By result its numbers at each level that differs from those before, and the levels that there is no room for."""
    levels = [{str(one.meta.get("aggregated", "token")): one} for one in results]
    used, left = sum(map(_numbers, results)), []
    for by in KNOWN:
        for one, own in zip(results, levels, strict=True):
            if not _joins(one, by):
                continue
            joined = one.aggregate(by)
            spans = joined.meta["joined"]
            if len(spans) == len(one.tokens) or any(spans == other.meta.get("joined") for other in own.values()):
                continue
            used += _numbers(joined)
            if used > MOST_NUMBERS:
                left.append(by)
            else:
                own[by] = joined
    return levels, list(dict.fromkeys(left))


def _joins(scores: Scores, by: str) -> bool:
    """Whether ``aggregate`` knows how to, and the sum means something."""
    known = {"role": "roles", "span": "spans"}
    return (
        "aggregated" not in scores.meta
        and _adds_up(scores.meta)
        and bool(by not in known or scores.meta.get(known[by]))
    )


def _adds_up(meta: Mapping[str, Any]) -> bool:
    """Differences of norms do not add up over tokens, and neither does what patches did one by one."""
    if "difference" in meta:
        return all(side.get("units", "norm") != "norm" and _adds_up(side) for side in meta["difference"])
    return meta.get("patching") != "measured"


def _scaled(levels: Sequence[Mapping[str, Scores]], first: First) -> list[dict[str, tuple[Grid, Grid]]]:
    """By result and level all rows as one table, before and after there is a scale: one for each unit and scope."""
    tables = [{by: stacked(scores_tables(one, "rows")) for by, one in own.items()} for own in levels]
    places: dict[tuple[str, ...], list[tuple[int, str]]] = {}
    for n, own in enumerate(levels):
        for by, one in own.items():
            places.setdefault((by, kind_of(one.meta), unit_text(one.meta)), []).append((n, by))
    found: list[dict[str, tuple[Grid, Grid]]] = [{} for _ in levels]
    for same in places.values():
        grids = [tables[n][by] for n, by in same]
        for (n, by), grid in zip(same, on_one_scale(grids, first, by_row=True, together=True), strict=True):
            found[n][by] = (tables[n][by], grid)
    return found


def _text(scores: Scores) -> dict[str, Any]:
    """The prompt, token by token, and where its completion begins."""
    tokens = scores.meta.get("joined_tokens", scores.tokens)
    spans = scores.meta.get("spans", {})
    return {
        "shown": [markup.visible(token) for token in tokens],
        "texts": [whole(token) for token in tokens],
        "completion": spans["completion"][0] if "completion" in spans else None,
    }


def _result(scores: Scores) -> dict[str, Any]:
    """What was asked of which model, and of which targets: what all levels have in common."""
    # The level is said by itself.
    meta = {key: value for key, value in scores.meta.items() if key != "aggregated"}
    axes = [dim for dim in scores.dims if dim != "pos"]
    return {
        "title": markup.plain(title_of(meta)),
        "question": markup.plain(question_of(meta)),
        "model": markup.plain(str(meta.get("model", "a model"))),
        "part": markup.plain(part_text(meta)) or None,
        "units": unit_text(meta),
        "signed": scores.units == "signed",
        "axes": [
            {
                "name": dim,
                "labels": [whole(one) if isinstance(one, str) else one for one in scores.coords[dim]],
                "shown": [markup.plain(label_text(dim, one)) for one in scores.coords[dim]],
            }
            for dim in axes
        ],
        "targets": [_target(scores, at) for at in scores.coords.get("target_pos", (None,))],
    }


def _target(scores: Scores, position: int | None) -> dict[str, Any]:
    """What is explained by one row, or by all: in words, and as columns of a table."""
    meta = scores.meta
    positions = list(meta.get("positions", ()))
    targets: Sequence[Target | None] = meta.get("targets") or [None] * len(positions)
    if position is None:
        position = meta.get("selected", {}).get("target_pos", positions[0] if len(positions) == 1 else None)
    if position not in positions:
        last = max(positions, default=None)
        return {
            "at": None,
            "position": None,
            "last": last,
            "said": _as_one(meta),
            "text": None,
            "p": None,
            "rank": None,
        }
    n = positions.index(position)
    target, top = targets[n], list(meta.get("predictions") or [[]] * len(positions))[n]
    said = " against ".join(map(markup.explained, tokens_of(target)))
    if target is None:
        said = f"the prediction, first {markup.explained(top[0])}" if top else "the prediction"
    ids = list(meta.get("token_ids", ()))
    follows = position + 1 < len(ids) and (target is None or target["id"] == ids[position + 1])
    return {
        "at": position + 1 if follows else None,
        "position": position,
        "last": position,
        "said": markup.plain(f"after position {position}: {said}"),
        "text": whole(target_text(target)),
        "p": None if target is None else target.get("p"),
        "rank": None if target is None else target.get("rank"),
    }


def _as_one(meta: Mapping[str, Any]) -> str:
    """Several positions together, in words."""
    positions = meta.get("positions", ())
    if not positions:
        return ""
    told = "summed over" if meta.get("reduce") or "target_pos" in meta.get("summed", ()) else "as one"
    about = [one for target in meta.get("targets") or () for one in tokens_of(target)[:1]]
    text = "".join(one["text"] for one in about)
    value = f"; together {markup.number(meta['value'])}" if "value" in meta else ""
    return markup.plain(
        f"{len(positions)} predictions {told}, after positions {positions[0]} to {positions[-1]}"
        + (f": “{markup.visible(text, 60)}”" if text else "")
        + value
    )


def _level(scores: Scores, table: Grid, scaled: Grid, first: First) -> dict[str, Any]:
    """The numbers of one level, a row for each combination of the axes' labels, and the ends of their scales."""
    values = scores.values.movedim(scores.dims.index("pos"), -1).reshape(-1, len(scores.tokens))
    made: dict[str, Any] = {
        "names": [markup.visible(name, 60) for name in table.columns],
        "texts": [whole(token) for token in scores.tokens],
        "positions": list(scores.coords["pos"]),
        "members": scores.meta.get("joined"),
        "lengths": [int(n) if n.isdigit() else n for n in lengths(scores.meta)],
        "values": packed(values),
        "ends": list(scaled.ends or (scaled.largest,) * len(values)),
        "note": markup.plain(table.note),
        "left": [],
    }
    if first != "show" and table.has_first:
        said = "position 0 is left out"
        shares = [percent(abs(line[0]), total(line)) for line in table.values]
        made["left"] = [f"{said}: it has {one} of the row's sum of magnitudes" for one in shares]
        made["left"] = made["left"] if first == "share" else [said] * len(shares)
    if scores.stderr is not None:
        errors = scores.stderr.movedim(scores.dims.index("pos"), -1).reshape(values.shape)
        made["stderr"] = packed(errors)
        made["known"] = [plus_minus(v.abs().sum(), e.sum()) for v, e in zip(values, errors, strict=True)]
    return made
