"""The table of the language: every field of SPEC §2, once.

Structural validation (`validate`) and the published JSON Schema (`schema`) are both made from this table, so
they cannot disagree. Rules are written in a small subset of JSON Schema 2020-12.
"""

from __future__ import annotations

from typing import Any

import msgspec

Rule = dict[str, Any]

STEP_TYPES = ("llm", "tool", "agent", "condition", "parallel", "wait", "map", "call")
LANE_TYPES = {  # what may stand inside parallel and map
    "parallel": ("llm", "tool", "agent", "call", "wait"),
    "map": ("llm", "tool", "call", "wait"),
}

RESERVED_NAMES = frozenset({"event", "args", "principal", "run", "item", "index"})

IDENTIFIER_PATTERN = "^[A-Za-z_][A-Za-z0-9_]*$"
SECONDS_MAX = 3_155_760_000  # a hundred years
USD_MAX = 9_000_000  # in nano-dollars still below 2^53

_IDENTIFIER: Rule = {"type": "string", "pattern": IDENTIFIER_PATTERN, "maxLength": 100}
_TEXT: Rule = {"type": "string", "minLength": 1}
_LABEL: Rule = {"type": "string", "minLength": 1, "maxLength": 200}
_COUNT: Rule = {"type": "integer", "minimum": 1}
_SECONDS: Rule = {"type": "number", "exclusiveMinimum": 0, "maximum": SECONDS_MAX}
_OBJECT: Rule = {"type": "object"}
_EVENT: Rule = {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_.:-]*$", "maxLength": 200}

_ALL = STEP_TYPES
_ALL_BUT_CONDITION = tuple(name for name in STEP_TYPES if name != "condition")
_LIST = "list"  # among the program's steps
_PARALLEL = "parallel"  # inside a parallel
_MAP = "map"  # inside a map
_ANYWHERE = (_LIST, _PARALLEL, _MAP)


class Field(msgspec.Struct, frozen=True):
    """One field of a step: `on` these step types, at these `places` ("list", "parallel", "map")."""

    name: str
    on: tuple[str, ...]
    rule: Rule
    meaning: str
    required: bool = False
    default: Any = None
    places: tuple[str, ...] = _ANYWHERE


PROGRAM_FIELDS: dict[str, Field] = {
    field.name: field
    for field in (
        Field("name", (), _LABEL, "The program's name.", default="unnamed"),
        Field("version", (), _LABEL, "The author's version of the program.", default="1.0"),
        Field("description", (), {"type": "string"}, "What the program is for."),
        Field(
            "inputs",
            (),
            _OBJECT,
            "JSON Schema (2020-12) of the inputs; complete where it is given. Beside its `type` an input may have "
            "`private: true` and `label: trusted | untrusted | secret`.",
        ),
        Field(
            "outputs",
            (),
            {"type": "object", "additionalProperties": _TEXT},
            "Key outputs: name to reference. `outcome_hash` covers them.",
        ),
        Field(
            "subject",
            (),
            _TEXT,
            "Reference to whose data the private values are: an input, `$principal.id` or `$run.id` (the default).",
        ),
        Field("max_steps", (), _COUNT, "Budget: attempts and branch targets.", default=10_000),
        Field("max_tokens", (), _COUNT, "Budget: model tokens of the whole run."),
        Field(
            "max_stalled_steps", (), _COUNT, "Steps in a row that change nothing before the run is STALLED."
        ),
        Field(
            "max_cost_usd",
            (),
            {"type": "number", "exclusiveMinimum": 0, "maximum": USD_MAX},
            "Budget: model cost of the whole run, in US dollars.",
        ),
        Field(
            "max_duration_seconds", (), _SECONDS, "Budget: running time; time spent SUSPENDED does not count."
        ),
        Field("steps", (), {"type": "array", "minItems": 1}, "The steps, in order.", required=True),
    )
}

