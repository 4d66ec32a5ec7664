"""Crash consistency: a process kills itself with SIGKILL in the middle of a tool, before or after its effect.

    python -m nano_vm.testing.bench.crash DIRECTORY RUNS DURABILITY     # what is killed; it is started until it is done

In which tool, and at which moment, is planned per run, and a plan is used once: a file says that it was. One run goes
after the other, so every place that matters is hit for certain; `nano-vm chaos` kills in the middle of many at once.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from nano_vm.errors import NanoVMError
from nano_vm.journal.entry import open_events
from nano_vm.kernel.events import StepSucceeded
from nano_vm.kernel.state import RunStatus
from nano_vm.program.model import Program
from nano_vm.runtime.tooling import Reconciled, ToolContext
from nano_vm.stores.sqlite import Durability
from nano_vm.testing.bench.setting import Setting, cpu_seconds
from nano_vm.testing.chaos.outside import BOOKED, Outside
from nano_vm.tools.registry import tool
from nano_vm.vm import ExecutionVM

EFFECTS: Final = ("pure", "idempotent", "keyed", "transactional", "reconcilable", "irreversible")
PROGRAM: Final[dict[str, Any]] = {
    "name": "crash_consistency",
    "steps": [{"id": effect, "type": "tool", "tool": f"act_{effect}"} for effect in EFFECTS],
}
PLANS: Final = len(EFFECTS) * 2  # before and after each


class Suicidal(Outside):
    """Tools that kill their process where the plan of their run says so, the first time they come there."""

    def _dies(self, ctx: ToolContext, moment: str) -> None:
        plan = int(ctx.trace_id.rpartition("-")[2]) % PLANS
        if (EFFECTS[plan // 2], ("before", "after")[plan % 2]) != (ctx.step, moment):
            return
        try:
            os.close(os.open(self.place / f"killed-{ctx.trace_id}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    def _act(self, effect: str) -> Any:
        def find_out(ctx: ToolContext) -> Reconciled:
            done = any(line[5] == ctx.idempotency_key for line in self.lines("effects"))
            return Reconciled.succeeded(ctx.step) if done else Reconciled.not_executed()

        async def act(ctx: ToolContext) -> str:
            self._dies(ctx, "before")
            if effect == "transactional":
                con = ctx.transaction.connection
                con.execute(BOOKED)
                con.execute(
                    f"INSERT INTO booked VALUES ({self.database.values(2)})", (ctx.trace_id, ctx.step)
                )
            elif effect != "keyed" or self._first(ctx):
                self.effect(effect, ctx)
            self._dies(ctx, "after")
            return ctx.step

        act.__name__ = f"act_{effect}"
        return tool(effect=effect, reconcile=find_out if effect == "reconcilable" else None)(act)

    def _first(self, ctx: ToolContext) -> bool:
        """What a service does that honours keys. It is not killed in the middle of this."""
        return not any(line[5] == ctx.idempotency_key for line in self.lines("effects"))

    def tools(self) -> list[Any]:
        return [self._act(effect) for effect in EFFECTS]


async def crash_consistency(setting: Setting) -> None:
    """A process is killed before and after the effect of a tool of every effect class, and started again until all is
    done. Effects are counted in files outside. On SQLite where the store is memory, which dies with its process."""
    durability: Durability = "full" if setting.options.durability == "full" else "normal"
    figures = setting.figures
    figures.store, figures.durability = setting.database.kind, durability
    setting.prepare()
    runs = PLANS * setting.size(2, 1)
    outside = Suicidal(setting.place, setting.database)
    cpu, began = cpu_seconds(), time.perf_counter()
    kills = _until_done(setting, runs, durability)
    setting.expect("P4", kills == runs, f"{kills} processes were killed where {runs} runs are to be hit")
    with outside.database.open(durability) as store:
        vm = ExecutionVM(tools=outside.tools(), store=store)
        # Those that wait for an operator would say how long he takes.
        recovered = [record for record in vm.runs(limit=10 * runs) if record.status != "SUSPENDED"]
        await _settle(setting, vm, outside, runs)
        seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu
        _judge(setting, vm, outside, runs)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    took = [(record.updated_at_ms - record.created_at_ms) / 1_000 for record in recovered]
    setting.took(seconds, cpu, took, peak if sys.platform == "darwin" else peak * 1024)
    setting.weigh_database()
    figures.facts = {"kills": kills, **figures.facts}


def _until_done(setting: Setting, runs: int, durability: str) -> int:
    """Start the process again and again until it ends by itself. Returns how often it was killed."""
    command = [sys.executable, "-m", "nano_vm.testing.bench.crash", str(setting.place), str(runs), durability]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment |= setting.database.environment
    for kills in range(2 * runs + 1):
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=120
        )
        if done.returncode != -signal.SIGKILL:
            last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
            setting.expect("P11", done.returncode == 0, f"a process failed: {' '.join(last)[:300]}")
            return kills
    return 2 * runs + 1


async def _settle(setting: Setting, vm: ExecutionVM, outside: Outside, runs: int) -> None:
    """What waits for an unknown outcome is settled by somebody who looks at what has happened outside."""
    waiting = 0
    for number in range(runs):
        trace = vm.trace(f"run-{number}")
        if trace.status is not RunStatus.SUSPENDED:
            continue
        waiting += 1
        named = [(wait.kind, wait.step) for wait in trace.waiting]
        setting.expect("P4", named == [("outcome", "irreversible")], f"run-{number} waits for {named}")
        happened = any(
            line[1] == trace.trace_id and line[0] == "irreversible" for line in outside.lines("effects")
        )
        await vm.resolve(trace.trace_id, "irreversible", "succeeded" if happened else "repeat", "found")
    hit = runs // PLANS * 2  # and those that were in the middle of the same tool when another was hit
    setting.expect(
        "P4", waiting >= hit, f"{waiting} runs name an unknown outcome where at least {hit} have one"
    )
    setting.figures.facts = {"unknown_outcomes": waiting}


def _judge(setting: Setting, vm: ExecutionVM, outside: Outside, runs: int) -> None:
    effects = outside.effects()
    setting.figures.effects = sum(effects.values())
    for number in range(runs):
        run_id = f"run-{number}"
        trace = vm.trace(run_id)
        setting.ran(trace)
        setting.expect("P10", trace.status is RunStatus.SUCCESS, f"{run_id} ended {trace.status.value}")
        for effect in EFFECTS:
            count = effects[effect, run_id, effect]
            most = 2 if effect in ("pure", "idempotent") else 1  # these may be repeated, and say so
            setting.expect(
                "P4", 1 <= count <= most, f"the {effect} effect of {run_id} happened {count} times"
            )
        finished: Counter[str] = Counter()
        for entry in vm.store.read(run_id):
            finished.update(event.step for event in open_events(entry) if type(event) is StepSucceeded)
        twice = [step for step, times in finished.items() if times > 1]
        setting.expect("P4", not twice, f"{run_id} finished {', '.join(twice)} twice")
        try:
            vm.verify(run_id)
        except NanoVMError as error:
            setting.expect("P6", False, f"{run_id} does not verify: {error.code}")
        else:
            setting.expect("P6", True, "")


# --- the process that is killed --------------------------------------------------------------------------------------


async def _work(place: Path, runs: int, durability: Durability) -> None:
    outside = Suicidal(place)
    program = Program.from_dict(PROGRAM)
    async with ExecutionVM(tools=outside.tools(), store=outside.database.open(durability)) as vm:
        for number in range(runs):
            name = f"run-{number}"
            await vm.run(program, trace_id=name, idempotency_key=name)


def main(argv: Sequence[str]) -> None:
    place, runs, durability = argv
    asyncio.run(_work(Path(place), int(runs), "full" if durability == "full" else "normal"))


if __name__ == "__main__":
    main(sys.argv[1:])
