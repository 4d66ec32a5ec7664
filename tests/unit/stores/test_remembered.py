"""What is remembered of a database is what was read since anybody has written."""

from __future__ import annotations

from nano_vm.stores.remembered import KEPT_MAX, Remembered


class Rows:
    """A value, the version of the database, and how often the value was read."""

    def __init__(self) -> None:
        self.value, self.reads = "old", 0
        self.version: int | None = 1
        self.remembered = Remembered(lambda: self.version)

    def read(self) -> str:
        self.reads += 1
        return self.value

    def ask(self) -> tuple[str, int]:
        return self.remembered.ask(("k",), self.read), self.reads


def test_it_is_read_again_when_others_have_written() -> None:
    rows = Rows()
    assert (rows.ask(), rows.ask()) == (("old", 1), ("old", 1))
    rows.value, rows.version = "new", 2
    assert (rows.ask(), rows.ask()) == (("new", 2), ("new", 2))


def test_it_is_read_again_when_we_have_written() -> None:
    rows = Rows()
    rows.ask()
    rows.value = "new"
    rows.remembered.forget()
    assert rows.ask() == ("new", 2)


def test_nothing_is_remembered_while_the_version_cannot_be_told() -> None:
    rows = Rows()
    rows.version = None
    assert (rows.ask(), rows.ask()) == (("old", 1), ("old", 2))
    rows.version = 1
    assert (rows.ask(), rows.ask()) == (("old", 3), ("old", 3))


def test_what_was_read_while_somebody_wrote_is_not_remembered() -> None:
    for write in ("ours", "of others"):
        rows = Rows()

        def read(rows: Rows = rows, write: str = write) -> str:
            found = rows.read()
            rows.value = "new"
            if write == "ours":
                rows.remembered.forget()
            else:
                rows.version = 2
                rows.remembered.ask(("other",), lambda: "")
            return found

        assert rows.remembered.ask(("k",), read) == "old"
        assert rows.ask() == ("new", 2)


def test_it_does_not_grow_without_bound() -> None:
    rows = Rows()
    for turn in range(3 * KEPT_MAX):
        rows.remembered.ask((str(turn),), rows.read)
    again = sum(rows.remembered.ask((str(turn),), lambda: "read") == "read" for turn in range(2 * KEPT_MAX))
    assert again >= KEPT_MAX
