"""Imports point down: the package is a small DAG, importing it is cheap, and TransformerLens is known in one place."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "lens_scopes"

#: A module (or package) imports from strictly lower levels only. "" is lens_scopes/__init__.py, what users import.
LEVELS = {
    name: level
    for level, names in enumerate(
        (
            ("html", "results", "sites"),
            ("circuits", "grids", "host", "state"),
            ("flows_html", "scores_html"),
            ("flows", "fisher", "ledger", "pushforward", "scopes", "scores", "trace"),
            ("memory", "provenance", "tables"),
            ("paths", "pullback"),
            ("flow", "jacobian", "score"),
            ("check", "corpus", "evaluate", "patching"),
            ("explorer", "views"),
            ("plot", "show"),
            ("report",),
            ("",),
            ("demo",),
            ("terminal",),
            ("cli_bench",),
            ("cli",),
        )
    )
    for name in names
}
#: Upwards all the same: methods of results that hand over to a function, and the demo as a part of the public names.
#: Those from a module of results must stand inside a function.
DELEGATIONS = {(one, other) for one in ("flows", "scores") for other in ("check", "plot", "show")}
DELEGATIONS |= {("patching", "plot"), ("", "demo")}
#: Not before they are needed.
HEAVY = {"transformer_lens", "transformers", "circuitsvis", "matplotlib", "plotly", "pandas", "scipy", "ray", "pyarrow"}

#: Loaded by name, when somebody asks for that kind of drawing.
BY_REQUEST = re.compile(r"plot/with_\w+\.py")


class Import(NamedTuple):
    """One import statement's target, and where it stands."""

    module: str
    lazy: bool
    line: int


def imports(source: str, root: str = "lens_scopes") -> Iterator[Import]:
    """Every module that a file imports, but for annotations only (``if TYPE_CHECKING``)."""

    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inside = lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.ImportFrom):
                names = [child.module or ""] if child.module != root else [f"{root}.{a.name}" for a in child.names]
                yield from (Import(name, inside, child.lineno) for name in names)
            elif isinstance(child, ast.Import):
                yield from (Import(alias.name, inside, child.lineno) for alias in child.names)
            else:
                yield from visit(child, inside)

    return visit(ast.parse(source), False)


def component(module: str) -> str:
    """``lens_scopes.host.model`` -> host; ``lens_scopes`` itself and its names -> the empty string."""
    name = module.split(".")[1] if "." in module else ""
    return name if name in LEVELS or (PACKAGE / f"{name}.py").exists() or (PACKAGE / name).is_dir() else ""


def violations(sources: Mapping[str, str]) -> list[str]:
    """What is wrong in files given by their path inside the package."""
    found = []
    for path, source in sources.items():
        own = path.removesuffix(".py").split("/")[0].removesuffix("__init__")
        if own not in LEVELS:
            found.append(f"{path}: module {own!r} has no level; give it one in LEVELS")
            continue
        for imported in imports(source):
            where = f"{path}:{imported.line}"
            top = imported.module.split(".")[0]
            if top == "transformer_lens" and (own != "host" or not imported.lazy):
                found.append(f"{where}: transformer_lens is imported by host/ alone, inside functions")
            elif top in HEAVY and not imported.lazy and own not in ("demo", "cli") and not BY_REQUEST.match(path):
                found.append(f"{where}: {top} is heavy, import it where it is used")
            if top != "lens_scopes":
                continue
            other = component(imported.module)
            if other == own or LEVELS.get(other, 99) < LEVELS[own]:
                continue
            if (own, other) not in DELEGATIONS:
                found.append(f"{where}: {own or '__init__'} imports {other or '__init__'}, which is not below it")
            elif own and not imported.lazy:
                found.append(f"{where}: {own} hands over to {other}, which it may import inside functions only")
    return found


def test_imports_point_down():
    files = {str(path.relative_to(PACKAGE).as_posix()): path for path in PACKAGE.rglob("*.py")}
    assert violations({name: path.read_text(encoding="utf-8") for name, path in files.items()}) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("sites.py", "from lens_scopes.score import score"),
        ("trace.py", "from lens_scopes.pullback import pull_back"),
        ("trace.py", "import lens_scopes.pullback"),
        ("trace.py", "from lens_scopes import pullback"),
        ("score.py", "def f():\n    from lens_scopes import patching"),
        ("score.py", "import lens_scopes as ls"),
        ("host/model.py", "from lens_scopes.state import FinalState"),
        ("scores.py", "from lens_scopes.check import check_scores"),
        ("score.py", "def f():\n    import transformer_lens"),
        ("host/loading.py", "from transformer_lens import HookedTransformer"),
        ("results.py", "import pandas as pd"),
        ("utils.py", "import torch"),
    ],
)
def test_the_checker_can_fail(path, source):
    assert len(violations({path: source})) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("score.py", "from lens_scopes.trace import trace"),
        ("host/loading.py", "def f():\n    from transformer_lens import HookedTransformer"),
        ("host/capture.py", "from lens_scopes.host.model import Host"),
        ("scores.py", "def f():\n    from lens_scopes.check import check_scores"),
        ("results.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pandas as pd"),
        ("demo/pointing.py", "import lens_scopes as ls"),
    ],
)
def test_the_checker_can_pass(path, source):
    assert violations({path: source}) == []


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_imports_neither_host_nor_plotting():
    loaded = set(run("import sys, lens_scopes; print(*{name.split('.')[0] for name in sys.modules})").split())
    assert "torch" in loaded
    assert loaded & (HEAVY | {"rich", "typer", "safetensors"}) == set()


def test_namespaces_wait_until_they_are_used():
    code = "import sys, lens_scopes as ls; print(*(n for n in sys.modules if n in {modules}), ls.{one}.__name__)"
    modules = {f"lens_scopes.{name}" for name in ("demo", "evaluate", "patching")}
    for one in ("demo", "evaluate", "patching"):
        assert run(code.format(modules=modules, one=one)) == f"lens_scopes.{one}"


def test_every_public_name_is_there_and_nothing_private():
    import lens_scopes as ls

    assert all(hasattr(ls, name) for name in ls.__all__)
    assert [name for name in ls.__all__ if name.startswith("_")] == []
    assert sorted(ls.__all__) == list(ls.__all__)
