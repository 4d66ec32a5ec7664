"""Still more of the language for random programs: what takes several steps to tell right from wrong.

Branches in a DAG, groups whose results are used and that are tried again, maps over values, sagas, budgets of time and
of standing still, private values in called programs and in maps. As in `wider`, a change stays where the compiler
agrees.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping
from typing import Any, Final

from nano_vm.compiler import check
from nano_vm.program.document import from_data
from nano_vm.testing.programs import EVENT
from nano_vm.testing.wider import Program, Step, is_dag, of_type
from nano_vm.testing.world import MOODY, schemas

CONFIDANT: Final = "confidant"  # a called program that is told something


def enrich(draw: random.Random, program: Mapping[str, Any]) -> Program:
    """The program with more in it; as it was where nothing fits. The same state of `draw` gives the same program."""
    richer = copy.deepcopy(dict(program))
    for change in draw.sample(_CHANGES, len(_CHANGES)):
        if draw.random() < 0.7:
            tried = copy.deepcopy(richer)
            change(draw, tried)
            if not check(from_data(tried), schemas()).errors:
                richer = tried
    return richer


def branches(draw: random.Random, program: Program) -> None:
    """In a DAG: a condition that leads to some of the steps, and steps for what has failed."""
    steps = program["steps"]
    if not is_dag(program):
        return
    test = draw.choice(["$x >= 1", "$x in [1, 2]", "$x > 5"])
    first, last = draw.choice(steps), {**_act("after"), "depends_on": ["then_do", "else_do"]}
    steps.append(
        {"id": "fork", "type": "condition", "condition": test, "then": "then_do", "otherwise": "else_do"}
    )
    steps[-1]["depends_on"] = [first["id"]]
    steps += [{**_act("then_do"), "depends_on": ["fork"]}, {**_act("else_do"), "depends_on": ["fork"]}, last]
    steps.append({**_act("beside"), "depends_on": ["fork"]})
    for step in of_type(program, "tool")[:2]:
        if step.get("on_error") != "skip" and step["id"] not in ("after", "then_do", "else_do", "beside"):
            step["on_failure"] = f"failed_{step['id']}"
            steps.append({**_act(f"failed_{step['id']}"), "depends_on": [step["id"]]})


def uses_results(draw: random.Random, program: Program) -> None:
    """What groups, called programs and models yield is given to a tool."""
    if is_dag(program):
        return
    steps = program["steps"]
    for step in [
        step for step in steps if step["type"] in ("parallel", "map", "call", "llm", "agent", "wait")
    ]:
        place = steps.index(step)
        if "next_step" in step or "is_terminal" in step or place + 1 == len(steps):
            continue
        use = {**_act(f"uses_{step['id']}"), "args": {"value": {"seen": f"${step['id']}.output"}}}
        steps.insert(place + 1, use)
        program["max_steps"] += 1


def tries_groups_again(draw: random.Random, program: Program) -> None:
    """Groups that are tried again where their lanes are not."""
    for step in program["steps"]:
        if step["type"] in ("parallel", "map"):
            step |= {"on_error": "retry", "max_retries": 3}
            step.pop("on_failure", None)
            for lane in [*step.get("parallel_steps", ()), *([step["step"]] if "step" in step else ())]:
                for field in ("on_error", "max_retries"):
                    lane.pop(field, None)


def has_a_group(draw: random.Random, program: Program) -> None:
    """A parallel or a map more."""
    effect = draw.choice(["keyed", "idempotent", "irreversible", "pure"])
    lanes = [{**_act(f"lane_{letter}"), "tool": f"act_{effect}"} for letter in "abc"]
    for lane in lanes:
        lane["args"] = {"value": lane["id"]}
        if effect != "pure" and draw.random() < 0.5:
            lane["compensate"] = {"tool": "undo_keyed", "args": {"value": f"${lane['id']}.output.said"}}
    draw.choice(lanes)["tool"] = draw.choice(MOODY)
    group: Step = {"id": "together", "type": "parallel", "parallel_steps": lanes}
    if draw.random() < 0.5:
        lane = {**lanes[0], "args": {"value": {"item": "$item", "index": "$index"}}}
        lane.pop("compensate", None)
        lane["tool"] = draw.choice([lane["tool"], "act_late"])
        group = {"id": "together", "type": "map", "over": ["$x", 10, 11, 12], "step": lane, "max_items": 5}
    group["max_concurrency"] = draw.randint(1, 4)
    if draw.random() < 0.3:
        group |= {"timeout_seconds": draw.choice([3, 200]), "on_error": "skip"}
    elif draw.random() < 0.7:
        group |= {"on_error": "retry", "max_retries": 3}
    program["max_steps"] += 5
    if is_dag(program):
        group["depends_on"] = []
    program["steps"].insert(0, group)
    if group["type"] == "map" and not is_dag(program):
        lane = {**_act("each_again"), "args": {"value": "$item"}}
        again: Step = {"id": "again_each", "type": "map", "over": "$together.output", "step": lane}
        program["steps"].insert(1, again | {"max_items": draw.choice([3, 4]), "on_error": "skip"})
        program["max_steps"] += 5


def waits_at_once(draw: random.Random, program: Program) -> None:
    """Several waits at once, some for the same event."""
    lanes: list[Step] = [{"id": f"wait_{letter}", "type": "wait", "event": EVENT} for letter in "abc"]
    lanes[1]["accept"] = draw.choice(["$event.number >= 3", "$event.number != 1"])
    lanes.append({"id": "wait_d", "type": "wait", "seconds": draw.choice([5, 3_000])})
    if draw.random() < 0.5:
        lanes[2] |= {"timeout_seconds": 600, "on_error": "skip"}
    group: Step = {"id": "waiting", "type": "parallel", "parallel_steps": draw.sample(lanes, 3)}
    if is_dag(program):
        group["depends_on"] = []
    program["steps"].insert(0, group)
    program["max_steps"] += 4


def meets_moods(draw: random.Random, program: Program) -> None:
    """At the beginning, tools that fail: one is tried again, one is left out, one's failure is handled."""
    if is_dag(program):
        return
    first = program["steps"][0]["id"]
    program["steps"][:0] = [
        {**_act("again_moody"), "tool": "act_moody", "on_error": "retry", "max_retries": 2},
        {**_act("left_out"), "tool": "act_refusing", "on_error": "skip"},
        {**_act("refused_here"), "tool": "act_refusing", "on_failure": "handled"},
    ]
    handled = {**_act("handled"), "args": {"value": "$refused_here.error.type"}, "next_step": first}
    program["steps"].append(handled)
    program["max_steps"] += 5


