"""Follow runs as they go, from any process.

  nano-vm watch ID        ends when the run does
  nano-vm watch           all runs, until stopped
  nano-vm watch --once    what is there now

With --json every event is a line; with --json --once there is one document.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

import msgspec

from nano_vm.cli import exits
from nano_vm.cli.console import Console, printable
from nano_vm.cli.live import describe, showing, text_of
from nano_vm.cli.session import Session
from nano_vm.cli.views import STATUS_STYLES, conclude
from nano_vm.journal.entry import Entry, open_events
from nano_vm.kernel.state import RunStatus

if TYPE_CHECKING:
    from nano_vm.cli.driving import Listen

POLL_SECONDS = 0.2
PAGE = 1_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", metavar="ID", nargs="?", help="one run (default: all)")
    parser.add_argument("--once", action="store_true", help="show what is there and end")


def execute(args: argparse.Namespace, console: Console) -> int:
    with Session(args) as session:
        if args.run_id is None:
            return _once(session, console) if args.once else _all(session, console)
        if args.once:
            trace = session.engine.trace(args.run_id)
            conclude(console, args, session.engine.load_program(trace.program_hash), trace)
            return exits.DONE
        return _one(session, console, args.run_id)


def _one(session: Session, console: Console, run_id: str) -> int:
    """Follow one run to its end."""
    store = session.store
    store.record(run_id)  # an unknown run is refused at once
    seen = 0
    with showing(console, result=True) as listen:
        while True:
            record = store.record(run_id)
            while entries := session.engine.read(run_id, seen, PAGE):
                for entry in entries:
                    _tell(console, listen, run_id, entry)
                seen += len(entries)
            if RunStatus(record.status).is_terminal:
                break
            time.sleep(POLL_SECONDS)
    trace = session.engine.trace(run_id)
    if console.json_only:
        console.json_line({"result": trace.to_dict()})
    else:
        conclude(console, session.args, session.engine.load_program(trace.program_hash), trace)
    return exits.DONE


def _tell(console: Console, listen: Listen | None, run_id: str, entry: Entry) -> None:
    from nano_vm.runtime.engine import Progress

    for event in open_events(entry):
        if console.json_only:
            console.json_line(_plain(run_id, entry, event))
        elif listen is not None:
            listen(Progress(run_id, entry.seq, event.type, event, entry.digest))


def _plain(run_id: str, entry: Entry, event: Any) -> dict[str, Any]:
    facts = msgspec.to_builtins(event)
    return {"run_id": run_id, "seq": entry.seq, "type": event.type, "event": facts, "digest": entry.digest}


def _all(session: Session, console: Console) -> int:
    """Follow all runs from now on; Ctrl-C ends it."""
    _once(session, console, document=False)
    cursor = _end(session)
    console.note("watching all runs; stop with Ctrl-C")
    while True:
        cursor, found = session.store.tail(cursor)
        for run_id, entry in found:
            for event in open_events(entry):
                if console.json_only:
                    console.json_line(_plain(run_id, entry, event))
                else:
                    console.line(f"{printable(run_id)}{text_of(console, describe(event))}")
        if not found:
            time.sleep(POLL_SECONDS)


def _end(session: Session) -> int:
    """The cursor after everything that is there."""
    cursor = 0
    while True:
        cursor, found = session.store.tail(cursor, PAGE)
        if not found:
            return cursor


def _once(session: Session, console: Console, *, document: bool = True) -> int:
    """The runs that have not ended."""
    rows = []
    for status in ("RUNNING", "SUSPENDED"):
        for record in session.engine.runs(status=status):
            rows.append(
                {
                    "trace_id": record.run_id,
                    "status": status,
                    "program": record.program_name,
                    "waits": record.waits,
                    "wake_at_ms": record.wake_at_ms,
                }
            )
            waits = ", ".join(f"{wait['kind']} `{wait['step']}`" for wait in record.waits)
            shown = console.style(f"{status:<9}", STATUS_STYLES[status])
            console.line(
                f"{shown}  {record.run_id}  {printable(record.program_name)}  {printable(waits)}".rstrip()
            )
    if not rows:
        console.line("no run is in progress")
    if document:
        console.document({"runs": rows})
    return exits.DONE
