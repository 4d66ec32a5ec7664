"""A model whose answers are in a file: for demonstrations, tests and dry runs.

A mapping answers by what the prompt contains (`MockLLMAdapter`), and so gives the same answer to the same prompt in
every process. A list is a sequence: it begins again in a new process, and is an error when it has run out.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from nano_vm import canonical
from nano_vm.errors import InputError, NanoVMError, Place
from nano_vm.program import document as documents
from nano_vm.providers.mock import MockLLMAdapter
from nano_vm.runtime.ports import Completion, Message, ToolCall, Usage

SCRIPT_BYTES_MAX = 16 * 1024 * 1024
_FIELDS = {
    "text",
    "tool_calls",
    "prompt_tokens",
    "completion_tokens",
    "cost_usd",
    "model",
    "error",
    "retryable",
    "latency_seconds",
}


class ScriptError(Exception):
    """A failure that the script asks for, or a script that has run out. `code` and `retryable` as for any adapter."""

    def __init__(self, code: str, message: str, retryable: bool) -> None:
        super().__init__(message)
        self.code = code
        self.retryable = retryable


class ScriptedAdapter:
    """Answers one after another.

    Args:
        answers: each a string, or an object with `text` and optionally `prompt_tokens`, `completion_tokens`,
            `cost_usd`, `model`, and `tool_calls` ({"name", "arguments"} each) with or without `text` - or `error` (a
            code) and `retryable`, to fail. `latency_seconds` is how long it takes.

    Raises (by `complete`): ScriptError SCRIPT_EXHAUSTED, not retryable, after the last answer.
    """

    def __init__(self, answers: list[Any]) -> None:
        self._answers = answers
        self._next = 0

    async def complete(self, messages: list[Message], **params: Any) -> Completion:
        """The next answer. Messages and parameters are accepted and not used."""
        if self._next >= len(self._answers):
            raise ScriptError("SCRIPT_EXHAUSTED", f"the script has {len(self._answers)} answers", False)
        answer = self._answers[self._next]
        self._next += 1
        if isinstance(answer, str):
            return Completion(text=answer, model="script")
        if answer.get("latency_seconds"):
            await asyncio.sleep(answer["latency_seconds"])
        if "error" in answer:
            raise ScriptError(answer["error"], "the script says so", answer.get("retryable", True))
        usage = Usage(
            prompt_tokens=answer.get("prompt_tokens", 0),
            completion_tokens=answer.get("completion_tokens", 0),
            cost_usd=answer.get("cost_usd"),
        )
        return Completion(
            text=answer.get("text", ""),
            tool_calls=tuple(
                ToolCall(f"call_{self._next}_{number}", call["name"], _arguments(call))
                for number, call in enumerate(answer.get("tool_calls", ()))
            ),
            usage=usage,
            model=answer.get("model", "script"),
        )


def _arguments(call: dict[str, Any]) -> str:
    arguments = call.get("arguments", {})
    # A script may hold text that is no JSON, as models do.
    return arguments if isinstance(arguments, str) else canonical.encode(arguments).decode()


def load_script(path: str | Path) -> MockLLMAdapter | ScriptedAdapter:
    """The adapter for a file: a string (always the answer), a list or JSON lines (a sequence), or a mapping from a part
    of the prompt to the answer, with `__default__`.

    Raises:
        InputError: SCRIPT, with the place, for a file that cannot be read or holds something else.
    """
    path = Path(path)
    data = _read_lines(path) if path.suffix == ".jsonl" else read_data(path, "SCRIPT")
    if isinstance(data, str):
        return MockLLMAdapter(data)
    if isinstance(data, dict) and all(isinstance(answer, str) for answer in data.values()):
        return MockLLMAdapter(data)
    if isinstance(data, list):
        for number, answer in enumerate(data):
            _check_answer(path, number, answer)
        return ScriptedAdapter(data)
    raise InputError(
        "SCRIPT",
        "a script is a text, a list of answers, or a mapping from a part of the prompt to the answer",
        place=Place(str(path)),
        help="mappings take text only; a list may hold objects with `text`",
    )


def _check_answer(path: Path, number: int, answer: Any) -> None:
    problem = None
    if isinstance(answer, dict):
        unknown = sorted(set(answer) - _FIELDS)
        if unknown:
            problem = f"unknown field `{unknown[0]}`"
        elif ("text" in answer or "tool_calls" in answer) == ("error" in answer):
            problem = "either `text`, `tool_calls` or `error` must be there"
        elif not all(isinstance(answer.get(name, ""), str) for name in ("text", "error", "model")):
            problem = "`text`, `error` and `model` are strings"
        elif not _are_calls(answer.get("tool_calls", [])):
            problem = "`tool_calls` is a list of objects with `name` and `arguments`"
        elif type(answer.get("latency_seconds", 0)) not in (int, float):
            problem = "`latency_seconds` is a number"
        elif any(type(answer.get(name, 0)) is not int for name in ("prompt_tokens", "completion_tokens")):
            problem = "tokens are whole numbers"
        elif type(answer.get("cost_usd")) not in (int, float, type(None)):
            problem = "`cost_usd` is a number"
    elif not isinstance(answer, str):
        problem = f"a {type(answer).__name__} is no answer"
    if problem is not None:
        raise InputError(
            "SCRIPT", f"answer {number + 1}: {problem}", place=Place(str(path), path=f"/{number}"), help=_HELP
        )


def _are_calls(given: Any) -> bool:
    return isinstance(given, list) and all(
        isinstance(call, dict) and isinstance(call.get("name"), str) and not set(call) - {"name", "arguments"}
        for call in given
    )


_HELP = (
    'an answer is a text, or an object such as {"text": "yes", "prompt_tokens": 12, "completion_tokens": 1}'
)


def read_data(path: Path, code: str) -> Any:
    """The data of a JSON or YAML file.

    Raises:
        InputError: `code`, with the place, when it cannot be read.
    """
    try:
        document = documents.from_file(path)
    except NanoVMError as error:
        reason = getattr(error.__cause__, "strerror", None) or "not a file name"
        raise InputError(
            code,
            f"cannot read `{path}`: {reason.lower()}",
            help="check the path and its permissions",
            place=Place(str(path)),
        ) from error
    return data_of(document, code)


def data_of(document: documents.Document, code: str) -> Any:
    """The data of a document that is no program. Raises InputError `code`, with the place, for the first finding."""
    for finding in document.findings:
        is_empty = finding.code == "NOT_A_PROGRAM"
        help = "write JSON or YAML into it" if is_empty else finding.help
        raise InputError(code, finding.message, place=finding.place, help=help)
    return document.data


def _read_lines(path: Path) -> list[Any]:
    try:
        with path.open(encoding="utf-8") as stream:
            text = stream.read(SCRIPT_BYTES_MAX)
    except (OSError, ValueError) as error:
        raise InputError(
            "SCRIPT", f"cannot read `{path}`", help="check the path and its encoding", place=Place(str(path))
        ) from error
    answers = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        document = documents.from_json(line)
        if document.findings:
            finding = document.findings[0]
            raise InputError(
                "SCRIPT",
                finding.message,
                place=Place(str(path), number, finding.place.column),
                help="one JSON value per line",
            )
        answers.append(document.data)
    return answers
