"""Support for the kernel's tests: programs written in the language, and a hand on the wheel."""

from __future__ import annotations

from functools import cache
from typing import Any

from msgspec import UNSET

from nano_vm import canonical
from nano_vm.compiler import compile_program
from nano_vm.kernel import events as ev
from nano_vm.kernel.commands import Command, Compensate, Finish, StartChild
from nano_vm.kernel.state import (
    COMPENSATION_KEY,
    Activity,
    Rejection,
    RunStatus,
    State,
    activity_key,
    snapshot,
)
from nano_vm.kernel.transition import apply, decide, waiting
from nano_vm.program.compiled import CompiledProgram
from nano_vm.program.model import Program
from unit.kernel.kernel_invariants import check_invariants


def compiled(program: dict[str, Any]) -> CompiledProgram:
    """The compiled form of a program written as a dict."""
    return _compiled(canonical.encode({"name": "p", "version": "1", **program}))


@cache
def _compiled(program: bytes) -> CompiledProgram:
    return compile_program(Program.from_dict(canonical.decode(program)))


def tool(step_id: str, **fields: Any) -> dict[str, Any]:
    return {"id": step_id, "type": "tool", "tool": fields.pop("tool", step_id), "args": {}, **fields}


def started(program: CompiledProgram, inputs: dict[str, Any] | None = None, /, **facts: Any) -> ev.RunStarted:
    return ev.RunStarted(**{"at_ms": 1_000, "payload": inputs or {}, "program": program.hash, **facts})


