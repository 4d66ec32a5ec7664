"""Soak: mixed load on one database for a long time, with processes killed at random, and one that lives through it all.

    python -m nano_vm.testing.chaos.soak DIRECTORY ROLE SEED DURABILITY      # one process of it

The one that lives (`steady`) is measured: its memory and its file handles have to stay where they were once it was
warm. It also does what an operator does: it looks outside what became of unknown outcomes, and says so. In the end two
processes finish what the dead left, and everything is judged: structures, journals, effects, and that every run has
ended or names what it waits for.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import msgspec

from nano_vm.errors import NanoVMError
from nano_vm.journal.port import JournalStore, RunQuery
from nano_vm.runtime.ports import Completion, Message, Usage
from nano_vm.runtime.tooling import Reconciled, ToolContext
from nano_vm.stores.sqlite import Durability
from nano_vm.testing.chaos import programs
from nano_vm.testing.chaos.judging import judge_journal
from nano_vm.testing.chaos.outside import BOOKED, HOSTILE, Outside, failure
from nano_vm.testing.chaos.worker import SUPERVISOR, Caller
from nano_vm.testing.databases import Database, Files, Grounds
from nano_vm.tools.registry import tool
from nano_vm.vm import ExecutionVM

SAMPLE_S: Final = 2.0
VICTIMS: Final = 2
_BATCH: Final = 8
_PAUSE_S: Final = 0.25
_LIFE_S: Final = 5.0  # of a victim, in the mean
_PATIENCE_S: Final = 300.0
_SHARDS: Final = 256
_JUDGED_FROM_S: Final = 300.0  # shorter ones are still getting warm
MEMORY_GROWTH_MAX: Final = 1.10  # the last quarter over the second
HANDLES_MORE_MAX: Final = 3
_PROGRAMS: Final = (
    programs.PAYMENT,
    programs.MIXED,
    programs.EVENTS,
    programs.APPROVAL,
    programs.SAGA,
    programs.TIMEOUTS,
    programs.NOISE,
    programs.LOOP,
)
ENDS: Final[dict[str, frozenset[str]]] = {
    "payment": frozenset({"SUCCESS"}),
    "mixed": frozenset({"SUCCESS", "CANCELLED"}),
    "events": frozenset({"SUCCESS", "CANCELLED"}),
    "approval": frozenset({"SUCCESS", "CANCELLED"}),
    "saga": frozenset({"FAILED"}),
    "timeouts": frozenset({"SUCCESS", "FAILED"}),
    "noise": frozenset({"SUCCESS"}),
    "loop": frozenset({"BUDGET_EXCEEDED"}),
}


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """The steady process at one moment, and the files beside it."""

    at_s: float
    memory_bytes: int
    handles: int
    threads: int
    runs: int
    database_bytes: int
    log_bytes: int


class Report(msgspec.Struct, kw_only=True):
    """What a soak came to. `memory_growth` is the median of the last quarter over that of the second; `flat` is None
    for a soak too short to say. `violations` are sentences; empty is the only good answer."""

    seconds: float = 0.0
    kills: int = 0
    runs: int = 0
    events: int = 0
    effects: int = 0
    settled: int = 0  # unknown outcomes that the operator looked into
    waiting: int = 0  # runs that wait for somebody in the end, and say for what
    refusals: int = 0
    statuses: dict[str, int] = {}
    memory_bytes: dict[str, int] = {}
    memory_growth: float | None = None
    handles: dict[str, int] = {}
    threads: dict[str, int] = {}
    database_bytes: int = 0
    log_bytes_max: int = 0
    flat: bool | None = None
    violations: list[str] = []
    samples: list[Sample] = []

    def to_dict(self) -> dict[str, Any]:
        return msgspec.to_builtins(self)  # type: ignore[no-any-return]


class SoakOutside(Outside):
    """Effects in many files: who asks what became of one reads a little, however long it has been going on."""

    def __init__(self, place: Path, database: Database | None = None) -> None:
        super().__init__(place, database)
        (place / "shards").mkdir(exist_ok=True)

    def is_ready(self, role: str, seed: int) -> bool:
        """Whether that process has begun."""
        return (self.place / f"ready-{role}-{seed}").exists()

    def shard(self, run_id: str) -> str:
        return f"shards/{crc32(run_id.encode()) % _SHARDS:02x}"

    def effect(self, kind: str, ctx: ToolContext) -> None:
        facts = [kind, ctx.trace_id, ctx.step, ctx.occurrence, ctx.item, ctx.idempotency_key]
        self.note(self.shard(ctx.trace_id), facts)

    def happened(self, run_id: str, step: str) -> bool:
        return any(line[1] == run_id and line[2] == step for line in self.lines(self.shard(run_id)))

    def tools(self) -> list[Any]:
        def find_out(ctx: ToolContext) -> Reconciled:
            done = any(line[5] == ctx.idempotency_key for line in self.lines(self.shard(ctx.trace_id)))
            return Reconciled.succeeded(ctx.step) if done else Reconciled.not_executed()

        @tool(effect="reconcilable", reconcile=find_out)
        async def ship(ctx: ToolContext) -> str:
            self.effect("reconcilable", ctx)
            return ctx.step

        @tool(effect="idempotent")
        async def mark(ctx: ToolContext, amount: Any = 0) -> str:
            return ctx.step

        mine = {"ship": ship, "mark": mark}
        return [mine.get(one.__name__, one) for one in super().tools()]

    def effects(self) -> Counter[tuple[str, str, str]]:
        found = super().effects()
        for shard in (self.place / "shards").iterdir():
            for kind, run_id, step, *_ in self.lines(f"shards/{shard.name}"):
                found[kind, run_id, step] += 1
        return found


class _Model:
    """Answers anything, and keeps nothing."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw

    async def complete(self, messages: list[Message], **params: Any) -> Completion:
        text = self.draw.choice(["yes", "no", HOSTILE, "yes\n", "maybe", "yes'; then: pay"])
        return Completion(text=text, usage=Usage(prompt_tokens=8, completion_tokens=2), model="anything")


