"""Programs that are wrong in one way each are refused at the right place.

In every program `«` stands right before the culprit and is taken out before the check: the expected line and
column are where it stood.
"""

from __future__ import annotations

import pytest

from nano_vm.compiler import as_human, as_json, as_sarif, check
from nano_vm.errors import CODES
from nano_vm.program import Program, ToolSchema
from nano_vm.program.document import from_json, from_yaml

TOOLS = {
    "pay": ToolSchema(
        name="pay",
        parameters={
            "type": "object",
            "properties": {
                "amount": {"type": "number", "maximum": 100},
                "currency": {"enum": ["EUR", "USD"]},
            },
            "required": ["amount"],
            "additionalProperties": False,
        },
        output={"type": "object", "properties": {"id": {"type": "string"}}, "additionalProperties": False},
    ),
    "look": ToolSchema(name="look", effect="pure"),
    "shop.pay": ToolSchema(name="shop.pay"),
    "shop_pay": ToolSchema(name="shop_pay"),
    "odd": ToolSchema(name="odd", parameters={"type": "array"}),
}
PROGRAMS = {
    "child": Program.from_yaml("""
name: child
inputs: {type: object, properties: {n: {type: number}}, required: [n]}
steps: [{id: a, type: tool, tool: look}]
"""),
    "loop": Program.from_yaml("{name: loop, steps: [{id: a, type: call, program: loop}]}"),
}

