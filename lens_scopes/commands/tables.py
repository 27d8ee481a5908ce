"""Scores as text for a terminal: a table of tokens with bars, or of tokens by sites; of a long prompt the largest."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from lens_scopes.results.flow import Flow
from lens_scopes.results.profiles import Profile
from lens_scopes.results.provenance import UNITS, scope_text, tokens_of, unit_text
from lens_scopes.results.scores import Scores
from lens_scopes.sites import EMBED, short
from lens_scopes.views import grids, markup
from lens_scopes.views.cells import MOST_COLUMNS
from lens_scopes.views.grids import percent
from lens_scopes.views.long import around, largest, total
from lens_scopes.views.scores import columns_of

if TYPE_CHECKING:
    import pandas as pd

    from lens_scopes.demo import Case

_BAR = 24
_MOST_COLUMNS = 8
_MOST_TABLES = 8
# Rows of a profile.
_LABELS = 30
# Columns beside which a token's neighbours have room.
_FEW = 6


def of_scores(scores: Scores) -> Iterable[Any]:
    """The prediction, then each token with its score: with a bar where there is one score per token."""
    what = grids.measure(unit_text(scores.meta), scores.values, scores.stderr)
    yield f"{scope_text(scores.meta)} on {scores.meta['model']}, {what}"
    if "target_pos" not in scores.dims:
        yield from _predictions(scores)
        yield from _one_position(scores)
    else:
        wanted = scores.coords["target_pos"]
        for n, position in enumerate(wanted[:_MOST_TABLES]):
            yield _prediction(scores, n)
            yield from _one_position(scores.sel(target_pos=position))
        if len(wanted) > _MOST_TABLES:
            yield f"({len(wanted) - _MOST_TABLES} more positions: --html, --json or --save have them)"
    if note := columns_of(scores)[1]:
        yield f"({note})"


def _predictions(result: Scores | Flow) -> Iterable[str]:
    """What is explained: one prediction, or the tokens of several positions that are one answer or one sum."""
    positions = result.meta["positions"]
    if len(positions) == 1:
        yield _prediction(result, 0)
        return
    about = [one for target in result.meta["targets"] for one in tokens_of(target)[:1]]
    told = "Summed over" if "reduce" in result.meta else "Explained as one:"
    whole = f"; together {markup.number(result.meta['value'])}" if "value" in result.meta else ""
    if about:
        yield f"{told} {', '.join(map(markup.explained, about))}{whole}"
    else:
        yield f"{told} the predictions after positions {positions[0]} to {positions[-1]}{whole}"


def _one_position(scores: Scores) -> Iterable[Any]:
    # By default there are the embedding and every layer; a terminal shows the paper's scores: those at the embedding.
    if "head" not in scores.dims and scores.coords["site"][0] == EMBED:
        yield from _bars(scores.sel(site=EMBED))
        if len(scores.coords["site"]) > 1:
            yield f"At {EMBED}; {len(scores.coords['site']) - 1} more sites: --html, --json or --save have them."
        return
    columns = _columns(scores)
    if len(columns) == 1:
        yield columns[0][0]
        yield from _bars(columns[0][1])
        return
    values = [part.values.tolist() for _, part in columns[:_MOST_COLUMNS]]
    table = _table(*(name for name, _ in columns[:_MOST_COLUMNS]))
    shown, left = _chosen(values)
    for i in shown:
        numbers = (markup.number(line[i]) for line in values)
        table.add_row(*_place(scores, i), *numbers, *_beside(scores, i, table))
    yield table
    yield from left
    if len(columns) > _MOST_COLUMNS:
        yield f"({len(columns) - _MOST_COLUMNS} more columns: --html, --json or --save have them)"


def _columns(scores: Scores) -> list[tuple[str, Scores]]:
    """One column per site, or per site and head."""
    if "head" not in scores.dims:
        return [(short(site), scores.sel(site=site)) for site in scores.coords["site"]]
    return [
        (f"{short(site)} {head}", scores.sel(site=site, head=head))
        for site in scores.coords["site"]
        for head in scores.coords["head"]
    ]


def of_case(case: "Case", found: Mapping[str, Scores]) -> Iterable[Any]:
    """A demo prompt: its prediction, three scores per token with the known causes marked, and who points at one."""
    at_input = {name: scores.sel(site=EMBED) for name, scores in found.items()}
    first = next(iter(found.values()))
    yield f"\n{case.kind}: {case.prompt}"
    yield _prediction(first, 0)
    yield f"The right answer is {markup.visible(case.answer)}, its competitor {case.versus}."
    table = _table(*(f"{name} ({UNITS[s.units]})" for name, s in at_input.items()))
    table.add_column("known cause")
    for i, token in enumerate(case.tokens):
        cells = [f"{markup.number(float(s.values[i])):>8} {_bar(s, i, 12).plain:<13}" for s in at_input.values()]
        mark = "yes" if i in case.causes else ""
        table.add_row(str(i), Text(markup.visible(token), style="bold" if mark else ""), *cells, mark)
    yield table
    yield "Of the tokens between the first and the last one, at which the prediction is made,"
    for name, scores in at_input.items():
        top = 1 + int(scores.values[1:-1].argmax())
        verdict = "a known cause" if top in case.causes else "not a known cause"
        yield f"{name:>12} is largest at {top}, {markup.visible(case.tokens[top])!r}: {verdict}"


def of_flow(flow: Flow, top: int, orders: "pd.DataFrame", routes: "pd.DataFrame | None") -> Iterable[Any]:
    """What adds up to the total, by last head and by number of heads; then what carries most; then routes if any."""
    whole = float(flow.total.double().sum())
    what = grids.measure(UNITS[flow.units], flow.total, flow.stderr)
    whose = "all tokens together" if flow.meta.get("together") else f"{len(flow.sources)} source tokens"
    yield f"{scope_text(flow.meta)} on {flow.meta['model']}: {markup.number(whole)} ({what}), {whose}"
    yield from _predictions(flow)
    if flow.last is not None:
        yield from _last_heads(flow, top, whole)
    yield "By how many heads are on the way, which is all of it:"
    yield "  ".join(f"{row['heads']}: {_percent(row['influence'], whole)}" for row in orders.to_dict("records"))
    yield "What passes through each part, be it last or not (so these do not add up):"
    frame = flow.top(top)
    split = flow.composition is not None
    table = _table(
        "influence", "share", "past the block's heads", *(("by queries", "by keys", "by values") if split else ()),
        first="", names="part",
    )  # fmt: skip
    for row in frame.to_dict("records"):
        name = f"MLP {row['layer']}" if row["kind"] == "mlp" else f"{row['layer']}.{row['head']}"
        parts = [_percent(row[key], whole) if row["kind"] == "head" else "" for key in "qkv"] if split else []
        table.add_row(
            "",
            name,
            markup.number(row["influence"]),
            _percent(row["influence"], whole),
            _percent(row["skip"], 1.0),
            *parts,
        )
    yield table
    if routes is not None:
        listed = _percent(float(routes.influence[:-1].sum()), whole)
        yield f"Single routes, each with its exact share; these {len(routes) - 1} carry {listed} of the total:"
        for row in routes.to_dict("records"):
            yield f"{_percent(row['influence'], whole):>8}  {row['path']}"
    yield f"No conservation law is broken by more than {flow.residual:.1e} of the total."


def of_profile(profile: Profile) -> Iterable[Any]:
    """Means over prompts with their standard errors; of labels without an order the largest."""
    yield f"{profile.title}; {profile.unit}"
    means, errors, prompts = profile.mean.tolist(), profile.stderr.tolist(), profile.prompts.tolist()
    ranked = range(len(means)) if profile.ordered else sorted(range(len(means)), key=lambda i: -abs(means[i]))
    table = _table("mean", "± stderr", "prompts", first="", names=profile.by.replace("_", " "))
    for i in list(ranked)[:_LABELS]:
        numbers = (markup.number(means[i]), markup.number(errors[i]), str(prompts[i]))
        table.add_row("", markup.visible(profile.labels[i]), *numbers)
    yield table
    if len(means) > _LABELS:
        yield f"({len(means) - _LABELS} more labels)"


def _last_heads(flow: Flow, top: int, whole: float) -> Iterable[Any]:
    frame = flow.last_heads()
    yield "By the last head on the way (straight: through no head), which is all of it:"
    table = _table("influence", "share", first="", names="last head")
    for row in frame.head(top).to_dict("records"):
        name = "straight" if row["kind"] == "straight" else f"{row['layer']}.{row['head']}"
        table.add_row("", name, markup.number(row["influence"]), _percent(row["influence"], whole))
    others = frame.influence[top:]
    if len(others):
        table.add_row("", f"{len(others)} others", markup.number(others.sum()), _percent(others.sum(), whole))
    yield table


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _bars(scores: Scores) -> Iterable[Any]:
    """One row per token: score, standard error, bar; of a long prompt for the largest."""
    stderr = scores.stderr
    table = _table("score", *(() if stderr is None else ("stderr",)))
    table.add_column("")
    shown, left = _chosen([scores.values.tolist()])
    for i in shown:
        error = [] if stderr is None else [grids.plus_minus(scores.values[i], stderr[i])]
        score = markup.number(float(scores.values[i]))
        table.add_row(*_place(scores, i), score, *error, _bar(scores, i, _BAR), *_beside(scores, i, table))
    yield table
    yield from left


def _chosen(columns: Sequence[Sequence[float]]) -> tuple[list[int], list[str]]:
    """The tokens of a table: all, or those with the largest shares of a column's sum; and what to say of the others."""
    count = len(columns[0])
    if count <= MOST_COLUMNS:
        return list(range(count)), []
    sums = [total(line) for line in columns]
    shares = [
        max((abs(line[i]) / whole for line, whole in zip(columns, sums, strict=True) if whole), default=0.0)
        for i in range(count)
    ]
    shown = largest(shares)
    rest = [
        (total(line) - total([line[i] for i in shown])) / whole
        for line, whole in zip(columns, sums, strict=True)
        if whole
    ]
    share = percent(max(rest, default=0.0), 1.0)
    held = f"they hold {share} of the sum" if len(columns) == 1 else f"they hold at most {share} of a column's sum"
    left = f"({count - len(shown)} of {count} tokens are not shown, {held} of magnitudes: --html, --json or --save)"
    return shown, [left]


