"""Scenarios about what is kept: the store gives back what it was given, envelopes and receipts are functions of the
journal, replays repeat nothing and find every change."""

from __future__ import annotations

import asyncio
import functools
import random
from collections import Counter
from typing import Any, Final

import msgspec

from nano_vm import canonical
from nano_vm.errors import NanoVMError, VerificationError
from nano_vm.evidence.envelope import envelope_lines
from nano_vm.evidence.receipt import receipt_bytes
from nano_vm.journal.entry import Entry
from nano_vm.journal.replay import verify_run
from nano_vm.journal.trace import Trace
from nano_vm.program.model import Program
from nano_vm.providers.mock import MockLLMAdapter
from nano_vm.runtime.tooling import ToolContext
from nano_vm.testing.bench.setting import Setting
from nano_vm.tools.registry import tool

_VALUES: Final[tuple[Any, ...]] = (
    None,
    True,
    0,
    -(2**53) + 1,
    2**53 - 1,
    1e-7,
    1.5,
    "",
    "Zürich \u2028 🧾 \x00",
    "$x ${x} {{x}}",
    [],
    {},
    [[], {}, None, [1, [2, [3]]]],
    {"ä": 1, "z": {"b": [True], "a": ""}},
    "x" * 70_000,  # more than a blob needs
)
KEEPING: Final[dict[str, Any]] = {
    "name": "keeping",
    "inputs": {"type": "object", "properties": {"value": {}}, "required": ["value"]},
    "steps": [
        {"id": "first", "type": "tool", "tool": "echo", "args": {"value": "$value"}},
        {"id": "go", "type": "wait", "event": "go"},
        {"id": "again", "type": "tool", "tool": "echo", "args": {"value": ["$first.output", "$go.output"]}},
    ],
}


def _view(trace: Trace) -> bytes:
    return canonical.encode(msgspec.to_builtins(trace.to_dict()))


async def store_round_trip(setting: Setting) -> None:
    """Values of every shape: written by one engine, read by a second, gone on with by a third over a store that was
    closed and opened again."""
    count = setting.size(750, 30)

    @tool(effect="pure")
    async def echo(value: Any) -> Any:
        return value

    writer, reader = setting.vm([echo]), setting.vm([echo])
    program = Program.from_dict(KEEPING)
    views: dict[str, bytes] = {}

    async def there_and_back(number: int) -> Trace:
        trace = await writer.run(
            program, {"value": _VALUES[number % len(_VALUES)]}, trace_id=f"kept-{number}"
        )
        back = reader.trace(trace.trace_id)
        views[trace.trace_id] = _view(back)
        return trace

    jobs = [functools.partial(there_and_back, number) for number in range(count)]
    traces = await setting.timed(jobs, width=20)
    setting.figures.unit = "round trip"
    for number, trace in enumerate(traces):
        setting.expect(
            "P12", _view(trace) == views[trace.trace_id], f"{trace.trace_id} reads otherwise than written"
        )
        kept = reader.trace(trace.trace_id).step("first")
        wanted = _VALUES[number % len(_VALUES)]
        got = None if kept is None else kept.output
        setting.expect(
            "P12", type(got) is type(wanted) and got == wanted, f"value {number} came back as another"
        )
    if setting.options.store != "memory":
        writer.store.close()
        reader.store.close()
    fresh = setting.vm([echo])
    for number, run_id in enumerate(views):
        setting.expect(
            "P12", _view(fresh.trace(run_id)) == views[run_id], f"{run_id} changed while it was closed"
        )
        ended = await fresh.resume(run_id, {"n": number})
        wanted = [_VALUES[number % len(_VALUES)], {"n": number}]
        setting.expect("P12", ended.final_output == wanted, f"{run_id} went on with other values")
        setting.ran(ended)


GOVERNED: Final[dict[str, Any]] = {
    "name": "governed",
    "steps": [
        {"id": "ask", "type": "llm", "prompt": "What does $who need?"},
        {"id": "act", "type": "tool", "tool": "act", "args": {"value": "$ask.output"}},
        {"id": "more", "type": "condition", "condition": "$act.output.said != ''"}
        | {"then": "each", "otherwise": "each"},
        {"id": "each", "type": "map", "over": [1, 2, 3]}
        | {"step": {"id": "one", "type": "tool", "tool": "act", "args": {"value": "$item"}}},
        {"id": "last", "type": "tool", "tool": "act", "args": {"value": "$each.output"}},
    ],
}
_MARK: Final = "confidential-7f3a"  # in every value; in no envelope


