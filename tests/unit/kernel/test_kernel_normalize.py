"""Raw input (E -> E'): whatever it is, it becomes a typed event or a rejection, never an exception."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from nano_vm.kernel import events as ev
from nano_vm.kernel.limits import PAYLOAD_BYTES_MAX
from nano_vm.kernel.normalize import normalize_event
from nano_vm.kernel.state import Rejection

RECEIVED: dict[str, Any] = {
    "at_ms": 5,
    "event_id": "e1",
    "name": "paid",
    "payload": {"n": 1.0, "t": [1, "x"]},
}
FAILED: dict[str, Any] = {
    "at_ms": 5,
    "attempt": 1,
    "draw": 7,
    "error": "E",
    "occurrence": 1,
    "retryable": True,
    "step": "a",
}
STARTED: dict[str, Any] = {"at_ms": 5, "program": "sha256:x", "payload": {}}


def code(kind: str, raw: object) -> str | None:
    result = normalize_event(kind, raw)
    return result.code if type(result) is Rejection else None


def test_an_event_is_read_from_an_object_or_its_json() -> None:
    for raw in (RECEIVED, json.dumps(RECEIVED).encode(), bytearray(json.dumps(RECEIVED).encode())):
        event = normalize_event("EventReceived", raw)
        assert type(event) is ev.EventReceived
        assert (event.at_ms, event.event_id, event.name) == (5, "e1", "paid")
        assert event.payload == {"n": 1, "t": [1, "x"]}
        assert type(event.payload["n"]) is int


def test_the_payload_shares_nothing_with_the_input() -> None:
    event = normalize_event("EventReceived", RECEIVED)
    assert type(event) is ev.EventReceived
    assert event.payload is not RECEIVED["payload"]
    assert event.payload["t"] is not RECEIVED["payload"]["t"]


def test_an_absent_payload_stays_absent() -> None:
    event = normalize_event("EventReceived", {"at_ms": 5, "event_id": "e1"})
    assert type(event) is ev.EventReceived
    assert event.payload is msgspec.UNSET


@pytest.mark.parametrize("kind", ["Nope", "", 5, None])
def test_an_unknown_type_is_malformed(kind: Any) -> None:
    assert code(kind, RECEIVED) == "MALFORMED"


@pytest.mark.parametrize(
    "raw",
    [
        None,
        5,
        "text",
        [],
        b"",
        b"null",
        b"{",
        b"\xff\xfe{}",
        json.dumps(RECEIVED).encode("utf-16"),
        b"\xef\xbb\xbf{}",
        b'{"at_ms":5,"event_id":"e","event_id":"f"}',
        b'{"at_ms":5,"event_id":"e","payload":NaN}',
        b'{"at_ms":5,"event_id":"e","payload":1e999}',
        b'{"at_ms":5,"event_id":"e","payload":' + b"9" * 5000 + b"}",
        b'{"at_ms":5,"event_id":"e","payload":' + b"[" * 3000 + b"]" * 3000 + b"}",
        b"[" * 200_000,
        b'{"at_ms":5,"event_id":"\\ud800"}',
        {},
        {**RECEIVED, "extra": 1},
        {**RECEIVED, 5: 1},
        {**RECEIVED, "at_ms": "5"},
        {**RECEIVED, "at_ms": -1},
        {**RECEIVED, "at_ms": 2**53},
        {**RECEIVED, "at_ms": 10**400},
        {**RECEIVED, "at_ms": True},
        {**RECEIVED, "at_ms": 5.5},
        {**RECEIVED, "event_id": ""},
        {**RECEIVED, "event_id": None},
        {**RECEIVED, "event_id": "\ud800"},
        {**RECEIVED, "name": ""},
        {**RECEIVED, "item": -1},
        {**RECEIVED, "payload": {1, 2}},
        {**RECEIVED, "payload": float("nan")},
        {**RECEIVED, "payload": {"a": b"bytes"}},
        {**RECEIVED, "payload": 2**60},
        {**RECEIVED, "principal": "ann"},
        {**RECEIVED, "principal": {"roles": []}},
        {**RECEIVED, "principal": {"id": 5}},
        {**RECEIVED, "principal": {"id": "ann", "roles": "boss"}},
        {**RECEIVED, "principal": {"id": "ann", "roles": [5]}},
        {**RECEIVED, "principal": {"id": "ann", "roles": ["r"] * 65}},
        {**RECEIVED, "principal": {"id": "ann", "tenant": ""}},
        {**RECEIVED, "principal": {"id": "ann", "admin": True}},
    ],
)
def test_what_is_no_event_is_malformed(raw: object) -> None:
    assert code("EventReceived", raw) == "MALFORMED"


@pytest.mark.parametrize(
    "raw",
    [
        {**RECEIVED, "event_id": "x" * 257},
        {**RECEIVED, "name": "x" * 257},
        {**RECEIVED, "step": "x" * 1_025},
        {**RECEIVED, "payload": "x" * PAYLOAD_BYTES_MAX},
        {**RECEIVED, "event_id": "x" * 2_000_000},
        b" " * (PAYLOAD_BYTES_MAX + 2_000_000),
    ],
)
def test_what_is_too_large_is_oversized(raw: object) -> None:
    assert code("EventReceived", raw) == "OVERSIZED"


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        ("StepFailed", {**FAILED, "draw": 1_000_000}),
        ("StepFailed", {**FAILED, "draw": -1}),
        ("StepFailed", {**FAILED, "attempt": 0}),
        ("StepFailed", {**FAILED, "occurrence": 0}),
        ("StepFailed", {**FAILED, "tokens_in": -5}),
        ("StepFailed", {**FAILED, "step": ""}),
        ("RunStarted", {**STARTED, "budgets": {"steps": -1}}),
        ("RunStarted", {**STARTED, "budgets": {"": 1}}),
        ("RunStarted", {**STARTED, "programs": {"p": ""}}),
        ("RunStarted", {**STARTED, "features": [5]}),
        ("RunFinished", {"at_ms": 1, "status": "RUNNING"}),
        ("RunFinished", {"at_ms": 1, "status": "DONE"}),
        ("BudgetExhausted", {"at_ms": 1, "budget": "fun", "left": 0, "needed": 1, "step": "a"}),
        ("EventRefused", {"at_ms": 1, "code": "WHY", "event_id": "e"}),
        ("TimerFired", {"at_ms": 1, "attempt": 1, "occurrence": 1, "step": "a", "payload": 1}),
        (
            "OutcomeResolved",
            {"at_ms": 1, "attempt": 1, "by": "me", "occurrence": 1, "resolution": "failed", "step": "a"},
        ),
    ],
)
def test_every_field_is_bounded(kind: str, raw: object) -> None:
    assert code(kind, raw) == "MALFORMED"


def test_long_texts_in_lists_are_oversized() -> None:
    raw = {"at_ms": 1, "status": "FAILED", "incomplete": ["x" * 1_025]}
    assert code("RunFinished", raw) == "OVERSIZED"


def test_well_formed_events_of_every_kind_are_read() -> None:
    assert type(normalize_event("StepFailed", FAILED)) is ev.StepFailed
    started = {
        **STARTED,
        "budgets": {"steps": 0},
        "programs": {"p": "sha256:1"},
        "features": [],
        "principal": {"id": "ann", "roles": ["boss"], "tenant": "t"},
        "forked": {"run": "r", "seq": 1, "head": "h"},
    }
    assert type(normalize_event("RunStarted", started)) is ev.RunStarted
    finished = {"at_ms": 1, "status": "FAILED", "incomplete": ["a"], "outcome": "x"}
    assert type(normalize_event("RunFinished", finished)) is ev.RunFinished
    refused = {"at_ms": 1, "code": "TERMINAL", "event_id": "e", "payload": 5}
    assert type(normalize_event("EventRefused", refused)) is ev.EventRefused
