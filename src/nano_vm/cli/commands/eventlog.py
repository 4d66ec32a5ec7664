"""Write runs as an event log, for process mining and for analyses of one's own.

nano-vm eventlog PROGRAM --format xes -o runs.xes      IEEE 1849 (XES)
nano-vm eventlog PROGRAM --format ocel -o runs.json    OCEL 2.0
nano-vm eventlog PROGRAM --format jsonl -o runs.jsonl  one trajectory a line
nano-vm eventlog PROGRAM --format otlp -o spans.jsonl  OpenTelemetry spans (OTLP JSON), one run a line; extra `otel`
nano-vm eventlog --all --format jsonl -o -             to standard output

A log says what was done, when, and how it ended. It holds no inputs, outputs or messages.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator

from nano_vm.cli import exits
from nano_vm.cli.arguments import whole
from nano_vm.cli.console import Console, printable
from nano_vm.cli.outputs import write_whole
from nano_vm.cli.session import Session
from nano_vm.errors import InputError, NanoVMError
from nano_vm.observe import eventlog
from nano_vm.observe.trajectory import Trajectory, of_trace

RUNS_MAX = 10_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("program", metavar="PROGRAM", nargs="?", help="name of the program")
    parser.add_argument("--all", action="store_true", help="the runs of all programs")
    parser.add_argument(
        "--format", choices=("xes", "ocel", "jsonl", "otlp"), required=True, help="what to write"
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", required=True, help="where to; `-` for standard output"
    )
    parser.add_argument("--limit", metavar="N", type=whole, default=RUNS_MAX, help="the N newest runs")


def execute(args: argparse.Namespace, console: Console) -> int:
    if bool(args.program) is args.all:
        raise InputError(
            "USAGE", "name a program, or say --all", help="nano-vm eventlog PROGRAM --format xes -o FILE"
        )
    if not 0 < args.limit <= RUNS_MAX:
        raise InputError("USAGE", f"--limit is a number from 1 to {RUNS_MAX}", help="--limit 1000")
    counts = {"runs": 0, "left_out": 0, "moves": 0}
    with Session(args) as session:
        found = session.engine.runs(program=args.program, limit=args.limit)[::-1]
        run_ids = [record.run_id for record in found]
        if args.format == "otlp":
            pieces: Iterable[str] = _spans(session, run_ids, counts)
        else:
            pieces = _pieces(args.format, _read(session, run_ids, counts))
        if args.output == "-":
            for piece in pieces:
                sys.stdout.write(piece)
        else:
            _write(args.output, pieces)
    if args.output != "-":
        console.document({"file": args.output, "format": args.format, **counts})
        console.line(f"{counts['runs']} runs, {counts['moves']} moves: {printable(args.output)}")
    if counts["left_out"]:
        console.note(f"{counts['left_out']} runs are left out: their journals cannot be read any more")
    return exits.DONE


def _read(session: Session, run_ids: list[str], counts: dict[str, int]) -> Iterator[Trajectory]:
    for run_id in run_ids:
        try:
            trajectory = of_trace(session.engine.trace(run_id))
        except NanoVMError:
            counts["left_out"] += 1
            continue
        counts["runs"] += 1
        counts["moves"] += len(trajectory.moves)
        yield trajectory


def _spans(session: Session, run_ids: list[str], counts: dict[str, int]) -> Iterator[str]:
    from nano_vm.observe.otlp_file import otlp

    left_out: list[str] = []
    for line in otlp(session.engine, run_ids, left_out):
        counts["runs"] += 1
        counts["moves"] += line.count('"endTimeUnixNano"')
        yield line
    counts["left_out"] += len(left_out)


def _pieces(form: str, trajectories: Iterator[Trajectory]) -> Iterable[str]:
    if form == "xes":
        return eventlog.xes(trajectories)
    if form == "jsonl":
        return eventlog.jsonl(trajectories)
    return iter([json.dumps(eventlog.ocel(trajectories), ensure_ascii=False) + "\n"])


def _write(file: str, pieces: Iterable[str]) -> None:
    try:
        write_whole(file, (piece.encode() for piece in pieces))
    except OSError as error:
        raise InputError(
            "EVENT_LOG_FILE", f"`{printable(file)}` cannot be written: {error.strerror}"
        ) from None
