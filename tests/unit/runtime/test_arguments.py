"""Whatever is passed to an engine, a mistake is named where it was made: by a code, with a remedy."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nano_vm import ExecutionVM, MemoryStore, MockLLMAdapter, NanoVMError, SqliteStore, Vault
from nano_vm.errors import CODES
from nano_vm.vault.kek import make_key_file


class Odd:
    pass


WAITS = {
    "name": "p",
    "steps": [
        {"id": "a", "type": "tool", "tool": "echo", "args": {"x": 1}, "output_key": "k"},
        {"id": "w", "type": "wait", "event": "go"},
    ],
}
ODD: list[Any] = [
    *(
        5,
        -1,
        True,
        1.5,
        float("nan"),
        2**70,
        "",
        "x",
        "\ud800",
        "a\0b",
        "x" * 3_000,
        "a/b",
        "a::b",
        b"x",
        None,
    ),
    *([], ["x"], [["a"]], (1,), set(), {}, {1: 2}, {"a": Odd()}, {"x": 1}, Odd(), object),
    *({"id": 5}, {"id": ["x"]}, {"id": "a", "roles": 5}, {"id": "a", "roles": [5]}, {"id": "a", "tenant": 5}),
]
NEEDED: dict[str, Any] = {
    "trace_id": "r1",
    "program": WAITS,
    "at_step": "a",
    "step": "w",
    "resolution": "repeat",
    "reason": "r",
    "by": "ana",
    "name": "again",
    "function": len,
    "most": 1,
    "policy": None,
    "policy_hash": "sha256:x",
    "program_hash": "sha256:x",
    "run_id": "r1",
}
METHODS = (
    *(
        "run",
        "start",
        "stream",
        "resume",
        "approve",
        "cancel",
        "resolve",
        "step",
        "recover",
        "take_up",
        "fork",
    ),
    *(
        "erase",
        "complete_erasures",
        "pause",
        "lift_pause",
        "save_program",
        "trace",
        "runs",
        "verify",
        "replay",
    ),
    *("approvals", "paused", "compile", "read", "is_sealed", "register_tool", "set_policy"),
    *("load_program", "stored_program", "load_policy", "trim_programs"),
)


def calls(method: str) -> list[tuple[str, dict[str, Any]]]:
    """The method with one argument after the other left to be filled in."""
    parameters = inspect.signature(getattr(ExecutionVM, method)).parameters.values()
    named = [one for one in parameters if one.name != "self" and one.kind is not one.VAR_KEYWORD]
    base = {one.name: NEEDED[one.name] for one in named if one.default is one.empty}
    names = [one.name for one in named]
    if method == "stream":
        names += ["principal", "trace_id", "idempotency_key", "tenant"]
    found = []
    for name in names:
        given = {key: value for key, value in base.items() if key != name}
        if method == "erase" and name not in ("subject", "secret", "run"):
            given["subject"] = "ada"
        found.append((name, given))
    return found


async def call(vm: ExecutionVM, method: str, **arguments: Any) -> None:
    answer = getattr(vm, method)(**arguments)
    if inspect.isasyncgen(answer):
        async for _ in answer:
            pass
    elif inspect.isawaitable(answer):
        await answer


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("method", METHODS)
def test_an_argument_of_the_wrong_kind_is_a_named_error(method: str, kind: str, tmp_path: Path) -> None:
    make_key_file(tmp_path / "runs.db.key")

    async def main(name: str, given: dict[str, Any], odd: Any, number: int) -> None:
        store = (
            MemoryStore() if kind == "memory" else SqliteStore(tmp_path / f"{number}.db", durability="normal")
        )
        vault = Vault.beside(tmp_path / "runs.db")
        vm = ExecutionVM(llm=MockLLMAdapter("x"), tools={"echo": lambda x: x}, store=store, vault=vault)
        with store:
            await vm.run(WAITS, trace_id="r1")
            code = ""
            try:
                await call(vm, method, **given, **{name: odd})
            except NanoVMError as error:
                code = error.code
            assert code in CODES.keys() - {"INTERNAL"} | {""}, (name, odd)

    files = itertools.count()
    for name, given in calls(method):
        for odd in ODD if kind == "memory" else ODD[::3]:  # of files a third will do
            asyncio.run(main(name, given, odd, next(files)))


@pytest.mark.parametrize(
    ("method", "arguments", "code"),
    [
        ("fork", {"trace_id": "r1", "at_step": "a", "changes": ["k"]}, "USAGE"),
        ("fork", {"trace_id": "r1", "at_step": "a", "changes": {5: 1}}, "USAGE"),
        ("fork", {"trace_id": "r1", "at_step": ["a"]}, "USAGE"),
        ("fork", {"trace_id": "r1", "at_step": "a", "occurrence": "last"}, "USAGE"),
        ("fork", {"trace_id": "r1", "at_step": "nowhere"}, "UNKNOWN_STEP"),
        ("trace", {"trace_id": {}}, "TRACE_ID"),
        ("resume", {"trace_id": 5}, "TRACE_ID"),
        ("take_up", {"trace_id": []}, "TRACE_ID"),
        ("run", {"program": WAITS, "replanned": {"run": "r1"}}, "USAGE"),
        ("run", {"program": WAITS, "listener": 5}, "USAGE"),
        ("recover", {"limit": None}, "USAGE"),
        ("recover", {"on_error": 5}, "USAGE"),
        ("runs", {"limit": -1}, "USAGE"),
        ("runs", {"status": 5}, "USAGE"),
        ("runs", {"status": "success"}, "USAGE"),
        ("load_program", {"program_hash": []}, "USAGE"),
        ("stored_program", {"program_hash": None}, "USAGE"),
        ("load_policy", {"policy_hash": {}}, "USAGE"),
        ("trim_programs", {"most": "all"}, "USAGE"),
        ("trim_programs", {"most": -1}, "USAGE"),
        ("read", {"run_id": "r1", "start": None}, "USAGE"),
        ("close", {"grace_seconds": None}, "USAGE"),
        ("drain", {"grace_seconds": "5"}, "USAGE"),
        ("drain", {"grace_seconds": -1}, "USAGE"),
        ("drain", {"grace_seconds": float("nan")}, "USAGE"),
        ("read", {"run_id": "r1", "limit": "all"}, "USAGE"),
        ("is_sealed", {"program_hash": 5}, "USAGE"),
        ("approvals", {"limit": "all"}, "USAGE"),
        ("erase", {"secret": 5, "reason": "r", "by": "ana"}, "USAGE"),
    ],
)
def test_mistakes_have_a_remedy(method: str, arguments: dict[str, Any], code: str) -> None:
    vm = ExecutionVM(tools={"echo": lambda x: x}, vault=Vault.in_memory())

    async def main() -> None:
        await vm.run(WAITS, trace_id="r1")
        await call(vm, method, **arguments)

    with pytest.raises(NanoVMError) as caught:
        asyncio.run(main())
    assert caught.value.code == code
    assert caught.value.help


@pytest.mark.parametrize(
    "make",
    [
        lambda: ExecutionVM(llm="gpt"),  # type: ignore[arg-type]
        lambda: ExecutionVM(store="runs.db"),  # type: ignore[arg-type]
        lambda: ExecutionVM(vault="runs.db"),  # type: ignore[arg-type]
        lambda: ExecutionVM(secrets=5),  # type: ignore[arg-type]
        lambda: ExecutionVM(clock=5, entropy=5),  # type: ignore[arg-type]
        lambda: ExecutionVM(max_concurrent_runs="4"),  # type: ignore[arg-type]
        lambda: ExecutionVM(llm=MockLLMAdapter),  # type: ignore[arg-type]
        lambda: ExecutionVM(store=SqliteStore),  # type: ignore[arg-type]
    ],
)
def test_parts_of_an_engine_that_are_none_are_refused_at_once(make: Callable[[], ExecutionVM]) -> None:
    with pytest.raises(NanoVMError) as caught:
        make()
    assert (caught.value.code, bool(caught.value.help)) == ("USAGE", True)
