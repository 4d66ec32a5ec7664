"""Carrying out one call - a tool, a model, a reconciliation - and saying what came of it as an event.

Nothing here changes a run: the result is an event with its payload's canonical bytes, for the driver to apply and
journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Callable
from hashlib import sha256
from types import CoroutineType
from typing import Any, NamedTuple

from nano_vm import canonical
from nano_vm.errors import InputError, NanoVMError
from nano_vm.kernel import events as ev
from nano_vm.kernel.commands import CallModel, CallTool, Compensate, Reconcile
from nano_vm.program.compiled import AgentAction, CompiledStep, ModelAction
from nano_vm.projection.views import for_model, for_tool
from nano_vm.runtime.agent import read_turn
from nano_vm.runtime.completions import accepted_by, awaited, completion_of, told_by
from nano_vm.runtime.failures import (
    TRACEBACK_CHARS_MAX,
    describe,
    encodable,
    is_ours,
    lost_contact,
    message_of,
    text_of,
)
from nano_vm.runtime.gates import feedback, pass_gate
from nano_vm.runtime.outcomes import Outcome, Outcomes
from nano_vm.runtime.ports import (
    Clock,
    Completion,
    Entropy,
    ModelCall,
    ModelClient,
    SecretSource,
    ToolSpec,
)
from nano_vm.runtime.secrets import Opened
from nano_vm.runtime.threads import ToolThreads
from nano_vm.runtime.timeouts import TimedOutError, within
from nano_vm.runtime.tooling import PENDING, Reconciled, ToolContext, ToolError
from nano_vm.runtime.values import to_data

_UNSET = ev.UNSET


class Ending:
    """Tells the calls of a run that it is coming to its end."""

    __slots__ = ("has_come",)

    def __init__(self) -> None:
        self.has_come = False


class RunFacts(NamedTuple):
    """What a call may know of its run."""

    run_id: str
    tenant: str
    principal: dict[str, Any] | None
    ending: Ending
    keyed: Callable[[Any], Callable[[bytes], str] | None] | None = (
        None  # how a command's private content is digested
    )


class Calls(Outcomes):
    """Carries out calls with the tools, models, threads and clock of one engine."""

    def __init__(
        self,
        llm: ModelClient | None,
        clock: Clock,
        entropy: Entropy,
        threads: ToolThreads,
        secrets: SecretSource | None = None,
    ) -> None:
        super().__init__(clock, entropy)
        self.secrets = secrets
        self.llm = llm
        self.threads = threads
        self.inline_sync = False  # `run_sync`: there is no other run to stall
        self._model_parameters = accepted_by(llm.complete) if llm is not None else None
        self._takes_call = llm is not None and "model_call" in inspect.signature(llm.complete).parameters

    # --- tools ------------------------------------------------------------------------------------------------

    async def tool(
        self,
        run: RunFacts,
        step: CompiledStep,
        command: CallTool,
        spec: ToolSpec,
        transaction: Any = None,
        *,
        alone: bool = False,
    ) -> Outcome:
        """Call a tool once. `alone`: nothing else is under way in this run."""
        opened = Opened() if spec.secrets else None
        try:
            value = await self._invoke(run, command, spec, command.timeout_ms, transaction, alone, opened)
        except BaseException as error:
            if is_ours(error):
                raise
            outcome = self.raised(step, command, spec, error)
        else:
            outcome = self.concluded(command, spec, value)
        return outcome if opened is None else opened.scrub(outcome)

    def concluded(self, command: CallTool, spec: ToolSpec, value: Any) -> Outcome:
        """What a tool's return value means."""
        pure = True if spec.effect == "pure" else _UNSET
        item = command.item if command.item >= 0 else _UNSET
        if spec.may_suspend and (value is PENDING or (type(value) is str and value == "PENDING")):
            pending = ev.StepPending(
                at_ms=self.clock.now_ms(),
                attempt=command.attempt,
                declared=spec.schema.output_label or _UNSET,
                item=item,
                occurrence=command.occurrence,
                pure=pure,
                step=command.step_id,
            )
            return Outcome(pending, None)
        try:
            data, payload = to_data(value)
        except Exception as error:
            # The effect has happened; what it returned cannot be kept. Doing it again would not help.
            code = error.code if isinstance(error, InputError) else "VALUE_NOT_JSON"
            message = f"what `{spec.name}` returned cannot be kept: {message_of(error)}"
            if type(value) is CoroutineType:
                value.close()  # nobody will await it
                message = f"`{spec.name}` returned a coroutine: what calls an `async def` is to be one itself"
            return self.failed(command, code, message, False, pure=pure, error=error)
        return Outcome(
            ev.StepSucceeded(
                at_ms=self.clock.now_ms(),
                attempt=command.attempt,
                declared=spec.schema.output_label or _UNSET,
                item=item,
                occurrence=command.occurrence,
                payload=data,
                pure=pure,
                step=command.step_id,
            ),
            payload,
        )

    async def _invoke(
        self,
        run: RunFacts,
        command: CallTool | Compensate,
        spec: ToolSpec,
        timeout_ms: int,
        transaction: Any,
        alone: bool = False,
        opened: Opened | None = None,
    ) -> Any:
        # Tools get copies: a tool that changes its arguments must not change what is recorded.
        args = command.args
        arguments = for_tool(args, spec.schema.parameters)
        if opened is not None:
            arguments = opened.fill(run, spec, arguments, self.secrets)
        inline = alone and self.inline_sync and not timeout_ms
        if spec.context_parameter is None and not timeout_ms:
            if spec.is_async:
                return await spec.function(**arguments)
            if inline or not spec.blocking:
                return spec.function(**arguments)
            return await self.threads.run(lambda: spec.function(**arguments))
        deadline = self.clock.now_ms() + timeout_ms if timeout_ms else None
        context = context_of(run, command, spec, deadline)
        context.transaction = transaction
        if spec.context_parameter is not None:
            arguments[spec.context_parameter] = context
        call = _coroutine(self.threads, spec, arguments, inline)
        if not timeout_ms:
            return await call
        return await within(call, timeout_ms, context)

    def raised(self, step: CompiledStep, command: CallTool, spec: ToolSpec, error: BaseException) -> Outcome:
        """What an exception out of a tool means: a known failure, or an outcome that nobody knows."""
        pure = True if spec.effect == "pure" else _UNSET
        # What a transaction was rolled back with has not happened.
        certain = spec.effect in ("pure", "idempotent", "transactional")
        if isinstance(error, TimedOutError):
            if not certain:
                return self.unknown(command, "TIMEOUT", spec.effect)
            if step.on_timeout == "fallback":
                return self.substituted(command, step.fallback, pure)
            message = f"no answer within {command.timeout_ms} ms"
            return self.failed(command, "TIMEOUT", message, True, pure=pure)
        if isinstance(error, ToolError):
            if error.unknown and not certain:
                return self.unknown(command, text_of(error.code), spec.effect, describe(error))
            code, retryable = text_of(error.code), bool(error.retryable)
            return self.failed(command, code, message_of(error), retryable, pure=pure, error=error)
        if not certain and isinstance(error, asyncio.CancelledError):
            return self.unknown(command, "CANCELLED", spec.effect, describe(error))
        if not certain and lost_contact(error):
            return self.unknown(command, "CONNECTION", spec.effect, describe(error))
        return self.failed(command, type(error).__name__, message_of(error), True, pure=pure, error=error)

    async def compensation(
        self, run: RunFacts, command: Compensate, spec: ToolSpec, transaction: Any = None
    ) -> Outcome:
        """Call a compensating tool once."""
        opened = Opened() if spec.secrets else None
        outcome = await self._compensate(run, command, spec, transaction, opened)
        return outcome if opened is None else opened.scrub(outcome)

    async def _compensate(
        self, run: RunFacts, command: Compensate, spec: ToolSpec, transaction: Any, opened: Opened | None
    ) -> Outcome:
        item = command.item if command.item >= 0 else _UNSET
        try:
            value = await self._invoke(run, command, spec, 0, transaction, False, opened)
            try:
                data, payload = to_data(value)
            except Exception:
                data, payload = None, b"null"  # it is undone; nothing is made of what the tool returned
        except BaseException as error:
            if is_ours(error):
                raise
            unknown = error.unknown if isinstance(error, ToolError) else lost_contact(error)
            if unknown and spec.effect not in ("pure", "idempotent"):
                return self.unknown(command, "CONNECTION", spec.effect, describe(error), compensation=True)
            code = error.code if isinstance(error, ToolError | NanoVMError) else type(error).__name__
            retryable = getattr(error, "retryable", True) is not False
            return self.not_undone(command, code, "", retryable=retryable, details=describe(error))
        return Outcome(
            ev.CompensationSucceeded(
                at_ms=self.clock.now_ms(),
                attempt=command.attempt,
                item=item,
                occurrence=command.occurrence,
                payload=data,
                step=command.step_id,
            ),
            payload,
        )

    def not_undone(
        self,
        command: Compensate,
        code: str,
        message: str,
        *,
        retryable: bool = False,
        details: dict[str, Any] | None = None,
    ) -> Outcome:
        """A compensation that failed."""
        details = {"message": message} if details is None else details
        return Outcome(
            ev.CompensationFailed(
                at_ms=self.clock.now_ms(),
                attempt=command.attempt,
                draw=self.entropy.draw(),
                error=text_of(code),
                item=command.item if command.item >= 0 else _UNSET,
                occurrence=command.occurrence,
                payload=details,
                retryable=retryable,
                step=command.step_id,
            ),
            canonical.encode(details),
        )

    async def reconcile(self, run: RunFacts, command: Reconcile, spec: ToolSpec) -> Outcome | None:
        """Ask the tool's `reconcile` function what happened; None when it does not know either."""
        assert spec.reconcile is not None
        context = context_of(run, command, spec)
        arguments = for_tool(command.args, spec.schema.parameters)
        opened = Opened() if spec.secrets else None
        function = spec.reconcile
        try:
            if opened is not None:
                arguments = opened.fill(run, spec, arguments, self.secrets)
            if "ctx" in inspect.signature(spec.reconcile).parameters:
                arguments["ctx"] = context
            if inspect.iscoroutinefunction(function):
                found = await function(**arguments)
            else:
                found = await self.threads.run(lambda: function(**arguments))
            if not isinstance(found, Reconciled) or found.status == "unknown":
                return None
            data, payload = to_data(found.output)
        except Exception:
            # A reconciliation that fails has found out nothing: the run goes on waiting.
            return None
        resolution = {"succeeded": "succeeded", "failed": "failed", "not_executed": "repeat"}[found.status]
        if resolution == "failed":
            data = {"message": found.message}
            payload = canonical.encode(data)
        has_payload = resolution != "repeat"
        outcome = Outcome(
            self.resolved(command, "reconcile", resolution, data if has_payload else _UNSET, spec=spec),
            payload if has_payload else None,
        )
        return outcome if opened is None else opened.scrub(outcome)

    # --- models -----------------------------------------------------------------------------------------------

    async def model(
        self, step: CompiledStep, command: CallModel, limit: int, tools: list[dict[str, Any]]
    ) -> Outcome:
        """Call the model once and hold its answer against the step's gates. `limit`: most tokens to ask for, 0 for
        no limit of ours; `tools`: those an agent offers."""
        action = step.action
        assert isinstance(action, ModelAction)
        if self.llm is None:
            return self.failed(command, "NO_MODEL", "no model adapter is configured", False)
        if tools and self._model_parameters is not None and "tools" not in self._model_parameters:
            return self.failed(command, "NO_TOOLS", "the model adapter does not take `tools`", False)
        try:
            call = self._complete(command, limit, tools)
            if command.timeout_ms:
                answer = await within(call, command.timeout_ms, None)
            else:
                answer = await call
            completion = completion_of(answer)
        except TimedOutError as error:
            told = told_by(error.__cause__)
            if step.on_timeout == "fallback":
                return self.substituted(command, step.fallback, _UNSET, told)
            message = f"no answer within {command.timeout_ms} ms"
            return self.failed(command, "TIMEOUT", message, True, told=told)
        except BaseException as error:
            if is_ours(error):
                raise
            retryable = getattr(error, "retryable", True) is not False
            code = getattr(error, "code", None)
            kind = code if isinstance(code, str) else type(error).__name__
            return self.failed(command, kind, message_of(error), retryable, error=error, told=told_by(error))
        told = told_by(completion)
        if completion.tool_calls and type(action) is AgentAction:
            return self._turned(command, completion, told)
        if completion.tool_calls:
            # Nobody would run them here, and an answer beside them is not the answer.
            message = "the model asked for tools, and this step offers none"
            return self.failed(command, "MODEL_REPLY", message, True, told=told)
        gated = pass_gate(action, completion.text)
        if gated.problem is not None:
            await self._forget(command, limit, tools)
            if action.allowed_outputs and step.on_error == "skip":
                return self.substituted(command, action.allowed_outputs[0], _UNSET, told)
            return self._missed(command, completion.text, gated.problem, told)
        data, payload = to_data(gated.output)
        return Outcome(
            ev.StepSucceeded(
                at_ms=self.clock.now_ms(),
                attempt=command.attempt,
                cached=True if completion.cached else _UNSET,
                item=command.item if command.item >= 0 else _UNSET,
                occurrence=command.occurrence,
                payload=data,
                step=command.step_id,
                **told,
            ),
            payload,
        )

    def _missed(self, command: CallModel, answer: str, problem: str, told: dict[str, Any]) -> Outcome:
        """The answer missed the step's gate: the next attempt is told why."""
        details = {
            "message": problem,
            "answer": answer[:TRACEBACK_CHARS_MAX],
            "feedback": feedback(answer, problem),
        }
        details, payload = encodable(details)
        return Outcome(
            ev.StepFailed(
                at_ms=self.clock.now_ms(),
                attempt=command.attempt,
                draw=self.entropy.draw(),
                error="GATE",
                item=command.item if command.item >= 0 else _UNSET,
                occurrence=command.occurrence,
                payload=details,
                retryable=True,
                step=command.step_id,
                **told,
            ),
            payload,
        )

    def _turned(self, command: CallModel, completion: Completion, told: dict[str, Any]) -> Outcome:
        """The model of an agent proposes calls: the conversation goes on."""
        turn, payload, dropped = read_turn(completion, command.attempt)
        return Outcome(
            ev.ModelTurned(
                at_ms=self.clock.now_ms(),
                attempt=command.attempt,
                cached=True if completion.cached else _UNSET,
                dropped=dropped or _UNSET,
                item=command.item if command.item >= 0 else _UNSET,
                occurrence=command.occurrence,
                payload=turn,
                proposals=len(turn["calls"]),
                step=command.step_id,
                **told,
            ),
            payload,
        )

    def _complete(self, command: CallModel, limit: int, tools: list[dict[str, Any]]) -> Any:
        assert self.llm is not None
        messages, params = self._request(command, limit, tools)
        if self._takes_call:
            # A conversation that goes on with our words after an answer of the model's is a retry: that answer missed
            # its gate. (An agent's goes on with results of tools.)
            answered = any(message["role"] == "assistant" for message in messages)
            fresh = answered and messages[-1]["role"] == "user"
            params["model_call"] = ModelCall(fresh=fresh, private=command.private, reserved=limit > 0)
        return awaited(self.llm.complete(messages, **params))

    def _request(
        self, command: CallModel, limit: int, tools: list[dict[str, Any]]
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Copies of messages and parameters: a model that changes them changes nothing that is recorded."""
        messages, params = for_model(command.request)
        if limit and "max_tokens" not in params:
            params["max_tokens"] = limit
        if tools:
            params["tools"] = tools
        accepted = self._model_parameters
        if accepted is not None:
            params = {name: value for name, value in params.items() if name in accepted}
        params.pop("model_call", None)
        return messages, params

    async def _forget(self, command: CallModel, limit: int, tools: list[dict[str, Any]]) -> None:
        """An answer that missed its gate should not be kept and given again."""
        forget = getattr(self.llm, "forget", None)
        if forget is not None:
            messages, params = self._request(command, limit, tools)
            with contextlib.suppress(Exception):  # the step has its outcome, whatever becomes of this
                await forget(messages, **params)


async def _coroutine(threads: ToolThreads, spec: ToolSpec, arguments: dict[str, Any], inline: bool) -> Any:
    if spec.is_async:
        return await spec.function(**arguments)
    if inline or not spec.blocking:
        return spec.function(**arguments)
    return await threads.run(lambda: spec.function(**arguments))


def context_of(
    run: RunFacts, command: CallTool | Compensate | Reconcile, spec: ToolSpec, deadline_ms: int | None = None
) -> ToolContext:
    """What a tool, or its `reconcile` function, may know about a call. Only a step's own call ends with its run."""
    return ToolContext(
        key=lambda: action_key(run, command, spec, command.args),
        trace_id=run.run_id,
        step=command.step_id,
        occurrence=command.occurrence,
        item=command.item if command.item >= 0 else None,
        attempt=command.attempt,
        deadline_ms=deadline_ms,
        principal=run.principal,
        has_ended=(lambda: run.ending.has_come) if type(command) is CallTool else None,
    )


def copy_arguments(args: dict[str, Any]) -> dict[str, Any]:
    """Arguments that share nothing with what is recorded."""
    for value in args.values():
        if type(value) is dict or type(value) is list:
            copied: dict[str, Any] = canonical.decode(canonical.encode(args))
            return copied
    return dict(args)


def action_key(run: RunFacts, command: Any, spec: ToolSpec, args: dict[str, Any]) -> str:
    """Idempotency key of an action (SPEC §7): from the author's business key alone when there is one, else from where
    the action stands and what it is. Attempts share it; other arguments never do."""
    business_key = getattr(command, "business_key", None)
    if business_key is not None:
        parts: list[Any] = ["business", run.tenant, spec.name, business_key]
    else:
        kind = (
            "compensation"
            if isinstance(command, Compensate) or getattr(command, "compensation", False)
            else "step"
        )
        place = [kind, command.step_id, command.occurrence, command.item]
        parts = ["action", run.run_id, *place, spec.name, spec.digest, args]
    content = canonical.encode(parts)
    keyed = None if run.keyed is None else run.keyed(command)
    return "nvm-" + (sha256(content).hexdigest() if keyed is None else keyed(content))[:48]
