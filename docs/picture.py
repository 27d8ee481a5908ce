"""Draws docs/picture.png, the first picture of the README: views of a real model's results, as a notebook shows them.

    python docs/picture.py DIRECTORY_OF_GEMMA_3_270M [--chromium /usr/bin/chromium]

Run it again when the views change. Needs Chromium; playwright and Pillow come with the dev requirements.
"""

import argparse
import html
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

import lens_scopes as ls
from lens_scopes.views import dispatch
from lens_scopes.views.markup import predictions

PICTURE = Path(__file__).with_name("picture.png")
PROMPT = "The capital of France is the city of"
SCOPE = ls.Semantic(" Paris", versus=" Rome")
STYLE = """
body { margin: 0; background: #fff; color: #111; color-scheme: light; font: 14px system-ui, sans-serif }
main { width: 860px; padding: 18px 20px }
h2 { font-size: 16px; margin: 0 0 2px } h2:not(:first-child) { margin-top: 22px }
code { font: 13px ui-monospace, monospace; color: #084594 } .says { margin: 8px 0 4px }
.pair { display: flex; gap: 26px; align-items: flex-end }
"""


def page(model: object) -> str:
    """The question, the code that asks it, and the view that answers, twice."""
    scores = ls.score(model, PROMPT, SCOPE)
    flow = ls.flow(model, PROMPT, SCOPE)
    return (
        f"<!doctype html><meta charset='utf-8'><style>{STYLE}</style><main>"
        "<h2>Which tokens, at which layer, does this prediction depend on?</h2>"
        f"<code>{html.escape(f'ls.score(model, {PROMPT!r}, ls.{SCOPE!r})')}</code>"
        f"<div class='says'>{predictions(scores.meta)}</div>{dispatch.body(scores, 'layers')}"
        "<h2>Through which heads, and along which positions?</h2>"
        f"<code>{html.escape(f'ls.flow(model, {PROMPT!r}, ls.{SCOPE!r})')}</code>"
        f"<div class='pair'><div>{dispatch.body(flow, 'heads')}</div>"
        f"<div>{dispatch.body(flow, 'stream')}</div></div></main>"
    )


def main() -> None:
    """Write the picture and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a directory that ls.load takes")
    parser.add_argument("--chromium", default=shutil.which("chromium") or "/usr/bin/chromium")
    options = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chromium, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 900, "height": 700}, device_scale_factor=2, color_scheme="light")
        tab.set_content(page(ls.load(options.model)))
        drawn = tab.locator("main").screenshot()
        browser.close()
    # Flat colours: a palette shows the same in a third of the size.
    Image.open(io.BytesIO(drawn)).convert("RGB").quantize(255, dither=Image.Dither.NONE).save(PICTURE, optimize=True)
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
