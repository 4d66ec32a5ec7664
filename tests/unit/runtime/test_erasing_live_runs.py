"""P7 while runs begin, are driven and are forked: whenever an erasure comes, every journal verifies afterwards, every
run can be ended, and nothing of the subject is left."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

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


def _engine(path: Path) -> ExecutionVM:
    async def echo(x: str) -> str:
        await asyncio.sleep(0)
        return x

    vm = ExecutionVM(
        tools=[echo],
        store=SqliteStore(path / "runs.db", durability="normal"),
        vault=Vault.beside(path / "runs.db"),
    )
    vm.save_program(FLOW)
    return vm


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
    async def main(turns: int) -> bool:
        path = tmp_path / str(turns)
        path.mkdir()
        make_key_file(path / "runs.db.key")
        vm = _engine(path)
        other = _engine(path) if apart else vm
        if what == "a fork":
            await vm.run(FLOW, {"who": NAME}, trace_id="source")
            driving = asyncio.create_task(vm.fork("source", "w", new_trace_id="fork"))
        else:
            driving = asyncio.create_task(
                vm.run(FLOW if what == "a run" else CALLING, {"who": NAME}, trace_id="r")
            )
        for _ in range(turns):
            await asyncio.sleep(0)
        over = driving.done()
        with contextlib.suppress(NotFoundError):  # the subject may not be known yet
            await other.erase(subject=NAME, reason="asked", by="ana")
        ended = await asyncio.gather(driving, return_exceptions=True)
        if isinstance(ended[0], BaseException):
            assert isinstance(ended[0], NanoVMError), ended
            assert ended[0].code == "ERASED", ended
        with contextlib.suppress(NotFoundError):  # or nothing may have come since
            await vm.erase(subject=NAME, reason="asked", by="ana")
        await _told_everywhere(vm)
        await vm.close()
        await other.close()
        held = b"".join(file.read_bytes() for file in path.rglob("*") if file.is_file())
        assert NAME.encode() not in held
        return over

    turns = 0
    while not play(main(turns)):
        turns += 1
    assert turns > 1


def test_a_fork_whose_values_are_erased_while_it_is_made_does_not_begin(tmp_path: Path) -> None:
    async def main() -> None:
        make_key_file(tmp_path / "runs.db.key")
        vm = _engine(tmp_path)
        await vm.run(FLOW, {"who": NAME}, trace_id="source")
        govern = vm.govern

        async def late(run: Any, pinned: Any) -> None:  # its history has been read by then
            vm.govern = govern  # type: ignore[method-assign]
            await vm.erase(subject=NAME, reason="asked", by="ana")
            await govern(run, pinned)

        vm.govern = late  # type: ignore[method-assign]
        with refused("ERASED"):
            await vm.fork("source", "w", new_trace_id="fork")
        assert [record.run_id for record in vm.runs()] == ["source"]
        vm.verify("source")
        await vm.close()

    play(main())


def test_a_run_that_is_erased_while_it_is_driven_is_told_when_it_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It began after the erasure had looked for what it has to cancel."""

    async def nothing_yet(*_: Any) -> None:
        return None

    async def main() -> None:
        make_key_file(tmp_path / "runs.db.key")
        vm, other = _engine(tmp_path), _engine(tmp_path)

        async def echo(x: str) -> str:
            with monkeypatch.context() as patch:
                patch.setattr(erasure, "_stop_runs", nothing_yet)
                await other.erase(subject=NAME, reason="asked", by="ana")
            return x

        vm.register_tool("echo", echo)
        trace = await vm.run(FLOW, {"who": NAME}, trace_id="r")
        assert [wait.kind for wait in trace.waiting] == ["event"]
        assert vm.read("r")[-1].facts.endswith(b'"type":"Erased"}')
        vm.verify("r")
        await vm.close()
        await other.close()

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
        make_key_file(tmp_path / "runs.db.key")
        vm = _engine(tmp_path)
        await vm.run(FLOW, {"who": NAME}, trace_id="before")  # so that the subject has a key

        async def echo(x: str) -> str:
            begun.set()
            raise ToolError("not yet", retryable=True)

        vm.register_tool("echo", echo)
        vm.llm = vm.calls.llm = _Talkative()
        driving: list[asyncio.Task[Any]] = []

        async def stop_and_begin(*args: Any) -> None:
            if driving:
                for _ in range(4 * turns):  # it goes on after its key has become nobody's
                    await asyncio.sleep(0)
            await stop(*args)
            if not driving:
                driving.append(asyncio.create_task(vm.run(flow, {"who": NAME}, trace_id="r")))
                await begun.wait()

        monkeypatch.setattr(erasure, "_stop_runs", stop_and_begin)
        receipt = await vm.erase(subject=NAME, reason="asked", by="ana")
        trace = await driving[0]
        assert (trace.status, receipt["stage"]) == ("CANCELLED", "done")
        assert sorted(receipt["runs"]) == ["before", "r"]
        assert vm.read("r")[-1].facts.endswith(b'"type":"Erased"}')
        vm.verify("r")
        await vm.close()

    play(main())


