"""P7 while runs begin, are driven and are forked: whenever an erasure comes, every journal verifies afterwards, every
run can be ended, and nothing of the subject is left."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from begun_erasures import begin_erasure
from nano_vm import Completion, ExecutionVM, NanoVMError, SqliteStore, ToolCall, ToolError, Vault, tool
from nano_vm.errors import NotFoundError, VaultError
from nano_vm.journal.port import RunQuery
from nano_vm.runtime import erasure
from nano_vm.vault.kek import make_key_file
from unit.runtime.runtime_stage import play, refused, tool_step, wait_step

NAME = "Ada Lovelace of St James"
INPUTS = {"type": "object", "properties": {"who": {"type": "string", "private": True}}, "required": ["who"]}
FLOW: dict[str, Any] = {
    "name": "p",
    "subject": "$who",
    "inputs": INPUTS,
    "steps": [
        tool_step("a", "echo", args={"x": "$who"}),
        wait_step("w"),
        tool_step("b", "echo", args={"x": "$who"}),
    ],
}
TIRELESS = {**FLOW, "steps": [tool_step("a", "echo", args={"x": "$who"}, on_error="retry", max_retries=100)]}
TALKING = {
    **FLOW,
    "steps": [{"id": "a", "type": "agent", "prompt": "For $who", "tools": ["echo"], "max_turns": 1_000}],
}
CALLING: dict[str, Any] = {
    "name": "calling",
    "subject": "$who",
    "inputs": INPUTS,
    "steps": [{"id": "c", "type": "call", "program": "p", "inputs": {"who": "$who"}}],
}


@contextlib.asynccontextmanager
async def _engines(path: Path, count: int = 1) -> AsyncIterator[list[ExecutionVM]]:
    """Engines on one new store, as in as many processes. What happens inside leaves everything erased and ended."""

    async def echo(x: str) -> str:
        await asyncio.sleep(0)
        return x

    path.mkdir(exist_ok=True)
    make_key_file(path / "runs.db.key")
    vms = []
    for _ in range(count):
        store = SqliteStore(path / "runs.db", durability="normal")
        vms.append(ExecutionVM(tools=[echo], store=store, vault=Vault.beside(path / "runs.db")))
    vms[0].save_program(FLOW)
    yield vms
    await _told_everywhere(vms[0])
    for vm in vms:
        await vm.close()
    held = b"".join(file.read_bytes() for file in path.rglob("*") if file.is_file())
    assert NAME.encode() not in held


def _at_every_turn(
    path: Path, attempt: Callable[[Path, int], Coroutine[Any, Any, bool]], first: int = 0
) -> None:
    """Make an attempt for each number of turns of the loop, until one says that nothing is left to be met."""
    turns = first
    while not play(attempt(path / str(turns), turns)):
        turns += 1
    assert turns > 1


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def _erase(vm: ExecutionVM, subject: str = NAME) -> dict[str, Any]:
    return await vm.erase(subject=subject, reason="asked", by="ana")


def _vault(vm: ExecutionVM) -> Vault:
    assert vm.vault is not None
    return vm.vault


def _begin_erasure(vm: ExecutionVM) -> None:
    """And die over it."""
    begin_erasure(_vault(vm), subject=NAME, reason="asked", by={"id": "ana"})


def _erased(vm: ExecutionVM) -> list[tuple[str, list[str]]]:
    """The stage of every erasure, and the runs that were told."""
    return [(one.stage, sorted(one.runs)) for one in _vault(vm).all_erasures()]


@contextlib.contextmanager
def _keys_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def broken(*_: Any, **__: Any) -> Any:
        raise VaultError("VAULT_IO", "the keys cannot be written")

    with monkeypatch.context() as patch:
        patch.setattr(Vault, "destroy_keys", broken)
        yield


@contextlib.contextmanager
def _seeing_only(
    monkeypatch: pytest.MonkeyPatch, vm: ExecutionVM, seen: str, when: Callable[[], bool] = lambda: True
) -> Iterator[None]:
    """As if other runs were not in the store yet, for whoever looks for those of a key."""
    holding = vm.store.holding
    with monkeypatch.context() as patch:
        patch.setattr(
            vm.store, "holding", lambda text: [one for one in holding(text) if one == seen or not when()]
        )
        yield


class _Gate:
    """A tool that says when it has begun, and ends when it is let."""

    def __init__(self, vm: ExecutionVM, name: str = "echo", effect: str | None = None) -> None:
        self._begun, self._open = asyncio.Event(), asyncio.Event()

        async def wait(x: str) -> str:
            self._begun.set()
            await self._open.wait()
            return x

        vm.register_tool(name, wait if effect is None else tool(effect=effect)(wait))

    async def begun(self) -> None:
        await self._begun.wait()

    def open(self) -> None:
        self._open.set()


async def _told_everywhere(vm: ExecutionVM) -> None:
    await vm.recover()
    for record in vm.runs():
        vm.verify(record.run_id)
        if not vm.trace(record.run_id).status.is_terminal:
            await vm.cancel(record.run_id)
    for record in vm.store.records(RunQuery(limit=100)):
        vm.verify(record.run_id)
        trace = vm.trace(record.run_id)
        assert trace.status.is_terminal, (record.run_id, trace.status, trace.waiting)
        assert NAME not in repr([step.output for step in trace.steps])


@pytest.mark.parametrize("apart", [False, True], ids=["here", "elsewhere"])
@pytest.mark.parametrize("what", ["a run", "a run that calls", "a fork"])
def test_at_any_turn_of_the_loop(tmp_path: Path, what: str, apart: bool) -> None:
    async def attempt(path: Path, turns: int) -> bool:
        async with _engines(path, 2) as (vm, other):
            if what == "a fork":
                await vm.run(FLOW, {"who": NAME}, trace_id="source")
                driving = asyncio.create_task(vm.fork("source", "w", new_trace_id="fork"))
            else:
                flow = FLOW if what == "a run" else CALLING
                driving = asyncio.create_task(vm.run(flow, {"who": NAME}, trace_id="r"))
            await _turns(turns)
            over = driving.done()
            with contextlib.suppress(NotFoundError):  # the subject may not be known yet
                await _erase(other if apart else vm)
            (ended,) = await asyncio.gather(driving, return_exceptions=True)
            if isinstance(ended, BaseException):
                assert isinstance(ended, NanoVMError), ended
                assert ended.code == "ERASED", ended
            with contextlib.suppress(NotFoundError):  # or nothing may have come since
                await _erase(vm)
            return over

    _at_every_turn(tmp_path, attempt)


def test_a_fork_whose_values_are_erased_while_it_is_made_does_not_begin(tmp_path: Path) -> None:
    async def main() -> None:
        async with _engines(tmp_path) as (vm,):
            await vm.run(FLOW, {"who": NAME}, trace_id="source")
            govern = vm.govern

            async def late(run: Any, pinned: Any) -> None:  # its history has been read by then
                vm.govern = govern  # type: ignore[method-assign]
                await _erase(vm)
                await govern(run, pinned)

            vm.govern = late  # type: ignore[method-assign]
            with refused("ERASED"):
                await vm.fork("source", "w", new_trace_id="fork")
            assert [record.run_id for record in vm.runs()] == ["source"]

    play(main())


def test_a_run_that_is_erased_while_it_is_driven_is_told_when_it_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It began after the erasure had looked for what it has to cancel."""

    async def nothing_yet(*_: Any) -> None:
        return None

    async def main() -> None:
        async with _engines(tmp_path, 2) as (vm, other):

            async def echo(x: str) -> str:
                with monkeypatch.context() as patch:
                    patch.setattr(erasure, "_stop_runs", nothing_yet)
                    await _erase(other)
                return x

            vm.register_tool("echo", echo)
            trace = await vm.run(FLOW, {"who": NAME}, trace_id="r")
            assert [wait.kind for wait in trace.waiting] == ["event"]
            assert vm.read("r")[-1].facts.endswith(b'"type":"Erased"}')

    play(main())


