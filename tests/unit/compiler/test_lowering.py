"""The compiled form: who follows whom, which slot holds what, in which units."""

from __future__ import annotations

import sys

import pytest

from nano_vm.compiler import compile_program
from nano_vm.errors import ProgramError
from nano_vm.expr.reference import UNSET
from nano_vm.program import Program, ToolSchema
from nano_vm.program.compiled import END, FIRST_FREE_SLOT, NO_TARGET, Edge, Kind
from nano_vm.tools.validator import ProgramValidator


def compiled(text, **known):
    return compile_program(Program.from_yaml(text), **known)


def step(program, name):
    return program.steps[program.step_index[name]]


def tool(name, **rest):
    return {"id": name, "type": "tool", "tool": "t", **rest}


def build(*steps, **rest):
    return compile_program(Program.from_dict({"steps": list(steps), **rest}))


def test_list_order_next_step_and_endings_are_folded_into_next():
    program = compiled("""
steps:
  - {id: a, type: tool, tool: t, next_step: c}
  - {id: b, type: tool, tool: t, is_terminal: true, final_status: FAILED, outcome: late}
  - {id: c, type: condition, condition: $a.output is null, then: b, otherwise: continue}
  - {id: d, type: tool, tool: t, on_failure: b}
""")
    assert [s.next for s in program.steps] == [2, END, END, END]
    action = step(program, "c").action
    assert (action.then, action.otherwise) == (1, 3)
    assert step(program, "d").on_failure == 1
    assert (step(program, "b").is_terminal, step(program, "b").final_status, step(program, "b").outcome) == (
        True,
        "FAILED",
        "late",
    )
    assert [s.rank for s in program.steps] == [0, 1, 2, 3]


def test_continue_after_the_last_step_is_the_end_and_a_missing_branch_no_target():
    program = build(
        tool("a"), {"id": "c", "type": "condition", "condition": "$a.output == 1", "then": "continue"}
    )
    assert (program.steps[1].action.then, program.steps[1].action.otherwise) == (END, NO_TARGET)


def test_an_output_key_of_one_step_is_another_name_for_its_output():
    program = build(tool("a", output_key="k"), tool("b", args={"x": "$k.z", "y": "$a.output"}))
    assert step(program, "a").key_slot == NO_TARGET
    slot = step(program, "a").output_slot
    assert step(program, "b").action.args.refs == ((slot, ("z",)), (slot, ()))


def test_an_output_key_of_exclusive_steps_has_a_slot_of_its_own():
    program = build(
        tool("a"),
        {"id": "c", "type": "condition", "condition": "$a.output == 1", "then": "t", "otherwise": "u"},
        tool("t", output_key="k", next_step="end"),
        tool("u", output_key="k"),
        tool("end", args={"x": "$k"}),
    )
    slots = {step(program, name).key_slot for name in "tu"}
    assert len(slots) == 1
    (slot,) = slots
    assert program.slots[slot] == "k"
    assert slot not in {step(program, name).output_slot for name in "tu"}
    assert step(program, "end").action.args.refs == ((slot, ()),)


def test_inputs_come_first_and_optional_ones_have_defaults():
    program = build(
        tool("a", args={"x": "$n"}),
        inputs={
            "type": "object",
            "properties": {"n": {"type": "number"}, "o": {"default": 3}, "p": {}},
            "required": ["n"],
        },
    )
    assert program.input_slots == {"n": FIRST_FREE_SLOT, "o": FIRST_FREE_SLOT + 1, "p": FIRST_FREE_SLOT + 2}
    assert program.optional_inputs == {"o": 3, "p": None}
    assert len(program.slots) == FIRST_FREE_SLOT + 4


def test_undeclared_inputs_are_inputs_all_the_same_and_required():
    program = build(tool("a", args={"x": "$n.m"}))
    assert list(program.input_slots) == ["n"]
    assert program.optional_inputs == {}
    assert program.inputs_schema is None


