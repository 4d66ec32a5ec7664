"""Deciding: a pure function of the policy and what is to be done. No clock, no chance, no store.

`deny` wins over `ask`, `ask` over `allow`, whatever the order; where no rule applies the policy's default holds. A
condition that cannot be evaluated denies. What has to be counted across runs is asked for by `counters` and comes back
as data; a decision names the numbers it saw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from nano_vm import canonical
from nano_vm.errors import NanoVMError
from nano_vm.expr.reference import UNSET, walk
from nano_vm.policy.fields import SUM_MAX
from nano_vm.policy.model import RESERVED, Approval, Limit, Policy, Rule
from nano_vm.program.compiled import FIRST_FREE_SLOT, SLOT_ARGS, SLOT_PRINCIPAL, SLOT_RUN
from nano_vm.program.labels import SEALED

ALLOW, ASK, DENY = "allow", "ask", "deny"
DENIED = "CapabilityDeniedError"  # what `$step.error.type`, or a rejected proposal's reason, says of what is denied
MILLION = 1_000_000
_OWN = ("run",)
_WINDOWS_MS = {"minute": 60_000, "hour": 3_600_000, "day": 86_400_000}

# Why: a rule said so; no rule applies; what must precede has not; a limit is reached; a condition cannot be evaluated.
RULE, DEFAULT, REQUIRES, LIMIT, CONDITION = "RULE", "DEFAULT", "REQUIRES", "LIMIT", "CONDITION"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done.

    Args:
        kind: "tool" or "model"; `name` is the tool's, or the model's ("default" for the adapter's own).
        args: the rendered arguments; of a model {"model", "params"}.
        principal: who started the run, {"id", "roles", "tenant"}; None when nobody said.
        run: {"id", "program", "program_hash", "started_at_ms"}.
        done: keys of the requirements that the run has met: `tool:NAME`, `step:ID`.
        counts: what has been counted so far, by the keys that `counters` gives.
        at_ms: now, epoch milliseconds.
        private: names of arguments that are private or secret; "" for all of them. They are not added up: what has
            been counted is stored in clear.
        tokens, cost_nanousd: what a model call may take at most; None when nobody knows.
        tenant: the run's; limits of one are not counted with another's.
    """

    kind: str = "tool"
    name: str
    args: Any
    principal: Mapping[str, Any] | None = None
    run: Mapping[str, Any] = {}
    done: frozenset[str] = frozenset()
    counts: Mapping[str, int] = {}
    at_ms: int = 0
    private: frozenset[str] = frozenset()
    tokens: int | None = None
    cost_nanousd: int | None = None
    tenant: str = "default"


class Counter(NamedTuple):
    """Something that a call adds to, in the unit of its limit. `own`: nothing but its own run counts there."""

    key: str
    amount: int
    maximum: int
    rule: str
    unit: str = "calls"
    own: bool = False


class Asked(NamedTuple):
    """An approval that a rule of a policy asks for; `policy` is empty where the program itself does."""

    rule: str
    approval: Approval
    policy: str = ""

    @property
    def name(self) -> str:
        """What an approval that was given for it is on record for."""
        return f"{self.policy}/{self.rule}" if self.policy else self.rule


class Decision(msgspec.Struct, frozen=True):
    """What was decided, by which rule of which policy, and why.

    `detail` names what is missing or reached; never an argument's value. `asks` are all approvals asked for, `counters`
    what an allowed or approved call adds to.
    """

    decision: str
    rule: str
    policy: str
    reason: str = RULE
    detail: str = ""
    asks: tuple[Asked, ...] = ()
    counters: tuple[Counter, ...] = ()


class Verdict(NamedTuple):
    """How one rule came out, for `explain`: applies, does not apply, cannot be evaluated."""

    rule: str
    decision: str
    outcome: str
    detail: str


def decide(policy: Policy, request: Request) -> Decision:
    """What the policy says of the request."""
    return _decide(policy, request, None)


