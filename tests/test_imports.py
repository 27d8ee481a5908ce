"""Imports point down: the package is a small DAG, importing it is cheap, and TransformerLens is known in one place."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "lens_scopes"

#: From the ground up. A file imports from strictly lower levels only, inside folders too. "scopes" is the folder's
#: __init__, "" what users import.
LEVELS = (
    (
        "sites",
        "results/arguments",
        "results/warning",
        "host/undo",
        "host/differentiable",
        "views/packing",
        "views/pixels",
    ),
    (
        "results/old_schemas",
        "results/labelled",
        "results/provenance",
        "results/text",
        "scopes/prediction",
        "scopes/summands",
    ),
    ("results/alike", "results/sameness", "results/wellformed"),
    (
        "results/difference",
        "results/files",
        "results/spans",
        "scopes/state",
        "host/local",
        "host/model",
        "views/markup",
    ),
    ("results/flow_tables", "results/circuit"),
    (
        "results/scores",
        "results/flow",
        "results/profiles",
        "scopes/protocol",
        "scopes/factor",
        "scopes/sweeps",
        "scopes/twins",
        "host/hooked",
        "views/cells",
        "views/circuits",
        "views/naming",
    ),
    ("results/prompt_means", "results/prediction", "scopes/quantity", "scopes/twins"),
    (
        "scopes/continuation",
        "scopes/direction",
        "scopes/entropy",
        "scopes/fisher",
        "scopes/metric",
        "scopes/semantic",
        "scopes/temperature",
        "views/grids",
    ),
    ("scopes", "results", "views", "views/comparison", "views/maps", "views/profiles"),
    ("views/long",),
    ("views/scores", "views/flow"),
    ("views/side_by_side",),
    ("views/dispatch", "views/explorer_scores", "views/explorer_flow"),
    ("views/explorer",),
    ("views/show", "views/report", "plot/points"),
    ("plot/with_matplotlib_text",),
    ("plot", "plot/with_matplotlib", "plot/with_plotly"),
    ("host/capture", "host/fingerprint", "host/loading", "host/prompts"),
    ("host/readout", "host/axes", "host/joining", "host/roles", "host/starting"),
    ("host/checkpointing",),
    ("host/freeze", "host/generating", "host/hooks"),
    ("host",),
    (
        "calculus",
        "calculus/blocks",
        "calculus/checkable",
        "calculus/finite",
        "calculus/graph_size",
        "calculus/subspace",
    ),
    ("calculus/budget",),
    ("calculus/trace",),
    ("calculus/question", "calculus/flow_options", "calculus/ledger", "calculus/memory", "calculus/reach"),
    ("calculus/describe", "calculus/estimate"),
    ("calculus/pullback", "calculus/pushforward", "calculus/variants"),
    (
        "calculus/branches",
        "calculus/directions",
        "calculus/line",
        "calculus/pair",
        "calculus/reduction",
        "calculus/signs",
    ),
    ("calculus/account", "calculus/paths"),
    ("calculus/replay", "calculus/whole"),
    ("score", "flow", "jacobian"),
    ("check",),
    ("corpus/parts", "corpus/queries", "corpus/rows"),
    ("corpus/attended", "corpus/plan"),
    ("corpus/means", "corpus/worker"),
    ("corpus/ray_pool", "corpus/read"),
    ("corpus/driver",),
    ("corpus",),
    ("patching/contract",),
    ("patching/metric", "patching/compare", "patching/activations", "patching/places"),
    ("patching/path", "patching/value"),
    ("patching/predict",),
    ("patching/ablate", "patching/measure"),
    ("patching/screen",),
    ("patching",),
    ("evaluate/protocol", "evaluate/intervals", "evaluate/journal"),
    ("evaluate/ablation", "evaluate/methods"),
    ("evaluate/curve",),
    ("evaluate/leave_one_out",),
    ("evaluate/table",),
    ("evaluate",),
    ("",),
    ("demo/vocabulary",),
    ("demo/draft", "demo/tokenizer"),
    ("demo/answers", "demo/start"),
    tuple(f"demo/generators/{kind}" for kind in ("induction", "ioi", "persona", "series", "translation")),
    ("demo/generators", "demo/truth"),
    ("demo",),
    ("serve/guard", "serve/calls"),
    ("serve/fields",),
    ("serve/asks",),
    ("serve/recipe",),
    ("serve/answers",),
    ("serve/session",),
    ("serve/app",),
    ("serve/server",),
    ("serve",),
    ("demo/pointing", "demo/train"),
    ("demo/evaluate",),
    ("commands", "commands/prompts", "commands/tables", "commands/terminal"),
    ("commands/bench", "commands/corpus", "commands/live"),
    ("commands/main",),
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
#: Upwards all the same, each inside a function: methods of results that hand over to the function of that name.
DELEGATIONS = {
    *(("results/scores", upper) for upper in ("check", "plot", "views/scores", "views/show")),
    *(("results/flow", upper) for upper in ("check", "plot", "views/flow", "views/show")),
    *(("results/profiles", upper) for upper in ("plot", "views/profiles", "views/show")),
}
#: The front door's doors: the namespaces that ``lens_scopes.__getattr__`` opens on first use.
NAMESPACES = {("", "demo")}
#: Not before they are needed.
HEAVY = {
    "transformer_lens", "transformers", "circuitsvis", "matplotlib", "plotly", "pandas", "scipy", "ray", "pyarrow",
    "duckdb", "xarray", "starlette", "uvicorn",
}  # fmt: skip
#: Loaded by name when somebody asks for that kind of drawing, or as programs of their own.
AT_ONCE = ("plot/with_", "demo", "commands", "serve/app", "serve/server")
#: Names at the package's root, not counting __init__.py and py.typed.
MOST_AT_THE_ROOT = 17


class Import(NamedTuple):
    """One import statement's target, and where it stands."""

    module: str
    lazy: bool
    line: int


