"""The appends of many runs on their way into one transaction: checked one by one, written together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from nano_vm.errors import NanoVMError
from nano_vm.journal.entry import GENESIS, Entry, first_seq, seal_each
from nano_vm.journal.port import LEASE_MS, RunRecord, RunUpdate
from nano_vm.stores import rules
from nano_vm.stores.rows import Connection
from nano_vm.stores.segments import DIGEST_BYTES, Segment, pack, pack_lone, pack_payload, unhex
from nano_vm.stores.work import NOBODY, Work

LOAD_RUN = """SELECT no, owner, fence, origin, coalesce((SELECT seq + length(digests) / 32 FROM nvm_segments
    WHERE run = no ORDER BY seq DESC LIMIT 1), 0) FROM nvm_runs WHERE run_id = ?1"""
HOLDER = """SELECT run_id FROM nvm_runs WHERE run_id = ?1
    UNION ALL SELECT run_id FROM nvm_runs WHERE tenant = ?2 AND program_name = ?3 AND key = ?4"""


class OwnedRun:
    """What a writer keeps of a run it owns: its row number, the fence it holds, where its journal ends."""

    __slots__ = ("fence", "length", "no", "origin")

    def __init__(self, no: int, fence: int, length: int, origin: bytes) -> None:
        self.no = no
        self.fence = fence
        self.length = length
        self.origin = origin


class Start(NamedTuple):
    """What is written for a new run."""

    row: tuple[object, ...]  # columns: RUN_COLUMNS
    segments: list[Segment]
    blobs: dict[bytes, bytes]
    origin: bytes


class Batch:
    """Rows gathered inside one open write transaction. A kind of database says how they are written.

    Checks come first and touch nothing, so a call that fails leaves no trace and the others go on.

    Args:
        known: runs owned by `owner`, true as of this transaction; kept up to date. After a roll-back it is wrong, and
            must be cleared.
    """

    failures: tuple[type[Exception], ...] = ()  # what the database raises

    def __init__(self, con: Connection, owner: str, known: dict[str, OwnedRun]) -> None:
        self._con = con
        self._owner = owner
        self._known = known
        self._segments: list[tuple[object, ...]] = []
        self._updates: list[tuple[object, ...]] = []
        self._blobs: dict[bytes, bytes] = {}
        self._released: list[str] = []

    def add_lone(self, work: Work) -> bool:
        """`append` of one entry at the end of a run that is known, which nearly every append is; False for others, and
        nothing is done."""
        run = self._known.get(work.run_id)
        if run is None or run.fence != work.fence or work.update is not None:
            return False
        packed, length = work.packed, run.length
        row = packed if packed is not None and packed[0] == length else lone_row(work, length)
        if row is None:
            return False
        self._segments.append((run.no, *row))
        run.length = length + 1
        return True

    def add(self, work: Work) -> None:
        """Raises what the port says for the call; `failures` are not the call's own, and come through."""
        if work.packed is not None:
            work.entries = (_entry_of(work),)
        if work.record is not None:
            self._create(work.record, work.entries)
        elif work.build is not None:
            self._annex(work.run_id, work.build)
        else:
            self.append(work.run_id, work.fence, work.entries, work.update)

    def append(self, run_id: str, fence: int, entries: Sequence[Entry], update: RunUpdate | None) -> None:
        run = self._known.get(run_id)
        if run is None:
            run = self._load(run_id, first_seq(entries) if entries else update.length if update else 0)
        if run.fence != fence or fence < 1:
            raise rules.lease_lost(run_id, entries[0].seq if entries else None)
        no = run.no
        fresh = rules.admit(run_id, run.length, entries, lambda start, stop: self._stored(no, start, stop))
        if fresh:
            self._stage(no, fresh)
            run.length += len(fresh)
        if update is not None:
            waits = rules.encode_waits(update.waits)
            owner = None if update.release else self._owner
            self._updates.append(
                (
                    update.status,
                    update.outcome,
                    waits.decode(),
                    update.wake_at_ms,
                    update.updated_at_ms,
                    update.length,
                    update.head,
                    bytearray(rules.seal_record(run.origin, update, waits, owner, fence)),
                    owner,
                    int(update.release),
                    no,
                )
            )
            if update.release:
                run.fence = NOBODY  # until the commit; then it is forgotten
                self._released.append(run_id)

    def execute(self) -> None:
        """Write what was gathered."""
        raise NotImplementedError

    def insert_run(self, row: tuple[object, ...]) -> int | None:
        """Add a row of nvm_runs (columns: `RUN_COLUMNS`); its number, or None when its id or its key is taken."""
        raise NotImplementedError

    def committed(self) -> None:
        for run_id in self._released:
            self._known.pop(run_id, None)

    def start_of(self, record: RunRecord, entries: Sequence[Entry]) -> Start:
        return draw_up(record, entries, self._owner)

    def _create(self, record: RunRecord, entries: Sequence[Entry]) -> None:
        run_id = record.run_id
        start = self.start_of(record, entries)
        no = self.insert_run(start.row)
        if no is None:
            place = (run_id, record.tenant, record.program_name, record.key)
            raise rules.run_exists(run_id, self._con.execute(HOLDER, place).fetchone()[0])
        self._segments += [_row_of(no, segment) for segment in start.segments]
        self._blobs.update(start.blobs)
        if record.owner is not None:
            self._known[run_id] = OwnedRun(no, 1, len(entries), start.origin)

    def _annex(self, run_id: str, build: Callable[[int, str], Sequence[Entry]]) -> None:
        self.execute()
        no, owner, _, _, length = self._row(run_id)
        if owner is not None:
            raise rules.lease_lost(run_id)
        head = GENESIS
        if length:
            head = self._stored(no, length - 1, length)[0]
        entries = build(length, head)
        if (
            rules.admit(run_id, length, entries, lambda start, stop: self._stored(no, start, stop))
            is not entries
        ):
            raise rules.journal_conflict(run_id, entries[0].seq, "an annex begins at the end")
        if entries:
            self._stage(no, entries)

    def _stage(self, no: int, entries: Sequence[Entry]) -> None:
        blobs: dict[bytes, bytes] = {}
        self._segments += [_row_of(no, segment) for segment in pack(entries, blobs)]
        if blobs:
            self._blobs.update(blobs)

    def _load(self, run_id: str, length: int) -> OwnedRun:
        """A run that something is added to; `length` is how long its journal is, as whoever adds to it knows."""
        no, owner, fence, origin, length = self._row(run_id)
        if owner != self._owner:
            return OwnedRun(no, NOBODY, length, origin)
        run = self._known[run_id] = OwnedRun(no, fence, length, origin)
        return run

    def _row(self, run_id: str) -> tuple[int, str | None, int, bytes, int]:
        """Number, owner, fence, origin and length of a run."""
        row: tuple[int, str | None, int, bytes, int] | None = self._con.execute(
            LOAD_RUN, (run_id,)
        ).fetchone()
        if row is None:
            raise rules.run_not_found(run_id)
        return row

    def _stored(self, no: int, start: int, stop: int) -> list[str]:
        """Digests of the stored entries in [start, stop)."""
        self.execute()
        rows = self._con.execute(
            """SELECT seq, digests FROM nvm_segments WHERE run = ?1 AND seq < ?3 AND seq >= coalesce(
                (SELECT max(seq) FROM nvm_segments WHERE run = ?1 AND seq <= ?2), 0) ORDER BY seq""",
            (no, start, stop),
        )
        found: list[str] = []
        for seq, digests in rows:
            for at in range(0, len(digests), DIGEST_BYTES):
                if start <= seq + at // DIGEST_BYTES < stop:
                    found.append("sha256:" + digests[at : at + DIGEST_BYTES].hex())
        return found


