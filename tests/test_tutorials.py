"""The tutorials run from top to bottom, on the model that they name and on another; they are stored without output."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

import tiny

FOLDER = Path(__file__).resolve().parents[1] / "tutorials"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NEEDED = ("ipykernel", "matplotlib", "nbclient", "nbformat")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]

needs_jupyter = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def render():
    """The module that runs and writes them, which is no package."""
    specification = importlib.util.spec_from_file_location("render", FOLDER / "render.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


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


def test_there_are_seven():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{n}_" for n in range(1, 8)]


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


@needs_jupyter
@every_notebook
def test_runs(path, render):
    done = render.execute(path)
    assert all(cell.execution_count for cell in done.cells if cell.cell_type == "code")
    assert sum(bool(cell.outputs) for cell in done.cells if cell.cell_type == "code") >= 5


@needs_jupyter
@every_notebook
def test_runs_on_another_model(path, render, another_model):
    (first, *_) = (cell for cell in source(path) if cell["cell_type"] == "code")
    assert text(first).startswith(render.MODEL)
    done = render.execute(path, model=another_model)
    assert str(another_model) in next(cell.source for cell in done.cells if cell.cell_type == "code")


@needs_jupyter
def test_the_kernel_is_this_interpreter(render, tmp_path):
    import nbformat

    cells = [f"{render.MODEL}\nimport sys, os\nprint(sys.executable, os.environ['HF_HUB_OFFLINE'])"]
    path = tmp_path / "one.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]), path)
    (printed,) = render.execute(path).cells[0].outputs
    python, offline = printed["text"].split()
    assert Path(python).samefile(sys.executable)
    assert offline == "1"


@needs_jupyter
def test_an_error_stops_and_another_first_cell_is_refused(render, tmp_path):
    import nbformat
    from nbclient.exceptions import CellExecutionError

    def notebook(*cells: str) -> Path:
        path = tmp_path / "bad.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]), path)
        return path

    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        render.execute(notebook(render.MODEL, "1 / 0"))
    with pytest.raises(ValueError, match=r"first code cell of bad.ipynb has to hold 'MODEL = "):
        render.execute(notebook("model = None"))


@needs_jupyter
def test_pages_load_nothing(render):
    pytest.importorskip("nbconvert", reason="nbconvert is not installed")
    import nbformat

    cells = [nbformat.v4.new_markdown_cell("# A page\n\nx < y & z"), nbformat.v4.new_code_cell("1 + 1")]
    page = render.page(nbformat.v4.new_notebook(cells=cells), "a page")
    assert "default-src 'none'" in page
    assert "x &lt; y &amp; z" in page
    for tag in ("<script src", "<link", "@import", "url(http", "url(//"):
        assert tag not in page
