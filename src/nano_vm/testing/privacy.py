"""P7 erasure, checked from outside: nothing private lies in clear anywhere, ever; once it is erased nobody opens it.

The checker is given what a thief would have: every file of the database, a copy of it from before the erasure, whatever
is left where the keys are, and the key-encryption key.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from nano_vm import canonical
from nano_vm.errors import NanoVMError, VaultError
from nano_vm.expr.reference import ERASED
from nano_vm.journal.entry import Entry, erased_keys, is_closed, read_facts
from nano_vm.journal.port import JournalStore
from nano_vm.journal.replay import verify_run
from nano_vm.journal.trace import Trace
from nano_vm.program.compiled import CompiledProgram
from nano_vm.runtime.sealing import open_entries
from nano_vm.stores.sqlite import SqliteStore
from nano_vm.testing.vaults import SharedCabinet, vault_on
from nano_vm.vault import cipher

Broken = Callable[[str, str, str], None]


class Privacy:
    """What is private in one simulation, and where it could be found.

    Args:
        database: the database's file; everything whose name begins so belongs to it.
        cabinet: where the keys are.
        subject: the text that names the data subject; it is part of every private value.
        broken: told (promise, run, what) of what is found.
    """

    def __init__(self, database: Path, cabinet: SharedCabinet, subject: str, broken: Broken) -> None:
        self._database = database
        self._cabinet = cabinet
        self._mark = subject.encode()
        self._broken = broken
        self.hashes: dict[str, str] = {}  # run -> its trace hash while everything could be read

    def at_rest(self) -> None:
        """Nothing private lies in clear: not in the file, not in its log, not beside the keys."""
        files = [
            file for file in sorted(self._database.parent.glob(f"{self._database.name}*")) if file.is_file()
        ]
        for file in files:
            if self._mark in file.read_bytes():
                self._broken("P7", "", f"a private value lies in clear in {file.name}")
        if any(self._mark in data for data in self._cabinet.everything()):
            self._broken("P7", "", "the name of a data subject lies in clear beside the keys")

    def keep_copy(self) -> Path:
        """A back-up of the database as it is now."""
        place = self._database.with_name("backup")
        place.mkdir(exist_ok=True)
        for file in self._database.parent.glob(f"{self._database.name}*"):
            if file.is_file():
                shutil.copy(file, place / file.name)
        return place / self._database.name

    def erased(self, store: JournalStore, copy: Path, runs: dict[str, CompiledProgram]) -> None:
        """The subject has been erased: hold the store, and the back-up from before, against what is left of keys."""
        self.at_rest()
        vault = vault_on(self._cabinet)
        for erasure in vault.all_erasures():
            for key_id in erasure.keys:
                if self._cabinet.has("keys", key_id):
                    self._broken("P7", "", "a key that was erased is still there")
        with SqliteStore(copy, durability="normal") as before:
            for run_id in runs:
                self._unreadable(run_id, store.read(run_id))
                self._unreadable(run_id, before.read(run_id))
        for run_id, program in runs.items():
            self._shown(run_id, program, store)

    def dead(self, store: JournalStore, keys: SharedCabinet, runs: dict[str, CompiledProgram]) -> None:
        """The keys have come out of a back-up: journals that say that they are gone do not open."""
        for run_id in runs:
            for entry in open_entries(vault_on(keys), run_id, store.read(run_id)):
                if entry.salt and read_facts(entry).key is not None:
                    self._broken("P7", run_id, f"entry {entry.seq} opens with a key that was erased")

    def told(self, copy: Path, runs: dict[str, CompiledProgram]) -> None:
        """The database has come out of a back-up, and somebody has recovered: its runs are told."""
        with SqliteStore(copy, durability="normal") as store:
            for run_id, program in runs.items():
                entries = store.read(run_id)
                sealed = {key_id for _, _, key_id in _sealed(entries)}
                if sealed - erased_keys(entries):
                    self._broken("P7", run_id, "a restored run was not told of the erasure")
                self._shown(run_id, program, store)

    def buried(self, store: JournalStore, keys: SharedCabinet, runs: dict[str, CompiledProgram]) -> None:
        """The keys have come out of a back-up, and somebody has recovered: those that seal anything are gone again."""
        for run_id in runs:
            named = {read_facts(entry).key for entry in store.read(run_id)}
            if named & set(keys.names("keys")):
                self._broken("P7", run_id, "a key came back with a back-up")

    def _unreadable(self, run_id: str, entries: list[Entry]) -> None:
        """No key that is left opens any sealed payload, whatever it calls itself."""
        for entry, sealed, key_id in _sealed(entries):
            for key in self._keys_left():
                bound = cipher.binding("value", key_id, "entry", run_id, entry.seq)
                try:
                    cipher.unseal(key, sealed, bound)
                except VaultError:
                    continue
                self._broken("P7", run_id, f"entry {entry.seq} still opens after the erasure")

    def _keys_left(self) -> Iterator[bytes]:
        vault = vault_on(self._cabinet)
        for name in self._cabinet.names("keys"):
            key = vault.keys.key(name)
            if key is not None:
                yield key.encrypting

    def _shown(self, run_id: str, program: CompiledProgram, store: JournalStore) -> None:
        """Every view shows the tombstone, and every hash is what it was."""
        entries = open_entries(vault_on(self._cabinet), run_id, store.read(run_id))
        closed = [entry for entry in entries if is_closed(entry, read_facts(entry))]
        try:
            checked = dict(verify_run(program, store.record(run_id), entries).steps)
            trace = Trace(program, run_id, lambda: entries)
            view = canonical.encode(msgspec.to_builtins(trace.to_dict())).decode()
        except NanoVMError as error:
            self._broken("P7", run_id, f"an erased journal does not verify: {error.code}")
            return
        if self._mark.decode() in view:
            self._broken("P7", run_id, "a view shows what was erased")
        if closed and "closed" not in checked:
            self._broken("P7", run_id, "verify does not say that values are gone")
        outputs = [step.output for step in trace.steps if step.output is not None]
        hidden = any(b'"type":"StepSucceeded"' in entry.facts for entry in closed)
        if hidden and ERASED not in canonical.encode(msgspec.to_builtins(outputs)).decode():
            self._broken("P7", run_id, "a view shows something else than the tombstone")
        before = self.hashes.get(run_id)
        if before is not None and trace.trace_hash != before:
            self._broken("P7", run_id, "the trace hash is another one after the erasure")


def _sealed(entries: list[Entry]) -> Iterator[tuple[Entry, bytes, str]]:
    for entry in entries:
        if entry.payload and not entry.salt:
            key_id = read_facts(entry).key
            if key_id is not None:
                yield entry, entry.payload, key_id


__all__ = ["Privacy"]