class _Talkative:
    """A model that has always something to propose."""

    async def complete(self, messages: list[dict[str, Any]], **_: Any) -> Completion:
        await asyncio.sleep(0)
        return Completion(tool_calls=(ToolCall("c", "echo", json.dumps({"x": str(len(messages))})),))


@pytest.mark.parametrize("flow", [TIRELESS, TALKING], ids=["a tool", "an agent"])
@pytest.mark.parametrize("turns", range(4))
def test_a_run_that_began_while_the_others_were_stopped_is_stopped_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flow: dict[str, Any], turns: int
) -> None:
    """However long it would have gone on by itself; and what it did meanwhile can be folded without the values."""
    stop, begun = erasure._stop_runs, asyncio.Event()

    async def main() -> None:
        async with _engines(tmp_path) as (vm,):
            await vm.run(FLOW, {"who": NAME}, trace_id="before")  # so that the subject has a key

            async def echo(x: str) -> str:
                begun.set()
                raise ToolError("not yet", retryable=True)

            vm.register_tool("echo", echo)
            vm.llm = vm.calls.llm = _Talkative()
            driving: list[asyncio.Task[Any]] = []

            async def stop_and_begin(*args: Any) -> None:
                if driving:
                    await _turns(4 * turns)  # it goes on after its key has become nobody's
                await stop(*args)
                if not driving:
                    driving.append(asyncio.create_task(vm.run(flow, {"who": NAME}, trace_id="r")))
                    await begun.wait()

            monkeypatch.setattr(erasure, "_stop_runs", stop_and_begin)
            receipt = await _erase(vm)
            trace = await driving[0]
            assert (trace.status, receipt["stage"]) == ("CANCELLED", "done")
            assert sorted(receipt["runs"]) == ["before", "r"]
            assert vm.read("r")[-1].facts.endswith(b'"type":"Erased"}')

    play(main())


