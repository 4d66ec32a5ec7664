"""Whatever bytes, text or data come in: a report, or a documented error."""

from __future__ import annotations

import json
import random
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nano_vm.compiler import as_human, as_json, as_sarif, check
from nano_vm.errors import CODES, ProgramError
from nano_vm.program import Program, ToolSchema
from nano_vm.program.document import from_data, from_json, from_yaml
from nano_vm.program.fields import STEP_FIELDS

YAML = """
name: order
version: "2"
inputs: {type: object, properties: {x: {type: number}, who: {type: string}}, required: [x, who]}
outputs: {d: $decision}
max_steps: 50
steps:
  - id: ask
    type: llm
    prompt: |
      Dear $who, is ${x} fine?
    allowed_outputs: [yes, no]
    output_key: decision
    on_error: retry
  - {id: c, type: condition, condition: "$decision == 'yes' and not $x > 3", then: pay, otherwise: stop}
  - {id: pay, type: tool, tool: pay, args: {amount: $x, tags: ["a $who", {b: $ask.output}]}, on_failure: stop,
     compensate: {tool: undo, args: {id: $pay.output.id}}, next_step: all}
  - {id: stop, type: tool, tool: note, args: {why: 'it''s $who'}, is_terminal: true, final_status: FAILED}
  - id: all
    type: parallel
    parallel_steps:
      - {id: l1, type: tool, tool: t}
      - {id: l2, type: wait, event: paid, accept: "$event.ok == true"}
  - {id: m, type: map, over: $l1.output, step: {id: mm, type: call, program: p, inputs: {i: $item, n:
  $index}}}
  - {id: w, type: wait, until: "2030-01-01T00:00:00Z"}
  - {id: again, type: condition, condition: $m.output contains 'x', then: ask, otherwise: continue}
  - {id: end, type: tool, tool: t}
"""
TOOLS = {name: ToolSchema(name=name) for name in ("undo", "note", "t")} | {
    "pay": ToolSchema(name="pay", parameters={"type": "object", "properties": {"amount": {"type": "number"}}})
}
PIECES = [
    "$",
    "${",
    "}",
    "'",
    '"',
    ":",
    "- ",
    "\n",
    "\t",
    "  ",
    "&a",
    "*a",
    "!!x",
    "<<: ",
    "#",
    "|",
    ">",
    "[",
    "]",
    "{",
    "null",
    "yes",
    "1e999",
    "9" * 30,
    "\ufeff",
    "\u2028",
    "é",
    "😀",
    "\x00",
    "\\u",
    "depends_on: [c]",
    "steps:",
    "type: map",
    "%",
    "---",
    "$item",
    "$x.output",
    "continue",
]


PROGRAMS = {"p": Program.from_yaml("{name: p, steps: [{id: a, type: tool, tool: t}]}")}


def assert_documented(document):
    report = check(document, TOOLS, PROGRAMS)
    assert report.ok == (report.compiled is not None)
    lines = (document.text or "").split("\n")
    for finding in report.diagnostics:
        assert finding.code in CODES
        assert finding.length >= 1
        if finding.place.line:
            assert finding.place.line <= len(lines) + document.text.count("\r")
            assert finding.place.column >= 1
    for render in (as_human, as_json, as_sarif):
        render(report)
    json.loads(as_json(report))
    return report


def mutate(text, rng):
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(text) + 1)
        match rng.randrange(4):
            case 0:
                text = text[:at] + rng.choice(PIECES) + text[at:]
            case 1:
                text = text[:at] + text[at + rng.randint(1, 30) :]
            case 2:
                other = rng.randrange(len(text) + 1)
                text = text[:at] + text[other : other + rng.randint(1, 60)] + text[at:]
            case _:
                text = text[:at] + rng.choice(string.printable) + text[at + 1 :]
    return text


def test_the_program_that_is_mutated_is_sound():
    report = assert_documented(from_yaml(YAML))
    assert [finding.code for finding in report.errors] == []


@pytest.mark.parametrize("seed", range(4))
def test_mutated_yaml_gives_a_report(seed):
    rng = random.Random(seed)
    for _ in range(150):
        assert_documented(from_yaml(mutate(YAML, rng), "fuzz.yaml"))


@pytest.mark.parametrize("seed", range(4))
def test_mutated_json_gives_a_report(seed):
    rng = random.Random(seed)
    text = json.dumps(from_yaml(YAML).data, indent=1)
    for _ in range(150):
        assert_documented(from_json(mutate(text, rng), "fuzz.json"))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_give_a_report(data):
    assert_documented(from_yaml(data))
    assert_documented(from_json(data))


