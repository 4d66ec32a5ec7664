"""Any endpoint that speaks OpenAI's chat completions, over plain HTTP (extra `[http]`).

What comes back is held against what a completion must be (`openai_reply`); anything else is an error with a code that
says whether trying again can help. One `complete` is one request: whoever repeats it journals it. The key goes into one
request header and nowhere else.
"""

from __future__ import annotations

import asyncio
import re
import weakref
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from nano_vm.errors import InputError, RuntimeFault
from nano_vm.providers.faults import ModelError
from nano_vm.providers.openai_reply import (
    BODY_BYTES_MAX,
    Answer,
    ReplyFault,
    StreamReader,
    read_reply,
    status_fault,
)
from nano_vm.providers.prices import prices_from, usage_of
from nano_vm.runtime.arguments import check_mapping, check_path, check_seconds, check_switch, check_text
from nano_vm.runtime.ports import Completion, Message

if TYPE_CHECKING:
    import ssl

    import httpx

__all__ = ["BODY_BYTES_MAX", "ModelError", "OpenAICompatibleAdapter"]

KEEPALIVE_S = 2.0  # below what servers allow, so that they do not close a connection just as it is used again
CALLS_PER_CLIENT = 16
ECHO_CHARS_MIN = 8
_RESERVED = ("messages", "model", "stream", "stream_options", "n")
_KEY = re.compile(r"[!-~]+\Z")  # what a header can carry
_HEADER_NAME = re.compile(r"[A-Za-z0-9-]{1,64}\Z")
_HEADER_VALUE = re.compile(r"[ -~]{0,4096}\Z")


