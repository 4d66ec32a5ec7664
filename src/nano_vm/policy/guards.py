"""Guard dominance: does what a policy requires before a tool come before it on every way? (SPEC §11)

The question is answered for the graph, whatever the values are: a way to the tool on which the requirement is not met
is a finding, and is printed step by step. Only what a run would count is counted: a step that has really succeeded -
not one that was passed over, or whose answer was made up after a time-out - and an approval that was given, which
shows only where a condition, or the wait's own `accept`, asks for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from nano_vm.compiler.dag import DagFlow
from nano_vm.compiler.graph import Definition
from nano_vm.compiler.view import Step, View
from nano_vm.expr.guards import proven_true
from nano_vm.expr.parser import parse
from nano_vm.policy.model import Policy, Requirement
from nano_vm.program.document import Document
from nano_vm.program.tool_schema import ToolSchema

SHOWN_MAX = 12


class Missed(NamedTuple):
    """A tool that can be called before what it requires: in which step, under which field, and on which way."""

    step: str
    field: str
    tool: str
    requirement: Requirement
    path: tuple[str, ...]
    may_be_met: bool = (
        False  # by the agent itself, which may call what is required before: that shows when it runs
    )

    @property
    def way(self) -> str:
        shown = self.path if len(self.path) <= SHOWN_MAX else (*self.path[:5], "…", *self.path[-6:])
        return " -> ".join(shown)


class Guarded(NamedTuple):
    """A call of a tool, and something that the policy requires before it. `missed` is a way that misses it; None: there
    is no such way, which is the proof."""

    step: str
    field: str
    tool: str
    requirement: Requirement
    missed: Missed | None


def missed_guards(
    document: Document, policy: Policy, tools: Mapping[str, ToolSchema] | None = None
) -> Iterator[Missed]:
    """Every call of a tool that some way comes to without what the policy requires before it.

    Args:
        document: of a program without errors.
    """
    for guarded in guarded_calls(document, policy, tools):
        if guarded.missed is not None:
            yield guarded.missed


def guarded_calls(
    document: Document, policy: Policy, tools: Mapping[str, ToolSchema] | None = None
) -> Iterator[Guarded]:
    """Every call of a tool before which the policy requires something, and whether every way meets it.

    Args:
        document: of a program without errors.
    """
    if not policy.has_requirements:
        return
    view = View(document, set(), tools, None)
    ways: dict[str, _Ways] = {}
    for step in view.steps:
        for tool, field in _calls(step):
            for requirement in policy.required_before(tool):
                known = ways.get(requirement.key)
                if known is None:
                    known = ways[requirement.key] = (_Dag if view.is_dag else _List)(view, requirement)
                path = known.path_to(step.position)
                if field == "compensate" and known.meets(step):
                    continue  # it is what is undone
                missed = None
                if path is not None:
                    itself = requirement.kind == "tool" and requirement.name in step.data.get("tools", ())
                    missed = Missed(step.id, field, tool, requirement, (*path, f"`{tool}`"), itself)
                yield Guarded(step.id, field, tool, requirement, missed)


def denied_tools(document: Document, policy: Policy) -> Iterator[tuple[str, str, str, str]]:
    """Calls that the policy never allows, whatever the arguments: step, field, tool, and the rule (`default` where none
    applies)."""
    for step in View(document, set(), None, None).steps:
        for tool, field in _calls(step):
            rules = policy.rules_for("tool", tool)
            denying = next((rule.id for rule in rules if rule.decision == "deny" and rule.when is None), None)
            if (
                denying is None
                and not policy.allows_by_default
                and all(rule.decision == "deny" for rule in rules)
            ):
                denying = "default"
            if denying is not None:
                yield step.id, field, tool, denying


def _calls(step: Step) -> Iterator[tuple[str, str]]:
    """The tools that a step may call, and where it says so."""
    if step.type == "tool":
        yield step.data["tool"], "tool"
    for tool in step.data.get("tools", ()):
        yield tool, "tools"
    if "compensate" in step.data:
        yield step.data["compensate"]["tool"], "compensate"


class _Ways:
    """How steps can be come to without one requirement having been met."""

    def __init__(self, view: View, requirement: Requirement) -> None:
        self.view = view
        self.requirement = requirement

    def path_to(self, position: int) -> tuple[str, ...] | None:
        """The ids of the steps on a way to the step that misses it; None when every way meets it."""
        raise NotImplementedError

    def meets(self, step: Step) -> bool:
        """Whether the requirement is met once the step has its result."""
        if step.data.get("on_error") == "skip" or step.data.get("on_timeout") == "fallback":
            return False
        if step.type == "parallel" and any(self.meets(lane) for lane in step.lanes):
            return True
        return self._is_it(step) and (not step.data.get("approvers") or _accepts_only_approvals(step))

    def _is_it(self, step: Step) -> bool:
        if self.requirement.kind == "step":
            return step.id == self.requirement.name
        return step.type == "tool" and step.data["tool"] == self.requirement.name

    def shows(self, step: Step, verdict: bool) -> bool:
        """Whether a condition's verdict shows that an approval, which is what is required, was given."""
        if self.requirement.kind != "step":
            return False
        wait = self.view.by_id.get(self.requirement.name)
        if wait is None or not wait.data.get("approvers"):
            return False
        names: set[tuple[str, tuple[str, ...]]] = {(wait.id, ("output", "approved"))}
        if "output_key" in wait.data:
            names.add((wait.data["output_key"], ("approved",)))
        return bool(names & proven_true(parse(step.data["condition"]), verdict))


