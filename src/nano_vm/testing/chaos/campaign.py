"""The thirteen scenarios, and the judge.

A scenario is rounds; a round is a fresh directory in which processes of several roles work on one database at the same
time, some of them killed with SIGKILL; then two processes finish at once what is left; then everything is judged: each
journal verified, each effect counted outside, each run ended or waiting for what it names.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from nano_vm.journal.port import RunQuery, RunRecord
from nano_vm.testing.chaos import programs
from nano_vm.testing.chaos.judging import judge_journal
from nano_vm.testing.chaos.outside import BOOKED, Outside, failure
from nano_vm.testing.databases import Files, Grounds
from nano_vm.vm import ExecutionVM

_PATIENCE_S = 300.0  # for one process: a scenario is bounded, whatever happens
_KILL_WITHIN_S = 0.35
_EVENTS_PER_ROUND = 150  # about
_SCALE_MAX = 12  # more runs in a round would mean fewer kills among a million events


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """What happens in a round.

    `roles` work at the same time, each in a process of its own, on the same `runs` runs. `kills`: how many processes of
    the role `run` are killed in the middle before the others begin. `ends`: the statuses a run may have come to.
    """

    name: str
    about: str
    program: str
    roles: tuple[str, ...]
    runs: int = 8
    kills: int = 0
    ends: frozenset[str] = frozenset({"SUCCESS"})
    must_happen: dict[str, int] = {}  # step -> effects of each run that ended in SUCCESS


_PAID: Final = {"charge": 1, "wire": 1}
_MIXED: Final = {"a": 1, "r": 1, "t": 1, "each": 3, "n": 1, "b": 1, "z": 1}

SCENARIOS: Final[tuple[Scenario, ...]] = (
    Scenario(
        name="duplicate_execution",
        about="the same calls, twenty at a time in two processes, under one key each",
        program="payment",
        roles=("crowd", "crowd"),
        must_happen=_PAID,
    ),
    Scenario(
        name="replay_storm",
        about="everything is replayed and verified over and over while it runs",
        program="payment",
        roles=("run", "read", "read"),
        must_happen=_PAID,
    ),
    Scenario(
        name="mid_step_crash",
        about="processes are killed in the middle of steps of every effect class",
        program="mixed",
        roles=("recover",),
        kills=4,
        must_happen=_MIXED,
    ),
    Scenario(
        name="out_of_order_events",
        about="events early, late, repeated and in any order, from two processes",
        program="events",
        roles=("run", "disorder", "disorder"),
        must_happen={"pay": 1},
    ),
    Scenario(
        name="corrupted_payloads",
        about="events that are huge, hostile, of other types or under a known id",
        program="events",
        roles=("run", "corrupt"),
        runs=3,
        # A hostile value is data: what a wait without `accept` takes, it takes.
        must_happen={"pay": 1},
    ),
    Scenario(
        name="tool_failure_cascade",
        about="one lane fails, what was done is undone, in the reverse order and once",
        program="saga",
        roles=("run",),
        kills=2,
        ends=frozenset({"FAILED"}),
    ),
    Scenario(
        name="timeout_drift",
        about="tools that never answer, under a time-out, beside timers",
        program="timeouts",
        roles=("run",),
        kills=1,
        ends=frozenset({"SUCCESS"}),
    ),
    Scenario(
        name="reentrancy",
        about="runs are stepped, resumed, cancelled and recovered by others while they go",
        program="mixed",
        roles=("run", "meddle", "meddle"),
        ends=frozenset({"SUCCESS", "CANCELLED"}),
        must_happen=_MIXED,
    ),
    Scenario(
        name="model_noise",
        about="a model that answers anything, instructions to the engine included",
        program="noise",
        roles=("run", "run"),
    ),
    Scenario(
        name="budget_storm",
        about="endless loops, each stopped by its budget",
        program="loop",
        roles=("run",),
        runs=40,
        ends=frozenset({"BUDGET_EXCEEDED"}),
    ),
    Scenario(
        name="suspend_resume_races",
        about="three processes approve the same runs at once, and a stranger tries to",
        program="approval",
        roles=("run", "resume", "resume", "resume", "strangers"),
        must_happen={"pay": 1},
    ),
    Scenario(
        name="two_processes_one_store",
        about="two processes take up the same runs after a kill",
        program="mixed",
        roles=("run", "recover", "recover"),
        kills=2,
        must_happen=_MIXED,
    ),
    Scenario(
        name="everything",
        about="starts, readers, meddlers and kills at once",
        program="mixed",
        roles=("run", "recover", "meddle", "read"),
        kills=3,
        ends=frozenset({"SUCCESS", "CANCELLED"}),
        must_happen=_MIXED,
    ),
)


class Figures(msgspec.Struct, kw_only=True):
    """What a scenario came to. `violations` are sentences; empty is the only good answer."""

    name: str
    rounds: int = 0
    runs: int = 0
    events: int = 0
    kills: int = 0
    effects: int = 0
    unknown: int = 0  # runs that wait for an unknown outcome, and say so
    refusals: int = 0
    seconds: float = 0.0
    statuses: dict[str, int] = {}
    violations: list[str] = []

    def to_dict(self) -> dict[str, object]:
        return msgspec.to_builtins(self)  # type: ignore[no-any-return]


def run_campaign(
    names: Sequence[str] = (),
    *,
    seed: int = 1,
    events: int = 0,
    seconds: float = 60.0,
    heard: Callable[[Figures], None] = lambda figures: None,
    grounds: Grounds | None = None,
) -> Iterator[Figures]:
    """Carry scenarios out, round by round, and yield the figures of each.

    Args:
        names: of scenarios; all by default.
        events: every scenario has its turn again until there were this many in all; 0 for one round each.
        seconds: the most time for all together; a round that has begun is finished.
        heard: told of a scenario's figures after each of its rounds.
        grounds: where databases are made; a SQLite file for every round by default.

    Raises:
        StoreError: when `grounds` can make none.
    """
    chosen = [one for one in SCENARIOS if not names or one.name in names]
    scale = max(1, min(_SCALE_MAX, events // (len(chosen) * _EVENTS_PER_ROUND)))
    found = {one.name: Figures(name=one.name) for one in chosen}
    until = time.monotonic() + seconds
    again = True
    while again:
        for scenario in chosen:
            figures = found[scenario.name]
            if figures.violations or (figures.rounds and time.monotonic() >= until):
                continue
            began = time.monotonic()
            with tempfile.TemporaryDirectory(prefix="nano-vm-chaos-") as directory:
                run_round(scenario, Path(directory), seed + figures.rounds, figures, scale, grounds)
            figures.seconds = round(figures.seconds + time.monotonic() - began, 1)
            heard(figures)
            if not events:
                yield figures
        enough = sum(figures.events for figures in found.values()) >= events
        hopeless = all(figures.violations for figures in found.values())
        again = not (enough or hopeless or time.monotonic() >= until)
    if events:
        yield from found.values()


def run_round(
    scenario: Scenario,
    place: Path,
    seed: int,
    figures: Figures,
    scale: int = 1,
    grounds: Grounds | None = None,
) -> None:
    """One round in `place`, with `scale` times the scenario's runs, added to `figures`."""
    scenario = msgspec.structs.replace(scenario, runs=scenario.runs * scale)
    figures.rounds += 1
    with (grounds or Files()).fresh(place, (BOOKED,)) as database:
        outside = Outside(place, database)
        _work(scenario, outside, seed, figures, scale)
        judge(scenario, outside, figures)


