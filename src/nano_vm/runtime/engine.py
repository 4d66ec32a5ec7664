"""The engine: everything that can be done with runs (SPEC §7). `nano_vm.ExecutionVM` is this with defaults.

An engine owns no global state: two of them, in one process or in many, share runs through their store alone.
"""

from __future__ import annotations

import asyncio
import math
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

from nano_vm import canonical
from nano_vm.errors import ConflictError, NanoVMError, RuntimeFault
from nano_vm.journal.entry import Chain, Entry
from nano_vm.journal.port import (
    DEFAULT_TENANT,
    JournalStore,
    Pause,
    RunRecord,
)
from nano_vm.journal.replay import KEYED
from nano_vm.journal.trace import Trace
from nano_vm.kernel import events as ev
from nano_vm.kernel.commands import CallTool, StartChild
from nano_vm.kernel.state import State
from nano_vm.policy.load import PolicySource
from nano_vm.policy.model import Policy
from nano_vm.program.compiled import CompiledProgram
from nano_vm.program.model import Program
from nano_vm.runtime import (
    approvals,
    children,
    closing,
    control,
    erasure,
    forks,
    governing,
    listening,
    recovery,
)
from nano_vm.runtime.appearing import Appearances
from nano_vm.runtime.arguments import (
    check_callable,
    check_count,
    check_mapping,
    check_part,
    check_replanned,
    check_seconds,
    check_text,
    check_trace_id,
)
from nano_vm.runtime.calls import Calls, action_key
from nano_vm.runtime.closing import in_flight, shutting_down
from nano_vm.runtime.driver import Run
from nano_vm.runtime.journaled import JournaledRun
from nano_vm.runtime.keeper import Keeper
from nano_vm.runtime.listening import Progress
from nano_vm.runtime.looking import Looking
from nano_vm.runtime.outcomes import Outcome
from nano_vm.runtime.parking import Parking
from nano_vm.runtime.patience import patiently
from nano_vm.runtime.pausing import Pausing
from nano_vm.runtime.ports import (
    Clock,
    Entropy,
    Listener,
    ModelClient,
    SecretSource,
    SubjectKeys,
    ToolInvoker,
    ToolSpec,
)
from nano_vm.runtime.repetition import Said
from nano_vm.runtime.rights import ACT, APPROVE, READ, check_right, may, principal_of
from nano_vm.runtime.sealing import keyed_content
from nano_vm.runtime.starting import begin
from nano_vm.runtime.system import SystemClock, SystemEntropy
from nano_vm.runtime.threads import ToolThreads
from nano_vm.runtime.together import Waiting
from nano_vm.runtime.turns import Turns

_T = TypeVar("_T")
_E = TypeVar("_E", bound="Engine")
_UNSET = ev.UNSET


