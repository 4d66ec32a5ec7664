"""Somebody who can write everything writes a journal anew: one thing is changed, and every commitment, link, head and
receipt is made to fit. What the program, the policy or the kernel could not have led to is refused all the same."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any, TypeAlias

import msgspec
import pytest

from nano_vm import (
    PENDING,
    Completion,
    ExecutionVM,
    MemoryStore,
    MockLLMAdapter,
    ToolCall,
    VerificationError,
    canonical,
)
from nano_vm.evidence import container
from nano_vm.evidence.bundle import compile_stored, export, program_of
from nano_vm.evidence.receipt import receipt
from nano_vm.evidence.verify import verify_bundle
from nano_vm.journal.entry import Chain, Entry, open_events
from nano_vm.journal.replay import verify_run
from nano_vm.journal.trace import Trace
from nano_vm.kernel.limits import TEXT_CHARS_MAX

ANA, EVE, BOB = (
    {"id": "ana", "roles": ["clerk"]},
    {"id": "eve", "roles": ["boss"]},
    {"id": "bob", "roles": ["boss", "risk"]},
)
POLICY = {
    "policy": "house",
    "tools": ["look", "undo", "lose", "wait_for"],
    "models": ["*"],
    "rules": [
        {"id": "small", "tools": ["pay"], "when": "$args.n <= 9", "limits": [{"max_calls": 5, "per": ["run"]}]},
        {"id": "large", "tools": ["pay"], "when": "$args.n > 9 and $args.n < 100",
         "approval": {"roles": ["boss"], "count": 2, "expiry_seconds": 3_600}},
        {"id": "never", "tools": ["pay"], "when": "$args.n >= 100", "decision": "deny"},
    ],
}  # fmt: skip
STRUCTURED = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}


def step(name: str, tool: str, n: Any = 1, **fields: Any) -> dict[str, Any]:
    return {"id": name, "type": "tool", "tool": tool, "args": {"n": n}, **fields}


def lose(n: int) -> None:
    raise ConnectionError("nobody knows")


CHILD = {
    "name": "child",
    "inputs": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
    "steps": [
        step("book", "pay", "$n", compensate={"tool": "undo", "args": {"n": "$n"}}),
        step("seen", "look"),
    ],
}
CALLS = {"id": "call", "type": "call", "program": "child", "inputs": {"n": 3}}
ASKS = {"id": "ask", "type": "llm", "prompt": "?"}
AGENT = {"id": "agent", "type": "agent", "prompt": "?", "tools": ["look", "pay"]}
Act: TypeAlias = Callable[[ExecutionVM, str], Awaitable[Any]]


async def approve(vm: ExecutionVM, run: str) -> None:
    await vm.approve(run, principal=EVE)
    await vm.approve(run, principal=BOB)


async def resolve(vm: ExecutionVM, run: str) -> None:
    await vm.resolve(run, "lost", "repeat")
    await vm.resolve(run, "lost", "succeeded", 1)


def calls() -> list[Any]:
    return [
        Completion(
            text="", tool_calls=(ToolCall("1", "look", '{"n": 1}'), ToolCall("2", "pay", '{"n": 500}'))
        ),
        "x",
    ]


KINDS: dict[str, tuple[list[dict[str, Any]], Act | None, Any]] = {
    "plain": ([step("a", "look"), step("b", "pay", 3)], None, "x"),
    "denied": ([step("a", "pay", 500, on_error="skip"), step("b", "look")], None, "x"),
    "approved": ([step("a", "pay", 50)], approve, "x"),
    "asked": ([step("a", "pay", 50)], None, "x"),
    "wait": ([{"id": "w", "type": "wait", "approvers": ["risk"], "approves": "a"}, step("a", "look")],
             lambda vm, run: vm.approve(run, principal=BOB), "x"),
    "unknown": ([step("lost", "lose")], resolve, "x"),
    "called": ([CALLS], None, "x"),
    "model": ([ASKS, step("a", "look")], None, "yes"),
    "structured": ([{**ASKS, "output_schema": STRUCTURED}, step("a", "look")], None, '{"ok": true}'),
    "agent": ([AGENT], None, calls),
    "pending": ([step("p", "wait_for")], None, "x"),
}  # fmt: skip


@cache
def bundle(kind: str) -> container.Contents:
    steps, act, says = KINDS[kind]

    async def main() -> bytes:
        tools = {
            "look": lambda n: n,
            "pay": lambda n: n,
            "undo": lambda n: n,
            "lose": lose,
            "wait_for": lambda n: PENDING,
        }
        llm = MockLLMAdapter(says() if callable(says) else says)
        vm = ExecutionVM(llm, tools, MemoryStore(), policy=POLICY)
        vm.save_program(CHILD)
        trace = await vm.run({"name": kind, "max_tokens": 9_000, "steps": steps}, trace_id="r", principal=ANA)
        if act is not None:
            await act(vm, trace.trace_id)
        vm.verify(trace.trace_id)
        return export(vm.store, trace.trace_id).data

    data = asyncio.run(main())
    verify_bundle(data)
    return container.read(data)


Change: TypeAlias = Callable[[int, list[Any]], list[Any]]
"""Given the run's place in the bundle and the events of an entry (the payload of the first in it): what to write."""


