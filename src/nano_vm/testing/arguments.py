"""What a tool has to be given, read off a program's source and a run's journal: a second opinion on templates.

Deliberately not the engine's code, and deliberately little: references to inputs, to outputs, to what went wrong and to
the elements of a map, alone or inside of text, of objects and of arrays. What it does not understand it takes for
right.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from msgspec import UNSET

from nano_vm import canonical
from nano_vm.kernel import events as ev

_REFERENCE: Final = re.compile(r"\$(\w+)((?:\.\w+)*)")


class _Anything:
    def __repr__(self) -> str:
        return "anything"


ANYTHING: Final = _Anything()
_SAY_NOTHING: Final = (ev.StepStarted, ev.ChildStarted, ev.ChildSuspended, ev.ChildResumed)


class Arguments:
    """Follows the values of one run."""

    def __init__(self, source: Mapping[str, Any]) -> None:
        self._args: dict[str, Any] = {}
        self._key: dict[str, str] = {}
        self._over: dict[str, Any] = {}  # by the lane of a map
        self._plainly: set[str] = set()  # the output of these is what they, or an event, answer
        self._groups: set[str] = set()  # that of these is seen by `Gathered`
        self._steps: set[str] = set()
        for step in source["steps"]:
            if step["type"] in ("parallel", "map"):
                self._groups.add(step["id"])
            for one in [step, *step.get("parallel_steps", ())]:
                self._note_step(one)
            if "step" in step:
                self._over[step["step"]["id"]] = step["over"]
                if step["step"]["type"] == "tool":
                    self._args[step["step"]["id"]] = step["step"].get("args", {})
        self._inputs: Mapping[str, Any] = {}
        self._outputs: dict[str, Any] = {}
        self._errors: dict[str, Any] = {}
        self._failures: Counter[tuple[str, int]] = Counter()  # by step and occurrence
        self._named: dict[str, Any] = {}  # by output key

    def _note_step(self, step: Mapping[str, Any]) -> None:
        name = step["id"]
        self._steps.add(name)
        if step["type"] == "tool":
            self._args[name] = step.get("args", {})
        if step["type"] in ("tool", "llm", "agent") or (step["type"] == "wait" and "event" in step):
            self._plainly.add(name)
        if "output_key" in step:
            self._key[name] = step["output_key"]

    def note(self, event: ev.Event) -> None:
        """Take up what an event of the run's journal says of its values."""
        step = getattr(event, "step", UNSET)
        if type(event) is ev.RunStarted:
            self._inputs = {} if event.payload is UNSET else event.payload
        elif step is UNSET or step not in self._steps or type(event) in _SAY_NOTHING:
            return
        elif type(event) is ev.ChildFinished:
            succeeded = event.status == "SUCCESS" and type(event.payload) is dict
            self._bind(str(step), event.payload.get("output") if succeeded else ANYTHING)
        elif type(event) in (ev.StepSucceeded, ev.EventReceived) and step in self._plainly:
            payload = getattr(event, "payload", UNSET)
            self._bind(str(step), None if payload is UNSET else payload)
        else:
            # It failed, was left out, or somebody has said what it came to.
            self._bind(str(step), ANYTHING)
            if type(event) is ev.StepFailed:
                # An attempt of which nobody knew what came of it is made again, and is the same one.
                self._failures[event.step, event.occurrence] += 1
                attempts = self._failures[event.step, event.occurrence]
                self._errors[event.step] = {"type": event.error, "attempts": attempts}

    def _bind(self, step: str, value: Any) -> None:
        self._outputs[step] = value
        self._errors[step] = ANYTHING
        if step in self._key:
            self._named[self._key[step]] = value

    def bind(self, step: str, value: Any) -> None:
        """What a group has yielded."""
        if step in self._groups:
            self._bind(step, value)

    def items(self, lane: str) -> Any:
        """The elements that a map is over, by its lane."""
        return self.rendered(self._over.get(lane, ()))

    def wrong(self, step: str, given: Mapping[str, Any], item: int | None = None) -> str | None:
        """The name of an argument that is not what the program says, or None."""
        wanted = self._args.get(step)
        if not isinstance(wanted, Mapping):
            return None
        own = self._of_element(step, item)
        for name, template in wanted.items():
            if not agrees(self.rendered(template, own), given.get(name)):
                return str(name)
        return None

    def rendered_in(self, step: str, template: Any, item: int | None) -> Any:
        """`rendered`, where it stands at the lane of a map."""
        return self.rendered(template, self._of_element(step, item))

    def _of_element(self, step: str, item: int | None) -> dict[str, Any]:
        """What `$item` and `$index` mean there."""
        if item is None or step not in self._over:
            return {}
        items = self.items(step)
        known = isinstance(items, list) and item < len(items)
        return {"item": items[item] if known else ANYTHING, "index": item}

    def rendered(self, template: Any, own: Mapping[str, Any] | None = None) -> Any:
        """The value that a template has now; `ANYTHING`, or with that in it, where it is not understood. `own`: names
        that mean something there and nowhere else."""
        own = own or {}
        if isinstance(template, Mapping):
            return {name: self.rendered(value, own) for name, value in template.items()}
        if isinstance(template, list):
            return [self.rendered(value, own) for value in template]
        if not isinstance(template, str) or "$" not in template:
            return template
        found = _REFERENCE.fullmatch(template)
        if found is not None:
            return self._meant(found, own)
        if "${" in template:
            return ANYTHING
        values = [self._meant(one, own) for one in _REFERENCE.finditer(template)]
        if "$$" in template or not values or any(_is_open(value) for value in values):
            return ANYTHING
        texts = iter(
            value if isinstance(value, str) else canonical.encode(value).decode() for value in values
        )
        return _REFERENCE.sub(lambda _: next(texts), template)

    def _meant(self, reference: re.Match[str], own: Mapping[str, Any]) -> Any:
        name, path = reference[1], reference[2].split(".")[1:]
        value: Any
        if name in own:
            value = own[name]
        elif path[:1] == ["output"]:
            value, path = self._outputs.get(name, ANYTHING), path[1:]
        elif path[:1] == ["error"]:
            value, path = self._errors.get(name, ANYTHING), path[1:]
        else:
            value = self._named.get(name, self._inputs.get(name, ANYTHING))
        for part in path:
            value = value.get(part, ANYTHING) if isinstance(value, Mapping) else ANYTHING
        return value


def _is_open(value: Any) -> bool:
    """Whether there is something in it that is not known."""
    if isinstance(value, Mapping):
        return any(_is_open(one) for one in value.values())
    return any(_is_open(one) for one in value) if isinstance(value, list) else value is ANYTHING


def agrees(wanted: Any, given: Any) -> bool:
    """Whether a value is what `Arguments.rendered` says."""
    if wanted is ANYTHING:
        return True
    if isinstance(wanted, Mapping):
        return (
            isinstance(given, Mapping)
            and set(wanted) == set(given)
            and all(agrees(value, given[name]) for name, value in wanted.items())
        )
    if isinstance(wanted, list):
        return isinstance(given, list) and len(wanted) == len(given) and all(map(agrees, wanted, given))
    return bool(wanted == given)


__all__ = ["ANYTHING", "Arguments", "agrees"]
