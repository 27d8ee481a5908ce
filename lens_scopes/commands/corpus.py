"""The command ``corpus``: a data set of prompts scored into a folder, and what a folder holds."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

import lens_scopes as ls
from lens_scopes.commands.tables import of_profile
from lens_scopes.commands.terminal import (
    Backend,
    Model,
    Passes,
    Rank,
    Scope,
    Target,
    Versus,
    WhichBackend,
    integer,
    names_in,
    one_line_errors,
    quiet,
    say,
    scope_of,
)
from lens_scopes.results import arguments
from lens_scopes.results.profiles import By
from lens_scopes.views import markup

EXAMPLE = (
    "Example: lens-scopes corpus prompts.jsonl --out runs/a; lens-scopes corpus --show runs/a --by token --site embed"
)

# Errors that are listed; the folder has all of them.
_LISTED = 5


def corpus(
    prompts: Annotated[
        Path | None,
        typer.Argument(help="A .jsonl or .parquet file: prompt, and where wanted id, target, versus, position."),
    ] = None,
    model: Model = None,
    backend: WhichBackend = Backend.auto,
    scope: Scope = None,
    target: Target = None,
    versus: Versus = None,
    passes: Passes = None,
    rank: Rank = None,
    sites: Annotated[str | None, typer.Option(help="As in score, by commas. (default: embed and all layers)")] = None,
    position: Annotated[str, typer.Option(help="Whose next token: an index, or 'all'.")] = "-1",
    flow: Annotated[bool, typer.Option("--flow", help="Also split every score over heads and MLPs.")] = False,
    workers: Annotated[int, typer.Option(help="So many processes on Ray; 0: this one.")] = 0,
    out: Annotated[Path | None, typer.Option(help="The folder; one of the same question is gone on with.")] = None,
    show: Annotated[Path | None, typer.Option(help="Only print what is in the folder of a run.")] = None,
    by: Annotated[str, typer.Option(help=f"What to print means by: {', '.join(get_args(By))}.")] = "site",
    site: Annotated[str | None, typer.Option(help="Of which site, where --by is about one.")] = None,
    top: Annotated[int | None, typer.Option(help="With --by token: how many.")] = None,
) -> None:
    """Score a data set of PROMPTS into a folder of Parquet files, or print what such a folder holds."""
    with one_line_errors("corpus"):
        top = None if top is None else arguments.integer(top, "--top", 1)
        if show is not None and prompts is None and out is None:
            found = ls.corpus.open(show)
        elif prompts is None or out is None or show is not None:
            msg = "give PROMPTS and --out FOLDER, or --show FOLDER alone"
            raise ValueError(msg)
        else:
            recipe = scope_of(scope, target, versus, passes, rank)
            with quiet():
                found = ls.corpus.run(
                    _loads(model, backend),
                    prompts,
                    recipe,
                    out,
                    sites=None if sites is None else names_in(sites),
                    position="all" if position == "all" else integer(position, "--position", "all"),
                    flow=flow,
                    workers=workers,
                )
        about, done = found.plan.question, found.done
        told = f"{done} of {len(found.plan)} prompts done, {found.failed} failed; in {found.out.resolve()}"
        say(f"{about['scope']['text']} on {about['model']}: {told}")
        for error in found.errors()[:_LISTED].itertuples():
            say(f"  {error.id}: {error.error_kind}: {markup.visible(error.error, 100)}")
        if done > 1:
            say(*of_profile(found.profile(cast("By", by), site=site, top=top)))


def _loads(name: str | None, backend: Backend) -> Any:
    """How every process gets the model."""
    return partial(ls.demo.load, backend.value) if name is None else {"path": name, "backend": backend.value}
