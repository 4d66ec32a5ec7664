"""Private values are stored sealed; an erasure destroys their keys, and everything else about the run stays (P7)."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from begun_erasures import begin_erasure
from nano_vm import (
    PENDING,
    Completion,
    ExecutionVM,
    MockLLMAdapter,
    NanoVMError,
    RuntimeFault,
    SqliteStore,
    ToolCall,
    ToolContext,
    ToolError,
    Trace,
    Vault,
    VerificationError,
    tool,
)
from nano_vm.errors import RejectedError
from nano_vm.journal.entry import open_events, read_facts
from nano_vm.journal.replay import verify_run
from nano_vm.kernel.events import Erased
from nano_vm.vault.kek import make_key_file
from unit.runtime.runtime_stage import refused

NAME = "Ada Lovelace of St James"
IBAN = "NO9386011117947"
TOMBSTONE = "[REDACTED_TOMBSTONE]"
INPUTS = {
    "type": "object",
    "properties": {
        "who": {"type": "string", "private": True},
        "more": {"private": True},
        "n": {"type": "integer"},
    },
    "required": ["who"],
}


def program(*steps: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"name": "p", "subject": "$who", "inputs": INPUTS, "steps": list(steps), **fields}


def act(step: str, **fields: Any) -> dict[str, Any]:
    args = fields.pop("args", {"x": "$who"})
    return {"id": step, "type": "tool", "tool": fields.pop("tool", "echo"), "args": args, **fields}


class Place:
    """A database, its vault and its key in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        if not (directory / "runs.db.key").exists():
            make_key_file(directory / "runs.db.key")
        self.effects: list[Any] = []
        self.open()

    def open(self, *, vault: bool = True, **options: Any) -> ExecutionVM:
        """A fresh engine, as another process would have."""
        self.vault = Vault.beside(self.directory / "runs.db") if vault else None
        self.store = SqliteStore(self.directory / "runs.db")
        self.vm = ExecutionVM(
            llm=options.pop("llm", MockLLMAdapter("fine")),
            tools=self.tools(),
            store=self.store,
            vault=self.vault,
            **options,
        )
        return self.vm

    def tools(self) -> dict[str, Callable[..., Any]]:
        @tool(effect="idempotent")
        def echo(x: Any = None) -> Any:
            return x

        @tool(effect="idempotent")
        def account(x: Any = None) -> Any:
            return {
                "iban": IBAN,
                "owner": x,
                "list": [IBAN, x, 3],
                "ok": True,
                "soon": 0.001,
                "due": 1_000_000,
            }

        @tool(effect="idempotent")
        def fail(x: Any = None) -> Any:
            raise ToolError(f"no account for {x} {IBAN}", retryable=False)

        @tool(effect="irreversible")
        def lose(x: Any = None) -> Any:
            raise TimeoutError(f"{x}")

        @tool(effect="irreversible")
        def ask(x: Any = None) -> Any:
            return PENDING

        @tool(effect="idempotent")
        def undo(x: Any = None) -> Any:
            self.effects.append(x)
            return x

        @tool(effect="keyed")
        def keyed(ctx: ToolContext, x: Any = None) -> str:
            self.effects.append(ctx.idempotency_key)
            return ctx.idempotency_key

        return {f.__name__: f for f in (echo, account, fail, lose, ask, undo, keyed)}

    def close(self) -> None:
        self.store.close()

    def bytes(self) -> bytes:
        return b"\n".join(path.read_bytes() for path in sorted(self.directory.rglob("*")) if path.is_file())

    def nowhere(self, *words: str) -> None:
        held = self.bytes()
        for word in words or (NAME, IBAN):
            assert word.encode() not in held, word

    def run(self, description: dict[str, Any], **inputs: Any) -> Trace:
        return self.vm.run_sync(description, {"who": NAME, **inputs}, trace_id="r1")

    def erase(self, **options: Any) -> dict[str, Any]:
        options = {"subject": NAME, "reason": "asked", "by": "ana", **options}
        return asyncio.run(self.vm.erase(**options))


@pytest.fixture
def place(tmp_path: Path):
    made = Place(tmp_path / "here")
    yield made
    made.close()


CONSTANT = (
    "status",
    "outcome",
    "trace_hash",
    "outcome_hash",
    "total_tokens",
    "total_cost_usd",
    "path",
    "rollbacks",
)
OF_A_STEP = ("id", "type", "occurrence", "item", "status", "verdict", "attempts", "tokens", "substituted")


