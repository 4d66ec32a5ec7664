"""Any endpoint that speaks OpenAI's chat completions, over plain HTTP (extra `[http]`).

What comes back is held against what a completion must be; anything else is an error with a code that says whether
trying again can help. The key goes into one request header and nowhere else.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from nano_vm.errors import InputError, RuntimeFault
from nano_vm.runtime.ports import Completion, Message, Usage

if TYPE_CHECKING:
    import ssl

BODY_BYTES_MAX = 8 * 1024 * 1024
RETRY_SECONDS_MAX = 30.0
_RESERVED = ("messages", "model", "stream", "n")
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")
_KEY = re.compile(r"[!-~]+\Z")  # what a header can carry
_RETRIED_STATUS = frozenset({408, 409, 425, 429})


class ModelError(RuntimeFault):
    """A model call that gave no usable answer.

    Codes: MODEL_HTTP (no contact, 429, 5xx: retryable), MODEL_TIMEOUT (retryable), MODEL_REFUSED (the request or key is
    not accepted), MODEL_REPLY (the answer is no completion: retryable), MODEL_TRUNCATED (cut at the token limit).
    Facts: `host`, and where known `status`, `reason`, `tokens_in`, `tokens_out`.
    """


class OpenAICompatibleAdapter:
    """A `ModelClient` for an OpenAI-style endpoint.

    Args:
        base_url: up to and without `/chat/completions`, such as `https://api.openai.com/v1`.
        model: used where a step names none.
        api_key: sent as a bearer token; None sends none.
        timeout_seconds: for one attempt as a whole, not for each byte.
        max_retries: attempts after the first, for retryable errors; a step's `on_error: retry` journals its attempts,
            these are not seen.
        prices: model -> (input, output) in US dollars per million tokens; without a price the cost is what the reply
            says, else unknown.

    Raises:
        InputError: USAGE for an address or key that cannot be used.
        RuntimeFault: EXTRA_MISSING when httpx is not installed.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        api_key: str | None = None,
        timeout_seconds: float = 60,
        max_retries: int = 0,
        prices: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        _require_httpx()
        self._host = _host_of(base_url)
        self._url = base_url.rstrip("/") + "/chat/completions"
        if api_key is not None and not _KEY.match(api_key):
            raise InputError(
                "USAGE", "the API key has characters that no key has", help="look for line breaks in it"
            )
        self._model = model
        self._key = api_key
        self._timeout = timeout_seconds
        self._retries = max_retries
        self._prices = dict(prices or {})
        self._tls: ssl.SSLContext | None = None

    def __repr__(self) -> str:
        return f"<OpenAICompatibleAdapter {self._host} {self._model or ''}>"

    def price(self, model: str | None) -> tuple[float, float] | None:
        """(input, output) in nano-dollars per token, or None where no price is known."""
        found = self._prices.get(model or self._model or "")
        return None if found is None else (found[0] * 1_000, found[1] * 1_000)

    async def complete(self, messages: list[Message], **params: Any) -> Completion:
        """One completion.

        Args:
            messages: {"role", "content"} each.
            params: `model`, and whatever the endpoint takes (`temperature`, `max_tokens`, …).

        Raises:
            ModelError.
        """
        model = params.get("model") or self._model
        if not model:
            raise self._error(
                "MODEL_REFUSED", "no model is named", help="name one in the step or with #MODEL"
            )
        body = {name: value for name, value in params.items() if name not in _RESERVED}
        body |= {"model": model, "messages": messages, "stream": False}
        encoded = msgspec.json.encode(body)
        attempt = 0
        while True:
            try:
                return self._read(model, await self._post(encoded))
            except ModelError as error:
                if not error.retryable or attempt >= self._retries:
                    raise
                pause = error.facts.get("retry_after") or 0.5 * 2**attempt
            attempt += 1
            await asyncio.sleep(min(pause, RETRY_SECONDS_MAX))

    # --- the request ------------------------------------------------------------------------------------------

    async def _post(self, body: bytes) -> bytes:
        import httpx

        headers = {"content-type": "application/json", "accept": "application/json"}
        if self._key is not None:
            headers["authorization"] = f"Bearer {self._key}"
        if self._tls is None and self._url.startswith("https:"):
            self._tls = httpx.create_ssl_context()
        try:
            async with (
                asyncio.timeout(self._timeout),
                # A redirect would carry the key to another host. Plain http needs no TLS settings.
                httpx.AsyncClient(verify=self._tls or False, follow_redirects=False, timeout=None) as client,
                client.stream("POST", self._url, content=body, headers=headers) as response,
            ):
                data = await self._body(response)
        except TimeoutError:
            raise self._error("MODEL_TIMEOUT", f"no answer within {self._timeout:g} s") from None
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            # Not from it: an HTTP error holds the request, and with it the key.
            raise self._error("MODEL_HTTP", f"no contact ({type(error).__name__})") from None
        if response.status_code != 200:
            raise self._status_error(response.status_code, response.headers.get("retry-after"), data)
        return data

    async def _body(self, response: Any) -> bytes:
        chunks, size = [], 0
        async for chunk in response.aiter_bytes():
            size += len(chunk)
            if size > BODY_BYTES_MAX:
                raise self._error("MODEL_REPLY", f"the answer is larger than {BODY_BYTES_MAX} bytes")
            chunks.append(chunk)
        return b"".join(chunks)

    def _status_error(self, status: int, retry_after: str | None, data: bytes) -> ModelError:
        facts: dict[str, Any] = {"status": status}
        # Of the endpoint's own words only a code is kept: messages quote keys and prompts.
        try:
            details = msgspec.json.decode(data).get("error")
            reason = details.get("code") or details.get("type")
        except (ValueError, AttributeError, RecursionError):
            reason = None
        if isinstance(reason, str) and _WORD.match(reason):
            facts["reason"] = reason
        if retry_after is not None and retry_after.isascii() and retry_after.isdigit():
            facts["retry_after"] = min(int(retry_after[:6]), int(RETRY_SECONDS_MAX))
        retryable = status >= 500 or status in _RETRIED_STATUS
        shown = f" ({facts['reason']})" if "reason" in facts else ""
        help = "check the key: NANO_VM_API_KEY or OPENAI_API_KEY" if status in (401, 403) else None
        return self._error(
            "MODEL_HTTP" if retryable else "MODEL_REFUSED", f"HTTP {status}{shown}", help=help, facts=facts
        )

    # --- the reply --------------------------------------------------------------------------------------------

    def _read(self, model: str, data: bytes) -> Completion:
        try:
            reply = msgspec.json.decode(data)
        except (ValueError, RecursionError):
            raise self._error("MODEL_REPLY", "the answer is not JSON") from None
        if not isinstance(reply, dict):
            raise self._error("MODEL_REPLY", "the answer is not an object")
        choices = reply.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise self._error("MODEL_REPLY", "the answer has no choices")
        usage = self._usage(model, reply.get("usage"))
        spent = {"tokens_in": usage.prompt_tokens, "tokens_out": usage.completion_tokens}
        finish = choices[0].get("finish_reason")
        if finish == "length":
            raise self._error(
                "MODEL_TRUNCATED",
                "the answer was cut at the token limit",
                help="raise max_tokens",
                facts=spent,
            )
        if finish == "content_filter":
            raise self._error("MODEL_REFUSED", "the endpoint withheld the answer", facts=spent)
        message = choices[0].get("message")
        text = _text_of(message.get("content")) if isinstance(message, dict) else None
        if text is None:
            raise self._error("MODEL_REPLY", "the answer has no text", facts=spent)
        named = reply.get("model")
        return Completion(text=text, usage=usage, model=named if isinstance(named, str) else model)

    def _usage(self, model: str, given: Any) -> Usage:
        if given is None:
            return Usage()
        if not isinstance(given, dict):
            raise self._error("MODEL_REPLY", "the usage is not an object")
        counts = []
        for name in ("prompt_tokens", "completion_tokens"):
            count = given.get(name) or 0
            if type(count) is not int or count < 0:
                raise self._error("MODEL_REPLY", f"`{name}` is not a number of tokens")
            counts.append(count)
        price = self.price(model)
        cost: float | None = None
        if price is not None:
            # Rounded far below a nano-dollar, so that floating point never adds one.
            cost = round((counts[0] * price[0] + counts[1] * price[1]) / 1e9, 13)
        elif type(given.get("cost")) in (int, float) and given["cost"] >= 0:
            cost = float(given["cost"])
        return Usage(prompt_tokens=counts[0], completion_tokens=counts[1], cost_usd=cost)

    def _error(
        self, code: str, what: str, *, help: str | None = None, facts: Mapping[str, Any] | None = None
    ) -> ModelError:
        return ModelError(
            code,
            f"model endpoint `{self._host}`: {what}",
            help=help,
            facts={"host": self._host, **(facts or {})},
        )


def _text_of(content: Any) -> str | None:
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content:  # some endpoints answer in parts
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        return "".join(texts) if len(texts) == len(parts) else None
    return None


def _host_of(url: str) -> str:
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
