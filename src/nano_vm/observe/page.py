"""A run as one HTML file: its graph, its steps, its journal and its receipt, for a browser without a network.

The file refers to nothing outside of it and runs no script; its own policy says so to the browser. It is a function of
the trace. Everything an author, a model or a tool has written is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from nano_vm.evidence.narrative import narrative
from nano_vm.evidence.receipt import receipt
from nano_vm.journal.entry import open_events
from nano_vm.journal.ledger import TraceStep
from nano_vm.journal.trace import Trace
from nano_vm.observe.describe import describe
from nano_vm.observe.svg import STYLE, run_svg, waiting_steps
from nano_vm.observe.timeline import timeline
from nano_vm.observe.veil import Veil
from nano_vm.observe.wording import duration, moment, precise_moment, printable, step_text

STEPS_MAX = 2_000  # that are shown one by one: a browser has to hold them
ENTRIES_MAX = 5_000
VALUE_CHARS_MAX = 20_000

_CSS = (
    ":root{color-scheme:light dark;--line:light-dark(#dfe4ea,#303947);--soft:light-dark(#66727f,#9aa7b6);"
    "--card:light-dark(#fff,#1b212b);--page:light-dark(#f6f8fa,#12161d);--text:light-dark(#1d2733,#e8edf4)}"
    "*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--text);"
    "font:15px/1.5 ui-sans-serif,system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif}"
    "main{max-width:1120px;margin:0 auto;padding:28px 20px 60px}h1{font-size:24px;margin:0}"
    "h2{font-size:17px;margin:34px 0 12px}.soft{color:var(--soft)}code,.mono,pre{font-family:ui-monospace,"
    "SFMono-Regular,Menlo,Consolas,monospace;font-size:12.5px;overflow-wrap:anywhere}"
    "header{display:flex;flex-wrap:wrap;gap:10px 14px;align-items:center}"
    ".chip{display:inline-block;padding:2px 10px;border-radius:99px;font-size:12px;font-weight:600}"
    ".card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:16px;overflow:auto}"
    ".tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:20px 0}"
    ".tile{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:12px 14px}"
    ".tile b{display:block;font-size:19px}.tile span{color:var(--soft);font-size:12.5px}"
    "table{border-collapse:collapse;width:100%;font-size:13.5px}th{text-align:left;color:var(--soft);"
    "font-weight:500;font-size:12.5px}td,th{padding:6px 10px 6px 0;border-bottom:1px solid var(--line);"
    "vertical-align:top}td:not(:last-child){white-space:nowrap}details summary{cursor:pointer}"
    "pre{margin:8px 0;white-space:pre-wrap}"
    "svg{max-width:100%;height:auto;display:block;margin:0 auto}"
    + "".join(
        f".{name}{{color:light-dark({dark},{light});background:light-dark({tint},{deep})}}"
        for name, dark, light, tint, deep in (
            ("success", "#17693f", "#5fd49a", "#e2f5ea", "#173226"),
            ("failed", "#a82c42", "#ff8fa0", "#fdecef", "#3a1c24"),
            ("running", "#1d52b5", "#8db6ff", "#e6effe", "#182a48"),
            ("waiting", "#7d5c00", "#e8c95e", "#fcf3cf", "#352d12"),
            ("unknown", "#9c5204", "#ffbd70", "#ffefd9", "#3a2912"),
            ("skipped", "#5c6875", "#9aa7b6", "#eef1f5", "#20262f"),
        )
    )
)
_CHIPS = {
    "SUCCESS": "success",
    "RUNNING": "running",
    "SUSPENDED": "waiting",
    "PENDING": "waiting",
    "UNKNOWN": "unknown",
    "SKIPPED": "skipped",
}


def page(trace: Trace, *, values: bool = True) -> str:
    """The file's text.

    Args:
        trace: made without keys, so that what is private stays so.
        values: False for a file that holds no value at all, as receipts do.

    Raises:
        VerificationError: as `fold`.
    """
    veil = Veil(trace.entries)
    steps = veil.steps(trace.steps)
    shown = receipt(trace)
    name = f"{trace.trace_id} · {trace.program_name}"
    sections = [
        _header(trace),
        _tiles(trace, steps),
        _section("What it came to", f'<div class="card">{_sentences(narrative(shown))}</div>'),
        _section(
            "Graph",
            f'<div class="card">{run_svg(trace, steps, standalone=False)}</div>',
        ),
        _section("Timeline", f'<div class="card">{timeline(steps, waiting=waiting_steps(trace))}</div>')
        if steps
        else "",
        _section("Steps", f'<div class="card">{_steps(steps, veil, values)}</div>'),
        _section("Journal", f'<div class="card">{_journal(trace, values)}</div>'),
        _section("Receipt", _receipt(shown)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>{_text(name)}</title><style>{_CSS}{STYLE}</style></head><body><main>{''.join(sections)}"
        '<p class="soft">Computed from the journal alone. Anybody who has the journal can compute it again, '
        "and <code>nano-vm verify</code> proves that the journal is untouched.</p></main></body></html>\n"
    )


def chip(status: str) -> str:
    """A status as a coloured word."""
    return f'<span class="chip {_CHIPS.get(status, "failed")}">{_text(status)}</span>'


def _header(trace: Trace) -> str:
    outcome = f'<span class="soft">{_text(trace.outcome)}</span>' if trace.outcome else ""
    error = ""
    if trace.error is not None:
        where = f" at <code>{_text(str(trace.error['step']))}</code>" if trace.error.get("step") else ""
        error = f"<p>{chip('FAILED')} <code>{_text(str(trace.error['type']))}</code>{where}</p>"
    return (
        f"<header><h1>{_text(trace.program_name)}</h1>{chip(trace.status.value)}{outcome}</header>"
        f'<div class="soft mono">{_text(trace.trace_id)}</div>{error}'
    )


def _tiles(trace: Trace, steps: Sequence[TraceStep]) -> str:
    tiles = [
        (str(len(steps)), "steps"),
        (duration(trace.duration_ms), "from start to " + ("end" if trace.status.is_terminal else "now")),
        (str(trace.total_tokens()), "tokens"),
        (f"${trace.total_cost_usd():.6f}", "cost"),
        (str(len(trace.entries)), "journal entries"),
        (moment(trace.started_at_ms), "started"),
    ]
    cells = "".join(
        f'<div class="tile"><b>{_text(value)}</b><span>{label}</span></div>' for value, label in tiles
    )
    hashes = "".join(
        f"<tr><td class=soft>{label}</td><td><code>{_text(value)}</code></td></tr>"
        for label, value in (
            ("program", trace.program_hash),
            ("head of the journal", trace.head),
            ("trace_hash", trace.trace_hash),
            ("outcome_hash", trace.outcome_hash),
        )
    )
    return f'<div class="tiles">{cells}</div><div class="card"><table>{hashes}</table></div>'


def _steps(steps: Sequence[TraceStep], veil: Veil, values: bool) -> str:
    rows = [_step(step, veil, values) for step in steps[:STEPS_MAX]]
    left = len(steps) - len(rows)
    rest = f'<p class="soft">{left} further steps are not shown here.</p>' if left > 0 else ""
    head = "<tr><th>step</th><th>status</th><th>kind</th><th>attempts</th><th>took</th><th>tokens</th><th></th></tr>"
    return f"<table>{head}{''.join(rows)}</table>{rest}"


def _step(step: TraceStep, veil: Veil, values: bool) -> str:
    name = step.id + (f"[{step.item}]" if step.item is not None else "")
    name += f" #{step.occurrence}" if step.occurrence > 1 else ""
    took = duration(step.duration_ms) if step.finished_at_ms is not None else "-"
    if values:
        inner = {
            "output": step.output,
            "verdict": step.verdict,
            "error": step.error,
            "failures": veil.value(step.failures),
            "switches": step.switches,
            "proposals": step.proposals,
        }
        shown = {key: value for key, value in inner.items() if value is not None and value != []}
        words = f"<details><summary>{_text(step_text(step))}</summary><pre>{_value(shown)}</pre></details>"
    else:
        words = "" if step.error is None else f"<code>{_text(str(step.error['type']))}</code>"
    return (
        f"<tr><td><code>{_text(name)}</code></td><td>{chip(step.status.value)}</td><td>{_text(step.type)}</td>"
        f"<td>{step.attempts}</td><td>{took}</td><td>{step.tokens or ''}</td><td>{words}</td></tr>"
    )


def _journal(trace: Trace, values: bool) -> str:
    rows = []
    for entry in trace.entries[:ENTRIES_MAX]:
        for event in open_events(entry):
            line = describe(event)
            words = line.text if values else ""
            rows.append(
                f"<tr><td class=soft>{entry.seq}</td><td class=soft>{precise_moment(event.at_ms)}</td>"
                f"<td>{event.type}</td>"
                f"<td><code>{_text(line.step)}</code></td><td>{_text(words)}</td>"
                f"<td class=soft title='{_text(entry.digest)}'><code>{_text(entry.digest[7:15])}</code></td></tr>"
            )
    left = len(trace.entries) - ENTRIES_MAX
    rest = f'<p class="soft">{left} further entries are not shown here.</p>' if left > 0 else ""
    head = "<tr><th>entry</th><th>time</th><th>event</th><th>step</th><th></th><th>digest</th></tr>"
    count = len(trace.entries)
    return f"<details><summary>{count} entries</summary><table>{head}{''.join(rows)}</table>{rest}</details>"


def _receipt(shown: dict[str, Any]) -> str:
    text = json.dumps(shown, indent=2, ensure_ascii=False)
    health = shown["health"]["verdict"]
    summary = f"health {health}, {len(shown['troubled'])} troubled steps"
    return f'<div class="card"><details><summary>{summary}</summary><pre>{_text(text)}</pre></details></div>'


def _section(title: str, body: str) -> str:
    return f"<h2>{title}</h2>{body}"


def _sentences(text: str) -> str:
    return "".join(f"<div>{_text(line)}</div>" for line in text.splitlines())


def _value(value: Any) -> str:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return _text(text if len(text) <= VALUE_CHARS_MAX else text[:VALUE_CHARS_MAX] + "…")


def _text(text: str) -> str:
    return escape(printable(text, keep_newlines=True), quote=True)