def told(trace: Trace) -> tuple[Any, ...]:
    """What an erasure must not change."""
    plain = trace.to_dict()
    steps = [[step[name] for name in OF_A_STEP] for step in plain["steps"]]
    errors = [None if step["error"] is None else step["error"]["type"] for step in plain["steps"]]
    return (*(plain[name] for name in CONSTANT), steps, errors, [wait["kind"] for wait in plain["waiting"]])


def survives(place: Place, run_id: str = "r1", **options: Any) -> dict[str, Any]:
    """Erase, and hold everything that must hold against what it was."""
    before = told(place.vm.trace(run_id))
    snapshots = place.vm.trace(run_id).state_snapshots
    place.nowhere()
    receipt = place.erase(**options)
    for _ in range(2):
        trace = place.vm.trace(run_id)
        assert told(trace) == before
        assert trace.state_snapshots == snapshots
        shown = repr((trace.to_dict(), trace.events))
        assert NAME not in shown
        assert IBAN not in shown
        assert TOMBSTONE in shown
        steps = dict(place.vm.verify(run_id).steps)
        assert "0 sealed" in steps["closed"]
        place.close()
        place.open()
    place.nowhere()
    assert receipt["stage"] == "done"
    assert run_id in receipt["runs"]
    return receipt


# --- at rest --------------------------------------------------------------------------------------------------


def test_private_values_are_nowhere_in_clear_while_the_run_goes_on(place: Place) -> None:
    """Database, log, shared memory, keys, whatever lies there - looked at inside of the last step."""
    looked: list[bytes] = []

    @tool
    def look(x: Any) -> None:
        looked.append(place.bytes())

    place.vm.register_tool("look", look)
    steps = [act("a", tool="account", private=True), act("f", tool="fail", on_error="skip", private=True)]
    place.run(
        program(*steps, act("look", tool="look"), {"id": "ask", "type": "llm", "prompt": "Hi $who"}),
        more=[IBAN],
    )
    assert looked
    for word in (NAME, IBAN):
        assert word.encode() not in looked[0]
    place.nowhere()
    # The same run elsewhere is stored in clear, so that this test could fail.
    plain = Place(place.directory.parent / "plain")
    plain.vm.run_sync({"name": "p", "steps": [act("a", tool="account")]}, {"who": NAME})
    plain.close()
    assert IBAN.encode() in plain.bytes()


def test_large_private_values_are_sealed_in_blobs_too(place: Place) -> None:
    place.run(program(act("a", private=True)), more=IBAN * 20_000)
    place.nowhere()
    survives(place)


def test_a_back_up_holds_ciphertext(place: Place, tmp_path: Path) -> None:
    place.run(program(act("a", tool="account", private=True)))
    place.store.backup(tmp_path / "backup.db")
    held = (tmp_path / "backup.db").read_bytes()
    assert NAME.encode() not in held
    assert IBAN.encode() not in held


def test_a_stolen_database_opens_nothing_and_its_chain_still_verifies(place: Place) -> None:
    place.run(program(act("a", tool="account", private=True)))
    place.close()
    shutil.rmtree(place.directory / "runs.db.keys")
    vm = place.open(vault=False)
    trace = vm.trace("r1")
    assert trace.final_output == TOMBSTONE
    assert NAME not in repr(trace.to_dict())
    steps = dict(vm.verify("r1").steps)
    assert "2 sealed" in steps["closed"]
    with refused("NO_KEYS"):
        vm.run_sync(program(act("a")), {"who": "x"})


def test_without_its_keys_nobody_goes_on_with_a_run(place: Place) -> None:
    place.run(program(act("a", tool="ask", private=True)))
    place.close()
    vm = place.open(vault=False)
    with refused("NO_KEYS"):
        asyncio.run(vm.resume("r1", {"x": 1}))
    assert vm.store.record("r1").owner is None


def test_a_changed_or_moved_ciphertext_does_not_pass(place: Place) -> None:
    place.run(program(act("a", tool="account", private=True), act("b", tool="account", private=True)))
    place.close()
    con = sqlite3.connect(place.directory / "runs.db")
    con.execute("DROP TRIGGER nvm_segments_no_update")
    rows = con.execute("SELECT n, payloads FROM nvm_segments WHERE payloads IS NOT NULL").fetchall()
    n, payloads = rows[-1]
    con.execute("UPDATE nvm_segments SET payloads = ? WHERE n = ?", (payloads[:-3] + b"abc", n))
    con.commit()
    con.close()
    vm = place.open()
    with refused("SEAL_BROKEN"):
        vm.verify("r1")


