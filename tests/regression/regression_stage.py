"""Short ways to write the programs of these tests."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from nano_vm import ExecutionVM, NanoVMError, Program, ProgramError, ProgramValidator, Trace

DONE = {"is_terminal": True}


def tool_step(step_id: str, name: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"id": step_id, "type": "tool", "tool": name or step_id, **fields}


def ask(step_id: str = "ask", **fields: Any) -> dict[str, Any]:
    return {"id": step_id, "type": "llm", "prompt": "?", **fields}


def decide(step_id: str, condition: str, then: str, otherwise: str) -> dict[str, Any]:
    return {"id": step_id, "type": "condition", "condition": condition, "then": then, "otherwise": otherwise}


def program(*steps: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"name": "p", **fields, "steps": list(steps)}


def findings(data: dict[str, Any], tools: Any = None) -> set[str]:
    """Codes of everything that is found wrong or doubtful before a run."""
    try:
        loaded = Program.from_dict(data)
    except ProgramError as error:
        return {finding.code for finding in error.diagnostics}
    vm = ExecutionVM(tools=tools or {})
    report = ProgramValidator(loaded, tools=vm.tools.schemas() if tools is not None else None).validate()
    return {finding.code for finding in report.diagnostics}


def refused(code: str, call: Coroutine[Any, Any, Any]) -> NanoVMError:
    with pytest.raises(NanoVMError) as raised:
        play(call)
    assert raised.value.code == code
    return raised.value


def play(main: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine; one that hangs fails instead."""

    async def bounded() -> Any:
        async with asyncio.timeout(30):
            return await main

    return asyncio.run(bounded())


def run(
    vm: ExecutionVM, data: dict[str, Any], context: dict[str, Any] | None = None, **options: Any
) -> Trace:
    trace: Trace = play(vm.run(data, context, **options))
    vm.verify(trace.trace_id)
    return trace


class Tools(dict[str, Any]):
    """Tools that note their calls in `calls` and return what `answers` says, else their own name."""

    def __init__(self, *names: str, **answers: Any) -> None:
        super().__init__()
        self.calls: list[str] = []
        for name in (*names, *answers):
            self[name] = self._make(name, answers.get(name, name))

    def _make(self, name: str, answer: Any) -> Any:
        def act() -> Any:
            self.calls.append(name)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return act
