"""A run's state and its journal, kept together: what the kernel takes is journaled with the next commit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import msgspec

from nano_vm.errors import NanoVMError, RuntimeFault
from nano_vm.journal.entry import Chain, Entry, SealedEntries
from nano_vm.journal.plain import Success
from nano_vm.journal.port import RunRecord, RunUpdate
from nano_vm.journal.standing import standing
from nano_vm.kernel import events as ev
from nano_vm.kernel.state import Rejection, RunStatus, Stage, State
from nano_vm.kernel.transition import apply
from nano_vm.program.compiled import CompiledProgram
from nano_vm.runtime.sealing import is_sealed, seal_entry

if TYPE_CHECKING:
    from nano_vm.runtime.engine import Engine
    from nano_vm.runtime.governing import Gate


_SUSPENDED = RunStatus.SUSPENDED.value
Loop: TypeAlias = "asyncio.AbstractEventLoop | None"
Durable: TypeAlias = "Callable[[str, int, Chain, Success, bytes, Loop], Awaitable[None] | None]"
Answer: TypeAlias = "asyncio.Future[Rejection | None]"


class RunLeft(Exception):
    """The run was let go before it could take the event: deliver it by way of the store."""


class JournaledRun(msgspec.Struct, eq=False):
    """One run that this process owns, as far as its journal goes. (A Struct because C code makes it: with so many
    fields a run of a few steps would notice.)"""

    engine: Engine
    program: CompiledProgram
    record: RunRecord
    state: State
    chain: Chain
    fence: int
    created: bool  # in the store
    principal: dict[str, Any] | None = None  # who started it
    gate: Gate | None = None  # what governs the run
    listener: Any = None
    heard: list[tuple[Entry, ev.Event]] = []  # journaled, not yet told to the listeners
    batch: list[Entry] | SealedEntries = []
    pending: list[Success] = []  # taken along the lane, not sealed yet; they come after the batch
    recorded: str = RunStatus.RUNNING.value  # what the stored record says
    key_id: str | None = None  # of the data key that private values are sealed under
    named: bool = False  # whoever looks for the runs of that key finds this one by its journal
    unsealed: list[Entry] = []  # until then: its sealed entries as they were before
    closed: bool = False  # some of its values cannot be read any more
    opening: tuple[ev.RunStarted, bytes] | None = None  # the start of the run, not applied yet
    _open: ev.Event | None = None  # applied, not sealed yet: intents may still ride with it
    _open_payload: bytes | None = None
    _riders: list[ev.Event] = []
    _answers: list[tuple[Answer, Rejection | None]] = []  # told when durable

    @property
    def is_awaited(self) -> bool:
        """Whether somebody is told as soon as what has been taken is durable."""
        return bool(self._answers)

    def open(self) -> None:
        """Begin: what the run starts with has not been applied yet."""
        if self.opening is not None:
            opening, self.opening = self.opening, None
            self.record_event(*opening)

    def offer(self, event: ev.Event, payload: bytes | None) -> Rejection | None:
        """Apply an event and journal it with the next commit; a rejection leaves everything as it was."""
        result = apply(self.program, self.state, event)
        if type(result) is Rejection:
            return result
        if self.state.verdicts:
            event.verdicts = self.state.verdicts  # type: ignore[union-attr]
        if self.state.label:
            event.label = self.state.label  # type: ignore[union-attr]
        if self.gate is not None:
            self.gate.progress.follow(event, self.state)
        if self._open is not None:
            self._seal()
        self._open = event
        self._open_payload = payload
        return None

    def record_event(self, event: ev.Event, payload: bytes | None = None) -> None:
        """`offer` for events that the kernel must admit."""
        rejection = self.offer(event, payload)
        if rejection is not None:
            defect(self.record.run_id, event, rejection)

    def record_intent(self, event: ev.Event) -> Rejection | None:
        """Apply an intent and let it ride with the outcome it follows from: one entry, one commit. What is requested
        is a function of the journal before it, so it is not written again."""
        if self._open is None:
            return self.offer(event, None)
        result = apply(self.program, self.state, event)
        if type(result) is Rejection:
            return result
        if self.state.label:
            event.label = self.state.label  # type: ignore[union-attr]
        self._riders.append(event)
        return None

    def ride(self, event: ev.Event) -> None:
        """An intent that the kernel has taken already."""
        if self._open is None:
            self._open, self._open_payload = event, None
        else:
            self._riders.append(event)

    def retain(self, event: ev.Event, payload: bytes | None) -> None:
        """An outcome that the kernel has taken already."""
        if self._open is not None:
            self._seal()
        self._open, self._open_payload = event, payload

    def seal_open(self) -> None:
        """Nothing will ride with the open entry."""
        if self._open is not None:
            self._seal()

    def seal_pending(self) -> None:
        """Seal what was taken along the lane, in one go."""
        pending, engine = self.pending, self.engine
        salts = engine.salts(len(pending))
        if engine.compact and not self.batch:
            self.batch = self.chain.seal_compactly(pending, salts)
        else:
            self._gathered().extend(self.chain.seal_successes(pending, salts))
        pending.clear()

    def _gathered(self) -> list[Entry]:
        if type(self.batch) is not list:
            self.batch = list(self.batch)
        return self.batch

    def intend(self, event: ev.Event) -> None:
        rejection = self.record_intent(event)
        if rejection is not None:
            defect(self.record.run_id, event, rejection)

    def _seal(self) -> None:
        """Close the open entry: nothing rides with it any more."""
        event, payload = self._open, self._open_payload
        assert event is not None
        engine = self.engine
        if payload is not None and self.state.labels is not None and is_sealed(event):
            entry = seal_entry(self, event, payload, self._riders)
        else:
            salt = engine.entropy.salt() if payload is not None else b""
            entry = self.chain.seal(event, salt, payload, self._riders)
        self._gathered().append(entry)
        if self.listener is not None or engine.listeners:
            engine.announce(self, entry, event)
            for rider in self._riders:
                engine.announce(self, entry, rider)
        self._open = None
        if self._riders:
            self._riders = []

    def commit(self, update: RunUpdate | None = None, loop: Loop = None) -> Awaitable[None] | None:
        """Make the batch durable. `loop`: the one that runs here, where that is known."""
        if self.pending:
            engine = self.engine
            if (
                update is None
                and len(self.pending) == 1
                and self.created
                and engine.append_plain is not None
                and not self.batch
                and self._open is None
                and self.recorded != _SUSPENDED
            ):
                # Nothing has to be written before it, or with it.
                salt = engine.entropy.salt()
                plain: Durable = engine.append_plain
                return plain(self.record.run_id, self.fence, self.chain, self.pending.pop(), salt, loop)
            self.seal_pending()
        if self._open is not None:
            self._seal()
        entries = self.batch
        if self.unsealed and entries:
            self.engine.note_if_erased(self, list(entries))
        if update is None:
            if not entries:
                return None
            if self.recorded == _SUSPENDED and self.goes_on:
                # Its record has to say so: nobody looks after a run that waits for nothing and is called SUSPENDED.
                update = self.update(release=False)
        if update is not None:
            self.recorded = update.status
        self.batch = []
        store = self.engine.store
        if self.created:
            return store.append(self.record.run_id, self.fence, entries, update)
        self.created = True
        if update is not None:
            _project(self.record, update)
        return store.create(self.record, entries)

    def put_down(self) -> bool:
        """Create a run that has ended before anybody could see it, and let go of it, in one; False where there is more
        to do."""
        engine = self.engine
        if not engine.volatile or self.created or self._open is not None or self.heard or self._answers:
            return False
        if self.pending:
            self.seal_pending()
        record, state, entries = self.record, self.state, self.batch
        self.created, self.recorded, self.batch = True, state.ending, []
        record.status, record.outcome, record.owner = state.ending, state.outcome, None
        record.updated_at_ms, record.length, record.head = state.now_ms, self.chain.length, self.chain.head
        engine.store.create(record, entries)
        return True

    async def flush(self, update: RunUpdate | None = None, *, creates: bool = False) -> None:
        """Make everything durable, and tell whoever waits for that. `creates`: whoever is cancelled over it is told so
        only once it is known whether the run has been `created`."""
        if self._open is not None:
            self._seal()
        heard, answers = self.heard, self._answers
        if heard:
            self.heard = []
        if answers:
            self._answers = []
        is_new = not self.created
        try:
            durable = self.commit(update)
            if durable is not None:
                await (self._see_created(durable) if creates else durable)
        except BaseException:
            for answer, _ in answers:
                refuse(answer)
            raise
        for answer, rejection in answers:
            if not answer.done():
                answer.set_result(rejection)
        if heard:
            self.engine.publish(self, heard)
        if (is_new or self.unsealed) and self.key_id is not None:
            self.engine.heed_erasures(self)

    async def _see_created(self, durable: Awaitable[None]) -> None:
        writing = asyncio.ensure_future(durable)
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            try:
                await writing
            except NanoVMError:
                self.created = False
            raise

    @property
    def goes_on(self) -> bool:
        """Whether the run goes on while its record still says that it waits."""
        return self.recorded == _SUSPENDED and self.state.status is RunStatus.RUNNING

    def update(self, release: bool) -> RunUpdate:
        """What the run's record says now."""
        if self.pending:
            self.seal_pending()
        if self._open is not None:
            self._seal()
        if self.state.stage is Stage.ENDED:
            return RunUpdate(
                status=self.state.ending,
                outcome=self.state.outcome,
                updated_at_ms=self.engine.clock.now_ms(),
                length=self.chain.length,
                head=self.chain.head,
                release=release,
            )
        stands = standing(self.program, self.state)
        return RunUpdate(
            status=stands.status,
            outcome=stands.outcome,
            waits=stands.waits,
            wake_at_ms=stands.wake_at_ms,
            updated_at_ms=self.engine.clock.now_ms(),
            length=self.chain.length,
            head=self.chain.head,
            release=release,
        )


def new_answer() -> asyncio.Future[Rejection | None]:
    answer: asyncio.Future[Rejection | None] = asyncio.get_running_loop().create_future()
    answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # whether anybody asks or not
    return answer


def refuse(answer: asyncio.Future[Rejection | None] | None) -> None:
    if answer is not None and not answer.done():
        answer.set_exception(RunLeft())


def _project(record: RunRecord, update: RunUpdate) -> None:
    record.status = update.status
    record.outcome = update.outcome
    record.waits = update.waits
    record.wake_at_ms = update.wake_at_ms
    record.updated_at_ms = update.updated_at_ms
    record.length = update.length
    record.head = update.head
    if update.release:
        record.owner = None


def defect(run_id: str, event: ev.Event, rejection: Rejection) -> NoReturn:
    raise RuntimeFault(
        "INTERNAL",
        f"the kernel refused {event.type} of run {run_id}: {rejection.code} {rejection.message}",
        facts={"run_id": run_id, "event": event.type, "rejection": rejection.code},
    )
