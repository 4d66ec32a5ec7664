"""What every store decides alike, free of any database: appends, mail, and the seals of operator rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

import msgspec

from nano_vm import canonical
from nano_vm.errors import ConflictError, InputError, NotFoundError, StoreError
from nano_vm.journal.entry import Entry
from nano_vm.journal.port import MAIL_MAX, Mail, RunRecord, RunUpdate

_encode = msgspec.json.Encoder(order="deterministic").encode


# --- appends ----------------------------------------------------------------------------------------------
def admit(
    run_id: str, length: int, entries: Sequence[Entry], stored: Callable[[int, int], Sequence[str]]
) -> Sequence[Entry]:
    """What of `entries` is to be added to a journal of `length` entries: those at its end, after as many as
    are stored already.

    Args:
        stored: the digests of the stored entries from a seq (inclusive) to a seq (exclusive).

    Raises:
        ConflictError: JOURNAL_CONFLICT (facts: run_id, seq) for a gap, for entries out of order, and for
            another entry at a place that is taken.
    """
    if not entries:
        return entries
    first = entries[0].seq
    expected = first
    for entry in entries:
        if entry.seq != expected:
            raise journal_conflict(run_id, entry.seq, "the entries are not consecutive")
        expected += 1
    if first == length:
        return entries
    if first > length or first < 0:
        raise journal_conflict(run_id, first, f"the journal ends before {length}")
    known = stored(first, min(length, expected))
    if len(known) != min(length, expected) - first:
        raise journal_conflict(run_id, first, "the journal is shorter than it was believed to be")
    for entry, digest in zip(entries, known, strict=False):
        if entry.digest != digest:
            raise journal_conflict(run_id, entry.seq, "another entry is stored there")
    return entries[length - first :]


def check_start(run_id: str, entries: Sequence[Entry]) -> None:
    """The first entries of a run begin at 0 and are consecutive. Raises as `admit`."""
    admit(run_id, 0, entries, _nothing_stored)


def _nothing_stored(start: int, stop: int) -> Sequence[str]:
    return ()


def journal_conflict(run_id: str, seq: int, what: str, *, unclaimed: bool = False) -> ConflictError:
    """`unclaimed`: nothing had been added by whoever wanted to."""
    return ConflictError(
        "JOURNAL_CONFLICT",
        f"entry {seq} of run `{run_id}` cannot be appended: {what}",
        facts={"run_id": run_id, "seq": seq, **({"unclaimed": True} if unclaimed else {})},
    )


def lease_lost(run_id: str, seq: int | None = None, *, unclaimed: bool = False) -> ConflictError:
    """`unclaimed`: somebody else was quicker, before anything was added."""
    return ConflictError(
        "LEASE_LOST",
        f"run `{run_id}` is owned by another worker, or by nobody",
        help="claim the run again and go on from its journal",
        facts={"run_id": run_id, "seq": seq, **({"unclaimed": True} if unclaimed else {})},
    )


def run_exists(wanted: str, holder: str) -> ConflictError:
    what = f"run `{wanted}` exists already"
    if wanted != holder:
        what = f"the idempotency key of run `{wanted}` belongs to run `{holder}`"
    return ConflictError("RUN_EXISTS", what, facts={"run_id": holder})


def run_not_found(run_id: str) -> NotFoundError:
    return NotFoundError(
        "RUN_NOT_FOUND",
        f"there is no run `{run_id}`",
        help="`nano-vm runs`, or `vm.runs()`, lists those that there are",
        facts={"run_id": run_id},
    )


def check_policy(policy_hash: str, body: bytes) -> None:
    if canonical.digest(body) != policy_hash:
        raise InputError("USAGE", f"`{policy_hash}` is not the hash of the policy")


def policy_not_found(policy_hash: str) -> NotFoundError:
    return NotFoundError(
        "POLICY_NOT_FOUND", f"no policy `{policy_hash}` is stored", facts={"policy": policy_hash}
    )


def program_not_found(program_hash: str) -> NotFoundError:
    return NotFoundError(
        "PROGRAM_NOT_FOUND", f"there is no program `{program_hash}`", facts={"program": program_hash}
    )


def check_owner(record: RunRecord, owner: str) -> None:
    """A new run belongs to the store that creates it, or to nobody.

    Raises:
        InputError: USAGE.
    """
    if record.owner is not None and record.owner != owner:
        raise InputError(
            "USAGE",
            f"run `{record.run_id}` cannot be created for another owner",
            help="use the `owner` of this store, or None",
        )


def action_conflict(run_id: str) -> ConflictError:
    return ConflictError(
        "ACTION_CONFLICT",
        f"the idempotency key was used with other arguments, in run `{run_id}`",
        help="an idempotency key names one action: use another key for other arguments",
        facts={"run_id": run_id},
    )


# --- mail -------------------------------------------------------------------------------------------------
def same_mail(run_id: str, held: Mail, mail: Mail) -> None:
    """Posting a message again is allowed when it is the same.

    Raises:
        ConflictError: MAIL_CONFLICT (facts: run_id, mail_id).
    """
    if held.kind != mail.kind or held.body != mail.body:
        raise ConflictError(
            "MAIL_CONFLICT",
            f"message `{mail.mail_id}` for run `{run_id}` was posted before with another body",
            facts={"run_id": run_id, "mail_id": mail.mail_id},
        )


def check_mailbox(run_id: str, unanswered: int) -> None:
    """Raises InputError MAIL_FULL (facts: run_id, limit) when the run has `MAIL_MAX` unanswered messages."""
    if unanswered >= MAIL_MAX:
        raise InputError(
            "MAIL_FULL",
            f"run `{run_id}` has {unanswered} unanswered messages",
            help="try again once the run has dealt with some",
            facts={"run_id": run_id, "limit": MAIL_MAX},
        )


def mail_not_found(run_id: str, mail_id: str) -> NotFoundError:
    return NotFoundError(
        "MAIL_NOT_FOUND",
        f"run `{run_id}` has no message `{mail_id}`",
        facts={"run_id": run_id, "mail_id": mail_id},
    )


# --- seals ------------------------------------------------------------------------------------------------
# A record and a message live outside the hash chain until the journal confirms them. Their seals make a
# changed byte visible; they do not resist somebody who computes them anew - that is what comparing with the
# journal is for. A lease is not sealed: its owner renews it all the time, and the next claim sets it right.


def seal_origin(record: RunRecord) -> bytes:
    """Digest of what never changes in a record."""
    return _seal(
        record.run_id,
        record.tenant,
        record.program_hash,
        record.program_name,
        record.key,
        record.inputs_digest,
        record.parent,
        record.created_at_ms,
    )


def seal_record(
    origin: bytes, row: RunRecord | RunUpdate, waits: bytes, owner: str | None, fence: int
) -> bytes:
    """Digest of a whole record: `origin`, the projection in `row`, and who owns it; `waits` is the encoded
    list."""
    return _seal(
        origin.hex(),
        row.status,
        row.outcome,
        waits.decode(),
        row.wake_at_ms,
        row.updated_at_ms,
        row.length,
        row.head,
        owner,
        fence,
    )


def seal_mail(run_id: str, mail: Mail) -> bytes:
    """Digest of a message and its answer."""
    answer = None if mail.answer is None else sha256(mail.answer).hexdigest()
    return _seal(run_id, mail.mail_id, mail.kind, sha256(mail.body).hexdigest(), mail.posted_at_ms, answer)


def seal_action(key: str, digest: str, run_id: str) -> bytes:
    """Digest of what an action's key is bound to."""
    return _seal(key, digest, run_id)


def seal_program(program_hash: str, name: str, stored_at_ms: int) -> bytes:
    """Digest of what stands beside a program; its body is checked against its hash."""
    return _seal(program_hash, name, stored_at_ms)


def encode_waits(waits: list[dict[str, Any]]) -> bytes:
    return _encode(waits) if waits else b"[]"


def _seal(*fields: Any) -> bytes:
    try:
        return sha256(_encode(fields)).digest()
    except UnicodeEncodeError:
        raise unpaired_surrogate() from None


def damaged(what: str, **facts: Any) -> StoreError:
    return StoreError("STORE_DAMAGED", what, help="restore the database from a back-up", facts=facts)


def unpaired_surrogate() -> InputError:
    """For a name or a key that is no Unicode text: a database keeps UTF-8."""
    return InputError(
        "VALUE_STRING",
        "a name or a key holds an unpaired surrogate",
        help="replace it before passing it on",
    )


def closed(what: str = "the store is closed") -> StoreError:
    return StoreError("STORE_CLOSED", what, help="open a new store")