def draw_up(record: RunRecord, entries: Sequence[Entry], store: str) -> Start:
    """A new run of `store`, or one that is free when its record has no owner. Raises as `rules.check_start`."""
    rules.check_start(record.run_id, entries)
    blobs: dict[bytes, bytes] = {}
    segments = pack(entries, blobs) if entries else []
    owned = record.owner is not None
    waits = rules.encode_waits(record.waits)
    origin = rules.seal_origin(record)
    owner, fence = (store, 1) if owned else (None, 0)
    row = (
        record.run_id,
        record.tenant,
        record.program_hash,
        record.program_name,
        record.key,
        record.inputs_digest,
        record.parent,
        record.status,
        record.outcome,
        waits.decode(),
        record.wake_at_ms,
        record.created_at_ms,
        record.updated_at_ms,
        record.length,
        record.head,
        owner,
        fence,
        record.created_at_ms + LEASE_MS if owned else 0,
        bytearray(origin),
        bytearray(rules.seal_record(origin, record, waits, owner, fence)),
    )
    return Start(row, segments, blobs, origin)


def _row_of(no: int, segment: Segment) -> tuple[object, ...]:
    seq, digests, facts, payloads = segment
    return no, seq, bytearray(digests), bytearray(facts), None if payloads is None else bytearray(payloads)


def seal_plain(works: Sequence[Work]) -> None:
    """Seal the plain ones that are not sealed yet, in a row."""
    plain = [work for work in works if work.plain is not None and work.packed is None]
    if not plain:
        return
    sealed = seal_each([work.plain for work in plain])  # type: ignore[misc]
    for work, (seq, digest, facts) in zip(plain, sealed, strict=True):
        _, success, salt = work.plain  # type: ignore[misc]
        work.packed = seq, unhex(digest), bytearray(facts), pack_payload(salt, success[2])


def lone_row(work: Work, length: int) -> tuple[int, bytearray, bytearray, bytearray] | None:
    """The row, but for its run, of a work that adds one entry to `length` others; None for any other."""
    packed = work.packed
    if packed is not None:
        return packed if packed[0] == length else None
    entries = work.entries
    if len(entries) != 1 or not length or entries[0].seq != length:
        return None
    found = pack_lone(entries[0])
    return None if found is None else (length, *found)


def _entry_of(work: Work) -> Entry:
    assert work.packed is not None
    assert work.plain is not None
    seq, digest, facts, _ = work.packed
    _, success, salt = work.plain
    return Entry(seq, "sha256:" + digest.hex(), bytes(facts), salt, success[2])


def attempt(batch: Batch, works: Sequence[Work]) -> None:
    """Add each work to the batch; one that is refused keeps its error and does not disturb the others."""
    for work in works:
        if batch.add_lone(work):
            continue
        try:
            batch.add(work)
        except NanoVMError as error:
            work.error = error
        except batch.failures:
            raise
        except Exception as error:  # raised by a caller's `build`
            work.error = error
