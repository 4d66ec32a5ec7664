"""Deciding again what a journal says was decided: from the policies as they are stored, and from nothing else.

The kernel sees to it that nothing governed was dispatched without a decision and that approvals were used once, for
the action they name. Whether the decision was the policy's is found out here.
"""

from __future__ import annotations

from collections.abc import Callable, KeysView, Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET

from nano_vm import canonical
from nano_vm.errors import NanoVMError, VerificationError
from nano_vm.expr.reference import ERASED
from nano_vm.expr.reference import UNSET as UNASSIGNED
from nano_vm.journal.entry import Entry
from nano_vm.kernel.events import ActionProposed, ApprovalRequested, Event, PolicyDecided, StepFailed
from nano_vm.kernel.labels import output_label
from nano_vm.kernel.state import Activity, Phase, State, activity_key
from nano_vm.policy.decide import (
    ALLOW,
    ASK,
    CONDITION,
    DEFAULT,
    DENIED,
    DENY,
    LIMIT,
    REQUIRES,
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
from nano_vm.policy.model import APPROVAL_EXPIRY_MS, Approval, Policy, Rule
from nano_vm.policy.progress import Noting, Progress
from nano_vm.program.compiled import (
    SLOT_ARGS,
    SLOT_PRINCIPAL,
    SLOT_RUN,
    CompiledProgram,
    CompiledStep,
    ModelAction,
    ToolAction,
    WaitAction,
)
from nano_vm.program.labels import SEALED

# Why the runtime stopped something that policies alone would not have: the approval was gone when it was used.
_EXPIRED = "APPROVAL_EXPIRED"
_STOPPED = frozenset({_EXPIRED, "APPROVAL_VOID"})
_FAILS_AS = (DENIED, "ERASED")  # errors of what was denied
_DECIDED = frozenset({"counts", "current", "detail", "policy", "reason", "rule"})  # of a denied proposal


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
        self._denied: dict[int, int] = {}  # attempts that were denied and have not failed, by activity key
        self._asked: dict[int, list[str]] = {}  # by activity key, the rules for which somebody is to be asked

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
                if not self.closed or not self._is_private(event, state):
                    self.decisions += 1
                    self._decided(entry, event, state)
                else:
                    self.unchecked += 1
                    self._decided_unseen(entry, event, state)
            elif type(event) is ActionProposed:
                self._proposed(entry, event, state)
            elif type(event) is ApprovalRequested:
                self._requested(entry, event, state)
            elif type(event) is StepFailed and self._denied:
                self._failed(entry, event, state)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            # Whoever writes whole journals can give a fact any form.
            raise _mismatch(entry, "has a form that no decision has") from error

    def _decided(self, entry: Entry, event: PolicyDecided, state: State) -> None:
        policies = self._policies(entry, event, state)
        args, kind, name = self._action(event, state)
        bare = event.action is UNSET and kind == "tool"
        self._about(entry, event, kind, name)
        if not bare and kind == "tool":
            schema = "" if event.schema is UNSET else event.schema
            if not self._is_private(event, state) and event.action != action_digest(
                name, schema, args, state.policy
            ):
                raise _mismatch(entry, "is about another action than the one at hand")
        recorded = _counts(entry, event.counts)
        request = self._request(event, state, kind, name, args, policies)
        found = decide_all(policies, request) if policies else Decision(ALLOW, "program", "")
        asked = self._asked_by_program(event)
        if bare and (found.asks or asked):
            raise _mismatch(entry, "names no action")
        self._answers(entry, event, state, found, asked)
        if event.decision == ASK and found.decision == ALLOW:
            found = Decision(ASK, "program", "")  # no policy asks, but the program does
        rule = found.rule or "program"
        named = event.policy or (state.policy if bare else "")
        if event.rule != rule or named != found.policy:
            raise _mismatch(entry, f"names the rule `{event.rule}`, and `{rule}` decides")
        detail = "" if event.detail is UNSET else event.detail
        reason = (event.reason, "") if event.reason in _STOPPED else (found.reason, found.detail)
        if (event.reason, detail) != reason:
            raise _mismatch(entry, f"gives `{event.reason}` for a reason, and it is `{found.reason}`")
        wanted = [counter for policy in policies for counter in counters(policy, request)]
        if [(key, amount) for key, _, amount in recorded] != list({c.key: c.amount for c in wanted}.items()):
            raise _mismatch(entry, "does not count what the policy counts")
        if recorded:
            own = {one.key for one in wanted if one.own}
            self._counted(entry, event, recorded, state, kind == "model", own)

    def _about(self, entry: Entry, event: PolicyDecided, kind: str, name: str) -> None:
        """A decision says what it is about: of a bare allowance that follows from the program and the journal."""
        more = (event.approval, event.schema, event.tool)
        if not name:
            raise _mismatch(entry, "is about nothing that is decided about")
        if kind == "model":
            if event.model != name or event.action is not UNSET or any(one is not UNSET for one in more):
                raise _mismatch(entry, "is about another action than the one at hand")
        elif event.model is not UNSET or (event.action is not UNSET and event.tool != name):
            raise _mismatch(entry, "is about another action than the one at hand")
        elif event.action is UNSET and (event.decision != ALLOW or any(one is not UNSET for one in more)):
            raise _mismatch(entry, "names no action")
        elif event.approval is not UNSET and event.decision != ALLOW:
            raise _mismatch(entry, "names an approval and does not use it")

    def _decided_unseen(self, entry: Entry, event: PolicyDecided, state: State) -> None:
        """A decision about what cannot be read: what the policies say of every call of the tool holds all the same."""
        policies = self._policies(entry, event, state)
        _, kind, name = self._action(event, state)
        self._about(entry, event, kind, name)
        _counts(entry, event.counts)
        about = [policy.rules_for(kind, name) for policy in policies]
        never = any(
            not policy.allows_by_default
            if not rules
            else any(rule.decision == DENY and rule.when is None for rule in rules)
            for policy, rules in zip(policies, about, strict=True)
        )
        if event.decision != DENY and never:
            raise _mismatch(entry, f"is `{event.decision}`, and the policy never says so")
        counts = event.counts is not UNSET
        if counts and not any(rule.limits for rules in about for rule in rules):
            raise _mismatch(entry, "does not count what the policy counts")
        allowed = event.decision == ALLOW
        reasons = (RULE, DEFAULT) if allowed else (RULE, DEFAULT, CONDITION, LIMIT, REQUIRES, *_STOPPED)
        told = event.detail is not UNSET
        if event.reason not in reasons or told is not (event.reason in (CONDITION, LIMIT, REQUIRES)):
            raise _mismatch(entry, f"gives `{event.reason}` for a reason")
        if (event.reason == DEFAULT) is not (event.rule == "default"):
            raise _mismatch(entry, f"gives `{event.reason}` for a reason")
        known = {rule.id for rules in about for rule in rules} | {"default", "program"}
        if event.rule not in known or (event.policy or state.policy) not in (state.policy, event.current):
            raise _mismatch(entry, f"names the rule `{event.rule}`, which is not about this")

    def _answers(
        self, entry: Entry, event: PolicyDecided, state: State, found: Decision, asked: bool
    ) -> None:
        """What was decided is what is found, or what an approval, or its end, makes of that."""
        said, expected = event.decision, found.decision
        if event.reason in _STOPPED:
            grant = state.grants.get(self._key(event))
            is_over = grant is not None and event.at_ms >= grant["due_ms"]
            fits = said == DENY and (is_over if event.reason == _EXPIRED else expected == ASK)
        elif not asked and expected == ALLOW:
            fits = said == ALLOW and event.approval is UNSET
        elif expected == DENY:
            fits = said == DENY
        elif event.approval is UNSET:
            fits = said == ASK
        else:
            # The kernel has checked that the approval is of this action. It has to be for all that is asked.
            grant = state.grants.get(self._key(event), {"rules": ()})
            fits = said == ALLOW and _names(found, asked) <= dict.fromkeys(grant["rules"]).keys()
        if not fits:
            raise _mismatch(entry, f"is `{said}`, and the policy says `{expected}`")
        if event.compensation is not True:
            self._denied.pop(self._key(event), None)
            if said == DENY:
                self._denied[self._key(event)] = event.attempt
            elif said == ASK:
                self._asked[self._key(event)] = list(_names(found, asked))

    def _failed(self, entry: Entry, event: StepFailed, state: State) -> None:
        """What was denied fails for that, once and for all. (What has been erased since fails for that.)"""
        if self._denied.pop(self._key(event), None) == event.attempt and (
            event.error not in _FAILS_AS or event.retryable
        ):
            activity = state.active.get(self._key(event))
            if activity is not None and activity.phase in (Phase.READY, Phase.STARTED):
                raise _mismatch(entry, "was to deny it, and it fails for another reason")

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
        if not decided.keys() <= _DECIDED or not all(decided.values()):
            raise _mismatch(entry, "has a form that no decision has")
        recorded = _counts(entry, decided.get("counts", UNSET))
        self.decisions += 1
        policies = self._named(entry, state, decided.get("current", ""))
        request = Request(
            name=event.tool,
            args=agent.group.items[number]["arguments"],
            principal=_assigned(state.slots[SLOT_PRINCIPAL]),
            run=_assigned(state.slots[SLOT_RUN]) or {},
            done=self.progress.done,
            counts={key: so_far for key, so_far, _ in recorded},
            at_ms=event.at_ms,
            private=private if state.labels is not None else frozenset(),
            tenant=self.tenant,
        )
        found = decide_all(policies, request) if policies else None
        wanted = [counter for policy in policies for counter in counters(policy, request)]
        if [(key, amount) for key, _, amount in recorded] != list({c.key: c.amount for c in wanted}.items()):
            raise _mismatch(entry, "does not count what the policy counts")
        said = (decided.get("rule"), decided.get("policy"), decided.get("reason"), decided.get("detail", ""))
        if found is None or found.decision != DENY or event.reason != DENIED:
            raise _mismatch(entry, "rejects a proposal that the policy does not deny")
        if said != (found.rule, found.policy, found.reason, found.detail):
            raise _mismatch(entry, f"names the rule `{decided.get('rule')}`, and `{found.rule}` decides")

    def _requested(self, entry: Entry, event: ApprovalRequested, state: State) -> None:
        activity = state.active.get(self._key(event))
        if activity is None:
            return  # the kernel refuses it
        if ("" if event.policy is UNSET else event.policy) != state.policy:
            raise _mismatch(entry, "asks under another policy")
        step = self.program.steps[activity.step]
        due_ms = 0
        if type(step.action) is WaitAction:
            due_ms, step = activity.due_ms, self.program.steps[step.action.approves]
        tool = step.action.tool if type(step.action) is ToolAction else ""
        if event.tool != tool:
            raise _mismatch(entry, "asks for another action than the one at hand")
        self._terms(entry, event, activity, due_ms, state)
        if activity.label & SEALED and self.closed:
            return
        if not activity.label & SEALED and event.action != action_digest(
            tool, event.schema, activity.request, state.policy
        ):
            raise _mismatch(entry, "asks for another action than the one at hand")
        starter = _assigned(state.slots[SLOT_PRINCIPAL])
        shown = {
            "args": activity.request,
            "program": self.program.name,
            "rules": [name.partition("/")[2] or name for name in event.rules],
            "run": state.run,
            "started_by": None if starter is None else starter["id"],
            "step": event.step,
            "tool": tool,
            "version": event.schema,
        }
        held = event.payload
        if held is not ERASED and (
            type(held) is not dict or canonical.encode(held) != canonical.encode(shown)
        ):
            raise _mismatch(entry, "shows another action than it asks for")

    def _terms(
        self, entry: Entry, event: ApprovalRequested, activity: Activity, due_ms: int, state: State
    ) -> None:
        """Who is asked, and for how long, follows from the rules that ask."""
        is_wait = type(self.program.steps[activity.step].action) is WaitAction
        if len(set(event.rules)) != len(event.rules) or not event.rules:
            raise _mismatch(entry, "asks for no rule")
        if is_wait and "program" not in event.rules:
            raise _mismatch(entry, "does not ask for what the program wants approved")
        asked = self._asked.pop(self._key(event), None)
        unseen = self.closed and activity.label & SEALED
        if not is_wait and event.rules != asked and not unseen:
            raise _mismatch(entry, "asks for other rules than those that were decided by")
        known = [self._approval_of(entry, name, activity) for name in event.rules]
        approvals = [approval for approval in known if approval is not None]
        # Why an approval that was given does not serve is said where there is one.
        was_given = event.reason in _STOPPED if self._key(event) in state.grants else event.reason is UNSET
        if not is_wait and not was_given:
            raise _mismatch(entry, "gives another reason to ask again")
        roles = [list(each) for each in dict.fromkeys(approval.roles for approval in approvals)]
        count = max((approval.count for approval in approvals), default=1)
        four_eyes = any(approval.four_eyes for approval in approvals)
        least = min((one.expiry_ms for one in approvals if one.expiry_ms), default=APPROVAL_EXPIRY_MS)
        until = event.at_ms + least
        until = min(due_ms, until) if due_ms else until
        given = 1 if event.count is UNSET else event.count
        if len(approvals) == len(known):
            fits = (event.roles, given, event.four_eyes is True) == (roles, count, four_eyes)
            fits = fits and event.due_ms == until and (count == 1) is (event.count is UNSET)
        else:  # a policy that is not at hand asks for more
            fits = all(each in event.roles for each in roles) and given >= count
            fits = fits and event.due_ms <= until and (event.four_eyes is True or not four_eyes)
        if not fits or event.four_eyes is False:
            raise _mismatch(entry, "asks on other terms than its rules")

    def _approval_of(self, entry: Entry, name: str, activity: Activity) -> Approval | None:
        """What the rule, or the wait of the program, asks for. None when its policy is not at hand."""
        if name == "program":
            waits = [activity.step, *self.program.steps[activity.step].approved_by]
            for action in (self.program.steps[wait].action for wait in waits):
                if type(action) is WaitAction:
                    return Approval(roles=action.approvers, four_eyes=False, expiry_ms=0)
        policy_hash, _, rule_id = name.partition("/")
        try:
            policy = self.find(policy_hash)
        except NanoVMError:
            return None
        for rule in policy.rules:
            if rule.id == rule_id and rule.approval is not None:
                return rule.approval
        raise _mismatch(entry, f"asks for the rule `{name}`, which asks for nothing")

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

    def _key(self, event: PolicyDecided | ApprovalRequested | ActionProposed | StepFailed) -> int:
        index = self.program.step_index.get(event.step, -1)
        return activity_key(index, -1 if event.item is UNSET else event.item)

    def _action(self, event: PolicyDecided, state: State) -> tuple[Any, str, str]:
        if event.compensation is True:
            undo = state.undo[-1] if state.undo else None
            return (None, "tool", "") if undo is None else (undo.args, "tool", undo.tool)
        activity = state.active.get(self._key(event))
        request = None if activity is None else activity.request
        index = self.program.step_index.get(event.step)
        action = None if index is None else self.program.steps[index].action
        if isinstance(action, ModelAction):  # an agent's is one, too
            given = request if type(request) is dict else {}
            model = given.get("model", "default")
            name = model if type(model) is str else "default"
            return {"model": name, "params": given.get("params") or {}}, "model", name
        return request, "tool", action.tool if type(action) is ToolAction else ""

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


def _names(found: Decision, asked: bool) -> KeysView[str]:
    """For what somebody has to approve, in order: the rules that ask, and the program."""
    return dict.fromkeys([*(ask.name for ask in found.asks), *(["program"] if asked else [])]).keys()


def _counts(entry: Entry, counts: Any) -> list[list[Any]]:
    """What a decision says it has seen: [key, so far, added], numbers from 0 on."""
    if counts is UNSET:
        return []
    for one in counts:
        key, so_far, amount = one
        if type(key) is not str or type(so_far) is not int or type(amount) is not int or min(one[1:]) < 0:
            raise _mismatch(entry, "has a form that no decision has")
    if not counts:
        raise _mismatch(entry, "has a form that no decision has")
    found: list[list[Any]] = counts
    return found


def _mismatch(entry: Entry, what: str) -> VerificationError:
    return VerificationError(
        "REPLAY_MISMATCH",
        f"entry {entry.seq}: the decision {what}",
        facts={"seq": entry.seq, "code": "POLICY"},
    )
