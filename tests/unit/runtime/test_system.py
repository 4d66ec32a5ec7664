"""No salt is given away twice, whoever draws."""

import os
import threading

import pytest

from nano_vm.runtime.system import SystemEntropy


def test_threads_that_draw_at_once_share_no_salt() -> None:
    entropy = SystemEntropy()
    drawn: list[list[bytes]] = [[] for _ in range(4)]

    def draw(mine: list[bytes]) -> None:
        for number in range(400):
            mine.extend(entropy.salts(number % 9))
            mine.append(entropy.salt())

    threads = [threading.Thread(target=draw, args=(mine,)) for mine in drawn]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    salts = [salt for mine in drawn for salt in mine]
    assert len(salts) == 4 * sum(number % 9 + 1 for number in range(400))
    assert len(set(salts)) == len(salts)
    assert {len(salt) for salt in salts} == {16}


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 64, 255, 256, 257, 1_000])
def test_as_many_salts_as_are_asked_for(count: int) -> None:
    entropy = SystemEntropy()
    salts = [*entropy.salts(count), entropy.salt(), *entropy.salts(count)]
    assert len(set(salts)) == len(salts) == 2 * count + 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_draws_its_own() -> None:
    entropy = SystemEntropy()
    entropy.salts(5)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, b"".join(entropy.salts(8)))
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        theirs = pipe.read()
    os.waitpid(child, 0)
    ours = entropy.salts(8)
    assert len(theirs) == 16 * 8
    assert not {theirs[at : at + 16] for at in range(0, len(theirs), 16)} & set(ours)
