"""What a tool has to be given, read off a program's source and a run's journal: a second opinion on templates.

Deliberately not the engine's code, and deliberately little: references to inputs, to outputs and to what went wrong,
alone or inside of text, of objects and of arrays. What it does not understand it takes for right.
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


class Arguments:
    """Follows the values of one run."""

    def __init__(self, source: Mapping[str, Any]) -> None:
        self._args: dict[str, Any] = {}
        self._key: dict[str, str] = {}
        steps = {step["id"]: step for step in source["steps"]}
        for step in source["steps"]:
            for one in [step, *step.get("parallel_steps", ())]:
                if one["type"] == "tool":
                    self._args[one["id"]] = one.get("args", {})
                if "output_key" in one:
                    self._key[one["id"]] = one["output_key"]
        self._steps = set(steps) | set(self._args)  # lanes of a parallel as well
        self._plainly = set(self._args)  # the output of these is what they, or an event, answer
        self._plainly |= {name for name, step in steps.items() if step["type"] == "wait" and "event" in step}
        self._inputs: Mapping[str, Any] = {}
        self._outputs: dict[str, Any] = {}
        self._errors: dict[str, Any] = {}
        self._failures: Counter[tuple[str, int]] = Counter()  # by step and occurrence
        self._named: dict[str, Any] = {}  # by output key

    def note(self, event: ev.Event) -> None:
        """Take up what an event of the run's journal says of its values."""
        step = getattr(event, "step", UNSET)
        if type(event) is ev.RunStarted:
            self._inputs = {} if event.payload is UNSET else event.payload
        elif step is UNSET or step not in self._steps or type(event) is ev.StepStarted:
            return
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

    def wrong(self, step: str, given: Mapping[str, Any]) -> str | None:
        """The name of an argument that is not what the program says, or None."""
        wanted = self._args.get(step)
        if not isinstance(wanted, Mapping):
            return None
        for name, template in wanted.items():
            if not _agrees(self._rendered(template), given.get(name)):
                return str(name)
        return None

    def _rendered(self, template: Any) -> Any:
        if isinstance(template, Mapping):
            return {name: self._rendered(value) for name, value in template.items()}
        if isinstance(template, list):
            return [self._rendered(value) for value in template]
        if not isinstance(template, str) or "$" not in template:
            return template
        found = _REFERENCE.fullmatch(template)
        if found is not None:
            return self._meant(found)
        values = [self._meant(one) for one in _REFERENCE.finditer(template)]
        if "$$" in template or not values or any(value is ANYTHING for value in values):
            return ANYTHING
        texts = iter(
            value if isinstance(value, str) else canonical.encode(value).decode() for value in values
        )
        return _REFERENCE.sub(lambda _: next(texts), template)

    def _meant(self, reference: re.Match[str]) -> Any:
        name, path = reference[1], reference[2].split(".")[1:]
        value: Any
        if path[:1] == ["output"]:
            value, path = self._outputs.get(name, ANYTHING), path[1:]
        elif path[:1] == ["error"]:
            value, path = self._errors.get(name, ANYTHING), path[1:]
        else:
            value = self._named.get(name, self._inputs.get(name, ANYTHING))
        for part in path:
            value = value.get(part, ANYTHING) if isinstance(value, Mapping) else ANYTHING
        return value


def _agrees(wanted: Any, given: Any) -> bool:
    if wanted is ANYTHING:
        return True
    if isinstance(wanted, Mapping):
        return (
            isinstance(given, Mapping)
            and set(wanted) == set(given)
            and all(_agrees(value, given[name]) for name, value in wanted.items())
        )
    if isinstance(wanted, list):
        return isinstance(given, list) and len(wanted) == len(given) and all(map(_agrees, wanted, given))
    return bool(wanted == given)


__all__ = ["Arguments"]