def undoes(draw: random.Random, program: Program) -> None:
    """Much that can be undone, and an end by which it has to be."""
    if is_dag(program):
        return
    for step in of_type(program, "tool"):
        fits = step["tool"] in ("act_keyed", "act_idempotent", "act_irreversible", "act_reconcilable")
        if fits and "is_terminal" not in step and draw.random() < 0.8:
            step["compensate"] = _undo(draw, step["id"])
    booked = [{**_act(name), "tool": f"act_{name}"} for name in ("keyed", "irreversible")]
    for step in booked:
        step |= {"id": f"book_{step['id']}", "compensate": _undo(draw, f"book_{step['id']}")}
    booked[0]["compensate"]["tool"] = draw.choice(["undo_moody", "undo_failing"])
    program["steps"][:0] = booked
    program["max_steps"] += 2
    for step in program["steps"]:
        if step.get("outcome") == "done" and draw.random() < 0.7:
            step["final_status"] = "FAILED"


def _undo(draw: random.Random, step: str) -> Step:
    tool = draw.choice(["undo_keyed", "undo_idempotent", "undo_transactional", "undo_moody", "undo_failing"])
    return {"tool": tool, "args": {"value": [f"${step}.output.said", "$x"]}}


def is_pressed_for_time(draw: random.Random, program: Program) -> None:
    """A budget of time."""
    program["max_duration_seconds"] = draw.choice([1, 20, 3_600])


def stands_still(draw: random.Random, program: Program) -> None:
    """At the beginning, a loop that changes nothing, and a bound for that."""
    if is_dag(program):
        return
    again = {
        "id": "still",
        "type": "condition",
        "condition": "$x >= 0",
        "then": "stay",
        "otherwise": "continue",
    }
    program["steps"][:0] = [{**_act("stay"), "tool": "act_pure"}, again]
    program["max_stalled_steps"] = draw.randint(1, 3)


def asks_models_at_once(draw: random.Random, program: Program) -> None:
    """Several models at once under a budget of tokens, which holds what they may take before they begin."""
    asks = [
        {"id": f"ask_{n}", "type": "llm", "prompt": f"Judge {n} of $x.", "params": {"max_tokens": 8}}
        for n in "abc"
    ]
    group: Step = {"id": "asked", "type": "parallel", "parallel_steps": asks}
    if is_dag(program):
        group["depends_on"] = []
    program["steps"].insert(0, group)
    program["max_steps"] += 4
    program["max_tokens"] = draw.choice([30, 60, 4_000])


def confides(draw: random.Random, program: Program) -> None:
    """What is private goes through a map, a parallel and a called program."""
    if "subject" not in program or is_dag(program):
        return
    lane = {**_act("told_each"), "args": {"value": "$item"}}
    steps: list[Step] = [
        {"id": "told", "type": "map", "over": ["$who", 1], "step": lane, "max_items": 2},
        {"id": "confide", "type": "call", "program": CONFIDANT, "inputs": {"note": "about $who"}},
    ]
    steps.append({**_act("sum_up"), "args": {"value": ["$told.output.0", "$confide.output"]}})
    steps[-1] |= {
        "on_error": "skip",
        "compensate": {"tool": "undo_keyed", "args": {"value": "$sum_up.output"}},
    }
    program["steps"][:0] = steps
    program["max_steps"] += 20


def confidant_program() -> Program:
    """What `call` steps tell something private."""
    properties = {"note": {"type": "string"}}
    ask = {"id": "hear", "type": "llm", "prompt": "Note: $note."}
    steps = [{**_act("keep"), "tool": "act_keyed", "args": {"value": "$note"}}, ask]
    steps[0]["compensate"] = {"tool": "undo_keyed", "args": {"value": "$note"}}
    steps.append({**_act("give"), "args": {"value": {"heard": "$keep.output.heard"}}})
    return {
        "name": CONFIDANT,
        "inputs": {"type": "object", "properties": properties, "required": ["note"]},
        "max_steps": 10,
        "steps": steps,
    }


def _act(name: str) -> Step:
    return {"id": name, "type": "tool", "tool": "act_idempotent", "args": {"value": "$x"}}


_CHANGES: list[Callable[[random.Random, Program], None]] = [
    branches,
    uses_results,
    tries_groups_again,
    has_a_group,
    waits_at_once,
    meets_moods,
    undoes,
    is_pressed_for_time,
    stands_still,
    asks_models_at_once,
    confides,
]


__all__ = ["CONFIDANT", "confidant_program", "enrich"]
