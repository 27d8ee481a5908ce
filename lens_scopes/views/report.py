"""One self-contained page about some results: prompt, prediction, every view, provenance, and an explorer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lens_scopes.results import files
from lens_scopes.results.arguments import shown
from lens_scopes.results.flow import Flow
from lens_scopes.results.provenance import Target, part_text, scope_text, tokens_of
from lens_scopes.results.scores import Scores
from lens_scopes.results.text import Text
from lens_scopes.views import circuits, dispatch, explorer, markup
from lens_scopes.views.circuits import Figure
from lens_scopes.views.explorer_scores import fits
from lens_scopes.views.grids import First, check_first
from lens_scopes.views.naming import prompts_of, quotes, title_of

# Characters of a prompt in a heading that has to be told from others.
_END = 30

_STYLE = (
    "h1{font-size:20px}h2{font-size:16px;margin:28px 0 4px;border-top:1px solid #8888;padding-top:14px}"
    ".view{margin:14px 0}summary{cursor:pointer;opacity:.85;margin:6px 0}"
    "p.prompt{white-space:pre-wrap;overflow-wrap:anywhere;"
    "border-left:3px solid #8888;padding-left:10px;unicode-bidi:plaintext}nav a{color:inherit;margin-right:14px}"
)


def report(results_: Any, path: str | Path, *, title: str | None = None, first: First = "show") -> Path:
    """Write one HTML file about some results: self-contained, no outside address, readable without script.

    Every view is there as static HTML; circuitsvis's interactive one is drawn when its line is opened. Scores with a
    choice of sites, heads or targets get an explorer, one for all Scores of a prompt, and so does a Flow with
    ``sources="each"``. The same results give the same bytes.

    Args:
        results_: a result, or a list of results and strings or Texts (paragraphs between them). A list inside this list
            is shown side by side, as ``show`` does: ``[first, [second, third]]``.
        path: where to write; the file is written whole or not at all.
        title: of the page; None: the scope and model of the first result.
        first: "show", "hide" or "share": what to do with position 0, which often swallows everything.

    Returns:
        The path.

    Raises:
        TypeError: something that is no result.
        ValueError: nothing to report.
        FileNotFoundError: the directory is not there.

    """
    if not isinstance(path, str | Path):
        msg = f"report(results, path) writes to a path, got {shown(path)}; write report(results, 'report.html')"
        raise TypeError(msg)
    return files.write(path, page(results_, title=title, first=first))


def page(results_: Any, *, title: str | None = None, first: First = "show") -> str:
    """The page that ``report`` writes."""
    check_first(first)
    if title is not None and not isinstance(title, str):
        msg = f"title is a text, or None for that of the first result, got {shown(title)}; write title='...'"
        raise TypeError(msg)
    items = list(results_) if isinstance(results_, list | tuple) else [results_]
    items = [str(item) if isinstance(item, Text) else item for item in items]
    there = [item for item in items if not isinstance(item, str)]
    for item in there:
        dispatch.views(item)
    if not there:
        msg = f"report takes results (and texts), got {shown(results_)}; write a list with at least one result"
        raise ValueError(msg)
    written = _Page(first)
    names = [f"result-{i}" for i in range(len(there))]
    titles = [markup.prose(title) for title in _titles(there)]
    written.explored = _explored(there, names)
    pending = iter(zip(names, titles, strict=True))
    body = "".join(
        f"<p>{markup.prose(item)}</p>" if isinstance(item, str) else written.section(item, *next(pending))
        for item in items
    )
    heading = title or f"{dispatch.title(there[0])}: report"
    links = [f'<a href="#{name}">{said}</a>' for name, said in zip(names, titles, strict=True)]
    nav = f"<nav>{''.join(links)}</nav>" if len(there) > 1 else ""
    return circuits.page(
        heading,
        f"<h1>{markup.prose(heading)}</h1>{nav}{body}\n"
        f"{explorer.data_block(written.explorers) if written.explorers else ''}",
        written.figures,
        _STYLE + explorer.style(),
        [explorer.script()] if written.explorers else [],
    )


def _titles(there: Sequence[Any]) -> list[str]:
    """A title for each result; of several, numbered, and with the end of the prompt where prompts differ."""
    titles = [dispatch.title(one) for one in there]
    if len(there) == 1:
        return titles
    prompts = prompts_of(there)
    ends = [f", “{'…' * (len(p) > _END)}{p[-_END:]}”" if p and len(set(prompts)) > 1 else "" for p in prompts]
    return [f"{n}. {title}{end}" for n, (title, end) in enumerate(zip(titles, ends, strict=True), 1)]


def _explored(there: Sequence[Any], names: Sequence[str]) -> dict[str, list[Any]]:
    """By section what is explored there: a Flow, Scores side by side, and all Scores of a prompt at their first.

    Scores for which an explorer has no more room begin another.
    """
    found: dict[str, list[Any]] = {}
    together: dict[str, list[Scores]] = {}
    for result, name in zip(there, names, strict=True):
        if isinstance(result, Scores):
            if explorer.has_choice(result):
                (prompt,) = prompts_of([result])
                if prompt not in together or not fits([*together[prompt], result]):
                    together[prompt] = []
                    found[name] = [together[prompt]]
                together[prompt].append(result)
        elif isinstance(result, Flow) or (isinstance(result, list | tuple) and isinstance(result[0], Scores)):
            found[name] = [result]
    return found


class _Page:
    """Collects what the sections need: figures and explorers, by the names of their places."""

    def __init__(self, first: First) -> None:
        self.first: First = first
        self.figures: dict[str, Figure] = {}
        self.explorers: list[dict[str, Any]] = []
        self.quoted: list[tuple[str, Any]] = []
        self.explored: Mapping[str, Sequence[Any]] = {}

    def section(self, result: Any, name: str, title: str) -> str:
        """A result: prompt and prediction where they are new, then its views and where it comes from."""
        parts = [f'<h2 id="{name}">{title}</h2>']
        several = list(result) if isinstance(result, list | tuple) else [result]
        meta = {} if len(several) > 1 else getattr(several[0], "meta", {})
        quoted = [(said, one.meta.get("positions")) for one in several for said in quotes(one)]
        if quoted and quoted != self.quoted:
            self.quoted = quoted
            parts += [
                f'<p class="prompt">{markup.escaped(said)}</p>' for said in dict.fromkeys(said for said, _ in quoted)
            ]
        there = dispatch.views(result)
        parts.append(markup.predictions(meta) if there else "")
        parts += [self._explorer(one, f"{name}-explorer") for one in self.explored.get(name, ())]
        if name not in self.explored and isinstance(result, Scores) and explorer.has_choice(result):
            parts.append(markup.remark("its explorer stands above, at an earlier result of this prompt"))
        parts += [self._view(result, view, f"{name}-{view or 'view'}") for view in there or (None,)]
        for known in filter(None, map(facts, several)):
            parts.append(f"<details><summary>provenance</summary>{markup.facts(known)}</details>")
        return f"<section>{''.join(parts)}</section>\n"

    def _explorer(self, result: Any, name: str) -> str:
        data = explorer.explorer_data(result, name, self.first)
        if data is None:
            return markup.remark(explorer.missing(result))
        self.explorers.append(data)
        return explorer.place(data)

    def _view(self, result: Any, view: str | None, name: str) -> str:
        static = dispatch.body(result, view, self.first)
        drawn, note = dispatch.figures(result, view, self.first)
        named = {f"{name}-{i}": figure for i, figure in enumerate(drawn)}
        self.figures |= named
        remark = markup.remark(note) if note else ""
        if not named:
            return f'<div class="view">{static}{remark}</div>'
        places = "".join(circuits.figure_html(figure, at) for at, figure in named.items())
        script = "<noscript>circuitsvis needs JavaScript.</noscript>"
        opened = f"<details><summary>{view}, interactive (circuitsvis)</summary>{remark}{script}{places}</details>"
        return f'<div class="view">{static}{opened}</div>'


def facts(result: Any) -> list[tuple[str, str]]:
    """How a result came about, as far as it knows: names and values as text."""
    # A comparison is about what was measured.
    meta = dict(getattr(result, "meta", None) or getattr(getattr(result, "measured", None), "meta", None) or {})
    if not meta:
        return []
    if "difference" in meta:
        return [
            ("result", repr(result)),
            *((side, title_of(one)) for side, one in zip("ab", meta["difference"], strict=True)),
        ]
    processing = [
        "final norm folded" if meta.get("folded") else "final norm not folded",
        "logits centred" if meta.get("centred") else "logits not centred",
    ]
    versions = ", ".join(f"{name} {number}" for name, number in dict(meta.get("versions", {})).items())
    found: list[tuple[str, Any]] = [
        ("result", repr(result)),
        ("model", f"{meta.get('model')} as {meta.get('host')}, {meta.get('dtype')}"),
        ("weights", ", ".join(processing)),
        ("scope", scope_text(meta, "")),
        ("units", meta.get("units")),
        ("position", meta.get("position")),
        ("targets", _targets(meta.get("targets") or ())),
        ("coverage", _once(meta.get("coverage"))),
        ("notes", _once(meta.get("notes"))),
        ("part", part_text(meta)),
        ("frozen", ", ".join(meta.get("freeze", ())) or "nothing"),
        ("along", meta.get("along")),
        ("method", meta.get("method")),
        ("path", _path(meta) if "gap" in meta else None),
        ("residual", f"{result.residual:.2e} of the largest total" if isinstance(result, Flow) else None),
        ("standard errors", "yes, from random probes" if getattr(result, "stderr", None) is not None else None),
        ("versions", versions),
        ("token ids", " ".join(map(str, meta.get("token_ids", ())))),
    ]
    return [(name, str(value)) for name, value in found if value not in (None, "", [], {})]


def _path(meta: Mapping[str, Any]) -> str:
    # Files of 0.1.0 have as many points as steps.
    return f"{meta.get('points', meta.get('steps'))} points; they miss {meta['gap']:.2e} of the metric"


def _once(values: Any) -> Any:
    """What is the same for every position explained, once."""
    each = list(values) if isinstance(values, list | tuple) else []
    return each[0] if each and all(value == each[0] for value in each) else values


def _targets(targets: Sequence[Target | None]) -> str:
    """The explained tokens with their ids, position by position."""
    each = [" against ".join(f"{one['text']!r} ({one['id']})" for one in tokens_of(target)) for target in targets]
    return "; ".join(filter(None, each))
