"""The documentation has a place for everything public, and its picture of the code is the code's."""

import importlib.util
import re
from collections import defaultdict
from pathlib import Path

import pytest

import lens_scopes as ls
import test_imports

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md")}
ENTRY = re.compile(r"^\.\. (?:auto(?:function|class|module|data)|py:data):: ([\w.]+)$", re.MULTILINE)


def documented() -> list[str]:
    return [name for page in sorted(PAGES) if page.startswith("api/") for name in ENTRY.findall(PAGES[page])]


def tool(name: str):
    """A script of docs/, which is no package."""
    specification = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def built() -> Path:
    """The site, if somebody has built it; ``make docs`` itself runs the same checks."""
    if not (ROOT / "build" / "docs" / "index.html").is_file():
        pytest.skip("no site in build/docs: make docs")
    return ROOT / "build" / "docs"


def test_every_public_name_has_one_place_in_the_api():
    found = documented()
    assert len(set(found)) == len(found)
    assert [name for name in ls.__all__ if f"lens_scopes.{name}" not in found] == []


@pytest.mark.parametrize("namespace", ["corpus", "demo", "evaluate", "patching", "plot"])
def test_and_every_name_of_a_namespace(namespace):
    module = importlib.import_module(f"lens_scopes.{namespace}")
    names = [f"lens_scopes.{namespace}", *(f"lens_scopes.{namespace}.{name}" for name in module.__all__)]
    assert [name for name in names if name not in documented()] == []


def test_every_page_is_in_the_contents():
    listed = re.findall(r"^([\w/]+|tutorials/\*)$", PAGES["index.md"], re.MULTILINE)
    pages = {page.removesuffix(".md") for page in PAGES} - {"index"}
    assert {page for page in pages if not page.startswith("tutorials/")} == set(listed) - {"tutorials/*"}
    assert "tutorials/*" in PAGES["index.md"]


def test_the_table_of_scopes_is_the_readme_s():
    """One source: the README's rows are those of the page, and no scope is without one."""
    (table,) = re.findall(r"<!-- scopes -->(.*)<!-- end of scopes -->", README, re.DOTALL)
    rows = re.findall(r"^\| `(\w+)\(", table, re.MULTILINE)
    entries = [name.rpartition(".")[2] for name in ENTRY.findall(PAGES["api/scopes.md"])]
    assert set(rows) == {name for name in entries if name not in ("FinalState", "Cotangents")}
    assert "| `Semantic" not in PAGES["api/scopes.md"]
    assert all(mark in PAGES["api/scopes.md"] for mark in ("<!-- scopes -->", "<!-- end of scopes -->"))


def parts() -> dict[str, set[str]]:
    """What each folder, or file at the root, imports of the others, but for the delegations."""
    found = defaultdict(set)
    for path, source in test_imports.files().items():
        own = test_imports.name_of(path)
        part = own.split("/")[0] or "lens_scopes"
        found[part] |= set()
        for imported in test_imports.imports(source):
            other = test_imports.place(imported.module)
            if other not in test_imports.LEVEL or (own, other) in test_imports.DELEGATIONS | test_imports.NAMESPACES:
                continue
            found[part] |= {other.split("/")[0] or "lens_scopes"} - {part}
    return dict(found)


def test_a_page_names_what_every_part_imports():
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \|([^|]*)\|$", PAGES["imports.md"], re.MULTILINE)
    assert {part: {name for name in re.split(r"[,\s]+", cell) if name} for part, cell in rows} == parts()
    order = [part for part, _ in rows]
    assert [
        (part, name) for part, names in parts().items() for name in names if order.index(name) >= order.index(part)
    ] == []


def test_the_levels_of_the_architecture_hold():
    block = re.search(r"^```\n(.+?)^```", PAGES["architecture.md"], re.MULTILINE | re.DOTALL)[1]
    levels = [re.split(r", ", re.split(r"  +", line)[0]) for line in reversed(block.splitlines())]
    height = {part: n for n, line in enumerate(levels) for part in line}
    assert sorted(height) == sorted(parts())
    assert [(part, name) for part, names in parts().items() for name in names if height[name] >= height[part]] == []


def test_the_architecture_fits_a_screen():
    """Fifty lines, of which none of the tables' wraps much."""
    lines = PAGES["architecture.md"].splitlines()
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 140


def test_the_architecture_names_files_that_exist():
    written = re.findall(r"`([\w/]+(?:\.py|/))`", PAGES["architecture.md"])
    assert len(written) > 15
    assert [name for name in written if not any((base / name).exists() for base in (ROOT / "lens_scopes", ROOT))] == []


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="//cdn.example/x.css">',
        '<img src="http://example.org/a.png">',
        "<style>@font-face { src: url(https://fonts.example/a.woff2) }</style>",
        '<p style="background: url(//example.org/a.png)">',
        '<iframe srcdoc="&lt;script src=&quot;https://cdn.example/x.js&quot;&gt;&lt;/script&gt;"></iframe>',
    ],
)
def test_what_a_page_fetches_from_elsewhere_is_found(text):
    assert len(tool("offsite").of_page(text)) == 1


def test_links_and_files_of_the_site_are_allowed():
    text = '<a href="https://example.org">x</a><script src="_static/x.js"></script><img src="data:image/png;base64,AA">'
    assert tool("offsite").of_page(text + "<pre>url(https://example.org)</pre>") == []


def test_the_built_site_fetches_nothing_from_elsewhere(built):
    assert list(tool("offsite").of_site(built)) == []


def test_the_built_site_has_no_dead_link(built):
    assert list(tool("deadlinks").of_site(built)) == []


@pytest.mark.parametrize("link", ["b.html", "b.html#here", "#top", "https://example.org/x"])
def test_a_link_that_leads_somewhere_is_allowed(link, tmp_path):
    assert dead_of(tmp_path, link) == []


@pytest.mark.parametrize("link", ["c.html", "b.html#there", "#here", "../a.html"])
def test_a_link_that_leads_nowhere_is_found(link, tmp_path):
    assert len(dead_of(tmp_path, link)) == 1


def dead_of(folder: Path, link: str) -> list[str]:
    """What is found in a site of two pages, one of which has this link."""
    (folder / "a.html").write_text(f'<h1 id="top">a</h1><a href="{link}">x</a>', encoding="utf-8")
    (folder / "b.html").write_text('<p id="here">b</p>', encoding="utf-8")
    return list(tool("deadlinks").of_site(folder))
