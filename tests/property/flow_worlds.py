"""Random programs, and a world that is against them: every model obeys whatever it reads, every tool, child and event
that can hand over the attacker's words does so.

What reaches a protected parameter is looked at where it arrives, by its content alone: labels have no say in it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from random import Random
from typing import Any, NamedTuple

from nano_vm import (
    PENDING,
    Completion,
    ExecutionVM,
    MemoryStore,
    Program,
    ProgramError,
    ToolCall,
    ToolError,
    tool,
)
from nano_vm.policy import Policy, load_policy
from nano_vm.policy.check import check
from nano_vm.testing.clock import VirtualClock

EVIL = "EVIL"
ANA, EVE = {"id": "ana", "roles": []}, {"id": "eve", "roles": ["boss"]}
ASKING = {
    "policy": "p",
    "default": "allow",
    "rules": [{"id": "ask", "tools": ["pay"], "approval": {"roles": ["boss"]}}],
}
CODES = {"TAINTED_PARAMETER", "UNPROVED_FLOW", "SECRET_IN_PROMPT"}
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 9}, "k": {"enum": ["a", "b"]}},
    "required": ["n", "k"],
    "additionalProperties": False,
}
INPUTS = {
    "type": "object",
    "properties": {"msg": {}, "rows": {}, "limit": {"label": "trusted"}},
}


class Verdict(NamedTuple):
    """What came of one program. `breach`: the attacker's words arrived; `disagree`: it was called safe, and a run saw
    an untrusted value at a protected parameter."""

    safe: bool
    blocked: bool
    paid: int
    breach: bool
    disagree: bool


def _evil(value: Any) -> bool:
    return EVIL in json.dumps(value)


class World:
    """One attacker's world: the tools, the model and the events that a run meets."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.paid: list[Any] = []

    def words(self, wanted: Any = None) -> Any:
        """What the attacker says: their own words, or what a gate wants to hear."""
        if wanted is not None and self.rng.random() < 0.6:
            return wanted
        return self.rng.choice([EVIL, {"v": EVIL, "n": 5}, [EVIL, "a"], "a"])

    def tools(self) -> list[Any]:
        async def pay(amount: Any, memo: Any = None) -> Any:
            self.paid.append(amount)
            return "paid"

        async def echo(x: Any = None, y: Any = None) -> Any:
            return {"v": x, "w": [y]} if self.rng.random() < 0.3 else x

        async def vouch(x: Any = None) -> Any:
            return self.rng.choice(["a", 5, {"v": "a", "n": 5}])

        async def fetch(x: Any = None) -> Any:
            return self.words()

        async def pend(x: Any = None) -> Any:
            return PENDING

        async def flaky(x: Any = None) -> Any:
            if self.rng.random() < 0.5:
                raise ToolError(f"{EVIL} {json.dumps(x)}", retryable=False)
            return x

        return [
            tool(protected=["amount"], effect="idempotent", may_suspend=False)(pay),
            tool(effect="pure", may_suspend=False)(echo),
            tool(effect="pure", output_label="trusted", may_suspend=False)(vouch),
            tool(effect="pure", output_label="untrusted", may_suspend=False)(fetch),
            tool(effect="idempotent")(pend),
            tool(effect="pure", may_suspend=False)(flaky),
        ]

    async def complete(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None, **_: Any
    ) -> str | Completion:
        """Obeys: a prompt that tells which answers pass gets one of them, or the attacker's words. An agent proposes
        whatever its tools take, of what it has read and of the attacker's."""
        text = messages[0]["content"]
        if tools and len(messages) < 8 and self.rng.random() < 0.7:
            return Completion(tool_calls=tuple(self._proposals(messages, tools)))
        if "[enum]" in text:
            return str(self.words("a")) if self.rng.random() < 0.2 else self.rng.choice(["a", "b"])
        if "[schema]" in text:
            return json.dumps({"n": self.rng.randint(1, 9), "k": "b"})
        return f"{EVIL}: {text}"

    def _proposals(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> Iterator[ToolCall]:
        for number in range(self.rng.randint(1, 3)):
            offered = self.rng.choice(tools)["function"]
            said = [EVIL, "a", 5, messages[-1]["content"], {"v": messages[0]["content"]}]
            names = offered["parameters"].get("properties", {})
            args = {name: self.rng.choice(said) for name in names if self.rng.random() < 0.8}
            yield ToolCall(f"c{number}", offered["name"], json.dumps(args))


class Author:
    """Writes programs: mostly sound ones, with and without gates before what is protected."""

    def __init__(self, rng: Random, agents: bool = False) -> None:
        self.rng = rng
        self.agents = agents
        self.steps: list[dict[str, Any]] = []
        self.known = ["$msg", "$limit", "$rows"]
        self.number = 0

    def id(self, kind: str) -> str:
        self.number += 1
        return f"{kind}{self.number}"

    def value(self, known: list[str] | None = None) -> Any:
        known = self.known if known is None else known
        rng = self.rng
        kind = rng.random()
        if kind < 0.12:
            return rng.choice([3, "a", None])
        if kind < 0.2:
            return f"text {rng.choice(known)}"
        if kind < 0.26:
            return {"deep": [rng.choice(known)]}
        # Late values are the interesting ones.
        ref = known[-1] if rng.random() < 0.6 else rng.choice(known)
        return f"{ref}.v" if rng.random() < 0.06 else ref

    def action(self, known: list[str], *, pays: float = 0.35) -> dict[str, Any]:
        """A step that does something; its output becomes known where the caller says so."""
        rng, value = self.rng, lambda: self.value(known)
        if rng.random() < pays:
            step = {
                "id": self.id("p"),
                "type": "tool",
                "tool": "pay",
                "args": {"amount": value(), "memo": value()},
            }
            return step
        if self.agents and "$item" not in known and rng.random() < 0.4:
            return self.agent(known)
        kind = rng.choice(["echo", "echo", "echo", "vouch", "fetch", "pend", "llm", "enum", "schema"])
        if kind in ("llm", "enum", "schema"):
            step = {"id": self.id("m"), "type": "llm", "prompt": f"[{kind}] {rng.choice(known)}"}
            if kind == "enum":
                step["allowed_outputs"] = ["a", "b"]
                if rng.random() < 0.5:
                    step["on_error"] = rng.choice(["skip", "retry"])
                else:
                    step["on_error"] = "retry"
            elif kind == "schema":
                step["output_schema"] = SCHEMA
            return step
        step = {"id": self.id("t"), "type": "tool", "tool": kind, "args": {"x": value()}}
        if kind == "echo" and rng.random() < 0.4:
            step["args"]["y"] = value()
        if rng.random() < 0.1:
            step["compensate"] = {
                "tool": "pay",
                "args": {"amount": self.value([*known, f"${step['id']}.output"])},
            }
        return step

    def agent(self, known: list[str]) -> dict[str, Any]:
        """A model with hands; some have what is protected among them."""
        rng = self.rng
        tools = rng.sample(["echo", "vouch", "fetch", "pend", "flaky"], rng.randint(1, 3))
        if rng.random() < 0.25:
            tools.append("pay")
        kind = rng.choice(["llm", "llm", "enum", "schema"])
        step = {
            "id": self.id("a"),
            "type": "agent",
            "prompt": f"[{kind}] {rng.choice(known)}",
            "tools": tools,
        }
        step |= {"max_turns": 4, "on_error": "retry", "max_retries": 2}
        if kind == "enum":
            step["allowed_outputs"] = ["a", "b"]
        elif kind == "schema":
            step["output_schema"] = SCHEMA
        return step

    def condition(self) -> str:
        rng = self.rng
        ref = self.known[-1] if rng.random() < 0.6 else rng.choice(self.known)
        return rng.choice(
            [
                f"{ref} == 'a'",
                f"{ref} in ['a', 'b']",
                f"not ({ref} != 'a')",
                f"{ref} >= 1 and {ref} <= 9",
                f"{ref} >= 1",
                f"{ref} == 'a' or $limit == 5",
                f"{ref} == 'a' or {ref} == 'b'",
                f"'a' in {ref}",
                f"{ref} is not null",
                f"$limit == 5 and {ref} == 'a'",
                f"{ref}.n == 5",
            ]
        )

    # --- list order ---------------------------------------------------------------------------------------

    def program(self, children: list[str]) -> dict[str, Any]:
        for _ in range(self.rng.randint(2, 7)):
            self.segment(children)
        if self.rng.random() < 0.5:
            self.steps.append(self.action(self.known, pays=1))
        self.steps.append(
            {"id": "done", "type": "tool", "tool": "vouch", "is_terminal": True, "outcome": "done"}
        )
        if not any("stop" in step.values() for step in self.steps):
            return {"name": "p", "inputs": INPUTS, "max_steps": 60, "steps": self.steps}
        ending = {
            "is_terminal": True,
            "outcome": "stop",
            "final_status": self.rng.choice(["FAILED", "SUCCESS"]),
        }
        self.steps.append({"id": "stop", "type": "tool", "tool": "vouch", **ending})
        return {"name": "p", "inputs": INPUTS, "max_steps": 60, "steps": self.steps}

    def segment(self, children: list[str]) -> None:
        kinds = (
            ["action"] * 6 + ["guard"] * 5 + ["branch", "loop", "again", "parallel", "map", "wait", "failure"]
        )
        kinds += ["call"] if children else []
        getattr(self, f"add_{self.rng.choice(kinds)}")(children)

    def add(self, step: dict[str, Any]) -> None:
        self.steps.append(step)
        self.known.append(f"${step['id']}.output")

    def add_action(self, children: list[str]) -> None:
        self.add(self.action(self.known))

    def add_guard(self, children: list[str]) -> None:
        step = {"id": self.id("g"), "type": "condition", "condition": self.condition()}
        good, bad = ("then", "otherwise") if self.rng.random() < 0.8 else ("otherwise", "then")
        self.steps.append({**step, good: "continue", bad: "stop"})

    def add_branch(self, children: list[str]) -> None:
        """One branch does something more; both go on."""
        join, inner = self.id("j"), self.action(self.known)
        step = {"id": self.id("g"), "type": "condition", "condition": self.condition()}
        self.steps += [{**step, "then": inner["id"], "otherwise": join}, {**inner, "next_step": join}]
        self.add({"id": join, "type": "tool", "tool": "echo", "args": {"x": self.value()}})

    def add_loop(self, children: list[str]) -> None:
        targets = [step["id"] for step in self.steps if step["type"] != "condition"]
        if targets:
            step = {"id": self.id("g"), "type": "condition", "condition": self.condition()}
            self.steps.append({**step, "then": self.rng.choice(targets), "otherwise": "continue"})

    def add_again(self, children: list[str]) -> None:
        """What a guard has let through is bound anew, and used where the guard is not asked again."""
        value, first, guard, once, use = (self.id(kind) for kind in "rxgop")
        self.steps += [
            {"id": value, "type": "tool", "tool": "echo", "args": {"x": self.value()}},
            {
                "id": first,
                "type": "condition",
                "condition": f"${once}.output is null",
                "then": guard,
                "otherwise": use,
            },
        ]
        self.known.append(f"${value}.output")
        again = self.rng.choice([value, first])
        self.steps += [
            {
                "id": guard,
                "type": "condition",
                "condition": self.condition(),
                "then": once,
                "otherwise": "stop",
            },
            {"id": once, "type": "tool", "tool": "vouch", "next_step": again},
            {"id": use, "type": "tool", "tool": "pay", "args": {"amount": f"${value}.output"}},
        ]

    def add_parallel(self, children: list[str]) -> None:
        lanes = [self.action(self.known) for _ in range(self.rng.randint(1, 3))]
        self.add({"id": self.id("q"), "type": "parallel", "parallel_steps": lanes})
        self.known += [f"${lane['id']}.output" for lane in lanes]

    def add_map(self, children: list[str]) -> None:
        lane = self.action([*self.known, "$item"])
        over = self.rng.choice(["$rows", ["a", 5], [self.rng.choice(self.known)]])
        self.add({"id": self.id("e"), "type": "map", "over": over, "step": lane})

    def add_wait(self, children: list[str]) -> None:
        step: dict[str, Any] = {"id": self.id("w"), "type": "wait"}
        if self.rng.random() < 0.3:
            self.add({**step, "seconds": 0.001})
            return
        fields = {"timeout_seconds": 0.001, "on_timeout": "fallback", "fallback": "a"}
        self.add({**step, "event": "go", **(fields if self.rng.random() < 0.2 else {})})

    def add_call(self, children: list[str]) -> None:
        inputs = {"msg": self.value(), "rows": [self.value()], "limit": self.value()}
        self.add({"id": self.id("c"), "type": "call", "program": self.rng.choice(children), "inputs": inputs})

    def add_failure(self, children: list[str]) -> None:
        """A step whose failure is handled with what is said about it."""
        flaky, handler, join = self.id("f"), self.id("h"), self.id("j")
        use = {"amount" if (pays := self.rng.random() < 0.5) else "x": f"${flaky}.error.message"}
        self.steps += [
            {
                "id": flaky,
                "type": "tool",
                "tool": "flaky",
                "args": {"x": self.value()},
                "on_failure": handler,
                "next_step": join,
            },
            {
                "id": handler,
                "type": "tool",
                "tool": "pay" if pays else "echo",
                "args": use,
                "next_step": join,
            },
        ]
        self.add({"id": join, "type": "tool", "tool": "echo", "args": {"x": self.value()}})

    # --- depends_on ---------------------------------------------------------------------------------------

    def dag(self) -> dict[str, Any]:
        """Steps that wait for one another; some are branches of conditions before them."""
        rng = self.rng
        names: list[str] = []
        open_branches: list[tuple[dict[str, Any], str]] = []
        above: dict[str, set[str]] = {}
        for _ in range(rng.randint(3, 8)):
            before = set(rng.sample(names, min(len(names), rng.randint(0, 2))))
            behind = set().union(before, *(above[name] for name in before))
            branch = None
            if open_branches and rng.random() < 0.6:
                branch = open_branches.pop(rng.randrange(len(open_branches)))
                behind |= {branch[0]["id"], *above[branch[0]["id"]]}
            known = ["$msg", "$limit", *(f"${name}.output" for name in sorted(behind) if name[0] != "g")]
            if rng.random() < 0.35:
                self.known = known
                step: dict[str, Any] = {
                    "id": self.id("g"),
                    "type": "condition",
                    "condition": self.condition(),
                }
                open_branches += [(step, "then"), (step, "otherwise")]
            else:
                step = self.action(known)
            if branch is not None:
                branch[0][branch[1]] = step["id"]
            step["depends_on"] = sorted(before)
            names.append(step["id"])
            above[step["id"]] = behind
            self.steps.append(step)
        for step in self.steps:
            if step["type"] == "condition" and not {"then", "otherwise"} & set(step):
                del step["condition"]
                step.update(type="tool", tool="vouch")
        return {"name": "p", "inputs": INPUTS, "max_steps": 60, "steps": self.steps}


def play(seed: int, agents: bool = False, asks: bool = False) -> Verdict | None:
    """Writes the program of a seed, asks the proof about it, and runs it three times among enemies; None when no sound
    program came of it.

    Args:
        agents: there are agents among the steps.
        asks: a policy asks somebody about every payment, and they say yes to all: then what they have seen may arrive.
    """
    rng = Random(seed)
    policy = load_policy(ASKING) if asks else None
    children: dict[str, Program] = {}
    for name in ("one", "two"):
        child = _sound(rng, name, children, agents)
        if child is not None:
            children[name] = child
    program = _sound(rng, "p", children, agents)
    if program is None:
        return None
    schemas = ExecutionVM(tools=World(rng).tools()).tools.schemas()
    found = any(finding.code in CODES for finding in check(program, schemas, children, policy).diagnostics)
    blocked, paid, breach = False, 0, False
    for _ in range(3):
        world = World(rng)
        failures = asyncio.run(_run(world, program, children, policy))
        if failures is None:
            return None
        blocked |= failures > 0
        paid += len(world.paid)
        breach |= not asks and any(_evil(amount) for amount in world.paid)
    return Verdict(not found, blocked, paid, breach, disagree=not found and blocked)


def _sound(rng: Random, name: str, children: dict[str, Program], agents: bool = False) -> Program | None:
    """A program in which nothing is wrong but, perhaps, what flows where."""
    schemas = ExecutionVM(tools=World(rng).tools()).tools.schemas()
    for _ in range(12):
        author = Author(rng, agents)
        data = author.dag() if rng.random() < 0.3 else author.program(list(children))
        try:
            program = Program.from_dict({**data, "name": name})
        except ProgramError:
            continue
        if all(finding.code in CODES for finding in check(program, schemas, children).errors):
            return program
    return None


async def _run(
    world: World, program: Program, children: dict[str, Program], policy: Policy | None
) -> int | None:
    """How often something was kept from a protected parameter."""
    store = MemoryStore()
    clock = VirtualClock()
    engines = [
        ExecutionVM(llm=world, tools=world.tools(), store=store, clock=clock, policy=policy)  # type: ignore[arg-type]
        for _ in range(2)
    ]
    vm = engines[0]
    for engine in engines:
        engine.proves = False
    try:
        for child in children.values():
            vm.save_program(child)
        context = {"msg": world.words("a"), "rows": [world.words("a"), "a"], "limit": 5}
        trace = await vm.run(program, context, principal=ANA)
    except ProgramError:
        return None  # unsound for other reasons
    for turn in range(16 if policy else 6):
        if trace.status != "SUSPENDED":
            break
        vm = engines[turn % 2]  # what the other knows of the run it has out of the journal
        if (approvals := vm.approvals()) and approvals[0].tool:
            first = approvals[0]
            trace = await vm.approve(trace.trace_id, step=first.step, item=first.item, principal=EVE)
            continue
        asked = [found for wait in trace.waiting if (found := _asked(wait.to_dict(), "")) is not None]
        if asked:
            step, item = asked[0]
            trace = await vm.resume(
                trace.trace_id, world.words("a"), event_id=f"e{turn}", step=step, item=item
            )
        else:
            clock.advance(10_000)
            await vm.recover()
            trace = vm.trace(trace.trace_id)
    failures = 0
    for record in [*vm.runs(), *store.records(_children_of(trace.trace_id))]:
        events = vm.trace(record.run_id).events
        said = [
            word for event in events for word in (getattr(event, "error", ""), getattr(event, "reason", ""))
        ]
        failures += said.count("TAINTED_PARAMETER")
    vm.verify(trace.trace_id)
    return failures


def _asked(wait: dict[str, Any], above: str) -> tuple[str, int | None] | None:
    """The step, through its calls, that somebody else's word is waited for."""
    way = f"{above}{wait['step']}"
    if wait["kind"] == "child":
        inner = (_asked(one, f"{way}/") for one in wait["waits"])
        return next((one for one in inner if one is not None), None)
    return (way, wait.get("item")) if wait["kind"] in ("event", "tool") else None


def _children_of(trace_id: str) -> Any:
    from nano_vm.journal.port import RunQuery

    return RunQuery(parent=trace_id)