def _place(scores: Scores, i: int) -> tuple[str, Text]:
    return str(scores.coords["pos"][i]), Text(markup.visible(columns_of(scores)[0][i]))


def _beside(scores: Scores, i: int, table: Table) -> list[Text]:
    """Where a token of a long prompt stands, in a column of its own."""
    if len(scores.tokens) <= MOST_COLUMNS:
        return []
    if not table.rows:
        table.add_column("where", no_wrap=True)
    room = 28 if len(table.columns) <= _FEW else 12
    before, after = (markup.visible(text, 99) if text else "" for text in around(scores.tokens, i, width=room))
    return [Text(f"{before}[{markup.visible(scores.tokens[i])}]{after}")]


def _bar(scores: Scores, i: int, width: int) -> Text:
    """Blocks up to the largest score; position 0, which often swallows everything, may run off the scale."""
    values = [scores.values.tolist()]
    alone = len(scores.meta.get("joined", [[0]])[0]) == 1
    full, rest = markup.bound(values), markup.bound(values, skip_first=alone)
    largest = rest if len(values[0]) > 1 and full > 3 * rest else full
    value = values[0][i]
    blocks = math.floor(width * min(1.0, abs(value) / largest) + 0.5)
    mark = "▸" if abs(value) > largest else ""
    return Text(("▒" if value < 0 else "█") * blocks + mark, style="red" if value < 0 else "blue")


def _table(*numbers: str, first: str = "pos", names: str = "token") -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(first, justify="right", no_wrap=True, min_width=len(first))
    table.add_column(names, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _prediction(scores: Scores | Flow, n: int) -> str:
    position, top = scores.meta["positions"][n], scores.meta["predictions"][n]
    guesses = ", ".join(f"{markup.named(guess['text'])} {guess['p']:.1%}" for guess in top[:3])
    about = tokens_of(scores.meta["targets"][n])
    aim = f"Explained: {' against '.join(map(markup.explained, about))}. " if about else ""
    return f"{aim}After position {position} the model predicts: {guesses}"
