"""Somebody else is quicker between the claim of a run that waits and what is added to it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nano_vm import ExecutionVM, Program
from nano_vm.errors import NanoVMError
from nano_vm.journal.port import RunRecord
from nano_vm.stores.sqlite import SqliteStore

PROGRAM = Program.from_dict(
    {
        "name": "approval",
        "steps": [
            {"id": "hold", "type": "wait", "event": "approval", "output_key": "answer"},
            {"id": "pay", "type": "tool", "tool": "pay", "args": {"amount": "$answer.amount"}},
        ],
    }
)


class Overtaken(SqliteStore):
    """Somebody else acts right after a claim."""

    others: list[Callable[[], object]]

    def claim(self, run_id: str, now_ms: int, known: RunRecord | None = None) -> int | None:
        fence = super().claim(run_id, now_ms, known)
        if fence is not None and self.others:
            other = threading.Thread(target=self.others.pop())
            other.start()
            other.join()
        return fence


class Setting:
    def __init__(self, folder: Path) -> None:
        self.paid: list[int] = []
        self.first = Overtaken(folder / "runs.db", "normal")
        self.second = SqliteStore(folder / "runs.db", "normal")
        self.first.others = []

    def vm(self, store: SqliteStore) -> ExecutionVM:
        async def pay(amount: int) -> str:
            self.paid.append(amount)
            return f"paid {amount}"

        return ExecutionVM(tools=[pay], store=store)

    def resume_elsewhere(self, event: dict[str, Any]) -> None:
        asyncio.run(self.vm(self.second).resume("r", event))

    def cancel_elsewhere(self) -> None:
        asyncio.run(self.vm(self.second).cancel("r", "no"))


@pytest.fixture
def setting(tmp_path: Path) -> Any:
    made = Setting(tmp_path)
    with made.first, made.second:
        asyncio.run(made.vm(made.first).run(PROGRAM, trace_id="r"))
        yield made


def test_the_same_event_is_taken_once(setting: Setting) -> None:
    event = {"amount": 5}
    setting.first.others = [lambda: setting.resume_elsewhere(event)]
    trace = asyncio.run(setting.vm(setting.first).resume("r", event))
    assert (trace.status, trace.final_output, setting.paid) == ("SUCCESS", "paid 5", [5])
    assert [record.status for record in setting.vm(setting.second).runs()] == ["SUCCESS"]


@pytest.mark.parametrize("act", ["resume", "cancel"])
def test_one_that_comes_too_late_is_refused(setting: Setting, act: str) -> None:
    if act == "resume":
        setting.first.others = [lambda: setting.resume_elsewhere({"amount": 7})]
    else:
        setting.first.others = [setting.cancel_elsewhere]
    vm = setting.vm(setting.first)
    with pytest.raises(NanoVMError) as caught:
        asyncio.run(vm.resume("r", {"amount": 5}))
    assert caught.value.code == "TERMINAL"
    assert setting.paid == ([7] if act == "resume" else [])
    assert vm.trace("r").status == ("SUCCESS" if act == "resume" else "CANCELLED")
    vm.verify("r")


def test_whoever_is_overtaken_over_and_over_still_arrives(setting: Setting) -> None:
    """Others claim the run, and give it back: nothing has changed, and the event is taken."""

    def touch() -> None:
        fence = setting.second.claim("r", setting.first.record("r").updated_at_ms)
        assert fence is not None
        setting.second.release("r", fence)

    setting.first.others = [touch] * 5
    trace = asyncio.run(setting.vm(setting.first).resume("r", {"amount": 5}))
    assert (trace.status, setting.paid) == ("SUCCESS", [5])
    assert setting.first.others == []


def test_a_journal_that_does_not_fit_is_no_reason_to_try_for_ever(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that keeps back the last entry: what was read is never what is stored."""
    read = SqliteStore.read
    monkeypatch.setattr(SqliteStore, "read", lambda *args, **options: read(*args, **options)[:-1])
    with pytest.raises(NanoVMError) as caught:
        asyncio.run(setting.vm(setting.first).cancel("r", "no"))
    assert caught.value.code == "JOURNAL_CONFLICT"
    monkeypatch.undo()
    assert setting.vm(setting.second).trace("r").status == "SUSPENDED"
    setting.resume_elsewhere({"amount": 5})
    assert setting.paid == [5]
