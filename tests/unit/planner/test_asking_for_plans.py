"""The planner's own call of a model is governed, counted and recorded like every other."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from nano_vm import (
    CapabilityDeniedError,
    ExecutionVM,
    MockLLMAdapter,
    Planner,
    PlanRejected,
    RejectedError,
    RuntimeFault,
    SqliteStore,
    replan_on_interrupt,
)
from nano_vm.cli.main import main
from nano_vm.policy import load_policy
from nano_vm.testing.faults import Crash

PLAN = {"name": "say", "steps": [{"id": "say", "type": "llm", "prompt": "Hello."}]}
LOOP = {
    "name": "loop",
    "max_steps": 2,
    "steps": [
        {"id": "ask", "type": "llm", "prompt": "?"},
        {
            "id": "more",
            "type": "condition",
            "condition": "$ask.output == 'yes'",
            "then": "end",
            "otherwise": "ask",
        },
        {"id": "end", "type": "llm", "prompt": "End."},
    ],
}


def limited(**limit: Any) -> dict[str, Any]:
    rule = {"id": "budget", "models": ["*"], "limits": [{**limit, "per": ["principal", "day"]}]}
    return {"policy": "spend", "rules": [rule]}


def planner(**options: Any) -> tuple[Planner, MockLLMAdapter]:
    model = MockLLMAdapter(json.dumps(PLAN), usage={"prompt_tokens": 700, "completion_tokens": 50})
    return Planner(model, **options), model


def test_a_plan_counts_for_whoever_asks_and_the_limit_denies_the_next_one() -> None:
    vm = ExecutionVM(llm=MockLLMAdapter("no"), policy=limited(max_calls=2))
    plans, model = planner()
    for _ in range(2):
        plans.generate_sync("say hello", vm=vm, principal="ana")
    with pytest.raises(CapabilityDeniedError) as caught:
        plans.generate_sync("say hello", vm=vm, principal="ana")
    assert (caught.value.code, model.call_count) == ("CAPABILITY_DENIED", 2)
    plans.generate_sync("say hello", vm=vm, principal="ben")
    denied = vm.run_sync(PLAN, principal="ana")  # what plans have used up no run has left
    assert (denied.error or {})["type"] == "CapabilityDeniedError"
    assert vm.run_sync(PLAN, principal="ben").status == "SUCCESS"


def test_the_worst_case_is_held_before_the_call_and_what_it_took_is_counted_after_it() -> None:
    most = (
        7_000  # the worst case of one call is some 1,500 tokens of prompt, and 4,096 of answer; it takes 750
    )
    vm = ExecutionVM(policy=limited(max_tokens=most))
    plans, model = planner()
    plans.generate_sync("say hello", vm=vm, principal="ana")
    plans.generate_sync("say hello", vm=vm, principal="ana")  # it fits, for the first took 750
    assert plans.last is not None
    assert plans.last.usage.total_tokens == 750
    for record in vm.runs(program="planning"):
        trace = vm.trace(record.run_id)
        assert (trace.status, trace.total_tokens()) == ("SUCCESS", 750)
        assert vm.verify(record.run_id)
    assert model.params[0]["max_tokens"] == 4_096
    small = ExecutionVM(policy=limited(max_tokens=4_000))
    with pytest.raises(CapabilityDeniedError):
        plans.generate_sync("say hello", vm=small, principal="ana")
    assert model.call_count == 2


def test_plans_at_once_do_not_exceed_a_limit_together(tmp_path: Path) -> None:
    async def main() -> tuple[int, int]:
        with SqliteStore(tmp_path / "runs.db") as store:
            vm = ExecutionVM(store=store, policy=limited(max_calls=3))
            plans, model = planner()
            asked = (plans.generate("say hello", vm=vm, principal="ana") for _ in range(6))
            found = await asyncio.gather(*asked, return_exceptions=True)
            denied = sum(isinstance(one, CapabilityDeniedError) for one in found)
            return denied, model.call_count

    assert asyncio.run(main()) == (3, 3)


@pytest.mark.parametrize("whose", ["engine", "planner", "both"])
def test_a_model_that_a_policy_does_not_allow_is_not_asked(whose: str) -> None:
    allows, denies = {"policy": "a", "models": ["*"]}, {"policy": "d", "models": ["large"]}
    of_engine = None if whose == "planner" else denies
    of_planner = None if whose == "engine" else load_policy(allows if whose == "both" else denies)
    plans, model = planner(policy=of_planner)
    with pytest.raises(CapabilityDeniedError) as caught:
        plans.generate_sync("say hello", vm=ExecutionVM(policy=of_engine), principal="ana")
    assert (caught.value.code, model.call_count) == ("CAPABILITY_DENIED", 0)
    large, _ = planner(policy=of_planner, model="large")
    assert large.generate_sync("say hello", vm=ExecutionVM(policy=of_engine), principal="ana").name == "say"


def test_without_an_engine_a_policy_allows_what_need_not_be_counted() -> None:
    for policy in ({"policy": "d", "models": ["large"]}, limited(max_calls=5)):
        plans, model = planner(policy=load_policy(policy))
        with pytest.raises(CapabilityDeniedError) as caught:
            plans.generate_sync("say hello")
        assert (caught.value.code, model.call_count) == ("CAPABILITY_DENIED", 0)
    plans, model = planner(policy=load_policy({"policy": "d", "models": ["default"]}))
    assert plans.generate_sync("say hello").name == "say"


def test_the_call_has_a_budget_of_its_own() -> None:
    plans, model = planner(call_max_tokens=500)
    for options in ({"vm": ExecutionVM()}, {}):
        with pytest.raises(RejectedError) as caught:
            plans.generate_sync("say hello", **options)
        assert (caught.value.code, model.call_count) == ("BUDGET_EXCEEDED", 0)
    plans, _ = planner(call_max_tokens=8_000)
    assert plans.generate_sync("say hello", vm=ExecutionVM()).name == "say"


def test_replanning_is_counted_and_a_denied_plan_runs_nothing() -> None:
    vm = ExecutionVM(llm=MockLLMAdapter("no"), policy=limited(max_calls=1))
    old = vm.run_sync(LOOP, trace_id="old", principal="ana")
    assert old.status == "BUDGET_EXCEEDED"
    plans, model = planner()
    with pytest.raises(CapabilityDeniedError) as caught:
        asyncio.run(replan_on_interrupt(vm, plans, "old", "go on", principal="ana"))
    assert (caught.value.code, model.call_count) == ("CAPABILITY_DENIED", 0)
    assert asyncio.run(replan_on_interrupt(vm, plans, "old", "go on", principal="ben")).program_name == "say"


def test_a_model_that_fails_is_on_record_and_asked_once() -> None:
    model = MockLLMAdapter(ConnectionError("gone"))
    vm = ExecutionVM()
    with pytest.raises(RuntimeFault) as caught:
        Planner(model).generate_sync("say hello", vm=vm)
    assert (caught.value.code, caught.value.facts["error"], model.call_count) == (
        "PLAN_FAILED",
        "ConnectionError",
        1,
    )
    assert vm.trace(caught.value.facts["run_id"]).status == "FAILED"


def test_who_may_not_start_runs_may_not_ask_for_plans() -> None:
    vm = ExecutionVM(access="required")
    plans, model = planner()
    with pytest.raises(CapabilityDeniedError):
        plans.generate_sync("say hello", vm=vm, principal={"id": "vic", "roles": ["viewer"]})
    assert model.call_count == 0
    ana = {"id": "ana", "roles": ["operator"], "tenant": "acme"}
    plans.generate_sync("say hello", vm=vm, principal=ana)
    assert [record.tenant for record in vm.runs(principal=ana)] == ["acme"]


def test_closing_the_engine_waits_for_a_plan_that_is_being_asked_for() -> None:
    async def main() -> str:
        began, may_end = asyncio.Event(), asyncio.Event()

        class Slow:
            async def complete(self, messages: list[dict[str, Any]]) -> str:
                began.set()
                await may_end.wait()
                return json.dumps(PLAN)

        vm = ExecutionVM()
        asked = asyncio.ensure_future(Planner(Slow()).generate("say hello", vm=vm))
        await began.wait()
        closing = asyncio.ensure_future(vm.close())
        await asyncio.sleep(0)
        may_end.set()
        await closing
        try:
            return (await asked).name
        except RuntimeFault as error:
            return error.code

    assert asyncio.run(main()) in ("say", "SHUTTING_DOWN")


def test_a_plan_on_the_command_line_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("answers.json").write_text(json.dumps([json.dumps(PLAN)]))
    Path("spend.json").write_text(json.dumps(limited(max_calls=1)))
    words = ["plan", "say hello", "--model", "script:answers.json", "--policy", "spend.json", "--as", "ana"]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["program"]["name"] == "say"
    assert main([*words, "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "CAPABILITY_DENIED"
    assert main(["runs", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [run["program"]["name"] for run in shown["runs"]] == ["planning", "planning"]


def test_the_call_for_a_plan_has_a_budget_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("answers.json").write_text(json.dumps([json.dumps(PLAN)]))
    words = ["plan", "say hello", "--model", "script:answers.json", "--json"]
    assert main([*words, "--call-max-tokens", "3"]) == 7
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "BUDGET_EXCEEDED"
    assert main([*words, "--call-max-tokens", "0"]) == 2
    capsys.readouterr()
    assert main([*words, "--call-max-tokens", "100000"]) == 0


def test_a_plan_that_is_rejected_was_paid_for() -> None:
    vm = ExecutionVM(policy=limited(max_calls=1))
    with pytest.raises(PlanRejected):
        Planner(MockLLMAdapter("{}")).generate_sync("say hello", vm=vm, principal="ana")
    with pytest.raises(CapabilityDeniedError):
        Planner(MockLLMAdapter("{}")).generate_sync("say hello", vm=vm, principal="ana")


def test_what_died_over_the_call_is_settled_without_another_one(tmp_path: Path) -> None:
    """Whoever takes the run up has nobody to give a plan to."""

    class Dying:
        async def complete(self, messages: list[Any], **params: Any) -> str:
            raise Crash

    store = SqliteStore(tmp_path / "runs.db")
    with pytest.raises(Crash):
        Planner(Dying()).generate_sync("say hello", vm=ExecutionVM(store=store), principal="ana")
    store.abandon()
    model = MockLLMAdapter("x")
    with SqliteStore(tmp_path / "runs.db") as store:
        vm = ExecutionVM(llm=model, store=store)
        (trace,) = asyncio.run(vm.recover())
        vm.verify(trace.trace_id)
    assert (trace.program_name, trace.status, model.call_count) == ("planning", "BUDGET_EXCEEDED", 0)
