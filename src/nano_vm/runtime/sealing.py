"""Private and secret values at rest: sealed under the data subject's key before they reach any store.

An entry whose event is labelled so is stored as the ciphertext of salt and payload; mail for such a run is sealed
whole; digests of what is private are keyed. A run keeps to one key, which its journal names.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import msgspec

from nano_vm import canonical
from nano_vm.errors import NanoVMError, RuntimeFault
from nano_vm.journal.entry import SALT_BYTES, Entry, erased_keys, read_facts
from nano_vm.journal.port import RunRecord
from nano_vm.journal.replay import KEYED
from nano_vm.kernel.state import activity_key
from nano_vm.program.labels import SEALED
from nano_vm.runtime.ports import SubjectKeys

if TYPE_CHECKING:
    from nano_vm.kernel.events import Event
    from nano_vm.runtime.engine import Engine
    from nano_vm.runtime.journaled import JournaledRun

_ENTRY, _MAIL = "entry", "mail"
STOPPING: ContextVar[bool] = ContextVar("nano_vm_stopping", default=False)
"""Whether the current task stops the runs of an erasure that has begun: it reads what nobody else reads any more."""


def is_sealed(event: Any) -> bool:
    """Whether the event's payload is stored encrypted only."""
    label = getattr(event, "label", 0)
    return type(label) is int and bool(label & SEALED)


def key_of_run(run: JournaledRun) -> str:
    """Id of the data key of a run's private values: of its subject, of its parent's, or of the run itself.

    Raises:
        RuntimeFault: NO_KEYS. InputError: SUBJECT. VaultError.
    """
    if run.key_id is None:
        run.key_id = _choose_key(run)
    return run.key_id


def _choose_key(run: JournaledRun) -> str:
    record = run.record
    keys = _keys(run.engine)
    if run.program.subject is not None:
        subject = run.program.subject.render(run.state.slots)
        return keys.subject_key(record.tenant, subject)
    if record.parent is not None:
        return key_of_stored(run.engine, run.engine.store.record(record.parent))
    return keys.subject_key(record.tenant, ("run", record.run_id))


def key_of_stored(engine: Engine, record: RunRecord) -> str:
    """`key_of_run` of a run that is in the store."""
    live = engine.live.get(record.run_id)
    if live is not None:
        return key_of_run(live)
    entries = engine.store.read(record.run_id)
    key_id = key_named_in(entries)
    if key_id is not None:
        return key_id
    from nano_vm.runtime import recovery

    return key_of_run(recovery.load(engine, record.run_id, record.fence))


def key_named_in(entries: Sequence[Entry]) -> str | None:
    """The key that a journal's private values are under; None when it has none yet."""
    for entry in entries:
        if b'"key":"' in entry.facts and (key_id := read_facts(entry).key) is not None:
            return key_id
    return None


def seal_entry(run: JournaledRun, event: Event, payload: bytes, riders: Sequence[Event]) -> Entry:
    """Chain a private payload and return the entry as it is stored: without the payload when its key has been
    destroyed. Under one that is to be destroyed a run goes on until it is stopped: what has to be noted of its entries
    is noted then.

    Raises:
        NanoVMError: ERASED for a new run, which nobody would tell that it was erased.
    """
    key_id = key_of_run(run)
    salt = run.engine.entropy.salt()
    entry = run.chain.seal(event, salt, payload, riders, key=key_id)
    if not run.named:
        run.unsealed.append(entry)
    run_id = run.record.run_id
    stored = _keys(run.engine).seal(key_id, salt + payload, _ENTRY, run_id, entry.seq, erasing=run.created)
    if stored is None and not run.created:
        raise erased(f"what run {run_id} would begin with")
    return msgspec.structs.replace(entry, salt=b"", payload=stored)


