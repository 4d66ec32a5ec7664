"""What commands that act on one run have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from nano_vm.cli.console import Console
from nano_vm.cli.driving import Interrupted, supervise
from nano_vm.cli.live import showing
from nano_vm.cli.session import Session, command
from nano_vm.cli.views import conclude

if TYPE_CHECKING:
    from nano_vm.cli.driving import Listen
    from nano_vm.journal.trace import Trace
    from nano_vm.runtime.engine import Progress
    from nano_vm.runtime.ports import Listener


def act(
    session: Session, console: Console, run_id: str | None, operation: Callable[[], Awaitable[Trace]]
) -> int:
    """Carry out an operation on a run, showing it as it goes and how it stands then. Returns the exit code."""
    with showing(console) as listen:
        if listen is not None and run_id is not None:
            session.engine.listeners.append(only(run_id, listen))
        try:
            trace = supervise(session, operation)
        except Interrupted as interrupted:
            return interrupted_exit(console, session, interrupted, run_id)
    return conclude(console, session.args, session.engine.load_program(trace.program_hash), trace)


def only(run_id: str, listen: Listen) -> Listener:
    """A listener of an engine that hears one run and not its children."""

    def hear(heard: str, progress: Progress) -> None:
        if heard == run_id:
            listen(progress)

    return hear


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
