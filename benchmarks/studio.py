"""How long one waits for the studio: first paint and refresh with many runs, and with a very long one.

    python benchmarks/studio.py                         10,000 runs and a run of 5,000 steps, in Chromium if it is there
    python benchmarks/studio.py --runs 1000 --steps 500 --rounds 3 --no-browser

Times are wall clock on this machine, the median of `--rounds`: they say whether one waits, and are no comparison.
Reading is measured in this process, the rest in a browser against the real command.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import studio_store

from nano_vm import SqliteStore
from nano_vm.observe.svg import run_svg
from nano_vm.studio.library import Library
from nano_vm.studio.meter import Meter
from nano_vm.studio.settings import Settings

CHROMIUM = Path("/usr/bin/chromium")
LONG = "long-run"


def median_ms(work: Callable[[], Any], rounds: int) -> float:
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        found.append((time.perf_counter() - began) * 1_000)
    return statistics.median(found)


def reading(path: Path, rounds: int) -> dict[str, float]:
    """What the pages read, without any page."""

    def fresh() -> Library:
        return Library(Settings(open_store=lambda: SqliteStore(path), path=path))

    def opened(work: Callable[[Library], Any]) -> Callable[[], None]:
        def once() -> None:
            library = fresh()
            work(library)
            library.close()

        return once

    warm = fresh()
    warm.shelf()
    warm.sight(LONG)

    def counted(library: Library) -> None:
        meter = Meter(library)
        while not meter.advance():
            pass

    found = {
        "list of all runs, first": median_ms(opened(Library.shelf), rounds),
        "list of all runs, unchanged": median_ms(warm.shelf, rounds),
        "filter by part of an id": median_ms(lambda: warm.shelf().find(text="777"), rounds),
        "long run folded, first": median_ms(opened(lambda library: library.sight(LONG)), rounds),
        "long run, unchanged": median_ms(lambda: warm.sight(LONG), rounds),
        "graph of the long run": median_ms(
            lambda: run_svg(warm.sight(LONG).trace, warm.sight(LONG).steps, standalone=False), rounds
        ),
        "approvals, first": median_ms(opened(Library.approvals), rounds),
        "costs, all journals": median_ms(opened(counted), rounds),
    }
    warm.close()
    return found


def in_browser(path: Path, rounds: int) -> dict[str, float]:
    """What somebody waits for who sits before it."""
    from playwright.sync_api import sync_playwright

    began = time.perf_counter()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "nano_vm.cli",
            "studio",
            "--store",
            str(path),
            "--port",
            "0",
            "--no-key",
            "--json",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    found = {}
    try:
        assert process.stdout is not None
        base = json.loads(process.stdout.readline())["listening"]
        found["command to listening"] = (time.perf_counter() - began) * 1_000
        with sync_playwright() as driver:
            browser = driver.chromium.launch(
                executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-background-networking"]
            )
            found |= _pages(browser, base, process.pid, rounds)
            browser.close()
    finally:
        process.terminate()
        process.wait(60)
        if process.stdout is not None:
            process.stdout.close()
    return found


def _pages(browser: Any, base: str, pid: int, rounds: int) -> dict[str, float]:
    def first_paint(path: str, wait: str) -> Callable[[], None]:
        def once() -> None:
            page = browser.new_context().new_page()  # nothing is cached
            page.goto(base + path)
            page.locator(wait).first.wait_for()
            page.context.close()

        return once

    runs, long = '[data-pick^="run:"]', '[data-pick="step:again"]'
    found = {"Runs, very first paint": median_ms(first_paint("", runs), 1)}
    found["Runs, first paint"] = median_ms(first_paint("", runs), rounds)
    found["long run, first paint"] = median_ms(first_paint(f"run?id={LONG}", long), rounds)
    page = browser.new_context().new_page()
    page.goto(base)
    page.locator(runs).first.wait_for()

    def older() -> None:
        before = page.locator(runs).last.get_attribute("data-pick")
        page.get_by_role("button", name="Older").click()
        page.locator(f'[data-pick="{before}"]').wait_for(state="detached")

    found["Runs, next page"] = median_ms(older, rounds)

    def tile() -> None:
        count = page.locator(".chip.success").count()
        page.locator('[data-pick="status:FAILED"]').click()
        want = "hidden" if count else "visible"
        page.locator(".chip.success").first.wait_for(state=want)

    found["Runs, filter by status"] = median_ms(tile, rounds)
    used, began = _cpu_seconds(pid), time.monotonic()
    page.wait_for_timeout(10_000)
    found["CPU of the server with one idle page, %"] = (
        100 * (_cpu_seconds(pid) - used) / (time.monotonic() - began)
    )
    page.goto(f"{base}run?id={LONG}")
    page.locator(long).wait_for()

    def views() -> None:
        page.get_by_role("radio", name="Steps", exact=True).click()
        page.locator('[data-pick="at:0"]').wait_for()
        page.get_by_role("radio", name="Graph", exact=True).click()
        page.locator(long).wait_for()

    found["long run, steps and back to the graph"] = median_ms(views, rounds)
    page.context.close()
    return found


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-browser", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="nano-vm-studio-") as directory:
        path = Path(directory) / "runs.db"
        asyncio.run(studio_store.fill(path, args.runs, args.steps))
        document: dict[str, Any] = {
            "runs": args.runs,
            "steps": args.steps,
            "rounds": args.rounds,
            "megabytes": round(path.stat().st_size / 1e6, 1),
            "reading_ms": reading(path, args.rounds),
            "browser_ms": None if args.no_browser or not CHROMIUM.exists() else in_browser(path, args.rounds),
        }
    if args.json:
        print(json.dumps(document, indent=2))
        return document
    print(
        f"{args.runs:,} runs and one of {args.steps:,} steps, {document['megabytes']} MB, median of {args.rounds}"
    )
    for title, part in (("reading, ms", "reading_ms"), ("in the browser, ms", "browser_ms")):
        if document[part] is not None:
            print(title)
            for name, value in document[part].items():
                print(f"  {name:<42} {value:>9.1f}")
    return document


if __name__ == "__main__":
    main()
