"""The gateway's tools as data: name, description, schemas, hints. What they do is in `service`."""

from __future__ import annotations

from typing import Any, NamedTuple

_TEXT = {"type": "string"}
_FLAG = {"type": "boolean"}
_NULL_TEXT = {"type": ["string", "null"]}
_TRACE_ID = {"type": "string", "minLength": 1, "maxLength": 400, "description": "Id of the run."}
_PROGRAM_REF = {
    "type": "string",
    "minLength": 1,
    "maxLength": 400,
    "description": "Name of a saved program, or its hash (sha256:…).",
}
_WAIT = {
    "type": "number",
    "minimum": 0,
    "maximum": 3600,
    "description": "How long to wait; the run goes on without you afterwards. The gateway may wait less long.",
}
_LIMIT = {"type": "integer", "minimum": 1, "maximum": 500, "description": "At most so many."}
_SOURCE = {"type": "string", "minLength": 1, "description": "The program as YAML or JSON text."}
_STATUSES = ["RUNNING", "SUSPENDED", "SUCCESS", "FAILED", "BUDGET_EXCEEDED", "STALLED", "CANCELLED"]

_RUN_FIELDS: dict[str, Any] = {
    "trace_id": _TEXT,
    "program": {"type": "object", "properties": {"name": _TEXT, "hash": _TEXT}},
    "status": {"type": "string", "enum": _STATUSES},
    "outcome": {**_NULL_TEXT, "description": "The business outcome that the terminal step names."},
    "output": {"description": "Output of the step that settled last."},
    "outputs": {"type": "object", "description": "The program's declared outputs."},
    "error": {"type": ["object", "null"]},
    "waiting": {
        "type": "array",
        "items": {"type": "object"},
        "description": "What a SUSPENDED run waits for; `answer_with` is the call that answers it.",
    },
    "total_tokens": {"type": "integer"},
    "total_cost_usd": {"type": "number"},
    "outcome_hash": _NULL_TEXT,
    "started_at": _NULL_TEXT,
    "finished_at": _NULL_TEXT,
    "incomplete_compensations": {"type": "array", "items": _TEXT},
    "message": {**_TEXT, "description": "What to do next, if anything."},
}


def _object(properties: dict[str, Any], required: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), **more}


