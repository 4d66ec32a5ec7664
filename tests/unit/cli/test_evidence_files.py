"""What is written for others is whole or not there, and takes the place of nothing but a file."""

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nano_vm.cli.evidence_files import write_file
from nano_vm.cli.outputs import write_whole
from nano_vm.errors import RuntimeFault


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.bundle"
    path.write_bytes(b"before, and longer")
    write_file(str(path), [b"new", b"er"])
    assert path.read_bytes() == b"newer"
    assert os.listdir(tmp_path) == ["run.bundle"]


def test_a_link_stays_and_its_file_is_written(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link, file = tmp_path / "run.bundle", tmp_path / "there" / "kept"
    link.symlink_to(file)
    for content in (b"one", b"two"):  # first it leads to nothing
        write_file(str(link), [content])
        assert link.is_symlink()
        assert file.read_bytes() == content


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()))
    reader.start()
    write_file(str(path), [b"a", b"b"])
    reader.join()
    assert read == [b"ab"]
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFault) as caught:
        write_file(str(tmp_path), [b"x"])
    assert caught.value.code == "BUNDLE_FILE"
    assert os.listdir(tmp_path) == []


def test_what_fails_in_the_middle_leaves_what_was_there(tmp_path: Path) -> None:
    def parts() -> Iterator[bytes]:
        yield b"half"
        raise KeyboardInterrupt

    path = tmp_path / "run.bundle"
    path.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt):
        write_whole(str(path), parts())
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["run.bundle"]


def test_a_file_of_somebodys_own_beside_it_is_left_alone(tmp_path: Path) -> None:
    beside = tmp_path / "run.bundle.partial"
    beside.write_bytes(b"mine")
    write_file(str(tmp_path / "run.bundle"), [b"new"])
    assert beside.read_bytes() == b"mine"


def test_a_name_may_be_as_long_as_names_can_be(tmp_path: Path) -> None:
    name = "b" * 255
    write_file(str(tmp_path / name), [b"x"])
    assert os.listdir(tmp_path) == [name]


@pytest.mark.skipif(os.name != "posix", reason="needs permissions")
def test_a_file_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "run.bundle"
    path.write_bytes(b"before")
    path.chmod(0o600)
    write_file(str(path), [b"new"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_no_name_names_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeFault) as caught:
        write_file("", [b"x"])
    assert caught.value.code == "BUNDLE_FILE"
