"""From a document to a policy: everything that is wrong with it at once, each with its place."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from nano_vm import canonical
from nano_vm.errors import Place, PolicyError, ProgramError
from nano_vm.expr.checker import check as check_condition
from nano_vm.expr.errors import ExprError
from nano_vm.expr.evaluator import compile_condition
from nano_vm.expr.nodes import Node, refs, to_ast
from nano_vm.expr.parser import parse
from nano_vm.expr.reference import Ref
from nano_vm.expr.types import ANY, NUMBER, STRING, Type, field_type, type_from_schema
from nano_vm.policy.contradictions import contradictions
from nano_vm.policy.decide import MILLION
from nano_vm.policy.fields import POLICY, RESERVED_RULES, RULES_MAX
from nano_vm.policy.model import Approval, Limit, Policy, Requirement, Rule, matches
from nano_vm.program import document as documents
from nano_vm.program.compiled import SLOT_ARGS, SLOT_PRINCIPAL, SLOT_RUN
from nano_vm.program.diagnostic import ERROR, WARNING, Diagnostic, did_you_mean, quote, sort
from nano_vm.program.document import Document
from nano_vm.program.tool_schema import ToolSchema
from nano_vm.program.validate import validate_value

_SLOTS = {"args": SLOT_ARGS, "principal": SLOT_PRINCIPAL, "run": SLOT_RUN}
_PARTS = {
    "principal": ("id", "roles", "tenant"),
    "run": ("id", "program", "program_hash", "started_at_ms"),
}
_TYPES = {
    "principal": Type("object", fields={"id": STRING, "roles": Type("array", item=STRING), "tenant": STRING}),
    "run": Type(
        "object", fields={"id": STRING, "program": STRING, "program_hash": STRING, "started_at_ms": NUMBER}
    ),
}

# What a limit counts, and in how many parts of what is written.
_LIMITS = {
    "max_calls": ("calls", 1),
    "max_sum": ("sum", MILLION),
    "max_tokens": ("tokens", 1),
    "max_cost_usd": ("cost", 1_000 * MILLION),
}


class PolicyReport(msgspec.Struct, frozen=True):
    """What was found, by place; `policy` is there when nothing is an error. `source` is the text, where there is
    one."""

    diagnostics: tuple[Diagnostic, ...]
    policy: Policy | None = None
    source: str | None = None
    file: str | None = None

    @property
    def ok(self) -> bool:
        return self.policy is not None

    @property
    def errors(self) -> tuple[Diagnostic, ...]:
        return tuple(finding for finding in self.diagnostics if finding.severity == ERROR)

    @property
    def warnings(self) -> tuple[Diagnostic, ...]:
        return tuple(finding for finding in self.diagnostics if finding.severity == WARNING)


def check_policy(document: Document, tools: Mapping[str, ToolSchema] | None = None) -> PolicyReport:
    """Returns everything that is wrong with a policy.

    Args:
        tools: what is known about the tools; with it their names, and what conditions say of their arguments, are
            checked.
    """
    return _Reader(document, tools).report()


PolicySource: TypeAlias = Policy | Document | Mapping[str, Any] | str | Path
"""What a policy can be given as; text is the name of a file."""


def load_policy(source: PolicySource) -> Policy:
    """A policy from a document, a dict, or a file.

    Raises:
        PolicyError: POLICY_UNREADABLE; the code of the only finding, or INVALID_POLICY; `diagnostics` lists all.
    """
    if isinstance(source, Policy):
        return source
    report = check_policy(read_policy(source))
    if report.policy is None:
        raise policy_error(report)
    return report.policy


def read_policy(source: Document | Mapping[str, Any] | str | Path) -> Document:
    """The document of a policy.

    Raises:
        PolicyError: POLICY_UNREADABLE for a file that cannot be read.
    """
    if isinstance(source, Document):
        return source
    if not isinstance(source, str | Path):
        return documents.from_data(source)
    try:
        return documents.from_file(source)
    except ProgramError as error:
        message = error.message.replace("the program", "the policy")
        raise PolicyError(
            "POLICY_UNREADABLE", message, place=Place(str(source)), help="check the path and its permissions"
        ) from error


def stored_policy(body: bytes) -> Policy:
    """A policy from the canonical bytes that a store keeps.

    Raises:
        PolicyError: as `load_policy`.
    """
    data = canonical.decode(body)
    return load_policy(documents.from_data(data.get("policy") if type(data) is dict else data))


def policy_error(report: PolicyReport) -> PolicyError:
    """The exception for a report with errors."""
    errors = report.errors
    first = errors[0]
    code, message = first.code, first.message
    if len(errors) > 1:
        code, message = "INVALID_POLICY", f"{len(errors)} errors, the first: {first.code} {first.message}"
    error = PolicyError(code, message, place=first.place, help=first.help)
    error.facts["findings"] = [finding.to_dict() for finding in report.diagnostics[:100]]
    error.diagnostics = list(report.diagnostics)  # type: ignore[attr-defined]
    error.source = report.source  # type: ignore[attr-defined]
    return error


class _Reader:
    def __init__(self, document: Document, tools: Mapping[str, ToolSchema] | None) -> None:
        self.document = document
        self.tools = tools
        self.findings: list[Diagnostic] = []
        self.trees: dict[str, Any] = {}
        self.nodes: dict[str, Node] = {}

    def add(
        self,
        code: str,
        pointer: str,
        message: str,
        help: str | None,
        *,
        severity: str = ERROR,
        rule: str | None = None,
        key: bool = False,
        offset: int | None = None,
        length: int | None = None,
    ) -> None:
        place, width = self.document.place(
            pointer, key=key, offset=offset, length=length, field=f"rule `{rule}`" if rule else None
        )
        self.findings.append(Diagnostic(code, severity, message, help, place, width))

    def report(self) -> PolicyReport:
        document = self.document
        validation = validate_value(document, POLICY, "policy")
        self.findings += [
            msgspec.structs.replace(finding, code="INVALID_POLICY", help="begin with `policy:` and `tools:`")
            if finding.code == "NOT_A_PROGRAM"
            else finding
            for finding in validation.diagnostics
        ]
        if self.findings:  # what is malformed is not judged further
            return self._result(None)
        data: dict[str, Any] = document.data
        rules = self._rules(data)
        if not self.findings:
            for finding in contradictions(rules, self.nodes, data.get("default", "deny") == "allow"):
                pointer = self._pointer(finding.rule, data)
                if finding.field:
                    pointer += f"/{finding.field}"
                self.add(
                    finding.code,
                    pointer,
                    finding.message,
                    finding.help,
                    severity=finding.severity,
                    rule=finding.rule,
                )
        if any(finding.severity == ERROR for finding in self.findings):
            return self._result(None)
        body = canonical.encode({"ast": self.trees, "policy": data})
        return self._result(
            Policy(
                name=data["policy"],
                version=data.get("version", "1.0"),
                canonical=body,
                hash=canonical.digest(body),
                allows_by_default=data.get("default") == "allow",
                rules=tuple(rules),
                document=document,
            )
        )

    def _result(self, policy: Policy | None) -> PolicyReport:
        return PolicyReport(tuple(sort(self.findings)), policy, self.document.text, self.document.file)

    def _pointer(self, rule: str, data: dict[str, Any]) -> str:
        if rule in ("tools", "models"):
            return f"/{rule}"
        return next(
            f"/rules/{index}" for index, given in enumerate(data.get("rules", ())) if given["id"] == rule
        )

    # --- rules ------------------------------------------------------------------------------------------------

    def _rules(self, data: dict[str, Any]) -> list[Rule]:
        found = []
        if "tools" in data:
            found.append(Rule(id="tools", decision="allow", tools=tuple(data["tools"])))
        if "models" in data:
            found.append(Rule(id="models", decision="allow", models=tuple(data["models"])))
        for name in ("tools", "models"):
            for index, pattern in enumerate(data.get(name, ())):
                self._name(name, pattern, f"/{name}/{index}", None)
        seen: set[str] = set()
        given = data.get("rules", [])
        if len(given) > RULES_MAX:
            self.add("BAD_VALUE", "/rules", f"more than {RULES_MAX} rules", "split the policy")
            return found
        for index, rule in enumerate(given):
            pointer, name = f"/rules/{index}", rule["id"]
            if name in seen or name in RESERVED_RULES:
                what = "is the id of two rules" if name in seen else "is kept for the policy's own decisions"
                self.add("DUPLICATE_RULE", f"{pointer}/id", f"{quote(name)} {what}", "rename it", rule=name)
            seen.add(name)
            found.append(self._rule(rule, pointer))
        if not given and not found:
            self.add(
                "POLICY_EMPTY",
                "/policy",
                "the policy has no rules"
                + (": it denies everything" if data.get("default") != "allow" else ""),
                "list what is allowed under `tools:`",
                severity=WARNING,
            )
        return found

    def _rule(self, rule: dict[str, Any], pointer: str) -> Rule:
        name = rule["id"]
        decision = rule.get("decision", "ask" if "approval" in rule else "allow")
        if "tools" not in rule and "models" not in rule:
            self.add(
                "MISSING_FIELD", pointer, "the rule is about nothing", "add `tools:` or `models:`", rule=name
            )
        self._combinations(rule, decision, pointer)
        for field in ("tools", "models"):
            for index, pattern in enumerate(rule.get(field, ())):
                self._name(field, pattern, f"{pointer}/{field}/{index}", name)
        when = None
        if "when" in rule:
            when = self._condition(rule, f"{pointer}/when")
        requires = tuple(
            self._requirement(text, name, when is None, f"{pointer}/requires/{index}")
            for index, text in enumerate(rule.get("requires", ()))
        )
        limits = tuple(
            self._limit(limit, rule, f"{pointer}/limits/{index}")
            for index, limit in enumerate(rule.get("limits", ()))
        )
        return Rule(
            id=name,
            decision=decision,
            tools=tuple(rule.get("tools", ())),
            models=tuple(rule.get("models", ())),
            when=when,
            source=rule.get("when"),
            requires=requires,
            approval=_approval(rule["approval"]) if "approval" in rule else None,
            limits=limits,
        )

    def _combinations(self, rule: dict[str, Any], decision: str, pointer: str) -> None:
        name = rule["id"]
        if decision == "ask" and "approval" not in rule:
            help = "add `approval: {roles: […]}`"
            self.add("MISSING_FIELD", pointer, "a rule that asks does not say whom", help, rule=name)
        if decision != "ask" and "approval" in rule:
            help = "write `decision: ask`, or remove `approval`"
            self.add(
                "POLICY_CONTRADICTION",
                f"{pointer}/approval",
                f"the rule decides `{decision}` and names an approval",
                help,
                rule=name,
                key=True,
            )
        for field in ("requires", "limits"):
            if decision == "deny" and field in rule:
                help = f"remove `{field}`: what is denied needs nothing more"
                self.add(
                    "POLICY_CONTRADICTION",
                    f"{pointer}/{field}",
                    f"the rule denies and has `{field}`",
                    help,
                    rule=name,
                    key=True,
                )
        if "models" in rule and decision == "ask":
            help = "ask about the tool that acts on the answer"
            self.add(
                "FIELD_CONFLICT", f"{pointer}/models", "a model call cannot be approved", help, rule=name
            )
        if "models" in rule and "requires" in rule:
            help = "put it on the tools"
            self.add("FIELD_CONFLICT", f"{pointer}/models", "a model call has no `requires`", help, rule=name)

    def _name(self, field: str, pattern: str, pointer: str, rule: str | None) -> None:
        if "*" in pattern[:-1]:
            help = "use `*` at the end only, or list the names"
            self.add("BAD_VALUE", pointer, f"{quote(pattern)} has a `*` in the middle", help, rule=rule)
        elif (
            self.tools is not None
            and field == "tools"
            and not any(matches((pattern,), n) for n in self.tools)
        ):
            help = did_you_mean(pattern, self.tools) or "the tools are: " + ", ".join(sorted(self.tools)[:20])
            self.add(
                "UNKNOWN_TOOL",
                pointer,
                f"no tool is called {quote(pattern)}",
                help,
                severity=WARNING,
                rule=rule,
            )

    def _requirement(self, text: str, rule: str, unconditional: bool, pointer: str) -> Requirement:
        kind, colon, name = text.partition(":")
        if not colon or kind not in ("tool", "step"):
            kind, name = "tool", text
        if kind == "tool" and self.tools is not None and name not in self.tools:
            help = did_you_mean(name, self.tools) or f"for a step of the program write `step:{name}`"
            self.add(
                "UNKNOWN_TOOL", pointer, f"no tool is called {quote(name)}", help, severity=WARNING, rule=rule
            )
        return Requirement(kind, name, rule, unconditional)

    def _limit(self, limit: dict[str, Any], rule: dict[str, Any], pointer: str) -> Limit:
        name = rule["id"]
        kinds = [kind for kind in _LIMITS if kind in limit]
        if len(kinds) != 1:
            help = "`max_calls: 10`, or `max_sum: 1000` with `of: $args.amount`; of models also `max_cost_usd: 5`"
            message = f"a limit has exactly one of {', '.join(f'`{kind}`' for kind in _LIMITS)}"
            self.add("FIELD_CONFLICT", pointer, message, help, rule=name)
        kind = kinds[0] if kinds else "max_calls"
        if (kind == "max_sum") != ("of" in limit):
            help = "`of: $args.amount` belongs to `max_sum`"
            self.add("FIELD_CONFLICT", pointer, "`max_sum` and `of` go together", help, rule=name)
        if kind in ("max_tokens", "max_cost_usd") and ("tools" in rule or "models" not in rule):
            help = "make a rule of its own about `models:`"
            self.add("FIELD_CONFLICT", pointer, f"`{kind}` is about models alone", help, rule=name)
        path = None
        if "of" in limit:
            path = self._path(limit["of"], f"{pointer}/of", rule)
        unit, scale = _LIMITS[kind]
        maximum = int(Decimal(str(limit.get(kind, 1))) * scale)
        return Limit(maximum, tuple(limit["per"]), path if unit == "sum" else None, unit)

    def _path(self, text: str, pointer: str, rule: dict[str, Any]) -> tuple[str, ...]:
        try:
            node = parse(text)
        except ExprError as error:
            self._refuse(error, pointer, rule["id"])
            return ()
        if not isinstance(node, Ref) or node.name != "args" or not node.path:
            help = "write $args.amount"
            self.add("BAD_VALUE", pointer, "`of` is one reference into $args", help, rule=rule["id"])
            return ()
        self._known(node, pointer, rule)
        return node.path

    # --- conditions -------------------------------------------------------------------------------------------

    def _condition(self, rule: dict[str, Any], pointer: str) -> Any:
        name, source = rule["id"], rule["when"]
        try:
            node = parse(source)
        except ExprError as error:
            self._refuse(error, pointer, name)
            return None
        self.trees[name] = to_ast(node)
        self.nodes[name] = node
        sound = True
        for ref in refs(node):
            sound &= self._known(ref, pointer, rule)
        if not sound:
            return None
        for finding in check_condition(node, lambda ref: self._type(ref, rule)):
            severity = ERROR if finding.severity == ERROR else WARNING
            self.add(
                finding.code,
                pointer,
                finding.message,
                finding.help,
                severity=severity,
                rule=name,
                offset=finding.offset,
                length=finding.length,
            )
        return compile_condition(node, lambda ref: (_SLOTS[ref.name], ref.path))

    def _refuse(self, error: ExprError, pointer: str, rule: str) -> None:
        self.add(
            error.code,
            pointer,
            error.message,
            error.help,
            rule=rule,
            offset=error.offset,
            length=error.length or 1,
        )

    def _known(self, ref: Ref, pointer: str, rule: dict[str, Any]) -> bool:
        where = {"rule": rule["id"], "offset": ref.offset, "length": ref.length or 1}
        if ref.name not in _SLOTS:
            help = f"write `$args.{ref.name}`" if ref.name not in ("item", "index", "event") else None
            message = f"a policy knows $args, $principal and $run, not `${ref.name}`"
            self.add("UNKNOWN_REFERENCE", pointer, message, help, **where)
            return False
        parts = _PARTS.get(ref.name)
        if parts is not None and ref.path and ref.path[0] not in parts:
            help = did_you_mean(ref.path[0], parts) or f"it has: {', '.join(parts)}"
            self.add("UNKNOWN_REFERENCE", pointer, f"`${ref.name}` has no `{ref.path[0]}`", help, **where)
            return False
        if ref.name == "args" and self._type(ref, rule) is None:
            known = sorted(
                {name for schema in self._schemas(rule) for name in schema.parameters.get("properties", {})}
            )
            help = did_you_mean(ref.path[0], known) or f"the arguments are: {', '.join(known) or 'none'}"
            self.add("UNKNOWN_ARGUMENT", pointer, f"no tool of the rule has `{ref}`", help, **where)
            return False
        return True

    def _schemas(self, rule: dict[str, Any]) -> list[ToolSchema]:
        patterns = tuple(rule.get("tools", ()))
        return [schema for name, schema in (self.tools or {}).items() if matches(patterns, name)]

    def _type(self, ref: Ref, rule: dict[str, Any]) -> Type | None:
        """What is known of a reference: None where no value can have such a part."""
        if ref.name != "args":
            return field_type(_TYPES[ref.name], ref.path)
        schemas = self._schemas(rule)
        if len(schemas) != 1 or "models" in rule:
            return ANY  # of several tools that take different arguments nothing is certain
        return field_type(type_from_schema(schemas[0].parameters), ref.path)


def _approval(given: dict[str, Any]) -> Approval:
    expiry = Decimal(str(given.get("expiry_seconds", 86_400))) * 1_000
    return Approval(
        roles=tuple(given["roles"]),
        four_eyes=given.get("four_eyes", True),
        count=given.get("count", 1),
        expiry_ms=max(int(expiry), 1),
    )
