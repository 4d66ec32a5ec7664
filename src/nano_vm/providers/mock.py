"""A model that answers what it is told to: for tests, examples and programs without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nano_vm.runtime.ports import Completion, Message, Usage


class MockLLMAdapter:
    """Deterministic answers without a model.

    Args:
        response: a string (always the answer); a sequence (one after another, then from the beginning; an exception in
            it is raised); or a mapping from a substring of the last user message to the answer, with `__default__`.
        usage: tokens and cost to report with every answer; none by default.

    `calls` holds the messages of every call, in order.
    """

    def __init__(
        self,
        response: str | Sequence[str | Exception] | Mapping[str, str] = "",
        *,
        usage: Usage | Mapping[str, Any] | None = None,
    ) -> None:
        self._response = response
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

    @property
    def call_count(self) -> int:
        return len(self.calls)

    async def complete(self, messages: list[Message], **params: Any) -> Completion:
        """The next answer. Parameters are accepted and not used."""
        self.calls.append(messages)
        answer = self._answer(messages)
        self._index += 1
        if isinstance(answer, Exception):
            raise answer
        return Completion(text=answer, usage=self._usage, model="mock")

    def _answer(self, messages: list[Message]) -> str | Exception:
        response = self._response
        if isinstance(response, str):
            return response
        if isinstance(response, Mapping):
            asked = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
            for key, answer in response.items():
                if key != "__default__" and key in asked:
                    return answer
            return response.get("__default__", "")
        return response[self._index % len(response)] if response else ""

    def reset(self) -> None:
        """Forget the calls and begin the sequence again."""
        self._index = 0
        self.calls.clear()
