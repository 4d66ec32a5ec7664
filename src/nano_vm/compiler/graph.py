"""Control flow of a program in list order: who follows whom, what dominates what, where the loops are.

Each step has up to three nodes: where it begins, where it has succeeded and, with `on_failure`, where it has
failed for good. A step's output exists from its success on, its error from its failure on; so "is it assigned
here on every path?" is "does that node dominate this one?". Everything is iterative: programs have any number
of steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from nano_vm.compiler.view import View

OUTPUT = "output"
ERROR_VALUE = "error"


class Definition(NamedTuple):
    """A place where a value comes into being: the output or the error of the step at `position`."""

    position: int
    what: str = OUTPUT


class ListFlow:
    """The control-flow graph of a program in list order."""

    def __init__(self, view: View) -> None:
        self.size = len(view.top)
        self.end = 3 * self.size
        self._view = view
        self.successors: list[tuple[int, ...]] = [()] * (self.end + 1)
        self.falls: list[bool] = [False] * self.size  # goes on to the next step of the list by itself
        for step in view.top:
            self._wire(view, step.position)
        self._order: list[int] | None = None
        self._reached: set[int] | None = None
        self._dominators: list[int] | None = None
        self._intervals: tuple[list[int], list[int]] | None = None
        self._before: list[list[int]] | None = None
        self._numbers: list[int] | None = None

    def _wire(self, view: View, position: int) -> None:
        step = view.top[position]
        if step.type == "condition":
            targets = (view.target(step, "then"), view.target(step, "otherwise"))
            self.successors[position] = tuple(
                dict.fromkeys(self._node(target) for target in targets if target is not None)
            )
            return
        following = view.target(step, "next_step")
        if following is None and not step.data.get("is_terminal", False):
            following = position + 1
            self.falls[position] = position + 1 < self.size
        succeeded, failed = self.size + position, 2 * self.size + position
        self.successors[succeeded] = (self._node(following if following is not None else self.size),)
        handler = view.target(step, "on_failure")
        if handler is None:
            self.successors[position] = (succeeded,)
        else:
            self.successors[position] = (succeeded, failed)
            self.successors[failed] = (self._node(handler),)

    def _node(self, position: int) -> int:
        return position if position < self.size else self.end

    def _position(self, node: int) -> int:
        return node % self.size if node != self.end else self.size

    # --- reachability and dominance -----------------------------------------------------------------------

    def order(self) -> list[int]:
        """Returns the nodes that can be reached, in reverse post-order."""
        if self._order is None:
            self._order = _reverse_post_order(0, self.successors) if self.size else []
        return self._order

    def reachable(self) -> set[int]:
        """Returns the positions that can be reached."""
        if self._reached is None:
            self._reached = {node for node in self.order() if node < self.size}
        return self._reached

    def dominates(self, above: int, below: int) -> bool:
        """Whether every path from the start to node `below` passes node `above`. Both must be reachable."""
        enter, leave = self._dominator_intervals()
        return enter[above] <= enter[below] and leave[below] <= leave[above]

    def _dominator_intervals(self) -> tuple[list[int], list[int]]:
        if self._intervals is None:
            self._intervals = _intervals(self.immediate_dominators(), len(self.successors))
        return self._intervals

    def immediate_dominators(self) -> list[int]:
        if self._dominators is None:
            self._dominators = _immediate_dominators(self.order(), self.successors)
        return self._dominators

    # --- data ---------------------------------------------------------------------------------------------

    def _definition_node(self, definition: Definition) -> int:
        factor = 1 if definition.what == OUTPUT else 2
        return factor * self.size + definition.position

    def missing_path(
        self, definitions: Iterable[Definition], position: int, *, done: bool
    ) -> list[str] | None:
        """Returns a path to a step on which none of the definitions happens, as step ids; None if there is
        none.

        Args:
            position: the step that uses the value.
            done: it is used after the step's success rather than at its beginning.
        """
        use = self.size + position if done else position
        reached = self._dominator_intervals()[0]
        if reached[use] < 0:
            return None  # never executed; that is reported as such
        nodes = [self._definition_node(definition) for definition in definitions]
        nodes = [node for node in nodes if reached[node] >= 0]
        if any(self.dominates(node, use) for node in nodes):
            return None
        parents = self._search_back(use, frozenset(nodes))
        if parents is None:
            return None
        path: list[str] = []
        node = 0
        while node >= 0:
            if node < self.size:
                path.append(self._view.top[node].id)
            node = parents[node]
        return path

    def _search_back(self, use: int, avoid: frozenset[int]) -> dict[int, int] | None:
        """Returns, for nodes on the ways from the start to `use` around `avoid`, the next node on a shortest
        way; None if there is no way. Going backwards ends soon where the value is assigned, which is the
        rule."""
        predecessors = self._predecessors()
        parents = {use: -1}
        queue = deque([use])
        while queue:
            node = queue.popleft()
            if node == 0:
                return parents
            for before in predecessors[node]:
                if before not in parents and before not in avoid:
                    parents[before] = node
                    queue.append(before)
        return None

    def _predecessors(self) -> list[list[int]]:
        if self._before is None:
            self._before = [[] for _ in self.successors]
            for node in self.order():
                for following in self.successors[node]:
                    self._before[following].append(node)
        return self._before

    def exclusive(self, first: int, second: int) -> bool:
        """Whether two steps never both run in one pass through the program (loops begin a new pass)."""
        return first != second and not self._leads(first, second) and not self._leads(second, first)

    def _leads(self, source: int, target: int, stop: int = -1) -> bool:
        """Whether a way leads from one node to another without a loop's way back and without passing
        `stop`."""
        numbers = self._order_numbers()
        bound = numbers[target]
        if numbers[source] < 0 or bound < 0:
            return False
        # Ways without loops follow the order, so nothing behind the target leads to it.
        seen = {source}
        stack = [source]
        while stack:
            node = stack.pop()
            for following in self.successors[node]:
                if following == target:
                    return not self.dominates(target, node)
                if following in seen or following == stop or numbers[following] > bound:
                    continue
                if not self.dominates(following, node):
                    seen.add(following)
                    stack.append(following)
        return False

    def _order_numbers(self) -> list[int]:
        if self._numbers is None:
            self._numbers = [-1] * len(self.successors)
            for number, node in enumerate(self.order()):
                self._numbers[node] = number
        return self._numbers

    # --- findings of control flow -------------------------------------------------------------------------

    def ambiguous(self) -> list[tuple[int, int, int]]:
        """Returns (condition, step, branch): the step, in one branch of the condition, falls into the other
        branch by list order."""
        found = []
        reached = self.reachable()
        for step in self._view.top:
            if step.type != "condition" or step.position not in reached:
                continue
            then, otherwise = self._view.target(step, "then"), self._view.target(step, "otherwise")
            if then is None or otherwise is None or then == otherwise:
                continue
            for branch, other in ((then, otherwise), (otherwise, then)):
                if self._falls_into(step.position, branch, other):
                    found.append((step.position, other - 1, other))
        return found

    def _falls_into(self, condition: int, branch: int, other: int) -> bool:
        faller = other - 1
        if not 0 < other < self.size or branch >= self.size or not self.falls[faller] or faller == condition:
            return False
        if faller == branch:
            return True
        return branch != other and self._leads(branch, faller, condition)

    def loops(self) -> list[tuple[list[int], bool]]:
        """Returns the loops that can be reached: the positions in each, in order, and whether it can be
        left."""
        found = []
        for component in _components(self.order(), self.successors):
            inside = set(component)
            if len(component) == 1 and component[0] not in self.successors[component[0]]:
                continue
            leaves = any(following not in inside for node in component for following in self.successors[node])
            found.append((sorted({node % self.size for node in component if node < self.size}), leaves))
        return sorted(found)


def _reverse_post_order(start: int, successors: list[tuple[int, ...]]) -> list[int]:
    seen = [False] * len(successors)
    seen[start] = True
    stack = [(start, iter(successors[start]))]
    order: list[int] = []
    while stack:
        node, following = stack[-1]
        for target in following:
            if not seen[target]:
                seen[target] = True
                stack.append((target, iter(successors[target])))
                break
        else:
            stack.pop()
            order.append(node)
    order.reverse()
    return order


def _immediate_dominators(order: list[int], successors: list[tuple[int, ...]]) -> list[int]:
    """Cooper, Harvey, Kennedy: "A Simple, Fast Dominance Algorithm". -1 for nodes out of reach."""
    number = [-1] * len(successors)
    for index, node in enumerate(order):
        number[node] = index
    predecessors: list[list[int]] = [[] for _ in order]
    for index, node in enumerate(order):
        for following in successors[node]:
            predecessors[number[following]].append(index)
    above = [-1] * len(order)
    if order:
        above[0] = 0
    changed = True
    while changed:
        changed = False
        for index in range(1, len(order)):
            best = -1
            for candidate in predecessors[index]:
                if above[candidate] < 0:
                    continue
                other = best
                best = candidate
                while other >= 0 and best != other:
                    if best > other:
                        best = above[best]
                    else:
                        other = above[other]
            if above[index] != best:
                above[index] = best
                changed = True
    result = [-1] * len(successors)
    for index, node in enumerate(order):
        result[node] = order[above[index]]
    return result


def _intervals(dominators: list[int], size: int) -> tuple[list[int], list[int]]:
    """Returns when a walk of the dominator tree enters and leaves each node; -1 for nodes out of reach."""
    children: dict[int, list[int]] = {}
    root = -1
    for node, above in enumerate(dominators):
        if above == node:
            root = node
        elif above >= 0:
            children.setdefault(above, []).append(node)
    enter, leave = [-1] * size, [-1] * size
    clock = 0
    stack = [(root, False)] if root >= 0 else []
    while stack:
        node, leaving = stack.pop()
        if leaving:
            leave[node] = clock
            continue
        enter[node] = clock
        clock += 1
        stack.append((node, True))
        stack.extend((child, False) for child in children.get(node, ()))
    return enter, leave


def _components(nodes: list[int], successors: list[tuple[int, ...]]) -> list[list[int]]:
    """Tarjan's strongly connected components, without recursion."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    on_stack: set[int] = set()
    stack: list[int] = []
    found: list[list[int]] = []
    for start in nodes:
        if start in index:
            continue
        work = [(start, 0)]
        while work:
            node, position = work.pop()
            if position == 0:
                index[node] = low[node] = len(index)
                stack.append(node)
                on_stack.add(node)
            descended = False
            for offset in range(position, len(successors[node])):
                target = successors[node][offset]
                if target not in index:
                    work.append((node, offset + 1))
                    work.append((target, 0))
                    descended = True
                    break
                if target in on_stack:
                    low[node] = min(low[node], index[target])
            if descended:
                continue
            if low[node] == index[node]:
                component = []
                while True:
                    member = stack.pop()
                    on_stack.discard(member)
                    component.append(member)
                    if member == node:
                        break
                found.append(component)
            if work:
                parent = work[-1][0]
                low[parent] = min(low[parent], low[node])
    return found
