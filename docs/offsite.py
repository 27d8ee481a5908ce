"""Says which built pages name a script, style, font or image off the site: ``python docs/offsite.py build/docs``.

Links may go anywhere; what a browser fetches by itself may not. Frames that carry their page in an attribute count.
"""

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

_FETCHED = {"src", "srcset", "poster", "data", "background"}
_IN_STYLE = re.compile(r"""(?:url\(|@import)\s*["']?\s*((?:https?:)?//[^"')\s]+)""")
_AWAY = re.compile(r"\s*(?:https?:)?//")


class _Page(HTMLParser):
    """Collects what a page would fetch from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self._style = tag == "style"
        for name, value in values.items():
            fetched = name in _FETCHED or (tag in ("link", "use", "image") and name in ("href", "xlink:href"))
            if fetched and _AWAY.match(value) and values.get("rel") not in ("canonical", "next", "prev"):
                self.found.append(f"<{tag} {name}={value}>")
            if name == "style":
                self.found += _IN_STYLE.findall(value)
            if name == "srcdoc":
                self.found += of_page(value)

    def handle_endtag(self, tag: str) -> None:
        self._style = self._style and tag != "style"

    def handle_data(self, data: str) -> None:
        if self._style:
            self.found += _IN_STYLE.findall(data)


def of_page(text: str) -> list[str]:
    """What a page names that is not on the site."""
    page = _Page()
    page.feed(text)
    page.close()
    return page.found


def of_site(folder: Path) -> Iterator[str]:
    """The same of every page and style sheet of a site."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".html", ".css"):
            text = path.read_text(encoding="utf-8")
            found = of_page(text) if path.suffix == ".html" else _IN_STYLE.findall(text)
            yield from (f"{path}: {address}" for address in found)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    found = list(of_site(folder))
    print("\n".join(found) or f"{sum(1 for _ in folder.rglob('*.html'))} pages, nothing from off site")
    sys.exit(bool(found))