def imports(source: str) -> Iterator[Import]:
    """Every module that a file imports, but for annotations only (``if TYPE_CHECKING``).

    ``from lens_scopes.results import files`` imports the module ``results/files``; ``from lens_scopes.scopes import
    Semantic`` the folder's own ``__init__``.
    """

    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inside = lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.ImportFrom):
                for alias in child.names:
                    whole = f"{child.module}.{alias.name}"
                    yield Import(
                        whole if place(whole) in LEVEL else child.module or "",
                        inside,
                        child.lineno,
                    )
            elif isinstance(child, ast.Import):
                yield from (Import(alias.name, inside, child.lineno) for alias in child.names)
            else:
                yield from visit(child, inside)

    return visit(ast.parse(source), False)


def place(module: str) -> str:
    """``lens_scopes.host.model`` -> host/model; ``lens_scopes`` itself -> the empty string."""
    return module.removeprefix("lens_scopes").removeprefix(".").replace(".", "/")


def violations(sources: Mapping[str, str]) -> list[str]:
    """What is wrong in files given by their path inside the package."""
    found = []
    for path, source in sources.items():
        own = name_of(path)
        if own not in LEVEL:
            found.append(f"{path}: module {own!r} has no level; give it one in LEVELS")
            continue
        for imported in imports(source):
            where = f"{path}:{imported.line}"
            top = imported.module.split(".")[0]
            if top == "transformer_lens" and (not own.startswith("host/") or not imported.lazy):
                found.append(f"{where}: transformer_lens is imported by host/ alone, inside functions")
            elif top in HEAVY and not imported.lazy and not own.startswith(AT_ONCE):
                found.append(f"{where}: {top} is heavy, import it where it is used")
            if top != "lens_scopes":
                continue
            other = place(imported.module)
            below = LEVEL.get(other)
            if below is None:
                found.append(f"{where}: {imported.module} has no level")
            elif below < LEVEL[own] or (own, other) in NAMESPACES:
                continue
            elif (own, other) not in DELEGATIONS:
                found.append(f"{where}: {own or '__init__'} imports {other or '__init__'}, which is not below it")
            elif not imported.lazy:
                found.append(f"{where}: {own} hands over to {other}, which it may import inside functions only")
    return found


def name_of(path: str) -> str:
    return path.removesuffix(".py").removesuffix("__init__").removesuffix("/")


def files() -> dict[str, str]:
    return {p.relative_to(PACKAGE).as_posix(): p.read_text(encoding="utf-8") for p in PACKAGE.rglob("*.py")}


