"""Show what a run did: its steps, what it waits for, what it cost, its hashes.

nano-vm trace ID
nano-vm trace ID --events      the journal itself, entry by entry
nano-vm trace ID --as receipt  what that audience may see, as JSON: trace, receipt (no values), operator
nano-vm trace ID --metrics     how it went: churn, entropy, surprisal, …
nano-vm trace ID --html FILE   one HTML file: graph, timeline, steps, journal, receipt; private values stay sealed,
                               and with --as receipt there are no values at all
"""

from __future__ import annotations

import argparse
from typing import Any

import msgspec

from nano_vm.cli import exits
from nano_vm.cli.console import Console, printable
from nano_vm.cli.live import describe
from nano_vm.cli.outputs import write_whole
from nano_vm.cli.session import Session
from nano_vm.cli.views import continuations, moment, show_end, show_steps, show_waits
from nano_vm.errors import InputError
from nano_vm.journal.entry import open_events
from nano_vm.journal.port import RunQuery, RunRecord
from nano_vm.journal.trace import Trace
from nano_vm.kernel.events import Event
from nano_vm.projection.views import for_operator, for_reader, for_receipt

CHILDREN_MAX = 1_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", metavar="ID", help="the run's trace id")
    parser.add_argument("--events", action="store_true", help="the journal, entry by entry")
    parser.add_argument(
        "--as",
        dest="audience",
        choices=("trace", "receipt", "operator"),
        help="the view of one audience, as JSON: with values, without any, or the record alone",
    )
    parser.add_argument("--metrics", action="store_true", help="measures of how the run went")
    parser.add_argument(
        "--baseline", metavar="FILE", help="with --metrics: what healthy runs are like (see `drift`)"
    )
    parser.add_argument(
        "--html", metavar="FILE", help="write one self-contained HTML file; - is standard output"
    )


def execute(args: argparse.Namespace, console: Console) -> int:
    with Session(args) as session:
        trace = session.engine.trace(args.run_id)
        program = session.engine.load_program(trace.program_hash)
        if args.html is not None:
            return _html(args, console, session)
        if args.events:
            return _events(args, console, session)
        if args.audience is not None:
            return _view(args, console, session, trace)
        if args.metrics:
            return _metrics(args, console, trace)
        if console.json_only:
            record = session.store.record(args.run_id)
            extra = {
                "children": [child.run_id for child in _children(session, args.run_id)],
                "parent": record.parent,
                "owner": record.owner,
                "continue": continuations(args, program, trace) if record.owner is None else [],
            }
            console.document({**for_reader(trace.to_dict()), **extra})
            return exits.DONE
        show_steps(console, program, trace)
        show_end(console, trace)
        console.line(f"  program       {trace.program_hash}")
        ended = f", ended {moment(trace.finished_at_ms)}" if trace.finished_at_ms else ""
        console.line(f"  started       {moment(trace.started_at_ms)}{ended}")
        console.line(f"  journal       {len(trace.entries)} entries, head {trace.head}")
        for child in _children(session, args.run_id):
            console.line(f"  child run     {child.run_id}  {child.status}  {printable(child.program_name)}")
        show_waits(console, args, program, trace)
        return exits.DONE


def _html(args: argparse.Namespace, console: Console, session: Session) -> int:
    from nano_vm.observe.page import page

    if args.events or args.metrics or args.audience == "operator":
        raise InputError(
            "USAGE", "--html is a view of its own", help="--html FILE, or --html FILE --as receipt"
        )
    # From the entries as they are stored: a file that is passed on must not hold what only a key opens.
    record = session.store.record(args.run_id)
    program = session.engine.load_program(record.program_hash)
    trace = Trace(program, record.run_id, lambda: session.store.read(record.run_id))
    text = page(trace, values=args.audience != "receipt")
    if args.html == "-":
        if not console.json_only:
            console.out.write(text)
    else:
        try:
            write_whole(args.html, [text.encode()])
        except OSError as error:
            raise InputError(
                "USAGE",
                f"`{printable(args.html)}` cannot be written: {(error.strerror or 'no such file').lower()}",
                help="--html FILE, in a directory that exists",
            ) from None
        console.line(f"wrote {printable(args.html)}")
    document = {"trace_id": record.run_id, "file": None if args.html == "-" else args.html}
    console.document(
        {**document, "bytes": len(text.encode()), **({"html": text} if args.html == "-" else {})}
    )
    return exits.DONE


def _view(args: argparse.Namespace, console: Console, session: Session, trace: Trace) -> int:
    if args.audience == "operator":
        view = for_operator(msgspec.structs.asdict(session.store.record(args.run_id)))
    else:
        view = (for_receipt if args.audience == "receipt" else for_reader)(trace.to_dict())
    console.json_only = True
    console.document(view)
    return exits.DONE


def _children(session: Session, run_id: str) -> list[RunRecord]:
    found = session.store.records(RunQuery(parent=run_id, limit=CHILDREN_MAX))
    return found[::-1]


def _events(args: argparse.Namespace, console: Console, session: Session) -> int:
    entries = session.engine.read(args.run_id)
    if console.json_only:
        rows = [
            {
                "seq": entry.seq,
                "digest": entry.digest,
                "events": [_plain(event) for event in open_events(entry)],
            }
            for entry in entries
        ]
        console.document({"trace_id": args.run_id, "entries": rows})
        return exits.DONE
    for entry in entries:
        for event in open_events(entry):
            line = describe(event)
            name = f"{line.step} " if line.step else ""
            console.line(f"{entry.seq:>5}  {moment(event.at_ms)}  {event.type:<21}  {name}{line.text}")
    return exits.DONE


def _metrics(args: argparse.Namespace, console: Console, trace: Trace) -> int:
    from nano_vm.cli.baselines import read_baseline
    from nano_vm.observe.analyzer import TraceAnalyzer

    baseline = read_baseline(args.baseline, trace.program_hash) if args.baseline else None
    measured = TraceAnalyzer(trace).metrics(baseline)
    console.document({"trace_id": trace.trace_id, **measured})
    old = measured.pop("uncalibrated")
    for name, value in measured.items():
        shown = (
            "needs --baseline" if value is None else f"{value:.3f}" if type(value) is float else str(value)
        )
        console.line(
            f"  {name.replace('_', ' '):<20}  {shown}{_UNITS.get(name, '') if value is not None else ''}"
        )
    verdict = "over" if old["exceeded"] else "within"
    console.line(
        f"  {'absolute entropy':<20}  {old['bits']:.3f} bits, {verdict} the uncalibrated {old['limit']}",
        "dim",
    )
    return exits.DONE


_UNITS = {"transition_entropy": " bits", "mean_surprisal": " bits per move"}


def _plain(event: Event) -> dict[str, Any]:
    facts = msgspec.to_builtins(event)
    payload = facts.pop("payload", None)
    return {"type": event.type, "facts": facts, "payload": payload}
