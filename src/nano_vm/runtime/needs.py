"""What a program needs to be driven: so that a run is left untouched rather than failed for want of a tool."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nano_vm.errors import InputError, NanoVMError
from nano_vm.kernel.state import RunStatus
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


def require_undo(engine: Engine, run_id: str) -> None:
    """Refuse to end a run that nobody drives where what its steps are undone with is not here. Of one that was at work,
    which may have called anything, all tools are asked for.

    Raises:
        InputError: TOOLS_MISSING (facts: run_id, program, tools).
    """
    record = engine.store.record(run_id)
    needs = Needs(engine)
    needs.add(engine.load_program(record.program_hash))
    named = needs.tools if record.status == RunStatus.RUNNING else needs.undo
    missing = sorted(name for name in named if engine.tools.spec(name) is None)
    if missing:
        raise InputError(
            "TOOLS_MISSING",
            f"what the steps of run {run_id} would be undone with is not here: "
            + ", ".join(f"`{name}`" for name in missing),
            help="give the engine these tools (--tools FILE), or leave it to a process that has them",
            facts={"run_id": run_id, "program": record.program_name, "tools": missing},
        )