def explain(policy: Policy, request: Request) -> tuple[Decision, list[Verdict]]:
    """`decide`, and how every rule about it came out."""
    verdicts: list[Verdict] = []
    return _decide(policy, request, verdicts), verdicts


def decide_all(policies: Sequence[Policy], request: Request) -> Decision:
    """What several policies say together: all must allow. The first that denies, else the first that asks, is named;
    approvals and counters are those of all."""
    decisions = [_decide(policy, request, None) for policy in policies]
    if len(decisions) == 1:
        return decisions[0]
    for decision in decisions:
        if decision.decision == DENY:
            return decision
    named = next((decision for decision in decisions if decision.decision == ASK), decisions[0])
    return msgspec.structs.replace(
        named,
        asks=tuple(dict.fromkeys(ask for decision in decisions for ask in decision.asks)),
        counters=tuple(dict.fromkeys(counter for decision in decisions for counter in decision.counters)),
    )


def settled(policy: Policy, kind: str, name: str) -> Decision | None:
    """The decision about a tool or model where it does not depend on anything else; None where it does."""
    rules = policy.rules_for(kind, name)
    for rule in rules:
        if rule.decision == DENY and rule.when is None:
            return Decision(DENY, rule.id, policy.hash)
    if not all(rule.is_plain for rule in rules):
        return None
    return Decision(ALLOW, rules[0].id, policy.hash) if rules else _by_default(policy)


def settled_by_all(policies: Sequence[Policy], kind: str, name: str) -> Decision | None:
    """`settled` of several policies, where all of them allow; None where something has to be looked at."""
    found = [settled(policy, kind, name) for policy in policies]
    if not found or any(decision is None or decision.decision != ALLOW for decision in found):
        return None
    return found[0]


def looked_at(policy: Policy, kind: str, name: str) -> tuple[Rule, ...] | None:
    """The rules about a tool or model, where nothing but arguments, principal, run and counts decides: none of them
    asks, or demands that something precede. Else None."""
    rules = tuple(policy.rules_for(kind, name))
    demanding = any(rule.requires or rule.approval is not None for rule in rules)
    return None if demanding else rules


def allowing_rules(policy: Policy, rules: Sequence[Rule], slots: list[Any]) -> list[Rule] | None:
    """The rules by which `decide` allows a request, but for their limits, `rules` being those that `looked_at` gave:
    the first is named, and none where the policy's default allows it. None where it does not.

    Args:
        slots: as `request_slots` makes them of the request.
    """
    allowing: list[Rule] = []
    for rule in rules:
        if rule.when is not None:
            try:
                if not rule.when(slots):
                    continue
            except NanoVMError:
                return None
        if rule.decision != ALLOW:
            return None
        allowing.append(rule)
    return allowing if allowing or policy.allows_by_default else None


def counters_of_rules(policy: Policy, rules: Sequence[Rule], request: Request) -> list[Counter]:
    """What the request would add to under these rules, which apply to it. Raises NanoVMError where `decide` denies."""
    return [counter for rule in rules if rule.limits for counter in _counters_of(policy, rule, request)]


def counters(policy: Policy, request: Request) -> tuple[Counter, ...]:
    """What the request would add to, where the policy has limits about it: ask the store for these keys."""
    rules = policy.rules_for(request.kind, request.name)
    if not any(rule.limits for rule in rules):
        return ()
    slots = request_slots(request.args, request.run, request.principal)
    found: list[Counter] = []
    for rule in rules:
        if not rule.limits:
            continue
        try:
            if rule.when is None or rule.when(slots):
                found += _counters_of(policy, rule, request)
        except NanoVMError:
            pass  # the decision denies it
    return tuple(found)