WRONG = {
    # --- the document
    "empty": ("NOT_A_PROGRAM", "«"),
    "a list": ("NOT_A_PROGRAM", "«- id: a\n"),
    "tab": ("DOCUMENT_TAB", "steps:\n«\t- id: a\n"),
    "unclosed quote": ("DOCUMENT_SYNTAX", "name: «'refund\nsteps: []\n"),
    "colon in text": ("DOCUMENT_SYNTAX", "name: refund«: fast\n"),
    "duplicate key": ("DUPLICATE_KEY", "name: a\n«name: b\nsteps: [{id: a, type: tool, tool: look}]\n"),
    "merge key": ("DOCUMENT_TAG", "steps:\n  - {«<<: {id: a}, id: a, type: tool, tool: look}\n"),
    "tag": ("DOCUMENT_TAG", "name: «!!python/name:os.system x\nsteps: [{id: a, type: tool, tool: look}]\n"),
    "two documents": ("MULTIPLE_DOCUMENTS", "name: a\n«---\nname: b\n"),
    "infinite budget": ("DOCUMENT_NUMBER", "max_cost_usd: «.inf\nsteps: [{id: a, type: tool, tool: look}]\n"),
    "number as key": ("DOCUMENT_KEY", "steps:\n  - {id: a, type: tool, tool: look, args: {«1: x}}\n"),
    "self alias": ("DOCUMENT_ALIAS", "name: x\nsteps: «&a [*a]\n"),
    # --- fields
    "no steps": ("MISSING_FIELD", "«name: x\n"),
    "no step": ("BAD_VALUE", "steps: «[]\n"),
    "unknown field": ("UNKNOWN_FIELD", "steps:\n  - {id: a, type: llm, prompt: x, «temprature: 3}\n"),
    "number as version": ("WRONG_TYPE", "version: «1.5\nsteps: [{id: a, type: tool, tool: look}]\n"),
    "unknown type": ("BAD_VALUE", "steps:\n  - {id: a, type: «tol, tool: look}\n"),
    "no type": ("MISSING_FIELD", "steps:\n  - «{id: a, tool: look}\n"),
    "bad id": ("BAD_IDENTIFIER", "steps:\n  - {id: «send-mail, type: tool, tool: look}\n"),
    "negative time": ("BAD_VALUE", "steps:\n  - {id: a, type: tool, tool: look, timeout_seconds: «-1}\n"),
    "no lanes at once": (
        "BAD_VALUE",
        "steps:\n  - id: a\n    type: parallel\n    max_concurrency: «0\n"
        "    parallel_steps: [{id: b, type: tool, tool: look}]\n",
    ),
    "prompt on a tool": ("FIELD_NOT_ALLOWED", "steps:\n  - {id: a, type: tool, tool: look, «prompt: hi}\n"),
    "an agent without tools": ("MISSING_FIELD", "steps:\n  - «{id: a, type: agent, prompt: hi}\n"),
    "an agent with no tool": ("BAD_VALUE", "steps:\n  - {id: a, type: agent, prompt: hi, tools: «[]}\n"),
    "an agent with an unknown tool": (
        "UNKNOWN_TOOL",
        "steps:\n  - {id: a, type: agent, prompt: hi, tools: [pay, «lok]}\n",
    ),
    "an agent whose tools are computed": (
        "BAD_VALUE",
        "steps:\n  - {id: a, type: agent, prompt: hi, tools: [«$which]}\n",
    ),
    "an agent with a tool twice": (
        "BAD_VALUE",
        "steps:\n  - {id: a, type: agent, prompt: hi, tools: [pay, «pay]}\n",
    ),
    "two tools of one name to a model": (
        "NAME_COLLISION",
        "steps:\n  - {id: a, type: agent, prompt: hi, tools: [shop.pay, «shop_pay]}\n",
    ),
    "a tool no model can call": (
        "BAD_SCHEMA",
        "steps:\n  - {id: a, type: agent, prompt: hi, tools: [«odd]}\n",
    ),
    "an agent without turns": (
        "BAD_VALUE",
        "steps:\n  - {id: a, type: agent, prompt: hi, tools: [pay], max_turns: «0}\n",
    ),
    "an agent with turns without end": (
        "BAD_VALUE",
        "steps:\n  - {id: a, type: agent, prompt: hi, tools: [pay], max_turns: «1001}\n",
    ),
    "tools on an llm step": (
        "FIELD_NOT_ALLOWED",
        "steps:\n  - {id: a, type: llm, prompt: hi, «tools: [pay]}\n",
    ),
    "an agent in a map": (
        "SUBSTEP_NOT_ALLOWED",
        "steps:\n  - id: m\n    type: map\n    over: $xs\n"
        "    step: {id: a, type: «agent, prompt: hi, tools: [pay]}\n",
    ),
    "two gates on an agent": (
        "FIELD_CONFLICT",
        "steps:\n  - {id: a, type: agent, prompt: hi, tools: [pay], allowed_outputs: [x], «output_schema: true}\n",
    ),
    "privacy of half an input": (
        "BAD_SCHEMA",
        "inputs:\n  type: object\n  properties:\n    who:\n      properties:\n        name: {«private: true}\n"
        "steps:\n  - {id: a, type: tool, tool: look}\n",
    ),
    "an unknown label": (
        "BAD_SCHEMA",
        "inputs:\n  type: object\n  properties:\n    who: {label: «trustworthy}\n"
        "steps:\n  - {id: a, type: tool, tool: look}\n",
    ),
    "privacy that is neither true nor false": (
        "BAD_SCHEMA",
        "inputs:\n  type: object\n  properties:\n    who: {private: «yes please}\n"
        "steps:\n  - {id: a, type: tool, tool: look}\n",
    ),
    "a private answer inside its schema": (
        "BAD_SCHEMA",
        "steps:\n  - id: a\n    type: llm\n    prompt: hi\n    output_schema: {items: {private: «true}}\n",
    ),
    "a subject that nobody knows yet": (
        "BAD_SUBJECT",
        "subject: «$a.output\nsteps:\n  - {id: a, type: tool, tool: look}\n",
    ),
    "a subject that is text": (
        "BAD_SUBJECT",
        "subject: «mr $who\ninputs: {type: object, properties: {who: {}}}\n"
        "steps:\n  - {id: a, type: tool, tool: look}\n",
    ),
    "outcome of a step in the middle": (
        "FIELD_CONFLICT",
        "steps:\n  - {id: a, type: tool, tool: look, «outcome: done}\n  - {id: b, type: tool, tool: look}\n",
    ),
    "two things to wait for": ("FIELD_CONFLICT", "steps:\n  - {id: a, type: wait, event: x, «seconds: 3}\n"),
    "nothing to wait for": ("MISSING_FIELD", "steps:\n  - «{id: a, type: wait}\n"),
    "no such day": ("BAD_VALUE", 'steps:\n  - {id: a, type: wait, until: «"2026-02-30T09:00:00Z"}\n'),
    "inputs without properties": (
        "BAD_SCHEMA",
        "inputs:\n  «amount: {type: number}\nsteps: [{id: a, type: tool, tool: look}]\n",
    ),
    "inputs without properties that are used": (
        "BAD_SCHEMA",
        "inputs:\n  «amount: {type: number}\nsteps: [{id: a, type: tool, tool: look, args: {a: $amount}}]\n",
    ),
    "required input that is not declared": (
        "BAD_SCHEMA",
        "inputs: {type: object, properties: {amount: {}}, required: [«amuont]}\n"
        "steps: [{id: a, type: tool, tool: look}]\n",
    ),
    "default that does not fit": (
        "BAD_SCHEMA",
        "inputs: {type: object, properties: {n: {type: number, default: «five}}}\n"
        "steps: [{id: a, type: tool, tool: look}]\n",
    ),
    "bad output schema": (
        "BAD_SCHEMA",
        "steps:\n  - id: a\n    type: llm\n    prompt: x\n    output_schema:\n      type: «objekt\n",
    ),
    "remote schema": (
        "BAD_SCHEMA",
        "steps:\n  - {id: a, type: llm, prompt: x, output_schema: {$ref: «'https://example.org/s.json'}}\n",
    ),
    "computed tool": ("BAD_TEMPLATE", "steps:\n  - {id: a, type: tool, tool: «$x}\n"),
    "condition in a parallel": (
        "SUBSTEP_NOT_ALLOWED",
        "steps:\n  - id: p\n    type: parallel\n    parallel_steps:\n"
        "      - {id: c, type: «condition, condition: $x == 1, then: p}\n",
    ),
    "jump out of a map": (
        "SUBSTEP_NOT_ALLOWED",
        "steps:\n  - {id: m, type: map, over: [1], step: {id: a, type: tool, tool: look, «next_step: m}}\n",
    ),
    "fallback outside the enum": (
        "BAD_VALUE",
        "steps:\n  - id: a\n    type: llm\n    prompt: x\n    allowed_outputs: [yes, no]\n"
        "    timeout_seconds: 3\n"
        "    on_timeout: fallback\n    fallback: «maybe\n",
    ),
    "fallback without value": (
        "MISSING_FIELD",
        "steps:\n  - {id: a, type: tool, tool: look, timeout_seconds: 3, on_timeout: «fallback}\n",
    ),
    # --- control flow
    "duplicate id": (
        "DUPLICATE_ID",
        "steps:\n  - {id: a, type: tool, tool: look}\n  - {id: «a, type: tool, tool: look}\n",
    ),
    "missing target": (
        "MISSING_TARGET",
        "steps:\n  - {id: start, type: tool, tool: look, next_step: «finnish}\n"
        "  - {id: finish, type: tool, tool: look}\n",
    ),
    "target inside a parallel": (
        "MISSING_TARGET",
        "steps:\n  - {id: a, type: tool, tool: look, on_failure: «c}\n"
        "  - {id: b, type: parallel, parallel_steps: [{id: c, type: tool, tool: look}]}\n",
    ),
    "no branch": (
        "MISSING_BRANCH",
        "inputs: {type: object, properties: {x: {type: number}}, required: [x]}\n"
        "steps:\n  - {id: a, type: condition, condition: «$x == 1}\n",
    ),
    "unreachable": (
        "UNREACHABLE_STEP",
        "steps:\n  - {id: a, type: tool, tool: look, is_terminal: true}\n"
        "  - {id: «b, type: tool, tool: look}\n",
    ),
    "refund falls into rejection": (
        "AMBIGUOUS_BRANCH",
        "steps:\n  - {id: a, type: tool, tool: look}\n"
        "  - {id: c, type: condition, condition: $a.output == 1, then: refund, otherwise: reject}\n"
        "  - {id: «refund, type: tool, tool: look}\n  - {id: reject, type: tool, tool: look}\n",
    ),
    "falls after two steps": (
        "AMBIGUOUS_BRANCH",
        "steps:\n  - {id: a, type: tool, tool: look}\n"
        "  - {id: c, type: condition, condition: $a.output == 1, then: refund, otherwise: reject}\n"
        "  - {id: refund, type: tool, tool: look}\n  - {id: «mail, type: tool, tool: look}\n"
        "  - {id: reject, type: tool, tool: look}\n",
    ),
    "loop without exit": (
        "CYCLE_WITHOUT_EXIT",
        "max_steps: 9\nsteps:\n  - {id: a, type: tool, tool: look}\n"
        "  - {id: b, type: tool, tool: look, next_step: «a}\n",
    ),
    "loop without budget": (
        "CYCLE_WITHOUT_BUDGET",
        "steps:\n  - {id: a, type: tool, tool: look}\n"
        "  - {id: c, type: condition, condition: $a.output == 1, then: «a, otherwise: continue}\n",
    ),
    "dependency cycle": (
        "DEPENDS_ON_CYCLE",
        "steps:\n  - {id: a, type: tool, tool: look, depends_on: «[b]}\n"
        "  - {id: b, type: tool, tool: look, depends_on: [a]}\n",
    ),
    "next_step in a DAG": (
        "DEPENDS_ON_MIXED",
        "steps:\n  - {id: a, type: tool, tool: look, «next_step: b}\n"
        "  - {id: b, type: tool, tool: look, depends_on: [a]}\n",
    ),
    # --- references
    "unknown reference": (
        "UNKNOWN_REFERENCE",
        "inputs: {type: object, properties: {amount: {type: number}}, required: [amount]}\n"
        "steps:\n  - {id: a, type: tool, tool: look, args: {x: 'pay «$amuont now'}}\n",
    ),
    "step without output": (
        "UNKNOWN_REFERENCE",
        "steps:\n  - {id: a, type: tool, tool: look}\n"
        "  - {id: b, type: tool, tool: look, args: {x: «$a.id}}\n",
    ),
    "item outside a map": (
        "UNKNOWN_REFERENCE",
        "steps:\n  - {id: a, type: tool, tool: look, args: {x: «$item}}\n",
    ),
    "later output": (
        "UNASSIGNED_REFERENCE",
        "steps:\n  - {id: a, type: tool, tool: look, args: {x: «$b.output}}\n"
        "  - {id: b, type: tool, tool: look}\n",
    ),
    "output of one branch": (
        "UNASSIGNED_REFERENCE",
        "steps:\n  - {id: a, type: tool, tool: look}\n"
        "  - {id: c, type: condition, condition: $a.output == 1, then: t, otherwise: u}\n"
        "  - {id: t, type: tool, tool: look, next_step: u}\n"
        "  - {id: u, type: tool, tool: look, args: {x: «$t.output}}\n",
    ),
    "output of a sibling": (
        "UNASSIGNED_REFERENCE",
        "steps:\n  - id: p\n    type: parallel\n    parallel_steps:\n"
        "      - {id: a, type: tool, tool: look}\n"
        "      - {id: b, type: tool, tool: look, args: {x: «$a.output}}\n",
    ),
    "error that is never there": (
        "UNASSIGNED_REFERENCE",
        "steps:\n  - {id: a, type: tool, tool: look}\n"
        "  - {id: b, type: tool, tool: look, args: {x: «$a.error.type}}\n",
    ),
    "key of two steps in a row": (
        "NAME_COLLISION",
        "steps:\n  - {id: a, type: tool, tool: look, output_key: x}\n"
        "  - {id: b, type: tool, tool: look, output_key: «x}\n",
    ),
    "key that hides an input": (
        "NAME_COLLISION",
        "inputs: {type: object, properties: {x: {type: number}}}\n"
        "steps:\n  - {id: a, type: tool, tool: look, output_key: «x}\n",
    ),
    "reserved key": ("RESERVED_NAME", "steps:\n  - {id: a, type: tool, tool: look, output_key: «run}\n"),
    "open brace": ("EXPR_REFERENCE", "steps:\n  - {id: a, type: llm, prompt: 'Dear «${name, hello'}\n"),
    "output that is text": (
        "BAD_TEMPLATE",
        "outputs: {d: «'it is $a.output'}\nsteps: [{id: a, type: tool, tool: look}]\n",
    ),
    # --- expressions
    "single equals sign": (
        "EXPR_ASSIGNMENT",
        "steps:\n  - {id: a, type: tool, tool: look}\n"
        "  - {id: c, type: condition, condition: $a.output «= 1, then: continue}\n",
    ),
    "call in a folded block": (
        "EXPR_CALL",
        "steps:\n  - {id: a, type: tool, tool: look}\n  - id: c\n    type: condition\n    condition: >\n"
        "      $a.output == 'x'\n      and $a.output«.lower() == 'y'\n    then: continue\n",
    ),
    "bare word behind an escape": (
        "EXPR_WORD",
        "steps:\n  - {id: a, type: tool, tool: look}\n"
        '  - {id: c, type: condition, condition: "\\"x\\" == «maybe", then: continue}\n',
    ),
    "branch that is never taken": (
        "IMPOSSIBLE_BRANCH",
        "steps:\n  - {id: a, type: llm, prompt: x, allowed_outputs: [yes, no]}\n"
        "  - {id: c, type: condition, condition: «$a.output == 'maybe', then: continue}\n",
    ),
    "number against text": (
        "TYPE_MISMATCH",
        "inputs: {type: object, properties: {n: {type: number}}, required: [n]}\n"
        "steps:\n  - {id: c, type: condition, condition: «$n < '5', then: continue}\n",
    ),
    "part of text": (
        "UNRESOLVED_REFERENCE",
        "steps:\n  - {id: a, type: llm, prompt: x}\n  - {id: b, type: llm, prompt: «$a.output.label}\n",
    ),
    # --- tools and programs
    "unknown tool": ("UNKNOWN_TOOL", "steps:\n  - {id: a, type: tool, tool: «lok}\n"),
    "missing argument": (
        "MISSING_ARGUMENT",
        "steps:\n  - {id: a, type: tool, tool: pay, args: «{currency: EUR}}\n",
    ),
    "unknown argument": (
        "UNKNOWN_ARGUMENT",
        "steps:\n  - {id: a, type: tool, tool: pay, args: {amount: 1, «curency: EUR}}\n",
    ),
    "bad argument": ("BAD_ARGUMENT", "steps:\n  - {id: a, type: tool, tool: pay, args: {amount: «1000}}\n"),
    "text for a number": (
        "BAD_ARGUMENT",
        "steps:\n  - {id: a, type: llm, prompt: x}\n"
        "  - {id: b, type: tool, tool: pay, args: {amount: «$a.output}}\n",
    ),
    "fallback on an effect": (
        "FALLBACK_ON_EFFECT",
        "steps:\n"
        "  - {id: a, type: tool, tool: pay, args: {amount: 1}, timeout_seconds: 3, on_timeout: «fallback,\n"
        "     fallback: {id: x}}\n",
    ),
    "unknown program": ("UNKNOWN_PROGRAM", "steps:\n  - {id: a, type: call, program: «chlid}\n"),
    "recursion": ("CALL_RECURSION", "steps:\n  - {id: a, type: call, program: «loop}\n"),
    "child without its input": (
        "MISSING_ARGUMENT",
        "steps:\n  - {id: a, type: call, program: child, inputs: «{}}\n",
    ),
}