def test_a_payload_taken_away_without_an_erasure_is_missed(place: Place) -> None:
    trace = place.run(program(act("a", tool="account", private=True)))
    entries = place.store.read("r1")
    stripped = [
        type(entry)(entry.seq, entry.digest, entry.facts, b"", None) if read_facts(entry).key else entry
        for entry in entries
    ]
    compiled = place.vm.load_program(trace.program_hash)
    with pytest.raises(VerificationError) as missing:
        verify_run(compiled, None, stripped)
    assert missing.value.code == "PAYLOAD_MISSING"


def test_mail_for_a_run_is_sealed(place: Place) -> None:
    from nano_vm.journal.port import Mail
    from nano_vm.runtime.sealing import open_letter, seal_letter

    place.run(program({"id": "w", "type": "wait", "event": "go", "private": True}))
    letter = {"event_id": "e1", "name": "go", "step": None, "item": None, "data": IBAN, "principal": None}
    body = seal_letter(place.vm, "r1", letter)
    assert IBAN.encode() not in body
    assert open_letter(place.vm, "r1", body) == letter
    place.store.post("r1", Mail(mail_id="event:e1", kind="event", body=body, posted_at_ms=1))
    place.nowhere()
    (trace,) = asyncio.run(place.vm.recover())
    assert trace.final_output == IBAN
    place.nowhere()


def test_digests_of_private_content_tell_nothing_to_who_guesses(place: Place) -> None:
    """Keys of actions, of runs and of events are not what SHA-256 of the content would be."""
    from hashlib import sha256

    from nano_vm import canonical

    description = program(
        act("a", tool="keyed", idempotency_key="$who", private=True),
        {"id": "w", "type": "wait", "event": "go", "private": True},
    )
    place.vm.run_sync(description, {"who": NAME}, trace_id="r1", idempotency_key="order-1")
    asyncio.run(place.vm.resume("r1", {"iban": IBAN}, name="go"))
    parts = ["business", "default", "keyed", NAME]
    guesses = {
        canonical.digest_value({"who": NAME})[7:],
        canonical.digest_value(["keyed", {"x": NAME}])[7:],
        sha256(canonical.encode(parts)).hexdigest()[:48],
        sha256(IBAN.encode()).hexdigest(),
        canonical.digest_value({"iban": IBAN})[7:],
    }
    held = place.bytes() + repr(place.vm.verify("r1").steps).encode() + place.effects[0].encode()
    for guess in guesses:
        assert guess.encode() not in held
        assert bytes.fromhex(guess) not in held
    again = place.vm.run_sync(description, {"who": NAME}, idempotency_key="order-1")
    assert again.trace_id == "r1"
    with refused("KEY_CONFLICT"):
        place.vm.run_sync(description, {"who": "somebody else"}, idempotency_key="order-1")


def test_no_cache_and_no_tape_keeps_a_private_prompt_or_its_answer(place: Place) -> None:
    from nano_vm.providers.cassette import CassetteRecorder

    place.close()
    place.open(llm=CassetteRecorder(MockLLMAdapter(IBAN), place.directory / "tape.jsonl"))
    steps = [
        {"id": "a", "type": "llm", "prompt": "to $who"},
        {"id": "b", "type": "llm", "prompt": "you", "private": True},
    ]
    assert place.run(program(*steps)).steps[0].output == IBAN
    place.nowhere()
    place.vm.run_sync({"name": "q", "steps": [{"id": "a", "type": "llm", "prompt": "hello"}]})
    assert IBAN.encode() in (place.directory / "tape.jsonl").read_bytes()  # what is not private is recorded


def test_a_private_action_keeps_its_key_over_retries_and_restarts(place: Place) -> None:
    place.run(program(act("a", tool="keyed", private=True), act("b", tool="ask")))
    first = place.effects[:]
    place.vm.run_sync(program(act("a", tool="keyed", private=True)), {"who": NAME}, trace_id="r2")
    assert place.effects[1] != first[0]  # another run is another action


