"""Units of a run in several processes, by Ray Data: the one file that knows Ray.

Ray carries numbers of units to actors that have loaded the model once, and brings back how many prompts are done. What
an actor computes and writes is what ``Worker`` does in one process; a unit that runs twice writes the same file.
"""

import json
import logging
import os
import shutil
import tempfile
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
# After so many deaths of workers a unit runs prompt by prompt, and a prompt is recorded as what kills them.
_DEATHS = 2
_WHOLE = -1


def refuse_without_ray() -> None:
    """Refuse workers where Ray is not installed.

    Raises:
        ImportError: it is not.

    """
    try:
        import ray  # noqa: F401  # pyright: ignore[reportMissingImports]
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
        RuntimeError: a worker cannot start, or cannot write.

    """
    if not todo:
        return
    with _started(workers) as resources:
        import ray.data  # pyright: ignore[reportMissingImports]

        rows = ray.data.from_items([{"unit": unit} for unit in todo], override_num_blocks=len(todo))
        given = {"work": replace(work, out=work.out.resolve()), "model": model, "threads": resources["num_cpus"]}
        pool = ray.data.ActorPoolStrategy(size=workers)
        # Ray starts an actor again that has died, and gives its unit to one that lives.
        found = rows.map_batches(Actor, batch_size=1, fn_constructor_kwargs=given, compute=pool, **resources)
        for done in found.iter_rows():
            if done["stopped"]:
                raise RuntimeError(done["stopped"])
            yield Done(done["prompts"], done["failed"], done["tokens"])


@contextmanager
def _started(workers: int) -> Iterator[dict[str, Any]]:
    """The user's own Ray, or one for this run; what each actor gets of it."""
    import ray.data  # pyright: ignore[reportMissingImports]

    ours = not ray.is_initialized()
    folder = tempfile.mkdtemp(prefix="ray-") if ours else None
    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, logger.level
    context.enable_progress_bars = False  # the run has its own
    logger.setLevel(logging.ERROR)
    try:
        if ours:
            os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # it reports to its makers otherwise
            ray.init(
                include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, object_store_memory=_STORE,
                _temp_dir=folder,
            )  # fmt: skip
        there = ray.cluster_resources()
        if workers > there.get("CPU", 1):
            msg = f"{workers} workers need as many processors, and Ray has {there.get('CPU', 1):.0f}; write fewer"
            raise ValueError(msg)
        found: dict[str, Any] = {"num_cpus": int(there.get("CPU", 1)) // workers}
        if there.get("GPU"):
            found["num_gpus"] = 1
        yield found
    finally:
        context.enable_progress_bars = before[0]
        logger.setLevel(before[1])
        if ours:
            ray.shutdown()
            shutil.rmtree(folder or "", ignore_errors=True)


class Actor:
    """A process that answers units with a model of its own."""

    def __init__(self, work: Worker, model: Model, threads: int) -> None:
        """Load the model.

        Raises:
            ValueError: it is not the one that the run was planned with.

        """
        torch.set_num_threads(threads)
        plan = Plan.read(work.out)
        self.work = replace(work, model=model_of(model))
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
            deaths = Deaths(self.work.out / parts.FOLDER / f"deaths-{unit:06d}.json")
            done = Done.of(self.work(self.units[unit], None if deaths(_WHOLE) else deaths))
            deaths.path.unlink()
        except Exception as failure:  # Ray would take it for one of the unit's own, and go on
            stopped = f"{type(failure).__name__}: {failure}"
        found = {"unit": unit, "prompts": done.prompts, "failed": done.failed, "tokens": done.tokens}
        return {name: [value] for name, value in found.items()} | {"stopped": [stopped]}


class Deaths:
    """What of a unit was running when a worker died, in a file that outlives it: the whole, or a prompt alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []

    def __call__(self, n: int) -> bool:
        """Whether a prompt may run. It is written down as if it had died, until the next is."""
        if self.known.count(n) >= _DEATHS:
            return False
        files.write(self.path, json.dumps([*self.known, n]))
        return True
