"""The published JSON Schema and the structural validator are made from one table and agree."""

from __future__ import annotations

import json
import random
from pathlib import Path

import jsonschema_rs
import pytest

from nano_vm.program import program_schema
from nano_vm.program.diagnostic import ERROR
from nano_vm.program.document import from_data
from nano_vm.program.validate import validate

PUBLISHED = Path(__file__).parents[3] / "spec" / "program.schema.json"

SOUND = {
    "name": "order",
    "version": "2",
    "inputs": {"type": "object", "properties": {"x": {"type": "number"}}},
    "outputs": {"d": "$a.output"},
    "max_steps": 50,
    "max_cost_usd": 0.5,
    "steps": [
        {
            "id": "a",
            "type": "llm",
            "prompt": "hi $x",
            "allowed_outputs": ["yes", "no"],
            "normalize": "casefold",
            "params": {"max_tokens": 5},
            "timeout_seconds": 2.5,
            "on_error": "retry",
            "max_retries": 4,
            "retry": {"initial": 1, "factor": 2, "cap": 9, "jitter": False},
        },
        {
            "id": "b",
            "type": "tool",
            "tool": "pay",
            "args": {"x": ["$x"]},
            "compensate": {"tool": "undo", "args": {}},
            "on_failure": "d",
        },
        {"id": "c", "type": "condition", "condition": "$x > 1", "then": "d", "otherwise": "continue"},
        {
            "id": "d",
            "type": "parallel",
            "max_concurrency": 2,
            "parallel_steps": [
                {"id": "e", "type": "tool", "tool": "t", "output_key": "k"},
                {"id": "f", "type": "wait", "event": "paid", "accept": "$event.ok", "approvers": ["boss"]},
            ],
        },
        {
            "id": "g",
            "type": "map",
            "over": "$x",
            "max_items": 3,
            "step": {"id": "h", "type": "call", "program": "p"},
        },
        {
            "id": "i",
            "type": "wait",
            "seconds": 3,
            "is_terminal": True,
            "final_status": "FAILED",
            "outcome": "late",
        },
    ],
}
STRANGE = [
    "",
    "a b",
    "a",
    "9",
    0,
    1,
    -1,
    2.5,
    True,
    None,
    [],
    {},
    ["a", "a"],
    ["a"],
    {"x": 1},
    "continue",
    "FAILED",
]
NAMES = [
    "id",
    "type",
    "prompt",
    "tool",
    "args",
    "seconds",
    "step",
    "fallback",
    "output_key",
    "next_step",
    "private",
    "nonsense",
    "condition",
    "depends_on",
    "over",
    "retry",
    "inputs",
    "outputs",
    "name",
    "max_tokens",
]


def accepts(data):
    return not any(finding.severity == ERROR for finding in validate(from_data(data)).diagnostics)


def containers(value):
    found = [value] if isinstance(value, dict | list) else []
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        found.extend(containers(item))
    return found


def mutate(data, rng):
    for _ in range(rng.randint(1, 3)):
        target = rng.choice(containers(data))
        if isinstance(target, dict) and target:
            match rng.randrange(4):
                case 0:
                    del target[rng.choice(list(target))]
                case 1:
                    target[rng.choice(list(target))] = rng.choice(STRANGE)
                case 2:
                    target[rng.choice(NAMES)] = rng.choice(STRANGE)
                case _:
                    target["type"] = rng.choice(
                        ["llm", "tool", "condition", "parallel", "wait", "map", "call", "agent"]
                    )
        elif isinstance(target, list) and target:
            target[rng.randrange(len(target))] = rng.choice(STRANGE)
        else:
            continue
    return data


def test_the_published_schema_is_the_generated_one():
    assert json.loads(PUBLISHED.read_text()) == program_schema()


def test_the_schema_is_a_valid_schema():
    jsonschema_rs.meta.validate(program_schema())


@pytest.mark.parametrize("seed", range(8))
def test_schema_and_validator_agree_on_mutated_programs(seed):
    rng = random.Random(seed)
    schema = jsonschema_rs.Draft202012Validator(program_schema())
    assert schema.is_valid(SOUND)
    assert accepts(SOUND)
    verdicts = set()
    for _ in range(250):
        data = mutate(json.loads(json.dumps(SOUND)), rng)
        verdict = accepts(data)
        verdicts.add(verdict)
        assert schema.is_valid(data) == verdict, json.dumps(data)
    assert verdicts == {True, False}
