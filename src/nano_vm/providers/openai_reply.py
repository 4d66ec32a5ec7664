"""Reading what an OpenAI-style endpoint answers: a chat completion, whole or streamed.

Everything here is a function of bytes. An answer either is what a completion must be, or a `ReplyFault` says what is
wrong with it. Of the endpoint's own words an error keeps nothing but a short code: messages quote keys and prompts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard

import msgspec

from nano_vm.runtime.completions import COST_USD_MAX, TOKENS_MAX
from nano_vm.runtime.ports import Completion, ToolCall, Usage

BODY_BYTES_MAX = 8 * 1024 * 1024
TOOL_CALLS_MAX = 128  # what a model may propose at once
NAME_CHARS_MAX = 256
ARGUMENTS_CHARS_MAX = 1024 * 1024
RETRY_SECONDS_MAX = 30
RETRIED_STATUS = frozenset({408, 409, 425, 429})
# How endpoints call an answer that is no whole one.
_CUT = frozenset({"length", "max_tokens", "model_length"})
_WITHHELD = frozenset({"content_filter", "safety"})
_BROKEN_OFF = frozenset({"error", "abort", "cancelled", "insufficient_system_resource"})
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")
_COUNTS = ("prompt_tokens", "completion_tokens")


class Tokens(NamedTuple):
    """What a reply says it consumed. `cached` are those of `prompt` that the endpoint had at hand; `cost_usd` is what
    the endpoint itself charges, if it says so."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    cost_usd: float | None = None


class Answer(NamedTuple):
    """A good reply. `model` is what the endpoint says it used."""

    text: str
    tool_calls: tuple[ToolCall, ...]
    tokens: Tokens
    model: str | None

    def completion(self, usage: Usage, asked: str) -> Completion:
        """The answer as adapters give it; `asked` is the model that was asked for."""
        return Completion(text=self.text, tool_calls=self.tool_calls, usage=usage, model=self.model or asked)


class ReplyFault(Exception):
    """What is wrong with a reply: a `ModelError` without its host."""

    def __init__(
        self,
        code: str,
        what: str,
        *,
        help: str | None = None,
        facts: Mapping[str, Any] | None = None,
        tokens: Tokens | None = None,
        lost: bool = False,
    ) -> None:
        super().__init__(what)
        self.code = code
        self.what = what
        self.help = help
        self.facts = dict(facts or {})
        self.tokens = tokens
        self.lost = lost


def read_reply(data: bytes, *, offered: bool) -> Answer:
    """A whole reply. `offered` says whether the request offered tools: calls that nobody asked for are a fault.

    Raises:
        ReplyFault.
    """
    try:
        reply = msgspec.json.decode(data)
    except (ValueError, RecursionError):
        raise ReplyFault("MODEL_REPLY", "the answer is not JSON") from None
    return read_completion(reply, offered=offered)


def read_completion(reply: Any, *, offered: bool) -> Answer:
    """A reply that has been decoded."""
    if not isinstance(reply, dict):
        raise ReplyFault("MODEL_REPLY", "the answer is not an object")
    if reply.get("error"):
        raise error_inside(reply["error"])
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ReplyFault("MODEL_REPLY", "the answer has no choices")
    choice = choices[0]
    if choice.get("error"):
        raise error_inside(choice["error"])
    tokens = read_tokens(reply.get("usage"))
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    calls = message.get("tool_calls") if isinstance(message, dict) else None
    named = reply.get("model")
    return _answer(content, calls, choice.get("finish_reason"), tokens, named, offered)


def _answer(content: Any, calls: Any, finish: Any, tokens: Tokens, named: Any, offered: bool) -> Answer:
    if finish is not None and not isinstance(finish, str):
        raise ReplyFault("MODEL_REPLY", "the finish reason is no text", tokens=tokens)
    finish = (finish or "").lower()
    if finish in _BROKEN_OFF:
        raise ReplyFault("MODEL_REPLY", f"the answer broke off ({finish})", tokens=tokens)
    if finish in _CUT:
        raise ReplyFault(
            "MODEL_TRUNCATED", "the answer was cut at the token limit", help="raise max_tokens", tokens=tokens
        )
    if finish in _WITHHELD:
        raise ReplyFault("MODEL_REFUSED", "the endpoint withheld the answer", tokens=tokens)
    proposed = _tool_calls(calls, tokens)
    if proposed and not offered:
        raise ReplyFault("MODEL_REPLY", "the answer calls tools that were not offered", tokens=tokens)
    text = _text_of(content)
    if text is None and proposed and content in (None, []):
        text = ""
    if text is None:
        raise ReplyFault("MODEL_REPLY", "the answer has no text", tokens=tokens)
    return Answer(text, proposed, tokens, named if isinstance(named, str) and named else None)


