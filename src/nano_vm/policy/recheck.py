"""Deciding again what a journal says was decided: from the policies as they are stored, and from nothing else.

The kernel sees to it that nothing governed was dispatched without a decision and that approvals were used once, for
the action they name. Whether the decision was the policy's is found out here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET

from nano_vm.errors import NanoVMError, VerificationError
from nano_vm.expr.reference import UNSET as UNASSIGNED
from nano_vm.journal.entry import Entry
from nano_vm.kernel.events import ActionProposed, ApprovalRequested, Event, PolicyDecided
from nano_vm.kernel.labels import output_label
from nano_vm.kernel.state import State, activity_key
from nano_vm.policy.decide import (
    ALLOW,
    ASK,
    DEFAULT,
    DENIED,
    DENY,
    RULE,
    Decision,
    Request,
    action_digest,
    allowing_rules,
    counted_place,
    counters,
    decide_all,
    looked_at,
    request_slots,
    sealed_parts,
    settled_by_all,
)
from nano_vm.policy.model import Policy, Rule
from nano_vm.policy.progress import Noting, Progress
from nano_vm.program.compiled import (
    SLOT_ARGS,
    SLOT_PRINCIPAL,
    SLOT_RUN,
    CompiledProgram,
    CompiledStep,
    ToolAction,
    WaitAction,
)
from nano_vm.program.labels import SEALED

# Why the runtime stopped something that policies alone would not have: the approval was gone when it was used.
_STOPPED = frozenset({"APPROVAL_EXPIRED", "APPROVAL_VOID"})


class _Standing(NamedTuple):
    """What is known of a decision about a plain tool: that it is right, whatever the arguments, or how to tell from
    them. With neither it has to be looked at in full."""

    holds: bool
    holds_for: Callable[[list[Any]], bool] | None = None  # slots as `request_slots` makes them


class Recheck(Noting):
    """Watches a fold, as `Watcher` says.

    Args:
        find: gives a policy by its hash; NanoVMError when it cannot.
        tenant: the run's.
        closed: whether payloads are missing, erased or without their key: what was decided from them cannot be decided
            again, and is counted as `unchecked`.
    """

    def __init__(
        self,
        program: CompiledProgram,
        find: Callable[[str], Policy],
        tenant: str = "default",
        closed: bool = False,
    ) -> None:
        self.closed = closed
        self.unchecked = 0
        self.program = program
        self.find = find
        self.tenant = tenant
        self.decisions = 0
        self.tallied = (
            0  # amounts that the run's own limits have counted: the journal is all there is of them
        )
        self.counted: list[tuple[int, str, str, int]] = []  # entry, identity of the action, key, amount
        super().__init__(Progress(program))
        self._standing: dict[tuple[Any, ...], _Standing] = {}  # by step, and what a decision about it says
        self._slots: list[Any] = []  # of what conditions read

    def allows(self, event: PolicyDecided, step: CompiledStep, args: Any, state: State) -> bool:
        """Whether the bare allowance of a plain tool is what the policies say: by its name alone, or by conditions on
        its arguments, the principal and the run. False where they say otherwise, and where more has to be looked at."""
        said = step.index, event.rule, event.reason, event.policy, event.current
        standing = self._standing.get(said)
        if standing is None:
            standing = self._standing[said] = self._stands(event, step, state)
        holds_for = standing.holds_for
        if holds_for is not None:
            self._slots[SLOT_ARGS] = args
            if not holds_for(self._slots):
                return False
        elif not standing.holds:
            return False
        self.decisions += 1
        return True

    def _stands(self, event: PolicyDecided, step: CompiledStep, state: State) -> _Standing:
        """What can be said of a decision about a step before its arguments are known."""
        left = _Standing(False)
        hashes = [state.policy] if event.current is UNSET else [state.policy, event.current]
        try:
            policies = [self.find(policy_hash) for policy_hash in hashes]
        except NanoVMError:
            return left
        if event.policy is not UNSET or type(step.action) is not ToolAction:
            return left
        tool = step.action.tool
        found = settled_by_all(policies, "tool", tool)
        if found is not None:
            said = event.rule, event.reason
            return _Standing(found.policy == state.policy and said == (found.rule, found.reason))
        rules = [(policy, looked_at(policy, "tool", tool)) for policy in policies]
        known = [(policy, about) for policy, about in rules if about is not None]
        if len(known) != len(rules) or any(rule.limits for _, about in known for rule in about):
            return left
        principal, run = state.slots[SLOT_PRINCIPAL], state.slots[SLOT_RUN]
        self._slots = request_slots(None, _assigned(run) or {}, _assigned(principal))
        return _Standing(False, _by_rules(known, (event.rule, event.reason)))

    def before(self, entry: Entry, event: Event, state: State) -> None:
        """Hold a recorded decision or request against what it has to be.

        Raises:
            VerificationError: REPLAY_MISMATCH (facts: `seq`, `code` POLICY).
        """
        if state.seq < state.fork_seq or not state.slots:
            return  # decided in another run, with its id; or before the run has begun, which the kernel refuses
        try:
            if type(event) is PolicyDecided:
                if self.closed and self._is_private(event, state):
                    self.unchecked += 1
                    return
                self.decisions += 1
                self._decided(entry, event, state)
            elif type(event) is ActionProposed:
                self._proposed(entry, event, state)
            elif type(event) is ApprovalRequested and not self.closed:
                self._requested(entry, event, state)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            # Whoever writes whole journals can give a fact any form.
            raise _mismatch(entry, "has a form that no decision has") from error

    def _decided(self, entry: Entry, event: PolicyDecided, state: State) -> None:
        policies = self._policies(entry, event, state)
        args, kind, name = self._action(event, state)
        bare = event.action is UNSET and kind == "tool"
        if bare:
            # Allowed, and nothing was asked: what it is about follows from the program and the journal.
            more = (event.approval, event.schema, event.tool)
            if event.decision != ALLOW or any(one is not UNSET for one in more):
                raise _mismatch(entry, "names no action")
        elif kind == "tool":
            schema = "" if event.schema is UNSET else event.schema
            if not self._is_private(event, state) and event.action != action_digest(
                name, schema, args, state.policy
            ):
                raise _mismatch(entry, "is about another action than the one at hand")
        if event.reason in _STOPPED:
            if event.decision != DENY:
                raise _mismatch(entry, "gives a reason to stop and does not stop")
            return
        request = self._request(event, state, kind, name, args, policies)
        found = decide_all(policies, request) if policies else Decision(ALLOW, "program", "")
        asked = self._asked_by_program(event)
        if bare and (found.asks or asked):
            raise _mismatch(entry, "names no action")
        expected = found.decision
        if event.decision == ALLOW and event.approval is not UNSET:
            # The kernel has checked that the approval is of this action; without a question there is none.
            if expected == DENY or (expected == ALLOW and not asked):
                raise _mismatch(entry, f"is `{event.decision}`, and the policy says `{expected}`")
        elif event.decision == ASK and expected == ALLOW and asked:
            return
        elif event.decision != expected or (expected == ALLOW and asked):
            raise _mismatch(entry, f"is `{event.decision}`, and the policy says `{expected}`")
        rule = found.rule or "program"
        named = event.policy or (state.policy if bare else "")
        if event.rule != rule or named != found.policy:
            raise _mismatch(entry, f"names the rule `{event.rule}`, and `{rule}` decides")
        detail = "" if event.detail is UNSET else event.detail
        if (event.reason, detail) != (found.reason, found.detail):
            raise _mismatch(entry, f"gives `{event.reason}` for a reason, and it is `{found.reason}`")
        recorded = [] if event.counts is UNSET else event.counts
        wanted = [counter for policy in policies for counter in counters(policy, request)]
        if {(key, amount) for key, _, amount in recorded} != {(one.key, one.amount) for one in wanted}:
            raise _mismatch(entry, "does not count what the policy counts")
        if recorded:
            own = {one.key for one in wanted if one.own}
            self._counted(entry, event, recorded, state, kind == "model", own)

    def _counted(
        self,
        entry: Entry,
        event: PolicyDecided,
        recorded: list[list[Any]],
        state: State,
        is_model: bool,
        own: set[str],
    ) -> None:
        """Hold the counts of a decision against what the journal says was counted before, and keep those that are the
        store's. Under a key of the run's `own` there may be more than the journal shows: what models took, or an action
        that was counted and then not allowed."""
        item = -1 if event.item is UNSET else event.item
        undoes = event.compensation is True
        tally, where = self.progress.tally, (event.step, event.occurrence, item, undoes)
        for key, so_far, _ in recorded:
            if key in own and so_far < (tally.totals.get(key, 0) if is_model else tally.so_far(key, *where)):
                raise _mismatch(entry, "has seen less than what was counted before it")
        if event.decision != ALLOW:
            return
        place = counted_place(
            state.run,
            "undo" if undoes else "step",
            event.step,
            event.occurrence,
            item,
            event.attempt if is_model else None,
        )
        for key, _, amount in recorded:
            if key in own and not is_model:
                self.tallied += 1
            else:
                self.counted.append((entry.seq, place, key, amount))

    def _proposed(self, entry: Entry, event: ActionProposed, state: State) -> None:
        """A call that a model proposed and a policy denied."""
        if event.decided is UNSET:
            if event.reason == DENIED:
                raise _mismatch(entry, "rejects a proposal, and does not say by which rule")
            return
        agent = state.active.get(self._key(event))
        if agent is None or agent.group is None or agent.group.items is None or event.tool is UNSET:
            return  # the kernel refuses it
        private = sealed_parts({"": output_label(self.program.steps[agent.step], agent)})
        if self.closed and state.labels is not None and private:
            self.unchecked += 1
            return
        decided, number = event.decided, event.action - agent.group.first
        if not 0 <= number < len(agent.group.items):
            return
        self.decisions += 1
        policies = self._named(entry, state, decided.get("current", ""))
        request = Request(
            name=event.tool,
            args=agent.group.items[number]["arguments"],
            principal=_assigned(state.slots[SLOT_PRINCIPAL]),
            run=_assigned(state.slots[SLOT_RUN]) or {},
            done=self.progress.done,
            counts={key: so_far for key, so_far, _ in decided.get("counts", ())},
            at_ms=event.at_ms,
            private=private if state.labels is not None else frozenset(),
            tenant=self.tenant,
        )
        found = decide_all(policies, request) if policies else None
        said = (decided.get("rule"), decided.get("policy"), decided.get("reason"), decided.get("detail", ""))
        if found is None or found.decision != DENY or event.reason != DENIED:
            raise _mismatch(entry, "rejects a proposal that the policy does not deny")
        if said != (found.rule, found.policy, found.reason, found.detail):
            raise _mismatch(entry, f"names the rule `{decided.get('rule')}`, and `{found.rule}` decides")

    def _requested(self, entry: Entry, event: ApprovalRequested, state: State) -> None:
        activity = state.active.get(self._key(event))
        if activity is None:
            return  # the kernel refuses it
        private = activity.label & SEALED
        if not private and event.action != action_digest(
            event.tool, event.schema, activity.request, state.policy
        ):
            raise _mismatch(entry, "asks for another action than the one at hand")
        shown = event.payload
        if type(shown) is dict and (shown.get("tool") != event.tool or shown.get("args") != activity.request):
            raise _mismatch(entry, "shows another action than it asks for")

    def _is_private(self, event: PolicyDecided, state: State) -> bool:
        """Whether only who has the subject's key can digest what it is about."""
        if event.compensation is True:
            return bool(state.undo and state.undo[-1].label & SEALED)
        activity = state.active.get(self._key(event))
        return activity is not None and bool(activity.label & SEALED)

    def _policies(self, entry: Entry, event: PolicyDecided, state: State) -> list[Policy]:
        return self._named(entry, state, "" if event.current is UNSET else event.current)

    def _named(self, entry: Entry, state: State, current: str) -> list[Policy]:
        hashes = [policy_hash for policy_hash in (state.policy, current) if policy_hash]
        try:
            return [self.find(policy_hash) for policy_hash in hashes]
        except NanoVMError as error:
            raise VerificationError(
                "POLICY_UNKNOWN",
                f"entry {entry.seq}: the policy it was decided by is not at hand",
                help="keep policies beside the journals that name them",
                facts={"seq": entry.seq, "policies": hashes},
            ) from error

    def _key(self, event: PolicyDecided | ApprovalRequested | ActionProposed) -> int:
        index = self.program.step_index.get(event.step, -1)
        return activity_key(index, -1 if event.item is UNSET else event.item)

    def _action(self, event: PolicyDecided, state: State) -> tuple[Any, str, str]:
        if event.compensation is True:
            undo = state.undo[-1] if state.undo else None
            return (None, "tool", "") if undo is None else (undo.args, "tool", undo.tool)
        activity = state.active.get(self._key(event))
        request = None if activity is None else activity.request
        if event.model is not UNSET:
            given = request if type(request) is dict else {}
            model = given.get("model", "default")
            name = model if type(model) is str else "default"
            return {"model": name, "params": given.get("params") or {}}, "model", name
        index = self.program.step_index.get(event.step)
        tool = getattr(self.program.steps[index].action, "tool", "") if index is not None else ""
        return request, "tool", tool

    def _request(
        self,
        event: PolicyDecided,
        state: State,
        kind: str,
        name: str,
        args: Any,
        policies: Sequence[Policy],
    ) -> Request:
        principal, run = state.slots[SLOT_PRINCIPAL], state.slots[SLOT_RUN]
        recorded = [] if event.counts is UNSET else event.counts
        request = Request(
            kind=kind,
            name=name,
            args=args,
            principal=_assigned(principal),
            run=_assigned(run) or {},
            done=self.progress.done,
            counts={key: so_far for key, so_far, _ in recorded},
            at_ms=event.at_ms,
            private=self._private_parts(event, state),
            tenant=self.tenant,
        )
        if kind != "model" or not any(policy.reserves(name) for policy in policies):
            return request
        # What a call may cost at most is known to whoever knew the prices: it is taken as it was counted. Where nothing
        # was, for want of somebody to count for, it was known all the same, unless the decision says otherwise.
        unknown = None if event.detail == "NO_PRICE" else 0
        amounts = {key: amount for key, _, amount in recorded}
        counted = msgspec.structs.replace(request, tokens=0, cost_nanousd=0)
        found: dict[str, int | None] = {"tokens": unknown, "cost": unknown}
        for counter in (counter for policy in policies for counter in counters(policy, counted)):
            if counter.unit in found and counter.key in amounts:
                found[counter.unit] = amounts[counter.key]
        return msgspec.structs.replace(request, tokens=found["tokens"], cost_nanousd=found["cost"])

    def _private_parts(self, event: PolicyDecided, state: State) -> frozenset[str]:
        if event.compensation is True:
            return sealed_parts(state.undo[-1].labels if state.undo else None)
        activity = state.active.get(self._key(event))
        return sealed_parts(None if activity is None else activity.labels)

    def _asked_by_program(self, event: PolicyDecided) -> bool:
        index = self.program.step_index.get(event.step)
        if index is None or event.compensation is True:
            return False
        waits = [self.program.steps[wait].action for wait in self.program.steps[index].approved_by]
        return any(type(action) is WaitAction for action in waits)


