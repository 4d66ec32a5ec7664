"""Scenarios about trouble and patience: tools that fail and answers that get lost, and a run that is as long as all the
others together."""

from __future__ import annotations

import functools
import random
from collections import Counter
from typing import Any, Final

from nano_vm.errors import NanoVMError
from nano_vm.kernel.state import RunStatus
from nano_vm.program.model import Program
from nano_vm.runtime.tooling import ToolContext, ToolError
from nano_vm.testing.bench.setting import Setting, cpu_seconds
from nano_vm.tools.registry import tool
from nano_vm.vm import ExecutionVM

FLAKY: Final[dict[str, Any]] = {
    "name": "flaky",
    "inputs": {"type": "object", "properties": {"order": {"type": "string"}}, "required": ["order"]},
    "max_steps": 60,
    "steps": [
        {"id": "charge", "type": "tool", "tool": "charge", "args": {"order": "$order"}}
        | {"on_error": "retry", "max_retries": 8, "retry": {"initial": 0.001, "factor": 1, "jitter": False}},
        {"id": "wire", "type": "tool", "tool": "wire", "args": {"order": "$order"}}
        | {"on_error": "retry", "max_retries": 3, "retry": {"initial": 0.001, "factor": 1, "jitter": False}},
        {"id": "tell", "type": "tool", "tool": "tell", "args": {"order": "$order"}}
        | {"on_error": "skip", "is_terminal": True},
    ],
}


