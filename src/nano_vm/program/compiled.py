"""The compiled form: a program with every reference, template and condition resolved, ready to execute.

The compiler produces it, the kernel reads it; neither knows the other. Nothing in here is parsed while a run is going:
a step knows the index of its successor, a template is a function of the slots, a condition is a closure over them.

Slots: all values a program can refer to live in one flat list (`State.slots`). The first `FIRST_FREE_SLOT` slots are
reserved; then come the inputs, then the outputs, errors and output keys of steps. A slot that holds `UNSET` has not
been assigned.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, TypeAlias

import msgspec

from nano_vm import canonical

Slots: TypeAlias = list[Any]
Render: TypeAlias = Callable[[Slots], Any]
Test: TypeAlias = Callable[[Slots], bool]
Refs: TypeAlias = tuple[tuple[int, tuple[str, ...]], ...]  # (slot, path into its value)

SLOT_ITEM = 0  # `$item` of the map lane being rendered
SLOT_INDEX = 1  # `$index`
SLOT_EVENT = 2  # `$event`, while an `accept` expression is evaluated
SLOT_RUN = 3  # `$run`: {"id", "program", "program_hash", "started_at_ms"}
SLOT_PRINCIPAL = 4  # `$principal`: {"id", "roles", "tenant"} of whoever started the run
SLOT_ARGS = 5  # `$args`, while a policy condition is evaluated
FIRST_FREE_SLOT = 6

END = -1  # the run ends here
NO_TARGET = -2  # no step is named; reaching it is an error


class Kind(IntEnum):
    """What a step does. The numbers are internal; programs use the lower-case names."""

    TOOL = 0
    LLM = 1
    CONDITION = 2
    PARALLEL = 3
    WAIT = 4
    MAP = 5
    CALL = 6
    AGENT = 7


class Template(msgspec.Struct, frozen=True):
    """A compiled template.

    `render(slots)` gives the value; containers in it may be shared with the slots, so whoever hands the value out
    copies it. It raises `ExprError` UNASSIGNED_REFERENCE or UNRESOLVED_REFERENCE. `constant` templates have no
    references. `refs` lists (slot, path) in source order, for static analysis and labels; `parts` does so for each
    member of an object that has references, in order. `names` are those of all members of an object.
    """

    render: Render
    constant: bool
    refs: Refs = ()
    parts: tuple[tuple[str, Refs], ...] = ()
    names: tuple[str, ...] | None = None


class Retry(msgspec.Struct, frozen=True):
    """Back-off between attempts: `initial_ms * factor ** (failures - 1)`, at most `cap_ms`; with `jitter` the delay
    is drawn from [delay / 2, delay]."""

    attempts_max: int = 3
    initial_ms: int = 1_000
    factor: float = 2.0
    cap_ms: int = 30_000
    jitter: bool = True


class Compensation(msgspec.Struct, frozen=True):
    """The tool that undoes a step, and its arguments, rendered when the step has succeeded."""

    tool: str
    args: Template


class ToolAction(msgspec.Struct, frozen=True):
    tool: str
    args: Template  # renders to a dict
    idempotency_key: Template | None = None  # renders to a string or number


class ModelAction(msgspec.Struct, frozen=True):
    """`prompt` and `system` render to strings; `allowed_outputs` are the author's spellings in order."""

    prompt: Template
    system: Template | None = None
    model: Template | None = None
    params: Template | None = None  # renders to a dict
    tokens_max: int = 0  # static worst case from params.max_tokens; 0 when it is not declared
    allowed_outputs: tuple[str, ...] = ()
    normalize: str | None = None  # None or "casefold"
    output_schema: dict[str, Any] | bool | None = None


class AgentAction(ModelAction, frozen=True, kw_only=True):
    """A model that may propose calls of `tools`, which it knows as `offered`. Its prompt and gates are those of an llm
    step.

    `lanes` are the step indexes of its actions, one for each tool, in the order of `tools`: steps that stand after
    all the steps that the author wrote, with the agent as their parent and its rank, called `agent.tool`.
    """

    tools: tuple[str, ...]
    offered: tuple[str, ...]
    lanes: tuple[int, ...]
    turns_max: int


class ConditionAction(msgspec.Struct, frozen=True):
    test: Test
    then: int  # step index, END or NO_TARGET (reaching NO_TARGET is FAILED NO_BRANCH)
    otherwise: int
    pins_then: Refs = ()  # what is no longer untrusted when it holds
    pins_otherwise: Refs = ()


class ParallelAction(msgspec.Struct, frozen=True):
    lanes: tuple[int, ...]  # step indexes in declared order
    concurrency_max: int  # >= 1