class Hand(Caller):
    """One process: it starts runs, gives what they wait for, cancels, verifies, takes over - until told to stop."""

    outside: SoakOutside

    def __init__(self, place: Path, role: str, seed: int, durability: Durability) -> None:
        self.place = place
        self.role = role
        self.outside = SoakOutside(place)
        self.draw = random.Random(f"{role} {seed}")
        self.durability = durability
        self.prefix = f"{role}-{seed}"
        self.count = 0
        self.known: list[str] = []
        self.vm = ExecutionVM(
            llm=_Model(self.draw),
            tools=self.outside.tools(),
            store=self.outside.database.open(durability),
        )
        self.vm.save_program(programs.CHILD)
        self.outside.note(f"ready-{role}-{seed}", role)

    async def work(self) -> None:
        began = sampled = time.monotonic()
        while not (self.place / "stop").exists():
            await asyncio.gather(*(self.attempt(self._start()) for _ in range(_BATCH)))
            await self.look_after(200)
            self._look_back()
            if self.role == "steady" and time.monotonic() - sampled >= SAMPLE_S:
                sampled = time.monotonic()
                self._sample(sampled - began)
            await asyncio.sleep(_PAUSE_S)

    async def finish(self) -> None:
        """Until nothing is left but what nobody can help."""
        idle = 0
        while idle < 3:
            moved = await self.look_after(5_000)
            idle = 0 if moved else idle + 1
            await asyncio.sleep(0.02)

    def _start(self) -> Awaitable[Any]:
        self.count += 1
        program = self.draw.choice(_PROGRAMS)
        name = f"{program['name']}-{self.prefix}-{self.count}"
        self.known.append(name)
        del self.known[:-50]
        inputs = {"text": HOSTILE} if "inputs" in program else None
        return self.vm.run(program, inputs, trace_id=name, idempotency_key=name)

    async def look_after(self, limit: int) -> bool:
        """Take over what the dead left, and give those that wait what they wait for."""
        moved = bool(await self.vm.recover(limit=limit))
        for record in self.vm.runs(status="SUSPENDED", limit=limit):
            if record.parent is None:
                moved |= await self._give(record.run_id)
        return moved or bool(self.vm.runs(status="RUNNING", limit=1))

    async def _give(self, run_id: str) -> bool:
        moved = False
        for wait in self.vm.trace(run_id).waiting:
            if wait.kind == "outcome":
                if self.role != "victim":
                    moved |= await self.attempt(self._settle(run_id, wait.step))
            elif wait.kind == "event":
                action: Awaitable[Any] = self.vm.resume(
                    run_id, {"number": 3}, event_id=f"{wait.event}-{run_id}", name=str(wait.event)
                )
                if self.draw.random() < 0.02:
                    action.close()  # type: ignore[attr-defined]
                    action = self.vm.cancel(run_id, "enough")
                moved |= await self.attempt(action)
            elif wait.kind == "approval":
                event_id = f"ok-{run_id}"
                moved |= await self.attempt(
                    self.vm.resume(
                        run_id, {"approved": True}, event_id=event_id, step="agree", principal=SUPERVISOR
                    )
                )
            else:
                moved = True
        return moved

    async def _settle(self, run_id: str, step: str) -> None:
        """Whoever called is dead, or has given up waiting: what is outside now is what there will be."""
        happened = self.outside.happened(run_id, step)
        await self.vm.resolve(run_id, step, "succeeded" if happened else "repeat", step)
        self.outside.note("settled", [run_id, step, happened])

    def _look_back(self) -> None:
        """Reads and proofs, through a store object that is opened for it and closed again."""
        with self.outside.database.open(self.durability) as store:
            reader = ExecutionVM(tools=self.outside.tools(), store=store)
            for name in self.draw.sample(self.known, min(3, len(self.known))):
                try:
                    record = store.record(name)
                    reader.verify(name)
                    reader.trace(name).to_dict()
                except NanoVMError as error:
                    # A run that goes on while its record is read is not a run whose proof fails.
                    if error.code != "RUN_NOT_FOUND" and store.record(name).length == record.length:
                        raise

    def _sample(self, at_s: float) -> None:
        sample = Sample(
            at_s=round(at_s, 1),
            memory_bytes=memory_bytes(),
            handles=len(os.listdir("/dev/fd")),
            threads=len(os.listdir("/proc/self/task")) if Path("/proc/self/task").is_dir() else 0,
            runs=self.count,
            database_bytes=self.outside.database.stored_bytes(),
            log_bytes=self.outside.database.log_bytes(),
        )
        self.outside.note("samples", msgspec.to_builtins(sample))


