"""Decisions about actions, and approvals of them: what a person says yes to is one exact action (SPEC §9).

The kernel does not decide what is allowed, and it knows no tool's definition; it sees to it that nothing governed is
dispatched without a recorded decision, and that an approval is used by the action it was given for, by that one only,
once, and before it expires.
"""

from __future__ import annotations

from typing import Any

from msgspec import UNSET as ABSENT

from nano_vm.expr.reference import UNSET
from nano_vm.kernel import events as ev
from nano_vm.kernel.activity import key_of, set_phase
from nano_vm.kernel.compensation import compensation_decided
from nano_vm.kernel.find import advance_clock, find, wrong_phase
from nano_vm.kernel.settle import fail, succeed
from nano_vm.kernel.state import Activity, Phase, Rejection, Stage, State
from nano_vm.program.compiled import SLOT_PRINCIPAL, CompiledProgram, CompiledStep, Kind, WaitAction

_READY, _STARTED, _WAITING = Phase.READY, Phase.STARTED, Phase.WAITING
_DECISIONS = frozenset({"allow", "ask", "deny"})
APPROVALS_MAX = 10


def policy_decided(program: CompiledProgram, state: State, event: ev.PolicyDecided) -> Rejection | None:
    if event.decision not in _DECISIONS:
        return Rejection("MALFORMED", f"no decision `{event.decision}`")
    if event.compensation is True:
        return compensation_decided(state, event)
    found = find(program, state, event)
    if type(found) is Rejection:
        return found
    assert type(found) is Activity
    # Tightening that comes between an intent and its call is recorded beside the intent; the failure follows.
    if found.phase is not _READY and not (found.phase is _STARTED and event.decision == "deny"):
        return wrong_phase(event, found.phase)
    if event.decision == "allow":
        refusal = _covered(program, state, found, event)
        if refusal is not None:
            return refusal
    advance_clock(state, event.at_ms)
    if event.decision == "allow":
        found.cleared = found.attempt
    else:
        found.cleared = 0
    return None


def _covered(
    program: CompiledProgram, state: State, activity: Activity, event: ev.PolicyDecided
) -> Rejection | None:
    """Whether an allowance that rests on an approval has one, and one that needs an approval names it."""
    if state.seq < state.fork_seq:
        return None  # shared history: the approval was used in the other run
    if event.approval is ABSENT:
        if program.steps[activity.step].approved_by:
            return Rejection("POLICY", f"`{event.step}` needs an approval")
        return None
    grant = state.grants.get(key_of(activity))
    if grant is None or grant["nonce"] != event.approval or grant["action"] != event.action:
        return Rejection("APPROVAL_VOID", f"`{event.step}` has no such approval")
    if event.at_ms >= grant["due_ms"]:
        return Rejection("APPROVAL_EXPIRED", f"the approval of `{event.step}` has expired")
    return None


def is_cleared(state: State, activity: Activity, step: CompiledStep) -> bool:
    """Whether an attempt may be dispatched as far as decisions go. Only asked of runs that are governed."""
    if activity.cleared == activity.attempt or state.seq < state.fork_seq:
        return True
    return not state.policy and not step.approved_by


# --- asking -------------------------------------------------------------------------------------------------


def approval_requested(
    program: CompiledProgram, state: State, event: ev.ApprovalRequested
) -> Rejection | None:
    found = find(program, state, event)
    if type(found) is Rejection:
        return found
    assert type(found) is Activity
    step = program.steps[found.step]
    if state.stage is not Stage.GOING:
        return Rejection("OUT_OF_ORDER", "the run is ending already")
    if found.ask is not None:
        return Rejection("DUPLICATE", f"`{event.step}` has asked already")
    if not (found.phase is _READY and step.kind is Kind.TOOL) and not (
        found.phase is _WAITING and waits_for_action(step)
    ):
        return wrong_phase(event, found.phase)
    count = 1 if event.count is ABSENT else event.count
    if not 1 <= count <= APPROVALS_MAX or not event.roles or not all(event.roles) or event.due_ms <= 0:
        return Rejection("MALFORMED", "an approval is asked of somebody, for some time")
    if found.phase is _WAITING and found.due_ms and event.due_ms > found.due_ms:
        return Rejection("MISMATCH", f"`{event.step}` does not wait that long")
    advance_clock(state, event.at_ms)
    if state.labels is not None:
        state.label = found.label  # what is shown holds the arguments
    found.ask = {
        "action": event.action,
        "by": [],
        "count": count,
        "due_ms": event.due_ms,
        "four_eyes": event.four_eyes is True,
        "nonce": event.nonce,
        "roles": event.roles,
        "rules": event.rules,
        "tool": event.tool,
    }
    found.due_ms = event.due_ms
    found.cleared = 0
    set_phase(state, found, _WAITING)
    return None


