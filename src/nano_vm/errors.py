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


_INVALID_PROGRAM = 3  # the exit code


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
        where = ", ".join(parts)
        # Names are somebody's: what moves a terminal's cursor is not shown.
        return where if where.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in where)


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

    @property
    def exit_code(self) -> int:
        # Some codes are findings of the compiler as well as failures of a run.
        return _INVALID_PROGRAM if "findings" in self.facts else super().exit_code


class PolicyError(NanoVMError):
    """A policy that cannot be accepted. `diagnostics` lists every finding."""

    @property
    def exit_code(self) -> int:
        return _INVALID_PROGRAM if "findings" in self.facts else super().exit_code


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


class VaultError(NanoVMError):
    """The vault cannot be opened, read or written, or what it sealed does not open."""


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
    # --- program ------------------------------------------------------------------------------------------
    "INVALID_PROGRAM": ErrorCode(A, False, 3, "a program with errors"),
    "PROGRAM_UNREADABLE": ErrorCode(C, False, 2, "a program file that cannot be read"),
    "DOCUMENT_ENCODING": ErrorCode(A, False, 3, "text that is not UTF-8, or has control characters"),
    "DOCUMENT_SYNTAX": ErrorCode(A, False, 3, "text that is not YAML or JSON"),
    "DOCUMENT_TAB": ErrorCode(A, False, 3, "a tab where YAML wants spaces"),
    "DOCUMENT_TOO_LARGE": ErrorCode(A, False, 3, "a document beyond the size or node limit"),
    "DOCUMENT_TOO_DEEP": ErrorCode(A, False, 3, "a document nested beyond the limit"),
    "DOCUMENT_ALIAS": ErrorCode(A, False, 3, "an alias that is unknown, contains itself or expands too far"),
    "DOCUMENT_TAG": ErrorCode(A, False, 3, "a YAML tag or merge key"),
    "DOCUMENT_KEY": ErrorCode(A, False, 3, "a key that is not a string"),
    "DOCUMENT_NUMBER": ErrorCode(A, False, 3, "a number that JSON cannot hold exactly"),
    "DOCUMENT_STRING": ErrorCode(A, False, 3, "a string with an unpaired surrogate"),
    "DOCUMENT_VALUE": ErrorCode(A, False, 3, "a value of a type that JSON does not have"),
    "DUPLICATE_KEY": ErrorCode(A, False, 3, "the same key twice in one mapping"),
    "MULTIPLE_DOCUMENTS": ErrorCode(A, False, 3, "more than one document in one text"),
    "NOT_A_PROGRAM": ErrorCode(A, False, 3, "a document that is empty or not a mapping"),
    "UNKNOWN_FIELD": ErrorCode(A, False, 3, "a field that the language does not have"),
    "FIELD_NOT_ALLOWED": ErrorCode(A, False, 3, "a field that does not belong to this type of step"),
    "MISSING_FIELD": ErrorCode(A, False, 3, "a field that must be there"),
    "FIELD_CONFLICT": ErrorCode(A, False, 3, "fields that exclude or require one another"),
    "FIELD_WITHOUT_EFFECT": ErrorCode(A, False, 3, "a field that does nothing here"),
    "WRONG_TYPE": ErrorCode(A, False, 3, "a value of the wrong JSON type"),
    "BAD_VALUE": ErrorCode(A, False, 3, "a value outside what the field allows"),
    "BAD_IDENTIFIER": ErrorCode(A, False, 3, "a name that is not an identifier"),
    "BAD_SCHEMA": ErrorCode(A, False, 3, "an invalid JSON Schema"),
    "BAD_SUBJECT": ErrorCode(A, False, 3, "a data subject that is not known when the run starts"),
    "BAD_TEMPLATE": ErrorCode(A, False, 3, "a template that cannot be used here"),
    "SUBSTEP_NOT_ALLOWED": ErrorCode(A, False, 3, "a step or field that has no place inside parallel or map"),
    # --- compiler -----------------------------------------------------------------------------------------
    "DUPLICATE_ID": ErrorCode(A, False, 3, "two steps of the same id"),
    "MISSING_TARGET": ErrorCode(A, False, 3, "a target that is no step"),
    "MISSING_BRANCH": ErrorCode(A, False, 3, "a condition with neither then nor otherwise"),
    "UNREACHABLE_STEP": ErrorCode(A, False, 3, "a step that no path comes to"),
    "AMBIGUOUS_BRANCH": ErrorCode(A, False, 3, "one branch of a condition falls into the other"),
    "CYCLE_WITHOUT_EXIT": ErrorCode(A, False, 3, "a loop that cannot be left"),
    "CYCLE_WITHOUT_BUDGET": ErrorCode(A, False, 3, "a loop in a program that declares no budget"),
    "DEPENDS_ON_CYCLE": ErrorCode(A, False, 3, "steps that wait for one another"),
    "DEPENDS_ON_MIXED": ErrorCode(A, False, 3, "next_step in a program that uses depends_on"),
    "NO_FAILURE_TERMINAL": ErrorCode(A, False, 3, "no way for the program to end in a governed failure"),
    "UNKNOWN_REFERENCE": ErrorCode(A, False, 3, "a reference to nothing in the program"),
    "ASSUMED_INPUT": ErrorCode(A, False, 3, "an undeclared reference that is taken to be an input"),
    "NAME_COLLISION": ErrorCode(A, False, 3, "one name for two things"),
    "RESERVED_NAME": ErrorCode(A, False, 3, "a name that the language keeps for itself"),
    "IMPOSSIBLE_BRANCH": ErrorCode(A, False, 3, "a comparison that can never hold"),
    "BAD_ARGUMENT": ErrorCode(A, False, 3, "an argument that the tool's schema does not allow"),
    "MISSING_ARGUMENT": ErrorCode(A, False, 3, "an argument that the tool's schema requires"),
    "UNKNOWN_ARGUMENT": ErrorCode(A, False, 3, "an argument that the tool does not have"),
    "UNKNOWN_TOOL": ErrorCode(A, False, 3, "a tool that is not registered"),
    "FALLBACK_ON_EFFECT": ErrorCode(
        A, False, 3, "a fallback for a tool whose time-out is an unknown outcome"
    ),
    "FALLBACK_IMPLICIT": ErrorCode(A, False, 3, "a fallback value that the author did not write"),
    "UNKNOWN_PROGRAM": ErrorCode(A, False, 3, "a called program that is not stored"),
    "CALL_RECURSION": ErrorCode(A, False, 3, "a program that calls itself"),
    "ANALYSIS_LIMIT": ErrorCode(A, False, 3, "a program too intricate to be analysed completely"),
    # --- policy -------------------------------------------------------------------------------------------
    "INVALID_POLICY": ErrorCode(A, False, 3, "a policy with errors"),
    "POLICY_UNREADABLE": ErrorCode(C, False, 2, "a policy file that cannot be read"),
    "POLICY_CONTRADICTION": ErrorCode(A, False, 3, "rules of a policy that cannot both be meant"),
    "POLICY_REDUNDANT": ErrorCode(A, False, 3, "a rule that changes nothing"),
    "POLICY_EMPTY": ErrorCode(A, False, 3, "a policy without rules"),
    "POLICY_NOT_FOUND": ErrorCode(C, False, 2, "no policy of that hash is stored"),
    "DUPLICATE_RULE": ErrorCode(A, False, 3, "two rules of the same id, or an id that is reserved"),
    "VALUE_SYNTAX": ErrorCode(C, False, 2, "bytes that are not JSON"),
    # --- journal ------------------------------------------------------------------------------------------
    "JOURNAL_MALFORMED": ErrorCode(T, False, 5, "a journal entry that cannot be read"),
    "DIGEST_MISMATCH": ErrorCode(T, False, 5, "an entry's facts were changed"),
    "CHAIN_BROKEN": ErrorCode(T, False, 5, "an entry is missing, moved or foreign"),
    "COMMITMENT_MISMATCH": ErrorCode(T, False, 5, "an entry's payload or salt was changed"),
    "REPLAY_MISMATCH": ErrorCode(T, False, 5, "the kernel would not take a recorded transition"),
    "POLICY_UNKNOWN": ErrorCode(T, False, 5, "the policy that a decision names is not at hand"),
    "RECORD_MISMATCH": ErrorCode(T, False, 5, "a run's record does not say what its journal says"),
    "PAYLOAD_MISSING": ErrorCode(T, False, 5, "a payload is gone that no entry says was erased"),
    "PROOF_INVALID": ErrorCode(T, False, 5, "an inclusion or consistency proof does not lead to the root"),
    # --- evidence -----------------------------------------------------------------------------------------
    "BUNDLE_MALFORMED": ErrorCode(T, False, 5, "a file that is no evidence bundle, or not written as one"),
    "BUNDLE_DAMAGED": ErrorCode(T, False, 5, "a bundle's lines are not those that its end speaks of"),
    "CHILD_MISMATCH": ErrorCode(T, False, 5, "a child run is not the one that its parent knows"),
    "RECEIPT_MISMATCH": ErrorCode(T, False, 5, "a receipt is not what its journal comes to"),
    "SIGNATURE_INVALID": ErrorCode(T, False, 5, "a signature does not fit the key, or what was signed"),
    "SIGNATURE_MISSING": ErrorCode(T, False, 5, "a signature is expected and there is none"),
    "SIGNER_UNKNOWN": ErrorCode(T, False, 5, "something is signed with a key that is not expected"),
    "NOTE_MALFORMED": ErrorCode(T, False, 5, "a checkpoint that cannot be read"),
    "COUNT_MISSING": ErrorCode(
        T, False, 5, "what a limit counted for an allowed action is not in the store any more"
    ),
    "CHECKPOINT_MISMATCH": ErrorCode(T, False, 5, "the store's log is not what a checkpoint says it was"),
    "EXPORT_LIMIT": ErrorCode(C, False, 2, "a run too large for one bundle"),
    "BUNDLE_FILE": ErrorCode(E, False, 1, "a file of evidence that cannot be read or written"),
    "KEY_NAME": ErrorCode(
        C, False, 2, "a name that no key can have, or that does not say which key is meant"
    ),
    "KEY_EXISTS": ErrorCode(C, False, 2, "there is a key of that name already"),
    "KEY_NOT_FOUND": ErrorCode(C, False, 2, "no key of that name"),
    "KEY_FILE": ErrorCode(E, False, 1, "a key file that cannot be used"),
    "KEY_PERMISSIONS": ErrorCode(E, False, 1, "a private key that others can read"),
    # --- observing ----------------------------------------------------------------------------------------
    "BAD_BASELINE": ErrorCode(C, False, 2, "a file that is no baseline, or one of another program"),
    "BASELINE_FILE": ErrorCode(E, False, 1, "a baseline's file that cannot be read or written"),
    "ALERT_FAILED": ErrorCode(E, True, 1, "an alert did not arrive"),
    "BAD_EVENT_LOG": ErrorCode(C, False, 2, "a line of an event log that is none"),
    "EVENT_LOG_FILE": ErrorCode(E, False, 1, "an event log that cannot be written"),
    "SMALL_BASELINE": ErrorCode(C, False, 2, "too few runs to learn from"),
    # --- stores -------------------------------------------------------------------------------------------
    "RUN_EXISTS": ErrorCode(C, False, 2, "the run id or idempotency key is taken"),
    "KEY_CONFLICT": ErrorCode(C, False, 2, "the same idempotency key was used with another context"),
    "JOURNAL_CONFLICT": ErrorCode(E, False, 1, "somebody else wrote at this place of the journal"),
    "LEASE_LOST": ErrorCode(E, True, 1, "another worker owns the run"),
    "RUN_NOT_FOUND": ErrorCode(C, False, 2, "no run of that id"),
    "PROGRAM_NOT_FOUND": ErrorCode(C, False, 2, "no program of that name or hash"),
    "MAIL_NOT_FOUND": ErrorCode(C, False, 2, "the run has no message of that id"),
    "MAIL_CONFLICT": ErrorCode(C, False, 2, "the same message id was used with another body"),
    "MAIL_FULL": ErrorCode(C, True, 1, "too many unanswered messages for the run"),
    "STORE_LOCKED": ErrorCode(E, True, 1, "the database is locked by another process"),
    "STORE_FULL": ErrorCode(E, True, 1, "the disk is full"),
    "STORE_READ_ONLY": ErrorCode(E, False, 1, "the database cannot be written"),
    "STORE_DAMAGED": ErrorCode(T, False, 5, "the database file is damaged"),
    "STORE_FOREIGN": ErrorCode(C, False, 2, "the file is not a nano-vm database"),
    "STORE_NEWER": ErrorCode(E, False, 1, "the database was made by a newer nano-vm"),
    "STORE_CLOSED": ErrorCode(C, False, 1, "the store is closed"),
    "STORE_IO": ErrorCode(E, True, 1, "reading or writing the database failed"),
    "STORE_UNGUARDED": ErrorCode(E, False, 1, "a session in which the guards of the tables are turned off"),
    # --- expressions --------------------------------------------------------------------------------------
    "EXPR_SYNTAX": ErrorCode(A, False, 3, "an expression that does not follow the grammar"),
    "EXPR_CALL": ErrorCode(A, False, 3, "a function or method call in an expression"),
    "EXPR_ARITHMETIC": ErrorCode(A, False, 3, "arithmetic in an expression"),
    "EXPR_INDEX": ErrorCode(A, False, 3, "an indexing expression"),
    "EXPR_LAMBDA": ErrorCode(A, False, 3, "a function in an expression"),
    "EXPR_ASSIGNMENT": ErrorCode(A, False, 3, "an assignment in an expression"),
    "EXPR_FSTRING": ErrorCode(A, False, 3, "a string with a prefix or in backticks"),
    "EXPR_CHAIN": ErrorCode(A, False, 3, "a comparison of a comparison without parentheses"),
    "EXPR_NUMBER": ErrorCode(A, False, 3, "a number that is malformed or out of range"),
    "EXPR_STRING": ErrorCode(A, False, 3, "a string that is not closed, or holds an unknown escape"),
    "EXPR_REFERENCE": ErrorCode(A, False, 3, "a malformed reference"),
    "EXPR_WORD": ErrorCode(A, False, 3, "a word that is neither quoted nor a reference nor an operator"),
    "EXPR_TOO_LONG": ErrorCode(A, False, 3, "an expression beyond the limit of characters or nodes"),
    "EXPR_TOO_DEEP": ErrorCode(A, False, 3, "an expression nested beyond the limit"),
    "EXPR_AST": ErrorCode(A, False, 3, "a JSON AST that is not an expression"),
    "TYPE_MISMATCH": ErrorCode(A, False, 3, "an operator applied to values of types it does not take"),
    "IMPOSSIBLE_COMPARISON": ErrorCode(A, False, 3, "a comparison that no possible value can satisfy"),
    "CONSTANT_CONDITION": ErrorCode(A, False, 3, "a condition whose result never changes"),
    "UNRESOLVED_REFERENCE": ErrorCode(A, False, 1, "a reference into a value that has no such part"),
    "UNASSIGNED_REFERENCE": ErrorCode(A, False, 1, "a reference to a value that is not assigned yet"),
    "PRIVATE_AMOUNT": ErrorCode(
        A, False, 4, "a limit of a policy would add up a private value; what is counted is stored in clear"
    ),
    "NO_PRICE": ErrorCode(E, False, 4, "a policy limits what a model costs, and its adapter knows no price"),
    # --- kernel: why a step or a run did not succeed ------------------------------------------------------
    "NO_BRANCH": ErrorCode(A, False, 1, "a condition came to a branch that the program does not have"),
    "BAD_DELAY": ErrorCode(A, False, 1, "`seconds` of a wait is not a number in range"),
    "BAD_INSTANT": ErrorCode(A, False, 1, "`until` of a wait is not a point in time"),
    "BAD_IDEMPOTENCY_KEY": ErrorCode(A, False, 1, "`idempotency_key` is neither a text nor a number"),
    "BAD_CALL_INPUTS": ErrorCode(A, False, 1, "`inputs` of a call is not an object"),
    "NOT_A_LIST": ErrorCode(A, False, 1, "`over` of a map is not a list"),
    "TOO_MANY_ITEMS": ErrorCode(A, False, 1, "a map has more elements than `max_items`"),
    "SUBSTEP_FAILED": ErrorCode(A, False, 1, "a sub-step of a parallel or map failed"),
    "CHILD_FAILED": ErrorCode(A, False, 1, "a called program did not end SUCCESS"),
    "TIMEOUT": ErrorCode(E, True, 1, "nothing came in time"),
    "RESOLVED_FAILED": ErrorCode(E, False, 1, "an unknown outcome turned out not to have happened"),
    "ABANDONED": ErrorCode(C, False, 1, "the run ended while the outcome was open"),
    "GOVERNED_FAILURE": ErrorCode(A, False, 1, "the program ended at a step with `final_status: FAILED`"),
    "BUDGET_EXCEEDED": ErrorCode(A, False, 7, "a budget of the run is spent"),
    "STALLED": ErrorCode(A, False, 7, "no step changed a bound value for `max_stalled_steps` steps"),
    "CANCELLED": ErrorCode(C, False, 7, "somebody cancelled the run"),
    "UNLISTED_TOOL": ErrorCode(E, False, 1, "a model proposed a tool that its agent does not list"),
    "DUPLICATE_CALL": ErrorCode(E, False, 1, "a model proposed two calls under one id"),
    "MAX_TURNS": ErrorCode(E, False, 1, "a model proposed a call in its last turn"),
    "CONVERSATION_TOO_LARGE": ErrorCode(A, False, 1, "an agent's conversation has grown beyond its limit"),
    "NO_TOOLS": ErrorCode(C, False, 1, "an agent's model adapter takes no tools"),
    # --- kernel: why an event was refused -----------------------------------------------------------------
    "OUT_OF_ORDER": ErrorCode(C, False, 1, "the event does not belong to what the run is doing now"),
    "DUPLICATE": ErrorCode(C, False, 1, "the same event was accepted before; its answer stands"),
    "EVENT_CONFLICT": ErrorCode(C, False, 1, "the event id was used before with other content"),
    "UNKNOWN_STEP": ErrorCode(C, False, 2, "the program has no such step"),
    "TERMINAL": ErrorCode(C, False, 1, "the run has ended"),
    "STALE_ATTEMPT": ErrorCode(C, False, 1, "another attempt or occurrence is current"),
    "NOT_WAITING": ErrorCode(C, False, 1, "nothing waits for the event and no wait declares it"),
    "NOT_ACCEPTED": ErrorCode(C, False, 1, "the wait's `accept` expression does not hold for the event"),
    "NOT_APPROVER": ErrorCode(C, False, 4, "the principal holds none of the wait's roles"),
    "NOT_APPROVAL": ErrorCode(C, False, 1, "an approval needs an object with a boolean `approved`"),
    "AMBIGUOUS": ErrorCode(C, False, 1, "several waits could take the event: name the step and the item"),
    "INBOX_FULL": ErrorCode(C, False, 1, "too many early events"),
    "OVER_BUDGET": ErrorCode(C, False, 7, "the reservation does not fit what is left"),
    "GATE": ErrorCode(C, False, 1, "the output is not one that the step admits"),
    "MISMATCH": ErrorCode(C, False, 1, "the event is not the one that the program gives rise to"),
    "MALFORMED": ErrorCode(C, False, 1, "the event cannot be read"),
    "OVERSIZED": ErrorCode(C, False, 1, "the event is too large"),
    "POLICY": ErrorCode(C, False, 4, "the policy does not allow it"),
    "APPROVAL_VOID": ErrorCode(C, False, 4, "the approval is for another action, or was used or replaced"),
    "APPROVAL_EXPIRED": ErrorCode(C, False, 4, "an approval, or the request for it, has expired"),
    "APPROVAL_DENIED": ErrorCode(C, False, 4, "an action was not approved"),
    "SELF_APPROVAL": ErrorCode(C, False, 4, "another person has to approve"),
    "PROGRAM_PAUSED": ErrorCode(
        C, True, 4, "no new runs of the program are begun until somebody lifts the pause"
    ),
    "CAPABILITY_DENIED": ErrorCode(C, False, 4, "the policy or the principal's role does not allow it"),
    "STATE_MALFORMED": ErrorCode(T, False, 5, "a snapshot that cannot be read"),
    # --- runtime ------------------------------------------------------------------------------------------
    "INPUT_MISSING": ErrorCode(C, False, 2, "an input that the program needs was not given"),
    "INPUT_UNKNOWN": ErrorCode(C, False, 2, "an input that the program does not declare"),
    "INPUT_INVALID": ErrorCode(C, False, 2, "an input that does not fit its schema"),
    "TENANT": ErrorCode(C, False, 2, "a name that no tenant can have"),
    "PRINCIPAL": ErrorCode(C, False, 2, "a principal that cannot be read"),
    "EVENT_ID": ErrorCode(C, False, 2, "an event id that is no text, empty or too long"),
    "TRACE_ID": ErrorCode(C, False, 2, "an id that a run cannot have"),
    "RUN_KEY": ErrorCode(C, False, 2, "an idempotency key that is no text, empty or too long"),
    "LOOP_RUNNING": ErrorCode(C, False, 2, "a synchronous call inside a running event loop"),
    "WAITS_FOR_ITSELF": ErrorCode(C, False, 2, "a call of a run that would wait for the end of that run"),
    "EVENT_ITEM": ErrorCode(C, False, 2, "an item that is no place in a list"),
    "EVENT_TEXT": ErrorCode(C, False, 2, "a name, step, action, comment or reason that is no text"),
    "RESOLUTION": ErrorCode(C, False, 2, "a resolution that does not exist"),
    "CHILD_RUN": ErrorCode(C, False, 2, "a child run addressed instead of its parent"),
    "UNKNOWN_VALUE": ErrorCode(C, False, 2, "a change of a value that the program does not have"),
    "VALUE_ANSWERED": ErrorCode(
        C, False, 2, "a fork at a condition that changes the answer, child or group that led to it"
    ),
    "TOOL_EFFECT": ErrorCode(A, False, 2, "a tool with an unknown effect class"),
    "TOOL_SECRET": ErrorCode(A, False, 2, "a tool that declares a secret parameter it cannot have"),
    "TOOL_SIGNATURE": ErrorCode(A, False, 2, "a tool whose parameters cannot be passed by name"),
    "TOOL_LABEL": ErrorCode(
        A, False, 2, "a tool with an unknown label, or that protects no parameter of its own"
    ),
    "TAINTED_PARAMETER": ErrorCode(
        A, False, 3, "an untrusted value for a parameter that takes trusted ones only"
    ),
    "DENIED_TOOL": ErrorCode(A, False, 3, "a call that the policy never allows"),
    "GUARD_MISSED": ErrorCode(A, False, 3, "a way to a tool that misses what the policy requires before it"),
    "UNPROVED_FLOW": ErrorCode(A, False, 3, "a flow of which only a run can show whether it is trusted"),
    "SECRET_IN_PROMPT": ErrorCode(A, False, 3, "a prompt made of a secret"),
    "NO_KEYS": ErrorCode(C, False, 2, "private or secret values without keys to store them under"),
    "TOOL_ERROR": ErrorCode(E, True, 1, "a tool failed"),
    "NO_MODEL": ErrorCode(C, False, 1, "a model step without a model adapter"),
    "SHUTTING_DOWN": ErrorCode(C, True, 1, "the engine has been closed"),
    "PROGRAM_CHANGED": ErrorCode(T, False, 5, "a stored program is not the one its hash says"),
    "POLICY_MISSING": ErrorCode(E, False, 1, "the policy that a run is pinned to is not in the store"),
    "ACTION_CONFLICT": ErrorCode(C, False, 1, "an author's idempotency key was used with other arguments"),
    # --- rejections ---------------------------------------------------------------------------------------
    # --- command line -------------------------------------------------------------------------------------
    "TOOLS_UNREADABLE": ErrorCode(C, False, 2, "a tools file or module that does not exist"),
    "TOOLS_FAILED": ErrorCode(C, False, 2, "a tools file that cannot be imported"),
    "TOOLS_EMPTY": ErrorCode(C, False, 2, "a tools file without tools"),
    "TOOLS_CONFLICT": ErrorCode(C, False, 2, "two tools of one name"),
    "TOOLS_MISSING": ErrorCode(C, False, 2, "a run needs tools that were not given"),
    "MODEL_MISSING": ErrorCode(C, False, 2, "a run needs a model and none was given"),
    "STORE_NOT_FOUND": ErrorCode(C, False, 2, "no database at that path"),
    "INPUT_FILE": ErrorCode(C, False, 2, "a file of inputs that cannot be taken"),
    "SCRIPT": ErrorCode(C, False, 2, "a file of model answers that cannot be taken"),
    "DEMO": ErrorCode(E, False, 1, "the demonstration did not go as it should"),
    # --- providers ----------------------------------------------------------------------------------------
    "MODEL_HTTP": ErrorCode(E, True, 1, "the model's endpoint answered with an error or not at all"),
    "MODEL_TIMEOUT": ErrorCode(E, True, 1, "the model's endpoint did not answer in time"),
    "MODEL_REFUSED": ErrorCode(C, False, 1, "the model's endpoint does not accept the request or the key"),
    "MODEL_REPLY": ErrorCode(E, True, 1, "the model's endpoint answered something that is no completion"),
    "CASSETTE": ErrorCode(C, False, 2, "a tape of model calls that cannot be used"),
    "CASSETTE_MISS": ErrorCode(C, False, 1, "a tape of model calls has no answer to a request"),
    "PLAN_REJECTED": ErrorCode(A, False, 3, "a model's plan did not become a program"),
    "PLAN_LIMIT": ErrorCode(A, False, 3, "a plan is larger, or may cost more, than plans may"),
    "PLAN_FAILED": ErrorCode(E, True, 1, "the model that was asked for a plan did not answer"),
    "PLAN_FORBIDDEN": ErrorCode(A, False, 3, "a plan says what is not for plans to say"),
    "PLAN_INPUT": ErrorCode(A, False, 3, "a plan wants an input that the run is not given"),
    "PLAN_PROTECTED": ErrorCode(A, False, 3, "a plan chooses the value of a protected parameter"),
    "PLAN_SEALED": ErrorCode(C, False, 2, "a planner would see private or secret values"),
    "NOT_INTERRUPTED": ErrorCode(C, False, 2, "a run that no plan can take up"),
    "REPLAN_LIMIT": ErrorCode(C, False, 2, "a run has been planned on often enough"),
    "POOL": ErrorCode(C, False, 2, "a pool of providers that is none"),
    "PRICES": ErrorCode(C, False, 2, "a price table that is none"),
    "MODEL_TRUNCATED": ErrorCode(E, False, 1, "the model's answer was cut at the token limit"),
    # --- gateway ------------------------------------------------------------------------------------------
    "GATEWAY_CONFIG": ErrorCode(C, False, 2, "a configuration of the gateway that cannot be taken"),
    "GATEWAY_EXPOSED": ErrorCode(C, False, 2, "a gateway that anybody could reach without a token"),
    "GATEWAY_ADDRESS": ErrorCode(E, False, 1, "an address that cannot be listened on"),
    "GATEWAY_ARGUMENT": ErrorCode(C, False, 2, "arguments that a tool of the gateway does not take"),
    "GATEWAY_LIMIT": ErrorCode(C, False, 2, "more than this gateway allows"),
    "GATEWAY_BUSY": ErrorCode(E, True, 1, "too much is under way"),
    "GATEWAY_TOKEN": ErrorCode(C, False, 2, "a token that cannot be made"),
    "MOUNT_FAILED": ErrorCode(E, False, 1, "an MCP server that cannot be mounted"),
    "MOUNT_UNREACHABLE": ErrorCode(E, True, 1, "a mounted MCP server that does not answer"),
    "MOUNT_QUARANTINED": ErrorCode(C, False, 4, "a remote tool whose definition is not the accepted one"),
    "MOUNT_REFUSED": ErrorCode(E, False, 1, "a mounted MCP server that refused a call"),
    "REMOTE_ERROR": ErrorCode(E, False, 1, "a remote tool that answered with an error"),
    "PIN_NOT_FOUND": ErrorCode(C, False, 2, "no changed definition of that name"),
    "TOKEN_NOT_FOUND": ErrorCode(C, False, 2, "no token of that id"),
    "ROLE_REQUIRED": ErrorCode(C, False, 4, "the principal holds none of the roles that this needs"),
    "RESOURCE_NOT_FOUND": ErrorCode(C, False, 2, "no resource of that address"),
    # --- vault --------------------------------------------------------------------------------------------
    "VAULT_KEY_MISSING": ErrorCode(C, False, 2, "no key-encryption key for the vault"),
    "VAULT_KEY_EXISTS": ErrorCode(C, False, 2, "a key file is there already"),
    "VAULT_KEY_EXPOSED": ErrorCode(E, False, 1, "a key file or vault that others than its owner may get at"),
    "VAULT_KEY_INVALID": ErrorCode(C, False, 2, "a key-encryption key that is not 32 bytes"),
    "VAULT_KEY_WRONG": ErrorCode(C, False, 2, "another key-encryption key than the vault's"),
    "VAULT_MISSING": ErrorCode(C, False, 2, "private values or secrets, and no vault to keep them"),
    "VAULT_DAMAGED": ErrorCode(T, False, 5, "a file of the vault was changed"),
    "VAULT_FOREIGN": ErrorCode(C, False, 2, "the vault of another database"),
    "VAULT_IO": ErrorCode(E, True, 1, "reading or writing the vault failed"),
    "SEAL_BROKEN": ErrorCode(T, False, 5, "a sealed value was changed or moved"),
    "SECRET_ID": ErrorCode(C, False, 2, "an id that a secret cannot have"),
    "SECRET_VALUE": ErrorCode(C, False, 2, "a value that a secret cannot have"),
    "SECRET_NOT_FOUND": ErrorCode(C, False, 2, "no secret of that id"),
    "SECRET_DENIED": ErrorCode(C, False, 4, "a tool that may not open the secret"),
    "SECRET_ERASED": ErrorCode(C, False, 2, "a secret whose key was destroyed"),
    "SECRET_EXPECTED": ErrorCode(
        A, False, 1, "a secret parameter that was given something else than a reference"
    ),
    "SUBJECT": ErrorCode(C, False, 2, "a value that names no data subject"),
    "SUBJECT_NOT_FOUND": ErrorCode(C, False, 2, "a data subject of whom the vault has no key"),
    "ERASED": ErrorCode(C, False, 1, "a value that has been erased"),
    "ERASURE_HELD": ErrorCode(C, False, 4, "a legal hold forbids the erasure"),
    "ERASURE_BEGUN": ErrorCode(C, False, 1, "a legal hold of what is being erased already"),
    # --- usage --------------------------------------------------------------------------------------------
    "USAGE": ErrorCode(C, False, 2, "a command line or call that cannot be understood"),
    "EXTRA_MISSING": ErrorCode(E, False, 1, "an optional dependency is not installed"),
    "INTERNAL": ErrorCode(B, False, 70, "a defect of nano-vm"),
}

del A, C, E, T, B
