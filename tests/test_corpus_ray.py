"""Several workers on Ray: what one process computes, also when workers die. Slow: Ray takes its time to start."""

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest

import lens_scopes as ls
import tiny
from test_corpus_kill import finish, prompts, rows, start, written

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def ray():
    return pytest.importorskip("ray", reason="Ray is not installed: pip install 'lens-scopes[ray]'")


def workers() -> list[int]:
    """The processes of Ray's that hold a model for a run of this test."""
    found = subprocess.run(["pgrep", "-f", "MapWorker"], capture_output=True, text=True, check=False).stdout.split()
    return [int(pid) for pid in found if started_here(pid)]


def started_here(pid: str) -> bool:
    with contextlib.suppress(OSError):
        return f"PYTEST_CURRENT_TEST={os.environ['PYTEST_CURRENT_TEST']}" in Path(f"/proc/{pid}/environ").read_text()
    return False


def test_two_workers_compute_what_one_process_does_also_when_one_is_killed(tmp_path):
    path = prompts(tmp_path / "p.jsonl", 100)
    code, output = finish(path, tmp_path / "here")
    assert code == 0, output
    process = start(path, tmp_path / "ray", 2)
    while written(tmp_path / "ray") == 0 and process.poll() is None:
        time.sleep(0.1)
    os.kill(random.choice(workers()), signal.SIGKILL)
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    pd.testing.assert_frame_equal(rows(tmp_path / "ray"), rows(tmp_path / "here"))
    assert not any(path.name.startswith("deaths") for path in (tmp_path / "ray" / "parts").iterdir())


def test_a_killed_driver_leaves_no_process_and_another_goes_on(tmp_path):
    path = prompts(tmp_path / "p.jsonl", 100)
    process = start(path, tmp_path / "ray", 1)
    while written(tmp_path / "ray") == 0 and process.poll() is None:
        time.sleep(0.1)
    mine = workers()
    process.kill()
    process.communicate()
    end = time.monotonic() + 60
    while time.monotonic() < end and set(mine) & set(workers()):
        time.sleep(1)
    assert not set(mine) & set(workers())
    code, output = finish(path, tmp_path / "ray")
    assert code == 0, output
    assert output.splitlines()[-1] == "98 2 0"


def deadly(state):
    """A scope that kills the process at one prompt."""
    if state.tokens[-1] == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return ls.Semantic()(state)


def test_a_prompt_that_kills_its_worker_is_recorded_and_its_neighbours_are_scored(tmp_path, monkeypatch):
    tests = Path(__file__).resolve().parent
    monkeypatch.setenv("PYTHONPATH", f"{tests.parent}{os.pathsep}{tests}")
    ids = [[1, 2, 3], [4, 5, 7], [6, 5, 4]]
    spec = {"path": str(tiny.directory("gpt2"))}
    found = ls.corpus.run(spec, ids, deadly, tmp_path, workers=1)
    assert (found.done, found.failed) == (2, 1)
    assert found.errors()[["row", "error_kind"]].values.tolist() == [[1, "killed"]]


def test_more_workers_than_processors_are_refused(tmp_path):
    with pytest.raises(ValueError, match="1000 workers need as many processors"):
        ls.corpus.run({"path": str(tiny.directory("gpt2"))}, [[1, 2]], ls.Semantic(), tmp_path, workers=1000)
