"""The gate of a governed run: what is to be dispatched is decided first, and the decision is journaled.

A run is governed by the policy it is pinned to and by the one that the engine has now: both must allow. Decisions are
pure (`nano_vm.policy`); what they need to know is gathered here. The registry is another gate, which asks nothing of
this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import msgspec

from nano_vm import canonical
from nano_vm.errors import NanoVMError, RuntimeFault
from nano_vm.expr.reference import UNSET as UNASSIGNED
from nano_vm.journal.replay import KEYED
from nano_vm.kernel import events as ev
from nano_vm.kernel.commands import (
    CallModel,
    CallTool,
    Command,
    Compensate,
    JudgeAction,
    Reconcile,
    RequestApproval,
)
from nano_vm.kernel.state import activity_key
from nano_vm.policy.decide import (
    ALLOW,
    ASK,
    DENIED,
    DENY,
    Asked,
    Counter,
    Decision,
    Request,
    action_digest,
    decide_all,
    settled_by_all,
)
from nano_vm.policy.decide import counters as counters_of
from nano_vm.policy.load import stored_policy
from nano_vm.policy.model import APPROVAL_EXPIRY_MS, Approval, Policy
from nano_vm.policy.progress import Progress
from nano_vm.program.compiled import (
    SLOT_RUN,
    CompiledProgram,
    CompiledStep,
    WaitAction,
)
from nano_vm.runtime.actions import model_name, place_of, private_parts, proposal_parts, why_denied
from nano_vm.runtime.admission import is_refused
from nano_vm.runtime.counting import so_far, take
from nano_vm.runtime.reservations import Reservations, shortage, worst_case
from nano_vm.runtime.rulings import LaneRules, bare_event
from nano_vm.runtime.sealing import keyed_content

if TYPE_CHECKING:
    from nano_vm.journal.port import JournalStore
    from nano_vm.runtime.driver import Run
    from nano_vm.runtime.engine import Engine
    from nano_vm.runtime.outcomes import Outcome
    from nano_vm.runtime.ports import ToolSpec

_UNSET = ev.UNSET

Dispatch: TypeAlias = CallTool | CallModel | Compensate
Action: TypeAlias = Dispatch | RequestApproval


class Verdict(NamedTuple):
    """A decision about one action, and what it was made of: `counts` are [key, so far, added]."""

    decision: Decision
    action: str
    asks: tuple[Asked, ...]
    counts: list[list[Any]]
    at_ms: int


class Gate:
    """What governs one run."""

    __slots__ = (
        "_ahead",
        "_cleared",
        "_models",
        "binds",
        "engine",
        "lane",
        "pinned",
        "progress",
        "run",
    )

    def __init__(self, run: Run, pinned: Policy | None) -> None:
        self.run = run
        self.engine: Engine = run.engine
        self.pinned = pinned
        self.progress = Progress(run.program)
        self._cleared: dict[tuple[int, int], tuple[Policy | None, int]] = {}
        self.lane = LaneRules(self)
        self._ahead: tuple[str, Verdict] | None = None  # a dispatch whose limits have been counted
        self._models: Reservations | None = None
        self.binds = False

    def let_go(self) -> None:
        """The run is not driven here any more, and nothing is decided. (What refers to itself is only freed when the
        garbage collector comes by.)"""
        del self.run, self.lane
        self._models = None

    @property
    def models(self) -> Reservations:
        """The model calls of the run that limits have counted."""
        if self._models is None:
            self._models = Reservations(self.run)
        return self._models

    @property
    def policies(self) -> list[Policy]:
        """Those that must allow: the pinned one, then the current one where it is another."""
        current = self.engine.policy
        if self.pinned is None:
            return [] if current is None else [current]
        if current is None or current.hash == self.pinned.hash:
            return [self.pinned]
        return [self.pinned, current]

    # --- deciding ---------------------------------------------------------------------------------------------

    def admit(self, command: Dispatch, spec: ToolSpec | None) -> bool:
        """Decide about a dispatch and journal the decision; False when it must not happen now. What becomes of the
        step is journaled too: it fails, or it waits for an approval."""
        policies = self.policies
        key = (activity_key(command.step, command.item), command.attempt)
        step = self.run.program.steps[command.step] if command.step >= 0 else None
        compensates = type(command) is Compensate
        if not policies and (compensates or step is None or not step.approved_by):
            return True
        if type(command) is CallTool and step is not None and not step.approved_by:
            settled = settled_by_all(policies, "tool", command.tool)
            if settled is not None:
                self._record_bare(command, step, settled, self.engine.clock.now_ms())
                self._cleared[key] = (self.engine.policy, 0)
                return True
        ahead, self._ahead = self._ahead, None
        verdict = (
            ahead[1] if ahead is not None and ahead[0] == command.id else self.judge(policies, command, spec)
        )
        decision, approval, reason = verdict.decision, None, ""
        if verdict.asks and decision.decision != DENY and not compensates:
            approval, reason = self._approval(command, verdict)
            if approval is not None:
                decision = _as(decision, ALLOW)
            elif decision.decision == ALLOW:
                decision = Decision(ASK, verdict.asks[0].rule, "")
        if step is not None and type(command) is CallTool and self._is_bare(command, verdict, decision):
            self._record_bare(command, step, decision, verdict.at_ms, verdict.counts)
        else:
            self._record(command, spec, verdict, decision, approval)
        if decision.decision == ALLOW:
            due_ms = 0 if approval is None else approval["due_ms"]
            self._cleared[key] = (self.engine.policy, due_ms)
            return True
        self._cleared.pop(key, None)
        if isinstance(command, Compensate):
            return False  # the kernel names it as not undone
        if decision.decision == ASK:
            assert type(command) is CallTool
            self._ask(command, command.tool, spec, command.args, verdict, 0, reason)
        else:
            outcome = self.refused(command, decision, pure=True)
            self.run.record_event(outcome.event, outcome.payload)
        return False

    def _is_bare(self, command: CallTool, verdict: Verdict, decision: Decision) -> bool:
        """Whether the journal says already what the decision is about: nothing was asked, nor is private."""
        return (
            decision.decision == ALLOW
            and not verdict.asks
            and bool(decision.policy)
            and not private_parts(self.run.state, command)
        )

    def _record_bare(
        self,
        command: CallTool,
        step: CompiledStep,
        decision: Decision,
        at_ms: int,
        counts: list[list[Any]] | None = None,
    ) -> None:
        event = bare_event(self, step, decision, command.occurrence)
        event.at_ms, event.attempt = at_ms, command.attempt
        if command.item >= 0:
            event.item = command.item
        if counts:
            event.counts = counts
        self.run.intend(event)

    @property
    def may_go_along(self) -> bool:
        """Whether the lane may be tried: the policy in force has been stored."""
        if self.pinned is not None and self.pinned is self.engine.policy:
            return True
        current = self.other()
        return bool(self.policies) and (current is None or self.engine.is_kept(current))

    def other(self) -> Policy | None:
        """The policy in force, where it is another than the one the run is pinned to."""
        current = self.engine.policy
        if current is None or (self.pinned is not None and current.hash == self.pinned.hash):
            return None
        return current

    async def ahead(self, command: Command) -> None:
        """What has to be written before a dispatch can be decided: the policy in force, and what limits count. The
        check of a limit and its counting are one transaction of the store, so runs at once never exceed it together."""
        if isinstance(command, JudgeAction) and self.engine.policy is not None:
            await self.engine.keep_policy(self.engine.policy)
        if not isinstance(command, CallTool | CallModel | Compensate):
            return
        spec = None if isinstance(command, CallModel) else self.engine.tools.spec(command.tool)
        while True:
            current = self.engine.policy
            if current is not None:
                await self.engine.keep_policy(current)
            policies = self.policies
            if not any(policy.has_limits for policy in policies) or self._comes_to_nothing(command):
                return
            verdict = self.judge(policies, command, spec)
            decision = verdict.decision
            waits = bool(verdict.asks) and self._approval(command, verdict)[0] is None
            if decision.decision != DENY and decision.counters and not waits:
                reservation = self.models.of(policies, command)
                if not await self._take(command, decision.counters, verdict.at_ms):
                    continue  # others were quicker: the policy decides again, with what they have counted
                if reservation is not None:
                    self.models.hold(command, reservation, decision.counters, place_of(self.run, command))
            if self.policies == policies:
                self._ahead = (command.id, verdict)
                return

    def _comes_to_nothing(self, command: Dispatch) -> bool:
        """Whether something else than a policy keeps a step's call from being made now: then nothing is counted."""
        if isinstance(command, Compensate):
            return False  # it is decided, and journaled, before anything else is said of it
        if is_refused(self.run, command):
            return True
        state = self.run.state
        if type(command) is not CallModel or not (state.tokens_max or state.cost_nanousd_max):
            return False
        return shortage(state, worst_case(self.run, command)) is not None

    async def _take(self, command: Dispatch, counters: Sequence[Counter], at_ms: int) -> bool:
        if not await take(self.run, self.progress.tally, command, counters, at_ms):
            return False
        if any(counter.own for counter in counters):
            self.binds = True
        return True

    def binding(self) -> bool:
        """Whether something was counted that only the journal tells of, since this was asked last: then what is called
        waits until that is durable, tools without effects too."""
        binds, self.binds = self.binds, False
        return binds

    def denies(self, command: CallModel) -> bool:
        """Whether `admit` will not let a model be called."""
        return self.judge(self.policies, command, None).decision.decision == DENY

    def asks(self, command: CallTool) -> bool:
        """Whether `admit` will let the action through with an approval of exactly this action only."""
        verdict = self.judge(self.policies, command, self.engine.tools.spec(command.tool))
        return bool(verdict.asks) and verdict.decision.decision != DENY

    def proposed(self, command: JudgeAction) -> dict[str, Any] | None:
        """What the policies say of a call that a model proposes, as it would be decided if it were made now; None where
        no policy governs it. Nothing is counted: an accepted proposal is decided again when it is dispatched."""
        policies = self.policies
        if not policies:
            return None
        assert command.tool is not None
        lane = self.run.program.steps[command.lane]
        call = CallTool(
            step=command.lane,
            step_id=lane.id,
            occurrence=command.occurrence,
            item=command.action,
            attempt=1,
            tool=command.tool,
            args=command.args,
        )
        agent = self.run.state.active[activity_key(command.step, command.item)]
        request, counts = self.request_of(policies, call, proposal_parts(self.run, agent))
        decision = decide_all(policies, request)
        current = self.other()
        said = {
            "at_ms": request.at_ms,
            "counts": counts,
            "current": "" if current is None else current.hash,
            "decision": decision.decision,
            "detail": decision.detail,
            "policy": decision.policy,
            "reason": decision.reason,
            "rule": decision.rule,
        }
        return {name: value for name, value in said.items() if value}

    def may_repeat(self, command: Reconcile) -> bool:
        """Whether an attempt whose outcome is unknown would be admitted once more, as it stands now. Where it would
        not, it must not be given up either: it may have happened, and somebody has to find out."""
        if command.effect == "transactional":
            return True  # it was rolled back: whatever is decided about it, nothing has happened
        where = {
            name: getattr(command, name)
            for name in ("step", "step_id", "occurrence", "item", "attempt", "tool", "args")
        }
        again = Compensate(**where) if command.compensation else CallTool(**where)
        verdict = self.judge(self.policies, again, self.engine.tools.spec(command.tool))
        if verdict.decision.decision == DENY:
            return False
        return not verdict.asks or (
            not command.compensation and self._approval(again, verdict)[0] is not None
        )

    def judge(
        self,
        policies: Sequence[Policy],
        command: CallTool | CallModel | Compensate | RequestApproval,
        spec: ToolSpec | None,
    ) -> Verdict:
        """What the policies, and the program, say of an action as it stands now."""
        request, counts = self.request_of(policies, command)
        decision = decide_all(policies, request) if policies else Decision(ALLOW, "", "")
        asks = [] if decision.decision == DENY else list(decision.asks)
        if type(command) is CallTool or type(command) is RequestApproval:
            asks += _asked_by_program(self.run.program, command)
        action = ""
        if not isinstance(command, CallModel):
            action = self.action(command, "" if spec is None else spec.digest)
        return Verdict(decision, action, tuple(dict.fromkeys(asks)), counts, request.at_ms)

    def action(self, command: CallTool | Compensate | RequestApproval, schema: str) -> str:
        """Digest of an action: what an approval covers. Of private arguments only who has the subject's key can make
        it, so that nobody can guess at them."""
        digest = action_digest(
            command.tool, schema, command.args, "" if self.pinned is None else self.pinned.hash
        )
        keyed = keyed_content(self.run, command)
        if keyed is None:
            return digest
        try:
            return KEYED + keyed(digest.encode())
        except NanoVMError as error:
            if error.code != "ERASED":
                raise
            return KEYED + "erased"  # it is decided, and journaled, and nothing is sent

    def request_of(
        self, policies: Sequence[Policy], command: Action, parts: frozenset[str] | None = None
    ) -> tuple[Request, list[list[Any]]]:
        run = self.run
        tokens, cost, private = None, None, frozenset[str]()
        if type(command) is CallModel:
            kind, name = "model", model_name(command)
            args: Any = {"model": name, "params": command.request.get("params") or {}}
            reservation = self.models.of(policies, command)
            if reservation is not None:
                tokens, cost = reservation.tokens, reservation.cost_nanousd
        else:
            kind, name, args = "tool", command.tool, command.args  # type: ignore[union-attr]
            private = private_parts(run.state, command) if parts is None else parts
        facts = run.state.slots[SLOT_RUN]
        request = Request(
            kind=kind,
            name=name,
            args=args,
            principal=run.facts.principal,
            run={} if facts is UNASSIGNED else facts,
            done=self.progress.done if any(policy.has_requirements for policy in policies) else frozenset(),
            at_ms=self.engine.clock.now_ms(),
            private=private,
            tokens=tokens,
            cost_nanousd=cost,
            tenant=run.record.tenant,
        )
        counters = [counter for policy in policies for counter in counters_of(policy, request)]
        if not counters:
            return request, []
        counted = so_far(run, self.progress.tally, command, counters)
        # Versions of one policy count under the same keys.
        counts = [[key, counted[key], amount] for key, amount in {c.key: c.amount for c in counters}.items()]
        return msgspec.structs.replace(request, counts=counted), counts

    # --- approvals --------------------------------------------------------------------------------------------

    def _approval(self, command: Dispatch, verdict: Verdict) -> tuple[dict[str, Any] | None, str]:
        """The approval that covers this very action now, or why the one that was given does not."""
        grant = self.run.state.grants.get(activity_key(command.step, command.item))
        if grant is None:
            return None, ""
        if grant["action"] != verdict.action or not {ask.name for ask in verdict.asks} <= set(grant["rules"]):
            return None, "APPROVAL_VOID"
        if self.engine.clock.now_ms() >= grant["due_ms"]:
            return None, "APPROVAL_EXPIRED"
        return grant, ""

    def request(self, command: RequestApproval) -> None:
        """Put down what a wait approves: the other step's action as it would be now."""
        # A tool that is not registered here has no definition yet: once it has one, the approval is void.
        spec = self.engine.tools.spec(command.tool)
        verdict = self.judge(self.policies, command, spec)
        self._ask(command, command.tool, spec, command.args, verdict, command.due_ms, "")

    def _ask(
        self,
        command: CallTool | RequestApproval,
        tool: str,
        spec: ToolSpec | None,
        args: Any,
        verdict: Verdict,
        due_ms: int,
        reason: str,
    ) -> None:
        now = self.engine.clock.now_ms()
        approvals = [ask.approval for ask in verdict.asks]
        expiry = min(
            (approval.expiry_ms for approval in approvals if approval.expiry_ms), default=APPROVAL_EXPIRY_MS
        )
        until = now + expiry if not due_ms else min(due_ms, now + expiry)
        roles = list(dict.fromkeys(approval.roles for approval in approvals))
        shown = {
            "tool": tool,
            "args": args,
            "step": command.step_id,
            "run": self.run.record.run_id,
            "program": self.run.program.name,
            "rules": [ask.rule for ask in verdict.asks],
            "version": "" if spec is None else spec.digest,
            "started_by": None if self.run.facts.principal is None else self.run.facts.principal["id"],
        }
        shown, payload = canonical.normalize(shown)
        count = max((approval.count for approval in approvals), default=1)
        self.run.record_event(
            ev.ApprovalRequested(
                action=verdict.action,
                at_ms=now,
                attempt=command.attempt,
                count=count if count > 1 else _UNSET,
                due_ms=until,
                four_eyes=True if any(approval.four_eyes for approval in approvals) else _UNSET,
                item=command.item if command.item >= 0 else _UNSET,
                nonce=self.engine.entropy.salt().hex(),
                occurrence=command.occurrence,
                payload=shown,
                policy=_UNSET if self.pinned is None else self.pinned.hash,
                reason=reason or _UNSET,
                roles=[list(each) for each in roles],
                rules=[ask.name for ask in verdict.asks],
                schema="" if spec is None else spec.digest,
                step=command.step_id,
                tool=tool,
            ),
            payload,
        )

    # --- what is journaled ------------------------------------------------------------------------------------

    def _record(
        self,
        command: Dispatch,
        spec: ToolSpec | None,
        verdict: Verdict,
        decision: Decision,
        approval: dict[str, Any] | None,
    ) -> None:
        self.run.intend(self._decided(command, spec, verdict, decision, approval, verdict.at_ms))

    def _decided(
        self,
        command: Dispatch,
        spec: ToolSpec | None,
        verdict: Verdict,
        decision: Decision,
        approval: dict[str, Any] | None,
        at_ms: int,
    ) -> ev.PolicyDecided:
        current = self.other()
        is_model = type(command) is CallModel
        return ev.PolicyDecided(
            action=verdict.action or _UNSET,
            approval=_UNSET if approval is None else approval["nonce"],
            at_ms=at_ms,
            attempt=command.attempt,
            compensation=True if type(command) is Compensate else _UNSET,
            counts=verdict.counts or _UNSET,
            current=_UNSET if current is None else current.hash,
            decision=decision.decision,
            detail=decision.detail or _UNSET,
            item=command.item if command.item >= 0 else _UNSET,
            model=model_name(command) if type(command) is CallModel else _UNSET,
            occurrence=command.occurrence,
            policy=decision.policy or _UNSET,
            reason=decision.reason,
            rule=decision.rule or "program",
            schema=_UNSET if spec is None else spec.digest,
            step=command.step_id,
            tool=_UNSET if is_model else command.tool,  # type: ignore[union-attr]
        )

    def refused(self, command: Dispatch, decision: Decision, *, pure: bool) -> Outcome:
        """The failure of an action that is not allowed. It is not tried again."""
        what = "the model" if type(command) is CallModel else f"`{command.tool}`"  # type: ignore[union-attr]
        where = f"rule `{decision.rule}`" if decision.rule != "default" else "the policy's default"
        message = f"{what} is denied by {where}{why_denied(decision, type(command) is CallModel)}"
        if type(command) is Compensate:
            return self.engine.calls.not_undone(command, DENIED, message)
        return self.engine.calls.failed(
            command,  # type: ignore[arg-type]
            DENIED,
            message,
            False,
            pure=True if pure else _UNSET,
        )

    # --- at the instant of dispatch ---------------------------------------------------------------------------

    async def recheck_changed(self, command: CallTool, spec: ToolSpec) -> Outcome | None:
        """`recheck` of a call that was decided along the lane."""
        self._cleared[activity_key(command.step, command.item), command.attempt] = (None, 0)
        return await self.recheck(command, spec)

    def is_stale(self, command: Dispatch) -> bool:
        """Whether something has changed since the dispatch was admitted, or looked at again."""
        known = self._cleared.get((activity_key(command.step, command.item), command.attempt))
        return known is not None and self._has_changed(*known)

    def _has_changed(self, policy: Policy | None, due_ms: int) -> bool:
        return policy is not self.engine.policy or (bool(due_ms) and self.engine.clock.now_ms() >= due_ms)

    def dispatched(self, command: Dispatch) -> None:
        """What was admitted has been called: there is nothing left to look at again."""
        self._cleared.pop((activity_key(command.step, command.item), command.attempt), None)

    async def recheck(
        self, command: Dispatch, spec: ToolSpec | None, *, keep: bool = False
    ) -> Outcome | None:
        """Look again just before the call, the intent being durable: a policy that was tightened in the meantime, or
        an approval that has expired, still stops it. None when nothing has changed. `keep`: it will be asked
        `is_stale` of the same dispatch."""
        key = (activity_key(command.step, command.item), command.attempt)
        known = self._cleared.pop(key, None)
        if known is None:
            return None  # it was not asked about: nothing governs it
        policy, due_ms = known
        if keep:
            self._cleared[key] = (self.engine.policy, due_ms)
        if not self._has_changed(policy, due_ms):
            return None
        expired = bool(due_ms) and self.engine.clock.now_ms() >= due_ms
        verdict = self.judge(self.policies, command, spec)
        decision = verdict.decision
        if expired:
            decision = Decision(DENY, decision.rule, decision.policy, "APPROVAL_EXPIRED")
        elif decision.decision == ALLOW or (decision.decision == ASK and due_ms):
            return None
        elif decision.decision == ASK:
            decision = Decision(DENY, decision.rule, decision.policy, "APPROVAL_VOID")
        pure = spec is not None and spec.effect == "pure"
        if self.engine.policy is not None:
            await self.engine.keep_policy(self.engine.policy)
        self._record(command, spec, verdict, decision, None)
        return self.refused(command, decision, pure=pure)