@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
def test_an_erasure_that_is_given_up_at_any_turn_of_the_loop_is_completed_by_recovery(
    tmp_path: Path, again: bool
) -> None:
    async def main(turns: int) -> bool:
        path = tmp_path / str(turns)
        path.mkdir()
        make_key_file(path / "runs.db.key")
        vm = _engine(path)
        for name in ("waits", "over"):
            await vm.run(FLOW, {"who": NAME}, trace_id=name)
        await vm.resume("over", {})
        await vm.recover()  # it has looked for what is left of erasures
        erasing = asyncio.create_task(vm.erase(subject=NAME, reason="asked", by="ana"))
        for _ in range(turns):
            await asyncio.sleep(0)
        over = erasing.done()
        erasing.cancel()
        if again:
            await asyncio.sleep(0)
            erasing.cancel()
        await asyncio.gather(erasing, return_exceptions=True)
        await vm.recover()
        assert vm.vault is not None
        begun = vm.vault.all_erasures()
        assert [(one.stage, sorted(one.runs)) for one in begun] in ([], [("done", ["over", "waits"])])
        if not begun:
            await vm.erase(subject=NAME, reason="asked", by="ana")
        await _told_everywhere(vm)
        await vm.close()
        return over

    turns = 0
    while not play(main(turns)):
        turns += 1
    assert turns > 1


def test_an_erasure_that_cannot_be_completed_keeps_no_run_from_being_driven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        make_key_file(tmp_path / "runs.db.key")
        vm = _engine(tmp_path)
        await vm.run(FLOW, {"who": NAME}, trace_id="erased")
        await vm.start({"name": "plain", "steps": [tool_step("a", "echo", args={"x": "y"})]}, trace_id="r")
        assert vm.vault is not None
        vm.vault.begin_erasure(subject=NAME, reason="asked", by={"id": "ana"})

        def broken(*_: Any, **__: Any) -> Any:
            raise VaultError("VAULT_IO", "the keys cannot be written")

        with monkeypatch.context() as patch:
            patch.setattr(Vault, "destroy_keys", broken)
            with refused("VAULT_IO"):
                await vm.recover()
        assert vm.trace("r").status == "SUCCESS"
        await vm.recover()
        assert [one.stage for one in vm.vault.all_erasures()] == ["done"]
        await _told_everywhere(vm)
        await vm.close()

    play(main())


def test_whoever_looks_for_runs_every_so_often_does_not_wait_for_an_erasure_that_waits_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        make_key_file(tmp_path / "runs.db.key")
        vm = _engine(tmp_path)
        begun, gate = asyncio.Event(), asyncio.Event()

        async def echo(x: str) -> str:
            begun.set()
            await gate.wait()
            return x

        vm.register_tool("echo", echo)
        driving = asyncio.create_task(vm.run(FLOW, {"who": NAME}, trace_id="r"))
        await begun.wait()
        assert vm.vault is not None
        vm.vault.begin_erasure(subject=NAME, reason="asked", by={"id": "ana"})
        monkeypatch.setattr(erasure, "SOON_S", 0)
        for _ in range(3):
            assert not await vm.complete_erasures(soon=True)
        assert (vm.erasing, driving.done()) == (1, False)  # it goes on, once

        def broken(*_: Any, **__: Any) -> Any:
            raise VaultError("VAULT_IO", "the keys cannot be written")

        with monkeypatch.context() as patch:
            patch.setattr(Vault, "destroy_keys", broken)
            gate.set()
            await driving
            with refused("VAULT_IO"):  # told whenever it is asked for next
                while not await vm.complete_erasures(soon=True):
                    pass
        while not await vm.complete_erasures(soon=True):
            pass
        assert [one.stage for one in vm.vault.all_erasures()] == ["done"]
        await _told_everywhere(vm)
        await vm.close()

    play(main())


