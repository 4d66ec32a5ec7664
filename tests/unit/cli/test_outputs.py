"""Files that commands write are there whole, under a name that lasts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nano_vm.cli.outputs import write_whole


def test_the_directory_is_synced_once_the_file_is_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bytes] = []
    sync = os.fsync

    def watched(descriptor: int) -> None:
        if os.path.samestat(os.fstat(descriptor), os.stat(tmp_path)):
            synced.append((tmp_path / "out").read_bytes())
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    (tmp_path / "out").write_bytes(b"old")
    write_whole(str(tmp_path / "out"), [b"new"])
    assert synced == [b"new"]
