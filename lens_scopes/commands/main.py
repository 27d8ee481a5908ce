"""The command line, ``lens-scopes``: each command is a thin layer over one function of the package.

What the user asked for goes to stdout, everything else (errors, what other libraries say while loading) to stderr. An
error is one line and exit code 2; with LENS_SCOPES_TRACEBACK=1 in the environment it shows where it came from.
"""

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import lens_scopes as ls
from lens_scopes.commands import bench, corpus, live, tables
from lens_scopes.commands.prompts import prompts_of, spans_of
from lens_scopes.commands.terminal import (
    Backend,
    Continued,
    Generated,
    Model,
    Passes,
    Prompt,
    PromptOrFile,
    Rank,
    Scope,
    Target,
    Versus,
    WhichBackend,
    integer,
    model_of,
    names_in,
    one_line_errors,
    quiet,
    say,
    say_as_it_can,
    say_where,
    scope_of,
    text_of,
)
from lens_scopes.results import files
from lens_scopes.results.provenance import plain, prompt_text, scope_text, versions
from lens_scopes.views import dispatch, markup
from lens_scopes.views.explorer import EXPLORER

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Jacobian Scopes for TransformerLens: which tokens, at which layer, a prediction depends on.",
    epilog="LENS_SCOPES_TRACEBACK=1 in the environment shows the whole traceback of an error.",
)


def _version(asked: bool) -> bool:
    if asked:
        known = ", ".join(f"{name} {number}" for name, number in versions().items() if name != "lens-scopes")
        typer.echo(f"lens-scopes {ls.__version__} ({known})")
        raise typer.Exit
    return asked


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the versions and exit.")
    ] = False,
) -> None:
    """Jacobian Scopes for TransformerLens: which tokens, at which layer, a prediction depends on."""


@app.command(
    epilog="Example: lens-scopes score 'blick : tove , dax : wug , blick :' --scope semantic --target tove --versus wug"
)
def score(
    prompt: PromptOrFile = None,
    prompts_path: Annotated[
        Path | None,
        typer.Option("--prompts", help="Prompts from a file, one per line, or JSON Lines in .jsonl; - for stdin."),
    ] = None,
    model: Model = None,
    backend: WhichBackend = Backend.auto,
    continuation: Continued = None,
    generate: Generated = None,
    scope: Scope = None,
    target: Target = None,
    versus: Versus = None,
    passes: Passes = None,
    rank: Rank = None,
    sites: Annotated[
        str | None,
        typer.Option(
            help="embed, resid_post, attn_out, z, ... or hook names, by commas. (default: embed and all layers)"
        ),
    ] = None,
    position: Annotated[
        str, typer.Option(help="Whose next token: an index, several by commas, 'all', 'prompt' or 'completion'.")
    ] = "-1",
    reduce: Annotated[
        str | None, typer.Option(help="'sum': the total over the positions; or from so many backward passes.")
    ] = None,
    along: Annotated[str | None, typer.Option(help="'activation': signed gradient x activation, not norms.")] = None,
    aggregate: Annotated[
        str | None, typer.Option(help="'word', 'sentence', 'line' or 'role': join tokens to these.")
    ] = None,
    spans: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=TEXT", help="Join the tokens of a text, under a name; several times; NAME=... others."
        ),
    ] = None,
    view: Annotated[
        str | None, typer.Option(help="The view of --html: layers, heads, targets, tokens, or explorer.")
    ] = None,
    html_path: Annotated[Path | None, typer.Option("--html", help="Write a page that needs nothing else.")] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write JSON (with --prompts a line each); - for stdout.")
    ] = None,
    save_path: Annotated[Path | None, typer.Option("--save", help="Write what Scores.load reads.")] = None,
) -> None:
    """Score the tokens of a PROMPT and print a table, or write the scores to files."""
    with one_line_errors("score"):
        goes_on = continuation is not None or generate is not None
        recipe = scope_of(scope or ("continuation" if goes_on else None), target, versus, passes, rank)
        prompts = prompts_of(prompt, prompts_path)
        by = spans_of(spans) if spans else aggregate
        if spans and aggregate:
            msg = "--spans and --aggregate are two ways to join tokens: give one of them"
            raise ValueError(msg)
        if view is not None and html_path is None:
            msg = f"--view {view} is of a page: add --html FILE"
            raise ValueError(msg)
        if save_path is not None and len(prompts) > 1:
            msg = f"--save keeps the scores of one prompt, and there are {len(prompts)}; --json keeps all of them"
            raise ValueError(msg)
        with quiet():
            loaded = model_of(model, backend)
            texts = [text_of(loaded, one, continuation, generate) for one in prompts]
            found = ls.score_batch(
                loaded,
                texts,
                recipe,
                position=_positions(position, ("all", *getattr(texts[0], "spans", ())), "--position"),
                sites=None if sites is None else names_in(sites),
                along=along,  # type: ignore[arg-type] - score says what it knows
                reduce=reduce if reduce is None or reduce == "sum" else integer(reduce, "--reduce", "sum"),  # type: ignore[arg-type]
            )
        found = found if by is None else [scores.aggregate(by) for scores in found]
        if save_path is not None:
            found[0].save(save_path)
        if html_path is not None and view == EXPLORER:
            ls.show(found if len(found) > 1 else found[0], view).save(html_path)
        elif html_path is not None:
            named = [None if view is None else dispatch.choose(one, view, (EXPLORER,)) for one in found]
            drawn = [dispatch.static(one, chosen) for one, chosen in zip(found, named, strict=True)]
            called = texts[0] if prompt is not None else f"{len(prompts)} prompts"
            files.write(html_path, markup.page(f"{scope_text(found[0].meta)}: {called}", *drawn))
        if json_path is not None:
            _write_json(found, json_path, lines=prompts_path is not None)
        if save_path is html_path is json_path is None:
            for n, scores in enumerate(found, 1):
                if prompts_path is not None:
                    say(f"{n}: {markup.visible(prompt_text(scores.meta, scores.tokens), 100)}")
                say(*tables.of_scores(scores))
        say_where(save_path, html_path, json_path)