async def envelopes(setting: Setting) -> None:
    """For every step that succeeded an envelope, under its policy, without a value; the same from anybody's engine."""
    count = setting.size(300, 12)

    @tool(effect="idempotent")
    async def act(value: Any, ctx: ToolContext) -> dict[str, Any]:
        return {"said": f"{_MARK} {ctx.step}", "heard": value}

    policy = {"policy": "bench", "tools": ["act"], "models": ["default"]}
    vm = setting.vm([act], llm=MockLLMAdapter(_MARK), policy=policy)
    program = Program.from_dict(GOVERNED)
    traces = await asyncio.gather(*(vm.run(program, {"who": f"{_MARK} {n}"}) for n in range(count)))
    other = setting.vm([act])
    setting.ran(*traces)
    setting.figures.unit = "run's envelopes"

    async def enveloped(run_id: str) -> tuple[list[bytes], bytes]:
        trace = other.trace(run_id)
        return envelope_lines(trace), receipt_bytes(trace)

    found = await setting.timed([functools.partial(enveloped, trace.trace_id) for trace in traces])
    assert vm.policy is not None
    for trace, (lines, receipt) in zip(traces, found, strict=True):
        run_id = trace.trace_id
        setting.expect(
            "P12", lines == envelope_lines(trace), f"{run_id}: two engines, two lists of envelopes"
        )
        setting.expect("P12", receipt == receipt_bytes(trace), f"{run_id}: two engines, two receipts")
        succeeded = [step for step in trace.steps if step.status.value == "SUCCESS"]
        setting.expect(
            "P12", len(lines) == len(succeeded), f"{run_id}: {len(lines)} of {len(succeeded)} envelopes"
        )
        text = b"\n".join([*lines, receipt])
        setting.expect("P8", _MARK.encode() not in text, f"{run_id}: a value is in an envelope or a receipt")
        read = [canonical.decode(line) for line in lines]
        under = {one["policy_hash"] for one in read}
        setting.expect("P9", under == {vm.policy.hash}, f"{run_id}: envelopes name {len(under)} policies")
        digests = {digest for _, digest in trace.state_snapshots}
        named = {one["snapshot_hash"] for one in read}
        setting.expect("P12", named <= digests, f"{run_id}: an envelope names a state that never was")
        half = list(trace.entries)[: len(trace.entries) // 2]
        before = Trace(trace.program, run_id, functools.partial(list, half))
        setting.expect(
            "P12",
            lines[: len(envelope_lines(before))] == envelope_lines(before),
            f"{run_id}: envelopes were rewritten",
        )


async def replay(setting: Setting) -> None:
    """Everything is proved again by an engine that never ran it: nothing happens, every hash is the same, and every
    changed byte is found."""
    count = setting.size(750, 30)
    draw = random.Random(setting.options.seed)
    done: Counter[str] = Counter()

    @tool(effect="irreversible")
    async def act(value: Any, ctx: ToolContext) -> dict[str, Any]:
        done[ctx.trace_id] += 1
        return {"said": ctx.step, "heard": value}

    model = MockLLMAdapter("something")
    vm = setting.vm([act], llm=model)
    program = Program.from_dict(GOVERNED)
    traces = await asyncio.gather(*(vm.run(program, {"who": f"{n}"}) for n in range(count)))
    setting.ran(*traces)
    happened, asked = Counter(done), model.call_count
    setting.figures.effects = sum(done.values())
    setting.figures.unit = "replay"
    auditor = setting.vm([act], llm=model)

    async def proved(run_id: str) -> tuple[str, str, str]:
        trace = auditor.replay(run_id)
        return trace.trace_hash, trace.outcome_hash, trace.head

    found = await setting.timed([functools.partial(proved, trace.trace_id) for trace in traces])
    setting.expect("P4", done == happened, "a replay did something")
    setting.expect("P4", model.call_count == asked, "a replay asked the model")
    for trace, hashes in zip(traces, found, strict=True):
        same = hashes == (trace.trace_hash, trace.outcome_hash, trace.head)
        setting.expect("P5", same, f"{trace.trace_id} has other hashes when it is replayed")
    for trace in traces[:: max(1, count // 100)]:
        entries = list(trace.entries)
        changed, what = _changed(entries, draw)
        record = auditor.store.record(trace.trace_id)
        setting.expect("P6", not _proves(trace, record, changed), f"{trace.trace_id}: {what} was not found")


def _proves(trace: Trace, record: Any, entries: list[Entry]) -> bool:
    try:
        verify_run(trace.program, record, entries)
    except (VerificationError, NanoVMError):
        return False
    return True


def _changed(entries: list[Entry], draw: random.Random) -> tuple[list[Entry], str]:
    """The journal with one thing changed, and what that was."""
    place = draw.randrange(len(entries))
    entry = entries[place]
    match draw.randrange(3):
        case 0:
            return [*entries[:place], *entries[place + 1 :]], f"the loss of entry {place}"
        case 1 if entry.payload:
            payload = _flipped(entry.payload, draw)
            return _with(entries, place, payload=payload), f"a bit of the payload of entry {place}"
        case _:
            return _with(
                entries, place, facts=_flipped(entry.facts, draw)
            ), f"a bit of the facts of entry {place}"


def _with(entries: list[Entry], place: int, **changes: bytes) -> list[Entry]:
    changed = list(entries)
    changed[place] = msgspec.structs.replace(entries[place], **changes)
    return changed


def _flipped(data: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << draw.randrange(8))]) + data[place + 1 :]
