"""A program's hash does not tell in which order its author listed members: nothing that is compiled may depend on it
(SPEC §2, §3). Two processes, of which one has read the author's file and the other the store, run the same program."""

from __future__ import annotations

import random
from typing import Any

import pytest

from nano_vm import Program
from nano_vm.compiler import compile_program
from nano_vm.compiler.dump import dump
from nano_vm.testing.programs import random_program
from nano_vm.testing.world import schemas


def turned(value: Any, draw: random.Random) -> Any:
    """The same JSON with the members of its objects in another order."""
    if isinstance(value, dict):
        names = list(value)
        draw.shuffle(names)
        return {name: turned(value[name], draw) for name in names}
    return [turned(item, draw) for item in value] if isinstance(value, list) else value


def compiled(program: dict[str, Any]) -> Any:
    """All that is compiled, with the order of members that has a meaning for whoever goes through them."""
    shown = dump(compile_program(Program.from_dict(program), schemas()))
    return {**shown, "input_slots": list(shown["input_slots"].items()), "outputs": list(shown["outputs"])}


@pytest.mark.parametrize("seed", range(60))
def test_the_order_of_members_changes_nothing(seed: int) -> None:
    draw = random.Random(f"order {seed}")
    program = random_program(random.Random(seed), private=True, plain=seed % 3 == 0)
    program["outputs"] = {"z": "$x", "b": "$sure", "m": "$run.id"}
    assert compiled(program) == compiled(turned(program, draw))


def test_inputs_without_a_schema_are_ordered_by_their_names() -> None:
    step = {"id": "a", "type": "tool", "tool": "act_pure", "args": {"value": ["$zone", "$amount"]}}
    found = compiled({"name": "p", "steps": [step]})["input_slots"]
    assert [name for name, _ in found] == ["amount", "zone"]
