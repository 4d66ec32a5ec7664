"""The bytes of a bundle: one text file of lines, each canonical JSON (RFC 8785) and each with one way to be written.

    {"bundle":"nano-vm","kind":"run","run":"…","version":1}
    {"program":{…}}                                              one per program, by hash
    {"policy":{…}}                                               one per policy that decided anything, by hash
    {"entries":2,"journal":"…"}                                  a run; then its entries
    {"digest":"sha256:…","facts":{…},"payload":…,"salt":"…"}
    {"receipt":{…}}
    {"checkpoint":"…","index":7,"leaf":{…},"proof":["…"]}        one per run, when the log has a checkpoint
    {"envelope":{…},"key":"…"}                                   when it is signed
    {"end":"sha256:…","lines":9}                                 digest of all lines before

Reading writes every line again and compares: a bundle whose bytes could be other than they are without saying anything
else does not exist. `spec/bundle.md` is normative.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Any, TypeVar

import msgspec

from nano_vm import canonical
from nano_vm.errors import InputError, VerificationError
from nano_vm.journal.entry import Entry

VERSION = 1
BYTES_MAX = 1 << 30
RUN, DISCLOSURE = "run", "disclosure"


class Header(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    bundle: str
    kind: str
    run: str
    version: int


class JournalLine(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The head of a run's journal; `entries` lines of it follow."""

    entries: int
    journal: str
    recall: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class ShownLine(msgspec.Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """One disclosed entry: number `seq` of `size`."""

    digest: str
    facts: msgspec.Raw
    proof: list[str]
    seq: int
    size: int
    payload: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    salt: str = ""


class LogLine(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Where a run's last log entry stands under a checkpoint."""

    checkpoint: str
    index: int
    leaf: dict[str, Any]
    proof: list[str]


class SignatureLine(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    envelope: dict[str, Any]
    key: str


class EndLine(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    end: str
    lines: int


class _EntryLine(msgspec.Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    digest: str
    facts: msgspec.Raw
    payload: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    salt: str = ""


class _ProgramLine(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    program: msgspec.Raw


class _PolicyLine(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    policy: msgspec.Raw


class _ReceiptLine(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    receipt: msgspec.Raw


class Contents(msgspec.Struct, kw_only=True):
    """What a bundle holds, as read; nothing of it is verified but its form.

    `journals` are (run id, entries) in order, the exported run first; `shown` is filled instead in a disclosure.
    `recall` has for runs with sealed values what their journals need to be folded without them
    (`nano_vm.journal.recall`).
    """

    kind: str
    run: str
    programs: list[bytes] = []
    policies: list[bytes] = []
    journals: list[tuple[str, list[Entry]]] = []
    recall: dict[str, dict[str, Any]] = {}
    shown: list[ShownLine] = []
    held: str = ""  # of a bundle that was read: SHA-256 of all lines before the receipt
    receipt: bytes = b""
    logs: list[LogLine] = []
    signature: SignatureLine | None = None


_T = TypeVar("_T")
_entry = msgspec.json.Decoder(_EntryLine).decode


# --- writing ----------------------------------------------------------------------------------------------------------
def write(contents: Contents) -> bytes:
    """The bundle's bytes."""
    lines = list(_lines(contents))
    body = b"".join(lines)
    end = {"end": canonical.digest(body), "lines": len(lines)}
    return body + canonical.encode(end) + b"\n"


def contents_digest(contents: Contents) -> str:
    """Digest of all lines before the receipt."""
    return canonical.digest(b"".join(_held(contents)))


def _lines(contents: Contents) -> Iterator[bytes]:
    yield from _held(contents)
    yield b'{"receipt":' + contents.receipt + b"}\n"
    for log in contents.logs:
        yield _line(msgspec.structs.asdict(log))
    if contents.signature is not None:
        yield _line(msgspec.structs.asdict(contents.signature))


def _held(contents: Contents) -> Iterator[bytes]:
    yield _line({"bundle": "nano-vm", "kind": contents.kind, "run": contents.run, "version": VERSION})
    for program in contents.programs:
        yield b'{"program":' + program + b"}\n"
    for policy in contents.policies:
        yield b'{"policy":' + policy + b"}\n"
    for run_id, entries in contents.journals:
        notes = contents.recall.get(run_id)
        told: dict[str, Any] = {"recall": notes} if notes else {}
        yield _line({"entries": len(entries), "journal": run_id, **told})
        for entry in entries:
            yield _entry_line(entry.digest, entry.facts, entry.payload, entry.salt)
    for shown in contents.shown:
        yield _shown_line(shown)


def _line(value: Any) -> bytes:
    return canonical.encode(value) + b"\n"


def _entry_line(digest: str, facts: bytes, payload: bytes | None, salt: bytes) -> bytes:
    # The facts and the payload are canonical bytes already, and must stay exactly these.
    rest = b"" if payload is None else b',"payload":%b,"salt":"%b"' % (payload, salt.hex().encode())
    return b'{"digest":"%b","facts":%b%b}\n' % (digest.encode(), facts, rest)


def _shown_line(shown: ShownLine) -> bytes:
    has_payload = shown.payload is not msgspec.UNSET
    payload = b'"payload":%b,' % bytes(shown.payload) if has_payload else b""  # type: ignore[arg-type]
    proof = canonical.encode(shown.proof)
    salt = b',"salt":"%b"' % shown.salt.encode() if has_payload else b""
    tail = b'"proof":%b%b,"seq":%d,"size":%d' % (proof, salt, shown.seq, shown.size)
    return b'{"digest":"%b","facts":%b,%b%b}\n' % (shown.digest.encode(), bytes(shown.facts), payload, tail)


# --- reading ----------------------------------------------------------------------------------------------------------
def read(data: bytes) -> Contents:
    """The contents of a bundle, line by line.

    Raises:
        VerificationError: BUNDLE_MALFORMED (facts: line) for bytes that are no bundle of this version, or not written
            as a bundle is; BUNDLE_DAMAGED when the lines are not those that its end speaks of.
    """
    if len(data) > BYTES_MAX:
        raise _malformed(0, f"it is larger than {BYTES_MAX} bytes")
    if not data.startswith(b'{"bundle":"nano-vm",'):
        raise _malformed(1, "it does not begin as a bundle does")
    if not data.endswith(b"\n"):
        raise _malformed(data.count(b"\n") + 1, "its last line is not complete")
    lines = data[:-1].split(b"\n")
    _check_end(data, lines)
    return _Reader(lines[:-1]).contents()


def _check_end(data: bytes, lines: list[bytes]) -> None:
    end = _decode(EndLine, lines[-1], len(lines))
    if canonical.encode({"end": end.end, "lines": end.lines}) != lines[-1]:
        raise _malformed(len(lines), "the line is not in canonical form")
    found = sha256(memoryview(data)[: len(data) - len(lines[-1]) - 1]).hexdigest()
    if end.end != "sha256:" + found or end.lines != len(lines) - 1:
        raise VerificationError(
            "BUNDLE_DAMAGED",
            "the bundle was changed: its lines are not those that its end speaks of",
            help="ask for it again",
            facts={"line": len(lines)},
        )


class _Reader:
    """Takes the lines in the one order they may have."""

    def __init__(self, lines: list[bytes]) -> None:
        self.lines = lines
        self.place = 0

    def contents(self) -> Contents:
        header = self._take(Header)
        if header.version != VERSION:
            raise _malformed(
                1, f"it is of version {header.version}, and this nano-vm reads version {VERSION}"
            )
        if header.bundle != "nano-vm" or header.kind not in (RUN, DISCLOSURE):
            raise _malformed(1, "its kind is unknown")
        contents = Contents(kind=header.kind, run=header.run)
        while self._at(b'{"program":'):
            contents.programs.append(self._raw(_ProgramLine, b'{"program":'))
        while self._at(b'{"policy":'):
            contents.policies.append(self._raw(_PolicyLine, b'{"policy":'))
        while self._at(b'{"entries":') and header.kind == RUN:
            contents.journals.append(self._journal(contents))
        while self._at(b'{"digest":') and header.kind == DISCLOSURE:
            contents.shown.append(self._shown())
        contents.held = sha256(b"\n".join(self.lines[: self.place]) + b"\n").hexdigest()
        contents.receipt = self._raw(_ReceiptLine, b'{"receipt":')
        while self._at(b'{"checkpoint":'):
            contents.logs.append(self._take(LogLine))
        if self._at(b'{"envelope":'):
            contents.signature = self._take(SignatureLine)
        if self.place != len(self.lines):
            raise _malformed(self.place + 1, "nothing of this kind belongs here")
        return contents

    def _at(self, start: bytes) -> bool:
        return self.place < len(self.lines) and self.lines[self.place].startswith(start)

    def _next(self) -> bytes:
        if self.place >= len(self.lines):
            raise _malformed(self.place + 1, "the bundle ends too early")
        self.place += 1
        return self.lines[self.place - 1]

    def _take(self, kind: type[_T]) -> _T:
        """A line without raw parts, which must be as `canonical.encode` writes it."""
        line = self._next()
        found = _decode(kind, line, self.place)
        if not _is_written(msgspec.to_builtins(found), line):
            raise _malformed(self.place, "the line is not in canonical form")
        return found

    def _raw(self, kind: type[_ProgramLine] | type[_PolicyLine] | type[_ReceiptLine], start: bytes) -> bytes:
        line = self._next()
        (held,) = msgspec.structs.astuple(_decode(kind, line, self.place))
        raw = bytes(held)
        if line != start + raw + b"}" or not canonical.is_canonical(raw):
            raise _malformed(self.place, "the line is not in canonical form")
        return raw

    def _journal(self, contents: Contents) -> tuple[str, list[Entry]]:
        head = self._take(JournalLine)
        if head.recall is not msgspec.UNSET:
            if not head.recall or not all(type(note) is dict for note in head.recall.values()):
                raise _malformed(self.place, "what it says of sealed values cannot be read")
            contents.recall[head.journal] = head.recall
        if not 0 < head.entries <= len(self.lines) - self.place:
            raise _malformed(self.place, "the journal does not have the entries it should have")
        first = self.place
        self.place += head.entries
        entries = list(_entries(self.lines[first : self.place], first + 1))
        sealed = any(entry.payload is not None and not entry.salt for entry in entries)
        if head.recall is not msgspec.UNSET and not sealed:
            # Nothing would look at it: it could be anything, and the bundle would verify all the same.
            raise _malformed(first, "it says something of sealed values, and has none")
        return head.journal, entries

    def _shown(self) -> ShownLine:
        line = self._next()
        shown = _decode(ShownLine, line, self.place)
        if _shown_line(shown) != line + b"\n" or _salt(shown.salt, self.place).hex() != shown.salt:
            raise _malformed(self.place, "the line is not in canonical form")
        return shown


def _entries(lines: Iterable[bytes], number: int) -> Iterator[Entry]:
    for seq, line in enumerate(lines):
        try:
            held = _entry(line)
            payload = held.payload
            body = None if payload is msgspec.UNSET else bytes(payload)
            entry = Entry(seq, held.digest, bytes(held.facts), bytes.fromhex(held.salt), body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
            raise _malformed(number + seq, "the line is no entry") from None
        if _entry_line(entry.digest, entry.facts, entry.payload, entry.salt) != line + b"\n":
            raise _malformed(number + seq, "the line is not in canonical form")
        yield entry


def _salt(text: str, number: int) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise _malformed(number, "the salt cannot be read") from None


def _decode(kind: type[_T], line: bytes, number: int) -> _T:
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # From nothing: the parser's message may quote the data.
        raise _malformed(number, "the line cannot be read") from None


def _is_written(value: Any, line: bytes) -> bool:
    try:
        return canonical.encode(value) == line
    except InputError:
        return False


def _malformed(line: int, what: str) -> VerificationError:
    return VerificationError(
        "BUNDLE_MALFORMED",
        f"line {line}: {what}" if line else what,
        help="a bundle is what `nano-vm export` writes",
        facts={"line": line},
    )
