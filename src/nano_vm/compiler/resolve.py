"""References: every template is scanned, every expression parsed, every `$name` given its owner."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from nano_vm.compiler.names import ERROR_OF, INPUT, KEY, OUTPUT_OF, RESERVED, Flow, Names, Symbol, Target
from nano_vm.compiler.view import Step, View
from nano_vm.expr.errors import ExprError
from nano_vm.expr.nodes import Node, ref_uses
from nano_vm.expr.parser import parse
from nano_vm.expr.reference import Ref
from nano_vm.program.diagnostic import closest, did_you_mean
from nano_vm.program.document import join
from nano_vm.program.fields import RESERVED_NAMES
from nano_vm.program.template import Constant, Scanned, Single, Text, references, scan

# Template fields per step type. Those marked True are text: what they refer to is written out.
_TEMPLATES: dict[str, tuple[tuple[str, bool], ...]] = {
    "llm": (("prompt", True), ("system", True), ("model", True), ("params", False)),
    "agent": (("prompt", True), ("system", True), ("model", True), ("params", False)),
    "tool": (("args", False), ("idempotency_key", False)),
    "wait": (("seconds", False), ("until", False)),
    "map": (("over", False),),
    "call": (("inputs", False),),
}
_EXPRESSIONS = {"condition": "condition", "wait": "accept"}
_KNOWN_PARTS = {
    "run": ("id", "program", "program_hash", "started_at_ms"),
    "principal": ("id", "roles", "tenant"),
    "error": ("type", "message", "attempts"),
}
_SUBJECTS = ((Symbol(RESERVED, "principal"), ("id",)), (Symbol(RESERVED, "run"), ("id",)))
COMPENSATE = "compensate"
_UNASSIGNED_MAX = 200


class Use(NamedTuple):
    """One reference at work: in which field of which step, at which pointer, and what it stands for."""

    ref: Ref
    target: Target
    step: Step | None
    field: str
    pointer: str
    null_test: bool


class Resolved(msgspec.Struct):
    """Everything that refers, ready to be lowered. Keys are (step index, field), -1 for the program's own."""

    templates: dict[tuple[int, str], Scanned]
    expressions: dict[tuple[int, str], Node]
    uses: list[Use]


def resolve(view: View, names: Names) -> Resolved:
    """Returns what the program refers to; notes malformed and unknown references."""
    return _Resolver(view, names).run()


