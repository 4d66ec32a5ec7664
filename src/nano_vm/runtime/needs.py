"""What a program needs to be driven: so that a run is left untouched rather than failed for want of a tool."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nano_vm.errors import NanoVMError
from nano_vm.program.compiled import CallAction, CompiledProgram, ModelAction, ToolAction

if TYPE_CHECKING:
    from nano_vm.runtime.engine import Engine


class Needs:
    """The tools a program names, its own and those of the programs it calls; `undo` are those that compensate."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._seen: set[str] = set()
        self.tools: set[str] = set()
        self.undo: set[str] = set()
        self.model = False

    def add(self, compiled: CompiledProgram) -> None:
        if compiled.hash in self._seen:
            return
        self._seen.add(compiled.hash)
        for step in compiled.steps:
            action = step.action
            if isinstance(action, ToolAction):
                self.tools.add(action.tool)
            elif isinstance(action, ModelAction):
                self.model = True
            elif isinstance(action, CallAction):
                self._add_called(action.program)
            if step.compensation is not None:
                self.tools.add(step.compensation.tool)
                self.undo.add(step.compensation.tool)

    def _add_called(self, name: str) -> None:
        found = name if name.startswith("sha256:") else self._engine.store.program_named(name)
        if found is None:
            return  # the run says so when it starts
        try:
            self.add(self._engine.load_program(found))
        except NanoVMError:
            return
