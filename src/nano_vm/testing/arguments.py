"""What a tool has to be given, read off a program's source and a run's journal: a second opinion on templates.

Deliberately not the engine's code, and deliberately little: references that stand alone, to inputs and to outputs,
inside of whatever objects and arrays. What it does not understand it takes for right.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from msgspec import UNSET

from nano_vm.kernel import events as ev

_REFERENCE: Final = re.compile(r"\$(\w+)(\.output)?")


class _Anything:
    def __repr__(self) -> str:
        return "anything"


ANYTHING: Final = _Anything()


class Arguments:
    """Follows the values of one run."""

    def __init__(self, source: Mapping[str, Any]) -> None:
        self._args: dict[str, Any] = {}
        self._key: dict[str, str] = {}
        for step in source["steps"]:
            for one in [step, *step.get("parallel_steps", ())]:
                if one["type"] == "tool":
                    self._args[one["id"]] = one.get("args", {})
                if "output_key" in one:
                    self._key[one["id"]] = one["output_key"]
        self._steps = {step["id"] for step in source["steps"]} | set(
            self._args
        )  # lanes of a parallel as well
        self._inputs: Mapping[str, Any] = {}
        self._outputs: dict[str, Any] = {}
        self._named: dict[str, Any] = {}  # by output key

    def note(self, event: ev.Event) -> None:
        """Take up what an event of the run's journal says of its values."""
        if type(event) is ev.RunStarted:
            self._inputs = {} if event.payload is UNSET else event.payload
        elif type(event) is ev.StepSucceeded and event.step in self._steps and event.step in self._args:
            self._bind(event.step, None if event.payload is UNSET else event.payload)
        elif type(event) is not ev.StepStarted and (step := str(getattr(event, "step", ""))) in self._steps:
            # It failed, was left out, or somebody has said what it came to.
            self._bind(step, ANYTHING)

    def _bind(self, step: str, value: Any) -> None:
        self._outputs[step] = value
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
        if found is None:
            return ANYTHING
        if found[2]:
            return self._outputs.get(found[1], ANYTHING)
        return self._named.get(found[1], self._inputs.get(found[1], ANYTHING))


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
