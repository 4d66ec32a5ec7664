"""Asking a client's user what a run waits for, in the client's own form (elicitation).

A question is made from a wait of the run and from nothing else; the answer is an event of that very wait, under an id
made from where the wait stands: so an answer is taken once, whoever repeats it, and an old one never reaches a new
wait.
"""

from __future__ import annotations

import json
from typing import Any

import mcp_types as types

from nano_vm import canonical
from nano_vm.gateway.principals import ANSWER, RUN, Principal
from nano_vm.observe.wording import printable

MESSAGE_CHARS_MAX = 8_000
APPROVALS = frozenset({"approval"})
ANYTHING = frozenset({"approval", "event", "tool", "outcome"})


def supports_forms(ctx: Any) -> bool:
    """Whether the client has said that it can show a form."""
    capabilities = ctx.session.client_capabilities
    elicitation = capabilities.elicitation if capabilities is not None else None
    if elicitation is None:
        return False
    return elicitation.form is not None or elicitation.url is None


def key_of(wait: dict[str, Any]) -> str:
    """The same for the same wait, another for every other one of the run."""
    parts = [wait["step"], str(wait.get("occurrence", 1)), str(wait.get("attempt", 1))]
    if "item" in wait:
        parts.append(str(wait["item"]))
    if "child" in wait:  # each time that it is called, a program waits anew
        parts.append(canonical.digest(wait["child"].encode())[7:23])
    if wait.get("nonce"):
        parts.append(wait["nonce"])  # the action may have changed since the question
    return ".".join(parts)


def may_answer(who: Principal, wait: dict[str, Any]) -> bool:
    """Whether an answer of this principal could be taken: whoever may answer approvals alone sends no events."""
    if wait["kind"] != "approval":
        return who.may(RUN)
    groups = wait.get("groups", (wait.get("approvers", ()),))
    holds = all(set(group) & set(who.roles) for group in groups)
    return who.may(ANSWER) and holds and who.id not in wait.get("not_by", ())


def questions(
    who: Principal, view: dict[str, Any], kinds: frozenset[str]
) -> dict[str, tuple[dict[str, Any], types.ElicitRequest]]:
    """What the principal can be asked about a run, by key: the wait and the request. What is too long for a form is
    not asked by one: nobody approves what they have seen a part of."""
    found = {}
    for wait in view["waiting"]:
        request = _request(view, wait) if wait["kind"] in kinds and may_answer(who, wait) else None
        if request is not None:
            found[key_of(wait)] = (wait, request)
    return found


def _request(view: dict[str, Any], wait: dict[str, Any]) -> types.ElicitRequest | None:
    kind = wait["kind"]
    where = f"Run {view['trace_id']} of `{view['program']['name']}` waits at `{wait['step']}`"
    properties: dict[str, Any]
    required = []
    if kind == "approval":
        called = f" of a call of `{wait['tool']}`" if wait.get("tool") else ""
        message = f"{where} for an approval{called} by {' or '.join(wait.get('approvers', ()))}."
        properties = {
            "approved": {"type": "boolean", "title": "Approve", "description": "Whether the run may go on."},
            "comment": {"type": "string", "title": "Comment", "description": "Kept with the decision."},
        }
        required = ["approved"]
    elif kind == "outcome":
        message = f"{where}: nobody knows whether its call happened ({wait.get('reason') or '?'})."
        properties = {
            "resolution": {
                "type": "string",
                "title": "What became of it",
                "enum": ["succeeded", "failed", "repeat"],
            },
            "value": {"type": "string", "title": "Its result as JSON, or why it failed"},
        }
        required = ["resolution"]
    else:
        named = f" `{wait['event']}`" if wait.get("event") else ""
        message = f"{where} for the event{named}."
        properties = {"data": {"type": "string", "title": "Data of the event", "description": "As JSON."}}
    if wait.get("due_at"):
        message += f" It waits until {wait['due_at']}."
    shown = wait.get("shown")
    if shown:
        message += "\n" + json.dumps(shown, ensure_ascii=False, indent=1)
    message = printable(message, keep_newlines=True)
    if len(message) > MESSAGE_CHARS_MAX:
        return None
    return types.ElicitRequest(
        params=types.ElicitRequestFormParams(
            message=message,
            requested_schema={"type": "object", "properties": properties, "required": required},
        )
    )


def arguments(who: Principal, run_id: str, wait: dict[str, Any], answer: Any) -> dict[str, Any] | None:
    """The call of `resume_run` that an answer comes to; None when nothing was answered. Each person's answer is an
    event of its own: where two have to approve, the second one repeats nothing."""
    if not isinstance(answer, types.ElicitResult) or answer.action != "accept":
        return None
    content = dict(answer.content or {})
    found: dict[str, Any] = {"trace_id": run_id, "step": wait["step"]}
    if "item" in wait:
        found["item"] = wait["item"]
    if wait["kind"] == "approval":
        if type(content.get("approved")) is not bool:
            return None
        found["approve"] = content["approved"]
        if wait.get("action"):
            found |= {"action": wait["action"], "nonce": wait["nonce"]}
        if content.get("comment"):
            found["comment"] = str(content["comment"])[:2_000]
    elif wait["kind"] == "outcome":
        if content.get("resolution") not in ("succeeded", "failed", "repeat"):
            return None
        found["resolution"] = content["resolution"]
        if content.get("value") is not None:
            found["value"] = _json_or_text(content["value"])
        return found
    elif set(content) <= {"data"}:
        found["event"] = _json_or_text(content.get("data"))
    else:
        found["event"] = content
    found["event_id"] = f"asked:{key_of(wait)}:{canonical.digest(who.id.encode())[7:23]}"
    return found


def _json_or_text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
