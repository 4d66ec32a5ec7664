"""What an engine knows of long runs that it has let go of: as much as their journals say, and only while nobody else
has had them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from nano_vm import ExecutionVM, SqliteStore, tool
from nano_vm.errors import RejectedError
from nano_vm.journal.fold import fold
from nano_vm.kernel.state import snapshot
from nano_vm.runtime import parking, recovery

TURNS = 40  # by then the journal is longer than what is folded as quickly


@tool(effect="keyed", blocking=False)
def note(n: int) -> int:
    return n


def loop(**more: Any) -> dict[str, Any]:
    """A tool and a wait, again and again, until an event says -1."""
    return {
        "name": "loop",
        "max_steps": 10_000,
        "steps": [
            {"id": "note", "type": "tool", "tool": "note", "args": {"n": 1}},
            {"id": "turn", "type": "wait", "event": "go"},
            {
                "id": "more",
                "type": "condition",
                "condition": "$turn.output.n >= 0",
                "then": "note",
                "otherwise": "end",
            },
            {"id": "end", "type": "tool", "tool": "note", "args": {"n": 2}},
        ],
        **more,
    }


class Counted:
    """How often a journal is folded from its beginning."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.folds = 0
        for name in ("fold", "refold"):
            patch.setattr(recovery, name, self._counted(getattr(recovery, name)))

    def _counted(self, work: Any) -> Any:
        def counted(*args: Any, **options: Any) -> Any:
            self.folds += 1
            return work(*args, **options)

        return counted


def engine(path: Path, **options: Any) -> ExecutionVM:
    return ExecutionVM(tools=[note], store=SqliteStore(path / "runs.db", "normal"), **options)


async def turns(vm: ExecutionVM, first: int, count: int = TURNS, **options: Any) -> None:
    for n in range(first, first + count):
        await vm.resume("r", {"n": n}, event_id=f"e{n}", name="go", **options)


def state_of(vm: ExecutionVM) -> bytes:
    """As the journal alone tells it."""
    compiled = vm.load_program(vm.store.record("r").program_hash)
    return snapshot(fold(compiled, "r", vm.store.read("r"), verify=True))


def held(vm: ExecutionVM) -> list[str]:
    return list(vm.parking._held)


@pytest.mark.parametrize("lane", [True, False], ids=["lane", "general"])
def test_a_long_run_is_not_folded_again_and_stands_as_its_journal_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lane: bool
) -> None:
    async def main() -> None:
        async with engine(tmp_path) as vm:
            vm.lane = lane
            before = await vm.run(loop(), {}, trace_id="r")
            await turns(vm, 0)
            counted = Counted(monkeypatch)
            seen = vm.trace("r")
            for n in range(TURNS, TURNS + 10):
                trace = await vm.resume("r", {"n": n}, event_id=f"e{n}", name="go")
                assert snapshot(trace._state) == state_of(vm)
            assert counted.folds == 0
            assert (before.status, seen.status) == ("SUSPENDED", "SUSPENDED")
            again = await vm.resume("r", {"n": 3}, event_id="e3", name="go")  # the ids of long ago are known
            assert again.status == "SUSPENDED"
            with pytest.raises(RejectedError) as refused:
                await vm.resume("r", {"n": 4}, event_id="e3", name="go")
            assert refused.value.code == "EVENT_CONFLICT"
            done = await vm.resume("r", {"n": -1}, name="go")
            assert done.status == "SUCCESS"
            assert seen.status == "SUSPENDED"  # a trace that was given out stays as it was
            vm.verify("r")
            assert held(vm) == []

    asyncio.run(main())


def test_what_somebody_else_has_had_or_added_to_is_folded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with engine(tmp_path) as vm, engine(tmp_path) as other:
            await vm.run(loop(), {}, trace_id="r")
            await turns(vm, 0)
            counted = Counted(monkeypatch)
            await turns(other, 100, 1)
            assert counted.folds == 1
            await turns(vm, 200, 1)
            assert counted.folds == 2
            with pytest.raises(RejectedError):  # the refusal is in the journal
                await other.resume("r", {"n": 1}, event_id="e200", name="go")
            assert counted.folds == 3
            trace = await vm.resume("r", {"n": 201}, event_id="e201", name="go")
            assert counted.folds == 4
            assert snapshot(trace._state) == state_of(vm)
            vm.verify("r")

    asyncio.run(main())


def test_a_tampered_end_is_noticed(tmp_path: Path) -> None:
    async def main() -> None:
        async with engine(tmp_path) as vm:
            await vm.run(loop(), {}, trace_id="r")
            await turns(vm, 0)
            parked = vm.parking._held["r"]
            vm.parking._held["r"] = parked._replace(head="sha256:" + "0" * 64)
            assert vm.parking.take(vm, vm.store.record("r"), parked.fence + 1) is None

    asyncio.run(main())


def test_limits_and_requirements_go_on_from_where_they_stood(tmp_path: Path) -> None:
    policy = {
        "policy": "p",
        "rules": [
            {
                "id": "few",
                "tools": ["note"],
                "limits": [{"max_calls": TURNS + 12, "per": ["run"]}],
            }
        ],
    }

    async def main() -> tuple[int, str]:
        async with engine(tmp_path, policy=policy) as vm:
            await vm.run(loop(), {}, trace_id="r", principal="ana")
            await turns(vm, 0)
            assert held(vm) == ["r"]
            n, status = TURNS, "SUSPENDED"
            while status == "SUSPENDED":
                status = (await vm.resume("r", {"n": n}, event_id=f"e{n}", name="go")).status
                n += 1
            vm.verify("r")
            return n, status

    # One call before the first turn, one in each.
    assert asyncio.run(main()) == (TURNS + 12, "FAILED")


def test_runs_with_labels_are_not_kept(tmp_path: Path) -> None:
    inputs = {"type": "object", "properties": {"x": {"type": "integer", "label": "trusted"}}}

    async def main() -> list[str]:
        async with engine(tmp_path) as vm:
            await vm.run(loop(inputs=inputs), {"x": 1}, trace_id="r")
            await turns(vm, 0)
            return held(vm)

    assert asyncio.run(main()) == []


def test_no_more_runs_are_kept_than_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parking, "ENTRIES_MIN", 0)
    monkeypatch.setattr(parking, "PARKED_MAX", 3)

    async def main() -> list[str]:
        async with engine(tmp_path) as vm:
            for n in range(5):
                await vm.run(loop(), {}, trace_id=f"r{n}")
            return held(vm)

    assert asyncio.run(main()) == ["r2", "r3", "r4"]
