"""Who may come in, what they may see, and what hostile requests come to."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from gateway_stage import ADDER, APPROVED, ERAS, MODERN, PAYER, Served, call, connected, run

from nano_vm import InputError
from nano_vm.cli.main import main
from nano_vm.gateway.config import load_config

JSON = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory):
    directory = tmp_path_factory.mktemp("guarded")
    config = directory / "gateway.yaml"
    config.write_text("auth: {tokens: true}\nlimits: {request_bytes: 100000}\n")
    with Served(directory, "--config", str(config)) as served:
        yield served


def test_without_a_valid_token_nothing_is_answered(guarded: Served) -> None:
    token = guarded.token("ana", "operator")
    revoked = guarded.token("eve", "operator")
    row = next(row for row in guarded.cli("token", "list")["tokens"] if row["principal"] == "eve")
    guarded.cli("token", "revoke", row["id"])
    expired = guarded.cli("token", "create", "--principal", "old", "--role", "operator", "--days", "1e-9")[
        "token"
    ]
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}).encode()
    forged = token[:-1] + ("A" if token[-1] != "A" else "B")
    for value in (
        None,
        "Bearer x",
        f"Bearer {forged}",
        f"Bearer {revoked}",
        f"Bearer {expired}",
        f"Basic {token}",
    ):
        headers = {**JSON, **({"Authorization": value} if value else {})}
        status, answer_headers, text = guarded.http("/mcp", body, headers)
        assert status == 401, value
        assert answer_headers["www-authenticate"].startswith("Bearer")
        assert "tools" not in json.loads(text)
    for path in ("/health", "/ready", "/metrics"):
        assert guarded.http(path)[0] == 200
    assert guarded.http("/ready")[2] == '{"ready":true,"problem":null}'


def test_tokens_are_kept_as_digests_in_a_file_of_their_own(guarded: Served) -> None:
    token = guarded.token("bo", "viewer")
    secret = token.split("_", 2)[2].encode()
    for path in guarded.directory.rglob("*"):
        if path.is_dir() or path == guarded.directory / "server.log":
            continue
        assert secret not in path.read_bytes()
        if ".gateway" in path.name:
            assert path.stat().st_mode & 0o077 == 0
    assert secret not in (guarded.directory / "server.log").read_bytes()


@pytest.mark.parametrize("era", ERAS)
def test_roles_open_what_they_open(guarded: Served, era: str) -> None:
    async def session() -> None:
        async with connected(guarded, era, guarded.token("op", "operator")) as operator:
            await call(operator, "save_program", program=APPROVED)
            ran = await call(operator, "run_program", program="approved", inputs={"amount": 1})
            denied = await call(operator, "resume_run", trace_id=ran["trace_id"], approve=True)
            assert denied["error"]["code"] == "NOT_APPROVER"
        async with connected(guarded, era, guarded.token("vi", "viewer")) as viewer:
            for tool, arguments in (
                ("run_program", {"program": "approved", "inputs": {"amount": 1}}),
                ("program_approved", {"amount": 1}),
                ("save_program", {"program": ADDER}),
                ("delete_program", {"name": "approved"}),
                ("resume_run", {"trace_id": ran["trace_id"], "approve": True}),
                ("cancel_run", {"trace_id": ran["trace_id"]}),
                ("step_run", {"trace_id": ran["trace_id"]}),
                ("verify_trace", {"trace_id": ran["trace_id"]}),
            ):
                assert (await call(viewer, tool, **arguments))["error"]["code"] == "ROLE_REQUIRED", tool
            assert (await call(viewer, "get_trace", trace_id=ran["trace_id"]))["status"] == "SUSPENDED"
        async with connected(guarded, era, guarded.token("no", "baker")) as nobody:
            assert (await call(nobody, "list_runs"))["error"]["code"] == "ROLE_REQUIRED"
        async with connected(guarded, era, guarded.token("su", "approver", "supervisor")) as approver:
            ended = await call(approver, "resume_run", trace_id=ran["trace_id"], approve=True)
            assert ended["status"] == "SUCCESS"
            refused = await call(approver, "cancel_run", trace_id=ran["trace_id"])
            assert refused["error"]["code"] == "ROLE_REQUIRED"

    run(session())


@pytest.mark.parametrize("era", ERAS[:1])
def test_a_tenant_never_sees_another(guarded: Served, era: str) -> None:
    mine = guarded.token("a", "admin", tenant=f"acme-{era}")
    theirs = guarded.token("b", "admin", tenant=f"other-{era}")

    async def session() -> None:
        async with connected(guarded, era, mine) as acme, connected(guarded, era, theirs) as other:
            named = {**ADDER, "name": "pricing"}
            saved = await call(acme, "save_program", program=named)
            ran = await call(acme, "run_program", program="pricing", inputs={"a": 1}, idempotency_key="k")
            run_id = ran["trace_id"]
            for tool, arguments in (
                ("get_trace", {"trace_id": run_id}),
                ("get_receipt", {"trace_id": run_id}),
                ("verify_trace", {"trace_id": run_id}),
                ("debug_trace", {"trace_id": run_id}),
                ("cancel_run", {"trace_id": run_id}),
                ("step_run", {"trace_id": run_id}),
                ("resume_run", {"trace_id": run_id, "event": 1}),
                ("list_runs", {"after": run_id}),
            ):
                unknown = await call(
                    other,
                    tool,
                    **{key: "no-such" if value == run_id else value for key, value in arguments.items()},
                )
                assert (await call(other, tool, **arguments)) == unknown
            for reference in ("pricing", saved["hash"]):
                assert (await call(other, "get_program", program=reference))["error"][
                    "code"
                ] == "PROGRAM_NOT_FOUND"
            assert (await call(other, "list_runs"))["runs"] == []
            assert (await call(other, "list_programs"))["programs"] == []
            assert (await other.list_resources()).resources == []
            assert "program_pricing" not in [tool.name for tool in (await other.list_tools()).tools]
            # The same name, and the same key, are each tenant's own.
            await call(other, "save_program", program={**PAYER, "name": "pricing"})
            assert (await call(acme, "get_program", program="pricing"))["hash"] == saved["hash"]
            caller = {
                "name": "caller",
                "inputs": {"type": "object", "properties": {}},
                "steps": [{"id": "c", "type": "call", "program": "pricing", "inputs": {"a": 4}}],
            }
            called = await call(acme, "run_program", program=caller)
            assert called["status"] == "SUCCESS"
            child = await call(acme, "get_trace", trace_id=called["trace_id"])
            assert child["steps"][0]["output"] is not None
            again = await call(other, "run_program", program=named, inputs={"a": 2}, idempotency_key="k")
            assert (again["status"], again["trace_id"] != run_id) == ("SUCCESS", True)

    run(session())


@pytest.mark.parametrize("nested", [False, True])
def test_a_tenant_calls_no_program_of_another(guarded: Served, nested: bool) -> None:
    """Not by its hash, either: it is told what it would be told of a hash that was never there."""
    name = f"{nested}".lower()
    mine = guarded.token("a", "admin", tenant=f"maker-{name}")
    theirs = guarded.token("b", "admin", tenant=f"taker-{name}")

    async def session() -> None:
        async with connected(guarded, MODERN, mine) as maker, connected(guarded, MODERN, theirs) as taker:
            recipe = {**ADDER, "name": f"recipe_{name}", "description": "known to its maker alone"}
            known = (await call(maker, "save_program", program=recipe))["hash"]
            told = []
            for called in (known, "sha256:" + "0" * 64):
                step = {"id": "c", "type": "call", "program": called, "inputs": {"a": 4}}
                if nested:
                    step = {"id": "m", "type": "map", "over": [1], "step": step}
                caller = {"name": "caller", "inputs": {"type": "object", "properties": {}}, "steps": [step]}
                told += [
                    [await call(taker, tool, program=caller) for tool in ("run_program", "save_program")]
                ]
                if called == known:
                    ran = await call(maker, "run_program", program=caller)
                    assert (ran["status"], ran["output"]) == ("SUCCESS", [5] if nested else 5)
            assert told[0] == told[1]
            assert {each["error"]["code"] for each in told[0]} == {"PROGRAM_NOT_FOUND"}
            assert (await call(taker, "list_runs"))["runs"] == []
            assert (await call(taker, "list_programs"))["programs"] == []

    run(session())


def test_a_session_belongs_to_whoever_opened_it(guarded: Served) -> None:
    one, other = guarded.token("s1", "viewer"), guarded.token("s2", "viewer")
    start = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        },
    }
    status, headers, _ = guarded.http(
        "/mcp", json.dumps(start).encode(), {**JSON, "Authorization": f"Bearer {one}"}
    )
    assert status == 200
    session = headers["mcp-session-id"]
    body = json.dumps({"jsonrpc": "2.0", "id": 2, "method": "tools/list"}).encode()
    head = {**JSON, "Mcp-Session-Id": session, "MCP-Protocol-Version": "2025-11-25"}
    assert guarded.http("/mcp", body, {**head, "Authorization": f"Bearer {other}"})[0] == 404
    # In a session every call has the rights of its own token, not those of the one that opened it.
    more = guarded.token("s1", "operator")
    call = {"name": "save_program", "arguments": {"program": ADDER}}
    body = json.dumps({"jsonrpc": "2.0", "id": 3, "method": "tools/call", "params": call}).encode()
    ready = json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}).encode()
    assert guarded.http("/mcp", ready, {**head, "Authorization": f"Bearer {one}"})[0] == 202
    for token, allowed in ((one, False), (more, True), (one, False)):
        status, _, text = guarded.http("/mcp", body, {**head, "Authorization": f"Bearer {token}"})
        assert (status, "ROLE_REQUIRED" in text) == (200, not allowed)


def test_foreign_hosts_origins_and_bodies_are_turned_away(tmp_path: Path) -> None:
    config = tmp_path / "gateway.yaml"
    config.write_text("limits: {request_bytes: 20000, requests_per_minute: 60}\n")
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}).encode()
    with Served(tmp_path, "--config", str(config)) as served:
        assert served.http("/mcp", body, {**JSON, "Host": "evil.example"})[0] == 421
        assert served.http("/mcp", body, {**JSON, "Origin": "https://evil.example"})[0] == 403
        assert served.http("/mcp", b"x" * 30_000, JSON)[0] == 413
        for hostile in (b"", b"{", b"[]", b"null", b'"x"', b'{"jsonrpc":"2.0"}', b"\xff\xfe", b"[" * 10_000):
            status, _, text = served.http("/mcp", hostile, JSON)
            assert 400 <= status < 500, hostile[:20]
            assert "Traceback" not in text
        statuses = [served.http("/mcp", body, JSON)[0] for _ in range(70)]
        assert 429 in statuses
        # A connection that sends half a request holds nobody up.
        host, port = re.search(r"//(.*):(\d+)/", served.url).groups()  # type: ignore[union-attr]
        with socket.create_connection((host, int(port))) as idle:
            idle.sendall(b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{")
            assert served.http("/health", headers={"X": "y"})[0] in (200, 429)
        log = (tmp_path / "server.log").read_text()
        assert "Traceback" not in log


@pytest.mark.parametrize(
    ("options", "config", "code"),
    [
        (["--host", "0.0.0.0"], None, "GATEWAY_EXPOSED"),
        ([], "prot: 1\n", "GATEWAY_CONFIG"),
        ([], "port: many\n", "GATEWAY_CONFIG"),
        ([], "limits: {runs: 0}\n", "GATEWAY_CONFIG"),
        ([], "limits: {rums: 1}\n", "GATEWAY_CONFIG"),
        ([], "mounts: {a: {}}\n", "GATEWAY_CONFIG"),
        ([], "path: /health\n", "GATEWAY_CONFIG"),
        ([], "[1]\n", "GATEWAY_CONFIG"),
        ([], "a: [\n", "GATEWAY_CONFIG"),
        ([], "", "GATEWAY_CONFIG"),
        (["--config", "nowhere.yaml"], None, "GATEWAY_CONFIG"),
        (["--host", "no.such.host.invalid"], "auth: {tokens: true}\n", "GATEWAY_ADDRESS"),
        (["--port", "70000"], None, "USAGE"),
    ],
)
def test_a_bad_configuration_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    config: str | None,
    code: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if config is not None:
        Path("gateway.yaml").write_text(config)
        options = [*options, "--config", "gateway.yaml"]
    assert main(["mcp", "serve", "--json", *options]) != 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"]["code"] == code
    assert "Traceback" not in captured.err


def test_an_environment_variable_that_means_nothing_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NANO_VM_MCP_PROT", "1")
    assert main(["mcp", "serve", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["code"], "NANO_VM_MCP_PORT" in error["help"]) == ("GATEWAY_CONFIG", True)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AUTH", "token"),
        ("AUTH", "oauth"),
        ("AUTH", "true"),
        ("BEHIND_TLS", "maybe"),
        ("PORT", "9" * 5_000),
        ("PORT", "\u0661\u0662"),
        ("PORT", "1_000"),
    ],
)
def test_a_variable_with_a_value_that_means_nothing_is_an_error(variable: str, value: str) -> None:
    """Above all nobody is left without the authentication that was asked for."""
    with pytest.raises(InputError) as refused:
        load_config(None, {f"NANO_VM_MCP_{variable}": value})
    assert refused.value.code == "GATEWAY_CONFIG"


def test_tokens_are_asked_for_besides_what_the_file_says(tmp_path: Path) -> None:
    config = tmp_path / "gateway.yaml"
    config.write_text("auth: {tokens: false}\nbehind_tls: true\n")
    loaded = load_config(str(config), {"NANO_VM_MCP_AUTH": "tokens", "NANO_VM_MCP_BEHIND_TLS": "off"})
    assert (loaded.auth.tokens, loaded.behind_tls) == (True, False)
    config.write_text("auth: [tokens]\n")
    with pytest.raises(InputError) as refused:
        load_config(str(config), {"NANO_VM_MCP_AUTH": "tokens"})
    assert refused.value.code == "GATEWAY_CONFIG"


def test_the_missing_extra_is_named(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'mcp': raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "from nano_vm.cli.main import main\n"
        "sys.exit(main(['mcp', 'serve', '--json']))\n"
    )
    served = Served(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=served.env, cwd=tmp_path, timeout=60
    )
    error = json.loads(done.stdout)["error"]
    assert (error["code"], error["facts"]) == ("EXTRA_MISSING", {"extra": "mcp"})
    assert "nano-vm[mcp]" in error["help"]
    assert not os.listdir(tmp_path) or "nano-vm.db" not in os.listdir(tmp_path)


@pytest.mark.parametrize(
    "bad",
    [
        ["--principal", "a b"],
        ["--days", "0"],
        ["--tenant", "a/b"],
        ["--tenant", "a::b"],
        ["--principal", ""],
        ["--role", "a b"],
    ],
)
def test_tokens_that_make_no_sense_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], bad: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["token", "create", "--principal", "ana", "--role", "viewer", *bad, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] in ("GATEWAY_TOKEN", "USAGE")


def test_an_unknown_token_cannot_be_revoked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["token", "revoke", "abc", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "TOKEN_NOT_FOUND"
