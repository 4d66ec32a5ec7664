"""Tools of MCP servers as tools of programs: pinned by digest, untrusted by label, irreversible unless vouched for.

What a remote server says of itself is not believed: its definitions are pinned when they are first seen, and a tool
whose definition changes is quarantined until an operator accepts the new one; its output is untrusted; its hints about
effects count only where the operator says so. Needs the extra `mcp`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import Any, Protocol

import msgspec

from nano_vm import canonical
from nano_vm.errors import NanoVMError, RuntimeFault
from nano_vm.program.tool_schema import ToolSchema
from nano_vm.runtime.ports import ToolSpec
from nano_vm.runtime.tooling import EFFECTS, ToolError
from nano_vm.tools.registry import argument_checker

log = logging.getLogger("nano_vm.tools.mcp")
START_SECONDS = 30.0  # how long a server may take to be ready for the first time
REFRESH_SECONDS = 30.0  # a listing older than this is renewed before the next call
RETRY_SECONDS = 1.0
TOOLS_MAX = 1_000
OUTPUT_LABEL = "untrusted"


class MountSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One server: a command to start, or a URL; see `docs/guides/gateway.md` for the fields."""

    name: str
    command: str | None = None
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    env_from: tuple[str, ...] = ()
    cwd: str | None = None
    url: str | None = None
    token_env: str | None = None
    prefix: str = ""
    tools: tuple[str, ...] | None = None
    trust_annotations: bool = False
    effects: dict[str, str] = {}
    secrets: dict[str, tuple[str, ...]] = {}
    protected: dict[str, tuple[str, ...]] = {}
    timeout_seconds: float = 60.0


class Pins(Protocol):
    """Where accepted definitions are kept."""

    def pinned(self, server: str) -> dict[str, tuple[str, str]]:
        """Tool -> (digest, definition) as accepted."""

    def pin(self, server: str, tool: str, digest: str, definition: str) -> None:
        """Accept a definition that is seen for the first time; a no-op when the tool is pinned."""

    def offer(self, server: str, tool: str, digest: str | None, definition: str) -> None:
        """Keep a definition other than the pinned one for an operator to look at; None: the tool is as pinned."""


def definition_of(tool: Any) -> dict[str, Any]:
    """What is pinned of a tool: everything that a model or a program goes by."""
    plain = tool.model_dump(by_alias=True, mode="json", exclude_none=True)
    found = {
        name: plain[name]
        for name in ("name", "title", "description", "inputSchema", "outputSchema", "annotations")
        if name in plain
    }
    decoded: dict[str, Any] = canonical.decode(canonical.encode(found))
    return decoded


