"""Policies in simulations: random ones, and a second opinion on what they allow (P9).

The opinion is deliberately not the engine's code: it reads the policy as its author wrote it, and counts by itself what
has begun, what has succeeded and what somebody has approved.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final, TypeAlias

from nano_vm.policy.load import load_policy
from nano_vm.program.model import Program
from nano_vm.testing.world import EFFECTS, PLAIN, schemas
from nano_vm.tools.validator import ProgramValidator

Document: TypeAlias = dict[str, Any]
Place: TypeAlias = tuple[str, int, int | None]  # step, occurrence, item

ROLE: Final = "supervisor"
NEVER_EMPTY: Final = "$args.value is not null"  # the one condition of random policies
_TRIES: Final = 6


def random_policy(draw: random.Random, *programs: Mapping[str, Any]) -> Document | None:
    """A policy under which the programs may be run, whatever it then refuses; None when a few tries find none."""
    for _ in range(_TRIES):
        policy: Document = {"policy": "simulated", "models": ["*"], "tools": ["act_*", "undo_*"], "rules": []}
        for name, chance, terms in (
            ("no", 0.2, {"decision": "deny", "when": NEVER_EMPTY}),
            ("few", 0.5, {"limits": [{"max_calls": draw.randint(1, 2), "per": ["run"]}]}),
            ("ask", 0.5, {"approval": {"roles": [ROLE], "four_eyes": False, "expiry_seconds": 864_000}}),
            ("first", 0.2, {"requires": ["act_pure"]}),
        ):
            if draw.random() < chance:
                policy["rules"].append({"id": name, "tools": _acting(draw.choice(EFFECTS)), **terms})
        if not any(_refused(program, policy) for program in programs):
            return policy
    return None


def _refused(program: Mapping[str, Any], policy: Document) -> bool:
    validator = ProgramValidator(Program.from_dict(dict(program)), tools=schemas(), policy=policy)
    return bool(validator.validate().errors)


def tighter(draw: random.Random, policy: Mapping[str, Any]) -> Document:
    """Another policy: the same, and nothing of one effect class any more."""
    never = {"id": "stop", "tools": _acting(draw.choice(EFFECTS)), "decision": "deny", "when": NEVER_EMPTY}
    return {**policy, "rules": [*policy["rules"], never]}


def harder(draw: random.Random, policy: Mapping[str, Any]) -> Document:
    """The same policy, harder to satisfy: two people who have not started the run approve, and soon; what is limited is
    limited for whoever has started runs, too."""
    rules = []
    asked = {"id": "ask", "tools": _acting(draw.choice(["keyed", "idempotent"])), "approval": {}}
    is_asking = any("approval" in rule for rule in policy["rules"])
    for rule in [*policy["rules"], *([] if is_asking else [asked])]:
        changed = dict(rule)
        if "approval" in rule:
            changed["approval"] = {"roles": [ROLE], "four_eyes": True, "count": 2, "expiry_seconds": 600}
        if "limits" in rule:
            changed["limits"] = [*rule["limits"], {"max_calls": draw.randint(1, 3), "per": ["principal"]}]
        rules.append(changed)
    return {**policy, "rules": rules}


def _acting(effect: str) -> list[str]:
    return [f"act_{effect}", *([f"act_plain_{effect}"] if effect in PLAIN else [])]


class Opinion:
    """What policies allow, by what has been seen of one run, and, where they count for all of them, of `everywhere`."""

    def __init__(self, everywhere: list[Opinion] | None = None) -> None:
        self._everywhere = [] if everywhere is None else everywhere
        self._everywhere.append(self)
        self.begun: dict[Place, str] = {}  # action -> tool
        self.succeeded: set[str] = set()  # tools
        self.asked: set[tuple[str, int | None]] = set()
        self.granted: Counter[tuple[str, int | None]] = Counter()

    def refuses(
        self,
        policy: Mapping[str, Any],
        tool: str,
        args: Mapping[str, Any],
        place: Place,
        waits: Sequence[str] = (),
    ) -> str | None:
        """Why the policy does not let this call begin; None when it does. `waits` are the program's steps that are
        bound to the action: whoever approves there has been asked for the policy as well."""
        rules = [rule for rule in policy["rules"] if _names(rule["tools"], tool)]
        rules = [rule for rule in rules if "when" not in rule or args.get("value") is not None]
        if any(rule.get("decision") == "deny" for rule in rules):
            return "a rule denies it"
        if not rules and not _names(policy["tools"], tool):
            return "no rule allows it"
        for rule in rules:
            why = self._unmet(rule, place, waits)
            if why is not None:
                return why
        return None

    def is_granted(self, waits: Sequence[str], place: Place) -> bool:
        """Whether somebody has approved this action: at a wait that is bound to it, or when it asked by itself. One
        approval serves one action."""
        step, _, item = place
        same = sum((one[0], one[2]) == (step, item) for one in self.begun if one != place)
        return sum(self.granted[wait, None] for wait in waits) + self.granted[step, item] > same

    def _unmet(self, rule: Mapping[str, Any], place: Place, waits: Sequence[str]) -> str | None:
        others = [one for one, tool in self.begun.items() if one != place and _names(rule["tools"], tool)]
        for limit in rule.get("limits", ()):
            count = len(others)
            if limit["per"] != ["run"]:
                begun = (one for each in self._everywhere if each is not self for one in each.begun.values())
                count += sum(_names(rule["tools"], tool) for tool in begun)
            if count + 1 > limit["max_calls"]:
                return f"{count} others have begun, of {limit['max_calls']}"
        if any(needed not in self.succeeded for needed in rule.get("requires", ())):
            return "what has to come first has not"
        if "approval" in rule and not self.is_granted(waits, place):
            return "nobody has approved it"
        return None


def _names(patterns: Sequence[str], tool: str) -> bool:
    return any(fnmatchcase(tool, pattern) for pattern in patterns)


def by_hash(*policies: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Policies by the hash that journals name them by."""
    return {load_policy(dict(policy)).hash: policy for policy in policies}


__all__ = ["Opinion", "by_hash", "harder", "random_policy", "tighter"]
