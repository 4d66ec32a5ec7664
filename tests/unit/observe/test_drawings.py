"""Programs and runs as SVG, and a run as one HTML file: complete, in order, inert, and without a private value."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nano_vm import ExecutionVM, MockLLMAdapter, Program, SqliteStore, Vault, tool
from nano_vm.cli.main import main
from nano_vm.compiler import compile_program
from nano_vm.observe import drawing, layout
from nano_vm.observe.page import page
from nano_vm.observe.svg import run_svg, standing, svg
from nano_vm.vault.kek import make_key_file

EXAMPLES = sorted(
    path for path in (Path(__file__).parents[3] / "examples").glob("*.yaml") if ".policy" not in path.suffixes
)
SVG = "{http://www.w3.org/2000/svg}"
SECRET = "Ada Lovelace of St James"
HOSTILE = '"><script>alert(1)</script>'
REACHES_OUT = re.compile(
    r"(?:src|href|action|data)\s*=\s*[\"']?(?!#)|url\((?!#)|@import|<script|<iframe|<link", re.IGNORECASE
)


def overlapping(places: dict[str, tuple[float, float]], boxes: list[layout.Box]) -> list[tuple[str, str]]:
    found = []
    for one, other in combinations(boxes, 2):
        (x, y), (a, b) = places[one.key], places[other.key]
        if x < a + other.width and a < x + one.width and y < b + other.height and b < y + one.height:
            found.append((one.key, other.key))
    return found


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[layout.Box], list[layout.Link]]:
    count = draw(st.integers(1, 14))
    boxes = [
        layout.Box(f"b{number}", draw(st.integers(40, 240)), draw(st.integers(20, 120)))
        for number in range(count)
    ]
    ends = st.integers(0, count - 1)
    links = [
        layout.Link(f"b{source}", f"b{target}")
        for source, target in draw(st.lists(st.tuples(ends, ends), max_size=30))
    ]
    return boxes, links


@given(graphs())
def test_boxes_never_overlap_and_links_join_them_downwards_or_say_that_they_lead_back(
    graph: tuple[list[layout.Box], list[layout.Link]],
) -> None:
    boxes, links = graph
    placed = layout.layered(boxes, links)
    assert placed == layout.layered(boxes, links)
    assert overlapping(placed.places, boxes) == []
    sizes = {box.key: box for box in boxes}
    for key, (x, y) in placed.places.items():
        assert x >= -0.01
        assert y >= -0.01
        assert x + sizes[key].width <= placed.width + 0.01
        assert y + sizes[key].height <= placed.height + 0.01
    assert [route.link for route in placed.routes] == links
    for route in placed.routes:
        (x, y), (a, b) = route.points[0], route.points[-1]
        source, target = sizes[route.link.source], sizes[route.link.target]
        (sx, sy), (tx, ty) = placed.places[source.key], placed.places[target.key]
        assert sx - 0.01 <= x <= sx + source.width + 0.01
        assert sy - 0.01 <= y <= sy + source.height + 0.01
        assert tx - 0.01 <= a <= tx + target.width + 0.01
        assert ty - 0.01 <= b <= ty + target.height + 0.01
        if not route.back:
            heights = [height for _, height in route.points]
            assert heights == sorted(heights)


def test_a_graph_without_cycles_has_no_link_that_leads_back() -> None:
    boxes = [layout.Box(name, 50, 30) for name in "abcd"]
    links = [layout.Link("a", "b"), layout.Link("b", "d"), layout.Link("a", "d"), layout.Link("c", "d")]
    assert not any(route.back for route in layout.layered(boxes, links).routes)


def test_a_program_of_thousands_of_steps_is_laid_out_in_bounds() -> None:
    count = 3_000
    boxes = [layout.Box(f"s{number}", 100, 40) for number in range(count)]
    links = [layout.Link(f"s{number}", f"s{number + 1}") for number in range(count - 1)]
    links += [layout.Link(f"s{number}", f"s{count - 1}", "failure") for number in range(count - 1)]
    placed = layout.layered(boxes, links)
    assert len({y for _, y in placed.places.values()}) == count
    assert sum(len(route.points) for route in placed.routes) < 10 * count


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_every_example_is_drawn_with_all_of_its_steps_and_edges(file: Path) -> None:
    program = compile_program(Program.from_file(file))
    text = svg(program)
    root = ElementTree.fromstring(text)
    assert {node.get("data-step") for node in root.iter(f"{SVG}g") if node.get("data-step")} == set(
        program.step_index
    )
    paths = [path for path in root.iter(f"{SVG}path") if path.get("marker-end")]
    assert len(paths) == len(drawing.edges(program))
    assert REACHES_OUT.search(text) is None


def machine(path: Path | None = None, **options: Any) -> ExecutionVM:
    @tool(effect="idempotent")
    def echo(x: str) -> str:
        return x

    @tool(effect="pure")
    def number(n: int) -> int:
        return n + 1

    if path is not None:
        options["store"] = SqliteStore(path)
    return ExecutionVM(llm=MockLLMAdapter("yes"), tools=[echo, number], **options)


LOOP = {
    "name": "loop",
    "inputs": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
    "max_steps": 50,
    "steps": [
        {"id": "count", "type": "tool", "tool": "number", "args": {"n": "$n"}, "output_key": "m"},
        {"id": "other", "type": "tool", "tool": "number", "args": {"n": "$m"}, "output_key": "k"},
        {"id": "ask", "type": "wait", "event": "go", "output_key": "go"},
        {
            "id": "more",
            "type": "condition",
            "condition": "$go.more == true",
            "then": "count",
            "otherwise": "end",
        },
        {"id": "end", "type": "tool", "tool": "number", "args": {"n": 1}, "is_terminal": True},
    ],
}


def test_a_run_is_drawn_as_it_stands() -> None:
    vm = machine()
    trace = vm.run_sync(LOOP, {"n": 1}, trace_id="r")
    drawn = run_svg(trace)
    assert "ask: WAITING" in drawn
    assert "count: SUCCESS" in drawn
    assert '"end"' in drawn
    assert "end: SUCCESS" not in drawn
    import asyncio

    trace = asyncio.run(vm.resume("r", {"more": True}, name="go"))
    assert standing(trace.steps)["count"].times == 2
    trace = asyncio.run(vm.resume("r", {"more": False}, name="go"))
    root = ElementTree.fromstring(run_svg(trace))
    strong = [path for path in root.iter(f"{SVG}path") if path.get("marker-end") == "url(#nv-taken)"]
    # start, count, other, ask, more, back to count, and on to the end
    assert len(strong) == 7


def private(vm: ExecutionVM, run_id: str) -> None:
    inputs = {
        "type": "object",
        "properties": {"who": {"type": "string", "private": True}},
        "required": ["who"],
    }
    steps = [{"id": "echo", "type": "tool", "tool": "echo", "args": {"x": "$who"}}]
    vm.run_sync(
        {"name": "private", "subject": "$who", "inputs": inputs, "steps": steps},
        {"who": SECRET},
        trace_id=run_id,
    )


def test_the_html_file_of_a_run_is_inert_and_holds_no_private_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "runs.db"
    make_key_file(tmp_path / "runs.db.key")
    vm = machine(path, vault=Vault.beside(path))
    private(vm, "p")
    hostile = {
        "name": HOSTILE,
        "steps": [
            {
                "id": "echo",
                "type": "tool",
                "tool": "echo",
                "args": {"x": HOSTILE},
                "is_terminal": True,
                "outcome": HOSTILE,
            }
        ],
    }
    vm.run_sync(hostile, trace_id="h")
    vm.store.close()
    for run_id, shown in (("p", "[PRIVATE]"), ("h", "&lt;script&gt;")):
        target = tmp_path / f"{run_id}.html"
        assert main(["trace", run_id, "--html", str(target), "--store", str(path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["bytes"] == target.stat().st_size
        text = target.read_text(encoding="utf-8")
        assert shown in text
        assert SECRET not in text
        assert "<script" not in text
        assert REACHES_OUT.search(re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL)) is None
        assert "default-src 'none'" in text
    assert main(["trace", "h", "--html", "-", "--as", "receipt", "--store", str(path)]) == 0
    receipt = capsys.readouterr().out
    assert receipt.startswith("<!doctype html>")
    assert "x&quot;: " not in receipt
    assert main(["trace", "h", "--html", str(tmp_path / "no" / "where.html"), "--store", str(path)]) == 2
    assert main(["trace", "h", "--html", "-", "--events", "--store", str(path)]) == 2


def test_the_html_file_names_every_step_entry_and_hash() -> None:
    trace = machine().run_sync(LOOP, {"n": 1})
    text = page(trace)
    for entry in trace.entries:
        assert entry.digest in text
    for step in trace.steps:
        assert f"<code>{step.id}</code>" in text
    assert trace.trace_hash in text


def test_a_picture_is_written_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["graph", str(EXAMPLES[0]), "--format", "svg"]) == 0
    ElementTree.fromstring(capsys.readouterr().out)
    path = tmp_path / "runs.db"
    vm = machine(path)
    vm.run_sync(LOOP, {"n": 1}, trace_id="r")
    vm.store.close()
    assert main(["graph", "--run", "r", "--format", "svg", "--store", str(path)]) == 0
    assert "ask: WAITING" in capsys.readouterr().out
