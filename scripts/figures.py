"""Writes the tables of measured figures into the pages that show them, from the reports that commands have written.

    python scripts/figures.py            write them
    python scripts/figures.py --check    exit 1 when a page shows something else than the reports say

Sources: `docs/figures/*.json`. A page says `<!-- figures: NAME -->` where a table goes, up to `<!-- /figures -->`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/guides/bench.md", "docs/guides/chaos.md")
PLACE = re.compile(r"<!-- figures: (?P<name>\w+) -->\n.*?<!-- /figures -->", re.DOTALL)


def report(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (ROOT / "docs" / "figures" / f"{name}.json").read_text(encoding="utf-8")
    )
    return found


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine(found: dict[str, Any]) -> str:
    about = found["machine"]
    return f"{about['cpus']} processors, {about['system']}, Python {about['python']}"


def bench() -> str:
    found = report("bench")
    rows = [
        [
            f"`{one['name']}`",
            f"{one['throughput']:,.1f}",
            *(f"{one['latency_ms'][name]:,.2f}" for name in ("p50", "p95", "p99")),
            f"{one['cpu_us_per_step']:,.0f}",
            f"{one['peak_memory_bytes'] / 2**20:.0f}",
            f"{one['stored_bytes_per_step']:,.0f}",
            f"{one['checks']:,}",
        ]
        for one in found["scenarios"]
    ]
    head = ["scenario", "per s", "p50 ms", "p95 ms", "p99 ms", "µs/step", "MiB", "bytes/step", "checks"]
    return f"{table(head, rows)}\n\n{machine(found)}; every invariant held."


def growth() -> str:
    found = report("growth")
    parts = []
    for name in dict.fromkeys(one["curve"] for one in found["curves"]):
        curves = [one for one in found["curves"] if one["curve"] == name]
        points = list(dict.fromkeys(x for one in curves for x in one["ratios"]))
        rows = [
            [
                one["what"],
                *(f"{one['ratios'][x]:.2f}" if x in one["ratios"] else "" for x in points),
                f"{one['at_most']}",
            ]
            for one in curves
        ]
        parts.append(table([name, *(f"{int(x):,}" for x in points), "at most"], rows))
    return "\n\n".join([*parts, machine(found)])


def chaos() -> str:
    found = report("chaos")
    names = ("rounds", "runs", "events", "kills", "effects", "unknown")
    rows = [[f"`{one['name']}`", *(f"{one[name]:,}" for name in names)] for one in found["scenarios"]]
    rows.append(["all", *(f"{found['totals'][name]:,}" for name in names)])
    broken = sum(len(one["violations"]) for one in found["scenarios"])
    return f"{table(['scenario', *names], rows)}\n\nPromises broken: {broken or 'none'}."


def soak() -> str:
    one = report("soak")
    memory = {name: size / 2**20 for name, size in one["memory_bytes"].items()}
    return (
        f"{one['seconds']:,.0f} seconds: {one['runs']:,} runs, {one['events']:,} events, {one['kills']} processes "
        f"killed, {one['effects']:,} effects counted outside, {one['settled']:,} unknown outcomes looked into.\n"
        f"Memory {memory['warm']:.1f} → {memory['last']:.1f} MiB (most {memory['most']:.1f}), handles "
        f"{one['handles']['warm']} → {one['handles']['last']}, write-ahead log at most "
        f"{one['log_bytes_max'] / 2**20:.1f} MiB. Promises broken: {len(one['violations']) or 'none'}."
    )


def proof() -> str:
    all_, soaked = report("chaos"), report("soak")
    looks = {one["what"]: one["ratios"] for one in report("growth")["curves"] if one["curve"] == "journal"}
    most = max(looks["look for work"], key=int)
    work = looks["look for work"][most]
    broken = sum(len(one["violations"]) for one in all_["scenarios"]) + len(soaked["violations"])
    totals = all_["totals"]
    more = soaked["handles"]["last"] - soaked["handles"]["warm"]
    minutes, grown = soaked["seconds"] / 60, (soaked["memory_growth"] - 1) * 100
    lines = (
        f"- `nano-vm chaos --full`: {totals['events']:,} events in thirteen scenarios, {totals['kills']:,} processes",
        f"  killed with SIGKILL, {totals['effects']:,} effects counted outside.",
        f"- `nano-vm chaos soak`: {minutes:.0f} minutes of mixed load, {soaked['kills']} kills; memory grew by",
        f"  {grown:.0f} %, the number of open files by {more}.",
        f"- Promises broken in both: {broken or 'none'}.",
        f"- `benchmarks/growth.py`: among {int(most):,} stored runs a worker finds its work in {work:.2f} times",
        "  what it takes among 1,000.",
    )
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "bench": bench,
    "growth": growth,
    "chaos": chaos,
    "soak": soak,
    "proof": proof,
}


def filled(text: str) -> str:
    return PLACE.sub(
        lambda match: f"<!-- figures: {match['name']} -->\n{TABLES[match['name']]()}\n<!-- /figures -->", text
    )


def main(argv: Sequence[str]) -> int:
    stale = []
    for page in PAGES:
        path = ROOT / page
        text = path.read_text(encoding="utf-8")
        wanted = filled(text)
        if text == wanted:
            continue
        if "--check" in argv:
            stale.append(page)
        else:
            path.write_text(wanted, encoding="utf-8")
    for page in stale:
        print(f"{page} does not show what the reports say: python scripts/figures.py")
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
