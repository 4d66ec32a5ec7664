"""A key file is there whole or not at all, and its name survives as its contents do."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from nano_vm.errors import RuntimeFault, VaultError
from nano_vm.evidence.keys import KeyFiles
from nano_vm.vault.kek import key_from_file, make_key_file


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A disk that is full from the nth file on; -1 for never."""
    left = [-1]
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= 1
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return left


@pytest.mark.parametrize("files_that_fit", [0, 3])
def test_a_full_disk_leaves_no_half_key_and_the_name_free(
    tmp_path: Path, full: list[int], files_that_fit: int
) -> None:
    files = KeyFiles(tmp_path / "keys")
    full[0] = files_that_fit
    with pytest.raises(RuntimeFault) as caught:
        files.generate("issuer")
    assert caught.value.code == "KEY_FILE"
    assert list(files.directory.iterdir()) == []
    full[0] = -1
    assert files.generate("issuer").public == files.public("issuer")


def test_a_full_disk_leaves_no_draft_of_a_key_encryption_key(tmp_path: Path, full: list[int]) -> None:
    full[0] = 0
    with pytest.raises(VaultError) as caught:
        make_key_file(tmp_path / "runs.db.key")
    assert caught.value.code == "VAULT_IO"
    assert list(tmp_path.iterdir()) == []
    full[0] = -1
    assert make_key_file(tmp_path / "runs.db.key").id == key_from_file(tmp_path / "runs.db.key").id


def test_the_directory_is_synced_after_a_key_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = KeyFiles(tmp_path / "keys")
    done: list[Any] = []
    sync, link = os.fsync, os.link

    def fsync(descriptor: int) -> None:
        done.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    def named(source: Any, target: Any) -> None:
        done.append(Path(target).name)
        link(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", named)
    files.generate("issuer")
    for name in ("issuer.key", "issuer.pub"):
        after = done[done.index(name) :]
        assert str(files.directory) in after
        assert str(files.directory.parent) in after


def test_a_key_that_lost_its_public_half_to_a_crash_still_signs_and_verifies(tmp_path: Path) -> None:
    files = KeyFiles(tmp_path / "keys")
    public = files.generate("issuer").public
    (files.directory / "issuer.pub").unlink()
    assert files.public("issuer") == public
    assert files.all_public() == [public]
