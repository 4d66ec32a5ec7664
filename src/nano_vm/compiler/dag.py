"""Control flow of a program that uses `depends_on`: edges, order, and which steps run together.

A step runs when all its dependencies have settled and at least one was taken. Whether a value is there when a
step runs is decided exactly, over all verdicts of conditions and all handled failures (`verdicts`).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from nano_vm.compiler.graph import OUTPUT, Definition
from nano_vm.compiler.verdicts import ALWAYS, NEVER, Diagrams, TooIntricate
from nano_vm.compiler.view import View

DONE, THEN, OTHERWISE, FAILURE = "done", "then", "otherwise", "failure"


class DagFlow:
    """The graph of a DAG.

    Attributes:
        edges: per step, target position to "done", "then", "otherwise" or "failure".
        sources: per step, the positions it waits for.
        cycle: positions of steps that wait for one another, empty in a sound DAG.
        ranks: per step, its place in topological order (ties in list order).
        too_intricate: the diagrams grew beyond their limit; answers given since are guesses in favour of the
            author.
    """

    def __init__(self, view: View) -> None:
        self.size = len(view.top)
        self._view = view
        self.edges: list[dict[int, str]] = [{} for _ in range(self.size)]
        self.too_intricate = False
        self._wire()
        self.sources: list[list[int]] = [[] for _ in range(self.size)]
        for source, targets in enumerate(self.edges):
            for target in targets:
                self.sources[target].append(source)
        self.ranks, self.cycle = self._sort()
        self._diagrams = Diagrams()
        self._runs: list[int] = []
        self._reached: set[int] | None = None
        if not self.cycle:
            try:
                self._runs = self._verdicts()
            except TooIntricate:
                self.too_intricate = True

    def _wire(self) -> None:
        view = self._view
        for step in view.top:
            for name in step.data.get("depends_on", ()):
                found = view.by_id.get(name)
                if found is not None and found.parent is None and found is not step:
                    self.edges[found.position].setdefault(step.position, DONE)
        for step in view.top:
            # Named targets wait for the step that names them, whether they say so or not.
            if step.type == "condition":
                then, otherwise = view.target(step, "then"), view.target(step, "otherwise")
                if then is not None and then < self.size:
                    self.edges[step.position][then] = THEN if then != otherwise else DONE
                if otherwise is not None and otherwise < self.size and then != otherwise:
                    self.edges[step.position][otherwise] = OTHERWISE
            else:
                handler = view.target(step, "on_failure")
                if handler is not None and handler < self.size:
                    self.edges[step.position][handler] = FAILURE

    def _sort(self) -> tuple[list[int], list[int]]:
        waiting = [len(sources) for sources in self.sources]
        ready = [position for position in range(self.size) if not waiting[position]]
        heapq.heapify(ready)
        ranks = [-1] * self.size
        placed = 0
        while ready:
            position = heapq.heappop(ready)
            ranks[position] = placed
            placed += 1
            for target in self.edges[position]:
                waiting[target] -= 1
                if not waiting[target]:
                    heapq.heappush(ready, target)
        return ranks, self._find_cycle(ranks) if placed < self.size else []

    def _find_cycle(self, ranks: list[int]) -> list[int]:
        # Every step left over waits for another one left over: going back from any of them ends in the cycle.
        position = next(index for index, rank in enumerate(ranks) if rank < 0)
        path: list[int] = []
        seen: dict[int, int] = {}
        while position not in seen:
            seen[position] = len(path)
            path.append(position)
            position = next(source for source in self.sources[position] if ranks[source] < 0)
        return path[seen[position] :][::-1]

    # --- verdicts -----------------------------------------------------------------------------------------

    def _verdicts(self) -> list[int]:
        diagrams, runs = self._diagrams, [NEVER] * self.size
        for position in sorted(range(self.size), key=self.ranks.__getitem__):
            sources = self.sources[position]
            if not sources:
                runs[position] = ALWAYS
                continue
            for source in sources:
                taken = diagrams.both(runs[source], self._taken(source, position))
                runs[position] = diagrams.either(runs[position], taken)
        return runs

    def _taken(self, source: int, target: int) -> int:
        """Returns when the edge is taken, given that its source runs."""
        when = self.edges[source][target]
        variable = self._diagrams.variable
        if when == DONE:
            return self._succeeds(source)
        if when == FAILURE:
            return variable(2 * self.ranks[source] + 1)
        data = self._view.top[source].data
        if "then" not in data or "otherwise" not in data:
            return ALWAYS  # the missing branch ends the run, so whatever comes later has taken this one
        verdict = variable(2 * self.ranks[source])
        return verdict if when == THEN else self._diagrams.negation(verdict)

    def _succeeds(self, position: int) -> int:
        if FAILURE not in self.edges[position].values():
            return ALWAYS
        return self._diagrams.negation(self._diagrams.variable(2 * self.ranks[position] + 1))

    def reachable(self) -> set[int]:
        """Returns the positions of steps that can run."""
        if self._reached is None:
            self._reached = {
                position for position in range(self.size) if not self._runs or self._runs[position] != NEVER
            }
        return self._reached

    def exclusive(self, first: int, second: int) -> bool:
        """Whether two steps never both run."""
        if first == second or not self._runs:
            return False
        try:
            return self._diagrams.both(self._runs[first], self._runs[second]) == NEVER
        except TooIntricate:
            self.too_intricate = True
            return True

    def missing_path(
        self, definitions: Iterable[Definition], position: int, *, done: bool
    ) -> list[str] | None:
        """Returns the verdicts under which a step runs and none of the definitions has happened, in words;
        None if there are none."""
        if not self._runs or self._runs[position] == NEVER:
            return None
        diagrams = self._diagrams
        present = NEVER
        unordered: list[str] = []
        try:
            for definition in definitions:
                own = done and definition.position == position
                if not own and not self._precedes(definition.position, position):
                    unordered.append(f"`{self._view.top[position].id}` does not wait for it")
                    continue
                happened = self._runs[definition.position]
                if definition.what == OUTPUT:
                    happened = diagrams.both(happened, self._succeeds(definition.position))
                else:
                    happened = diagrams.both(happened, diagrams.negation(self._succeeds(definition.position)))
                present = diagrams.either(present, happened)
            absent = diagrams.both(self._runs[position], diagrams.negation(present))
        except TooIntricate:
            self.too_intricate = True
            return None
        if absent == NEVER:
            return None
        if unordered and present == NEVER:
            return unordered[:1]
        return self._words(diagrams.example(absent))

    def _words(self, values: dict[int, bool]) -> list[str]:
        by_rank = {rank: index for index, rank in enumerate(self.ranks)}
        words = []
        for variable, value in sorted(values.items()):
            name = self._view.top[by_rank[variable // 2]].id
            if variable % 2:
                words.append(f"`{name}` {'fails' if value else 'succeeds'}")
            else:
                words.append(f"`{name}` goes to {'then' if value else 'otherwise'}")
        return words

    def _precedes(self, above: int, below: int) -> bool:
        """Whether `below` always waits for `above`, directly or not."""
        if below in self.edges[above]:
            return True
        floor = self.ranks[above]
        seen = {below}
        stack = [below]
        while stack:
            for source in self.sources[stack.pop()]:
                if source == above:
                    return True
                if source not in seen and self.ranks[source] > floor:
                    seen.add(source)
                    stack.append(source)
        return False