def waits_for_action(step: CompiledStep) -> bool:
    """Whether the step is a wait whose approval is bound to the action of another step."""
    action = step.action
    return type(action) is WaitAction and action.approves >= 0


# --- answering ----------------------------------------------------------------------------------------------


def approval_fault(state: State, activity: Activity, letter: dict[str, Any], at_ms: int) -> str | None:
    """Why an answer is not taken: a rejection code, or None when it is."""
    ask = activity.ask
    if ask is None:
        return "NOT_WAITING"  # what it is to be about has not been put down yet
    principal = letter["principal"]
    if type(principal) is not dict or not principal.get("id") or type(principal.get("roles")) is not list:
        return "NOT_APPROVER"
    held = principal["roles"]
    if not all(any(role in held for role in roles) for roles in ask["roles"]):
        return "NOT_APPROVER"
    data = letter["data"]
    if type(data) is not dict or type(data.get("approved")) is not bool:
        return "NOT_APPROVAL"
    if data.get("action") != ask["action"] or data.get("nonce") != ask["nonce"]:
        return "APPROVAL_VOID"
    if at_ms >= ask["due_ms"]:
        return "APPROVAL_EXPIRED"
    # (What a fork shares was approved in the other run, which somebody else may have started.)
    if ask["four_eyes"] and state.seq >= state.fork_seq:
        starter = state.slots[SLOT_PRINCIPAL]
        # Of a run that nobody is known to have started, nobody can show that it was somebody else.
        if starter is UNSET or starter.get("id") == principal["id"]:
            return "SELF_APPROVAL"
    if any(by["id"] == principal["id"] for by in ask["by"]):
        return "SELF_APPROVAL"
    return None


def take_approval(
    program: CompiledProgram,
    state: State,
    step: CompiledStep,
    activity: Activity,
    letter: dict[str, Any],
    todo: list[int],
) -> None:
    """A yes or a no from somebody who may say it."""
    ask, data, principal = activity.ask, letter["data"], letter["principal"]
    assert ask is not None
    if not data["approved"]:
        activity.ask = None
        if step.kind is Kind.WAIT:
            succeed(program, state, step, activity, _answer(data, [principal["id"]]), todo)
        else:
            message = f"the action was not approved by `{principal['id']}`"
            fail(program, state, step, activity, "APPROVAL_DENIED", message, False, 0, todo)
        return
    ask["by"] = [*ask["by"], {"event": letter["id"], "id": principal["id"], "roles": principal["roles"]}]
    if len(ask["by"]) - _own_words(state, ask) < ask["count"]:
        return
    activity.ask = None
    key = key_of(activity) if step.kind is not Kind.WAIT else step.action.approves  # type: ignore[union-attr]
    if state.seq >= state.fork_seq:  # in a fork the approval has been used by the other run
        state.grants[key] = {name: ask[name] for name in ("action", "by", "due_ms", "nonce", "rules", "tool")}
    if step.kind is Kind.WAIT:
        succeed(program, state, step, activity, _answer(data, [by["id"] for by in ask["by"]]), todo)
    else:
        activity.due_ms = 0
        set_phase(state, activity, _READY)


def _own_words(state: State, ask: dict[str, Any]) -> int:
    """How many of those who approved started the run, where another person has to: they did it before it was forked."""
    starter = state.slots[SLOT_PRINCIPAL]
    if not ask["four_eyes"] or state.seq < state.fork_seq or starter is UNSET:
        return 0
    return sum(by["id"] == starter.get("id") for by in ask["by"])


def _answer(data: dict[str, Any], who: list[str]) -> dict[str, Any]:
    """What the wait yields. The nonce is chance and stays out of results."""
    said = {name: value for name, value in data.items() if name not in ("action", "nonce")}
    return {**said, "by": who[-1]} if len(who) == 1 else {**said, "by": who[-1], "approvers": who}


def expire(
    program: CompiledProgram, state: State, step: CompiledStep, activity: Activity, todo: list[int]
) -> None:
    """Nobody answered in time: the action stays undone."""
    activity.ask = None
    fail(program, state, step, activity, "APPROVAL_EXPIRED", "nobody approved in time", False, 0, todo)
