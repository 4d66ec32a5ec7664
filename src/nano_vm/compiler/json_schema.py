"""JSON Schemas inside programs: are they valid, self-contained, and does a literal satisfy them?

Schemas are judged by `jsonschema_rs`. Nothing is ever fetched: a schema that refers outside itself is refused
before the library sees it.
"""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn

import jsonschema_rs

from nano_vm.program.diagnostic import did_you_mean, quote
from nano_vm.program.document import join
from nano_vm.program.labels import DECLARED
from nano_vm.program.schema_steps import TOO_MANY_STEPS, Steps

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
# Schemas under these keywords have names of the author's choice.
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})

_LABELS = tuple(DECLARED)


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
    return (
        _check_governance(schema) or check_schema(_without_governance(schema)) or _check_inputs_agree(schema)
    )


def _check_governance(schema: dict[str, Any]) -> list[SchemaFinding]:
    """`private` and `label` of an input say something that can be enforced, or are refused."""
    findings: list[SchemaFinding] = []
    properties = schema.get("properties")
    for name, rule in properties.items() if isinstance(properties, dict) else ():
        here = join("/properties", name)
        if not isinstance(rule, dict):
            continue
        if not isinstance(rule.get("private", False), bool):
            message = "`private` is true or false"
            findings.append(SchemaFinding("BAD_SCHEMA", here + "/private", message, "write `private: true`"))
        if "label" in rule and (type(rule["label"]) is not str or rule["label"] not in DECLARED):
            help = did_you_mean(str(rule["label"]), DECLARED) or "write `trusted`, `untrusted` or `secret`"
            findings.append(SchemaFinding("BAD_SCHEMA", here + "/label", "there is no such label", help))
    return findings


def _without_governance(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema, without what its inputs say of themselves: anywhere else it would go unheard."""
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return schema
    plain = {
        name: {key: value for key, value in rule.items() if key not in ("private", "label")}
        if isinstance(rule, dict)
        else rule
        for name, rule in properties.items()
    }
    return {**schema, "properties": plain}


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
    stack: list[tuple[Any, str, bool]] = [(schema, pointer, False)]
    while stack:
        node, where, named = stack.pop()
        if isinstance(node, list):
            stack.extend((item, f"{where}/{index}", False) for index, item in enumerate(node))
            continue
        if not isinstance(node, dict):
            continue
        for name, value in node.items():
            here = join(where, name)
            if named:
                stack.append((value, here, False))
            elif name in _REFERENCES and isinstance(value, str) and not value.startswith("#"):
                message, help = (
                    f"{quote(value)} is outside the schema",
                    "copy it under `$defs` and refer to `#/$defs/…`",
                )
                findings.append(SchemaFinding("BAD_SCHEMA", here, message, help))
            elif name == "$schema" and value not in (DIALECT, DIALECT + "#"):
                message = "only JSON Schema 2020-12 is understood"
                findings.append(SchemaFinding("BAD_SCHEMA", here, message, f"write {DIALECT}, or remove it"))
            elif (name == "private" and isinstance(value, bool)) or (name == "label" and value in _LABELS):
                help = "put it on the input itself, or on the step: it holds for the whole value"
                findings.append(SchemaFinding("BAD_SCHEMA", here, f"`{name}` means nothing here", help, True))
            elif name not in ("enum", "const", "default", "examples"):
                stack.append((value, here, name in _NAMED))


def validator(schema: Any) -> jsonschema_rs.Draft202012Validator:
    """Returns a validator; ValueError when the schema is invalid."""
    return jsonschema_rs.Draft202012Validator(schema, validate_formats=True, retriever=_refuse)


def _refuse(uri: str) -> NoReturn:
    raise ValueError("schemas are never fetched")


def violations(schema: Any, value: Any) -> list[tuple[str, str]]:
    """Returns pointer (into `value`) and message for everything in which a literal violates a schema."""
    if Steps(schema).exceeds(value):
        return [("", TOO_MANY_STEPS)]
    found = []
    for error in validator(schema).iter_errors(value):
        found.append(("".join(join("", part) for part in error.instance_path), _message(error)))
    return found


def _message(error: Exception) -> str:
    text = str(getattr(error, "message", error)).split("\n", 1)[0]
    return text if len(text) <= 160 else text[:157] + "…"