def _tool_calls(given: Any, tokens: Tokens) -> tuple[ToolCall, ...]:
    """The proposed calls. Ids that are missing (some local servers have none) are made; arguments stay text."""
    if given is None:
        return ()
    if not isinstance(given, list):
        raise ReplyFault("MODEL_REPLY", "the tool calls are not a list", tokens=tokens)
    if len(given) > TOOL_CALLS_MAX:
        what = f"the answer calls {len(given)} tools at once, and {TOOL_CALLS_MAX} are the most"
        raise ReplyFault("MODEL_REPLY", what, tokens=tokens)
    calls = []
    for number, call in enumerate(given):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise ReplyFault("MODEL_REPLY", f"tool call {number} names no function", tokens=tokens)
        name, arguments, id = function.get("name"), function.get("arguments"), call.get("id")
        if arguments is None:
            arguments = "{}"
        elif isinstance(arguments, dict):  # some local servers do not quote them
            arguments = msgspec.json.encode(arguments).decode()
        if id is None or id == "":
            id = f"call_{number}"
        if not _is_name(name) or not _is_name(id):
            what = f"the name or id of tool call {number} is not a text of 1 to {NAME_CHARS_MAX} characters"
            raise ReplyFault("MODEL_REPLY", what, tokens=tokens)
        if not isinstance(arguments, str) or len(arguments) > ARGUMENTS_CHARS_MAX:
            what = f"the arguments of tool call {number} are no text, or longer than {ARGUMENTS_CHARS_MAX}"
            raise ReplyFault("MODEL_REPLY", what, tokens=tokens)
        calls.append(ToolCall(id, name, arguments))
    if len({call.id for call in calls}) < len(calls):
        raise ReplyFault("MODEL_REPLY", "two tool calls have the same id", tokens=tokens)
    return tuple(calls)


