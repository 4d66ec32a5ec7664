"""What a scenario is given - an engine, a clock, a place - and where it says what it found."""

from __future__ import annotations

import asyncio
import math
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from nano_vm.journal.port import JournalStore
from nano_vm.journal.trace import Trace
from nano_vm.stores.memory import MemoryJournalStore
from nano_vm.stores.sqlite import Durability
from nano_vm.testing.databases import database_at
from nano_vm.vm import ExecutionVM

T = TypeVar("T")
_VIOLATIONS_SHOWN = 20
PERCENTILES: Final = (50, 95, 99)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a scenario is carried out: `store` is memory, sqlite or postgresql. `quick` is for a smoke run: the same
    checks on a fraction of the work."""

    store: str = "sqlite"
    durability: str = "full"
    seed: int = 1
    quick: bool = False


class Figures(msgspec.Struct, kw_only=True):
    """What a scenario came to.

    A `unit` (a run, a replay …) is what is timed: `throughput` of them per second, and how long each took while others
    went on beside it. `cpu_us_per_step` counts every process and thread of ours; `stored_bytes_per_step` is what the
    database grew by, or the size of the entries where the store is memory. Memory is the process's peak by the end of
    what was timed. `checks` says how often an invariant was looked at; `violations` are sentences, the first of them.
    """

    name: str
    unit: str = "run"
    store: str = "sqlite"
    durability: str | None = None
    runs: int = 0
    steps: int = 0
    seconds: float = 0.0
    throughput: float = 0.0
    steps_per_second: float = 0.0
    latency_ms: dict[str, float] = {}
    cpu_us_per_step: float = 0.0
    peak_memory_bytes: int = 0
    stored_bytes_per_step: float = 0.0
    effects: int = 0
    checks: int = 0
    violated: int = 0
    violations: list[str] = []
    facts: dict[str, Any] = {}

    @property
    def holds(self) -> bool:
        """Whether the invariant was looked at, and held."""
        return self.checks > 0 and self.violated == 0

    def to_dict(self) -> dict[str, Any]:
        return {**msgspec.to_builtins(self), "holds": self.holds}


class Setting:
    """One scenario at work.

    Args:
        place: a directory of its own.
        options: as asked for on the command line.
    """

    def __init__(self, name: str, place: Path, options: Options) -> None:
        self.place = place
        self.options = options
        self.figures = Figures(name=name, store=options.store)
        if options.store != "memory":
            self.figures.durability = options.durability
        self.database = database_at(place)
        self._empty_bytes = 0
        self._memory = MemoryJournalStore()
        self._stores: list[JournalStore] = []
        self._latencies: list[float] = []
        self._cpu = 0.0

    def size(self, full: int, quick: int) -> int:
        return quick if self.options.quick else full

    # --- engines ----------------------------------------------------------------------------------------------

    def open(self) -> JournalStore:
        """A store object on the scenario's data: another one on the same file, or the same memory."""
        if self.options.store == "memory":
            return self._memory
        durability: Durability = "full" if self.options.durability == "full" else "normal"
        self.prepare()
        store = self.database.open(durability)
        self._stores.append(store)
        return store

    def vm(self, tools: Iterable[Callable[..., Any]] = (), **options: Any) -> ExecutionVM:
        """A fresh engine on `open()`."""
        return ExecutionVM(tools=tools, store=self.open(), **options)

    def close(self) -> None:
        """Close every store and weigh what is left behind."""
        if self.figures.store == "memory":
            self.weigh(sum(map(_weight, _entries_of(self._memory))))
        elif self._stores:
            for store in self._stores:
                store.close()
            self.weigh_database()
        self._stores.clear()

    def weigh_database(self) -> None:
        """What the runs have added to the database, once nobody has it open."""
        self.weigh(self._on_disk() - self._empty_bytes)

    def prepare(self) -> None:
        """Make the database's tables, and weigh them empty, before anything is timed."""
        if self._empty_bytes == 0:
            self.database.open("normal").close()
            self._empty_bytes = self._on_disk()

    def _on_disk(self) -> int:
        return self.database.stored_bytes() + self.database.log_bytes()

    def weigh(self, found: int) -> None:
        """`found` bytes are stored in the end."""
        self.figures.stored_bytes_per_step = round(found / max(self.figures.steps, 1), 1)

    # --- timing -----------------------------------------------------------------------------------------------

    async def timed(self, work: Iterable[Callable[[], Awaitable[T]]], width: int = 1) -> list[T]:
        """Do all of `work`, `width` at a time, under the clock. Returns what each came to, in order; raises the first
        error after all have ended."""
        jobs = list(work)
        found: list[T | None] = [None] * len(jobs)
        turns = iter(enumerate(jobs))

        async def lane() -> None:
            for number, job in turns:
                began = time.perf_counter()
                found[number] = await job()
                self._latencies.append(time.perf_counter() - began)

        cpu, began = cpu_seconds(), time.perf_counter()
        done = await asyncio.gather(*(lane() for _ in range(min(width, len(jobs)))), return_exceptions=True)
        self.figures.seconds += time.perf_counter() - began
        self._cpu += cpu_seconds() - cpu
        self.figures.peak_memory_bytes = max(self.figures.peak_memory_bytes, peak_bytes())
        for error in done:
            if error is not None:
                raise error
        return found  # type: ignore[return-value]

    def took(self, seconds: float, cpu: float, latencies: Iterable[float], peak: int) -> None:
        """What was timed elsewhere: seconds, and the peak of memory in bytes."""
        self.figures.peak_memory_bytes = max(self.figures.peak_memory_bytes, peak)
        self.figures.seconds += seconds
        self._cpu += cpu
        self._latencies += latencies

    # --- finding ----------------------------------------------------------------------------------------------

    def ran(self, *traces: Trace) -> None:
        """These runs are counted, and their steps."""
        self.figures.runs += len(traces)
        self.figures.steps += sum(len(trace.path) for trace in traces)

    def expect(self, promise: str, holds: bool, otherwise: Callable[[], str] | str) -> None:
        """An invariant is looked at: `otherwise` says what is wrong where it does not hold."""
        self.figures.checks += 1
        if holds:
            return
        self.figures.violated += 1
        if len(self.figures.violations) < _VIOLATIONS_SHOWN:
            what = otherwise if isinstance(otherwise, str) else otherwise()
            self.figures.violations.append(f"{promise}: {what}")

    def finish(self) -> Figures:
        """The figures, after `close`."""
        figures = self.figures
        seconds = max(figures.seconds, 1e-9)
        figures.throughput = round(len(self._latencies) / seconds, 2)
        figures.steps_per_second = round(figures.steps / seconds, 1)
        figures.seconds = round(figures.seconds, 4)
        figures.latency_ms = percentiles(self._latencies)
        figures.cpu_us_per_step = round(self._cpu / max(figures.steps, 1) * 1e6, 2)
        if figures.checks == 0:
            figures.violations.append("nothing was checked")
        return figures


def percentiles(seconds: Iterable[float]) -> dict[str, float]:
    """{"p50", "p95", "p99", "max"} in milliseconds, by the nearest rank."""
    ordered = sorted(seconds)
    if not ordered:
        return {}
    found = {f"p{n}": ordered[max(0, math.ceil(n / 100 * len(ordered)) - 1)] for n in PERCENTILES}
    found["max"] = ordered[-1]
    return {name: round(value * 1_000, 3) for name, value in found.items()}


def cpu_seconds() -> float:
    """Processor time of this process and of the children it has waited for."""
    used = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        used += usage.ru_utime + usage.ru_stime
    return used


def peak_bytes() -> int:
    """The most memory this process has had."""
    try:
        # Linux hands a parent's peak on to the child it starts; this one does not.
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _entries_of(store: JournalStore) -> Iterable[Any]:
    cursor = 0
    while True:
        after, found = store.tail(cursor)
        yield from (entry for _, entry in found)
        if not found:
            return
        cursor = after


def _weight(entry: Any) -> int:
    return len(entry.facts) + len(entry.payload or b"") + len(entry.salt or b"")
