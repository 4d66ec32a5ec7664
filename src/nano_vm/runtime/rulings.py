"""What policies decide about plain steps along the lane (`nano_vm.runtime.lane`), as far as that can be known ahead.

Most rules go by a tool's name, by arguments, or by how often something has happened. Such decisions are made here
without a command being made for them, and are kept as they are written. Where what must precede has to be looked at as
well, the gate gathers it; what people approve is for the gate alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from nano_vm import canonical
from nano_vm.errors import NanoVMError
from nano_vm.expr.reference import UNSET as UNASSIGNED
from nano_vm.journal.plain import decided_of, encode_counts
from nano_vm.kernel import events as ev
from nano_vm.kernel.commands import CallTool
from nano_vm.policy.decide import (
    ALLOW,
    DEFAULT,
    MILLION,
    RULE,
    Counter,
    Decision,
    Request,
    allowing_rules,
    amount_of,
    counters_of_rules,
    decide_all,
    limit_key,
    looked_at,
    request_slots,
    settled_by_all,
    step_place,
)
from nano_vm.policy.fields import SUM_MAX
from nano_vm.policy.model import Limit, Policy, Rule
from nano_vm.program.compiled import SLOT_ARGS, SLOT_RUN, CompiledStep, Test, ToolAction

if TYPE_CHECKING:
    from nano_vm.runtime.governing import Gate

_UNSET = ev.UNSET
_WINDOW_MS = 60_000  # the shortest that limits count by, and a divisor of the others
_PLAIN = ("calls", "sum")
COUNTED = ',"attempt":1,"counts":'  # what comes after the time of a decision that counts
UNCOUNTED = len(',"attempt":1,')  # and how much of one that does not


class Limited(NamedTuple):
    """Limits of the one rule by which a step may be called; one object for all its steps. `timed`: some count by
    minutes, hours or days."""

    policy: Policy
    rule: Rule
    timed: bool


class Ruling(NamedTuple):
    """A decision that stands by a tool's name - or, with `looks`, where `when` holds of its arguments, if there is such
    a condition, and there is room under the limits, if there are any - and how that of a step's first attempt rides:
    before an intent, and without one. Where limits count, what comes after its time begins behind the counts."""

    decision: Decision
    rides: tuple[str, str]
    alone: tuple[str, str]
    looks: bool = False
    when: Test | None = None
    limited: Limited | None = None


class Conditional(NamedTuple):
    """Decisions about a step for which several rules or policies have to be looked at: the rules of each policy that
    are about it, whether some of them count, and, by the rule that allows, the decision as it rides but for its
    counts."""

    rules: list[tuple[Policy, tuple[Rule, ...]]]
    limited: bool
    by_rule: dict[str, Ruling]


class Rulings(NamedTuple):
    """What is known of the steps of a program under these policies, for all runs of an engine: by step, its ruling
    where there is but one, and what has to be looked at where there are several (None: something else has to be)."""

    policies: list[Policy]
    limited: bool  # one of them counts something
    by_step: dict[int, Ruling | None]
    conditional: dict[int, Conditional | None]
    limits: dict[str, Limited]  # by rule


Sole: TypeAlias = tuple[str, str, int, int, str | None]
"""Of the only limit, which is on calls, or on the sum of one argument: its key, how its counts begin, how much of it is
left to the run's tally, what is counted beside that, and the name of the argument."""


class Opened(NamedTuple):
    """The limits of a rule as one run counts under them, in this window of time: key, maximum, what is counted there
    beside the run's tally (None: all of it is the store's), and the limit. `sole`: where there is but one, which is the
    run's own; `shared`: where there is but one, which is not."""

    window: int
    limits: list[tuple[str, int, int | None, Limit]]
    sole: Sole | None
    shared: bool
    begins: str  # how the counts are written, up to what the first limit has counted so far


def amount_at(name: str | None, args: dict[str, Any]) -> int | None:
    """`amount_of` of a limit on calls, or of one on the sum of this argument; None where that is no plain number."""
    if name is None:
        return 1
    value = args.get(name)
    return value * MILLION if type(value) is int and 0 <= value <= SUM_MAX else None


def bare_event(gate: Gate, step: CompiledStep, decision: Decision, occurrence: int) -> ev.PolicyDecided:
    """The decision (of the time 0) that a tool's first attempt may go ahead, where nothing is asked and nothing is
    private. Everything that the journal says already is left out: these are most of what a governed run adds."""
    pinned, current = gate.pinned, gate.other()
    return ev.PolicyDecided(
        at_ms=0,
        attempt=1,
        current=_UNSET if current is None else current.hash,
        decision=decision.decision,
        occurrence=occurrence,
        policy=_UNSET if pinned is not None and decision.policy == pinned.hash else decision.policy,
        reason=decision.reason,
        rule=decision.rule,
        step=step.id,
    )


