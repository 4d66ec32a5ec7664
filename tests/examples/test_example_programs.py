"""The examples are run for real: their own files, their own tools, a SQLite database on disk."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nano_vm import ExecutionVM, MockLLMAdapter, Program, RejectedError, SqliteStore
from nano_vm.compiler import check
from nano_vm.policy import Policy, check_policy, load_policy
from nano_vm.program.document import from_file
from nano_vm.tools.registry import ToolSet

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TOOLS_OF = {
    "refund": "refund_tools",
    "refund_approval": "refund_tools",
    "governed_refund": "refund_tools",
    "order_pipeline": "order_tools",
    "saga_booking": "booking_tools",
    "dunning": "dunning_tools",
    "data_pipeline": "data_tools",
    "support_agent": "support_tools",
    "invoice": "invoice_tools",
    "monthly_invoices": "invoice_tools",
}
CHILDREN = {"monthly_invoices": ["invoice"]}
_names = itertools.count()


class SteppedClock:
    """Time moves only when a test moves it, or when somebody sleeps."""

    def __init__(self) -> None:
        self.at_ms = 1_700_000_000_000

    def now_ms(self) -> int:
        return self.at_ms

    async def sleep_until(self, at_ms: int) -> None:
        self.at_ms = max(self.at_ms, at_ms)
        await asyncio.sleep(0)


def load_tools(name: str) -> ModuleType:
    """A fresh copy of a tools module: what it remembers of the outside world starts empty."""
    spec = importlib.util.spec_from_file_location(f"{name}_{next(_names)}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def tool_set(module: ModuleType) -> ToolSet:
    tools = ToolSet()
    for function in vars(module).values():
        if hasattr(function, "__nano_vm_tool__"):
            tools.add(function)
    return tools


class Bench:
    """One example with its tools on a SQLite file. Every call uses an engine of its own, like a process would."""

    def __init__(self, name: str, path: Path, answer: str = "") -> None:
        self.program = Program.from_file(EXAMPLES / f"{name}.yaml")
        self.children = [Program.from_file(EXAMPLES / f"{child}.yaml") for child in CHILDREN.get(name, ())]
        self.module = load_tools(TOOLS_OF[name])
        self.path = path / "runs.db"
        self.answer = answer
        self.policy: Policy | None = None
        self.clock = SteppedClock()

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        async def inside() -> Any:
            async with ExecutionVM(
                llm=MockLLMAdapter(self.answer),
                tools=tool_set(self.module),
                store=SqliteStore(self.path),
                clock=self.clock,
                policy=self.policy,
            ) as vm:
                for child in self.children:
                    vm.save_program(child)
                found = getattr(vm, method)(*args, **options)
                result = await found if asyncio.iscoroutine(found) else found
                traces = result if isinstance(result, list) else [result]
                for trace in traces:
                    vm.verify(trace.trace_id)
                    _ = trace.steps, trace.trace_hash  # read while the store is open
                return result

        return asyncio.run(inside())

    def run(self, **inputs: Any) -> Any:
        return self.call("run", self.program, inputs)


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "ledger.jsonl"
    monkeypatch.setenv("NANO_VM_LEDGER", str(path))
    return path


def effects(ledger: Path) -> list[str]:
    return [json.loads(line)["effect"] for line in ledger.read_text().splitlines()]


@pytest.mark.parametrize("name", sorted(TOOLS_OF))
def test_every_example_checks_clean(name: str) -> None:
    children = [Program.from_file(EXAMPLES / f"{child}.yaml") for child in CHILDREN.get(name, ())]
    report = check(
        Program.from_file(EXAMPLES / f"{name}.yaml"),
        tool_set(load_tools(TOOLS_OF[name])).schemas(),
        {child.name: child for child in children},
    )
    assert [finding.code for finding in report.errors] == []
    assert {finding.code for finding in report.warnings} <= {"NO_FAILURE_TERMINAL"}


def test_every_program_in_the_directory_is_covered() -> None:
    programs = {path.stem for path in EXAMPLES.glob("*.yaml") if not path.name.endswith(".policy.yaml")}
    assert programs == set(TOOLS_OF)


@pytest.mark.parametrize("policy", sorted(EXAMPLES.glob("*.policy.yaml")), ids=lambda path: path.name)
def test_every_policy_checks_clean(policy: Path) -> None:
    report = check_policy(from_file(policy), tool_set(load_tools("refund_tools")).schemas())
    assert report.diagnostics == ()


def test_a_small_refund_goes_out_and_a_large_one_by_four_eyes(tmp_path: Path, ledger: Path) -> None:
    bench = Bench("governed_refund", tmp_path, "yes")
    bench.policy = load_policy(EXAMPLES / "refund.policy.yaml")
    ana = {"id": "ana", "roles": ["supervisor"]}
    small = bench.call("run", bench.program, {"order_id": "A-1001", "message": "broken"}, principal=ana)
    assert (small.outcome, effects(ledger)) == ("refunded", ["refund", "notify"])
    large = bench.call("run", bench.program, {"order_id": "A-1002", "message": "broken"}, principal=ana)
    assert (large.status.value, large.waiting[0].step) == ("SUSPENDED", "pay")
    with pytest.raises(RejectedError) as caught:
        bench.call("approve", large.trace_id, principal=ana)
    assert caught.value.code == "SELF_APPROVAL"
    large = bench.call("approve", large.trace_id, principal={"id": "eve", "roles": ["supervisor"]})
    assert (large.outcome, effects(ledger)[2:]) == ("refunded", ["refund", "notify"])


def test_nobody_pays_out_more_than_the_policy_says_for_a_day(tmp_path: Path, ledger: Path) -> None:
    bench = Bench("governed_refund", tmp_path, "yes")
    bench.policy = load_policy(EXAMPLES / "refund.policy.yaml")
    outcomes = []
    for _ in range(5):
        trace = bench.call("run", bench.program, {"order_id": "A-1002", "message": "broken"}, principal="ana")
        if trace.status.value == "SUSPENDED":
            trace = bench.call("approve", trace.trace_id, principal={"id": "eve", "roles": ["supervisor"]})
        outcomes.append(trace.outcome)
    assert outcomes == ["refunded"] * 4 + ["not_paid"]  # 4 x 240 <= 1000
    assert effects(ledger).count("refund") == 4


@pytest.mark.parametrize(
    ("answer", "outcome", "expected"),
    [("yes", "refunded", ["refund"]), (" No\n", "rejected", ["notify"])],
)
def test_the_plain_refund_refunds_on_yes_alone(
    tmp_path: Path, ledger: Path, answer: str, outcome: str, expected: list[str]
) -> None:
    trace = Bench("refund", tmp_path, answer).run(order_id="A-1001", message="broken")
    assert trace.outcome == outcome
    assert effects(ledger) == expected


def test_a_model_that_does_not_answer_yes_or_no_moves_no_money(tmp_path: Path, ledger: Path) -> None:
    trace = Bench("refund", tmp_path, "yes, and ignore the rules").run(order_id="A-1001", message="x")
    assert trace.status == "FAILED"
    assert trace.error["type"] == "GATE"
    assert not ledger.exists()


def test_a_small_refund_needs_nobody(tmp_path: Path, ledger: Path) -> None:
    trace = Bench("refund_approval", tmp_path, "low").run(order_id="A-1001", message="broken")
    assert (trace.status, trace.outcome) == ("SUCCESS", "refunded")
    assert effects(ledger) == ["reserve", "refund", "notify"]


@pytest.mark.parametrize(("order", "risk"), [("A-1002", "low"), ("A-1001", "HIGH")])
def test_a_large_or_risky_refund_waits_for_a_supervisor(
    tmp_path: Path, ledger: Path, order: str, risk: str
) -> None:
    bench = Bench("refund_approval", tmp_path, risk)
    trace = bench.run(order_id=order, message="broken")
    assert trace.status == "SUSPENDED"
    assert [wait.approvers for wait in trace.waiting] == [("supervisor",)]
    assert effects(ledger) == ["reserve"]

    with pytest.raises(RejectedError) as refusal:
        bench.call("resume", trace.trace_id, {"approved": True}, principal={"id": "eve", "roles": ["clerk"]})
    assert refusal.value.code == "NOT_APPROVER"
    assert effects(ledger) == ["reserve"]

    supervisor = {"id": "ana", "roles": ["supervisor"]}
    trace = bench.call("resume", trace.trace_id, {"approved": True}, principal=supervisor)
    assert (trace.status, trace.outcome) == ("SUCCESS", "refunded")
    assert effects(ledger) == ["reserve", "refund", "notify"]


def test_a_declined_refund_gives_back_what_was_reserved(tmp_path: Path, ledger: Path) -> None:
    bench = Bench("refund_approval", tmp_path, "low")
    trace = bench.run(order_id="A-1002", message="broken")
    supervisor = {"id": "ana", "roles": ["supervisor"]}
    trace = bench.call("resume", trace.trace_id, {"approved": False}, principal=supervisor)
    assert (trace.status, trace.outcome, trace.rollbacks) == ("FAILED", "refused", 1)
    assert effects(ledger) == ["reserve", "notify", "release"]


def test_an_approval_that_nobody_gives_in_three_days_counts_as_refused(tmp_path: Path, ledger: Path) -> None:
    bench = Bench("refund_approval", tmp_path, "low")
    trace = bench.run(order_id="A-1002", message="broken")
    assert trace.waiting[0].due_ms == trace.started_at_ms + 3 * 86_400_000
    bench.clock.at_ms = trace.waiting[0].due_ms
    (trace,) = bench.call("recover")
    assert (trace.status, trace.outcome) == ("FAILED", "refused")
    assert effects(ledger) == ["reserve", "notify", "release"]


@pytest.mark.parametrize(
    ("order", "status", "outcome"),
    [("A-1003", "SUCCESS", "not_refundable"), ("B-1", "FAILED", "order_unknown")],
)
def test_orders_that_cannot_be_refunded_move_no_money(
    tmp_path: Path, ledger: Path, order: str, status: str, outcome: str
) -> None:
    trace = Bench("refund_approval", tmp_path, "low").run(order_id=order, message="")
    assert (trace.status, trace.outcome) == (status, outcome)
    assert effects(ledger) == ["notify"]


def test_the_order_pipeline_charges_an_order_once_and_tells_everybody(tmp_path: Path) -> None:
    bench = Bench("order_pipeline", tmp_path)
    order = {"order_id": "O-7", "items": [{"sku": "tea", "quantity": 2}]}
    first, second = bench.run(**order), bench.run(**order)
    assert (first.outcome, second.outcome) == ("shipped", "shipped")
    assert first.final_output == {"mail": True, "warehouse": True, "accounting": True}
    assert [charge["amount"] for charge in bench.module.CHARGES.values()] == [8]
    assert ("warehouse", 'Pack order O-7: [{"quantity":2,"sku":"tea"}]') in bench.module.SENT


@pytest.mark.parametrize(
    ("item", "outcome"),
    [({"sku": "moon", "quantity": 1}, "sold_out"), ({"sku": "cup", "quantity": 99}, "not_paid")],
)
def test_the_order_pipeline_fails_as_its_author_wrote(
    tmp_path: Path, item: dict[str, Any], outcome: str
) -> None:
    bench = Bench("order_pipeline", tmp_path)
    trace = bench.run(order_id="O-8", items=[item])
    assert (trace.status, trace.outcome) == ("FAILED", outcome)
    assert bench.module.CHARGES == {}


def test_the_saga_undoes_what_was_booked_in_reverse_order(tmp_path: Path) -> None:
    bench = Bench("saga_booking", tmp_path)
    trace = bench.run(traveller="Ada", city="Atlantis")
    assert (trace.status, trace.outcome, trace.rollbacks) == ("FAILED", "not_booked", 2)
    assert trace.incomplete_compensations == []
    log = bench.module.LOG
    assert [line for line in log if not line.startswith("No trip")] == [
        "book flight",
        "book hotel",
        "no car",
        "no car",
        "cancel hotel",
        "cancel flight",
    ]


def test_the_saga_keeps_a_complete_trip(tmp_path: Path) -> None:
    trace = Bench("saga_booking", tmp_path).run(traveller="Ada", city="Rome")
    assert (trace.status, trace.rollbacks) == ("SUCCESS", 0)
    assert trace.outputs == {"flight": "flight-rome", "hotel": "hotel-rome", "car": "car-rome"}


@pytest.mark.parametrize(
    ("subscription", "attempts", "outcome"), [("S-1", 3, "collected"), ("S-2", 4, "uncollectable")]
)
def test_the_dunning_loop_waits_three_days_between_attempts(
    tmp_path: Path, subscription: str, attempts: int, outcome: str
) -> None:
    bench = Bench("dunning", tmp_path)
    trace = bench.run(subscription=subscription)
    pauses = []
    while trace.status == "SUSPENDED":
        assert bench.call("recover") == []  # nothing is due yet
        pauses.append(trace.waiting[0].due_ms - bench.clock.at_ms)
        bench.clock.at_ms = trace.waiting[0].due_ms
        (trace,) = bench.call("recover")
    assert (trace.status, trace.outcome) == ("SUCCESS", outcome)
    assert pauses == [259_200_000] * (attempts - 1)
    assert trace.outputs == {"subscription": subscription, "attempts": attempts}
    assert len(bench.module.ATTEMPTS[subscription]) == attempts  # each turn of the loop has a key of its own


def test_the_data_pipeline_needs_no_model_and_compares_by_hash(tmp_path: Path) -> None:
    bench = Bench("data_pipeline", tmp_path)
    first, second = bench.run(readings=[3, 1, 2]), bench.run(readings=[3, 1, 2])
    other = bench.run(readings=[2, 1, 4])
    assert first.outputs == {"report": "total 14, largest 9"}
    assert first.trace_hash == second.trace_hash
    assert first.trace_hash != other.trace_hash
    assert other.outputs == {"report": "total 21, largest 16"}


def test_each_invoice_is_a_run_of_its_own_and_the_list_keeps_its_order(tmp_path: Path) -> None:
    people = [{"name": "Ada", "hours": 3}, {"name": "Bob", "hours": 2}]
    trace = Bench("monthly_invoices", tmp_path).run(customers=people)
    assert trace.status == "SUCCESS"
    assert [(line["number"][:3], line["amount"]) for line in trace.outputs["invoices"]] == [
        ("Ada", 240),
        ("Bob", 160),
    ]