def test_programs_without_private_values_need_no_vault_and_no_cryptography(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    vm = ExecutionVM(tools=Place.tools(None))  # type: ignore[arg-type]
    assert vm.run_sync({"name": "p", "steps": [act("a")]}, {"who": "x"}).status == "SUCCESS"
    with refused("EXTRA_MISSING"):
        vm.run_sync(program(act("a")), {"who": "x"})


def test_runs_in_memory_are_sealed_too() -> None:
    vm = ExecutionVM(tools=Place.tools(None))  # type: ignore[arg-type]
    trace = vm.run_sync(program(act("a", private=True)), {"who": NAME}, trace_id="r1")
    assert trace.final_output == NAME
    assert all(NAME.encode() not in (entry.payload or b"") for entry in vm.store.read("r1"))
    receipt = asyncio.run(vm.erase(subject=NAME, reason="asked", by="ana"))
    assert receipt["runs"] == ["r1"]
    assert vm.trace("r1").final_output == TOMBSTONE


# --- erased journals fold, verify and hash as before ------------------------------------------------------------

SHAPES: dict[str, list[dict[str, Any]]] = {
    "tool": [act("a", tool="account", private=True), act("b", args={"x": "${a.output.iban} of $who"})],
    "llm": [
        {"id": "a", "type": "llm", "prompt": "$who", "allowed_outputs": ["fine", "bad"], "private": True},
        {"id": "c", "type": "condition", "condition": "$a.output == 'fine'", "then": "b", "otherwise": "d"},
        act("b", is_terminal=True, outcome="well"),
        act("d"),
    ],
    "condition": [
        act("a", tool="account", private=True),
        {
            "id": "c",
            "type": "condition",
            "condition": "$a.output.iban == $more and $who != 'x'",
            "then": "b",
        },
        act("b", is_terminal=True),
    ],
    "condition-error": [
        act("a", tool="account", private=True),
        {"id": "c", "type": "condition", "condition": "$a.output.iban > 3", "then": "b"},
        act("b", is_terminal=True),
    ],
    "map": [
        act("a", tool="account", private=True),
        {
            "id": "m",
            "type": "map",
            "over": "$a.output.list",
            "max_items": 9,
            "step": act("one", args={"x": "$item"}),
        },
        act("z", args={"x": "$m.output.2"}),
    ],
    "map-too-long": [
        act("a", tool="account", private=True),
        {
            "id": "m",
            "type": "map",
            "over": "$a.output.list",
            "max_items": 2,
            "step": act("one"),
            "on_error": "skip",
        },
    ],
    "map-no-list": [
        act("a", tool="account", private=True),
        {
            "id": "m",
            "type": "map",
            "over": "$a.output.iban",
            "max_items": 9,
            "step": act("one"),
            "on_error": "skip",
        },
    ],
    "parallel": [
        {"id": "p", "type": "parallel", "parallel_steps": [act("a", tool="account", private=True), act("b")]},
        {"id": "c", "type": "condition", "condition": "$p.output.a.ok == true", "then": "z"},
        act("z", args={"x": "$p.output"}, is_terminal=True),
    ],
    "render-failure": [
        act("a", tool="account", private=True),
        act("b", args={"x": "$a.output.none"}, on_failure="z"),
        act("y", is_terminal=True),
        act("z"),
    ],
    "failure": [
        act("a", tool="fail", private=True, on_failure="b"),
        act("y", is_terminal=True),
        act("b", args={"x": "$a.error.message"}),
    ],
    "retry": [act("a", tool="fail", private=True, on_error="retry", max_retries=2), act("b")],
    "timer": [
        act("a", tool="account", private=True),
        {"id": "w", "type": "wait", "seconds": "$a.output.soon"},
        {"id": "u", "type": "wait", "until": "$a.output.due"},
        act("b"),
    ],
    "stalled": [act("a", private=True), act("b", private=True), act("c", private=True)],
    "key": [
        act("a", tool="keyed", private=True, idempotency_key="$who"),
        act("b", tool="keyed", idempotency_key="$a.output"),
    ],
    "compensation": [
        act("a", tool="account", private=True, compensate={"tool": "undo", "args": {"x": "$a.output.iban"}}),
        act("b", final_status="FAILED", is_terminal=True),
    ],
    "agent": [
        act("a", tool="account", private=True),
        {
            "id": "g",
            "type": "agent",
            "prompt": "help ${a.output.iban}",
            "tools": ["echo"],
            "max_turns": 5,
            "allowed_outputs": ["done"],
            "on_error": "retry",
            "max_retries": 3,
        },
        act("b", args={"x": "$g.output"}),
    ],
    "secret": [act("a", args={"x": "$more"}), act("b", args={"x": "$a.output"})],
}


def conversation() -> list[Any]:
    """Calls that are made, rejected and unreadable, then an answer that misses its gate, then one that does not."""
    calls = (
        ToolCall("c1", "echo", json.dumps({"x": IBAN})),
        ToolCall("c2", IBAN, "{}"),
        ToolCall("c3", "echo", IBAN),
        ToolCall("c4", "echo", json.dumps({"y": IBAN})),
    )
    return [Completion(tool_calls=calls, text=IBAN), Completion(text=IBAN), Completion(text="done")]


@pytest.mark.parametrize("shape", SHAPES)
def test_an_erased_run_keeps_its_path_its_hashes_and_its_proof(place: Place, shape: str) -> None:
    options = {"max_stalled_steps": 2} if shape == "stalled" else {}
    if shape == "agent":
        place.close()
        place.open(llm=MockLLMAdapter(conversation()))
    trace = place.run(program(*SHAPES[shape], **options), more=IBAN)
    while trace.status == "SUSPENDED":
        (trace,) = asyncio.run(place.vm.recover()) or (trace,)
    survives(place)


def test_waits_that_took_private_events_fold_as_they_did(place: Place) -> None:
    """Which of two waits took an event, and which event waited in the inbox, was decided by values that are gone."""
    accepts = [
        {"id": f"w{n}", "type": "wait", "event": "go", "accept": f"$event.n == {n}", "private": True}
        for n in (1, 2)
    ]
    place.run(
        program(
            {"id": "p", "type": "parallel", "parallel_steps": accepts},
            {
                "id": "late",
                "type": "wait",
                "event": "early",
                "accept": "$event == $more",
                "private": True,
            },
            {"id": "ok", "type": "wait", "approvers": ["boss"], "private": True},
            act("z", args={"x": "$p.output"}),
        ),
        more=IBAN,
    )
    boss = {"id": "b", "roles": ["boss"]}
    for name, data, who in (
        ("early", "not this one", None),
        ("early", IBAN, None),
        ("go", {"n": 2, "iban": IBAN}, None),
        ("go", {"n": 1, "iban": IBAN}, None),
        (None, {"approved": True, "note": IBAN}, boss),
    ):
        place.close()
        place.open()
        trace = asyncio.run(
            place.vm.resume("r1", data, name=name, step="ok" if name is None else None, principal=who)
        )
    assert trace.status == "SUCCESS"
    survives(place)


def test_children_are_erased_with_their_parent_and_undone_through_it(place: Place) -> None:
    child = {
        "name": "child",
        "inputs": {"type": "object", "properties": {"it": {"type": "string"}}},
        "steps": [act("c", args={"x": "$it"}, compensate={"tool": "undo", "args": {"x": "$c.output"}})],
    }
    place.vm.save_program(child)
    place.run(
        program(
            {"id": "call", "type": "call", "program": "child", "inputs": {"it": "$who"}},
            act("b", final_status="FAILED", is_terminal=True),
        )
    )
    assert place.effects == [NAME]
    place.nowhere()
    child_id = place.vm.store.records(
        __import__("nano_vm.journal.port", fromlist=["x"]).RunQuery(parent="r1")
    )[0].run_id
    receipt = survives(place)
    assert sorted(receipt["runs"]) == sorted(["r1", child_id])
    assert NAME not in repr(place.vm.trace(child_id).to_dict())
    place.vm.verify(child_id)


def test_a_fork_of_private_values_is_sealed_and_erased_with_the_rest(place: Place) -> None:
    place.run(program(act("a", tool="account", private=True), act("b")))
    forked = asyncio.run(place.vm.fork("r1", "b", {"a.output": {"iban": "another"}}, new_trace_id="r2"))
    assert forked.status == "SUCCESS"
    place.nowhere()
    receipt = survives(place)
    assert receipt["runs"] == ["r1", "r2"]
    survives_again = place.vm.verify("r2")
    assert survives_again
    with refused("ERASED"):
        asyncio.run(place.vm.fork("r1", "b", {}))


def test_somebody_elses_values_stay(place: Place) -> None:
    place.run(program(act("a", private=True)))
    place.vm.run_sync(program(act("a", private=True)), {"who": "Bob"}, trace_id="bob")
    place.erase()
    assert place.vm.trace("bob").final_output == "Bob"
    assert not any(type(event) is Erased for event in place.vm.trace("bob").events)
    trace = place.vm.run_sync(program(act("a", private=True)), {"who": NAME}, trace_id="again")
    assert trace.final_output == NAME  # whoever comes back is somebody new
    assert place.vm.trace("r1").final_output == TOMBSTONE


def test_tenants_do_not_share_a_subjects_key(place: Place) -> None:
    place.run(program(act("a", private=True)))
    place.vm.run_sync(program(act("a", private=True)), {"who": NAME}, trace_id="other", tenant="two")
    assert place.erase(tenant="two")["runs"] == ["two::other"]
    assert place.vm.trace("r1").final_output == NAME


def test_a_run_without_a_subject_is_its_own(place: Place) -> None:
    description = program(act("a", private=True))
    del description["subject"]
    place.vm.run_sync(description, {"who": NAME}, trace_id="r1")
    place.vm.run_sync(description, {"who": NAME}, trace_id="r2")
    place.nowhere()
    assert place.erase(subject=None, run="r1")["runs"] == ["r1"]
    assert (place.vm.trace("r1").final_output, place.vm.trace("r2").final_output) == (TOMBSTONE, NAME)


# --- runs that have not ended ------------------------------------------------------------------------------------


def test_a_waiting_run_is_cancelled_and_undone_before_its_values_go(place: Place) -> None:
    undo = {"tool": "undo", "args": {"x": "$a.output.iban"}}
    place.run(
        program(
            act("a", tool="account", private=True, compensate=undo),
            {"id": "w", "type": "wait", "event": "go"},
        )
    )
    place.erase()
    trace = place.vm.trace("r1")
    assert (trace.status, place.effects, trace.rollbacks) == ("CANCELLED", [IBAN], 1)
    place.vm.verify("r1")
    place.nowhere()
    with pytest.raises(RejectedError):
        asyncio.run(place.vm.resume("r1", {}, name="go"))


def test_a_run_with_an_unknown_outcome_goes_on_waiting_without_the_values(place: Place) -> None:
    place.run(program(act("a", tool="lose", private=True), act("b")))
    receipt = place.erase()
    assert receipt["stage"] == "done"
    assert place.vm.trace("r1").status == "SUSPENDED"
    trace = asyncio.run(place.vm.resolve("r1", "a", "succeeded", {"iban": IBAN}))
    assert trace.status == "CANCELLED"
    place.nowhere()
    place.vm.verify("r1")
    assert place.vm.trace("r1").steps[0].output == TOMBSTONE


def test_nothing_is_sent_in_place_of_an_erased_value(place: Place) -> None:
    """A run that could not be cancelled - here: its owner died in the middle of the erasure - sends no tombstone."""
    sent: list[Any] = []

    @tool(effect="idempotent")
    def send(x: Any) -> None:
        sent.append(x)

    place.vm.register_tool("send", send)
    place.run(
        program({"id": "w", "type": "wait", "event": "go"}, act("b", tool="send", args={"x": "to $who"}))
    )
    assert place.vault is not None
    place.vault.destroy_keys(begin_erasure(place.vault, subject=NAME, reason="r", by={"id": "x"}))
    place.close()
    vm = place.open()
    vm.register_tool("send", send)
    with refused("NO_KEYS"):
        asyncio.run(vm.resume("r1", {}, name="go"))
    asyncio.run(vm.replay_erasures())
    trace = asyncio.run(vm.resume("r1", {}, name="go"))
    assert trace.error is not None
    assert (trace.status, trace.error["type"], sent) == ("FAILED", "ERASED", [])
    vm.verify("r1")


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"subject": "nobody"}, "SUBJECT_NOT_FOUND"),
        ({"subject": None, "secret": "none"}, "SECRET_NOT_FOUND"),
        ({"subject": None, "run": "none"}, "RUN_NOT_FOUND"),
        ({"subject": None}, "USAGE"),
        ({"secret": "x"}, "USAGE"),
        ({"reason": ""}, "USAGE"),
        ({"by": None}, "PRINCIPAL"),
        ({"by": {"id": "ana", "roles": ["operator"]}}, "CAPABILITY_DENIED"),
        ({"subject": 1.5}, "SUBJECT"),
    ],
)
def test_what_cannot_be_erased_is_refused_and_changes_nothing(
    place: Place, options: dict[str, Any], code: str
) -> None:
    place.run(program(act("a", private=True)))
    with refused(code):
        place.erase(**options)
    assert place.vm.trace("r1").final_output == NAME


