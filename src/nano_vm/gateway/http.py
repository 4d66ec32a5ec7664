"""The gateway over streamable HTTP: who may come in, how much at once, and what operators look at.

Order of the checks on the way in: size and form of the head (the server), Host and Origin, limits by address, token,
limits by principal, body size, protocol. `/health`, `/ready` and `/metrics` say nothing about runs' contents.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import anyio
from mcp.server.auth.middleware.auth_context import AuthContextMiddleware, get_access_token
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser, BearerAuthBackend, RequireAuthMiddleware
from mcp.server.auth.provider import AccessToken
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp, StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from nano_vm.errors import NanoVMError
from nano_vm.gateway import metrics as counting
from nano_vm.gateway import tokens
from nano_vm.gateway.attendant import Attendant
from nano_vm.gateway.config import GatewayConfig, is_loopback
from nano_vm.gateway.limits import Gate
from nano_vm.gateway.metrics import Metrics
from nano_vm.gateway.principals import Principal
from nano_vm.gateway.service import Gateway

SESSION_IDLE_SECONDS = 1_800.0
BODY_SECONDS = 30.0  # for a request's body to arrive
Scope = dict[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]


class TokenVerifier:
    """Bearer tokens: our own, and those of an authorization server."""

    def __init__(self, gateway: Gateway | None, foreign: Any = None) -> None:
        self._gateway = gateway
        self._foreign = foreign

    async def verify_token(self, token: str) -> AccessToken | None:
        if not token.startswith("nvm_"):
            verified: AccessToken | None = await self._foreign.verify_token(token) if self._foreign else None
            return verified
        found = None if self._gateway is None else tokens.verify(self._gateway.state, token)
        if found is None:
            return None
        who, expires_at_ms = found
        return access_token(who, expires_at_ms // 1_000, "nano-vm")


def access_token(
    who: Principal, expires_at: int | None, issuer: str, resource: str | None = None
) -> AccessToken:
    """A principal as the SDK carries one. It holds no secret: what it is made from is not kept."""
    return AccessToken(
        token="",
        client_id=f"{who.tenant}/{who.id}",
        scopes=[],
        expires_at=expires_at,
        subject=who.id,
        resource=resource,
        claims={"iss": issuer, "nano_vm": who.to_dict()},
    )


def identify_bearer(ctx: Any) -> Principal:
    """Who sends a request over HTTP with authentication. No token, no principal that may do anything."""
    token = get_access_token()
    facts = (token.claims or {}).get("nano_vm") if token is not None else None
    if not isinstance(facts, dict):
        return Principal("anonymous")
    return Principal(facts["id"], tuple(facts["roles"]), facts["tenant"])


class LimitMiddleware:
    """Refuses what is over a limit with 429, before anything is read."""

    def __init__(self, app: App, gate: Gate, metrics: Metrics, behind_tls: bool) -> None:
        self._app = app
        self._gate = gate
        self._metrics = metrics
        self._behind = behind_tls

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self._metrics.answered(message["status"])
            await send(message)

        caller = self._caller(scope)
        wait = self._gate.enter(caller)
        if wait is not None:
            body = {"error": {"code": "GATEWAY_BUSY", "message": "too many requests", "retryable": True}}
            response = JSONResponse(body, 429, {"Retry-After": str(max(1, round(wait)))})
            await response(scope, receive, counted)
            return
        # The stream a client keeps open to listen is no request in progress.
        if scope["method"] == "GET":
            self._gate.leave(caller)
            await self._app(scope, receive, counted)
            return
        try:
            await self._app(scope, _in_time(receive), counted)
        finally:
            self._gate.leave(caller)

    def _caller(self, scope: Scope) -> str:
        user = scope.get("user")
        if isinstance(user, AuthenticatedUser):
            return f"principal:{user.access_token.client_id}"
        client = scope.get("client")
        return f"address:{client[0] if client else '?'}"


def _in_time(receive: Any) -> Any:
    """A body that has not come after `BODY_SECONDS` never will: who sends one byte at a time keeps no place."""
    until = asyncio.get_running_loop().time() + BODY_SECONDS
    whole = False

    async def take() -> Any:
        nonlocal whole
        if whole:
            return await receive()
        try:
            async with asyncio.timeout_at(until):
                message = await receive()
        except TimeoutError:
            return {"type": "http.disconnect"}
        whole = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    return take


class HttpGateway:
    """The ASGI application with everything around the protocol."""

    def __init__(
        self,
        gateway: Gateway,
        server: Server[Any],
        attendant: Attendant,
        verifier: Any = None,
        oauth_routes: list[Route] | None = None,
        metadata_url: Any = None,
        event_store: Any = None,
    ) -> None:
        config = gateway.config
        self.gateway = gateway
        self.metrics = gateway.metrics
        self.attendant = attendant
        self.gate = Gate(config.limits)
        self.draining = False
        self.manager = StreamableHTTPSessionManager(
            server,
            event_store=event_store,
            security_settings=security_of(config),
            max_request_body_size=config.limits.request_bytes,
            max_sessions=config.limits.sessions,
            session_idle_timeout=SESSION_IDLE_SECONDS,
            retry_interval=500 if event_store is not None else None,
        )
        endpoint: Any = StreamableHTTPASGIApp(self.manager)
        middleware: list[Any] = []
        if verifier is not None:
            scopes = list(config.auth.oauth.scopes) if config.auth.oauth is not None else []
            endpoint = RequireAuthMiddleware(endpoint, scopes, metadata_url)
            middleware = [
                Middleware(AuthenticationMiddleware, backend=BearerAuthBackend(verifier)),
                Middleware(AuthContextMiddleware),
            ]
        middleware.append(
            Middleware(LimitMiddleware, gate=self.gate, metrics=self.metrics, behind_tls=config.behind_tls)
        )
        routes = [
            Route(config.path, endpoint=endpoint),
            Route("/health", self._health),
            Route("/ready", self._ready),
            *(oauth_routes or ()),
        ]
        if config.metrics:
            routes.append(Route("/metrics", self._metrics))
        self.app = Starlette(routes=routes, middleware=middleware, lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Any) -> AsyncIterator[None]:
        async with self.manager.run():
            looking = asyncio.get_running_loop().create_task(self.attendant.run())
            try:
                yield
            finally:
                looking.cancel()

    async def _health(self, request: Request) -> Response:
        """Whether the process answers."""
        return JSONResponse({"status": "ok"})

    async def _ready(self, request: Request) -> Response:
        """Whether it may be sent requests: the database answers, and it is not about to stop."""
        problem = "draining" if self.draining else None
        if problem is None:
            try:
                await anyio.to_thread.run_sync(self.gateway.store.programs)
                self.gateway.state.read("SELECT 1")
            except NanoVMError as error:
                problem = error.code
        if problem is None and self.attendant.failing:
            problem = "the attendant cannot look for runs"
        return JSONResponse({"ready": problem is None, "problem": problem}, 200 if problem is None else 503)

    async def _metrics(self, request: Request) -> Response:
        text = self.metrics.text(self.gateway, self.gate, self.attendant)
        return PlainTextResponse(text, media_type=counting.CONTENT_TYPE)


def security_of(config: GatewayConfig) -> TransportSecuritySettings:
    """Host and Origin: on loopback its own names, elsewhere what the operator has listed. An empty list of origins lets
    no browser in."""
    hosts, origins = list(config.allowed_hosts), list(config.allowed_origins)
    if is_loopback(config.host):
        hosts += ["127.0.0.1:*", "localhost:*", "[::1]:*"]
        origins += ["http://127.0.0.1:*", "http://localhost:*", "http://[::1]:*"]
    elif not hosts:
        hosts = [config.host, f"{config.host}:*"]
    return TransportSecuritySettings(allowed_hosts=hosts, allowed_origins=origins)


__all__ = ["HttpGateway", "TokenVerifier", "access_token", "identify_bearer"]