def test_an_error_has_a_slot_only_when_something_refers_to_it():
    program = build(
        tool("a", on_failure="b"),
        tool("z", on_failure="d", is_terminal=True),
        tool("b", args={"why": "$a.error.type"}),
        tool("d"),
    )
    assert program.slots[step(program, "a").error_slot] == "a.error"
    assert step(program, "z").error_slot == NO_TARGET


def test_units_are_integers_and_exact():
    program = build(
        tool("a", timeout_seconds=0.1, on_error="retry", max_retries=5, retry={"initial": 0.25, "cap": 7}),
        max_cost_usd=0.29,
        max_duration_seconds=1.1,
        max_tokens=7,
        max_stalled_steps=2,
    )
    first = program.steps[0]
    assert first.timeout_ms == 100
    assert (first.retry.attempts_max, first.retry.initial_ms, first.retry.cap_ms) == (5, 250, 7000)
    assert program.budgets.cost_nanousd_max == 290_000_000
    assert (program.budgets.duration_ms_max, program.budgets.tokens_max) == (1100, 7)
    assert (program.budgets.stalled_steps_max, program.budgets.steps_max) == (2, 10_000)


def test_parallel_map_wait_and_call():
    program = compiled("""
steps:
  - id: p
    type: parallel
    parallel_steps:
      - {id: x, type: tool, tool: t, output_key: kx}
      - {id: y, type: wait, event: paid, accept: $event.amount > 3 and $who == 'ann', approvers: [boss]}
  - {id: m, type: map, over: $kx, step: {id: e, type: call, program: child, inputs: {i: $item, n: "n$index"}}}
  - {id: w, type: wait, seconds: $p.output.x}
""")
    assert [s.kind for s in program.steps] == [
        Kind.PARALLEL, Kind.TOOL, Kind.WAIT, Kind.MAP, Kind.CALL, Kind.WAIT,
    ]  # fmt: skip
    parallel, mapped = step(program, "p"), step(program, "m")
    assert (parallel.action.lanes, parallel.action.concurrency_max, parallel.next) == ((1, 2), 2, 3)
    assert [step(program, name).parent for name in "xye"] == [0, 0, 3]
    assert (mapped.action.lane, mapped.action.items_max, mapped.action.concurrency_max) == (4, 1000, 16)
    slots = [UNSET] * len(program.slots)
    slots[0], slots[1] = "first", 7
    assert step(program, "e").action.inputs.render(slots) == {"i": "first", "n": "n7"}
    slots[2], slots[program.input_slots["who"]] = {"amount": 5}, "ann"
    assert step(program, "y").action.accept(slots) is True
    assert program.events == {"paid"}
    assert program.calls == ("child",)
    assert step(program, "y").action.approvers == ("boss",)


def test_the_actions_of_an_agent_are_steps_at_the_end():
    compiled = build(
        {"id": "m", "type": "agent", "prompt": "x", "tools": ["shop.pay", "look"], "timeout_seconds": 3},
        {"id": "n", "type": "agent", "prompt": "x", "tools": ["look"], "max_turns": 7},
    )
    assert [step.id for step in compiled.steps] == ["m", "n", "m.shop.pay", "m.look", "n.look"]
    m, n = compiled.steps[:2]
    assert (m.action.lanes, m.action.offered, m.action.turns_max) == ((2, 3), ("shop_pay", "look"), 10)
    assert (n.action.lanes, n.action.turns_max) == ((4,), 7)
    pay = compiled.steps[2]
    assert (pay.kind, pay.action.tool, pay.parent, pay.rank, pay.timeout_ms) == (
        Kind.TOOL,
        "shop.pay",
        0,
        m.rank,
        3_000,
    )
    assert pay.output_slot == pay.key_slot == pay.error_slot == NO_TARGET
    assert compiled.step_index["m.look"] == 3


