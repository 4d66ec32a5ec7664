"""Resource-server mode: only tokens that the issuer signed for this gateway open it."""

from __future__ import annotations

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from gateway_stage import ADDER, Served, call, connected, run

from nano_vm.errors import InputError
from nano_vm.gateway.config import OAuth
from nano_vm.gateway.oauth import check_oauth

RESOURCE = "https://gateway.example.com/mcp"


class Issuer:
    """An authorization server's metadata and keys, on loopback."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.endswith("oauth-authorization-server"):
                    body: dict[str, Any] = {"issuer": issuer.url, "jwks_uri": f"{issuer.url}/jwks"}
                else:
                    body = {"keys": [issuer.jwk()]}
                payload = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def jwk(self) -> dict[str, Any]:
        numbers = self.key.public_key().public_numbers()

        def text(number: int) -> str:
            return base64.urlsafe_b64encode(number.to_bytes(32, "big")).rstrip(b"=").decode()

        return {
            "kty": "EC",
            "crv": "P-256",
            "kid": "k1",
            "alg": "ES256",
            "x": text(numbers.x),
            "y": text(numbers.y),
        }

    def token(self, key: Any = None, algorithm: str = "ES256", kid: str = "k1", **changes: Any) -> str:
        now = int(time.time())
        claims = {
            "iss": self.url,
            "aud": RESOURCE,
            "sub": "ana",
            "iat": now,
            "exp": now + 600,
            "scope": "runs",
            "roles": ["operator"],
            "tenant": "acme",
            **changes,
        }
        claims = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(
            claims, self.key if key is None else key or None, algorithm=algorithm, headers={"kid": kid}
        )

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def issuer():
    server = Issuer()
    yield server
    server.close()


def test_only_a_token_for_this_gateway_opens_it(tmp_path: Path, issuer: Issuer) -> None:
    config = {"auth": {"oauth": {"issuer": issuer.url, "resource": RESOURCE, "scopes": ["runs"]}}}
    (tmp_path / "gateway.json").write_text(json.dumps(config))
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}).encode()
    accept = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    past = int(time.time()) - 3_600
    bad = {
        "none": "",
        "foreign key": issuer.token(ec.generate_private_key(ec.SECP256R1())),
        "unsigned": issuer.token("", "none"),
        "symmetric": issuer.token("k" * 32, "HS256"),
        "unknown key": issuer.token(kid="k2"),
        "audience": issuer.token(aud="https://other.example.com/mcp"),
        "no audience": issuer.token(aud=None),
        "issuer": issuer.token(iss="https://evil.example.com"),
        "expired": issuer.token(exp=past),
        "no expiry": issuer.token(exp=None),
        "not yet": issuer.token(nbf=int(time.time()) + 3_600),
        "nobody": issuer.token(sub=None),
        "nobody in particular": issuer.token(sub=""),
        "a name that would be cut": issuer.token(sub="a" * 201),
        "a tenant that is no text": issuer.token(tenant=7),
        "two tenants": issuer.token(tenant=["acme", "other"]),
        "no tenant's name": issuer.token(tenant="acme/other"),
        "ours": "nvm_" + "0" * 12 + "_" + "A" * 43,
    }
    with Served(tmp_path, "--config", str(tmp_path / "gateway.json")) as served:
        for what, token in bad.items():
            status, headers, _ = served.http("/mcp", body, {**accept, "Authorization": f"Bearer {token}"})
            assert status == 401, what
            assert "/.well-known/oauth-protected-resource/mcp" in headers["www-authenticate"]
        scopeless = issuer.token(scope="other")
        assert served.http("/mcp", body, {**accept, "Authorization": f"Bearer {scopeless}"})[0] == 403
        status, _, text = served.http("/.well-known/oauth-protected-resource/mcp")
        metadata = json.loads(text)
        assert (status, metadata["resource"]) == (200, RESOURCE)
        assert [server.rstrip("/") for server in metadata["authorization_servers"]] == [issuer.url]

        async def session() -> None:
            async with connected(served, token=issuer.token()) as client:
                ran = await call(client, "run_program", program=ADDER, inputs={"a": 1})
                assert ran["output"] == 2
            async with connected(served, token=issuer.token(tenant="other")) as client:
                unknown = await call(client, "get_trace", trace_id=ran["trace_id"])
                assert unknown["error"]["code"] == "RUN_NOT_FOUND"
            async with connected(served, token=issuer.token(roles=[])) as client:
                denied = await call(client, "list_runs")
                assert denied["error"]["code"] == "ROLE_REQUIRED"

        run(session())
    record = served.cli("trace", ran_id := served.cli("runs")["runs"][0]["trace_id"])
    assert record["trace_id"] == ran_id


@pytest.mark.parametrize(
    "changes",
    [
        {"issuer": "http://issuer.example.com"},
        {"resource": "gateway"},
        {"algorithms": ("HS256",)},
        {"algorithms": ("none",)},
        {"algorithms": ()},
        {"jwks_file": "/no/such/file"},
        {"jwks_url": "ftp://issuer.example.com/jwks"},
    ],
)
def test_a_mode_that_could_be_fooled_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError) as refused:
        check_oauth(OAuth(**{"issuer": "https://issuer.example.com", "resource": RESOURCE, **changes}))
    assert refused.value.code == "GATEWAY_CONFIG"
