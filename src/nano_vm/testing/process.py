"""One simulated process: the real engine on a real store, which can die at any moment of the plan.

A dead process does nothing any more: every call it makes raises `Crash`, its tasks are ended, what its store had
gathered and not committed is lost, and the lock that said it was alive is free.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import msgspec

from nano_vm.errors import StoreError
from nano_vm.journal.port import JournalStore, RunRecord
from nano_vm.runtime.engine import Engine
from nano_vm.runtime.ports import Clock, Completion, Message, ModelClient, ToolInvoker, ToolSpec
from nano_vm.runtime.threads import ToolThreads
from nano_vm.runtime.tooling import ToolContext, ToolError
from nano_vm.testing.faults import Crash, FaultPlan
from nano_vm.testing.world import HOSTILE

_T = TypeVar("_T")
_HANG_S = 90.0  # longer than a lease, and than the time-outs of random programs
_HUGE = "x" * (9 * 1024 * 1024)  # above every limit of a payload
_PLAIN = "act_plain_"  # the world's tools that say in their arguments who calls them

current: ContextVar[Process | None] = ContextVar("nano_vm_simulated_process", default=None)


class Watcher:
    """Whoever checks the promises: told of every call and of everything that has become durable."""

    def durable(self, run_id: str) -> None:
        """Something of the run was committed."""

    def begins(self, context: ToolContext, spec: ToolSpec, arguments: dict[str, Any]) -> None:
        """A tool is called."""

    def happened(self, context: ToolContext, spec: ToolSpec) -> None:
        """A tool has returned: its effect is there."""

    def begins_plainly(self, run_id: str, step: str, spec: ToolSpec, arguments: dict[str, Any]) -> None:
        """A tool is called that is told nothing but its arguments."""

    def happened_plainly(self, run_id: str, step: str, spec: ToolSpec) -> None:
        """It has returned."""

    def dies(self, owner: str) -> None:
        """A process is gone, under the name by which it owned runs."""

    def claims(self, run_id: str, before: Any, owner: str, now_ms: int, fence: int | None) -> None:
        """Somebody who owns a run that stood as `before`, or does not get it."""

    def has_lost(self, run_id: str, fence: int) -> bool:
        """Whether somebody else has claimed the run since that fence was given out."""
        return False

    def wrote_late(self, run_id: str) -> None:
        """Somebody has written to a run after he had lost it."""

    def asks(self, messages: list[Message], params: dict[str, Any]) -> None:
        """A model is called."""


class SimulatedEntropy:
    """The `Entropy` port, from a seed."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    def salt(self) -> bytes:
        return self._random.randbytes(16)

    def draw(self) -> int:
        return self._random.randrange(1_000_000)


class _NoThreads(ToolThreads):
    """Blocking functions are called in the loop: a thread would finish whenever it likes."""

    async def run(self, function: Callable[[], _T]) -> _T:
        return function()