_RETRY: Rule = {
    "type": "object",
    "properties": {
        "initial": {**_SECONDS, "description": "Seconds before the second attempt (1)."},
        "factor": {
            "type": "number",
            "minimum": 1,
            "maximum": 1000,
            "description": "Growth of the delay (2).",
        },
        "cap": {**_SECONDS, "description": "The longest delay in seconds (30)."},
        "jitter": {"type": "boolean", "description": "Draw each delay from its upper half (true)."},
    },
    "additionalProperties": False,
}
_COMPENSATE: Rule = {
    "type": "object",
    "properties": {
        "tool": {**_TEXT, "description": "The tool that undoes this step."},
        "args": {**_OBJECT, "description": "Its arguments, rendered when this step has succeeded."},
    },
    "required": ["tool"],
    "additionalProperties": False,
}
_ROLES: Rule = {"type": "array", "items": _LABEL, "minItems": 1, "uniqueItems": True}

_MODEL = ("llm", "agent")
AGENT_TOOLS_MAX = 128
AGENT_TURNS_MAX = 1_000
AGENT_TURNS_DEFAULT = 10
_TOOLS: Rule = {
    "type": "array",
    # Events name an action by its step and tool, and `/` in such a name leads into a child run.
    "items": {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_.:-]*$", "maxLength": 100},
    "minItems": 1,
    "maxItems": AGENT_TOOLS_MAX,
    "uniqueItems": True,
}

