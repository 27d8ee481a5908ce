"""What a release consists of fits together."""

import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import lens_scopes as ls

ROOT = Path(__file__).resolve().parents[1]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_one_version():
    assert re.search(r"^version: (.+)$", read("CITATION.cff"), re.MULTILINE)[1] == ls.__version__
    assert f"## [{ls.__version__}]" in read("CHANGELOG.md")
    try:
        assert version("lens-scopes") == ls.__version__
    except PackageNotFoundError:
        pytest.skip("not installed, run from the checkout")


def test_the_package_is_typed():
    assert (ROOT / "lens_scopes" / "py.typed").is_file()


@pytest.mark.parametrize("name", ["2.18", "3.9", "4.3"])
def test_constraints_pin_what_matters(name):
    pins = dict(re.findall(r"^([a-z0-9-]+)==([^ \n]+)", read(f"constraints/tl-{name}.txt"), re.MULTILINE))
    assert pins["transformer-lens"].startswith(name + ".")
    assert {"torch", "numpy", "transformers", "tokenizers", "pytest", "plotly", "beartype"} <= set(pins)
    assert "+" not in "".join(pins.values())
    if name == "2.18":  # newer ones need numpy 2, which 2.18 does not allow
        assert int(pins["pyarrow"].split(".")[0]) < 26


def test_one_address():
    """Every address on GitHub that could be ours is the repository's."""
    ours = re.compile(r"github(?:usercontent)?\.com/(lens[-_]scopes/[\w-]+)")
    names = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("*.md")] + ["pyproject.toml", "CITATION.cff"]
    names += [
        path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.*") if path.suffix in (".md", ".py")
    ]
    found = {name: set(ours.findall(read(name))) for name in names}
    assert set.union(*found.values()) == {"lens-scopes/lens_scopes"}
    assert all(found[name] for name in ("README.md", "pyproject.toml", "CITATION.cff", "SECURITY.md"))


def test_the_matrix_and_the_makefile_agree():
    makefile = read("Makefile")
    for path in (ROOT / "constraints").glob("tl-*.txt"):
        assert path.stem in makefile
    pins = {re.search(r"^torch==(.+)$", path.read_text(), re.M)[1] for path in (ROOT / "constraints").glob("tl-*.txt")}
    assert pins == {re.search(r"^TORCH := torch==(.+)$", makefile, re.M)[1]}
