"""The vault: what is kept opens for whoever may, elsewhere and afterwards it does not."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from begun_erasures import begin_erasure
from nano_vm import CapabilityDeniedError, InputError, NanoVMError, NotFoundError, VaultError
from nano_vm.vault import cipher
from nano_vm.vault.cabinet import DirectoryCabinet, MemoryCabinet
from nano_vm.vault.environment import EnvironmentSecrets
from nano_vm.vault.erasures import DONE
from nano_vm.vault.files import SecretFile
from nano_vm.vault.kek import LocalKey, key_from_environment, key_from_file, make_key_file, replace_key_file
from nano_vm.vault.keys import Keys
from nano_vm.vault.local import Vault

CARD = "4242-4242-4242-4242"
BY = {"id": "ana", "roles": []}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    make_key_file(tmp_path / "runs.db.key")
    return tmp_path / "runs.db"


def everything_in(directory: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file())


def code_of(error: pytest.ExceptionInfo[NanoVMError]) -> str:
    return error.value.code


def test_a_secret_opens_for_its_tenant_and_its_tools_alone(store: Path) -> None:
    vault = Vault.beside(store)
    assert vault.put("card", CARD, tools=["charge"]) == "vault://secret/card"
    assert Vault.beside(store).open_secret("card", tenant="default", tool="charge") == CARD
    with pytest.raises(CapabilityDeniedError) as denied:
        vault.open_secret("card", tenant="default", tool="mail")
    with pytest.raises(NotFoundError) as foreign:
        vault.open_secret("card", tenant="other", tool="charge")
    assert (code_of(denied), code_of(foreign)) == ("SECRET_DENIED", "SECRET_NOT_FOUND")


def test_no_file_of_the_vault_holds_a_value_or_a_subject_in_clear(store: Path) -> None:
    vault = Vault.beside(store)
    vault.put("card", CARD)
    key = vault.subject_key("default", "ana@example.org")
    sealed = vault.seal(key, b"diagnosis: none", "run-1", 3)
    assert sealed is not None
    held = everything_in(store.parent)
    for word in (CARD, "ana@example.org", "diagnosis"):
        assert word.encode() not in held


def test_a_value_that_is_moved_or_changed_does_not_open(store: Path) -> None:
    vault = Vault.beside(store)
    key, other = vault.subject_key("default", "ana"), vault.subject_key("default", "bob")
    sealed = vault.seal(key, b"ana's", "run-1", 3)
    assert sealed is not None
    assert vault.unseal(key, sealed, "run-1", 3) == b"ana's"
    for attempt in (
        lambda: vault.unseal(key, sealed, "run-1", 4),
        lambda: vault.unseal(key, sealed, "run-2", 3),
        lambda: vault.unseal(other, sealed, "run-1", 3),
        lambda: vault.unseal(key, sealed[:20], "run-1", 3),
        lambda: vault.unseal(key, b"\x02" + sealed[1:], "run-1", 3),
    ):
        with pytest.raises(VaultError) as broken:
            attempt()
        assert code_of(broken) == "SEAL_BROKEN"
    for place in range(len(sealed)):
        changed = sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :]
        with pytest.raises(VaultError):
            vault.unseal(key, changed, "run-1", 3)


def test_every_changed_byte_of_a_vaults_files_is_an_error_or_without_effect(store: Path) -> None:
    vault = Vault.beside(store)
    vault.put("card", CARD)
    (secret,) = (store.parent / "runs.db.keys" / "secrets").iterdir()
    for path in (secret, *(store.parent / "runs.db.keys" / "keys").iterdir()):
        data = path.read_bytes()
        for place in range(0, len(data), 7):
            path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
            code, opened = "", CARD
            try:
                opened = Vault.beside(store).open_secret("card", tenant="default", tool="charge")
            except NanoVMError as error:
                code = error.code
            assert opened == CARD
            assert code in (
                "",
                "VAULT_DAMAGED",
                "SEAL_BROKEN",
                "SECRET_NOT_FOUND",
                "SECRET_ERASED",
                "VAULT_KEY_WRONG",
            )
        path.write_bytes(data)


def test_a_stolen_vault_opens_nothing_without_its_key(store: Path) -> None:
    Vault.beside(store).put("card", CARD)
    (store.parent / "runs.db.key").unlink()
    with pytest.raises(VaultError) as missing:
        Vault.beside(store)
    with pytest.raises(VaultError) as wrong:
        Vault.beside(store, key=LocalKey(os.urandom(32))).open_secret("card", tenant="default", tool="x")
    assert (code_of(missing), code_of(wrong)) == ("VAULT_KEY_MISSING", "VAULT_KEY_WRONG")


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_key_file_or_vault_that_others_may_read_is_refused(store: Path) -> None:
    key = store.parent / "runs.db.key"
    for mode in (0o644, 0o640, 0o604, 0o620):
        key.chmod(mode)
        with pytest.raises(VaultError) as exposed:
            Vault.beside(store)
        assert code_of(exposed) == "VAULT_KEY_EXPOSED"
    key.chmod(0o400)
    Vault.beside(store)
    (store.parent / "runs.db.keys").chmod(0o755)
    with pytest.raises(VaultError) as exposed:
        Vault.beside(store)
    assert code_of(exposed) == "VAULT_KEY_EXPOSED"


@pytest.mark.parametrize("text", ["", "short", "x" * 43, "é" * 32, "AAAA", "00" * 31])
def test_what_is_no_key_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    with pytest.raises(VaultError) as invalid:
        key_from_file(path)
    monkeypatch.setenv("NANO_VM_VAULT_KEY", text)
    with pytest.raises(VaultError) as variable:
        key_from_environment()
    assert code_of(invalid) == code_of(variable) == "VAULT_KEY_INVALID"


def test_a_key_in_the_environment_comes_before_a_file(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANO_VM_VAULT_KEY", (b"\x07" * 32).hex())
    Vault.beside(store).put("card", CARD)
    monkeypatch.delenv("NANO_VM_VAULT_KEY")
    with pytest.raises(VaultError):
        Vault.beside(store).open_secret("card", tenant="default", tool="x")


def test_rotating_the_key_encryption_key_leaves_values_and_makes_the_old_one_useless(store: Path) -> None:
    vault = Vault.beside(store)
    vault.put("card", CARD)
    key = vault.subject_key("default", "ana")
    sealed = vault.seal(key, b"ana's", 1)
    digest = vault.keyed_digest(key, b"ana's")
    new = LocalKey(os.urandom(32))
    assert vault.rotate_kek(new) == 3
    assert vault.rotate_kek(new) == 0
    after = Vault.beside(store, key=new)
    assert sealed is not None
    assert after.unseal(key, sealed, 1) == b"ana's"
    assert after.keyed_digest(key, b"ana's") == digest
    assert after.open_secret("card", tenant="default", tool="x") == CARD
    assert after.subject_key("default", "ana") == key
    with pytest.raises(VaultError):
        Vault.beside(store).open_secret("card", tenant="default", tool="x")


def test_a_rotation_that_was_cut_goes_on(store: Path) -> None:
    old = key_from_file(store.parent / "runs.db.key")
    new = LocalKey(os.urandom(32))
    vault = Vault.beside(store)
    keys = [vault.subject_key("default", f"s{n}") for n in range(4)]
    sealed = [vault.seal(key, b"value", n) for n, key in enumerate(keys)]

    class Dies(Exception):
        pass

    class Wrapper:
        """Wraps three keys and is gone."""

        id = new.id
        left = 3

        def wrap(self, key: bytes, bound: bytes) -> bytes:
            self.left -= 1
            if self.left < 0:
                raise Dies
            return new.wrap(key, bound)

        def unwrap(self, wrapped: bytes, bound: bytes) -> bytes:
            return new.unwrap(wrapped, bound)

    with pytest.raises(Dies):
        vault.rotate_kek(Wrapper())
    cabinet = DirectoryCabinet(store.parent / "runs.db.keys")
    assert Vault(cabinet, [old, new]).rotate_kek(new) == 2
    after = Vault(cabinet, new)
    assert [
        after.unseal(key, value or b"", n) for n, (key, value) in enumerate(zip(keys, sealed, strict=True))
    ] == [b"value"] * 4


def test_a_new_data_key_is_for_new_values_and_keeps_digests(store: Path) -> None:
    vault = Vault.beside(store)
    old = vault.subject_key("default", "ana")
    sealed, digest = vault.seal(old, b"v"), vault.keyed_digest(old, b"v")
    new = vault.rotate_subject("ana")
    assert vault.subject_key("default", "ana") == new != old
    assert sealed is not None
    assert vault.unseal(old, sealed) == b"v"
    assert vault.keyed_digest(new, b"v") == digest
    secret = vault.put("card", CARD)
    assert secret == "vault://secret/card"
    before = vault.secret_key("card", tenant="default")
    assert vault.rotate("card") != before
    assert vault.keys.key(before) is None
    assert vault.open_secret("card", tenant="default", tool="x") == CARD


def test_an_erased_subject_is_gone_and_may_come_back_as_somebody_new(store: Path) -> None:
    vault = Vault.beside(store)
    key = vault.subject_key("default", "ana")
    sealed = vault.seal(key, b"v")
    assert sealed is not None
    begun = begin_erasure(vault, subject="ana", reason="asked", by=BY, at_ms=5)
    assert vault.unseal(key, sealed) is None  # from the first moment on
    assert vault.unseal(key, sealed, erasing=True) == b"v"
    assert begin_erasure(vault, subject="ana", reason="again", by=BY).id == begun.id
    done = vault.end_erasure(vault.destroy_keys(begun, ["run-1"]))
    assert vault.unseal(key, sealed, erasing=True) is None
    assert (done.stage, done.runs) == (DONE, ["run-1"])
    assert Vault.beside(store).all_erasures() == [done]
    assert vault.subject_key("default", "ana") != key
    assert key.encode() not in b"".join(
        path.read_bytes() for path in (store.parent / "runs.db.keys" / "subjects").iterdir()
    )


def test_nothing_is_left_of_an_erased_subject_but_the_list_of_erasures(store: Path) -> None:
    vault, subjects = Vault.beside(store), store.parent / "runs.db.keys" / "subjects"
    vault.subject_key("default", "ana")
    vault.subject_key("default", "bob")
    (bob,) = {path.name for path in subjects.iterdir()} - {vault.keys.handle("subject", "default", "ana")}
    vault.destroy_keys(begin_erasure(vault, subject="ana", reason="asked", by=BY))
    assert [path.name for path in subjects.iterdir()] == [bob]


def test_what_was_left_of_a_subject_that_was_erased_before_is_removed(store: Path) -> None:
    vault, subjects = Vault.beside(store), store.parent / "runs.db.keys" / "subjects"
    vault.subject_key("default", "ana")
    (left,) = subjects.iterdir()
    written = left.read_bytes()
    vault.end_erasure(vault.destroy_keys(begin_erasure(vault, subject="ana", reason="asked", by=BY)))
    left.write_bytes(written)
    Vault.beside(store)
    assert list(subjects.iterdir()) == []


def test_an_erasure_of_keys_that_were_never_here_is_taken_over(store: Path) -> None:
    """The directory was restored from a back-up that is older than the subject's first value. The vault could not be
    opened any more, by anybody."""
    told = {"id": "e1", "tenant": "default", "target": "", "keys": ["k" + "0" * 24], "at_ms": 1, "by": BY}
    Vault.beside(store).adopt_erasure(**told, reason="asked", runs=["run-1"])
    vault = Vault.beside(store)
    assert [(erasure.id, erasure.stage) for erasure in vault.all_erasures()] == [("e1", DONE)]
    assert vault.is_erased("k" + "0" * 24)


def test_a_vault_restored_from_a_back_up_buries_its_dead_again(store: Path) -> None:
    vault = Vault.beside(store)
    key = vault.subject_key("default", "ana")
    sealed = vault.seal(key, b"v")
    directory = store.parent / "runs.db.keys"
    saved = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    vault.end_erasure(vault.destroy_keys(begin_erasure(vault, subject="ana", reason="r", by=BY)))
    for path, data in saved.items():
        if path.name != "erasures.jsonl":
            path.write_bytes(data)
    again = Vault.beside(store)
    assert sealed is not None
    assert again.unseal(key, sealed, erasing=True) is None
    assert not (directory / "keys" / key).exists()
    assert again.subject_key("default", "ana") != key


def test_a_changed_list_of_erasures_is_noticed(store: Path) -> None:
    vault = Vault.beside(store)
    for name in ("ana", "bob"):
        vault.subject_key("default", name)
        vault.destroy_keys(begin_erasure(vault, subject=name, reason="r", by=BY))
    path = store.parent / "runs.db.keys" / "erasures.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for changed in (
        [*lines[1:]],
        [lines[1], lines[0], *lines[2:]],
        [lines[0].replace(b"ana", b"ann"), *lines[1:]],
    ):
        path.write_bytes(b"".join(changed))
        with pytest.raises(VaultError) as damaged:
            Vault.beside(store)
        assert code_of(damaged) == "VAULT_DAMAGED"
    path.write_bytes(b"".join(lines) + b'{"cut')  # by a crash: it was promised to nobody
    Vault.beside(store).erasures.all()


def test_a_legal_hold_forbids_erasure_and_replacement_until_it_is_released(store: Path) -> None:
    vault = Vault.beside(store)
    vault.put("card", CARD)
    vault.subject_key("default", 17)
    vault.hold(secret="card", reason="case 9", by=BY)
    vault.hold(subject=17, reason="case 9", by=BY)
    for attempt in (
        lambda: begin_erasure(vault, secret="card", reason="r", by=BY),
        lambda: begin_erasure(vault, subject=17, reason="r", by=BY),
        lambda: vault.put("card", "another value"),
    ):
        with pytest.raises(CapabilityDeniedError) as held:
            attempt()
        assert code_of(held) == "ERASURE_HELD"
    vault.rotate("card")
    assert vault.release(secret="card")
    assert not vault.release(secret="card")
    vault.destroy_keys(begin_erasure(vault, secret="card", reason="r", by=BY))
    with pytest.raises(NotFoundError):
        vault.open_secret("card", tenant="default", tool="x")


@pytest.mark.parametrize("secret_id", ["", "a b", "../x", "a/b", "é", ".hidden", "x" * 129, None, 5])
def test_ids_are_plain(secret_id: object) -> None:
    with pytest.raises(InputError) as refused:
        Vault.in_memory().put(secret_id, CARD)  # type: ignore[arg-type]
    assert code_of(refused) == "SECRET_ID"


@pytest.mark.parametrize("value", ["", "abc", "x" * 65_537, None, b"bytes", "\ud800abc"])
def test_values_are_texts_that_can_be_told_apart(value: object) -> None:
    with pytest.raises(InputError) as refused:
        Vault.in_memory().put("card", value)  # type: ignore[arg-type]
    assert code_of(refused) == "SECRET_VALUE"


@pytest.mark.parametrize("subject", [None, "", 1.5, True, ["ana"], {"id": 1}, "x" * 1_025])
def test_subjects_are_texts_or_numbers(subject: object) -> None:
    with pytest.raises(InputError) as refused:
        Vault.in_memory().subject_key("default", subject)
    assert code_of(refused) == "SUBJECT"
    assert Vault.in_memory().keys.handle("subject", "a", "1") != Vault.in_memory().keys.handle(
        "subject", "a", 1
    )


def test_keys_do_not_show_themselves() -> None:
    key = LocalKey(b"k" * 32)
    assert "kkkk" not in repr(key)
    vault = Vault(MemoryCabinet(), key)
    data = vault.keys.key(vault.subject_key("default", "ana"))
    assert data is not None
    assert data.encrypting.hex() not in repr(data)
    assert repr(data.encrypting)[2:-1] not in repr(data)


def test_secrets_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANO_VM_SECRET_CARD_TOKEN", CARD)
    source = EnvironmentSecrets()
    assert source.open_secret("card-token", tenant="default", tool="x") == CARD
    with pytest.raises(NotFoundError):
        source.open_secret("other", tenant="default", tool="x")


def test_a_hold_that_comes_too_late_says_so(store: Path) -> None:
    """It was put down as if it kept the erasure from being completed."""
    vault = Vault.beside(store)
    vault.subject_key("default", "ana")
    begun = begin_erasure(vault, subject="ana", reason="asked", by=BY)
    for _ in range(2):
        with pytest.raises(InputError) as caught:
            vault.hold(subject="ana", reason="case 17", by=BY)
        assert (code_of(caught), caught.value.facts["erasure"]) == ("ERASURE_BEGUN", begun.id)
        begun = vault.destroy_keys(begun)
    vault.end_erasure(begun)
    vault.hold(subject="ana", reason="case 17", by=BY)  # of what may come


def test_two_processes_agree_on_a_subjects_key(store: Path) -> None:
    code = (
        "import sys; from nano_vm.vault.local import Vault; v = Vault.beside(sys.argv[1]);"
        "print(*[v.subject_key('default', n) for n in range(20)])"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(store)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    first, second = (process.communicate(timeout=60)[0].split() for process in running)
    assert first == second
    assert len(set(first)) == 20


def test_errors_of_the_vault_survive_pickling_and_quote_no_value() -> None:
    vault = Vault.in_memory()
    with pytest.raises(NotFoundError) as missing:
        vault.open_secret("card", tenant="default", tool="x")
    assert pickle.loads(pickle.dumps(missing.value)).code == "SECRET_NOT_FOUND"


def test_without_the_extra_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(NanoVMError) as missing:
        cipher.seal(b"k" * 32, b"x", b"")
    assert code_of(missing) == "EXTRA_MISSING"
    assert "nano-vm[vault]" in (missing.value.help or "")


def test_a_vault_goes_on_over_a_rotation_of_the_key_encryption_key(store: Path) -> None:
    vault = Vault.beside(store)
    vault.put("card", CARD)
    with_key_alone = Vault(vault._cabinet, key_from_file(store.parent / "runs.db.key"))
    with_key_alone.secrets()
    first = with_key_alone.subject_key("default", "ana")
    rotate(store)
    key = vault.subject_key("default", "bob")  # nothing of it under the key that has just been destroyed
    sealed = vault.seal(key, b"bob's")
    assert vault.open_secret("card", tenant="default", tool="x") == CARD
    rotate(store)
    rotate(store)
    assert vault.seal(first, b"ana's") is not None
    after = Vault.beside(store)
    assert sealed is not None
    assert after.unseal(key, sealed) == b"bob's"
    with pytest.raises(VaultError) as wrong:
        with_key_alone.subject_key("default", "eve")
    assert code_of(wrong) == "VAULT_KEY_WRONG"


def rotate(store: Path) -> None:
    path = store.parent / "runs.db.key"
    new = make_key_file(f"{path}.new")
    assert Vault.beside(store).rotate_kek(new) > 0
    replace_key_file(path, f"{path}.new")


def test_a_vault_opens_and_takes_new_keys_while_a_rotation_is_cut(store: Path) -> None:
    vault = Vault.beside(store)
    keys = [vault.subject_key("default", f"s{n}") for n in range(3)]
    sealed = [vault.seal(key, b"value") or b"" for key in keys]
    new = make_key_file(store.parent / "runs.db.key.new")
    index = Keys(DirectoryCabinet(store.parent / "runs.db.keys"), [key_from_file(f"{store}.key"), new])
    kept = index._cabinet.names

    def only_the_first(drawer: str) -> list[str]:
        return kept(drawer)[:2]

    index._cabinet.names = only_the_first  # type: ignore[method-assign]
    assert index.rewrap(new) == 2
    for one in (vault, Vault.beside(store)):
        key = one.subject_key("default", f"late {id(one)}")
        assert one.keys.stored(key).kek == new.id  # type: ignore[union-attr]
    assert [Vault.beside(store).unseal(key, value) for key, value in zip(keys, sealed, strict=True)] == [
        b"value"
    ] * 3


def test_a_key_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "runs.db.key"

    def dies(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", dies)
    with pytest.raises(KeyboardInterrupt):
        make_key_file(path)
    monkeypatch.undo()
    assert not path.exists()
    key = make_key_file(path)
    assert key_from_file(path).id == key.id
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    with pytest.raises(VaultError) as there:
        make_key_file(path)
    assert code_of(there) == "VAULT_KEY_EXISTS"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_what_a_dying_process_had_overwritten_is_destroyed(store: Path) -> None:
    vault = Vault.beside(store)
    vault.put("card", CARD)
    key = vault.subject_key("default", "ana")
    begun = begin_erasure(vault, subject="ana", reason="asked", by=BY)
    directory = store.parent / "runs.db.keys"
    for file in (directory / "keys" / key, directory / "secrets" / vault._cabinet.names("secrets")[0]):
        file.write_bytes(bytes(file.stat().st_size))
    after = Vault.beside(store)
    assert after.unseal(key, b"anything", erasing=True) is None
    assert after.secrets() == []
    assert after.rotate_kek(LocalKey(os.urandom(32))) == 2
    assert after.end_erasure(after.destroy_keys(begun)).stage == DONE
    assert not (directory / "keys" / key).exists()


def test_what_is_being_overwritten_is_read_when_it_is_done(store: Path) -> None:
    vault, other = Vault.beside(store), Vault.beside(store)
    key = vault.subject_key("default", "ana")
    place = store.parent / "runs.db.keys" / "keys" / key
    whole = place.read_bytes()
    place.write_bytes(bytes(len(whole)))
    cabinet = other._cabinet
    locked = cabinet.lock

    @contextlib.contextmanager
    def done_by_then() -> Iterator[None]:
        with locked():
            place.write_bytes(whole)
            yield

    cabinet.lock = done_by_then  # type: ignore[method-assign]
    assert other.seal(key, b"v") is not None


def test_a_secret_that_is_put_under_another_key_meanwhile_opens(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault, other = Vault.beside(store), Vault.beside(store)
    vault.put("card", CARD)
    required = Vault._require

    def slowly(self: Vault, secret_id: str, tenant: str) -> SecretFile:
        found = required(self, secret_id, tenant)
        if self is vault:
            monkeypatch.undo()
            other.rotate("card")
        return found

    monkeypatch.setattr(Vault, "_require", slowly)
    assert vault.open_secret("card", tenant="default", tool="x") == CARD