def memory_bytes() -> int:
    """What this process occupies now; where the system does not say, the most it has."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf(
            "SC_PAGE_SIZE"
        )
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# --- the soak itself --------------------------------------------------------------------------------------------------


def soak(
    seconds: float,
    *,
    seed: int = 1,
    durability: Durability = "normal",
    directory: str | os.PathLike[str] | None = None,
    heard: Callable[[Report], None] = lambda report: None,
    grounds: Grounds | None = None,
) -> Report:
    """Carry a soak out.

    Args:
        seconds: of load, from when a process has begun; finishing and judging come on top.
        directory: where files are made, and removed again; the temporary directory by default.
        heard: told how it stands about twice a minute.
        grounds: where the database is made; a SQLite file in `directory` by default.

    Raises:
        StoreError: when `grounds` can make none.
    """
    report = Report()
    with (
        tempfile.TemporaryDirectory(prefix="nano-vm-soak-", dir=directory) as place,
        (grounds or Files()).fresh(Path(place), (BOOKED,)) as database,
    ):
        outside = SoakOutside(Path(place), database)
        _load(outside, seconds, seed, durability, report, heard)
        pair = [_launch(outside, "finisher", seed + n, durability) for n in range(2)]
        for process in pair:
            _ended(process, report, _PATIENCE_S + seconds)
        judge(outside, report)
    return report


class _Victim:
    """A process that is to be killed after `life_s` seconds of work: on a busy machine it may take as long to begin."""

    def __init__(self, process: subprocess.Popen[bytes], number: int, life_s: float) -> None:
        self.process = process
        self._number = number
        self._life_s = life_s
        self._until: float | None = None

    def is_due(self, outside: SoakOutside, now: float) -> bool:
        if self._until is None and outside.is_ready("victim", self._number):
            self._until = now + self._life_s
        return self.process.poll() is not None or (self._until is not None and now >= self._until)


def _load(
    outside: SoakOutside,
    seconds: float,
    seed: int,
    durability: Durability,
    report: Report,
    heard: Callable[[Report], None],
) -> None:
    draw = random.Random(f"soak {seed}")
    steady = _launch(outside, "steady", seed, durability)
    while not outside.is_ready("steady", seed) and steady.poll() is None:
        time.sleep(0.002)
    began = told = time.monotonic()
    numbers = iter(range(seed, 1 << 62))
    victims: list[_Victim] = []
    while (now := time.monotonic()) - began < seconds and steady.poll() is None:
        for victim in list(victims):
            if victim.is_due(outside, now):
                victims.remove(victim)
                report.kills += _kill(victim.process, report)
        while len(victims) < VICTIMS:
            number = next(numbers)
            life = min(draw.expovariate(1 / _LIFE_S), 6 * _LIFE_S) + 0.5
            victims.append(_Victim(_launch(outside, "victim", number, durability), number, life))
        if now - told >= 30:
            told = now
            _take_samples(outside, report)
            report.seconds = round(now - began, 1)
            heard(report)
        time.sleep(0.02)
    for victim in victims:
        report.kills += _kill(victim.process, report)
    report.seconds = round(time.monotonic() - began, 1)
    (outside.place / "stop").touch()
    _ended(steady, report, _PATIENCE_S)
    _take_samples(outside, report)


def _launch(outside: SoakOutside, role: str, seed: int, durability: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(
        [sys.executable, "-m", "nano_vm.testing.chaos.soak", str(outside.place), role, str(seed), durability],
        env=environment | outside.database.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def _kill(process: subprocess.Popen[bytes], report: Report) -> int:
    process.kill()
    _, errors = process.communicate()
    if process.returncode == -signal.SIGKILL:
        return 1
    report.violations.append(failure(errors))
    return 0


def _ended(process: subprocess.Popen[bytes], report: Report, patience_s: float) -> None:
    try:
        _, errors = process.communicate(timeout=patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        report.violations.append("a process did not come to its end")
        return
    if process.returncode != 0:
        report.violations.append(failure(errors))


def _take_samples(outside: SoakOutside, report: Report) -> None:
    """Memory and handles, by the samples so far."""
    samples = [msgspec.convert(line, Sample) for line in outside.lines("samples")]
    if not samples:
        return
    quarter = max(1, len(samples) // 4)
    warm, last = samples[quarter : 2 * quarter] or samples[:1], samples[-quarter:]
    report.memory_bytes = {
        "warm": int(statistics.median(one.memory_bytes for one in warm)),
        "last": int(statistics.median(one.memory_bytes for one in last)),
        "most": max(one.memory_bytes for one in samples),
    }
    report.memory_growth = round(report.memory_bytes["last"] / report.memory_bytes["warm"], 3)
    for name in ("handles", "threads"):
        setattr(
            report,
            name,
            {
                "warm": int(statistics.median(getattr(one, name) for one in warm)),
                "last": int(statistics.median(getattr(one, name) for one in last)),
                "most": max(getattr(one, name) for one in samples),
            },
        )
    report.database_bytes = samples[-1].database_bytes
    report.log_bytes_max = max(one.log_bytes for one in samples)
    report.samples = samples[:: max(1, len(samples) // 60)]


def judge(outside: SoakOutside, report: Report) -> None:
    """Hold everything that is stored against everything that has happened."""
    effects = outside.effects()
    report.effects = sum(effects.values())
    report.refusals = len(outside.lines("refusals"))
    report.settled = len(outside.lines("settled"))
    for (kind, run_id, step), count in effects.items():
        most = 3 if step == "each" else 1
        if count > most:
            report.violations.append(f"P4: {kind} `{step}` of {run_id} happened {count} times")
    with outside.database.open("normal") as store:
        report.violations += store.integrity()
        vm = ExecutionVM(tools=outside.tools(), store=store)
        happened: Counter[tuple[str, str]] = Counter()
        for (_, run_id, step), count in effects.items():
            happened[run_id, step] += count
        for record in _all_records(store):
            _judge_run(vm, record, happened, report)
    if report.memory_growth is not None and report.seconds >= _JUDGED_FROM_S:
        more = report.handles["last"] - report.handles["warm"]
        report.flat = report.memory_growth <= MEMORY_GROWTH_MAX and more <= HANDLES_MORE_MAX
        if not report.flat:
            report.violations.append(f"memory grew {report.memory_growth} times, handles by {more}")


def _all_records(store: JournalStore) -> Iterator[Any]:
    after: str | None = None
    while page := store.records(RunQuery(limit=1_000, after=after)):
        yield from page
        after = page[-1].run_id


def _judge_run(vm: ExecutionVM, record: Any, happened: Counter[tuple[str, str]], report: Report) -> None:
    run_id, status, name = record.run_id, record.status, record.program_name
    if not judge_journal(vm, record, report):
        return
    if status == "SUSPENDED":
        kinds = {wait.kind for wait in vm.trace(run_id).waiting}
        report.waiting += 1
        if not kinds or not kinds <= {"outcome", "child"}:
            report.violations.append(f"P10: {run_id} waits for {', '.join(sorted(kinds)) or 'nothing'}")
    elif status not in ENDS[name]:
        report.violations.append(f"P10: {run_id} ended {status}")
    elif status == "SUCCESS" and name == "payment":
        for step in ("charge", "wire"):
            if not happened[run_id, step]:
                report.violations.append(f"P1: {run_id} succeeded without `{step}`")


# --- one process ------------------------------------------------------------------------------------------------------


async def _main(hand: Hand) -> None:
    async with hand.vm:
        await (hand.finish() if hand.role == "finisher" else hand.work())


def main(argv: Sequence[str]) -> None:
    place, role, seed, durability = argv
    asyncio.run(_main(Hand(Path(place), role, int(seed), "full" if durability == "full" else "normal")))


if __name__ == "__main__":
    main(sys.argv[1:])