class MountedServer:
    """One server, its connection, and the tools it gives. The connection lives in a task of its own, which makes it
    anew when it breaks; calls are made from any task of the same loop."""

    def __init__(self, spec: MountSpec, pins: Pins) -> None:
        self.spec = spec
        self._pins = pins
        self._client: Any = None
        self._connected = asyncio.Event()
        self._broken = asyncio.Event()
        self._owner: asyncio.Task[None] | None = None
        self._listed_at = 0.0
        self._listing = asyncio.Lock()
        self._offered: dict[str, str] = {}  # tool -> digest of what the server says now
        self.problem: str | None = None

    # --- the connection ---------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect and learn the tools. A server that cannot be reached is mounted with its pinned tools, if it has any.

        Raises:
            RuntimeFault: MOUNT_FAILED, EXTRA_MISSING.
        """
        self._owner = asyncio.get_running_loop().create_task(self._own())
        waiting = asyncio.get_running_loop().create_task(self._connected.wait())
        await asyncio.wait((waiting, self._owner), timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if not self._connected.is_set() and not self._pins.pinned(self.spec.name):
            problem = self.problem or "it did not answer in time"
            await self.close()
            raise RuntimeFault(
                "MOUNT_FAILED",
                f"the MCP server `{self.spec.name}` cannot be mounted: {problem}",
                help=f"see `mounts.{self.spec.name}` of the configuration, and that the server runs by itself",
                facts={"mount": self.spec.name},
            )

    async def _own(self) -> None:
        while True:
            try:
                async with _client(self.spec) as client:
                    await self._learn(client)
                    self._client, self.problem = client, None
                    self._broken.clear()
                    self._connected.set()
                    await self._broken.wait()
            except asyncio.CancelledError:
                raise
            except NanoVMError as error:
                self.problem = f"{error.code} {error.message}"
            except BaseExceptionGroup as group:
                self.problem = _innermost(group)
            except Exception as error:
                self.problem = type(error).__name__
            finally:
                self._client = None
                self._connected.clear()
            log.warning("the connection to `%s` is gone: %s", self.spec.name, self.problem or "closed")
            await asyncio.sleep(RETRY_SECONDS)

    async def close(self) -> None:
        if self._owner is not None:
            self._owner.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await self._owner
            self._owner = None

    async def _learn(self, client: Any) -> None:
        """Read the definitions, pin what is new and offer what has changed."""
        found: dict[str, dict[str, Any]] = {}
        cursor = None
        while True:
            page = await asyncio.wait_for(client.list_tools(cursor=cursor), self.spec.timeout_seconds)
            for tool in page.tools:
                if self.spec.tools is None or tool.name in self.spec.tools:
                    found[tool.name] = definition_of(tool)
            cursor = page.next_cursor
            if cursor is None or len(found) > TOOLS_MAX:
                break
        pinned = self._pins.pinned(self.spec.name)
        self._offered = {}
        for name, definition in found.items():
            if not is_self_contained(definition):
                log.warning("the tool `%s` of `%s` has a schema that refers elsewhere", name, self.spec.name)
                continue
            digest = canonical.digest_value(definition)
            text = canonical.encode(definition).decode()
            self._offered[name] = digest
            if name not in pinned:
                self._pins.pin(self.spec.name, name, digest, text)
            else:
                self._pins.offer(self.spec.name, name, None if pinned[name][0] == digest else digest, text)
        self._listed_at = asyncio.get_running_loop().time()

    # --- tools ------------------------------------------------------------------------------------------------

    def specs(self) -> list[ToolSpec]:
        """The pinned tools, as the engine takes them."""
        return [
            self._spec(name, digest, msgspec.json.decode(definition))
            for name, (digest, definition) in sorted(self._pins.pinned(self.spec.name).items())
            if self.spec.tools is None or name in self.spec.tools
        ]

    def _spec(self, name: str, digest: str, definition: dict[str, Any]) -> ToolSpec:
        parameters = definition.get("inputSchema") or {"type": "object"}
        effect = effect_of(self.spec, name, definition.get("annotations") or {})
        called = f"{self.spec.prefix}{name}"

        async def call(**arguments: Any) -> Any:
            return await self._call(name, arguments)

        return ToolSpec(
            name=called,
            function=call,
            effect=effect,
            is_async=True,
            digest=canonical.digest_value([self.spec.name, digest]),
            schema=ToolSchema(
                name=called,
                parameters=parameters,
                effect=effect,
                output=definition.get("outputSchema"),
                protected=tuple(self.spec.protected.get(name, ())),
                output_label=OUTPUT_LABEL,
            ),
            secrets=frozenset(self.spec.secrets.get(name, ())),
            problems=argument_checker(parameters),
            may_suspend=False,
        )

    async def _call(self, name: str, arguments: dict[str, Any]) -> Any:
        """One call. What is known not to have happened is a failure; a lost connection is an unknown outcome."""
        client = self._client
        if client is None:
            try:
                await asyncio.wait_for(self._connected.wait(), min(self.spec.timeout_seconds, START_SECONDS))
            except TimeoutError:
                message = f"the MCP server `{self.spec.name}` cannot be reached"
                raise ToolError(message, code="MOUNT_UNREACHABLE") from None
            client = self._client
        await self._check_definition(client, name)
        try:
            result = await asyncio.wait_for(client.call_tool(name, arguments), self.spec.timeout_seconds)
        except TimeoutError:
            raise ToolError("no answer in time", code="TIMEOUT", unknown=True, retryable=True) from None
        except Exception as error:
            refused = _refusal(error)
            if refused is not None:
                raise ToolError(refused, code="MOUNT_REFUSED", retryable=False) from None
            self._broken.set()
            raise ToolError(
                f"the connection broke: {type(error).__name__}", code="CONNECTION", unknown=True
            ) from None
        return _output(result)

    async def _check_definition(self, client: Any, name: str) -> None:
        """Nothing is called whose definition is not the accepted one.

        Raises:
            ToolError: MOUNT_QUARANTINED, MOUNT_UNREACHABLE.
        """
        async with self._listing:
            if asyncio.get_running_loop().time() - self._listed_at > REFRESH_SECONDS:
                try:
                    await self._learn(client)
                except Exception as error:
                    self._broken.set()
                    message = f"its tools cannot be listed: {type(error).__name__}"
                    raise ToolError(message, code="MOUNT_UNREACHABLE") from None
        pinned = self._pins.pinned(self.spec.name).get(name)
        if pinned is None or self._offered.get(name) != pinned[0]:
            raise ToolError(
                f"the definition of `{name}` of `{self.spec.name}` is not the accepted one; `nano-vm mcp pins` shows "
                f"it, and `nano-vm mcp accept {self.spec.name} {name}` accepts it",
                code="MOUNT_QUARANTINED",
                retryable=False,
            )


def is_self_contained(value: Any) -> bool:
    """Whether the schemas refer to nothing outside: a remote server does not decide what we fetch."""
    todo = [value]
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            for key, inner in part.items():
                if key in ("$ref", "$dynamicRef") and not (isinstance(inner, str) and inner.startswith("#")):
                    return False
                todo.append(inner)
        elif isinstance(part, list):
            todo += part
    return True


def effect_of(spec: MountSpec, name: str, annotations: dict[str, Any]) -> str:
    """The effect class of a remote tool. Raises RuntimeFault MOUNT_FAILED for a class that does not exist."""
    vouched = spec.effects.get(name)
    if vouched is not None:
        if vouched not in ("pure", "idempotent", "irreversible"):
            raise RuntimeFault(
                "MOUNT_FAILED",
                f"`mounts.{spec.name}.effects.{name}` is `{vouched[:40]}`",
                help=f"one of: pure, idempotent, irreversible; others of {', '.join(EFFECTS)} need code on this side",
            )
        return vouched
    if spec.trust_annotations:
        if annotations.get("readOnlyHint") is True:
            return "pure"
        if annotations.get("idempotentHint") is True:
            return "idempotent"
    return "irreversible"


def _output(result: Any) -> Any:
    """What a call returned, as data: the structured content, else the text, else the blocks."""
    texts = [block.text for block in result.content if getattr(block, "type", "") == "text"]
    if result.is_error:
        raise ToolError("\n".join(texts)[:4_000], code="REMOTE_ERROR", retryable=False)
    if result.structured_content is not None:
        return result.structured_content
    if len(texts) == len(result.content):
        return texts[0] if len(texts) == 1 else texts
    return [block.model_dump(by_alias=True, mode="json", exclude_none=True) for block in result.content]


def _refusal(error: Exception) -> str | None:
    """The text of an answer of the protocol that says no; None when the answer never came."""
    from mcp.shared.exceptions import MCPError

    if isinstance(error, MCPError) and error.code not in _LOST:
        return f"{error.code}: {error.message[:1_000]}"
    return None


_LOST = frozenset({-32000, -32001})  # the SDK's codes for a closed connection and for no answer in time


def _innermost(group: BaseException) -> str:
    while isinstance(group, BaseExceptionGroup) and group.exceptions:
        group = group.exceptions[0]
    return type(group).__name__


@contextlib.asynccontextmanager
async def _client(spec: MountSpec) -> Any:
    """A connected client; entered and left by one task."""
    try:
        from mcp import StdioServerParameters
        from mcp.client.client import Client
    except ImportError as error:
        raise RuntimeFault(
            "EXTRA_MISSING", f"MCP servers need `{error.name}`", help="pip install 'nano-vm[mcp]'"
        ) from None
    if spec.url is None:
        environment = {**spec.env, **{name: os.environ[name] for name in spec.env_from if name in os.environ}}
        assert spec.command is not None
        parameters = StdioServerParameters(
            command=spec.command, args=list(spec.args), env=environment or None, cwd=spec.cwd
        )
        async with Client(parameters, cache=None) as client:
            yield client
        return
    import httpx2
    from mcp.client.streamable_http import streamable_http_client

    headers = {}
    if spec.token_env is not None:
        if not os.environ.get(spec.token_env):
            raise RuntimeFault(
                "MOUNT_FAILED",
                f"the variable `{spec.token_env}` of `mounts.{spec.name}.token_env` is not set",
                help="set it, or leave `token_env` out",
            )
        headers["Authorization"] = f"Bearer {os.environ[spec.token_env]}"
    async with httpx2.AsyncClient(headers=headers, timeout=spec.timeout_seconds) as web:
        transport = streamable_http_client(spec.url, http_client=web)
        async with Client(transport, cache=None) as client:
            yield client


__all__ = ["MountSpec", "MountedServer", "Pins", "definition_of", "effect_of"]
