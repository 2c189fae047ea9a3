"""Take the picture of `graphprune view` that the documents show.

Usage: .venv/bin/python tools/docs/screenshot.py MODEL [--click WORD] [--output FILE]
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

import graphprune as gp

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
PICTURE = Path(__file__).parent / "pages" / "pictures" / "view.png"


def main() -> None:
    """Write the page of a model, light a group up, and take the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--click", default="gate_proj", help="the group to light up: the first that is found by this")
    parser.add_argument("--output", type=Path, default=PICTURE)
    parser.add_argument("--browser", default=shutil.which("chromium"), help="the program; chromium if it is on PATH")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = Path(folder) / "page.html"
        gp.view(options.model, output=path)
        browser = playwright.chromium.launch(executable_path=options.browser, args=FLAGS)
        page = browser.new_page(viewport={"width": 1200, "height": 720})
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]")
        page.keyboard.press("/")
        page.keyboard.type(options.click)
        page.keyboard.press("Enter")
        page.wait_for_timeout(500)
        page.screenshot(path=options.output)
        browser.close()


if __name__ == "__main__":
    main()
