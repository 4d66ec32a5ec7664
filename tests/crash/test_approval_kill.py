"""kill -9 between an approval, the decision, the intent and the action, and what may change before somebody takes the
run up: the approved action is done once, or an unknown outcome is named, or it is not done (P3, P4, P9)."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import approval_programs
import pytest
from approval_programs import ANA, ASKING, BOB, EVE, EXPIRY_SECONDS, PROGRAMS, TIGHT, Later, machine
from test_kill import MODULES, effects, finish

from nano_vm import ExecutionVM, NanoVMError, SqliteStore, Trace
from nano_vm.kernel.events import ApprovalRequested, PolicyDecided
from nano_vm.runtime.system import SystemClock

SOURCE = Path(approval_programs.__file__).resolve()
LATER_MS = 2 * EXPIRY_SECONDS * 1_000


@contextmanager
def opened(place: Path, policy: Any = ASKING, **options: Any) -> Iterator[ExecutionVM]:
    store = SqliteStore(place / "runs.db")
    try:
        yield machine(place, store, policy, **options)
    finally:
        store.close()


def ask(place: Path, name: str, run_id: str = "r0") -> dict[str, Any]:
    """Start a run that asks for an approval; the answer that would be right."""
    (place / "keys").mkdir(parents=True, exist_ok=True)
    context = {} if name == "map" else {"name": "A"}
    with opened(place) as vm:
        trace = asyncio.run(vm.run(PROGRAMS[name], context, principal=ANA, trace_id=run_id))
        assert {wait.kind for wait in trace.waiting} == {"approval"}
        found = next(one for one in vm.approvals() if one.run_id == run_id)
        return {"approved": True, "action": found.action, "nonce": found.nonce}


def approve(place: Path, name: str, crash_at: int = 0, durability: str = "normal") -> int:
    environment = {**os.environ, "CRASH_AT": str(crash_at), "PYTHONPATH": MODULES}
    argv = [sys.executable, str(SOURCE), str(place), name, durability]
    return finish(subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE))


def boundaries_of(place: Path, name: str) -> int:
    ask(place, name)
    assert approve(place, name) == 0
    expected = {"M0", "M1", "Z"} if name == "map" else {"Z"} if name.endswith("pure") else {"A", "Z"}
    assert {effect for _, effect in effects(place)} == expected
    return int((place / "boundaries").read_text())


def acted(place: Path) -> Counter[tuple[str, str]]:
    return Counter({key: count for key, count in effects(place).items() if key[1] != "Z"})


def settle(vm: ExecutionVM) -> None:
    while asyncio.run(vm.recover()):
        pass


def has_unknown(trace: Trace) -> bool:
    return [wait.kind for wait in trace.waiting] == ["outcome"]


def attempt(vm: ExecutionVM, run_id: str, answer: dict[str, Any], who: Any, event_id: str) -> str:
    """Send an answer; the code it was refused with, or empty."""
    try:
        asyncio.run(vm.resume(run_id, answer, event_id=event_id, principal=who))
    except NanoVMError as error:
        return error.code
    return ""


def check(vm: ExecutionVM, place: Path) -> None:
    """What holds whatever happened: nothing twice, nothing undecided, nothing claimed that did not happen."""
    done = effects(place)
    assert all(count == 1 for count in done.values()), done
    for record in vm.runs(limit=100):
        trace = vm.trace(record.run_id)
        vm.verify(record.run_id)
        assert record.status != "RUNNING"
        allowed = [
            e for e in trace.events if type(e) is PolicyDecided and e.decision == "allow" and e.rule != "end"
        ]
        if not record.program_name.endswith("pure"):  # what has no effect may be decided and called once more
            used = Counter((e.approval, e.attempt) for e in allowed)  # the attempts of one action share it
            assert all(count == 1 for count in used.values()), "an approval was used twice"
        if any(run == record.run_id and name != "Z" for run, name in done):
            assert allowed, "done without an approval"
        told = {step.id for step in trace.steps if step.status.value == "SUCCESS"}
        if "A" in told and not record.program_name.endswith("pure"):
            assert done[record.run_id, "B" if record.run_id == "f" else "A"] == 1
        for step in trace.steps:  # nothing that has happened is called a failure
            if step.status.value == "FAILED" and step.id != "m":
                assert not done[record.run_id, "A" if step.item is None else f"M{step.item}"]


def after_nothing(place: Path, name: str, answer: dict[str, Any]) -> None:
    with opened(place) as vm:
        settle(vm)
        trace = vm.trace("r0")
        for found in vm.approvals():  # where the answer was not durable when the process died
            asyncio.run(vm.approve("r0", item=found.item, principal=EVE, event_id=f"again-{found.item}"))
        trace = vm.trace("r0")
        if has_unknown(trace):
            assert name.endswith("irreversible")
        else:
            assert trace.status.value == "SUCCESS"
            assert effects(place)["r0", "Z"] == 1
        check(vm, place)


def after_second(place: Path, name: str, answer: dict[str, Any]) -> None:
    """Somebody else says yes, and the first says it again, before anybody has taken the run up."""
    with opened(place) as vm:
        codes = {attempt(vm, "r0", answer, BOB, "bob"), attempt(vm, "r0", answer, EVE, "eve-2")}
        settle(vm)
        for found in vm.approvals():
            asyncio.run(vm.approve("r0", item=found.item, principal=BOB))
        trace = vm.trace("r0")
        assert has_unknown(trace) or trace.status.value == "SUCCESS", codes
        check(vm, place)


def after_tight(place: Path, name: str, answer: dict[str, Any]) -> None:
    before = acted(place)
    with opened(place, TIGHT) as vm:
        settle(vm)
        for found in vm.approvals():
            asyncio.run(vm.approve("r0", item=found.item, principal=BOB))
        assert acted(place) == before
        check(vm, place)


def after_late(place: Path, name: str, answer: dict[str, Any]) -> None:
    before = acted(place)
    with opened(place, clock=Later(SystemClock(), LATER_MS)) as vm:
        settle(vm)
        attempt(vm, "r0", answer, BOB, "bob")
        assert acted(place) == before
        trace = vm.trace("r0")
        requests = [e for e in trace.events if type(e) is ApprovalRequested]
        for found in vm.approvals():
            assert len(requests) > (2 if name == "map" else 1)
            asyncio.run(vm.approve("r0", item=found.item, principal=BOB))
        check(vm, place)


def after_replayed(place: Path, name: str, answer: dict[str, Any]) -> None:
    """The answer is sent to a run that asks for the very same action, and after the fact to its own."""
    ask(place, name, "r1")
    with opened(place) as vm:
        assert attempt(vm, "r1", answer, EVE, "eve-None") in ("APPROVAL_VOID", "AMBIGUOUS")
        settle(vm)
        assert acted(place)["r1", "A"] == 0
        attempt(vm, "r0", answer, EVE, "eve-3")
        attempt(vm, "r0", answer, BOB, "bob-3")
        trace = vm.trace("r1")
        assert {wait.kind for wait in trace.waiting} == {"approval"}
        check(vm, place)


def after_forked(place: Path, name: str, answer: dict[str, Any]) -> None:
    """A fork changes the argument that was approved."""
    with opened(place) as vm:
        settle(vm)
        if any(wait.step == "ok" for wait in vm.trace("r0").waiting):
            return  # the answer was lost: it has not come to the step
        trace = asyncio.run(vm.fork("r0", "A", {"name": "B"}, principal=ANA, new_trace_id="f"))
        assert {wait.kind for wait in trace.waiting} == {"approval"}
        assert attempt(vm, "f", answer, EVE, "eve-f") == "APPROVAL_VOID"
        assert not any(run == "f" for run, _ in acted(place))
        check(vm, place)


AFTER = {
    "nothing": after_nothing,
    "second": after_second,
    "tight": after_tight,
    "late": after_late,
    "replayed": after_replayed,
    "forked": after_forked,
}
COMBINATIONS = [
    (name, change) for name in sorted(PROGRAMS) for change in AFTER if (name, change) != ("map", "forked")
]


def kill_at(tmp_path: Path, name: str, change: str, places: list[int], durability: str = "normal") -> None:
    for at in places:
        place = tmp_path / f"{change}{at}"
        answer = ask(place, name)
        assert approve(place, name, at, durability) == -signal.SIGKILL
        AFTER[change](place, name, answer)


@pytest.mark.parametrize("change", AFTER)
def test_killed_between_approval_and_action_it_is_done_once_or_not_at_all(
    tmp_path: Path, change: str
) -> None:
    rng = random.Random(change)
    name = rng.choice([name for name in PROGRAMS if name != "map"])
    total = boundaries_of(tmp_path / "whole", name)
    kill_at(tmp_path, name, change, sorted(rng.sample(range(1, total + 1), 2)))


@pytest.mark.campaign
@pytest.mark.parametrize(("name", "change"), COMBINATIONS)
def test_every_boundary_between_approval_and_action(tmp_path: Path, name: str, change: str) -> None:
    total = boundaries_of(tmp_path / "whole", name)
    kill_at(tmp_path, name, change, list(range(1, total + 1)))
