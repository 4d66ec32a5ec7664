"""What policies decide about plain steps along the lane (`nano_vm.runtime.lane`), as far as that can be known ahead.

Most rules go by a tool's name, by arguments, or by how often something has happened. Such decisions are made here
without a command being made for them, and are kept as they are written. Where what must precede has to be looked at as
well, the gate gathers it; what people approve is for the gate alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from nano_vm import canonical
from nano_vm.errors import NanoVMError
from nano_vm.expr.reference import UNSET as UNASSIGNED
from nano_vm.journal.plain import decided_of, with_counts
from nano_vm.kernel import events as ev
from nano_vm.kernel.commands import CallTool
from nano_vm.policy.decide import (
    ALLOW,
    DEFAULT,
    RULE,
    Counter,
    Decision,
    Request,
    allowing_rules,
    counters_of_rules,
    decide_all,
    looked_at,
    request_slots,
    settled_by_all,
    step_place,
)
from nano_vm.policy.model import Policy, Rule
from nano_vm.program.compiled import SLOT_ARGS, SLOT_RUN, CompiledStep, Test, ToolAction

if TYPE_CHECKING:
    from nano_vm.runtime.governing import Gate

_UNSET = ev.UNSET
_WINDOW_MS = 60_000  # the shortest that limits count by, and a divisor of the others


class Ruling(NamedTuple):
    """A decision that stands by a tool's name alone, and how that of a step's first attempt rides: before an intent,
    and without one."""

    decision: Decision
    rides: tuple[str, str]
    alone: tuple[str, str]


class Conditional(NamedTuple):
    """Decisions about a step that its arguments, the principal, the run and what has been counted decide: the rules of
    each policy that are about it, whether some of them count, and, by the rule that allows, the decision as it rides
    but for its counts. Where one condition of one rule is all there is, it and its ruling."""

    rules: list[tuple[Policy, tuple[Rule, ...]]]
    limited: bool
    by_rule: dict[str, Ruling]
    when: Test | None
    sole: Ruling | None


class Rulings(NamedTuple):
    """What is known of the steps of a program under these policies, for all runs of an engine: by step, what is decided
    by the tool's name alone, and where its arguments have to be looked at (None: something else has to be)."""

    policies: list[Policy]
    limited: bool  # one of them counts something
    by_step: dict[int, Ruling | None]
    conditional: dict[int, Conditional | None]


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

    __slots__ = ("_gate", "_known", "_place", "_slots", "_under")

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._known: Rulings | None = None  # under `_under`, the policy in force
        self._under: Policy | None = None
        self._slots: list[Any] | None = None  # of what conditions read, but for the arguments
        self._place: bytes | None = None  # how the identities of the run's actions begin

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
        known = self._known
        if known is None or self._under is not self._gate.engine.policy:
            known = self.rulings
        ruling = known.by_step.get(step.index)
        if ruling is not None and occurrence == 1:
            return ruling.rides if intended else ruling.alone
        counts: list[list[Any]] | None = None
        conditional = known.conditional.get(step.index)
        if conditional is not None and conditional.when is not None:
            slots = self._slots or self._slots_with(args)
            slots[SLOT_ARGS] = args
            try:
                ruling = conditional.sole if conditional.when(slots) else None
            except NanoVMError:
                return None
        else:
            ruling, counts = self._ruled(step, occurrence, args, at_ms) or (None, None)
        if ruling is None:
            decided = self._looked_at(step, occurrence, args, passed)
            return None if decided is None else decided_of(decided, intended)
        before, between = ruling.rides if intended else ruling.alone
        if counts:
            between = with_counts(between, counts)
        if occurrence != 1:
            between = between.replace('"occurrence":1,', f'"occurrence":{occurrence},', 1)
        return before, between

    def _ruled(
        self, step: CompiledStep, occurrence: int, args: dict[str, Any], at_ms: int
    ) -> tuple[Ruling, list[list[Any]] | None] | None:
        """The ruling that a tool may be called, and what was counted: [key, so far, added]."""
        ruling, conditional = self._learn(step)
        if conditional is not None:
            if conditional.limited:
                return self._counted(step, conditional, occurrence, args, at_ms)
            ruling = self._allowed(step, conditional, args)
        return None if ruling is None else (ruling, None)

    @property
    def rulings(self) -> Rulings:
        """Good until the policy in force changes."""
        gate = self._gate
        policy = gate.engine.policy
        if self._known is None or self._under is not policy:
            self._under = policy
            pinned = None if gate.pinned is None else gate.pinned.hash
            key = gate.run.program.hash, pinned, None if policy is None else policy.hash
            found = gate.engine.rulings.get(key)
            if found is None:
                policies = gate.policies
                limited = any(policy.has_limits for policy in policies)
                found = gate.engine.rulings[key] = Rulings(policies, limited, {}, {})
            self._known = found
        return self._known

    def _learn(self, step: CompiledStep) -> tuple[Ruling | None, Conditional | None]:
        """What is known of the step under these policies; worked out once for all runs."""
        known, index = self.rulings, step.index
        if index not in known.by_step:
            ruling, conditional, action = None, None, step.action
            if type(action) is ToolAction and not step.approved_by:
                decision = settled_by_all(known.policies, "tool", action.tool)
                if decision is not None:
                    ruling = self._ruling_of(step, decision)
                else:
                    conditional = self._conditional_of(step, action.tool)
            known.by_step[index], known.conditional[index] = ruling, conditional
        return known.by_step[index], known.conditional[index]

    def _ruling_of(self, step: CompiledStep, decision: Decision) -> Ruling:
        event = bare_event(self._gate, step, decision, 1)
        return Ruling(decision, decided_of(event, True), decided_of(event, False))

    def _conditional_of(self, step: CompiledStep, tool: str) -> Conditional | None:
        rules = [(policy, looked_at(policy, "tool", tool)) for policy in self.rulings.policies]
        plain = [(policy, about) for policy, about in rules if about is not None]
        if not plain or len(plain) != len(rules):
            return None
        limited = any(rule.limits for _, about in plain for rule in about)
        found = Conditional(plain, limited, {}, None, None)
        (policy, about), *others = plain
        if not others and len(about) == 1 and not limited and not policy.allows_by_default:
            (rule,) = about
            if rule.when is not None and rule.decision == ALLOW:
                ruling = self._ruling_by(step, found, rule.id)
                found = Conditional(plain, False, {rule.id: ruling}, rule.when, ruling)
        return found

    def _slots_with(self, args: dict[str, Any]) -> list[Any]:
        slots = self._slots
        if slots is None:
            run = self._gate.run
            facts = run.state.slots[SLOT_RUN]
            slots = request_slots(args, {} if facts is UNASSIGNED else facts, run.facts.principal)
            self._slots = slots
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
        """`_ruled` where limits count, after counting; None where it is not to go ahead, or the gate has to see."""
        gate, slots = self._gate, self._slots_with(args)
        if gate.engine.clock.now_ms() // _WINDOW_MS != at_ms // _WINDOW_MS:
            return None  # what is counted by minutes, hours or days is counted as of now
        run, named = gate.run, None
        counters: list[Counter] = []
        assert type(step.action) is ToolAction
        request = Request(
            name=step.action.tool,
            args=args,
            principal=run.facts.principal,
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
            so_far = self._count(step, occurrence, counters, at_ms) if counters else []
        except NanoVMError:
            return None  # the gate says what is wrong, or has the patience
        if so_far is None:
            return None  # a limit is reached
        assert named is not None
        ruling = self._ruling_by(step, conditional, named)
        if not counters:
            return ruling, None
        # Versions of one policy count under the same keys.
        counts = {
            key: [key, found, amount] for (key, amount, *_), found in zip(counters, so_far, strict=True)
        }
        return ruling, list(counts.values())

    def _count(
        self, step: CompiledStep, occurrence: int, counters: list[Counter], at_ms: int
    ) -> list[int] | None:
        if self._place is None:
            self._place = canonical.encode([self._gate.run.record.run_id, "step"])[:-1]
        wanted = [(key, amount, maximum) for key, amount, maximum, _, _ in counters]
        return self._gate.engine.store.count(step_place(self._place, step.id, occurrence), wanted, at_ms)
