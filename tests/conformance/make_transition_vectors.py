"""Writes `spec/vectors/transition.json`: programs, events, and what each event leads to.

    PYTHONPATH=src:tests python tests/conformance/make_transition_vectors.py

Programs, events and rejections are written down here by hand; the rest is what the kernel made of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conformance.transition_vectors import compile_vector, view
from nano_vm.kernel.state import State

VECTORS = Path(__file__).parents[2] / "spec" / "vectors" / "transition.json"


def tool(step_id: str, **fields: Any) -> dict[str, Any]:
    return {"id": step_id, "type": "tool", "tool": step_id, "args": {}, **fields}


def at(step: str, occurrence: int = 1, attempt: int = 1, **facts: Any) -> dict[str, Any]:
    return {"at_ms": 1_000, "attempt": attempt, "occurrence": occurrence, "step": step, **facts}


SWITCH = {"attempts": 3, "error": "MODEL_HTTP", "from": "a", "reason": "RetryLimitExceeded", "to": "b"}

Told = tuple[str, dict[str, Any], str | None]


def start(inputs: dict[str, Any] | None = None, **facts: Any) -> Told:
    return "RunStarted", {"at_ms": 1_000, "payload": inputs or {}, **facts}, None


def ok(kind: str, event: dict[str, Any]) -> Told:
    return kind, event, None


def no(code: str, kind: str, event: dict[str, Any]) -> Told:
    return kind, event, code


def do(step: str, output: Any, **facts: Any) -> list[Told]:
    return [ok("StepStarted", at(step, **facts)), ok("StepSucceeded", at(step, payload=output, **facts))]


def fail(step: str, error: str, **facts: Any) -> Told:
    return ok("StepFailed", at(step, draw=0, error=error, retryable=True, **facts))


def end(status: str, **facts: Any) -> Told:
    return ok("RunFinished", {"at_ms": 9_000, "status": status, **facts})


def told(event_id: str, payload: Any, **facts: Any) -> dict[str, Any]:
    return {"at_ms": 1_000, "event_id": event_id, "payload": payload, **facts}


NO_JITTER = {"jitter": False}
BOSS = {"id": "ann", "roles": ["boss"], "tenant": "default"}
CAL = {"id": "cal", "roles": [], "tenant": "default"}
ACTION = "sha256:" + "0" * 64


def asks(step: str) -> dict[str, Any]:
    facts = {"action": ACTION, "due_ms": 4_000, "four_eyes": step == "ok", "nonce": "1", "roles": [["boss"]]}
    return at(step, rules=["program"], schema="", tool=step, **facts)


def yes(nonce: str) -> dict[str, Any]:
    return {"approved": True, "action": ACTION, "nonce": nonce}


def decided(step: str, decision: str = "allow", **facts: Any) -> dict[str, Any]:
    return {**at(step), "decision": decision, "reason": "RULE", "rule": "r", **facts}


BRANCH = [
    tool("classify", output_key="verdict"),
    {
        "id": "check",
        "type": "condition",
        "condition": "$verdict == 'yes'",
        "then": "refund",
        "otherwise": "reject",
    },
    tool("refund", args={"amount": "$amount"}, is_terminal=True, outcome="refunded"),
    tool("reject", is_terminal=True, final_status="FAILED"),
]
SAGA = [
    tool("flight", compensate={"tool": "cancel_flight", "args": {"id": "$flight.output"}}),
    tool("hotel", compensate={"tool": "cancel_hotel", "args": {"id": "$hotel.output"}}),
    tool("pay"),
]
RETRY = [
    tool("call", on_error="retry", max_retries=2, retry=NO_JITTER, on_failure="mend"),
    tool("end", is_terminal=True),
    tool("mend"),
]
MAP = {
    "id": "each",
    "type": "map",
    "over": "$items",
    "step": tool("one", args={"v": "$item"}),
    "max_concurrency": 2,
    "on_error": "retry",
    "max_retries": 2,
    "retry": NO_JITTER,
}
DAG = [
    tool("a"),
    {
        "id": "q",
        "type": "condition",
        "condition": "$a.output == 1",
        "then": "x",
        "otherwise": "y",
        "depends_on": ["a"],
    },
    tool("x", depends_on=["q"]),
    tool("y", depends_on=["q"]),
    tool("z", depends_on=["x", "y"]),
]
CALL = {"id": "pay", "type": "call", "program": "payment", "inputs": {"n": "$n"}, "timeout_seconds": 5}
CHILD = {"child": "run-1/pay.1.1", "program": "sha256:child"}
LATE = {"at_ms": 6_000}

AGENT = {"id": "m", "type": "agent", "prompt": "go", "tools": ["find", "pay.now"], "max_turns": 2}
CALLS = [
    {"id": "c0", "name": "find", "arguments": {"q": "a"}},
    {"id": "c1", "name": "drop", "arguments": {}},
    {"id": "c2", "name": "pay_now", "arguments": "not an object"},
]
CONVERSATION = [
    {"role": "user", "content": "go"},
    {
        "role": "assistant",
        "content": "let me see",
        "tool_calls": [
            {"id": "c0", "type": "function", "function": {"name": "find", "arguments": '{"q":"a"}'}},
            {"id": "c1", "type": "function", "function": {"name": "drop", "arguments": "{}"}},
            {"id": "c2", "type": "function", "function": {"name": "pay_now", "arguments": "not an object"}},
        ],
    },
    {"role": "tool", "tool_call_id": "c0", "content": '["x"]'},
    {"role": "tool", "tool_call_id": "c1", "content": '{"error":"UNLISTED_TOOL","message":"no such tool"}'},
    {"role": "tool", "tool_call_id": "c2", "content": '{"error":"BAD_ARGUMENT"}'},
]


def turned(calls: list[dict[str, Any]], text: str = "", **facts: Any) -> dict[str, Any]:
    return at("m", payload={"text": text, "calls": calls}, proposals=len(calls), **facts)


def judged(action: int, tool: str | None, reason: str | None = None, **facts: Any) -> dict[str, Any]:
    """ActionProposed: rejected when a reason is given."""
    verdict = "accepted" if reason is None else "rejected"
    given = {"tool": tool, "reason": reason}
    return at(
        "m", action=action, verdict=verdict, **{k: v for k, v in given.items() if v is not None}, **facts
    )


SCENARIOS: dict[str, tuple[dict[str, Any], list[Told]]] = {
    "steps run in order and duplicates are refused": (
        {"steps": [tool("a"), tool("b")]},
        [
            no("OUT_OF_ORDER", "StepStarted", at("a")),
            start(),
            no("OUT_OF_ORDER", "RunStarted", {"at_ms": 1_000, "payload": {}}),
            no("UNKNOWN_STEP", "StepStarted", at("zz")),
            no("OUT_OF_ORDER", "StepStarted", at("b")),
            no("OUT_OF_ORDER", "StepSucceeded", at("a", payload=1)),
            *do("a", {"n": 1}),
            no("DUPLICATE", "StepSucceeded", at("a", payload={"n": 1})),
            no("DUPLICATE", "StepStarted", at("a")),
            no("STALE_ATTEMPT", "StepStarted", at("b", attempt=2)),
            no("STALE_ATTEMPT", "StepStarted", at("b", occurrence=2)),
            *do("b", 2),
            no("MISMATCH", "RunFinished", {"at_ms": 9_000, "status": "FAILED"}),
            end("SUCCESS"),
            no("TERMINAL", "StepStarted", at("a")),
            ok("EventRefused", {"at_ms": 9_000, "code": "TERMINAL", "event_id": "e1"}),
        ],
    ),
    "a condition takes the branch that its values say": (
        {"steps": BRANCH},
        [
            start({"amount": 5}),
            *do("classify", "yes"),
            no("MISMATCH", "StepStarted", at("refund", payload={"amount": 6})),
            ok("StepStarted", at("refund", payload={"amount": 5})),
            ok("StepSucceeded", at("refund", payload=None)),
            end("SUCCESS", outcome="refunded"),
        ],
    ),
    "a governed failure": (
        {"steps": BRANCH},
        [start({"amount": 5}), *do("classify", "no"), *do("reject", None), end("FAILED")],
    ),
    "a loop ends with its budget": (
        {
            "max_steps": 4,
            "steps": [
                tool("poll", output_key="state"),
                {
                    "id": "q",
                    "type": "condition",
                    "condition": "$state == 1",
                    "then": "poll",
                    "otherwise": "end",
                },
                tool("end"),
            ],
        },
        [
            start(),
            *do("poll", 1),
            *do("poll", 1, occurrence=2),
            no("DUPLICATE", "StepStarted", at("poll", occurrence=2)),
            end("BUDGET_EXCEEDED"),
        ],
    ),
    "a retry waits for its back-off and a failure is handed on": (
        {"steps": RETRY},
        [
            start(),
            ok("StepStarted", at("call")),
            fail("call", "Timeout"),
            no("OUT_OF_ORDER", "TimerFired", at("call", attempt=2, at_ms=1_999)),
            no("STALE_ATTEMPT", "TimerFired", at("call", at_ms=2_000)),
            ok("TimerFired", at("call", attempt=2, at_ms=2_000)),
            ok("StepStarted", at("call", attempt=2)),
            no("STALE_ATTEMPT", "StepSucceeded", at("call", payload=1)),
            fail("call", "Broken", attempt=2),
            *do("mend", None),
            end("SUCCESS"),
        ],
    ),
    "a model's answer passes the gate": (
        {"steps": [{"id": "ask", "type": "llm", "prompt": "Refund?", "allowed_outputs": ["yes", "no"]}]},
        [
            start(),
            ok("StepStarted", at("ask")),
            no("GATE", "StepSucceeded", at("ask", payload="maybe")),
            ok("StepSucceeded", at("ask", payload="yes", tokens_in=7, tokens_out=1, cost_nanousd=900)),
            end("SUCCESS"),
        ],
    ),
    "reservations must fit what is left": (
        {"max_tokens": 100, "steps": [{"id": "ask", "type": "llm", "prompt": "Refund?"}, tool("b")]},
        [
            start(),
            no("OVER_BUDGET", "StepStarted", at("ask", reserved_tokens=101)),
            ok("StepStarted", at("ask", reserved_tokens=100)),
            ok("StepSucceeded", at("ask", payload="yes", tokens_in=101)),
            end("BUDGET_EXCEEDED"),
        ],
    ),
    "an unknown outcome is waited for and settled": (
        {"steps": [tool("charge"), tool("b")]},
        [
            start(),
            ok("StepStarted", at("charge", effect="keyed")),
            ok("OutcomeUnknown", at("charge", effect="keyed", reason="CRASH")),
            no("OUT_OF_ORDER", "StepStarted", at("charge")),
            ok("OutcomeResolved", at("charge", by="contract", resolution="repeat")),
            ok("StepStarted", at("charge", attempt=2, effect="keyed")),
            ok("OutcomeUnknown", at("charge", attempt=2, effect="keyed", reason="TIMEOUT")),
            ok("StepSucceeded", at("charge", attempt=2, payload="late but true")),
            no("DUPLICATE", "OutcomeResolved", at("charge", attempt=2, by="operator", resolution="failed")),
            *do("b", None),
            end("SUCCESS"),
        ],
    ),
    "a cancelled run waits for an unknown outcome": (
        {"steps": [tool("charge"), tool("b")]},
        [
            start(),
            ok("StepStarted", at("charge")),
            ok("OutcomeUnknown", at("charge", effect="irreversible", reason="CRASH")),
            ok("RunCancelled", {"at_ms": 1_000}),
            no("OUT_OF_ORDER", "RunCancelled", {"at_ms": 1_000}),
            no("OUT_OF_ORDER", "RunFinished", {"at_ms": 1_000, "status": "CANCELLED"}),
            ok("OutcomeResolved", at("charge", by="operator", resolution="failed")),
            end("CANCELLED"),
        ],
    ),
    "lanes of a parallel settle each for itself": (
        {"steps": [{"id": "g", "type": "parallel", "parallel_steps": [tool("x"), tool("y")]}, tool("b")]},
        [
            start(),
            ok("StepStarted", at("x")),
            ok("StepStarted", at("y")),
            ok("StepSucceeded", at("y", payload=2)),
            no("DUPLICATE", "StepSucceeded", at("y", payload=2)),
            ok("StepSucceeded", at("x", payload=1)),
            *do("b", None),
            end("SUCCESS"),
        ],
    ),
    "a retried map repeats only what failed and counts its attempts on": (
        {"steps": [MAP]},
        [
            start({"items": ["a", "b", "c"]}),
            no("OUT_OF_ORDER", "StepStarted", at("one")),
            no("OUT_OF_ORDER", "StepStarted", at("one", item=2)),
            *do("one", "A", item=0),
            ok("StepStarted", at("one", item=1)),
            fail("one", "Broken", item=1),
            *do("one", "C", item=2),
            ok("TimerFired", at("each", attempt=2, at_ms=2_000)),
            no("DUPLICATE", "StepStarted", at("one", item=0)),
            no("STALE_ATTEMPT", "StepStarted", at("one", item=1)),
            *do("one", "B", item=1, attempt=2),
            end("SUCCESS"),
        ],
    ),
    "a wait takes one event once": (
        {"steps": [{"id": "w", "type": "wait", "event": "paid", "accept": "$event.amount >= 10"}, tool("b")]},
        [
            start(),
            no("NOT_WAITING", "EventReceived", told("e0", 1, name="other")),
            no("NOT_ACCEPTED", "EventReceived", told("e1", {"amount": 9}, name="paid")),
            ok("EventReceived", told("e1", {"amount": 10}, name="paid")),
            no("DUPLICATE", "EventReceived", told("e1", {"amount": 10}, name="paid")),
            no("EVENT_CONFLICT", "EventReceived", told("e1", {"amount": 11}, name="paid")),
            *do("b", None),
            end("SUCCESS"),
            no("DUPLICATE", "EventReceived", told("e1", {"amount": 10}, name="paid")),
            no("TERMINAL", "EventReceived", told("e2", {"amount": 10}, name="paid")),
        ],
    ),
    "an early event is kept in the inbox": (
        {"steps": [tool("a"), {"id": "w", "type": "wait", "event": "paid"}, tool("b")]},
        [
            start(),
            ok("EventReceived", told("e1", 7, name="paid")),
            *do("a", None),
            *do("b", None),
            end("SUCCESS"),
        ],
    ),
    "an approval needs a role": (
        {"steps": [{"id": "ok", "type": "wait", "approvers": ["boss"], "timeout_seconds": 60}]},
        [
            start(),
            no("NOT_APPROVER", "EventReceived", told("e1", {"approved": True}, step="ok")),
            no("NOT_APPROVAL", "EventReceived", told("e1", {"approved": 1}, step="ok", principal=BOSS)),
            ok("EventReceived", told("e1", {"approved": True}, step="ok", principal=BOSS)),
            end("SUCCESS"),
        ],
    ),
    "who answered a model call is recorded and changes nothing": (
        {
            "steps": [
                {"id": "ask", "type": "llm", "prompt": "?", "on_error": "retry", "retry": {"jitter": False}},
                tool("b", args={"v": "$ask.output"}),
            ]
        },
        [
            start(),
            ok("StepStarted", at("ask")),
            no("MALFORMED", "StepSucceeded", at("ask", payload="yes", switches=[])),
            no(
                "MALFORMED",
                "StepSucceeded",
                at("ask", payload="yes", switches=[{**SWITCH, "reason": "Mood"}]),
            ),
            no("MALFORMED", "StepSucceeded", at("ask", payload="yes", switches=[{**SWITCH, "why": "?"}])),
            no("MALFORMED", "StepSucceeded", at("ask", payload="yes", switches=[SWITCH] * 65)),
            no("MALFORMED", "StepSucceeded", at("ask", payload="yes", provider="")),
            fail("ask", "MODEL_HTTP", provider="b", switches=[SWITCH], tokens_in=2),
            ok("TimerFired", at("ask", attempt=2, at_ms=2_000)),
            ok("StepStarted", at("ask", attempt=2, at_ms=2_000)),
            ok(
                "StepSucceeded",
                at("ask", attempt=2, at_ms=2_000, payload="yes", provider="c", switches=[SWITCH] * 2),
            ),
            *do("b", None, at_ms=2_000),
            end("SUCCESS", at_ms=2_000),
        ],
    ),
    "a pending tool is answered by an event": (
        {"steps": [tool("a"), tool("b", args={"v": "$a.output"})]},
        [
            start(),
            ok("StepStarted", at("a")),
            ok("StepPending", at("a")),
            no("OUT_OF_ORDER", "StepSucceeded", at("a", payload=1)),
            ok("EventReceived", told("e1", {"n": 1}, step="a")),
            ok("StepStarted", at("b", payload={"v": {"n": 1}})),
            ok("StepSucceeded", at("b", payload=None)),
            end("SUCCESS"),
        ],
    ),
    "a timer rings when it is due and suspended time is free": (
        {"max_duration_seconds": 1, "steps": [{"id": "w", "type": "wait", "seconds": 3_600}, tool("b")]},
        [
            start(),
            no("OUT_OF_ORDER", "TimerFired", at("w", at_ms=3_600_999)),
            ok("TimerFired", at("w", at_ms=3_601_000)),
            *do("b", None, at_ms=3_601_500),
            end("SUCCESS"),
        ],
    ),
    "a saga is undone in reverse order": (
        {"steps": SAGA},
        [
            start(),
            *do("flight", 1),
            *do("hotel", 2),
            ok("StepStarted", at("pay")),
            fail("pay", "Declined"),
            no("OUT_OF_ORDER", "RunFinished", {"at_ms": 1_000, "status": "FAILED"}),
            no("OUT_OF_ORDER", "CompensationStarted", at("flight")),
            ok("CompensationStarted", at("hotel", payload={"id": 2})),
            ok("CompensationFailed", at("hotel", draw=0, error="Gone", retryable=False)),
            ok("CompensationStarted", at("flight", payload={"id": 1})),
            ok("OutcomeUnknown", at("flight", compensation=True, effect="keyed", reason="CRASH")),
            ok("OutcomeResolved", at("flight", compensation=True, by="reconcile", resolution="succeeded")),
            no("MISMATCH", "RunFinished", {"at_ms": 1_000, "status": "FAILED"}),
            end("FAILED", incomplete=["hotel"]),
        ],
    ),
    "a child that takes too long is stopped": (
        {"steps": [CALL]},
        [
            start({"n": 1}, programs={"payment": "sha256:child"}),
            no("OUT_OF_ORDER", "StepStarted", at("pay")),
            no("MISMATCH", "ChildStarted", at("pay", child="run-1/other", program="sha256:child")),
            ok("ChildStarted", at("pay", payload={"n": 1}, **CHILD)),
            ok("ChildSuspended", at("pay", waits=[{"kind": "event", "step": "w"}])),
            no("DUPLICATE", "ChildSuspended", at("pay", waits=[{"kind": "event", "step": "w"}])),
            ok("TimerFired", at("pay", **LATE)),
            ok("ChildFinished", at("pay", head="sha256:h", status="CANCELLED", steps=3, **LATE)),
            end("FAILED"),
        ],
    ),
    "a model proposes, the runtime disposes": (
        {"steps": [AGENT, tool("b")]},
        [
            start(),
            no("OUT_OF_ORDER", "ModelTurned", turned(CALLS)),
            no("OUT_OF_ORDER", "ActionProposed", judged(0, "find")),
            ok("StepStarted", at("m", effect="model")),
            no("MALFORMED", "ModelTurned", turned([])),
            no("MALFORMED", "ModelTurned", at("m", payload={"text": "", "calls": CALLS}, proposals=2)),
            no("OVERSIZED", "ModelTurned", turned(CALLS * 11)),
            ok("ModelTurned", turned(CALLS, "let me see", tokens_in=5, tokens_out=3, model="m-1")),
            no("OUT_OF_ORDER", "StepSucceeded", at("m", payload="done")),
            no("OUT_OF_ORDER", "StepStarted", at("m.find", item=0)),
            no("OUT_OF_ORDER", "ActionProposed", judged(1, None, "UNLISTED_TOOL")),
            no("MISMATCH", "ActionProposed", judged(0, "pay.now")),
            ok("ActionProposed", judged(0, "find")),
            no("MISMATCH", "StepStarted", at("m.find", item=0, payload={"q": "b"})),
            ok("StepStarted", at("m.find", item=0, effect="keyed", payload={"q": "a"})),
            no("OUT_OF_ORDER", "ActionProposed", judged(1, None, "UNLISTED_TOOL")),
            ok("StepSucceeded", at("m.find", item=0, payload=["x"])),
            no("DUPLICATE", "ActionProposed", judged(0, "find")),
            no("GATE", "ActionProposed", judged(1, None)),
            no("MISMATCH", "ActionProposed", judged(1, None, "POLICY")),
            ok("ActionProposed", judged(1, None, "UNLISTED_TOOL", payload={"message": "no such tool"})),
            no("GATE", "ActionProposed", judged(2, "pay.now")),
            ok("ActionProposed", judged(2, "pay.now", "BAD_ARGUMENT")),
            no("MISMATCH", "StepStarted", at("m", attempt=2, payload={"messages": CONVERSATION[:2]})),
            ok("StepStarted", at("m", attempt=2, effect="model", payload={"messages": CONVERSATION})),
            ok("StepSucceeded", at("m", attempt=2, payload="done")),
            *do("b", None),
            end("SUCCESS"),
        ],
    ),
    "an agent whose turns are over": (
        {"steps": [AGENT]},
        [
            start(),
            ok("StepStarted", at("m")),
            ok("ModelTurned", turned(CALLS[:1])),
            ok("ActionProposed", judged(0, "find", "POLICY")),
            ok("StepStarted", at("m", attempt=2)),
            ok("ModelTurned", turned(CALLS[:1], attempt=2)),
            no("GATE", "ActionProposed", judged(1, "find", attempt=2)),
            ok("ActionProposed", judged(1, "find", "MAX_TURNS", attempt=2)),
            end("BUDGET_EXCEEDED"),
        ],
    ),
    "the unknown outcome of an action is settled before the model goes on": (
        {"steps": [AGENT]},
        [
            start(),
            ok("StepStarted", at("m")),
            ok("ModelTurned", turned(CALLS[:1])),
            ok("ActionProposed", judged(0, "find")),
            ok("StepStarted", at("m.find", item=0, effect="irreversible")),
            ok("OutcomeUnknown", at("m.find", item=0, effect="irreversible", reason="CRASH")),
            no("STALE_ATTEMPT", "StepStarted", at("m", attempt=2)),
            ok("OutcomeResolved", at("m.find", item=0, by="operator", resolution="succeeded", payload=1)),
            ok("StepStarted", at("m", attempt=2)),
            ok("StepSucceeded", at("m", attempt=2, payload="done")),
            end("SUCCESS"),
        ],
    ),
    "a DAG skips what was not taken": (
        {"steps": DAG},
        [
            start(),
            *do("a", 1),
            no("DUPLICATE", "StepStarted", at("y")),
            *do("x", None),
            *do("z", None),
            end("SUCCESS"),
        ],
    ),
    "an approval is of one action, and is used by it": (
        {
            "steps": [
                {"id": "ok", "type": "wait", "approvers": ["boss"], "approves": "pay"},
                tool("pay", args={"n": "$n"}),
            ]
        },
        [
            start({"n": 5}, principal=CAL),
            no("NOT_WAITING", "EventReceived", told("e1", yes("1"), step="ok", principal=BOSS)),
            ok("ApprovalRequested", asks("ok")),
            no("DUPLICATE", "ApprovalRequested", asks("ok")),
            no("NOT_APPROVER", "EventReceived", told("e1", yes("1"), step="ok")),
            no("NOT_APPROVAL", "EventReceived", told("e1", {"approved": 1}, step="ok", principal=BOSS)),
            no("APPROVAL_VOID", "EventReceived", told("e1", {"approved": True}, step="ok", principal=BOSS)),
            no("APPROVAL_VOID", "EventReceived", told("e1", yes("2"), step="ok", principal=BOSS)),
            no(
                "SELF_APPROVAL",
                "EventReceived",
                told("e1", yes("1"), step="ok", principal={**CAL, "roles": ["boss"]}),
            ),
            ok("EventReceived", told("e1", yes("1"), step="ok", principal=BOSS)),
            no("POLICY", "StepStarted", at("pay")),
            no("POLICY", "PolicyDecided", decided("pay")),
            no("APPROVAL_VOID", "PolicyDecided", decided("pay", approval="2", action=ACTION)),
            no("APPROVAL_VOID", "PolicyDecided", decided("pay", approval="1", action=ACTION[:-1] + "1")),
            no("APPROVAL_EXPIRED", "PolicyDecided", decided("pay", approval="1", action=ACTION, at_ms=5_000)),
            ok("PolicyDecided", decided("pay", approval="1", action=ACTION)),
            *do("pay", "paid"),
            end("SUCCESS"),
        ],
    ),
    "in a governed run nothing starts undecided": (
        {
            "steps": [
                tool("a", on_error="retry", retry=NO_JITTER),
                tool("b"),
                tool("c", on_failure="d"),
                tool("d"),
            ]
        },
        [
            start(policy=ACTION),
            no("POLICY", "StepStarted", at("a")),
            no("POLICY", "StepSucceeded", at("a", payload=1, pure=True)),
            no("MALFORMED", "PolicyDecided", decided("a", "maybe")),
            ok("PolicyDecided", decided("a")),
            ok("StepStarted", at("a")),
            no("OUT_OF_ORDER", "PolicyDecided", decided("a")),
            fail("a", "Odd"),
            ok("TimerFired", at("a", attempt=2, at_ms=2_000)),
            no("POLICY", "StepStarted", at("a", attempt=2)),
            ok("PolicyDecided", decided("a", attempt=2)),
            ok("StepSucceeded", at("a", attempt=2, payload=1, pure=True)),
            ok("PolicyDecided", decided("b", "ask")),
            no("POLICY", "StepStarted", at("b")),
            ok("ApprovalRequested", asks("b")),
            no("OUT_OF_ORDER", "StepStarted", at("b")),
            no(
                "APPROVAL_EXPIRED",
                "EventReceived",
                told("e1", yes("1"), step="b", principal=BOSS, at_ms=4_000),
            ),
            ok("EventReceived", told("e1", yes("1"), step="b", principal=BOSS)),
            ok("PolicyDecided", decided("b", approval="1", action=ACTION)),
            *do("b", None),
            ok("PolicyDecided", decided("c", "deny")),
            ok("StepFailed", at("c", draw=0, error="CapabilityDeniedError", pure=True, retryable=False)),
            ok("PolicyDecided", decided("d", "ask")),
            ok("ApprovalRequested", asks("d")),
            ok("TimerFired", at("d", at_ms=4_000)),
            end("FAILED"),
        ],
    ),
    "undoing is decided as well": (
        {"steps": [*SAGA[:1], tool("b", is_terminal=True, final_status="FAILED")]},
        [
            start(policy=ACTION),
            ok("PolicyDecided", decided("flight")),
            *do("flight", 7),
            ok("PolicyDecided", decided("b")),
            *do("b", None),
            no("POLICY", "CompensationStarted", at("flight")),
            no("OUT_OF_ORDER", "PolicyDecided", decided("b", "deny", compensation=True)),
            ok("PolicyDecided", decided("flight", "deny", compensation=True)),
            end("FAILED", incomplete=["flight"]),
        ],
    ),
}


def main() -> None:
    vectors = []
    for name, (program, events) in SCENARIOS.items():
        program = {"name": "p", "version": "1", **program}
        compiled = compile_vector(program)
        state = State(run="run-1")
        steps = []
        for kind, event, code in events:
            expected = view(compiled, state, kind, event)
            assert expected.get("rejection") == code, (name, kind, event, expected)
            steps.append({"type": kind, "event": event, **expected})
        vectors.append({"name": name, "run": "run-1", "program": program, "events": steps})
    VECTORS.write_text(json.dumps(vectors, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
