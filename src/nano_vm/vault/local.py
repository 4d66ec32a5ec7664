"""`Vault`: secrets by reference and the keys of private values, in a directory beside the database or in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from nano_vm.errors import InputError, NotFoundError, VaultError
from nano_vm.runtime.arguments import check_path
from nano_vm.vault import cipher
from nano_vm.vault.cabinet import Cabinet, DirectoryCabinet, MemoryCabinet
from nano_vm.vault.erasures import BEGUN, DESTROYED, DONE, STOPPING, Erasure
from nano_vm.vault.files import Hold, SubjectFile
from nano_vm.vault.kek import KeyWrapper, LocalKey, key_from_environment, keys_from_file
from nano_vm.vault.keys import subject_name
from nano_vm.vault.secrets import REFERENCE, Secrets, check_id, now_ms

_STORE = "store"  # the mark that says which one it is


class Vault(Secrets):
    """Secrets, and one data key per data subject.

    Args:
        cabinet: where it lies; `Vault.beside(path)` and `Vault.in_memory()` make the usual ones.
        key: the key-encryption key, or a list of those that data keys may be wrapped by; a new vault takes the first.
        renew: gives those there are now. It is asked when a data key is wrapped by none of `key`: there was a rotation
            meanwhile. Without it that is VAULT_KEY_WRONG.

    Raises (all methods): VaultError - VAULT_KEY_WRONG, VAULT_DAMAGED, VAULT_IO; RuntimeFault EXTRA_MISSING.
    """

    def __init__(
        self,
        cabinet: Cabinet,
        key: KeyWrapper | Sequence[KeyWrapper],
        renew: Callable[[], Sequence[KeyWrapper]] | None = None,
    ) -> None:
        super().__init__(cabinet, key, renew)
        self._subjects: dict[tuple[str, Any], str] = {}  # (tenant, subject) -> handle
        self.bury()

    @classmethod
    def in_memory(cls) -> Vault:
        """A vault that is gone with this process, for stores that are too."""
        return cls(MemoryCabinet(), LocalKey(cipher.new_key()))

    @classmethod
    def beside(
        cls,
        store: str | os.PathLike[str],
        *,
        key: KeyWrapper | None = None,
        key_file: str | os.PathLike[str] | None = None,
        directory: str | os.PathLike[str] | None = None,
    ) -> Vault:
        """The vault of a database file: the directory `<store>.keys`, or another one.

        Args:
            key: the key-encryption key; else `key_file`; else $NANO_VM_VAULT_KEY; else the file `<store>.key`.

        Raises:
            VaultError: VAULT_KEY_MISSING, VAULT_KEY_EXPOSED, VAULT_KEY_INVALID. InputError: USAGE.
        """
        check_path("store", store)
        if key is None and key_file is None:
            key = key_from_environment()
        directory = directory or f"{os.fspath(store)}.keys"
        if key is not None:
            return cls(DirectoryCabinet(directory), key)
        renew = partial(keys_from_file, key_file or f"{os.fspath(store)}.key")
        keys = renew()
        # The file may be exchanged while the vault is open.
        return cls(DirectoryCabinet(directory), keys, renew)

    @property
    def volatile(self) -> bool:
        return self._cabinet.volatile

    # --- private values ---------------------------------------------------------------------------------------
    def subject_key(self, tenant: str, subject: Any) -> str:
        """Id of the data key for a subject's new values; made when there is none.

        Raises:
            InputError: SUBJECT for what names nobody.
        """
        handle = self._handle(tenant, subject)
        known = self._subject(handle)
        if known is not None:
            return known.keys[-1]
        with self._cabinet.lock():
            known = self._subject(handle)
            if known is None:
                key_id = self.keys.make("subject", tenant, handle, now_ms(None))
                known = self._files.write_subject(SubjectFile(handle, tenant, [key_id]))
            return known.keys[-1]

    def rotate_subject(self, subject: Any, *, tenant: str = "default") -> str:
        """A new data key for a subject's new values; what is stored stays under the old one. Returns its id.

        Raises:
            NotFoundError: SUBJECT_NOT_FOUND.
        """
        with self._cabinet.lock():
            handle = self._handle(tenant, subject)
            known = self._subject(handle)
            key = self.keys.key(known.keys[-1]) if known is not None else None
            if known is None or key is None:
                raise _no_subject()
            key_id = self.keys.make("subject", tenant, handle, now_ms(None), key.digesting)
            self._files.write_subject(SubjectFile(handle, tenant, [*known.keys, key_id]))
            return key_id

    def seal(self, key_id: str, plain: bytes, *bound: Any, erasing: bool = False) -> bytes | None:
        """Encrypt under a data key, bound to its id and `bound`; None when the key is gone or is to be destroyed.
        `erasing`: also under one that is to be destroyed, as long as it is there."""
        key = self.keys.key(key_id) if erasing else self._living(key_id)
        if key is None:
            return None
        return cipher.seal(key.encrypting, plain, cipher.binding("value", key_id, *bound))

    def unseal(self, key_id: str, sealed: bytes, *bound: Any, erasing: bool = False) -> bytes | None:
        """What was sealed; None when the key is gone or is to be destroyed. `erasing`: while it still is there.

        Raises:
            VaultError: SEAL_BROKEN.
        """
        key = self.keys.key(key_id) if erasing else self._living(key_id)
        if key is None:
            return None
        return cipher.unseal(key.encrypting, sealed, cipher.binding("value", key_id, *bound))

    def keyed_digest(self, key_id: str, data: bytes) -> str | None:
        """HMAC-SHA-256 under a data key's digest key, in hexadecimal: the same after a rotation. None when it is
        gone."""
        key = self._living(key_id)
        return None if key is None else cipher.keyed_digest(key.digesting, data)

    # --- erasure ----------------------------------------------------------------------------------------------
    def check_erasable(
        self, *, subject: Any = None, secret: str | None = None, tenant: str = "default"
    ) -> list[str]:
        """The ids of the keys that an erasure would destroy, or has begun to.

        Raises:
            CapabilityDeniedError: ERASURE_HELD. NotFoundError: SUBJECT_NOT_FOUND, SECRET_NOT_FOUND.
        """
        begun = self._begun(subject, secret, tenant)
        if begun is not None:
            return begun.keys
        _, handle = self._target(subject, secret, tenant)
        self._files.check_hold(handle)
        if secret is not None:
            return [self._require(secret, tenant).key]
        known = self._subject(handle)
        if known is None:
            raise _no_subject()
        return known.keys

    def _begun(self, subject: Any, secret: str | None, tenant: str) -> Erasure | None:
        """The erasure of it that has begun and is not done."""
        target = self._named(subject, secret, tenant)
        for erasure in self.erasures.all():
            if erasure.target == target and erasure.tenant == tenant and erasure.stage != DONE:
                return erasure
        return None

    def _named(self, subject: Any, secret: str | None, tenant: str) -> str:
        """As the list of erasures calls it."""
        kind, handle = self._target(subject, secret, tenant)
        return f"{REFERENCE}{secret}" if kind == "secret" else f"subject:{handle}"

    def announce_erasure(
        self,
        *,
        subject: Any = None,
        secret: str | None = None,
        tenant: str = "default",
        reason: str,
        by: dict[str, Any],
        at_ms: int | None = None,
    ) -> Erasure:
        """Decide that a subject, or a secret, is erased, and write it down: from now on no legal hold of it is taken,
        and whoever recovers completes it. Its keys open what they did until `begin_announced`, so that runs can be
        stopped and undone first. Where an erasure of the same target is not done, it is that one.

        Raises:
            CapabilityDeniedError: ERASURE_HELD. NotFoundError: SUBJECT_NOT_FOUND, SECRET_NOT_FOUND.
        """
        with self._cabinet.lock():  # no hold comes between the look and the line
            known = self._begun(subject, secret, tenant)
            if known is not None:
                return known
            keys = self.check_erasable(subject=subject, secret=secret, tenant=tenant)
            begun = Erasure(
                id="e" + cipher.chance(12).hex(),
                tenant=tenant,
                kind="subject" if secret is None else "secret",
                target=self._named(subject, secret, tenant),
                keys=keys,
                at_ms=now_ms(at_ms),
                by=by,
                reason=reason,
                stage=STOPPING,
            )
            return self.erasures.write(begun)

    def begin_announced(self, erasure: Erasure) -> Erasure:
        """From now on nothing opens with the keys of an announced erasure: those that it names, and those that its
        subject has got since. One that has come further stays as it is."""
        with self._cabinet.lock():
            known = self.erasures.find(erasure.id) or erasure
            if known.stage != STOPPING:
                return known
            listed = None
            if known.kind == "subject":
                listed = self._files.subject(known.target.removeprefix("subject:"))
            newer = [] if listed is None else [key_id for key_id in listed.keys if key_id not in known.keys]
            newer = [key_id for key_id in newer if self.erasures.of_key(key_id) is None]
            return self.erasures.write(known, stage=BEGUN, keys=[*known.keys, *newer])

    def destroy_keys(
        self, erasure: Erasure, runs: Sequence[str] = (), recall: dict[str, Any] | None = None
    ) -> Erasure:
        """Destroy the keys that an erasure names, and what led to them. `recall` as in `note_erasure`."""
        with self._cabinet.lock():
            known = self.note_erasure(erasure, recall or {})  # first: later nobody could
            for key_id in erasure.keys:
                self.keys.destroy(key_id)
            self._forget(erasure)
            return self.erasures.write(
                known,
                stage=DONE if known.stage == DONE else DESTROYED,
                runs=sorted({*known.runs, *runs}),
            )

    def note_erasure(self, erasure: Erasure, recall: dict[str, Any]) -> Erasure:
        """Keep notes with an erasure, by run and entry (`nano_vm.journal.recall`); what somebody else has noted, who
        could still read it, stays."""
        with self._cabinet.lock():
            known = self.erasures.find(erasure.id) or erasure
            noted = dict(known.recall)
            for run_id, notes in recall.items():
                noted[run_id] = {**noted.get(run_id, {}), **notes}
            return known if noted == known.recall else self.erasures.write(known, recall=noted)

    def end_erasure(self, erasure: Erasure, runs: Sequence[str] = ()) -> Erasure:
        """Say that every concerned run has been told."""
        with self._cabinet.lock():
            known = self.erasures.find(erasure.id) or erasure
            return self.erasures.write(known, stage=DONE, runs=sorted({*known.runs, *runs}))

    def all_erasures(self) -> list[Erasure]:
        """Oldest first, each at the stage it has come to. One that is not done was cut by a crash."""
        return self.erasures.all()

    def bury(self) -> int:
        """Destroy again what a back-up has brought back: keys of erasures that had destroyed them. Returns how many."""
        count = 0
        for erasure in self.erasures.all():
            if erasure.stage in (STOPPING, BEGUN):
                continue
            for key_id in erasure.keys:
                if self._cabinet.has("keys", key_id):
                    count += self.keys.destroy(key_id)
            self._forget(erasure)
        return count

    def adopt_erasure(self, **fields: Any) -> None:
        """Take over an erasure that journals tell of and the list does not, or not with all these runs: the directory
        was restored from a back-up that is older than the erasure. Its fields are those of `Erasure`."""
        with self._cabinet.lock():
            listed = self.erasures.find(fields["id"])
            if listed is not None:
                runs = sorted({*listed.runs, *fields["runs"]})
                if listed.stage == DONE and runs != listed.runs:
                    self.erasures.write(listed, runs=runs)
                return
            kinds = [self.keys.stored(key_id) for key_id in fields["keys"]]
            known = next((stored for stored in kinds if stored is not None), None)
            target = fields.pop("target") or (f"subject:{known.handle}" if known is not None else "")
            kind = "secret" if target.startswith(REFERENCE) else "subject"
            self.erasures.write(Erasure(**fields, target=target, kind=kind, stage=DONE))
            self.bury()

    def mark(self, name: str) -> bytes | None:
        """How far a store has been looked through for erasures, as `set_mark` was told; None when it was never."""
        return self._cabinet.read("marks", name)

    def set_mark(self, name: str, mark: bytes) -> None:
        self._cabinet.write("marks", name, mark)

    @property
    def is_marked(self) -> bool:
        """Whether it is the vault of some store already; see `belong`."""
        return is_marked(self._cabinet)

    def belong(self, store: str) -> None:
        """Keep the keys of one store and no other: its identity is put down when it is first told.

        Raises:
            VaultError: VAULT_FOREIGN when it is that of another store.
        """
        identity = store.encode()
        if self._cabinet.read("marks", _STORE) is None:
            with self._cabinet.lock():
                if self._cabinet.read("marks", _STORE) is None:
                    self._cabinet.write("marks", _STORE, identity)
        check_store(self._cabinet, store)

    def _forget(self, erasure: Erasure) -> None:
        """Remove what names destroyed keys: the secret's ciphertext, the subject's list."""
        dead = set(erasure.keys)
        if erasure.kind == "secret":
            for handle in self._cabinet.names("secrets"):
                secret = self._files.secret(handle)
                if secret is not None and secret.key in dead:
                    self._cabinet.destroy("secrets", handle)
            return
        handle = erasure.target.removeprefix("subject:")
        if not handle:
            return  # nobody knows whose: the keys were never here
        known = self._files.subject(handle)
        if known is None:
            return
        living = [key_id for key_id in known.keys if key_id not in dead]
        if living:
            if living != known.keys:
                self._files.write_subject(SubjectFile(handle, known.tenant, living))
        else:
            self._cabinet.destroy("subjects", handle)

    # --- legal holds ------------------------------------------------------------------------------------------
    def hold(
        self,
        *,
        subject: Any = None,
        secret: str | None = None,
        tenant: str = "default",
        reason: str,
        by: dict[str, Any],
        at_ms: int | None = None,
    ) -> None:
        """Forbid the erasure of a subject or secret until it is released.

        Raises:
            InputError: ERASURE_BEGUN; what has begun is not stopped.
        """
        kind, handle = self._target(subject, secret, tenant)
        hold = Hold(handle=handle, tenant=tenant, kind=kind, reason=reason, by=by, at_ms=now_ms(at_ms))
        with self._cabinet.lock():  # no erasure begins between the look and the hold
            begun = self._begun(subject, secret, tenant)
            if begun is not None:
                raise InputError(
                    "ERASURE_BEGUN",
                    "the erasure has begun, and will be completed",
                    help="hold what is not to be erased before somebody asks for it",
                    facts={"erasure": begun.id, "at_ms": begun.at_ms},
                )
            self._files.write_hold(hold)

    def release(self, *, subject: Any = None, secret: str | None = None, tenant: str = "default") -> bool:
        """Allow the erasure again; False when nothing was held."""
        return self._cabinet.destroy("holds", self._target(subject, secret, tenant)[1])

    def _target(self, subject: Any, secret: str | None, tenant: str) -> tuple[str, str]:
        if secret is not None:
            check_id(secret)
            return "secret", self.keys.handle("secret", tenant, secret)
        return "subject", self._handle(tenant, subject)

    # --- the key-encryption key -------------------------------------------------------------------------------
    def rotate_kek(self, to: KeyWrapper) -> int:
        """Wrap every data key by another key-encryption key; values stay as they are. Returns how many were wrapped."""
        return self.keys.rewrap(to)

    # --- inside ------------------------------------------------------------------------------------------------
    def _handle(self, tenant: str, subject: Any) -> str:
        # A pair is the runtime's own: a run without a subject, say. No subject of anybody is a pair.
        name = list(subject) if type(subject) is tuple else subject_name(subject)
        known = self._subjects.get((tenant, subject))
        if known is None:
            if len(self._subjects) > 10_000:
                self._subjects.clear()
            known = self._subjects[tenant, subject] = self.keys.handle("subject", tenant, name)
        return known

    def _subject(self, handle: str) -> SubjectFile | None:
        """The keys of a subject that may still be used."""
        known = self._files.subject(handle)
        if known is None:
            return None
        living = [key_id for key_id in known.keys if self.erasures.of_key(key_id) is None]
        return SubjectFile(known.handle, known.tenant, living) if living else None


def _no_subject() -> NotFoundError:
    return NotFoundError(
        "SUBJECT_NOT_FOUND",
        "the vault has no key for this data subject",
        help="nothing private was stored for it in this tenant, or it was erased before",
    )


def is_marked(cabinet: Cabinet) -> bool:
    """Whether what lies there is the vault of some store already."""
    return cabinet.read("marks", _STORE) is not None


def check_store(cabinet: Cabinet, store: str) -> None:
    """Raises VaultError VAULT_FOREIGN unless what lies there is the vault of this store."""
    if cabinet.read("marks", _STORE) != store.encode():
        raise VaultError(
            "VAULT_FOREIGN",
            "the vault keeps the keys of another database, which has the same name",
            help="work with each from a directory of its own; where the other one is gone for good, remove "
            f"the file `marks/{_STORE}` of the vault",
        )
