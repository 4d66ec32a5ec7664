"""What other people's process-mining tools make of our event logs, and we of theirs: each out of process, in an
environment of its own, as `pm4py` is AGPL and large.

An environment that is there already is named by NANO_VM_READERS (its Python); else one is made, which needs a package
index. LangGraph is the one that `benchmarks/peers/setup.py` makes, or NANO_VM_LANGGRAPH's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nano_vm import ExecutionVM, MockLLMAdapter, ToolError, tool
from nano_vm.observe import eventlog, imports
from nano_vm.observe.measures import transition_entropy
from nano_vm.observe.trajectory import Trajectory, of_trace

pytestmark = pytest.mark.campaign

ROOT = Path(__file__).resolve().parents[3]
REQUIREMENTS = ("rustxes==0.2.11", "pm4py==2.7.23.11")
READERS = {
    "rustxes": """
import json, rustxes
from datetime import UTC
def ms(at): return round(at.replace(tzinfo=UTC).timestamp() * 1000)
log, _ = rustxes.import_xes("runs.xes")
rows = [[r["case:concept:name"], r["concept:name"], r["lifecycle:transition"],
         ms(r["time:timestamp"])] for r in log.iter_rows(named=True)]
ocel = rustxes.import_ocel_json("runs.json")
events = [[r["ocel:eid"], r["ocel:activity"]] for r in ocel["events"].iter_rows(named=True)]
objects = sorted([r["ocel:oid"], r["ocel:type"]] for r in ocel["objects"].iter_rows(named=True))
relations = sorted([r["ocel:eid"], r["ocel:oid"]] for r in ocel["relations"].iter_rows(named=True))
print(json.dumps({"xes": rows, "events": events, "objects": objects, "relations": relations}))
""",
    "pm4py": """
import json, warnings, sys
warnings.simplefilter("ignore")
import pm4py
log = pm4py.read_xes("runs.xes")
rows = [[r["case:concept:name"], r["concept:name"], r["lifecycle:transition"],
         round(r["time:timestamp"].timestamp() * 1000)] for r in log.to_dict("records")]
ocel = pm4py.read_ocel2_json("runs.json")
events = [[r["ocel:eid"], r["ocel:activity"]] for r in ocel.events.to_dict("records")]
objects = sorted([r["ocel:oid"], r["ocel:type"]] for r in ocel.objects.to_dict("records"))
relations = sorted([r["ocel:eid"], r["ocel:oid"]] for r in ocel.relations.to_dict("records"))
pm4py.write_xes(log, "theirs.xes")
pm4py.write_ocel2_json(ocel, "theirs.json")
print(json.dumps({"xes": rows, "events": events, "objects": objects, "relations": relations}))
""",
}
LANGGRAPH = """
import json
from typing import TypedDict
from langgraph.graph import END, START, StateGraph

class State(TypedDict, total=False):
    n: int

def add(state): return {"n": state["n"] + 1}
def fail(state): raise ValueError("hunter2")

graph = StateGraph(State)
graph.add_node("look", add); graph.add_node("pay", add); graph.add_node("last", fail)
graph.add_edge(START, "look"); graph.add_edge("look", "pay"); graph.add_edge("last", END)
graph.add_conditional_edges("pay", lambda state: "look" if state["n"] < 4 else "last")
try:
    for found in graph.compile().stream({"n": 0}, stream_mode="debug"):
        print(json.dumps(found, default=str))
except ValueError:
    pass
"""


@pytest.fixture(scope="session")
def readers(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of an environment that has the readers."""
    there = os.environ.get("NANO_VM_READERS")
    if there:
        return there
    home = tmp_path_factory.mktemp("readers")
    python = str(home / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True, timeout=120)
    done = subprocess.run(
        [python, "-m", "pip", "install", "-q", *REQUIREMENTS], capture_output=True, text=True, timeout=900
    )
    if done.returncode:
        pytest.skip(f"the readers cannot be installed: {done.stderr[-300:]}")
    return python


def runs() -> list[Trajectory]:
    """Runs of all kinds: branches, retries, an agent, failures, odd names."""
    seen: set[int] = set()

    @tool(effect="idempotent")
    def act(n: int) -> int:
        if n % 3 == 0 and n not in seen:
            seen.add(n)
            raise ToolError("busy")
        if n == 7:
            raise ToolError("no", retryable=False)
        return n

    steps = [
        {"id": "choose", "type": "condition", "condition": "$n < 8", "then": "act", "otherwise": "ask"},
        {"id": "act", "type": "tool", "tool": "act", "args": {"n": "$n"}, "on_error": "retry", "is_terminal": True,
         "retry": {"initial": 0.001}},
        {"id": "ask", "type": "llm", "prompt": "$n", "is_terminal": True},
    ]  # fmt: skip
    vm = ExecutionVM(MockLLMAdapter("yes"), [act])
    program = {"name": 'naïve "<&>', "steps": steps}
    return [of_trace(vm.run_sync(program, {"n": n}, trace_id=f"run {n} é")) for n in range(12)]


@pytest.mark.parametrize("reader", sorted(READERS))
def test_other_peoples_tools_read_what_we_write(reader: str, readers: str, tmp_path: Path) -> None:
    made = runs()
    (tmp_path / "runs.xes").write_text("".join(eventlog.xes(made)), encoding="utf-8")
    (tmp_path / "runs.json").write_text(json.dumps(eventlog.ocel(made)), encoding="utf-8")
    done = subprocess.run(
        [readers, "-c", READERS[reader]], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    read: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    expected = [
        [
            run.id,
            move.activity,
            "ate_abort" if move.failed else "complete",
            move.finished_at_ms or move.started_at_ms,
        ]
        for run in made
        for move in run.moves
    ]
    assert sorted(read["xes"]) == sorted(expected)
    assert len(read["events"]) == sum(len(run.moves) for run in made)
    assert sorted(name for _, name in read["events"]) == sorted(
        move.activity for run in made for move in run.moves
    )
    assert len(read["objects"]) == len(made) + 1
    assert len(read["relations"]) == len(read["events"])
    if reader != "pm4py":
        return
    # And back: what they have written from it is, to our instruments, what it was.
    back = {run.id: run for run in imports.read("xes", (tmp_path / "theirs.xes").read_bytes())}
    for ours in made:
        theirs = back[ours.id]
        assert (theirs.path, theirs.status, theirs.program) == (ours.path, ours.status, ours.program)
        assert [move.failed for move in theirs.moves] == [move.failed for move in ours.moves]
        assert transition_entropy(theirs.pairs()) == transition_entropy(ours.pairs())
    centric = {run.id: run for run in imports.read("ocel", (tmp_path / "theirs.json").read_bytes())}
    assert {run.id: sorted(run.path) for run in made} == {id: sorted(run.path) for id, run in centric.items()}


def test_the_debug_stream_of_a_real_langgraph_is_read(tmp_path: Path) -> None:
    python = os.environ.get("NANO_VM_LANGGRAPH") or str(
        ROOT / "benchmarks" / "peers" / ".envs" / "langgraph" / "bin" / "python"
    )
    if not Path(python).exists():
        pytest.skip("python benchmarks/peers/setup.py makes the environment")
    done = subprocess.run([python, "-c", LANGGRAPH], cwd=tmp_path, capture_output=True, timeout=300)
    [run] = imports.read("langgraph", done.stdout)
    assert run.path == ["look", "pay", "look", "pay", "last"]
    assert [move.failed for move in run.moves] == [False] * 4 + [True]
    assert run.status == "FAILED"
    assert "hunter2" not in str(run)
