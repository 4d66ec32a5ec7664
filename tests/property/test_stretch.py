"""Plain stretches of journals are verified through the lane. It accepts what `apply` accepts, names the same errors for
what it does not, and leaves the same state behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from hashlib import sha256
from itertools import permutations
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nano_vm import Completion, ExecutionVM, MemoryStore, ProgramError, Usage, tool
from nano_vm.errors import NotFoundError, RuntimeFault, VerificationError
from nano_vm.journal.entry import RIDER_TYPES, Chain, Entry, open_events
from nano_vm.journal.ledger import Ledger
from nano_vm.journal.replay import verify_run
from nano_vm.kernel.events import UNSET, PolicyDecided, StepStarted, StepSucceeded
from nano_vm.kernel.state import snapshot
from nano_vm.policy import load_policy
from nano_vm.policy.model import Policy
from nano_vm.policy.recheck import Recheck
from nano_vm.program.compiled import CompiledProgram
from property.test_lane import POLICIES, TOOLS, CountedEntropy, StillClock, programs

Part = tuple[Any, bytes, bytes | None, list[Any]]  # event, salt, payload, riders


def outcome(
    program: CompiledProgram, entries: list[Entry], plainly: bool, policy: Policy | None = None
) -> Any:
    """What verifying comes to: the state, what was reported, and what was decided again, or the error."""
    look = None if plainly else lambda *_: None  # whoever looks at each transition gets them from `apply`

    def find(policy_hash: str) -> Policy:
        if policy is None or policy_hash != policy.hash:
            raise NotFoundError("POLICY_NOT_FOUND", "there is but one")
        return policy

    recheck = Recheck(program, find) if policy else None
    watchers = (recheck,) if recheck else ()
    try:
        verified = verify_run(program, None, entries, "run", on_transition=look, watchers=watchers)
    except (RuntimeFault, VerificationError) as error:  # (what is sealed here cannot be read)
        return error.code, error.facts
    decided = (
        (recheck.decisions, recheck.counted, recheck.tallied, recheck.progress.done) if recheck else None
    )
    return snapshot(verified.state), verified.steps, decided


def results(program: CompiledProgram, entries: list[Entry], plainly: bool) -> Any:
    """The step results that are kept while verifying, or the error."""
    ledger = Ledger(program)
    try:
        if plainly:
            state = verify_run(program, None, entries, "run", ledger=ledger).state
        else:
            state = verify_run(program, None, entries, "run", on_transition=ledger.record).state
    except (RuntimeFault, VerificationError) as error:  # (what is sealed here cannot be read)
        return error.code, error.facts
    return ledger.steps(state), sorted(ledger.leaves), ledger.ids, ledger.rollbacks


def parts_of(entries: list[Entry]) -> list[Part]:
    parts = []
    for entry in entries:
        event, *then = open_events(entry)
        parts.append((event, entry.salt, entry.payload, then))
    return parts


def sealed(parts: list[Part]) -> list[Entry]:
    chain = Chain("run")
    return [chain.seal(event, salt, payload, then) for event, salt, payload, then in parts]


class Talker:
    """A model: what it says, what that takes, and what it calls itself change with every answer."""

    def __init__(self, answers: list[str]) -> None:
        self.answers = answers
        self.given = 0

    async def complete(self, messages: list[Any], **params: Any) -> Completion:
        self.given += 1
        usage = [
            Usage(),
            Usage(prompt_tokens=self.given, completion_tokens=3),
            Usage(prompt_tokens=3, completion_tokens=0, cost_usd=0.25),
        ][self.given % 3]
        name = [None, "mock", "m 1.5", "mock", "gpt-4o \\ mini", "mock", "modèle", "mock"][self.given % 8]
        return Completion(text=self.answers[self.given % len(self.answers)], usage=usage, model=name)


COUNTED = [0]


@tool(name="count_keyed", effect="keyed")
async def count_keyed(x: int) -> int:
    COUNTED[0] += 1
    return COUNTED[0]


@tool(name="said_keyed", effect="keyed", output_label="untrusted")
async def said_keyed(x: int) -> int:
    return x


def journal(
    program: dict[str, Any], x: int, policy: Any = None, answers: list[str] | None = None
) -> tuple[CompiledProgram, list[Entry]] | None:
    COUNTED[0] = 0

    async def play() -> tuple[CompiledProgram, list[Entry]]:
        vm = ExecutionVM(
            llm=Talker(answers) if answers else None,
            tools=[*TOOLS, count_keyed, said_keyed],
            store=MemoryStore(),
            clock=StillClock(),
            entropy=CountedEntropy(),
            policy=policy,
        )
        async with vm:
            trace = await vm.run(program, context={"x": x}, trace_id="run")
            return vm.load_program(trace.program_hash), vm.store.read("run")

    try:
        return asyncio.run(play())
    except ProgramError:
        return None


def changed_event(draw: Callable[[Any], Any], event: Any) -> Any:
    """The event with one field of it changed to something of its type."""
    names = [name for name in event.__struct_fields__ if name != "payload"]
    name = draw(st.sampled_from(names))
    value = getattr(event, name)
    other: Any
    if name == "verdicts":
        other = draw(st.sampled_from([UNSET, [], [["s1", 1, True]], [["s1", 1, False]]]))
    elif name in (
        "tokens_in",
        "tokens_out",
        "cost_nanousd",
        "reserved_tokens",
        "reserved_cost_nanousd",
        "item",
    ):
        other = draw(st.sampled_from([UNSET, 0, 1, 2**50]))
    elif name in ("pure", "substituted", "cached"):
        other = draw(st.sampled_from([UNSET, True, False]))
    elif name == "label":
        other = draw(st.sampled_from([UNSET, 1, 2]))
    elif name in ("step", "effect", "status", "model", "error", "outcome"):
        other = draw(st.sampled_from(["s0", "s1", "s2", "end", "pure", "keyed", "FAILED", "SUCCESS"]))
    elif name in ("rule", "reason", "decision", "policy", "current"):
        other = draw(st.sampled_from(["allow", "deny", "ask", "tools", "r", "RULE", "DEFAULT", "50%", "p"]))
    elif name == "counts":
        other = draw(st.sampled_from([UNSET, [], [["k", 0, 1]]]))
    elif type(value) is int:
        other = value + draw(st.sampled_from([-1, 1, 1_000]))
    else:
        return event
    return msgspec.structs.replace(event, **{name: other})


@st.composite
def changed(draw: Callable[[Any], Any], parts: list[Part]) -> list[Part]:
    """The parts of a journal after one or two changes that whoever seals them anew can make."""
    parts = [(event, salt, payload, list(then)) for event, salt, payload, then in parts]
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(parts) - 1))
        event, salt, payload, then = parts[at]
        kind = draw(st.integers(0, 7))
        if kind <= 2:
            parts[at] = changed_event(draw, event), salt, payload, then
        elif kind == 3 and then:
            place = draw(st.integers(0, len(then) - 1))
            then[place] = changed_event(draw, then[place])
        elif kind == 4 and payload is not None:
            parts[at] = event, salt, draw(st.sampled_from([b"null", b"1", b'{"b":[1]}', b'"text"'])), then
        elif kind == 5 and len(parts) > 1:
            del parts[at]
        elif kind == 6:
            parts.insert(at, parts[at])
        elif then:  # what rode stands alone, or is dropped
            rider = then.pop(draw(st.integers(0, len(then) - 1)))
            if draw(st.booleans()):
                parts.insert(at + 1, (rider, b"", None, []))
    return parts


def assert_agreed(
    made: tuple[CompiledProgram, list[Entry]], policy: Policy | None, data: st.DataObject
) -> None:
    """On the journal, and on others made of it."""
    compiled, entries = made
    parts = parts_of(entries)
    others = [
        sealed([part for part in data.draw(changed(parts)) if all(r.type in RIDER_TYPES for r in part[3])])
        for _ in range(4)
    ]
    for each in [entries, *others]:
        if each:
            assert outcome(compiled, each, True, policy) == outcome(compiled, each, False, policy)
            assert results(compiled, each, True) == results(compiled, each, False)


@settings(max_examples=150, deadline=None)
@given(programs(), st.integers(-1, 5), st.data())
def test_the_lane_and_apply_agree_on_every_journal(
    program: dict[str, Any], x: int, data: st.DataObject
) -> None:
    made = journal(program, x)
    if made is not None:
        assert_agreed(made, None, data)


@settings(max_examples=150, deadline=None)
@given(programs(labelled=True), st.integers(-1, 5), st.sampled_from([None, *POLICIES]), st.data())
def test_they_agree_about_labels_and_decisions(
    program: dict[str, Any], x: int, policy: Any, data: st.DataObject
) -> None:
    made = journal(program, x, policy)
    if made is not None:
        assert_agreed(made, None if policy is None else load_policy(policy), data)


SAYS = st.lists(st.sampled_from(["yes", "no", 'He said "no"', "é\u2028", "7"]), min_size=1, max_size=3)
MODELS_ALLOWED = {"policy": "p", "tools": ["*"], "models": ["*"]}


@settings(max_examples=200, deadline=None)
@given(
    programs(models=True),
    st.integers(-1, 5),
    SAYS,
    st.sampled_from([None, None, MODELS_ALLOWED]),
    st.data(),
)
def test_they_agree_about_models(
    program: dict[str, Any], x: int, answers: list[str], policy: Any, data: st.DataObject
) -> None:
    made = journal(program, x, policy, answers)
    if made is not None:
        assert_agreed(made, None if policy is None else load_policy(policy), data)


@settings(max_examples=100, deadline=None)
@given(programs(labelled=True, models=True), st.integers(-1, 5), SAYS, st.data())
def test_they_agree_about_what_models_make_of_labels(
    program: dict[str, Any], x: int, answers: list[str], data: st.DataObject
) -> None:
    made = journal(program, x, None, answers)
    if made is not None:
        assert_agreed(made, None, data)


MODELS_AND_TOOLS: dict[str, Any] = {
    "name": "p",
    "inputs": {"type": "object", "properties": {"x": {"type": "integer", "label": "trusted"}}},
    "steps": [
        {"id": "a", "type": "llm", "prompt": "What? $x"},
        {"id": "b", "type": "llm", "prompt": "Is it so? $a.output", "allowed_outputs": ["yes", "no"]},
        {"id": "c", "type": "condition", "condition": "$b.output == 'yes'", "then": "d"},
        {"id": "d", "type": "tool", "tool": "add_keyed", "args": {"x": "$a.output"}},
        {"id": "e", "type": "llm", "prompt": "And so? $d.output", "allowed_outputs": ["yes"]},
        {"id": "f", "type": "llm", "prompt": "And then? $e.output", "model": "mock"},
        {"id": "h", "type": "llm", "prompt": "Is it? $f.output", "allowed_outputs": ["yes"]},
        {"id": "g", "type": "tool", "tool": "guarded_pure", "args": {"x": "$x"}, "is_terminal": True},
    ],
}
FIELDS: dict[str, tuple[Any, ...]] = {
    "at_ms": (0, 1_700_000_000_009),
    "attempt": (2,),
    "cached": (True, False),
    "cost_nanousd": (0, 5, 3 * 10**9, -1),
    "effect": ("keyed",),
    "item": (0,),
    "label": (UNSET, 1, 2, 3),
    "model": ("other", 'quo"ted', ""),
    "occurrence": (2,),
    "provider": ("other",),
    "pure": (True,),
    "reserved_cost_nanousd": (0, 5, 3 * 10**9, -1),
    "reserved_tokens": (0, 5, 10**6, -1),
    "step": ("a", "b", "d"),
    "substituted": (True,),
    "tokens_in": (UNSET, 0, 7, 10**6, -1),
    "tokens_out": (UNSET, 7, 10**6),
    "verdicts": ([], [["c", 1, False]]),
}


@pytest.mark.parametrize("budgets", [{}, {"max_tokens": 9_000, "max_cost_usd": 2.5}], ids=["free", "budget"])
@pytest.mark.parametrize("labelled", [False, True], ids=["plain", "labelled"])
def test_no_change_to_what_a_model_said_or_took_goes_unnoticed(
    budgets: dict[str, Any], labelled: bool
) -> None:
    program = json.loads(json.dumps({**MODELS_AND_TOOLS, **budgets}))
    if not labelled:
        program["inputs"]["properties"]["x"] = {"type": "integer"}
        program["steps"][-1]["tool"] = "add_pure"
    made = journal(program, 1, None, ["yes"])
    assert made is not None
    compiled, entries = made
    parts = parts_of(entries)
    assert len(parts) >= 6
    told = set()
    for length in range(1, len(parts)):
        assert outcome(compiled, sealed(parts[:length]), True) == outcome(
            compiled, sealed(parts[:length]), False
        )
    for place, (event, salt, payload, then) in enumerate(parts):
        others: list[Part] = []
        for rider, each in enumerate([event, *then]):
            for name in [name for name in FIELDS if name in each.__struct_fields__]:
                for value in FIELDS[name]:
                    changed = [event, *then]
                    changed[rider] = msgspec.structs.replace(each, **{name: value})
                    others.append((changed[0], salt, payload, changed[1:]))
        others += [(event, salt, b'"no"', then), (event, salt, b'"maybe"', then), (event, salt, payload, [])]
        for other in others:
            forged = sealed([*parts[:place], other, *parts[place + 1 :]])
            found = outcome(compiled, forged, True)
            assert found == outcome(compiled, forged, False)
            assert results(compiled, forged, True) == results(compiled, forged, False)
            if type(found[0]) is str:
                told.add((found[0], found[1].get("code")))
    assert ("REPLAY_MISMATCH", "GATE") in told
    assert (("REPLAY_MISMATCH", "OVER_BUDGET") in told) is bool(budgets)


LOOP_OF_MODELS: dict[str, Any] = {
    "name": "p",
    "inputs": {"type": "object", "properties": {"x": {"type": "integer"}}},
    "max_steps": 40,
    "steps": [
        {"id": "d", "type": "tool", "tool": "count_keyed", "args": {"x": "$x"}},
        {"id": "a", "type": "llm", "prompt": "What? $x"},
        {"id": "c", "type": "condition", "condition": "$d.output < 5", "then": "d", "otherwise": "b"},
        {"id": "b", "type": "llm", "prompt": "So? $x", "is_terminal": True},
    ],
}


@pytest.mark.parametrize("budgets", [{}, {"max_tokens": 19_000, "max_cost_usd": 9.5}], ids=["free", "budget"])
def test_no_change_to_what_a_model_says_again_and_again_goes_unnoticed(budgets: dict[str, Any]) -> None:
    """Answers and intents are expected to be as the last ones of the step were."""
    made = journal({**LOOP_OF_MODELS, **budgets}, 1, None, ["yes", "no"])
    assert made is not None
    compiled, entries = made
    parts = parts_of(entries)
    assert len(parts) > 10
    for place, (event, salt, payload, then) in enumerate(parts[3:], 3):
        others: list[Part] = [(event, salt, payload, [])]
        for rider, each in enumerate([event, *then]):
            for name in [name for name in FIELDS if name in each.__struct_fields__]:
                for value in FIELDS[name]:
                    changed = [event, *then]
                    changed[rider] = msgspec.structs.replace(each, **{name: value})
                    others.append((changed[0], salt, payload, changed[1:]))
        for other in others:
            forged = sealed([*parts[:place], other, *parts[place + 1 :]])
            assert outcome(compiled, forged, True) == outcome(compiled, forged, False)
            assert results(compiled, forged, True) == results(compiled, forged, False)


def test_a_success_that_nothing_has_decided_about_is_refused() -> None:
    steps = [{"id": f"s{i}", "type": "tool", "tool": "add_pure", "args": {"x": "$x"}} for i in range(4)]
    inputs = {"type": "object", "properties": {"x": {"type": "integer"}}}
    made = journal({"name": "p", "inputs": inputs, "steps": steps}, 1, POLICIES[0])
    assert made is not None
    compiled, entries = made
    parts = parts_of(entries)
    refused = 0
    for place, (event, salt, payload, then) in enumerate(parts):
        if any(type(rider) is PolicyDecided for rider in then):
            forged = sealed([*parts[:place], (event, salt, payload, []), *parts[place + 1 :]])
            found = outcome(compiled, forged, True, load_policy(POLICIES[0]))
            assert found == outcome(compiled, forged, False, load_policy(POLICIES[0]))
            assert (found[0], found[1]["code"], found[1]["seq"]) == ("REPLAY_MISMATCH", "POLICY", place + 1)
            refused += 1
    assert refused == 3


LANES: dict[str, Any] = {
    "name": "p",
    "inputs": {"type": "object", "properties": {"x": {"type": "integer", "label": "trusted"}}},
    "steps": [
        {
            "id": "all",
            "type": "parallel",
            "parallel_steps": [
                {"id": "a", "type": "tool", "tool": "add_keyed", "args": {"x": "$x"}, "output_key": "first"},
                {"id": "b", "type": "tool", "tool": "box_irreversible", "args": {"x": "$x"}},
                {"id": "c", "type": "tool", "tool": "add_pure", "args": {"x": "$x"}},
                {
                    "id": "e",
                    "type": "tool",
                    "tool": "add_keyed",
                    "args": {"x": 2},
                    "compensate": {"tool": "add_keyed", "args": {"x": "$x"}},
                },
                {"id": "d", "type": "tool", "tool": "quick_keyed", "args": {"x": 7}},
                {"id": "m", "type": "llm", "prompt": "What?", "allowed_outputs": ["yes"]},
            ],
        },
        {"id": "list", "type": "tool", "tool": "quick_pure", "args": {"x": "$first"}},
        {
            "id": "each",
            "type": "map",
            "over": [1, 2, 3, "$d.output"],
            "step": {
                "id": "one",
                "type": "tool",
                "tool": "add_idempotent",
                "args": {"x": "$item"},
                "on_error": "retry",
            },
        },
        {"id": "more", "type": "condition", "condition": "$x == 1", "then": "some"},
        {
            "id": "some",
            "type": "map",
            "over": [1, 2, 3, 4],
            "max_concurrency": 2,
            "step": {"id": "two", "type": "tool", "tool": "add_keyed", "args": {"x": "$index"}},
        },
        {"id": "end", "type": "tool", "tool": "add_keyed", "args": {"x": "$x"}, "is_terminal": True},
    ],
}
LANES_ALLOWED = {"policy": "p", "tools": ["*"], "models": ["*"]}


@pytest.mark.parametrize("policy", [None, LANES_ALLOWED], ids=["free", "governed"])
@pytest.mark.parametrize("labelled", [False, True], ids=["plain", "labelled"])
def test_no_change_to_what_lanes_have_yielded_goes_unnoticed(labelled: bool, policy: Any) -> None:
    program = json.loads(json.dumps(LANES))
    if labelled:
        program["inputs"]["properties"]["x"]["label"] = "untrusted"
        program["steps"][0]["parallel_steps"][4]["tool"] = "guarded_keyed"
    made = journal(program, 1, policy, ["yes"])
    assert made is not None
    compiled, entries = made
    rules = None if policy is None else load_policy(policy)
    parts = parts_of(entries)
    told = set()

    def look(changed: list[Part]) -> None:
        forged = sealed(changed)
        found = outcome(compiled, forged, True, rules)
        assert found == outcome(compiled, forged, False, rules)
        assert results(compiled, forged, True) == results(compiled, forged, False)
        told.add((found[0], found[1].get("code")) if type(found[0]) is str else "taken")

    for place, (event, salt, payload, then) in enumerate(parts):
        look(parts[: place + 1])
        look(parts[:place] + parts[place + 1 :])
        look([*parts[:place], parts[place], *parts[place:]])
        if place and type(event) is type(parts[place - 1][0]):
            look([*parts[: place - 1], parts[place], parts[place - 1], *parts[place + 1 :]])
        others: list[Part] = [(event, salt, other, then) for other in (b"null", b"1.0", b'{"a":[]}')]
        others.append((event, salt, payload, []))
        if getattr(event, "verdicts", UNSET) is not UNSET:
            others.append((msgspec.structs.replace(event, verdicts=UNSET), salt, payload, []))
        for rider, each in enumerate([event, *then]):
            for name in [name for name in FIELDS if name in each.__struct_fields__]:
                for value in (
                    *FIELDS[name],
                    *{"item": (UNSET, 1, 9), "step": ("e", "one", "m")}.get(name, ()),
                ):
                    changed = [event, *then]
                    changed[rider] = msgspec.structs.replace(each, **{name: value})
                    others.append((changed[0], salt, payload, changed[1:]))
        for other in others:
            if payload is not None or other[2] is payload:
                look([*parts[:place], other, *parts[place + 1 :]])
    assert "taken" in told
    assert len(told) >= 5


def test_a_lane_is_told_from_what_is_beside_it() -> None:
    """Its payload, its salt, its digest, and how it is written."""
    made = journal(LANES, 1, None, ["yes"])
    assert made is not None
    compiled, entries = made
    for place, entry in enumerate(entries):
        if entry.payload is None:
            continue
        others = [
            Entry(entry.seq, entry.digest, entry.facts, entry.salt, b"77"),
            Entry(entry.seq, entry.digest, entry.facts, b"\xff" * 16, entry.payload),
            Entry(entry.seq, entry.digest, entry.facts, entry.salt + b"7", entry.payload),
            Entry(entry.seq, "sha256:" + "7" * 64, entry.facts, entry.salt, entry.payload),
            Entry(entry.seq + 1, entry.digest, entry.facts, entry.salt, entry.payload),
        ]
        for facts in (
            entry.facts[:1] + b" " + entry.facts[1:],
            entry.facts.replace(b'"event":{', b'"event": {', 1),
        ):
            others.append(
                Entry(entry.seq, f"sha256:{sha256(facts).hexdigest()}", facts, entry.salt, entry.payload)
            )
        for other in others:
            forged = [*entries[:place], other, *entries[place + 1 :]]
            found = outcome(compiled, forged, True)
            assert type(found[0]) is str
            assert found[1]["seq"] == place
            assert found == outcome(compiled, forged, False)


def test_a_lane_whose_output_is_not_trusted_says_so() -> None:
    lanes = [
        {"id": name, "type": "tool", "tool": used, "args": {"x": "$x"}}
        for name, used in (("a", "said_keyed"), ("b", "add_keyed"), ("c", "add_keyed"))
    ]
    inputs = {"type": "object", "properties": {"x": {"type": "integer", "label": "trusted"}}}
    steps = [
        {"id": "all", "type": "parallel", "parallel_steps": lanes},
        {"id": "end", "type": "tool", "tool": "guarded_keyed", "args": {"x": "$b.output"}},
    ]
    made = journal({"name": "p", "inputs": inputs, "steps": steps}, 1)
    assert made is not None
    compiled, entries = made
    parts = parts_of(entries)
    place = next(n for n, part in enumerate(parts) if type(part[0]) is StepSucceeded and part[0].step == "a")
    event, salt, payload, then = parts[place]
    assert event.label == 1
    for value in (UNSET, 1, 2):
        other = msgspec.structs.replace(event, label=value), salt, payload, then
        forged = sealed([*parts[:place], other, *parts[place + 1 :]])
        found = outcome(compiled, forged, True)
        assert found == outcome(compiled, forged, False)
        assert (type(found[0]) is bytes) is (value == 1)


def test_lanes_finish_in_any_order() -> None:
    made = journal(LANES, 1, None, ["yes"])
    assert made is not None
    compiled, entries = made
    parts = parts_of(entries)
    starts = [
        place for place, part in enumerate(parts) if type(part[0]) is StepSucceeded and part[0].step == "one"
    ]
    first, last = starts[0], starts[-1]
    assert last - first == 3
    for order in permutations(parts[first:last]):
        changed = sealed([*parts[:first], *order, *parts[last:]])
        assert outcome(compiled, changed, True)[0] == outcome(compiled, entries, True)[0]
        assert outcome(compiled, changed, True) == outcome(compiled, changed, False)
        assert results(compiled, changed, True) == results(compiled, changed, False)


@pytest.mark.parametrize(
    ("written", "otherwise"),
    [
        (b"5,true]]", b"5, true]]"),
        (b'"occurrence":6,"step"', b'"occurrence": 6,"step"'),
        (b'"step":"look"}', b'"step": "look"}'),
    ],
    ids=["verdicts", "occurrence", "step"],
)
def test_what_is_no_canonical_json_is_no_evidence_in_the_middle_of_a_stretch(
    written: bytes, otherwise: bytes
) -> None:
    """Somebody has written the entry so, and every digest after it."""
    counted = [0]

    def look(n: int) -> dict[str, int]:
        counted[0] += 1
        return {"n": counted[0]}

    steps = [
        {"id": "look", "type": "tool", "tool": "look", "args": {"n": "$n"}},
        {
            "id": "more",
            "type": "condition",
            "condition": "$look.output.n < 9",
            "then": "look",
            "otherwise": "end",
        },
        {"id": "end", "type": "tool", "tool": "look", "args": {"n": "$n"}, "is_terminal": True},
    ]
    vm = ExecutionVM(tools={"look": look}, store=MemoryStore())
    trace = vm.run_sync({"name": "loop", "max_steps": 99, "steps": steps}, {"n": 1})
    entries = list(vm.store.read(trace.trace_id))
    verify_run(vm.load_program(trace.program_hash), None, entries)
    before, head = [entry.digest for entry in entries], ""
    for place, entry in enumerate(entries):
        facts = entry.facts
        if place == 5:
            assert written in facts
            facts = facts.replace(written, otherwise)
        if place:
            facts = facts.replace(before[place - 1].encode(), head.encode())
        head = f"sha256:{sha256(facts).hexdigest()}"
        entries[place] = Entry(entry.seq, head, facts, entry.salt, entry.payload)
    with pytest.raises(VerificationError) as raised:
        verify_run(vm.load_program(trace.program_hash), None, entries)
    assert (raised.value.code, raised.value.facts["seq"]) == ("JOURNAL_MALFORMED", 5)


@pytest.mark.parametrize("plainly", [True, False])
@pytest.mark.parametrize("dropped", [PolicyDecided, StepStarted])
def test_no_step_of_a_governed_run_goes_without_its_decision_or_its_intent(
    plainly: bool, dropped: type[Any]
) -> None:
    steps = [
        {"id": f"s{number}", "type": "tool", "tool": "add_keyed", "args": {"x": "$x"}} for number in range(6)
    ]
    inputs = {"type": "object", "properties": {"x": {"type": "integer"}}}
    made = journal({"name": "p", "inputs": inputs, "steps": steps}, 1, POLICIES[0])
    assert made is not None
    compiled, entries = made
    parts = parts_of(entries)
    assert outcome(compiled, sealed(parts), plainly, load_policy(POLICIES[0]))[0][:1] == b"{"
    refused = 0
    for place, (event, salt, payload, then) in enumerate(parts):
        kept = [rider for rider in then if type(rider) is not dropped]
        if len(kept) < len(then):
            others = sealed([*parts[:place], (event, salt, payload, kept), *parts[place + 1 :]])
            code, facts = outcome(compiled, others, plainly, load_policy(POLICIES[0]))
            expected = (place, "POLICY") if dropped is PolicyDecided else (place + 1, "OUT_OF_ORDER")
            assert (code, facts["seq"], facts["code"]) == ("REPLAY_MISMATCH", *expected)
            refused += 1
    assert refused == (5 if dropped is PolicyDecided else 6)  # the first decision stands alone