class Process:
    """One process of a simulation.

    Args:
        store: a store object of its own; it must have `abandon`.
        plan: what goes wrong.
        watcher: who checks.
        vault: makes the process's vault, given what passes the moments there.
    """

    def __init__(
        self,
        number: int,
        *,
        seed: int,
        store: Any,
        tools: ToolInvoker,
        llm: ModelClient | None,
        clock: Clock,
        plan: FaultPlan,
        watcher: Watcher,
        options: dict[str, Any] | None = None,
        vault: Callable[[Callable[[str], Any]], Any] | None = None,
    ) -> None:
        self.number = number
        self.plan = plan
        self.watcher = watcher
        self.dead = False
        self.tasks: set[asyncio.Task[Any]] = set()
        self._store = store
        self._ready = False
        # Opening a vault is no moment: there is nothing yet that could die.
        keys = vault(lambda kind: self._ready and self.passes(kind)) if vault is not None else None
        self.engine = Engine(
            llm=None if llm is None else _Model(self, llm),
            tools=_Tools(self, tools),
            store=_Store(self, store),
            clock=clock,
            entropy=SimulatedEntropy(f"{seed}/{number}"),
            **{"keys": keys, "secrets": keys, **(options or {})},
        )
        self._ready = True
        self.owner: str = store.owner
        self.engine.threads = self.engine.calls.threads = _NoThreads()

    @property
    def policy_hash(self) -> str | None:
        """Of the policy that is in force in this process."""
        return None if self.engine.policy is None else self.engine.policy.hash

    @property
    def store(self) -> Any:
        """Its store, without the moments."""
        return self._store

    @property
    def is_committing(self) -> bool:
        return bool(self._store.at_work)

    def start(self, operation: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Run an operation in this process."""
        token = current.set(self)
        try:
            return asyncio.get_running_loop().create_task(operation)
        finally:
            current.reset(token)

    def alive(self) -> None:
        if self.dead:
            raise Crash

    def crash(self) -> None:
        """Die, here and now."""
        self.end()
        raise Crash

    def end(self) -> None:
        """Kill the process from outside."""
        if self.dead:
            return
        self.dead = True
        self.watcher.dies(self.owner)
        self.engine.keeper.close()
        self._store.abandon()
        here = asyncio.current_task()
        for task in list(self.tasks):
            if task is not here:
                task.cancel()

    def passes(self, kind: str) -> str | None:
        """A moment of the plan; a crash happens right here."""
        self.alive()
        fault = self.plan.at(kind)
        if fault == "crash":
            self.crash()
        return fault


def adopt_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Have every task know the process it belongs to, so that it dies with it."""

    def factory(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **options)
        owner = current.get()
        if owner is not None:
            owner.tasks.add(task)
            task.add_done_callback(owner.tasks.discard)
        return task

    loop.set_task_factory(factory)


class _Store:
    """The process's way to its store: every write to the journal passes two moments of the plan."""

    def __init__(self, process: Process, store: JournalStore) -> None:
        self.__dict__["_process"] = process
        self.__dict__["_inner"] = store
        self.__dict__["_claimed"] = {}  # of claims that are not written yet: how the run stood, and when

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        self._process.alive()
        if not callable(value):
            return value

        def call(*args: Any, **options: Any) -> Any:
            self._process.alive()
            return value(*args, **options)

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        if not self._process.dead:  # the hints of an engine to its store
            setattr(self._inner, name, value)

    @property
    def owner(self) -> Any:
        return self._inner.owner

    def create(self, record: Any, entries: Any) -> Any:
        return self._write(record.run_id, lambda: self._inner.create(record, entries))

    def claim(self, run_id: str, now_ms: int, known: RunRecord | None = None) -> int | None:
        self._process.alive()
        before = self._inner.record(run_id)
        fence: int | None = self._inner.claim(run_id, now_ms, known)
        if fence is None or self._inner.record(run_id).fence == fence:
            self._claimed.pop((run_id, fence), None)  # one that was given back
            self._process.watcher.claims(run_id, before, self._inner.owner, now_ms, fence)
        else:
            self._claimed[run_id, fence] = before, now_ms  # it is written with what is added next
        return fence

    def append(self, run_id: str, fence: int, entries: Any, update: Any = None) -> Any:
        return self._write(run_id, lambda: self._inner.append(run_id, fence, entries, update), fence)

    def append_plain(self, run_id: str, fence: int, *success: Any) -> Any:
        return self._write(run_id, lambda: self._inner.append_plain(run_id, fence, *success), fence)

    def annex(self, run_id: str, build: Any) -> Any:
        return self._write(run_id, lambda: self._inner.annex(run_id, build))

    def _write(self, run_id: str, write: Callable[[], Any], fence: int | None = None) -> Any:
        if self._process.passes("write") == "disk_full":
            raise StoreError("STORE_FULL", "the disk is full")
        is_late = fence is not None and self._process.watcher.has_lost(run_id, fence)
        durable = write()
        if durable is not None:
            return self._wait(run_id, durable, is_late, fence)
        self._written(run_id, is_late, fence)
        return None

    async def _wait(self, run_id: str, durable: Any, is_late: bool, fence: int | None) -> None:
        await durable
        self._written(run_id, is_late, fence)

    def _written(self, run_id: str, is_late: bool = False, fence: int | None = None) -> None:
        process = self._process
        process.alive()
        claimed = None if fence is None else self._claimed.pop((run_id, fence), None)
        if claimed is not None:
            before, now_ms = claimed
            process.watcher.claims(run_id, before, self._inner.owner, now_ms, fence)
        if is_late:
            process.watcher.wrote_late(run_id)
        process.watcher.durable(run_id)
        if process.passes("written") == "fsync_failed":
            raise StoreError("STORE_IO", "the disk reports an error")

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        self._process.passes("write")  # a full disk shows at the commit: as a crash it is simulated before it
        run_ids: list[str] = []
        async with self._inner.transaction() as transaction:
            yield _Transaction(transaction, run_ids)
            self._process.alive()
        for run_id in run_ids:
            self._written(run_id)


class _Transaction:
    def __init__(self, inner: Any, run_ids: list[str]) -> None:
        self._inner = inner
        self._run_ids = run_ids

    @property
    def connection(self) -> Any:
        return self._inner.connection

    def append(self, run_id: str, *args: Any, **options: Any) -> None:
        self._inner.append(run_id, *args, **options)
        self._run_ids.append(run_id)


class _Tools:
    """The tools of a simulation: what they do is theirs, what goes wrong around it is the plan's."""

    def __init__(self, process: Process, tools: ToolInvoker) -> None:
        self._process = process
        self._tools = tools
        self._specs: dict[str, ToolSpec] = {}

    def schemas(self) -> Any:
        return self._tools.schemas()

    def spec(self, name: str) -> ToolSpec | None:
        known = self._specs.get(name)
        if known is None:
            spec = self._tools.spec(name)
            if spec is None:
                return None
            known = self._specs[name] = self._simulated(spec)
        return known

    def _simulated(self, spec: ToolSpec) -> ToolSpec:
        if spec.name.startswith(_PLAIN):
            return self._plain(spec)
        parameter = spec.context_parameter

        async def call(**arguments: Any) -> Any:
            context = arguments[parameter] if parameter else arguments.pop("ctx")
            watcher = self._process.watcher
            self._process.alive()
            shown = {name: value for name, value in arguments.items() if name != parameter}
            watcher.begins(context, spec, shown)
            return await self._call(spec, arguments, lambda: watcher.happened(context, spec))

        return msgspec.structs.replace(
            spec, function=call, is_async=True, context_parameter=parameter or "ctx"
        )

    def _plain(self, spec: ToolSpec) -> ToolSpec:
        """Without a context, so that the lane calls it as it calls the tools of an application."""

        async def call(**arguments: Any) -> Any:
            watcher = self._process.watcher
            self._process.alive()
            run_id, _, step = arguments["at"].partition(" ")
            watcher.begins_plainly(run_id, step, spec, arguments)
            return await self._call(spec, arguments, lambda: watcher.happened_plainly(run_id, step, spec))

        return msgspec.structs.replace(spec, function=call, is_async=True)

    async def _call(self, spec: ToolSpec, arguments: dict[str, Any], happened: Callable[[], None]) -> Any:
        process = self._process
        fault = process.passes("effect")
        if fault is not None:
            raise ToolError(fault, retryable=fault == "failed", code=fault.upper())
        value = spec.function(**arguments)
        if spec.is_async:
            value = await value
        happened()
        fault = process.passes("effected")
        if fault == "hang" and spec.effect == "transactional":
            fault = None  # it would hold the database, and with it every other process
        return await self._answer(fault, value)

    @staticmethod
    async def _answer(fault: str | None, value: Any) -> Any:
        match fault:
            case "lost_answer":
                raise ConnectionError("the answer is lost")
            case "hang":
                await asyncio.sleep(_HANG_S)
            case "oversized":
                return _HUGE
            case "not_json":
                return {object()}
        return value


class _Model:
    def __init__(self, process: Process, llm: ModelClient) -> None:
        self._process = process
        self._llm = llm

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)  # `price`, where the adapter has it

    async def complete(self, messages: list[Message], **params: Any) -> str | Completion:
        process = self._process
        process.alive()
        process.watcher.asks(messages, params)
        fault = process.passes("model")
        if fault == "provider_down":
            raise ConnectionError("the provider is down")
        if fault == "hang":
            await asyncio.sleep(_HANG_S)
        answer = await self._llm.complete(messages, **params)
        fault = process.passes("modelled")
        if fault in ("garbage", "oversized"):
            text = HOSTILE if fault == "garbage" else _HUGE
            if isinstance(answer, Completion):
                return msgspec.structs.replace(answer, text=text)
            return text
        return answer
