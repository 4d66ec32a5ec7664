"""What commands that act on one run have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from nano_vm.cli.console import Console
from nano_vm.cli.driving import Interrupted, supervise
from nano_vm.cli.session import Session, command
from nano_vm.cli.views import conclude

if TYPE_CHECKING:
    from nano_vm.journal.trace import Trace


def act(
    session: Session, console: Console, run_id: str | None, operation: Callable[[], Awaitable[Trace]]
) -> int:
    """Carry out an operation on a run, show how the run stands then, and return the exit code."""
    try:
        trace = supervise(session, operation)
    except Interrupted as interrupted:
        return interrupted_exit(console, session, interrupted, run_id)
    return conclude(console, session.args, session.engine.load_program(trace.program_hash), trace)


def interrupted_exit(
    console: Console, session: Session, interrupted: Interrupted, run_id: str | None, *, lines: bool = False
) -> int:
    """Say that a signal ended the command, and how to go on. `lines`: JSONL has been written before."""
    code = interrupted.exit_code
    console.complain("stopped; everything that happened is journaled")
    if run_id is not None:
        console.complain(f"  trace id      {run_id}")
        console.complain(f"  continue with {command(session.args, 'recover', drives=True)}")
    document = {"interrupted": True, "trace_id": run_id, "exit_code": code}
    if lines:
        console.json_line({"result": document})
    else:
        console.document(document)
    return code