class LaneRules:
    """What governs the plain steps of one run."""

    __slots__ = (
        "_gate",
        "_is_new",
        "_known",
        "_latest",
        "_opened",
        "_place",
        "_slots",
        "_under",
        "binds",
        "totals",
    )

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._known: Rulings | None = None  # under `_under`, the policy in force
        self._under: Policy | None = None
        self._slots: list[Any] | None = None  # of what conditions read, but for the arguments
        self._is_new = False
        self._place: bytes | None = None  # how the identities of the run's actions begin
        self._opened: dict[str, Opened] = {}  # by rule
        self._latest: tuple[str, int, dict[str, int]] | None = (
            None  # the action that the tally has counted last
        )
        self.binds = (
            False  # what was decided last counts by the journal alone: it has to be durable before the call
        )
        self.totals: dict[str, int] = {}  # of the run's tally

    def sets_out(self, step: CompiledStep, occurrence: int, is_new: bool) -> bool:
        """Begin: what others may have counted meanwhile is looked at anew. False when the first action has been counted
        already, which the gate knows how to do again. `is_new`: so is the run, and its id."""
        self.binds = False
        if not self.rulings.limited:
            return True
        tally = self._gate.progress.tally
        self.totals, self._latest, self._is_new = tally.totals, None, is_new
        if is_new:
            return True
        self._opened.clear()
        return not tally.has(step.id, occurrence)

    def comes_back(self, step: CompiledStep, occurrence: int, key: str, amount: int) -> None:
        """The general path goes on with a step that has been decided here. `key`: whoever drives has counted it there,
        and nowhere else."""
        if key:
            self._gate.progress.tally.remember(step.id, occurrence, {key: amount})
        elif self._latest is not None and self._latest[:2] == (step.id, occurrence):
            self._gate.progress.tally.remember(*self._latest)

    def along(
        self, step: CompiledStep, occurrence: int, args: dict[str, Any], passed: list[int], at_ms: int
    ) -> ev.PolicyDecided | None:
        """The decision (of the time 0) that a plain step's first attempt may go ahead; None where more has to be looked
        at than rules, arguments and counts. What limits count of it is counted.

        Args:
            passed: steps that have succeeded and that the progress does not know of; taken over.
            at_ms: when it is decided.
        """
        ruled = self._ruled(step, occurrence, args, at_ms)
        if ruled is not None:
            ruling, counts = ruled
            event = bare_event(self._gate, step, ruling.decision, occurrence)
            if counts:
                event.counts = counts
            return event
        return self._looked_at(step, occurrence, args, passed)

    def _looked_at(
        self, step: CompiledStep, occurrence: int, args: dict[str, Any], passed: list[int]
    ) -> ev.PolicyDecided | None:
        """The decision where it depends on what has gone before as well."""
        policies, limited = self.rulings.policies, self.rulings.limited
        if step.approved_by or limited:
            return None
        gate = self._gate
        if passed:
            gate.progress.passed(passed)
            passed.clear()
        assert type(step.action) is ToolAction
        command = CallTool(
            step=step.index,
            step_id=step.id,
            occurrence=occurrence,
            item=-1,
            attempt=1,
            tool=step.action.tool,
            args=args,
        )
        request, _ = gate.request_of(policies, command, frozenset())  # private arguments are not plain
        decision = decide_all(policies, request)
        if decision.decision != ALLOW or decision.asks:
            return None
        return bare_event(gate, step, decision, occurrence)

    def rides(
        self,
        step: CompiledStep,
        occurrence: int,
        args: dict[str, Any],
        passed: list[int],
        intended: bool,
        at_ms: int,
    ) -> tuple[str, str] | None:
        """`along`, encoded as `decided_of` does."""
        self.binds = False
        ruling, counts = self._learn(step)[0], ""
        if ruling is not None and not ruling.looks and occurrence == 1:
            return ruling.rides if intended else ruling.alone
        if ruling is not None and ruling.looks:
            if ruling.when is not None and not self._holds(ruling.when, args):
                ruling = None
            elif ruling.limited is not None:
                counts = self.counts(ruling.limited, step, occurrence, args, at_ms) or ""
                ruling = ruling if counts else None
        elif ruling is None:
            ruled = self._ruled(step, occurrence, args, at_ms)
            if ruled is not None:
                ruling, counted = ruled
                counts = f"{COUNTED}{encode_counts(counted)}," if counted else ""
        if ruling is None:
            decided = self._looked_at(step, occurrence, args, passed)
            return None if decided is None else decided_of(decided, intended)
        before, between = ruling.rides if intended else ruling.alone
        if counts:
            between = counts + (between if ruling.looks else between[UNCOUNTED:])
        if occurrence != 1:
            between = between.replace('"occurrence":1,', f'"occurrence":{occurrence},', 1)
        return before, between

    def _ruled(
        self, step: CompiledStep, occurrence: int, args: dict[str, Any], at_ms: int
    ) -> tuple[Ruling, list[list[Any]] | None] | None:
        """The ruling that a tool may be called, and what was counted: [key, so far, added]."""
        self.binds = False
        ruling, conditional = self._learn(step)
        if conditional is not None:
            if conditional.limited:
                return self._counted(step, conditional, occurrence, args, at_ms)
            ruling = self._allowed(step, conditional, args)
        elif ruling is not None and ruling.looks:
            if ruling.when is not None and not self._holds(ruling.when, args):
                return None
            if ruling.limited is not None:
                counts = self._count_limited(ruling.limited, step, occurrence, args, at_ms)
                return None if counts is None else (ruling, counts)
        return None if ruling is None else (ruling, None)

    def _holds(self, when: Test, args: dict[str, Any]) -> bool:
        """Whether a condition holds of these arguments; not where it cannot be evaluated."""
        try:
            return when(self._slots_with(args))
        except NanoVMError:
            return False

    def sole(self, limited: Limited, at_ms: int) -> Sole | None:
        """`Opened.sole`; whoever asks counts in `totals`."""
        opened = self._opened.get(limited.rule.id)
        if opened is None:
            try:
                opened = self._open(limited, at_ms)
            except NanoVMError:
                return None  # whatever is wrong is come upon once more
        return opened.sole

    def counts(
        self, limited: Limited, step: CompiledStep, occurrence: int, args: dict[str, Any], at_ms: int
    ) -> str | None:
        """Count a step that has just been reached: what its decision says from `attempt` to the counts, encoded. None
        where a limit is reached, or the gate has to see."""
        self.binds = False
        if not limited.timed:
            sole = self.sole(limited, at_ms)
            amount = None if sole is None else amount_at(sole[4], args)
            if sole is not None and amount is not None:
                key, begins, maximum, beside, _ = sole
                total = self.totals.get(key, 0)
                if total + amount > maximum:
                    return None
                self.totals[key] = total + amount
                self._latest, self.binds = (step.id, occurrence, {key: amount}), True
                return f"{begins}{total + beside},{amount}]],"
        opened = self._opened.get(limited.rule.id)
        if opened is not None and opened.shared and (not limited.timed or self._is_now(opened.window, at_ms)):
            return self._count_shared(opened, step, occurrence, args, at_ms)
        counts = self._count_limited(limited, step, occurrence, args, at_ms)
        return None if counts is None else f"{COUNTED}{encode_counts(counts)},"

    def _count_shared(
        self, opened: Opened, step: CompiledStep, occurrence: int, args: dict[str, Any], at_ms: int
    ) -> str | None:
        """`counts` under the only limit, which other runs count towards."""
        ((key, maximum, _, limit),) = opened.limits
        try:
            amount = amount_of(limit, args)
            place = step_place(self._named(), step.id, occurrence)
            so_far = self._gate.engine.store.count(place, ((key, amount, maximum),), at_ms)
        except NanoVMError:
            return None  # the gate says what is wrong, or has the patience
        return None if so_far is None else f"{opened.begins}{so_far[0]},{amount}]],"

    def _is_now(self, window: int, at_ms: int) -> bool:
        return window == at_ms // _WINDOW_MS == self._gate.engine.clock.now_ms() // _WINDOW_MS

    def _named(self) -> bytes:
        """How the identities of the run's actions begin."""
        place = self._place
        if place is None:
            place = self._place = canonical.encode([self._gate.run.record.run_id, "step"])[:-1]
        return place

    @property
    def rulings(self) -> Rulings:
        """Good until the policy in force changes."""
        gate = self._gate
        policy = gate.engine.policy
        if self._known is None or self._under is not policy:
            self._under = policy
            self._opened.clear()
            pinned = None if gate.pinned is None else gate.pinned.hash
            key = gate.run.program.hash, pinned, None if policy is None else policy.hash
            found = gate.engine.rulings.get(key)
            if found is None:
                policies = gate.policies
                limited = any(policy.has_limits for policy in policies)
                found = gate.engine.rulings[key] = Rulings(policies, limited, {}, {}, {})
            self._known = found
        return self._known

    def _learn(self, step: CompiledStep) -> tuple[Ruling | None, Conditional | None]:
        """What is known of the step under these policies; worked out once for all runs."""
        known, index = self._known, step.index
        if known is None or self._under is not self._gate.engine.policy:
            known = self.rulings
        if index not in known.by_step:
            ruling, conditional, action = None, None, step.action
            if type(action) is ToolAction and not step.approved_by:
                decision = settled_by_all(known.policies, "tool", action.tool)
                if decision is not None:
                    ruling = self._ruling_of(step, decision)
                else:
                    ruling, conditional = self._conditional_of(step, action.tool)
            known.by_step[index], known.conditional[index] = ruling, conditional
        return known.by_step[index], known.conditional[index]

    def _ruling_of(self, step: CompiledStep, decision: Decision) -> Ruling:
        event = bare_event(self._gate, step, decision, 1)
        return Ruling(decision, decided_of(event, True), decided_of(event, False))

    def _conditional_of(self, step: CompiledStep, tool: str) -> tuple[Ruling | None, Conditional | None]:
        rules = [(policy, looked_at(policy, "tool", tool)) for policy in self.rulings.policies]
        plain = [(policy, about) for policy, about in rules if about is not None]
        if not plain or len(plain) != len(rules):
            return None, None
        limited = any(rule.limits for _, about in plain for rule in about)
        conditional = Conditional(plain, limited, {})
        (policy, about), *others = plain
        if others or len(about) != 1 or about[0].decision != ALLOW or policy.allows_by_default:
            return None, conditional
        (rule,) = about
        ruling = self._ruling_by(step, conditional, rule.id)._replace(looks=True, when=rule.when)
        if not rule.limits:
            return ruling, None
        timed = any(limit.timed for limit in rule.limits)
        limits = self.rulings.limits.setdefault(rule.id, Limited(policy, rule, timed))
        (before, between), (alone, after) = ruling.rides, ruling.alone
        rides = before, between[UNCOUNTED:]
        return ruling._replace(rides=rides, alone=(alone, after[UNCOUNTED:]), limited=limits), None

    @property
    def slots(self) -> list[Any]:
        """What conditions read, but for the arguments."""
        slots = self._slots
        if slots is None:
            run = self._gate.run
            facts = run.state.slots[SLOT_RUN]
            slots = self._slots = request_slots(None, {} if facts is UNASSIGNED else facts, run.principal)
        return slots

    def _slots_with(self, args: dict[str, Any]) -> list[Any]:
        slots = self.slots
        slots[SLOT_ARGS] = args
        return slots

    def _allowed(self, step: CompiledStep, conditional: Conditional, args: dict[str, Any]) -> Ruling | None:
        """The ruling that these arguments, which are not private, may be sent; None where the rules do not allow it."""
        slots, named = self._slots_with(args), None
        for policy, rules in conditional.rules:
            allowing = allowing_rules(policy, rules, slots)
            if allowing is None:
                return None
            named = named or (allowing[0].id if allowing else "default")
        assert named is not None
        return self._ruling_by(step, conditional, named)

    def _ruling_by(self, step: CompiledStep, conditional: Conditional, named: str) -> Ruling:
        """The ruling that the rule of that name, or the default, allows it."""
        ruling = conditional.by_rule.get(named)
        if ruling is None:
            first, rules = conditional.rules[0]
            by_default = named == "default" and not any(rule.id == named for rule in rules)
            decision = Decision(ALLOW, named, first.hash, DEFAULT if by_default else RULE)
            ruling = conditional.by_rule[named] = self._ruling_of(step, decision)
        return ruling

    def _counted(
        self, step: CompiledStep, conditional: Conditional, occurrence: int, args: dict[str, Any], at_ms: int
    ) -> tuple[Ruling, list[list[Any]] | None] | None:
        """`_ruled` where several rules are looked at and limits count, after counting; None where it is not to go
        ahead, or the gate has to see."""
        gate, slots = self._gate, self._slots_with(args)
        if gate.engine.clock.now_ms() // _WINDOW_MS != at_ms // _WINDOW_MS:
            return None  # what is counted by minutes, hours or days is counted as of now
        run, named = gate.run, None
        counters: list[Counter] = []
        assert type(step.action) is ToolAction
        request = Request(
            name=step.action.tool,
            args=args,
            principal=run.principal,
            run=slots[SLOT_RUN],
            at_ms=at_ms,
            tenant=run.record.tenant,
        )
        try:
            for policy, rules in conditional.rules:
                allowing = allowing_rules(policy, rules, slots)
                if allowing is None:
                    return None
                named = named or (allowing[0].id if allowing else "default")
                counters += counters_of_rules(policy, allowing, request)
            besides = [self._beside(counter.key) if counter.own else None for counter in counters]
            wanted = [
                (one.key, one.amount, one.maximum, beside)
                for one, beside in zip(counters, besides, strict=True)
            ]
            counts = self._count(step, occurrence, wanted, at_ms) if wanted else []
        except NanoVMError:
            return None  # the gate says what is wrong, or has the patience
        if counts is None:
            return None  # a limit is reached
        assert named is not None
        return self._ruling_by(step, conditional, named), counts or None

    def _count_limited(
        self, limited: Limited, step: CompiledStep, occurrence: int, args: dict[str, Any], at_ms: int
    ) -> list[list[Any]] | None:
        """Count under the limits of the one rule there is; None where one is reached, or the gate has to see."""
        try:
            if limited.timed and self._gate.engine.clock.now_ms() // _WINDOW_MS != at_ms // _WINDOW_MS:
                return None  # what is counted by minutes, hours or days is counted as of now
            opened = self._opened.get(limited.rule.id)
            if opened is None or (limited.timed and opened.window != at_ms // _WINDOW_MS):
                opened = self._open(limited, at_ms)
            wanted = [
                (key, amount_of(limit, args), maximum, beside)
                for key, maximum, beside, limit in opened.limits
            ]
            return self._count(step, occurrence, wanted, at_ms)
        except NanoVMError:
            return None  # the gate says what is wrong, or has the patience

    def _open(self, limited: Limited, at_ms: int) -> Opened:
        """Raises NanoVMError where nobody is known to count for, or the store cannot be asked."""
        policy, rule = limited.policy, limited.rule
        run, facts = self._gate.run, self.slots[SLOT_RUN]
        limits: list[tuple[str, int, int | None, Limit]] = []
        for number, limit in enumerate(rule.limits):
            key = limit_key(policy, rule, number, run.record.tenant, facts, run.principal, at_ms)
            limits.append((key, limit.maximum, self._beside(key) if limit.own else None, limit))
        key, maximum, beside, limit = limits[0]
        sole: Sole | None = None
        alone, path, begins = len(limits) == 1, limit.path or (), f'{COUNTED}[["{key}",'
        if alone and beside is not None and not limited.timed and limit.unit in _PLAIN and len(path) < 2:
            sole = key, begins, maximum - beside, beside, path[0] if path else None
        opened = Opened(at_ms // _WINDOW_MS, limits, sole, alone and beside is None, begins)
        self._opened[rule.id] = opened
        return opened

    def _beside(self, key: str) -> int:
        """What the store has under a key of the run's own: models count there, and none is under way along the lane.
        There is nothing yet of a run that begins here under an id that nobody has had."""
        return 0 if self._is_new else self._gate.engine.store.counted([key], "")[0]

    def _count(
        self, step: CompiledStep, occurrence: int, wanted: list[tuple[str, int, int, int | None]], at_ms: int
    ) -> list[list[Any]] | None:
        """Count an action that has not been counted before, unless one of these - key, amount, maximum, what is counted
        beside the tally, None where all of it is the store's - would be exceeded: then None."""
        counts: dict[str, list[Any]] = {}  # versions of one policy count under the same keys
        shared, owned = [], {}
        for key, amount, maximum, beside in wanted:
            if beside is None:
                shared.append((key, amount, maximum))
                counts[key] = []
                continue
            found = self.totals.get(key, 0) + beside
            if found + amount > maximum:
                return None
            owned[key] = amount
            counts[key] = [key, found, amount]
        if shared:
            place = step_place(self._named(), step.id, occurrence)
            so_far = self._gate.engine.store.count(place, shared, at_ms)
            if so_far is None:
                return None
            for (key, amount, _), found in zip(shared, so_far, strict=True):
                counts[key] = [key, found, amount]
        if owned:
            for key, amount in owned.items():
                self.totals[key] = self.totals.get(key, 0) + amount
            self._latest, self.binds = (step.id, occurrence, owned), True
        return list(counts.values())