WARNED = {
    "assumed input": ("ASSUMED_INPUT", "steps:\n  - {id: a, type: llm, prompt: 'about «$topic'}\n"),
    "implicit fallback": (
        "FALLBACK_IMPLICIT",
        "steps:\n  - {id: a, type: llm, prompt: x, timeout_seconds: 3, on_timeout: «fallback}\n",
    ),
    "retries without retry": (
        "FIELD_WITHOUT_EFFECT",
        "steps:\n  - {id: a, type: tool, tool: look, «max_retries: 3}\n",
    ),
    "no way to fail": (
        "NO_FAILURE_TERMINAL",
        "steps:\n  - {id: «a, type: tool, tool: look, on_failure: b}\n  - {id: b, type: tool, tool: look}\n",
    ),
}


def marked(text):
    index = text.index("«")
    return text.replace("«", ""), text.count("\n", 0, index) + 1, index - text.rfind("\n", 0, index)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_program_is_refused_with_its_place_and_a_remedy(name):
    code, source = WRONG[name]
    text, line, column = marked(source)
    report = check(from_yaml(text, "wrong.yaml"), TOOLS, PROGRAMS)
    found = [(finding.code, finding.place.line, finding.place.column) for finding in report.errors]
    assert (code, line, column) in found
    assert {finding.code for finding in report.errors} == {code}
    assert report.compiled is None
    assert all(finding.help for finding in report.diagnostics)
    assert all(finding.code in CODES for finding in report.diagnostics)
    for render in (as_human, as_json, as_sarif):
        assert code in render(report)


