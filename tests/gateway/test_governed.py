"""A third-party MCP server behind a policy: what is denied never reaches it, what needs a person waits for one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from gateway_stage import ERAS, MODERN, Served, call, connected, program, run
from test_asking import forms, yes
from test_mounts import REMOTE, shop

POLICY = {
    "policy": "shop",
    "version": "1",
    "tools": ["shop_price"],
    "rules": [
        {
            "id": "order",
            "tools": ["shop_order"],
            "requires": ["shop_price"],
            "approval": {"roles": ["supervisor"]},
        },
        {
            "id": "gold",
            "tools": ["shop_order"],
            "when": "$args.thing == 'gold'",
            "approval": {"roles": ["supervisor"], "count": 2},
        },
        {"id": "none", "tools": ["shop_order"], "when": "$args.thing == 'gun'", "decision": "deny"},
    ],
}
ORDER = program(
    "order",
    shop("price", "price", thing="$thing"),
    shop("buy", "order", thing="$thing"),
    inputs={"thing": "string"},
)


@pytest.fixture(scope="module")
def governed(tmp_path_factory: pytest.TempPathFactory):
    directory = tmp_path_factory.mktemp("governed")
    (directory / "remote.py").write_text(REMOTE)
    (directory / "policy.json").write_text(json.dumps(POLICY))
    config = {
        "mounts": {
            "shop": {"command": sys.executable, "args": [str(directory / "remote.py"), str(directory)]}
        },
        "policy": str(directory / "policy.json"),
        "auth": {"tokens": True},
    }
    (directory / "gateway.json").write_text(json.dumps(config))
    with Served(directory, "--config", str(directory / "gateway.json")) as served:
        yield served


@pytest.mark.parametrize("era", ERAS[:1])
def test_an_order_goes_out_when_another_person_has_approved_that_very_order(
    governed: Served, era: str
) -> None:
    ana, eve = (
        governed.token("ana", "operator", "supervisor"),
        governed.token("eve", "approver", "supervisor"),
    )
    before = governed.effects("order")

    async def session() -> None:
        async with connected(governed, era, ana) as client:
            await call(client, "save_program", program=ORDER)
            waits = await call(client, "run_program", program="order", inputs={"thing": "tea"})
            assert waits["status"] == "SUSPENDED"
            (wait,) = waits["waiting"]
            assert (wait["tool"], wait["shown"]["args"]) == ("shop_order", {"thing": "tea"})
            answer = wait["answer_with"]["arguments"]
            assert answer["action"] == wait["action"]
            own = await call(client, "resume_run", **answer)
            assert own["error"]["code"] == "SELF_APPROVAL"
        async with connected(governed, era, eve) as client:
            other = await call(client, "resume_run", **{**answer, "action": "sha256:" + "0" * 64})
            assert other["error"]["code"] == "APPROVAL_VOID"
            assert governed.effects("order") == before
            ended = await call(client, "resume_run", **answer)
            assert (ended["status"], ended["output"]) == ("SUCCESS", {"ordered": "tea"})

    run(session())
    assert governed.effects("order") == before + 1


def test_what_the_policy_denies_never_reaches_the_server(governed: Served) -> None:
    before = governed.effects("order")
    token = governed.token("ana", "operator", "supervisor")

    async def session() -> None:
        async with connected(governed, MODERN, token) as client:
            for steps in (
                [shop("price", "price", thing="gun"), shop("buy", "order", thing="gun")],
                [shop("buy", "order", thing="tea")],
                [shop("say", "pending")],
            ):
                denied = await call(client, "run_program", program=program("denied", *steps))
                code = (denied["error"] or {}).get("code") or (denied["error"] or {}).get("type")
                assert denied.get("status") in (None, "FAILED"), denied
                assert code is not None

    run(session())
    assert governed.effects("order") == before


def test_whoever_validates_or_saves_a_program_is_told_what_the_policy_denies(governed: Served) -> None:
    unpriced = program("unpriced", shop("buy", "order", thing="tea"))

    async def session() -> None:
        async with connected(governed, MODERN, governed.token("ana", "operator")) as client:
            told = await call(client, "validate_program", program=unpriced)
            refused = [
                await call(client, "run_program", program=unpriced),
                await call(client, "save_program", program=unpriced),
            ]
            codes = [finding["code"] for finding in told["findings"]]
            assert (told["ok"], codes) == (False, [error["error"]["code"] for error in refused[:1]])
            assert refused[0]["error"]["code"] == refused[1]["error"]["code"]
            assert "unpriced" not in str(await call(client, "list_programs"))

    run(session())


def test_the_form_shows_the_action_that_is_approved(governed: Served) -> None:
    ana, eve = governed.token("ana", "operator"), governed.token("eve", "operator", "supervisor")

    async def session() -> None:
        async with connected(governed, MODERN, ana) as client:
            waits = await call(client, "run_program", program=ORDER, inputs={"thing": "coffee"})
        seen, ask = forms(yes(approved=True))
        async with connected(governed, MODERN, eve, elicitation_callback=ask) as client:
            # Whoever looks after the run is shown what exactly is asked.
            ended = await call(client, "step_run", trace_id=waits["trace_id"], finish=True)
            assert ended["status"] == "SUCCESS"
            assert "coffee" in seen[0]
            assert "shop_order" in seen[0]

    run(session())


@pytest.mark.parametrize("era", ERAS)
def test_whoever_started_it_is_not_asked_to_approve_it(governed: Served, era: str) -> None:
    before = governed.effects("order")

    async def session() -> None:
        seen, ask = forms(yes(approved=True))
        token = governed.token("eve", "operator", "supervisor")
        async with connected(governed, era, token, elicitation_callback=ask) as client:
            waits = await call(client, "run_program", program=ORDER, inputs={"thing": "mate"})
            assert (waits["status"], seen) == ("SUSPENDED", [])
            (wait,) = waits["waiting"]
            assert (wait["groups"], wait["not_by"]) == ([["supervisor"]], ["eve"])
            debugged = await call(client, "debug_trace", trace_id=waits["trace_id"])
            assert debugged["refused_events"] == []
        token = governed.token("bob", "operator", "supervisor")
        async with connected(governed, era, token, elicitation_callback=ask) as client:
            ended = await call(client, "step_run", trace_id=waits["trace_id"], finish=True)
            assert (ended["status"], len(seen)) == ("SUCCESS", 1)

    run(session())
    assert governed.effects("order") == before + 1


@pytest.mark.parametrize("era", ERAS)
def test_two_people_approve_by_form_where_two_are_asked_for(governed: Served, era: str) -> None:
    before = governed.effects("order")

    async def session() -> None:
        async with connected(governed, era, governed.token("ana", "operator")) as client:
            waits = await call(client, "run_program", program=ORDER, inputs={"thing": "gold"})
        for name, status in (("eve", "SUSPENDED"), ("bob", "SUCCESS")):
            seen, ask = forms(yes(approved=True))
            token = governed.token(name, "operator", "supervisor")
            async with connected(governed, era, token, elicitation_callback=ask) as client:
                stands = await call(client, "step_run", trace_id=waits["trace_id"], finish=True)
                assert (stands["status"], len(seen)) == (status, 1)
                assert [wait["not_by"] for wait in stands["waiting"]] == (
                    [["ana", "eve"]] if name == "eve" else []
                )

    run(session())
    assert governed.effects("order") == before + 1


def test_a_policy_that_cannot_be_read_is_named(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    from nano_vm.cli.main import main

    monkeypatch.chdir(tmp_path)
    Path("policy.yaml").write_text("policy: p\nrulez: []\n")
    assert main(["mcp", "serve", "--json", "--port", "0", "--policy", "policy.yaml"]) != 0
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "UNKNOWN_FIELD"
