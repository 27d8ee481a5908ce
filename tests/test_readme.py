"""The README is true: its code runs, the commands and files it names exist."""

import re
from pathlib import Path

import pytest

from lens_scopes import demo
from tiny import BACKENDS

ROOT = Path(__file__).resolve().parents[1]
OURS = r"https://(?:github|raw\.githubusercontent)\.com/lens-scopes/lens_scopes"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language, or of none."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(not (demo.MODEL_DIR / "config.json").is_file(), reason="the demo model is not trained yet")
@pytest.mark.skipif(set(BACKENDS) < {"hooked", "bridge"}, reason="the README shows both hosts; this version has one")
def test_the_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = blocks(README, "python")
    assert len(found) >= 2
    names: dict = {}
    for i, code in enumerate(found):
        exec(compile(code, f"README.md, python block {i}", "exec"), names)
    assert (tmp_path / "fisher.safetensors").is_file()
    assert names["scores"].dims == ("site", "pos")
    assert names["fisher"].stderr is not None
    assert names["flow"].residual < 1e-4
    assert (tmp_path / "report.html").is_file()


def test_the_commands_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = re.findall(r"^make (\w+)", "\n".join(blocks(README, "")), flags=re.MULTILINE)
    assert {"demo", "test"} <= set(commands)
    assert [name for name in commands if not re.search(rf"^{name}:", makefile, flags=re.MULTILINE)] == []


def test_the_files_it_points_to_exist():
    """By their whole address, so that the links also work where the README stands alone: on PyPI, on the site."""
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert [link for link in links if "://" not in link] == []
    files = [match[1] for link in links if (match := re.match(rf"{OURS}(?:/main|/blob/main|/tree/main)/(.+)", link))]
    assert len(files) > 8
    assert [name for name in files if not (ROOT / name).exists()] == []


def test_every_public_name_it_writes_exists():
    import lens_scopes as ls

    names = set(re.findall(r"\bls\.(\w+)", README))
    assert {"score", "Semantic", "Fisher", "load"} <= names
    assert [name for name in names if not hasattr(ls, name)] == []
