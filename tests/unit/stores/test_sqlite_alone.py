"""P3 on the short way: a run that is alone commits without waiting for the loop, and still before every effect."""

import asyncio
from pathlib import Path

import pytest

from nano_vm import ExecutionVM, SqliteStore
from nano_vm.journal.entry import open_events
from nano_vm.kernel.events import StepStarted

STEPS = 6


@pytest.mark.parametrize("runs", [1, 12])
def test_an_intent_is_in_the_file_before_its_effect_begins(tmp_path: Path, runs: int) -> None:
    path = tmp_path / "runs.db"
    found: list[tuple[str, bool]] = []
    hints: list[bool] = []

    with SqliteStore(path, durability="normal") as writer, SqliteStore(path) as reader:

        async def act(run: str, place: int) -> int:
            hints.append(writer.alone)
            events = [event for entry in reader.read(run) for event in open_events(entry)]
            intents = [event.step for event in events if type(event) is StepStarted]
            found.append((run, intents == [f"s{number}" for number in range(place + 1)]))
            return place

        steps = [
            {"id": f"s{place}", "type": "tool", "tool": "act", "args": {"run": "$run.id", "place": place}}
            for place in range(STEPS)
        ]
        vm = ExecutionVM(tools={"act": act}, store=writer)

        async def main() -> list[str]:
            program = {"name": "alone", "steps": steps}
            await vm.run(program, trace_id="before")  # a run that was alone says nothing of those that follow
            hints.clear()
            found.clear()
            traces = await asyncio.gather(*[vm.run(program, trace_id=f"r{number}") for number in range(runs)])
            return [trace.status.value for trace in traces]

        assert asyncio.run(main()) == ["SUCCESS"] * runs
        assert len(found) == runs * STEPS
        assert all(durable for _, durable in found)
        assert any(hints) == (runs == 1), "one run takes the short way, many are committed in groups"
        for number in range(runs):
            vm.verify(f"r{number}")