class Engine(Looking):
    """Runs programs against a store, with tools and a model.

    Args:
        llm: an adapter with `async complete(messages, **params)`; None when no program has a model step.
        tools: the tools that programs may name.
        store: where journals live.
        clock, entropy: time and chance; the defaults are the real ones.
        max_concurrent_runs: how many runs may be in progress at once in this engine; 0 for no limit. Called programs,
            and what a tool runs in this engine, are part of the run that calls.
        secrets: what opens `vault://secret/…` for the tool parameters that are entitled to it.
        keys: the keys that private and secret values are stored under; `make_keys` makes them when they are first
            needed, where they may be gone with the process.
        policy: what runs may do: a `Policy`, a dict, or a file. Runs that are started here are pinned to it; those that
            are taken up here have to be allowed by it as well as by their own.
        access: "required": whoever acts has to be named and to hold a role that allows it; "open": whoever holds none
            of the roles in `nano_vm.runtime.rights` may do everything.

    Raises:
        InputError: USAGE for a part that is none. PolicyError: the policy cannot be accepted.
    """

    def __init__(
        self,
        *,
        llm: ModelClient | None,
        tools: ToolInvoker,
        store: JournalStore,
        clock: Clock | None = None,
        entropy: Entropy | None = None,
        max_concurrent_runs: int = 0,
        secrets: SecretSource | None = None,
        keys: SubjectKeys | None = None,
        make_keys: Callable[[], SubjectKeys] | None = None,
        policy: PolicySource | None = None,
        access: str = "open",
    ) -> None:
        check_part("llm", llm, "complete", 'llm=MockLLMAdapter("yes")')
        check_part("store", store, "record", 'store=SqliteStore("runs.db")')
        check_part("clock", clock, "now_ms", "leave it out")
        check_part("entropy", entropy, "salt", "leave it out")
        check_part("vault", keys, "subject_key", 'vault=Vault.beside("runs.db")')
        check_part("secrets", secrets, "open_secret", 'vault=Vault.beside("runs.db")')
        check_count("max_concurrent_runs", max_concurrent_runs)
        super().__init__(tools, store, clock or SystemClock(), keys, access)
        self.secrets = secrets
        self.make_keys = make_keys
        self.erasures_replayed = False  # since this engine was made, or since one was left to be completed
        self.erasing = 0  # erasures under way here
        self.completing: asyncio.Task[None] | None = None  # of erasures, what was left
        self.llm = llm
        self.entropy: Entropy = entropy or SystemEntropy()
        draw = self.entropy.salt
        self.salts: Callable[[int], list[bytes]] = getattr(self.entropy, "salts", None) or (
            lambda count: [draw() for _ in range(count)]
        )
        self.threads = ToolThreads()
        self.calls = Calls(llm, self.clock, self.entropy, self.threads, secrets)
        self.compact = bool(getattr(store, "compact", False))
        self.appearances = Appearances(store) if self.volatile else None
        self.groups = hasattr(store, "alone")  # the store gathers the appends of many runs into one commit
        self.append_plain = getattr(store, "append_plain", None)
        self.draining = False
        self.background: set[asyncio.Task[Any]] = set()  # kept from being collected
        # No cycle: an engine that nobody uses any more goes at once, with all it has.
        own = weakref.proxy(self)
        self.keeper = Keeper(own)
        self.listeners: list[Listener] = []
        self.companions: set[Engine] = set()  # that drive runs on this one's behalf with another model
        self.spare: Waiting | None = None  # for the next group of calls
        self.pausing = Pausing(own)
        self.parking = Parking()
        self.lane = True  # off in the tests that compare it with the general path
        self._id_ms, self._id_time = -1, ""  # what the ids of runs that begin in this millisecond begin with
        if policy is not None:
            self.set_policy(policy)
        self.turns = Turns(max_concurrent_runs) if max_concurrent_runs else None

    # --- programs ---------------------------------------------------------------------------------------------

    def save_program(self, program: Program | Mapping[str, Any], *, tenant: str | None = None) -> str:
        """Store a program under its name, so that `call` steps and other processes of the tenant find it. Returns its
        hash."""
        program, compiled = self.compile(program)
        whose = self.whose(None, tenant) or DEFAULT_TENANT
        if (program.hash, whose) not in self._stored:
            now = self.clock.now_ms()
            self.store.put_program(program.hash, compiled.name, program.canonical, now, whose)
            self._stored.add((program.hash, whose))
        return program.hash

    async def govern(self, run: Run, pinned: Policy | None) -> None:
        """Put the gate in front of a run that is about to start, and keep what it is pinned to."""
        if pinned is not None and not self.is_kept(pinned):
            await self.keep_policy(pinned)
        if pinned is not None or self.policy is not None or run.program.approves:
            run.gate = governing.Gate(run, pinned)

    # --- running ----------------------------------------------------------------------------------------------

    @in_flight
    async def run(
        self,
        program: Program | Mapping[str, Any],
        context: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        trace_id: str | None = None,
        principal: str | Mapping[str, Any] | None = None,
        tenant: str | None = None,
        listener: Callable[[Progress], None] | None = None,
        replanned: Mapping[str, Any] | None = None,
    ) -> Trace:
        """Run a program to its end, or to where it waits.

        Args:
            program: a `Program`, or a dict for one.
            context: the inputs; data that JSON has.
            idempotency_key: the same key (per tenant and program name) never starts a second run: callers get the
                first one's trace, whatever its status.
            trace_id: id for the run; unique. A time-ordered one is made by default.
            principal: who starts it: an id, or {"id", "roles", "tenant"}.
            listener: called with every event as soon as it is journaled.
            replanned: what the run goes on with ({"run", "head", "program", "number"}); see `replan_on_interrupt`.

        Returns:
            The trace. Its status is terminal, or SUSPENDED (then `trace.waiting` says for what), or RUNNING when the
            engine was closed in the middle.

        Raises:
            ProgramError: the program cannot be run. InputError: the context does not fit. ConflictError: KEY_CONFLICT
            or RUN_EXISTS. StoreError: the journal cannot be written; nothing is lost.
        """
        if listener is not None or replanned is not None:
            check_callable("listener", listener)
            check_replanned(replanned)
        run = await begin(
            self, program, context, idempotency_key, trace_id, principal, tenant, listener, replanned, True
        )
        if isinstance(run, Trace):
            return run
        await self.drive(run)
        return self.trace_of(run)

    def run_sync(
        self, program: Program | Mapping[str, Any], context: Mapping[str, Any] | None = None, **options: Any
    ) -> Trace:
        """`run` for code without an event loop."""
        return self._sync(lambda: self.run(program, context, **options))

    def _sync(self, make: Callable[[], Awaitable[_T]]) -> _T:
        async def main() -> _T:
            return await make()

        if asyncio._get_running_loop() is not None:
            raise RuntimeFault(
                "LOOP_RUNNING",
                "an event loop is running here, and `run_sync` needs one of its own",
                help="write `await vm.run(…)`",
            )

        # With nothing else in the loop a blocking tool needs no thread - unless leases have to be renewed meanwhile.
        self.calls.inline_sync = not self.live and not self.store.shared
        try:
            return asyncio.run(main())
        finally:
            self.calls.inline_sync = False

    @in_flight
    async def start(
        self,
        program: Program | Mapping[str, Any],
        context: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        trace_id: str | None = None,
        principal: str | Mapping[str, Any] | None = None,
        tenant: str | None = None,
    ) -> Trace:
        """Create a run without driving it: `step`, `recover` or a worker takes it on."""
        run = await begin(self, program, context, idempotency_key, trace_id, principal, tenant)
        if isinstance(run, Trace):
            return run
        await run.create()
        await run.flush(run.update(release=True))
        return self.trace_of(run)

    async def stream(
        self, program: Program | Mapping[str, Any], context: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncIterator[Progress]:
        """Run a program and yield its events as they are journaled. Leaving the loop early does not stop the run."""
        queue: asyncio.Queue[Progress | None] = asyncio.Queue()
        is_read = True

        def hear(progress: Progress) -> None:
            if is_read:  # else nothing would ever take it out again
                queue.put_nowait(progress)

        task = asyncio.ensure_future(self.run(program, context, listener=hear, **options))
        self.background.add(task)
        task.add_done_callback(self.background.discard)
        task.add_done_callback(lambda _: queue.put_nowait(None))
        try:
            while (progress := await queue.get()) is not None:
                yield progress
        finally:
            is_read = False
        await task

    def new_run_id(self, now_ms: int) -> str:
        """A UUIDv7: time-ordered, so that stores keep young runs together."""
        chance = self.entropy.salt().hex()
        if now_ms != self._id_ms:
            time = f"{now_ms & 0xFFFFFFFFFFFF:012x}"
            self._id_ms, self._id_time = now_ms, f"{time[:8]}-{time[8:]}-7"
        return f"{self._id_time}{chance[:3]}-{_VARIANT[chance[3]]}{chance[4:7]}-{chance[7:19]}"

    def new_run(self, record: RunRecord, compiled: CompiledProgram, who: dict[str, Any] | None) -> Run:
        state = State(run=record.run_id)
        chain = Chain(record.run_id)
        return Run(self, compiled, record, state, chain, 1, False, who)

    async def drive(self, run: Run) -> None:
        """Drive a run that this process owns until it ends, waits or is let go."""
        run_id = run.record.run_id
        run.loop = loop = asyncio.get_running_loop()
        run.driver = asyncio.current_task(loop)
        self.live[run_id] = run
        if self.groups:
            driven: set[int] = self.store.driven  # type: ignore[attr-defined]
            driven.add(id(run))
            # Others may be about to start in this very tick: the first commit waits for them.
            self.store.alone = False  # type: ignore[attr-defined]
        self.keeper.keep(loop)
        if run.key_id is not None and run.created and not run.named:  # it has just been
            self.heed_erasures(run)
        try:
            if self.turns is None or run.record.parent is not None:
                await run.drive()
            else:
                await self.turns.drive(run)
        finally:
            if (
                self.live.get(run_id) is run
            ):  # else its lease had run out, and it has been taken up here once more
                del self.live[run_id]
            if self.groups:
                driven.discard(id(run))
            if run.settled is not None and not run.settled.done():
                run.settled.set_result(None)
            if run.gate is not None:
                run.gate.let_go()
        if run.key_id is not None:
            await erasure.tell_if_erased(self, run)

    # --- acting on runs (each in a module of its own) ----------------------------------------------------------

    @in_flight
    async def resume(
        self,
        trace_id: str,
        event: Any = None,
        *,
        event_id: str | None = None,
        name: str | None = None,
        step: str | None = None,
        item: int | None = None,
        principal: str | Mapping[str, Any] | None = None,
    ) -> Trace:
        """Deliver an event to a run and drive it on.

        Args:
            event: the event's data; it becomes the output of the step that waits for it.
            event_id: identity of the event: repeating it with the same content answers alike, with other content is
                refused. Without one the content is its identity.
            name, step, item: which wait is meant, when there are several; `item` counts the elements of a map from 0.
            principal: who sends it; an approval needs one with a fitting role.

        Raises:
            RejectedError: the kernel does not admit the event (code says why); the refusal is journaled.
            NotFoundError: RUN_NOT_FOUND.
        """
        record = self.find(trace_id, principal, READ)
        right = APPROVE if approvals.only_approvals(record, step, name) else ACT
        check_right(self.access, principal, right)
        who = principal_of(principal, record.tenant)
        # What was waited for a moment ago was an approval: who may answer nothing else is held to that on arrival.
        approves = not may(self.access, principal, ACT)
        return await control.resume(self, record, event, event_id, name, step, item, who, approves=approves)

    @in_flight
    async def approve(
        self,
        trace_id: str,
        approved: bool = True,
        *,
        step: str | None = None,
        item: int | None = None,
        action: str | None = None,
        nonce: str | None = None,
        comment: str | None = None,
        principal: str | Mapping[str, Any] | None = None,
        event_id: str | None = None,
    ) -> Trace:
        """Approve, or refuse, what a run waits for, and drive it on. The approval is of the action as it is shown by
        `approvals` at this moment: it serves no other, and serves once.

        Args:
            step, item: which approval is meant, when there are several; for a called program's `call/step`,
                where a map calls `call[0]/step`.
            action: digest of the action that was seen: when the run has come to ask for another one since, the
                approval is refused (APPROVAL_VOID). One that the same approver has answered alike before, and that is
                asked for again, takes the nonce or an event id besides (AMBIGUOUS).
            nonce: that of the question that was seen: the approval serves no later question about the same action.
            comment: kept with the answer.
            principal: who approves; needs the roles that are asked for.

        Raises:
            RejectedError: NOT_APPROVER, SELF_APPROVAL, APPROVAL_VOID, APPROVAL_EXPIRED, NOT_WAITING, …: the refusal
            is journaled.
        """
        said = Said(approved, comment, step, item, action, nonce, event_id)
        return await approvals.approve(self, trace_id, said, principal)

    @in_flight
    async def cancel(
        self, trace_id: str, reason: str = "", *, principal: str | Mapping[str, Any] | None = None
    ) -> Trace:
        """End a run: effects under way settle, compensations run, then it is CANCELLED."""
        record = self.find(trace_id, principal, ACT)
        return await control.cancel(self, record.run_id, reason, principal_of(principal, record.tenant))

    @in_flight
    async def resolve(
        self,
        trace_id: str,
        step: str,
        resolution: str,
        value: Any = None,
        *,
        item: int | None = None,
        principal: str | Mapping[str, Any] | None = None,
    ) -> Trace:
        """Say what became of an unknown outcome: "succeeded" (`value` is the output), "failed" (`value` is the
        message) or "repeat" (it did not happen, or may happen again), and drive the run on."""
        record = self.find(trace_id, principal, ACT)
        who = principal_of(principal, record.tenant)
        return await control.resolve(self, record.run_id, step, resolution, value, item, who)

    @in_flight
    async def step(self, trace_id: str, *, principal: str | Mapping[str, Any] | None = None) -> Trace:
        """Take one step of a run that nobody drives: one outcome, and what follows from it at once."""
        return await recovery.step(self, self.find(trace_id, principal, ACT).run_id)

    @in_flight
    async def recover(
        self, *, limit: int = 100, on_error: Callable[[str, Exception], None] | None = None
    ) -> list[Trace]:
        """Finish what a dead process left, and fire due timers. Returns the traces of the runs taken up.

        A run that cannot be taken up never keeps others from it: `on_error(run id, error)` is told; without it the
        first error is raised when all the others are done.

        Raises:
            InputError: USAGE for a limit that is no whole number, an `on_error` that is no function.
        """
        check_count("limit", limit)
        check_callable("on_error", on_error)
        return await recovery.recover(self, limit, on_error)

    @in_flight
    async def take_up(self, trace_id: str) -> Trace | None:
        """Drive one run on that nobody drives: what was in flight is settled, due timers fire. None when somebody else
        drives it. Raises NotFoundError RUN_NOT_FOUND."""
        check_trace_id(trace_id)
        return await recovery.take_up(self, trace_id)

    @in_flight
    async def fork(
        self,
        trace_id: str,
        at_step: str,
        changes: Mapping[str, Any] | None = None,
        *,
        occurrence: int | None = None,
        principal: str | Mapping[str, Any] | None = None,
        new_trace_id: str | None = None,
    ) -> Trace:
        """A new run that shares the history of this one up to `at_step` (its last occurrence by default), with
        `changes` to the values it had there. Steps before it are not repeated.

        What the other run had under way there stays its own: of a call in flight the fork has no known outcome (as
        after a crash), and called programs that had not ended begin anew. Where values are changed, nothing counts
        that a policy requires and that was done before.

        Raises:
            NotFoundError: RUN_NOT_FOUND, UNKNOWN_STEP for a step that the run has not come to.
            InputError: UNKNOWN_VALUE, VALUE_ANSWERED, ERASED; USAGE for a step that is no text, changes that are no
                object of values by name, an occurrence that is no whole number.
            RejectedError: GATE for a result that its step may not have; TERMINAL where the run ended as it came there.
        """
        check_text("at_step", at_step)
        check_mapping("changes", changes, 'changes={"amount": 5}')
        if occurrence is not None:
            check_count("occurrence", occurrence)
        run_id = self.find(trace_id, principal, ACT).run_id
        return await forks.fork(self, run_id, at_step, changes, occurrence, principal, new_trace_id)

    @in_flight
    async def erase(
        self,
        *,
        subject: Any = None,
        secret: str | None = None,
        run: str | None = None,
        reason: str,
        by: str | Mapping[str, Any],
        tenant: str | None = None,
    ) -> dict[str, Any]:
        """Destroy what opens a data subject's private values, or a secret: nothing brings them back.

        Runs of the subject that have not ended are cancelled first. Each concerned run gets an `Erased` entry; every
        hash still verifies, and views show `[REDACTED_TOMBSTONE]`.

        Args:
            subject: as the programs' `subject` names it; or
            secret: the id or reference of a secret; or
            run: a run whose program names no subject.
            reason, by: why, and who says so; on record for good.
            tenant: whose; that of `by`, or of the store, else `default`.

        Returns:
            The erasure's receipt. `stage` is "done" when every concerned run has been told; else another process has
            one, and `recover` completes it.

        Raises:
            CapabilityDeniedError: ERASURE_HELD; CAPABILITY_DENIED, also for what is another tenant's than that of `by`.
            NotFoundError: SUBJECT_NOT_FOUND, SECRET_NOT_FOUND, RUN_NOT_FOUND.
            RuntimeFault: NO_KEYS. InputError: USAGE.
        """
        check_text("secret", secret)
        return await erasure.erase(
            self, subject=subject, secret=secret, run=run, reason=reason, by=by, tenant=tenant
        )

    @in_flight
    async def replay_erasures(self) -> list[dict[str, Any]]:
        """Erase again what a restored back-up has brought back, and complete what a crash has cut, at once: what cannot
        be undone for want of tools is named by its run. Returns the receipts of all erasures; none without a vault."""
        return [] if self.keys is None else await erasure.replay(self)

    @in_flight
    async def complete_erasures(self, *, soon: bool = False) -> bool:
        """What is left to be done of erasures: after a crash, after a back-up was restored, where somebody drove a run
        on. It is asked for at little cost: an engine that has looked once looks again only while something is left,
        here or by others. `recover` begins with it.

        Args:
            soon: for whoever looks for runs every so often. It may have to wait for some, so it goes on in a task of
                its own, and this returns after a second at the latest; the next call tells what has come of it.

        Returns:
            Whether it has come to its end; False while it goes on.

        Raises:
            InputError: TOOLS_MISSING (facts: run_id, program, tools) when an erasure is left, for an hour at most, to
            somebody who can undo what its runs did; all others are completed. VaultError, StoreError.
        """
        if soon:
            return await erasure.catch_up_soon(self)
        await erasure.catch_up(self)
        return True

    @in_flight
    async def pause(
        self,
        program: str,
        reason: str = "",
        *,
        by: str | Mapping[str, Any] | None = None,
        tenant: str | None = None,
    ) -> Pause:
        """Begin no more runs of a program, named by its name or hash, until `lift_pause`. Runs that have begun go on.
        Other processes on the store heed it within half a second; starting one raises PROGRAM_PAUSED there and here.

        Raises:
            CapabilityDeniedError: CAPABILITY_DENIED for somebody who may not act. InputError: USAGE.
        """
        return await patiently(lambda: self.pausing.mark(program, True, reason, by, tenant))

    @in_flight
    async def lift_pause(
        self,
        program: str,
        reason: str = "",
        *,
        by: str | Mapping[str, Any] | None = None,
        tenant: str | None = None,
    ) -> Pause:
        """Let runs of a program begin again; nothing when they might."""
        return await patiently(lambda: self.pausing.mark(program, False, reason, by, tenant))

    def refuse_closed(self) -> None:
        """Nothing is begun, taken up or delivered by an engine that lets its runs go.

        Raises:
            RuntimeFault: SHUTTING_DOWN.
        """
        if self.draining:
            raise shutting_down()

    def refuse_paused(self, program: CompiledProgram, tenant: str) -> None:
        """Raises CapabilityDeniedError PROGRAM_PAUSED when no run of it may begin."""
        self.pausing.check(program.name, program.hash, tenant, self.clock.now_ms())

    # --- what the driver needs --------------------------------------------------------------------------------

    def announce(self, run: JournaledRun, entry: Entry, event: ev.Event) -> None:
        """Note an event for the listeners; they hear of it when it is durable."""
        run.heard.append((entry, event))

    def publish(self, run: JournaledRun, heard: list[tuple[Entry, ev.Event]]) -> None:
        """Tell the listeners."""
        listening.publish(self, run, heard)

    def heed_erasures(self, run: JournaledRun) -> None:
        """End a run at once whose key was taken from everybody while what names it was written. One that is not driven
        yet is looked at when it is."""
        live = self.live_here(run.record.run_id)
        if live is run:
            erasure.stop_if_erased(self, live)

    def note_if_erased(self, run: JournaledRun, batch: list[Entry]) -> None:
        """Before something is written that nobody else could note in time, or could any more."""
        erasure.note_if_erased(self, run, batch)

    def worst_cost(
        self, request: dict[str, Any], prompt_tokens: int, output_tokens: int, *, known: bool = False
    ) -> int | None:
        """What a model call may cost at most, in nano-dollars; None when the adapter has no price. `known`: as far as
        prices are known, when one of several providers has none."""
        price = getattr(self.llm, "price_known", None) if known else None
        price = price or getattr(self.llm, "price", None)
        prices: tuple[float, float] | None = price(request.get("model")) if price is not None else None
        if not prices:
            return None
        return math.ceil(prompt_tokens * prices[0] + output_tokens * prices[1])

    async def claim_action(self, run: Run, command: CallTool, spec: ToolSpec) -> NanoVMError | None:
        """Bind an author's idempotency key to its arguments; other arguments under the same key are an error."""
        key = action_key(run.facts, command, spec, command.args)
        content = canonical.encode([spec.name, command.args])
        keyed = keyed_content(run, command)
        digest = canonical.digest(content) if keyed is None else KEYED + keyed(content)
        try:
            await patiently(lambda: self.store.bind_action(key, digest, run.record.run_id))
        except ConflictError as error:
            return error
        return None

    async def run_child(self, parent: Run, command: StartChild) -> Outcome | None:
        return await children.run_child(self, parent, command)

    def stop_child(self, parent: Run, child: str) -> None:
        children.stop_child(self, parent, child)

    def take_mail(self, run: Run) -> None:
        control.take_mail(self, run)

    async def answer_mail(self, run: Run) -> None:
        await control.answer_mail(self, run)

    async def close(self, grace_seconds: float = 30.0) -> None:
        """Stop taking runs, let calls under way finish (at most `grace_seconds`), release every run and lose nothing.
        Runs that are not done stay RUNNING for whoever recovers them. Raises InputError USAGE."""
        await self.drain(grace_seconds)
        self.store.close()

    async def drain(self, grace_seconds: float = 30.0) -> None:
        """What `close` does, except that the store stays open to be read. Raises InputError USAGE."""
        check_seconds("grace_seconds", grace_seconds, least=0)
        await closing.drain(self, grace_seconds)

    async def __aenter__(self: _E) -> _E:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


_VARIANT = {
    digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"
}  # two bits of an RFC 9562 id are fixed


__all__ = ["Engine", "Progress"]
