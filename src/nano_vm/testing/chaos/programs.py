"""The programs of the chaos scenarios: small, and such that a mistake of the engine shows outside."""

from __future__ import annotations

from typing import Any, Final


def _step(kind: str, name: str, **fields: Any) -> dict[str, Any]:
    return {"id": name, "type": "tool", "tool": kind, **fields}


_APPROVED: Final = {"approvers": ["supervisor"]}

PAYMENT: Final[dict[str, Any]] = {
    "name": "payment",
    "steps": [
        _step("read", "look", args={"amount": 5}),
        _step("charge", "charge", args={"amount": 5}),
        _step("wire", "wire", args={"amount": 5}),
        _step("mark", "mark"),
    ],
}

CHILD: Final[dict[str, Any]] = {
    "name": "chaos_child",
    "steps": [_step("ship", "x"), _step("book", "y"), _step("charge", "w")],
}

MIXED: Final[dict[str, Any]] = {
    "name": "mixed",
    "steps": [
        _step("charge", "a"),
        {"id": "pause", "type": "wait", "seconds": 0.01},
        {
            "id": "g",
            "type": "parallel",
            "parallel_steps": [_step("ship", "r"), _step("book", "t"), _step("mark", "i")],
        },
        {"id": "c", "type": "call", "program": "chaos_child", "inputs": {}},
        {"id": "go", "type": "wait", "event": "go"},
        {"id": "m", "type": "map", "over": [1, 2, 3], "step": _step("charge", "each")},
        _step("wire", "n"),
        _step("post", "b"),
        _step("book", "z"),
    ],
}

EVENTS: Final[dict[str, Any]] = {
    "name": "events",
    "steps": [
        {"id": "first", "type": "wait", "event": "one"},
        {"id": "second", "type": "wait", "event": "two"},
        {"id": "third", "type": "wait", "event": "three", "accept": "$event.number >= 3"},
        _step("wire", "pay"),
    ],
}

APPROVAL: Final[dict[str, Any]] = {
    "name": "approval",
    "steps": [{"id": "agree", "type": "wait", **_APPROVED}, _step("wire", "pay")],
}

SAGA: Final[dict[str, Any]] = {
    "name": "saga",
    "steps": [
        _step("charge", "flight", args={"amount": 1}, compensate={"tool": "release", "args": {"amount": 1}}),
        _step("charge", "hotel", args={"amount": 2}, compensate={"tool": "release", "args": {"amount": 2}}),
        {
            "id": "both",
            "type": "parallel",
            "parallel_steps": [_step("charge", "car", args={"amount": 3}), _step("refuse", "train")],
        },
    ],
}

TIMEOUTS: Final[dict[str, Any]] = {
    "name": "timeouts",
    "steps": [
        _step("charge", "charge"),
        _step("hang", "slow", timeout_seconds=0.02, on_failure="late"),
        {"id": "on_time", "type": "wait", "seconds": 0.01, "is_terminal": True},
        {"id": "late", "type": "wait", "seconds": 0.01, "is_terminal": True, "outcome": "late"},
    ],
}

NOISE: Final[dict[str, Any]] = {
    "name": "noise",
    "inputs": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
    "max_steps": 30,
    "steps": [
        {
            "id": "judge",
            "type": "llm",
            "prompt": "Is this justified? $text",
            "allowed_outputs": ["yes", "no"],
            "on_error": "retry",
            "max_retries": 3,
            "retry": {"initial": 0.001, "jitter": False},
            "on_failure": "person",
        },
        {"id": "justified", "type": "condition", "condition": "$judge.output == 'yes'"}
        | {"then": "pay", "otherwise": "no"},
        _step("wire", "pay", is_terminal=True, outcome="paid"),
        _step("mark", "no", is_terminal=True, outcome="refused"),
        _step("mark", "person", is_terminal=True, outcome="person"),
    ],
}

LOOP: Final[dict[str, Any]] = {
    "name": "loop",
    "max_steps": 25,
    "steps": [
        _step("mark", "again"),
        {"id": "more", "type": "condition", "condition": "$again.output != ''"}
        | {"then": "again", "otherwise": "end"},
        _step("mark", "end"),
    ],
}

ALL: Final = (CHILD, PAYMENT, MIXED, EVENTS, APPROVAL, SAGA, TIMEOUTS, NOISE, LOOP)
