"""Structural validation: is this document a program at all?

Every value is held against the table in `fields`. All findings are reported at once, and the pointers of what
was refused are kept, so that the compiler can go on with the sound part.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from nano_vm.program.diagnostic import ERROR, Diagnostic, closest, did_you_mean, quote
from nano_vm.program.document import Document, join
from nano_vm.program.fields import (
    IDENTIFIER_PATTERN,
    LANE_TYPES,
    PROGRAM_FIELDS,
    STEP_FIELDS,
    STEP_TYPES,
    Field,
    Rule,
    fields_of,
)

_TYPE_NAMES = {
    "string": "a string",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "object": "a mapping",
    "array": "a list",
}
_PATTERNS: dict[str, re.Pattern[str]] = {}
# What gives a step's type away when the author forgot to write it.
_INNER = frozenset({"parallel_steps", "step"})  # fields that hold steps
_TELLTALE = {
    "prompt": "llm",
    "tools": "agent",
    "max_turns": "agent",
    "tool": "tool",
    "condition": "condition",
    "parallel_steps": "parallel",
    "event": "wait",
    "seconds": "wait",
    "until": "wait",
    "approvers": "wait",
    "over": "map",
    "program": "call",
}
# Names from other systems whose meaning is known but whose spelling is too far for a did-you-mean.
_SYNONYMS = {
    "else": "otherwise",
    "if": "condition",
    "next": "next_step",
    "goto": "next_step",
    "end": "is_terminal",
    "retries": "max_retries",
    "timeout": "timeout_seconds",
    "function": "tool",
    "arguments": "args",
    "output": "output_key",
    "needs": "depends_on",
    "steps": "parallel_steps",
    "branches": "parallel_steps",
    "items": "over",
    "input": "inputs",
}


class Validation(msgspec.Struct):
    """`bad` holds the pointers of the values that were refused; what is below them was not looked at."""

    diagnostics: list[Diagnostic]
    bad: set[str]


def validate(document: Document) -> Validation:
    """Returns every structural finding of a document, its own findings included."""
    validator = _Validator(document)
    if document.data is None and document.findings:
        return Validation(list(document.findings), {""})
    validator.program(document.data)
    return Validation([*document.findings, *validator.diagnostics], validator.bad)


def validate_value(document: Document, rule: Rule, name: str) -> Validation:
    """Returns every structural finding of a document of another kind, held against one rule; `name` is what it is
    called in messages."""
    validator = _Validator(document)
    if document.data is None and document.findings:
        return Validation(list(document.findings), {""})
    validator._value(document.data, rule, "", name)
    return Validation([*document.findings, *validator.diagnostics], validator.bad)


class _Validator:
    def __init__(self, document: Document) -> None:
        self.document = document
        self.diagnostics: list[Diagnostic] = []
        self.bad: set[str] = set()
        self._step: str | None = None

    def _add(
        self,
        code: str,
        pointer: str,
        message: str,
        help: str | None,
        *,
        key: bool = False,
        field: str | None = None,
    ) -> None:
        self.bad.add(pointer)
        place, length = self.document.place(pointer, key=key, step=self._step, field=field)
        self.diagnostics.append(Diagnostic(code, ERROR, message, help, place, length))

    # --- the program --------------------------------------------------------------------------------------

    def program(self, data: Any) -> None:
        if not isinstance(data, dict):
            help = "a program is a mapping with `steps`"
            if isinstance(data, list):
                help = "write the list under `steps:`"
            elif isinstance(data, str) and data.lower().endswith((".yaml", ".yml", ".json")):
                help = "to read a file: Program.from_file"
            self._add("NOT_A_PROGRAM", "", f"a program cannot be {_describe(data)}", help)
            return
        for name, value in data.items():
            pointer = join("", name)
            field = PROGRAM_FIELDS.get(name)
            if field is None:
                self._unknown_field(name, pointer, PROGRAM_FIELDS, "program")
            elif name != "steps":
                self._value(value, field.rule, pointer, name)
        for name, field in PROGRAM_FIELDS.items():
            if field.required and name not in data:
                self._add("MISSING_FIELD", "", f"the program has no `{name}`", f"add `{name}:`")
        if "steps" in data and self._value(data["steps"], PROGRAM_FIELDS["steps"].rule, "/steps", "steps"):
            for index, step in enumerate(data["steps"]):
                self._check_step(step, f"/steps/{index}", "list")

    def _unknown_field(self, name: str, pointer: str, known: Iterable[str], where: str) -> None:
        candidates = list(known)
        synonym = _SYNONYMS.get(name)
        help = did_you_mean(name, candidates) or f"a {where} has {_listing(candidates)}"
        if synonym in candidates:
            help = f"did you mean `{synonym}`?"
        self._add("UNKNOWN_FIELD", pointer, f"unknown field {quote(name)}", help, key=True, field=name)

    # --- steps --------------------------------------------------------------------------------------------

    def _check_step(self, step: Any, pointer: str, place: str) -> None:
        if not isinstance(step, dict):
            help = "write a mapping with `id` and `type`"
            self._add("WRONG_TYPE", pointer, f"a step cannot be {_describe(step)}", help)
            return
        outer = self._step
        identifier = step.get("id")
        self._step = identifier if isinstance(identifier, str) else outer
        try:
            step_type = self._step_type(step, pointer, place)
            if step_type is None:
                self.bad.add(pointer + "/type")
                # Without a type nothing is known of what belongs there, but a field has one rule wherever it stands.
                # Nobody is to rely on the rest.
                for name, value in step.items():
                    field = STEP_FIELDS.get(name)
                    if field is None or name in _INNER:
                        self.bad.add(join(pointer, name))
                    elif name != "type":
                        self._value(value, field.rule, f"{pointer}/{name}", name)
                return
            self._fields(step, step_type, pointer, place)
        finally:
            self._step = outer

    def _step_type(self, step: dict[str, Any], pointer: str, place: str) -> str | None:
        types = STEP_TYPES if place == "list" else LANE_TYPES[place]
        if "type" not in step:
            guess = next((kind for name, kind in _TELLTALE.items() if name in step), None)
            help = f"add `type: {guess}`" if guess else "add `type:` with one of " + _listing(types)
            self._add("MISSING_FIELD", pointer, "the step has no `type`", help, field="type")
            return None
        value, where = step["type"], pointer + "/type"
        if not isinstance(value, str):
            self._add(
                "WRONG_TYPE",
                where,
                f"`type` cannot be {_describe(value)}",
                "use one of " + _listing(types),
                field="type",
            )
            return None
        if value in types:
            return value
        if value in STEP_TYPES:
            help = (
                f"inside {place} only {_listing(types)} may stand; move it out, or put it into a "
                "program of its own "
            )
            help += "and `call` that"
            self._add(
                "SUBSTEP_NOT_ALLOWED",
                where,
                f"{_a(value)} step cannot stand inside {place}",
                help,
                field="type",
            )
            return None
        help = did_you_mean(value, types) or "use one of " + _listing(types)
        self._add("BAD_VALUE", where, f"unknown step type {quote(value)}", help, field="type")
        return None

    def _fields(self, step: dict[str, Any], step_type: str, pointer: str, place: str) -> None:
        fields = fields_of(step_type, place)
        for name, value in step.items():
            field = fields.get(name)
            if field is None:
                self._misplaced(name, step_type, join(pointer, name), place, fields)
            elif name == "parallel_steps":
                where = pointer + "/parallel_steps"
                if self._value(value, field.rule, where, name):
                    for index, lane in enumerate(value):
                        self._check_step(lane, f"{where}/{index}", "parallel")
            elif name == "step":
                self._check_step(value, pointer + "/step", "map")
            elif name != "type":
                self._value(value, field.rule, join(pointer, name), name)
        for name, field in fields.items():
            if field.required and name not in step:
                what = f"{_a(step_type)} step" if name != "id" else "every step"
                self._add(
                    "MISSING_FIELD",
                    pointer,
                    f"the step has no `{name}`",
                    f"{what} needs `{name}`",
                    field=name,
                )

    def _misplaced(
        self, name: str, step_type: str, pointer: str, place: str, fields: dict[str, Field]
    ) -> None:
        known = STEP_FIELDS.get(name)
        if known is None:
            self._unknown_field(name, pointer, fields, f"{step_type} step")
        elif step_type not in known.on:
            near = closest(name, fields)
            help = "a condition only decides: put it on the step before or after"
            if len(known.on) < len(STEP_TYPES) - 1:
                help = f"`{name}` belongs to {_listing(known.on)} steps"
            if near is not None:
                help += f"; did you mean `{near}`?"
            message = f"`{name}` does not belong to {_a(step_type)} step"
            self._add("FIELD_NOT_ALLOWED", pointer, message, help, key=True, field=name)
        else:
            help = f"put `{name}` on the {place} step itself"
            if name == "output_key":
                help = (
                    "there is one output per element; put `output_key` on the map step, whose output "
                    "is the list"
                )
            message = f"`{name}` has no place inside {place}"
            self._add("SUBSTEP_NOT_ALLOWED", pointer, message, help, key=True, field=name)

    # --- values -------------------------------------------------------------------------------------------

    def _value(self, value: Any, rule: Rule, pointer: str, field: str) -> bool:
        """Holds a value against a rule; True if it passes."""
        wanted = rule.get("type")
        if wanted is not None and not _is_type(value, wanted):
            written = self.document.written(pointer) if isinstance(value, bool | int | float) else None
            help = _type_help(value, wanted, written)
            kinds = [wanted] if isinstance(wanted, str) else wanted
            message = (
                f"`{field}` must be {' or '.join(_TYPE_NAMES[kind] for kind in kinds)}, not "
                f"{_describe(value)}"
            )
            self._add("WRONG_TYPE", pointer, message, help, field=field)
            return False
        if isinstance(value, str):
            return self._string(value, rule, pointer, field)
        if isinstance(value, bool):
            return True
        if isinstance(value, int | float):
            return self._number(value, rule, pointer, field)
        if isinstance(value, list):
            return self._list(value, rule, pointer, field)
        if isinstance(value, dict):
            return self._mapping(value, rule, pointer, field)
        return True

    def _string(self, value: str, rule: Rule, pointer: str, field: str) -> bool:
        options = rule.get("enum")
        if options is not None and value not in options:
            help = did_you_mean(value, options) or "use one of " + _listing(options)
            self._add("BAD_VALUE", pointer, f"`{field}` cannot be {quote(value)}", help, field=field)
            return False
        if len(value) < rule.get("minLength", 0):
            self._add(
                "BAD_VALUE",
                pointer,
                f"`{field}` is empty",
                f"write something, or remove `{field}`",
                field=field,
            )
            return False
        pattern = rule.get("pattern")
        if pattern is not None and not _pattern(pattern).fullmatch(value):
            self._bad_name(value, pattern, pointer, field)
            return False
        if len(value) > rule.get("maxLength", len(value)):
            message = f"`{field}` is longer than {rule['maxLength']} characters"
            self._add("BAD_VALUE", pointer, message, "shorten it", field=field)
            return False
        return True

    def _bad_name(self, value: str, pattern: str, pointer: str, field: str) -> None:
        mended = re.sub(r"[^A-Za-z0-9_]", "_", value.strip().lstrip("$"))
        if mended[:1].isdigit():
            mended = "_" + mended
        help = f"write `{mended}`" if mended.strip("_") else "use letters, digits and underscores"
        code = "BAD_IDENTIFIER" if pattern == IDENTIFIER_PATTERN else "BAD_VALUE"
        extra = "" if pattern == IDENTIFIER_PATTERN else ", and `.`, `:`, `-`"
        message = (
            f"`{field}` {quote(value)} must begin with a letter and hold only letters, digits and `_`{extra}"
        )
        self._add(code, pointer, message, help, field=field)

    def _number(self, value: int | float, rule: Rule, pointer: str, field: str) -> bool:
        if "minimum" in rule and value < rule["minimum"]:
            message, help = (
                f"`{field}` must be at least {rule['minimum']}",
                f"write {rule['minimum']} or more",
            )
        elif "exclusiveMinimum" in rule and value <= rule["exclusiveMinimum"]:
            message, help = (
                f"`{field}` must be greater than {rule['exclusiveMinimum']}",
                "write a positive number",
            )
        elif "maximum" in rule and value > rule["maximum"]:
            message, help = f"`{field}` must be at most {rule['maximum']}", f"write {rule['maximum']} or less"
        else:
            return True
        if help.startswith("write") and not field.startswith(("retry", "until", "seconds")):
            help += f", or remove `{field}`"
        self._add("BAD_VALUE", pointer, message, help, field=field)
        return False

    def _list(self, value: list[Any], rule: Rule, pointer: str, field: str) -> bool:
        if len(value) < rule.get("minItems", 0):
            self._add("BAD_VALUE", pointer, f"`{field}` is empty", "list at least one", field=field)
            return False
        if len(value) > rule.get("maxItems", len(value)):
            message = f"`{field}` lists more than {rule['maxItems']}"
            self._add("BAD_VALUE", pointer, message, "list fewer, or make two steps of it", field=field)
            return False
        items, passed = rule.get("items"), True
        if items is None:
            return True
        for index, item in enumerate(value):
            passed &= self._value(item, items, f"{pointer}/{index}", field)
        if passed and rule.get("uniqueItems"):
            seen: set[str] = set()  # whatever must be unique in this language is a string
            for index, item in enumerate(value):
                if item in seen:
                    self._add(
                        "BAD_VALUE",
                        f"{pointer}/{index}",
                        f"`{field}` lists {quote(str(item))} twice",
                        "remove one of them",
                        field=field,
                    )
                    return False
                seen.add(item)
        if not passed:
            self.bad.add(pointer)
        return passed

    def _mapping(self, value: dict[str, Any], rule: Rule, pointer: str, field: str) -> bool:
        properties: dict[str, Rule] = rule.get("properties", {})
        others = rule.get("additionalProperties", True)
        passed = True
        for name, item in value.items():
            where = join(pointer, name)
            if name in properties:
                passed &= self._value(item, properties[name], where, f"{field}.{name}")
            elif others is False:
                help = did_you_mean(name, properties) or f"`{field}` has {_listing(properties)}"
                message = f"unknown field {quote(name)} in `{field}`"
                self._add("UNKNOWN_FIELD", where, message, help, key=True, field=field)
                passed = False
            elif isinstance(others, dict):
                passed &= self._value(item, others, where, f"{field}.{name}")
        for name in rule.get("required", ()):
            if name not in value:
                self._add(
                    "MISSING_FIELD", pointer, f"`{field}` has no `{name}`", f"add `{name}`", field=field
                )
                passed = False
        if not passed:
            self.bad.add(pointer)
        return passed


def _pattern(source: str) -> re.Pattern[str]:
    compiled = _PATTERNS.get(source)
    if compiled is None:
        compiled = _PATTERNS[source] = re.compile(source.removesuffix("$"))
    return compiled


def _is_type(value: Any, wanted: str | list[str]) -> bool:
    if not isinstance(wanted, str):
        return any(_is_type(value, kind) for kind in wanted)
    match wanted:
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "object":
            return isinstance(value, dict)
        case _:
            return isinstance(value, list)


def _describe(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the string {quote(value)}"
    return "a list" if isinstance(value, list) else "a mapping"


def _type_help(value: Any, wanted: str | list[str], written: str | None = None) -> str:
    """`written`: as the author has put it, where that is known: 1.0 is no 1."""
    kinds = [wanted] if isinstance(wanted, str) else wanted
    if value is None:
        return "write a value, or remove the field"
    if "string" in kinds and isinstance(value, bool | int | float):
        shown = ("true" if value else "false") if isinstance(value, bool) else str(value)
        shown = written or shown
        return f'write "{shown}" in quotes'
    if "array" in kinds and isinstance(value, str):
        return f"write [{value[:40]}]"
    if kinds == ["boolean"] and value in ("yes", "no", "on", "off", "True", "False"):
        return f"write {'true' if value in ('yes', 'on', 'True') else 'false'}"
    if ("number" in kinds or "integer" in kinds) and isinstance(value, str):
        return "write digits without quotes"
    if kinds == ["integer"] and isinstance(value, float):
        return "write a whole number"
    return "write " + " or ".join(_TYPE_NAMES[kind] for kind in kinds)


def _a(step_type: str) -> str:
    return f"an {step_type}" if step_type in ("llm", "agent") else f"a {step_type}"


def _listing(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
