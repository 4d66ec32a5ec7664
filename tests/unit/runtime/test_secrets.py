"""Secrets: opened for the call that is entitled to them, and in nothing that stays behind."""

from __future__ import annotations

import base64
import logging
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from nano_vm import (
    ExecutionVM,
    MockLLMAdapter,
    Program,
    ProgramError,
    Secret,
    SqliteStore,
    ToolError,
    Vault,
    tool,
)
from nano_vm.errors import NanoVMError
from nano_vm.journal.entry import open_events
from nano_vm.kernel.events import StepStarted
from nano_vm.vault.kek import make_key_file

VALUE = 's3cr3t/"quoted"+ä-token'
REFERENCE = "vault://secret/token"


def program(**step: Any) -> Program:
    return Program.from_dict(
        {
            "name": "pay",
            "steps": [{"id": "pay", "type": "tool", "tool": "charge", "args": {"token": REFERENCE}, **step}],
        }
    )


class Stage:
    """An engine on a file, with a vault that holds the token."""

    def __init__(self, directory: Path, *tools: Any, **options: Any) -> None:
        self.directory = directory
        if not (directory / "runs.db.key").exists():
            make_key_file(directory / "runs.db.key")
        self.vault = Vault.beside(directory / "runs.db")
        self.vault.put("token", VALUE)
        self.store = SqliteStore(directory / "runs.db")
        self.vm = ExecutionVM(tools=list(tools), store=self.store, vault=self.vault, **options)

    def bytes_on_disk(self) -> bytes:
        return b"\n".join(path.read_bytes() for path in self.directory.rglob("*") if path.is_file())


ENCODED = (
    VALUE,
    quote(VALUE, safe=""),
    VALUE.encode().hex(),
    base64.b64encode(VALUE.encode()).decode(),
    base64.b64encode(b"user:" + VALUE.encode()).decode()[8:-4],
    base64.b64encode(b"x" + VALUE.encode()).decode()[4:-4],
)


def nowhere(stage: Stage, *others: Any) -> None:
    """No form of the value is in any file, nor in what was handed out."""
    held = stage.bytes_on_disk() + repr(others).encode()
    for form in ENCODED:
        assert form.encode() not in held, form


@pytest.mark.parametrize("kind", ["async", "blocking", "inline"])
def test_a_tool_is_given_the_value_and_the_journal_the_reference(tmp_path: Path, kind: str) -> None:
    seen: list[Any] = []

    if kind == "async":

        @tool(secrets=["token"])
        async def charge(token: str) -> str:
            seen.append(token)
            return "paid"
    else:

        @tool(secrets=["token"], blocking=kind == "blocking")  # type: ignore[no-redef]
        def charge(token: str) -> str:
            seen.append(token)
            return "paid"

    stage = Stage(tmp_path, charge)
    trace = stage.vm.run_sync(program())
    assert seen == [VALUE]
    assert trace.final_output == "paid"
    started = [e for entry in trace.entries for e in open_events(entry) if type(e) is StepStarted]
    assert [event.opens for event in started] == [[REFERENCE]]
    nowhere(stage, trace.to_dict())
    assert stage.vm.verify(trace.trace_id)


def test_a_parameter_of_type_secret_receives_what_does_not_print_itself(tmp_path: Path) -> None:
    seen: list[Any] = []

    @tool
    def charge(token: Secret, note: str = "") -> str:
        seen.append((token.reveal(), f"{token} {token!r}"))
        return str(token)

    trace = Stage(tmp_path, charge).vm.run_sync(program())
    assert seen == [(VALUE, f"{REFERENCE} {REFERENCE}")]
    assert trace.final_output == REFERENCE


def test_a_secret_that_is_returned_as_it_is_is_no_data(tmp_path: Path) -> None:
    @tool
    def charge(token: Secret) -> Any:
        return {"token": token}

    stage = Stage(tmp_path, charge)
    trace = stage.vm.run_sync(program())
    assert trace.error is not None
    assert trace.error["type"] == "VALUE_NOT_JSON"
    nowhere(stage, trace.to_dict())


