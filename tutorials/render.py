"""Run the tutorials and write them as readable pages: ``python tutorials/render.py [directory]``.

The notebooks are stored without output. Each is run in a fresh kernel of this interpreter and written as one HTML file
that loads nothing: no script, style or font from anywhere else.
"""

import os
import re
import sys
import time
from pathlib import Path

import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from traitlets import default

HERE = Path(__file__).resolve().parent
NOTEBOOKS = tuple(sorted(HERE.glob("*.ipynb")))

# What every notebook begins with; ``execute`` puts another model there.
MODEL = 'MODEL = "demo"'
# No network, no bars that a page cannot show, no threads that fight for cores.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "PYTHONWARNINGS": "ignore:IProgress not found",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

# nbconvert's own page without the libraries that it would load (formulae, diagrams, widgets: the tutorials have none),
# and with a policy that says so.
_TEMPLATE = """{% extends 'lab/index.html.j2' %}
{% block html_head_js %}<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:;
font-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">{% endblock %}
{% block jupyter_widgets %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block html_head_css %}<style>
main { max-width: 60rem; margin: 0 auto }
.jp-InputPrompt, .jp-OutputPrompt { display: none }
</style>{% endblock %}
"""


class _ThisInterpreter(AsyncKernelManager):
    """Runs "python3" as the interpreter that runs this, whatever kernels are installed elsewhere."""

    @default("kernel_spec_manager")
    def _nowhere_to_look(self) -> KernelSpecManager:
        return KernelSpecManager(kernel_dirs=[])


def execute(path: Path, *, model: str | Path | None = None, timeout: int = 600) -> nbformat.NotebookNode:
    """Run a notebook from top to bottom in a kernel of this interpreter.

    Args:
        path: the notebook; the file is left as it is.
        model: what to write in place of "demo" in its first code cell.
        timeout: of one cell, in seconds.

    Returns:
        The notebook with its output.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
        ValueError: the first code cell does not choose the model.

    """
    notebook = nbformat.read(path, as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    if first.source.count(MODEL) != 1:
        msg = f"the first code cell of {path.name} has to hold {MODEL!r}, it is {first.source!r}"
        raise ValueError(msg)
    if model is not None:
        first.source = first.source.replace(MODEL, f"MODEL = {str(model)!r}")
    client = NotebookClient(
        notebook,
        kernel_manager_class=_ThisInterpreter,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        timeout=timeout,
        resources={"metadata": {"path": str(HERE)}},
    )
    return client.execute(env=os.environ | _ENVIRONMENT)


def page(notebook: nbformat.NotebookNode, title: str) -> str:
    """An executed notebook as one HTML file."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(raw_template=_TEMPLATE, embed_images=True)
    text, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": title}})
    return re.sub(r'href="(\w+)\.ipynb"', r'href="\1.html"', text)  # the others are pages, too


def main(directory: str = "build/tutorials") -> None:
    """Execute and write all of them."""
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    for path in NOTEBOOKS:
        start = time.monotonic()
        text = page(execute(path), path.stem)
        (target / f"{path.stem}.html").write_text(text, encoding="utf-8")
        print(f"{target / path.stem}.html: {len(text) / 1e6:.1f} MB, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
