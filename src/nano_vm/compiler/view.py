"""The program as the passes of the compiler see it: steps with their places, and a list to put findings on.

Passes read only what structural validation let through; a field that was refused is simply not there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nano_vm.expr.errors import ExprError
from nano_vm.program.diagnostic import ERROR, WARNING, Diagnostic
from nano_vm.program.document import Document
from nano_vm.program.model import Program, expression_finding
from nano_vm.program.tool_schema import ToolSchema

FLOW_FIELDS = ("type", "then", "otherwise", "next_step", "on_failure", "is_terminal", "depends_on")


class Step:
    """One step or sub-step.

    `index` is its place among all steps, sub-steps right after their parent; `position` its place in the
    program's list (a sub-step has its parent's). `type` is "" when it could not be understood, `data` holds
    the sound fields.
    """

    __slots__ = ("data", "id", "index", "lanes", "parent", "pointer", "position", "type")

    def __init__(
        self, index: int, position: int, data: dict[str, Any], pointer: str, parent: Step | None
    ) -> None:
        self.index = index
        self.position = position
        self.data = data
        self.pointer = pointer
        self.parent = parent
        self.id: str = data.get("id", "")
        self.type: str = data.get("type", "")
        self.lanes: list[Step] = []

    def at(self, field: str) -> str:
        """Returns the JSON Pointer of a field."""
        return f"{self.pointer}/{field}"


class View:
    """A document and its sound part.

    Attributes:
        steps: all steps by `index`; top: those of the program's list by `position`.
        by_id: the first step of each id.
        data: the sound fields of the program itself, `steps` apart.
        inputs_sound: `inputs` is absent or valid; when not, nothing is known about the inputs.
        flow_sound: nothing that control flow depends on was refused, so absent edges mean something.
    """

    def __init__(
        self,
        document: Document,
        bad: set[str],
        tools: Mapping[str, ToolSchema] | None,
        programs: Mapping[str, Program] | None,
    ) -> None:
        self.document = document
        self.tools = tools
        self.programs = programs
        self.diagnostics: list[Diagnostic] = []
        self.steps: list[Step] = []
        self._written: list[dict[str, Any]] = []
        self.top: list[Step] = []
        self.by_id: dict[str, Step] = {}
        self.flow_sound = "/steps" not in bad
        self.inputs_sound = "/inputs" not in bad
        self._bad = bad
        data = document.data if isinstance(document.data, dict) else {}
        self.data: dict[str, Any] = {
            name: value for name, value in data.items() if f"/{name}" not in bad and name != "steps"
        }
        self.raw: dict[str, Any] = data
        steps = data.get("steps")
        for position, step in enumerate(steps if isinstance(steps, list) else ()):
            self._take(step, position, f"/steps/{position}")
        self.is_dag = any("depends_on" in step.data for step in self.top)

    def _take(self, data: Any, place: int, pointer: str) -> None:
        if not isinstance(data, dict):
            self.flow_sound = False
            return
        step = self._step(data, len(self.top), pointer, None)
        self.top.append(step)
        lanes = step.data.get("parallel_steps") if step.type == "parallel" else None
        if isinstance(lanes, list):
            for index, lane in enumerate(lanes):
                if isinstance(lane, dict):
                    step.lanes.append(
                        self._step(lane, step.position, f"{pointer}/parallel_steps/{index}", step)
                    )
        lane = step.data.get("step") if step.type == "map" else None
        if isinstance(lane, dict):
            step.lanes.append(self._step(lane, step.position, pointer + "/step", step))

    def _step(self, data: dict[str, Any], position: int, pointer: str, parent: Step | None) -> Step:
        if self._bad:
            sound = {name: value for name, value in data.items() if f"{pointer}/{name}" not in self._bad}
            if parent is None and any(name in data and name not in sound for name in FLOW_FIELDS):
                self.flow_sound = False
            if pointer + "/type" in self._bad:
                self.flow_sound = False
        else:
            sound = data
        step = Step(len(self.steps), position, sound, pointer, parent)
        self.steps.append(step)
        self._written.append(data)
        if step.id:
            self.by_id.setdefault(step.id, step)
        return step

    def written(self, step: Step) -> dict[str, Any]:
        """Returns the fields of a step as written, refused ones included."""
        return self._written[step.index]

    # --- findings -----------------------------------------------------------------------------------------

    def add(
        self,
        code: str,
        step: Step | None,
        pointer: str,
        message: str,
        help: str | None,
        *,
        field: str | None = None,
        severity: str = ERROR,
        key: bool = False,
        offset: int | None = None,
        length: int | None = None,
    ) -> None:
        """Notes a finding at `pointer` (its key with `key`, a part of the string with `offset` and
        `length`)."""
        name = step.id if step is not None and step.id else None
        place, width = self.document.place(
            pointer, key=key, offset=offset, length=length, step=name, field=field
        )
        self.diagnostics.append(Diagnostic(code, severity, message, help, place, width))

    def warn(
        self, code: str, step: Step | None, pointer: str, message: str, help: str | None, **where: Any
    ) -> None:
        """As `add`, for a warning."""
        self.add(code, step, pointer, message, help, severity=WARNING, **where)

    def add_expression(self, step: Step | None, pointer: str, field: str, error: ExprError) -> None:
        """Notes an error within the string at `pointer`."""
        self.diagnostics.append(
            expression_finding(self.document, pointer, error, step.id if step is not None else None, field)
        )

    def targets(self, step: Step) -> Iterator[tuple[str, str, str]]:
        """Yields field, pointer and name of every step that `step` names as a successor, `continue` left
        out."""
        names = ("then", "otherwise") if step.type == "condition" else ("next_step", "on_failure")
        for field in names:
            target = step.data.get(field)
            if isinstance(target, str) and not (target == CONTINUE and step.type == "condition"):
                yield field, step.at(field), target

    def target(self, step: Step, field: str) -> int | None:
        """Returns the position a field of `step` leads to, None without one, `len(top)` for the end and for
        targets that do not exist (reported elsewhere; an edge to the end does no harm to other analyses)."""
        name = step.data.get(field)
        if name is None:
            return None
        if name == CONTINUE and step.type == "condition":
            return step.position + 1
        found = self.by_id.get(name)
        return found.position if found is not None and found.parent is None else len(self.top)


CONTINUE = "continue"
