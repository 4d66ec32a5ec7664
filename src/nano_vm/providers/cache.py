"""A cache of model answers, addressed by what was asked: model, parameters and messages (SPEC §8).

A hit costs no tokens and no money, and is marked in the trace. A retry after an answer missed its gate goes past the
cache, and such an answer is forgotten, so that no run gets it again. Failures are never kept.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from nano_vm import canonical
from nano_vm.errors import InputError
from nano_vm.providers.asking import Front
from nano_vm.runtime.arguments import check_part, check_seconds
from nano_vm.runtime.ports import Completion, Message, ModelCall, ModelClient, ToolCall, Usage

ANSWER_BYTES_MAX = 1024 * 1024


class Answers(Protocol):
    """Where answers are kept: `ModelStore` (SQLite) or `RedisAnswers`. None of them may fail a run."""

    async def get(self, key: str, made_after_ms: int) -> bytes | None: ...

    async def put(self, key: str, body: bytes) -> None: ...

    async def drop(self, key: str) -> None: ...


class KeptAnswer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is kept of a completion."""

    text: str
    model: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()


_decode = msgspec.json.Decoder(KeptAnswer).decode


def request_key(messages: list[Message], params: dict[str, Any], model: str | None) -> str | None:
    """The digest of what is asked, `model` being asked where `params` names none; None for what has no digest."""
    asked = {**params, "model": params.get("model") or model}
    try:
        return canonical.digest_value({"messages": messages, "params": asked})
    except InputError:
        return None


class ModelCache(Front):
    """A `ModelClient` that asks another one only for what it has not answered yet.

    Args:
        inner: the client to ask.
        answers: where answers are kept, for example `ModelStore("runs.db-models")`.
        max_age_seconds: older answers are asked for again; None keeps them.
        now_ms: the time, for tests; needed with `max_age_seconds` only.

    Raises:
        InputError: USAGE.
    """

    def __init__(
        self,
        inner: ModelClient,
        answers: Answers,
        *,
        max_age_seconds: float | None = None,
        now_ms: Any = None,
    ) -> None:
        from nano_vm.runtime.system import SystemClock

        super().__init__(inner)
        check_part("answers", answers, "get", 'answers=ModelStore("runs.db-models")')
        check_seconds("max_age_seconds", max_age_seconds)
        self._answers = answers
        self._max_age_ms = None if max_age_seconds is None else int(max_age_seconds * 1_000)
        self._now_ms = now_ms or SystemClock().now_ms
        self.hits = 0
        self.misses = 0

    async def complete(
        self, messages: list[Message], *, model_call: ModelCall | None = None, **params: Any
    ) -> Completion:
        """The kept answer, else the client's own, which is kept then."""
        private = model_call is not None and model_call.private
        key = None if private else request_key(messages, params, self.default_model)
        if key is not None and not (model_call is not None and model_call.fresh):
            kept = await self._kept(key)
            if kept is not None:
                self.hits += 1
                return Completion(
                    text=kept.text,
                    tool_calls=kept.tool_calls,
                    usage=Usage(cost_usd=0.0),
                    model=kept.model,
                    cached=True,
                )
        self.misses += 1
        answer = await self._client.ask(messages, params, model_call)
        if key is not None:
            body = msgspec.json.encode(
                KeptAnswer(text=answer.text, model=answer.model, tool_calls=answer.tool_calls)
            )
            if len(body) <= ANSWER_BYTES_MAX:
                await self._answers.put(key, body)
        return answer

    async def forget(self, messages: list[Message], **params: Any) -> None:
        """The answer to these was not accepted: nobody is to get it again."""
        key = request_key(messages, params, self.default_model)
        if key is not None:
            await self._answers.drop(key)
        await self._client.forget(messages, params)

    async def _kept(self, key: str) -> KeptAnswer | None:
        after = 0 if self._max_age_ms is None else self._now_ms() - self._max_age_ms
        body = await self._answers.get(key, after)
        if body is None:
            return None
        try:
            return _decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None  # another version's, or damaged
