"""Approvals by form where the client has forms, tasks where it knows tasks; `resume_run` where it has neither."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import mcp_types as types
import pytest
from gateway_stage import (
    ADDER,
    APPROVED,
    ERAS,
    LEGACY,
    MODERN,
    PAYER,
    SLOW,
    Served,
    call,
    connected,
    program,
    run,
)
from mcp.shared.exceptions import MCPError

from nano_vm import ExecutionVM
from nano_vm.gateway.asking import ANYTHING, APPROVALS, arguments, questions
from nano_vm.gateway.principals import Principal
from nano_vm.gateway.views import run_view

TASKS = "io.modelcontextprotocol/tasks"
WAITS = program(
    "waits",
    {
        "id": "both",
        "type": "parallel",
        "parallel_steps": [
            {"id": "one", "type": "wait", "event": "one"},
            {"id": "two", "type": "wait", "event": "two"},
        ],
    },
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory):
    directory = tmp_path_factory.mktemp("asking")
    config = directory / "gateway.yaml"
    config.write_text("auth: {tokens: true}\n")
    with Served(directory, "--config", str(config)) as server:
        yield server


def forms(*answers: types.ElicitResult | Exception) -> tuple[list[str], Any]:
    """A client's user who gives these answers, one after another."""
    seen: list[str] = []
    left = list(answers)

    async def ask(context: Any, params: types.ElicitRequestParams) -> types.ElicitResult:
        seen.append(params.message)
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return seen, ask


def yes(**content: Any) -> types.ElicitResult:
    return types.ElicitResult(action="accept", content=content)


@pytest.mark.parametrize("era", ERAS)
def test_whoever_may_approve_is_asked_by_a_form(served: Served, era: str) -> None:
    before = served.effects("pay")
    token = served.token("su", "operator", "supervisor")

    async def session() -> None:
        seen, ask = forms(
            yes(approved=True, comment="fine"), yes(approved=False), types.ElicitResult(action="decline")
        )
        async with connected(served, era, token, elicitation_callback=ask) as client:
            approved = await call(client, "run_program", program=APPROVED, inputs={"amount": 1})
            assert (approved["status"], approved["output"]) == ("SUCCESS", {"paid": 1})
            assert "supervisor" in seen[0]
            trace = await call(client, "get_trace", trace_id=approved["trace_id"])
            assert trace["steps"][0]["output"] == {
                "approved": True,
                "by": "su",
                "comment": "fine",
            }
            denied = await call(client, "run_program", program=APPROVED, inputs={"amount": 2})
            assert (denied["status"], denied["outcome"]) == ("SUCCESS", "denied")
            # Who closes the form has decided nothing: the run waits on.
            waits = await call(client, "run_program", program=APPROVED, inputs={"amount": 3})
            assert waits["status"] == "SUSPENDED"
            assert len(seen) == 3

    run(session())
    assert served.effects("pay") == before + 1


@pytest.mark.parametrize("era", ERAS[:1])
def test_whoever_may_not_approve_is_not_asked(served: Served, era: str) -> None:
    async def session() -> None:
        seen, ask = forms()
        async with connected(served, era, served.token("op", "operator"), elicitation_callback=ask) as client:
            waits = await call(client, "run_program", program=APPROVED, inputs={"amount": 1})
            assert (waits["status"], seen) == ("SUSPENDED", [])

    run(session())


def test_what_a_client_hands_back_is_bound(served: Served) -> None:
    """The state of a question cannot be forged, moved to another call or principal, or used for a second decision."""
    mine, theirs = (
        served.token("su1", "operator", "supervisor"),
        served.token("su2", "operator", "supervisor"),
    )
    before = served.effects("pay")

    async def session() -> None:
        async def unused(context: Any, params: Any) -> types.ElicitResult:
            raise AssertionError

        async with (
            connected(served, MODERN, mine, elicitation_callback=unused) as client,
            connected(served, MODERN, theirs, elicitation_callback=unused) as other,
        ):
            arguments = {"program": APPROVED, "inputs": {"amount": 9}}
            asked = await client.session.call_tool("run_program", arguments, allow_input_required=True)
            assert isinstance(asked, types.InputRequiredResult)
            (key,) = asked.input_requests
            state = asked.request_state
            accept = {key: yes(approved=True)}

            async def again(who: Any, arguments: dict[str, Any], state: str, answers: Any = accept) -> Any:
                return await who.session.call_tool(
                    "run_program",
                    arguments,
                    input_responses=answers,
                    request_state=state,
                    allow_input_required=True,
                )

            for who, given, token in (
                (client, arguments, state[:-4] + "AAAA"),
                (client, {**arguments, "inputs": {"amount": 10}}, state),
                (other, arguments, state),
            ):
                with pytest.raises(MCPError) as refused:
                    await again(who, given, token)
                assert refused.value.code == -32602
            # An answer to something else is no answer.
            still = await again(client, arguments, state, {"other": yes(approved=True)})
            assert isinstance(still, types.InputRequiredResult)
            ended = await again(client, arguments, state)
            assert ended.structured_content["status"] == "SUCCESS"
            repeated = await again(client, arguments, state, {key: yes(approved=False)})
            assert repeated.structured_content["trace_id"] == ended.structured_content["trace_id"]
            assert repeated.structured_content["status"] == "SUCCESS"

    run(session())
    assert served.effects("pay") == before + 1