def _accepts_only_approvals(wait: Step) -> bool:
    accept = wait.data.get("accept")
    return accept is not None and ("event", ("approved",)) in proven_true(parse(accept), True)


class _List(_Ways):
    """In list order: a search over the edges on which the requirement is not met."""

    def __init__(self, view: View, requirement: Requirement) -> None:
        super().__init__(view, requirement)
        self.before: dict[int, int] = {0: -1}
        queue = deque([0])
        while queue:
            position = queue.popleft()
            for target in self._onwards(view.top[position]):
                if target < len(view.top) and target not in self.before:
                    self.before[target] = position
                    queue.append(target)

    def _onwards(self, step: Step) -> Iterator[int]:
        view = self.view
        if step.type == "condition":
            for field, verdict in (("then", True), ("otherwise", False)):
                target = view.target(step, field)
                if target is not None and not self.shows(step, verdict):
                    yield target
            return
        handler = view.target(step, "on_failure")
        if handler is not None:
            yield handler
        if self.meets(step):
            return
        following = view.target(step, "next_step")
        if following is not None:
            yield following
        elif not step.data.get("is_terminal", False):
            yield step.position + 1

    def path_to(self, position: int) -> tuple[str, ...] | None:
        if position not in self.before:
            return None
        path = []
        while position >= 0:
            path.append(self.view.top[position].id)
            position = self.before[position]
        return tuple(reversed(path))


class _Dag(_Ways):
    """With `depends_on`: a step runs when one of its dependencies was taken and all have settled."""

    def __init__(self, view: View, requirement: Requirement) -> None:
        super().__init__(view, requirement)
        self.flow = DagFlow(view)
        self.surely: dict[int, bool] = {}
        for position in sorted(range(len(view.top)), key=lambda place: self.flow.ranks[place]):
            sources = self.flow.sources[position]
            self.surely[position] = bool(sources) and all(
                self.surely.get(source, False) or self._edge_meets(source, position) for source in sources
            )

    def _edge_meets(self, source: int, target: int) -> bool:
        step, when = self.view.top[source], self.flow.edges[source][target]
        if step.type == "condition":
            return when in ("then", "otherwise") and self.shows(step, when == "then")
        return when == "done" and self.meets(step)

    def path_to(self, position: int) -> tuple[str, ...] | None:
        if self.surely[position]:
            return None
        definitions = [Definition(step.position) for step in self.view.top if self.meets(step)]
        found = self.flow.missing_path(definitions, position, done=False)
        own = self.view.top[position].id
        if found is not None:
            return (*found, own)
        # None also stands for "too intricate to tell": that is no proof.
        return (own,) if self.flow.too_intricate else None
