"""What came of a call, as an event with its payload's canonical bytes, for the driver to apply and journal."""

from __future__ import annotations

from typing import Any, NamedTuple

from nano_vm import canonical
from nano_vm.kernel import events as ev
from nano_vm.kernel.commands import CallModel, CallTool, Compensate, Reconcile
from nano_vm.runtime.failures import TRACEBACK_CHARS_MAX, encodable, text_of, traceback_of
from nano_vm.runtime.ports import Clock, Entropy, ToolSpec

_UNSET = ev.UNSET


class Outcome(NamedTuple):
    """An event, and the canonical bytes of its payload (None without one)."""

    event: Any
    payload: bytes | None


class Approval(Outcome):
    """What somebody says to an approval: nothing else that waits may take it."""


class Outcomes:
    """Says what came of calls, by one engine's clock and entropy."""

    def __init__(self, clock: Clock, entropy: Entropy) -> None:
        self.clock = clock
        self.entropy = entropy

    def failed(
        self,
        command: CallTool | CallModel,
        code: str,
        message: str,
        retryable: bool,
        *,
        pure: Any = _UNSET,
        error: BaseException | None = None,
        told: dict[str, Any] | None = None,
    ) -> Outcome:
        details: dict[str, Any] = {"message": message[:TRACEBACK_CHARS_MAX]}
        if error is not None:
            details["traceback"] = traceback_of(error)
        details, payload = encodable(details)
        event = ev.StepFailed(
            at_ms=self.clock.now_ms(),
            attempt=command.attempt,
            draw=self.entropy.draw(),
            error=text_of(code),
            item=command.item if command.item >= 0 else _UNSET,
            occurrence=command.occurrence,
            payload=details,
            pure=pure,
            retryable=retryable,
            step=command.step_id,
            **(told or {}),
        )
        return Outcome(event, payload)

    def substituted(
        self,
        command: CallTool | CallModel,
        value: Any,
        pure: Any,
        told: dict[str, Any] | None = None,
    ) -> Outcome:
        """`told`: what is known of the model call (`told_by`)."""
        data, payload = canonical.normalize(value)
        event = ev.StepSucceeded(
            at_ms=self.clock.now_ms(),
            attempt=command.attempt,
            item=command.item if command.item >= 0 else _UNSET,
            occurrence=command.occurrence,
            payload=data,
            pure=pure,
            step=command.step_id,
            substituted=True,
            **(told or {}),
        )
        return Outcome(event, payload)

    def unknown(
        self,
        command: CallTool | CallModel | Compensate,
        reason: str,
        effect: str,
        details: dict[str, Any] | None = None,
        compensation: bool = False,
    ) -> Outcome:
        event = ev.OutcomeUnknown(
            at_ms=self.clock.now_ms(),
            attempt=command.attempt,
            compensation=True if compensation else _UNSET,
            effect=effect,
            item=command.item if command.item >= 0 else _UNSET,
            occurrence=command.occurrence,
            payload=_UNSET if details is None else details,
            reason=reason,
            step=command.step_id,
        )
        return Outcome(event, None if details is None else canonical.encode(details))

    def resolved(
        self,
        command: Reconcile,
        by: str,
        resolution: str,
        payload: Any = _UNSET,
        error: Any = _UNSET,
        principal: Any = _UNSET,
        spec: ToolSpec | None = None,
    ) -> ev.OutcomeResolved:
        return ev.OutcomeResolved(
            at_ms=self.clock.now_ms(),
            attempt=command.attempt,
            by=by,
            compensation=True if command.compensation else _UNSET,
            declared=spec.schema.output_label or _UNSET if spec is not None else _UNSET,
            draw=self.entropy.draw() if resolution == "failed" else _UNSET,
            error=error,
            item=command.item if command.item >= 0 and not command.compensation else _UNSET,
            occurrence=command.occurrence,
            payload=payload,
            principal=principal,
            resolution=resolution,
            step=command.step_id,
        )