class TaskClient:
    """The requests of the extension, by hand."""

    def __init__(self, served: Served, token: str, forms: bool = True, tasks: bool = True) -> None:
        self.served, self.token = served, token
        self.capabilities: dict[str, Any] = {"extensions": {TASKS: {}}} if tasks else {}
        if forms:
            self.capabilities["elicitation"] = {}

    def __call__(self, method: str, header: str | None = None, **params: Any) -> dict[str, Any]:
        meta = {
            "io.modelcontextprotocol/protocolVersion": MODERN,
            "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": self.capabilities,
        }
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
            "Authorization": f"Bearer {self.token}",
            "MCP-Protocol-Version": MODERN,
            "Mcp-Method": method,
            "Mcp-Name": header or params.get("taskId") or params.get("name") or "",
        }
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": meta}}
        status, answer_headers, text = self.served.http("/mcp", json.dumps(body).encode(), headers)
        if "event-stream" in answer_headers.get("content-type", ""):
            text = [line for line in text.splitlines() if line.startswith("data: ")][-1][6:]
        document = json.loads(text)
        self.status = status
        return document.get("result") or document["error"]

    def until(self, task: str, *statuses: str) -> dict[str, Any]:
        while True:
            found = self("tasks/get", taskId=task)
            if found["status"] in statuses:
                return found


def test_a_long_run_is_a_task_that_survives_the_gateway(tmp_path: Path) -> None:
    with Served(tmp_path, "--role", "admin", "--role", "supervisor") as served:
        client = TaskClient(served, "")
        done = client("tools/call", name="run_program", arguments={"program": ADDER, "inputs": {"a": 1}})
        assert done["structuredContent"]["output"] == 2

        task = client("tools/call", name="run_program", arguments={"program": SLOW, "inputs": {"name": "t"}})
        assert (task["resultType"], task["status"]) == ("task", "working")
        assert set(task) >= {"taskId", "createdAt", "lastUpdatedAt", "ttlMs", "pollIntervalMs"}
        assert client("tasks/get", taskId=task["taskId"])["status"] == "working"
        served.kill()
        served.start()
        served.go("t")
        ended = client.until(task["taskId"], "completed")
        assert ended["result"]["structuredContent"]["output"] == "t"

        asked = client(
            "tools/call", name="run_program", arguments={"program": APPROVED, "inputs": {"amount": 4}}
        )
        assert (asked["resultType"], asked["status"]) == ("task", "input_required")
        (key,) = client("tasks/get", taskId=asked["taskId"])["inputRequests"]
        answer = {key: {"action": "accept", "content": {"approved": True}}}
        assert (
            client("tasks/update", taskId=asked["taskId"], inputResponses=answer)["resultType"] == "complete"
        )
        paid = client.until(asked["taskId"], "completed")
        assert paid["result"]["structuredContent"]["output"] == {"paid": 4}
        client("tasks/update", taskId=asked["taskId"], inputResponses=answer)

        both = client("tools/call", name="run_program", arguments={"program": WAITS})
        keys = sorted(client("tasks/get", taskId=both["taskId"])["inputRequests"])
        assert len(keys) == 2
        for key in keys:
            said = {key: {"action": "accept", "content": {"data": "[1]"}}}
            client("tasks/update", taskId=both["taskId"], inputResponses=said)
            still = client("tasks/get", taskId=both["taskId"])
            assert key not in still.get("inputRequests", {})
        outputs = still["result"]["structuredContent"]["output"]
        assert outputs == {"one": [1], "two": [1]}

        stopped = client(
            "tools/call", name="run_program", arguments={"program": APPROVED, "inputs": {"amount": 5}}
        )
        assert client("tasks/cancel", taskId=stopped["taskId"]) == client(
            "tasks/cancel", taskId=stopped["taskId"]
        )
        assert client.until(stopped["taskId"], "cancelled")["taskId"] == stopped["taskId"]
    assert served.effects("pay") == 1