def gate_of(run: Run) -> Gate | None:
    """The gate of a run whose state is known; None when nothing governs it.

    Raises:
        RuntimeFault: POLICY_MISSING when the policy it is pinned to is not in the store: nobody can then say what it
            may do.
    """
    pinned = run.state.policy
    if not pinned and run.engine.policy is None and not run.program.approves:
        return None
    return Gate(run, run.engine.load_policy(pinned) if pinned else None)


def read_policy(store: JournalStore, policy_hash: str) -> Policy:
    """The stored policy of that hash."""
    try:
        policy = stored_policy(store.policy(policy_hash))
    except NanoVMError as error:
        if error.code not in ("POLICY_NOT_FOUND", "INVALID_POLICY"):
            raise
        raise RuntimeFault(
            "POLICY_MISSING",
            f"the policy `{policy_hash}` that the run is pinned to cannot be read",
            help="put it back: `nano-vm policy check` prints the hash of a file",
            facts={"policy": policy_hash},
        ) from error
    if policy.hash != policy_hash:
        raise RuntimeFault("POLICY_MISSING", f"the stored policy is not `{policy_hash}`")
    return policy


def _asked_by_program(program: CompiledProgram, command: CallTool | RequestApproval) -> list[Asked]:
    """The approvals that waits of the program demand for the step that acts."""
    if type(command) is RequestApproval:
        waits: tuple[int, ...] = (command.step,)
    else:
        waits = program.steps[command.step].approved_by
    asked = []
    for index in waits:
        wait = program.steps[index]
        assert type(wait.action) is WaitAction
        approval = Approval(roles=wait.action.approvers, four_eyes=False, expiry_ms=0)
        asked.append(Asked("program", approval))
    return asked[:1]


def _as(decision: Decision, said: str) -> Decision:
    return msgspec.structs.replace(decision, decision=said)
