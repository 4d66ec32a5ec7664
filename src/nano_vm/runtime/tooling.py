"""What a tool author imports: `ToolContext`, `ToolError`, `PENDING`, `Reconciled`, `Secret`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec


class _Pending:
    """Type of the constant `PENDING`."""

    _instance: _Pending | None = None

    def __new__(cls) -> _Pending:
        if cls._instance is None:
            cls._instance = super().__new__(cls)
        return cls._instance

    def __repr__(self) -> str:
        return "PENDING"


PENDING: Final = _Pending()
"""Return this from a tool to suspend the run: the payload of the resuming event becomes the step's output."""

EFFECTS: Final = ("pure", "idempotent", "keyed", "transactional", "reconcilable", "irreversible")
REPEATABLE: Final = frozenset({"idempotent", "keyed", "transactional"})
"""Effect classes whose unknown outcome may be settled by doing it again under the same key."""


class Secret:
    """A secret, as a tool receives it for a parameter with this type hint: `reveal()` gives the value.

    It shows its reference wherever it is printed, and cannot be pickled, compared or journaled.
    """

    __slots__ = ("_value", "reference")

    def __init__(self, reference: str, value: str) -> None:
        self.reference = reference
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return self.reference

    def __reduce__(self) -> Any:
        raise TypeError("a secret cannot be pickled")


class ToolError(Exception):
    """Raised by a tool to say what it knows about its failure.

    Args:
        message: for the author; goes to the journal's payload, never to a model.
        retryable: whether `on_error: retry` may try again.
        code: the error type that `$step.error.type` shows.
        unknown: True when the effect may have happened: the outcome is then treated as unknown.
    """

    def __init__(
        self, message: str = "", *, retryable: bool = True, code: str = "TOOL_ERROR", unknown: bool = False
    ) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.code = code
        self.unknown = unknown


class Reconciled(msgspec.Struct, frozen=True):
    """What a `reconcile` function found out: `status` is "succeeded" (with the `output`), "failed" or "not_executed"
    (the effect did not happen; the step may be repeated), or "unknown" (the run goes on waiting)."""

    status: str
    output: Any = None
    message: str = ""

    @classmethod
    def succeeded(cls, output: Any = None) -> Reconciled:
        return cls("succeeded", output)

    @classmethod
    def failed(cls, message: str = "") -> Reconciled:
        return cls("failed", None, message)

    @classmethod
    def not_executed(cls) -> Reconciled:
        return cls("not_executed")

    @classmethod
    def unknown(cls) -> Reconciled:
        return cls("unknown")


class ToolContext:
    """What a tool may know about the action it carries out.

    Attributes:
        idempotency_key: the same for the same action, after a crash and on a retry; hand it to the other side.
        trace_id, step, occurrence, item, attempt: where the action stands.
        deadline_ms: epoch milliseconds when the step times out, None without a time-out.
        transaction: the store's open transaction for `transactional` tools (`transaction.connection`), else None.
        principal: who started the run, or None.
    """

    __slots__ = (
        "_has_ended",
        "_key",
        "_on_heartbeat",
        "attempt",
        "cancelled",
        "deadline_ms",
        "item",
        "occurrence",
        "principal",
        "step",
        "trace_id",
        "transaction",
    )

    def __init__(
        self,
        *,
        key: Callable[[], str],
        trace_id: str,
        step: str,
        occurrence: int,
        item: int | None,
        attempt: int,
        deadline_ms: int | None = None,
        principal: dict[str, Any] | None = None,
        on_heartbeat: Callable[[], None] | None = None,
        has_ended: Callable[[], bool] | None = None,
    ) -> None:
        self._key = key
        self._has_ended = has_ended
        self.trace_id = trace_id
        self.step = step
        self.occurrence = occurrence
        self.item = item
        self.attempt = attempt
        self.deadline_ms = deadline_ms
        self.transaction: Any = None
        self.principal = principal
        self.cancelled = False
        self._on_heartbeat = on_heartbeat

    @property
    def idempotency_key(self) -> str:
        return self._key()

    def heartbeat(self) -> None:
        """Say that the tool is alive: its time-out starts again.

        Raises:
            ToolError: CANCELLED when the run is ending or the time is over, so that a long tool can stop at a safe
                place.
        """
        if self._has_ended is not None and self._has_ended():
            self.cancelled = True
        if self._on_heartbeat is not None and not self.cancelled:
            self._on_heartbeat()
        if self.cancelled:
            raise ToolError("the run was cancelled", retryable=False, code="CANCELLED")