class Drive:
    """One run, driven by hand. Every event is checked: an accepted one keeps the invariants, a refused one
    leaves the state as it was."""

    def __init__(self, program: CompiledProgram | dict[str, Any], **inputs: Any) -> None:
        self.program = program if isinstance(program, CompiledProgram) else compiled(program)
        self.state = State(run="r")
        self.now = 1_000
        self.settled: list[tuple[str, str, Any]] = []
        self.inputs = inputs

    def start(self, **facts: Any) -> Drive:
        self.must(started(self.program, self.inputs, **facts))
        return self

    # --- events -------------------------------------------------------------------------------------------

    def offer(self, event: ev.Event) -> str | None:
        """Apply an event; the rejection's code, or None when it was accepted."""
        before = snapshot(self.state)
        told = (self.state.settled, self.state.verdicts)
        result = apply(self.program, self.state, event)
        if type(result) is Rejection:
            assert snapshot(self.state) == before
            assert (self.state.settled, self.state.verdicts) == told
            return result.code
        assert result is self.state
        check_invariants(self.program, self.state)
        for each in self.state.settled:
            self.settled.append((self.program.steps[each.step].id, each.status.value, each.output))
        return None

    def must(self, event: ev.Event) -> Drive:
        code = self.offer(event)
        assert code is None, (code, event)
        return self

    def place(self, step: str, item: int | None = None, **facts: Any) -> dict[str, Any]:
        """Where an event about a step stands: its current occurrence and attempt unless told otherwise."""
        activity = self.activity(step, item)
        place: dict[str, Any] = {
            "at_ms": self.now,
            "step": step,
            "item": UNSET if item is None else item,
            "occurrence": activity.occurrence if activity else 1,
            "attempt": activity.attempt if activity else 1,
        }
        return {**place, **facts}

    def activity(self, step: str, item: int | None = None) -> Activity | None:
        index = self.program.step_index.get(step, -5)
        return self.state.active.get(activity_key(index, -1 if item is None else item))

    def begin(self, step: str, item: int | None = None, **facts: Any) -> Drive:
        return self.must(ev.StepStarted(**self.place(step, item, **facts)))

    def succeed(self, step: str, output: Any = None, item: int | None = None, **facts: Any) -> Drive:
        return self.must(ev.StepSucceeded(**self.place(step, item, payload=output, **facts)))

    def do(self, step: str, output: Any = None, item: int | None = None, **facts: Any) -> Drive:
        return self.begin(step, item).succeed(step, output, item, **facts)

    def fail(self, step: str, error: str = "Boom", item: int | None = None, **facts: Any) -> Drive:
        facts = {"draw": 0, "retryable": True, "payload": {"message": "boom"}, **facts}
        return self.must(ev.StepFailed(**self.place(step, item, error=error, **facts)))

    def break_(self, step: str, error: str = "Boom", item: int | None = None, **facts: Any) -> Drive:
        return self.begin(step, item).fail(step, error, item, **facts)

    def pending(self, step: str, item: int | None = None) -> Drive:
        return self.begin(step, item).must(ev.StepPending(**self.place(step, item)))

    def lose(self, step: str, item: int | None = None, reason: str = "CRASH", effect: str = "keyed") -> Drive:
        return self.must(ev.OutcomeUnknown(**self.place(step, item, reason=reason, effect=effect)))

    def resolve(self, step: str, resolution: str, item: int | None = None, **facts: Any) -> Drive:
        return self.must(self.resolution(step, resolution, item, **facts))

    def resolution(self, step: str, resolution: str, item: int | None = None, **facts: Any) -> ev.Event:
        return ev.OutcomeResolved(
            **self.place(step, item, **{"by": "operator", "resolution": resolution, **facts})
        )

    def timer(self, step: str, item: int | None = None, **facts: Any) -> str | None:
        activity = self.activity(step, item)
        self.now = max(self.now, activity.due_ms) if activity else self.now
        return self.offer(ev.TimerFired(**self.place(step, item, **facts)))

    def ring(self, step: str, item: int | None = None) -> Drive:
        code = self.timer(step, item)
        assert code is None, code
        return self

    def event(self, event_id: str, payload: Any = None, **facts: Any) -> str | None:
        return self.offer(ev.EventReceived(at_ms=self.now, event_id=event_id, payload=payload, **facts))

    def cancel(self) -> Drive:
        return self.must(ev.RunCancelled(at_ms=self.now))

    # --- children -----------------------------------------------------------------------------------------

    def call(self, step: str, item: int | None = None) -> Drive:
        command = self.command(step, item)
        assert type(command) is StartChild
        event = ev.ChildStarted(**self.place(step, item), child=command.child, program=command.program)
        return self.must(event)

    def child_end(self, step: str, status: str = "SUCCESS", item: int | None = None, **facts: Any) -> Drive:
        facts = {"head": "h", "steps": 2, "payload": {"output": None, "compensations": []}, **facts}
        return self.must(ev.ChildFinished(**self.place(step, item, status=status, **facts)))

    # --- compensation -------------------------------------------------------------------------------------

    def undo_place(self, **facts: Any) -> dict[str, Any]:
        undo = self.state.undo[-1]
        activity = self.state.active.get(COMPENSATION_KEY)
        return {
            "at_ms": self.now,
            "step": undo.step,
            "occurrence": undo.occurrence,
            "item": UNSET if undo.item < 0 else undo.item,
            "attempt": activity.attempt if activity else 1,
            **facts,
        }

    def undo(self) -> Drive:
        self.must(ev.CompensationStarted(**self.undo_place()))
        return self.must(ev.CompensationSucceeded(**self.undo_place()))

    # --- what is to be done -------------------------------------------------------------------------------

    def commands(self) -> list[Command]:
        return decide(self.program, self.state)

    def command(self, step: str, item: int | None = None) -> Command:
        found = [c for c in self.commands() if c.step_id == step and c.item == (-1 if item is None else item)]
        assert len(found) == 1, found
        return found[0]

    def todo(self) -> list[str]:
        """The commands, as `Kind:step`, with `.item` in lanes."""
        return [
            f"{type(c).__name__}:{c.step_id}" + (f".{c.item}" if c.item >= 0 else "") for c in self.commands()
        ]

    def waits(self) -> list[tuple[str, str]]:
        return [(wait.kind, wait.step) for wait in waiting(self.program, self.state)]

    def finish(self) -> Drive:
        """Take the Finish command and end the run, undoing what is to be undone."""
        while any(type(command) is Compensate for command in self.commands()):
            self.undo()
        [command] = self.commands()
        assert type(command) is Finish, command
        return self.must(
            ev.RunFinished(
                at_ms=self.now,
                status=command.status,
                outcome=UNSET if command.outcome is None else command.outcome,
                incomplete=list(command.incomplete) or UNSET,
            )
        )

    @property
    def status(self) -> RunStatus:
        return self.state.status
