"""Every store keeps the promises of the port."""

from pathlib import Path

from nano_vm.journal.port import JournalStore
from nano_vm.stores.memory import MemoryStore
from nano_vm.stores.sqlite import SqliteStore
from nano_vm.testing.store_conformance import SharedStoreConformance, StoreConformance


class TestMemoryStore(StoreConformance):
    def open_store(self, place: Path) -> JournalStore:
        return MemoryStore()


class TestSqliteStoreFull(SharedStoreConformance):
    def open_store(self, place: Path) -> JournalStore:
        return SqliteStore(place / "journal.db")


class TestSqliteStoreNormal(SharedStoreConformance):
    def open_store(self, place: Path) -> JournalStore:
        return SqliteStore(place / "journal.db", durability="normal")
