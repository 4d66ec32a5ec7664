"""Replanning: a run that was stopped by its budget, or that stalled, is gone on with - by another program.

What ran stays as it is: the old run keeps its journal, its status and its program. A plan that takes up where it
stopped becomes a run of its own, whose first entry names the old run, its head and its program by hash.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from nano_vm import canonical
from nano_vm.errors import ConflictError, InputError, NotFoundError, RejectedError
from nano_vm.journal.port import TENANT_SEPARATOR
from nano_vm.journal.trace import Trace
from nano_vm.kernel import events as ev
from nano_vm.kernel.state import RunStatus, StepStatus
from nano_vm.planner.plan import Planner
from nano_vm.runtime.arguments import check_count, check_part
from nano_vm.runtime.rights import ACT, START, check_right
from nano_vm.runtime.starting import TRACE_ID_CHARS_MAX

if TYPE_CHECKING:
    from nano_vm.runtime.engine import Engine

REPLANS_MAX = 3
INTERRUPTED = (RunStatus.BUDGET_EXCEEDED, RunStatus.STALLED)


async def replan_on_interrupt(
    engine: Engine,
    planner: Planner,
    trace_id: str,
    intent: str,
    *,
    replans_max: int = REPLANS_MAX,
    principal: str | Mapping[str, Any] | None = None,
) -> Trace:
    """Plan on after BUDGET_EXCEEDED or STALLED, and run the plan.

    The new run's inputs are the old one's inputs and the results of its steps, under their output keys or step ids;
    results that were undone are left out. The same run is gone on with once: a second call gets the first one's trace.

    Args:
        trace_id: the interrupted run.
        intent: what is still to be done, in words.
        replans_max: how many plans may follow one another.

    Returns:
        The new run's trace; `trace.replanned` names the old one.

    Raises:
        RejectedError: NOT_INTERRUPTED when the run did not end that way; REPLAN_LIMIT.
        ConflictError: RUN_EXISTS when another run has the id that the new one would get.
        PlanRejected: the plan is none; nothing was run.
        InputError: PLAN_SEALED for a run with private or secret values; USAGE.
        NotFoundError: RUN_NOT_FOUND.
        CapabilityDeniedError: CAPABILITY_DENIED, for whoever may not act on runs and start them, and where the policy
            does not allow the planner's call. RejectedError, RuntimeFault: as `Planner.generate`.
    """
    check_part("engine", engine, "drive", "replan_on_interrupt(vm, planner, trace_id, intent)", needed=True)
    check_part("planner", planner, "generate", "planner=Planner(llm, vm.tools)", needed=True)
    check_count("replans_max", replans_max)
    # Whoever is not let read, act and start is refused before a model is asked or a trace is given away.
    record = engine.find(trace_id, principal, ACT)
    check_right(engine.access, principal, START)
    old = engine.trace(record.run_id, principal=principal)
    number = _next_number(old, trace_id, replans_max)
    new_id = _id_after(record.run_id, number)
    try:
        return _following(engine, new_id, record.run_id, principal)
    except NotFoundError:
        pass
    known = _known(engine, old)
    done = {
        "status": old.status.value,
        "program": old.program_name,
        "steps": [{"id": step.id, "status": step.status.value} for step in old.steps],
        "values": known,
    }
    program = await planner.generate(
        intent,
        inputs={name: {} for name in known},
        done=done,
        vm=engine,
        principal=principal,
        tenant=record.tenant,
    )
    needed = engine.compile(program)[1].input_slots
    replanned = {"head": old.head, "number": number, "program": old.program_hash, "run": trace_id}
    try:
        return await engine.run(
            program,
            {name: value for name, value in known.items() if name in needed},
            trace_id=new_id,
            principal=principal,
            tenant=record.tenant,
            replanned=replanned,
        )
    except ConflictError as error:
        if error.code != "RUN_EXISTS":
            raise
        return _following(engine, new_id, record.run_id, principal)  # somebody was faster


def _next_number(old: Trace, trace_id: str, replans_max: int) -> int:
    """How many plans will have followed the first program. Raises RejectedError NOT_INTERRUPTED, REPLAN_LIMIT."""
    if old.status not in INTERRUPTED:
        raise RejectedError(
            "NOT_INTERRUPTED",
            f"run {trace_id} is {old.status.value}",
            help="plans take up runs that are BUDGET_EXCEEDED or STALLED",
        )
    before = (old.replanned or {}).get("number")
    number = before + 1 if type(before) is int else 1
    if number > replans_max:
        raise RejectedError(
            "REPLAN_LIMIT", f"{replans_max} plans have followed the first program", help="look at it"
        )
    return number


def _id_after(run_id: str, number: int) -> str:
    """The id of the run that goes on with another, of the same tenant. Where that one's is too long to be lengthened it
    stands there by its digest: long ids may end, or begin, alike."""
    new_id = f"{run_id}~{number}"
    if len(new_id) <= TRACE_ID_CHARS_MAX:
        return new_id
    tenant, separator, _ = run_id.rpartition(TENANT_SEPARATOR)
    return f"{tenant}{separator}{canonical.digest_value(run_id)}~{number}"


def _following(engine: Engine, new_id: str, run_id: str, principal: str | Mapping[str, Any] | None) -> Trace:
    """The trace of the run of that id, which goes on with the other one: an id is anybody's to choose.

    Raises:
        NotFoundError: there is no such run. ConflictError: RUN_EXISTS; it is another.
    """
    named = str((engine.trace(new_id, principal=principal).replanned or {}).get("run", ""))
    # A tenant may have left its own name out.
    if named.rpartition(TENANT_SEPARATOR)[2] != run_id.rpartition(TENANT_SEPARATOR)[2]:
        raise ConflictError(
            "RUN_EXISTS",
            f"run {new_id} does not go on with {run_id}, and has the id of the run that would",
            help="fork the run, or start the next program by hand",
            facts={"run_id": new_id},
        )
    # A fresh one: what has been looked at stays as it was then, and the run may go on.
    return engine.trace(new_id, principal=principal)


def _known(engine: Engine, trace: Trace) -> dict[str, Any]:
    """What the old run knows, by name: inputs, and results under their output keys or step ids. Results that were
    undone are left out."""
    if engine.load_program(trace.program_hash).sealed:
        raise InputError(
            "PLAN_SEALED",
            "the run has private or secret values, and a planner would see them",
            help="write the next program by hand, or fork the run",
        )
    first = trace.events[0]
    assert type(first) is ev.RunStarted
    inputs: dict[str, Any] = dict(first.payload) if type(first.payload) is dict else {}
    document = canonical.decode(engine.store.program(trace.program_hash))["program"]
    keys = dict(_output_keys(document["steps"]))
    undone = {event.step for event in trace.events if type(event) is ev.CompensationSucceeded}
    results = {
        keys.get(step.id, step.id): step.output
        for step in trace.steps
        if step.status is StepStatus.SUCCESS
        and step.type != "condition"
        and step.item is None
        and step.id not in undone
    }
    return {**inputs, **results}


def _output_keys(steps: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    for step in steps:
        if "output_key" in step:
            yield step["id"], step["output_key"]
        yield from _output_keys(step.get("parallel_steps", []))
