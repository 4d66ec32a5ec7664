"""The table of a policy's fields, once: validation and the published JSON Schema are both made from it.

Written in the small subset of JSON Schema that `nano_vm.program.validate` understands.
"""

from __future__ import annotations

import copy
from typing import Any

from nano_vm.program.fields import Rule

DECISIONS = ("allow", "ask", "deny")
SCOPES = ("run", "principal", "minute", "hour", "day")
RESERVED_RULES = frozenset({"default", "tools", "models"})  # ids of the decisions that no rule makes

SUM_MAX = 9_000_000_000  # in millionths still below 2^53
TOKENS_MAX = 9_000_000_000_000_000
COST_USD_MAX = 9_000_000  # in nano-dollars still below 2^53
SECONDS_MAX = 315_576_000  # ten years
RULES_MAX = 10_000

_NAME: Rule = {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_.:-]*$", "maxLength": 100}
_PATTERN: Rule = {"type": "string", "minLength": 1, "maxLength": 200}
_PATTERNS: Rule = {"type": "array", "items": _PATTERN, "minItems": 1, "uniqueItems": True}
_LABEL: Rule = {"type": "string", "minLength": 1, "maxLength": 200}

_APPROVAL: Rule = {
    "type": "object",
    "properties": {
        "roles": {
            "type": "array",
            "items": _LABEL,
            "minItems": 1,
            "uniqueItems": True,
            "description": "Roles, one of which an approver must hold.",
        },
        "four_eyes": {
            "type": "boolean",
            "description": "Whoever started the run may not approve it (true).",
        },
        "count": {
            "type": "integer",
            "minimum": 1,
            "maximum": 10,
            "description": "How many different people must approve (1).",
        },
        "expiry_seconds": {
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": SECONDS_MAX,
            "description": "How long the request, and then the approval, is good for (86400).",
        },
    },
    "required": ["roles"],
    "additionalProperties": False,
}
_LIMIT: Rule = {
    "type": "object",
    "properties": {
        "max_calls": {"type": "integer", "minimum": 1, "description": "How many calls."},
        "max_sum": {
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": SUM_MAX,
            "description": "How much in all; `of` says what is added up.",
        },
        "max_tokens": {
            "type": "integer",
            "minimum": 1,
            "maximum": TOKENS_MAX,
            "description": "Of models: how many tokens, of prompts and answers together.",
        },
        "max_cost_usd": {
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": COST_USD_MAX,
            "description": "Of models: how many dollars. A model without a price is denied.",
        },
        "of": {"type": "string", "minLength": 1, "description": "A reference to a number: $args.amount"},
        "per": {
            "type": "array",
            "items": {"type": "string", "enum": list(SCOPES)},
            "minItems": 1,
            "uniqueItems": True,
            "description": "What is counted together: run, principal, and minute, hour or day (UTC).",
        },
    },
    "required": ["per"],
    "additionalProperties": False,
}
_RULE: Rule = {
    "type": "object",
    "properties": {
        "id": {
            **_NAME,
            "description": "The rule's name, unique in the policy: decisions are journaled with it.",
        },
        "description": {"type": "string", "description": "What the rule is for."},
        "tools": {**_PATTERNS, "description": "Tools it is about: names, or beginnings of names and `*`."},
        "models": {**_PATTERNS, "description": "Models it is about; `default` is the adapter's own."},
        "decision": {
            "type": "string",
            "enum": list(DECISIONS),
            "description": "allow (default), deny, or ask, which needs `approval`.",
        },
        "when": {
            "type": "string",
            "minLength": 1,
            "description": "An expression over $args, $principal and $run; without one the rule always applies.",
        },
        "requires": {
            "type": "array",
            "items": {"type": "string", "minLength": 1, "maxLength": 200},
            "minItems": 1,
            "uniqueItems": True,
            "description": "Tools, or steps as `step:ID`, that must have succeeded in the run before.",
        },
        "approval": {**_APPROVAL, "description": "Who must approve the action."},
        "limits": {
            "type": "array",
            "items": _LIMIT,
            "minItems": 1,
            "description": "How often, and how much.",
        },
    },
    "required": ["id"],
    "additionalProperties": False,
}
POLICY: Rule = {
    "type": "object",
    "properties": {
        "policy": {**_NAME, "description": "The policy's name: its limits count under it."},
        "version": {**_LABEL, "description": "The author's version of the policy."},
        "description": {"type": "string", "description": "What the policy is for."},
        "default": {
            "type": "string",
            "enum": ["allow", "deny"],
            "description": "What is decided where no rule applies (deny).",
        },
        "tools": {
            **_PATTERNS,
            "description": "Tools that are allowed as they are; no rule may be about them.",
        },
        "models": {**_PATTERNS, "description": "Models that are allowed as they are."},
        "rules": {
            "type": "array",
            "items": _RULE,
            "description": "The rules: deny wins over ask, ask over allow.",
        },
    },
    "required": ["policy"],
    "additionalProperties": False,
}


def policy_schema() -> dict[str, Any]:
    """Returns the JSON Schema (2020-12) of a policy, for editors. What it cannot say `nano-vm policy check` does."""
    schema: dict[str, Any] = copy.deepcopy(POLICY)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "nano-vm policy", **schema}