def forged(contents: container.Contents, change: Change) -> bytes:
    """The bundle with its journals written anew."""
    journals: list[tuple[str, list[Entry]]] = []
    heads: dict[str, str] = {}
    for place in range(len(contents.journals) - 1, -1, -1):
        run, entries = contents.journals[place]
        chain, written = Chain(run), []
        for entry in entries:
            events = change(place, open_events(entry))
            for event in events:
                if getattr(event, "head", None) in heads:
                    event.head = heads[event.head]
            if not events:
                continue
            payload = getattr(events[0], "payload", msgspec.UNSET)
            encoded = None if payload is msgspec.UNSET else canonical.encode(payload)
            written.append(chain.seal(events[0], entry.salt or b"0" * 16, encoded, events[1:]))
            heads[entry.digest] = written[-1].digest
        journals.insert(0, (run, written))
    new = msgspec.structs.replace(contents, journals=journals)
    run, entries = journals[0]
    programs = {canonical.digest(stored): compile_stored(stored) for stored in contents.programs}
    try:
        trace = Trace(programs[program_of(entries)], run, lambda: entries)
        new.receipt = canonical.encode(receipt(trace))
    except VerificationError:
        pass  # it is refused before its receipt is looked at
    return container.write(new)


def changed(type: str, number: int = 0, place: int = 0, **fields: Any) -> Change:
    """The event of this type and number (in a run) with other fields; a callable makes one of what was there."""
    seen = 0

    def change(run: int, events: list[Any]) -> list[Any]:
        nonlocal seen
        for event in events:
            if run == place and event.type == type:
                if seen == number:
                    for name, value in fields.items():
                        setattr(event, name, value(getattr(event, name)) if callable(value) else value)
                seen += 1
        return events

    return change


def refused(contents: container.Contents, change: Change) -> VerificationError:
    with pytest.raises(VerificationError) as caught:
        verify_bundle(forged(contents, change))
    return caught.value


@pytest.mark.parametrize("kind", KINDS)
def test_a_journal_that_is_written_anew_as_it_was_verifies(kind: str) -> None:
    verify_bundle(forged(bundle(kind), lambda place, events: events))


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("asked", {"roles": [["clerk"]]}),
        ("asked", {"roles": [["boss"], ["boss"]]}),
        ("asked", {"count": msgspec.UNSET}),
        ("asked", {"count": 3}),
        ("asked", {"four_eyes": msgspec.UNSET}),
        ("asked", {"four_eyes": False}),
        ("asked", {"due_ms": lambda due_ms: due_ms + 1}),
        ("asked", {"at_ms": lambda at_ms: at_ms - 1}),
        ("asked", {"rules": []}),
        ("asked", {"rules": ["program"]}),
        ("asked", {"rules": lambda rules: rules * 2}),
        ("asked", {"policy": msgspec.UNSET}),
        ("asked", {"tool": "look"}),
        ("asked", {"reason": "APPROVAL_VOID"}),
        ("asked", {"payload": lambda shown: {**shown, "started_by": "eve"}}),
        ("asked", {"payload": lambda shown: {**shown, "version": ""}}),
        ("asked", {"payload": msgspec.UNSET}),
        ("approved", {"rules": []}),
        ("wait", {"roles": [["risk", "clerk"]]}),
        ("wait", {"four_eyes": True}),
        ("wait", {"rules": ["other"]}),
    ],
)
def test_approvals_are_asked_on_the_terms_of_the_rules_that_ask(kind: str, fields: dict[str, Any]) -> None:
    assert refused(bundle(kind), changed("ApprovalRequested", **fields)).facts["code"] == "POLICY"


