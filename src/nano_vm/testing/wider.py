"""More of the language for random programs: what a program of `programs` is widened by, where the compiler agrees.

Each change is one of the ways in which authors change what a run does: a tool that answers later, a failure that is
read, a loop with a way out, a value in place of an answer that does not come, a choosy wait, a step that goes on
elsewhere.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from nano_vm.compiler import check
from nano_vm.program.document import from_data
from nano_vm.testing.world import INSTEAD, PENDING_TOOL, TICK_TOOL, TICKS, schemas

Program: TypeAlias = dict[str, Any]
Step: TypeAlias = dict[str, Any]


def widen(draw: random.Random, program: Mapping[str, Any]) -> Program:
    """The program with some of it replaced by more of the language; as it was where nothing fits. The same state of
    `draw` gives the same program."""
    wider = copy.deepcopy(dict(program))
    for change in draw.sample(_CHANGES, len(_CHANGES)):
        if draw.random() < 0.6:
            tried = copy.deepcopy(wider)
            change(draw, tried)
            if not check(from_data(tried), schemas()).errors:
                wider = tried
    return wider


def of_type(program: Program, kind: str) -> list[Step]:
    """The steps of that type, but for those inside of others."""
    return [step for step in program["steps"] if step["type"] == kind]


def is_dag(program: Program) -> bool:
    """Whether its steps say what they depend on."""
    return any("depends_on" in step for step in program["steps"])


def answers_later(draw: random.Random, program: Program) -> None:
    """Tools whose answers come as events."""
    for step in of_type(program, "tool"):
        if step["tool"] in ("act_irreversible", "act_reconcilable", "act_keyed") and draw.random() < 0.4:
            step["tool"] = PENDING_TOOL
            for field in ("timeout_seconds", "compensate", "idempotency_key"):
                step.pop(field, None)


def reads_failures(draw: random.Random, program: Program) -> None:
    """Ends of their own for the failures of steps, which say what went wrong."""
    if is_dag(program):
        return
    for step in of_type(program, "tool"):
        if "is_terminal" not in step and step.get("on_error") != "skip" and draw.random() < 0.8:
            name = f"failed_{step['id']}"
            said = {field: f"${step['id']}.error.{field}" for field in ("type", "attempts")}
            step["on_failure"] = name
            end = {"id": name, "type": "tool", "tool": "act_idempotent", "args": {"value": said}}
            program["steps"].append({**end, "is_terminal": True, "final_status": "FAILED", "outcome": name})
    if not any(step.get("on_failure") == "failed" for step in program["steps"]):
        program["steps"] = [step for step in program["steps"] if step["id"] != "failed"]


def loops(draw: random.Random, program: Program) -> None:
    """At the beginning, a loop that ends when a tool has counted far enough."""
    if is_dag(program):
        return
    first = {"id": "tick", "type": "tool", "tool": TICK_TOOL, "args": {"value": "$x"}}
    again = {
        "id": "again",
        "type": "condition",
        "condition": f"$tick.output.count < {draw.randint(1, TICKS)}",
    }
    program["steps"][:0] = [first, {**again, "then": "tick", "otherwise": "continue"}]
    program["max_steps"] += 2 * TICKS


def does_without(draw: random.Random, program: Program) -> None:
    """A value in place of an answer that takes too long."""
    for step in program["steps"]:
        may = step["type"] == "llm" or step.get("tool") in ("act_pure", "act_idempotent")
        if may and "is_terminal" not in step and draw.random() < 0.8:
            value = step["allowed_outputs"][0] if "allowed_outputs" in step else INSTEAD
            step |= {"timeout_seconds": 5, "on_timeout": "fallback", "fallback": value}


def is_choosy(draw: random.Random, program: Program) -> None:
    """A wait that does not take every event."""
    for step in of_type(program, "wait"):
        if "event" in step:
            step["accept"] = draw.choice(["$event.number >= 1", "$event.number != 2"])


def names_outputs(draw: random.Random, program: Program) -> None:
    """Outputs that the hash of the outcome covers."""
    program["outputs"] = {"given": "$x"}


def goes_on_elsewhere(draw: random.Random, program: Program) -> None:
    """A step that leaves out those that follow it."""
    steps = program["steps"]
    if is_dag(program) or len(steps) < 4:
        return
    number = draw.randrange(len(steps) - 2)
    if steps[number]["type"] in ("tool", "llm", "wait") and "is_terminal" not in steps[number]:
        steps[number]["next_step"] = steps[draw.randrange(number + 1, len(steps) - 1)]["id"]


_CHANGES: list[Callable[[random.Random, Program], None]] = [
    answers_later,
    reads_failures,
    loops,
    does_without,
    is_choosy,
    names_outputs,
    goes_on_elsewhere,
]