@pytest.mark.parametrize("effect", ["irreversible", "idempotent", "keyed"])
def test_what_a_tool_returns_has_the_reference_in_place_of_the_value(tmp_path: Path, effect: str) -> None:
    @tool(secrets=["token"], effect=effect)
    def charge(token: str) -> Any:
        encoded = base64.b64encode(f"user:{token}".encode()).decode()
        return {
            token: [token, f"Bearer {token}.", {"header": f"Basic {encoded}", "url": quote(token, safe="")}]
        }

    stage = Stage(tmp_path, charge)
    trace = stage.vm.run_sync(program())
    (key, (alone, text, _)) = next(iter(trace.final_output.items()))
    assert (key, alone, text) == (REFERENCE, REFERENCE, f"Bearer {REFERENCE}.")
    nowhere(stage, trace.to_dict())


def fail_plainly(token: str) -> None:
    raise ValueError(f"bad token {token}")


def fail_with_code(token: str) -> None:
    raise ToolError("no", code=token, retryable=False)


def fail_in_a_chain(token: str) -> None:
    try:
        raise KeyError(token)
    except KeyError as error:
        raise RuntimeError(repr(token)) from error


def fail_without_an_answer(token: str) -> None:
    raise ConnectionError(f"lost https://bank.example/?t={quote(token, safe='')}")


@pytest.mark.parametrize("fail", [fail_plainly, fail_with_code, fail_in_a_chain, fail_without_an_answer])
def test_errors_and_tracebacks_do_not_show_the_value(tmp_path: Path, fail: Any) -> None:
    @tool(secrets=["token"])
    def charge(token: str) -> None:
        fail(token)

    stage = Stage(tmp_path, charge)
    trace = stage.vm.run_sync(program())
    assert trace.status in ("FAILED", "SUSPENDED")
    payloads = b"".join(entry.payload or b"" for entry in trace.entries)
    assert payloads.count(REFERENCE.encode()) or fail is fail_with_code
    nowhere(stage, trace.to_dict(), [str(event) for event in trace.events])


def test_compensations_and_reconciliations_are_given_secrets_too(tmp_path: Path) -> None:
    seen: list[tuple[str, str]] = []

    def find_out(token: str) -> Any:
        from nano_vm import Reconciled

        seen.append(("reconcile", token))
        return Reconciled.succeeded({"note": token})

    @tool(secrets=["token"], effect="reconcilable", reconcile=find_out)
    def charge(token: str) -> None:
        raise TimeoutError

    @tool(secrets=["token"], effect="idempotent")
    def refund(token: str) -> str:
        seen.append(("refund", token))
        return token

    stage = Stage(tmp_path, charge, refund)
    steps = [
        {
            "id": "pay",
            "type": "tool",
            "tool": "charge",
            "args": {"token": REFERENCE},
            "compensate": {"tool": "refund", "args": {"token": REFERENCE}},
        },
        {"id": "stop", "type": "condition", "condition": "1 == 1", "then": "end"},
        {
            "id": "end",
            "type": "tool",
            "tool": "refund",
            "args": {"token": REFERENCE},
            "final_status": "FAILED",
            "is_terminal": True,
        },
    ]
    trace = stage.vm.run_sync(Program.from_dict({"name": "saga", "steps": steps}))
    assert trace.rollbacks == 1
    assert seen == [("reconcile", VALUE), ("refund", VALUE), ("refund", VALUE)]
    assert trace.steps[0].output == {"note": REFERENCE}
    nowhere(stage, trace.to_dict())


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("plain text", "SECRET_EXPECTED"),
        ("vault://secret/none", "SECRET_NOT_FOUND"),
        ("vault://secret/../x", "SECRET_ID"),
    ],
)
def test_what_names_no_secret_never_reaches_the_tool(tmp_path: Path, value: str, code: str) -> None:
    called: list[str] = []

    @tool(secrets=["token"])
    def charge(token: str) -> None:
        called.append(token)

    trace = Stage(tmp_path, charge).vm.run_sync(program(args={"token": value}))
    assert trace.error is not None
    assert (trace.error["type"], called) == (code, [])


