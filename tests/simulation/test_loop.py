"""The loop of simulations: time is virtual, and waits for threads."""

from __future__ import annotations

import asyncio

from nano_vm.testing.loop import SimulatedLoop, run

HOUR_S = 3_600.0


def test_time_does_not_pass_by_what_a_thread_has_answered_before_it_stopped() -> None:
    """The thread answers, and is not at work any more, after the loop has looked for answers and before it asks."""
    asked = []

    def working() -> bool:
        if not asked:
            asked.append(True)
            loop.call_soon_threadsafe(answer.set_result, "committed")
        return False

    async def main() -> tuple[str, float]:
        return await asyncio.wait_for(answer, HOUR_S), loop.time()

    loop = SimulatedLoop(working)
    answer: asyncio.Future[str] = loop.create_future()
    assert run(main(), loop) == ("committed", 0.0)


def test_time_passes_when_nothing_else_can_happen() -> None:
    async def main() -> float:
        await asyncio.sleep(HOUR_S)
        return loop.time()

    loop = SimulatedLoop()
    assert run(main(), loop) == HOUR_S
