"""What a plan must be beyond a program without errors. A plan is a model's word (SPEC P2): untrusted data, which
becomes a program only through the validator, the policy, and these rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nano_vm.expr.errors import ExprError
from nano_vm.expr.reference import Ref, scan_text
from nano_vm.program.diagnostic import ERROR, Diagnostic
from nano_vm.program.document import Document, join
from nano_vm.program.tool_schema import ToolSchema

FORBIDDEN = frozenset({"model", "subject", "private"})
"""Fields that are the operator's to say, not a plan's."""


class PlanRules:
    """What a planner demands of its plans.

    Args:
        types: step types that a plan may use.
        steps_max: how many steps it may have, nested ones included.
        budgets: program field -> the most it may say.
        inputs: names of what the run will be given; None for anything.
        tools: the tools, for their protected parameters.
    """

    def __init__(
        self,
        *,
        types: tuple[str, ...],
        steps_max: int,
        budgets: Mapping[str, int | float],
        inputs: Sequence[str] | None,
        tools: Mapping[str, ToolSchema],
    ) -> None:
        self._types = types
        self._steps_max = steps_max
        self._budgets = budgets
        self._inputs = None if inputs is None else set(inputs)
        self._tools = tools

    def inspect(self, document: Document) -> list[Diagnostic]:
        """All findings. The document may be anything: what is no program the validator says."""
        data = document.data
        if not isinstance(data, dict):
            return []
        found = [*self._program(data)]
        count = 0
        for pointer, step in _steps(data.get("steps"), "/steps"):
            count += 1
            found += self._step(pointer, step)
        if count > self._steps_max:
            message = f"the plan has {count} steps, and {self._steps_max} are the most"
            found.append(("PLAN_LIMIT", "/steps", message, None))
        return [
            Diagnostic(code, ERROR, message, help, *document.place(pointer))
            for code, pointer, message, help in found
        ]

    def _program(self, data: dict[str, Any]) -> Iterator[_Finding]:
        for name, most in self._budgets.items():
            given = data.get(name)
            if type(given) in (int, float) and given > most:  # type: ignore[operator]
                yield "PLAN_LIMIT", f"/{name}", f"`{name}` is more than {most}", f"{name}: {most}"
        for name in sorted(FORBIDDEN & data.keys()):
            yield "PLAN_FORBIDDEN", f"/{name}", f"a plan may not say `{name}`", "leave it out"
        inputs = data.get("inputs")
        properties = inputs.get("properties") if isinstance(inputs, dict) else None
        for name, schema in properties.items() if isinstance(properties, dict) else ():
            for word in sorted({"label", "private"} & schema.keys()) if isinstance(schema, dict) else ():
                place = join(join("/inputs/properties", name), word)
                yield "PLAN_FORBIDDEN", place, f"a plan may not say `{word}` of an input", "leave it out"
        if self._inputs is not None and isinstance(properties, dict):
            for name in sorted(map(str, properties.keys() - self._inputs)):
                message = f"the run is given no input `{name}`"
                yield (
                    "PLAN_INPUT",
                    join("/inputs/properties", name),
                    message,
                    f"inputs: {', '.join(sorted(self._inputs))}",
                )

    def _step(self, pointer: str, step: dict[str, Any]) -> Iterator[_Finding]:
        kind = step.get("type")
        if isinstance(kind, str) and kind not in self._types:
            message, help = f"a plan may not have steps of type `{kind}`", f"types: {', '.join(self._types)}"
            yield "PLAN_FORBIDDEN", f"{pointer}/type", message, help
        for name in sorted(FORBIDDEN & step.keys()):
            yield "PLAN_FORBIDDEN", f"{pointer}/{name}", f"a plan may not say `{name}`", "leave it out"
        calls = [(pointer, step)] if kind == "tool" else []
        undo = step.get("compensate")
        if isinstance(undo, dict):
            calls.append((f"{pointer}/compensate", undo))
        for place, call in calls:
            yield from self._call(place, call.get("tool"), call.get("args"))

    def _call(self, pointer: str, tool: Any, args: Any) -> Iterator[_Finding]:
        schema = self._tools.get(tool) if isinstance(tool, str) else None
        if schema is None or not schema.protected:
            return
        for name in schema.protected:
            if not isinstance(args, dict) or name not in args:
                continue  # no arguments at all, or the tool's own default
            if not self._is_input(args[name]):
                # A guard that the model wrote vouches for nothing, and neither does a value it chose.
                message = f"`{name}` of `{tool}` is protected: a plan may pass it an input, and nothing else"
                yield "PLAN_PROTECTED", join(f"{pointer}/args", name), message, f"{name}: $INPUT"

    def _is_input(self, value: Any) -> bool:
        """Whether a template is one reference to an input. Text around it, or a second one, would be the plan's."""
        if not isinstance(value, str) or self._inputs is None:
            return False
        try:
            parts = scan_text(value)
        except ExprError:
            return False
        return len(parts) == 1 and isinstance(parts[0], Ref) and parts[0].name in self._inputs


_Finding = tuple[str, str, str, str | None]


def _steps(given: Any, pointer: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """All steps with their places, those of groups and maps included."""
    if not isinstance(given, list):
        return
    for number, step in enumerate(given):
        if not isinstance(step, dict):
            continue
        place = f"{pointer}/{number}"
        yield place, step
        yield from _steps(step.get("parallel_steps"), f"{place}/parallel_steps")
        inner = step.get("step")
        if isinstance(inner, dict):
            yield f"{place}/step", inner