@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
def test_an_erasure_that_is_given_up_at_any_turn_of_the_loop_is_completed_by_recovery(
    tmp_path: Path, again: bool
) -> None:
    async def attempt(path: Path, turns: int) -> bool:
        async with _engines(path) as (vm,):
            for name in ("waits", "over"):
                await vm.run(FLOW, {"who": NAME}, trace_id=name)
            await vm.resume("over", {})
            await vm.recover()  # it has looked for what is left of erasures
            erasing = asyncio.create_task(_erase(vm))
            await _turns(turns)
            over = erasing.done()
            erasing.cancel()
            if again:
                await asyncio.sleep(0)
                erasing.cancel()
            await asyncio.gather(erasing, return_exceptions=True)
            await vm.recover()
            assert _erased(vm) in ([], [("done", ["over", "waits"])])
            if not _erased(vm):
                await _erase(vm)
            return over

    _at_every_turn(tmp_path, attempt)


def test_an_erasure_that_cannot_be_completed_keeps_no_run_from_being_driven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with _engines(tmp_path) as (vm,):
            await vm.run(FLOW, {"who": NAME}, trace_id="erased")
            await vm.start(
                {"name": "plain", "steps": [tool_step("a", "echo", args={"x": "y"})]}, trace_id="r"
            )
            _begin_erasure(vm)
            with _keys_that_cannot_be_written(monkeypatch), refused("VAULT_IO"):
                await vm.recover()
            assert vm.trace("r").status == "SUCCESS"
            await vm.recover()
            assert _erased(vm) == [("done", ["erased"])]

    play(main())


def test_whoever_looks_for_runs_every_so_often_does_not_wait_for_an_erasure_that_waits_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with _engines(tmp_path) as (vm,):
            gate = _Gate(vm)
            driving = asyncio.create_task(vm.run(FLOW, {"who": NAME}, trace_id="r"))
            await gate.begun()
            _begin_erasure(vm)
            monkeypatch.setattr(erasure, "SOON_S", 0)
            for _ in range(3):
                assert not await vm.complete_erasures(soon=True)
            assert (vm.erasing, driving.done()) == (1, False)  # it goes on, once
            with _keys_that_cannot_be_written(monkeypatch):
                gate.open()
                await driving
                with refused("VAULT_IO"):  # told whenever it is asked for next
                    while not await vm.complete_erasures(soon=True):
                        pass
            while not await vm.complete_erasures(soon=True):
                pass
            assert _erased(vm) == [("done", ["r"])]

    play(main())


@pytest.mark.parametrize("apart", [False, True], ids=["here", "elsewhere"])
@pytest.mark.parametrize("first", ["what it begins with", "a result"])
def test_a_run_whose_first_private_value_is_not_written_yet_is_stopped_and_can_be_folded(
    tmp_path: Path, first: str, apart: bool
) -> None:
    """What steps without effects come to is written with what follows: meanwhile nobody else sees that it is there."""

    @tool(effect="pure")
    async def words(x: str) -> list[str]:
        return x.split()

    each = tool_step("one", "echo", args={"x": "$item"})
    steps = [
        tool_step("a", "words", args={"x": "$who"}, private=True),
        tool_step("b", "look", args={"x": "1"}),
        {"id": "m", "type": "map", "over": "$a.output", "max_items": 9, "step": each},
        wait_step("w"),
    ]
    flow = {**FLOW, "steps": steps}
    who, options = NAME, {}
    if first == "a result":
        flow["inputs"] = {"type": "object", "properties": {"who": {"type": "string"}}}
        steps.insert(0, tool_step("y", "echo", args={"x": "1"}))
        who, options = "the customer of number 17", {"trace_id": "r"}

    async def main() -> None:
        async with _engines(tmp_path, 2) as (vm, other):
            vm.register_tool("words", words)
            gate = _Gate(vm, "look", "pure")
            driving = asyncio.create_task(vm.run(flow, {"who": who}, **options))
            await gate.begun()
            assert vm.store.holding(b'"key"') == []
            erasing = asyncio.create_task(_erase(other if apart else vm, who))
            await _turns(50 if apart else 1)
            assert erasing.done() is apart
            gate.open()
            trace, receipt = await asyncio.gather(driving, erasing)
            assert (trace.status, receipt["stage"]) == ("CANCELLED", "done")
            assert apart or receipt["runs"] == [trace.trace_id]
            await vm.recover()
            assert _erased(vm) == [("done", [trace.trace_id])]

    play(main())


