"""The kernel does what `spec/vectors/transition.json` says, event by event."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conformance.transition_vectors import compile_vector, view
from nano_vm.kernel.state import REJECTIONS, State, restore, snapshot

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "spec" / "vectors" / "transition.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_every_event_leads_to_what_the_vector_says(vector: dict[str, Any]) -> None:
    program = compile_vector(vector["program"])
    state = State(run=vector["run"])
    for number, said in enumerate(vector["events"]):
        expected = {name: value for name, value in said.items() if name not in ("type", "event")}
        before = snapshot(state)
        assert view(program, state, said["type"], said["event"]) == expected, number
        if "rejection" in said:
            assert snapshot(state) == before
        state = restore(snapshot(state))  # as if every event found another process


def test_the_vectors_cover_the_rejections_of_the_kernel() -> None:
    found = {said.get("rejection") for vector in VECTORS for said in vector["events"]}
    elsewhere = {"INBOX_FULL", "AMBIGUOUS", "MALFORMED", "OVERSIZED", "POLICY"}  # unit tests, later rooms
    assert found >= REJECTIONS.keys() - elsewhere
