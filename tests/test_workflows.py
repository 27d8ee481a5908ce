"""The hosted workflows are YAML, ask for little, end in time, and run targets that the Makefile has."""

import re
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml", reason="pyyaml is not installed")

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
OTHERS = [ROOT / ".github" / "dependabot.yml", *sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))]

every_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([\w.-]+):(?!=)", makefile, re.MULTILINE))


def asked(workflow: dict) -> list[str]:
    """Every target that it makes, with the matrix written out."""
    found = []
    for job in workflow["jobs"].values():
        values = job.get("strategy", {}).get("matrix", {})
        for step in job["steps"]:
            for target in re.findall(r"\bmake ((?:\$\{\{.*?\}\}|[\w.-])+)", step.get("run", "")):
                variable = re.fullmatch(r"\$\{\{ matrix\.(\w+) \}\}", target)
                found += values[variable[1]] if variable else [target]
    return found


def test_there_are_three():
    assert [path.stem for path in WORKFLOWS] == ["ci", "docs", "release"]


@every_workflow
def test_runs_targets_of_the_makefile(path):
    found = asked(read(path))
    assert found
    assert [target for target in found if target not in targets()] == []


def test_ci_runs_everything():
    assert {"lint", "test", "typed", "demo", "docs", "dist", "coverage", "matrix-4.3", "matrix-2.18"} == set(
        asked(read(WORKFLOWS[0]))
    )


@every_workflow
def test_asks_for_little_and_ends_in_time(path):
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["group"]
    assert [name for name, job in workflow["jobs"].items() if not job.get("timeout-minutes")] == []


@every_workflow
def test_actions_are_pinned_by_commit(path):
    """A tag can be moved; the version behind the hash is for people, and for dependabot."""
    lines = re.findall(r"uses: (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert lines
    assert [line for line in lines if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)] == []


def test_an_action_has_one_pin():
    found = {line for path in WORKFLOWS for line in re.findall(r"uses: (.+)$", path.read_text(encoding="utf-8"), re.M)}
    assert len({line.partition("@")[0] for line in found}) == len(found)


@every_workflow
def test_no_token_is_left_in_the_checkout(path):
    steps = [step for job in read(path)["jobs"].values() for step in job["steps"]]
    checkouts = [step for step in steps if step.get("uses", "").startswith("actions/checkout@")]
    assert checkouts
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.stem)
def test_the_other_files_are_yaml(path):
    assert isinstance(read(path), dict)