class WaitAction(msgspec.Struct, frozen=True):
    """Exactly one of `event`, `delay`, `until` or an approval (`approvers`, whose event is the step id)."""

    event: str | None = None
    delay: Template | None = None  # renders to seconds (number)
    until: Template | None = None  # renders to an RFC 3339 string or to epoch seconds (number)
    accept: Test | None = None  # reads SLOT_EVENT
    approvers: tuple[str, ...] = ()
    approves: int = NO_TARGET  # index of the tool step whose rendered action the approval is bound to


class MapAction(msgspec.Struct, frozen=True):
    over: Template  # renders to a list
    lane: int  # step index of the sub-step
    items_max: int
    concurrency_max: int


class CallAction(msgspec.Struct, frozen=True):
    program: str  # name or "sha256:…" of a stored program
    inputs: Template  # renders to a dict


Action: TypeAlias = (
    ToolAction
    | ModelAction
    | AgentAction
    | ConditionAction
    | ParallelAction
    | WaitAction
    | MapAction
    | CallAction
)


class Edge(msgspec.Struct, frozen=True):
    """A dependency in a declarative DAG: `target` waits for the step that owns this edge.

    `when` is "done" (taken if the step was not skipped and did not fail into its handler), "then" / "otherwise" (if the
    condition chose that branch) or "failure" (taken if the step failed and `on_failure` names the target).
    """

    target: int
    when: str = "done"


class CompiledStep(msgspec.Struct, frozen=True):
    """One step. `index` is its place in `CompiledProgram.steps`: list order, sub-steps right after their parent, the
    actions of agents at the end.

    `next` is where the run goes afterwards, `END` included: `next_step`, `is_terminal` and list order are already
    folded into it. `rank` is the place in static topological order that `trace_hash` uses. The label of its output is
    `adds` and what it `keeps` of the label of what it is made of.
    """

    index: int
    id: str
    kind: Kind
    action: Action
    rank: int
    parent: int = NO_TARGET  # enclosing parallel or map; the agent of an action
    output_slot: int = NO_TARGET  # `$id.output`; conditions have none
    key_slot: int = NO_TARGET  # the output_key's own slot, when it is not just another name for output_slot
    error_slot: int = NO_TARGET  # `$id.error`, when something refers to it
    next: int = END
    is_terminal: bool = False
    final_status: str = "SUCCESS"
    outcome: str | None = None
    on_error: str = "fail"  # fail | skip | retry
    retry: Retry = Retry()
    on_failure: int = NO_TARGET
    timeout_ms: int = 0  # 0: none
    on_timeout: str = "fail"  # fail | fallback
    fallback: Any = None
    compensation: Compensation | None = None
    dependencies: int = 0  # DAG: how many edges point here
    edges: tuple[Edge, ...] = ()  # DAG: who waits for this step
    adds: int = 0  # label bits of the output, whatever it is made of
    keeps: int = 7  # label bits that the output takes over from what it is made of
    approved_by: tuple[int, ...] = ()  # waits that `approves` this tool step


def same_value(old: Any, new: Any) -> bool:
    """Whether two values are the same JSON."""
    return canonical.encode(old) == canonical.encode(new)


class Budgets(msgspec.Struct, frozen=True):
    """Limits of one run; 0 means not declared (steps_max always is)."""

    steps_max: int = 10_000
    tokens_max: int = 0
    stalled_steps_max: int = 0
    cost_nanousd_max: int = 0
    duration_ms_max: int = 0


class Output(msgspec.Struct, frozen=True):
    """A key output: `outputs: {name: $ref}`."""

    name: str
    template: Template


class CompiledProgram(msgspec.Struct, frozen=True):
    """A whole program. `slots[i]` names slot i for humans (`amount`, `charge.output`, `charge.error`)."""

    hash: str  # "sha256:…" of the canonical program
    name: str
    version: str
    steps: tuple[CompiledStep, ...]
    slots: tuple[str, ...]
    input_slots: dict[str, int]
    optional_inputs: dict[
        str, Any
    ]  # name -> default; absent optional inputs are bound to it (null without one)
    inputs_schema: dict[str, Any] | None
    outputs: tuple[Output, ...]
    budgets: Budgets
    is_dag: bool
    entry: int  # first step (list mode)
    roots: tuple[int, ...]  # steps without dependencies (DAG mode)
    step_index: dict[str, int]
    events: frozenset[str]  # event names that some wait declares: what the inbox may hold
    calls: tuple[str, ...]  # programs named by call steps, in first-use order
    labelled: bool = False  # the program itself declares labels: its runs track them
    sealed: bool = False  # it has private or secret values, which are stored encrypted only
    input_labels: dict[str, int] = {}  # by name
    subject: Template | None = None  # whose data it is; the run's own without it
    unchanged: Callable[[Any, Any], bool] = same_value  # whether a step changed what was bound
    approves: bool = False  # whether some wait approves the action of a step
