"""Run a program to its end, or to where it waits.

  nano-vm run refund.yaml --tools refund_tools.py --input order_id=A-1 --input amount=40

exit codes: 0 SUCCESS, 1 FAILED, 2 usage, 3 invalid program or policy, 4 denied, 6 suspended, 7 budget, stall or cancel
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from nano_vm.cli import exits
from nano_vm.cli.acting import interrupted_exit
from nano_vm.cli.arguments import add_tools, assignments
from nano_vm.cli.console import Console
from nano_vm.cli.driving import Interrupted, supervise, wait_through
from nano_vm.cli.live import showing
from nano_vm.cli.programs import admit
from nano_vm.cli.session import Session, StoredPrograms
from nano_vm.cli.views import as_json, conclude
from nano_vm.errors import InputError

if TYPE_CHECKING:
    from nano_vm.cli.driving import Listen
    from nano_vm.journal.trace import Trace
    from nano_vm.program.model import Program
    from nano_vm.runtime.engine import Progress
    from nano_vm.runtime.ports import Listener


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the program: YAML or JSON; - is standard input")
    add_tools(parser)
    parser.add_argument(
        "--input",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="an input; JSON if it is JSON, else text",
    )
    parser.add_argument(
        "--input-file", metavar="FILE", help="inputs from a JSON or YAML file; `-`: standard input"
    )
    parser.add_argument(
        "--program",
        metavar="FILE",
        action="append",
        default=[],
        help="store this program first, for call steps",
    )
    parser.add_argument("--idempotency-key", metavar="KEY", help="the same key never starts a second run")
    parser.add_argument("--trace-id", metavar="ID", help="the id of the run (default: a new one)")
    parser.add_argument("--wait", action="store_true", help="sleep through timers instead of suspending")
    parser.add_argument(
        "--stream", action="store_true", help="with --json: every event as a line, the result last"
    )


def execute(args: argparse.Namespace, console: Console) -> int:
    if args.stream and not args.json:
        raise InputError("USAGE", "--stream goes with --json", help="add --json")
    for option, value in (("--trace-id", args.trace_id), ("--idempotency-key", args.idempotency_key)):
        if value == "":
            raise InputError("USAGE", f"{option} is empty", help=f"leave {option} out, or give it a value")
    context = read_inputs(args.input, args.input_file)
    with Session(args, create=True, drives=True) as session:
        engine = session.engine
        schemas = session.tools.schemas()
        programs = StoredPrograms(session.store)
        for path in args.program:
            engine.save_program(admit(console, path, schemas, programs))
        program = admit(console, args.file, schemas, programs)
        compiled = engine.compile(program)[1]
        session.require(compiled)
        started: list[str] = []
        with showing(console) as listen:
            tell = _stream(console) if args.stream else listen
            engine.listeners.append(_noting(tell, started, children=args.stream))
            try:
                trace = supervise(session, lambda: _run(session, program, context))
            except Interrupted as interrupted:
                run_id = started[0] if started else None
                return interrupted_exit(console, session, interrupted, run_id, lines=args.stream)
        if args.stream:
            code = exits.of_status(trace.status.value, (trace.error or {}).get("type"))
            console.json_line({"result": as_json(args, compiled, trace, code)})
            return code
        return conclude(console, args, compiled, trace)


async def _run(session: Session, program: Program, context: dict[str, Any]) -> Trace:
    args = session.args
    trace = await session.engine.run(
        program,
        context,
        idempotency_key=args.idempotency_key,
        trace_id=args.trace_id,
        principal=session.principal,
    )
    if args.wait:
        trace = await wait_through(session, trace)
    return trace


def _noting(listen: Listen | None, started: list[str], *, children: bool) -> Listener:
    """Tells `listen`, and notes the id of the run, which is the first one heard of."""

    def note(run_id: str, progress: Progress) -> None:
        if not started:
            started.append(run_id)
        if listen is not None and (children or run_id == started[0]):
            listen(progress)

    return note


def _stream(console: Console) -> Listen:
    def tell(progress: Progress) -> None:
        event = msgspec.to_builtins(progress.event)
        console.json_line(
            {
                "run_id": progress.run_id,
                "seq": progress.seq,
                "type": progress.type,
                "event": event,
                "digest": progress.digest,
            }
        )

    return tell


def read_inputs(pairs: Sequence[str], file: str | None) -> dict[str, Any]:
    """The inputs of a run; `--input` goes before what the file says.

    Raises:
        InputError: USAGE, INPUT_FILE.
    """
    given: dict[str, Any] = {}
    if file is not None:
        from nano_vm.program.document import from_yaml
        from nano_vm.providers.script import data_of, read_data

        if file == "-":
            data = data_of(from_yaml(sys.stdin.buffer.read(), "<stdin>"), "INPUT_FILE")
        else:
            data = read_data(Path(file), "INPUT_FILE")
        if not isinstance(data, dict):
            raise InputError(
                "INPUT_FILE",
                f"`{file}` does not hold a mapping of inputs",
                help="write one name: value per line",
            )
        given = data
    return {**given, **assignments(pairs, "--input")}
