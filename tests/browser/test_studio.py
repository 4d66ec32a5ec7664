"""The studio in a real browser, served by the real command, on a database that another process works on.

make browser                    needs /usr/bin/chromium and the development environment
make browser ARGS='--screenshots DIR'     keeps what was seen
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}"),
]
pytest.importorskip("streamlit", reason="the extra [studio] is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
WIDTHS = {"wide": 1400, "narrow": 430}
TIMEOUT_MS = 60_000

# Another process: a run that takes its time, and is looked at meanwhile.
SLOW = """
import sys, time
from nano_vm import ExecutionVM, SqliteStore, tool

@tool(effect="idempotent")
def work(gate: str) -> str:
    import pathlib
    while not pathlib.Path(gate).exists():
        time.sleep(0.02)
    return gate

vm = ExecutionVM(tools=[work], store=SqliteStore(sys.argv[1]))
steps = [
    {"id": name, "type": "tool", "tool": "work", "args": {"gate": f"{sys.argv[1]}.{name}"}}
    for name in ("first", "second")
]
vm.run_sync({"name": "slow", "steps": steps}, trace_id="slow")
vm.store.close()
"""


class Served:
    """A studio that runs, and what may be done with it from outside."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self.store = directory / "shop.db"
        self.environment = {
            **os.environ,
            "NANO_VM_LEDGER": str(directory / "ledger.jsonl"),
            "HOME": str(directory),
        }
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "nano_vm.cli",
                "studio",
                "--store",
                str(self.store),
                "--port",
                "0",
                "--json",
                *options,
            ],
            cwd=EXAMPLES,
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.address = json.loads(self.process.stdout.readline())["listening"]
        self.port = urlsplit(self.address).port

    def command(self, *words: str, expected: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "nano_vm.cli", *words, "--store", str(self.store)],
            cwd=EXAMPLES,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == expected, done.stderr
        return done.stdout

    def refund(self, run_id: str, order: str, expected: int) -> None:
        self.command(
            "run", "governed_refund.yaml", "--policy", "refund.policy.yaml", "--tools", "refund_tools.py",
            "--model", "mock:yes", "--principal", "ana", "--trace-id", run_id, "--quiet",
            "--input", f"order_id={order}", "--input", "message=It never came.", expected=expected,
        )  # fmt: skip

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Somebody acts in it, and it is behind its key."""
    found = Served(
        tmp_path_factory.mktemp("served"),
        *("--principal", "maria", "--role", "operator", "--role", "supervisor", "--tools", "refund_tools.py"),
        *("--model", "mock:yes", "--policy", "refund.policy.yaml"),
    )
    yield found
    assert found.stop() == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=str(CHROMIUM),
            args=[
                "--no-sandbox",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
            ],
        )
        yield chromium
        chromium.close()


class Seen:
    """A page in the browser, and everything that it asked anybody for."""

    def __init__(self, browser: Any, address: str, *, width: int = 1400, scheme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.page.set_default_timeout(TIMEOUT_MS)
        self.hosts: set[str] = set()
        self.faults: list[str] = []
        self.page.on("request", lambda request: self._asked(request.url))
        self.page.on("websocket", lambda socket: self._asked(socket.url))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.address = address

    def _asked(self, url: str) -> None:
        if not url.startswith(("data:", "blob:")):  # these ask nobody
            self.hosts.add(str(urlsplit(url).hostname))

    def open(self, path: str, wait: str) -> None:
        base, _, key = self.address.partition("?")
        glue = "&" if "?" in path else "?"
        self.page.goto(base + path + (glue + key if key else ""))
        self.page.locator(wait).first.wait_for()

    def close(self) -> None:
        self.context.close()
        assert self.faults == []
        assert self.hosts <= {"127.0.0.1"}


@pytest.fixture
def shots(request: pytest.FixtureRequest) -> Path | None:
    given = request.config.getoption("--screenshots", default=None)
    return None if given is None else Path(given)


def test_an_empty_studio_fills_when_another_process_runs_something(served: Served, browser: Any) -> None:
    seen = Seen(browser, served.address)
    other = Seen(browser, served.address)
    seen.open("", ".card")
    other.open("approvals", ".card")
    for page in (seen.page, other.page):
        assert "no database" in page.locator(".card").first.inner_text()
    served.refund("large", "A-1002", 6)
    seen.page.locator('[data-pick="run:large"]').wait_for()  # without a reload
    other.page.get_by_text("send_refund").wait_for()
    other.close()
    served.refund("small", "A-1001", 0)
    seen.page.locator('[data-pick="run:small"]').wait_for()
    assert "key=" not in seen.page.url  # it does not stay in the address
    seen.page.reload()  # and the cookie lets the browser in again
    seen.page.locator('[data-pick="run:small"]').wait_for()
    seen.close()


def test_nobody_is_let_in_without_the_key(served: Served, browser: Any) -> None:
    seen = Seen(browser, served.address.partition("?")[0])
    seen.open("run?id=large", "text=holds the key")
    assert seen.page.locator("[data-pick]").count() == 0
    seen.close()


def test_a_run_is_reached_and_inspected_by_keyboard_alone(served: Served, browser: Any) -> None:
    seen = Seen(browser, served.address)
    seen.open("", '[data-pick="run:small"]')
    row = seen.page.locator('[data-pick="run:small"]')
    row.focus()
    seen.page.wait_for_timeout(5_000)  # two looks at the store later it still has the focus
    assert row.evaluate("node => node.getRootNode().activeElement === node")
    seen.page.keyboard.press("Enter")
    seen.page.wait_for_url(re.compile(r"/run\?id=small"))
    step = seen.page.locator('[data-pick="step:classify"]')
    step.wait_for()
    step.focus()
    seen.page.keyboard.press("Enter")
    seen.page.locator('.lead:has-text("classify")').wait_for()
    llm = seen.page.get_by_role("radio", name="LLM", exact=True)
    llm.click()
    seen.page.get_by_text("It never came.").first.wait_for()
    seen.close()


def test_a_graph_changes_while_another_process_drives_the_run(served: Served, browser: Any) -> None:
    other = subprocess.Popen([sys.executable, "-c", SLOW, str(served.store)], env=served.environment)
    try:
        seen = Seen(browser, served.address)
        title = seen.page.locator("title")
        seen.open("", '[data-pick="run:slow"]')
        seen.page.locator('[data-pick="run:slow"]').click()
        title.filter(has_text="first: RUNNING").first.wait_for(state="attached")
        Path(f"{served.store}.first").touch()
        title.filter(has_text="first: SUCCESS").first.wait_for(state="attached")
        title.filter(has_text="second: RUNNING").first.wait_for(state="attached")
        Path(f"{served.store}.second").touch()
        title.filter(has_text="second: SUCCESS").first.wait_for(state="attached")
        seen.close()
    finally:
        for gate in ("first", "second"):
            Path(f"{served.store}.{gate}").touch()
        assert other.wait(60) == 0


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_fits_and_is_legible(
    served: Served, browser: Any, shots: Path | None, width: str, scheme: str
) -> None:
    seen = Seen(browser, served.address, width=WIDTHS[width], scheme=scheme)
    for path, wait in (
        ("", '[data-pick="run:large"]'),
        ("run?id=large", '[data-pick="step:pay"]'),
        ("approvals", "text=send_refund"),
        ("programs", ".facts"),
        ("policies", "text=Decides"),
        ("diff?a=small&b=large", "text=another outcome"),
        ("drift", "text=Compare"),
        ("costs", ".card, .tiles"),
        ("laboratory", "text=Attack"),
    ):
        seen.open(path, wait)
        seen.page.wait_for_timeout(600)
        if shots is not None:
            shots.mkdir(parents=True, exist_ok=True)
            name = path.partition("?")[0] or "runs"
            seen.page.screenshot(path=shots / f"{name}-{width}-{scheme}.png")
        # Nothing sticks out of the page to the side: what is wider scrolls in a box of its own.
        assert seen.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert contrast(seen.page) >= 4.5
        assert seen.page.locator('[data-testid="stException"]').count() == 0
    seen.close()


def contrast(page: Any) -> float:
    """Of the page's text against its ground, as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    style = "getComputedStyle(document.querySelector('.stApp'))"
    found = sorted(
        (luminance(page.evaluate(f"{style}.{name}")) for name in ("color", "backgroundColor")), reverse=True
    )
    return (found[0] + 0.05) / (found[1] + 0.05)