def open_entries(keys: SubjectKeys, run_id: str, entries: list[Entry], erasing: bool = False) -> list[Entry]:
    """Entries as they were before they were sealed, as far as their keys are there; without the payload where the
    journal says that it was erased.

    Raises:
        VaultError: SEAL_BROKEN for a ciphertext that was changed or moved.
    """
    dead = set() if erasing else erased_keys(entries)
    for place, entry in enumerate(entries):
        if entry.payload is None or entry.salt:
            continue
        key_id = read_facts(entry).key
        if key_id is None:
            continue  # not sealed: whoever verifies it says what is wrong
        if key_id in dead:
            # Whatever a back-up of the keys has brought back: the journal says that this one is gone.
            entries[place] = msgspec.structs.replace(entry, payload=None)
            continue
        plain = keys.unseal(key_id, entry.payload, _ENTRY, run_id, entry.seq, erasing=erasing)
        if plain is not None:
            entries[place] = msgspec.structs.replace(
                entry, salt=plain[:SALT_BYTES], payload=plain[SALT_BYTES:]
            )
    return entries


def inputs_digest(engine: Engine, key_id: str | None, payload: bytes) -> str:
    """Digest of a run's inputs, to tell whether an idempotency key is used again for the same; keyed with a key."""
    if key_id is None:
        return canonical.digest(payload)
    digest = _keys(engine).keyed_digest(key_id, payload)
    return KEYED + (digest or "erased")


def keyed_content(run: JournaledRun, command: Any) -> Callable[[bytes], str] | None:
    """How the content of a call is digested when it is private; None when it is not."""
    state = run.state
    if state.labels is None or run.engine.keys is None:
        return None
    if getattr(command, "compensation", False) or type(command).__name__ == "Compensate":
        label = state.undo[-1].label
    else:
        activity = state.active.get(activity_key(command.step, command.item))
        label = 0 if activity is None else activity.label
    if not label & SEALED:
        return None
    if run.program.subject is None and getattr(command, "business_key", None) is not None:
        # The author's key means the same action in every run, and without a subject a run's own key is no other's.
        keys = _keys(run.engine)
        return _digester(keys, keys.subject_key(run.record.tenant, ("actions", "")))
    return digester(run)


def keys_live(run: JournaledRun) -> bool:
    """Whether the run's key is still there."""
    return _keys(run.engine).keyed_digest(key_of_run(run), b"") is not None


def digester(run: JournaledRun) -> Callable[[bytes], str]:
    """HMAC-SHA-256 under the run's key, in hexadecimal."""
    return _digester(_keys(run.engine), key_of_run(run))


def _digester(keys: SubjectKeys, key_id: str) -> Callable[[bytes], str]:
    def digest(data: bytes) -> str:
        found = keys.keyed_digest(key_id, data)
        if found is None:
            raise erased("what it is about")
        return found

    return digest


# --- mail -----------------------------------------------------------------------------------------------------


def seal_letter(engine: Engine, run_id: str, letter: dict[str, Any]) -> bytes:
    """A letter as it is stored: sealed when its run's program has private or secret values."""
    record = engine.store.record(run_id)
    body = canonical.encode(letter)
    if engine.keys is None or not engine.is_sealed(record.program_hash):
        return body
    key_id = key_of_stored(engine, record)
    sealed = engine.keys.seal(key_id, body, _MAIL, run_id)
    if sealed is None:
        raise erased(f"run {run_id}")
    return canonical.encode({"key": key_id, "sealed": base64.b64encode(sealed).decode()})


def open_letter(engine: Engine, run_id: str, body: bytes) -> dict[str, Any]:
    """What `seal_letter` made. A letter that cannot be opened any more is an event without content."""
    letter: dict[str, Any] = canonical.decode(body)
    if letter.keys() != {"key", "sealed"}:
        return letter
    sealed = base64.b64decode(letter["sealed"])
    plain = _keys(engine).unseal(letter["key"], sealed, _MAIL, run_id)
    if plain is None:
        raise erased(f"a letter for run {run_id}")
    opened: dict[str, Any] = canonical.decode(plain)
    return opened


def _keys(engine: Engine) -> SubjectKeys:
    if engine.keys is None:
        raise RuntimeFault(
            "NO_KEYS",
            "there are private or secret values, and no keys to store them under",
            help="give the engine a vault: ExecutionVM(vault=Vault.beside(…)); or `nano-vm vault init`",
        )
    return engine.keys


def erased(what: str) -> NanoVMError:
    return NanoVMError(
        "ERASED", f"{what} has been erased", help="start a new run: what is erased does not come back"
    )