def _assigned(value: Any) -> Any:
    return None if value is UNASSIGNED else value


def _by_rules(
    known: Sequence[tuple[Policy, tuple[Rule, ...]]], said: tuple[str, str]
) -> Callable[[list[Any]], bool]:
    """Whether these rules of each policy allow a request, the first of them as it is said: by that rule, for that
    reason."""
    (policy, rules), *others = known
    when = rules[0].when if len(rules) == 1 and rules[0].decision == ALLOW else None
    if when is not None and not others:
        by_rule = said == (rules[0].id, RULE)
        by_default = policy.allows_by_default and said == ("default", DEFAULT)

        def by_one(slots: list[Any]) -> bool:
            try:
                return by_rule if when(slots) else by_default
            except NanoVMError:
                return False

        return by_one

    def by_all(slots: list[Any]) -> bool:
        named = None
        for policy, rules in known:
            allowing = allowing_rules(policy, rules, slots)
            if allowing is None:
                return False
            if named is None:
                named = (allowing[0].id, RULE) if allowing else ("default", DEFAULT)
        return named == said

    return by_all


def _mismatch(entry: Entry, what: str) -> VerificationError:
    return VerificationError(
        "REPLAY_MISMATCH",
        f"entry {entry.seq}: the decision {what}",
        facts={"seq": entry.seq, "code": "POLICY"},
    )
