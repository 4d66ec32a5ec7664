"""Reading for the pages: runs, traces, programs and approvals, straight from the store, again only when it has changed.

Everything is read as it is stored. No key is used, so a private value cannot get into a page; it shows as `[PRIVATE]`,
or as a tombstone when it was erased.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from nano_vm import canonical
from nano_vm.errors import InputError, NanoVMError, NotFoundError
from nano_vm.journal.entry import Entry
from nano_vm.journal.port import JournalStore, RunQuery, RunRecord
from nano_vm.journal.replay import Verified
from nano_vm.journal.trace import Trace, TraceStep
from nano_vm.observe.veil import Veil
from nano_vm.program.model import Program
from nano_vm.runtime.approvals import PendingApproval
from nano_vm.runtime.engine import Engine
from nano_vm.studio.settings import Settings
from nano_vm.tools.registry import ToolSet

SHELF_MAX = 20_000  # records that are listed and counted: the newest
SIGHTS_MAX = 12  # traces that are kept folded
PAGE = 1_000
T = TypeVar("T")


class Shelf(NamedTuple):
    """The newest top-level runs, and how many stand how. `complete`: there are no others."""

    records: list[RunRecord]
    statuses: Counter[str]
    programs: list[str]
    complete: bool

    def find(
        self, *, text: str = "", status: str | None = None, program: str | None = None
    ) -> list[RunRecord]:
        """Newest first."""
        return [
            record
            for record in self.records
            if (status is None or record.status == status)
            and (program is None or record.program_name == program)
            and (not text or text in record.run_id)
        ]


class Sight(NamedTuple):
    """A run as a page shows it. `steps` are veiled; `entries` are as they are stored."""

    record: RunRecord
    trace: Trace
    entries: Sequence[Entry]
    steps: list[TraceStep]
    veil: Veil

    @property
    def is_live(self) -> bool:
        return not self.trace.status.is_terminal


class StoredProgram(NamedTuple):
    """A program of the store: `current` when its name means this one."""

    name: str
    hash: str
    stored_at_ms: int
    current: bool


class Library:
    """Reads one store. Safe to call from any thread.

    Args:
        settings: whose store. It is opened when something is first read, and again when its file was replaced.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._lock = threading.RLock()
        self._store: JournalStore | None = None
        self._engine: Engine | None = None
        self._file: tuple[int, int] | None = None
        self._generation = 0
        self._known: dict[str, tuple[int, Any]] = {}
        self._sights: OrderedDict[str, Sight] = OrderedDict()

    # --- the store --------------------------------------------------------------------------------------------

    @property
    def engine(self) -> Engine:
        """An engine that reads, without keys, tools or a model.

        Raises:
            InputError: STORE_NOT_FOUND. StoreError: it is not ours, newer, damaged, locked, …
        """
        with self._lock:
            file = _identity(self.settings.path)
            if self._store is not None and file != self._file:
                self.close()
            if self._store is None or self._engine is None:
                if self.settings.path is not None and file is None:
                    raise InputError(
                        "STORE_NOT_FOUND",
                        f"there is no database `{self.settings.path}` yet",
                        help="`nano-vm run` makes one; this page looks again by itself",
                    )
                self._store = self.settings.open_store()
                self._engine = Engine(llm=None, tools=ToolSet(), store=self._store)
                self._file = file
                self._generation += 1
            return self._engine

    @property
    def store(self) -> JournalStore:
        return self.engine.store

    def close(self) -> None:
        with self._lock:
            if self._engine is not None:
                self._engine.threads.close()
            if self._store is not None:
                with contextlib.suppress(Exception):
                    self._store.close()
            self._store = self._engine = None
            self._known.clear()
            self._sights.clear()
            self._generation += 1

    def generation(self) -> int:
        """A number that changes with the store."""
        with self._lock:
            if self.store.changed():
                self._generation += 1
            return self._generation

    def _once(self, name: str, read: Callable[[], T]) -> T:
        """What was read before, unless the store has changed since."""
        with self._lock:
            generation = self.generation()
            held = self._known.get(name)
            if held is not None and held[0] == generation:
                found: T = held[1]
                return found
            found = read()
            self._known[name] = generation, found
            return found

    # --- runs -------------------------------------------------------------------------------------------------

    def shelf(self) -> Shelf:
        """The runs to list."""
        return self._once("shelf", self._read_shelf)

    def _read_shelf(self) -> Shelf:
        query = RunQuery(tenant=self.settings.tenant, parent="", limit=SHELF_MAX + 1)
        records = self.store.records(query)
        complete = len(records) <= SHELF_MAX
        del records[SHELF_MAX:]
        statuses = Counter(record.status for record in records)
        return Shelf(records, statuses, sorted({record.program_name for record in records}), complete)

    def record(self, run_id: str) -> RunRecord:
        """Raises NotFoundError RUN_NOT_FOUND."""
        return self.store.record(run_id)

    def sight(self, run_id: str) -> Sight:
        """A run, folded. Nothing is folded again while its journal has not grown.

        Raises:
            NotFoundError: RUN_NOT_FOUND. VerificationError: the kernel would not take its journal.
        """
        with self._lock:
            record = self.record(run_id)
            held = self._sights.get(record.run_id)
            if held is not None:
                grown = self.store.read(record.run_id, len(held.entries), 1)
                if not grown:
                    held = self._sights[record.run_id] = held._replace(record=record)
                    self._sights.move_to_end(record.run_id)
                    return held
            entries = self.store.read(record.run_id)
            program = self.engine.load_program(record.program_hash)
            trace = Trace(program, record.run_id, lambda: entries)
            veil = Veil(entries)
            sight = Sight(record, trace, entries, veil.steps(trace.steps), veil)
            self._sights[record.run_id] = sight
            while len(self._sights) > SIGHTS_MAX:
                self._sights.popitem(last=False)
            return sight

    def children(self, run_id: str) -> list[RunRecord]:
        """The child runs of a run, oldest first."""
        return self.store.records(RunQuery(parent=run_id, limit=PAGE))[::-1]

    def verify(self, run_id: str) -> Verified:
        """See `Engine.verify`: what is sealed is taken as recorded."""
        with self._lock:
            return self.engine.verify(run_id)

    # --- approvals --------------------------------------------------------------------------------------------

    def approvals(self) -> list[PendingApproval]:
        """What waits for an approval, newest run first."""
        return self._once("approvals", lambda: self.engine.approvals(tenant=self.settings.tenant))

    # --- programs ---------------------------------------------------------------------------------------------

    def programs(self) -> list[StoredProgram]:
        """The stored programs, by name, the newest version first."""
        return self._once("programs", self._read_programs)

    def _read_programs(self) -> list[StoredProgram]:
        tenant = self.settings.tenant
        found = [
            StoredProgram(name, hash, at, self.store.program_named(name, tenant or "default") == hash)
            for name, hash, at in self.store.programs(tenant)
        ]
        return sorted(found, key=lambda program: (program.name, not program.current, -program.stored_at_ms))

    def program(self, program_hash: str) -> Program:
        """Raises NotFoundError PROGRAM_NOT_FOUND."""
        document = canonical.decode(self.store.program(program_hash))
        return Program.from_dict(document["program"])

    def program_name(self, program_hash: str) -> str:
        """The name of a stored program, whatever the name means by now."""
        with contextlib.suppress(NanoVMError):
            return self.engine.load_program(program_hash).name
        return program_hash[7:19]

    def called(self) -> dict[str, Program]:
        """The stored programs that others may call, by name and hash."""
        found: dict[str, Program] = {}
        for stored in self.programs():
            with contextlib.suppress(NotFoundError):
                program = self.program(stored.hash)
                found[stored.hash] = program
                if stored.current:
                    found[stored.name] = program
        return found

    def policies(self, hashes: Sequence[str]) -> dict[str, Any]:
        """The stored policies that these hashes name, as far as they are there."""
        found = {}
        for policy_hash in hashes:
            with contextlib.suppress(NotFoundError):
                found[policy_hash] = self.engine.load_policy(policy_hash)
        return found


def _identity(path: Path | None) -> tuple[int, int] | None:
    """What tells a file from another one in its place; None when there is none, or none with anything in it."""
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    if not found.st_size and not path.with_name(path.name + "-wal").exists():
        return None
    return found.st_dev, found.st_ino


def plain_record(record: RunRecord) -> dict[str, Any]:
    """A record as data."""
    return msgspec.structs.asdict(record)