def test_a_dag_has_edges_roots_and_ranks():
    program = compiled("""
steps:
  - {id: last, type: tool, tool: t, depends_on: [yes_, no_, handler]}
  - {id: ask, type: tool, tool: t, on_failure: handler}
  - {id: c, type: condition, condition: $ask.output == 1, then: yes_, otherwise: no_, depends_on: [ask]}
  - {id: yes_, type: tool, tool: t, depends_on: [c]}
  - {id: no_, type: tool, tool: t}
  - {id: handler, type: tool, tool: t}
""")
    assert program.is_dag
    assert program.roots == (1,)
    assert step(program, "ask").edges == (Edge(2, "done"), Edge(5, "failure"))
    assert step(program, "c").edges == (Edge(3, "then"), Edge(4, "otherwise"))
    assert [s.dependencies for s in program.steps] == [3, 0, 1, 1, 1, 1]
    assert [s.rank for s in program.steps] == [5, 0, 1, 2, 3, 4]


def test_the_implicit_fallback_is_the_first_allowed_output():
    rest = {"prompt": "x", "timeout_seconds": 1, "on_timeout": "fallback"}
    program = build(
        {"id": "a", "type": "llm", "allowed_outputs": ["b", "c"], **rest},
        {"id": "d", "type": "llm", **rest},
        tool("e", timeout_seconds=1, on_timeout="fallback", fallback=None),
    )
    assert [s.fallback for s in program.steps] == ["b", "", None]


def test_a_prompt_that_is_one_reference_still_renders_to_text():
    program = build({"id": "a", "type": "llm", "prompt": "$x"})
    slots = [UNSET] * len(program.slots)
    slots[program.input_slots["x"]] = {"a": 1}
    assert program.steps[0].action.prompt.render(slots) == '{"a":1}'


def test_compensation_may_use_the_output_of_its_own_step():
    program = build(tool("a", compensate={"tool": "undo", "args": {"id": "$a.output.id"}}))
    assert program.steps[0].compensation.args.refs == ((program.steps[0].output_slot, ("id",)),)


def test_key_outputs_are_templates():
    program = build(tool("a"), outputs={"d": "$a.output.x"})
    assert program.outputs[0].name == "d"
    assert program.outputs[0].template.refs == ((program.steps[0].output_slot, ("x",)),)


def test_null_tests_may_name_what_is_not_assigned_yet():
    program = build(
        {"id": "c", "type": "condition", "condition": "$a.output is null", "then": "a", "otherwise": "z"},
        tool("a", next_step="c"),
        tool("z"),
        max_steps=9,
    )
    assert program.steps[0].action.test([UNSET] * len(program.slots)) is True


def test_a_program_with_errors_is_not_compiled():
    with pytest.raises(ProgramError) as caught:
        build(tool("a", next_step="b", args={"x": "$c.output"}), tool("a"))
    assert caught.value.code == "INVALID_PROGRAM"
    assert caught.value.exit_code == 3
    codes = {finding.code for finding in caught.value.diagnostics}
    assert codes == {"MISSING_TARGET", "DUPLICATE_ID", "ASSUMED_INPUT"}


def test_the_validator_takes_programs_dicts_and_files(tmp_path):
    data = {"steps": [tool("a")]}
    file = tmp_path / "p.yaml"
    file.write_text("steps: [{id: a, type: tool, tool: nope}]")
    assert ProgramValidator(data).validate().ok
    assert ProgramValidator(Program.from_dict(data)).validate().ok
    report = ProgramValidator(file, tools={"t": ToolSchema(name="t")}).validate()
    assert [finding.code for finding in report.errors] == ["UNKNOWN_TOOL"]
    assert report.errors[0].place.file == str(file)


def test_long_programs_need_no_recursion():
    count = 4 * sys.getrecursionlimit()
    steps = [tool(f"s{n}", args={"x": f"$s{n - 1}.output"} if n else {}) for n in range(count)]
    assert len(build(*steps).steps) == count
    chain = [tool("s0", depends_on=[])] + [
        tool(f"s{n}", depends_on=[f"s{n - 1}"], args={"x": f"$s{n - 1}.output"}) for n in range(1, count)
    ]
    assert build(*chain).steps[-1].rank == count - 1