def test_what_is_being_typed_stays_while_the_page_looks_at_the_store(served: Served, browser: Any) -> None:
    seen = Seen(browser, served.address)
    seen.open("run?id=large", '[data-pick="step:pay"]')
    seen.page.get_by_text("Cancel this run").click()
    reason = seen.page.get_by_label("Reason")
    reason.fill("the customer has")
    comment = seen.page.get_by_label("Comment")
    comment.click()
    comment.type("not yet")
    seen.page.wait_for_timeout(5_000)  # two looks
    assert reason.input_value() == "the customer has"
    assert comment.input_value() == "not yet"
    assert comment.evaluate("node => document.activeElement === node")
    comment.type(", I think")
    assert comment.input_value() == "not yet, I think"
    seen.close()


def test_an_approval_in_the_browser_pays_once(served: Served, browser: Any) -> None:
    seen = Seen(browser, served.address)
    seen.open("approvals", "text=send_refund")
    seen.page.get_by_role("button", name="Approve").click()
    seen.page.get_by_text("Nothing waits for an approval").wait_for()
    seen.open("run?id=large", "text=refunded")
    seen.close()
    ledger = [json.loads(line) for line in (served.directory / "ledger.jsonl").read_text().splitlines()]
    refunds = [line for line in ledger if line["effect"] == "refund" and line["amount"] == 240]
    assert len(refunds) == 1
    assert "VERIFIED" in served.command("verify")


def test_names_that_are_images_ask_nobody(served: Served, browser: Any) -> None:
    image = "![x](http://evil.example/x.png)<img src=http://evil.example/y.png>"
    steps = [{"id": "a", "type": "wait", "approvers": [image]}]
    file = served.directory / "hostile.json"
    file.write_text(json.dumps({"name": image, "description": image, "steps": steps}))
    served.command("run", str(file), "--trace-id", "hostile", "--quiet", expected=6)
    seen = Seen(browser, served.address)
    for path in ("", "run?id=hostile", "approvals", "programs"):
        seen.open(path, ':text("evil.example")')
        seen.page.wait_for_timeout(500)
    seen.close()