def circle(sources: Mapping[str, str], leave_out: frozenset[tuple[str, str]] = frozenset()) -> list[str]:
    """A circle of imports, lazy ones included; empty where there is none."""
    arrows = {
        name_of(path): {
            place(i.module)
            for i in imports(source)
            if i.module.split(".")[0] == "lens_scopes" and (name_of(path), place(i.module)) not in leave_out
        }
        for path, source in sources.items()
    }
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_imports_point_down():
    assert violations(files()) == []


def test_every_level_names_something_that_exists():
    there = {name_of(path) for path in files()}
    gone = [name for name in LEVEL if name not in there]
    assert gone == []
    used = {(name_of(path), place(i.module)) for path, text in files().items() for i in imports(text)}
    assert used >= DELEGATIONS


def test_there_is_no_circle_but_for_the_delegations():
    """Counting imports inside functions too: what the listed delegations leave is a DAG."""
    assert circle(files(), frozenset(DELEGATIONS | NAMESPACES)) == []


def test_a_circle_would_be_found():
    one = {"a.py": "import lens_scopes.b", "b.py": "def f():\n    from lens_scopes.a import x"}
    assert set(circle(one)) == {"a", "b"}
    assert circle(one, frozenset({("b", "a")})) == []
    assert circle(files()) != []  # the delegations themselves, which are why they are listed


def test_the_root_is_seen_at_a_glance():
    names = [p.name for p in PACKAGE.iterdir() if p.name not in ("__init__.py", "py.typed", "__pycache__")]
    assert len(names) <= MOST_AT_THE_ROOT, sorted(names)


def test_nothing_shadows_the_standard_library_and_no_file_is_long():
    names = {path: name_of(path).rpartition("/")[2] for path in files()}
    shadows = {path for path, name in names.items() if name in sys.stdlib_module_names}
    assert shadows == {"calculus/trace.py"}  # the field's word, as in jax.core; never imported as ``trace``
    assert [path for path, text in files().items() if text.count("\n") > 350] == []
    assert [path for path, name in names.items() if name in ("utils", "helpers", "common", "misc")] == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("sites.py", "from lens_scopes.score import score"),
        ("calculus/trace.py", "from lens_scopes.calculus.pullback import pull_back"),
        ("calculus/trace.py", "import lens_scopes.calculus.pullback"),
        ("calculus/trace.py", "from lens_scopes.calculus import pullback"),
        ("score.py", "def f():\n    from lens_scopes import patching"),
        ("score.py", "import lens_scopes as ls"),
        ("host/model.py", "from lens_scopes.scopes.state import FinalState"),
        ("host/capture.py", "from lens_scopes.host import Host"),
        ("calculus/pair.py", "from lens_scopes.patching.metric import metric"),
        ("results/scores.py", "from lens_scopes.check import check_scores"),
        ("results/files.py", "def f():\n    from lens_scopes.check import check_scores"),
        ("score.py", "def f():\n    import transformer_lens"),
        ("host/loading.py", "from transformer_lens import HookedTransformer"),
        ("results/labelled.py", "import pandas as pd"),
        ("utils.py", "import torch"),
        ("score.py", "import lens_scopes.nowhere"),
    ],
)
def test_the_checker_can_fail(path, source):
    assert len(violations({path: source})) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("score.py", "from lens_scopes.calculus.trace import trace"),
        ("host/loading.py", "def f():\n    from transformer_lens import HookedTransformer"),
        ("host/capture.py", "from lens_scopes.host.model import Host"),
        ("results/scores.py", "def f():\n    from lens_scopes.check import check_scores"),
        ("results/labelled.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pandas as pd"),
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
    modules = {f"lens_scopes.{name}" for name in ("corpus", "demo", "evaluate", "patching")}
    for one in ("corpus", "demo", "evaluate", "patching"):
        assert run(code.format(modules=modules, one=one)) == f"lens_scopes.{one}"


def test_every_public_name_is_there_and_nothing_private():
    import lens_scopes as ls

    assert all(hasattr(ls, name) for name in ls.__all__)
    assert [name for name in ls.__all__ if name.startswith("_")] == []
    assert sorted(ls.__all__) == list(ls.__all__)
