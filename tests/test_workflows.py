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
    assert {"lint", "test", "typed", "demo", "docs", "dist", "matrix-4.3", "matrix-2.18"} == set(
        asked(read(WORKFLOWS[0]))
    )


@every_workflow
def test_asks_for_little_and_ends_in_time(path):
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["group"]
    assert [name for name, job in workflow["jobs"].items() if not job.get("timeout-minutes")] == []


@every_workflow
def test_actions_have_a_version_and_say_where_they_live(path):
    lines = re.findall(r"uses: (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert lines
    for line in lines:
        action, _, where = line.partition(" # ")
        name, _, version = action.partition("@")
        assert re.fullmatch(r"v\d+(\.\d+)*", version), line
        assert where == f"https://github.com/{name}", line


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.stem)
def test_the_other_files_are_yaml(path):
    assert isinstance(read(path), dict)