@pytest.mark.parametrize("apart", [False, True], ids=["here", "elsewhere"])
@pytest.mark.parametrize("first", ["what it begins with", "a result"])
def test_a_run_whose_first_private_value_is_not_written_yet_is_stopped_and_can_be_folded(
    tmp_path: Path, first: str, apart: bool
) -> None:
    """What steps without effects come to is written with what follows: meanwhile nobody else sees that it is there."""

    async def main() -> None:
        make_key_file(tmp_path / "runs.db.key")
        vm = _engine(tmp_path)
        other = _engine(tmp_path) if apart else vm
        begun, gate = asyncio.Event(), asyncio.Event()

        @tool(effect="pure")
        async def words(x: str) -> list[str]:
            return x.split()

        @tool(effect="pure")
        async def look(x: str) -> str:
            begun.set()
            await gate.wait()
            return x

        vm.register_tool("words", words)
        vm.register_tool("look", look)
        each = tool_step("one", "echo", args={"x": "$item"})
        steps = [
            tool_step("a", "words", args={"x": "$who"}, private=True),
            tool_step("b", "look", args={"x": "1"}),
            {"id": "m", "type": "map", "over": "$a.output", "max_items": 9, "step": each},
            wait_step("w"),
        ]
        flow = {**FLOW, "steps": steps}
        if first == "a result":
            flow["inputs"] = {"type": "object", "properties": {"who": {"type": "string"}}}
            steps.insert(0, tool_step("y", "echo", args={"x": "1"}))
        driving = asyncio.create_task(
            vm.run(flow, {"who": NAME}, trace_id="r" if first == "a result" else None)
        )
        await begun.wait()
        assert vm.store.holding(b'"key"') == []
        erasing = asyncio.create_task(other.erase(subject=NAME, reason="asked", by="ana"))
        for _ in range(50 if apart else 1):
            await asyncio.sleep(0)
        assert erasing.done() is apart
        gate.set()
        trace = await driving
        receipt = await erasing
        assert receipt["stage"] == "done"
        assert apart or receipt["runs"] == [trace.trace_id]
        assert trace.status == "CANCELLED"
        await _told_everywhere(vm)
        assert vm.vault is not None
        assert [(one.stage, one.runs) for one in vm.vault.all_erasures()] == [("done", [trace.trace_id])]
        await vm.close()
        await other.close()

    play(main())


@pytest.mark.parametrize("turns", range(12))
def test_erasures_of_one_subject_that_come_together_leave_one_that_can_be_folded(
    tmp_path: Path, turns: int
) -> None:
    """Whoever comes second finds the runs ending already, and the keys perhaps gone."""

    async def main() -> None:
        make_key_file(tmp_path / "runs.db.key")
        vm = _engine(tmp_path)
        vm.llm = vm.calls.llm = _Talkative()

        @tool(effect="idempotent")
        async def undo() -> None:
            for _ in range(40):
                await asyncio.sleep(0)

        vm.register_tool("undo", undo)
        await vm.run(FLOW, {"who": NAME}, trace_id="before")
        done = tool_step("z", "echo", args={"x": "1"}, compensate={"tool": "undo", "args": {}})
        flow = {**TALKING, "steps": [done, *TALKING["steps"]]}
        driving = asyncio.create_task(vm.run(flow, {"who": NAME}, trace_id="r"))
        for _ in range(60):
            await asyncio.sleep(0)
        erasing = []
        for _ in range(3):
            erasing.append(asyncio.create_task(vm.erase(subject=NAME, reason="asked", by="ana")))
            for _ in range(turns):
                await asyncio.sleep(0)
        for ended in await asyncio.gather(*erasing, return_exceptions=True):
            assert isinstance(ended, dict) or ended.code == "SUBJECT_NOT_FOUND", ended  # it has happened
        await driving
        await _told_everywhere(vm)
        assert vm.vault is not None
        (one,) = vm.vault.all_erasures()
        assert (one.stage, sorted(one.runs)) == ("done", ["before", "r"])
        await vm.close()

    play(main())