class _Resolver:
    def __init__(self, view: View, names: Names) -> None:
        self.view = view
        self.names = names
        self.result = Resolved({}, {}, [])

    def run(self) -> Resolved:
        for step in self.view.steps:
            for field, text in _TEMPLATES.get(step.type, ()):
                if field in step.data:
                    self._template(step, field, step.data[field], step.at(field), text)
            compensate = step.data.get("compensate")
            if isinstance(compensate, dict) and "args" in compensate:
                self._template(step, COMPENSATE, compensate["args"], step.at("compensate") + "/args", False)
            field = _EXPRESSIONS.get(step.type, "")
            if field in step.data:
                self._expression(step, field, step.data[field])
        self._approved()
        outputs = self.view.data.get("outputs")
        for name, value in (outputs if isinstance(outputs, dict) else {}).items():
            self._output(name, value)
        if "subject" in self.view.data:
            self._subject(self.view.data["subject"])
        return self.result

    def _approved(self) -> None:
        """What a wait approves is rendered when the wait is reached: what it refers to has to be there by then."""
        for step in self.view.steps:
            name = step.data.get("approves")
            acting = self.view.by_id.get(name) if isinstance(name, str) else None
            if acting is None or acting.type != "tool":
                continue
            for use in [use for use in self.result.uses if use.step is acting and use.field == "args"]:
                ref = use.ref._replace(offset=0, length=len(acting.id))
                self.result.uses.append(
                    use._replace(ref=ref, step=step, field="approves", pointer=step.at("approves"))
                )

    def _template(self, step: Step | None, field: str, value: Any, pointer: str, text: bool) -> None:
        def on_error(where: str, error: ExprError) -> None:
            self.view.add_expression(step, where, field, error)

        scanned = scan(value, pointer, on_error)
        if text and isinstance(scanned, Single):
            scanned = Text((scanned.ref,), scanned.pointer)
        if step is not None and field in ("over", "seconds") and isinstance(scanned, Text | Constant):
            self._not_a_value(step, field, scanned)
        self.result.templates[step.index if step is not None else -1, field] = scanned
        for where, ref in references(scanned):
            self._use(ref, step, field, where, null_test=False)

    def _not_a_value(self, step: Step, field: str, scanned: Text | Constant) -> None:
        wanted = "a list" if field == "over" else "a number"
        if isinstance(scanned, Text) or (field == "over" and isinstance(scanned.value, str)):
            message = f"`{field}` is text, and should be {wanted}"
            help = "write exactly one reference, such as `$orders`"
            self.view.add("BAD_TEMPLATE", step, step.at(field), message, help, field=field)

    def _expression(self, step: Step, field: str, source: str) -> None:
        try:
            node = parse(source)
        except ExprError as error:
            self.view.add_expression(step, step.at(field), field, error)
            return
        self.result.expressions[step.index, field] = node
        for ref, null_test in ref_uses(node):
            self._use(ref, step, field, step.at(field), null_test=null_test)

    def _output(self, name: str, value: str) -> None:
        pointer = join("/outputs", name)
        self._template(None, f"outputs.{name}", value, pointer, False)
        scanned = self.result.templates[-1, f"outputs.{name}"]
        if not isinstance(scanned, Single):
            help = "write one reference, such as `$decision`"
            self.view.add(
                "BAD_TEMPLATE", None, pointer, "a key output is exactly one reference", help, field="outputs"
            )

    def _subject(self, value: str) -> None:
        """Whose data it is has to be known before anything is stored."""
        self._template(None, "subject", value, "/subject", False)
        scanned = self.result.templates[-1, "subject"]
        found = self.names.find(scanned.ref) if isinstance(scanned, Single) else None
        known = found is not None and (found[0].kind == INPUT or found in _SUBJECTS)
        if isinstance(scanned, Single) and found is None:
            return  # unknown, and reported as such
        if not known:
            message = "a subject is one reference to what is known when the run starts"
            help = "write an input, such as `$customer_id`, or `$principal.id`"
            self.view.add("BAD_SUBJECT", None, "/subject", message, help, field="subject")

    # --- one reference ------------------------------------------------------------------------------------

    def _use(self, ref: Ref, step: Step | None, field: str, pointer: str, *, null_test: bool) -> None:
        problem: tuple[str, str, str | None] | None
        if ref.name in RESERVED_NAMES:
            problem = _misused(ref, step, field)
        else:
            problem = self._unknown(ref, step, field, pointer)
        if problem is None:
            target = self.names.find(ref)
            if target is not None:
                problem = _unknown_part(ref, target)
                self.result.uses.append(Use(ref, target, step, field, pointer, null_test))
        if problem is not None:
            code, message, help = problem
            self.view.add(
                code, step, pointer, message, help, field=field, offset=ref.offset, length=ref.length
            )

    def _unknown(
        self, ref: Ref, step: Step | None, field: str, pointer: str
    ) -> tuple[str, str, str | None] | None:
        target = self.names.find(ref)
        if target is not None:
            return self._without_value(target, step, field)
        owner = self.view.by_id.get(ref.name)
        if owner is not None:
            if owner.type == "condition":
                return (
                    "UNKNOWN_REFERENCE",
                    f"`{ref.name}` is a condition and has no output",
                    "refer to what it compares",
                )
            dotted = ".".join(("output", *ref.path))
            return "UNKNOWN_REFERENCE", f"`{ref.name}` is a step", f"write `${ref.name}.{dotted}`"
        if self.names.open:
            return None
        nearest = closest(ref.name, self._candidates())
        help = None
        if nearest is not None:
            help = f"did you mean `${nearest}{'.output' if nearest in self.view.by_id else ''}`?"
        if self.names.inputs is not None:
            help = help or "declare it under `inputs`, or bind it with `output_key`"
            return "UNKNOWN_REFERENCE", f"nothing in the program owns `{ref.name}`", help
        self.names.assumed[ref.name] = None
        help = f"{help} if not, declare it under `inputs`" if help else "declare it under `inputs`"
        message = f"`{ref.name}` is taken to be an input: nothing in the program owns it"
        self.view.warn(
            "ASSUMED_INPUT", step, pointer, message, help, field=field, offset=ref.offset, length=ref.length
        )
        return None

    def _candidates(self) -> Iterator[str]:
        yield from self.names.keys
        yield from self.names.inputs or ()
        yield from self.view.by_id

    def _without_value(
        self, target: Target, step: Step | None, field: str
    ) -> tuple[str, str, str | None] | None:
        symbol = target[0]
        if symbol.kind not in (OUTPUT_OF, ERROR_OF):
            return None
        owner = self.view.steps[symbol.step]
        if owner.type == "condition":
            message = f"`{owner.id}` is a condition and has no {symbol.kind}"
            return "UNKNOWN_REFERENCE", message, "refer to what it compares"
        if owner is step and field == COMPENSATE and symbol.kind == OUTPUT_OF:
            return None  # one element is undone with what that very element has yielded
        if owner.parent is not None and owner.parent.type == "map":
            help = f"the outputs of all elements are the list `${owner.parent.id}.output`"
            return "UNKNOWN_REFERENCE", f"`{owner.id}` runs once per element", help
        return None


