"""The simulator: one seed, one run of the real engine on a real store, with everything going wrong that a plan names.

    from nano_vm.testing.simulator import Simulation
    report = Simulation(seed=7).run()
    assert not report.findings, report.rerun

Time is virtual and chance comes from the seed, so a seed that fails fails again; `shrink` then takes away every fault
that is not needed for it. Without a program of yours a random one is generated.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from nano_vm.compiler import compile_program
from nano_vm.errors import InputError, NanoVMError, NotFoundError, VerificationError
from nano_vm.evidence.bundle import export
from nano_vm.evidence.verify import verify_bundle
from nano_vm.journal.trace import Trace
from nano_vm.kernel.state import REJECTIONS, RunStatus
from nano_vm.program.model import Program
from nano_vm.runtime.engine import Engine
from nano_vm.runtime.ports import ModelClient, ToolInvoker
from nano_vm.stores.sqlite import SqliteStore
from nano_vm.testing.checkers import Checkers, Finding, PromiseBroken
from nano_vm.testing.faults import Crash, FaultPlan
from nano_vm.testing.loop import SimulatedClock, SimulatedLoop, run
from nano_vm.testing.outside import Outside, Temper
from nano_vm.testing.policies import ROLE, by_hash, harder, random_policy, tighter
from nano_vm.testing.privacy import Privacy
from nano_vm.testing.process import Process, adopt_tasks
from nano_vm.testing.programs import child_program, neighbour_program, random_program
from nano_vm.testing.richer import confidant_program, enrich
from nano_vm.testing.vaults import SharedCabinet, WatchedCabinet, is_available, seeded, vault_on
from nano_vm.testing.wider import widen
from nano_vm.testing.world import HOSTILE, SURE, VOUCHED, Model, World

RUN = "run"
_TURNS_MAX = 40  # of trouble; after it nothing goes wrong any more
_OPERATION_S = 6 * 3_600.0  # clocks jump back by an hour, and leases and back-offs with them
_CALM_TURNS_MAX = 120  # by then a run has ended, or nobody knows what it waits for
_LEASE_MS = 31_000  # by then nobody holds it any more
_GRACE_S = 30.0  # for calls under way when a process is shut down
_HUGE = "x" * (9 * 1024 * 1024)
# What comes of waits: mostly what they wait for.
# What an operation may end in while things go wrong: its caller is told, by name.
_EXPECTED = frozenset(
    {
        "STORE_FULL",
        "STORE_IO",
        "STORE_LOCKED",
        "STORE_CLOSED",
        "LEASE_LOST",
        "JOURNAL_CONFLICT",
        "RUN_NOT_FOUND",
        "RUN_EXISTS",
        "KEY_CONFLICT",
        "SHUTTING_DOWN",
        "VALUE_TOO_LARGE",
        "MAIL_CONFLICT",
        "MAIL_FULL",
        "MAIL_NOT_FOUND",
        "ERASED",
        "SUBJECT_NOT_FOUND",  # nothing of that person is stored yet, or any more
        *REJECTIONS,
    }
)


class Report(msgspec.Struct, kw_only=True, frozen=True):
    """What one simulation came to.

    `faults` is the plan that was carried out (moment -> kind), `heads` the last digest of every run: equal for equal
    seeds. `rerun` is the line of Python that does it again.
    """

    seed: int
    program: dict[str, Any]
    faults: dict[int, str]
    findings: list[Finding]
    status: str
    moments: int
    transitions: int
    crashes: int
    heads: dict[str, str]
    rerun: str


def _is_plain(seed: int) -> bool:
    """Whether the seed has a program of plain steps: three of ten have."""
    return random.Random(f"plain {seed}").random() < 0.3


def _written(seed: int, private: bool) -> dict[str, Any]:
    """The random program of a seed; of those that are not plain four of ten have more of the language in them, and two
    of three still more."""
    program = random_program(random.Random(seed), private=private, plain=_is_plain(seed))
    if _is_plain(seed):
        return program
    draw = random.Random(f"wider {seed}")
    if draw.random() < 0.4:
        program = widen(draw, program)
    draw = random.Random(f"richer {seed}")
    return enrich(draw, program) if draw.random() < 0.65 else program


class Simulation:
    """One program, one plan of faults, checked after every transition.

    Args:
        seed: everything follows from it.
        program: a program of yours, as a dict; a random one by default. Programs that it calls go in `called`.
        tools, llm: yours; by default those of `nano_vm.testing.world`. Blocking tools are called in the loop.
        context: the inputs; {"x": …} by default.
        answers: event name -> data that the simulated outside sends when a run of yours waits for it.
        rate, only: of faults, see `FaultPlan`.
        faults: a fixed plan instead of a drawn one.
        engine: options for `Engine`, as `policy`.
        private: whether there is a vault, and random programs may be about a person; by default where the extra
            `vault` is installed, and the store is SQLite, whose files can be looked through.
        database: makes an empty PostgreSQL database and gives its address, for every run; without it a run has a SQLite
            file of its own. Raises InputError USAGE together with `private`.
    """

    def __init__(
        self,
        seed: int,
        *,
        program: Mapping[str, Any] | None = None,
        called: Iterable[Mapping[str, Any]] = (),
        tools: ToolInvoker | None = None,
        llm: ModelClient | None = None,
        context: Mapping[str, Any] | None = None,
        answers: Mapping[str, Any] | None = None,
        rate: float = 0.06,
        only: Iterable[str] | None = None,
        faults: Mapping[int, str] | None = None,
        engine: Mapping[str, Any] | None = None,
        private: bool | None = None,
        database: Callable[[], str] | None = None,
    ) -> None:
        if database is not None and private:
            raise InputError(
                "USAGE", "what is private is looked for in SQLite's files", help="leave out `database`"
            )
        self.seed = seed
        self._database = database
        self._draw = random.Random(f"outside {seed}")
        self._own = program is not None
        private = is_available() and database is None if private is None else private
        self.program = dict(program) if program is not None else _written(seed, private)
        self._called = (
            [dict(one) for one in called] if program is not None else [child_program(), confidant_program()]
        )
        self.subject = f"person {random.Random(f'subject {seed}').getrandbits(64):016x}"
        self.context = dict(context) if context is not None else self._drawn_context()
        self.cabinet = SharedCabinet() if private else None
        self._answers = dict(answers or {})
        self.world = World()
        self._tools = tools if tools is not None else self.world.tools
        self._llm: ModelClient | None = llm if llm is not None else Model()
        self._options = dict(engine or {})
        self._policies: dict[str, Mapping[str, Any]] = {}
        self._starter: dict[str, Any] | None = None
        self._moods = random.Random(f"moods {seed}")
        self._govern(random.Random(f"policy {seed}"))
        # A random policy might not allow it.
        beside = not self._own and self.policy is None and _is_plain(seed)
        self._neighbour = neighbour_program() if beside else None
        self._beside = [[4], [2, 3], [1]]  # the numbers of those that begin in one turn, the last first
        self.plan = FaultPlan(seed, rate=rate, only=only, faults=faults)
        self._processes: list[Process] = []
        self._crashes = 0

    def _temper(self) -> Temper:
        return Temper(self._moods, self.plan.quiet, self._own, self._starter)

    def _govern(self, draw: random.Random) -> None:
        """Four of ten random programs are run under a random policy."""
        self.policy: dict[str, Any] | None = None
        self.tighter: dict[str, Any] | None = None
        if self._own or "policy" in self._options or draw.random() >= 0.4:
            return
        self.policy = random_policy(draw, self.program, *self._called)
        if self.policy is not None:
            more = random.Random(f"harder {self.seed}")
            if more.random() < 0.5:
                self.policy = harder(more, self.policy)
                self._starter = {"id": "zoe", "roles": [ROLE]}
            self.tighter = tighter(draw, self.policy)
            self._policies = by_hash(self.policy, self.tighter)
            self._options["policy"] = self.policy

    def _drawn_context(self) -> dict[str, Any]:
        context: dict[str, Any] = {"x": self._draw.randint(0, 3)}
        if not self._own:
            context["sure"] = SURE
        if "subject" in self.program and not self._own:
            context["who"] = self.subject
        return context

    @property
    def _personal(self) -> bool:
        """Whether the run is about a person who can be erased."""
        return not self._own and self.cabinet is not None and "subject" in self.program

    def run(self) -> Report:
        """Carry it out. Raises nothing that the simulated engine did wrong: that is in the report's `findings`."""
        loop = SimulatedLoop(self._thread_at_work)
        adopt_tasks(loop)
        loop.set_exception_handler(lambda loop, facts: None)  # tasks of the dead complain of their death
        self._clock = SimulatedClock(loop)
        with tempfile.TemporaryDirectory(prefix="nano-vm-") as place, seeded(self.seed):
            self._place = Path(place) / "runs.db" if self._database is None else self._database()
            with self._open() as store:
                self.checkers = _Checkers(store, self)
                self.checkers.policies = self._policies
                self._outside = Outside(
                    RUN, self._draw, self._clock, self.checkers, self._answers, self._temper()
                )
                self.checkers.is_committing = self._thread_at_work
                self.checkers.latest_ms = lambda: self._clock.latest_ms
                run(self._main(), loop)
        return self._report()

    def _open(self) -> Any:
        if isinstance(self._place, Path):
            return SqliteStore(self._place, durability="normal")
        from nano_vm.stores.postgres import PostgresStore

        return PostgresStore(self._place, "normal")

    def _thread_at_work(self) -> bool:
        return any(not process.dead and process.is_committing for process in self._processes)

    def _report(self) -> Report:
        """How it went, with the line that does it again."""
        faults = dict(self.plan.happened)
        own = "program=…, " if self._own else ""
        heads = {run_id: one.entries[-1].digest for run_id, one in self.checkers.runs.items() if one.entries}
        return Report(
            seed=self.seed,
            program=self.program,
            faults=faults,
            findings=list(self.checkers.findings),
            status=self.status,
            moments=self.plan.moment,
            transitions=self.checkers.transitions,
            crashes=self._crashes,
            heads=heads,
            rerun=f"Simulation({self.seed}, {own}faults={faults!r}).run()",
        )

    status = "NONE"

    # --- the story --------------------------------------------------------------------------------------------

    async def _main(self) -> None:
        try:
            for _ in range(_TURNS_MAX):
                if await self._turn():
                    break
            await self._calm()
            self.checkers.close(self._draw)
            if self._personal:
                await self._erase_all()
        except PromiseBroken:
            pass  # it is among the findings
        finally:
            for process in self._processes:
                process.end()

    async def _turn(self) -> bool:
        """One thing is done, with the outside interfering; True when the run has ended."""
        process = self._a_process()
        work = process.start(self._operate(process))
        others = [process.start(self._interfere(process))]
        if self._neighbour is not None and self._beside:
            others += [process.start(self._run_beside(process, number)) for number in self._beside.pop()]
        if self._draw.random() < 0.2:
            rival = self._spawn()
            others.append(rival.start(self._rival(rival)))
        await self._ended(work, *others)
        for task in (work, *others):
            self._judge(task)
        self._crashes += sum(one.dead for one in self._processes)
        self._processes = [one for one in self._processes if not one.dead]
        record = self._record()
        return record is not None and RunStatus(record.status).is_terminal

    async def _ended(self, *tasks: asyncio.Task[Any]) -> None:
        """Wait for operations to end. What any of them waits for has happened by then, or never will."""
        _, left = await asyncio.wait(tasks, timeout=_OPERATION_S)
        if left:
            self.checkers.broken("P10", RUN, f"{len(left)} operations never end")

    def _judge(self, task: asyncio.Task[Any]) -> None:
        """What an operation ended in has to be something that its caller could be told."""
        if task.cancelled():
            return
        error = task.exception()
        if error is None or isinstance(error, Crash | GeneratorExit):
            return
        if isinstance(error, PromiseBroken):
            raise error
        if isinstance(error, NanoVMError) and (error.code in _EXPECTED or self._is_half_erased(error)):
            return
        if isinstance(error, VerificationError):
            self.checkers.broken("P5", RUN, f"the engine's own journal does not fold: {error.code}")
        what = f"an operation ended in {type(error).__name__}: {getattr(error, 'code', error)}"
        self.checkers.broken("P11", RUN, what)

    def _is_half_erased(self, error: NanoVMError) -> bool:
        """In the middle of an erasure, and after a death there until `recover` completes it, nobody can go on with the
        run. (Who completed it may have been quicker than we are; a run that stays unreadable never ends, and is found.)
        """
        return error.code == "NO_KEYS" and self._is_being_erased()

    def _is_being_erased(self) -> bool:
        """Or has been."""
        return self.cabinet is not None and bool(vault_on(self.cabinet).all_erasures())

    async def _operate(self, process: Process) -> None:
        """What an application does: start the run - again, after a crash, under the same key - and look after it."""
        record = self._record()
        if record is None or self._draw.random() < 0.2:
            self.checkers.answered(await self._begin(process))
            return
        for trace in await process.engine.recover():
            self.checkers.answered(trace)
        record = self._record()
        if record is not None and record.status == RunStatus.SUSPENDED:
            await self._outside.give(process, process.engine.trace(RUN).waiting)

    async def _begin(self, process: Process) -> Trace:
        return await process.engine.run(
            self.program,
            self.context,
            trace_id=RUN,
            idempotency_key="the only one",
            principal=self._starter,
        )

    async def _run_beside(self, process: Process, number: int) -> None:
        """Another run of the same process: the two share their commits while both go along."""
        key = f"neighbour {number}"
        assert self._neighbour is not None
        trace = await process.engine.run(self._neighbour, {"x": number}, idempotency_key=key)
        self.checkers.answered(trace)

    async def _rival(self, process: Process) -> None:
        """Another worker, at any moment, wants the same runs."""
        await asyncio.sleep(self._draw.choice([0, 0.001, 0.5, 40]))
        for trace in await process.engine.recover():
            self.checkers.answered(trace)
        if self._moods.random() < 0.5 and self._record() is not None:
            await process.engine.take_up(RUN)  # whoever has it keeps it

    async def _interfere(self, process: Process) -> None:
        await asyncio.sleep(self._draw.choice([0, 0, 0.01, 1, 60]))
        fault = process.passes("outside")
        if fault is None or (fault != "clock_jump" and self._record() is None):
            return
        engine = process.engine
        match fault:
            case "clock_jump":
                self._clock.skew_ms += self._draw.choice([-3_600_000, -1_000, 1_000, 3_600_000])
            case "cancel":
                self.checkers.answered(await engine.cancel(RUN, "enough"))
            case "rival":
                await self._rival(process)
            case "duplicate" | "late":
                for event in self._outside.sent[-2:]:
                    await engine.resume(RUN, **event)
            case "corrupted":
                changes: list[dict[str, Any]] = [
                    {"event": {"approved": "perhaps", "text": HOSTILE}},
                    {"step": None, "item": None},
                ]
                for event in self._outside.sent[-1:]:
                    await engine.resume(RUN, **{**event, **self._draw.choice(changes)})
            case "stranger":
                await engine.resume(RUN, {"approved": True}, principal={"id": "eve", "roles": ["intern"]})
            case "oversized":
                await engine.resume(RUN, {"approved": True, "text": _HUGE}, name="go")
            case "shutdown":
                await engine.drain(_GRACE_S)
                process.end()
            case "verify" if not self._is_being_erased():
                engine.verify(RUN)
                verify_bundle(export(process.store, RUN, opened=engine.read).data)
            case "new_policy" if self.tighter is not None:
                engine.set_policy(self.tighter)
                self._options["policy"] = self.tighter
            case "erase" if self._personal:
                await engine.erase(subject=self.subject, reason="asked", by="ana")

    # --- looking after what waits -----------------------------------------------------------------------------

    async def _calm(self) -> None:
        """Nothing goes wrong any more: by now every run ends, or names what it waits for and ends when it gets it."""
        self.plan.quiet = True
        for process in self._processes:
            process.end()
        self._processes = []
        for _ in range(_CALM_TURNS_MAX):
            process = self._a_process()
            work = process.start(self._settle(process))
            await self._ended(work)
            self._judge(work)
            record = self._record()
            if record is not None and RunStatus(record.status).is_terminal:
                self.status = record.status
                return
            self._clock.skew_ms += _LEASE_MS
        self.checkers.broken("P10", RUN, "the run neither ends nor names what it waits for")

    async def _erase_all(self) -> None:
        """The person is erased at the latest now, and nobody finds anything of them any more (P7)."""
        assert self.cabinet is not None
        assert isinstance(self._place, Path)
        privacy = Privacy(self._place, self.cabinet, self.subject, self.checkers.broken)
        privacy.at_rest()
        copy, keys = privacy.keep_copy(), self.cabinet.copy()
        runs = {run_id: run.program for run_id, run in self.checkers.runs.items()}
        privacy.hashes = self.checkers.trace_hashes()
        process = self._a_process()
        await self._hold(process)
        work = process.start(process.engine.erase(subject=self.subject, reason="asked", by="ana"))
        await self._ended(work)
        self._judge(work)
        # A run that has ended may still be owned by one who died as he answered a stranger: it is told after a lease.
        self._clock.skew_ms += _LEASE_MS
        await self._ended(process.start(process.engine.recover()))
        privacy.erased(self.checkers.store, copy, runs)
        privacy.dead(self.checkers.store, keys, runs)
        await self._restore(copy, self.cabinet)
        privacy.told(copy, runs)
        await self._restore(self._place, keys)
        privacy.buried(self.checkers.store, keys, runs)

    async def _hold(self, process: Process) -> None:
        """What is held is not erased."""
        assert self.cabinet is not None
        if self._is_being_erased():
            return
        vault = vault_on(self.cabinet)
        try:
            vault.hold(subject=self.subject, reason="in court", by={"id": "ana"})
        except NotFoundError:
            return  # nothing of them is stored
        work = process.start(process.engine.erase(subject=self.subject, reason="asked", by="ana"))
        await self._ended(work)
        if getattr(work.exception(), "code", "") != "ERASURE_HELD":
            self.checkers.broken("P7", RUN, "somebody was erased who is held")
        vault.release(subject=self.subject)

    async def _restore(self, place: Path, cabinet: SharedCabinet) -> None:
        """The store or the keys come out of a back-up, and somebody recovers."""
        with SqliteStore(place, durability="normal") as store:
            self._clock.skew_ms += _LEASE_MS
            engine = Engine(
                llm=None, store=store, clock=self._clock, tools=self._tools, keys=vault_on(cabinet)
            )
            await engine.recover()

    async def _settle(self, process: Process) -> None:
        engine = process.engine
        if self._record() is None:
            await self._begin(process)
            return
        await engine.recover()
        record = self._record()
        assert record is not None
        if record.status == RunStatus.SUSPENDED:
            await self._outside.give(process, engine.trace(RUN).waiting)

    # --- processes --------------------------------------------------------------------------------------------

    def _a_process(self) -> Process:
        return self._processes[0] if self._processes else self._spawn()

    def _spawn(self) -> Process:
        self._spawned = getattr(self, "_spawned", 0) + 1
        process = Process(
            self._spawned,
            seed=self.seed,
            store=self._open(),
            tools=self._tools,
            llm=self._llm,
            clock=self._clock,
            plan=self.plan,
            watcher=self.checkers,
            options=self._options,
            vault=self._vault if self.cabinet is not None else None,
        )
        self.checkers.living.add(process.owner)
        for program in self._called:
            with contextlib.suppress(Crash):
                process.engine.save_program(program)
        self._processes.append(process)
        return process

    def _vault(self, passes: Callable[[str], Any]) -> Any:
        assert self.cabinet is not None
        return vault_on(WatchedCabinet(self.cabinet, passes))

    def _record(self) -> Any:
        try:
            return self.checkers.store.record(RUN)
        except NotFoundError:
            return None


