"""Folding a journal: the state is what the kernel makes of the entries, and of nothing else.

Recovery, replay, traces and offline verification all fold; each transition is taken by the kernel again and
compared with what was recorded, so a journal that the kernel would not have written does not pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import msgspec
from msgspec import UNSET

from nano_vm.errors import VerificationError
from nano_vm.journal.entry import GENESIS, Chain, Entry, is_closed, open_events, read_facts
from nano_vm.journal.reading import verify_entry
from nano_vm.journal.recall import Notes, Recall
from nano_vm.kernel.events import Event
from nano_vm.kernel.state import Rejection, State
from nano_vm.kernel.transition import apply
from nano_vm.program.compiled import CompiledProgram

_encode = msgspec.json.Encoder().encode

OnTransition: TypeAlias = Callable[[Entry, Event, State], None]


class Folded(NamedTuple):
    """A folded journal: the state, and the chain to go on with."""

    state: State
    chain: Chain


def fold(
    program: CompiledProgram,
    run_id: str,
    entries: Iterable[Entry],
    *,
    verify: bool = False,
    on_transition: OnTransition | None = None,
    notes: Notes | None = None,
) -> State:
    """The state after `entries`, which are all entries of the run from the first.

    Args:
        program: the program the run is pinned to.
        verify: check each entry's digest, place, commitment and payload before it is applied.
        on_transition: called after each transition with the entry, its event and the state, which still says
            what the transition `settled`; the state must not be changed or kept.
        notes: what `notes.record` noted of values that are sealed here.

    Raises:
        VerificationError: REPLAY_MISMATCH (facts: `seq`, `code` - the kernel's rejection, or VERDICTS) when
            the kernel would not take a recorded transition; JOURNAL_MALFORMED; with `verify` all of
            `verify_entry` too.
    """
    return fold_chain(program, run_id, entries, verify=verify, on_transition=on_transition, notes=notes).state


def fold_chain(
    program: CompiledProgram,
    run_id: str,
    entries: Iterable[Entry],
    *,
    verify: bool = False,
    on_transition: OnTransition | None = None,
    notes: Notes | None = None,
) -> Folded:
    """`fold`, and the chain that the next entry is sealed with."""
    state = State(run=run_id)
    head = GENESIS
    length = 0
    recall: Recall | None = None
    for seq, entry in enumerate(entries):
        facts = verify_entry(entry, run_id, head, seq) if verify else read_facts(entry)
        if facts.key is not None and recall is None and is_closed(entry, facts):
            if not isinstance(entries, Sequence):
                raise TypeError("a journal that is closed in part is folded from a sequence of its entries")
            recall = Recall(program, entries, notes)
            program = recall.program
        for event in open_events(entry, facts) if recall is None else recall.events(entry, facts):
            if recall is None:
                take(program, state, event, seq)
            else:
                recall.take(take, state, event, seq)
            if on_transition is not None:
                on_transition(entry, event, state)
        head = entry.digest
        length = seq + 1
    return Folded(state, Chain(run_id, length, head))


def take(program: CompiledProgram, state: State, event: Event, seq: int) -> None:
    """Apply the recorded event of entry `seq` to `state`, in place, and compare the verdicts.

    Raises:
        VerificationError: REPLAY_MISMATCH.
    """
    after = apply(program, state, event)
    if type(after) is Rejection:
        code = after.code
        raise VerificationError(
            "REPLAY_MISMATCH",
            f"entry {seq}: the kernel does not take this {event.type} here ({code})",
            facts={"seq": seq, "code": code},
        )
    label = getattr(event, "label", UNSET)
    if (0 if label is UNSET else label) != state.label:
        raise VerificationError(
            "REPLAY_MISMATCH",
            f"entry {seq}: the payload has another label than recorded",
            facts={"seq": seq, "code": "LABELS"},
        )
    check_verdicts(event, state.verdicts, seq)


def check_verdicts(event: Event, verdicts: list[Any], seq: int) -> None:
    """Compare the verdicts that the event of entry `seq` recorded with those that came of it now.

    Raises:
        VerificationError: REPLAY_MISMATCH.
    """
    # Events of types that cannot lead to a condition have no such field; UNSET says that none was asked.
    recorded = getattr(event, "verdicts", None)
    if recorded is None or (recorded is UNSET and not verdicts):
        return
    # They are compared as they are written: 1 and 1.0 and true are equal.
    if not recorded or _encode(recorded) != _encode(verdicts):
        raise VerificationError(
            "REPLAY_MISMATCH",
            f"entry {seq}: the conditions come out otherwise than recorded",
            facts={"seq": seq, "code": "VERDICTS"},
        )
