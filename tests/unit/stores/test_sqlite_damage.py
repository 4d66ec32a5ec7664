"""A changed byte anywhere in the file is found, or changes nothing that can be read."""

import random
from pathlib import Path
from typing import Any

from nano_vm import canonical
from nano_vm.errors import NanoVMError
from nano_vm.journal.entry import GENESIS
from nano_vm.journal.port import BLOB_BYTES_MIN, Mail, RunQuery
from nano_vm.journal.reading import verify_entry
from nano_vm.stores.sqlite import SqliteStore
from nano_vm.testing.store_conformance import NOW, Draft

FLIPS = 250


def populate(path: Path) -> None:
    with SqliteStore(path) as store:
        for number in range(6):
            draft = Draft(
                f"run-{number}", store.owner, key=f"key-{number}", tenant="acme", inputs_digest="sha256:1"
            )
            store.create(draft.record, draft.entries(2))
            for _ in range(3):
                store.append(draft.run_id, 1, draft.entries(2))
            if number == 2:
                store.append(draft.run_id, 1, draft.entries(1, b'"' + b"x" * BLOB_BYTES_MIN + b'"'))
            waits = [{"kind": "event", "name": "paid"}]
            store.append(
                draft.run_id, 1, draft.entries(1), draft.update("SUSPENDED", waits=waits, release=True)
            )
            store.post(
                draft.run_id, Mail(mail_id="m1", kind="event", body=b'{"paid":true}', posted_at_ms=NOW)
            )
            store.post(draft.run_id, Mail(mail_id="m2", kind="event", body=b'{"paid":1}', posted_at_ms=NOW))
            store.answer(draft.run_id, "m2", b'{"ok":true}')
            store.bind_action(f"charge-{number}", "sha256:1", draft.run_id)
            body = b'{"name":"p%d"}' % number
            store.put_program(canonical.digest(body), f"p{number}", body, NOW)


def everything(path: Path) -> Any:
    """All that a store answers about the file, ownership aside; raises NanoVMError when it finds damage."""
    with SqliteStore(path) as store:
        problems = store.integrity()
        if problems:
            raise NanoVMError("STORE_DAMAGED", problems[0])
        records = store.records(RunQuery())
        journals = {}
        for record in records:
            journals[record.run_id] = entries = store.read(record.run_id)
            prev = GENESIS
            for entry in entries:
                verify_entry(entry, record.run_id, prev)
                prev = entry.digest
            assert record.head == prev
            record.owner, record.fence, record.lease_until_ms = None, 0, 0
            found = store.find_key("acme", "refund", record.key or "")
            assert found is not None
            assert found.run_id == record.run_id
        programs = [(row, store.program(row[1]), store.program_named(row[0])) for row in store.programs()]
        mail = [(store.mail(run), store.answered(run, "m2")) for run in journals]
        for number in range(6):
            store.bind_action(f"charge-{number}", "sha256:1", f"run-{number}")
        return records, journals, programs, mail, store.tail(0)


def test_every_changed_byte_is_found_or_without_effect(tmp_path: Path) -> None:
    original = tmp_path / "journal.db"
    populate(original)
    content = original.read_bytes()
    expected = everything(original)
    seed = 20_261
    draw = random.Random(seed)
    found = 0
    for number in range(FLIPS):
        offset, bit = draw.randrange(len(content)), 1 << draw.randrange(8)
        changed = bytearray(content)
        changed[offset] ^= bit
        path = tmp_path / f"flipped-{number}.db"
        path.write_bytes(changed)
        try:
            answer = everything(path)
        except NanoVMError:
            found += 1
            continue
        finally:
            path.unlink()
        assert answer == expected, f"seed {seed}: the flip of {bit:#x} at {offset} went unnoticed"
    assert found > FLIPS // 2  # most of the file holds something


def test_an_edited_entry_is_blamed_on_itself(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    populate(path)
    content = path.read_bytes()
    # The third entry of the first run, in its facts, its payload and its digest.
    with SqliteStore(path) as store:
        entry = store.read("run-0")[3]
    assert entry.payload is not None
    for needle in (entry.facts, entry.salt + entry.payload, bytes.fromhex(entry.digest[7:])):
        at = content.index(needle) + 12
        changed = bytearray(content)
        changed[at] ^= 1
        path.write_bytes(changed)
        with SqliteStore(path) as store:
            prev, blamed = GENESIS, None
            for found in store.read("run-0"):
                try:
                    verify_entry(found, "run-0", prev)
                except NanoVMError as error:
                    blamed = (error.code, error.facts["seq"])
                    break
                prev = found.digest
        assert blamed in (("DIGEST_MISMATCH", 3), ("COMMITMENT_MISMATCH", 3))
