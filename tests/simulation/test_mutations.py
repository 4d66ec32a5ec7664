"""Each promise is broken on purpose, and the checkers have to notice: a check that cannot fail proves nothing.

A mutant is the real engine with one function replaced. `caught` says which promises its findings may name.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from nano_vm import canonical
from nano_vm.compiler import lower
from nano_vm.errors import VerificationError
from nano_vm.evidence import bundle
from nano_vm.journal import entry as entries
from nano_vm.journal import ledger, replay
from nano_vm.journal.trace import Trace
from nano_vm.kernel import (
    dag,
    ending,
    flow,
    groups,
    lane,
    opening,
    outside,
    reports,
    settle,
    transition,
    waits,
)
from nano_vm.kernel import events as ev
from nano_vm.policy import progress
from nano_vm.policy.tally import Tally
from nano_vm.program.compiled import CompiledStep, ConditionAction, Kind, ParallelAction
from nano_vm.runtime import calls, children, compilations, erasure, governing, intents
from nano_vm.runtime.gates import GateResult
from nano_vm.runtime.journaled import JournaledRun
from nano_vm.runtime.tooling import EFFECTS
from nano_vm.stores.sqlite import SqliteStore
from nano_vm.testing import tampering
from nano_vm.testing.simulator import Simulation
from nano_vm.vault.files import Files
from nano_vm.vault.keys import Keys
from nano_vm.vault.local import Vault

SEEDS = 120  # at most, for each mutant: most are noticed by the first few
Patch = pytest.MonkeyPatch


def no_lane(patch: Patch) -> None:
    """The general path alone, so that a mutant need not be written twice."""

    async def skip(run: Any) -> None:
        return None

    patch.setattr("nano_vm.runtime.driver.drive_lane", skip)


def effects_do_not_wait_for_their_intents(patch: Patch) -> None:
    no_lane(patch)
    commit = JournaledRun.commit

    def impatient(self: Any, update: Any = None, **rest: Any) -> Any:
        durable = commit(self, update, **rest)
        if durable is None or update is not None:
            return durable
        asyncio.ensure_future(durable).add_done_callback(lambda done: done.cancelled() or done.exception())
        return None

    patch.setattr(JournaledRun, "commit", impatient)


def the_lane_does_not_wait_for_its_intents(patch: Patch) -> None:
    commit = JournaledRun.commit

    def impatient(self: Any, update: Any = None, **rest: Any) -> Any:
        durable = commit(self, update, **rest)
        if durable is None or update is not None or not self.created:
            return durable
        asyncio.ensure_future(durable).add_done_callback(lambda done: done.cancelled() or done.exception())
        return None

    patch.setattr(JournaledRun, "commit", impatient)


def unknown_outcomes_are_repeated_blindly(patch: Patch) -> None:
    patch.setattr(intents, "REPEATABLE", frozenset(EFFECTS))
    patch.setattr(transition, "_ONCE", frozenset())


def failures_are_always_retried(patch: Patch) -> None:
    """What a tool returned cannot be kept: the effect is repeated in the hope of a better answer."""
    no_lane(patch)
    failed = calls.Calls.failed

    def hopeful(self: Any, command: Any, code: str, message: str, retryable: bool, **rest: Any) -> Any:
        return failed(self, command, code, message, True, **rest)

    patch.setattr(calls.Calls, "failed", hopeful)


def events_are_taken_twice(patch: Patch) -> None:
    patch.setattr(outside, "seen_before", lambda *args, **options: None, raising=True)
    patch.setattr(transition, "seen_before", lambda *args, **options: None)


def conditions_lead_the_wrong_way(patch: Patch) -> None:
    no_lane(patch)
    branch = flow._branch

    def swapped(program: Any, state: Any, step: Any, occurrence: int, todo: list[int]) -> None:
        action = step.action
        assert type(action) is ConditionAction
        if action.then >= 0 and action.otherwise >= 0:
            other = msgspec.structs.replace(action, then=action.otherwise, otherwise=action.then)
            step = msgspec.structs.replace(step, action=other)
        branch(program, state, step, occurrence, todo)

    patch.setattr(flow, "_branch", swapped)


def a_step_is_skipped(patch: Patch) -> None:
    """After a failure the run goes on with the next step, as if nothing had been."""
    no_lane(patch)
    fail = settle.fail_for_good

    def lenient(program: Any, state: Any, step: Any, activity: Any, *rest: Any) -> None:
        todo = rest[-1]
        if step.parent < 0 and step.on_failure < 0 and not program.is_dag and step.on_error != "skip":
            before = len(state.settled)
            fail(program, state, step, activity, *rest)
            if state.stage is ending.Stage.ENDING and step.next >= 0 and len(state.settled) > before:
                state.stage = ending.Stage.GOING
                state.ending, state.error = "", None
                todo.append(step.next)
            return
        fail(program, state, step, activity, *rest)

    patch.setattr(settle, "fail_for_good", lenient)


def the_budget_of_steps_is_not_looked_at(patch: Patch) -> None:
    for module in ("flow", "transition", "groups"):
        patch.setattr(
            f"nano_vm.kernel.{module}.admits_step", lambda program, state: state.steps < 2 * state.steps_max
        )


def compensations_are_forgotten(patch: Patch) -> None:
    no_lane(patch)
    remember = settle._remember_undo

    def forgetful(state: Any, *rest: Any) -> Any:
        fault = remember(state, *rest)
        state.undo.clear()
        return fault

    patch.setattr(settle, "_remember_undo", forgetful)


def the_fold_depends_on_chance(patch: Patch) -> None:
    no_lane(patch)
    ticks = itertools.count()
    back_off = settle.back_off

    def drifting(state: Any, step: Any, activity: Any, rounds: int, draw: int) -> None:
        back_off(state, step, activity, rounds, draw)
        activity.due_ms += next(ticks)

    for module in ("settle", "transition", "groups"):
        patch.setattr(f"nano_vm.kernel.{module}.back_off", drifting)


def the_chain_is_not_linked(patch: Patch) -> None:
    """Every entry names the beginning as the one before it."""
    no_lane(patch)
    seal = entries.Chain.seal

    def unlinked(self: Any, *args: Any, **options: Any) -> Any:
        held, self.head = self.head, entries.GENESIS
        try:
            return seal(self, *args, **options)
        finally:
            if self.head == entries.GENESIS:
                self.head = held

    patch.setattr(entries.Chain, "seal", unlinked)


def changes_are_not_found(patch: Patch) -> None:
    def verify(program: Any, record: Any, given: Any, run_id: Any = None) -> Any:
        try:
            return real(program, record, given, run_id)
        except VerificationError as error:
            if error.code in ("COMMITMENT_MISMATCH", "DIGEST_MISMATCH"):
                return None
            raise

    real = replay.verify_run
    patch.setattr(tampering, "verify_run", verify)


def traces_hold_more_than_the_journal(patch: Patch) -> None:
    ticks = itertools.count()
    patch.setattr(Trace, "total_tokens", lambda self: next(ticks))


def model_text_is_read_as_a_template(patch: Patch) -> None:
    no_lane(patch)
    invoke = calls.Calls._invoke

    async def rendering(self: Any, run: Any, command: Any, *rest: Any, **options: Any) -> Any:
        text = canonical.encode(command.args).replace(b"${x}", b"0")
        command = msgspec.structs.replace(command, args=canonical.decode(text))
        return await invoke(self, run, command, *rest, **options)

    patch.setattr(calls.Calls, "_invoke", rendering)


def prompts_tell_more_than_they_should(patch: Patch) -> None:
    complete = calls.Calls._complete

    def chatty(self: Any, command: Any, *rest: Any) -> Any:
        told = {"role": "system", "content": "your budget: max_tokens 4000"}
        request = {**command.request, "messages": [told, *command.request["messages"]]}
        return complete(self, msgspec.structs.replace(command, request=request), *rest)

    patch.setattr(calls.Calls, "_complete", chatty)


def another_tool_is_called(patch: Patch) -> None:
    no_lane(patch)
    prepare = intents._tool

    def wrong(run: Any, command: Any, launches: Any) -> None:
        prepare(run, command, launches)
        if launches and launches[-1][1] is not None and launches[-1][1].name == "act_idempotent":
            held, _, limit = launches[-1]
            launches[-1] = (held, run.engine.tools.spec("undo_idempotent"), limit)

    patch.setattr(intents, "_tool", wrong)


def errors_have_no_names(patch: Patch) -> None:

    def clumsy(engine: Any, run_id: str, fence: int, known: Any = None) -> Any:
        raise KeyError(run_id)

    patch.setattr("nano_vm.runtime.recovery.load", clumsy)


def runs_are_forgotten(patch: Patch) -> None:
    """What waits for a retry of an unknown outcome is parked where nobody looks."""
    patch.setattr("nano_vm.runtime.recovery.adopt", _no_adoption)


async def _no_adoption(engine: Any, run: Any) -> None:
    raise RuntimeError("nobody takes it up")


def keys_outlive_their_erasure(patch: Patch) -> None:
    destroy = Keys.destroy

    def careless(self: Any, key_id: str) -> bool:
        stored = self.stored(key_id)
        gone = destroy(self, key_id)
        if stored is not None:  # somebody keeps what was thrown away
            self._cabinet.write("keys", key_id, canonical.encode(msgspec.to_builtins(stored)))
        return gone

    patch.setattr(Keys, "destroy", careless)


def private_values_are_stored_in_clear(patch: Patch) -> None:
    patch.setattr("nano_vm.runtime.journaled.is_sealed", lambda event: False)


def runs_are_not_told_of_an_erasure(patch: Patch) -> None:
    async def silent(*args: Any) -> bool:
        return True

    patch.setattr(erasure, "_tell", silent)


def agents_call_what_they_like(patch: Patch) -> None:
    """A proposal of a tool that the step does not list is made with another one."""
    prepare = intents._tool

    def wrong(run: Any, command: Any, launches: Any) -> None:
        prepare(run, command, launches)
        if launches and launches[-1][1] is not None and "." in run.program.steps[launches[-1][0].step].id:
            held, _, limit = launches[-1]
            launches[-1] = (held, run.engine.tools.spec("undo_keyed"), limit)

    patch.setattr(intents, "_tool", wrong)


def lanes_get_each_others_values(patch: Patch) -> None:
    bind = lane._bind

    def wrong(slots: Any, pins: Any, lanes: Any, values: Any) -> Any:
        return bind(slots, pins, lanes, values[:1] * len(values))

    patch.setattr(lane, "_bind", wrong)


class Forgetful(Tally):
    """What is counted is not kept."""

    def __init__(self) -> None:
        super().__init__()

        class Nothing(dict[str, int]):
            def __setitem__(self, key: str, amount: int) -> None:
                pass

        self.totals = Nothing()


def limits_are_not_counted(patch: Patch) -> None:
    patch.setattr(progress, "Tally", Forgetful)
    patch.setattr(SqliteStore, "count", lambda self, action, wanted, now_ms: [0] * len(wanted))
    patch.setattr(SqliteStore, "counted", lambda self, keys, action: [0] * len(keys))


def nobody_is_asked(patch: Patch) -> None:
    """What somebody should approve is allowed."""
    decide = governing.decide_all

    def lenient(policies: Any, request: Any) -> Any:
        decision = decide(policies, request)
        if decision.decision != "ask":
            return decision
        return msgspec.structs.replace(decision, decision="allow", asks=())

    patch.setattr(governing, "decide_all", lenient)


def an_approval_serves_for_ever(patch: Patch) -> None:
    """What the program wants approved is approved once, however often it comes to it."""
    patch.setattr(governing, "_asked_by_program", lambda program, command: [])


def a_new_policy_is_not_looked_at(patch: Patch) -> None:
    pinned = property(lambda self: [] if self.pinned is None else [self.pinned])
    patch.setattr(governing.Gate, "policies", pinned)


def attempts_have_keys_of_their_own(patch: Patch) -> None:
    key = calls.action_key
    patch.setattr(
        calls, "action_key", lambda run, command, *what: f"{key(run, command, *what)}-{command.attempt}"
    )


def runs_share_their_keys(patch: Patch) -> None:
    key = calls.action_key
    patch.setattr(calls, "action_key", lambda run, *what: key(run._replace(run_id="any"), *what))


def nobody_waits_before_trying_again(patch: Patch) -> None:
    back_off = settle.back_off

    def at_once(program_state: Any, step: Any, activity: Any, *draw: int) -> None:
        back_off(program_state, step, activity, *draw)
        activity.due_ms = program_state.now_ms

    for module in (settle, groups, transition):
        patch.setattr(module, "back_off", at_once)


def steps_are_tried_once_too_often(patch: Patch) -> None:
    retry = lower._retry

    def generous(data: Any) -> Any:
        rules = retry(data)
        return msgspec.structs.replace(rules, attempts_max=rules.attempts_max + 1)

    patch.setattr(lower, "_retry", generous)
    patch.setattr(compilations, "_compiled", {})


def groups_go_all_at_once(patch: Patch) -> None:
    patch.setattr(lower, "ParallelAction", lambda lanes, concurrency_max: ParallelAction(lanes, 99))
    patch.setattr(compilations, "_compiled", {})


def failures_are_left_out(patch: Patch) -> None:
    fail_for_good = settle.fail_for_good

    def lenient(program: Any, state: Any, step: Any, *rest: Any) -> None:
        fail_for_good(program, state, msgspec.structs.replace(step, on_error="skip"), *rest)

    patch.setattr(settle, "fail_for_good", lenient)


def arguments_go_astray(patch: Patch) -> None:
    row = lane._row

    def astray(step: Any, models: bool) -> Any:
        kind, act, *rest = row(step, models)
        if kind == lane._IS_CALL:
            return kind, lambda slots: {**act(slots), "value": "of another"}, *rest
        return kind, act, *rest

    patch.setattr(lane, "_row", astray)


def children_that_were_let_go_are_said_to_wait(patch: Patch) -> None:
    run_child = children.run_child

    async def hasty(engine: Any, parent: Any, command: Any) -> Any:
        outcome = await run_child(engine, parent, command)
        if outcome is not None:
            return outcome
        event = ev.ChildSuspended(
            at_ms=engine.clock.now_ms(),
            attempt=command.attempt,
            occurrence=command.occurrence,
            step=command.step_id,
            waits=[{"kind": "child", "step": "w", "occurrence": 1, "attempt": 1}],
        )
        return calls.Outcome(event, None)

    patch.setattr(children, "run_child", hasty)


def answers_from_outside_go_astray(patch: Patch) -> None:
    """A tool that answers by an event answers what nobody has sent."""
    patch.setattr(outside, "event_output", lambda action, letter: {"number": -1, "approved": True})


def failures_are_told_wrongly(patch: Patch) -> None:
    no_lane(patch)
    fail = settle.fail_for_good

    def wrong(program: Any, state: Any, step: Any, *rest: Any) -> None:
        fail(program, state, step, *rest)
        if step.error_slot >= 0 and type(state.slots[step.error_slot]) is dict:
            state.slots[step.error_slot] = {**state.slots[step.error_slot], "type": "OTHER"}

    patch.setattr(settle, "fail_for_good", wrong)


def ends_are_misnamed(patch: Patch) -> None:
    no_lane(patch)
    end_here = settle.end_here

    def misnamed(program: Any, state: Any, step: Any) -> None:
        end_here(program, state, msgspec.structs.replace(step, outcome="another"))

    patch.setattr(settle, "end_here", misnamed)


def runs_succeed_before_their_end(patch: Patch) -> None:
    def hasty(**fields: Any) -> Any:
        ends = fields["is_terminal"] or (fields["kind"] is Kind.TOOL and fields["parent"] < 0)
        return CompiledStep(**{**fields, "is_terminal": ends})

    patch.setattr(lower, "CompiledStep", hasty)
    patch.setattr(compilations, "_compiled", {})


def repetitions_cost_no_step(patch: Patch) -> None:
    repeat = transition._repeat

    def free(program: Any, state: Any, *rest: Any) -> None:
        steps = state.steps
        repeat(program, state, *rest)
        state.steps = steps

    patch.setattr(transition, "_repeat", free)


def lists_come_back_the_wrong_way_round(patch: Patch) -> None:
    look = groups.succeed

    def backwards(program: Any, state: Any, step: Any, activity: Any, value: Any, *rest: Any) -> None:
        look(program, state, step, activity, value[::-1] if type(value) is list else value, *rest)

    patch.setattr(groups, "succeed", backwards)


def groups_repeat_what_is_done(patch: Patch) -> None:
    fail = groups._group_failed

    def thorough(program: Any, state: Any, step: Any, activity: Any, group: Any, todo: Any) -> None:
        fail(program, state, step, activity, group, todo)
        if group.queue:
            group.queue = list(range(group.total - 1, -1, -1))

    patch.setattr(groups, "_group_failed", thorough)


def branches_are_taken_whatever_comes_out(patch: Patch) -> None:
    settle_edges = dag.settle_edges

    def careless(program: Any, state: Any, step: Any, result: str, todo: list[int]) -> None:
        state.taken = [True] * len(state.taken)
        settle_edges(program, state, step, result, todo)

    patch.setattr(flow, "settle_edges", careless)
    patch.setattr(settle, "settle_edges", careless)


def sagas_are_undone_from_the_beginning(patch: Patch) -> None:
    no_lane(patch)
    remember = settle._remember_undo

    def first(state: Any, *rest: Any) -> Any:
        fault = remember(state, *rest)
        state.undo.insert(0, state.undo.pop())
        return fault

    patch.setattr(settle, "_remember_undo", first)


def what_is_undone_is_undone_twice(patch: Patch) -> None:
    compensation = calls.Calls.compensation

    async def thorough(self: Any, *args: Any) -> Any:
        await compensation(self, *args)
        return await compensation(self, *args)

    patch.setattr(calls.Calls, "compensation", thorough)


def failures_are_not_handled(patch: Patch) -> None:
    fail = settle.fail_for_good

    def hopeless(program: Any, state: Any, step: Any, *rest: Any) -> None:
        fail(program, state, msgspec.structs.replace(step, on_failure=-1), *rest)

    patch.setattr(settle, "fail_for_good", hopeless)


def waits_are_half_as_long(patch: Patch) -> None:
    due_ms = waits.due_ms

    def impatient(state: Any, step: Any, action: Any, entered_ms: int) -> int:
        due = due_ms(state, step, action, entered_ms)
        return entered_ms + (due - entered_ms) // 2 if due else 0

    patch.setattr(opening, "due_ms", impatient)


def events_go_to_whoever_has_come_last(patch: Patch) -> None:
    candidates = outside._candidates
    patch.setattr(outside, "_candidates", lambda *args: candidates(*args)[::-1])


def everything_is_accepted(patch: Patch) -> None:
    patch.setattr(outside, "event_fault", lambda *args: None)


def anybody_may_approve(patch: Patch) -> None:
    fault = outside.approval_fault

    def lenient(*args: Any) -> str | None:
        why = fault(*args)
        return None if why in ("NOT_APPROVER", "SELF_APPROVAL") else why

    patch.setattr(outside, "approval_fault", lenient)


def nobody_looks_at_the_time(patch: Patch) -> None:
    patch.setattr(ending, "used_ms", lambda state: 0)
    patch.setattr("nano_vm.kernel.lane._NO_END_MS", 1 << 62)


def standing_still_is_no_matter(patch: Patch) -> None:
    patch.setattr(settle, "_count_stalled", lambda *args: None)


def prompts_hold_what_no_step_names(patch: Patch) -> None:
    request = opening.model_request

    def chatty(action: Any, slots: Any) -> Any:
        made = request(action, slots)
        made["messages"][-1]["content"] += " You have tried before."
        return made

    patch.setattr(opening, "model_request", chatty)


def gates_let_everything_through(patch: Patch) -> None:
    patch.setattr(calls, "pass_gate", lambda action, text: GateResult(text))
    patch.setattr(transition, "_gate", lambda *args: None)


def owners_are_robbed(patch: Patch) -> None:
    patch.setattr(SqliteStore, "_is_free", lambda self, record, now_ms: True)


def records_say_what_they_like(patch: Patch) -> None:
    patch.setattr(replay, "_agree", lambda *args: None)


def receipts_are_not_made_again(patch: Patch) -> None:
    def trusting(self: Any, contents: Any, trace: Any) -> Any:
        return canonical.decode(contents.receipt)

    patch.setattr("nano_vm.evidence.verify._Checking._receipt", trusting)


def traces_count_an_attempt_too_many(patch: Patch) -> None:
    step = ledger._step

    def generous(*args: Any, attempts: int = 0, **known: Any) -> Any:
        return step(*args, attempts=attempts + 1, **known)

    patch.setattr(ledger, "_step", generous)


def children_say_nothing(patch: Patch) -> None:
    patch.setattr(reports, "_output", lambda program, state: None)


def holds_are_not_heeded(patch: Patch) -> None:
    patch.setattr(Files, "check_hold", lambda self, handle: None)


def keys_come_back_with_a_backup(patch: Patch) -> None:
    patch.setattr(Vault, "bury", lambda self: 0)


def bundles_are_cut_short(patch: Patch) -> None:
    patch.setattr(bundle, "_portable", lambda entries: entries[:1])


WAITS = {"name": "waits", "steps": [{"id": f"w{n}", "type": "wait", "event": "go"} for n in range(4)]}
TOGETHER = {
    "name": "together",
    "steps": [
        {
            "id": "all",
            "type": "parallel",
            "parallel_steps": [{"id": f"w{n}", "type": "wait", "event": "go"} for n in range(4)],
        }
    ],
}
CALLS = {"name": "calls", "steps": [{"id": "c", "type": "call", "program": "called", "inputs": {}}]}
CALLED = {
    "name": "called",
    "steps": [
        {"id": f"t{n}", "type": "tool", "tool": "act_keyed", "args": {"value": str(n)}} for n in range(4)
    ],
}
ASKS = {
    "name": "asks",
    "steps": [
        {"id": "ask", "type": "llm", "prompt": "Say something about $x."},
        {"id": "act", "type": "tool", "tool": "act_keyed", "args": {"value": "about $ask.output"}},
    ],
}
LATER = {
    "name": "later",
    "steps": [
        {"id": "ask", "type": "tool", "tool": "act_pending", "args": {"value": "$x"}},
        {"id": "act", "type": "tool", "tool": "act_keyed", "args": {"value": "number $ask.output.number"}},
    ],
}
USUAL: dict[str, Any] = {"rate": 0.12}
# What has to go wrong for a mutant to matter, where that is rare among all faults.
OFTEN: dict[Callable[[Patch], None], dict[str, Any]] = {
    failures_are_always_retried: {"only": {"oversized", "not_json"}, "rate": 0.4},
    model_text_is_read_as_a_template: {"only": {"garbage"}, "rate": 0.6, "program": ASKS},
    compensations_are_forgotten: {"only": {"refused"}, "rate": 0.3},
    keys_outlive_their_erasure: {"rate": 0},
    private_values_are_stored_in_clear: {"rate": 0},
    runs_are_not_told_of_an_erasure: {"rate": 0},
    limits_are_not_counted: {"rate": 0},
    nobody_is_asked: {"rate": 0},
    attempts_have_keys_of_their_own: {"only": {"failed"}, "rate": 0.4},
    steps_are_tried_once_too_often: {"only": {"failed"}, "rate": 0.6},
    a_new_policy_is_not_looked_at: {"only": {"new_policy"}, "rate": 0.9},
    events_are_taken_twice: {"only": {"corrupted"}, "rate": 0.9, "program": WAITS},
    children_that_were_let_go_are_said_to_wait: {
        "only": {"shutdown"},
        "rate": 0.9,
        "program": CALLS,
        "called": [CALLED],
    },
    bundles_are_cut_short: {"only": {"verify"}, "rate": 0.9},
    answers_from_outside_go_astray: {"rate": 0, "program": LATER},
    failures_are_told_wrongly: {"only": {"refused"}, "rate": 0.3},
    events_go_to_whoever_has_come_last: {"rate": 0, "program": TOGETHER},
}
# Those that only few seeds notice, and the first that does: found by looking through them, and tried first.
NOTICED: dict[Callable[[Patch], None], int] = {
    limits_are_not_counted: 25,
    an_approval_serves_for_ever: 89,
    anybody_may_approve: 13,
    gates_let_everything_through: 47,
    groups_go_all_at_once: 13,
    lists_come_back_the_wrong_way_round: 19,
    nobody_looks_at_the_time: 40,
    runs_share_their_keys: 31,
    sagas_are_undone_from_the_beginning: 24,
    children_that_were_let_go_are_said_to_wait: 110,
}
MUTANTS: list[tuple[Callable[[Patch], None], set[str]]] = [
    (effects_do_not_wait_for_their_intents, {"P3"}),
    (the_lane_does_not_wait_for_its_intents, {"P3"}),
    (unknown_outcomes_are_repeated_blindly, {"P4"}),
    (failures_are_always_retried, {"P4"}),
    (events_are_taken_twice, {"P4"}),
    (conditions_lead_the_wrong_way, {"P1"}),
    (a_step_is_skipped, {"P1", "P10"}),
    (the_budget_of_steps_is_not_looked_at, {"P10", "P11"}),  # or the kernel refuses what follows
    (compensations_are_forgotten, {"P1"}),
    (the_fold_depends_on_chance, {"P5", "P1"}),
    (the_chain_is_not_linked, {"P6"}),
    (changes_are_not_found, {"P6"}),
    (traces_hold_more_than_the_journal, {"P12"}),
    (model_text_is_read_as_a_template, {"P2"}),
    (prompts_tell_more_than_they_should, {"P8"}),
    (another_tool_is_called, {"P9"}),
    (errors_have_no_names, {"P11"}),
    (runs_are_forgotten, {"P10", "P11"}),
    (keys_outlive_their_erasure, {"P7"}),
    (private_values_are_stored_in_clear, {"P7", "P6"}),
    (runs_are_not_told_of_an_erasure, {"P7"}),
    (agents_call_what_they_like, {"P9"}),
    (limits_are_not_counted, {"P9"}),
    (nobody_is_asked, {"P9"}),
    (attempts_have_keys_of_their_own, {"P4"}),
    (runs_share_their_keys, {"P4"}),
    (nobody_waits_before_trying_again, {"P1"}),
    (steps_are_tried_once_too_often, {"P1"}),
    (groups_go_all_at_once, {"P1"}),
    (failures_are_left_out, {"P1"}),
    (arguments_go_astray, {"P1"}),
    (lanes_get_each_others_values, {"P1"}),
    (an_approval_serves_for_ever, {"P9", "P11"}),  # the kernel refuses what the gate lets through
    (a_new_policy_is_not_looked_at, {"P9"}),
    (children_that_were_let_go_are_said_to_wait, {"P10"}),
    (bundles_are_cut_short, {"P5"}),
    (answers_from_outside_go_astray, {"P1"}),
    (failures_are_told_wrongly, {"P1"}),
    (ends_are_misnamed, {"P1"}),
    (runs_succeed_before_their_end, {"P1"}),
    (repetitions_cost_no_step, {"P10"}),
    (lists_come_back_the_wrong_way_round, {"P1"}),
    (groups_repeat_what_is_done, {"P1", "P4"}),
    (branches_are_taken_whatever_comes_out, {"P1"}),
    (sagas_are_undone_from_the_beginning, {"P1"}),
    (what_is_undone_is_undone_twice, {"P4"}),
    (failures_are_not_handled, {"P1"}),
    (waits_are_half_as_long, {"P1"}),
    (events_go_to_whoever_has_come_last, {"P1"}),
    (everything_is_accepted, {"P1", "P9"}),
    (anybody_may_approve, {"P9"}),
    (nobody_looks_at_the_time, {"P10"}),
    (standing_still_is_no_matter, {"P10"}),
    (prompts_hold_what_no_step_names, {"P8"}),
    (gates_let_everything_through, {"P2"}),
    (owners_are_robbed, {"P4"}),
    (records_say_what_they_like, {"P6"}),
    (receipts_are_not_made_again, {"P6"}),
    (traces_count_an_attempt_too_many, {"P12"}),
    (holds_are_not_heeded, {"P7"}),
    (children_say_nothing, {"P1"}),
    (keys_come_back_with_a_backup, {"P7"}),
]


@pytest.fixture
def patch() -> Iterator[Patch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.mark.parametrize(("mutant", "promises"), MUTANTS, ids=[mutant.__name__ for mutant, _ in MUTANTS])
def test_a_broken_promise_is_noticed(
    mutant: Callable[[Patch], None], promises: set[str], patch: Patch
) -> None:
    mutant(patch)
    for seed in (NOTICED.get(mutant, 0), *range(SEEDS)):
        findings = Simulation(seed, **OFTEN.get(mutant, USUAL)).run().findings
        if findings:
            assert findings[0].promise in promises, findings[0]
            return
    pytest.fail(f"{SEEDS} simulations did not notice that {mutant.__name__.replace('_', ' ')}")


def test_the_engine_as_it_is_breaks_no_promise_under_the_same_seeds() -> None:
    same = [(seed, USUAL) for seed in range(12)]
    same += [(seed, options) for options in OFTEN.values() for seed in range(2)]
    same += [(seed, OFTEN.get(mutant, USUAL)) for mutant, seed in NOTICED.items()]
    for seed, options in same:
        report = Simulation(seed, **options).run()
        assert not report.findings, report.rerun