class _Unreliable:
    """Services outside: they fail before the effect, lose the answer after it, or answer."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.draws: dict[str, random.Random] = {}
        self.keys: set[str] = set()
        self.moved: Counter[str] = Counter()
        self.calls: Counter[tuple[str, str]] = Counter()
        self.wired: Counter[str] = Counter()

    def _trouble(self, order: str, *, before: bool) -> None:
        # An order's troubles follow from the seed, whatever others do meanwhile.
        chance = self.draws.setdefault(order, random.Random(f"{self.seed}/{order}")).random()
        if before and chance < 0.25:
            raise ToolError("try again", code="BUSY")
        if not before and chance < 0.25:
            raise ConnectionError("the answer is lost")

    def tools(self) -> list[Any]:
        @tool(effect="keyed")
        async def charge(order: str, ctx: ToolContext) -> str:
            self.calls[order, "charge"] += 1
            self._trouble(order, before=True)
            if ctx.idempotency_key not in self.keys:
                self.keys.add(ctx.idempotency_key)
                self.moved[order] += 1
            self._trouble(order, before=False)
            return "charged"

        @tool(effect="irreversible")
        async def wire(order: str) -> str:
            self.calls[order, "wire"] += 1
            self._trouble(order, before=True)
            self.wired[order] += 1
            self._trouble(order, before=False)
            return "wired"

        @tool(effect="idempotent")
        async def tell(order: str) -> str:
            self._trouble(order, before=True)
            return "told"

        return [charge, wire, tell]


async def adversarial_retries(setting: Setting) -> None:
    """Services that fail, lose answers and are called again by impatient callers; what must not happen twice does not,
    and what nobody knows is asked of an operator, who looks."""
    world = _Unreliable(setting.options.seed)
    vm = setting.vm(world.tools())
    program = Program.from_dict(FLAKY)
    orders = [f"order-{number}" for number in range(setting.size(400, 30))]
    asked = Counter[str]()

    async def one(order: str) -> Any:
        trace = await vm.run(program, {"order": order}, idempotency_key=order)
        if trace.status is RunStatus.SUSPENDED:
            asked[order] += 1
            kinds = {wait.kind for wait in trace.waiting}
            setting.expect(
                "P4", kinds == {"outcome"}, lambda: f"{order} waits for {', '.join(sorted(kinds))}"
            )
            before = world.calls[order, "wire"]
            again = await vm.run(program, {"order": order}, idempotency_key=order)
            setting.expect("P4", again.trace_id == trace.trace_id, f"{order} began a second run")
            setting.expect("P4", world.calls[order, "wire"] == before, f"{order} was wired again, blindly")
            trace = await vm.resolve(trace.trace_id, "wire", "succeeded", "wired")
            await _refused(setting, vm, trace.trace_id)
        return trace

    traces = await setting.timed([functools.partial(one, order) for order in orders], width=25)
    setting.ran(*traces)
    for order, trace in zip(orders, traces, strict=True):
        reached = trace.step("wire") is not None
        moved, wired = world.moved[order], world.wired[order]
        setting.expect("P4", moved <= 1, f"{order} was charged {moved} times")
        setting.expect("P4", wired <= 1, f"{order} was wired {wired} times")
        setting.expect("P1", moved == 1 or not reached, f"{order} was wired and not charged")
        tries = world.calls[order, "charge"]
        setting.expect("P10", 0 < tries <= 8, f"{order}: {tries} tries to charge of 8")
        if trace.status is RunStatus.SUCCESS:
            setting.expect(
                "P1", (moved, wired) == (1, 1), f"{order} succeeded with {moved} charges, {wired} wires"
            )
        else:
            failed = trace.status is RunStatus.FAILED and (trace.error or {}).get("type") in (
                "BUSY",
                "OUTCOME_UNKNOWN",
            )
            setting.expect("P10", failed, f"{trace} ended with {trace.error}")
    setting.figures.effects = sum(world.moved.values()) + sum(world.wired.values())
    setting.figures.facts = {"calls": sum(world.calls.values()), "unknown_outcomes": sum(asked.values())}
    setting.expect("P4", sum(asked.values()) > 0, "no answer was lost: nothing was put to the test")


async def _refused(setting: Setting, vm: ExecutionVM, run_id: str) -> None:
    """An operator who answers a second time is told, and nothing comes of it."""
    try:
        await vm.resolve(run_id, "wire", "repeat")
    except NanoVMError as error:
        late = error.code in ("TERMINAL", "NOT_WAITING", "UNKNOWN_STEP")
        setting.expect("P4", late, f"{run_id}: a second answer was refused with {error.code}")
    else:
        setting.expect("P4", False, f"{run_id}: a settled outcome was settled again")


HORIZON: Final[dict[str, Any]] = {
    "name": "horizon",
    "inputs": {"type": "object", "properties": {"limit": {"type": "integer"}}, "required": ["limit"]},
    "max_steps": 1_000_000,
    "steps": [
        {"id": "tick", "type": "tool", "tool": "tick"},
        {
            "id": "rest",
            "type": "condition",
            "condition": "$tick.output.rest",
            "then": "pause",
            "otherwise": "more",
        },
        {"id": "pause", "type": "wait", "event": "go", "next_step": "more"},
        {"id": "more", "type": "condition", "condition": "$tick.output.n < $limit"}
        | {"then": "tick", "otherwise": "end"},
        {"id": "end", "type": "tool", "tool": "tick", "is_terminal": True},
    ],
}
STRETCHES: Final = 10


async def long_horizon(setting: Setting) -> None:
    """One run of very many steps, put to sleep ten times and woken by a fresh engine; the last stretch costs what the
    first did."""
    limit = setting.size(15_000, 300)
    stretch = limit // STRETCHES
    ticks: Counter[str] = Counter()

    @tool(effect="keyed")
    async def tick(ctx: ToolContext) -> dict[str, Any]:
        n = ticks["n"] = ticks["n"] + 1
        return {"n": n, "rest": n % stretch == 0 and n <= limit}

    program = Program.from_dict({**HORIZON, "name": "horizon"})
    vm = setting.vm([tick])
    costs: list[float] = []

    async def begin() -> Any:
        return await vm.run(program, {"limit": limit}, trace_id="horizon")

    async def go_on(number: int) -> Any:
        return await setting.vm([tick]).resume("horizon", {"n": number}, event_id=f"go-{number}")

    for number in range(STRETCHES + 1):
        cpu = cpu_seconds()
        (trace,) = await setting.timed([begin if number == 0 else functools.partial(go_on, number)])
        costs.append(cpu_seconds() - cpu)
        due = min((number + 1) * stretch, limit + 1)
        setting.expect("P4", ticks["n"] == due, f"{ticks['n']} ticks after stretch {number}, not {due}")
    setting.ran(trace)
    figures = setting.figures
    figures.unit = "stretch"
    figures.effects = ticks["n"]
    steps = 3 * limit + 1 + STRETCHES
    setting.expect("P1", trace.status is RunStatus.SUCCESS, f"the run ended {trace.status.value}")
    setting.expect("P1", figures.steps == steps, f"{figures.steps} steps where the program has {steps}")
    setting.expect(
        "P6", setting.vm([tick]).verify("horizon").state.status is trace.status, "it verifies as another"
    )
    figures.facts = {"last_over_first": round(costs[-2] / max(costs[0], 1e-9), 2), "stretches": STRETCHES}
