"""Thousands of seeded edits to bundles and databases: each is found, or changes nothing that anybody could see.

The default suite runs a slice; `make campaign` the whole. A failing edit is named by its seed and number.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from nano_vm import Completion, ExecutionVM, MockLLMAdapter, Program, SqliteStore, ToolCall, canonical
from nano_vm.errors import NanoVMError
from nano_vm.evidence.bundle import export, export_steps
from nano_vm.evidence.keys import KeyFiles, SigningKey
from nano_vm.evidence.log import Log
from nano_vm.evidence.note import Checkpoint
from nano_vm.evidence.verify import verify_bundle
from nano_vm.journal.port import RunQuery
from nano_vm.stores.sqlite_errors import FAILURES
from nano_vm.vault.local import Vault

ANA, EVE = {"id": "ana", "roles": ["clerk"]}, {"id": "eve", "roles": ["boss"]}
PROGRAM = Program.from_dict(
    {
        "name": "pay",
        "steps": [
            {"id": "look", "type": "tool", "tool": "look", "args": {"amount": "$amount"}},
            {"id": "big", "type": "condition", "condition": "$amount > 9", "then": "ask", "otherwise": "pay"},
            {"id": "ask", "type": "wait", "approvers": ["boss"], "approves": "pay", "next_step": "pay"},
            {"id": "pay", "type": "tool", "tool": "pay", "args": {"amount": "$amount"}, "is_terminal": True},
        ],
    }
)  # fmt: skip
AGENT = Program.from_dict(
    {"name": "help", "steps": [{"id": "m", "type": "agent", "prompt": "help", "tools": ["look", "pay"]}]}
)
PRIVATE = Program.from_dict(
    {
        "name": "private",
        "inputs": {
            "type": "object",
            "properties": {"who": {"type": "string", "private": True}, "amount": {"type": "integer", "private": True}},
        },
        "subject": "$who",
        "steps": [
            {"id": "look", "type": "tool", "tool": "look", "args": {"amount": "$amount"}},
            {"id": "high", "type": "condition", "condition": "$amount > 5", "then": "k", "otherwise": "k"},
            {"id": "k", "type": "tool", "tool": "pay", "args": {"amount": 3}},
        ],
    }
)  # fmt: skip
POLICY = {
    "policy": "house",
    "tools": ["look"],
    "rules": [
        {"id": "small", "tools": ["pay"], "when": "$args.amount <= 9",
         "limits": [{"max_sum": 10_000, "of": "$args.amount", "per": ["day"]}]},
        {"id": "large", "tools": ["pay"], "when": "$args.amount > 9 and $args.amount < 1000",
         "approval": {"roles": ["boss"]}},
        {"id": "ask", "models": ["default"], "limits": [{"max_tokens": 100_000, "per": ["principal", "day"]}]},
    ],
}  # fmt: skip


def look(amount: int) -> dict[str, int]:
    return {"amount": amount}


def pay(amount: int) -> dict[str, int]:
    return {"paid": amount}


class Unsound(Exception):
    """What `integrity` found. (Not an AssertionError: one of those would be a defect of what is tested.)"""


class House(NamedTuple):
    """A database with runs of every kind - plain, governed, approved, an agent's, private, erased - and its keys."""

    database: Path
    vault: Vault


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    path = tmp_path_factory.mktemp("campaign") / "runs.db"
    vault = Vault.in_memory()
    calls = [ToolCall("1", "pay", '{"amount": 5000}'), ToolCall("2", "look", '{"amount": 1}')]
    llm = MockLLMAdapter([Completion(tool_calls=tuple(calls)), "done"])

    async def main() -> None:
        vm = ExecutionVM(llm, {"look": look, "pay": pay}, store, vault=vault)
        await vm.run(PROGRAM.to_dict() | {"name": "free"}, {"amount": 5}, trace_id="free")
        vm.set_policy(POLICY)
        for number, amount in enumerate((5, 500, 50)):
            await vm.run(PROGRAM, {"amount": amount}, trace_id=f"r{number}", principal=ANA)
        await vm.approve("r2", principal=EVE)
        await vm.run(AGENT, trace_id="agent", principal=ANA)
        for number in range(2):
            context = {"who": f"s-{number}", "amount": 7}
            await vm.run(PRIVATE, context, trace_id=f"private{number}", principal=ANA)
        await vm.erase(subject="s-1", reason="asked", by="dpo")

    with SqliteStore(path, durability="normal") as store:
        asyncio.run(main())
    con = sqlite3.connect(path)
    con.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    con.close()
    return House(path, vault)


RUNS = ("free", "r0", "r1", "r2", "agent", "private0", "private1")


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return KeyFiles(tmp_path_factory.mktemp("keys")).generate("issuer")


