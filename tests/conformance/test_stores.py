"""Every store keeps the promises of the port."""

from pathlib import Path

from nano_vm.journal.port import JournalStore
from nano_vm.stores.memory import MemoryStore
from nano_vm.stores.postgres import PostgresStore
from nano_vm.stores.sqlite import SqliteStore
from nano_vm.testing.store_conformance import SharedStoreConformance, StoreConformance
from postgres_server import fresh_url


class TestMemoryStore(StoreConformance):
    def open_store(self, place: Path) -> JournalStore:
        return MemoryStore()


class TestSqliteStoreFull(SharedStoreConformance):
    def open_store(self, place: Path) -> JournalStore:
        return SqliteStore(place / "journal.db")


class TestSqliteStoreNormal(SharedStoreConformance):
    def open_store(self, place: Path) -> JournalStore:
        return SqliteStore(place / "journal.db", durability="normal")


class TestPostgresStore(SharedStoreConformance):
    PLACEHOLDER = "%s"
    WRITERS_WAIT = False

    def open_store(self, place: Path) -> JournalStore:
        address = place / "address"
        if not address.exists():
            address.write_text(fresh_url())
        return PostgresStore(address.read_text())
