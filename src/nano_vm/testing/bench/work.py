"""Scenarios about work that is done: money, one execution per key, budgets, parallel steps."""

from __future__ import annotations

import asyncio
import functools
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from nano_vm.errors import ConflictError
from nano_vm.kernel.state import RunStatus
from nano_vm.program.model import Program
from nano_vm.providers.mock import MockLLMAdapter
from nano_vm.runtime.ports import Completion, Message, Usage
from nano_vm.runtime.tooling import ToolContext, ToolError
from nano_vm.testing.bench.setting import Setting
from nano_vm.tools.registry import tool

REFUND: Final[dict[str, Any]] = {
    "name": "refund_pipeline",
    "inputs": {
        "type": "object",
        "properties": {"order": {"type": "string", "label": "trusted"}, "message": {"type": "string"}},
        "required": ["order", "message"],
    },
    "max_tokens": 1_000,
    "steps": [
        {"id": "lookup", "type": "tool", "tool": "lookup", "args": {"order": "$order"}},
        {
            "id": "judge",
            "type": "llm",
            "prompt": "Is this request justified? $message",
            "allowed_outputs": ["yes", "no"],
        },
        {"id": "justified", "type": "condition", "condition": "$judge.output == 'yes'"}
        | {"then": "small", "otherwise": "refuse"},
        {"id": "small", "type": "condition", "condition": "$lookup.output.price <= 100"}
        | {"then": "pay", "otherwise": "agree"},
        {"id": "agree", "type": "wait", "approvers": ["supervisor"], "next_step": "pay"},
        {
            "id": "pay",
            "type": "tool",
            "tool": "pay",
            "args": {"order": "$order", "amount": "$lookup.output.price"},
            "idempotency_key": "refund-$order",
            "next_step": "notify",
        },
        {"id": "notify", "type": "tool", "tool": "notify", "args": {"order": "$order"}}
        | {"is_terminal": True, "outcome": "refunded"},
        {"id": "refuse", "type": "tool", "tool": "notify", "args": {"order": "$order"}}
        | {"is_terminal": True, "outcome": "refused"},
    ],
}
POLICY: Final[dict[str, Any]] = {
    "policy": "refunds",
    "tools": ["lookup", "notify"],
    "models": ["default"],
    "rules": [{"id": "paid", "tools": ["pay"], "when": "$args.amount <= 500", "requires": ["lookup"]}],
}
SUPERVISOR: Final = {"id": "ana", "roles": ["supervisor"]}


class Bank:
    """Accounts outside of the engine. Every call is noted; money moves once under one key."""

    def __init__(self, prices: dict[str, int]) -> None:
        self.prices = prices
        self.calls: Counter[str] = Counter()  # calls of `pay`, by order
        self.paid: Counter[str] = Counter()  # cents, by order
        self.notified: Counter[str] = Counter()
        self.balance = sum(prices.values())
        self._keys: set[str] = set()

    def tools(self) -> list[Any]:
        @tool(effect="pure", output_label="trusted")
        async def lookup(order: str) -> dict[str, int]:
            return {"price": self.prices[order]}

        @tool(effect="keyed", protected=["order", "amount"])
        async def pay(order: str, amount: int, ctx: ToolContext) -> str:
            self.calls[order] += 1
            if ctx.idempotency_key not in self._keys:
                self._keys.add(ctx.idempotency_key)
                self.paid[order] += amount
                self.balance -= amount
            return "paid"

        @tool(effect="idempotent")
        async def notify(order: str) -> None:
            self.notified[order] += 1

        return [lookup, pay, notify]


