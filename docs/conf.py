"""The documentation site: ``make docs``. Nothing is fetched, every warning is an error, every notebook runs."""

import os
import re
import shutil
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

import lens_scopes

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
REPOSITORY = "https://github.com/lens-scopes/lens_scopes"
FILES = f"{REPOSITORY}/blob/main/"
FIRST = "1_first_look.ipynb"
PICTURES = "https://raw.githubusercontent.com/lens-scopes/lens_scopes/main/docs/"

# For the kernels of the notebooks: no network, no bars that a page cannot show, no threads that fight for cores.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "PYTHONWARNINGS": "ignore:IProgress not found",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}

project = "lens_scopes"
author = "The lens_scopes authors"
copyright = author
version = release = lens_scopes.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"lens_scopes\.(results\.provenance\.Note|host\.capture\.Seen)"),
    # Other people's names have no page here, and there is no network to look for one.
    (r"py:.*", r"(torch|jaxtyping|collections|typing|pathlib|pandas|matplotlib|plotly|numpy|nbclient|types|enum)\b.*"),
    (r"py:.*", r"pd\..*|'.*|'"),
    (r"py:.*", r"(optional|Path|Tensor|ndarray|np.ndarray|Any|None|Axes|Figure|DataFrame|Callable|Sequence|Mapping)"),
    (
        r"py:.*",
        r"(bool|int|float|str|dict|list|tuple|set|object|bytes|frozenset|type|slice|range|[A-Z]\w+(Error|Warning))",
    ),
]

default_role = "code"
highlight_language = "text"  # of blocks that name none
smartquotes = False  # "--sources" has two dashes
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Raises when called", "params_style")]

myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # a page may begin with a part of the README
nb_execution_mode = "force"
nb_execution_show_tb = True  # in the warning that a failing cell is, and that -W makes an error; raising would hide it
nb_execution_timeout = 600
nb_merge_streams = True
nb_ipywidgets_js = {}

html_theme = "furo"
html_title = "lens_scopes"
html_show_sphinx = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
pygments_style = "friendly"
pygments_dark_style = "github-dark"


def bring_tutorials() -> None:
    """Copy the notebooks to where Sphinx looks for pages (a folder that git ignores)."""
    target = HERE / "tutorials"
    target.mkdir(exist_ok=True)
    for gone in {path.name for path in target.glob("*.ipynb")} - {
        path.name for path in (ROOT / "tutorials").glob("*.ipynb")
    }:
        (target / gone).unlink()
    for path in (ROOT / "tutorials").glob("*.ipynb"):
        shutil.copyfile(path, target / path.name)


class OurOwnAddresses(SphinxTransform):
    """The README names its files by their address in the repository, which PyPI needs; here they are pages."""

    default_priority = 10

    def apply(self) -> None:
        """Pictures become files of the site, links to documents become links to pages."""
        for image in self.document.findall(nodes.image):
            image["uri"] = image["uri"].replace(PICTURES, "/")
        for link in self.document.findall(nodes.reference):
            address = link.get("refuri", "").replace(f"{REPOSITORY}/tree/main/tutorials", f"{FILES}tutorials/{FIRST}")
            page = re.fullmatch(re.escape(FILES) + r"(?:docs/(\w+)\.md|(tutorials/\w+)\.ipynb)", address)
            if page:
                name = page[1] or page[2]
                link["refuri"] = f"{'../' * self.env.docname.count('/')}{name}.html"


def as_restructured_text(_app: Sphinx, what: str, _name: str, _obj: object, _options: object, lines: list[str]) -> None:
    """What our docstrings write and reStructuredText or napoleon would read as something else.

    Bars and single stars are themselves; a colon in the first line of an attribute or of "Returns" ends no type; the
    name of a section has no brackets.
    """
    for i, line in enumerate(lines):
        parts = re.split("(``.*?``|`.*?`)", line)
        parts[::2] = [part.replace("|", "\\|") for part in parts[::2]]
        if line.count("*") == 1:
            parts[::2] = [part.replace("*", "\\*") for part in parts[::2]]
        lines[i] = "".join(parts)
    if what in ("attribute", "property", "data") and lines:
        lines.insert(0, "\\ ")
    lines[:] = [re.sub(r"^( *Raises) \(when called\):$", r"\1 when called:", line) for line in lines]
    for i in [i for i, line in enumerate(lines) if line.strip() == "Returns:"][::-1]:
        lines.insert(i + 1, re.match(r"\s*", lines[i + 1])[0] + "\\ ")  # type: ignore[index]


def commands() -> str:
    """The command line as a page, from what it says of itself."""
    from typer.main import get_command

    from lens_scopes.commands.main import app

    parts = []
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        parts += [f"## {name}", " ".join((command.help or "").split())]
        if command.epilog:
            parts.append(f"```\n{command.epilog.removeprefix('Example: ')}\n```")
        rows = ["| | |", "|---|---|"]
        for parameter in command.params:
            flags = parameter.opts if parameter.param_type_name == "option" else [parameter.name.upper()]
            text = " ".join((getattr(parameter, "help", "") or "").split()).replace("|", "\\|")
            rows.append(f"| {', '.join(f'`{flag}`' for flag in flags)} | {text} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


def write_commands(_app: Sphinx, docname: str, source: list[str]) -> None:
    """Put them where the page says."""
    if docname == "api/commands":
        source[0] = re.sub("<!-- commands.*-->", lambda _: commands(), source[0])


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    bring_tutorials()
    app.connect("autodoc-process-docstring", as_restructured_text, priority=400)
    app.connect("source-read", write_commands)
    app.add_transform(OurOwnAddresses)