@app.command(
    epilog="Example: lens-scopes flow 'blick : tove , dax : wug , blick :' --target tove --versus wug --paths 5"
)
def flow(
    prompt: Prompt,
    model: Model = None,
    backend: WhichBackend = Backend.auto,
    continuation: Continued = None,
    generate: Generated = None,
    scope: Scope = None,
    target: Target = None,
    versus: Versus = None,
    passes: Passes = None,
    rank: Rank = None,
    position: Annotated[int, typer.Option(help="Whose next token.")] = -1,
    sources: Annotated[
        str | None, typer.Option(help="'each', or positions or tokens by commas. (default: all tokens together)")
    ] = None,
    edges: Annotated[bool, typer.Option("--edges", help="Keep which token reads which, by head.")] = False,
    top: Annotated[int, typer.Option(help="How many heads and MLPs to print.")] = 10,
    paths: Annotated[int, typer.Option(help="How many routes through the heads to print.")] = 0,
    html_path: Annotated[
        Path | None,
        typer.Option("--html", help="Write a page; with --sources each it has an explorer."),
    ] = None,
    save_path: Annotated[Path | None, typer.Option("--save", help="Write what Flow.load reads.")] = None,
) -> None:
    """Split the scores of a PROMPT over heads, MLPs and positions, and print what adds up and what carries most."""
    with one_line_errors("flow"):
        goes_on = continuation is not None or generate is not None
        recipe = scope_of(scope or ("continuation" if goes_on else None), target, versus, passes, rank)
        with quiet():
            loaded = model_of(model, backend)
            rows = sources if sources in (None, "each") else [_position_or_token(part) for part in sources.split(",")]
            text = text_of(loaded, prompt, continuation, generate)
            found = ls.flow(loaded, text, recipe, position=position, sources=rows, edges=edges)
            orders, routes = found.orders(), found.paths(paths, budget=max(48, paths)) if paths else None
        if save_path is not None:
            found.save(save_path)
        if html_path is not None:
            ls.report(found, html_path)
        say(*tables.of_flow(found, top, orders, routes))
        say_where(save_path, html_path)


@app.command(epilog="Example: lens-scopes demo --backend bridge --out demo.html")
def demo(
    backend: WhichBackend = Backend.auto,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("demo.html"),
    seed: Annotated[int, typer.Option(help="Which prompts.")] = 1,
) -> None:
    """Run the main job on the model that ships with the package: prompts whose causes are known, three scopes each."""
    with one_line_errors("demo"):
        with quiet():
            model = ls.demo.load(backend.value)
        figures = []
        for kind in ("translation", "ioi"):
            (case,) = ls.demo.cases(kind, n=1, seed=seed)
            with quiet():
                found = {
                    name: ls.score(model, case.prompt, recipe)
                    for name, recipe in (
                        ("Semantic", ls.Semantic(case.answer, case.versus)),
                        ("Fisher", ls.Fisher()),
                        ("Temperature", ls.Temperature()),
                    )
                }
            say(*tables.of_case(case, found))
            figures += [scores._repr_html_() for scores in found.values()]
        files.write(out, markup.page("lens_scopes: the demo model", *figures))
        say(f"All layers of every score are in {out.resolve()}")


app.command(epilog=bench.BENCH_EXAMPLE)(bench.bench)
app.command(epilog=bench.COMPARE_EXAMPLE)(bench.compare)
app.command(epilog=live.SERVE_EXAMPLE)(live.serve)
app.command(epilog=corpus.EXAMPLE)(corpus.corpus)


def main() -> None:
    """The entry point of the console script."""
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    say_as_it_can()  # the help too
    app()


def _positions(text: str, words: Sequence[str], option: str) -> Any:
    if text in words:
        return text
    numbers = [integer(part, option, words[0]) for part in text.split(",")]
    return numbers if "," in text else numbers[0]


def _position_or_token(text: str) -> int | str:
    return int(text) if re.fullmatch(r"\s*-?\d+\s*", text) else text


def _write_json(found: list[ls.Scores], path: Path, *, lines: bool) -> None:
    """One object; or, for a file of prompts, one line of JSON each."""
    text = "".join(f"{_as_json(scores, None if lines else 1)}\n" for scores in found)
    if str(path) == "-":
        typer.echo(text, nl=False)
    else:
        files.write(path, text)


def _as_json(scores: ls.Scores, indent: int | None) -> str:
    content = {
        "tokens": scores.tokens,
        "dims": scores.dims,
        "coords": dict(scores.coords),
        "values": scores.values.tolist(),
        "stderr": None if scores.stderr is None else scores.stderr.tolist(),
        "meta": dict(scores.meta),
    }
    return json.dumps(plain(content), indent=indent)  # in ASCII, which every terminal and pipe has