def _decide(policy: Policy, request: Request, verdicts: list[Verdict] | None) -> Decision:
    slots: list[Any] | None = None
    applying: list[Rule] = []
    denied: Decision | None = None
    for rule in policy.rules_for(request.kind, request.name):
        outcome, detail = "applies", ""
        if rule.when is not None:
            if slots is None:
                slots = request_slots(request.args, request.run, request.principal)
            try:
                if not rule.when(slots):
                    outcome = "does not apply"
            except NanoVMError as error:
                outcome, detail = "cannot be evaluated", error.code
        if verdicts is not None:
            verdicts.append(Verdict(rule.id, rule.decision, outcome, detail))
        if outcome == "does not apply":
            continue
        if detail:
            denied = denied or Decision(DENY, rule.id, policy.hash, CONDITION, detail)
        elif rule.decision == DENY:
            denied = denied or Decision(DENY, rule.id, policy.hash)
        else:
            applying.append(rule)
        if denied is not None and verdicts is None:
            return denied
    if denied is not None:
        return denied
    if not applying:
        return _by_default(policy)
    return _hold(policy, applying, request)


def _by_default(policy: Policy) -> Decision:
    return Decision(ALLOW if policy.allows_by_default else DENY, "default", policy.hash, DEFAULT)


def _hold(policy: Policy, applying: list[Rule], request: Request) -> Decision:
    """What the rules that apply demand beside."""
    asks: list[Asked] = []
    taken: list[Counter] = []
    for rule in applying:
        for requirement in rule.requires:
            if requirement.key not in request.done:
                return Decision(DENY, rule.id, policy.hash, REQUIRES, requirement.key)
        if rule.limits:
            try:
                counted = _counters_of(policy, rule, request)
            except NanoVMError as error:
                return Decision(DENY, rule.id, policy.hash, CONDITION, error.code)
            for number, counter in enumerate(counted):
                if request.counts.get(counter.key, 0) + counter.amount > counter.maximum:
                    return Decision(DENY, rule.id, policy.hash, LIMIT, _words(rule.limits[number]))
            taken += counted
        if rule.approval is not None:
            asks.append(Asked(rule.id, rule.approval, policy.hash))
    if asks:
        return Decision(ASK, asks[0].rule, policy.hash, RULE, "", tuple(asks), tuple(taken))
    return Decision(ALLOW, applying[0].id, policy.hash, RULE, "", (), tuple(taken))


def _words(limit: Limit) -> str:
    what = limit.unit if limit.path is None else "$args." + ".".join(limit.path)
    return f"{what} per {', '.join(limit.per)}"


def request_slots(args: Any, run: Mapping[str, Any], principal: Mapping[str, Any] | None) -> list[Any]:
    """What conditions read, as `Request` has it."""
    slots: list[Any] = [UNSET] * FIRST_FREE_SLOT
    slots[SLOT_ARGS] = args
    slots[SLOT_RUN] = run if type(run) is dict else dict(run)  # no condition changes what it reads
    if principal is not None:
        slots[SLOT_PRINCIPAL] = principal if type(principal) is dict else dict(principal)
    return slots


def _counters_of(policy: Policy, rule: Rule, request: Request) -> list[Counter]:
    """Raises NanoVMError where what is to be added is private, unknown or no number from 0 on, or nobody is known to
    count for."""
    found = []
    for number, limit in enumerate(rule.limits):
        amount = _amount(limit, request)
        key = limit_key(policy, rule, number, request.tenant, request.run, request.principal, request.at_ms)
        found.append(Counter(key, amount, limit.maximum, rule.id, limit.unit, limit.own))
    return found