class _Checkers(Checkers):
    def __init__(self, store: Any, simulation: Simulation) -> None:
        sources: dict[str, Mapping[str, Any]] = {}
        compiled = {}
        beside = [] if simulation._neighbour is None else [simulation._neighbour]
        for source in (simulation.program, *simulation._called, *beside):
            program = Program.from_dict(source)
            sources[program.hash] = source
            compiled[program.hash] = compile_program(program, simulation._tools.schemas())
        keys = vault_on(simulation.cabinet) if simulation.cabinet is not None else None
        super().__init__(
            store, sources, compiled, keys=keys, vouched=None if simulation._own else (VOUCHED, SURE)
        )
        self._place = simulation._place

    def transactional(self) -> Counter[tuple[str, str]]:
        rows = _effects_in_file(self._place) if isinstance(self._place, Path) else _effects_at(self._place)
        return Counter((run_id, step) for run_id, step in rows)


_EFFECTS = "SELECT run, step FROM simulated_effects"  # a table that is there once such a tool was called


def _effects_in_file(path: Path) -> list[Any]:
    with contextlib.closing(sqlite3.connect(path)) as con:
        try:
            return con.execute(_EFFECTS).fetchall()
        except sqlite3.OperationalError:
            return []


def _effects_at(address: str) -> list[Any]:
    import psycopg

    with psycopg.connect(address) as con:
        try:
            return con.execute(_EFFECTS).fetchall()
        except psycopg.errors.UndefinedTable:
            return []


def shrink(report: Report, **options: Any) -> Report:
    """The same failure with as few faults as it takes.

    Args:
        report: of a simulation with findings.
        options: what `Simulation` was given, but for seed and faults.

    Returns:
        A report whose first finding breaks the same promise; `report` itself when nothing can be left out.
    """
    promise = report.findings[0].promise
    smallest = report
    left = sorted(report.faults)
    place = 0
    while place < len(left):
        fewer = [moment for moment in left if moment != left[place]]
        faults = {moment: report.faults[moment] for moment in fewer}
        tried = Simulation(report.seed, faults=faults, **options).run()
        if tried.findings and tried.findings[0].promise == promise:
            smallest, left = tried, fewer
        else:
            place += 1
    return smallest


def simulate(seeds: Iterable[int], **options: Any) -> list[Report]:
    """One simulation for each seed; reports with findings are shrunk. `options` as for `Simulation`."""
    reports = []
    for seed in seeds:
        report = Simulation(seed, **options).run()
        reports.append(shrink(report, **options) if report.findings and report.faults else report)
    return reports
