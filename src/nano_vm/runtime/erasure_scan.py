"""What a store's journals say about erasures: looked through once, and from there on where it was left off.

How far somebody has come is kept beside the keys. It is believed only where the entry that was the last one then is
still at its place: a store that came back from a back-up, or another one, is looked through from the start. What has
been erased since then may have been told to runs whose entries are gone again: their place is before the mark.
"""

from __future__ import annotations

import contextlib
from hashlib import sha256
from typing import NamedTuple

import msgspec

from nano_vm.errors import NanoVMError
from nano_vm.journal.entry import Entry, open_events, read_facts
from nano_vm.journal.port import JournalStore
from nano_vm.kernel import events as ev
from nano_vm.runtime.ports import ErasableKeys

BATCH = 10_000
_SECRET = b'"vault://secret/'


class _Mark(msgspec.Struct, forbid_unknown_fields=True):
    """The last batch that was read: where it began, how many entries it had, where it ended, the last one's digest; and
    how many erasures there were then, all of which had been told to whom they concern."""

    before: int
    count: int
    cursor: int
    digest: str
    erasures: int = 0


_decode = msgspec.json.Decoder(_Mark).decode


class Seen(NamedTuple):
    """What the entries tell that have not been looked at before.

    `told` are the erasures that runs were told of; `naming` has the runs that name a key, or a secret's reference, of
    these entries. Of the first `settled` erasures on the list nothing before them has to be looked at. `keep` notes how
    far this went: to be called when everything that follows from it has been done.
    """

    told: list[tuple[str, ev.Erased]]
    naming: dict[str, set[str]]
    keys: ErasableKeys
    name: str
    mark: _Mark | None
    settled: int

    def keep(self, erasures: int) -> None:
        if self.mark is not None:
            self.mark.erasures = erasures
            self.keys.set_mark(self.name, msgspec.json.encode(self.mark))


def look_through(store: JournalStore, keys: ErasableKeys) -> Seen:
    """Everything about erasures and keys in the entries that came since the last `keep`."""
    tenant = getattr(store, "tenant", None)
    name = "all" if tenant is None else sha256(tenant.encode()).hexdigest()
    cursor, last = _left_off(store, keys, name)
    seen = Seen([], {}, keys, name, None, 0 if last is None else last.erasures)
    while True:
        before = cursor
        cursor, found = store.tail(before, BATCH)
        for run_id, entry in found:
            with contextlib.suppress(
                NanoVMError, UnicodeDecodeError
            ):  # a damaged entry is for `verify` to name
                _note(seen, run_id, entry)
        if found:
            last = _Mark(before, len(found), cursor, found[-1][1].digest, seen.settled)
        if len(found) < BATCH:
            return seen._replace(mark=last)


def _left_off(store: JournalStore, keys: ErasableKeys, name: str) -> tuple[int, _Mark | None]:
    """Where to go on, and the mark that says so; 0 and None for the start."""
    data = keys.mark(name)
    if data is None:
        return 0, None
    try:
        mark = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return 0, None  # whatever it was: looking at everything once more costs time alone
    if (
        min(mark.before, mark.cursor) < 0
        or not 0 < mark.count <= BATCH
        or max(mark.before, mark.cursor) >= 2**63
    ):
        return 0, None
    cursor, found = store.tail(mark.before, mark.count)
    if len(found) != mark.count or cursor != mark.cursor or found[-1][1].digest != mark.digest:
        return 0, None
    if len(keys.all_erasures()) < mark.erasures:
        return 0, None  # the list has come back from a back-up
    return cursor, mark


def _note(seen: Seen, run_id: str, entry: Entry) -> None:
    if b'"key":"' in entry.facts:
        key = read_facts(entry).key
        if key is not None:
            seen.naming.setdefault(key, set()).add(run_id)
    if _SECRET in entry.facts:
        for part in entry.facts.split(_SECRET)[1:]:
            reference = "vault://secret/" + part.split(b'"', 1)[0].decode()
            seen.naming.setdefault(reference, set()).add(run_id)
    if b'"type":"Erased"' in entry.facts:
        seen.told.extend((run_id, event) for event in open_events(entry) if type(event) is ev.Erased)
