"""Cassettes: the model calls of runs, recorded once and played back without a network.

A tape is JSON lines. The first says what it is; each of the others is one call: the request, its digest, and what came
of it - an answer, or a failure. Playing back gives the recorded answers to the same requests, in the order in which
they were recorded; a request that is not on the tape (any more) is an error, never a call.

A tape holds prompts and answers as they are. It never holds keys or headers: it is recorded above the adapter. Calls
with private or secret values are not recorded.
"""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import Any

import msgspec

from nano_vm.errors import InputError, Place
from nano_vm.kernel.events import Switch
from nano_vm.providers.asking import Front
from nano_vm.providers.cache import request_key
from nano_vm.providers.faults import ModelError
from nano_vm.runtime.arguments import check_path
from nano_vm.runtime.ports import Completion, Message, ModelCall, ModelClient, ToolCall, Usage

TAPE_BYTES_MAX = 256 * 1024 * 1024
_HEADER = {"cassette": 1}


class _Answer(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    usage: Usage = Usage()
    model: str | None = None
    cached: bool = False
    provider: str | None = None
    switches: tuple[Switch, ...] = ()


class _Failure(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    code: str
    message: str = ""
    retryable: bool = True
    usage: Usage | None = None
    provider: str | None = None
    switches: tuple[Switch, ...] = ()


class _Call(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    digest: str
    messages: list[dict[str, Any]] = []
    params: dict[str, Any] = {}
    answer: _Answer | None = None
    failure: _Failure | None = None


_decode = msgspec.json.Decoder(_Call).decode


class PlayedFailure(Exception):
    """A failure from a tape: it has the code, cost and switches of the one that was recorded."""

    def __init__(self, failure: _Failure) -> None:
        super().__init__(failure.message)
        self.code = failure.code
        self.retryable = failure.retryable
        self.usage = failure.usage
        self.provider = failure.provider
        self.switches = failure.switches


class CassetteRecorder(Front):
    """A `ModelClient` that asks another one and writes down what came of it.

    Args:
        inner: the client to ask.
        path: the tape; made when it is missing (readable by its owner alone), else recorded on.

    Raises:
        InputError: CASSETTE when the file is something else, or cannot be written; USAGE.
    """

    def __init__(self, inner: ModelClient, path: str | os.PathLike[str]) -> None:
        super().__init__(inner)
        check_path("path", path)
        self._path = Path(path)
        try:
            if self._path.exists() and self._path.stat().st_size:
                _read(self._path)
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "ab") as tape:
                if tape.tell() == 0:
                    tape.write(msgspec.json.encode(_HEADER) + b"\n")
        except OSError as error:
            raise _unusable(self._path, f"cannot be written: {error.strerror}") from error

    async def complete(
        self, messages: list[Message], *, model_call: ModelCall | None = None, **params: Any
    ) -> Completion:
        """The client's answer; it is on the tape before it is returned, unless it is private."""
        if model_call is not None and model_call.private:
            return await self._client.ask(messages, params, model_call)
        digest = _digest(messages, params)
        call = _Call(digest=digest, messages=[dict(message) for message in messages], params=dict(params))
        try:
            answer = await self._client.ask(messages, params, model_call)
        except Exception as error:
            call.failure = _failure(error)
            self._write(call)
            raise
        call.answer = _Answer(
            text=answer.text,
            tool_calls=answer.tool_calls,
            usage=answer.usage,
            model=answer.model,
            cached=answer.cached,
            provider=answer.provider,
            switches=answer.switches,
        )
        self._write(call)
        return answer

    async def forget(self, messages: list[Message], **params: Any) -> None:
        await self._client.forget(messages, params)

    def _write(self, call: _Call) -> None:
        line = msgspec.json.encode(call) + b"\n"
        try:
            with self._path.open("ab") as tape:
                tape.write(line)
        except OSError as error:
            raise _unusable(self._path, f"cannot be written: {error.strerror}") from error


class CassettePlayer:
    """A `ModelClient` that answers from a tape and knows no network.

    Args:
        path: a tape that `CassetteRecorder` or `--record` has made.

    Raises:
        InputError: CASSETTE, with the line, when it cannot be read; USAGE.
        ModelError (by `complete`): CASSETTE_MISS for a request that is not on the tape, or not so often.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        check_path("path", path)
        self._path = Path(path)
        self._calls: dict[str, deque[_Call]] = {}
        for call in _read(self._path):
            self._calls.setdefault(call.digest, deque()).append(call)

    @property
    def left(self) -> int:
        """How many recorded calls have not been played."""
        return sum(len(calls) for calls in self._calls.values())

    async def complete(self, messages: list[Message], **params: Any) -> Completion:
        """The next recorded answer to this request."""
        digest = _digest(messages, params)
        calls = self._calls.get(digest)
        if not calls:
            times = "any more" if calls is not None else "at all"
            raise ModelError(
                "CASSETTE_MISS",
                f"the tape `{self._path.name}` has no answer to this request {times}",
                help="the program, its inputs or parameters have changed: record again with --record",
                facts={"request": digest},
            )
        call = calls.popleft()
        if call.failure is not None:
            raise PlayedFailure(call.failure)
        answer = call.answer
        assert answer is not None
        return Completion(
            text=answer.text,
            tool_calls=answer.tool_calls,
            usage=answer.usage,
            model=answer.model,
            cached=answer.cached,
            provider=answer.provider,
            switches=answer.switches,
        )


def _digest(messages: list[Message], params: dict[str, Any]) -> str:
    digest = request_key(messages, params, None)
    if digest is None:
        raise InputError("CASSETTE", "a request with values that are no JSON cannot be put on a tape")
    return digest


def _failure(error: Exception) -> _Failure:
    code = getattr(error, "code", None)
    usage = getattr(error, "usage", None)
    provider = getattr(error, "provider", None)
    switches = getattr(error, "switches", ())
    ours = isinstance(error, ModelError)  # other people's messages may quote what no tape should hold
    return _Failure(
        code=code if isinstance(code, str) else type(error).__name__,
        message=str(error) if ours else type(error).__name__,
        retryable=getattr(error, "retryable", True) is not False,
        usage=usage if isinstance(usage, Usage) else None,
        provider=provider if isinstance(provider, str) else None,
        switches=tuple(switch for switch in switches if isinstance(switch, Switch)),
    )


def _read(path: Path) -> list[_Call]:
    try:
        with path.open("rb") as tape:
            data = tape.read(TAPE_BYTES_MAX + 1)
    except OSError as error:
        raise _unusable(path, f"cannot be read: {error.strerror}") from error
    if len(data) > TAPE_BYTES_MAX:
        raise _unusable(path, f"is larger than {TAPE_BYTES_MAX} bytes")
    lines = data.split(b"\n")
    try:
        header = msgspec.json.decode(lines[0])
    except (ValueError, RecursionError):
        header = None
    if header != _HEADER:
        raise _unusable(path, "is not a tape", line=1)
    calls = []
    for number, line in enumerate(lines[1:], 2):
        if not line or line == lines[0]:  # two processes may have begun the tape at once
            continue
        try:
            call = _decode(line)
        except (ValueError, RecursionError):
            what = "was cut off here" if number == len(lines) else "has no call here"
            raise _unusable(path, what, line=number) from None
        if (call.answer is None) == (call.failure is None):
            raise _unusable(path, "has a call with neither an answer nor a failure, or both", line=number)
        if request_key(call.messages, call.params, None) != call.digest:
            raise _unusable(path, "has an answer to another request here", line=number)
        calls.append(call)
    return calls


def _unusable(path: Path, what: str, line: int = 0) -> InputError:
    return InputError(
        "CASSETTE",
        f"the tape `{path}` {what}",
        place=Place(str(path), line, 1 if line else 0),
        help="make one with `nano-vm run … --record FILE`",
    )
