"""JSON Schemas inside programs: are they valid, self-contained, and does a literal satisfy them?

Schemas are judged by `jsonschema_rs`. Nothing is ever fetched: a schema that refers outside itself is refused
before the library sees it.
"""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn

import jsonschema_rs

from nano_vm.program.diagnostic import did_you_mean, quote
from nano_vm.program.document import join

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_KEYWORDS = frozenset(
    [
        "$schema",
        "$id",
        "$anchor",
        "$dynamicAnchor",
        "$ref",
        "$dynamicRef",
        "$defs",
        "$comment",
        "$vocabulary",
        "definitions",
        "title",
        "description",
        "default",
        "deprecated",
        "readOnly",
        "writeOnly",
        "examples",
        "type",
        "enum",
        "const",
        "multipleOf",
        "maximum",
        "exclusiveMaximum",
        "minimum",
        "exclusiveMinimum",
        "maxLength",
        "minLength",
        "pattern",
        "maxItems",
        "minItems",
        "uniqueItems",
        "maxContains",
        "minContains",
        "maxProperties",
        "minProperties",
        "required",
        "dependentRequired",
        "dependentSchemas",
        "properties",
        "patternProperties",
        "additionalProperties",
        "propertyNames",
        "unevaluatedProperties",
        "unevaluatedItems",
        "prefixItems",
        "items",
        "contains",
        "allOf",
        "anyOf",
        "oneOf",
        "not",
        "if",
        "then",
        "else",
        "format",
        "contentEncoding",
        "contentMediaType",
        "contentSchema",
    ]
)
_UNAVAILABLE = "private"


class SchemaFinding(NamedTuple):
    """`pointer` is relative to the schema; `key` means the name of the member rather than its value."""

    code: str
    pointer: str
    message: str
    help: str
    key: bool = False


def check_schema(schema: Any) -> list[SchemaFinding]:
    """Returns what is wrong with a JSON Schema (2020-12) that an author wrote."""
    findings: list[SchemaFinding] = []
    _walk(schema, "", findings)
    if findings:
        return findings
    try:
        validator(schema)
    except ValueError as error:
        path = getattr(error, "instance_path", None) or []
        pointer = "".join(join("", part) for part in path)
        message = _message(error)
        return [
            SchemaFinding("BAD_SCHEMA", pointer, f"not a JSON Schema: {message}", "see JSON Schema 2020-12")
        ]
    return []


def check_inputs(schema: dict[str, Any]) -> list[SchemaFinding]:
    """Returns what is wrong with `inputs`: a JSON Schema of an object that names its properties."""
    strange = [name for name in schema if name not in _KEYWORDS and not name.startswith("x-")]
    findings: list[SchemaFinding] = []
    for name in strange:
        help = did_you_mean(name, _KEYWORDS) if "properties" in schema else None
        help = help or "write `type: object` and put the inputs under `properties:`"
        findings.append(
            SchemaFinding(
                "BAD_SCHEMA", join("", name), f"{quote(name)} is no keyword of JSON Schema", help, True
            )
        )
    if findings:
        return findings
    if schema.get("type") != "object":
        pointer = "/type" if "type" in schema else ""
        message, help = "`inputs` must be the schema of an object", "write `type: object`"
        return [SchemaFinding("BAD_SCHEMA", pointer, message, help)]
    return check_schema(schema) or _check_inputs_agree(schema)


def _check_inputs_agree(schema: dict[str, Any]) -> list[SchemaFinding]:
    """What is required is declared, and a default is something its own schema accepts."""
    findings: list[SchemaFinding] = []
    properties = schema.get("properties", {})
    for index, name in enumerate(schema.get("required", ())):
        if name not in properties:
            help = did_you_mean(name, properties) or "declare it under `properties`"
            message = f"the required input {quote(name)} is not declared"
            findings.append(SchemaFinding("BAD_SCHEMA", f"/required/{index}", message, help))
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    for name, rule in properties.items():
        if isinstance(rule, dict) and "default" in rule:
            for _, message in violations({**shared, **rule}, rule["default"])[:1]:
                where = join("/properties", name) + "/default"
                help = "write a default that the input's own schema accepts"
                findings.append(
                    SchemaFinding("BAD_SCHEMA", where, f"the default does not fit: {message}", help)
                )
    return findings


def _walk(schema: Any, pointer: str, findings: list[SchemaFinding]) -> None:
    stack: list[tuple[Any, str]] = [(schema, pointer)]
    while stack:
        node, where = stack.pop()
        if isinstance(node, list):
            stack.extend((item, f"{where}/{index}") for index, item in enumerate(node))
            continue
        if not isinstance(node, dict):
            continue
        for name, value in node.items():
            here = join(where, name)
            if name in _REFERENCES and isinstance(value, str) and not value.startswith("#"):
                message, help = (
                    f"{quote(value)} is outside the schema",
                    "copy it under `$defs` and refer to `#/$defs/…`",
                )
                findings.append(SchemaFinding("BAD_SCHEMA", here, message, help))
            elif name == "$schema" and value not in (DIALECT, DIALECT + "#"):
                message = "only JSON Schema 2020-12 is understood"
                findings.append(SchemaFinding("BAD_SCHEMA", here, message, f"write {DIALECT}, or remove it"))
            elif name == _UNAVAILABLE and isinstance(value, bool):
                help = "remove it: this version does not enforce it yet, and will not pretend to"
                findings.append(SchemaFinding("NOT_AVAILABLE", here, "`private` is not available yet", help))
            elif name not in ("enum", "const", "default", "examples"):
                stack.append((value, here))


def validator(schema: Any) -> jsonschema_rs.Draft202012Validator:
    """Returns a validator; ValueError when the schema is invalid."""
    return jsonschema_rs.Draft202012Validator(schema, validate_formats=True, retriever=_refuse)


def _refuse(uri: str) -> NoReturn:
    raise ValueError("schemas are never fetched")


def violations(schema: Any, value: Any) -> list[tuple[str, str]]:
    """Returns pointer (into `value`) and message for everything in which a literal violates a schema."""
    found = []
    for error in validator(schema).iter_errors(value):
        found.append(("".join(join("", part) for part in error.instance_path), _message(error)))
    return found


def _message(error: Exception) -> str:
    text = str(getattr(error, "message", error)).split("\n", 1)[0]
    return text if len(text) <= 160 else text[:157] + "…"