async def refund_pipeline(setting: Setting) -> None:
    """Governed refunds: a model judges, a policy allows, a supervisor sees the large ones."""
    draw = random.Random(setting.options.seed)
    count = setting.size(2_000, 60)
    bank = Bank({f"A-{n}": draw.choice([20, 60, 90, 240]) for n in range(count)})
    justified = {order: draw.random() < 0.7 for order in bank.prices}
    vm = setting.vm(
        bank.tools(),
        llm=MockLLMAdapter({"it broke": "yes", "__default__": "no"}),
        policy=POLICY,
    )
    program = Program.from_dict(REFUND)

    async def one(order: str) -> Any:
        inputs = {"order": order, "message": "it broke" if justified[order] else "I changed my mind"}
        trace = await vm.run(program, inputs, idempotency_key=order)
        if trace.status is RunStatus.SUSPENDED:
            trace = await vm.approve(trace.trace_id, principal=SUPERVISOR)
        return trace

    traces = await setting.timed([functools.partial(one, order) for order in bank.prices], width=50)
    setting.ran(*traces)
    for order, trace in zip(bank.prices, traces, strict=True):
        wanted = bank.prices[order] if justified[order] else 0
        found = bank.paid[order]
        setting.expect("P4", found == wanted, f"order {order} got {found} where {wanted} were due")
        calls = bank.calls[order]
        setting.expect("P4", calls == justified[order], f"`pay` was called {calls} times for {order}")
        told = bank.notified[order]
        setting.expect("P4", told == 1, f"the customer of {order} was told {told} times")
        said = "refunded" if justified[order] else "refused"
        setting.expect(
            "P1",
            (trace.status.value, trace.outcome) == ("SUCCESS", said),
            f"{trace} came to {trace.outcome}, not {said}",
        )
    left = sum(price for order, price in bank.prices.items() if not justified[order])
    setting.expect("P4", bank.balance == left, f"{bank.balance} cents are left where {left} should be")
    setting.figures.effects = sum(bank.calls.values()) + sum(bank.notified.values())
    for trace in traces[:: max(1, count // 50)]:
        setting.expect(
            "P6", vm.verify(trace.trace_id).state.status is trace.status, f"{trace} verifies as another"
        )


async def double_execution_guard(setting: Setting) -> None:
    """The same call from twenty callers in two engines at once, under one key each."""
    keys = [f"key-{number}" for number in range(setting.size(150, 12))]
    callers = setting.size(20, 8)
    done: Counter[str] = Counter()

    @tool(effect="irreversible")
    async def wire(order: str) -> str:
        await asyncio.sleep(0)
        done[order] += 1
        return order

    engines = [setting.vm([wire]), setting.vm([wire])]
    program = Program.from_dict(
        {
            "name": "guarded",
            "steps": [{"id": "wire", "type": "tool", "tool": "wire", "args": {"order": "$order"}}],
        }
    )

    async def call(key: str, number: int) -> Any:
        return await engines[number % 2].run(program, {"order": key}, idempotency_key=key)

    calls = [functools.partial(call, key, number) for key in keys for number in range(callers)]
    traces = await setting.timed(calls, width=4 * callers)
    setting.figures.unit = "call"
    firsts = traces[::callers]
    setting.ran(*firsts)
    for place, key in enumerate(keys):
        same = traces[place * callers : (place + 1) * callers]
        setting.expect("P4", done[key] == 1, f"{key} was executed {done[key]} times")
        ids = {trace.trace_id for trace in same}
        setting.expect("P4", len(ids) == 1, f"{key} started {len(ids)} runs")
        answers = {trace.final_output for trace in same}
        setting.expect("P4", answers == {key}, f"callers under {key} were given {len(answers)} answers")
        try:
            await engines[0].run(program, {"order": "another"}, idempotency_key=key)
        except ConflictError as error:
            setting.expect(
                "P4", error.code == "KEY_CONFLICT", f"{key}: another order was refused with {error.code}"
            )
        else:
            setting.expect("P4", False, f"{key}: another order was taken")
    setting.figures.effects = sum(done.values())


class _Talker:
    """A model that counts what it was paid for."""

    def __init__(self) -> None:
        self.tokens: Counter[str] = Counter()
        self.cost_nanousd: Counter[str] = Counter()

    def price(self, model: str | None = None) -> tuple[int, int]:
        """Nano-dollars per token: what is worth reserving before a call."""
        return 10_000, 10_000

    async def complete(self, messages: list[Message], **params: Any) -> Completion:
        who = str(messages[-1]["content"])
        most = int(params.get("max_tokens") or 6)
        spent = min(6, most)
        self.tokens[who] += 4 + spent
        self.cost_nanousd[who] += 10_000 * (4 + spent)
        usage = Usage(prompt_tokens=4, completion_tokens=spent, cost_usd=0.000_01 * (4 + spent))
        return Completion(text="more", usage=usage, model="talker")


def _endless(name: str, step: dict[str, Any], **budgets: Any) -> dict[str, Any]:
    more = {"id": "more", "type": "condition", "condition": "$again.output == 'stop'"}
    steps = [{"id": "again", **step}, more | {"then": "end", "otherwise": "again"}]
    return {"name": name, **budgets, "steps": [*steps, {"id": "end", "type": "tool", "tool": "tick"}]}


async def budget(setting: Setting) -> None:
    """Endless loops, each with another budget, and each stopped by it before the step that would exceed it."""
    count = setting.size(240, 12)
    ticks: Counter[str] = Counter()
    talker = _Talker()

    @tool(effect="idempotent")
    async def tick(ctx: ToolContext) -> str:
        ticks[ctx.trace_id] += 1
        return "more"

    vm = setting.vm([tick], llm=talker)
    ask = {"type": "llm", "prompt": "$who", "params": {"max_tokens": 6}}
    programs = {
        "max_steps": _endless("steps", {"type": "tool", "tool": "tick"}, max_steps=25),
        "max_tokens": _endless("tokens", ask, max_tokens=97),
        "max_cost_usd": _endless("cost", ask, max_cost_usd=0.001_5),
    }

    async def one(kind: str, number: int) -> Any:
        inputs = None if kind == "max_steps" else {"who": f"{kind} {number}"}
        return await vm.run(programs[kind], inputs, trace_id=f"{kind}-{number}")

    jobs = [(kind, number) for kind in programs for number in range(count)]
    traces = await setting.timed([functools.partial(one, *job) for job in jobs], width=50)
    setting.ran(*traces)
    for (kind, number), trace in zip(jobs, traces, strict=True):
        setting.expect("P10", trace.status.value == "BUDGET_EXCEEDED", f"{trace}: nothing stopped it")
        who = f"{kind} {number}"
        if kind == "max_steps":
            taken = len(trace.path)
            setting.expect("P10", 0 < taken <= 25, f"{trace.trace_id} took {taken} steps of 25")
            happened = ticks[trace.trace_id]
            setting.expect("P10", 0 < happened <= 13, f"{trace.trace_id}: {happened} calls in 25 steps")
        elif kind == "max_tokens":
            spent = talker.tokens[who]
            setting.expect("P10", 0 < spent <= 97, f"{who}: the model was paid {spent} tokens of 97")
            setting.expect(
                "P10", trace.total_tokens() == spent, f"{who}: the run says {trace.total_tokens()} of {spent}"
            )
        else:
            spent = talker.cost_nanousd[who]
            setting.expect("P10", spent > 0, f"{who}: the model was not asked")
            setting.expect("P10", spent <= 1_500_000, f"{who}: {spent} nano-dollars of 1,500,000")
    setting.figures.effects = sum(ticks.values())


LANES: Final = 10


async def parallel(setting: Setting) -> None:
    """Ten sub-steps at once and a list of ten; one of them fails, and hides nothing of the others."""
    draw = random.Random(setting.options.seed)
    count = setting.size(400, 20)
    done: Counter[tuple[str, int]] = Counter()

    @tool(effect="keyed")
    async def act(n: int, ctx: ToolContext) -> int:
        for _ in range(draw.randrange(4)):  # so that they finish in any order
            await asyncio.sleep(0)
        done[ctx.trace_id, n] += 1
        return n * n

    @tool(effect="keyed")
    async def fail(ctx: ToolContext) -> None:
        done[ctx.trace_id, -1] += 1
        raise ToolError("refused", retryable=False, code="REFUSED")

    lanes = [{"id": f"p{n}", "type": "tool", "tool": "act", "args": {"n": n}} for n in range(LANES)]
    listed = {"id": "each", "type": "tool", "tool": "act", "args": {"n": "$item"}}
    mapped = {"id": "m", "type": "map", "over": list(range(100, 100 + LANES)), "step": listed}
    good = {"name": "fan", "steps": [{"id": "g", "type": "parallel", "parallel_steps": lanes}, mapped]}
    group = {
        "id": "g",
        "type": "parallel",
        "parallel_steps": [*lanes, {"id": "bad", "type": "tool", "tool": "fail"}],
    }
    broken = {"name": "broken_fan", "steps": [group]}
    vm = setting.vm([act, fail])

    async def one(number: int) -> Any:
        return await vm.run(broken if number % 5 == 4 else good, trace_id=f"fan-{number}")

    traces = await setting.timed([functools.partial(one, number) for number in range(count)], width=20)
    setting.ran(*traces)
    for number, trace in enumerate(traces):
        _judge_fan(setting, trace, done, failed=number % 5 == 4)
    for part in ([t for n, t in enumerate(traces) if (n % 5 == 4) is failed] for failed in (False, True)):
        hashes = {trace.trace_hash for trace in part}
        setting.expect("P5", len(hashes) == 1, f"the same work has {len(hashes)} trace hashes")
    setting.figures.effects = sum(done.values())


def _judge_fan(setting: Setting, trace: Any, done: Counter[tuple[str, int]], *, failed: bool) -> None:
    run_id = trace.trace_id
    for n in [*range(LANES), *([] if failed else range(100, 100 + LANES))]:
        setting.expect("P4", done[run_id, n] == 1, f"{run_id}: lane {n} happened {done[run_id, n]} times")
    settled = [step for step in trace.steps if step.id.startswith("p")]
    names: Sequence[str] = [step.id for step in settled]
    setting.expect("P1", names == [f"p{n}" for n in range(LANES)], f"{run_id} shows {', '.join(names)}")
    if failed:
        setting.expect("P1", trace.status.value == "FAILED", f"{run_id} ended {trace.status.value}")
        setting.expect(
            "P4", done[run_id, -1] == 1, f"{run_id}: the failing lane ran {done[run_id, -1]} times"
        )
        shown = [step.output for step in settled]
        setting.expect("P1", shown == [n * n for n in range(LANES)], f"{run_id} hides what siblings did")
    else:
        squares = [n * n for n in range(100, 100 + LANES)]
        setting.expect("P1", trace.final_output == squares, f"{run_id}: the list is not in order")
        first = trace.step("g").output
        setting.expect(
            "P1", first == {f"p{n}": n * n for n in range(LANES)}, f"{run_id}: outputs are mixed up"
        )
