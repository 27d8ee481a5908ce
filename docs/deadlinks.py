"""Says which links inside the built site lead nowhere: ``python docs/deadlinks.py build/docs``.

Sphinx follows the links that it makes, but not those that the README writes in full and ``conf.py`` turns into pages.
"""

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    """Collects where a page points, and the places in it that can be pointed at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del tag  # any element can carry one
        values = dict(attrs)
        self.places |= {value for name in ("id", "name") if (value := values.get(name))}
        self.links += [value for name in ("href", "src") if (value := values.get(name))]


def of_site(folder: Path) -> Iterator[str]:
    """Every link to a file of the site, or to a place in one, that is not there."""
    pages = {path.resolve(): _Page(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html"))}
    for path, page in pages.items():
        for link in page.links:
            address = urlsplit(link)
            if address.scheme or address.netloc:
                continue
            file = (path.parent / unquote(address.path)).resolve() if address.path else path
            place = unquote(address.fragment)
            if not file.is_file() or (place and file in pages and place not in pages[file].places):
                yield f"{path}: {link}"


if __name__ == "__main__":
    found = list(of_site(Path(sys.argv[1])))
    print("\n".join(found) or "no dead link")
    sys.exit(bool(found))
