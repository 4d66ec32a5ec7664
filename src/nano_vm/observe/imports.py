"""Traces of other systems as trajectories, so that any agent can be held against the same measures.

Each reader takes the bytes of a file and gives trajectories; which shape it reads is said with it, and what is not of
that shape is an error that names the place. Arguments of calls are kept as digests alone, texts not at all.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable
from typing import Any

import msgspec

from nano_vm.errors import InputError
from nano_vm.observe.eventlog import read_jsonl
from nano_vm.observe.foreign import action_of, bad, instant, move_of, objects, trajectory_of
from nano_vm.observe.process_logs import ocel, xes
from nano_vm.observe.trajectory import Trajectory

FILE_BYTES_MAX = 256 * 1024 * 1024
# What is read takes many times its size in memory, so a file may not be much smaller than what it unfolds into: event
# logs, which repeat themselves most, are packed to a thirtieth or so.
GZIP_RATIO_MAX = 100
GZIP_BYTES_FREE = 16 * 1024 * 1024  # that any file may unfold into
MODEL = "(model)"  # the activity of a model that answers
_GZIP = b"\x1f\x8b"


def read(form: str, data: bytes) -> list[Trajectory]:
    """The trajectories in a file.

    Args:
        form: one of `READERS`.
        data: of at most `FILE_BYTES_MAX` bytes. Where they are compressed (gzip) they unfold into no more than that,
            and into at most `GZIP_RATIO_MAX` times their size or `GZIP_BYTES_FREE`, whichever is more.

    Raises:
        InputError: USAGE for an unknown form, BAD_EVENT_LOG.
    """
    reader = READERS.get(form)
    if reader is None:
        raise InputError("USAGE", f"there is no reader of `{form}`", help=f"one of: {', '.join(READERS)}")
    if data.startswith(_GZIP):
        data = _opened(data)
    if len(data) > FILE_BYTES_MAX:
        raise bad(f"the file is larger than {FILE_BYTES_MAX} bytes")
    try:
        return reader(data)
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise bad(f"it is not what {form} writes ({type(error).__name__})") from None


def _opened(data: bytes) -> bytes:
    """What is in a gzip file, as far as it may be read; no more of it is unfolded."""
    most = min(FILE_BYTES_MAX, max(GZIP_BYTES_FREE, GZIP_RATIO_MAX * len(data)))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as opener:  # of as many members as it has
            opened = opener.read(most + 1)
    except (OSError, EOFError, zlib.error):
        raise bad("it is no whole gzip file") from None
    if len(opened) > most:
        name = "FILE_BYTES_MAX" if most == FILE_BYTES_MAX else "GZIP_RATIO_MAX"
        raise InputError(
            "BAD_EVENT_LOG",
            f"the file of {len(data)} bytes unfolds into more than {most} ({name})",
            help="unpack it and read what is in it, or read it in parts",
            facts={"limit": name, "bytes_max": most},
        )
    return opened


# --- OpenTelemetry --------------------------------------------------------------------------------------------


def otel(data: bytes) -> list[Trajectory]:
    """Spans in OTLP's JSON form: objects with `resourceSpans`, one or one a line. A trajectory per trace id, its moves
    in the order in which they began. Spans of the generative-AI conventions count: `chat` and its kin as the model,
    `execute_tool` as the tool; others do not."""
    traces: dict[str, list[dict[str, Any]]] = {}
    for export in objects(data):
        for resource in export["resourceSpans"]:
            for scope in resource.get("scopeSpans", ()):
                for span in scope.get("spans", ()):
                    traces.setdefault(str(span["traceId"]), []).append(span)
    return [_otel_trace(trace_id, spans) for trace_id, spans in traces.items()]


def _otel_trace(trace_id: str, spans: list[dict[str, Any]]) -> Trajectory:
    moves, status, name = [], "", ""
    # Spans that began in the same instant stand in the order in which they ended, and were told.
    for span in sorted(
        spans, key=lambda span: (int(span["startTimeUnixNano"]), int(span.get("endTimeUnixNano", 0)))
    ):
        facts = {held["key"]: _otel_value(held["value"]) for held in span.get("attributes", ())}
        operation = str(facts.get("gen_ai.operation.name", ""))
        failed = span.get("status", {}).get("code") in (2, "STATUS_CODE_ERROR") or "error.type" in facts
        began, ended = int(span["startTimeUnixNano"]), int(span.get("endTimeUnixNano", 0))
        tool = facts.get("gen_ai.tool.name")
        tokens = sum(int(facts.get(f"gen_ai.usage.{kind}_tokens") or 0) for kind in ("input", "output"))
        if operation == "execute_tool" or tool is not None:
            moves.append(
                move_of(str(tool or span["name"]), "tool", began // 1_000_000, ended // 1_000_000, failed)
            )
        elif operation in ("chat", "generate_content", "text_completion"):
            moves.append(move_of(MODEL, "llm", began // 1_000_000, ended // 1_000_000, failed, tokens))
        elif operation in ("invoke_workflow", "invoke_agent"):
            status = "FAILED" if failed else "SUCCESS"
            name = str(facts.get("gen_ai.workflow.name") or facts.get("gen_ai.agent.name") or name)
    return trajectory_of(trace_id, "otel", moves, name=name, status=status)


def _otel_value(value: dict[str, Any]) -> Any:
    return next(iter(value.values()), None)


# --- chat messages --------------------------------------------------------------------------------------------


def openai(data: bytes) -> list[Trajectory]:
    """Conversations in the form of chat completions: objects with `messages` (and `id`), one or one a line. An
    assistant's message is a move of the model; each of its `tool_calls` a call of that tool; a `tool` message whose
    content is an object with `error` says that its call failed."""
    found = []
    for number, conversation in enumerate(objects(data)):
        moves, actions = [], []
        failed = {
            str(message.get("tool_call_id"))
            for message in conversation["messages"]
            if message["role"] == "tool" and _is_error(message.get("content"))
        }
        for message in conversation["messages"]:
            if message["role"] != "assistant":
                continue
            moves.append(move_of(MODEL, "llm"))
            for call in message.get("tool_calls") or ():
                function = call["function"]
                moves.append(move_of(str(function["name"]), "tool", failed=str(call.get("id")) in failed))
                actions.append(action_of(function["name"], function.get("arguments")))
        found.append(trajectory_of(str(conversation.get("id", number)), "openai", moves, actions))
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
    for line in objects(data):
        if line.get("type") in ("assistant", "user") and type(line.get("message")) is dict:
            sessions.setdefault(str(line.get("sessionId", "")), []).append(line)
    return [_session(name, lines) for name, lines in sessions.items()]


def _session(name: str, lines: list[dict[str, Any]]) -> Trajectory:
    blocks = [
        (instant(line.get("timestamp")), line["type"], block)
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
        moves.append(move_of(str(block["name"]), "tool", at_ms, ended, failed))
        actions.append(action_of(block["name"], block.get("input")))
    return trajectory_of(name, "transcript", moves, actions)


# --- LangGraph ------------------------------------------------------------------------------------------------


def langgraph(data: bytes) -> list[Trajectory]:
    """LangGraph's `debug` stream: a JSON object a line with `type` (`task`, `task_result`), `timestamp` and `payload`
    (`id`, `name`, and of a result `error`). Tasks are moves, in the order in which they were begun."""
    begun: list[tuple[str, str, int]] = []
    ended: dict[str, tuple[int, bool]] = {}
    for line in objects(data):
        payload = line.get("payload")
        if type(payload) is not dict:
            continue
        at_ms = instant(line.get("timestamp"))
        if line.get("type") == "task":
            begun.append((str(payload["id"]), str(payload["name"]), at_ms))
        elif line.get("type") == "task_result":
            ended[str(payload["id"])] = (at_ms, payload.get("error") is not None)
    moves = [move_of(name, "node", at_ms, *ended.get(task, (0, False))) for task, name, at_ms in begun]
    failed = any(move.failed for move in moves[-1:])
    return (
        [trajectory_of("langgraph", "langgraph", moves, status="FAILED" if failed else "SUCCESS")]
        if moves
        else []
    )


# --- MCP ------------------------------------------------------------------------------------------------------


def mcp(data: bytes) -> list[Trajectory]:
    """Messages of the Model Context Protocol, one a line, both directions: `tools/call` requests are moves; a reply
    with `error`, or a result with `isError`, says that its call failed. One trajectory for the file."""
    requests: list[tuple[Any, dict[str, Any]]] = []
    replies: dict[str, bool] = {}
    for line in objects(data):
        if line.get("method") == "tools/call":
            requests.append((line.get("id"), line["params"]))
        elif "id" in line and ("result" in line or "error" in line):
            result = line.get("result")
            replies[str(line["id"])] = "error" in line or (
                type(result) is dict and result.get("isError") is True
            )
    moves = [
        move_of(str(params["name"]), "tool", failed=replies.get(str(id), False)) for id, params in requests
    ]
    actions = [action_of(params["name"], params.get("arguments")) for _, params in requests]
    return [trajectory_of("mcp", "mcp", moves, actions)] if moves else []


READERS: dict[str, Callable[[bytes], list[Trajectory]]] = {
    "jsonl": lambda data: list(read_jsonl(data.splitlines())),
    "langgraph": langgraph,
    "mcp": mcp,
    "ocel": ocel,
    "openai": openai,
    "otel": otel,
    "transcript": transcript,
    "xes": xes,
}