# --- bundles ---------------------------------------------------------------------------------------------------------
def edit_text(choose: random.Random, lines: list[bytes], others: Sequence[bytes]) -> list[bytes]:
    """One structural or small edit, as somebody would make it who knows the format."""
    lines = list(lines)
    at = choose.randrange(len(lines))
    kind = choose.randrange(12)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(choose.randrange(len(lines) + 1), lines[at])
    elif kind == 2:
        other = choose.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
    elif kind == 9:
        lines[at:] = others[choose.randrange(len(others)) :]  # the beginning of this one, the end of another
    elif kind == 10:
        del lines[at + 1 :]
    elif kind == 11:
        lines[at] = choose.choice(others)
    else:
        line = bytearray(lines[at])
        place = choose.randrange(len(line))
        if kind <= 5:
            line[place] = choose.choice(b'0123456789abcdefABCDEF{}[],:" \\x')
        elif kind == 6:
            line[place] ^= 1 << choose.randrange(8)
        elif kind == 7:
            del line[place : place + choose.randrange(1, 9)]
        else:
            line[place:place] = bytes(line[place : place + choose.randrange(1, 9)])
        lines[at] = bytes(line)
    return lines


def body_of(bundle: bytes) -> list[bytes]:
    return bundle.split(b"\n")[:-2]


def attack_bundles(house: House, key: SigningKey, seed: int, edits: int) -> Counter[str]:
    """How often each check found an edit."""
    with SqliteStore(house.database) as store:
        opened = ExecutionVM(store=store, vault=house.vault).read
        bundles = [export(store, run, key=key, opened=opened).data for run in RUNS]
        # Sealed values cannot be held against their commitments without their keys, and chosen steps not against the
        # receipt: for these the signature alone vouches (`spec/bundle.md`).
        bundles += [export(store, run, opened=opened).data for run in RUNS if not run.startswith("private")]
        bundles += [export_steps(store, run, ["look"], key=key).data for run in ("r0", "free")]
    choose = random.Random(seed)
    found: Counter[str] = Counter()
    for number in range(edits):
        whole, other = choose.choice(bundles), choose.choice(bundles)
        if choose.randrange(20):
            lines = body_of(whole)
            for _ in range(choose.randrange(1, 3)):
                lines = edit_text(choose, lines, body_of(other)) or [b""]
            body = b"".join(line + b"\n" for line in lines)
            # Whoever edits it can also count its lines and digest it anew.
            edited = (
                body + canonical.encode({"end": canonical.digest(body), "lines": body.count(b"\n")}) + b"\n"
            )
        else:
            edited = whole[: choose.randrange(len(whole))] + other[choose.randrange(len(other)) :]
        if edited in bundles:
            found["no edit"] += 1
            continue
        keys = [key.public] if b'{"envelope":' in whole else []
        try:
            verify_bundle(edited, keys)
        except NanoVMError as error:
            if error.exit_code != 5 or not error.facts["check"]:
                pytest.fail(f"edit {number} of seed {seed}: {error}")
            found[str(error.facts["check"])] += 1
            continue
        pytest.fail(f"edit {number} of seed {seed} is not found")
    return found


@pytest.mark.parametrize("seed", range(2))
def test_random_edits_of_bundles_are_found(house: House, key: SigningKey, seed: int) -> None:
    attack_bundles(house, key, seed, 250)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(100, 150))
def test_ten_thousand_edits_of_bundles_are_found(house: House, key: SigningKey, seed: int) -> None:
    found = attack_bundles(house, key, seed, 200)
    assert sum(found.values()) == 200
    print("found by", dict(found))  # shown with -rP


# --- databases -------------------------------------------------------------------------------------------------------
def picture(path: Path, vault: Vault, old: Checkpoint | None = None) -> tuple[list[object], Checkpoint]:
    """All that the store says of its runs, and its log: what an edit that is not found must leave as it was.

    Raises:
        NanoVMError: when the database, a run or a record does not verify, or the log is not what `old` says it was.
    """
    with SqliteStore(path) as store:
        problems = store.integrity()
        if problems:
            raise Unsound(problems)
        vm = ExecutionVM(store=store, vault=vault)
        seen: list[object] = []
        for record in store.records(RunQuery(limit=1_000)):
            vm.verify(record.run_id)
            record.lease_until_ms = 0
            seen.append((record, vm.read(record.run_id), store.program(record.program_hash)))
        log = Log(store)
        if old is not None:
            log.consistency(old)
        return seen, log.checkpoint()


Edit = Callable[[random.Random, sqlite3.Connection], None]


def delete_run(choose: random.Random, con: sqlite3.Connection) -> None:
    (no,) = choose.choice(con.execute("SELECT no FROM nvm_runs").fetchall())
    con.execute("DELETE FROM nvm_segments WHERE run = ?", (no,))
    con.execute("DELETE FROM nvm_runs WHERE no = ?", (no,))


