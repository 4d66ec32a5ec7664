"""Rules that cannot both be meant: found before anything runs, as far as they can be found without guessing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from nano_vm.expr.nodes import And, Compare, Lit, Node, to_ast
from nano_vm.expr.reference import Ref
from nano_vm.policy.model import Rule
from nano_vm.program.diagnostic import ERROR, WARNING

_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "=="}


class Finding(NamedTuple):
    """One contradiction, at a field of a rule (or the rule itself)."""

    rule: str
    field: str
    code: str
    severity: str
    message: str
    help: str


def contradictions(
    rules: Sequence[Rule], nodes: Mapping[str, Node], allows_by_default: bool
) -> list[Finding]:
    """What cannot be meant. `nodes` are the conditions by rule."""
    found = [*_impossible(rules, nodes), *_shadowed(rules, nodes), *_unreachable_requirements(rules)]
    if not allows_by_default:
        found += _redundant(rules)
    return found


def covers(patterns: tuple[str, ...], others: tuple[str, ...]) -> bool:
    """Whether every name that `others` mean is meant by `patterns`."""
    return all(any(_covers(pattern, other) for pattern in patterns) for other in others)


def _covers(pattern: str, other: str) -> bool:
    return other.startswith(pattern[:-1]) if pattern.endswith("*") else pattern == other


def _covers_rule(one: Rule, other: Rule) -> bool:
    return covers(one.tools, other.tools) and covers(one.models, other.models)


def _shadowed(rules: Sequence[Rule], nodes: Mapping[str, Node]) -> Iterator[Finding]:
    """A rule all of whose cases another one denies never does anything: deny wins."""
    for rule in rules:
        if rule.decision == "deny":
            continue
        for denying in rules:
            if denying.decision != "deny" or not _covers_rule(denying, rule):
                continue
            same = (
                rule.id in nodes
                and denying.id in nodes
                and to_ast(nodes[rule.id]) == to_ast(nodes[denying.id])
            )
            if denying.source is None or same:
                yield Finding(
                    rule.id,
                    "",
                    "POLICY_CONTRADICTION",
                    ERROR,
                    f"what it {rule.decision}s, `{denying.id}` denies: deny wins, and this rule does nothing",
                    f"remove one of `{rule.id}` and `{denying.id}`, or give `{denying.id}` a narrower `when`",
                )
                break


def _redundant(rules: Sequence[Rule]) -> Iterator[Finding]:
    """A condition on an allowance is idle where the same is allowed without one."""
    for rule in rules:
        if rule.decision != "allow" or rule.requires or rule.limits or rule.source is None:
            continue
        for other in rules:
            if other.decision == "allow" and other.source is None and _covers_rule(other, rule):
                yield Finding(
                    rule.id,
                    "when",
                    "POLICY_REDUNDANT",
                    WARNING,
                    f"`{other.id}` allows the same without a condition, so this one changes nothing",
                    f"to restrict, take it out of `{other.id}`, or deny the other case",
                )
                break


def _unreachable_requirements(rules: Sequence[Rule]) -> Iterator[Finding]:
    """A tool that must come first and is always denied can never come first."""
    for rule in rules:
        for number, requirement in enumerate(rule.requires):
            if requirement.kind != "tool":
                continue
            for denying in rules:
                if (
                    denying.decision == "deny"
                    and denying.source is None
                    and covers(denying.tools, (requirement.name,))
                ):
                    yield Finding(
                        rule.id,
                        f"requires/{number}",
                        "POLICY_CONTRADICTION",
                        ERROR,
                        f"`{requirement.name}` must come first, and `{denying.id}` denies it",
                        f"allow `{requirement.name}`, or do not require it",
                    )
                    break


# --- conditions that never hold -----------------------------------------------------------------------------


def _impossible(rules: Sequence[Rule], nodes: Mapping[str, Node]) -> Iterator[Finding]:
    for rule in rules:
        node = nodes.get(rule.id)
        if node is not None and _never_holds(node):
            yield Finding(
                rule.id,
                "when",
                "POLICY_CONTRADICTION",
                ERROR,
                "no value satisfies all parts of the condition",
                "the bounds exclude each other; for a choice between them write `or`",
            )


class _Range:
    """The numbers and constants that one reference may still be."""

    def __init__(self) -> None:
        self.low: float | None = None
        self.low_open = False
        self.high: float | None = None
        self.high_open = False
        self.equal: list[Any] = []

    def take(self, op: str, value: Any) -> None:
        if op == "==":
            self.equal.append(value)
        elif type(value) not in (int, float):
            return
        elif op in (">", ">="):
            if self.low is None or value > self.low or (value == self.low and op == ">"):
                self.low, self.low_open = value, op == ">"
        elif self.high is None or value < self.high or (value == self.high and op == "<"):
            self.high, self.high_open = value, op == "<"

    def is_empty(self) -> bool:
        if any(
            type(one) is not type(other) or one != other for one in self.equal for other in self.equal[:1]
        ):
            return not all(type(one) in (int, float) and one == self.equal[0] for one in self.equal)
        for value in self.equal[:1]:
            if type(value) in (int, float):
                return not self._holds(value)
        if self.low is None or self.high is None:
            return False
        return self.low > self.high or (self.low == self.high and (self.low_open or self.high_open))

    def _holds(self, value: float) -> bool:
        above = self.low is None or value > self.low or (value == self.low and not self.low_open)
        below = self.high is None or value < self.high or (value == self.high and not self.high_open)
        return above and below


def _never_holds(node: Node) -> bool:
    """Whether a conjunction bounds one reference to nothing. `False` says nothing."""
    ranges: dict[tuple[str, tuple[str, ...]], _Range] = {}
    for part in node.operands if isinstance(node, And) else (node,):
        if not isinstance(part, Compare) or part.op not in _MIRRORED:
            continue
        left, op, right = part.left, part.op, part.right
        if isinstance(left, Lit):
            left, op, right = right, _MIRRORED[op], left
        if isinstance(left, Ref) and isinstance(right, Lit):
            ranges.setdefault((left.name, left.path), _Range()).take(op, right.value)
    return any(found.is_empty() for found in ranges.values())
