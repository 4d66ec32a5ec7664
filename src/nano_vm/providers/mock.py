"""A model that answers what it is told to: for tests, examples and programs without a network."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from nano_vm.errors import InputError
from nano_vm.runtime.arguments import check_mapping
from nano_vm.runtime.ports import Completion, Message, Usage

MockAnswer: TypeAlias = str | Completion | Exception
"""A text; a `Completion`, to propose tool calls or to report usage of its own; an exception, to be raised."""


class MockLLMAdapter:
    """Deterministic answers without a model.

    Args:
        response: one answer (always this one); a sequence (one after another, then from the beginning); or a mapping
            from a substring of the last user message to the answer, with `__default__`.
        usage: tokens and cost to report with every text; none by default.
        latency_seconds: how long an answer takes; a sequence is gone through like that of the answers.

    `calls` holds the messages of every call, in order; `params` what else was passed.
    """

    def __init__(
        self,
        response: MockAnswer | Sequence[MockAnswer] | Mapping[str, MockAnswer] = "",
        *,
        usage: Usage | Mapping[str, Any] | None = None,
        latency_seconds: float | Sequence[float] = 0.0,
    ) -> None:
        kinds = (str, Completion, Exception, Mapping, Sequence)
        if not isinstance(response, kinds) or isinstance(response, bytes):
            raise InputError(
                "USAGE",
                f"a {type(response).__name__} is no answer of a model",
                help='a text, a list of them, or a dict: {"part of the prompt": "answer", "__default__": "ok"}',
            )
        check_mapping("usage", None if isinstance(usage, Usage) else usage, '{"prompt_tokens": 5}')
        self._response = response
        self._latency = latency_seconds
        self._index = 0
        if isinstance(usage, Usage) or usage is None:
            self._usage = usage or Usage()
        else:
            self._usage = Usage(
                prompt_tokens=usage.get("prompt_tokens", 0),
                completion_tokens=usage.get("completion_tokens", 0),
                cost_usd=usage.get("cost_usd"),
            )
        self.calls: list[list[Message]] = []
        self.params: list[dict[str, Any]] = []

    @property
    def call_count(self) -> int:
        return len(self.calls)

    async def complete(self, messages: list[Message], **params: Any) -> Completion:
        """The next answer. Parameters are accepted and not used."""
        self.calls.append(messages)
        self.params.append(params)
        answer = self._answer(messages)
        latency = self._latency
        if isinstance(latency, Sequence):
            latency = latency[self._index % len(latency)] if latency else 0.0
        self._index += 1
        if latency:
            await asyncio.sleep(latency)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Completion):
            return answer
        return Completion(text=answer, usage=self._usage, model="mock")

    def _answer(self, messages: list[Message]) -> MockAnswer:
        response = self._response
        if isinstance(response, str | Completion | Exception):
            return response
        if isinstance(response, Mapping):
            asked = next((m.get("content") or "" for m in reversed(messages) if m["role"] == "user"), "")
            for key, answer in response.items():
                if key != "__default__" and key in asked:
                    return answer
            return response.get("__default__", "")
        return response[self._index % len(response)] if response else ""

    def reset(self) -> None:
        """Forget the calls and begin the sequence again."""
        self._index = 0
        self.calls.clear()
        self.params.clear()
