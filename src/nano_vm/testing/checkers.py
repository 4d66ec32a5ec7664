"""The promises, checked while a simulation goes on (SPEC §1).

The checkers trust nothing that the engine keeps in memory. They read what is durable with a store object of their own,
fold it entry by entry, and hold against it what was seen outside: the calls that began, the effects that happened,
what a model was shown, what a caller was told.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

import msgspec

from nano_vm import canonical
from nano_vm.errors import NotFoundError, VerificationError
from nano_vm.journal.entry import GENESIS, Entry, is_closed, open_events, read_facts
from nano_vm.journal.fold import take
from nano_vm.journal.port import JournalStore
from nano_vm.journal.reading import verify_entry
from nano_vm.journal.replay import verify_run
from nano_vm.journal.trace import Trace
from nano_vm.kernel import events as ev
from nano_vm.kernel.state import Stage, State, StepStatus, snapshot
from nano_vm.program.compiled import CompiledProgram
from nano_vm.runtime.ports import Message, ToolSpec
from nano_vm.runtime.sealing import open_entries
from nano_vm.runtime.tooling import ToolContext
from nano_vm.testing.arguments import Arguments
from nano_vm.testing.edges import Edges
from nano_vm.testing.endings import Endings
from nano_vm.testing.failures import Failures
from nano_vm.testing.gathered import Gathered
from nano_vm.testing.invariants import broken_invariant
from nano_vm.testing.policies import Opinion
from nano_vm.testing.process import Watcher, current
from nano_vm.testing.prompts import wrong_prompt
from nano_vm.testing.results import Results
from nano_vm.testing.tampering import Tampering, others_of
from nano_vm.testing.undoing import Undoing
from nano_vm.testing.waits import Waits
from nano_vm.testing.world import HOSTILE

Place: TypeAlias = tuple[str, int, int | None]  # step, occurrence, item
_TOKEN = re.compile(r"token-(\w+)")
_SECRETIVE = re.compile(r"sha256:[0-9a-f]{64}|idempotency|max_steps|max_tokens|policy")
ONCE = ("irreversible", "reconcilable", "keyed")  # classes whose effect may happen once only


class Finding(msgspec.Struct, frozen=True):
    """A promise that was broken: which one, in which run, and how it shows."""

    promise: str
    run_id: str
    what: str


class PromiseBroken(Exception):
    """Raised where a promise is seen to be broken; `finding` says which."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(f"{finding.promise} in run {finding.run_id}: {finding.what}")
        self.finding = finding


class _Run:
    """What the checkers know of one run."""

    def __init__(
        self, run_id: str, program: CompiledProgram, source: Mapping[str, Any], opinions: list[Opinion]
    ) -> None:
        self.program = program
        self.source = source
        self.edges = Edges(source)
        self.endings = Endings(source)
        self.failures = Failures(source)
        self.arguments = Arguments(source)
        self.gathered = Gathered(source, self.arguments)
        self.undoing = Undoing(source, self.arguments)
        self.waits = Waits(source)
        self.results = Results()
        self.state = State(run=run_id)
        self.entries: list[Entry] = []
        self.intents: set[tuple[str, int, int | None, int, bool]] = set()
        self.finished: set[tuple[str, int, int | None, bool]] = set()
        self.events: set[str] = set()
        self.ended_at = -1
        self.opinion = Opinion(opinions)
        self.inputs: Any = {}
        self.policy: str | None = None  # hash of the one that it is pinned to
        self.blind = False  # a value is gone: nobody can fold transition by transition any more


