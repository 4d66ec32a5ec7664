"""Laying out a graph in layers, top to bottom: where the boxes stand, and how the links run. Geometry alone.

The usual steps: links that lead back are turned round, boxes are put on layers (the longest way from the start), a link
that passes a layer gets a place in it, the order within layers is improved by barycentres, and x is found layer by
layer as the least-squares solution that keeps the order and the gaps. Links that lead to the same box share their
places on the way, so that a handler of many failures is reached by one trunk. Every choice is by declared order: the
same graph is always laid out alike. Work is bounded: beyond `PLACES_MAX` long links run straight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeAlias

Point: TypeAlias = tuple[float, float]

GAP_X = 28.0
GAP_Y = 46.0
THIN = 10.0  # the width of a place that a link passes through
SWEEPS = 6
RELAXATIONS = 8
PLACES_MAX = 20_000


class Box(NamedTuple):
    """A box to place, in pixels."""

    key: str
    width: float
    height: float


class Link(NamedTuple):
    """A link between two boxes, by their keys."""

    source: str
    target: str
    text: str = ""


class Route(NamedTuple):
    """How a link runs: from the first to the last of `points`. `back` leads upwards, from side to side."""

    link: Link
    points: tuple[Point, ...]
    back: bool


class Layout(NamedTuple):
    """`places` has the top left corner of each box."""

    width: float
    height: float
    places: dict[str, Point]
    routes: tuple[Route, ...]


_Node: TypeAlias = str | tuple[str, str, int]  # a box, or the place of links to a target in a layer


def layered(boxes: Sequence[Box], links: Sequence[Link]) -> Layout:
    """Lay out a graph. The first box is where it starts; boxes that nothing leads to stand on top, too.

    Args:
        links: between boxes that are there; those from a box to itself are drawn at its side.
    """
    if not boxes:
        return Layout(0.0, 0.0, {}, ())
    return _Layering(boxes, links).layout()


class _Layering:
    def __init__(self, boxes: Sequence[Box], links: Sequence[Link]) -> None:
        self.boxes: Mapping[str, Box] = {box.key: box for box in boxes}
        self.links = [link for link in links if link.source in self.boxes and link.target in self.boxes]
        self.back = _leading_back([box.key for box in boxes], self.links)
        self.rank = self._ranks()
        self.layers: list[list[_Node]] = [[] for _ in range(max(self.rank.values()) + 1)]
        self.above: dict[_Node, list[_Node]] = {}
        self.below: dict[_Node, list[_Node]] = {}
        self.chains: dict[int, list[_Node]] = {}  # number of a link -> the places it passes
        self.x: dict[_Node, float] = {}

    def layout(self) -> Layout:
        for key in self.boxes:
            self.layers[self.rank[key]].append(key)
        self._place_links()
        self._order()
        self._set_aside()
        self._centre()
        return self._result()

    # --- layers -----------------------------------------------------------------------------------------------

    def _ranks(self) -> dict[str, int]:
        """Longest way from the top, without the links that lead back."""
        onwards: dict[str, list[str]] = {key: [] for key in self.boxes}
        waiting = dict.fromkeys(self.boxes, 0)
        for number, link in enumerate(self.links):
            if number not in self.back:
                onwards[link.source].append(link.target)
                waiting[link.target] += 1
        rank = dict.fromkeys(self.boxes, 0)
        todo = [key for key, count in waiting.items() if not count]
        for key in todo:  # grows while it is read
            for target in onwards[key]:
                rank[target] = max(rank[target], rank[key] + 1)
                waiting[target] -= 1
                if not waiting[target]:
                    todo.append(target)
        return rank

    def _place_links(self) -> None:
        spans = sum(abs(self.rank[link.source] - self.rank[link.target]) for link in self.links)
        made: set[_Node] = set()
        for number, link in enumerate(self.links):
            if link.source == link.target:
                continue
            if number in self.back:
                top, bottom = self.rank[link.target], self.rank[link.source]
                layers, kind = range(top, bottom + 1), "back"
            else:
                layers, kind = range(self.rank[link.source] + 1, self.rank[link.target]), "on"
            chain: list[_Node] = []
            if spans <= PLACES_MAX:
                chain = [(kind, link.target, layer) for layer in layers]
            self.chains[number] = chain
            for node, layer in zip(chain, layers, strict=True) if chain else ():
                if node not in made:
                    made.add(node)
                    self.layers[layer].append(node)
            if number in self.back:
                # Beside its ends, not below them: bound to its own places alone.
                self._bind(chain)
            else:
                self._bind([link.source, *chain, link.target])

    def _bind(self, way: Sequence[_Node]) -> None:
        for upper, lower in pairwise(way):
            if lower not in self.below.setdefault(upper, []):
                self.below[upper].append(lower)
                self.above.setdefault(lower, []).append(upper)

    # --- order within layers ----------------------------------------------------------------------------------

    def _order(self) -> None:
        best, fewest = [list(layer) for layer in self.layers], self._crossings()
        for sweep in range(SWEEPS):
            down = sweep % 2 == 0
            neighbours = self.above if down else self.below
            layers = self.layers if down else self.layers[::-1]
            for before, layer in pairwise(layers):
                place = {node: float(number) for number, node in enumerate(before)}
                keys = {}
                for number, node in enumerate(layer):
                    near = [place[other] for other in neighbours.get(node, ()) if other in place]
                    keys[node] = sum(near) / len(near) if near else float(number)
                layer.sort(key=keys.__getitem__)
            crossings = self._crossings()
            if crossings < fewest:
                best, fewest = [list(layer) for layer in self.layers], crossings
            if not crossings:
                break
        self.layers = best

    def _set_aside(self) -> None:
        """Links that lead back run at that side of the drawing which is nearer to their ends."""
        aside: dict[_Node, bool] = {}  # whether to the left
        for number in sorted(self.back):
            chain = self.chains.get(number)
            if not chain:
                continue
            link, left, right = self.links[number], 0, 0
            for key in (link.source, link.target):
                row = [node for node in self.layers[self.rank[key]] if isinstance(node, str)]
                left += row.index(key)
                right += len(row) - 1 - row.index(key)
            for node in chain:
                aside.setdefault(node, left <= right)
        for place, layer in enumerate(self.layers):
            lefts = [node for node in layer if aside.get(node) is True]
            rights = [node for node in layer if aside.get(node) is False]
            if lefts or rights:
                self.layers[place] = [*lefts, *(node for node in layer if node not in aside), *rights]

    def _crossings(self) -> int:
        found = 0
        for upper, lower in pairwise(self.layers):
            place = {node: number for number, node in enumerate(lower)}
            ends = [
                target
                for node in upper
                for target in sorted(place[other] for other in self.below.get(node, ()) if other in place)
            ]
            if len(ends) < 2_000:
                found += _inversions(ends)
        return found

    # --- x ----------------------------------------------------------------------------------------------------

    def _width(self, node: _Node) -> float:
        return self.boxes[node].width if isinstance(node, str) else THIN

    def _centre(self) -> None:
        for layer in self.layers:
            at = 0.0
            for node in layer:
                self.x[node] = at + self._width(node) / 2
                at += self._width(node) + GAP_X
            middle = (at - GAP_X) / 2
            for node in layer:
                self.x[node] -= middle
        for turn in range(RELAXATIONS):
            down = turn % 2 == 0
            for layer in self.layers if down else self.layers[::-1]:
                self._settle(layer, self.above if down else self.below)
        for layer in self.layers:
            self._settle(layer, self.above, self.below)

    def _settle(self, layer: list[_Node], *sides: Mapping[_Node, list[_Node]]) -> None:
        """Move a layer as near as possible to where its neighbours are, in order and with gaps: isotonic regression."""
        wanted, weights, offset = [], [], 0.0
        offsets = []
        before: float | None = None
        for node in layer:
            half = self._width(node) / 2
            offset += 0.0 if before is None else before + half + GAP_X
            before = half
            offsets.append(offset)
            near = [self.x[other] for side in sides for other in side.get(node, ())]
            wanted.append((sum(near) / len(near) if near else self.x[node]) - offset)
            # A long link bends last, a box that nothing is bound to goes where there is room.
            weights.append(0.1 if not near else 4.0 if not isinstance(node, str) else 1.0)
        for node, place, offset in zip(layer, _isotonic(wanted, weights), offsets, strict=True):
            self.x[node] = place + offset

    # --- the result -------------------------------------------------------------------------------------------

    def _result(self) -> Layout:
        tops, heights, top = [], [], 0.0
        for layer in self.layers:
            height = max((self.boxes[node].height for node in layer if isinstance(node, str)), default=0.0)
            tops.append(top)
            heights.append(height)
            top += height + GAP_Y
        left = min(self.x[node] - self._width(node) / 2 for node in self.x)
        right = max(self.x[node] + self._width(node) / 2 for node in self.x)
        if any(link.source == link.target for link in self.links):
            right += GAP_X
        places = {}
        for key, box in self.boxes.items():
            rank = self.rank[key]
            x, y = self.x[key] - box.width / 2 - left, tops[rank] + (heights[rank] - box.height) / 2
            places[key] = (x, y)
        starts = self._starts()
        routes = [
            self._route(number, link, places, tops, heights, left, starts.get(number, 0.0))
            for number, link in enumerate(self.links)
        ]
        return Layout(right - left, max(top - GAP_Y, 0.0), places, tuple(routes))

    def _beside(self, key: str, x: float, place: Point, left: float, detour: float) -> list[Point]:
        """From a box to the height at which its link back runs: from its side where nothing stands between, else from
        its bottom (a positive detour) or top."""
        box, (at, top) = self.boxes[key], place
        near, far = sorted((x, at + box.width / 2))
        between = any(
            near < self.x[node] - left < far
            for node in self.layers[self.rank[key]]
            if isinstance(node, str) and node != key
        )
        if not between:
            middle = top + box.height / 2
            return [(at + box.width if x > at else at, middle), (x, middle)]
        edge = top + box.height if detour > 0 else top
        third = at + box.width * (0.75 if x > at else 0.25)
        return [(third, edge), (third, edge + detour), (x, edge + detour)]

    def _starts(self) -> dict[int, float]:
        """How far from the middle of its box each link begins, so that they leave side by side."""
        leaving: dict[str, list[tuple[float, int]]] = {}
        for number, link in enumerate(self.links):
            if number not in self.back and link.source != link.target:
                chain = self.chains[number]
                leaving.setdefault(link.source, []).append(
                    (self.x[chain[0] if chain else link.target], number)
                )
        found = {}
        for source, links in leaving.items():
            step = min(26.0, self.boxes[source].width / (len(links) + 1))
            for place, (_, number) in enumerate(sorted(links)):
                found[number] = (place - (len(links) - 1) / 2) * step
        return found

    def _route(
        self,
        number: int,
        link: Link,
        places: Mapping[str, Point],
        tops: Sequence[float],
        heights: Sequence[float],
        left: float,
        start_at: float,
    ) -> Route:
        source, target = self.boxes[link.source], self.boxes[link.target]
        (sx, sy), (tx, ty) = places[link.source], places[link.target]
        if link.source == link.target:
            side, middle = sx + source.width, sy + source.height / 2
            out = side + GAP_X * 0.7
            return Route(
                link, ((side, middle - 8), (out, middle - 8), (out, middle + 8), (side, middle + 8)), True
            )
        if number in self.back:
            way: list[Point] = []
            for node in reversed(self.chains[number]):
                layer = _layer(node)
                way.append((self.x[node] - left, tops[layer] + heights[layer] / 2))
            if way:  # straight, at its outermost place
                outside = min if way[0][0] <= sx else max
                x = outside(x for x, _ in way)
                way = [(x, way[0][1]), (x, way[-1][1])]
            if not way:
                way = [
                    (min(sx, tx) - GAP_X, sy + source.height / 2),
                    (min(sx, tx) - GAP_X, ty + target.height / 2),
                ]
            start = self._beside(link.source, way[0][0], (sx, sy), left, GAP_Y * 0.3)
            end = self._beside(link.target, way[-1][0], (tx, ty), left, -GAP_Y * 0.3)
            way[0], way[-1] = (way[0][0], start[-1][1]), (way[-1][0], end[-1][1])
            points = [*start[:-1], *way, *end[-2::-1]]
            return Route(link, tuple(points), True)
        points = [(sx + source.width / 2 + start_at, sy + source.height)]
        for node in self.chains[number]:
            layer, x = _layer(node), self.x[node] - left
            points += [(x, tops[layer]), (x, tops[layer] + heights[layer])]
        points.append((tx + target.width / 2, ty))
        return Route(link, tuple(points), False)


def _layer(node: _Node) -> int:
    """The layer of a place that links pass."""
    return 0 if isinstance(node, str) else node[2]


def _leading_back(keys: Sequence[str], links: Sequence[Link]) -> set[int]:
    """Numbers of the links that close a cycle, as a walk from the first box on finds them."""
    leaving: dict[str, list[tuple[int, str]]] = {key: [] for key in keys}
    for number, link in enumerate(links):
        leaving[link.source].append((number, link.target))
    back: set[int] = set()
    done: set[str] = set()
    for first in keys:
        if first in done:
            continue
        under_way = {first}
        stack = [(first, iter(leaving[first]))]
        while stack:
            key, rest = stack[-1]
            for number, target in rest:
                if target in under_way:
                    back.add(number)
                elif target not in done:
                    under_way.add(target)
                    stack.append((target, iter(leaving[target])))
                    break
            else:
                stack.pop()
                under_way.discard(key)
                done.add(key)
    return back


def _inversions(values: Sequence[int]) -> int:
    """How many pairs stand in the wrong order: merge sort."""
    if len(values) < 2:
        return 0
    middle = len(values) // 2
    found = _inversions(values[:middle]) + _inversions(values[middle:])
    left, right = sorted(values[:middle]), sorted(values[middle:])
    place = 0
    for value in right:
        while place < len(left) and left[place] <= value:
            place += 1
        found += len(left) - place
    return found


def _isotonic(wanted: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The non-decreasing sequence nearest to `wanted` in weighted least squares (pool adjacent violators)."""
    pools: list[tuple[float, float, int]] = []  # mean, weight, how many
    for value, weight in zip(wanted, weights, strict=True):
        count = 1
        while pools and pools[-1][0] > value:
            mean, mass, many = pools.pop()
            value = (value * weight + mean * mass) / (weight + mass)
            weight += mass
            count += many
        pools.append((value, weight, count))
    return [mean for mean, _, count in pools for _ in range(count)]
