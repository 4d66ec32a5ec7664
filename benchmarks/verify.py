"""What verifying costs: a journal of 20,000 entries, folded and checked, beside hashing the same bytes.

    python benchmarks/verify.py              # every kind; or --kind NAME, as often as wanted
    python benchmarks/verify.py --quick      # a smoke run, without a verdict

Prints the time of `verify_run` as a multiple of two bare passes over the same bytes: one SHA-256 call per entry and per
payload (what a reader that trusts nothing has to do at least), and one single call over all bytes (which checks no
chain). The governed run tracks labels, and every call of it was decided by a policy, which is asked again. In that of
models every other step asks a model, which names itself and what its answer took. The other kinds are loops around a
wait that an event resumes, a timer, a map, a parallel, a child run, a tool that fails every other time and is tried
again, and one whose failure is skipped. `bundle` is the whole of `nano-vm verify FILE`, the receipt recomputed (left
out of runs that are in no store, and where the journals of child runs would come with it). CPU time, the best of
several rounds, in one process.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Any

from msgspec import UNSET

from nano_vm import ExecutionVM, MemoryStore, MockLLMAdapter, Program, ToolError, canonical, tool
from nano_vm.evidence.bundle import export
from nano_vm.evidence.verify import verify_bundle
from nano_vm.journal.entry import Chain, Entry, read_facts
from nano_vm.journal.replay import verify_run
from nano_vm.kernel import events as ev
from nano_vm.kernel.commands import AwaitEvent, CallTool, Finish, StartTimer
from nano_vm.kernel.state import State
from nano_vm.kernel.transition import apply, decide
from nano_vm.policy.recheck import Recheck
from nano_vm.program.compiled import CompiledProgram
from nano_vm.testing.clock import VirtualClock

ROUNDS = 5
POLICY = {"policy": "p", "rules": [{"id": "some", "tools": ["look"], "when": "$args.n >= 0"}]}
ITEMS, LANES = 8, 4
ALONE = ("waits", "timers")  # made by the kernel, without an engine
# What a turn of the loop is, beside the condition that ends it: its steps, where the count is read, and how many
# entries it takes.
CALL: dict[str, Any] = {"type": "tool", "tool": "look", "args": {"n": "$n"}}
TURNS: dict[str, tuple[list[dict[str, Any]], str, int]] = {
    "plain": ([{"id": "look", **CALL}], "$look.output.n", 1),
    "governed": ([{"id": "look", **CALL}], "$look.output.n", 1),
    "models": ([{"id": "look", **CALL}], "$look.output.n", 2),
    "waits": ([{"id": "paid", "type": "wait", "event": "paid"}, {"id": "look", **CALL}], "$look.output.n", 2),
    "timers": ([{"id": "nap", "type": "wait", "seconds": 1}, {"id": "look", **CALL}], "$look.output.n", 2),
    "map": (
        [
            {
                "id": "each",
                "type": "map",
                "over": "$list",
                "step": {"id": "look", **CALL, "args": {"n": "$item"}},
            }
        ],
        "$each.output.0.turn",
        ITEMS,
    ),
    "group": (
        [
            {
                "id": "all",
                "type": "parallel",
                "parallel_steps": [{"id": f"look{i}", **CALL} for i in range(LANES)],
            }
        ],
        "$look0.output.turn",
        LANES,
    ),
    "call": ([{"id": "sub", "type": "call", "program": "child", "inputs": {"n": "$n"}}], "$sub.output.n", 1),
    "retry": (
        [{"id": "look", **CALL, "tool": "fails", "on_error": "retry", "max_retries": 3}],
        "$look.output.n",
        3,
    ),
    "skip": (
        [{"id": "skipped", **CALL, "tool": "breaks", "on_error": "skip"}, {"id": "look", **CALL}],
        "$look.output.n",
        2,
    ),
}
CHILD = {
    "name": "child",
    "inputs": {"type": "object", "properties": {"n": {"type": "integer"}}},
    "steps": [{"id": "look", **CALL}],
}


def program(entries: int, kind: str = "plain") -> Program:
    """A loop of a turn and a condition, whose verdict stands in the last entry of the turn, with the next intent. Of
    the kind `models` a model is asked after the condition."""
    governed, models = kind == "governed", kind == "models"
    turn, count, length = TURNS[kind]
    steps = [
        *turn,
        {
            "id": "more",
            "type": "condition",
            "condition": f"{count} < {(entries - 2) // length}",
            "then": "ask" if models else turn[0]["id"],
            "otherwise": "end",
        },
        *([{"id": "ask", "type": "llm", "prompt": "Go on? $n", "next_step": "look"}] if models else []),
        {"id": "end", **CALL, "is_terminal": True},
    ]
    integer: dict[str, Any] = {"type": "integer", "label": "trusted"} if governed else {"type": "integer"}
    inputs = {"n": integer, "list": {"type": "array", "items": {"type": "integer"}}}
    declared: dict[str, Any] = {"max_tokens": 1_000 * entries} if models else {}
    declared["inputs"] = {"type": "object", "properties": inputs if kind == "map" else {"n": integer}}
    declared = {"name": "loop", "max_steps": 9 * entries, "steps": steps, **declared}
    return Program.from_dict(declared)


def tools(kind: str, words: int) -> list[Any]:
    """One that counts its calls, one that fails every other time, and one that always does."""
    text = "order A-1001 was looked at and found in order; " * words
    called, tried = [0], [0]
    lanes = {"map": ITEMS, "group": LANES}.get(kind, 1)

    def answer() -> dict[str, object]:
        called[0] += 1
        return {"n": called[0], "text": text, **({"turn": -(-called[0] // lanes)} if lanes > 1 else {})}

    @tool(effect="irreversible", protected=["n"] if kind == "governed" else [])
    def look(n: int) -> dict[str, object]:
        return answer()

    @tool(effect="irreversible")
    def fails(n: int) -> dict[str, object]:
        tried[0] += 1
        if tried[0] % 2:
            raise ToolError("the other side is busy", code="BUSY")
        return answer()

    @tool(effect="irreversible")
    def breaks(n: int) -> dict[str, object]:
        raise ToolError("the other side is gone", code="GONE", retryable=False)

    return [look, fails, breaks]


async def by_engine(vm: ExecutionVM, made: Program, kind: str) -> tuple[CompiledProgram, list[Entry]]:
    """Run the loop to its end."""
    if kind == "call":
        vm.save_program(Program.from_dict(CHILD))
    context: dict[str, Any] = {"n": 1, **({"list": list(range(ITEMS))} if kind == "map" else {})}
    trace = await vm.run(made, context=context)
    return vm.load_program(trace.program_hash), list(vm.store.read(trace.trace_id))


def by_kernel(compiled: CompiledProgram, look: Callable[..., Any]) -> list[Entry]:
    """The journal of a loop around a wait, which the kernel is driven through: an engine that is resumed 10,000 times
    folds as many journals."""
    state, chain, now_ms = State(run="waits"), Chain("waits"), 1_800_000_000_000
    entries: list[Entry] = []
    start = ev.RunStarted(at_ms=now_ms, program=compiled.hash, payload={"n": 1})
    principal = {"id": "shop", "roles": ["operator"], "tenant": "default"}
    event: ev.Event = start
    while True:
        apply(compiled, state, event)
        if state.verdicts:
            event.verdicts = state.verdicts  # type: ignore[union-attr]
        then: list[ev.Event] = []
        commands = decide(compiled, state)
        command = commands[0] if commands else None
        if type(command) is CallTool:
            at: dict[str, Any] = {"at_ms": now_ms, "attempt": 1, "occurrence": command.occurrence}
            then = [ev.StepStarted(**at, effect="irreversible", step=command.step_id)]
            apply(compiled, state, then[0])
        payload = getattr(event, "payload", UNSET)
        written = None if payload is UNSET else canonical.encode(payload)
        entries.append(chain.seal(event, len(entries).to_bytes(16, "big"), written, then))
        now_ms += 1_000
        if command is None:
            return entries
        if type(command) is CallTool:
            at["at_ms"] = now_ms
            event = ev.StepSucceeded(**at, step=command.step_id, payload=look(1))
        elif type(command) is AwaitEvent:
            paid = {"currency": "EUR", "order": "A-1001", "paid": 25}
            event = ev.EventReceived(
                at_ms=now_ms,
                event_id=f"payment-{command.occurrence}",
                name="paid",
                payload=paid,
                principal=principal,
            )
        elif type(command) is StartTimer:
            now_ms = command.due_ms
            event = ev.TimerFired(
                at_ms=now_ms, attempt=1, occurrence=command.occurrence, step=command.step_id
            )
        else:
            assert type(command) is Finish
            event = ev.RunFinished(at_ms=now_ms, status=command.status)


def best(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    found = float("inf")
    for _ in range(rounds):
        before = time.process_time()
        work()
        found = min(found, time.process_time() - before)
    return found


def journal_of(entries: int, words: int, kind: str) -> tuple[ExecutionVM, CompiledProgram, list[Entry]]:
    """A journal of the kind, its program, and the engine whose store it is in, but for waits and timers."""
    made, at_hand = program(entries, kind), tools(kind, words)
    answer = "It was looked at and found in order; " * words
    vm = ExecutionVM(
        llm=MockLLMAdapter(answer, usage={"prompt_tokens": 3, "completion_tokens": 9 * words}),
        tools=at_hand,
        store=MemoryStore(),
        policy=POLICY if kind == "governed" else None,
        clock=VirtualClock(),
    )
    if kind in ALONE:
        compiled = vm.load_program(vm.save_program(made))
        return vm, compiled, by_kernel(compiled, at_hand[0])
    return vm, *asyncio.run(by_engine(vm, made, kind))


def measure(entries: int, words: int, kind: str, rounds: int = ROUNDS) -> dict[str, float]:
    """Times in seconds: `single`, `each` (bare passes), `verify`, `bundle` (0: none); and `bytes`, `entries`."""
    vm, compiled, journal = journal_of(entries, words, kind)
    texts = [entry.facts for entry in journal]
    texts += [entry.salt + entry.payload for entry in journal if entry.payload is not None]
    whole = b"".join(texts)
    data = b"" if kind in {*ALONE, "call"} else export(vm.store, read_facts(journal[0]).run).data

    def verify() -> None:
        watchers = (Recheck(compiled, vm.load_policy),) if kind == "governed" else ()
        verify_run(compiled, None, journal, watchers=watchers)

    def each() -> None:
        for text in texts:
            sha256(text).digest()

    return {
        "entries": len(journal),
        "bytes": len(whole),
        "single": best(lambda: sha256(whole).digest(), rounds),
        "each": best(each, rounds),
        "verify": best(verify, rounds),
        "bundle": best(lambda: verify_bundle(data), min(rounds, 2)) if data else 0.0,
    }


def main(entries: int, rounds: int, kinds: list[tuple[str, int]]) -> None:
    print(
        f"{'':>10}{'bytes/entry':>12}{'verify, ms':>12}{'per hash':>10}{'per single pass':>17}{'bundle, ms':>12}"
    )
    for kind, words in kinds:
        found = measure(entries, words, kind, rounds)
        print(
            f"{kind:>10}"
            f"{found['bytes'] / found['entries']:>12.0f}{found['verify'] * 1e3:>12.0f}"
            f"{found['verify'] / max(found['each'], 1e-9):>9.1f}x"
            f"{found['verify'] / max(found['single'], 1e-9):>16.1f}x"
            + (f"{found['bundle'] * 1e3:>12.0f}" if found["bundle"] else f"{'-':>12}"),
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="a smoke run, without a verdict")
    parser.add_argument("--kind", action="append", choices=list(TURNS), help="this kind only")
    asked = parser.parse_args()
    named = asked.kind or list(TURNS)
    sizes = [(kind, words) for kind in named for words in ((1, 20, 400) if kind == "plain" else (1, 20))]
    if asked.quick:
        main(200, 1, sizes)
    else:
        main(20_000, ROUNDS, sizes)
