"""What models are shown, read off the sources of programs: a second opinion on blindness (P8).

A model is shown the prompt that its step writes, with the values it names, and no more; in a conversation also its own
words, what came of the calls it proposed, and what was wrong with its last answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from nano_vm.testing.arguments import ANYTHING, Arguments

_TOLD: Final = re.compile(
    r"That answer was not accepted: .*\. Answer again\.|You proposed \d+ calls .*", re.DOTALL
)
_VALUES: Final = re.compile(r"\$\$|\$\{[^}]*\}|\$\w+(?:\.\w+)*")
_PARAMETERS: Final = frozenset({"max_tokens", "tools", "model"})


def wrong_prompt(
    messages: Sequence[Mapping[str, Any]],
    params: Mapping[str, Any],
    runs: Iterable[tuple[Mapping[str, Any], Arguments]],
) -> str | None:
    """What is wrong with what a model is shown, or None. `runs`: of each that there is the source, and its values."""
    if not messages or not any(_is_prompt(messages, *run) for run in runs):
        return "a prompt is not what any step writes"
    conversation = messages[_begin(messages) :]
    for message, before in zip(conversation, [None, *conversation], strict=False):
        if message["role"] == "user":
            if not _TOLD.fullmatch(str(message["content"])) or before is None:
                return "a model is told something that no step writes"
        elif message["role"] not in ("assistant", "tool"):
            return f"a model is told something as `{message['role']}`"
    more = params.keys() - _PARAMETERS - {name for source, _ in runs for name in _parameters(source)}
    return f"a model is given `{min(more)}`, which no step names" if more else None


def _begin(messages: Sequence[Mapping[str, Any]]) -> int:
    return 2 if messages[0]["role"] == "system" else 1


def _is_prompt(messages: Sequence[Mapping[str, Any]], source: Mapping[str, Any], values: Arguments) -> bool:
    shown = [message["content"] for message in messages[: _begin(messages)]]
    for step in _models(source):
        written = [step[field] for field in ("system", "prompt") if field in step]
        if len(written) == len(shown) and all(
            map(_agrees, (values.rendered(one) for one in written), written, shown)
        ):
            return True
    return False


def _agrees(rendered: Any, written: str, shown: str) -> bool:
    if rendered is ANYTHING or not isinstance(rendered, str):
        # What stands around the values is known at least.
        around = [re.escape(part) for part in _VALUES.split(written)]
        return re.fullmatch(".*".join(around), shown, re.DOTALL) is not None
    return rendered == shown


def _models(source: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for step in source["steps"]:
        for one in [step, *step.get("parallel_steps", ()), *([step["step"]] if "step" in step else ())]:
            if one["type"] in ("llm", "agent"):
                yield one


def _parameters(source: Mapping[str, Any]) -> Iterator[str]:
    for step in _models(source):
        yield from step.get("params", ())


__all__ = ["wrong_prompt"]