def limit_key(
    policy: Policy,
    rule: Rule,
    number: int,
    tenant: str,
    run: Mapping[str, Any],
    principal: Mapping[str, Any] | None,
    at_ms: int,
) -> str:
    """What a rule's limit of that number counts under. Raises NanoVMError where nobody is known to count for."""
    limit = rule.limits[number]
    if limit.per == _OWN:  # most runs ask for one of these alone
        begins = _key_of(tenant, policy.name, rule.id, number, limit)
        return canonical.digest(b"%b,[%b]]" % (begins, canonical.encode(run.get("id"))))
    where: list[Any] = []
    for scope in limit.per:
        if scope == "run":
            where.append(run.get("id"))
        elif scope == "principal":
            if principal is None:
                raise NanoVMError("UNASSIGNED_REFERENCE", "nobody is known to have started the run")
            where.append(principal.get("id"))
        else:
            where.append(at_ms // _WINDOWS_MS[scope])
    return _key_under(tenant, policy.name, rule.id, number, limit, tuple(where))


@lru_cache(maxsize=1_024)  # one run after another counts under the same
def _key_under(tenant: str, policy: str, rule: str, number: int, limit: Limit, where: tuple[Any, ...]) -> str:
    begins = _key_of(tenant, policy, rule, number, limit)
    return canonical.digest(b"%b,%b]" % (begins, canonical.encode(list(where))))


@lru_cache(maxsize=1_024)
def _key_of(tenant: str, policy: str, rule: str, number: int, limit: Limit) -> bytes:
    """What the keys of a limit begin with. By the policy's name, not its hash: a new version does not start counting
    anew. And by what is counted: a limit that is rewritten to count something else begins anew."""
    path = None if limit.path is None else list(limit.path)
    return canonical.encode([tenant, policy, rule, number, limit.unit, path, limit.per])[:-1]


def _amount(limit: Limit, request: Request) -> int:
    if limit.unit == "sum":
        assert limit.path is not None
        if "" in request.private or limit.path[0] in request.private:
            raise NanoVMError(
                "PRIVATE_AMOUNT", "what a limit adds up is stored in clear, and this is private"
            )
    if limit.unit not in RESERVED:
        return amount_of(limit, request.args)
    reserved = request.tokens if limit.unit == "tokens" else request.cost_nanousd
    if reserved is None:
        raise NanoVMError("NO_PRICE", "nobody knows what the model may cost")
    return reserved


def amount_of(limit: Limit, args: Any) -> int:
    """What a call of a tool with these arguments, which are not private, adds to a limit. Raises NanoVMError where that
    is no number from 0 on, or known of models only."""
    if limit.unit == "calls":
        return 1
    if limit.path is None:
        raise NanoVMError("NO_PRICE", "nobody knows what the model may cost")
    return _millionths(walk(args, limit.path))


def counted_place(run_id: str, kind: str, step: str, occurrence: int, item: int, attempt: int | None) -> str:
    """Identity of an action for counting: the same one counts once.

    Args:
        kind: "step", or "undo" for a compensation.
        attempt: of a model call, which is paid for each time; None for a tool.
    """
    place = [run_id, kind, step, occurrence, item]
    return canonical.digest_value(place if attempt is None else [*place, attempt])


def step_place(run: bytes, step: str, occurrence: int) -> str:
    """`counted_place` of a step outside maps; `run`: the canonical bytes of [run id, "step"] but for the bracket at the
    end. Step ids need no escaping."""
    return canonical.digest(b'%b,"%b",%d,-1]' % (run, step.encode(), occurrence))


def sealed_parts(labels: Mapping[str, int] | None) -> frozenset[str]:
    """Of the labels of an action's arguments: which are private or secret (`Request.private`)."""
    return frozenset(name for name, label in (labels or {}).items() if label & SEALED)


def _millionths(value: Any) -> int:
    if type(value) not in (int, float) or not 0 <= value <= SUM_MAX:
        raise NanoVMError("TYPE_MISMATCH", f"what a limit adds up is a number from 0 to {SUM_MAX}")
    if type(value) is int:
        return value * MILLION
    exact = Decimal(str(value)) * MILLION
    whole = int(exact)
    return whole if whole == exact else whole + 1


def action_digest(tool: str, schema: str, args: Any, policy: str, *, kind: str = "tool") -> str:
    """Identity of one exact action: what an approval covers (`spec/policy.md`, "Actions").

    Args:
        schema: digest of the tool's definition.
        policy: hash of the policy the run is pinned to; empty without one.
    """
    # The array is put together here: only the arguments need the encoder's whole care.
    names, ends = canonical.encode(["nano-vm action 1", kind, tool, schema]), canonical.encode([policy])
    return canonical.digest(b"%b,%b,%b" % (names[:-1], canonical.encode(args), ends[1:]))
