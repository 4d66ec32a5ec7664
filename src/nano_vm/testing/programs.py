"""Random programs, generated from the language: every kind of step, valid by construction and by the compiler's word.

They call the tools of `nano_vm.testing.world`, and their values are such that a mix-up shows: every tool answers with
a token that names its step, so that a value which turns up where it does not belong is recognised.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, TypeAlias

from nano_vm.compiler import check
from nano_vm.program.document import from_data
from nano_vm.testing.world import EFFECTS, PLAIN, VOUCHED, schemas

Step: TypeAlias = dict[str, Any]

CHILD = "child"
EVENT = "go"
ROLE = "supervisor"
_TRIES = 40


class _Author:
    """Writes one program, step by step."""

    def __init__(self, draw: random.Random, *, dag: bool, private: bool = False) -> None:
        self.draw = draw
        self.dag = dag
        self.private = private
        self.values = (
            ["$x", "$who"] if private else ["$x"]
        )  # references that are assigned on every path to the step being written
        self.count = 0

    def name(self) -> str:
        self.count += 1
        return f"s{self.count}"

    def value(self) -> Any:
        reference = self.draw.choice(
            [*self.values, self.values[-1]]
        )  # rather the latest, which may be what a model said
        return self.draw.choice([reference, reference, f"about {reference}", {"deep": [reference, 1]}, 7])

    def failing(self, step: Step) -> Step:
        """What is to happen when it goes wrong."""
        if self.draw.random() < 0.4:
            step["on_error"] = "retry"
            step["max_retries"] = self.draw.randint(2, 4)
        elif self.draw.random() < 0.2:
            step["on_error"] = "skip"
        elif not self.dag and self.draw.random() < 0.25 and "parallel_steps" not in step:
            step["on_failure"] = "failed"
        return step

    def tool(self, *, lane: bool = False) -> Step:
        effect = self.draw.choice(EFFECTS)
        step: Step = {
            "id": self.name(),
            "type": "tool",
            "tool": f"act_{effect}",
            "args": {"value": self.value()},
        }
        if not lane:
            self.failing(step)
        elif self.draw.random() < 0.5:
            step |= {"on_error": "retry", "max_retries": 3}
        # A tool under a time-out is a task of its own, which would hold an open transaction while others take turns.
        if effect != "transactional" and self.draw.random() < 0.25:
            step["timeout_seconds"] = self.draw.choice([1, 30])
        if effect not in ("pure",) and not lane and self.draw.random() < 0.25:
            undo = self.draw.choice(["keyed", "idempotent", "transactional"])
            step["compensate"] = {"tool": f"undo_{undo}", "args": {"value": self.draw.choice(self.values)}}
        if effect == "keyed" and self.draw.random() < 0.2:
            step["idempotency_key"] = f"order-$x-{step['id']}"
        if self.private and self.draw.random() < 0.15:
            step["private"] = True
        return step

    def plain(self) -> Step:
        """A tool as the lane takes it."""
        name = self.name()
        step: Step = {"id": name, "type": "tool", "tool": f"act_plain_{self.draw.choice(PLAIN)}"}
        step["args"] = {"value": self.value(), "at": f"$run.id {name}"}
        if self.draw.random() < 0.5:
            step |= {"on_error": "retry", "max_retries": self.draw.randint(2, 3)}
        self.values.append(f"${name}.output")
        if self.draw.random() < 0.4:
            step["output_key"] = self.draw.choice(["last", "found"])
            self.values.append(f"${step['output_key']}")
        return step

    def plain_group(self) -> Step:
        """A parallel of such tools, which the lane takes as one."""
        step: Step = {"id": self.name(), "type": "parallel", "parallel_steps": []}
        before = list(self.values)
        after = [f"${step['id']}.output"]
        for _ in range(self.draw.randint(2, 4)):
            step["parallel_steps"].append(self.plain())
            after += self.values[len(before) :]
            self.values = list(before)  # no lane may rely on another
        self.values = before + after
        return step

    def agent(self) -> Step:
        """A model that proposes calls: of tools that are listed, and of others."""
        effects = self.draw.sample(EFFECTS, self.draw.randint(1, 3))
        step: Step = {
            "id": self.name(),
            "type": "agent",
            "prompt": f"Look into {self.draw.choice(self.values)}.",
        }
        step |= {"tools": [f"act_{effect}" for effect in effects], "max_turns": self.draw.randint(2, 6)}
        if self.draw.random() < 0.3:
            step["allowed_outputs"] = ["yes", "no"]
        return self.failing(step)

    def guarded(self) -> Step:
        """A tool with a protected parameter: given what somebody vouches for."""
        step: Step = {"id": self.name(), "type": "tool", "tool": "act_guarded"}
        step["args"] = {"value": self.draw.choice([VOUCHED, "$sure"])}
        return self.failing(step)

    def llm(self, *, lane: bool = False) -> Step:
        step: Step = {"id": self.name(), "type": "llm", "prompt": f"Judge {self.draw.choice(self.values)}."}
        if self.draw.random() < 0.5:
            step["allowed_outputs"] = ["yes", "no"]
        if not lane:
            self.failing(step)
        if self.draw.random() < 0.3:
            step |= {"timeout_seconds": 5}
        return step

    def wait(self) -> Step:
        step: Step = {"id": self.name(), "type": "wait"}
        kind = self.draw.randrange(3)
        if kind == 0:
            step["seconds"] = self.draw.choice([0.5, 60, 86_400])
        elif kind == 1:
            step["event"] = EVENT
            if self.draw.random() < 0.5:
                step |= {"timeout_seconds": 3_600, "on_error": "skip"}
        else:
            step["approvers"] = [ROLE]
        return step

    def group(self) -> Step:
        step: Step = {"id": self.name(), "type": "parallel", "max_concurrency": self.draw.randint(1, 3)}
        lanes = []
        for _ in range(self.draw.randint(1, 3)):
            lanes.append(self.draw.choice([self.tool, self.tool, self.llm])(lane=True))
        step["parallel_steps"] = lanes
        return self.failing(step)

    def mapped(self) -> Step:
        step: Step = {"id": self.name(), "type": "map", "over": [1, 2, 3][: self.draw.randint(1, 3)]}
        lane = self.tool(lane=True)
        lane["args"] = {"value": {"item": "$item", "index": "$index"}}
        lane.pop("idempotency_key", None)
        step |= {"step": lane, "max_items": 5, "max_concurrency": self.draw.randint(1, 3)}
        return step

    def call(self) -> Step:
        step: Step = {"id": self.name(), "type": "call", "program": CHILD, "inputs": {"x": "$x"}}
        return self.failing(step)

    def step(self) -> Step:
        kinds: list[tuple[int, Callable[[], Step]]] = [
            (6, self.tool),
            (3, self.llm),
            (2, self.wait),
            (2, self.group),
            (1, self.mapped),
            (1, self.call),
            (2, self.agent),
            (1, self.guarded),
        ]
        (make,) = self.draw.choices([make for _, make in kinds], [weight for weight, _ in kinds])
        step = make()
        certain = step.get("on_error") != "skip" and step["type"] not in (
            "wait",
            "parallel",
            "map",
            "call",
            "agent",
        )
        if certain and not self.dag:
            self.values.append(f"${step['id']}.output")
        return step


def _list_program(draw: random.Random, private: bool) -> list[Step]:
    author = _Author(draw, dag=False, private=private)
    steps: list[Step] = []
    for _ in range(draw.randint(2, 6)):
        if steps and draw.random() < 0.3:
            asked = draw.choice(steps)["id"]
            test = draw.choice(["$x >= 1", "$x in [1, 2]", f"${asked}.output is null"])
            onward = f"s{author.count + 2}"  # the step after this condition
            branch = draw.choice(["refused", *(step["id"] for step in steps)])
            steps.append({"id": author.name(), "type": "condition", "condition": test})
            steps[-1] |= {"then": onward, "otherwise": branch}
        step = author.step()
        if step["type"] == "tool" and draw.random() < 0.2:
            asked = {"id": author.name(), "type": "wait", "approvers": [ROLE], "approves": step["id"]}
            steps.append(author.failing(asked))
        steps.append(step)
    steps.append({"id": "done", "type": "tool", "tool": "act_keyed", "args": {"value": "$x"}})
    steps[-1] |= {"is_terminal": True, "outcome": "done"}
    for number, step in enumerate(steps):
        if step["type"] == "condition":
            step["then"] = steps[number + 1]["id"]
    return steps + _endings(steps)


def _endings(steps: list[Step]) -> list[Step]:
    """The last steps of the branches that are named in others."""
    wanted = {step.get(field) for step in steps for field in ("otherwise", "on_failure")}
    endings: list[Step] = []
    ending = {"type": "tool", "tool": "act_idempotent", "args": {"value": 1}, "is_terminal": True}
    if "refused" in wanted:
        endings.append({"id": "refused", **ending, "outcome": "refused"})
    if "failed" in wanted:
        endings.append({"id": "failed", **ending, "final_status": "FAILED", "outcome": "failed"})
    return endings


def _dag_program(draw: random.Random, private: bool) -> list[Step]:
    author = _Author(draw, dag=True, private=private)
    steps: list[Step] = []
    for number in range(draw.randint(2, 6)):
        step = author.step()
        step["depends_on"] = (
            sorted({draw.choice(steps)["id"] for _ in range(min(number, 2))}) if steps else []
        )
        steps.append(step)
    return steps


def _plain_program(draw: random.Random, private: bool) -> list[Step]:
    author = _Author(draw, dag=False, private=private)
    steps: list[Step] = []
    for _ in range(draw.randint(3, 8)):
        if steps and draw.random() < 0.3:
            test = draw.choice(["$x >= 1", "$x in [1, 2]", f"{author.values[-1]} is null"])
            steps.append({"id": author.name(), "type": "condition", "condition": test})
            steps[-1] |= {"then": "continue", "otherwise": draw.choice(steps)["id"]}
        kind = draw.random()
        steps.append(author.plain() if kind < 0.6 else author.plain_group() if kind < 0.9 else author.step())
    steps.append(author.plain() | {"is_terminal": True})
    return steps + _endings(steps)


def random_program(draw: random.Random, *, private: bool = False, plain: bool = False) -> dict[str, Any]:
    """A program that the compiler accepts, with the inputs `x` (an integer) and `sure` (a text that somebody vouches
    for), and a budget of steps. The same state of `draw` gives the same program.

    Args:
        private: whether it may be about a person: then `who` names them, and the values made of it are private.
        plain: whether it is to be of plain steps mostly, tools and conditions in a list, and about nothing that keeps
            it off the lane: a person, or a budget of tokens.
    """
    for _ in range(_TRIES):
        personal = draw.random() < 0.4 and private and not plain
        make = _dag_program if draw.random() < 0.25 else _list_program
        make = _plain_program if plain else make
        properties: dict[str, Any] = {
            "x": {"type": "integer"},
            "sure": {"type": "string", "label": "trusted"},
        }
        program: dict[str, Any] = {
            "name": "simulated",
            "inputs": {"type": "object", "properties": properties, "required": ["x", "sure"]},
            "max_steps": draw.choice([8, 40, 40, 40]) * (2 if plain else 1),  # groups take more of them
            "steps": make(draw, personal),
        }
        if plain and "$sure" not in str(program["steps"]) and draw.random() < 0.7:
            del properties["sure"]["label"]  # nothing is labelled, so nothing is tracked
        if personal:
            properties["who"] = {"type": "string", "private": True}
            program["inputs"]["required"].append("who")
            program["subject"] = "$who"
        if draw.random() < 0.2 and not plain:
            program["max_tokens"] = draw.choice([40, 4_000])
        if not check(from_data(program), schemas()).errors:
            return program
    raise AssertionError("the generator writes programs that the compiler refuses")  # our bug, and loud


def neighbour_program() -> dict[str, Any]:
    """What runs beside a random program of plain steps, in the same process, and shares its commits."""
    tools = ("idempotent", "irreversible", "pure", "idempotent", "irreversible", "idempotent")
    steps: list[Step] = []
    for number, effect in enumerate(tools):
        seen = "$x" if number % 2 else f"$n{number - 1}b.output" if number else 0
        args = {"value": seen, "at": f"$run.id n{number}"}
        steps.append({"id": f"n{number}", "type": "tool", "tool": f"act_plain_{effect}", "args": args})
        if number % 2:
            lanes = []
            for lane, other in zip("abc", tools, strict=False):
                args = {
                    "value": f"$n{number}.output" if lane == "b" else "$x",
                    "at": f"$run.id n{number}{lane}",
                }
                lanes.append(
                    {"id": f"n{number}{lane}", "type": "tool", "tool": f"act_plain_{other}", "args": args}
                )
            steps.append({"id": f"g{number}", "type": "parallel", "parallel_steps": lanes})
    return {
        "name": "neighbour",
        "inputs": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
        "steps": steps,
    }


def child_program() -> dict[str, Any]:
    """What the `call` steps of random programs call."""
    undo = {"tool": "undo_keyed", "args": {"value": "$x"}}
    return {
        "name": CHILD,
        "inputs": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
        "max_steps": 20,
        "steps": [
            {"id": "a", "type": "tool", "tool": "act_keyed", "args": {"value": "$x"}, "compensate": undo},
            {"id": "b", "type": "tool", "tool": "act_transactional", "args": {"value": "$a.output"}},
            {"id": "w", "type": "wait", "event": EVENT},
            {"id": "c", "type": "tool", "tool": "act_reconcilable", "args": {"value": "$x"}},
        ],
    }
