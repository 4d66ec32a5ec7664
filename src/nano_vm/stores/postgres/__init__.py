"""The PostgreSQL store: many machines, one database.

How it fits together: `schema` makes the tables, `connection` speaks to the server, `writer` owns the write connection,
`fence` keeps it from runs that the store has lost, `batch` turns appends into rows, `group` commits in a thread what
has been gathered meanwhile, `tool` lends a transaction to a tool, `reader` reads, `integrity` examines.
"""

from nano_vm.errors import RuntimeFault

try:
    from nano_vm.stores.postgres.store import PostgresJournalStore, PostgresStore
except ImportError as error:  # no psycopg, or one without the library it needs
    if error.name is not None and error.name.partition(".")[0] not in ("psycopg", "psycopg_binary"):
        raise
    raise RuntimeFault(
        "EXTRA_MISSING",
        "a store in PostgreSQL needs psycopg",
        help="pip install 'nano-vm[postgres]'",
        facts={"extra": "postgres"},
    ) from None

__all__ = ["PostgresJournalStore", "PostgresStore"]
