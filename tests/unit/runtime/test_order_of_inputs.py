"""An engine that has taken a run over knows its program from the store; the application then gives it the program as it
wrote it. The same step of both must be given the same arguments (P1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from runtime_stage import play, program, sound, tool_step, wait_step

from nano_vm import ExecutionVM, RunStatus, SqliteStore, tool
from nano_vm.runtime import compilations

INPUTS = {"zone": "string", "amount": "integer", "account": "string"}  # not as they are sorted


@pytest.mark.parametrize("effect", ["pure", "idempotent", "irreversible"])
@pytest.mark.parametrize("inputs", [True, False], ids=["declared", "assumed"])
def test_a_run_gets_its_own_arguments_in_an_engine_that_has_taken_over_another(
    effect: str, inputs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paid: list[tuple[int, str, str]] = []

    @tool(effect=effect)
    async def pay(amount: int, account: str, zone: str) -> None:
        paid.append((amount, account, zone))

    args = {"zone": "$zone", "amount": "$amount", "account": "$account"}
    steps = [tool_step(f"s{number}", "pay", args=args) for number in range(4)]
    source = program(wait_step("w"), *steps)
    if inputs:
        properties = {name: {"type": kind} for name, kind in INPUTS.items()}
        source["inputs"] = {"type": "object", "properties": properties, "required": list(INPUTS)}

    def opened() -> ExecutionVM:
        monkeypatch.setattr(compilations, "_compiled", {})  # as in a process of its own
        return ExecutionVM(tools=[pay], store=SqliteStore(tmp_path / "runs.db", durability="normal"))

    async def run(vm: ExecutionVM, **context: Any) -> str:
        return (await vm.run(source, context)).trace_id

    async def main() -> None:
        before = opened()
        taken_over = await run(before, zone="north", amount=1, account="A")
        await before.close()
        vm = opened()
        await vm.resume(taken_over, name="go")
        trace = await vm.resume(await run(vm, zone="south", amount=2, account="B"), name="go")
        assert trace.status is RunStatus.SUCCESS
        assert paid == [(1, "A", "north")] * 4 + [(2, "B", "south")] * 4
        sound(vm, trace)
        await vm.close()

    play(main())
