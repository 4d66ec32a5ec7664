"""LangGraph: conditions are conditional edges; durable runs use AsyncSqliteSaver with `durability="sync"`.

`sync` (each step stored before the next one starts) is the promise nano-vm makes; LangGraph's default
`async` repeats finished steps after a crash. Without a checkpointer W1, W2, W3 and W6 keep no history at
all.
"""

from __future__ import annotations

import operator
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Annotated, Any, TypedDict
from uuid import uuid4

import workloads as w
from harness import (
    Measured,
    Slice,
    WorkNotDone,
    probe_durability,
    probe_durability_sync,
    run_driver,
    time_programs,
    time_programs_sync,
)
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt


class Order(TypedDict, total=False):
    order_id: int
    order: dict[str, int]
    refunded: int
    notified: int


class Value(TypedDict, total=False):
    x: int
    limit: int
    out: int


class Fan(TypedDict, total=False):
    x: int
    outs: Annotated[list[int], operator.add]


async def refund(turn: Slice) -> Measured:
    tools = w.Tools()

    async def lookup(state: Order) -> dict[str, Any]:
        return {"order": await tools.lookup(state["order_id"])}

    async def pay(state: Order) -> dict[str, Any]:
        return {"refunded": await tools.refund(state["order"]["amount"])}

    async def notify(state: Order) -> dict[str, Any]:
        return {"notified": await tools.notify(state["refunded"])}

    async def reject(state: Order) -> dict[str, Any]:
        return {"notified": await tools.reject()}

    builder = StateGraph(Order)
    for name, node in (("lookup", lookup), ("pay", pay), ("notify", notify), ("reject", reject)):
        builder.add_node(name, node)
    builder.add_edge(START, "lookup")
    builder.add_conditional_edges(
        "lookup", lambda state: "pay" if state["order"]["amount"] <= 100 else "reject", ["pay", "reject"]
    )
    builder.add_edge("pay", "notify")
    builder.add_edge("notify", END)
    builder.add_edge("reject", END)
    graph = builder.compile()

    async def once() -> object:
        return (await graph.ainvoke({"order_id": 7}))["notified"]

    return await time_programs(turn, tools, once)


def twenty_graph(node: Callable[[Value], Any], reject: Callable[[Value], Any]) -> StateGraph[Any]:
    """15 nodes; a conditional edge in front of every third."""
    builder = StateGraph(Value)
    for number in range(1, 16):
        builder.add_node(f"t{number}", node)
    builder.add_node("reject", reject)
    for number in range(15):
        here, there = (f"t{number}" if number else START), f"t{number + 1}"
        if number % 3:
            builder.add_edge(here, there)
            continue

        def choose(state: Value, least: int = number, target: str = there) -> str:
            return target if state["x"] >= least else "reject"

        builder.add_conditional_edges(here, choose, [there, "reject"])
    builder.add_edge("t15", END)
    builder.add_edge("reject", END)
    return builder


def twenty_async(tools: w.Tools) -> StateGraph[Any]:
    async def node(state: Value) -> dict[str, int]:
        return {"x": await tools.add_one(state["x"])}

    async def reject(state: Value) -> dict[str, int]:
        return {"x": len(await tools.reject())}

    return twenty_graph(node, reject)


async def twenty(turn: Slice) -> Measured:
    tools = w.Tools()
    graph = twenty_async(tools).compile()

    async def once() -> object:
        return (await graph.ainvoke({"x": 0}, RECURSION))["x"]

    return await time_programs(turn, tools, once)


RECURSION = {"recursion_limit": 100}


def never(state: Value) -> dict[str, int]:
    raise WorkNotDone("the wrong branch was taken")


def twenty_sync(turn: Slice) -> Measured:
    tools = w.Tools()
    graph = twenty_graph(lambda state: {"x": tools.add_one_sync(state["x"])}, never).compile()
    return time_programs_sync(turn, tools, lambda: graph.invoke({"x": 0}, RECURSION)["x"])


