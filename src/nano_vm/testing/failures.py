"""What becomes of failures, read off a program's source: a second opinion on P1 and P4.

How often a step is tried, how long it waits before it is tried again, whether it may be left out, and how many lanes
of a group go at once. Like `edges` this is deliberately not the kernel's code; it follows SPEC §2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, TypeAlias

from msgspec import UNSET

from nano_vm.kernel import events as ev
from nano_vm.kernel.state import Activity, Phase, Stage, State, StepStatus
from nano_vm.program.compiled import CompiledProgram

Place: TypeAlias = tuple[str, int, int]  # step, occurrence, item (-1 without one)

_ATTEMPTS = 3  # with `on_error: retry`, where the program does not say
_INITIAL_S, _FACTOR, _CAP_S = 1.0, 2.0, 30.0


class Failures:
    """Follows the activities of one run.

    Invariant: `_waiting` holds, by the activity's key, until when an activity backs off (epoch ms).
    """

    def __init__(self, source: Mapping[str, Any]) -> None:
        self._steps: dict[str, Mapping[str, Any]] = {}
        self._group: dict[str, Mapping[str, Any]] = {}  # by the name of a lane
        for step in source["steps"]:
            self._steps[step["id"]] = step
            for lane in [*step.get("parallel_steps", ()), *([step["step"]] if "step" in step else ())]:
                self._steps[lane["id"]] = lane
                self._group[lane["id"]] = step
        self._rounds: Counter[Place] = Counter()  # a group that is tried again tries its lanes again
        self._waiting: dict[int, int] = {}
        self._rung: set[str] = set()  # groups whose time was up
        self._is_going = True

    def broken_by(self, event: ev.Event, program: CompiledProgram, state: State) -> str | None:
        """What the transition of `event`, which led to `state`, has done that the program does not say, or None."""
        was_going, self._is_going = self._is_going, state.stage is Stage.GOING
        if type(event) is ev.TimerFired and event.step in self._steps:
            self._rung.add(event.step)
        for settled in state.settled:
            step = program.steps[settled.step].id
            failed = event if type(event) is ev.StepFailed and settled.status is StepStatus.FAILED else None
            if was_going and failed is not None and failed.step == step and self._gives_up(failed):
                return f"`{step}` is given up before its program says so"
            # Of what a DAG passes by no attempt was made.
            if settled.status is not StepStatus.SKIPPED or not settled.attempts:
                continue
            if self._steps.get(step, {}).get("on_error") != "skip":
                return f"`{step}` failed and was left out, which its program does not allow"
        # After an unknown outcome it is the same attempt that is made again, as long as it takes.
        again = type(event) is ev.OutcomeResolved and event.resolution == "repeat"
        return (
            self._came_back_early(state)
            or self._backs_off(program, state, again)
            or self._crowd(program, state)
        )

    def _gives_up(self, event: ev.StepFailed) -> bool:
        """Whether the step should have been tried again, or left out."""
        step = self._steps.get(event.step, {})
        if step.get("on_error") == "skip":
            return True
        group = self._group.get(event.step)
        if (
            not event.retryable
            or step.get("type") == "agent"
            or (group is not None and group["id"] in self._rung)
        ):
            return False
        rounds = self._rounds[event.step, event.occurrence, -1 if event.item is UNSET else event.item]
        more = _attempts(step) - 1
        return more > 0 and (rounds == 0 or rounds % more != 0)

    def _came_back_early(self, state: State) -> str | None:
        for key, due_ms in list(self._waiting.items()):
            activity = state.active.get(key)
            if activity is not None and activity.phase is Phase.BACKOFF:
                continue
            del self._waiting[key]
            if (
                activity is not None
                and activity.phase in (Phase.READY, Phase.STARTED)
                and state.now_ms < due_ms
            ):
                return f"attempt {activity.attempt} began {due_ms - state.now_ms} ms too early"
        return None

    def _backs_off(self, program: CompiledProgram, state: State, again: bool) -> str | None:
        for key, activity in state.active.items():
            if activity.phase is not Phase.BACKOFF or activity.step < 0 or key in self._waiting:
                continue
            self._waiting[key] = activity.due_ms
            step = program.steps[activity.step].id
            if again or self._steps.get(step, {}).get("type") == "agent":
                continue  # every turn of an agent has its attempts
            place = (step, activity.occurrence, activity.item)
            self._rounds[place] += 1
            rounds = _attempts(self._steps.get(step, {})) - 1
            if self._rounds[place] > rounds * _attempts(self._group.get(step, {})):
                return f"`{step}` is to be tried more often than its program says"
            wait_ms = self._wait_ms(step, (self._rounds[place] - 1) % rounds + 1)
            if activity.due_ms - state.now_ms < wait_ms:
                return f"`{step}` backs off for less than {wait_ms} ms"
        return None

    def _crowd(self, program: CompiledProgram, state: State) -> str | None:
        lanes: Counter[int] = Counter()
        for activity in state.active.values():
            if activity.step >= 0 and _goes_on(activity):
                lanes[program.steps[activity.step].parent] += 1
        for parent, count in lanes.items():
            most = None if parent < 0 else self._steps[program.steps[parent].id].get("max_concurrency")
            if most is not None and count > most:
                return f"{count} lanes of `{program.steps[parent].id}` go at once"
        return None

    def _wait_ms(self, step: str, rounds: int) -> int:
        """The shortest wait before the next attempt."""
        rules = self._steps.get(step, {}).get("retry", {})
        longest = rules.get("initial", _INITIAL_S) * rules.get("factor", _FACTOR) ** (rounds - 1)
        wait_ms = int(min(longest, rules.get("cap", _CAP_S)) * 1_000)
        return wait_ms // 2 if rules.get("jitter", True) else wait_ms


def _goes_on(activity: Activity) -> bool:
    return activity.phase in (Phase.READY, Phase.STARTED)


def _attempts(step: Mapping[str, Any]) -> int:
    return int(step.get("max_retries", _ATTEMPTS)) if step.get("on_error") == "retry" else 1


__all__ = ["Failures"]