class Checkers(Watcher):
    """Watches a simulation. Findings are kept in order, the first one raises.

    Args:
        store: a store object of the checkers' own, on the same data.
        sources: the programs as their authors wrote them, by hash; compiled forms come from `compiled`.
        keys: a vault of the checkers' own, where private values are.
        vouched: what protected parameters may be given; None where that is not known.
    """

    def __init__(
        self,
        store: JournalStore,
        sources: Mapping[str, Mapping[str, Any]],
        compiled: Mapping[str, CompiledProgram],
        *,
        keys: Any = None,
        vouched: Collection[str] | None = None,
    ) -> None:
        self.store = store
        self.vault = keys
        self._vouched_values = vouched
        self.findings: list[Finding] = []
        self.transitions = 0
        self.calls: Counter[str] = Counter()
        self.effects: Counter[tuple[str, str]] = Counter()
        self.keys: dict[tuple[str, str, int, int | None, int], str] = {}
        self.plain: Counter[tuple[str, str]] = (
            Counter()
        )  # effects of tools without a context, by run and step
        self._fences: dict[str, int] = {}  # the latest of each run
        self.living: set[str] = set()  # who of those that own runs is alive
        self.latest_ms: Callable[[], float] = lambda: math.inf  # that any clock has shown
        self.is_committing: Callable[[], bool] = lambda: (
            False
        )  # in a thread, so that a record may change any time
        self._attempted: set[tuple[Any, ...]] = set()
        self._key_of: dict[Any, str] = {}
        self._action_of: dict[str, Any] = {}
        self.vouched: Counter[tuple[str, str]] = Counter()  # (run, step): repetitions an operator allowed
        self._sources = sources
        self._compiled = compiled
        self.runs: dict[str, _Run] = {}
        self._opinions: list[Opinion] = []
        self.policies: dict[str, Mapping[str, Any]] = {}  # as their authors wrote them, by hash
        self._allowed = {name for source in sources.values() for name in _tools_of(source)}

    def broken(self, promise: str, run_id: str, what: str) -> None:
        finding = Finding(promise, run_id, what)
        self.findings.append(finding)
        raise PromiseBroken(finding)

    # --- what is durable --------------------------------------------------------------------------------------

    def durable(self, run_id: str) -> None:
        """Fold what has been added to the run's journal, transition by transition."""
        run = self._run(run_id)
        for entry in self._read(run_id, len(run.entries), erasing=True):
            head = run.entries[-1].digest if run.entries else GENESIS
            try:
                facts = verify_entry(entry, run_id, head, len(run.entries))
                run.blind |= is_closed(entry, facts)
                for event in () if run.blind else open_events(entry, facts):
                    take(run.program, run.state, event, entry.seq)
                    self.transitions += 1
                    self._after(run, run_id, event)
            except VerificationError as error:
                self.broken("P6" if error.code != "REPLAY_MISMATCH" else "P1", run_id, error.code)
            run.entries.append(entry)

    def _read(self, run_id: str, start: int = 0, *, erasing: bool = False) -> list[Entry]:
        entries = self.store.read(run_id, start)
        return entries if self.vault is None else open_entries(self.vault, run_id, entries, erasing=erasing)

    def _run(self, run_id: str) -> _Run:
        run = self.runs.get(run_id)
        if run is None:
            record = self.store.record(run_id)
            source = self._sources[record.program_hash]
            run = _Run(run_id, self._compiled[record.program_hash], source, self._opinions)
            self.runs[run_id] = run
        return run

    def _after(self, run: _Run, run_id: str, event: ev.Event) -> None:
        """Everything that has to be true after one transition."""
        state = run.state
        wrong = broken_invariant(run.program, state)
        if wrong is not None:
            self.broken("P10", run_id, wrong)
        if run.ended_at >= 0 and event.type not in ev.ANNEX_TYPES:
            self.broken("P1", run_id, f"{event.type} after the end")
        if state.stage is Stage.ENDED and run.ended_at < 0:
            run.ended_at = len(run.entries)
        run.arguments.note(event)
        settled = [(one.step, one) for one in state.settled]
        child = self._child_that_ended(event)
        if child is not None and child.results.told_wrongly(event):  # type: ignore[arg-type]
            self.broken("P1", run_id, "it is told of another result than the child has that it called")
        done = None if child is None else child.undoing.done
        found = (
            run.endings.broken_by(event, settled, run.program, state)
            or run.waits.broken_by(event, settled, run.program, state)
            or run.undoing.broken_by(event, settled, run.program, state, done)
        )
        if found is not None:
            self.broken(found[0], run_id, found[1])
        wrong = (
            run.edges.broken_by(event, settled, run.program)
            or run.gathered.broken_by(event, settled, run.program)
            or run.failures.broken_by(event, run.program, state)
        )
        if wrong is not None:
            self.broken("P1", run_id, wrong)
        run.results.note(event, settled, run.program)
        self._admitted(run, run_id)
        at_ms = getattr(event, "at_ms", 0)
        if at_ms > self.latest_ms():
            self.broken("P1", run_id, f"{event.type} {at_ms - self.latest_ms()} ms before its time")
        if state.steps > state.steps_max:
            self.broken("P10", run_id, "more steps than the budget has")
        most = run.source.get("max_tokens")
        if most is not None and state.tokens + state.reserved_tokens > most + run.endings.beyond:
            self.broken("P10", run_id, "more tokens than the budget has")
        self._note(run, run_id, event)

    def _admitted(self, run: _Run, run_id: str) -> None:
        """A model chooses among what its step allows; what stands in for an answer is what the author wrote (P2)."""
        for one in run.state.settled:
            name = run.program.steps[one.step].id
            step = next((step for step in _steps_of(run.source) if step["id"] == name), {})
            allowed = step.get("allowed_outputs")
            if one.status is not StepStatus.SUCCESS or (allowed is None and not one.substituted):
                continue
            stands_in = [step.get("fallback", ""), *(allowed or ())[:1]] if one.substituted else allowed
            if one.output not in (stands_in or ()):
                self.broken("P2", run_id, f"`{name}` admits what its program does not")

    def _child_that_ended(self, event: ev.Event) -> _Run | None:
        """The child whose end this is; None where it is not known, or not what it did."""
        if type(event) is not ev.ChildFinished or not event.head:
            return None
        known = (run for run in self.runs.values() if run.entries and run.entries[-1].digest == event.head)
        child = next(known, None)
        return None if child is None or child.blind else child

    def _note(self, run: _Run, run_id: str, event: ev.Event) -> None:
        item = getattr(event, "item", msgspec.UNSET)
        item = None if item is msgspec.UNSET else item
        match event:
            case ev.StepStarted() | ev.CompensationStarted():
                undo = type(event) is ev.CompensationStarted
                run.intents.add((event.step, event.occurrence, item, event.attempt, undo))
            case ev.RunStarted():
                run.inputs = {} if event.payload is msgspec.UNSET else event.payload
                run.policy = None if event.policy is msgspec.UNSET else event.policy
            case ev.ApprovalRequested():
                run.opinion.asked.add((event.step, item))
            case ev.StepSucceeded() | ev.CompensationSucceeded():
                run.opinion.succeeded.add(self._tool_of(run, event.step))
                undo = type(event) is ev.CompensationSucceeded
                place = (event.step, event.occurrence, item, undo)
                if place in run.finished:
                    self.broken("P4", run_id, f"{event.step} finished twice")
                run.finished.add(place)
            case ev.EventReceived():
                if event.event_id in run.events:
                    self.broken("P4", run_id, "an event was taken twice")
                run.events.add(event.event_id)
                answer = event.payload if type(event.payload) is dict else {}
                if answer.get("approved") is True and (event.step, item) in run.opinion.asked:
                    run.opinion.granted[str(event.step), item] += 1
            case ev.OutcomeResolved() if event.resolution == "repeat" and event.by == "operator":
                self.vouched[run_id, event.step] += 1
            case _:
                pass

    # --- what is seen outside ---------------------------------------------------------------------------------

    def begins(self, context: ToolContext, spec: ToolSpec, arguments: dict[str, Any]) -> None:
        run_id, step, attempt = context.trace_id, context.step, context.attempt
        run = self._called(run_id, step, spec, arguments)
        if run is None:
            return
        self._listed(run, run_id, step, spec)
        if run.blind:
            return
        owner, _, inner = step.rpartition("/")
        name = step if owner else inner
        wanted = [(name, context.occurrence, context.item, attempt, undo) for undo in (False, True)]
        if not run.intents.intersection(wanted):
            self.broken("P3", run_id, f"`{step}` began and its intent is not durable")
        undo = wanted[1] in run.intents and wanted[0] not in run.intents
        if wanted[0] in run.intents and wanted[1] in run.intents:
            undo = run.state.stage is not Stage.GOING  # a step and its compensation share their places
        if (name, context.occurrence, context.item, undo) in run.finished:
            self.broken("P4", run_id, f"`{step}` runs again after it has finished")
        self.keys[run_id, step, context.occurrence, context.item, attempt] = context.idempotency_key
        self._keyed(run, context, undo)
        self._only_once(context, undo)
        if undo:
            wrong = run.undoing.wrong(step, context.occurrence, context.item, spec.name, arguments)
            if wrong is not None:
                self.broken("P1", run_id, wrong)
        else:
            self._given(run, run_id, name, arguments, context.item)
            self._governed(run, run_id, (name, context.occurrence, context.item), spec, arguments)

    def begins_plainly(self, run_id: str, step: str, spec: ToolSpec, arguments: dict[str, Any]) -> None:
        run = self._called(run_id, step, spec, arguments)
        if run is None or run.blind:
            return
        begun = {place[:3] for place in run.intents if place[0] == step}
        under_way = begun - {place[:3] for place in run.finished}
        if not under_way:
            self.broken("P3", run_id, f"`{step}` began and no intent of it is durable that has not finished")
        self._given(run, run_id, step, arguments)
        self._governed(run, run_id, max(under_way), spec, arguments)

    def _only_once(self, context: ToolContext, undo: bool) -> None:
        """Whoever comes after a death, or has heard of none, makes another attempt."""
        attempt = (context.trace_id, context.step, context.occurrence, context.item, context.attempt, undo)
        if attempt in self._attempted:
            self.broken("P4", context.trace_id, f"an attempt of `{context.step}` was made twice")
        self._attempted.add(attempt)

    def _given(
        self, run: _Run, run_id: str, step: str, arguments: dict[str, Any], item: int | None = None
    ) -> None:
        wrong = run.arguments.wrong(step, arguments, item)
        if wrong is not None:
            self.broken("P1", run_id, f"`{step}` was given another `{wrong}` than its program says")

    def _called(self, run_id: str, step: str, spec: ToolSpec, arguments: dict[str, Any]) -> _Run | None:
        """What holds of every call. Returns the run that calls, up to date; None where a pure tool is called."""
        self.calls[spec.name] += 1
        if spec.name not in self._allowed:
            self.broken("P9", run_id, f"`{spec.name}` is in no program")
        for name in spec.schema.protected:
            if self._vouched_values is not None and arguments.get(name) not in self._vouched_values:
                self.broken("P2", run_id, f"`{name}` of `{spec.name}` was given what nobody vouches for")
        for text in _texts(arguments):
            if HOSTILE[:12] in text and HOSTILE not in text:
                self.broken("P2", run_id, f"a model's text was read as a template on its way to `{step}`")
        if spec.effect == "pure":
            return None
        try:
            self.durable(run_id)
        except NotFoundError:
            self.broken("P3", run_id, f"`{step}` began in a run that is not stored")
        return self.runs[run_id]

    def _keyed(self, run: _Run, context: ToolContext, undo: bool) -> None:
        """All attempts of an action have one key, and no other action has it (P4). Under a key of the author's own
        every occurrence of the step is the same action, in whatever run."""
        place: Any = (context.trace_id, context.step, context.occurrence, context.item, undo)
        step = next((one for one in _steps_of(run.source) if one["id"] == context.step), {})
        if "idempotency_key" in step and not undo:
            place = (context.step, msgspec.json.encode(run.inputs))
        key = self._key_of.setdefault(place, context.idempotency_key)
        if key != context.idempotency_key:
            self.broken("P4", context.trace_id, f"`{context.step}` was called again under another key")
        if self._action_of.setdefault(key, place) != place:
            self.broken(
                "P4", context.trace_id, f"`{context.step}` was called under the key of another action"
            )

    def _governed(
        self, run: _Run, run_id: str, place: Place, spec: ToolSpec, arguments: dict[str, Any]
    ) -> None:
        """The policy that the run is pinned to and the one in force where it is called must both allow it (P9)."""
        waits = [one["id"] for one in _steps_of(run.source) if one.get("approves") == place[0]]
        if waits and not run.opinion.is_granted(waits, place):
            self.broken("P9", run_id, f"`{place[0]}` began, and nobody has approved it at `{waits[0]}`")
        process = current.get()
        hashes = [run.policy, None if process is None else process.policy_hash]
        for policy_hash in dict.fromkeys(hashes):
            policy = self.policies.get(policy_hash or "")
            why = None if policy is None else run.opinion.refuses(policy, spec.name, arguments, place, waits)
            if why is not None:
                self.broken("P9", run_id, f"`{spec.name}` began at `{place[0]}`: {why}")
        run.opinion.begun[place] = spec.name

    def _tool_of(self, run: _Run, step: str) -> str:
        if "." in step:  # an action of an agent: `agent.tool`
            return step.partition(".")[2]
        found = next((one for one in _steps_of(run.source) if one["id"] == step), {})
        return str(found.get("tool", ""))

    def _listed(self, run: _Run, run_id: str, step: str, spec: ToolSpec) -> None:
        """What an agent's model proposes is called only when the agent's step lists it (P9)."""
        agent = step.rpartition("/")[2].partition(".")[0]
        for source in _steps_of(run.source):
            if source["id"] == agent and source["type"] == "agent" and spec.name not in source["tools"]:
                self.broken("P9", run_id, f"`{spec.name}` was called for `{agent}`, which does not list it")

    def happened(self, context: ToolContext, spec: ToolSpec) -> None:
        if spec.effect not in ONCE or spec.effect == "keyed":
            return
        what = (context.trace_id, context.idempotency_key)
        self.effects[what] += 1
        allowed = 1 + self.vouched[context.trace_id, context.step]
        if self.effects[what] > allowed:
            self.broken(
                "P4", context.trace_id, f"the effect of `{context.step}` happened {self.effects[what]} times"
            )

    def happened_plainly(self, run_id: str, step: str, spec: ToolSpec) -> None:
        if spec.effect not in ONCE:
            return
        self.plain[run_id, step] += 1
        begun = {place[:3] for place in self.runs[run_id].intents if place[0] == step}
        if self.plain[run_id, step] > len(begun) + self.vouched[run_id, step]:
            self.broken("P4", run_id, f"the effect of `{step}` happened {self.plain[run_id, step]} times")

    def dies(self, owner: str) -> None:
        self.living.discard(owner)

    def claims(self, run_id: str, before: Any, owner: str, now_ms: int, fence: int | None) -> None:
        if fence is None:
            return
        if fence <= max(before.fence, self._fences.get(run_id, 0)):
            self.broken("P4", run_id, "two owners of a run cannot be told apart")
        self._fences[run_id] = fence
        lives = before.owner in self.living and before.owner != owner
        if lives and now_ms < before.lease_until_ms and not self.is_committing():
            self.broken("P4", run_id, "a run was taken from somebody who lives and has its lease")

    def has_lost(self, run_id: str, fence: int) -> bool:
        return fence < self._fences.get(run_id, 0)

    def wrote_late(self, run_id: str) -> None:
        self.broken("P4", run_id, "somebody has written to a run that he had lost")

    def asks(self, messages: list[Message], params: dict[str, Any]) -> None:
        for text in _texts(messages):
            if _SECRETIVE.search(text) is not None:
                self.broken("P8", "", "a prompt holds something of the engine's own")
        for run_id in self.runs:
            self.durable(run_id)  # what a prompt names may have come from a tool without effects
        runs = [(run.source, run.arguments) for run in self.runs.values()]
        wrong = None if any(run.blind for run in self.runs.values()) else wrong_prompt(messages, params, runs)
        if wrong is not None:
            self.broken("P8", "", wrong)

    def answered(self, trace: Trace) -> None:
        """A caller was told how a run stands: it has to be durable by then (P3)."""
        self.durable(trace.trace_id)
        run = self.runs[trace.trace_id]
        if trace.status.is_terminal and not run.blind and run.state.status is not trace.status:
            self.broken("P3", trace.trace_id, "a caller heard of an end that is not durable")

    # --- at the end -------------------------------------------------------------------------------------------

    def close(self, tamper: Any) -> None:
        """What can only be said of whole journals.

        Args:
            tamper: a `random.Random` that chooses what is changed on purpose.
        """
        tampering = Tampering(tamper, self.broken)
        for run_id, run in self.runs.items():
            self.durable(run_id)
            record = self.store.record(run_id)
            entries = self._read(run_id)
            closed = any(is_closed(entry, read_facts(entry)) for entry in entries)
            try:
                verified = verify_run(run.program, record, entries)
            except VerificationError as error:
                self.broken("P6", run_id, f"an untouched journal does not verify: {error.code}")
                return
            # A fold without the values knows less than one that had them.
            if not closed and snapshot(verified.state) != snapshot(run.state):
                self.broken("P5", run_id, "two folds of the same journal differ")
            known = verified.state.status if run.blind else run.state.status
            if known is not verified.state.status or record.status != known:
                self.broken("P12", run_id, "the record says otherwise than the journal")
            traces = [Trace(run.program, run_id, lambda entries=entries: entries) for _ in range(2)]  # type: ignore[misc]
            views = [canonical.encode(_plain(trace.to_dict())) for trace in traces]
            if views[0] != views[1]:
                self.broken("P12", run_id, "two traces of the same journal differ")
            wrong = (
                None if closed or run.blind else run.results.wrong(traces[0].to_dict(), traces[0].trace_hash)
            )
            if wrong is not None:
                self.broken("P12", run_id, wrong)
            tampering.journal(run.program, record, entries, others_of(self.store, run_id, list(self.runs)))
            if record.parent is None:
                tampering.bundle(self.store, run_id, self._read)
        self._once()

    def trace_hashes(self) -> dict[str, str]:
        """The trace hash of every run."""
        found = {}
        for run_id, run in self.runs.items():
            entries = self._read(run_id)
            found[run_id] = Trace(run.program, run_id, lambda entries=entries: entries).trace_hash  # type: ignore[misc]
        return found

    def _once(self) -> None:
        """Effects of transactional tools are counted in the database itself: one for each finished step."""
        finished: Counter[tuple[str, str]] = Counter()
        for run_id, run in self.runs.items():
            for step, _, _, undo in run.finished:
                if self._effect_of(run, step, undo) == "transactional":
                    finished[run_id, step] += 1
        for (run_id, step), count in self.transactional().items():
            if count > finished[run_id, step]:
                self.broken(
                    "P4", run_id, f"`{step}` wrote {count} times for {finished[run_id, step]} finishes"
                )

    def _effect_of(self, run: _Run, step: str, undo: bool) -> str:
        if "." in step:  # an action of an agent: `agent.tool`
            return step.rpartition("_")[2]
        for found in _steps_of(run.source):
            if found["id"] == step:
                tool = found.get("compensate", {}).get("tool", "") if undo else found.get("tool", "")
                return str(tool).rpartition("_")[2]
        return ""

    def transactional(self) -> Counter[tuple[str, str]]:
        """(run, step) -> rows that transactional tools have written; a simulation that can count them says so."""
        return Counter()


def _plain(value: Any) -> Any:
    """Floats of a trace's view, which canonical bytes would refuse nowhere but which are times here."""
    return msgspec.to_builtins(value)


def _texts(value: Any) -> list[str]:
    found: list[str] = []
    rest = [value]
    while rest:
        value = rest.pop()
        if type(value) is str:
            found.append(value)
        elif type(value) is dict:
            rest += value.values()
        elif type(value) is list:
            rest += value
    return found


def _steps_of(source: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for step in source["steps"]:
        found.append(step)
        found += step.get("parallel_steps", [])
        if "step" in step:
            found.append(step["step"])
    return found


def _tools_of(source: Mapping[str, Any]) -> set[str]:
    names: set[str] = set()
    for step in _steps_of(source):
        names |= {step[field] for field in ("tool",) if field in step}
        names |= set(step.get("tools", ()))
        if "compensate" in step:
            names.add(step["compensate"]["tool"])
    return names


__all__ = ["Checkers", "Finding", "PromiseBroken"]
