"""Units of a run in several processes, by Ray Data: the one file that knows Ray.

Ray carries numbers of units to actors that have loaded the model once, and brings back how many prompts are done. What
an actor computes and writes is what ``Worker`` does in one process; a unit that runs twice writes the same file.
"""

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lens_scopes.corpus import parts
from lens_scopes.corpus.attended import Done
from lens_scopes.corpus.plan import Plan
from lens_scopes.corpus.worker import Model, Worker, identity, model_of
from lens_scopes.host import Host
from lens_scopes.results import files

if TYPE_CHECKING:
    import pyarrow as pa

# What Ray keeps in shared memory: numbers of units and counts.
_STORE = 200 * 2**20
# After so many deaths a unit runs prompt by prompt, and a prompt that does it alone is recorded.
_DEATHS = 2


def refuse_without_ray() -> None:
    """Refuse workers where Ray is not installed.

    Raises:
        ImportError: it is not.

    """
    try:
        import ray  # noqa: F401
    except ImportError as missing:
        msg = "several workers need Ray: pip install 'lens-scopes[ray]'; or write workers=0"
        raise ImportError(msg) from missing


def answered(work: Worker, model: Model, todo: Mapping[int, "pa.Table"], workers: int) -> Iterator[Done]:
    """What units come to, as they are done.

    Args:
        work: what is asked, with no model.
        model: how each worker loads its own.
        todo: the units.
        workers: how many processes.

    Raises:
        ValueError: more workers than processors.
        RuntimeError: a worker cannot start, or cannot write; or a unit kills every worker.

    """
    left, work = set(todo), replace(work, out=work.out.resolve())
    with _started(workers) as resources:
        for turn in range(2 + max(map(len, todo.values()), default=0)):
            if not left:
                return
            for done in _turn(work, model, left, resources, workers, alone=turn > 0):
                if done["stopped"]:
                    raise RuntimeError(done["stopped"])
                left.discard(done["unit"])
                yield Done(done["prompts"], done["failed"], done["tokens"])
    if left:
        msg = f"the units {sorted(left)} kill every worker; ls.corpus.run(..., workers=0) shows why"
        raise RuntimeError(msg)


@contextmanager
def _started(workers: int) -> Iterator[dict[str, float]]:
    """The user's own Ray, or one for this run; what each actor gets of it."""
    import ray

    ours = not ray.is_initialized()
    folder = tempfile.mkdtemp(prefix="ray-") if ours else None
    try:
        if ours:
            os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # it reports to its makers otherwise
            ray.init(
                include_dashboard=False, log_to_driver=False, logging_level="error", object_store_memory=_STORE,
                _temp_dir=folder,
            )  # fmt: skip
        there = ray.cluster_resources()
        if workers > there.get("CPU", 1):
            msg = f"{workers} workers need as many processors, and Ray has {there.get('CPU', 1):.0f}; write fewer"
            raise ValueError(msg)
        found = {"num_cpus": int(there.get("CPU", 1)) // workers}
        if there.get("GPU"):
            found["num_gpus"] = 1
        yield found
    finally:
        if ours:
            ray.shutdown()
            shutil.rmtree(folder or "", ignore_errors=True)


def _turn(
    work: Worker, model: Model, units: set[int], resources: dict[str, float], workers: int, *, alone: bool
) -> Iterator[dict[str, Any]]:
    """Each unit once, or again should it kill its worker; those that do so twice are left out."""
    import ray

    context = ray.data.DataContext.get_current()
    changed = {"max_errored_blocks": -1, "enable_progress_bars": False, "print_on_execution_start": False}
    before = {name: getattr(context, name) for name in changed if hasattr(context, name)}
    try:
        for name in before:
            setattr(context, name, changed[name])
        rows = ray.data.from_items([{"unit": unit} for unit in sorted(units)], override_num_blocks=len(units))
        given = {"work": work, "model": model, "threads": int(resources["num_cpus"]), "alone": alone}
        found = rows.map_batches(
            Actor, batch_size=1, fn_constructor_kwargs=given, compute=ray.data.ActorPoolStrategy(size=workers),
            max_restarts=-1, max_task_retries=_DEATHS - 1, **resources,
        )  # fmt: skip
        yield from found.iter_rows()
    finally:
        for name, value in before.items():
            setattr(context, name, value)


class Actor:
    """A process that answers units with a model of its own."""

    def __init__(self, work: Worker, model: Model, threads: int, alone: bool) -> None:
        """Load the model.

        Raises:
            ValueError: it is not the one that the run was planned with.

        """
        torch.set_num_threads(threads)
        plan = Plan.read(work.out)
        self.work, self.alone = replace(work, model=model_of(model)), alone
        mine = identity(Host(self.work.model))
        other = [name for name, value in mine.items() if plan.question[name] != value]
        if other:
            msg = f"a worker loaded another model than was planned with: its {other[0]} is {mine[other[0]]!r}"
            raise ValueError(msg)
        self.units = dict(plan.slices())

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Answer a unit and write it down; what stops the run is said, not raised."""
        unit = int(batch["unit"][0])
        done, stopped = Done(0, 0, 0), ""
        try:
            deaths = Deaths(self.work.out / parts.FOLDER / f"deaths-{unit:06d}.json") if self.alone else None
            done = Done.of(self.work(self.units[unit], deaths))
        except Exception as failure:  # Ray would take it for one of the unit's own, and go on
            stopped = f"{type(failure).__name__}: {failure}"
        found = {"unit": unit, "prompts": done.prompts, "failed": done.failed, "tokens": done.tokens}
        return {name: [value] for name, value in found.items()} | {"stopped": [stopped]}


class Deaths:
    """Which prompts of a unit were running alone when a worker died, in a file that outlives it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        self.at = Counter(known)

    def __call__(self, n: int) -> bool:
        """Whether a prompt may run; it is written down as a death before, and taken back with the next one."""
        if self.at[n] >= _DEATHS:
            return False
        files.write(self.path, json.dumps([*self.at.elements(), n]))
        return True