def _is_name(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= NAME_CHARS_MAX and value.isprintable()


def _text_of(content: Any) -> str | None:
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content:  # some endpoints answer in parts
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        return "".join(texts) if len(texts) == len(parts) else None
    return None


def read_tokens(given: Any) -> Tokens:
    """The `usage` of a reply; none means that nothing is known."""
    if given is None:
        return Tokens()
    if not isinstance(given, dict):
        raise ReplyFault("MODEL_REPLY", "the usage is not an object")
    prompt, completion = (_count(given.get(name), name) for name in _COUNTS)
    details = given.get("prompt_tokens_details")
    cached = 0
    if isinstance(details, dict) and details.get("cached_tokens") is not None:
        cached = min(_count(details["cached_tokens"], "cached_tokens"), prompt)
    cost: Any = given.get("cost")
    stated = type(cost) in (int, float) and 0 <= cost <= COST_USD_MAX
    return Tokens(prompt, completion, cached, float(cost) if stated else None)


def _count(value: Any, name: str) -> int:
    count = value or 0
    if type(count) is not int or not 0 <= count <= TOKENS_MAX:
        raise ReplyFault("MODEL_REPLY", f"`{name}` is not a number of tokens")
    return count


# --- errors of the endpoint -------------------------------------------------------------------------------------


def status_fault(status: int, data: bytes, retry_after: str | None = None) -> ReplyFault:
    """What an HTTP status other than 200 means."""
    facts: dict[str, Any] = {"status": status}
    try:
        decoded = msgspec.json.decode(data)
    except (ValueError, RecursionError):
        decoded = None
    reason = _reason(decoded.get("error") if isinstance(decoded, dict) else None)
    if reason is not None:
        facts["reason"] = reason
    if retry_after is not None and retry_after.isascii() and retry_after.isdigit():
        facts["retry_after"] = min(int(retry_after[:6]), RETRY_SECONDS_MAX)
    retryable = status >= 500 or status in RETRIED_STATUS
    shown = f" ({reason})" if reason is not None else ""
    help = "check the key" if status in (401, 403) else None
    return ReplyFault(
        "MODEL_HTTP" if retryable else "MODEL_REFUSED", f"HTTP {status}{shown}", help=help, facts=facts
    )


def error_inside(error: Any) -> ReplyFault:
    """An error in a reply that calls itself good (status 200): gateways put their upstream's failures there."""
    code = error.get("code") if isinstance(error, dict) else None
    if type(code) is int and 400 <= code < 600:
        return status_fault(code, msgspec.json.encode({"error": {"type": error.get("type")}}))
    reason = _reason(error)
    facts = {} if reason is None else {"reason": reason}
    shown = "" if reason is None else f" ({reason})"
    return ReplyFault("MODEL_HTTP", f"the answer is an error{shown}", facts=facts)


def _reason(details: Any) -> str | None:
    if not isinstance(details, dict):
        return None
    for name in ("code", "type"):
        reason = details.get(name)
        if isinstance(reason, str) and _WORD.match(reason):
            return reason
    return None


# --- streams ----------------------------------------------------------------------------------------------------


class StreamReader:
    """Puts a streamed completion together. Feed it chunks of the body, then ask for the `answer`.

    A stream that ends before its `finish_reason` is a fault, however much has come: half an answer looks like a whole
    one.
    """

    def __init__(self, *, offered: bool) -> None:
        self._offered = offered
        self._rest: list[bytes] = []  # of a line whose end has not come
        self._event: list[bytes] = []
        self._texts: list[str] = []
        self._calls: dict[int, dict[str, Any]] = {}
        self._finish: Any = None
        self._tokens: Tokens | None = None
        self._model: Any = None
        self._size = 0
        self.done = False

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes.

        Raises:
            ReplyFault: for what is no event of a completion, and for more than `BODY_BYTES_MAX` bytes.
        """
        self._size += len(chunk)
        if self._size > BODY_BYTES_MAX:
            raise ReplyFault("MODEL_REPLY", f"the answer is larger than {BODY_BYTES_MAX} bytes")
        ended, newline, rest = chunk.rpartition(b"\n")
        if newline:
            lines = b"".join((*self._rest, ended)).split(b"\n")
            self._rest.clear()
            for line in lines:
                self._line(line.rstrip(b"\r"))
        if rest:
            self._rest.append(rest)

    def answer(self) -> Answer:
        """The completion, when the stream is over."""
        if self._rest:
            self._line(b"".join(self._rest).rstrip(b"\r"))
            self._rest.clear()
        self._line(b"")
        tokens = self._tokens or Tokens()
        if self._finish is None:
            raise ReplyFault("MODEL_REPLY", "the answer broke off", tokens=tokens, lost=True)
        calls = [self._calls[index] for index in sorted(self._calls)]
        for call in calls:
            call["function"]["arguments"] = "".join(call["function"]["arguments"]) or None
        text = "".join(self._texts)
        content = text if text or not calls else None
        return _answer(content, calls, self._finish, tokens, self._model, self._offered)

    def _line(self, line: bytes) -> None:
        if line.startswith(b"data:"):
            self._event.append(line[5:].removeprefix(b" "))
        elif not line and self._event:
            data = b"\n".join(self._event)
            self._event.clear()
            if not self.done:
                self._take(data)

    def _take(self, data: bytes) -> None:
        if data.strip() == b"[DONE]":
            self.done = True
            return
        try:
            event = msgspec.json.decode(data)
        except (ValueError, RecursionError):
            raise ReplyFault("MODEL_REPLY", "an event of the answer is not JSON") from None
        if not isinstance(event, dict):
            raise ReplyFault("MODEL_REPLY", "an event of the answer is not an object")
        if event.get("error"):
            raise error_inside(event["error"])
        if event.get("usage") is not None:
            self._tokens = read_tokens(event["usage"])
        self._model = self._model or event.get("model")
        choices = event.get("choices") or []
        if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
            raise ReplyFault("MODEL_REPLY", "the choices of an event are not a list of objects")
        for choice in choices:
            if choice.get("index") in (None, 0):
                self._delta(choice)

    def _delta(self, choice: dict[str, Any]) -> None:
        if choice.get("error"):
            raise error_inside(choice["error"])
        delta = choice.get("delta") or {}
        if not isinstance(delta, dict):
            raise ReplyFault("MODEL_REPLY", "a delta of the answer is not an object")
        content = delta.get("content")
        if isinstance(content, str):
            self._texts.append(content)
        elif content is not None:
            raise ReplyFault("MODEL_REPLY", "a delta of the answer has no text")
        for position, part in enumerate(_list(delta.get("tool_calls"))):
            self._call(position, part)
        self._finish = choice.get("finish_reason") or self._finish

    def _call(self, position: int, part: Any) -> None:
        index = part.get("index", position) if isinstance(part, dict) else None
        function = (part.get("function") or {}) if isinstance(part, dict) else None
        if type(index) is not int or not 0 <= index < TOOL_CALLS_MAX or not isinstance(function, dict):
            what = f"a part of a tool call is malformed, or there are more than {TOOL_CALLS_MAX}"
            raise ReplyFault("MODEL_REPLY", what)
        call = self._calls.setdefault(index, {"id": None, "function": {"name": None, "arguments": []}})
        call["id"] = call["id"] or part.get("id")
        known = call["function"]
        known["name"] = known["name"] or function.get("name")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            known["arguments"].append(arguments)
        elif arguments is not None:
            raise ReplyFault("MODEL_REPLY", "the arguments of a tool call are not text")


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise ReplyFault("MODEL_REPLY", "the tool calls of a delta are not a list")
    return value
