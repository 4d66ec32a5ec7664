"""Folding a plain stretch of a journal through the kernel's lane.

Most entries of most journals are the success of a plain tool, or the plain answer of a model, and the intent of what
comes next. The lane takes these transitions as `apply` would (`nano_vm.kernel.lane`), at a fraction of the cost. What
it is given here is compared with the entry first; whatever differs in any way is left to `apply`, which says what is
wrong with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from hashlib import sha256
from typing import Any, NamedTuple, Protocol

from msgspec import UNSET

from nano_vm import canonical
from nano_vm.errors import InputError
from nano_vm.journal.answers import Answer, Manner, manner_of, read_alike, read_answer, read_intent
from nano_vm.journal.entry import SALT_BYTES, Entry
from nano_vm.journal.forms import admits, is_effect
from nano_vm.journal.ledger import Ledger
from nano_vm.journal.plain import AT, END, HEAD, LAST, encode_verdicts, success_of
from nano_vm.journal.reading import ChainReader, is_number, read_riders, write_rider
from nano_vm.kernel.activity import release_reservation
from nano_vm.kernel.events import Event, PolicyDecided, StepStarted
from nano_vm.kernel.lane import Rows, Track, begin, is_plain, is_plain_model, lane, walk
from nano_vm.kernel.state import Activity, Phase, Settled, State
from nano_vm.program.compiled import CompiledProgram, CompiledStep, Kind, ModelAction, ToolAction

_END, _LAST = END.removesuffix("sha256:").encode(), LAST.encode()
_HEAD, _AT = HEAD.encode(), AT.encode()
_VERDICTS = b',"verdicts":'
_AFTER = _END, _VERDICTS  # what may come after the step of a plain success
_AT_PLACE = len(HEAD) + 64 + len(AT)
_RIDER, _NEXT_RIDER = len(b',"then":[{"event":{"at_ms":'), b'},{"event":{"at_ms":'  # where their times begin
_OTHERS_MAX = 8  # ways in which a step is decided that are kept
_LABELS = 8  # as many as there are; a step and a label are one number


class Watcher(Protocol):
    """Somebody who looks at every transition before and after it is taken, and raises when it is not as it must be.

    Of plain transitions only what is decided about a tool is shown, and which steps have succeeded.
    """

    def before(self, entry: Entry, event: Event, state: State) -> None: ...

    def after(self, entry: Entry, event: Event, state: State) -> None: ...

    def allows(self, event: PolicyDecided, step: CompiledStep, args: Any, state: State) -> bool:
        """Whether the decision that a plain tool may be called with these arguments is as it must be. False also where
        more has to be looked at: then `before` is asked. The event's time, step and occurrence are those of another
        one."""
        ...

    def passed(self, steps: Sequence[int], settled: Sequence[Settled]) -> None:
        """Plain tools and models that have succeeded, by the index of their step, and what has settled beyond them."""
        ...


class _Riders(NamedTuple):
    """What rides with a success: nothing, a decision, an intent, or both; and how it is written, but for its time and
    the number of the occurrence, which are written as often as `events` ride. `linked` is the same behind what links
    the entry to the one before it (`Learnt.link`)."""

    linked: bytes
    format: bytes
    events: int
    decided: PolicyDecided | None
    effect: str  # of the intent; "" without one
    reserved: tuple[int, int] | None = None  # tokens and nano-dollars, for a model's answer


class Learnt:
    """What is learnt of a run's program while its journal is read, for all its stretches: the rows of the lane (where
    everything is decided first, those without models), and by step and label how a success is written up to its step,
    without an intent and with one, and what rides with the success before it: what did last, and what else has. `link`
    is how an entry goes on after its step, for its verdicts, the head before it, and its number. `begins` is how the
    successes of all steps begin, and `tools` what rode before some step of a tool and how it names that step: before
    another one the like is expected. `manners` is how models named themselves last."""

    __slots__ = ("begins", "link", "manners", "nothing", "others", "riders", "rows", "successes", "tools")

    def __init__(self, program: CompiledProgram, run_id: str) -> None:
        self.rows = {governed: Rows(program, models=not governed) for governed in (False, True)}
        self.link = b"%%b%b%%b%b%%d" % (_END, ChainReader(run_id).place.replace(b"%", b"%%"))
        self.nothing = _Riders(self.link + _LAST, _LAST, 0, None, "")
        self.successes: tuple[dict[int, bytes], dict[int, bytes]] = {}, {}
        self.begins: dict[tuple[bool, int], bytes] = {}
        self.riders: dict[int, _Riders] = {}
        self.manners: dict[int, Manner] = {}
        self.tools: dict[tuple[str, int], tuple[_Riders, bytes]] = {}
        self.others: dict[int, deque[_Riders]] = {}


class Left(NamedTuple):
    """An entry whose success has been taken, and led to `verdicts`; whether they are as recorded, and what rides with
    it, has still to be looked at. `prev` is the digest of the entry before it."""

    entry: Entry
    prev: str
    verdicts: list[Any]


class Stretch:
    """A walk through plain steps. While it is open, `state` is not what it says: `leave` first.

    `verdicts` is how many were found to be as recorded by `read`.
    """

    __slots__ = (
        "_activity",
        "_decided",
        "_effect",
        "_entered_ms",
        "_index",
        "_learnt",
        "_least_ms",
        "_occurrence",
        "_program",
        "_reserved",
        "_started",
        "_state",
        "_track",
        "_walk",
        "_watchers",
        "verdicts",
    )

    def __init__(
        self,
        program: CompiledProgram,
        state: State,
        activity: Activity,
        started: bool,
        watchers: Sequence[Watcher],
        learnt: Learnt,
    ) -> None:
        self.verdicts = 0
        self._learnt = learnt
        self._program = program
        self._state = state
        self._activity = activity
        self._watchers = watchers
        self._started = started
        self._decided = activity.cleared == 1
        self._effect = activity.effect
        # The lane moves this activity on from step to step. What is not begun has no effect yet, no decision, and
        # nothing reserved.
        activity.effect, activity.cleared = "", 0
        self._reserved = activity.reserved_tokens, activity.reserved_cost_nanousd
        if started:
            release_reservation(state, activity)
        if self._decided:
            state.seq -= 1
        self._least_ms = state.now_ms  # of the intent: a success before it is not plain
        self._entered_ms = activity.entered_ms
        self._track = None if state.labels is None else Track(program, state, activity)
        rows = learnt.rows[bool(state.policy)]
        self._walk: Generator[Any, Any, None] | None = walk(program, state, activity, rows, self._track)
        self._index, self._occurrence, _, _ = next(self._walk)

    @property
    def is_open(self) -> bool:
        return self._walk is not None

    def read(
        self, entries: Sequence[Entry], stop: int, reader: ChainReader, ledger: Ledger | None
    ) -> Left | None:
        """Take the entries that come next, as far as each is a plain success and the intent of what follows it, or a
        plain success alone. Nothing of them is parsed but the payload: their bytes are compared with what they have to
        be. The first that is anything else is for `reader.take`.

        Args:
            entries: all of the journal.
            stop: the first of them that is not to be read.
            ledger: who keeps the results.

        Returns:
            what is left to be done about the last entry that was taken, if anything is.
        """
        assert self._walk is not None
        index, occurrence, started, decided = self._index, self._occurrence, self._started, self._decided
        governed = bool(self._state.policy)  # nothing is called without a decision
        if decided is not governed:
            return None
        # Names are looked up once: this is most of what verifying costs.
        go_on, link, seq = self._walk.send, self._learnt.link, reader.length
        head, prev = reader.head.encode(), b""
        least_ms, learnt, expect = self._least_ms, self._learnt.riders.get, self._learnt.successes
        salt_bytes, at_place, after, hashed = SALT_BYTES, _AT_PLACE, _AFTER, sha256
        decode, encode, told_verdicts = canonical.decode_canonical, encode_verdicts, _VERDICTS
        track, key, watched = self._track, index * _LABELS, self._watchers
        at, at_ms = b",", 0  # no time at all
        passed: list[int] = []
        left: Left | None = None
        is_over, agreed, events, effect = False, 0, 1 + started + decided, self._effect
        args: Any
        verdicts: list[Any] | None
        riders: _Riders | None
        for seq in range(reader.length, stop):
            entry = entries[seq]
            written, payload, salt = entry.facts, entry.payload, entry.salt
            if payload is None or len(salt) != salt_bytes or entry.seq != seq:
                break
            if not written.startswith(at, at_place):
                at = written[at_place : written.find(b",", at_place)]
                if not is_number(at):
                    break
                at_ms = int(at)
            if at_ms < least_ms:
                break
            if track is not None:
                key = index * _LABELS + track.coming
            format = expect[started].get(key)
            if format is None:
                format = self._expect(key, started)
            commitment = hashed(salt + payload).hexdigest().encode()
            if format:
                start, answer = format % (commitment, at, occurrence), None
                end = len(start)
            else:
                start = b"%b%b%b" % (_HEAD, commitment, _AT)
                answer = self._answer(key, written, at_place + len(at), occurrence) if started else None
                if answer is None:
                    break
                end = answer.end
            digest = "sha256:" + hashed(written).hexdigest()
            if digest != entry.digest or not written.startswith(start):
                break
            rest = written[end:]
            if not rest.startswith(after):
                break
            try:
                value = decode(payload)
            except InputError:
                break
            if answer is not None and not self._takes(index, value, answer):
                break
            # From here on the success is taken.
            if watched:
                passed.append(index)
            step, done = index, occurrence
            try:
                index, occurrence, args, verdicts = go_on((value, at_ms, events))
            except StopIteration:
                self._walk, is_over = None, True
                verdicts = self._state.verdicts
            if ledger is not None:
                self._keep(ledger, step, done, value, payload, answer, verdicts or [], at_ms)
            told = told_verdicts + encode(verdicts) if verdicts else b""
            events, started, decided, least_ms = 1, False, False, at_ms
            is_read = False
            if is_over:
                is_read = rest == self._learnt.nothing.linked % (told, head, seq)
            else:
                key = index * _LABELS
                if track is not None:
                    key += track.together
                riders = learnt(key) or self._expect_riders(key)
                if rest != riders[0] % (
                    (told, head, seq, at, occurrence)
                    if riders[2] == 1
                    else (told, head, seq, at, occurrence, at, occurrence)
                    if riders[2]
                    else (told, head, seq)
                ):
                    linked, riders = link % (told, head, seq), None
                    if rest.startswith(linked):
                        riders, noted_ms = self._noted_otherwise(key, rest[len(linked) :], occurrence)
                        if noted_ms > at_ms:
                            least_ms = noted_ms
                if riders is not None:
                    _, _, ride, decision, effect, reserved = riders
                    if decision is not None:
                        if self._allowed(decision, index, args):
                            decided, started, is_read = True, effect != "", True
                            events = 2 + started
                    elif not ride:
                        is_read = True
                    elif not governed and (reserved is None or self._reserves(reserved)):
                        events, started, is_read = 2, True, True
            prev, head = head, digest.encode()
            seq += 1
            if not is_read:
                left = Left(entry, prev.decode(), verdicts or [])
                break
            if verdicts:
                agreed += len(verdicts)
            if is_over or decided is not governed:
                break
        reader.payloads += seq - reader.length
        reader.length, reader.head = seq, head.decode()
        self._index, self._occurrence, self._started, self._least_ms = index, occurrence, started, least_ms
        self._decided, self._effect = decided, effect
        self.verdicts += agreed
        self._pass(passed)
        if left is not None:
            self.leave()
        return left

    def _answer(self, key: int, written: bytes, place: int, occurrence: int) -> Answer | None:
        """A model's answer, from behind its time; None for anything else."""
        manner = self._learnt.manners.get(key)
        answer = None if manner is None else read_alike(written, place, occurrence, manner)
        if answer is not None:
            return answer
        index, label = divmod(key, _LABELS)
        answer = read_answer(written, place, self._program.steps[index].id, occurrence, label)
        if answer is not None:
            manner = manner_of(written, place, occurrence, answer)
            if manner is not None:
                self._learnt.manners[key] = manner
        return answer

    def _takes(self, index: int, value: Any, answer: Answer) -> bool:
        """Whether a model's answer passes the gate of its step (P2); then what it took is spent."""
        action: ModelAction = self._program.steps[index].action  # type: ignore[assignment]
        if action.allowed_outputs:
            if value not in action.allowed_outputs:
                return False
        elif not admits(action, value):
            return False
        state = self._state
        state.tokens += answer.tokens_in + answer.tokens_out
        state.cost_nanousd += answer.cost_nanousd
        self._reserved = 0, 0
        return True

    def _keep(
        self,
        ledger: Ledger,
        index: int,
        occurrence: int,
        value: Any,
        payload: bytes,
        answer: Answer | None,
        verdicts: list[Any],
        at_ms: int,
    ) -> None:
        """Have a success kept, and the conditions that followed."""
        step, state = self._program.steps[index], self._state
        if answer is None:
            ledger.succeed(step, occurrence, value, payload, self._entered_ms, at_ms)
        else:
            ledger.answer(step, occurrence, value, answer, self._entered_ms, at_ms, state)
        ledger.decide(verdicts, at_ms, state if self._walk is None else None)
        self._entered_ms = at_ms

    def _expect(self, key: int, started: bool) -> bytes:
        """How a success has to be written, up to its step: for its commitment, its time, and the number of its
        occurrence. Nothing for a model's: there is more to it."""
        index, label = divmod(key, _LABELS)
        if self._program.steps[index].kind is not Kind.TOOL:
            return b""
        begin = self._learnt.begins.get((started, label))
        if begin is None:
            members = success_of("", not started, 7, label).removesuffix(f'"{END}')
            before, after = members.split('"occurrence":7', 1)
            begin = self._learnt.begins[started, label] = b'%b%%b%b%%b%b"occurrence":%%d%b' % (
                HEAD.encode(),
                AT.encode(),
                before.encode(),
                after.encode(),
            )
        made = self._learnt.successes[started][key] = b'%b%b"' % (
            begin,
            self._program.steps[index].id.encode(),
        )
        return made

    def _expect_riders(self, key: int) -> _Riders:
        """What rides with the success before a step that is come to for the first time: what rode before another one of
        the same tool, if there was one."""
        index, label = divmod(key, _LABELS)
        step = self._program.steps[index]
        if type(step.action) is not ToolAction:
            return self._learnt.nothing
        found = self._learnt.tools.get((step.action.tool, label))
        if found is None:
            return self._learnt.nothing
        known, named = found
        own = _named(step)
        linked, format = known.linked.replace(named, own), known.format.replace(named, own)
        made = self._learnt.riders[key] = _Riders(linked, format, known.events, known.decided, known.effect)
        return made

    def _noted_otherwise(self, key: int, tail: bytes, occurrence: int) -> tuple[_Riders | None, int]:
        """What rides with a success, where it is not what did last or not of the same time, and the latest of its times
        (epoch ms). None where it is no decision or intent about what the walk has come to, or an unusual one."""
        if tail == _LAST:
            return self._learn_riders(key, self._learnt.nothing), 0
        if self._program.steps[key // _LABELS].kind is not Kind.TOOL:
            return self._asked(key, tail, occurrence)
        known = self._learnt.others.setdefault(key, deque(maxlen=_OTHERS_MAX))
        for found in known:
            noted_ms = _times(found, tail, occurrence)
            if noted_ms >= 0:
                self._learnt.riders[key] = found
                return found, noted_ms
        new = self._learn(key, tail, occurrence)
        if new is None:
            return None, 0
        known.append(new)
        return self._learn_riders(key, new), _times(new, tail, occurrence)

    def _asked(self, key: int, tail: bytes, occurrence: int) -> tuple[_Riders | None, int]:
        """The intent to ask a model, and when it was noted (epoch ms), where that is all that rides with a success."""
        index, label = divmod(key, _LABELS)
        intent = read_intent(tail, 0, self._program.steps[index].id, occurrence, label)
        if intent is None:
            return None, 0
        written = tail.replace(b"%", b"%%").replace(b'"at_ms":%d,' % intent.at_ms, b'"at_ms":%b,', 1)
        format = written.replace(b'"occurrence":%d,' % occurrence, b'"occurrence":%d,', 1)
        reserved = intent.tokens, intent.cost_nanousd
        found = _Riders(self._learnt.link + format, format, 1, None, "model", reserved)
        self._learnt.riders[key] = found
        return found, intent.at_ms

    def _reserves(self, reserved: tuple[int, int]) -> bool:
        """Whether what a model's answer may take is left; then it is kept."""
        state, (tokens, cost) = self._state, reserved
        # (Nothing else is under way.)
        if tokens and state.tokens_max and state.tokens + tokens > state.tokens_max:
            return False
        if cost and state.cost_nanousd_max and state.cost_nanousd + cost > state.cost_nanousd_max:
            return False
        self._reserved = reserved
        return True

    def _learn_riders(self, key: int, riders: _Riders) -> _Riders:
        """What rode before a step: to be expected of it, and of others of the same tool."""
        index, label = divmod(key, _LABELS)
        step = self._program.steps[index]
        if type(step.action) is ToolAction:
            self._learnt.tools[step.action.tool, label] = riders, _named(step)
        self._learnt.riders[key] = riders
        return riders

    def _learn(self, key: int, tail: bytes, occurrence: int) -> _Riders | None:
        """How what rides with a success is written, if it is a decision or an intent, or both."""
        index, label = divmod(key, _LABELS)
        step = self._program.steps[index]
        step_id = step.id
        decided: PolicyDecided | None = None
        effect, format = "", b""
        events = read_riders(tail)
        for event in events:
            at_ms, plain = event.at_ms, event
            if type(event) is PolicyDecided and event is events[0]:
                decided = event
                plain = PolicyDecided(
                    at_ms=at_ms,
                    attempt=1,
                    current=event.current,
                    decision="allow",
                    occurrence=occurrence,
                    policy=event.policy,
                    reason=event.reason,
                    rule=event.rule,
                    step=step_id,
                )
            elif (
                type(event) is StepStarted
                and event is events[-1]
                and event.effect
                and is_effect(self._program, step_id, event.effect)
            ):
                effect = event.effect
                plain = StepStarted(
                    at_ms=at_ms,
                    attempt=1,
                    effect=effect,
                    label=label or UNSET,
                    occurrence=occurrence,
                    step=step_id,
                )
            else:
                return None
            if event != plain:
                return None
            written = write_rider(plain).replace(b"%", b"%%")
            before, after = written.split(b'"occurrence":%d,' % occurrence, 1)
            before = before.replace(b"%d" % at_ms, b"%b", 1)  # which comes first of all
            format += b'%b%b"occurrence":%%d,%b' % (b"," if format else b"", before, after)
        if not events or len(events) != (decided is not None) + (effect != ""):
            return None
        format = b',"then":[%b]%b' % (format, _LAST)
        found = _Riders(self._learnt.link + format, format, len(events), decided, effect)
        return found if _times(found, tail, occurrence) >= 0 else None

    def _allowed(self, decided: PolicyDecided, index: int, args: Any) -> bool:
        """Whether everybody who looks at decisions is content with this one."""
        step = self._program.steps[index]
        for watcher in self._watchers:
            if not watcher.allows(decided, step, args, self._state):
                return False
        return True

    def _pass(self, steps: Sequence[int]) -> None:
        for watcher in self._watchers:
            watcher.passed(steps, self._state.settled if self._walk is None else ())

    def leave(self) -> None:
        """Bring `state` up to date and go no further."""
        if self._walk is not None:
            self._walk.close()
            self._walk = None
            state = self._state
            if self._decided:
                self._activity.cleared = 1
                state.seq += 1
            if self._started:
                begin(state, self._activity, self._effect)
                _reserve(state, self._activity, *self._reserved)
            if self._decided or self._started:
                state.now_ms = max(state.now_ms, self._least_ms)


def _reserve(state: State, activity: Activity, tokens: int, cost_nanousd: int) -> None:
    activity.reserved_tokens, activity.reserved_cost_nanousd = tokens, cost_nanousd
    state.reserved_tokens += tokens
    state.reserved_cost_nanousd += cost_nanousd


def _named(step: CompiledStep) -> bytes:
    """How events name a step. (Step ids need no escaping.)"""
    return b'"step":"%b"' % step.id.encode()


def _times(riders: _Riders, tail: bytes, occurrence: int) -> int:
    """The latest time (epoch ms) at which these were noted; -1 when it is not them that ride."""
    times = [tail[_RIDER : tail.find(b",", _RIDER)]]
    if riders.events == 2:
        begins = tail.find(_NEXT_RIDER, _RIDER) + len(_NEXT_RIDER)
        times.append(tail[begins : tail.find(b",", begins)])
    values = tuple([value for at in times for value in (at, occurrence)])
    if not all(map(is_number, times)) or tail != riders.format % values:
        return -1
    return max(map(int, times))


def stretch_from(
    program: CompiledProgram, state: State, watchers: Sequence[Watcher], learnt: Learnt
) -> Stretch | None:
    """The plain stretch that begins here, if one does: all that is in progress is a plain tool, or a model about which
    nothing has to be decided, at its first attempt."""
    if len(state.active) != 1 or state.seq < state.fork_seq:
        return None  # what a fork shares with another run was decided there
    (activity,) = state.active.values()
    if activity.step < 0:
        return None
    models, step = not state.policy, program.steps[activity.step]
    asks = models and is_plain_model(step)
    if not asks and not is_plain(step):
        return None
    if activity.phase is Phase.READY:
        if lane(program, state, models) is None:
            return None
        return Stretch(program, state, activity, False, watchers, learnt)
    if activity.phase is not Phase.STARTED or not activity.effect:
        return None
    if not asks and (activity.reserved_tokens or activity.reserved_cost_nanousd):
        return None
    # The lane begins before the intent, and `begin` takes it again.
    activity.phase = Phase.READY
    state.ready[activity.step] = None
    state.seq -= 1
    if lane(program, state, models) is not None:
        return Stretch(program, state, activity, True, watchers, learnt)
    begin(state, activity, activity.effect)
    return None