_ROWS: tuple[Field, ...] = (
    Field("id", _ALL, _IDENTIFIER, "The step's name, unique in the program.", required=True),
    Field("type", _ALL, {"type": "string", "enum": list(STEP_TYPES)}, "What the step does.", required=True),
    Field("description", _ALL, {"type": "string"}, "What the step is for."),
    Field(
        "depends_on",
        _ALL,
        {"type": "array", "items": _IDENTIFIER, "uniqueItems": True},
        "Steps that must have settled before; makes the program a DAG.",
        places=(_LIST,),
    ),
    # --- llm, agent
    Field("prompt", _MODEL, _TEXT, "Template of the prompt.", required=True),
    Field("system", _MODEL, _TEXT, "Template of the system message."),
    Field("model", _MODEL, _TEXT, "Template of the model's name; the runtime's default without it."),
    Field("params", _MODEL, _OBJECT, "Provider-neutral parameters (templates), such as max_tokens."),
    Field(
        "allowed_outputs",
        _MODEL,
        {"type": "array", "items": _TEXT, "minItems": 1, "uniqueItems": True},
        "The only answers that pass, after stripping white space.",
    ),
    Field("normalize", _MODEL, {"type": "string", "enum": ["casefold"]}, "How answers are compared."),
    Field(
        "output_schema",
        _MODEL,
        {"type": ["object", "boolean"]},
        "JSON Schema of the answer; it is then parsed.",
    ),
    # --- agent
    Field(
        "tools",
        ("agent",),
        _TOOLS,
        "The tools that the model may propose to call, and no others.",
        required=True,
    ),
    Field(
        "max_turns",
        ("agent",),
        {**_COUNT, "maximum": AGENT_TURNS_MAX},
        "How often the model may answer before it has to be done.",
        default=AGENT_TURNS_DEFAULT,
    ),
    # --- tool
    Field("tool", ("tool",), _TEXT, "The tool's name.", required=True),
    Field("args", ("tool",), _OBJECT, "The tool's arguments (templates; references keep their type)."),
    Field("idempotency_key", ("tool",), _TEXT, "Template of the business key of this action, across runs."),
    Field(
        "compensate", ("tool",), _COMPENSATE, "The tool that undoes this step when the run does not succeed."
    ),
    # --- condition
    Field("condition", ("condition",), _TEXT, "An expression.", required=True),
    Field("then", ("condition",), _IDENTIFIER, "The step to go to when it holds, or `continue`."),
    Field("otherwise", ("condition",), _IDENTIFIER, "The step to go to when it does not, or `continue`."),
    # --- parallel
    Field(
        "parallel_steps",
        ("parallel",),
        {"type": "array", "minItems": 1},
        "Sub-steps that run at once.",
        required=True,
    ),
    # --- wait
    Field("event", ("wait",), _EVENT, "The event to wait for."),
    Field(
        "seconds",
        ("wait",),
        {"type": ["number", "string"], "exclusiveMinimum": 0, "maximum": SECONDS_MAX, "minLength": 1},
        "A durable timer: a number, or a template of one.",
    ),
    Field(
        "until",
        ("wait",),
        {"type": ["number", "string"], "exclusiveMinimum": 0, "minLength": 1},
        "RFC 3339 time or epoch seconds, or a template of one.",
    ),
    Field("accept", ("wait",), _TEXT, "An expression over `$event`; events it refuses are rejected."),
    Field("approvers", ("wait",), _ROLES, "Roles, one of which must approve."),
    Field(
        "label",
        ("wait",),
        {"type": "string", "enum": ["trusted", "untrusted", "secret"]},
        "What the event's content counts as.",
        default="untrusted",
    ),
    Field(
        "approves",
        ("wait",),
        _IDENTIFIER,
        "The tool step whose exact action is approved; anything else about it then needs a new approval.",
        places=(_LIST, _PARALLEL),
    ),
    # --- map
    Field(
        "over",
        ("map",),
        {"type": ["string", "array"], "minLength": 1},
        "The list: a reference or a template.",
        required=True,
    ),
    Field(
        "step", ("map",), _OBJECT, "The sub-step, run once per element (`$item`, `$index`).", required=True
    ),
    Field("max_items", ("map",), _COUNT, "A longer list fails before its first element.", default=1000),
    Field("max_concurrency", ("map", "parallel"), _COUNT, "How many sub-steps run at once."),
    # --- call
    Field("program", ("call",), _LABEL, "Name or hash of a stored program.", required=True),
    Field("inputs", ("call",), _OBJECT, "The child's inputs (templates)."),
    # --- every step that does something
    Field(
        "output_key",
        _ALL_BUT_CONDITION,
        _IDENTIFIER,
        "Also binds the output as `$key`.",
        places=(_LIST, _PARALLEL),
    ),
    Field(
        "private",
        _ALL_BUT_CONDITION,
        {"type": "boolean"},
        "The output is personal data: stored encrypted only, and erasable.",
        default=False,
    ),
    Field("next_step", _ALL_BUT_CONDITION, _IDENTIFIER, "Continue there.", places=(_LIST,)),
    Field(
        "is_terminal",
        _ALL_BUT_CONDITION,
        {"type": "boolean"},
        "The run ends after this step.",
        default=False,
        places=(_LIST,),
    ),
    Field(
        "final_status",
        _ALL_BUT_CONDITION,
        {"type": "string", "enum": ["SUCCESS", "FAILED"]},
        "The status a terminal step ends the run with.",
        default="SUCCESS",
        places=(_LIST,),
    ),
    Field(
        "outcome",
        _ALL_BUT_CONDITION,
        _LABEL,
        "The business outcome a terminal step ends the run with.",
        places=(_LIST,),
    ),
    Field(
        "on_error",
        _ALL_BUT_CONDITION,
        {"type": "string", "enum": ["fail", "skip", "retry"]},
        "What a failed attempt means.",
        default="fail",
    ),
    Field(
        "max_retries",
        _ALL_BUT_CONDITION,
        {**_COUNT, "maximum": 1000},
        "Attempts in total, with on_error: retry.",
        default=3,
    ),
    Field("retry", _ALL_BUT_CONDITION, _RETRY, "Back-off between attempts."),
    Field(
        "on_failure",
        _ALL_BUT_CONDITION,
        _IDENTIFIER,
        "Continue there when the step has failed for good.",
        places=(_LIST,),
    ),
    Field("timeout_seconds", _ALL_BUT_CONDITION, _SECONDS, "How long one attempt may take."),
    Field(
        "on_timeout",
        _ALL_BUT_CONDITION,
        {"type": "string", "enum": ["fail", "fallback"]},
        "What a time-out means.",
        default="fail",
    ),
    Field("fallback", _ALL_BUT_CONDITION, {}, "The value that takes the output's place after a time-out."),
)

STEP_FIELDS: dict[str, Field] = {field.name: field for field in _ROWS}


def fields_of(step_type: str, place: str) -> dict[str, Field]:
    """Returns the fields that a step of this type may have at this place, in table order."""
    return _FIELDS_OF[step_type, place]


_FIELDS_OF: dict[tuple[str, str], dict[str, Field]] = {
    (step_type, place): {
        field.name: field for field in _ROWS if step_type in field.on and place in field.places
    }
    for step_type in STEP_TYPES
    for place in _ANYWHERE
}
