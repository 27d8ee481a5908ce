"""The commands ``bench`` (methods against each other, by ablation) and ``compare`` (predicted against true patches)."""

import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

import lens_scopes as ls
from lens_scopes.commands.prompts import lines_of
from lens_scopes.commands.terminal import (
    Backend,
    Model,
    Passes,
    Target,
    Versus,
    WhichBackend,
    model_of,
    names_in,
    one_line_errors,
    quiet,
    say,
    say_where,
    scope_of,
)
from lens_scopes.results import arguments, files
from lens_scopes.scopes.protocol import writable
from lens_scopes.views import markup

BENCH_EXAMPLE = "Example: lens-scopes bench --prompts prompts.jsonl --methods semantic,fisher,random --out bench"
COMPARE_EXAMPLE = "Example: lens-scopes compare 'blick : tove ; blick :' 'blick : wug ; blick :' --sites resid_post"


_COMPARED = "|".join(name for name in writable() if name != "continuation")  # which has no place for its answer here
Compared = Annotated[
    str, typer.Option(metavar=f"[{_COMPARED}]", help="What patches change: this is predicted and measured.")
]


class Replace(str, Enum):
    """How a token is taken out."""

    zero = "zero"
    mean = "mean"
    delete = "delete"
    resample = "resample"


class Method(str, Enum):
    """How the effects of patches are predicted."""

    gradient = "gradient"
    path = "path"
    two_scale = "two-scale"
    fixed = "fixed"


def bench(
    prompts: Annotated[
        Path,
        typer.Option(help='A file with one prompt per line, as JSON: {"text": "..."}, {"tokens": [1, 2]} or a string.'),
    ],
    out: Annotated[Path, typer.Option(help="A directory. A run that was interrupted goes on where it stopped.")],
    model: Model = None,
    backend: WhichBackend = Backend.auto,
    methods: Annotated[
        str, typer.Option(help="Names by commas; an unknown one lists them all.")
    ] = "semantic,temperature,fisher,gradient_x_input,gradient_x_input_norm,integrated_gradients,last_first,random",
    baseline: Annotated[str, typer.Option(help="The method that differences are taken to.")] = "gradient_x_input",
    fractions: Annotated[str, typer.Option(help="Shares of tokens taken out, by commas.")] = "0.05,0.1,0.2",
    replace: Annotated[Replace, typer.Option(help="How a token is taken out.")] = Replace.zero,
    paper: Annotated[bool, typer.Option("--paper", help="The protocol of arXiv 2601.16407, as coded.")] = False,
    sufficiency: Annotated[bool, typer.Option("--sufficiency", help="Take out all but the top tokens.")] = False,
    skip_first: Annotated[bool, typer.Option("--skip-first", help="Never rank nor take out position 0.")] = False,
    leave_one_out: Annotated[
        bool, typer.Option("--leave-one-out", help="Also rank each method's first token by its true effect.")
    ] = False,
    limit: Annotated[int | None, typer.Option(help="Only the first so many prompts.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
) -> None:
    """Ablate what each method ranks highest, on every prompt, and write the table as Markdown and Parquet."""
    with one_line_errors("bench"):
        read = _prompts(prompts)[: None if limit is None else arguments.integer(limit, "--limit", 1)]
        out.mkdir(parents=True, exist_ok=True)
        with quiet():
            table = ls.evaluate.compare_methods(
                model_of(model, backend),
                read,
                names_in(methods),
                baseline=baseline,
                seed=seed,
                fractions=_numbers(fractions),
                replace=replace.value,
                mode="sufficiency" if sufficiency else "comprehensiveness",
                protocol="paper" if paper else None,
                skip=(0,) if skip_first else (),
                leave_one_out=leave_one_out,
                resume=out / "rows.jsonl",
            )
        table.save(out / "table.safetensors")
        files.write(out / "summary.parquet", table.to_dataframe().to_parquet())
        files.write(out / "per_prompt.parquet", table.per_prompt().to_parquet())
        files.write(out / "table.md", f"{table.to_markdown()}\n")
        say(table.to_markdown(), f"{len(read)} prompts; everything is in {out.resolve()}")


def compare(
    clean: Annotated[str, typer.Argument(help="The prompt that activations are taken from.")],
    corrupted: Annotated[str, typer.Argument(help="The prompt that they are patched into, of the same length.")],
    model: Model = None,
    backend: WhichBackend = Backend.auto,
    scope: Compared = "semantic",
    target: Target = None,
    versus: Versus = None,
    passes: Passes = None,
    sites: Annotated[str, typer.Option(help="One kind of sites, or hook names, by commas.")] = "resid_post",
    method: Annotated[
        Method | None, typer.Option(help="How effects are predicted; without it two-scale, for fisher the gradient.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Intervals of the path between the prompts; of fixed the points, which it needs.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A directory for the comparison, a page and Parquet.")] = None,
) -> None:
    """Predict the effect of every activation patch by a scope, measure it, and say how well the two agree."""
    with one_line_errors("compare"):
        recipe = scope_of(scope, target, versus, passes, None)
        names = names_in(sites)
        with quiet():
            loaded = model_of(model, backend)
            by = None if method is None else method.value
            predicted = ls.patching.predict(loaded, clean, corrupted, recipe, sites=names, method=by, steps=steps)
            measured = ls.patching.measure(loaded, clean, corrupted, recipe, sites=names)
            found = ls.patching.compare(predicted, measured)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            found.save(out / "comparison.safetensors")
            files.write(out / "comparison.parquet", found.to_dataframe().to_parquet())
            parts = (found._repr_html_(), predicted._repr_html_(), measured._repr_html_())
            files.write(out / "comparison.html", markup.page("Predicted and measured patches", *parts))
        numbers = found.summary() | {key: predicted.meta[key] for key in ("gap",) if key in predicted.meta}
        say(f"{'method':>16}  {predicted.meta.get('method')}")
        say(*(f"{name:>16}  {markup.number(value)}" for name, value in numbers.items()))
        say_where(out)


_WRITE = 'write {"text": "..."}, {"tokens": [1, 2]} or "..."'


def _prompts(path: Path) -> list[Any]:
    read = []
    for number, line in enumerate(lines_of(path), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as failure:
            msg = f"line {number} of {path} is not JSON ({failure}), got {line[:40]!r}; {_WRITE}"
            raise ValueError(msg) from None
        if isinstance(entry, dict):
            entry = next((entry[key] for key in ("tokens", "text", "prompt") if key in entry), None)
        if not isinstance(entry, str | list):
            msg = f"line {number} of {path} is no prompt, got {line[:40]}; {_WRITE}"
            raise ValueError(msg)  # noqa: TRY004 - the file's content, not a Python type
        read.append(entry)
    return read


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        msg = f"--fractions got {text!r}; write numbers between 0 and 1, by commas, e.g. 0.05,0.1"
        raise ValueError(msg) from None
