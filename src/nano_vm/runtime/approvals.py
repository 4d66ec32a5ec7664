"""What waits for somebody's approval, and giving or refusing it: always of the action that was shown."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from nano_vm.errors import InputError, RejectedError
from nano_vm.journal.entry import open_event, open_events, read_facts
from nano_vm.journal.port import RunQuery, RunRecord
from nano_vm.journal.trace import Trace
from nano_vm.kernel import events as ev
from nano_vm.kernel.state import RunStatus
from nano_vm.runtime.letters import event_letter
from nano_vm.runtime.repetition import Said, children, meant, said_before
from nano_vm.runtime.rights import APPROVE, principal_of
from nano_vm.runtime.ways import Place, places, plain

if TYPE_CHECKING:
    from nano_vm.runtime.engine import Engine
    from nano_vm.runtime.looking import Looking


class PendingApproval(msgspec.Struct, frozen=True, kw_only=True):
    """Something that waits for an approval.

    `step` is the step that waits, for one of a called program the way to it: `call/step`, or `call[0]/step` where a
    map calls. `action` and `nonce` are what an answer names; both are empty for a wait that is bound to no action.
    `shown` is what the journal holds as shown to approvers. `due_ms` is 0 where nothing expires. An approver holds one
    role of each of `groups`; `roles` are all of them. `not_by` are those whose answer is not taken: who started the run
    where four eyes are asked for, and who has approved already.
    """

    run_id: str
    tenant: str
    program: str
    step: str
    item: int | None = None
    roles: tuple[str, ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()
    not_by: tuple[str, ...] = ()
    tool: str = ""
    action: str = ""
    nonce: str = ""
    due_ms: int = 0
    shown: dict[str, Any] = {}

    def missing(self, roles: Collection[str]) -> tuple[str, ...]:
        """A group of which somebody who holds these roles holds none; empty when there is no such group."""
        return next((group for group in self.groups if not set(group) & set(roles)), ())


def pending(engine: Looking, record: RunRecord) -> list[PendingApproval]:
    """What a run waits for somebody to approve, its children included."""
    return [_pending(engine, record, place) for place in _places(engine, record)]


def meant_by(engine: Looking, record: RunRecord, said: Said) -> list[PendingApproval]:
    """What of it somebody may mean."""
    return [_pending(engine, record, place) for place in _meant(engine, record, said)]


def _pending(engine: Looking, record: RunRecord, place: Place) -> PendingApproval:
    wait = place.wait
    roles = tuple(wait.get("approvers", ()))
    question = _question(engine, place) if wait.get("nonce") else None
    if question is None:
        question = _Question((roles,) if roles else (), (), {})
    return PendingApproval(
        run_id=record.run_id,
        tenant=record.tenant,
        program=record.program_name,
        step=place.way,
        item=wait.get("item"),
        roles=roles,
        groups=question.groups,
        not_by=question.not_by,
        tool=wait.get("tool", ""),
        action=wait.get("action", ""),
        nonce=wait.get("nonce", ""),
        due_ms=wait.get("due_ms", 0),
        shown=question.shown,
    )


def _places(engine: Looking, record: RunRecord) -> list[Place]:
    found = list(places(record.run_id, record.waits))
    if record.status == RunStatus.RUNNING:
        found += _below(engine, record.run_id)
    return [place for place in found if place.wait["kind"] == "approval"]


def _below(engine: Looking, run_id: str, way: str = "", element: int | None = None) -> Iterator[Place]:
    """What is waited for below a run that is under way: until it waits itself it does not say."""
    for child in children(engine, run_id):
        outer = child.item if element is None else element
        record = engine.store.record(child.run_id)
        yield from places(child.run_id, record.waits, way + child.through, outer)
        if record.status == RunStatus.RUNNING:
            yield from _below(engine, child.run_id, way + child.through, outer)


def only_approvals(record: RunRecord, step: str | None, name: str | None) -> bool:
    """Whether an event could only be the answer to something that waits for an approval."""
    wanted = plain(step) if isinstance(step, str) else step
    kinds = [
        place.wait["kind"]
        for place in places(record.run_id, record.waits)
        if wanted in (None, plain(place.way)) and name in (None, place.wait.get("event"))
    ]
    return bool(kinds) and all(kind == "approval" for kind in kinds)


def all_pending(engine: Looking, tenant: str | None, limit: int) -> list[PendingApproval]:
    """See `Engine.approvals`."""
    query = RunQuery(tenant=tenant, status="SUSPENDED", parent="", limit=limit)
    return [found for record in engine.store.records(query) for found in pending(engine, record)]


class _Question(NamedTuple):
    """What is asked of approvers: see `PendingApproval`."""

    groups: tuple[tuple[str, ...], ...]
    not_by: tuple[str, ...]
    shown: dict[str, Any]


def _question(engine: Looking, place: Place) -> _Question | None:
    """The question as the journal holds it, with those who have answered."""
    entries = engine.read(place.run_id)
    answered: list[str] = []
    for entry in reversed(entries):
        if read_facts(entry).type not in _QUESTIONS_AND_ANSWERS:
            continue
        for event in reversed(open_events(entry)):
            if type(event) is ev.EventReceived and event.step == place.wait["step"]:
                if event.item == place.wait.get("item", ev.UNSET) and event.principal is not ev.UNSET:
                    answered.append(event.principal["id"])
            elif type(event) is ev.ApprovalRequested and event.nonce == place.wait["nonce"]:
                starter = getattr(open_event(entries[0]), "principal", ev.UNSET)
                if event.four_eyes is True and starter is not ev.UNSET:
                    answered.append(starter["id"])
                groups = tuple(tuple(group) for group in event.roles)
                shown = event.payload if type(event.payload) is dict else {}
                return _Question(groups, tuple(dict.fromkeys(reversed(answered))), shown)
    return None


_QUESTIONS_AND_ANSWERS = (ev.ApprovalRequested.type, ev.EventReceived.type)


async def approve(
    engine: Engine, trace_id: str, said: Said, principal: str | Mapping[str, Any] | None
) -> Trace:
    """See `Engine.approve`."""
    from nano_vm.runtime import control

    record = engine.find(trace_id, principal, APPROVE)
    letter = _letter(engine, record, said, principal_of(principal, record.tenant))
    return await control.deliver_event(engine, record, letter)


async def leave_answer(
    engine: Engine,
    trace_id: str,
    approved: bool,
    *,
    step: str | None = None,
    item: int | None = None,
    action: str | None = None,
    nonce: str | None = None,
    comment: str | None = None,
    principal: str | Mapping[str, Any] | None = None,
) -> str:
    """`Engine.approve`, left for whoever takes the run up next: see `control.leave_event`.

    Raises:
        CapabilityDeniedError: the principal's roles do not let it approve anything.
    """
    from nano_vm.runtime import control

    record = engine.find(trace_id, principal, APPROVE)
    said = Said(approved, comment, step, item, action, nonce, None)
    letter = _letter(engine, record, said, principal_of(principal, record.tenant))
    return await control.leave_letter(engine, record.run_id, letter)


def _letter(
    engine: Engine, record: RunRecord, said: Said, principal: dict[str, Any] | None
) -> dict[str, Any]:
    """The event that answers an approval. One that was taken from the same approver is the same event again: the run
    tells it alike, and nothing is approved by it."""

    def written(data: dict[str, Any], step: str | None, item: int | None) -> dict[str, Any]:
        return event_letter(data, said.event_id, None, step, item, principal, approves=True)

    for what in ("step", "action", "nonce", "comment"):
        given = getattr(said, what)
        if given is not None and type(given) is not str:
            raise InputError("EVENT_TEXT", f"the {what} is no text", help="give a text")
    data: dict[str, Any] = {"approved": said.approved}
    if said.comment is not None:
        data["comment"] = said.comment
    wait = before = None
    if said.event_id is not None:
        before = said_before(engine, record.run_id, said, principal)
    if before is None and said.anew:
        wait = _asked(engine, record, said)
    if said.event_id is None and (wait is None or wait.get("nonce")):
        asked = said if wait is None else said._replace(nonce=wait["nonce"])
        before = said_before(engine, record.run_id, asked, principal)
    if before is not None:
        return {**written(data, said.step, said.item), **before}
    if wait is not None:
        _refuse_unclear(engine, record, said, principal)
        if wait.get("action"):
            data |= {"action": wait["action"], "nonce": wait["nonce"]}
        return written(data, wait["step"], wait.get("item"))
    if said.action is not None or said.nonce is not None or not said.anew:
        # Gone: the run refuses it, and keeps that it was sent.
        data |= {"action": said.action or "", "nonce": said.nonce or ""}
    return written(data, said.step, said.item)


def _refuse_unclear(engine: Engine, record: RunRecord, said: Said, principal: dict[str, Any] | None) -> None:
    """Who names an action that they have answered before, and that is asked for once more, may be repeating the old
    answer or giving a new one: only a nonce or an id tells.

    Raises:
        RejectedError: AMBIGUOUS.
    """
    if not said.action or said.nonce is not None or said.event_id is not None:
        return
    if said_before(engine, record.run_id, said, principal) is not None:
        raise RejectedError(
            "AMBIGUOUS",
            f"run {record.run_id} asks again for an action that was answered before",
            help="name the nonce of the question that is meant: it is listed with what waits for an approval",
            facts={"run_id": record.run_id, "action": said.action},
        )


def _asked(engine: Looking, record: RunRecord, said: Said) -> dict[str, Any] | None:
    """The wait that is meant, with the way to it. Raises RejectedError AMBIGUOUS."""
    found = _meant(engine, record, said)
    if len(found) > 1:
        raise several(record.run_id, [place.way for place in found])
    return found[0].named if found else None


def several(run_id: str, ways: list[str]) -> RejectedError:
    names = ", ".join(f"`{way}`" for way in ways)
    return RejectedError(
        "AMBIGUOUS",
        f"run {run_id} waits for several approvals: {names}",
        help="name the step, and inside a map the item",
        facts={"run_id": run_id},
    )


def _meant(engine: Looking, record: RunRecord, said: Said) -> list[Place]:
    return [
        place
        for place in _places(engine, record)
        if meant(said.step, said.item, place.way, place.wait.get("item"), place.element)
        and said.action in (None, place.wait.get("action", ""))
        and said.nonce in (None, place.wait.get("nonce", ""))
    ]
