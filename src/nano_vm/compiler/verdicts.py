"""Under which verdicts of its conditions does a step of a DAG run? Reduced ordered binary decision diagrams.

A diagram is a number: 0 is never, 1 is always, others name nodes (variable, low, high). Variables are ordered
as the steps that decide them. Diagrams of real programs are tiny; `NODES_MAX` keeps hostile ones from
growing.
"""

from __future__ import annotations

NODES_MAX = 200_000

NEVER, ALWAYS = 0, 1


class TooIntricate(Exception):
    """The diagrams have outgrown `NODES_MAX`."""


class Diagrams:
    """A table of shared diagrams."""

    def __init__(self) -> None:
        self._nodes: list[tuple[int, int, int]] = [(1 << 60, 0, 0), (1 << 60, 1, 1)]
        self._index: dict[tuple[int, int, int], int] = {}
        self._memo: dict[tuple[int, int, int], int] = {}

    def variable(self, number: int) -> int:
        """Returns the diagram that holds when variable `number` is true."""
        return self._node(number, NEVER, ALWAYS)

    def both(self, first: int, second: int) -> int:
        return self._choose(first, second, NEVER)

    def either(self, first: int, second: int) -> int:
        return self._choose(first, ALWAYS, second)

    def negation(self, diagram: int) -> int:
        return self._choose(diagram, NEVER, ALWAYS)

    def example(self, diagram: int) -> dict[int, bool]:
        """Returns values of variables under which a diagram that is not NEVER holds."""
        values: dict[int, bool] = {}
        while diagram > ALWAYS:
            variable, low, high = self._nodes[diagram]
            values[variable] = high != NEVER
            diagram = high if high != NEVER else low
        return values

    def _node(self, variable: int, low: int, high: int) -> int:
        if low == high:
            return low
        key = (variable, low, high)
        found = self._index.get(key)
        if found is None:
            if len(self._nodes) >= NODES_MAX:
                raise TooIntricate
            found = self._index[key] = len(self._nodes)
            self._nodes.append(key)
        return found

    def _choose(self, test: int, yes: int, no: int) -> int:
        """Returns "if test then yes else no"."""
        nodes = self._nodes
        stack = [(test, yes, no, False)]
        while stack:
            first, second, third, expanded = stack.pop()
            if self._known(first, second, third) is not None:
                continue
            variable = min(nodes[first][0], nodes[second][0], nodes[third][0])
            lows = tuple(nodes[d][1] if nodes[d][0] == variable else d for d in (first, second, third))
            highs = tuple(nodes[d][2] if nodes[d][0] == variable else d for d in (first, second, third))
            if not expanded:
                stack.append((first, second, third, True))
                stack.append((lows[0], lows[1], lows[2], False))
                stack.append((highs[0], highs[1], highs[2], False))
                continue
            low, high = self._known(*lows), self._known(*highs)
            assert low is not None
            assert high is not None
            if len(self._memo) > 4 * NODES_MAX:
                raise TooIntricate
            self._memo[first, second, third] = self._node(variable, low, high)
        result = self._known(test, yes, no)
        assert result is not None
        return result

    def _known(self, test: int, yes: int, no: int) -> int | None:
        if test == ALWAYS or yes == no:
            return yes
        if test == NEVER:
            return no
        if yes == ALWAYS and no == NEVER:
            return test
        return self._memo.get((test, yes, no))
