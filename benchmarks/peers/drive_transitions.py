"""transitions: a bare state machine, driven by plain calls. No journal, no data flow, no durability.

The machine and its model are made once; a program is a reset of the state and a walk to the last one. A
tool is the callback that runs before the state changes, a condition is the library's own `conditions=`.
"""

from __future__ import annotations

from importlib.metadata import version

from harness import Measured, Slice, run_driver, time_programs_sync
from transitions import Machine


class Refund:
    state: str

    def __init__(self) -> None:
        self.calls = 0
        self.amount = 0
        self.refunded = 0

    def lookup(self) -> None:
        self.calls += 1
        self.amount = 40

    def is_small(self) -> bool:
        return self.amount <= 100

    def refund(self) -> None:
        self.calls += 1
        self.refunded = self.amount

    def notify(self) -> None:
        self.calls += 1


class Twenty:
    state: str

    def __init__(self) -> None:
        self.calls = 0
        self.x = 0
        self.least = 0

    def tool(self) -> None:
        self.calls += 1
        self.x += 1

    def is_far_enough(self) -> bool:
        return self.x >= self.least


class Loop:
    state: str

    def __init__(self, limit: int) -> None:
        self.calls = 0
        self.n = 0
        self.limit = limit

    def tick(self) -> None:
        self.calls += 1
        self.n += 1

    def is_below(self) -> bool:
        return self.n < self.limit


def refund(turn: Slice) -> Measured:
    model = Refund()
    machine = Machine(model, states=["start", "known", "small", "large", "paid", "end"], initial="start")
    machine.add_transition("go", "start", "known", before="lookup")
    machine.add_transition("go", "known", "small", conditions="is_small")
    machine.add_transition("go", "known", "large")
    machine.add_transition("go", "small", "paid", before="refund")
    machine.add_transition("go", "paid", "end", before="notify")

    def once() -> object:
        machine.set_state("start")
        while model.state != "end":
            model.go()
        return model.refunded

    return timed(turn, model, once)


def timed(turn: Slice, model: Refund | Twenty | Loop, once: object) -> Measured:
    # The model counts its own calls, so it is handed over as the tools.
    return time_programs_sync(turn, model, once)  # type: ignore[arg-type]


def twenty(turn: Slice) -> Measured:
    model = Twenty()
    states = [f"s{number}" for number in range(21)] + ["rejected"]
    machine = Machine(model, states=states, initial="s0")
    for number in range(20):
        here, there = f"s{number}", f"s{number + 1}"
        if number % 4:
            machine.add_transition("go", here, there, before="tool")
        else:
            machine.add_transition("go", here, there, conditions="is_far_enough")
            machine.add_transition("go", here, "rejected")

    def once() -> object:
        model.x = 0
        machine.set_state("s0")
        while model.state != "s20":
            model.go()
        return model.x

    return timed(turn, model, once)


def loop(turn: Slice) -> Measured:
    limit = turn.workload.loop_limit
    model = Loop(limit)
    machine = Machine(model, states=["start", "ticked", "again", "end", "stop"], initial="start")
    machine.add_transition("go", "start", "ticked", before="tick")
    machine.add_transition("go", "ticked", "start", conditions="is_below")
    machine.add_transition("go", "ticked", "end")
    machine.add_transition("go", "end", "stop", before="done")

    def done() -> None:
        model.calls += 1

    model.done = done  # type: ignore[attr-defined]

    def once() -> object:
        model.n = 0
        machine.set_state("start")
        while model.state != "stop":
            model.go()
        return model.n

    return timed(turn, model, once)


DRIVERS = {"W1": refund, "W2": twenty, "W2_sync": twenty, "W3_100": loop, "W3_1000": loop, "W3_10000": loop}

if __name__ == "__main__":
    raise SystemExit(run_driver("transitions", version("transitions"), {"": DRIVERS}))
