"""The error taxonomy: one stable code per failure, its fault, and what may be done about it.

Every error nano-vm raises is a `NanoVMError` carrying a `code` from `CODES`. The code decides whose fault it is,
whether trying again can help, and the exit code of the command line. Messages may be reworded at any time; codes,
fields and places may not (STYLE: tests compare codes and fields, never message text).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple


class Fault(StrEnum):
    """Who has to act on an error."""

    AUTHOR = "author"  # of the program, policy or tool
    CALLER = "caller"  # of the API or the command line
    ENVIRONMENT = "environment"  # disk, database, network, operating system
    TAMPERING = "tampering"  # stored evidence does not say what it said
    BUG = "bug"  # ours


class ErrorCode(NamedTuple):
    """What a code means: `fault`, whether a later identical call may succeed, and the process exit code."""

    fault: Fault
    retryable: bool
    exit_code: int
    summary: str


class Place(NamedTuple):
    """Where something went wrong, as precisely as is known.

    `line` and `column` are 1-based and count characters; 0 means unknown. `path` is a JSON Pointer (RFC 6901)
    into the document. `step` and `field` name the program element.
    """

    file: str | None = None
    line: int = 0
    column: int = 0
    path: str = ""
    step: str | None = None
    field: str | None = None

    def __str__(self) -> str:
        where = self.file or ""
        if self.line:
            where = f"{where or '<input>'}:{self.line}:{self.column}"
        elif self.path:
            where = f"{where} {self.path}".strip()
        parts = [where] if where else []
        if self.step:
            parts.append(f"step `{self.step}`")
        if self.field:
            parts.append(self.field)
        return ", ".join(parts)


class NanoVMError(Exception):
    """Base of every error raised by nano-vm.

    Args:
        code: a key of `CODES`.
        message: what is wrong: lower case, no full stop, user text in backticks, never a secret or a payload.
        place: where, when a document is at fault.
        help: how to mend it.
        facts: further data for programs to read (`error.facts["expected"]`); JSON values only.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        place: Place | None = None,
        help: str | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.place = place
        self.help = help
        self.facts: dict[str, Any] = dict(facts or {})

    @property
    def fault(self) -> Fault:
        return CODES[self.code].fault

    @property
    def retryable(self) -> bool:
        return CODES[self.code].retryable

    @property
    def exit_code(self) -> int:
        return CODES[self.code].exit_code

    def __str__(self) -> str:
        lines = [f"{self.code} {self.message}"]
        if self.place is not None and str(self.place):
            lines.append(f"  at {self.place}")
        if self.help:
            lines.append(f"  help: {self.help}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions cross process boundaries in worker pools; keyword-only facts must survive the trip.
        return (_rebuild, (type(self), dict(self.__dict__)))


def _rebuild(kind: type[NanoVMError], state: dict[str, Any]) -> NanoVMError:
    error = kind.__new__(kind)
    Exception.__init__(error, state["code"], state["message"])
    error.__dict__.update(state)
    return error


class ProgramError(NanoVMError):
    """A program (or expression, or template) that cannot be accepted. `diagnostics` lists every finding."""


class InputError(NanoVMError):
    """Data handed in by a caller, a tool or a model that cannot be taken as it is."""


class ConflictError(NanoVMError):
    """The same key was used before for something else."""


class RejectedError(NanoVMError):
    """A run refused an event; the state is as it was. `code` is the kernel's rejection."""


class StoreError(NanoVMError):
    """The database cannot be opened, read or written. Stored data is intact."""


class NotFoundError(NanoVMError):
    """No run, program or step of that name."""


class VerificationError(NanoVMError):
    """Stored evidence does not verify. `facts["seq"]` is the first bad entry, where one is to blame."""


class CapabilityDeniedError(NanoVMError):
    """An action that policy or registry does not allow."""


class RuntimeFault(NanoVMError):
    """The runtime could not go on (missing adapter, missing extra, shut down)."""


A, C, E, T, B = Fault.AUTHOR, Fault.CALLER, Fault.ENVIRONMENT, Fault.TAMPERING, Fault.BUG

# One table for the whole distribution: `spec/errors.md` is generated from it and a test keeps them equal.
CODES: dict[str, ErrorCode] = {
    # --- values -------------------------------------------------------------------------------------------
    "VALUE_NOT_JSON": ErrorCode(C, False, 2, "a value of a type that JSON does not have"),
    "VALUE_NUMBER": ErrorCode(C, False, 2, "a number that is not finite, or an integer beyond 2^53-1"),
    "VALUE_STRING": ErrorCode(C, False, 2, "a string with an unpaired surrogate"),
    "VALUE_TOO_DEEP": ErrorCode(C, False, 2, "nesting beyond the limit"),
    "VALUE_TOO_LARGE": ErrorCode(C, False, 2, "a value whose canonical form is beyond the limit"),
    "VALUE_SYNTAX": ErrorCode(C, False, 2, "bytes that are not JSON"),
    # --- journal ------------------------------------------------------------------------------------------
    "JOURNAL_MALFORMED": ErrorCode(T, False, 5, "a journal entry that cannot be read"),
    "DIGEST_MISMATCH": ErrorCode(T, False, 5, "an entry's facts were changed"),
    "CHAIN_BROKEN": ErrorCode(T, False, 5, "an entry is missing, moved or foreign"),
    "COMMITMENT_MISMATCH": ErrorCode(T, False, 5, "an entry's payload or salt was changed"),
    "REPLAY_MISMATCH": ErrorCode(T, False, 5, "the kernel would not take a recorded transition"),
    "RECORD_MISMATCH": ErrorCode(T, False, 5, "a run's record does not say what its journal says"),
    # --- stores -------------------------------------------------------------------------------------------
    "RUN_EXISTS": ErrorCode(C, False, 2, "the run id or idempotency key is taken"),
    "KEY_CONFLICT": ErrorCode(C, False, 2, "the same idempotency key was used with another context"),
    "JOURNAL_CONFLICT": ErrorCode(E, False, 1, "somebody else wrote at this place of the journal"),
    "LEASE_LOST": ErrorCode(E, True, 1, "another worker owns the run"),
    "RUN_NOT_FOUND": ErrorCode(C, False, 2, "no run of that id"),
    "PROGRAM_NOT_FOUND": ErrorCode(C, False, 2, "no program of that name or hash"),
    "MAIL_CONFLICT": ErrorCode(C, False, 2, "the same message id was used with another body"),
    "MAIL_NOT_FOUND": ErrorCode(C, False, 2, "no message of that id"),
    "MAIL_FULL": ErrorCode(C, True, 1, "too many unanswered messages for the run"),
    "STORE_LOCKED": ErrorCode(E, True, 1, "the database is locked by another process"),
    "STORE_FULL": ErrorCode(E, True, 1, "the disk is full"),
    "STORE_READ_ONLY": ErrorCode(E, False, 1, "the database cannot be written"),
    "STORE_DAMAGED": ErrorCode(T, False, 5, "the database file is damaged"),
    "STORE_FOREIGN": ErrorCode(C, False, 2, "the file is not a nano-vm database"),
    "STORE_NEWER": ErrorCode(E, False, 1, "the database was made by a newer nano-vm"),
    "STORE_CLOSED": ErrorCode(C, False, 1, "the store is closed"),
    "STORE_IO": ErrorCode(E, True, 1, "reading or writing the database failed"),
    # --- usage --------------------------------------------------------------------------------------------
    "USAGE": ErrorCode(C, False, 2, "a command line or call that cannot be understood"),
    "EXTRA_MISSING": ErrorCode(E, False, 1, "an optional dependency is not installed"),
    "INTERNAL": ErrorCode(B, False, 70, "a defect of nano-vm"),
}

del A, C, E, T, B
