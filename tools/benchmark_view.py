"""Print how long the page of `graphprune view` takes to write, and to open in headless Chromium.

Usage: .venv/bin/python tools/benchmark_view.py [--model FILE] [--repeats N] [--browser CHROMIUM] [--write]

The models are those of benchmark_analysis.py. A page is open when its graph is drawn and it waits for its reader; every
repeat opens it in a new context, and the median and the slowest are told.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

sys.path.insert(0, str(Path(__file__).parent.parent))  # tools is a folder of the checkout

import graphprune as gp
from tools.benchmark_analysis import large
from tools.documents import fill
from tools.packaged import packaged

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def main() -> None:
    """Measure both pages and print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="a model to use in place of SmolLM2")
    parser.add_argument("--repeats", type=int, default=5, help="how often each page is opened")
    parser.add_argument("--browser", default=shutil.which("chromium"), help="the program; chromium if it is on PATH")
    parser.add_argument("--write", action="store_true", help="write the table into the document that has it")
    options = parser.parse_args()
    if not options.browser:
        parser.error("there is no chromium on PATH; name a browser of its kind with --browser")
    model = options.model or str(packaged())
    lines = [
        "| model | nodes | page size | time to write | median time to open | slowest |",
        "|---|---|---|---|---|---|",
    ]
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=options.browser, args=FLAGS)
        page = Path(folder) / "page.html"
        lines.append(measured("32-layer Llama-2-7B shape, fake tensors", large, browser, page, options.repeats))
        lines.append(measured(Path(model).name, lambda: gp.load(model), browser, page, options.repeats))
        browser.close()
    print("\n".join(lines))
    if options.write:
        fill("benchmark_view", "\n".join(lines))


def measured(name: str, capture: Callable[[], gp.Program], browser: Browser, page: Path, repeats: int) -> str:
    """A row of the table: the page of a model is written once and opened some times."""
    program = capture()
    start = time.perf_counter()
    shown = gp.view(program, output=page, title=name, force=True)
    written = time.perf_counter() - start
    times = [opening(browser, page) for _ in range(repeats)]
    row = (
        name, f"{len(shown['calls']):,}", f"{page.stat().st_size / 1e3:,.0f} kB", f"{written:.1f} s",
        f"{statistics.median(times):.2f} s", f"{max(times):.2f} s",
    )  # fmt: skip
    return f"| {' | '.join(row)} |"


def opening(browser: Browser, page: Path) -> float:
    """The seconds until a page is drawn."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    tab = context.new_page()
    start = time.perf_counter()
    tab.goto(page.as_uri())
    tab.wait_for_selector("html[data-ready]")
    seconds = time.perf_counter() - start
    context.close()
    return seconds


if __name__ == "__main__":
    main()
