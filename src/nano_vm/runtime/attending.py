"""Attending to what takes time: timers, and child runs that are under way or wait."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

from nano_vm.kernel import events as ev
from nano_vm.kernel.commands import AwaitEvent, Command, StartChild, StartTimer
from nano_vm.kernel.decide import start_child
from nano_vm.kernel.state import Activity, Phase, activity_key
from nano_vm.program.compiled import CallAction
from nano_vm.runtime.journaled import refuse
from nano_vm.runtime.outcomes import Outcome
from nano_vm.runtime.ports import ToolSpec

if TYPE_CHECKING:
    from nano_vm.runtime.driver import Run

_UNSET = ev.UNSET
Launches: TypeAlias = list[tuple[Command, ToolSpec | None, int]]


def set_timer(run: Run, command: StartTimer | AwaitEvent) -> None:
    """Have an activity's timer ring. When nothing else is under way the run suspends instead: its record holds the
    time, and whoever is alive then fires it."""
    if not command.due_ms:
        return
    key = activity_key(command.step, command.item)
    held = run.timers.get(key)
    if held is not None:
        if held[0] == command.due_ms:
            return
        held[1].cancel()
        del run.timers[key]
    if run.engine.clock.now_ms() >= command.due_ms:
        _ring(run, key, command)
    elif run.state.busy:
        task = asyncio.get_running_loop().create_task(_ring_at(run, key, command))
        run.timers[key] = (command.due_ms, task)


def watch_child(run: Run, command: AwaitEvent) -> None:
    """Have a child that waits taken up when a timer of its own is due, if we are still busy with others then."""
    activity = run.state.active[activity_key(command.step, command.item)]
    due_ms = _child_due_ms(activity)
    key = -2 - activity_key(command.step, command.item)
    if not due_ms or (key in run.timers and run.timers[key][0] == due_ms):
        return
    if run.engine.clock.now_ms() >= due_ms:
        run.child_due = True
        run.wake()
    elif run.state.busy:
        task = asyncio.get_running_loop().create_task(_look_at_children(run, key, due_ms))
        run.timers[key] = (due_ms, task)


async def _look_at_children(run: Run, key: int, due_ms: int) -> None:
    await run.engine.clock.sleep_until(due_ms)
    run.timers.pop(key, None)
    run.child_due = True
    run.wake()


async def _ring_at(run: Run, key: int, command: StartTimer | AwaitEvent) -> None:
    await run.engine.clock.sleep_until(command.due_ms)
    run.timers.pop(key, None)
    _ring(run, key, command)


def _ring(run: Run, key: int, command: StartTimer | AwaitEvent) -> None:
    activity = run.state.active.get(key)
    if activity is None or activity.due_ms != command.due_ms:
        return  # what it timed has settled
    if activity.phase in (Phase.STARTED, Phase.CHILD_WAITING):
        if child_command(run, activity).child in run.stopping:
            return
        run.overdue.append(key)
    else:
        event = ev.TimerFired(
            at_ms=max(run.engine.clock.now_ms(), command.due_ms),
            attempt=command.attempt,
            item=command.item if command.item >= 0 and command.step >= 0 else _UNSET,
            occurrence=command.occurrence,
            step=command.step_id,
        )
        run.arrivals.append((Outcome(event, None), None))
    run.wake()


def attach_children(run: Run, launches: Launches) -> None:
    """Take up the children that were under way when the run was loaded, and those that have something to do."""
    called = set()
    for key, activity in run.state.active.items():
        if activity.step < 0 or type(run.program.steps[activity.step].action) is not CallAction:
            continue
        command = child_command(run, activity)
        called.add(command.child)
        if (key, activity.attempt) in run.tasks:
            continue
        if activity.phase is Phase.CHILD_WAITING and _is_wanted(run, activity, command.child):
            run.record_event(
                ev.ChildResumed(
                    at_ms=run.engine.clock.now_ms(),
                    attempt=activity.attempt,
                    item=activity.item if activity.item >= 0 else _UNSET,
                    occurrence=activity.occurrence,
                    step=command.step_id,
                )
            )
            launches.append((command, None, 0))
        elif activity.phase is Phase.STARTED and not run.attached:
            launches.append((command, None, 0))
    run.attached = True
    run.child_due = False
    for child in run.letters.keys() - called:
        for letter in run.letters.pop(child):
            refuse(letter.answer)  # the child has ended in the meantime: ask again


def _is_wanted(run: Run, activity: Activity, child: str) -> bool:
    """Whether a child that waits has something to do: a letter has come, or a timer of its own is due."""
    if child in run.letters:
        return True
    due_ms = _child_due_ms(activity)
    return bool(due_ms) and due_ms <= run.engine.clock.now_ms()


def child_command(run: Run, activity: Activity) -> StartChild:
    return start_child(run.program, run.state, run.program.steps[activity.step], activity)


def stop_child(run: Run, key: int, launches: Launches) -> None:
    activity = run.state.active.get(key)
    if activity is None or activity.phase not in (Phase.STARTED, Phase.CHILD_WAITING):
        return  # it has ended meanwhile, and what is there now is another attempt
    command = child_command(run, activity)
    if command.child not in run.stopping:
        run.engine.stop_child(run, command.child)
    elif activity.phase is Phase.CHILD_WAITING:
        return  # it knows, and cannot end before somebody says what became of its calls
    launched = any(type(other) is StartChild and other.child == command.child for other, _, _ in launches)
    if not launched and (key, activity.attempt) not in run.tasks:
        launches.append((command, None, 0))


def _dues_inside(wait: dict[str, Any]) -> Iterator[int]:
    """When the timers of a child's waits are due, and those of its children."""
    for inner in wait.get("waits", ()):
        if inner.get("due_ms"):
            yield inner["due_ms"]
        yield from _dues_inside(inner)


def _child_due_ms(activity: Activity) -> int:
    """When the next timer inside a child that waits is due; 0 without one."""
    return min(_dues_inside({"waits": activity.waits or ()}), default=0)