def test_a_secret_kept_for_one_tool_is_not_opened_for_another(tmp_path: Path) -> None:
    called: list[str] = []

    @tool(secrets=["token"])
    def charge(token: str) -> None:
        called.append(token)

    stage = Stage(tmp_path, charge)
    stage.vault.put("token", VALUE, tools=["mail"])
    trace = stage.vm.run_sync(program())
    assert trace.error is not None
    assert (trace.error["type"], called) == ("SECRET_DENIED", [])


def test_a_reference_is_only_text_for_a_parameter_that_is_not_entitled(tmp_path: Path) -> None:
    @tool
    def charge(token: str) -> str:
        return token

    assert Stage(tmp_path, charge).vm.run_sync(program()).final_output == REFERENCE


def test_without_a_vault_no_intent_is_journaled(tmp_path: Path) -> None:
    @tool(secrets=["token"])
    def charge(token: str) -> None: ...

    trace = ExecutionVM(tools=[charge]).run_sync(program())
    assert trace.error is not None
    assert trace.error["type"] == "VAULT_MISSING"
    assert not any(type(event) is StepStarted for event in trace.events)


def test_an_error_of_the_vault_is_known_not_to_have_called_the_tool(tmp_path: Path) -> None:
    called: list[str] = []

    @tool(secrets=["token"])
    def charge(token: str) -> None:
        called.append(token)

    stage = Stage(tmp_path, charge)
    for path in (tmp_path / "runs.db.keys" / "secrets").iterdir():
        path.write_bytes(b"{}")
    trace = stage.vm.run_sync(program())
    assert trace.error is not None
    assert (trace.status, trace.error["type"], called) == ("FAILED", "VAULT_DAMAGED", [])


def test_no_model_is_told_even_the_reference(tmp_path: Path) -> None:
    model = MockLLMAdapter("fine")
    steps = [{"id": "ask", "type": "llm", "prompt": "use $token"}]
    for context in ({"token": REFERENCE}, {"token": {"nested": [REFERENCE]}}):
        trace = ExecutionVM(llm=model).run_sync({"name": "ask", "steps": steps}, context)
        assert trace.error is not None
        assert trace.error["type"] == "SECRET_IN_PROMPT"
    assert model.calls == []


def test_declarations_that_cannot_hold_are_refused() -> None:
    @tool(effect="pure", secrets=["token"])
    def charge(token: str) -> None: ...

    @tool(secrets=["card"])
    def refund(token: str) -> None: ...

    for function in (charge, refund):
        with pytest.raises(ProgramError) as refused:
            ExecutionVM(tools=[function])
        assert refused.value.code == "TOOL_SECRET"


def test_nothing_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    @tool(secrets=["token"])
    async def charge(token: str) -> None:
        raise ValueError(token)

    with caplog.at_level(logging.DEBUG):
        Stage(tmp_path, charge).vm.run_sync(program())
    assert VALUE not in caplog.text


def test_a_secret_cannot_be_pickled_or_compared() -> None:
    import pickle

    secret = Secret(REFERENCE, VALUE)
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    assert secret != Secret(REFERENCE, VALUE)
    assert VALUE not in f"{secret}{secret!r}{vars(type(secret))}"


def test_the_action_key_of_a_call_comes_from_the_reference(tmp_path: Path) -> None:
    """A new value under the same reference is the same action: what the key is made of is what was journaled."""
    keys: list[str] = []
    from nano_vm import ToolContext

    @tool(secrets=["token"])
    def charge(token: str, ctx: ToolContext) -> None:
        keys.append(ctx.idempotency_key)
        raise ToolError("again") if len(keys) == 1 else NanoVMError("TOOL_ERROR", "stop")

    stage = Stage(tmp_path, charge)
    stage.vm.run_sync(program(on_error="retry", max_retries=2, retry={"initial": 0.001}))
    assert len(set(keys)) == 1
    assert len(keys) == 2
