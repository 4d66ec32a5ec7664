"""A policy as it is decided by: rules in order, conditions compiled, names ready to be looked up."""

from __future__ import annotations

from typing import Any

import msgspec

from nano_vm.program.compiled import Test
from nano_vm.program.document import Document

RESERVED = frozenset({"tokens", "cost"})  # units of what is known after a call only
APPROVAL_EXPIRY_MS = 7 * 86_400_000  # of an approval for which neither policy nor wait says how long


class Approval(msgspec.Struct, frozen=True):
    """What a rule asks for. `expiry_ms` bounds the request and, from its granting on, the approval."""

    roles: tuple[str, ...]
    four_eyes: bool = True
    count: int = 1
    expiry_ms: int = 86_400_000


class Requirement(msgspec.Struct, frozen=True):
    """What must have succeeded before: `kind` is tool or step.

    `unconditional` says that the rule it comes from applies whatever the arguments are, so that a program can be
    held against it before it runs.
    """

    kind: str
    name: str
    rule: str = ""
    unconditional: bool = True

    @property
    def key(self) -> str:
        return f"{self.kind}:{self.name}"


class Limit(msgspec.Struct, frozen=True):
    """`maximum` is in the unit of what is counted: `calls`; `sum`, millionths of what `path` in the arguments adds up
    to; of model calls also `tokens`, and `cost` in nano-dollars, at their worst case until they are settled."""

    maximum: int
    per: tuple[str, ...]
    path: tuple[str, ...] | None = None
    unit: str = "calls"

    @property
    def own(self) -> bool:
        """Whether a run is the only one that counts under its key."""
        return "run" in self.per

    @property
    def timed(self) -> bool:
        """Whether it counts by minutes, hours or days."""
        return any(scope not in ("run", "principal") for scope in self.per)


class Rule(msgspec.Struct, frozen=True):
    """One rule. `when` reads SLOT_ARGS, SLOT_PRINCIPAL and SLOT_RUN; `source` is its text."""

    id: str
    decision: str
    tools: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    when: Test | None = None
    source: str | None = None
    requires: tuple[Requirement, ...] = ()
    approval: Approval | None = None
    limits: tuple[Limit, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether it decides by the name alone."""
        return self.when is None and not self.requires and not self.limits and self.approval is None


def matches(patterns: tuple[str, ...], name: str) -> bool:
    """Whether a name is one of the patterns: equal, or beginning as one that ends in `*`."""
    return any(
        name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern for pattern in patterns
    )


class Policy:
    """A sound policy, immutable. Make one with `nano_vm.policy.load`.

    Attributes:
        name, version: the author's.
        hash: `sha256:…` of `canonical`: what runs are pinned to.
        canonical: RFC 8785 bytes of the author's fields and the trees of all conditions.
        allows_by_default: what is decided where no rule applies.
        rules: in the author's order; the lists `tools` and `models` come first, as rules of these ids.
    """

    __slots__ = ("_found", "allows_by_default", "canonical", "document", "hash", "name", "rules", "version")

    def __init__(
        self,
        *,
        name: str,
        version: str,
        canonical: bytes,
        hash: str,
        allows_by_default: bool,
        rules: tuple[Rule, ...],
        document: Document,
    ) -> None:
        self.name = name
        self.version = version
        self.canonical = canonical
        self.hash = hash
        self.allows_by_default = allows_by_default
        self.rules = rules
        self.document = document
        self._found: dict[tuple[str, str], tuple[Rule, ...]] = {}

    def rules_for(self, kind: str, name: str) -> tuple[Rule, ...]:
        """The rules about a tool or model, in order. `kind` is "tool" or "model"."""
        found = self._found.get((kind, name))
        if found is None:
            found = tuple(
                rule for rule in self.rules if matches(rule.tools if kind == "tool" else rule.models, name)
            )
            if len(self._found) < 10_000:  # names may come from a hostile model
                self._found[kind, name] = found
        return found

    def required_before(self, tool: str) -> tuple[Requirement, ...]:
        """What has to precede a call of this tool, rule by rule; each once."""
        return tuple(
            dict.fromkeys(
                requirement for rule in self.rules_for("tool", tool) for requirement in rule.requires
            )
        )

    @property
    def adds_up(self) -> bool:
        """Whether something in arguments is added up: then it must not be private."""
        return any(limit.unit == "sum" for rule in self.rules for limit in rule.limits)

    def reserves(self, model: str) -> bool:
        """Whether calls of a model are held at their worst case: there is a limit on tokens or cost."""
        return any(limit.unit in RESERVED for rule in self.rules_for("model", model) for limit in rule.limits)

    @property
    def has_requirements(self) -> bool:
        return any(rule.requires for rule in self.rules)

    @property
    def has_limits(self) -> bool:
        return any(rule.limits for rule in self.rules)

    def to_dict(self) -> dict[str, Any]:
        """A copy of the author's fields."""
        from nano_vm import canonical

        data: dict[str, Any] = canonical.decode(self.canonical)["policy"]
        return data

    def __repr__(self) -> str:
        return f"<Policy {self.name} {self.version}: {len(self.rules)} rules, {self.hash}>"
