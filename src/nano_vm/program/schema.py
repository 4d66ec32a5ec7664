"""The published JSON Schema (2020-12) of a program, made from the table in `fields`."""

from __future__ import annotations

import copy
from typing import Any

from nano_vm.program.fields import LANE_TYPES, PROGRAM_FIELDS, STEP_TYPES, Field, Rule, fields_of

_PLACES = (
    ("list", "step", STEP_TYPES),
    ("parallel", "parallel_lane", LANE_TYPES["parallel"]),
    ("map", "map_lane", LANE_TYPES["map"]),
)


def program_schema() -> dict[str, Any]:
    """Returns the JSON Schema of a program: for editors, and for anybody who writes programs by machine.

    It says what a well-formed document is; whether its references, branches and types hold together only the
    compiler can say.
    """
    properties = {name: _property(field) for name, field in PROGRAM_FIELDS.items()}
    properties["steps"]["items"] = {"$ref": "#/$defs/step"}
    definitions: dict[str, Any] = {}
    for place, name, types in _PLACES:
        definitions[name] = _any_step(place, name, types)
        for step_type in types:
            definitions[f"{step_type}_{name}"] = _one_step(step_type, place)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "nano-vm program",
        "type": "object",
        "properties": properties,
        "required": [name for name, field in PROGRAM_FIELDS.items() if field.required],
        "additionalProperties": False,
        "$defs": definitions,
    }


def _property(field: Field) -> Rule:
    rule = copy.deepcopy(field.rule)
    rule["description"] = field.meaning
    if field.default is not None:
        rule["default"] = field.default
    return rule


def _any_step(place: str, name: str, types: tuple[str, ...]) -> Rule:
    # `if` chains rather than `oneOf`: editors then complete the fields of the chosen type, and validators
    # complain about that type alone.
    return {
        "type": "object",
        "properties": {"type": {"type": "string", "enum": list(types), "description": "What the step does."}},
        "required": ["id", "type"],
        "allOf": [
            {
                "if": {"properties": {"type": {"const": step_type}}, "required": ["type"]},
                "then": {"$ref": f"#/$defs/{step_type}_{name}"},
            }
            for step_type in types
        ],
    }


def _one_step(step_type: str, place: str) -> Rule:
    fields = fields_of(step_type, place)
    properties = {name: _property(field) for name, field in fields.items()}
    properties["type"] = {"const": step_type, "description": "What the step does."}
    if "parallel_steps" in properties:
        properties["parallel_steps"]["items"] = {"$ref": "#/$defs/parallel_lane"}
    if "step" in properties:
        properties["step"] = {"$ref": "#/$defs/map_lane", "description": fields["step"].meaning}
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name, field in fields.items() if field.required],
        "additionalProperties": False,
    }