def test_an_approval_serves_for_all_that_is_asked_or_not_at_all() -> None:
    """Of what two policies ask together it was given for what one asks."""

    async def main() -> container.Contents:
        vm = ExecutionVM(None, {"pay": lambda n: n}, MemoryStore(), policy=POLICY)
        trace = await vm.run({"name": "p", "steps": [step("a", "pay", 50)]}, trace_id="r", principal=ANA)
        await approve(vm, trace.trace_id)
        return container.read(export(vm.store, "r").data)

    contents = asyncio.run(main())
    stricter = {
        **POLICY,
        "rules": [*POLICY["rules"], {"id": "more", "tools": ["pay"], "approval": {"roles": ["risk"]}}],
    }
    from nano_vm.policy import load_policy

    policies = [load_policy(POLICY), load_policy(stricter)]
    contents.policies = [one.canonical for one in sorted(policies, key=lambda policy: policy.hash)]
    seen = 0

    def change(place: int, events: list[Any]) -> list[Any]:
        nonlocal seen
        for event in events:
            if event.type == "PolicyDecided":
                seen += 1
                if seen == 2:
                    event.current = policies[1].hash
        return events

    assert refused(contents, change).facts["code"] == "POLICY"


@pytest.mark.parametrize(
    ("kind", "number", "fields"),
    [
        ("denied", 0, {"model": "default", "decision": "allow"}),
        ("plain", 0, {"model": "default"}),
        ("plain", 0, {"tool": "look"}),
        ("denied", 0, {"tool": "look"}),
        ("denied", 0, {"reason": "APPROVAL_VOID"}),
        ("denied", 0, {"reason": "APPROVAL_EXPIRED"}),
        ("denied", 0, {"approval": "0"}),
        ("model", 0, {"model": msgspec.UNSET}),
        ("model", 0, {"model": "another"}),
        ("model", 0, {"tool": "look"}),
        ("plain", 1, {"counts": lambda counts: counts * 2}),
        ("plain", 1, {"counts": lambda counts: [[counts[0][0], True, counts[0][2]]]}),
        ("plain", 1, {"counts": lambda counts: [[counts[0][0], counts[0][1], True]]}),
        ("plain", 1, {"counts": lambda counts: [[counts[0][0], -1, counts[0][2]]]}),
        ("plain", 0, {"counts": []}),
    ],
)
def test_a_decision_is_about_what_is_done_and_counts_in_numbers(
    kind: str, number: int, fields: dict[str, Any]
) -> None:
    assert refused(bundle(kind), changed("PolicyDecided", number, **fields)).facts["code"] == "POLICY"


@pytest.mark.parametrize("fields", [{"retryable": True}, {"error": "Timeout"}])
def test_what_was_denied_fails_for_that(fields: dict[str, Any]) -> None:
    assert refused(bundle("denied"), changed("StepFailed", **fields)).facts["code"] == "POLICY"


def test_what_was_denied_after_its_intent_has_not_been_done() -> None:
    def change(place: int, events: list[Any]) -> list[Any]:
        decided = next((event for event in events if event.type == "PolicyDecided"), None)
        if decided is None or decided.step != "a":
            return events
        tightened = msgspec.structs.replace(decided, decision="deny")
        return [*events, tightened]

    assert refused(bundle("plain"), change).facts["code"] == "POLICY"