def test_a_task_belongs_to_whoever_got_it(served: Served) -> None:
    mine = TaskClient(served, served.token("t1", "operator"))
    task = mine("tools/call", name="run_program", arguments={"program": APPROVED, "inputs": {"amount": 4}})
    assert task["status"] == "working"  # it waits for somebody else
    run_id = task["taskId"].partition("~")[0]
    other = TaskClient(served, served.token("t2", "admin"))
    for client, task_id in (
        (other, task["taskId"]),
        (mine, run_id),
        (mine, run_id + "~x"),
        (mine, "no-such"),
        (mine, "~"),
    ):
        for method, more in (
            ("tasks/get", {}),
            ("tasks/update", {"inputResponses": {}}),
            ("tasks/cancel", {}),
        ):
            assert client(method, taskId=task_id, **more)["code"] == -32602, (method, task_id)
    assert mine("tasks/get", taskId=task["taskId"])["status"] == "working"


def test_what_may_be_done_with_a_task_follows_from_the_roles_of_now(served: Served) -> None:
    operator = TaskClient(served, served.token("t4", "operator"))
    asked = operator("tools/call", name="run_program", arguments={"program": WAITS})["taskId"]
    for roles, allowed in ((["viewer"], {"tasks/get"}), (["supervisor"], set())):
        client = TaskClient(served, served.token("t4", *roles))  # the same principal
        for method, more in (("tasks/get", {}), ("tasks/cancel", {})):
            told = client(method, taskId=asked, **more)
            refused = told.get("data", {}).get("code") == "ROLE_REQUIRED"
            assert refused is (method not in allowed), (roles, method, told)
        answer = {key: {"action": "accept", "content": {"data": "1"}} for key in ("one.1.1", "two.1.1")}
        client("tasks/update", taskId=asked, inputResponses=answer)
    assert operator("tasks/get", taskId=asked)["status"] == "input_required"
    assert len(operator("tasks/get", taskId=asked)["inputRequests"]) == 2


def test_clients_that_do_not_know_tasks_get_none(served: Served) -> None:
    plain = TaskClient(served, served.token("t3", "operator"), forms=False, tasks=False)
    waits = plain("tools/call", name="run_program", arguments={"program": APPROVED, "inputs": {"amount": 4}})
    assert waits["structuredContent"]["status"] == "SUSPENDED"
    assert plain("tasks/get", taskId="x")["code"] == -32021
    knows = TaskClient(served, plain.token)
    assert knows("tasks/get", header="another", taskId="x")["code"] == -32020
    assert knows.status == 400

    async def legacy() -> None:
        async with connected(served, LEGACY, plain.token) as client:
            with pytest.raises(MCPError) as refused:
                await client.session.send_request(
                    types.Request(method="tasks/get", params={"taskId": "x"}), types.EmptyResult
                )
            assert refused.value.code == -32601

    asyncio.run(legacy())
    assert PAYER


def test_a_program_that_is_called_again_asks_anew() -> None:
    """The answer to what it asked the first time is not taken for the answer to what it asks now."""
    ask = program("child", {"id": "w", "type": "wait", "approvers": ["boss"]})
    twice = program(
        "twice",
        {"id": "c", "type": "call", "program": "child", "output_key": "said"},
        {
            "id": "more",
            "type": "condition",
            "condition": "$d.output is null",
            "then": "d",
            "otherwise": "end",
        },
        {"id": "d", "type": "tool", "tool": "add", "args": {"a": 1, "b": 1}, "next_step": "c"},
        {"id": "end", "type": "tool", "tool": "add", "args": {"a": 2, "b": 2}, "is_terminal": True},
        max_steps=20,
    )
    vm = ExecutionVM(tools={"add": lambda a, b: a + b})
    vm.save_program(ask)
    boss = Principal("ana", ("approver", "boss"))

    async def main() -> None:
        trace = await vm.run(twice)
        keys = set()
        for _ in range(2):
            assert trace.status.value == "SUSPENDED"
            ((key, (wait, _)),) = questions(boss, run_view(trace), APPROVALS).items()
            keys.add(key)
            answer = arguments(boss, trace.trace_id, wait, yes(approved=True))
            assert answer is not None
            trace = await vm.approve(
                answer["trace_id"],
                answer["approve"],
                step=answer["step"],
                event_id=answer["event_id"],
                principal=boss.to_dict(),
            )
        assert (trace.status.value, len(keys)) == ("SUCCESS", 2)

    run(main())