async def loop(turn: Slice) -> Measured:
    tools = w.Tools()
    limit = turn.workload.loop_limit

    async def tick(state: Value) -> dict[str, int]:
        return {"x": await tools.tick()}

    async def done(state: Value) -> dict[str, int]:
        return {"out": await tools.done(state["x"])}

    builder = StateGraph(Value)
    builder.add_node("tick", tick)
    builder.add_node("done", done)
    builder.add_edge(START, "tick")
    builder.add_conditional_edges(
        "tick", lambda state: "tick" if state["x"] < state["limit"] else "done", ["tick", "done"]
    )
    builder.add_edge("done", END)
    graph = builder.compile()

    async def once() -> object:
        tools.count = 0
        return (await graph.ainvoke({"x": 0, "limit": limit}, {"recursion_limit": limit + 10}))["out"]

    return await time_programs(turn, tools, once)


def fan_graph(tools: w.Tools) -> StateGraph[Any]:

    async def node(state: Fan) -> dict[str, list[int]]:
        return {"outs": [await tools.add_one(state["x"])]}

    builder = StateGraph(Fan)
    for number in range(w.FAN_OUT):
        builder.add_node(f"p{number}", node)
        builder.add_edge(START, f"p{number}")
        builder.add_edge(f"p{number}", END)
    return builder


async def fan_out(turn: Slice) -> Measured:
    tools = w.Tools()
    graph = fan_graph(tools).compile()

    async def once() -> object:
        return sum((await graph.ainvoke({"x": 0}))["outs"])

    return await time_programs(turn, tools, once)


@asynccontextmanager
async def saver(turn: Slice) -> AsyncIterator[AsyncSqliteSaver]:
    async with AsyncSqliteSaver.from_conn_string(str(turn.database)) as checkpointer:
        await checkpointer.setup()
        await checkpointer.conn.execute(f"PRAGMA synchronous={turn.workload.sync}")
        yield checkpointer


async def durable_fan_out(turn: Slice) -> Measured:
    tools = w.Tools()
    async with saver(turn) as checkpointer:
        graph = fan_graph(tools).compile(checkpointer=checkpointer)

        async def once() -> object:
            config = {"configurable": {"thread_id": str(uuid4())}}
            return sum((await graph.ainvoke({"x": 0}, config, durability="sync"))["outs"])

        await probe_durability(turn, once)
        return await time_programs(turn, tools, once)


async def durable(turn: Slice) -> Measured:
    tools = w.Tools()
    async with saver(turn) as checkpointer:
        graph = twenty_async(tools).compile(checkpointer=checkpointer)

        async def once() -> object:
            config = {"configurable": {"thread_id": str(uuid4())}, **RECURSION}
            return (await graph.ainvoke({"x": 0}, config, durability="sync"))["x"]

        await probe_durability(turn, once)
        return await time_programs(turn, tools, once)


def saver_sync(turn: Slice) -> SqliteSaver:
    con = sqlite3.connect(turn.database, check_same_thread=False)
    checkpointer = SqliteSaver(con)
    checkpointer.setup()
    con.execute(f"PRAGMA synchronous={turn.workload.sync}")
    return checkpointer


def durable_sync(turn: Slice) -> Measured:
    """The blocking saver and plain functions: what a program without an event loop gets."""
    tools = w.Tools()
    checkpointer = saver_sync(turn)
    graph = twenty_graph(lambda state: {"x": tools.add_one_sync(state["x"])}, never).compile(
        checkpointer=checkpointer
    )

    def once() -> object:
        config = {"configurable": {"thread_id": str(uuid4())}, **RECURSION}
        return graph.invoke({"x": 0}, config, durability="sync")["x"]

    probe_durability_sync(turn, once)
    measured = time_programs_sync(turn, tools, once)
    checkpointer.conn.close()
    return measured