def _arguments(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return _object(properties, required, additionalProperties=False)


def _result(properties: dict[str, Any], required: tuple[str, ...]) -> dict[str, Any]:
    """The schema of a tool's structured output: what it answers, or an error. Some clients hold errors against it."""
    return {
        "type": "object",
        "properties": {**properties, "error": {"type": ["object", "null"]}},
        "anyOf": [{"required": list(required)}, {"required": ["error"]}],
    }


RUN_OUTPUT = _result(_RUN_FIELDS, ("trace_id", "status"))
_TRACE_OUTPUT = _result(
    {
        **_RUN_FIELDS,
        "steps": {"type": "array", "items": {"type": "object"}},
        "trace_hash": _TEXT,
        "head": _TEXT,
    },
    ("trace_id", "status", "steps", "trace_hash", "head"),
)
_FINDINGS = {"type": "array", "items": {"type": "object"}}
_PROGRAM_OUTPUT = _result({"name": _TEXT, "hash": _TEXT, "program": {"type": "object"}}, ("name", "hash"))


class ToolEntry(NamedTuple):
    """One tool. Hints as in MCP: `reads` changes nothing, `repeats` does nothing more when it is repeated, `destroys`
    may undo or end something, `reaches` may touch the world outside through programs' tools."""

    name: str
    title: str
    description: str
    arguments: dict[str, Any]
    output: dict[str, Any]
    reads: bool = False
    repeats: bool = False
    destroys: bool = False
    reaches: bool = False


CATALOG: tuple[ToolEntry, ...] = (
    ToolEntry(
        "run_program",
        "Run a program",
        "Start a run of a saved or inline program and wait for it. Every step is journaled before it acts. Send an "
        "idempotency_key: the same key never starts a second run, so the call can be repeated after a lost answer. A "
        "run that takes longer goes on by itself (status RUNNING: ask with get_trace); one that needs somebody is "
        "SUSPENDED and `waiting` says for what.",
        _arguments(
            {
                "program": {
                    "description": "Name or hash of a saved program, or a program as an object.",
                    "anyOf": [_PROGRAM_REF, {"type": "object"}],
                },
                "source": _SOURCE,
                "inputs": {"type": "object", "description": "The program's inputs by name."},
                "idempotency_key": {"type": "string", "minLength": 1, "maxLength": 500},
                "wait_seconds": _WAIT,
                "paused": {**_FLAG, "description": "Only create the run; step_run takes its steps."},
            }
        ),
        RUN_OUTPUT,
        reaches=True,
    ),
    ToolEntry(
        "resume_run",
        "Answer a waiting run",
        "Give a SUSPENDED run what it waits for: `event` data, `approve` true or false (your principal must hold one "
        "of the wait's roles), or the `resolution` of an unknown outcome; events and resolutions come from operators. "
        "Exactly one answer wins; the same answer again is answered alike.",
        _arguments(
            {
                "trace_id": _TRACE_ID,
                "event": {"description": "Data of the event; becomes the step's output."},
                "approve": {**_FLAG, "description": "Approve or deny what the run asks."},
                "action": {
                    "type": "string",
                    "description": "With approve: digest of the action you have seen; no other is approved.",
                },
                "nonce": {
                    "type": "string",
                    "description": "With approve: nonce of the question you have seen; no later one is answered.",
                },
                "comment": {
                    "type": "string",
                    "maxLength": 2000,
                    "description": "With approve: kept with it.",
                },
                "resolution": {"type": "string", "enum": ["succeeded", "failed", "repeat"]},
                "value": {"description": "With resolution: the output, or the message of the failure."},
                "name": {"type": "string", "description": "Name of the event, when several are waited for."},
                "step": {"type": "string", "description": "The step that waits, when several do."},
                "item": {"type": "integer", "minimum": 0, "description": "Which element of a map."},
                "event_id": {"type": "string", "description": "Identity of the event; default its content."},
                "wait_seconds": _WAIT,
            },
            "trace_id",
        ),
        RUN_OUTPUT,
        repeats=True,
        reaches=True,
    ),
    ToolEntry(
        "step_run",
        "Take single steps",
        "Take one step (or `steps`) of a run that was started with `paused`; `finish` lets it go on by itself.",
        _arguments(
            {
                "trace_id": _TRACE_ID,
                "steps": {"type": "integer", "minimum": 1, "maximum": 1000},
                "finish": _FLAG,
                "wait_seconds": _WAIT,
            },
            "trace_id",
        ),
        RUN_OUTPUT,
        reaches=True,
    ),
    ToolEntry(
        "cancel_run",
        "Cancel a run",
        "End a run: effects under way settle, what has to be undone is undone, then it is CANCELLED.",
        _arguments(
            {
                "trace_id": _TRACE_ID,
                "reason": {"type": "string", "maxLength": 2000},
                "wait_seconds": _WAIT,
            },
            "trace_id",
        ),
        RUN_OUTPUT,
        repeats=True,
        destroys=True,
        reaches=True,
    ),
    ToolEntry(
        "get_trace",
        "See what a run did",
        "The trace of a run: status, waits, every step with output, attempts, tokens and cost, and its hashes.",
        _arguments(
            {
                "trace_id": _TRACE_ID,
                "offset": {"type": "integer", "minimum": 0},
                "limit": _LIMIT,
                "outputs": {**_FLAG, "description": "With the outputs of the steps (default)."},
            },
            "trace_id",
        ),
        _TRACE_OUTPUT,
        reads=True,
    ),
    ToolEntry(
        "get_receipt",
        "Get a run's receipt",
        "What can be shown to others about a run: path, retries, refusals, cost and hashes; recomputed from the trace.",
        _arguments({"trace_id": _TRACE_ID}, "trace_id"),
        _result(
            {
                "trace_id": _TEXT,
                "receipt": {"type": "object"},
                "narrative": {**_TEXT, "description": "The receipt in plain sentences."},
            },
            ("trace_id", "receipt"),
        ),
        reads=True,
    ),
    ToolEntry(
        "verify_trace",
        "Verify a run's journal",
        "Check the hash chain, every commitment and every transition of a run. `verified` false names the first bad "
        "entry.",
        _arguments({"trace_id": _TRACE_ID}, "trace_id"),
        _result(
            {
                "trace_id": _TEXT,
                "verified": _FLAG,
                "entries": {"type": "integer"},
                "head": _TEXT,
                "trace_hash": _TEXT,
                "problem": {"type": ["object", "null"]},
            },
            ("trace_id", "verified"),
        ),
        reads=True,
    ),
    ToolEntry(
        "debug_trace",
        "Find out why a run stands as it does",
        "Failed steps and attempts, unknown outcomes, refused events, the last steps, and advice.",
        _arguments({"trace_id": _TRACE_ID}, "trace_id"),
        _result(
            {**_RUN_FIELDS, "advice": {"type": "array", "items": _TEXT}},
            ("trace_id", "status", "advice"),
        ),
        reads=True,
    ),
    ToolEntry(
        "list_runs",
        "List runs",
        "Runs, newest first. `next_after` of the answer is the `after` of the next page.",
        _arguments(
            {
                "status": {"type": "string", "enum": _STATUSES},
                "program": {"type": "string"},
                "after": {"type": "string"},
                "limit": _LIMIT,
            }
        ),
        _result(
            {"runs": {"type": "array", "items": {"type": "object"}}, "next_after": _NULL_TEXT},
            ("runs",),
        ),
        reads=True,
    ),
    ToolEntry(
        "validate_program",
        "Check a program",
        "All that is wrong with a program, with line, column and help; runs nothing.",
        _arguments({"program": {"type": "object"}, "source": _SOURCE}),
        _result({"ok": _FLAG, "findings": _FINDINGS, "hash": _NULL_TEXT}, ("ok", "findings")),
        reads=True,
    ),
    ToolEntry(
        "save_program",
        "Save a program",
        "Keep a program under its name; earlier versions stay, and runs stay with theirs.",
        _arguments({"program": {"type": "object"}, "source": _SOURCE}),
        _result({"name": _TEXT, "hash": _TEXT, "findings": _FINDINGS, "tool": _NULL_TEXT}, ("name", "hash")),
        repeats=True,
    ),
    ToolEntry(
        "list_programs",
        "List saved programs",
        "Saved programs with description and inputs, by name.",
        _arguments({"after": {"type": "string"}, "limit": _LIMIT}),
        _result(
            {"programs": {"type": "array", "items": {"type": "object"}}, "next_after": _NULL_TEXT},
            ("programs",),
        ),
        reads=True,
    ),
    ToolEntry(
        "get_program",
        "Get a saved program",
        "A saved program as its author wrote it.",
        _arguments({"program": _PROGRAM_REF}, "program"),
        _PROGRAM_OUTPUT,
        reads=True,
    ),
    ToolEntry(
        "delete_program",
        "Remove a program's name",
        "The name is no longer listed and starts no runs. The program itself, its runs and their evidence stay.",
        _arguments({"name": {"type": "string", "minLength": 1}}, "name"),
        _result({"name": _TEXT, "hash": _TEXT, "hidden": _FLAG}, ("name", "hidden")),
        repeats=True,
        destroys=True,
    ),
)
ENTRIES = {entry.name: entry for entry in CATALOG}