names = st.sampled_from(["a", "b", "c", "x", "continue", "item", "$a", "", "9"])
scalars = st.one_of(
    names,
    st.none(),
    st.booleans(),
    st.integers(-3, 2**60),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["$a.output", "$x > 1", "$b.error.type", "${x", "$item", "$event", "hi $x", "a", "b"]),
    st.sampled_from([object(), b"x", {1}, 1j]),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
types = st.sampled_from(["llm", "tool", "condition", "parallel", "wait", "map", "call"])
fields = st.sampled_from(
    [
        *(
            "prompt",
            "tool",
            "args",
            "condition",
            "then",
            "otherwise",
            "next_step",
            "on_failure",
            "depends_on",
        ),
        *("output_key", "is_terminal", "over", "event", "accept", "seconds", "until", "approvers", "program"),
        *("inputs", "compensate", "on_error", "on_timeout", "fallback", "timeout_seconds", "allowed_outputs"),
        *("output_schema", "parallel_steps", "step", "params", "retry", "max_retries"),
    ]
)
steps = st.builds(
    lambda rest, id, type: {"id": id, "type": type, **rest},
    st.dictionaries(fields, values, max_size=5),
    names,
    types,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(steps, steps, values), max_size=5), st.dictionaries(names, values, max_size=2))
def test_random_data_gives_a_report_or_a_program_error(steps, rest):
    data = {"steps": steps, **rest}
    assert_documented(from_data(data))
    try:
        program = Program.from_dict(data)
    except ProgramError as error:
        refusal = error
    else:
        assert Program.from_dict(program.to_dict()) == program
        return
    assert refusal.code in CODES
    assert refusal.diagnostics


targets = st.sampled_from([f"s{n}" for n in range(7)])
refs = st.sampled_from([f"$s{n}.output" for n in range(7)] + ["$k", "$x"])


@st.composite
def graphs(draw):
    """Well-formed programs of any control flow, as list or DAG."""
    dag = draw(st.booleans())
    steps = []
    for n in range(draw(st.integers(1, 7))):
        if draw(st.integers(0, 2)) == 0:
            step = {"type": "condition", "condition": f"{draw(refs)} is not null"}
            for field in draw(st.sampled_from([("then",), ("otherwise",), ("then", "otherwise")])):
                step[field] = draw(targets | st.just("continue"))
        else:
            step = {"type": "tool", "tool": "t", "args": {"a": draw(refs)}}
            for field in draw(st.sets(st.sampled_from(["next_step", "on_failure"]))):
                if not (dag and field == "next_step"):
                    step[field] = draw(targets)
            if draw(st.integers(0, 3)) == 0:
                step["output_key"] = "k"
        if dag and draw(st.booleans()):
            step["depends_on"] = draw(st.lists(targets, max_size=2, unique=True))
        steps.append({"id": f"s{n}", **step})
    return {"max_steps": 99, "steps": steps}


@settings(max_examples=200, deadline=None)
@given(graphs())
def test_any_control_flow_gives_a_report(data):
    assert_documented(from_data(data))


def test_fields_of_a_step_without_a_known_type_have_their_rules() -> None:
    step = {
        "id": "a",
        "type": "nope",
        "tool": ["t"],
        "compensate": {"tool": {}},
        "step": 7,
        "args": {"x": "$y"},
    }
    report = check(from_data({"steps": [step, {"id": "b", "type": "tool", "tool": "t"}]}), TOOLS)
    found = {(finding.code, finding.place.path) for finding in report.errors}
    assert {("BAD_VALUE", "/steps/0/type"), ("WRONG_TYPE", "/steps/0/tool")} <= found


ODD = [None, 1, True, "x", [], {}, [None], [1], {"a": 1}, [[]], [{}]]


@pytest.mark.parametrize("typed", [{}, {"type": None}, {"type": "nosuch"}, {"type": "condition"}])
@pytest.mark.parametrize("inside", ["list", "map", "parallel"])
def test_a_step_whose_type_is_none_gives_a_report_whatever_its_fields_are(typed, inside):
    """Most stages go by the type; those that do not must not meet a field that nobody has judged."""
    for field in sorted(STEP_FIELDS.keys() - {"type"}):
        for value in ODD:
            step = {"id": "a", **typed, field: value}
            if inside == "map":
                step = {"id": "m", "type": "map", "over": [1], "step": step}
            elif inside == "parallel":
                step = {"id": "g", "type": "parallel", "parallel_steps": [step]}
            report = assert_documented(from_data({"name": "odd", "steps": [step]}))
            assert not report.ok
