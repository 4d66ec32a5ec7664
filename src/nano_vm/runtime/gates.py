"""Gates: what a model's text must be before it becomes a step's output (SPEC §2, `allowed_outputs`, `output_schema`).

A gate is a pure function of the text and the step. Model text becomes an output, never a reference or an expression.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from nano_vm import canonical
from nano_vm.errors import InputError
from nano_vm.program.compiled import ModelAction
from nano_vm.program.schema_faults import faults

TEXT_BYTES_MAX = 1024 * 1024
FEEDBACK_CHARS_MAX = 2_000

_LANGUAGE = re.compile(r"[A-Za-z0-9_-]*\Z")


class GateResult(msgspec.Struct, frozen=True):
    """`output` when the text passes; else `problem` says what is wrong with it, in words fit for the model."""

    output: Any = None
    problem: str | None = None


def pass_gate(action: ModelAction, text: str) -> GateResult:
    """Hold a model's text against the step's gates."""
    if len(text) > TEXT_BYTES_MAX:
        return GateResult(problem=f"the answer is longer than {TEXT_BYTES_MAX} characters")
    if action.allowed_outputs:
        return _among(action, text)
    if action.output_schema is not None:
        return _structured(action.output_schema, text)
    try:
        canonical.encode(text)
    except InputError:
        return GateResult(problem="the answer is not valid Unicode text")
    return GateResult(text)


def _among(action: ModelAction, text: str) -> GateResult:
    answer = text.strip()
    if answer in action.allowed_outputs:
        return GateResult(answer)
    if action.normalize == "casefold":
        folded = answer.casefold()
        for allowed in action.allowed_outputs:
            if allowed.casefold() == folded:
                return GateResult(allowed)
    choices = ", ".join(json.dumps(choice, ensure_ascii=False) for choice in action.allowed_outputs)
    return GateResult(problem=f"the answer must be exactly one of: {choices}")


def _structured(schema: dict[str, Any] | bool, text: str) -> GateResult:
    try:
        value = json.loads(
            unfenced(text),
            parse_constant=_refuse_constant,
            object_pairs_hook=_refuse_duplicates,
        )
    except (ValueError, RecursionError) as error:
        return GateResult(problem=f"the answer is not JSON: {error}")
    try:
        value, _ = canonical.normalize(value)
    except InputError as error:
        return GateResult(problem=error.message)
    problems = [
        f"at /{'/'.join(str(part) for part in fault.instance_path)}: {fault.message[:FEEDBACK_CHARS_MAX]}"
        for fault in faults(canonical.encode(schema), value)
    ]
    if problems:
        return GateResult(problem="; ".join(problems)[:FEEDBACK_CHARS_MAX])
    return GateResult(value)


def unfenced(text: str) -> str:
    """What stands between the lines of a Markdown fence, where that is all of the text. Takes time in proportion to its
    length, whatever a model has written."""
    stripped = text.strip()
    if not stripped.startswith("```") or not stripped.endswith("```"):
        return text
    first, newline, rest = stripped[3:].partition("\n")
    inside = rest[:-3]
    body = inside.rstrip()
    if not newline or not _LANGUAGE.match(first.rstrip()) or "\n" not in inside[len(body) :]:
        return text
    return body


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        # Of two members with one name every reader takes another one.
        raise ValueError("an object has the same name twice")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def feedback(text: str, problem: str) -> list[dict[str, str]]:
    """What a retry adds to the conversation: the model's own answer and what was wrong with it (P8)."""
    return [
        {"role": "assistant", "content": text[:FEEDBACK_CHARS_MAX]},
        {"role": "user", "content": f"That answer was not accepted: {problem}. Answer again."},
    ]
