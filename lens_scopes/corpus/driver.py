"""A run: what is planned and not yet done, unit by unit, in this process or in several."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lens_scopes.calculus.estimate import estimate
from lens_scopes.corpus import parts
from lens_scopes.corpus.attended import Done, alone_in, bar, between_units
from lens_scopes.corpus.plan import RUN, Plan, digest_of_rows
from lens_scopes.corpus.ray_pool import answered, refuse_without_ray
from lens_scopes.corpus.read import Corpus, open
from lens_scopes.corpus.rows import Row, rows_of
from lens_scopes.corpus.worker import (
    Model,
    OnError,
    Question,
    Worker,
    function_of,
    identity,
    is_loaded,
    model_of,
)
from lens_scopes.host import Host
from lens_scopes.host.differentiable import refuse_dropout
from lens_scopes.host.hooks import hooks_of
from lens_scopes.host.prompts import Positions
from lens_scopes.host.undo import guarded
from lens_scopes.results import files
from lens_scopes.results.arguments import Integer, flag, integer, shown
from lens_scopes.results.provenance import versions
from lens_scopes.scopes.protocol import Scope, site_of

if TYPE_CHECKING:
    import pyarrow as pa

# Tokens that take no time worth measuring a forward pass for.
_CHEAP = 2000


@guarded
def run(
    model: Model,
    prompts: Any,
    scope: Scope | str,
    out: str | Path,
    *,
    sites: Any = None,
    position: Positions = -1,
    along: Literal["activation"] | None = None,
    flow: bool = False,
    workers: Integer = 0,
    unit_tokens: Integer = 8192,
    resume: bool = True,
    on_error: OnError = "record",
) -> Corpus:
    """Score a data set of prompts into a folder of Parquet files; called again, it does what is not yet done.

    Prompts of about one length go together as units. The results of a unit are one file, whole or not there: a run may
    be killed at any moment. A prompt that cannot be scored is recorded with its error and stops nothing.

    Args:
        model: how to load it: a name or a directory, ``{"path": ..., "dtype": "bfloat16", "device": ..., "backend":
            ...}``, or a function that returns it; with ``workers=0`` also a loaded model.
        prompts: a .jsonl or .parquet file, a Hugging Face data set, a DataFrame, or an iterable of prompts (text, ids,
            messages, Text) or of mappings with "prompt" and, where wanted, "id", "target", "versus" and "position".
            Further columns are carried along.
        scope: one for all (a prompt's own target and versus go into it), or "module:function" of a function that makes
            the scope of such a mapping.
        out: the folder.
        sites: see ``score``.
        position: see ``score``; a prompt's own goes before it.
        along: None for norms, "activation" for gradient x activation.
        flow: also split each prompt's score over heads and MLPs (``ls.flow``, all tokens together).
        workers: 0: this process; n: so many processes on Ray, with a model each, and a GPU each where there are some.
        unit_tokens: about how many tokens a unit has.
        resume: whether to go on where ``out`` has a run of the same question.
        on_error: "stop" raises the first error of a prompt instead of recording it.

    Returns:
        The Corpus, as ``ls.corpus.open(out)`` returns it.

    Raises:
        ValueError: ``out`` has a run of another question (the text names what differs), or one while ``resume`` is
            False, or one with a function that reads what has no identity in data; no prompts, an id twice, or a column
            with the name of one of the results'.
        RuntimeError: another run is at work in ``out``; or a model in train mode with dropout.
        ImportError: workers without Ray: pip install 'lens-scopes[ray]'.
        KeyboardInterrupt: Ctrl-C, after the unit in work is done (a second one: at once).

    Example:
        >>> import lens_scopes as ls
        >>> cases = ls.demo.cases("induction", n=20)
        >>> rows = [{"prompt": case.prompt, "target": case.answer} for case in cases]
        >>> found = ls.corpus.run(ls.demo.load, rows, ls.Semantic(), "runs/a")  # doctest: +SKIP
        >>> found.profile("site").plot()  # doctest: +SKIP

    """
    flow, resume = flag(flow, "flow (whether one is made)"), flag(resume, "resume (whether to go on)")
    workers, unit_tokens = integer(workers, "workers", 0), integer(unit_tokens, "unit_tokens", 1)
    _refuse(model, scope, along, on_error, workers)
    if workers:
        refuse_without_ray()
    rows, loaded = rows_of(prompts), model_of(model)
    host = Host(loaded)
    refuse_dropout(loaded)
    question = Question(
        scope,
        host.sites(sites, *([] if isinstance(scope, str) else [site_of(scope)])).names,
        position,
        along,
        bool(flow),
    )
    asked = {"prompts": digest_of_rows(rows), **question.as_data(), **identity(host), "versions": versions()}
    asked |= hooks_of(host)
    out = files.folder_of(out)
    (out / parts.FOLDER).mkdir(parents=True, exist_ok=True)
    with alone_in(out):
        plan = _plan(out, rows, asked, unit_tokens, resume)
        parts.clear(out)
        units = dict(plan.slices())
        finished = parts.done(out, {unit: len(table) for unit, table in units.items()}, plan.digest)
        todo = {unit: table for unit, table in units.items() if unit not in finished}
        before = sum(len(units[unit]) for unit in finished)
        with bar(len(plan), before) as (count, say), between_units(say) as pause:
            say(_cost(host, question, todo, workers))
            work = Worker(loaded, question, out, plan.digest, on_error)
            if workers:
                del loaded, host
                results = answered(replace(work, model=None), model, todo, workers)
            else:
                results = (Done.of(work(table)) for table in todo.values())
            for done in results:
                count(done)
                pause()
    return open(out)


def _cost(host: Host, question: Question, todo: Mapping[int, "pa.Table"], workers: int) -> str:
    """What is about to be done, and what it takes, in a line."""
    lengths = [length for table in todo.values() for length in table["length"].to_pylist()]
    told = f"{len(lengths):,} prompts to do, about {sum(lengths):,} tokens in {len(todo):,} units"
    weights = sum(p.numel() * p.element_size() for p in host.model.parameters())
    told += f"; {max(1, workers)} x {weights / 2**20:,.0f} MiB of weights"
    if sum(lengths) < _CHEAP or isinstance(question.scope, str):
        return told
    longest = min(max(lengths), host.n_ctx)
    one = estimate(host.model, longest, question.scope, sites=question.sites, flow=question.flow)
    minutes = one.seconds / longest * sum(lengths) / 60 / max(1, workers)
    return f"{told}; the longest: {one}; about {minutes:.0f} min in all"


def _plan(out: Path, rows: Sequence[Row], asked: Mapping[str, Any], unit_tokens: int, resume: bool) -> Plan:
    """The plan that the folder has, if it is of the same question; else a new one."""
    if not (out / RUN).is_file():
        plan = Plan.make(out, rows, asked, unit_tokens)
        plan.write()
        return plan
    if not resume:
        msg = f"{out} holds a run already; write resume=True to go on with it, or another folder"
        raise ValueError(msg)
    plan = Plan.read(out)
    plan.refuse_other(asked)
    return plan


def _refuse(model: Any, scope: Any, along: Any, on_error: Any, workers: int) -> None:
    """Refuse what would fail for every prompt.

    Raises:
        ValueError: another word, or a loaded model for other processes.
        TypeError: no scope.

    """
    function_of(scope) if isinstance(scope, str) else site_of(scope)
    for name, value, known in (("along", along, (None, "activation")), ("on_error", on_error, ("record", "stop"))):
        if not isinstance(value, str | None) or value not in known:
            msg = f"{name} is one of {', '.join(map(repr, known))} here, got {shown(value)}; write {known[0]!r}"
            raise ValueError(msg)
    if workers and is_loaded(model):
        msg = f"a loaded model stays in this process, and {workers} workers were asked for; give its name or directory"
        raise ValueError(msg)
