"""A run waits in one process and goes on in another: all they share is the database file.

python examples/resume_elsewhere.py start            prints the run's id, and ends
python examples/resume_elsewhere.py answer RUN_ID    a new process delivers the event
"""

import asyncio
import sys

from nano_vm import ExecutionVM, Program, SqliteStore, tool

PROGRAM = Program.from_yaml("""
name: delivery
steps:
  - {id: order, type: tool, tool: place_order, args: {product: $product}}
  - {id: arrived, type: wait, event: parcel_arrived, accept: $event.weight > 0}
  - {id: thank, type: tool, tool: thank, args: {weight: $arrived.output.weight}}
""")


@tool(effect="idempotent")
def place_order(product: str) -> str:
    return f"ordered {product}"


@tool(effect="idempotent")
def thank(weight: float) -> str:
    return f"thanks for {weight} kg"


async def start() -> None:
    async with ExecutionVM(tools=[place_order, thank], store=SqliteStore("delivery.db")) as vm:
        trace = await vm.run(PROGRAM, {"product": "tea"})
        print(trace.trace_id, trace.status, "waits for", trace.waiting[0].event)


async def answer(run_id: str) -> None:
    async with ExecutionVM(tools=[place_order, thank], store=SqliteStore("delivery.db")) as vm:
        trace = await vm.resume(run_id, {"weight": 1.5}, name="parcel_arrived", event_id="scan-17")
        again = await vm.resume(run_id, {"weight": 1.5}, name="parcel_arrived", event_id="scan-17")
        print(trace.trace_id, trace.status, trace.final_output)
        print("the same event again changes nothing:", again.head == trace.head)


if __name__ == "__main__":
    asyncio.run(answer(sys.argv[2]) if sys.argv[1:2] == ["answer"] else start())
