"""The picture of the live page: ``python docs/serve_picture.py [DIRECTORY]`` writes docs/serve.png (needs Chromium)."""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

import lens_scopes as ls

MODEL = Path(sys.argv[1] if len(sys.argv) > 1 else "~/.cache/lens_scopes/gemma3-270m").expanduser()
PROMPT = "When Mary and John went to the store, John gave a drink to"
OTHER = PROMPT.replace("John gave", "Mary gave")
#: Where the second prompt is patched in, as row and position of the map.
PLACES = ((9, 10), (14, 14))


def main() -> None:
    with ls.serve(ls.load(MODEL), block=False) as served, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--headless", "--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1000, "height": 900}, color_scheme="light")
        page.set_default_timeout(600_000)
        page.goto(served.address)

        def idle() -> None:
            page.locator(".status[aria-busy=false]").wait_for()

        page.fill("#prompt", PROMPT)
        page.keyboard.press("Control+Enter")
        page.locator("#map canvas").wait_for()
        page.fill("#clean", OTHER)
        page.locator("#clean").blur()
        idle()
        for row, position in PLACES:
            box = page.locator("#map canvas").bounding_box()
            at = {"x": box["width"] * (position + 0.5) / 15, "y": box["height"] * (row + 0.5) / 19}
            page.locator("#map canvas").click(position=at)
            for by in ("Patch", "Mean"):
                page.locator("#place").get_by_role("button", name=by).click()
                idle()
        page.mouse.move(0, 0)
        bottom = page.locator("#heads").bounding_box()["y"] + page.evaluate("scrollY")
        page.screenshot(
            path=Path(__file__).with_name("serve.png"),
            full_page=True,
            clip={"x": 0, "y": 0, "width": 1000, "height": bottom},
        )
        browser.close()


if __name__ == "__main__":
    main()
