"""A run that is killed, at any moment, goes on as if it had not been: each prompt once, the same bits."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

import lens_scopes as ls

TESTS = Path(__file__).resolve().parent


def prompts(path: Path, n: int) -> Path:
    """So many prompts as JSON Lines, two of them bad."""
    lines = [json.dumps({"prompt": case.prompt, "kind": case.kind}) for case in ls.demo.cases(n=n - 2, seed=3)]
    path.write_text("\n".join([*lines, '""', "no JSON"]), encoding="utf-8")
    return path


def start(*arguments: object) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TESTS / "corpus_run.py"), *map(str, arguments)]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=hear_ctrl_c, **output)


def hear_ctrl_c():
    """Whoever runs the tests in the background of a script ignores it, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finish(*arguments: object) -> tuple[int, str]:
    process = start(*arguments)
    output, _ = process.communicate(timeout=900)
    return process.returncode, output


def rows(out: Path) -> pd.DataFrame:
    found = ls.corpus.open(out)
    assert found.todo == 0
    return found.prompts().df().sort_values("row").drop(columns="seconds").reset_index(drop=True)


def written(out: Path) -> int:
    return len(list((out / "parts").glob("part-*.parquet")))


def kill_some(kills: int, arguments: list, out: Path, rng: random.Random) -> int:
    """Start runs and kill each, with all of its processes, a moment after it has written something new."""
    done = 0
    for _ in range(kills):
        process, before = start(*arguments), written(out)
        while process.poll() is None and written(out) == before:
            time.sleep(0.02)
        time.sleep(rng.random())
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            done += 1
        process.communicate()
    return done


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    code, output = finish(prompts(folder / "p.jsonl", 60), folder / "out")
    assert code == 0, output
    assert output.splitlines()[-1] == "58 2 0"
    return folder / "p.jsonl", rows(folder / "out")


def test_a_run_killed_at_random_moments_gives_every_prompt_once_and_the_same_bits(uninterrupted, tmp_path):
    path, expected = uninterrupted
    seed = random.SystemRandom().randrange(10**6)
    print("seed", seed)
    assert kill_some(2, [path, tmp_path], tmp_path, random.Random(seed)) > 0
    code, output = finish(path, tmp_path)
    assert code == 0, output
    pd.testing.assert_frame_equal(rows(tmp_path), expected)


@pytest.mark.parametrize("fault", ["fsync", "rename"])
def test_a_power_failure_leaves_at_most_a_file_that_is_deleted(uninterrupted, tmp_path, fault):
    path, expected = uninterrupted
    assert finish(path, tmp_path, 0, fault)[0] == 9
    assert written(tmp_path) == 1
    assert len(list((tmp_path / "parts").iterdir())) == 2
    assert ls.corpus.open(tmp_path).todo > 0
    code, output = finish(path, tmp_path)
    assert code == 0, output
    assert len(list((tmp_path / "parts").iterdir())) == written(tmp_path)
    pd.testing.assert_frame_equal(rows(tmp_path), expected)


def test_no_room_left_is_an_error_and_leaves_nothing_half_written(uninterrupted, tmp_path):
    path, _ = uninterrupted
    code, output = finish(path, tmp_path, 0, "room")
    assert code == 1
    assert "OSError" in output
    assert list((tmp_path / "parts").iterdir()) == []


def test_ctrl_c_finishes_the_unit_in_work(uninterrupted, tmp_path):
    path, expected = uninterrupted
    process = start(path, tmp_path)
    while written(tmp_path) == 0:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=100)
    assert process.returncode != 0
    assert "the unit in work is finished first" in output
    assert "the same call goes on from here" in output
    assert written(tmp_path) > 0
    assert ls.corpus.open(tmp_path).todo > 0
    code, output = finish(path, tmp_path)
    assert code == 0, output
    pd.testing.assert_frame_equal(rows(tmp_path), expected)


@pytest.mark.slow
def test_ten_kills_of_two_thousand_prompts(tmp_path):
    seed = random.SystemRandom().randrange(10**6)
    print("seed", seed)
    path = prompts(tmp_path / "p.jsonl", 2000)
    assert finish(path, tmp_path / "whole")[0] == 0
    kills = kill_some(10, [path, tmp_path / "out"], tmp_path / "out", random.Random(seed))
    assert kills == 10
    code, output = finish(path, tmp_path / "out")
    assert code == 0, output
    found = rows(tmp_path / "out")
    assert found.id.is_unique
    assert len(found) == 2000
    pd.testing.assert_frame_equal(found, rows(tmp_path / "whole"))