@pytest.mark.parametrize("name", WARNED)
def test_a_doubtful_program_is_warned_about_and_compiled(name):
    code, source = WARNED[name]
    text, line, column = marked(source)
    report = check(from_yaml(text), TOOLS, PROGRAMS)
    assert (code, line, column) in [(f.code, f.place.line, f.place.column) for f in report.warnings]
    assert report.ok
    assert report.compiled is not None


@pytest.mark.parametrize(
    ("code", "source"),
    [
        ("DUPLICATE_KEY", '{"name": "a", «"name": "b", "steps": [{"id": "a", "type": "tool", "tool": "x"}]}'),
        ("DOCUMENT_SYNTAX", '{"name": "a", "steps": [{"id": "a", "type": "tool", "tool": "x"},«]}'),
        ("DOCUMENT_NUMBER", '{"max_steps": «NaN}'),
        ("DOCUMENT_SYNTAX", '{«name: 1}'),
        ("DOCUMENT_SYNTAX", '{"name": «\'x\'}'),
        ("DOCUMENT_SYNTAX", '{"name": "x"} «{}'),
        ("EXPR_WORD", '{"steps": [{"id": "c", "type": "condition", "then": "continue",\n'
         ' "condition": "\'\\u0041\' == «maybe"}]}'),
        ("UNKNOWN_FIELD", '{"steps": [{"id": "a", "type": "tool", "tool": "x", «"arg": {}}]}'),
    ],
)  # fmt: skip
def test_a_wrong_json_program_is_refused_with_its_place(code, source):
    text, line, column = marked(source)
    report = check(from_json(text, "wrong.json"))
    assert (code, line, column) in [(f.code, f.place.line, f.place.column) for f in report.errors]


def test_findings_of_every_stage_come_together_sorted_by_place():
    text = """
steps:
  - {id: c, type: condition, condition: "$x ==", then: a, otherwise: bb}
  - {id: a, type: tool, tool: t, promt: x, args: {y: "${"}}
  - {id: a, type: tool, tool: t, timeout_seconds: -3}
"""
    report = check(from_yaml(text))
    codes = [finding.code for finding in report.errors]
    assert set(codes) == {
        "EXPR_SYNTAX", "MISSING_TARGET", "UNKNOWN_FIELD", "EXPR_REFERENCE", "DUPLICATE_ID", "BAD_VALUE",
    }  # fmt: skip
    places = [(finding.place.line, finding.place.column) for finding in report.diagnostics]
    assert places == sorted(places)