def delete_segment(choose: random.Random, con: sqlite3.Connection) -> None:
    (n,) = choose.choice(con.execute("SELECT n FROM nvm_segments").fetchall())
    con.execute("DELETE FROM nvm_segments WHERE n = ?", (n,))


def swap_segments(choose: random.Random, con: sqlite3.Connection) -> None:
    rows = con.execute("SELECT n, digests, facts, payloads FROM nvm_segments").fetchall()
    one, two = choose.sample(rows, 2)
    for row, other in ((one, two), (two, one)):
        con.execute("UPDATE nvm_segments SET digests=?, facts=?, payloads=? WHERE n=?", (*other[1:], row[0]))


def exchange_owners(choose: random.Random, con: sqlite3.Connection) -> None:
    one, two = choose.sample([row[0] for row in con.execute("SELECT no FROM nvm_runs")], 2)
    con.execute("UPDATE nvm_segments SET run = -1 WHERE run = ?", (one,))
    con.execute("UPDATE nvm_segments SET run = ? WHERE run = ?", (one, two))
    con.execute("UPDATE nvm_segments SET run = ? WHERE run = -1", (two,))


def change_a_cell(choose: random.Random, con: sqlite3.Connection) -> None:
    table = choose.choice(["nvm_segments", "nvm_runs", "nvm_programs", "nvm_policies", "nvm_names"])
    rows = con.execute(f"SELECT rowid, * FROM {table}").fetchall() if table != "nvm_names" else []
    if not rows:
        con.execute("UPDATE nvm_names SET name = name || 'x'")
        return
    row = choose.choice(rows)
    columns = [column[1] for column in con.execute(f"PRAGMA table_info({table})")]
    at = choose.randrange(1, len(columns))
    value = row[at + 1]
    if isinstance(value, bytes) and value:
        changed = bytearray(value)
        changed[choose.randrange(len(changed))] ^= 1 << choose.randrange(8)
        value = bytes(changed)
    elif isinstance(value, str) and value:
        place = choose.randrange(len(value))
        value = value[:place] + choose.choice("abcdef0123456789") + value[place + 1 :]
    elif isinstance(value, int):
        value += choose.choice((-1, 1, 1_000))
    else:
        value = "x"
    con.execute(f"UPDATE {table} SET {columns[at]} = ? WHERE rowid = ?", (value, row[0]))


EDITS: tuple[Edit, ...] = (
    delete_run,
    delete_segment,
    swap_segments,
    exchange_owners,
    change_a_cell,
    change_a_cell,
)


def attack_databases(house: House, place: Path, seed: int, edits: int) -> Counter[str]:
    """How often an edit was found, changed nothing, or could not be made."""
    before = picture(house.database, house.vault)
    choose = random.Random(seed)
    path = place / "edited.db"
    found: Counter[str] = Counter()
    for number in range(edits):
        for left in place.glob("edited.db*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        shutil.copy(house.database, path)
        if choose.randrange(2):
            data = bytearray(path.read_bytes())
            for _ in range(choose.randrange(1, 3)):
                data[choose.randrange(len(data))] ^= 1 << choose.randrange(8)
            path.write_bytes(bytes(data))
        else:
            edit_rows(choose, path)
        try:
            after = picture(path, house.vault, before[1])
        except (NanoVMError, Unsound, *FAILURES) as error:
            if isinstance(error, NanoVMError) and error.exit_code == 70:
                pytest.fail(f"edit {number} of seed {seed} comes upon a defect: {error}")
            found[error.code if isinstance(error, NanoVMError) else type(error).__name__] += 1
            continue
        assert after == before, f"edit {number} of seed {seed} is not found, and changes something"
        found["nothing changed"] += 1
    return found


def edit_rows(choose: random.Random, path: Path) -> None:
    """An edit by SQL, past the triggers."""
    con = sqlite3.connect(path, isolation_level=None)
    con.execute("PRAGMA synchronous = OFF")  # the disk is not what is tested: most of the time went there
    con.execute("BEGIN")
    triggers = con.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        con.execute(f"DROP TRIGGER {name}")
    try:
        choose.choice(EDITS)(choose, con)
    except sqlite3.IntegrityError:
        pass  # the edit cannot even be made
    for _, sql in triggers:
        con.execute(sql)
    con.execute("COMMIT")
    con.close()


@pytest.mark.parametrize("seed", range(1))
def test_random_edits_of_databases_are_found_or_change_nothing(
    house: House, tmp_path: Path, seed: int
) -> None:
    attack_databases(house, tmp_path, seed, 120)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(100, 150))
def test_ten_thousand_edits_of_databases_are_found_or_change_nothing(
    house: House, tmp_path: Path, seed: int
) -> None:
    found = attack_databases(house, tmp_path, seed, 200)
    assert sum(found.values()) == 200
    print("found by", dict(found))  # shown with -rP
