"""Traces of other systems as trajectories, so that any agent can be held against the same measures.

Each reader takes the bytes of a file and gives trajectories; which shape it reads is said with it, and what is not of
that shape is an error that names the place. Arguments of calls are kept as digests alone, texts not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import msgspec

from nano_vm import canonical
from nano_vm.errors import InputError
from nano_vm.observe.eventlog import read_jsonl
from nano_vm.observe.trajectory import MOVES_MAX, Move, Trajectory

FILE_BYTES_MAX = 256 * 1024 * 1024
NAME_CHARS_MAX = 200
MODEL = "(model)"  # the activity of a model that answers


def read(form: str, data: bytes) -> list[Trajectory]:
    """The trajectories in a file.

    Args:
        form: one of `READERS`.

    Raises:
        InputError: USAGE for an unknown form, BAD_EVENT_LOG.
    """
    reader = READERS.get(form)
    if reader is None:
        raise InputError("USAGE", f"there is no reader of `{form}`", help=f"one of: {', '.join(READERS)}")
    if len(data) > FILE_BYTES_MAX:
        raise _bad(f"the file is larger than {FILE_BYTES_MAX} bytes")
    try:
        return reader(data)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise _bad(f"it is not what {form} writes ({type(error).__name__})") from None


# --- OpenTelemetry --------------------------------------------------------------------------------------------


def otel(data: bytes) -> list[Trajectory]:
    """Spans in OTLP's JSON form: objects with `resourceSpans`, one or one a line. A trajectory per trace id, its moves
    in the order in which they began. Spans of the generative-AI conventions count: `chat` and its kin as the model,
    `execute_tool` as the tool; others do not."""
    traces: dict[str, list[dict[str, Any]]] = {}
    for export in _objects(data):
        for resource in export["resourceSpans"]:
            for scope in resource.get("scopeSpans", ()):
                for span in scope.get("spans", ()):
                    traces.setdefault(str(span["traceId"]), []).append(span)
    return [_otel_trace(trace_id, spans) for trace_id, spans in traces.items()]


def _otel_trace(trace_id: str, spans: list[dict[str, Any]]) -> Trajectory:
    moves, status, name = [], "", ""
    for span in sorted(spans, key=lambda span: (int(span["startTimeUnixNano"]), str(span.get("spanId", "")))):
        facts = {held["key"]: _otel_value(held["value"]) for held in span.get("attributes", ())}
        operation = str(facts.get("gen_ai.operation.name", ""))
        failed = span.get("status", {}).get("code") in (2, "STATUS_CODE_ERROR") or "error.type" in facts
        began, ended = int(span["startTimeUnixNano"]), int(span.get("endTimeUnixNano", 0))
        tool = facts.get("gen_ai.tool.name")
        tokens = sum(int(facts.get(f"gen_ai.usage.{kind}_tokens") or 0) for kind in ("input", "output"))
        if operation == "execute_tool" or tool is not None:
            moves.append(
                _move(str(tool or span["name"]), "tool", began // 1_000_000, ended // 1_000_000, failed)
            )
        elif operation in ("chat", "generate_content", "text_completion"):
            moves.append(_move(MODEL, "llm", began // 1_000_000, ended // 1_000_000, failed, tokens))
        elif operation in ("invoke_workflow", "invoke_agent"):
            status = "FAILED" if failed else "SUCCESS"
            name = str(facts.get("gen_ai.workflow.name") or facts.get("gen_ai.agent.name") or name)
    return _trajectory(trace_id, "otel", moves, name=name, status=status)


def _otel_value(value: dict[str, Any]) -> Any:
    return next(iter(value.values()), None)


# --- chat messages --------------------------------------------------------------------------------------------


def openai(data: bytes) -> list[Trajectory]:
    """Conversations in the form of chat completions: objects with `messages` (and `id`), one or one a line. An
    assistant's message is a move of the model; each of its `tool_calls` a call of that tool; a `tool` message whose
    content is an object with `error` says that its call failed."""
    found = []
    for number, conversation in enumerate(_objects(data)):
        moves, actions = [], []
        failed = {
            str(message.get("tool_call_id"))
            for message in conversation["messages"]
            if message["role"] == "tool" and _is_error(message.get("content"))
        }
        for message in conversation["messages"]:
            if message["role"] != "assistant":
                continue
            moves.append(_move(MODEL, "llm"))
            for call in message.get("tool_calls") or ():
                function = call["function"]
                moves.append(_move(str(function["name"]), "tool", failed=str(call.get("id")) in failed))
                actions.append(_action(function["name"], function.get("arguments")))
        found.append(_trajectory(str(conversation.get("id", number)), "openai", moves, actions))
    return found


def _is_error(content: Any) -> bool:
    if type(content) is not str or not content.lstrip().startswith("{"):
        return False
    try:
        return "error" in msgspec.json.decode(content)
    except (msgspec.MsgspecError, RecursionError):
        return False


# --- transcripts ----------------------------------------------------------------------------------------------


def transcript(data: bytes) -> list[Trajectory]:
    """Transcripts of coding agents: a JSON object a line with `type` (`assistant` or `user`), `message.content` - a
    list of blocks, of which `tool_use` (`id`, `name`, `input`) and `tool_result` (`tool_use_id`, `is_error`) count -,
    `timestamp` (RFC 3339) and `sessionId`. Other lines are passed over."""
    sessions: dict[str, list[dict[str, Any]]] = {}
    for line in _objects(data):
        if line.get("type") in ("assistant", "user") and type(line.get("message")) is dict:
            sessions.setdefault(str(line.get("sessionId", "")), []).append(line)
    return [_session(name, lines) for name, lines in sessions.items()]


def _session(name: str, lines: list[dict[str, Any]]) -> Trajectory:
    blocks = [
        (_instant(line.get("timestamp")), line["type"], block)
        for line in lines
        for block in (line["message"].get("content") if type(line["message"].get("content")) is list else ())
        if type(block) is dict
    ]
    results = {
        str(block.get("tool_use_id")): (at_ms, block.get("is_error") is True)
        for at_ms, _, block in blocks
        if block.get("type") == "tool_result"
    }
    moves, actions = [], []
    for at_ms, _, block in blocks:
        if block.get("type") != "tool_use":
            continue
        ended, failed = results.get(str(block.get("id")), (0, False))
        moves.append(_move(str(block["name"]), "tool", at_ms, ended, failed))
        actions.append(_action(block["name"], block.get("input")))
    return _trajectory(name, "transcript", moves, actions)


# --- LangGraph ------------------------------------------------------------------------------------------------


def langgraph(data: bytes) -> list[Trajectory]:
    """LangGraph's `debug` stream: a JSON object a line with `type` (`task`, `task_result`), `timestamp` and `payload`
    (`id`, `name`, and of a result `error`). Tasks are moves, in the order in which they were begun."""
    begun: list[tuple[str, str, int]] = []
    ended: dict[str, tuple[int, bool]] = {}
    for line in _objects(data):
        payload = line.get("payload")
        if type(payload) is not dict:
            continue
        at_ms = _instant(line.get("timestamp"))
        if line.get("type") == "task":
            begun.append((str(payload["id"]), str(payload["name"]), at_ms))
        elif line.get("type") == "task_result":
            ended[str(payload["id"])] = (at_ms, payload.get("error") is not None)
    moves = [_move(name, "node", at_ms, *ended.get(task, (0, False))) for task, name, at_ms in begun]
    failed = any(move.failed for move in moves[-1:])
    return (
        [_trajectory("langgraph", "langgraph", moves, status="FAILED" if failed else "SUCCESS")]
        if moves
        else []
    )


# --- MCP ------------------------------------------------------------------------------------------------------


def mcp(data: bytes) -> list[Trajectory]:
    """Messages of the Model Context Protocol, one a line, both directions: `tools/call` requests are moves; a reply
    with `error`, or a result with `isError`, says that its call failed. One trajectory for the file."""
    requests: list[tuple[Any, dict[str, Any]]] = []
    replies: dict[str, bool] = {}
    for line in _objects(data):
        if line.get("method") == "tools/call":
            requests.append((line.get("id"), line["params"]))
        elif "id" in line and ("result" in line or "error" in line):
            result = line.get("result")
            replies[str(line["id"])] = "error" in line or (
                type(result) is dict and result.get("isError") is True
            )
    moves = [
        _move(str(params["name"]), "tool", failed=replies.get(str(id), False)) for id, params in requests
    ]
    actions = [_action(params["name"], params.get("arguments")) for _, params in requests]
    return [_trajectory("mcp", "mcp", moves, actions)] if moves else []


READERS: dict[str, Callable[[bytes], list[Trajectory]]] = {
    "jsonl": lambda data: list(read_jsonl(data.splitlines())),
    "langgraph": langgraph,
    "mcp": mcp,
    "openai": openai,
    "otel": otel,
    "transcript": transcript,
}


# --- what they share ------------------------------------------------------------------------------------------


def _objects(data: bytes) -> Iterator[dict[str, Any]]:
    """The objects of a file: it is one, or a list of them, or has one a line."""
    try:
        whole = msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError):
        whole = None
    if whole is not None:
        for number, found in enumerate(whole if type(whole) is list else [whole], 1):
            if type(found) is not dict:
                raise _bad(f"element {number} is no object")
            yield found
        return
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            found = msgspec.json.decode(line)
        except (msgspec.MsgspecError, RecursionError):
            found = None
        if type(found) is not dict:
            raise _bad(f"line {number} is no JSON object")
        yield found


def _move(
    name: str, kind: str, began: int = 0, ended: int = 0, failed: bool = False, tokens: int = 0
) -> Move:
    return Move(
        activity=name[:NAME_CHARS_MAX],
        kind=kind,
        started_at_ms=max(began, 0),
        finished_at_ms=max(ended, 0),
        failed=failed,
        tokens=max(tokens, 0),
    )


def _trajectory(
    id: str, source: str, moves: list[Move], actions: list[str] | None = None, **facts: Any
) -> Trajectory:
    times = [move.started_at_ms for move in moves if move.started_at_ms]
    return Trajectory(
        id=id,
        source=source,
        moves=tuple(moves[:MOVES_MAX]),
        actions=tuple((actions if actions is not None else [])[:MOVES_MAX]),
        started_at_ms=min(times, default=0),
        finished_at_ms=max((move.finished_at_ms for move in moves), default=0),
        transitions=len(moves),
        cut=len(moves) > MOVES_MAX,
        **facts,
    )


def _action(tool: Any, arguments: Any) -> str:
    """Equal for equal calls. Arguments that are JSON in a string count as what they say."""
    if type(arguments) is str:
        try:
            arguments = msgspec.json.decode(arguments)
        except (msgspec.MsgspecError, RecursionError):
            pass  # text that a model wrote amiss
    try:
        return canonical.digest_value([tool, arguments])
    except InputError:
        return canonical.digest_value([str(tool), repr(arguments)])


def _instant(text: Any) -> int:
    """An RFC 3339 time as epoch milliseconds; 0 when there is none."""
    if type(text) is not str:
        return 0
    try:
        return max(int(datetime.fromisoformat(text).timestamp() * 1_000), 0)
    except (ValueError, OverflowError, OSError):
        return 0


def _bad(what: str) -> InputError:
    return InputError("BAD_EVENT_LOG", what, help="`nano-vm measure --help` says which shapes are read")