HANDED_ON = program(
    "handed_on",
    {"id": "ask", "type": "wait", "approvers": ["supervisor"]},
    {"id": "news", "type": "wait", "event": "news"},
)


@pytest.mark.parametrize("roles", [("approver", "supervisor"), ("operator", "supervisor")])
def test_whoever_may_only_approve_is_asked_for_approvals_only(served: Served, roles: tuple[str, ...]) -> None:
    """A form for an event would be refused from them when they have filled it in."""
    operator = TaskClient(served, served.token("starter", "operator"))
    task = operator("tools/call", name="run_program", arguments={"program": HANDED_ON})
    run_id = task["taskId"].partition("~")[0]
    someone = TaskClient(served, served.token("someone", *roles))
    given = someone("tools/call", name="resume_run", arguments={"trace_id": run_id, "approve": True})
    asks = "input_required" if "operator" in roles else "working"
    assert (given["resultType"], given["status"]) == ("task", asks)
    told = someone("tasks/get", taskId=given["taskId"])
    assert (told["status"], list(told.get("inputRequests", {}))) == (
        asks,
        ["news.1.1"] if asks == "input_required" else [],
    )
    answer = {"news.1.1": {"action": "accept", "content": {"data": "1"}}}
    someone("tasks/update", taskId=given["taskId"], inputResponses=answer)
    trace = served.cli("trace", run_id)
    assert trace["status"] == ("SUCCESS" if asks == "input_required" else "SUSPENDED")


ACTION: dict[str, Any] = {"nonce": "n", "action": "sha256:00", "tool": "pay", "groups": [["boss"], ["cfo"]]}


@pytest.mark.parametrize(
    ("kind", "roles", "more", "asked"),
    [
        ("event", ("approver",), {}, False),
        ("tool", ("approver", "boss"), {}, False),
        ("event", ("operator",), {}, True),
        ("tool", ("admin",), {}, True),
        ("event", ("viewer", "boss"), {}, False),
        ("outcome", ("approver",), {}, False),
        ("outcome", ("operator",), {}, True),
        ("approval", ("approver", "boss"), {"approvers": ["boss"]}, True),
        ("approval", ("admin",), {"approvers": ["boss"]}, False),
        ("approval", ("viewer", "boss"), {"approvers": ["boss"]}, False),
        ("approval", ("approver", "boss"), {**ACTION, "approvers": ["boss", "cfo"]}, False),
        ("approval", ("approver", "boss", "cfo"), {**ACTION, "approvers": ["boss", "cfo"]}, True),
        ("approval", ("approver", "boss", "cfo"), {**ACTION, "not_by": ["ana"]}, False),
        ("approval", ("approver", "boss", "cfo"), {**ACTION, "not_by": ["bob"]}, True),
        (
            "approval",
            ("approver", "boss", "cfo"),
            {**ACTION, "shown": {"args": {"note": "x" * 9_000}}},
            False,
        ),
    ],
)
def test_nobody_is_asked_for_what_would_be_refused_or_is_not_seen(
    kind: str, roles: tuple[str, ...], more: dict[str, Any], asked: bool
) -> None:
    wait = {"kind": kind, "step": "w", "occurrence": 1, "attempt": 1, **more}
    view = {"trace_id": "t", "program": {"name": "p"}, "waiting": [wait]}
    assert list(questions(Principal("ana", roles), view, ANYTHING)) == (
        ["w.1.1" + ".n" * ("nonce" in wait)] if asked else []
    )


def test_a_form_shows_what_is_there_and_nothing_that_hides_it() -> None:
    name = "p\u202e\x1b[2K"
    wait = {
        "kind": "approval",
        "step": "w",
        "approvers": ["boss"],
        "nonce": "n",
        "shown": {"args": "a\u202eb\u200bc"},
    }
    view = {"trace_id": "t", "program": {"name": name}, "waiting": [wait]}
    ((_, request),) = questions(Principal("ana", ("approver", "boss")), view, APPROVALS).values()
    assert all(each.isprintable() or each == "\n" for each in request.params.message)
