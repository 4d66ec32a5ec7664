"""Findings about control flow: what is never reached, where branches run into each other, which loops never
end."""

from __future__ import annotations

from nano_vm.compiler.dag import DagFlow
from nano_vm.compiler.graph import ListFlow
from nano_vm.compiler.view import View

_BUDGETS = ("max_steps", "max_duration_seconds", "max_tokens", "max_cost_usd", "max_stalled_steps")


def check_control(view: View, flow: ListFlow | DagFlow) -> None:
    """Notes findings about the graph of a program."""
    if isinstance(flow, DagFlow):
        _dag(view, flow)
    else:
        _ambiguous(view, flow)
        _loops(view, flow)
    if view.flow_sound and not (isinstance(flow, DagFlow) and flow.cycle):
        _unreachable(view, flow)
    _failure_terminal(view)


def _unreachable(view: View, flow: ListFlow | DagFlow) -> None:
    if any(finding.code in ("MISSING_TARGET", "DUPLICATE_ID") for finding in view.diagnostics):
        return  # the typo is the finding; what it cuts off is not another one
    reached = flow.reachable()
    for step in view.top:
        if step.position in reached:
            continue
        before = view.top[step.position - 1]
        help = "go there with `next_step`, `then`, `otherwise` or `on_failure`, or remove it"
        if isinstance(flow, DagFlow):
            help = "no verdict of the conditions it waits for lets it run; check `depends_on`"
        elif before.type == "condition":
            help = f"name it as a branch of `{before.id}`, or remove it"
        elif before.data.get("is_terminal") or "next_step" in before.data:
            field = "next_step" if "next_step" in before.data else "is_terminal"
            help = f"`{before.id}` before it has `{field}`; name this step somewhere, or remove it"
        view.add("UNREACHABLE_STEP", step, step.at("id"), f"no path comes to `{step.id}`", help, field="id")


def _ambiguous(view: View, flow: ListFlow) -> None:
    for condition, faller, other in flow.ambiguous():
        names = [view.top[position].id for position in (condition, faller, other)]
        message = f"`{names[1]}` falls into `{names[2]}`, the other branch of `{names[0]}`"
        help = f"add `is_terminal: true` to `{names[1]}`, or `next_step: {names[2]}` if that is meant"
        step = view.top[faller]
        view.add("AMBIGUOUS_BRANCH", step, step.at("id"), message, help, field="id")


def _loops(view: View, flow: ListFlow) -> None:
    budget = any(name in view.raw for name in _BUDGETS)
    for positions, leaves in flow.loops():
        if not positions:
            continue
        inside = set(positions)
        field, step = "id", view.top[positions[-1]]
        for position in reversed(positions):
            candidate = view.top[position]
            back = [
                name
                for name, _, target in view.targets(candidate)
                if target in view.by_id
                and view.by_id[target].position in inside
                and view.by_id[target].position <= position
            ]
            if back:
                field, step = back[0], candidate
                break
        shown = " → ".join(view.top[position].id for position in positions[:8])
        if not leaves:
            message = f"the loop {shown} has no way out"
            help = "add a condition with a branch that leaves it, or `is_terminal: true`"
            view.add("CYCLE_WITHOUT_EXIT", step, step.at(field), message, help, field=field)
        if not budget:
            message = f"the loop {shown} has no budget"
            help = "declare `max_steps:` (or `max_duration_seconds`, `max_tokens`, `max_cost_usd`) at the top"
            view.add("CYCLE_WITHOUT_BUDGET", step, step.at(field), message, help, field=field)


def _dag(view: View, flow: DagFlow) -> None:
    for step in view.top:
        if "next_step" in step.data:
            message = "`next_step` has no meaning in a program that uses `depends_on`"
            help = f"remove it, and add `depends_on: [{step.id}]` to `{step.data['next_step']}`"
            view.add(
                "DEPENDS_ON_MIXED", step, step.at("next_step"), message, help, key=True, field="next_step"
            )
    if flow.cycle:
        names = [view.top[position].id for position in flow.cycle]
        shown = " → ".join([*names[:8], names[0]])
        for position in sorted(flow.cycle):
            step = view.top[position]
            if "depends_on" in step.data:
                message = f"these steps wait for one another: {shown}"
                help = "remove one of the dependencies; loops need list order, without `depends_on`"
                view.add("DEPENDS_ON_CYCLE", step, step.at("depends_on"), message, help, field="depends_on")
                break
    if flow.too_intricate:
        message = "too many conditions meet: not every reference could be checked"
        view.warn(
            "ANALYSIS_LIMIT", None, "/steps", message, "move parts into programs of their own", key=True
        )


def _failure_terminal(view: View) -> None:
    decides = next((step for step in view.top if step.type == "condition" or "on_failure" in step.data), None)
    if decides is None or not view.flow_sound:
        return
    if any("outcome" in step.data or step.data.get("final_status") == "FAILED" for step in view.top):
        return
    message = "every way through the program ends in SUCCESS"
    help = "end the bad ways with `is_terminal: true` and `final_status: FAILED`, or name each `outcome`"
    view.warn("NO_FAILURE_TERMINAL", decides, decides.at("id"), message, help, field="id")
