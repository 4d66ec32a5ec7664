"""The lock of a run's owner can be taken while others let go of theirs, and with them of the directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nano_vm import StoreError
from nano_vm.stores.owners import OwnerLock


@pytest.mark.parametrize("removed", ["before it is looked at", "before the file is made"])
def test_a_directory_that_goes_in_the_meantime_is_made_again(
    removed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "owners"
    directory.mkdir()
    make = Path.mkdir
    times = []

    def interrupted(path: Path, *args: Any, **options: Any) -> None:
        times.append(path)
        if len(times) == 1:
            if removed == "before it is looked at":
                directory.rmdir()
                raise FileExistsError(17, "File exists")  # as `mkdir` says when it was there and is gone now
            make(path, *args, **options)
            directory.rmdir()
            return
        make(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", interrupted)
    lock = OwnerLock(directory)
    lock.hold()
    assert lock.is_held
    assert (directory / lock.name).exists()
    lock.let_go(remove=True)
    assert not directory.exists()


def test_a_file_in_the_place_of_the_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "owners").write_text("mine")
    with pytest.raises(StoreError) as caught:
        OwnerLock(tmp_path / "owners").hold()
    assert caught.value.code == "STORE_IO"
