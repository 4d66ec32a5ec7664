"""A process that writes until it is killed, and says what has become durable.

    python store_writer.py PLACE DURABILITY ROUND

Prints `start`, then a line `run length` for every append that was acknowledged. A batch of entries says in
each payload how many they are; a `ledger` run is written by a tool's transactions, one row of the table
`ledger` per batch.
"""

import asyncio
import os
import random
import sys

from nano_vm import canonical
from nano_vm.journal.entry import Chain, Entry
from nano_vm.journal.port import JournalStore
from nano_vm.testing.store_conformance import NOW, Draft, settle
from store_places import open_store, values

RUNS = 6
VALUES = values(sys.argv[1], 2)


def batch(chain: Chain, draw: random.Random) -> list[Entry]:
    draft = Draft(chain.run)
    draft.chain = chain
    size, first = draw.randint(1, 4), chain.length
    payload = canonical.encode({"first": first, "of": size, "pad": "x" * draw.choice((0, 300, 70_000))})
    return draft.entries(size, payload)


def acknowledge(chain: Chain) -> None:
    os.write(1, f"{chain.run} {chain.length}\n".encode())


async def write_run(store: JournalStore, run_id: str, seed: int) -> None:
    draft, draw = Draft(run_id, store.owner), random.Random(seed)
    chain = draft.chain
    await settle(store.create(draft.record, batch(chain, draw)))
    acknowledge(chain)
    await write_on(store, chain, 1, draw)


async def write_on(store: JournalStore, chain: Chain, fence: int, draw: random.Random) -> None:
    while True:
        if chain.run.startswith("ledger"):
            async with store.transaction() as transaction:
                con = transaction.connection
                con.execute("CREATE TABLE IF NOT EXISTS ledger (run TEXT, first INTEGER)")
                con.execute(f"INSERT INTO ledger VALUES ({VALUES})", (chain.run, chain.length))
                transaction.append(chain.run, fence, batch(chain, draw))
        else:
            await settle(store.append(chain.run, fence, batch(chain, draw)))
        acknowledge(chain)


async def main(place: str, durability: str, number: int) -> None:
    os.write(1, b"start\n")
    store = open_store(place, durability, busy_timeout_ms=60_000)
    writers = []
    for run_id in store.claimable(NOW, limit=2):  # what the process before us has left
        fence = store.claim(run_id, NOW)
        entries = store.read(run_id)
        assert fence is not None
        writers.append(
            write_on(store, Chain(run_id, len(entries), entries[-1].digest), fence, random.Random(number))
        )
    for run in range(RUNS):
        name = "ledger" if run == 0 else f"run-{run}"
        writers.append(write_run(store, f"{name}-{number}", number * 100 + run))
    await asyncio.gather(*writers)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