def test_a_legal_hold_refuses_until_it_is_released(place: Place) -> None:
    place.run(program(act("a", private=True), {"id": "w", "type": "wait", "event": "go"}))
    assert place.vault is not None
    place.vault.hold(subject=NAME, reason="case 7", by={"id": "law"})
    with refused("ERASURE_HELD"):
        place.erase()
    assert place.vm.trace("r1").status == "SUSPENDED"  # nothing was cancelled either
    place.vault.release(subject=NAME)
    assert place.erase()["stage"] == "done"


def test_erasing_twice_says_that_there_is_nothing(place: Place) -> None:
    place.run(program(act("a", private=True)))
    place.erase()
    with refused("SUBJECT_NOT_FOUND"):
        place.erase()


def test_an_erased_secret_opens_for_nobody_and_the_runs_that_used_it_are_told(place: Place) -> None:
    used: list[str] = []

    @tool(secrets=["token"])
    def use(token: str) -> None:
        used.append(token)

    place.vm.register_tool("use", use)
    assert place.vault is not None
    place.vault.put("card", IBAN)
    steps = [{"id": "a", "type": "tool", "tool": "use", "args": {"token": "vault://secret/card"}}]
    place.vm.run_sync({"name": "q", "steps": steps}, trace_id="r1")
    receipt = place.erase(subject=None, secret="vault://secret/card")
    assert (receipt["runs"], receipt["target"]) == (["r1"], "vault://secret/card")
    trace = place.vm.run_sync({"name": "q", "steps": steps}, trace_id="r2")
    assert trace.error is not None
    assert (trace.error["type"], used) == ("SECRET_NOT_FOUND", [IBAN])
    place.vm.verify("r1")
    place.nowhere()


