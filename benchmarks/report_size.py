"""A report of a 64-token prompt on a model of 12 layers with 12 heads: how many bytes, and how long until it answers.

    python benchmarks/report_size.py [--rounds 5] [--tokens 64] [--chromium /usr/bin/chromium]

The numbers in the report are random, those of the model's size are not. The time is from asking for the page to the
explorer's first answer, in a headless Chromium that is already running; the fastest of some rounds, and all of them.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

import lens_scopes as ls

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from shown import flow, scores


def main() -> None:
    """Print the size and the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--chromium", default=shutil.which("chromium") or "/usr/bin/chromium")
    options = parser.parse_args()
    words = [f" word{i}" for i in range(options.tokens)]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        start = time.perf_counter()
        path = ls.report([scores(words, sites=13), flow(words, layers=12, heads=12)], Path(folder) / "report.html")
        print(f"{path.stat().st_size / 1e6:.2f} MB, written in {time.perf_counter() - start:.2f} s")
        browser = playwright.chromium.launch(executable_path=options.chromium, args=["--no-sandbox", "--disable-gpu"])
        times = []
        for _ in range(options.rounds):
            page = browser.new_page()
            start = time.perf_counter()
            page.goto(path.as_uri())
            page.wait_for_selector("button[aria-pressed=true]")
            times.append(time.perf_counter() - start)
            page.close()
        browser.close()
    print(f"opens in {min(times):.2f} s (all rounds: {', '.join(f'{t:.2f}' for t in times)})")


if __name__ == "__main__":
    main()
