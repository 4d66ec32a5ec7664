"""What each audience saw of a step is what it really saw, and private values are nobody's."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("streamlit", reason="the extra [studio] is not installed")

from nano_vm import Completion, ExecutionVM, MockLLMAdapter, SqliteStore, ToolCall, tool
from nano_vm.studio.library import Library
from nano_vm.studio.projections import AUDIENCES, calls, view
from nano_vm.studio.settings import Settings
from unit.studio.studio_stage import SECRET, Page, Stage


def test_the_model_and_the_tool_were_sent_what_the_inspector_says(tmp_path: Path) -> None:
    given: list[dict[str, Any]] = []

    @tool(effect="idempotent")
    def lookup(order: int, note: str = "none") -> str:
        given.append({"order": order, "note": note})
        return f"order {order}"

    model = MockLLMAdapter(["maybe", "yes"])
    program = {
        "name": "seen",
        "steps": [
            {
                "id": "look",
                "type": "map",
                "over": [3, 4],
                "step": {"id": "one", "type": "tool", "tool": "lookup", "args": {"order": "$item"}},
            },
            {
                "id": "ask",
                "type": "llm",
                "system": "Answer yes or no.",
                "prompt": "Is ${look} fine?",
                "params": {"max_tokens": 5},
                "allowed_outputs": ["yes", "no"],
                "on_error": "retry",
                "retry": {"initial": 0.01, "jitter": False},
            },
        ],
    }
    program["steps"][0]["output_key"] = "look_all"  # type: ignore[index]
    program["steps"][1]["prompt"] = "Is $look_all fine?"  # type: ignore[index]
    path = tmp_path / "runs.db"
    vm = ExecutionVM(llm=model, tools=[lookup], store=SqliteStore(path))
    vm.run_sync(program, trace_id="r")
    vm.store.close()
    sight = Library(Settings(open_store=lambda: SqliteStore(path), path=path)).sight("r")
    steps = {(step.id, step.item): step for step in sight.steps}
    asked = calls(sight, steps["ask", None])
    assert [call.view["messages"] for call in asked] == model.calls
    assert [call.attempt for call in asked] == [1, 2]
    for item, order in ((0, 3), (1, 4)):
        (call,) = calls(sight, steps["one", item])
        assert (call.name, call.view) == ("lookup", {"order": order})
    assert sorted(each["order"] for each in given) == [3, 4]
    assert view(sight, steps["one", 0], "LLM") is None
    assert view(sight, steps["ask", None], "TOOL") is None
    assert "output" not in view(sight, steps["ask", None], "RECEIPT")
    assert view(sight, steps["ask", None], "TRACE")["output"] == "yes"
    assert view(sight, steps["ask", None], "OPERATOR")["run_id"] == "r"


def test_every_turn_of_an_agent_is_there(tmp_path: Path) -> None:
    @tool(effect="pure")
    def find(order: int) -> str:
        return f"order {order}"

    model = MockLLMAdapter([Completion(text="", tool_calls=[ToolCall("c1", "find", '{"order": 7}')]), "done"])
    path = tmp_path / "runs.db"
    vm = ExecutionVM(llm=model, tools=[find], store=SqliteStore(path))
    vm.run_sync(
        {
            "name": "agent",
            "max_tokens": 1_000,
            "steps": [{"id": "a", "type": "agent", "prompt": "find 7", "tools": ["find"], "max_turns": 3}],
        },
        trace_id="r",
    )
    vm.store.close()
    sight = Library(Settings(open_store=lambda: SqliteStore(path), path=path)).sight("r")
    agent = next(step for step in sight.steps if step.id == "a")
    asked = calls(sight, agent)
    assert [len(call.view["messages"]) for call in asked] == [len(messages) for messages in model.calls]
    action = next(step for step in sight.steps if step.id == "a.find")
    assert [call.view for call in calls(sight, action)] == [{"order": 7}]


@pytest.mark.parametrize("audience", AUDIENCES)
def test_no_audience_of_the_studio_is_shown_a_private_value(looked_at: Stage, audience: str) -> None:
    for step in ("ask", "echo"):
        page = Page("run", id="private")
        page.test.selectbox(key="step:private:echo").set_value(step)
        page.run().choose("audience", audience)
        assert SECRET not in page.everything()
        if (audience, step) in (("LLM", "ask"), ("TOOL", "echo")):
            assert "[PRIVATE]" in page.test.code[0].value


def test_a_journal_that_has_not_grown_is_not_folded_again(looked_at: Stage) -> None:
    library = Library(looked_at.settings())
    first = library.sight("small")
    assert library.sight("small").trace is first.trace
    library.close()


def test_a_run_is_followed_while_another_process_drives_it(own: Stage) -> None:
    library = Library(own.settings())
    assert library.sight("waits").is_live
    own.run(
        lambda vm: vm.resume("waits", {"paid": True}, name="payment", principal={"id": "o", "roles": []}),
        policy=None,
    )
    sight = library.sight("waits")
    assert not sight.is_live
    assert sight.steps[-1].output == 8
    library.close()


def test_tenants_see_their_own(tmp_path: Path) -> None:
    from nano_vm.stores.tenants import TenantStore

    path = tmp_path / "runs.db"

    @tool(effect="pure")
    def act() -> str:
        return "x"

    async def main() -> None:
        vm = ExecutionVM(tools=[act], store=SqliteStore(path))
        steps = {"name": "p", "steps": [{"id": "a", "type": "tool", "tool": "act", "args": {}}]}
        await vm.run(steps, trace_id="ours", tenant="acme")
        await vm.run(steps, trace_id="theirs", tenant="other")
        vm.store.close()

    asyncio.run(main())
    library = Library(
        Settings(
            open_store=lambda: TenantStore(SqliteStore(path), "acme", closes=True), path=path, tenant="acme"
        )
    )
    assert [record.run_id for record in library.shelf().records] == ["acme::ours"]
    assert library.sight("ours").trace.status.value == "SUCCESS"
    library.close()
