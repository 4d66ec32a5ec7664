"""Burr: actions and conditional transitions over one prebuilt graph; an Application object per program.

Durable runs use its own SQLite persisters, put into WAL mode. The async persister shares one connection
between all runs; `sync` is the blocking one, the faster way for one run at a time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any
from uuid import uuid4

import workloads as w
from burr.core import ApplicationBuilder, GraphBuilder, State, action, when
from burr.core.graph import Graph
from burr.core.parallelism import MapStates, RunnableGraph
from burr.core.persistence import SQLitePersister
from burr.integrations.persisters.b_aiosqlite import AsyncSQLitePersister
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


async def refund(turn: Slice) -> Measured:
    tools = w.Tools()

    @action(reads=["order_id"], writes=["amount"])
    async def lookup(state: State) -> State:
        return state.update(amount=(await tools.lookup(state["order_id"]))["amount"])

    @action(reads=["amount"], writes=["refunded"])
    async def pay(state: State) -> State:
        return state.update(refunded=await tools.refund(state["amount"]))

    @action(reads=["refunded"], writes=["notified"])
    async def notify(state: State) -> State:
        return state.update(notified=await tools.notify(state["refunded"]))

    @action(reads=[], writes=["notified"])
    async def reject(state: State) -> State:
        return state.update(notified=await tools.reject())

    graph = (
        GraphBuilder()
        .with_actions(lookup=lookup, pay=pay, notify=notify, reject=reject)
        .with_transitions(("lookup", "pay", when(amount__lte=100)), ("lookup", "reject"), ("pay", "notify"))
        .build()
    )

    async def once() -> object:
        app = ApplicationBuilder().with_graph(graph).with_state(order_id=7).with_entrypoint("lookup").build()
        _, _, state = await app.arun(halt_after=["notify", "reject"])
        return state["notified"]

    return await time_programs(turn, tools, once)


def twenty_graph(tools: w.Tools, *, sync: bool = False) -> Graph:
    """15 actions and 5 conditional transitions (the entry cannot have one, so the first stands after t1)."""

    @action(reads=["x"], writes=["x"])
    async def tool(state: State) -> State:
        return state.update(x=await tools.add_one(state["x"]))

    @action(reads=["x"], writes=["x"])
    def tool_sync(state: State) -> State:
        return state.update(x=tools.add_one_sync(state["x"]))

    @action(reads=["x"], writes=["x"])
    def reject(state: State) -> State:
        raise WorkNotDone("the wrong branch was taken")

    chosen = tool_sync if sync else tool
    actions = {f"t{number}": chosen for number in range(1, 16)}
    transitions: list[tuple[Any, ...]] = []
    for number in range(1, 15):
        here, there = f"t{number}", f"t{number + 1}"
        if number not in (1, 3, 6, 9, 12):
            transitions.append((here, there))
        else:
            transitions += [(here, there, when(x__gte=number)), (here, "reject")]
    return GraphBuilder().with_actions(**actions, reject=reject).with_transitions(*transitions).build()


async def twenty(turn: Slice) -> Measured:
    tools = w.Tools()
    graph = twenty_graph(tools)

    async def once() -> object:
        app = ApplicationBuilder().with_graph(graph).with_state(x=0).with_entrypoint("t1").build()
        _, _, state = await app.arun(halt_after=["t15", "reject"])
        return state["x"]

    return await time_programs(turn, tools, once)


def twenty_sync(turn: Slice) -> Measured:
    tools = w.Tools()
    graph = twenty_graph(tools, sync=True)

    def once() -> object:
        app = ApplicationBuilder().with_graph(graph).with_state(x=0).with_entrypoint("t1").build()
        _, _, state = app.run(halt_after=["t15", "reject"])
        return state["x"]

    return time_programs_sync(turn, tools, once)


async def loop(turn: Slice) -> Measured:
    tools = w.Tools()
    limit = turn.workload.loop_limit

    @action(reads=[], writes=["n"])
    async def tick(state: State) -> State:
        return state.update(n=await tools.tick())

    @action(reads=["n"], writes=["out"])
    async def done(state: State) -> State:
        return state.update(out=await tools.done(state["n"]))

    graph = (
        GraphBuilder()
        .with_actions(tick=tick, done=done)
        .with_transitions(("tick", "tick", when(n__lt=limit)), ("tick", "done"))
        .build()
    )

    async def once() -> object:
        tools.count = 0
        app = ApplicationBuilder().with_graph(graph).with_state(n=0).with_entrypoint("tick").build()
        _, _, state = await app.arun(halt_after=["done"])
        return state["out"]

    return await time_programs(turn, tools, once)


async def fan_out(turn: Slice) -> Measured:
    tools = w.Tools()

    @action(reads=["x"], writes=["y"])
    async def leaf(state: State) -> State:
        return state.update(y=await tools.add_one(state["x"]))

    leaf_graph = RunnableGraph(GraphBuilder().with_actions(leaf=leaf).build(), "leaf", ["leaf"])

    class Fan(MapStates):
        def action(self, state: State, inputs: dict[str, Any]) -> RunnableGraph:
            return leaf_graph

        async def states(self, state: State, context: Any, inputs: dict[str, Any]) -> AsyncIterator[State]:
            for _ in range(w.FAN_OUT):
                yield state

        async def reduce(self, state: State, states: AsyncIterator[State]) -> State:
            return state.update(total=sum([sub["y"] async for sub in states]))

        def is_async(self) -> bool:
            return True

        @property
        def reads(self) -> list[str]:
            return ["x"]

        @property
        def writes(self) -> list[str]:
            return ["total"]

    graph = GraphBuilder().with_actions(fan=Fan()).build()

    async def once() -> object:
        app = ApplicationBuilder().with_graph(graph).with_state(x=0).with_entrypoint("fan").build()
        _, _, state = await app.arun(halt_after=["fan"])
        return state["total"]

    return await time_programs(turn, tools, once)


@asynccontextmanager
async def persister(turn: Slice) -> AsyncIterator[AsyncSQLitePersister]:
    async with AsyncSQLitePersister.from_values(db_path=str(turn.database)) as opened:
        await opened.connection.execute("PRAGMA journal_mode=WAL")
        await opened.connection.execute(f"PRAGMA synchronous={turn.workload.sync}")
        await opened.initialize()
        yield opened


async def durable(turn: Slice) -> Measured:
    tools = w.Tools()
    graph = twenty_graph(tools)
    async with persister(turn) as store:

        async def once() -> object:
            app = await (
                ApplicationBuilder()
                .with_graph(graph)
                .with_state(x=0)
                .with_entrypoint("t1")
                .with_identifiers(app_id=str(uuid4()))
                .with_state_persister(store)
                .abuild()
            )
            _, _, state = await app.arun(halt_after=["t15", "reject"])
            return state["x"]

        await probe_durability(turn, once)
        return await time_programs(turn, tools, once)


def persister_sync(turn: Slice) -> SQLitePersister:
    store = SQLitePersister.from_values(db_path=str(turn.database))
    store.connection.execute("PRAGMA journal_mode=WAL")
    store.connection.execute(f"PRAGMA synchronous={turn.workload.sync}")
    store.initialize()
    return store


def durable_sync(turn: Slice) -> Measured:
    tools = w.Tools()
    graph = twenty_graph(tools, sync=True)
    store = persister_sync(turn)

    def once() -> object:
        app = (
            ApplicationBuilder()
            .with_graph(graph)
            .with_state(x=0)
            .with_entrypoint("t1")
            .with_identifiers(app_id=str(uuid4()))
            .with_state_persister(store)
            .build()
        )
        _, _, state = app.run(halt_after=["t15", "reject"])
        return state["x"]

    probe_durability_sync(turn, once)
    measured = time_programs_sync(turn, tools, once)
    store.connection.close()
    return measured


async def suspend_resume(turn: Slice) -> Measured:
    """It halts before the action that takes the event as its input; a fresh Application loads and goes on."""
    reopen = turn.workload.key == "W5_reopen"
    tools = w.Tools()

    @action(reads=["x"], writes=["x"])
    async def before(state: State) -> State:
        return state.update(x=await tools.add_one(state["x"]))

    @action(reads=[], writes=["x"])
    async def hold(state: State, value: int) -> State:
        return state.update(x=value)

    @action(reads=["x"], writes=["out"])
    async def after(state: State) -> State:
        return state.update(out=await tools.add_one(state["x"]))

    graph = (
        GraphBuilder()
        .with_actions(before=before, hold=hold, after=after)
        .with_transitions(("before", "hold"), ("hold", "after"))
        .build()
    )

    async def open_application(store: AsyncSQLitePersister, app_id: str) -> Any:
        return await (
            ApplicationBuilder()
            .with_graph(graph)
            .with_identifiers(app_id=app_id)
            .initialize_from(
                store, resume_at_next_action=True, default_state={"x": 0}, default_entrypoint="before"
            )
            .with_state_persister(store)
            .abuild()
        )

    async def first(store: AsyncSQLitePersister, app_id: str) -> None:
        app = await open_application(store, app_id)
        await app.arun(halt_before=["hold"])

    async def second(store: AsyncSQLitePersister, app_id: str) -> object:
        app = await open_application(store, app_id)
        _, _, state = await app.arun(halt_after=["after"], inputs=w.EVENT)
        return state["out"]

    if reopen:

        async def once_reopened() -> object:
            app_id = str(uuid4())
            async with persister(turn) as store:
                await first(store, app_id)
            async with persister(turn) as store:
                return await second(store, app_id)

        return await time_programs(turn, tools, once_reopened)

    async with persister(turn) as shared:

        async def once() -> object:
            app_id = str(uuid4())
            await first(shared, app_id)
            return await second(shared, app_id)

        return await time_programs(turn, tools, once)


def suspend_resume_sync(turn: Slice) -> Measured:
    tools = w.Tools()

    @action(reads=["x"], writes=["x"])
    def before(state: State) -> State:
        return state.update(x=tools.add_one_sync(state["x"]))

    @action(reads=[], writes=["x"])
    def hold(state: State, value: int) -> State:
        return state.update(x=value)

    @action(reads=["x"], writes=["out"])
    def after(state: State) -> State:
        return state.update(out=tools.add_one_sync(state["x"]))

    graph = (
        GraphBuilder()
        .with_actions(before=before, hold=hold, after=after)
        .with_transitions(("before", "hold"), ("hold", "after"))
        .build()
    )

    def open_application(store: SQLitePersister, app_id: str) -> Any:
        return (
            ApplicationBuilder()
            .with_graph(graph)
            .with_identifiers(app_id=app_id)
            .initialize_from(
                store, resume_at_next_action=True, default_state={"x": 0}, default_entrypoint="before"
            )
            .with_state_persister(store)
            .build()
        )

    store = persister_sync(turn)

    def once() -> object:
        nonlocal store
        app_id = str(uuid4())
        open_application(store, app_id).run(halt_before=["hold"])
        if turn.workload.key == "W5_reopen":
            store.connection.close()
            store = persister_sync(turn)
        _, _, state = open_application(store, app_id).run(halt_after=["after"], inputs=w.EVENT)
        return state["out"]

    measured = time_programs_sync(turn, tools, once)
    store.connection.close()
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
}
SYNC_DRIVERS = {
    "W4_full_seq": durable_sync,
    "W4_normal_seq": durable_sync,
    "W5": suspend_resume_sync,
    "W5_reopen": suspend_resume_sync,
}

if __name__ == "__main__":
    raise SystemExit(run_driver("burr", version("apache-burr"), {"": DRIVERS, "sync": SYNC_DRIVERS}))
