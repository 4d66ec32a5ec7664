"""What values can be: conditions against what steps can yield, arguments against what tools take.

Types come from the inputs' schema, from `allowed_outputs` and `output_schema`, and from what is known about
tools. Where nothing is known nothing is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from nano_vm.compiler.json_schema import violations
from nano_vm.compiler.names import ERROR_OF, INPUT, KEY, OUTPUT_OF, Names, Symbol
from nano_vm.compiler.resolve import COMPENSATE, Resolved
from nano_vm.compiler.view import Step, View
from nano_vm.expr.checker import check as check_expression
from nano_vm.expr.reference import Ref
from nano_vm.expr.types import ANY, NUMBER, STRING, Type, field_type, kind_of, type_from_schema
from nano_vm.program.diagnostic import did_you_mean, quote
from nano_vm.program.document import join
from nano_vm.program.model import Program
from nano_vm.program.template import Constant, Fields, Items, Scanned, Single, Text

_ERROR_TYPE = Type("object", fields={"type": STRING, "message": STRING, "attempts": NUMBER})
_RESERVED_TYPES = {
    "run": Type(
        "object", fields={"id": STRING, "program": STRING, "program_hash": STRING, "started_at_ms": NUMBER}
    ),
    "principal": Type("object", fields={"id": STRING, "tenant": STRING, "roles": Type("array", item=STRING)}),
    "index": NUMBER,
}
# A template field whose whole reference must yield one of these.
_WANTED = {"over": ("array",), "seconds": ("number",), "until": ("number", "string")}
_WANTED_KEY = ("number", "string")


def check_types(view: View, names: Names, resolved: Resolved) -> None:
    """Notes findings about conditions, arguments and references that cannot work for any value."""
    _Types(view, names, resolved).run()


class _Types:
    def __init__(self, view: View, names: Names, resolved: Resolved) -> None:
        self.view = view
        self.names = names
        self.resolved = resolved
        self._known: dict[Symbol, Type] = {}

    def run(self) -> None:
        self._paths()
        for (index, field), node in self.resolved.expressions.items():
            step = self.view.steps[index]
            for finding in check_expression(node, self._of_reference):
                code = "IMPOSSIBLE_BRANCH" if finding.code == "IMPOSSIBLE_COMPARISON" else finding.code
                self.view.add(
                    code,
                    step,
                    step.at(field),
                    finding.message,
                    finding.help,
                    field=field,
                    severity=finding.severity,
                    offset=finding.offset,
                    length=finding.length,
                )
        for (index, field), scanned in self.resolved.templates.items():
            wanted = _WANTED_KEY if field == "idempotency_key" else _WANTED.get(field)
            if wanted is not None and isinstance(scanned, Single):
                self._must_be(self.view.steps[index], field, scanned, wanted)
        for step in self.view.steps:
            self._arguments(step)

    # --- the type of a reference --------------------------------------------------------------------------

    def _of_reference(self, ref: Ref) -> Type | None:
        target = self.names.find(ref)
        if target is None:
            return None
        symbol, path = target
        return field_type(self._of_symbol(symbol), path)

    def _of_symbol(self, symbol: Symbol) -> Type:
        found = self._known.get(symbol)
        if found is None:
            self._known[symbol] = (
                ANY  # a map's lane refers to `$item`, never to itself; this only ends nonsense
            )
            found = self._known[symbol] = self._infer(symbol)
        return found

    def _infer(self, symbol: Symbol) -> Type:
        if symbol.kind == INPUT:
            return self._input(symbol.name)
        if symbol.kind == OUTPUT_OF:
            return self._output(self.view.steps[symbol.step])
        if symbol.kind == ERROR_OF:
            return _ERROR_TYPE
        if symbol.kind == KEY:
            return _join([self._output(owner) for owner in self.names.keys[symbol.name]])
        return _RESERVED_TYPES.get(symbol.name, ANY)

    def _input(self, name: str) -> Type:
        schema = self.view.data.get("inputs")
        if not isinstance(schema, dict) or name not in (self.names.inputs or {}):
            return ANY
        rule = schema.get("properties", {}).get(name)
        found = type_from_schema(rule)
        required = schema.get("required", ())
        optional = not (isinstance(required, list) and name in required)
        defaulted = isinstance(rule, dict) and rule.get("default") is not None
        return _nullable(found) if optional and not defaulted else found

    def _output(self, step: Step) -> Type:
        data = step.data
        found = ANY
        if step.type in ("llm", "agent"):
            allowed = data.get("allowed_outputs")
            if isinstance(allowed, list) and all(isinstance(value, str) for value in allowed):
                found = Type("string", tuple(allowed))
            elif "output_schema" in data:
                found = type_from_schema(data["output_schema"])
            elif "output_schema" not in self._written(step) and "allowed_outputs" not in self._written(step):
                found = STRING
        elif step.type == "tool":
            tool = (self.view.tools or {}).get(data.get("tool", ""))
            found = type_from_schema(tool.output) if tool is not None and tool.output is not None else ANY
        elif step.type == "parallel":
            fields = {
                lane.id: self._of_symbol(Symbol(OUTPUT_OF, step=lane.index)) for lane in step.lanes if lane.id
            }
            found = Type("object", fields=fields, closed=len(fields) == len(data.get("parallel_steps", ())))
        elif step.type == "map":
            item = self._of_symbol(Symbol(OUTPUT_OF, step=step.lanes[0].index)) if step.lanes else None
            found = Type("array", item=item)
        if data.get("on_timeout") == "fallback":
            found = _with_fallback(found, step)
        return _nullable(found) if data.get("on_error") == "skip" else found

    def _written(self, step: Step) -> dict[str, Any]:
        return self.view.written(step)

    # --- references ---------------------------------------------------------------------------------------

    def _paths(self) -> None:
        for use in self.resolved.uses:
            symbol, path = use.target
            if not path or symbol.kind == ERROR_OF or field_type(self._of_symbol(symbol), path) is not None:
                continue
            whole = self._of_symbol(symbol)
            where = next(n for n in range(len(path)) if field_type(whole, path[: n + 1]) is None)
            inner = field_type(whole, path[:where]) or ANY
            message = f"`{use.ref}` leads nowhere: {_described(inner)} has no `{path[where]}`"
            help = did_you_mean(path[where], inner.fields or ()) or "refer to what the value has"
            self.view.add(
                "UNRESOLVED_REFERENCE",
                use.step,
                use.pointer,
                message,
                help,
                field=use.field,
                offset=use.ref.offset,
                length=use.ref.length,
            )

    def _must_be(self, step: Step, field: str, scanned: Single, wanted: tuple[str, ...]) -> None:
        found = self._of_reference(scanned.ref)
        if found is None or found.kind == "any" or found.kind in wanted:
            return
        message = f"`{field}` wants {' or '.join(wanted)}, and `{scanned.ref}` is {_described(found)}"
        ref = scanned.ref
        self.view.add(
            "TYPE_MISMATCH",
            step,
            scanned.pointer,
            message,
            "refer to a value of that type",
            field=field,
            offset=ref.offset,
            length=ref.length,
        )

    # --- arguments ----------------------------------------------------------------------------------------

    def _arguments(self, step: Step) -> None:
        if self.view.tools is not None:
            tool = self.view.tools.get(step.data.get("tool", ""))
            if (
                tool is not None
                and step.type == "tool"
                and ("args" in step.data or "args" not in self._written(step))
            ):
                at = step.at("args") if "args" in step.data else step.at("tool")
                self._against(step, "args", at, tool.parameters, f"`{tool.name}`")
            compensate = step.data.get("compensate")
            if isinstance(compensate, dict):
                undo = self.view.tools.get(compensate.get("tool", ""))
                if undo is not None:
                    at = step.at("compensate") + ("/args" if "args" in compensate else "/tool")
                    self._against(step, COMPENSATE, at, undo.parameters, f"`{undo.name}`")
        if step.type == "call":
            self._call(step)

    def _call(self, step: Step) -> None:
        name = step.data.get("program")
        if not isinstance(name, str) or "$" in name:
            return
        programs = self.view.programs
        if programs is None:  # nothing is known of other programs
            if name == self.view.data.get("name"):
                self._recursion(step, [name, name])
            return
        child = programs.get(name)
        if child is None:
            help = did_you_mean(name, programs) or "store it first, or check the spelling"
            message = f"there is no program {quote(name)}"
            self.view.add("UNKNOWN_PROGRAM", step, step.at("program"), message, help, field="program")
            return
        way = _way_back(programs, name, self.view.data.get("name"))
        if way is not None:
            self._recursion(step, way)
            return
        schema = child.to_dict().get("inputs")
        if schema is not None:
            at = step.at("inputs") if "inputs" in step.data else step.at("program")
            closed = {**schema, "additionalProperties": False}  # where `inputs` is declared it is complete
            self._against(step, "inputs", at, closed, f"program `{name}`")

    def _recursion(self, step: Step, way: Sequence[str]) -> None:
        message = f"the program calls itself: {' → '.join(way)}"
        help = "write the repetition as a loop or a map"
        self.view.add("CALL_RECURSION", step, step.at("program"), message, help, field="program")

    def _against(self, step: Step, field: str, pointer: str, schema: Mapping[str, Any], owner: str) -> None:
        """Holds an object of arguments against its schema."""
        scanned = self.resolved.templates.get((step.index, field), Constant({}))
        given = dict(_members(scanned))
        properties = schema.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        for name in schema.get("required", ()):
            if name not in given:
                message = f"{owner} needs the argument `{name}`"
                self.view.add("MISSING_ARGUMENT", step, pointer, message, f"add `{name}:`", field=field)
        # Of a schema that combines others the properties are not all there is.
        closed = schema.get("additionalProperties") is False and "patternProperties" not in schema
        for name, value in given.items():
            where = join(pointer, name)
            if name in properties:
                self._argument(step, field, where, value, properties[name], schema, name)
            elif closed:
                known = ", ".join(f"`{candidate}`" for candidate in properties) or "none"
                help = did_you_mean(name, properties) or f"it has {known}"
                message = f"{owner} has no argument {quote(name)}"
                self.view.add("UNKNOWN_ARGUMENT", step, where, message, help, key=True, field=field)

    def _argument(
        self,
        step: Step,
        field: str,
        pointer: str,
        scanned: Scanned,
        rule: Any,
        root: Mapping[str, Any],
        name: str,
    ) -> None:
        if isinstance(scanned, Constant):
            shared = {key: root[key] for key in ("$defs", "definitions") if key in root}
            full = {**shared, **rule} if isinstance(rule, dict) else rule
            for inner, message in _violations(full, scanned.value)[:3]:
                help = f"write what the tool's schema allows for `{name}`"
                self.view.add("BAD_ARGUMENT", step, pointer + inner, message, help, field=field)
            return
        wanted = type_from_schema(rule)
        if isinstance(scanned, Fields) and isinstance(rule, dict) and wanted.kind == "object":
            inner_rules = rule.get("properties", {})
            for inner_name, item in scanned.fields:
                if inner_name in inner_rules:
                    where = join(pointer, inner_name)
                    self._argument(step, field, where, item, inner_rules[inner_name], root, inner_name)
            return
        found, ref = self._of_template(scanned)
        if found.kind == "any" or wanted.kind == "any" or found.kind == wanted.kind:
            impossible = (
                found.kind == wanted.kind
                and found.enum is not None
                and wanted.enum is not None
                and not set(found.enum) & set(wanted.enum)
            )
            if not impossible:
                return
        if found.kind == "null":
            return
        message = f"`{name}` wants {_described(wanted)}, and this is {_described(found)}"
        help = "refer to a value of that type, or change the tool"
        offset, length = (ref.offset, ref.length) if ref is not None else (None, None)
        self.view.add("BAD_ARGUMENT", step, pointer, message, help, field=field, offset=offset, length=length)

    def _of_template(self, scanned: Scanned) -> tuple[Type, Ref | None]:
        match scanned:
            case Single(ref, _):
                return self._of_reference(ref) or ANY, ref
            case Text():
                return STRING, None
            case Items():
                return Type("array"), None
            case Fields():
                return Type("object"), None
            case Constant(value):
                return Type(kind_of(value)), None


def _members(scanned: Scanned) -> Iterator[tuple[str, Scanned]]:
    if isinstance(scanned, Fields):
        yield from scanned.fields
    elif isinstance(scanned, Constant) and isinstance(scanned.value, dict):
        for name, value in scanned.value.items():
            yield name, Constant(value)


def _violations(schema: Any, value: Any) -> list[tuple[str, str]]:
    try:
        return violations(schema, value)
    except ValueError:
        return []  # a tool's own schema is the registry's business, not the author's


def _way_back(programs: Mapping[str, Program], start: str, own: str | None) -> list[str] | None:
    """Returns the calls that lead from this program back to it, or around another loop."""
    stack: list[tuple[str, tuple[str, ...]]] = [(start, (own or "this program", start))]
    done: set[str] = set()
    while stack:
        name, way = stack.pop()
        if name == own or name in way[:-1]:
            return list(way)
        child = programs.get(name)
        if child is None or name in done:
            continue
        done.add(name)
        stack.extend((called, (*way, called)) for called in called_programs(child))
    return None


def called_programs(program: Program) -> list[str]:
    """Returns the programs that a program's `call` steps name, each once, in order."""
    found: dict[str, None] = {}
    for step in program.steps:
        for member in (step, *step.get("parallel_steps", ()), *([step["step"]] if "step" in step else [])):
            if member.get("type") == "call":
                found[member["program"]] = None
    return list(found)


