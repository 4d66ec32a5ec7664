"""What the journal says of a gate's decisions: what a policy came to, and what somebody is asked to approve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from nano_vm import canonical
from nano_vm.kernel import events as ev
from nano_vm.kernel.commands import CallModel, CallTool, Compensate, RequestApproval
from nano_vm.policy.decide import Asked, Decision
from nano_vm.policy.model import APPROVAL_EXPIRY_MS, Policy
from nano_vm.runtime.actions import model_name

if TYPE_CHECKING:
    from nano_vm.runtime.driver import Run
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


def policy_decided(
    command: Dispatch,
    spec: ToolSpec | None,
    verdict: Verdict,
    decision: Decision,
    approval: dict[str, Any] | None,
    current: Policy | None,
) -> ev.PolicyDecided:
    """The whole of a decision. `decision` is what the verdict came to with the approval that was given, if one was;
    `current` the policy in force, where it is another than the one the run is pinned to."""
    return ev.PolicyDecided(
        action=verdict.action or _UNSET,
        approval=_UNSET if approval is None else approval["nonce"],
        at_ms=verdict.at_ms,
        attempt=command.attempt,
        compensation=True if type(command) is Compensate else _UNSET,
        counts=verdict.counts or _UNSET,
        current=_UNSET if current is None else current.hash,
        decision=decision.decision,
        detail=decision.detail or _UNSET,
        item=command.item if command.item >= 0 else _UNSET,
        model=model_name(command) if isinstance(command, CallModel) else _UNSET,
        occurrence=command.occurrence,
        policy=decision.policy or _UNSET,
        reason=decision.reason,
        rule=decision.rule or "program",
        schema=_UNSET if spec is None else spec.digest,
        step=command.step_id,
        tool=_UNSET if isinstance(command, CallModel) else command.tool,
    )


def approval_requested(
    run: Run,
    command: CallTool | RequestApproval,
    spec: ToolSpec | None,
    verdict: Verdict,
    due_ms: int,
    reason: str,
    pinned: Policy | None,
) -> tuple[ev.ApprovalRequested, bytes]:
    """What somebody is asked, and what approvers are shown, as canonical bytes. `due_ms`: when the wait ends that asks,
    or 0; `reason`: why an approval that was given does not serve, or ""."""
    now = run.engine.clock.now_ms()
    approvals = [ask.approval for ask in verdict.asks]
    expiry = min(
        (approval.expiry_ms for approval in approvals if approval.expiry_ms), default=APPROVAL_EXPIRY_MS
    )
    until = now + expiry if not due_ms else min(due_ms, now + expiry)
    roles = list(dict.fromkeys(approval.roles for approval in approvals))
    shown = {
        "tool": command.tool,
        "args": command.args,
        "step": command.step_id,
        "run": run.record.run_id,
        "program": run.program.name,
        "rules": [ask.rule for ask in verdict.asks],
        "version": "" if spec is None else spec.digest,
        "started_by": None if run.facts.principal is None else run.facts.principal["id"],
    }
    shown, payload = canonical.normalize(shown)
    count = max((approval.count for approval in approvals), default=1)
    asked = ev.ApprovalRequested(
        action=verdict.action,
        at_ms=now,
        attempt=command.attempt,
        count=count if count > 1 else _UNSET,
        due_ms=until,
        four_eyes=True if any(approval.four_eyes for approval in approvals) else _UNSET,
        item=command.item if command.item >= 0 else _UNSET,
        nonce=run.engine.entropy.salt().hex(),
        occurrence=command.occurrence,
        payload=shown,
        policy=_UNSET if pinned is None else pinned.hash,
        reason=reason or _UNSET,
        roles=[list(each) for each in roles],
        rules=[ask.name for ask in verdict.asks],
        schema="" if spec is None else spec.digest,
        step=command.step_id,
        tool=command.tool,
    )
    return asked, payload