@pytest.mark.parametrize("named", [True, False], ids=["named", "unnamed"])
def test_a_run_that_is_written_while_nobody_sees_it_yet_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    """The erasure of its subject has looked through the store in the meantime."""

    async def main(turns: int) -> bool:
        path = tmp_path / str(turns)
        path.mkdir()
        make_key_file(path / "runs.db.key")
        vm, other = _engine(path), _engine(path)
        vm.llm = vm.calls.llm = _Talkative()
        await vm.run(FLOW, {"who": NAME}, trace_id="before")
        await vm.cancel("before")  # so that nothing has to be stopped first
        names = {"trace_id": "r"} if named else {}
        driving = asyncio.create_task(vm.run(TALKING, {"who": NAME}, **names))
        for _ in range(turns):
            await asyncio.sleep(0)
        # Another process does not see what is being written here.
        vault, hides = other.vault, False
        assert vault is not None
        begin, holding = vault.begin_erasure, other.store.holding

        def begun(**fields: Any) -> Any:
            nonlocal hides
            hides = len(other.runs()) == 1
            return begin(**fields)

        with monkeypatch.context() as patch:
            patch.setattr(vault, "begin_erasure", begun)
            patch.setattr(
                other.store,
                "holding",
                lambda text: [one for one in holding(text) if one == "before" or not hides],
            )
            await other.erase(subject=NAME, reason="asked", by="ana")
        (ended,) = await asyncio.gather(driving, return_exceptions=True)
        assert ended.code == "ERASED" if isinstance(ended, BaseException) else ended.status == "CANCELLED"
        await _told_everywhere(vm)
        await vm.close()
        await other.close()
        return not hides

    turns = 1  # one that has not begun at all has another key
    while not play(main(turns)):
        turns += 1
    assert turns > 1


def test_whoever_looks_for_runs_to_tell_while_one_is_driven_looks_there_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How far somebody has looked is kept beside the keys, for all processes."""

    async def main() -> None:
        make_key_file(tmp_path / "runs.db.key")
        vm, other = _engine(tmp_path), _engine(tmp_path)
        begun, gate = asyncio.Event(), asyncio.Event()
        await vm.run(FLOW, {"who": NAME}, trace_id="before")
        await vm.cancel("before")

        async def echo(x: str) -> str:
            begun.set()
            await gate.wait()
            return x

        vm.register_tool("echo", echo)
        # What it journals from here on does not name the key.
        flow = {**FLOW, "steps": [tool_step("a", "echo", args={"x": "1"})]}
        driving = asyncio.create_task(vm.run(flow, {"who": NAME}, trace_id="r"))
        await begun.wait()
        with monkeypatch.context() as patch:  # as if it had not been in the store yet
            holding = other.store.holding
            patch.setattr(
                other.store, "holding", lambda text: [one for one in holding(text) if one == "before"]
            )
            receipt = await other.erase(subject=NAME, reason="asked", by="ana")
            assert (receipt["stage"], receipt["runs"]) == ("done", ["before"])
        await other.recover()
        gate.set()
        await driving
        assert b'"type":"Erased"' in vm.read("r")[-1].facts
        assert vm.vault is not None
        (one,) = vm.vault.all_erasures()
        assert sorted(one.runs) == ["before", "r"]
        await vm.close()
        await other.close()

    play(main())


def test_a_run_that_came_to_wait_while_the_others_were_stopped_is_stopped_as_well(tmp_path: Path) -> None:
    """Later nobody could: a run that waits is cancelled by whoever can read it."""

    async def main() -> None:
        make_key_file(tmp_path / "runs.db.key")
        vm = _engine(tmp_path)

        @tool(effect="idempotent")
        async def undo() -> None:
            await vm.run(FLOW, {"who": NAME}, trace_id="late")

        vm.register_tool("undo", undo)
        done = tool_step("z", "echo", args={"x": "1"}, compensate={"tool": "undo", "args": {}})
        await vm.run({**FLOW, "steps": [done, wait_step("w")]}, {"who": NAME}, trace_id="r")
        receipt = await vm.erase(subject=NAME, reason="asked", by="ana")
        assert (receipt["stage"], sorted(receipt["runs"])) == ("done", ["late", "r"])
        assert [vm.trace(name).status for name in ("r", "late")] == ["CANCELLED", "CANCELLED"]
        await _told_everywhere(vm)
        await vm.close()

    play(main())
