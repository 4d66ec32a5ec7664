"""The analysis of what is assigned is held against walking every path.

For list order: random walks of the compiled program never find an UNSET slot where the compiler saw none
coming, and for each finding some path exists. For DAGs: all verdicts of all conditions and failures are
played through.
"""

from __future__ import annotations

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from nano_vm.compiler import check
from nano_vm.program.document import from_data

N = 6


@st.composite
def list_programs(draw):
    count = draw(st.integers(2, N))
    target = st.integers(0, count - 1).map(lambda n: f"s{n}")
    steps = []
    for n in range(count):
        if draw(st.integers(0, 2)) == 0:
            step = {
                "type": "condition",
                "condition": "$x == 1",
                "then": draw(target),
                "otherwise": draw(target),
            }
        else:
            step = {"type": "tool", "tool": "t", "args": {"a": f"$s{draw(st.integers(0, count - 1))}.output"}}
            match draw(st.integers(0, 3)):
                case 0:
                    step["next_step"] = draw(target)
                case 1:
                    step["is_terminal"] = True
            if draw(st.integers(0, 3)) == 0:
                step["on_failure"] = draw(target)
        steps.append({"id": f"s{n}", **step})
    return {
        "max_steps": 99,
        "inputs": {"type": "object", "properties": {"x": {}}, "required": ["x"]},
        "steps": steps,
    }


def walk(data, rng):
    """Yields (step, ids that have succeeded before it) along one random path."""
    ids = [step["id"] for step in data["steps"]]
    done, position = set(), 0
    for _ in range(40):
        if position >= len(ids):
            return
        step = data["steps"][position]
        yield step, frozenset(done)
        following = position + 1
        if step["type"] == "condition":
            following = ids.index(step[rng.choice(["then", "otherwise"])])
        elif "on_failure" in step and rng.random() < 0.5:
            following = ids.index(step["on_failure"])
        else:
            done.add(step["id"])
            if "next_step" in step:
                following = ids.index(step["next_step"])
            elif step.get("is_terminal"):
                return
        position = following


@settings(max_examples=200, deadline=None)
@given(list_programs(), st.integers(0, 2**32))
def test_a_value_missing_on_some_path_is_always_found_and_never_invented(data, seed):
    report = check(from_data(data))
    found = {f.place.step for f in report.errors if f.code == "UNASSIGNED_REFERENCE"}
    conditions = {step["id"] for step in data["steps"] if step["type"] == "condition"}
    missing = set()
    rng = random.Random(seed)
    for _ in range(150):
        for step, done in walk(data, rng):
            if step["type"] == "tool":
                owner = step["args"]["a"][1:].split(".")[0]
                if owner not in done and owner not in conditions:
                    missing.add(step["id"])
    assert missing <= found
    # 150 walks over at most 6 steps meet every short path; what was found must then have been seen.
    assert found <= missing


@st.composite
def dag_programs(draw):
    count = draw(st.integers(2, N))
    steps = []
    for n in range(count):
        later = st.integers(n + 1, count - 1).map(lambda m: f"s{m}")
        kind = draw(st.integers(0, 2)) if n < count - 1 else 1
        if kind == 0:
            step = {
                "type": "condition",
                "condition": "$x == 1",
                "then": draw(later),
                "otherwise": draw(later),
            }
        else:
            step = {"type": "tool", "tool": "t", "args": {"a": f"$s{draw(st.integers(0, count - 1))}.output"}}
            if n < count - 1 and draw(st.integers(0, 3)) == 0:
                step["on_failure"] = draw(later)
        if n:
            earlier = st.integers(0, n - 1).map(lambda m: f"s{m}")
            step["depends_on"] = draw(st.lists(earlier, max_size=2, unique=True))
        steps.append({"id": f"s{n}", **step})
    steps[0]["depends_on"] = []
    return {"inputs": {"type": "object", "properties": {"x": {}}, "required": ["x"]}, "steps": steps}


def played(data, verdicts):
    """Returns the ids that run and those that succeed, settling steps in order."""
    edges = {}
    for step in data["steps"]:
        for source in step["depends_on"]:
            edges.setdefault((source, step["id"]), "done")
    for step in data["steps"]:
        if step["type"] == "condition":
            same = step["then"] == step["otherwise"]
            edges[step["id"], step["then"]] = "done" if same else "then"
            if not same:
                edges[step["id"], step["otherwise"]] = "otherwise"
        elif "on_failure" in step:
            edges[step["id"], step["on_failure"]] = "failure"
    outcome = {}
    for step in data["steps"]:
        incoming = [(source, when) for (source, target), when in edges.items() if target == step["id"]]
        taken = [
            outcome[source] == when
            or (when == "done" and outcome[source] in ("done", "then", "otherwise"))
            for source, when in incoming
        ]  # fmt: skip
        if incoming and not any(taken):
            outcome[step["id"]] = "skipped"
        elif step["type"] == "condition":
            outcome[step["id"]] = "then" if verdicts[step["id"]] else "otherwise"
        else:
            fails = "on_failure" in step and verdicts[step["id"]]
            outcome[step["id"]] = "failure" if fails else "done"
    return edges, outcome


def ancestors(edges, step):
    found, stack = set(), [step]
    while stack:
        current = stack.pop()
        for source, target in edges:
            if target == current and source not in found:
                found.add(source)
                stack.append(source)
    return found


@settings(max_examples=200, deadline=None)
@given(dag_programs())
def test_in_a_dag_every_verdict_agrees_with_the_analysis(data):
    report = check(from_data(data))
    assert not [
        finding for finding in report.errors if finding.code in ("DEPENDS_ON_CYCLE", "DEPENDS_ON_MIXED")
    ]
    found = {f.place.step for f in report.errors if f.code == "UNASSIGNED_REFERENCE"}
    unreachable = {f.place.step for f in report.errors if f.code == "UNREACHABLE_STEP"}
    ids = [step["id"] for step in data["steps"]]
    conditions = {step["id"] for step in data["steps"] if step["type"] == "condition"}
    missing, ran = set(), set()
    for values in itertools.product([False, True], repeat=len(ids)):
        edges, outcome = played(data, dict(zip(ids, values, strict=True)))
        for step in data["steps"]:
            if outcome[step["id"]] == "skipped":
                continue
            ran.add(step["id"])
            if step["type"] == "tool":
                owner = step["args"]["a"][1:].split(".")[0]
                before = owner in ancestors(edges, step["id"]) and outcome[owner] == "done"
                if not before and owner not in conditions:
                    missing.add(step["id"])
    assert found == missing
    assert unreachable == set(ids) - ran
