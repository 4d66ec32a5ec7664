"""What is to be known of an action before it is decided: its identity, its model, which parts of it are private."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nano_vm.errors import CODES
from nano_vm.kernel.commands import CallModel, Compensate
from nano_vm.kernel.labels import output_label
from nano_vm.kernel.state import Activity, State, activity_key
from nano_vm.policy.decide import Decision, counted_place, sealed_parts
from nano_vm.runtime.admission import PROPOSED

if TYPE_CHECKING:
    from nano_vm.runtime.driver import Run

DEFAULT_MODEL = "default"


def place_of(run: Run, command: Any) -> str:
    """Identity of a dispatch for counting: attempts of one occurrence are one action. A model is paid for each, and the
    turns of an agent are attempts."""
    kind = "undo" if type(command) is Compensate else "step"
    attempt = command.attempt if type(command) is CallModel else None
    where = command.step_id, command.occurrence, command.item
    return counted_place(run.record.run_id, kind, *where, attempt)


def key_of(command: Any) -> tuple[int, int]:
    return activity_key(command.step, command.item), command.attempt


def model_name(command: CallModel) -> str:
    model = command.request.get("model", DEFAULT_MODEL)
    return model if type(model) is str else DEFAULT_MODEL


def proposal_parts(run: Run, agent: Activity) -> frozenset[str]:
    """`private_parts` of an action that the model of an agent proposes."""
    if run.state.labels is None:
        return frozenset()
    label = output_label(run.program.steps[agent.step], agent)
    return sealed_parts({name: bits | label for name, bits in PROPOSED.items()})


def private_parts(state: State, command: Any) -> frozenset[str]:
    """Names of the arguments of an action that are private or secret; "" for all of them."""
    if state.labels is None:
        return frozenset()
    if type(command) is Compensate:
        labels = state.undo[-1].labels if state.undo else None
    else:
        activity = state.active.get(activity_key(command.step, command.item))
        labels = None if activity is None else activity.labels
    return sealed_parts(labels)


def why_denied(decision: Decision, of_model: bool) -> str:
    """What a denial rests on, in words for the author: never a value."""
    detail = decision.detail
    match decision.reason:
        case "RULE":
            return ""
        case "DEFAULT":
            return ": no rule applies"
        case "REQUIRES":
            return f": {detail} has not succeeded before"
        case "LIMIT":
            bound = "; `max_tokens` of the step bounds what a call reserves" if of_model else ""
            return f": {detail} would be exceeded{bound}"
        case "CONDITION":
            known = CODES.get(detail)
            return f": {detail}" + (f", {known.summary}" if known is not None else "")
    return f" ({decision.reason})"
