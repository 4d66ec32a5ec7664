"""Whoever verifies a run that is being driven is not told that it was tampered with."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path
from typing import Any

import pytest

from nano_vm import PENDING, ExecutionVM, NotFoundError, RunStatus, SqliteStore, VerificationError
from nano_vm.runtime import recovery
from unit.runtime.runtime_stage import Opener, play, program, tool_step, wait_step


def test_a_run_that_waits_for_another_attempt_before_its_record_says_anything(opener: Opener) -> None:
    again = {"on_error": "retry", "retry": {"initial": 3600, "factor": 1, "cap": 3600, "jitter": False}}

    async def main() -> None:
        async def act() -> None:
            raise ValueError("not yet")

        vm = opener(tools=[act])
        events = vm.stream(program(tool_step("s", **again)), trace_id="r")
        while (await anext(events)).type != "StepFailed":
            pass
        record = vm.store.record("r")
        assert (record.status, record.length) == ("RUNNING", 0)
        assert [name for name, _ in vm.verify("r").steps][-1] == "record"
        await vm.cancel("r")

    play(main())


def test_a_run_whose_call_has_no_known_outcome_before_its_new_driver_says_that_it_waits(
    opener: Opener,
) -> None:
    async def main() -> None:
        async def act() -> None:
            await asyncio.get_running_loop().create_future()

        vm = opener(tools=[act])
        driving = asyncio.create_task(vm.run(program(tool_step("s")), trace_id="r"))
        for _ in range(20):
            await asyncio.sleep(0)
        driving.cancel()
        await asyncio.gather(driving, return_exceptions=True)
        taken = await recovery.take_over(vm, "r")
        assert taken is not None
        assert vm.store.record("r").status == "RUNNING"
        assert vm.verify("r").state.status is RunStatus.SUSPENDED
        vm.store.release("r", taken.fence)
        (trace,) = await vm.recover()
        assert [wait.kind for wait in trace.waiting] == ["outcome"]
        vm.verify("r")

    play(main())


FLOWS = {
    "waits from its start": program(wait_step("w"), tool_step("s")),
    "waits later": program(tool_step("s"), wait_step("w"), tool_step("t"), wait_step("v")),
    "waits beside a tool": program(
        {"id": "g", "type": "parallel", "parallel_steps": [wait_step("w"), tool_step("s"), tool_step("t")]},
        tool_step("u"),
    ),
    "answers later": program(tool_step("p", "later"), tool_step("s")),
    "a list": program(
        {"id": "m", "type": "map", "over": [1, 2], "step": tool_step("i")}, wait_step("w"), tool_step("s")
    ),
}


@pytest.mark.parametrize("flow", FLOWS)
def test_at_every_turn_of_the_loop(opener: Opener, flow: str) -> None:
    async def main() -> None:
        async def act() -> int:
            await asyncio.sleep(0)
            return 1

        async def later() -> str:
            return PENDING

        vm = opener(tools=[act, later])
        seen = 0
        driving = asyncio.create_task(vm.run(FLOWS[flow], trace_id="r"))
        for number in range(4):
            while not driving.done():
                await asyncio.sleep(0)
                with contextlib.suppress(NotFoundError):
                    vm.verify("r")
                    seen += 1
            if (await driving).status is RunStatus.SUCCESS:
                break
            driving = asyncio.create_task(vm.resume("r", {"x": 1}, event_id=f"e{number}"))
        assert vm.trace("r").status is RunStatus.SUCCESS
        assert seen > 1

    play(main())


@pytest.mark.parametrize("field", ["waits", "wake_at_ms", "outcome", "status"])
def test_a_record_that_speaks_of_no_entries_may_say_nothing_of_them(opener: Opener, field: str) -> None:
    forged: dict[str, Any] = {
        "waits": [{"kind": "event", "step": "s"}],
        "wake_at_ms": 1,
        "outcome": "approved",
        "status": "SUCCESS",
    }

    async def main() -> None:
        async def act() -> None:
            vm.store.record("r")
            store = vm.store
            real = store.record
            store.record = lambda *args, **kwargs: _changed(real(*args, **kwargs), field, forged[field])  # type: ignore[method-assign]
            try:
                with pytest.raises(VerificationError) as raised:
                    vm.verify("r")
            finally:
                store.record = real  # type: ignore[method-assign]
            assert raised.value.code == "RECORD_MISMATCH"
            assert raised.value.facts["field"] == field
            told.append(field)

        told: list[str] = []
        vm = opener(tools=[act])
        await vm.run(program(tool_step("s"), wait_step("w")), trace_id="r")
        assert told == [field]

    play(main())


def _changed(record: Any, field: str, value: Any) -> Any:
    setattr(record, field, value)
    return record


def test_a_run_that_goes_on_between_the_reading_of_its_record_and_of_its_journal(tmp_path: Path) -> None:
    async def act() -> int:
        return 1

    path = tmp_path / "runs.db"
    waits = program(wait_step("w"), tool_step("s"))

    def go_on() -> None:
        with SqliteStore(path) as other:
            asyncio.run(ExecutionVM(tools=[act], store=other).resume("r", {"x": 1}))

    with SqliteStore(path) as store:
        vm = ExecutionVM(tools=[act], store=store)
        assert vm.run_sync(waits, trace_id="r").status is RunStatus.SUSPENDED
        read = store.read
        meddlers = [go_on]

        def read_later(*args: Any, **kwargs: Any) -> Any:
            if meddlers:
                meddler = threading.Thread(target=meddlers.pop())
                meddler.start()
                meddler.join()
            return read(*args, **kwargs)

        store.read = read_later  # type: ignore[method-assign]
        assert vm.replay("r").status is RunStatus.SUCCESS
        assert not meddlers