def _work(scenario: Scenario, outside: Outside, seed: int, figures: Figures, scale: int) -> None:
    draw = random.Random(f"{scenario.name} {seed}")
    for _ in range(scenario.kills):
        worker = _launch(scenario, outside, "run", seed)
        ready = outside.place / f"ready-run-0-{seed}"
        _kill_soon(worker, ready, draw.random() * _KILL_WITHIN_S * min(scale, 6))
        figures.kills += 1
    crew = [_launch(scenario, outside, role, seed + n) for n, role in enumerate(scenario.roles)]
    _finish(crew, figures)
    _finish([_launch(scenario, outside, "recover", seed + 100 + number) for number in range(2)], figures)
    _finish([_launch(scenario, outside, "run", seed + 200)], figures)
    _finish([_launch(scenario, outside, "recover", seed + 300)], figures)


def _launch(scenario: Scenario, outside: Outside, role: str, seed: int) -> subprocess.Popen[bytes]:
    arguments = [str(outside.place), role, scenario.program, "0", str(scenario.runs), str(seed)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment |= outside.database.environment
    return subprocess.Popen(
        [sys.executable, "-m", "nano_vm.testing.chaos.worker", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def _kill_soon(process: subprocess.Popen[bytes], ready: Path, delay_s: float) -> None:
    while not ready.exists() and process.poll() is None:
        time.sleep(0.001)
    time.sleep(delay_s)
    process.kill()
    process.communicate()


def _finish(processes: list[subprocess.Popen[bytes]], figures: Figures) -> None:
    try:
        for process in processes:
            try:
                _, errors = process.communicate(timeout=_PATIENCE_S)
            except subprocess.TimeoutExpired:
                figures.violations.append("a process did not come to its end")
                continue
            if process.returncode not in (0, -signal.SIGKILL):
                figures.violations.append(failure(errors))
    finally:
        for process in processes:  # who is interrupted leaves nobody at work on a database that goes
            if process.poll() is None:
                process.kill()
                process.communicate()


# --- the judge ----------------------------------------------------------------------------------------------------


def judge(scenario: Scenario, outside: Outside, figures: Figures) -> None:
    """Hold what is stored against what has happened outside."""
    figures.refusals += len(outside.lines("refusals"))
    effects = outside.effects()
    figures.effects += sum(effects.values())
    vm = ExecutionVM(tools=outside.tools(), store=outside.database.open("normal"))
    try:
        figures.violations += vm.store.integrity()
        happened: Counter[tuple[str, str]] = Counter()
        for (_, run_id, step), count in effects.items():
            happened[run_id, step] += count
        _judge_counts(effects, figures)
        for record in vm.store.records(RunQuery(limit=1_000_000)):
            _judge_run(scenario, vm, record, happened, figures)
    finally:
        vm.store.close()


def _judge_counts(effects: Counter[tuple[str, str, str]], figures: Figures) -> None:
    """Nothing happens twice that must not, whatever died in the middle (P4)."""
    for (kind, run_id, step), count in effects.items():
        most = 3 if step == "each" else 1
        if kind != "idempotent" and count > most:
            figures.violations.append(f"P4: {kind} `{step}` of {run_id} happened {count} times")


def _judge_run(
    scenario: Scenario,
    vm: ExecutionVM,
    record: RunRecord,
    happened: Counter[tuple[str, str]],
    figures: Figures,
) -> None:
    run_id, status = record.run_id, record.status
    if not judge_journal(vm, record, figures):
        return
    trace = vm.trace(run_id)
    if status == "SUSPENDED":
        kinds = {wait.kind for wait in trace.waiting}
        figures.unknown += 1
        if not kinds <= {"outcome", "child"}:
            figures.violations.append(f"P10: {run_id} waits for {', '.join(sorted(kinds)) or 'nothing'}")
    elif status not in scenario.ends:
        figures.violations.append(f"P10: {run_id} ended {status}")
    elif status == "SUCCESS":
        for step, count in scenario.must_happen.items():
            if happened[run_id, step] < count:
                figures.violations.append(f"P1: {run_id} succeeded without `{step}`")
    _judge_meaning(scenario, trace, run_id, happened, figures)


def _judge_meaning(
    scenario: Scenario, trace: object, run_id: str, happened: Counter[tuple[str, str]], figures: Figures
) -> None:
    """What the scenario's program was written for."""
    outcome, path = trace.outcome, trace.path  # type: ignore[attr-defined]
    if scenario.program == "noise":
        paid = happened[run_id, "pay"] > 0
        judged = [step for step in trace.steps if step.id == "judge"]  # type: ignore[attr-defined]
        said = judged[-1].output if judged else None
        if paid != (said == "yes") or (outcome == "paid") != paid:
            figures.violations.append(
                f"P2: {run_id} paid={paid} where the model's admitted answer was {said!r}"
            )
    elif scenario.program == "loop" and len(path) > programs.LOOP["max_steps"]:
        figures.violations.append(f"P10: {run_id} took {len(path)} steps")
    elif scenario.program == "saga" and not trace.incomplete_compensations:  # type: ignore[attr-defined]
        for step in ("flight", "hotel"):
            # A step and its compensation are counted under the step's name: done and undone, or neither.
            if happened[run_id, step] not in (0, 2):
                figures.violations.append(f"P1: {run_id}: `{step}` was done and not undone")
