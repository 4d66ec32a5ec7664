"""The plain answer of a model, and the intent to ask it, as they are written.

What an answer took and who gave it, and what is reserved for it, differ from entry to entry, so they are read here, not
compared. What is read is in canonical form: its members are there in their order, its numbers are written in one way,
and its texts hold nothing that has to be escaped. Everything else is left to whoever reads events.
"""

from __future__ import annotations

import re

import msgspec

_NUMBER = rb"(0|[1-9]\d{0,14})"
_TEXT = rb'"([ !#-\[\]-~]+)"'  # printable ASCII, without quotes and backslashes

_ANSWER = re.compile(
    rb',"attempt":1,(?:"cached":(true),)?(?:"cost_nanousd":%b,)?(?:"label":([1-7]),)?(?:"model":%b,)?'
    rb'"occurrence":%b,(?:"provider":%b,)?"step":%b(?:,"tokens_in":%b)?(?:,"tokens_out":%b)?'
    % (_NUMBER, _TEXT, _NUMBER, _TEXT, _TEXT, _NUMBER, _NUMBER)
).match
_INTENT = re.compile(
    rb',"then":\[\{"event":\{"at_ms":%b,"attempt":1,"effect":"model",(?:"label":([1-7]),)?"occurrence":%b,'
    rb'(?:"reserved_cost_nanousd":%b,)?(?:"reserved_tokens":%b,)?"step":%b\},"type":"StepStarted"\}\],'
    rb'"type":"StepSucceeded"\}' % (_NUMBER, _NUMBER, _NUMBER, _NUMBER, _TEXT)
).match


_FIRST = b',"attempt":1,'
_START = len(_FIRST)
_PAID = re.compile(rb',"attempt":1,"cost_nanousd":%b,' % _NUMBER).match
_LAST = re.compile(rb'(?:,"tokens_in":%b)?(?:,"tokens_out":%b)?' % (_NUMBER, _NUMBER)).match


class Manner(msgspec.Struct, frozen=True, gc=False):
    """How a step's model has named itself and what it was asked, between what its answer cost and its tokens: as it is
    written, but for the number of the occurrence."""

    format: bytes
    model: bytes | None
    provider: bytes | None


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What a success says of a model's answer: where its members end, and what it took."""

    end: int
    cost_nanousd: int
    tokens_in: int
    tokens_out: int
    model: bytes | None
    provider: bytes | None
    is_cached: bool


class Intent(msgspec.Struct, frozen=True, gc=False):
    """When a model is asked (epoch ms), and what is reserved for its answer."""

    at_ms: int
    tokens: int
    cost_nanousd: int


def read_answer(facts: bytes, place: int, step_id: str, occurrence: int, label: int) -> Answer | None:
    """The answer in a StepSucceeded, from behind its time: that of a first attempt of this step. None for anything
    else."""
    found = _ANSWER(facts, place)
    if found is None:
        return None
    cached, cost, labelled, model, number, provider, step, tokens_in, tokens_out = found.groups()
    if step != step_id.encode() or number != b"%d" % occurrence or not _is_label(labelled, label):
        return None
    return Answer(
        found.end(),
        int(cost) if cost else 0,
        int(tokens_in) if tokens_in else 0,
        int(tokens_out) if tokens_out else 0,
        model,
        provider,
        cached is not None,
    )


def read_alike(facts: bytes, place: int, occurrence: int, manner: Manner) -> Answer | None:
    """`read_answer` of one that was paid for, or cost nothing, in the manner of an earlier answer. None for others."""
    start = manner.format % occurrence
    cost = 0
    if not facts.startswith(start, place):
        found = _PAID(facts, place)
        if found is None or not facts.startswith(start[_START:], found.end()):
            return None
        cost, place = int(found[1]), found.end() - _START
    spent = _LAST(facts, place + len(start))
    tokens_in, tokens_out = spent.groups()  # type: ignore[union-attr]
    return Answer(
        spent.end(),  # type: ignore[union-attr]
        cost,
        int(tokens_in) if tokens_in else 0,
        int(tokens_out) if tokens_out else 0,
        manner.model,
        manner.provider,
        False,
    )


def manner_of(facts: bytes, place: int, occurrence: int, answer: Answer) -> Manner | None:
    """In what manner this answer is written, which `read_answer` has read there; None for one out of a cache."""
    if answer.is_cached:
        return None
    paid = _PAID(facts, place)
    begin = place + _START if paid is None else paid.end()
    step = facts.find(b'"step":"', begin) + len(b'"step":"')
    # (Names hold no quotation marks.)
    named = facts[begin : facts.find(b'"', step) + 1].replace(b"%", b"%%")
    before, after = named.split(b'"occurrence":%d,' % occurrence, 1)
    return Manner(b'%b%b"occurrence":%%d,%b' % (_FIRST, before, after), answer.model, answer.provider)


def read_intent(facts: bytes, place: int, step_id: str, occurrence: int, label: int) -> Intent | None:
    """The intent to ask a model, where it is all that rides with a success, from behind the number of the entry. None
    for anything else."""
    found = _INTENT(facts, place)
    if found is None or found.end() != len(facts):
        return None
    at, labelled, number, cost, tokens, step = found.groups()
    if step != step_id.encode() or number != b"%d" % occurrence or not _is_label(labelled, label):
        return None
    return Intent(int(at), int(tokens) if tokens else 0, int(cost) if cost else 0)


def _is_label(labelled: bytes | None, label: int) -> bool:
    return labelled == b"%d" % label if label else labelled is None