# --- crashes and back-ups ---------------------------------------------------------------------------------------


class Died(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("point", range(12))
def test_an_erasure_that_is_cut_anywhere_is_completed_by_whoever_comes_next(
    place: Place, point: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut before the n-th write of the vault or the store; then recovered by a fresh engine."""
    for n in (1, 2):
        place.vm.run_sync(
            program(act("a", tool="account", private=True), *SHAPES["map"][1:]),
            {"who": NAME},
            trace_id=f"r{n}",
        )
    before = [told(place.vm.trace(f"r{n}")) for n in (1, 2)]
    from nano_vm.vault.cabinet import DirectoryCabinet

    left = [point]

    def cut(function: Any) -> Any:
        def maybe(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Died
            return function(*args, **kwargs)

        return maybe

    with monkeypatch.context() as patch:
        for name in ("write", "destroy", "add_line"):
            patch.setattr(DirectoryCabinet, name, cut(getattr(DirectoryCabinet, name)))
        patch.setattr(SqliteStore, "annex", cut(SqliteStore.annex))
        try:
            place.erase()
            finished = True
        except Died:
            finished = False
    place.close()
    vm = place.open()
    if not finished:
        found: list[Any] = vm.keys.all_erasures()  # type: ignore[union-attr]
        if found and found[0].stage == "stopping":  # it is decided, and its runs were being stopped
            asyncio.run(vm.recover())
        elif found:
            # Nothing opens from the first moment on, and no view shows anything.
            for n in (1, 2):
                try:
                    shown = repr(vm.trace(f"r{n}").to_dict())
                except RuntimeFault as error:  # until the erasure is completed
                    shown = error.code
                assert shown == "NO_KEYS" or TOMBSTONE in shown
                assert NAME not in shown
            asyncio.run(vm.recover())
        else:
            place.erase()
    (receipt,) = asyncio.run(vm.replay_erasures())
    assert (receipt["stage"], receipt["runs"]) == ("done", ["r1", "r2"])
    for n in (1, 2):
        assert told(vm.trace(f"r{n}")) == before[n - 1]
        vm.verify(f"r{n}")
        told_once = [event for event in vm.trace(f"r{n}").events if type(event) is Erased]
        assert len(told_once) == 1
    place.nowhere()
    names = {path.name for path in (place.directory / "runs.db.keys" / "keys").iterdir()}
    assert not names & set(receipt["keys"])


def copy(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            place = target / path.relative_to(source)
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            shutil.copy2(path, place)


@pytest.mark.parametrize("restored", ["database", "keys", "keys without the list"])
def test_a_restored_back_up_brings_nothing_back(place: Place, tmp_path: Path, restored: str) -> None:
    place.run(program(*SHAPES["map"]))
    place.close()
    copy(place.directory, tmp_path / "saved")
    place.open()
    place.erase()
    place.close()
    if restored == "database":
        for name in ("runs.db", "runs.db-wal", "runs.db-shm"):
            (place.directory / name).unlink(missing_ok=True)
            if (tmp_path / "saved" / name).exists():
                shutil.copy2(tmp_path / "saved" / name, place.directory / name)
    else:
        listed = (place.directory / "runs.db.keys" / "erasures.jsonl").read_bytes()
        shutil.rmtree(place.directory / "runs.db.keys")
        shutil.copytree(tmp_path / "saved" / "runs.db.keys", place.directory / "runs.db.keys")
        if restored == "keys":
            (place.directory / "runs.db.keys" / "erasures.jsonl").write_bytes(listed)
    vm = place.open()
    if restored == "database":
        with refused("NO_KEYS"):
            vm.trace("r1").to_dict()
    else:
        assert NAME not in repr(vm.trace("r1").to_dict())
    (receipt,) = asyncio.run(vm.replay_erasures())
    assert receipt["runs"] == ["r1"]
    assert NAME not in repr(vm.trace("r1").to_dict())
    vm.verify("r1")
    place.nowhere()
    names = {path.name for path in (place.directory / "runs.db.keys" / "keys").iterdir()}
    assert not names & set(receipt["keys"])


def test_keys_restored_without_the_list_learn_of_every_run_that_was_told(
    place: Place, tmp_path: Path
) -> None:
    """The receipt named the first of them alone."""
    for number in range(3):
        place.vm.run_sync(program(act("a", private=True)), {"who": NAME}, trace_id=f"r{number}")
    place.close()
    copy(place.directory / "runs.db.keys", tmp_path / "saved")
    place.open()
    receipt = place.erase()
    place.close()
    shutil.rmtree(place.directory / "runs.db.keys")
    shutil.copytree(tmp_path / "saved", place.directory / "runs.db.keys")
    (again,) = asyncio.run(place.open().replay_erasures())
    assert (len(receipt["runs"]), again) == (3, receipt)


def test_receipts_are_the_same_for_the_same_erasure_and_name_nobody(place: Place) -> None:
    place.run(program(act("a", private=True)))
    receipt = place.erase()
    (again,) = asyncio.run(place.vm.replay_erasures())
    assert again == receipt
    assert NAME not in repr(receipt)
    events = [event for event in place.vm.trace("r1").events if type(event) is Erased]
    assert [(event.erasure, event.reason, event.keys) for event in events] == [
        (receipt["erasure"], "asked", receipt["keys"])
    ]


def test_the_stream_of_an_erased_run_shows_tombstones(place: Place) -> None:
    place.run(program(act("a", tool="account", private=True)))
    place.erase()
    payloads = [getattr(e, "payload", None) for entry in place.vm.read("r1") for e in open_events(entry)]
    assert TOMBSTONE in payloads
    assert NAME not in repr(payloads)


def test_errors_about_keys_are_ours(place: Place) -> None:
    with pytest.raises(RuntimeFault):
        asyncio.run(ExecutionVM().erase(subject="x", reason="r", by="ana"))
    assert issubclass(RuntimeFault, NanoVMError)


@pytest.mark.parametrize("noted", [b"[]", b"7", b'"x"'])
def test_what_an_erasure_has_noted_is_read_as_anything_from_outside(noted: bytes, place: Place) -> None:
    async def main() -> Any:
        trace = await place.vm.run(program(act("a")), {"who": NAME})
        await place.vm.erase(subject=NAME, reason="asked", by="ana")
        return trace

    trace = asyncio.run(main())
    entries = [
        msgspec.structs.replace(entry, facts=entry.facts.replace(b'"who":null', b'"who":' + noted))
        for entry in place.vm.read(trace.trace_id)
    ]
    with pytest.raises(VerificationError):
        verify_run(trace.program, place.store.record(trace.trace_id), entries)


def test_a_governed_compensation_whose_arguments_are_erased_is_named_and_the_run_ends(place: Place) -> None:
    """Nothing is sent in place of what is gone - and nobody has to decide about it for ever."""
    policy = {
        "policy": "p",
        "tools": ["echo"],
        "rules": [{"id": "few", "tools": ["undo"], "limits": [{"max_calls": 3, "per": ["run"]}]}],
    }
    place.close()
    vm = place.open(policy=policy)
    undone = act("a", compensate={"tool": "undo", "args": {"x": "$who"}})

    async def main() -> Trace:
        trace = await vm.run(program(undone, {"id": "w", "type": "wait", "event": "go"}), {"who": NAME})
        assert place.vault is not None
        # Somebody dies when the keys are destroyed, and another one completes the erasure.
        vault = place.vault
        vault.destroy_keys(begin_erasure(vault, subject=NAME, reason="asked", by={"id": "ana"}))
        await vm.recover()
        return await vm.cancel(trace.trace_id, "enough")

    trace = asyncio.run(main())
    assert trace.status == "CANCELLED"
    assert trace.incomplete_compensations == ["a"]
    assert place.effects == []
    vm.verify(trace.trace_id)


def test_whoever_completes_an_erasure_stops_the_runs_that_it_can_still_read(place: Place) -> None:
    """And undoes what they have done: the dead process had got no further than to say what it was about to do."""
    undone = act("a", compensate={"tool": "undo", "args": {"x": "$who"}})
    trace = place.run(program(undone, {"id": "w", "type": "wait", "event": "go"}))
    assert place.vault is not None
    begin_erasure(place.vault, subject=NAME, reason="asked", by={"id": "ana"})
    place.close()
    vm = place.open()
    asyncio.run(vm.recover())
    trace = vm.trace(trace.trace_id)
    assert trace.status == "CANCELLED"
    assert (place.effects, trace.incomplete_compensations) == ([NAME], [])
    place.nowhere()
    vm.verify(trace.trace_id)