def _misused(ref: Ref, step: Step | None, field: str) -> tuple[str, str, str | None] | None:
    name = ref.name
    if name in ("item", "index"):
        if step is not None and step.parent is not None and step.parent.type == "map":
            return None
        return "UNKNOWN_REFERENCE", f"`${name}` exists only in the step of a map", "refer to the list itself"
    if name == "event":
        if field == "accept":
            return None
        help = "refer to the wait's output: the event's payload becomes `$<wait>.output`"
        return "UNKNOWN_REFERENCE", "`$event` exists only in `accept`", help
    if name == "args":
        return (
            "UNKNOWN_REFERENCE",
            "`$args` exists only in policies",
            "refer to the value that the argument was made from",
        )
    return None


def _unknown_part(ref: Ref, target: Target) -> tuple[str, str, str | None] | None:
    symbol, path = target
    known = _KNOWN_PARTS.get(symbol.name if symbol.kind == RESERVED else symbol.kind)
    if known is None or not path or path[0] in known:
        return None
    help = did_you_mean(path[0], known) or "it has " + ", ".join(f"`{part}`" for part in known)
    return "UNKNOWN_REFERENCE", f"`{ref}` has no part `{path[0]}`", help


def check_assigned(view: View, names: Names, flow: Flow, uses: list[Use]) -> None:
    """Notes references to values that are not assigned on every path to their use."""
    reached = flow.reachable()
    seen: set[tuple[int, Symbol, str]] = set()
    for use in uses:
        if use.step is None or use.null_test or use.step.position not in reached:
            continue
        symbol = use.target[0]
        key = (use.step.index, symbol, use.field)
        if symbol.kind not in (OUTPUT_OF, ERROR_OF, KEY) or key in seen:
            continue
        found = _unassigned(view, names, flow, use)
        if len(seen) >= _UNASSIGNED_MAX:
            return  # each costs a search for a path; the rest is told when these are mended
        if found is not None:
            seen.add(key)
            message, help = found
            view.add(
                "UNASSIGNED_REFERENCE",
                use.step,
                use.pointer,
                message,
                help,
                field=use.field,
                offset=use.ref.offset,
                length=use.ref.length,
            )


def _unassigned(view: View, names: Names, flow: Flow, use: Use) -> tuple[str, str] | None:
    assert use.step is not None
    symbol, step = use.target[0], use.step
    owners = names.keys[symbol.name] if symbol.kind == KEY else [view.steps[symbol.step]]
    done = use.field == COMPENSATE
    if step in owners and done and symbol.kind != ERROR_OF:
        return None  # its own output: it has just succeeded
    if symbol.kind == ERROR_OF:
        owner = owners[0]
        if owner.parent is not None:
            message = f"the run does not go on after `{owner.id}` alone has failed"
            return (
                message,
                f"give `{owner.parent.id}` an `on_failure` and refer to `${owner.parent.id}.error`",
            )
        if "on_failure" not in owner.data:
            return (
                f"`{owner.id}` has no `on_failure`, so its error is never there",
                f"give `{owner.id}` an `on_failure`",
            )
    if step.parent is not None and any(owner.parent is step.parent for owner in owners):
        itself = step in owners
        message = (
            "a step cannot refer to its own output"
            if itself
            else f"`{use.ref}` belongs to a sibling, which runs at once"
        )
        return message, "put the step that needs it after the parallel"
    # A lane ends before its siblings do: only what was there when the parallel began is sure.
    path = flow.missing_path(names.definitions(symbol), step.position, done=done and step.parent is None)
    if path is None:
        return None
    help = "move the step that assigns it before the branch, or ask for it with `is not null`"
    if view.is_dag:
        help = f"add `{owners[0].id}` to `depends_on`, or ask for the value with `is not null`"
    if not path:
        return f"`{use.ref}` is not assigned on every path", help
    shown = path if len(path) <= 8 else [*path[:3], "…", *path[-4:]]
    return f"`{use.ref}` is not assigned on every path: {' → '.join(shown)}", help