def _nullable(of: Type) -> Type:
    return of if of.kind == "any" else msgspec.structs.replace(of, nullable=True)


def _with_fallback(of: Type, step: Step) -> Type:
    if "fallback" not in step.data:
        return of  # the first of `allowed_outputs`, or an empty string
    value = step.data["fallback"]
    if value is None:
        return _nullable(of)
    if of.kind in ("string", "number", "boolean") and kind_of(value) == of.kind:
        return of if of.enum is None or value in of.enum else Type(of.kind, (*of.enum, value), of.nullable)
    return ANY


def _join(types: list[Type]) -> Type:
    first = types[0]
    for other in types[1:]:
        if other == first:
            continue
        if other.kind != first.kind or first.kind in ("array", "object", "any"):
            return ANY
        enum = (*first.enum, *other.enum) if first.enum is not None and other.enum is not None else None
        first = Type(first.kind, enum, first.nullable or other.nullable)
    return first


def _described(of: Type) -> str:
    words = {"array": "a list", "object": "an object", "string": "text", "any": "a value"}
    if of.enum is not None:
        shown = ", ".join(repr(value) for value in of.enum[:6])
        return f"one of {shown}" + (", …" if len(of.enum) > 6 else "")
    return words.get(of.kind, f"a {of.kind}")