@tool(effect="idempotent")
async def slow() -> None:
    await _turns(40)


UNDONE = tool_step("z", "echo", args={"x": "1"}, compensate={"tool": "undo", "args": {}})


@pytest.mark.parametrize("turns", range(12))
def test_erasures_of_one_subject_that_come_together_leave_one_that_can_be_folded(
    tmp_path: Path, turns: int
) -> None:
    """Whoever comes second finds the runs ending already, and the keys perhaps gone."""

    async def main() -> None:
        async with _engines(tmp_path) as (vm,):
            vm.llm = vm.calls.llm = _Talkative()
            vm.register_tool("undo", slow)
            await vm.run(FLOW, {"who": NAME}, trace_id="before")
            flow = {**TALKING, "steps": [UNDONE, *TALKING["steps"]]}
            driving = asyncio.create_task(vm.run(flow, {"who": NAME}, trace_id="r"))
            await _turns(60)
            erasing = []
            for _ in range(3):
                erasing.append(asyncio.create_task(_erase(vm)))
                await _turns(turns)
            for ended in await asyncio.gather(*erasing, return_exceptions=True):
                assert isinstance(ended, dict) or ended.code == "SUBJECT_NOT_FOUND", ended  # it has happened
            await driving
            await vm.recover()
            assert _erased(vm) == [("done", ["before", "r"])]

    play(main())


@pytest.mark.parametrize("named", [True, False], ids=["named", "unnamed"])
def test_a_run_that_is_written_while_nobody_sees_it_yet_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    """The erasure of its subject has looked through the store in the meantime."""

    async def attempt(path: Path, turns: int) -> bool:
        async with _engines(path, 2) as (vm, other):
            vm.llm = vm.calls.llm = _Talkative()
            await vm.run(FLOW, {"who": NAME}, trace_id="before")
            await vm.cancel("before")  # so that nothing has to be stopped first
            names = {"trace_id": "r"} if named else {}
            driving = asyncio.create_task(vm.run(TALKING, {"who": NAME}, **names))
            await _turns(turns)
            # Another process does not see what is being written here.
            begin, hides = _vault(other).begin_announced, False

            def begun(erasure: Any) -> Any:
                nonlocal hides
                hides = len(other.runs()) == 1
                return begin(erasure)

            with monkeypatch.context() as patch, _seeing_only(monkeypatch, other, "before", lambda: hides):
                patch.setattr(_vault(other), "begin_announced", begun)
                await _erase(other)
            (ended,) = await asyncio.gather(driving, return_exceptions=True)
            assert ended.code == "ERASED" if isinstance(ended, BaseException) else ended.status == "CANCELLED"
            return not hides

    _at_every_turn(tmp_path, attempt, 1)  # one that has not begun at all has another key


def test_whoever_looks_for_runs_to_tell_while_one_is_driven_looks_there_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How far somebody has looked is kept beside the keys, for all processes."""

    async def main() -> None:
        async with _engines(tmp_path, 2) as (vm, other):
            await vm.run(FLOW, {"who": NAME}, trace_id="before")
            await vm.cancel("before")
            gate = _Gate(vm)
            # What it journals from here on does not name the key.
            flow = {**FLOW, "steps": [tool_step("a", "echo", args={"x": "1"})]}
            driving = asyncio.create_task(vm.run(flow, {"who": NAME}, trace_id="r"))
            await gate.begun()
            with _seeing_only(monkeypatch, other, "before"):
                await _erase(other)
                assert _erased(other) == [("done", ["before"])]
            await other.recover()
            gate.open()
            await driving
            assert b'"type":"Erased"' in vm.read("r")[-1].facts
            assert _erased(vm) == [("done", ["before", "r"])]

    play(main())


def test_a_run_that_came_to_wait_while_the_others_were_stopped_is_stopped_as_well(tmp_path: Path) -> None:
    """Later nobody could: a run that waits is cancelled by whoever can read it."""

    async def main() -> None:
        async with _engines(tmp_path) as (vm,):

            @tool(effect="idempotent")
            async def undo() -> None:
                await vm.run(FLOW, {"who": NAME}, trace_id="late")

            vm.register_tool("undo", undo)
            await vm.run({**FLOW, "steps": [UNDONE, wait_step("w")]}, {"who": NAME}, trace_id="r")
            receipt = await _erase(vm)
            assert (receipt["stage"], sorted(receipt["runs"])) == ("done", ["late", "r"])
            assert [vm.trace(name).status for name in ("r", "late")] == ["CANCELLED", "CANCELLED"]

    play(main())