async def suspend_resume(turn: Slice) -> Measured:
    reopen = turn.workload.key == "W5_reopen"
    tools = w.Tools()

    async def before(state: Value) -> dict[str, int]:
        return {"x": await tools.add_one(state["x"])}

    async def hold(state: Value) -> dict[str, int]:
        return {"x": interrupt("approval")["value"]}

    async def after(state: Value) -> dict[str, int]:
        return {"out": await tools.add_one(state["x"])}

    builder = StateGraph(Value)
    for name, node in (("before", before), ("hold", hold), ("after", after)):
        builder.add_node(name, node)
    builder.add_edge(START, "before")
    builder.add_edge("before", "hold")
    builder.add_edge("hold", "after")
    builder.add_edge("after", END)

    async def first(checkpointer: AsyncSqliteSaver, config: dict[str, Any]) -> None:
        state = await builder.compile(checkpointer=checkpointer).ainvoke({"x": 0}, config, durability="sync")
        if "__interrupt__" not in state:
            raise WorkNotDone("a run that should wait did not")

    async def second(checkpointer: AsyncSqliteSaver, config: dict[str, Any]) -> object:
        fresh = builder.compile(checkpointer=checkpointer)
        return (await fresh.ainvoke(Command(resume=w.EVENT), config, durability="sync"))["out"]

    def new_thread() -> dict[str, Any]:
        return {"configurable": {"thread_id": str(uuid4())}}

    if reopen:

        async def once_reopened() -> object:
            config = new_thread()
            async with saver(turn) as checkpointer:
                await first(checkpointer, config)
            async with saver(turn) as checkpointer:
                return await second(checkpointer, config)

        return await time_programs(turn, tools, once_reopened)

    async with saver(turn) as shared:

        async def once() -> object:
            config = new_thread()
            await first(shared, config)
            return await second(shared, config)

        return await time_programs(turn, tools, once)


def suspend_resume_sync(turn: Slice) -> Measured:
    tools = w.Tools()

    def before(state: Value) -> dict[str, int]:
        return {"x": tools.add_one_sync(state["x"])}

    def hold(state: Value) -> dict[str, int]:
        return {"x": interrupt("approval")["value"]}

    def after(state: Value) -> dict[str, int]:
        return {"out": tools.add_one_sync(state["x"])}

    builder = StateGraph(Value)
    for name, node in (("before", before), ("hold", hold), ("after", after)):
        builder.add_node(name, node)
    builder.add_edge(START, "before")
    builder.add_edge("before", "hold")
    builder.add_edge("hold", "after")
    builder.add_edge("after", END)
    checkpointer = saver_sync(turn)

    def once() -> object:
        nonlocal checkpointer
        config = {"configurable": {"thread_id": str(uuid4())}}
        state = builder.compile(checkpointer=checkpointer).invoke({"x": 0}, config, durability="sync")
        if "__interrupt__" not in state:
            raise WorkNotDone("a run that should wait did not")
        if turn.workload.key == "W5_reopen":
            checkpointer.conn.close()
            checkpointer = saver_sync(turn)
        fresh = builder.compile(checkpointer=checkpointer)
        return fresh.invoke(Command(resume=w.EVENT), config, durability="sync")["out"]

    measured = time_programs_sync(turn, tools, once)
    checkpointer.conn.close()
    return measured


DRIVERS = {
    "W1": refund,
    "W2": twenty,
    "W2_sync": twenty_sync,
    "W3_100": loop,
    "W3_1000": loop,
    "W3_10000": loop,
    "W4_full_seq": durable,
    "W4_full_100": durable,
    "W4_normal_seq": durable,
    "W4_normal_100": durable,
    "W5": suspend_resume,
    "W5_reopen": suspend_resume,
    "W6": fan_out,
    "W6_full": durable_fan_out,
}
# Plain functions with the blocking saver, as a second peer: the faster way for one run at a time, none for
# many.
SYNC_DRIVERS = {
    "W4_full_seq": durable_sync,
    "W4_normal_seq": durable_sync,
    "W5": suspend_resume_sync,
    "W5_reopen": suspend_resume_sync,
}

if __name__ == "__main__":
    raise SystemExit(run_driver("langgraph", version("langgraph"), {"": DRIVERS, "sync": SYNC_DRIVERS}))