@pytest.mark.parametrize(
    ("type", "place", "fields"),
    [
        ("ChildFinished", 0, {"status": "FAILED"}),
        ("ChildFinished", 0, {"steps": 1}),
        ("ChildFinished", 0, {"steps": -5}),
        ("ChildFinished", 0, {"tokens": 7}),
        ("ChildFinished", 0, {"cost_nanousd": 7}),
        ("ChildFinished", 0, {"output_label": 0}),
        ("ChildFinished", 0, {"payload": lambda told: {**told, "output": 99}}),
        ("ChildFinished", 0, {"payload": lambda told: {**told, "compensations": []}}),
        ("ChildFinished", 0, {"payload": lambda told: {**told, "compensations": [{"item": "x"}]}}),
        ("ChildStarted", 0, {"reserved_steps": msgspec.UNSET}),
        ("ChildStarted", 0, {"reserved_cost_nanousd": 5}),
        ("RunStarted", 1, {"payload": {"n": 4}}),
        ("RunStarted", 1, {"payload": {"n": "three"}}),
        ("RunStarted", 1, {"payload": {}}),
        ("RunStarted", 1, {"budgets": {"steps": 10_000, "tokens": 9_000}}),
        ("RunStarted", 1, {"budgets": msgspec.UNSET}),
        ("RunStarted", 1, {"depth": 2}),
        ("RunStarted", 1, {"depth": msgspec.UNSET}),
        ("RunStarted", 1, {"principal": EVE}),
        ("RunStarted", 1, {"principal": msgspec.UNSET}),
        ("RunStarted", 1, {"programs": msgspec.UNSET}),
        ("RunStarted", 1, {"parent": lambda parent: {**parent, "occurrence": 2}}),
        ("RunStarted", 1, {"parent": lambda parent: {**parent, "step": "other"}}),
        ("RunStarted", 1, {"parent": lambda parent: {**parent, "run": ["r"]}}),
        ("RunStarted", 1, {"parent": lambda parent: {**parent, "item": 0}}),
        ("RunStarted", 1, {"features": ["labels"], "labels": {}}),
        ("RunStarted", 1, {"key": "sha256:" + "0" * 64}),
    ],
)
def test_a_child_is_what_its_parent_started_and_ended_as_its_parent_was_told(
    type: str, place: int, fields: dict[str, Any]
) -> None:
    assert refused(bundle("called"), changed(type, 0, place, **fields)).code in (
        "CHILD_MISMATCH",
        "REPLAY_MISMATCH",
    )


def test_a_parent_has_not_seen_the_end_of_a_child_that_goes_on() -> None:
    contents = bundle("called")
    _, entries = contents.journals[1]

    def change(place: int, events: list[Any]) -> list[Any]:
        for event in events:
            if event.type == "ChildFinished":
                event.head = entries[-2].digest
        return events

    assert refused(contents, change).code == "CHILD_MISMATCH"


@pytest.mark.parametrize(
    ("kind", "type", "fields"),
    [
        ("plain", "RunStarted", {"labels": {}, "features": ["labels"]}),
        ("plain", "RunStarted", {"budgets": {"steps": 99}}),
        ("plain", "RunStarted", {"depth": 1}),
        ("plain", "RunStarted", {"features": []}),
        ("plain", "RunStarted", {"parent": {"run": "x", "step": "a", "occurrence": 1}}),
        ("plain", "RunStarted", {"programs": {"child": "sha256:" + "0" * 64}}),
        ("plain", "RunStarted", {"forked": {"run": "x", "head": "h", "seq": 10_000}}),
        ("plain", "RunStarted", {"forked": {"run": ["x"], "head": "h", "seq": 1}}),
        ("plain", "RunStarted", {"principal": {"id": ["ana"], "roles": []}}),
        ("plain", "RunStarted", {"principal": {"roles": ["boss"]}}),
        ("plain", "RunStarted", {"at_ms": -5}),
        ("plain", "RunStarted", {"verdicts": []}),
        ("plain", "StepStarted", {"effect": "harmless"}),
        ("plain", "StepStarted", {"effect": "model"}),
        ("plain", "StepStarted", {"reserved_tokens": 5}),
        ("plain", "StepStarted", {"at_ms": -1}),
        ("plain", "StepSucceeded", {"tokens_in": 5}),
        ("plain", "StepSucceeded", {"cost_nanousd": -5}),
        ("plain", "StepSucceeded", {"provider": "p"}),
        ("plain", "StepSucceeded", {"cached": True}),
        ("plain", "StepSucceeded", {"declared": "golden"}),
        ("denied", "StepFailed", {"tokens_out": 5}),
        ("denied", "StepFailed", {"error": "E" * (TEXT_CHARS_MAX + 1)}),
        ("approved", "EventReceived", {"principal": {"id": "eve", "roles": ["boss", None]}}),
        ("approved", "EventReceived", {"event_id": ""}),
        ("unknown", "OutcomeUnknown", {"reason": "E" * (TEXT_CHARS_MAX + 1)}),
        ("unknown", "OutcomeUnknown", {"effect": "idempotent"}),
        ("unknown", "OutcomeResolved", {"by": "contract"}),
        ("unknown", "OutcomeResolved", {"by": "nobody"}),
        ("unknown", "OutcomeResolved", {"declared": "golden"}),
        ("model", "StepStarted", {"effect": "irreversible"}),
        ("model", "StepStarted", {"opens": ["vault://secret/x"]}),
        ("model", "StepSucceeded", {"tokens_in": -5}),
        ("model", "StepSucceeded", {"payload": {"not": "a text"}}),
        ("structured", "StepSucceeded", {"payload": {"ok": "yes"}}),
        ("structured", "StepSucceeded", {"payload": "ok"}),
        ("agent", "ModelTurned", {"dropped": 1}),
        ("agent", "ModelTurned", {"tokens_out": -1}),
        ("pending", "StepPending", {"declared": "golden"}),
    ],
)  # fmt: skip
def test_what_no_driver_of_the_kernel_says_is_refused(kind: str, type: str, fields: dict[str, Any]) -> None:
    assert refused(bundle(kind), changed(type, **fields)).code == "REPLAY_MISMATCH"