class OpenAICompatibleAdapter:
    """A `ModelClient` for an OpenAI-style endpoint.

    Args:
        base_url: up to and without `/chat/completions`, such as `https://api.openai.com/v1`.
        model: used where a step names none.
        api_key: sent as a bearer token; None sends none.
        timeout_seconds: for one attempt as a whole, not for each byte.
        idle_timeout_seconds: the longest silence in the middle of an attempt; None for none but the time-out. With
            `stream` it tells a model that thinks from one that hangs.
        stream: ask for the answer in pieces. A stream that ends early is an error, never a short answer.
        prices: model -> dollars per million tokens, as a mapping or a file (`prices_from`); without a price the cost is
            what the reply says, else unknown.
        headers: further headers, for endpoints that want them. They are secrets like the key.

    Raises:
        InputError: USAGE for an address, key or header that cannot be used; PRICES.
        RuntimeFault: EXTRA_MISSING when httpx is not installed.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        api_key: str | None = None,
        timeout_seconds: float = 60,
        *,
        idle_timeout_seconds: float | None = None,
        stream: bool = False,
        prices: Mapping[str, Any] | str | Path | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        _require_httpx()
        check_text("base_url", base_url, needed=True)
        check_text("model", model)
        check_text("api_key", api_key)
        check_seconds("timeout_seconds", timeout_seconds)
        check_seconds("idle_timeout_seconds", idle_timeout_seconds)
        check_switch("stream", stream)
        check_mapping("headers", headers, 'headers={"x-project": "shop"}')
        if prices is not None and not isinstance(prices, Mapping):
            check_path("prices", prices)
        self._host = host_of(base_url)
        self._url = _sendable(base_url.rstrip("/") + "/chat/completions")
        if api_key is not None and not _KEY.match(api_key):
            raise InputError(
                "USAGE", "the API key has characters that no key has", help="look for line breaks in it"
            )
        self._model = model
        self._headers = _headers(headers or {}, api_key)
        self._secrets = [value for value in (api_key, *(headers or {}).values()) if value and len(value) >= 4]
        self._timeout = timeout_seconds
        self._idle = idle_timeout_seconds
        self._stream = stream
        self._prices = prices_from(prices)
        self._tls: ssl.SSLContext | None = None
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, list[_Connections]] = (
            weakref.WeakKeyDictionary()
        )

    def __repr__(self) -> str:
        return f"<OpenAICompatibleAdapter {self._host} {self._model or ''}>"

    @property
    def default_model(self) -> str | None:
        return self._model

    def price(self, model: str | None) -> tuple[float, float] | None:
        """(input, output) in nano-dollars per token, or None where no price is known."""
        found = self._prices.get(model or self._model or "")
        return None if found is None else found.nano_per_token()

    async def complete(self, messages: list[Message], **params: Any) -> Completion:
        """One completion, in one request.

        Args:
            messages: {"role", "content"} each; see `ports.Message`.
            params: `model`, and what the endpoint takes (`temperature`, `max_tokens`, `response_format`, `tools`, …).

        Raises:
            ModelError.
        """
        model = params.get("model") or self._model
        if not model:
            raise self._error(
                ReplyFault("MODEL_REFUSED", "no model is named", help="name one in the step or with #MODEL")
            )
        body = {name: value for name, value in params.items() if name not in _RESERVED}
        body |= {"model": model, "messages": messages, "stream": self._stream}
        if self._stream:
            body["stream_options"] = {"include_usage": True}
        try:
            encoded = msgspec.json.encode(body)
        except (TypeError, ValueError):
            what = "the request has values that are no JSON"
            raise self._error(ReplyFault("MODEL_REFUSED", what)) from None
        try:
            answer = await self._post(encoded, offered=bool(params.get("tools")))
            problem = None
        except ReplyFault as fault:
            problem = fault
        if problem is not None:
            raise self._error(problem, model)  # not from it: it holds the endpoint's own words
        if answer.model is not None and self._is_secret(answer.model):
            answer = answer._replace(model=None)
        return answer.completion(usage_of(answer.tokens, self._prices.get(model)), model)

    async def aclose(self) -> None:
        """Close the connections that were made in the running loop. They close with it, too."""
        for kept in self._clients.pop(asyncio.get_running_loop(), ()):
            await kept.generator.aclose()

    # --- the request ------------------------------------------------------------------------------------------

    async def _post(self, body: bytes, *, offered: bool) -> Answer:
        import httpx

        connections = await self._connections()
        connections.busy += 1
        began = False
        try:
            async with (
                asyncio.timeout(self._timeout),
                connections.client.stream("POST", self._url, content=body, headers=self._headers) as response,
            ):
                if response.status_code != 200:
                    try:
                        data = await self._body(response)
                    except (httpx.HTTPError, httpx.StreamError, ReplyFault):
                        data = b""  # its status says what it means
                    raise status_fault(response.status_code, data, response.headers.get("retry-after"))
                began = True
                if response.headers.get("content-encoding", "identity").lower() != "identity":
                    raise ReplyFault("MODEL_REPLY", "the answer is compressed, which was not asked for")
                if response.headers.get("content-type", "").lower().startswith("text/event-stream"):
                    return await self._streamed(response, offered)
                data = await self._body(response)
        except (TimeoutError, httpx.TimeoutException):
            what = f"no answer within {self._timeout:g} s"
            if self._idle is not None:
                what += f", or silence for {self._idle:g} s"
            raise ReplyFault("MODEL_TIMEOUT", what, lost=True) from None
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            # Not from it: an HTTP error holds the request, and with it the key.
            if began:
                raise ReplyFault("MODEL_REPLY", "the answer broke off", lost=True) from None
            raise ReplyFault("MODEL_HTTP", f"no contact ({type(error).__name__})", lost=True) from None
        finally:
            connections.busy -= 1
        return read_reply(data, offered=offered)

    async def _streamed(self, response: httpx.Response, offered: bool) -> Answer:
        reader = StreamReader(offered=offered)
        async for chunk in response.aiter_raw():
            reader.feed(chunk)
            if reader.done:
                break
        return reader.answer()

    async def _body(self, response: httpx.Response) -> bytes:
        chunks, size = [], 0
        async for chunk in response.aiter_raw():
            size += len(chunk)
            if size > BODY_BYTES_MAX:
                raise ReplyFault("MODEL_REPLY", f"the answer is larger than {BODY_BYTES_MAX} bytes")
            chunks.append(chunk)
        return b"".join(chunks)

    async def _connections(self) -> _Connections:
        """Connections of the running loop that are not too busy. httpx looks at all connections of a client for every
        request, so one client for hundreds of calls costs their square: each of ours takes a few.

        A generator holds them, because a loop that ends closes its generators: nobody has to remember to close an
        adapter."""
        import httpx

        kept = self._clients.setdefault(asyncio.get_running_loop(), [])
        for connections in kept:
            if connections.busy < CALLS_PER_CLIENT and not connections.client.is_closed:
                return connections
        if self._tls is None and self._url.startswith("https:"):
            self._tls = httpx.create_ssl_context()

        async def hold() -> AsyncGenerator[httpx.AsyncClient, None]:
            async with httpx.AsyncClient(
                verify=self._tls or False,  # plain http needs no TLS settings
                follow_redirects=False,  # a redirect would carry the key to another host
                timeout=httpx.Timeout(None, connect=self._timeout, read=self._idle),
                limits=httpx.Limits(max_connections=None, keepalive_expiry=KEEPALIVE_S),
            ) as client:
                yield client

        generator = hold()
        connections = _Connections(await anext(generator), generator)
        kept.append(connections)
        return connections

    # --- the reply --------------------------------------------------------------------------------------------

    def _error(self, fault: ReplyFault, model: str = "") -> ModelError:
        what, facts = fault.what, {"host": self._host, **fault.facts}
        reason = facts.get("reason")
        if reason is not None and self._is_secret(reason):
            what = what.replace(f" ({reason})", "")
            del facts["reason"]
        return ModelError(
            fault.code,
            f"model endpoint `{self._host}`: {what}",
            help=fault.help,
            facts=facts,
            usage=None if fault.tokens is None else usage_of(fault.tokens, self._prices.get(model)),
            lost=fault.lost,
        )

    def _is_secret(self, word: str) -> bool:
        """Whether an endpoint gives back the key, or a good part of it, where its answers have a word of their own."""
        return any(
            secret in word or (len(word) >= ECHO_CHARS_MIN and word in secret) for secret in self._secrets
        )


class _Connections:
    """A client, what holds it, and how many calls it has under way."""

    __slots__ = ("busy", "client", "generator")

    def __init__(self, client: httpx.AsyncClient, generator: AsyncGenerator[httpx.AsyncClient, None]) -> None:
        self.client = client
        self.generator = generator
        self.busy = 0


def _headers(further: Mapping[str, str], key: str | None) -> dict[str, str]:
    headers = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
    headers["accept-encoding"] = "identity"  # a small body cannot become a huge one
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    for name, value in further.items():
        check_text("a header", value, needed=True)
        if not _HEADER_NAME.match(name) or not _HEADER_VALUE.match(value):
            raise InputError("USAGE", "a header cannot be sent", help="names and values are plain ASCII")
        headers[name.lower()] = value
    return headers


def _sendable(url: str) -> str:
    """The address. Raises InputError USAGE for one that nothing can be sent to."""
    import httpx

    try:
        httpx.URL(url)
    except httpx.InvalidURL:
        raise InputError(
            "USAGE", "the model's address is not an http(s) URL", help="https://HOST/v1"
        ) from None
    return url


def host_of(url: str) -> str:
    """Host and port of a model's address.

    Raises:
        InputError: USAGE for what is no http(s) address, or has credentials in it.
    """
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        parts, port = urlsplit(""), ""
    if parts.scheme not in ("http", "https") or not parts.hostname or not url.isprintable():
        raise InputError("USAGE", "the model's address is not an http(s) URL", help="https://HOST/v1")
    if parts.username is not None or parts.query or parts.fragment:
        raise InputError(
            "USAGE",
            "the model's address has more than host, port and path",
            help="the key goes in NANO_VM_API_KEY",
        )
    return f"{parts.hostname}{port}"


def _require_httpx() -> None:
    try:
        import httpx  # noqa: F401
    except ImportError:
        raise RuntimeFault(
            "EXTRA_MISSING",
            "models over HTTP need httpx",
            help="pip install 'nano-vm[http]'",
            facts={"extra": "http"},
        ) from None
