"""What groups yield, read off a program's source and a run's journal: a second opinion on parallel and map (P1).

No lane's result is lost, nobody's stands in another's place, each element of a map has one, and nothing that has
succeeded is done again when its group is. Like `edges` this is deliberately not the kernel's code; it follows SPEC §2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import UNSET

from nano_vm.kernel import events as ev
from nano_vm.kernel.state import Settled, StepStatus
from nano_vm.program.compiled import CompiledProgram
from nano_vm.testing.arguments import ANYTHING, Arguments, agrees

_BEGIN: Final = (ev.StepStarted, ev.ChildStarted)


class Gathered:
    """Follows the groups of one run. `arguments` follows the values of the same run, and is told what groups yield."""

    def __init__(self, source: Mapping[str, Any], arguments: Arguments) -> None:
        self._arguments = arguments
        self._groups = {step["id"]: step for step in source["steps"] if step["type"] in ("parallel", "map")}
        self._lanes: dict[str, str] = {}
        for name, step in self._groups.items():
            for lane in [*step.get("parallel_steps", ()), *([step["step"]] if "step" in step else ())]:
                self._lanes[lane["id"]] = name
        self._final: set[tuple[str, int, int | None]] = set()  # lanes that have failed for good
        self._yielded: dict[tuple[str, int, int | None], Any] = {}  # by lane, occurrence and item

    def broken_by(
        self, event: ev.Event, settled: Sequence[tuple[int, Settled]], program: CompiledProgram
    ) -> str | None:
        """What is wrong with a group, or None. To be asked after `arguments` has noted the event."""
        step = getattr(event, "step", UNSET)
        if step in self._lanes:
            item = getattr(event, "item", UNSET)
            place = (str(step), getattr(event, "occurrence", 0), None if item is UNSET else item)
            if type(event) in _BEGIN and place in self._yielded:
                return f"`{step}` is done again, which has succeeded"
            if type(event) in _BEGIN and place in self._final:
                return f"`{step}` is tried again after it has failed for good"
            if type(event) is ev.StepFailed and not event.retryable:
                self._final.add(place)
            items, most = (
                self._arguments.items(str(step)),
                self._groups[self._lanes[str(step)]].get("max_items"),
            )
            if isinstance(items, list) and most is not None and len(items) > most:
                return f"`{step}` is done for the elements of a list of {len(items)}, and {most} are allowed"
        for index, one in settled:
            name = program.steps[index].id
            if name in self._lanes and one.status is not StepStatus.FAILED:
                value = self._said(event, name, one)
                self._yielded[name, one.occurrence, None if one.item < 0 else one.item] = value
            if name in self._groups:
                if one.status is StepStatus.SUCCESS and not one.substituted:
                    wanted = self._wanted(self._groups[name], one.occurrence)
                    if not agrees(wanted, one.output):
                        return f"`{name}` does not yield what its lanes have yielded, each in its place"
                self._arguments.bind(name, ANYTHING if one.status is StepStatus.FAILED else one.output)
        return None

    def _said(self, event: ev.Event, name: str, one: Settled) -> Any:
        """What a lane has yielded, by the word of who answered for it."""
        if one.status is StepStatus.SKIPPED:
            return None
        if type(event) is ev.StepSucceeded and event.step == name:
            return None if event.payload is UNSET else event.payload
        return ANYTHING

    def _wanted(self, group: Mapping[str, Any], occurrence: int) -> Any:
        if group["type"] == "parallel":
            return {
                lane["id"]: self._yielded.get((lane["id"], occurrence, None), _MISSING)
                for lane in group["parallel_steps"]
            }
        lane = group["step"]["id"]
        items = self._arguments.items(lane)
        if not isinstance(items, list):
            return ANYTHING
        return [self._yielded.get((lane, occurrence, item), _MISSING) for item in range(len(items))]


_MISSING: Final = object()  # is nothing's value


__all__ = ["Gathered"]