@pytest.mark.parametrize("reason", ["UNLISTED_TOOL", "MAX_TURNS"])
def test_a_proposal_is_not_rejected_for_what_the_program_does_not_say(reason: str) -> None:
    fields = {"reason": reason, "decided": msgspec.UNSET, "verdict": "rejected", "payload": msgspec.UNSET}
    for number in (0, 1):
        assert refused(bundle("agent"), changed("ActionProposed", number, **fields)).code == "REPLAY_MISMATCH"


def test_a_denied_proposal_says_nothing_beside_the_decision() -> None:
    change = changed("ActionProposed", 1, decided=lambda decided: {**decided, "beside": 1})
    assert refused(bundle("agent"), change).facts["code"] == "POLICY"


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_compared_as_it_is_written_and_what_is_folded_come_to_the_same(kind: str) -> None:
    """Every field of every event changed: plain stretches, lanes and answers are no way around the fold."""
    contents = bundle(kind)
    programs = {canonical.digest(stored): compile_stored(stored) for stored in contents.programs}
    values: list[Any] = [-1, 0, 2, True, "x", "irreversible", msgspec.UNSET]
    for place, (run, entries) in enumerate(contents.journals):
        for entry in entries:
            for number, event in enumerate(open_events(entry)):
                for name in event.__struct_fields__:
                    for value in values:
                        written = _with(entries, run, entry.seq, number, name, value)
                        if written is None:
                            continue
                        program = programs[program_of(entries)]
                        assert _outcome(program, run, written, False) == _outcome(program, run, written, True), (
                            place, entry.seq, number, name, value,
                        )  # fmt: skip


def _with(entries: list[Entry], run: str, seq: int, number: int, name: str, value: Any) -> list[Entry] | None:
    chain, written = Chain(run), []
    for entry in entries:
        events = open_events(entry)
        payload = entry.payload
        if entry.seq == seq:
            if number and name == "payload":
                return None  # what rides has none
            setattr(events[number], name, value)
            if name == "payload":
                payload = None if value is msgspec.UNSET else canonical.encode(value)
        try:
            written.append(chain.seal(events[0], entry.salt or b"0" * 16, payload, events[1:]))
        except (TypeError, AttributeError):
            return None  # no entry holds it
    return written


def _outcome(program: Any, run: str, entries: list[Entry], slowly: bool) -> Any:
    look = (lambda entry, event, state: None) if slowly else None
    try:
        return verify_run(program, None, entries, run, on_transition=look).steps
    except VerificationError as error:
        return error.code, error.facts.get("seq"), error.facts.get("code")
