"""Take up runs that a dead process left, and fire due timers.

  nano-vm recover --tools refund_tools.py
  nano-vm recover --loop --interval 2 --tools refund_tools.py     until stopped (as `worker`)

A run whose tools were not given is left untouched. Erasures that a crash has cut are completed first; one whose runs
have to be undone with tools that were not given is left to others for an hour.
exit codes: 0 done; else of what was left: 2 tools or a model were not given, 5 a changed journal
"""

from __future__ import annotations

import argparse
import asyncio
from typing import TYPE_CHECKING, Any

from nano_vm.cli import exits
from nano_vm.cli.acting import interrupted_exit
from nano_vm.cli.arguments import add_tools, number
from nano_vm.cli.console import Console, printable
from nano_vm.cli.driving import Interrupted, supervise
from nano_vm.cli.failures import as_json
from nano_vm.cli.session import Session
from nano_vm.cli.views import STATUS_STYLES, continuations, show_steps, show_waits
from nano_vm.errors import InputError, NanoVMError, RuntimeFault, StoreError

if TYPE_CHECKING:
    from nano_vm.observe.prometheus import MetricsServer

BATCH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--loop", action="store_true", help="go on until stopped")
    add_loop_arguments(parser)
    add_tools(parser)


def add_loop_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--interval", metavar="SECONDS", type=number, default=1.0, help="pause between looks (default: 1)"
    )
    parser.add_argument(
        "--metrics",
        metavar="[HOST:]PORT",
        help="in a loop: serve counts of runs at http://HOST:PORT/metrics for Prometheus (default HOST: 127.0.0.1)",
    )


def execute(args: argparse.Namespace, console: Console) -> int:
    if not 0 < args.interval <= 86_400:
        raise InputError("USAGE", "--interval is a number of seconds above 0", help="--interval 1")
    if args.loop:
        return work(args, console)
    if args.metrics is not None:
        raise InputError("USAGE", "--metrics is for a process that goes on", help="add --loop")
    with Session(args, drives=True) as session:
        recovery = Recovery(session, console)
        try:
            supervise(session, recovery.once)
        except Interrupted as interrupted:
            return interrupted_exit(console, session, interrupted, None)
        code = recovery.exit_code()
        console.document({"recovered": recovery.taken, "left": recovery.left, "exit_code": code})
        if not recovery.taken and not recovery.left:
            console.line("nothing to recover")
        return code


def work(args: argparse.Namespace, console: Console) -> int:
    """Recover in a loop until SIGTERM or SIGINT, which is how a worker ends: exit code 0 or 130."""
    with Session(args, create=True, drives=True) as session:
        recovery = Recovery(session, console, lines=True)
        server = _serve(args.metrics, session)
        console.note(f"working on {session.store.path}; stop with Ctrl-C or SIGTERM")
        if server is not None:
            console.note(f"metrics at {server.address}")

        async def loop() -> None:
            while True:
                try:
                    await recovery.once()
                except StoreError as error:
                    if not error.retryable:
                        raise
                    console.note(f"will try again: {error.code} {error.message}", "warn")
                await asyncio.sleep(args.interval)

        try:
            supervise(session, loop)
        except Interrupted as interrupted:
            console.note("stopped; everything that happened is journaled")
            return exits.DONE if interrupted.exit_code == exits.TERMINATED else interrupted.exit_code
        finally:
            if server is not None:
                server.close()
        return exits.DONE


def _serve(where: str | None, session: Session) -> MetricsServer | None:
    """The server of `--metrics`.

    Raises:
        InputError: USAGE.
    """
    if where is None:
        return None
    from nano_vm.observe.prometheus import MetricsServer, RunMetrics

    host, _, port = where.rpartition(":")
    if not (port.isascii() and port.isdecimal() and len(port) < 6) or int(port) > 65_535:
        raise InputError(
            "USAGE", f"`{printable(where)}` is no port", help="--metrics 9464, or 127.0.0.1:9464"
        )
    return MetricsServer(RunMetrics(session.engine), host or "127.0.0.1", int(port))


class Recovery:
    """Rounds of recovery. `taken` are the runs driven on, `left` those left untouched, each once."""

    def __init__(self, session: Session, console: Console, lines: bool = False) -> None:
        self.session = session
        self.console = console
        self.lines = lines
        self.taken: list[dict[str, Any]] = []
        self.left: list[dict[str, Any]] = []
        self._complained: set[str | None] = set()

    async def once(self) -> None:
        """Take up every run that can be taken up now, side by side."""
        store, clock = self.session.store, self.session.engine.clock
        await self._complete_erasures()
        able = []
        # Runs that we cannot take up stay claimable: ask for so many more.
        for run_id in store.claimable(clock.now_ms(), BATCH + len(self._complained)):
            try:
                self.session.require_run(run_id)
            except NanoVMError as error:
                self._leave(run_id, error)
            else:
                able.append(run_id)
        await asyncio.gather(*(self._take(run_id) for run_id in able))

    async def _complete_erasures(self) -> None:
        """First, but it may have to wait for runs: a worker goes on to others soon."""
        try:
            await self.session.engine.complete_erasures(soon=self.lines)
        except StoreError:
            raise
        except NanoVMError as error:
            self._leave(None, error)

    async def _take(self, run_id: str) -> None:
        try:
            trace = await self.session.engine.take_up(run_id)
        except NanoVMError as error:
            if self.session.engine.draining or isinstance(error, StoreError):
                raise
            self._leave(run_id, error)
            return
        except Exception as error:
            # One run that cannot be driven must not keep a worker from the others.
            if self.console.debug:
                raise
            what = f"unexpected {type(error).__name__} while driving the run"
            self._leave(run_id, RuntimeFault("INTERNAL", what, help="see it with --debug, and report it"))
            return
        if trace is None:
            return  # somebody else was quicker
        status = trace.status.value
        program = self.session.engine.load_program(trace.program_hash)
        facts = {
            "trace_id": run_id,
            "program": trace.program_name,
            "status": status,
            "continue": continuations(self.session.args, program, trace),
        }
        if self.lines:
            if self.console.json_only:
                self.console.json_line(facts)
        else:
            self.taken.append(facts)
        style = STATUS_STYLES.get(status, "bad")
        self.console.line(f"{self.console.style(status, style)}  {run_id}  {printable(trace.program_name)}")
        if not self.console.quiet:
            show_steps(self.console, program, trace)
            show_waits(self.console, self.session.args, program, trace)

    def exit_code(self) -> int:
        """The worst of what was left: tampering before everything else, then what the caller can mend."""
        codes = {int(left["exit_code"]) for left in self.left}
        for code in (exits.VERIFICATION, exits.BUG, exits.USAGE, exits.FAILED):
            if code in codes:
                return code
        return exits.FAILED if codes else exits.DONE

    def _leave(self, run_id: str | None, error: NanoVMError) -> None:
        """A run, or (None) the erasures that are to be completed."""
        if run_id in self._complained:
            return
        self._complained.add(run_id)
        facts = {"trace_id": run_id, "error": as_json(error), "exit_code": error.exit_code}
        if not self.lines:
            self.left.append(facts)
        elif self.console.json_only:
            self.console.json_line(facts)
        what = run_id or "an erasure that is to be completed"
        told = printable(str(error), keep_newlines=True)
        self.console.complain(f"left untouched: {what}\n  {told}", "warn")
