"""DBOS on SQLite, and on PostgreSQL (variant `postgres`): everything it runs is durable, so it takes part in durable
workloads only.

The plain variant puts the database into WAL mode, which is faster; `default` leaves it in the rollback journal that
DBOS makes by itself. A condition is plain code in the workflow function. DBOS is one engine per process: W5 suspends in
`recv` and is woken by `send`, without a fresh engine object (the event may even be there first); its poller is set to
the fastest interval it allows.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import sqlalchemy as sa
import workloads as w
from dbos import DBOS, DBOSConfig
from harness import Measured, Slice, WorkNotDone, probe_durability, run_driver, time_programs


@asynccontextmanager
async def engine(turn: Slice, define: Callable[[], Any]) -> AsyncIterator[Any]:
    """DBOS launched on a database; yields what `define` registered."""
    url = turn.options.url
    wal = turn.options.variant == ""
    if wal:
        with sqlite3.connect(turn.database) as con:
            con.execute("PRAGMA journal_mode=WAL")
        con.close()
    sync = turn.workload.sync or "FULL"
    turn.checks["synchronous"] = sync
    if not url:
        turn.checks["journal_mode"] = "wal" if wal else "delete"

        @sa.event.listens_for(sa.Engine, "connect")
        def set_pragmas(connection: Any, record: Any) -> None:
            connection.execute(f"PRAGMA synchronous={sync}")

    config: DBOSConfig = {
        "name": "bench",
        "system_database_url": url or f"sqlite:///{turn.database}",
        "log_level": "ERROR",
        "notification_listener_polling_interval_sec": 0.001,
    }
    DBOS(config=config)
    defined = define()
    DBOS.launch()
    logging.getLogger("dbos").setLevel(logging.CRITICAL)
    try:
        yield defined
    finally:
        DBOS.destroy()


def define_twenty(tools: w.Tools) -> Any:
    @DBOS.step()
    async def tool(x: int) -> int:
        return await tools.add_one(x)

    @DBOS.workflow()
    async def twenty_steps(x: int) -> int:
        for number in range(15):
            if number % 3 == 0 and x < number:
                raise WorkNotDone("the wrong branch was taken")
            x = await tool(x)
        return x

    return twenty_steps


async def durable(turn: Slice) -> Measured:
    tools = w.Tools()
    async with engine(turn, lambda: define_twenty(tools)) as workflow:

        async def once() -> object:
            return await workflow(0)

        await probe_durability(turn, once)
        return await time_programs(turn, tools, once)


async def loop(turn: Slice) -> Measured:
    tools = w.Tools()
    limit = turn.workload.loop_limit

    def define() -> Any:
        @DBOS.step()
        async def tick() -> int:
            return await tools.tick()

        @DBOS.step()
        async def done(n: int) -> int:
            return await tools.done(n)

        @DBOS.workflow()
        async def count() -> int:
            n = 0
            while n < limit:
                n = await tick()
            return await done(n)

        return count

    async with engine(turn, define) as workflow:

        async def once() -> object:
            tools.count = 0
            return await workflow()

        await probe_durability(turn, once)
        return await time_programs(turn, tools, once)


async def suspend_resume(turn: Slice) -> Measured:
    turn.checks["fresh_engine"] = False
    tools = w.Tools()

    def define() -> Any:
        @DBOS.step()
        async def tool(x: int) -> int:
            return await tools.add_one(x)

        @DBOS.workflow()
        async def approval(x: int) -> int:
            await tool(x)
            event = await DBOS.recv_async("approval", timeout_seconds=60)
            return await tool(event["value"])

        return approval

    async with engine(turn, define) as workflow:

        async def once() -> object:
            handle = await DBOS.start_workflow_async(workflow, 0)
            await DBOS.send_async(handle.get_workflow_id(), w.EVENT, "approval")
            return await handle.get_result(polling_interval_sec=0.001)

        return await time_programs(turn, tools, once)


async def fan_out(turn: Slice) -> Measured:
    tools = w.Tools()

    def define() -> Any:
        @DBOS.step()
        async def tool(x: int) -> int:
            return await tools.add_one(x)

        @DBOS.workflow()
        async def fan(x: int) -> int:
            return sum(await asyncio.gather(*(tool(x) for _ in range(w.FAN_OUT))))

        return fan

    async with engine(turn, define) as workflow:

        async def once() -> object:
            return await workflow(0)

        await probe_durability(turn, once)
        return await time_programs(turn, tools, once)


DRIVERS = {
    "W3_full_100": loop,
    "W4_full_seq": durable,
    "W4_full_100": durable,
    "W4_normal_seq": durable,
    "W4_normal_100": durable,
    "W5": suspend_resume,
    "W6_full": fan_out,
}
DEFAULT_DRIVERS = {key: driver for key, driver in DRIVERS.items() if key.startswith(("W4_full", "W5", "W6"))}

VARIANTS = {
    "": DRIVERS,
    "default": DEFAULT_DRIVERS,
    "postgres": {key: DRIVERS[key] for key in ("W4_full_seq", "W4_full_100", "W5", "W6_full")},
}

if __name__ == "__main__":
    raise SystemExit(run_driver("dbos", version("dbos"), VARIANTS))
