"""The tutorials are stored without output, tell a story, and run on another model (``make docs`` runs them on their own)."""

import importlib.util
import json
import os
from pathlib import Path

import pytest

import tiny

FOLDER = Path(__file__).resolve().parents[1] / "tutorials"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NEEDED = ("ipykernel", "matplotlib", "nbclient", "nbformat")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
#: What every notebook begins with.
MODEL = 'MODEL = "demo"'
#: No network, no bars, no threads that fight for cores.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "PYTHONWARNINGS": "ignore:IProgress not found",
    "OMP_NUM_THREADS": "1",
}

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def another_model(tmp_path_factory) -> Path:
    """A random GPT-2 of two layers, with room for prompts in which every character is a token."""
    path = tmp_path_factory.mktemp("models") / "tiny-gpt2"
    config = tiny.CONFIGS["gpt2"]()
    config.n_positions = 512
    tiny.random_model(config).save_pretrained(path)
    tiny.byte_level_tokenizer().save_pretrained(path)
    return path


def source(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def text(cell: dict) -> str:
    return "".join(cell["source"])


def test_there_are_nine():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{n}_" for n in range(1, 10)]


@every_notebook
def test_stored_without_output_and_with_names_that_stay(path):
    cells = source(path)
    assert 12 <= len(cells) <= 30
    assert [cell for cell in cells if cell.get("outputs") or cell.get("execution_count") is not None] == []
    assert [cell["id"] for cell in cells] == [f"t{path.name[0]}-{i:02d}" for i in range(1, len(cells) + 1)]
    assert json.loads(path.read_text(encoding="utf-8"))["metadata"]["kernelspec"]["name"] == "python3"


@every_notebook
def test_tells_a_story(path):
    """Prose between the cells of code, and every tutorial that it points to is there."""
    cells = source(path)
    assert text(cells[0]).startswith(f"# {path.name[0]}. ")
    assert [cell["cell_type"] for cell in cells].count("markdown") >= 6
    links = [
        link.split(")")[0] for cell in cells if cell["cell_type"] == "markdown" for link in text(cell).split("](")[1:]
    ]
    assert [link for link in links if "://" not in link and not (FOLDER / link).exists()] == []


@every_notebook
def test_the_first_cell_chooses_the_model(path):
    (first, *_) = (cell for cell in source(path) if cell["cell_type"] == "code")
    assert text(first).startswith(MODEL)


def run(path: Path, model: Path) -> None:
    """A notebook with this model, in a kernel of its own."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    first.source = first.source.replace(MODEL, f"MODEL = {str(model)!r}")
    arguments = ["--IPKernelApp.log_level=ERROR"]
    client = NotebookClient(
        notebook, timeout=1200, extra_arguments=arguments, resources={"metadata": {"path": str(FOLDER)}}
    )
    done = client.execute(env=os.environ | ENVIRONMENT)
    assert all(cell.execution_count for cell in done.cells if cell.cell_type == "code")


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
@every_notebook
def test_runs_on_another_model(path, another_model):
    run(path, another_model)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
@pytest.mark.parametrize("path", [NOTEBOOKS[n - 1] for n in (1, 3, 4, 8)], ids=lambda path: path.stem)
def test_runs_on_a_real_model(path, real_directory):
    run(path, real_directory)
