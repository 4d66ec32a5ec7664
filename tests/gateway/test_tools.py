"""Every tool of the gateway, in both eras of the protocol and over both transports, with the official client."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from gateway_stage import (
    ADDER,
    APPROVED,
    ERAS,
    LEGACY,
    LOOP,
    PAYER,
    SLOW,
    Served,
    call,
    connected,
    program,
    run,
    until,
)
from mcp.shared.exceptions import MCPError

from nano_vm.gateway.state import SUFFIX, GatewayState

PROMISED = {
    "run_program",
    "resume_run",
    "step_run",
    "cancel_run",
    "get_trace",
    "get_receipt",
    "verify_trace",
    "validate_program",
    "save_program",
    "list_programs",
    "get_program",
    "delete_program",
    "list_runs",
    "debug_trace",
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory):
    with Served(tmp_path_factory.mktemp("gateway"), "--role", "admin", "--role", "supervisor") as server:
        yield server


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("transport", ["http", "stdio"])
def test_a_program_is_saved_run_and_proved(served: Served, tmp_path: Path, transport: str, era: str) -> None:
    async def session() -> None:
        Served(tmp_path)  # writes the tools
        async with connected(served if transport == "http" else tmp_path, era) as client:
            listed = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert set(listed) >= PROMISED
            for name in PROMISED:
                tool = listed[name]
                assert tool.input_schema["additionalProperties"] is False
                assert tool.output_schema is not None
                assert tool.annotations is not None
                assert tool.description
            assert listed["get_trace"].annotations.read_only_hint
            assert not listed["run_program"].annotations.read_only_hint

            saved = await call(client, "save_program", program=ADDER)
            assert saved["tool"] == "program_adder"
            published = {tool.name: tool for tool in (await client.list_tools()).tools}["program_adder"]
            assert published.input_schema["required"] == ["a"]

            heard: list[str] = []

            async def hear(progress: float, total: float | None, message: str | None) -> None:
                heard.append(message or "")

            result = await client.call_tool(
                "run_program", {"program": "adder", "inputs": {"a": 1}}, progress_callback=hear
            )
            ran = result.structured_content
            assert (ran["status"], ran["output"]) == ("SUCCESS", 2)
            assert (await call(client, "program_adder", a=2))["output"] == 3

            run_id = ran["trace_id"]
            trace = await call(client, "get_trace", trace_id=run_id)
            assert [step["id"] for step in trace["steps"]] == ["sum"]
            receipt = (await call(client, "get_receipt", trace_id=run_id))["receipt"]
            assert receipt["hashes"]["trace_hash"] == trace["trace_hash"]
            assert (await call(client, "verify_trace", trace_id=run_id))["verified"] is True
            assert (await call(client, "debug_trace", trace_id=run_id))["advice"] == [
                "nothing is wrong with this run"
            ]
            listed_runs = (await call(client, "list_runs", program="adder"))["runs"]
            assert run_id in [each["trace_id"] for each in listed_runs]

            for uri in (f"trace://{run_id}", f"receipt://{run_id}", "program://adder"):
                contents = (await client.read_resource(uri)).contents
                assert contents[0].mime_type == "application/json"
            uris = [str(resource.uri) for resource in (await client.list_resources()).resources]
            assert {"program://adder", f"trace://{run_id}"} <= set(uris)
            assert len((await client.list_resource_templates()).resource_templates) == 3
            prompts = {prompt.name for prompt in (await client.list_prompts()).prompts}
            assert prompts == {"write_program", "explain_run"}
            text = (await client.get_prompt("explain_run", {"trace_id": run_id})).messages[0].content.text
            assert run_id in text

            hidden = await call(client, "delete_program", name="adder")
            assert hidden["hidden"] is True
            assert (await call(client, "run_program", program="adder"))["error"][
                "code"
            ] == "PROGRAM_NOT_FOUND"
            assert (await call(client, "get_program", program=saved["hash"]))["name"] == "adder"
            assert (await call(client, "verify_trace", trace_id=run_id))["verified"] is True

    run(session())


def test_errors_are_data_and_name_the_remedy(served: Served) -> None:
    async def session() -> None:
        async with connected(served) as client:
            cases = [
                ("run_program", {"program": "nobody"}, "PROGRAM_NOT_FOUND"),
                ("run_program", {}, "GATEWAY_ARGUMENT"),
                ("run_program", {"program": PAYER}, "INPUT_MISSING"),
                ("run_program", {"program": PAYER, "inputs": {"amount": "much"}}, "INPUT_INVALID"),
                ("run_program", {"program": PAYER, "bogus": 1}, "GATEWAY_ARGUMENT"),
                ("run_program", {"source": "steps: [", "inputs": {}}, "DOCUMENT_SYNTAX"),
                (
                    "run_program",
                    {"program": {**LOOP, "max_steps": 10**7}, "inputs": {"n": 1}},
                    "GATEWAY_LIMIT",
                ),
                ("get_trace", {"trace_id": "no-such"}, "RUN_NOT_FOUND"),
                ("get_trace", {"trace_id": ""}, "GATEWAY_ARGUMENT"),
                ("resume_run", {"trace_id": "no-such", "event": 1}, "RUN_NOT_FOUND"),
                ("list_runs", {"limit": 0}, "GATEWAY_ARGUMENT"),
                ("save_program", {"program": {"steps": [{"id": "a", "type": "tol"}]}}, "BAD_VALUE"),
                ("delete_program", {"name": "nobody"}, "PROGRAM_NOT_FOUND"),
            ]
            for tool, arguments, code in cases:
                result = await client.call_tool(tool, arguments)
                assert result.is_error
                error = result.structured_content["error"]
                assert error["code"] == code, (tool, arguments, error)
                assert "Traceback" not in str(result)
            findings = await call(client, "validate_program", source="steps: [{id: a, type: tol}]")
            assert findings["findings"][0]["line"] == 1
            failed = await call(
                client,
                "run_program",
                program=program(
                    "breaks",
                    {"id": "b", "type": "tool", "tool": "broken", "args": {"secret": "$secret"}},
                    inputs={"secret": "string"},
                ),
                inputs={"secret": "s3cr3t"},
            )
            assert failed["status"] == "FAILED"
            debugged = await call(client, "debug_trace", trace_id=failed["trace_id"])
            assert debugged["failed_steps"][0]["step"] == "b"
            assert (await call(client, "get_trace", trace_id=5))["error"]["code"] == "GATEWAY_ARGUMENT"
            with pytest.raises(MCPError) as refused:
                await client.call_tool("no_such_tool", {})
            assert refused.value.code == -32602

    run(session())


def test_a_run_is_approved_by_whoever_holds_the_role(served: Served) -> None:
    async def session() -> None:
        async with connected(served) as client:
            ran = await call(client, "run_program", program=APPROVED, inputs={"amount": 7})
            assert ran["status"] == "SUSPENDED"
            wait = ran["waiting"][0]
            assert wait["approvers"] == ["supervisor"]
            answer = wait["answer_with"]
            ended = await call(client, answer["tool"], **answer["arguments"])
            assert (ended["status"], ended["output"]) == ("SUCCESS", {"paid": 7})
            again = await call(client, answer["tool"], **answer["arguments"])
            assert again["status"] == "SUCCESS"
            other = await call(client, "resume_run", trace_id=ran["trace_id"], approve=False)
            assert other["error"]["code"] == "TERMINAL"
        assert served.effects("pay") == 1

    run(session())


def test_a_run_can_be_taken_step_by_step_and_cancelled(served: Served) -> None:
    async def session() -> None:
        async with connected(served) as client:
            started = await call(client, "run_program", program=LOOP, inputs={"n": 1}, paused=True)
            run_id = started["trace_id"]
            assert started["status"] == "RUNNING"
            steps = (await call(client, "get_trace", trace_id=run_id))["steps"]
            assert [step["attempts"] for step in steps] == [0]
            stepped = await call(client, "step_run", trace_id=run_id, steps=3)
            assert stepped["status"] == "RUNNING"
            trace = await call(client, "get_trace", trace_id=run_id)
            taken = [step["id"] for step in trace["steps"] if step["attempts"]]
            assert taken.count("again") == 3
            cancelled = await call(client, "cancel_run", trace_id=run_id, reason="enough")
            assert cancelled["status"] == "CANCELLED"

            started = await call(client, "run_program", program=ADDER, inputs={"a": 1}, paused=True)
            ended = await call(client, "step_run", trace_id=started["trace_id"], finish=True)
            assert (ended["status"], ended["output"]) == ("SUCCESS", 2)

    run(session())


def test_a_run_is_held_for_who_takes_it_step_by_step_and_no_longer(served: Served) -> None:
    def held() -> set[str]:
        state = GatewayState(str(served.store) + SUFFIX)
        try:
            return state.held()
        finally:
            state.close()

    async def session() -> None:
        before = held()
        async with connected(served) as client:
            wrong = await call(client, "run_program", program=ADDER, inputs={"a": "x"}, paused=True)
            assert wrong["error"]["code"] == "INPUT_INVALID"
            assert held() == before

            started = await call(client, "run_program", program=APPROVED, inputs={"amount": 1}, paused=True)
            run_id = started["trace_id"]
            assert held() == before | {run_id}
            assert (await call(client, "step_run", trace_id=run_id))["status"] == "SUSPENDED"
            again = await call(client, "resume_run", trace_id=run_id, event={"v": 1})
            assert again["error"]["code"] == "NOT_APPROVAL"
            assert held() == before | {run_id}
            await call(client, "cancel_run", trace_id=run_id)
            assert held() == before

            started = await call(client, "run_program", program=ADDER, inputs={"a": 1}, paused=True)
            run_id = started["trace_id"]
            early = await call(client, "resume_run", trace_id=run_id, event={"v": 1}, name="go")
            assert early["error"]["code"] == "NOT_WAITING"
            assert (await call(client, "get_trace", trace_id=run_id))["status"] == "RUNNING"
            assert held() == before | {run_id}
            ended = await call(client, "step_run", trace_id=run_id, steps=5)
            assert ended["status"] == "SUCCESS"
            assert held() == before
            late = await call(client, "cancel_run", trace_id=run_id)
            assert late["error"]["code"] == "TERMINAL"
            assert held() == before

            key = {"idempotency_key": "held", "inputs": {"a": 5}, "program": ADDER}
            started = await call(client, "run_program", **key, paused=True)
            assert (await call(client, "run_program", **key))["trace_id"] == started["trace_id"]
            while started["trace_id"] in held():  # until the gateway looks for runs again
                await asyncio.sleep(0.05)

            started = await call(client, "run_program", program=LOOP, inputs={"n": 1}, paused=True)
            assert held() == before | {started["trace_id"]}
            await call(client, "cancel_run", trace_id=started["trace_id"])
            assert held() == before

    run(session())


@pytest.mark.parametrize("era", ERAS[:1])
def test_nothing_that_takes_long_holds_up_the_others(served: Served, era: str) -> None:
    async def session() -> None:
        async with connected(served, era) as client:
            name = f"held-{era}"
            held = await call(client, "run_program", program=SLOW, inputs={"name": name}, wait_seconds=0)
            loop = await call(client, "run_program", program=LOOP, inputs={"n": 1}, wait_seconds=0)
            assert held["status"] == "RUNNING"
            assert (await call(client, "run_program", program=ADDER, inputs={"a": 1}))["output"] == 2
            assert served.http("/health")[0] == 200
            assert (await call(client, "get_trace", trace_id=held["trace_id"]))["status"] == "RUNNING"
            served.go(name)
            assert (await until(client, held["trace_id"], "SUCCESS"))["output"] == name
            assert (await until(client, loop["trace_id"], "BUDGET_EXCEEDED"))["steps_total"] > 0

    run(session())


def test_saved_names_and_inline_runs_do_not_mix(served: Served) -> None:
    """A run of an unsaved program leaves what the name means as it is."""

    async def session() -> None:
        async with connected(served, LEGACY) as client:
            await call(client, "save_program", program={**ADDER, "name": "mine"})
            other = {**ADDER, "name": "mine", "description": "another"}
            await call(client, "run_program", program=other, inputs={"a": 1})
            kept = await call(client, "get_program", program="mine")
            assert "description" not in kept["program"]
            await call(client, "get_program", program="no such")
        metrics = served.http("/metrics")[2]
        for outcome in ("ok", "error"):
            assert f'nano_vm_tool_calls_total{{tool="get_program",outcome="{outcome}"}}' in metrics
        for line in metrics.splitlines():
            assert line.startswith("# ") or float(line.rpartition(" ")[2]) >= 0
        assert served.cli("verify")["ok"] is True

    run(session())


def test_of_programs_whose_names_make_one_tool_the_one_that_is_shown_is_run(served: Served) -> None:
    def giving(name: str, value: int) -> dict[str, Any]:
        step = {"id": "sum", "type": "tool", "tool": "add", "args": {"a": 0, "b": value}}
        return program(name, step, description=name)

    async def session() -> None:
        async with connected(served) as client:
            for name, value, own in (("pay out", 1, True), ("pay-out", 2, False)):
                saved = await call(client, "save_program", program=giving(name, value))
                assert saved["tool"] == ("program_pay_out" if own else None)
            for value in (1, 3):
                if value == 3:  # what is named like the tool is the tool
                    saved = await call(client, "save_program", program=giving("pay_out", value))
                    assert saved["tool"] == "program_pay_out"
                (tool,) = [
                    each for each in (await client.list_tools()).tools if each.name == "program_pay_out"
                ]
                ran = await call(client, "program_pay_out")
                assert (ran["program"]["name"], ran["output"]) == (tool.title, value)
                listed = (await call(client, "list_programs"))["programs"]
                assert [each["name"] for each in listed if each["tool"] == tool.name] == [tool.title]
            await call(client, "delete_program", name="pay_out")
            assert (await call(client, "program_pay_out"))["output"] == 1

    run(session())


def test_two_and_two_point_nought_are_the_same_integer(served: Served) -> None:
    async def session() -> None:
        async with connected(served) as client:
            held = await call(client, "run_program", program=LOOP, inputs={"n": 1}, paused=True)
            run_id = held["trace_id"]
            stepped = await call(client, "step_run", trace_id=run_id, steps=2.0)
            assert stepped["trace_id"] == run_id
            trace = await call(client, "get_trace", trace_id=run_id, offset=1.0, limit=1.0)
            assert (len(trace["steps"]), trace["next_offset"]) == (1, 2)
            assert len((await call(client, "list_runs", limit=1.0))["runs"]) == 1
            refused = await call(client, "list_runs", limit=1.5)
            assert refused["error"]["code"] == "GATEWAY_ARGUMENT"

    run(session())
