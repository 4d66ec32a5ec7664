"""The planner's one call of a model. With an engine it is a run of its own: as with every other model call, policies
decide about it, limits and budgets hold its worst case before it and what it took after it, and the journal has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from nano_vm.errors import CapabilityDeniedError, NanoVMError, RejectedError, RuntimeFault
from nano_vm.journal.ledger import NANO
from nano_vm.kernel import events as ev
from nano_vm.kernel.state import RunStatus
from nano_vm.policy.decide import ALLOW, DENIED, Request, decide
from nano_vm.policy.model import Policy
from nano_vm.program.tool_schema import ToolSchema
from nano_vm.runtime.actions import DEFAULT_MODEL
from nano_vm.runtime.completions import awaited, completion_of
from nano_vm.runtime.ports import Completion, Message, ModelClient, ToolSpec, Usage

if TYPE_CHECKING:
    from nano_vm.journal.trace import Trace
    from nano_vm.runtime.engine import Engine

PLANNING = "planning"  # the name of the program that asks for a plan, and of its only step


class Asker(msgspec.Struct, frozen=True):
    """Who asks a model for a plan, and what it may take.

    Args:
        llm: the model client.
        params: what it is given beside the messages; `model` names the model.
        policy: the planner's own policy, beside the engine's; None without one.
        tokens_max, cost_usd_max: what the call may take; None for no limit of the planner's.
    """

    llm: ModelClient
    params: Mapping[str, Any]
    policy: Policy | None = None
    tokens_max: int | None = None
    cost_usd_max: float | None = None

    async def ask(self, messages: list[Message]) -> Completion:
        """Call the model where there is no journal and nothing that could be counted in.

        Raises:
            CapabilityDeniedError: CAPABILITY_DENIED where the policy does not allow the model, or limits it: nobody
                could count the call. RejectedError: BUDGET_EXCEEDED where the planner limits it.
            Exception: whatever the client raises.
        """
        if self.tokens_max is not None or self.cost_usd_max is not None:
            raise _uncounted(RejectedError, "BUDGET_EXCEEDED", "the planner's call has a budget")
        if self.policy is not None:
            self._check(self.policy)
        return completion_of(await awaited(self.llm.complete(messages, **self.params)))

    def _check(self, policy: Policy) -> None:
        given = self.params.get("model", DEFAULT_MODEL)
        name = given if type(given) is str else DEFAULT_MODEL
        if any(rule.limits for rule in policy.rules_for("model", name)):
            raise _uncounted(
                CapabilityDeniedError, "CAPABILITY_DENIED", f"policy `{policy.name}` limits the model"
            )
        params = {key: value for key, value in self.params.items() if key != "model"}
        request = Request(kind="model", name=name, args={"model": name, "params": params})
        decision = decide(policy, request)
        if decision.decision != ALLOW:
            raise CapabilityDeniedError(
                "CAPABILITY_DENIED",
                f"the planner's model is denied by `{decision.rule}` of policy `{policy.name}`",
                help=_ALLOW,
                facts={"policy": policy.hash, "reason": decision.reason, "rule": decision.rule},
            )

    async def ask_in(
        self,
        engine: Engine,
        messages: list[Message],
        principal: str | Mapping[str, Any] | None,
        tenant: str | None,
    ) -> Completion:
        """Call the model in a run of the engine's store, for this principal.

        Raises:
            CapabilityDeniedError: CAPABILITY_DENIED; a policy, or the principal's role, does not allow it.
            RejectedError: BUDGET_EXCEEDED. RuntimeFault: PLAN_FAILED where the model did not answer; SHUTTING_DOWN.
            StoreError: the journal cannot be written; then nothing was asked.
        """
        from nano_vm.journal.trace import Trace
        from nano_vm.runtime.engine import Engine
        from nano_vm.runtime.starting import begin

        engine.refuse_closed()
        own = self.policy or engine.policy
        asking = Engine(
            llm=self.llm,
            tools=_NoTools(),
            store=engine.store,
            clock=engine.clock,
            entropy=engine.entropy,
            keys=engine.keys,
            make_keys=engine.make_keys,
            policy=own,
            access=engine.access,
        )
        asking.listeners = engine.listeners  # what listens to the engine counts this call, too
        engine.companions.add(asking)
        try:
            context = {message["role"]: message["content"] for message in messages}
            run = await begin(asking, self._program(), context, None, None, principal, tenant)
            assert not isinstance(run, Trace)  # there is no key that an earlier run could have
            if engine.policy is not None:
                asking.set_policy(engine.policy)  # the run is pinned to the planner's own: both have to allow
            await asking.drive(run)
            return _answer(asking.trace_of(run))
        finally:
            engine.companions.discard(asking)
            await asking.drain(0)

    def _program(self) -> dict[str, Any]:
        """One step that asks a model, under the budgets of the call."""
        params = {name: value for name, value in self.params.items() if name != "model"}
        step: dict[str, Any] = {"id": "plan", "type": "llm", "system": "$system", "prompt": "$user"}
        if params:
            step["params"] = params
        if "model" in self.params:
            step["model"] = self.params["model"]
        texts = {name: {"type": "string"} for name in ("system", "user")}
        inputs = {"type": "object", "properties": texts, "required": ["system", "user"]}
        # One call and no other: whoever takes up a run whose process died over it has nobody to answer.
        program = {"name": PLANNING, "inputs": inputs, "max_steps": 1, "steps": [step]}
        budgets = {"max_tokens": self.tokens_max, "max_cost_usd": self.cost_usd_max}
        return {**program, **{name: most for name, most in budgets.items() if most is not None}}


def _answer(trace: Trace) -> Completion:
    """What the model said, with what it took; raises as `Asker.ask_in`."""
    if trace.status is RunStatus.SUCCESS:
        event = next(event for event in trace.events if type(event) is ev.StepSucceeded)
        cost = event.cost_nanousd
        return Completion(
            text=str(trace.final_output),
            usage=Usage(
                prompt_tokens=event.tokens_in or 0,
                completion_tokens=event.tokens_out or 0,
                cost_usd=None if cost is ev.UNSET else cost / NANO,
            ),
            model=event.model or None,
            provider=event.provider or None,
            cached=bool(event.cached),
        )
    error = trace.error or {}
    kind, facts = str(error.get("type", "")), {"error": error.get("type"), "run_id": trace.trace_id}
    said = str(error.get("message", ""))
    if kind == DENIED:
        raise CapabilityDeniedError(
            "CAPABILITY_DENIED", f"no plan is asked for: {said}", help=_ALLOW, facts=facts
        )
    if trace.status is RunStatus.BUDGET_EXCEEDED:
        help = "raise the planner's `call_max_tokens` or `call_max_cost_usd`, or give it `params: {max_tokens: …}`"
        raise RejectedError(
            "BUDGET_EXCEEDED", "the call for a plan does not fit its budget", help=help, facts=facts
        )
    if not trace.status.is_terminal:
        raise RuntimeFault("SHUTTING_DOWN", "the engine has been closed", help="ask another one", facts=facts)
    raise RuntimeFault(
        "PLAN_FAILED",
        f"the model gave no answer: {kind or trace.status.value}",
        help=f"`nano-vm trace {trace.trace_id}` has what it said instead; ask again",
        facts=facts,
    )


_ALLOW = "let a rule of the policy about `models` allow it, or wait until the limit has room"


def _uncounted(kind: type[NanoVMError], code: str, why: str) -> NanoVMError:
    return kind(
        code,
        f"{why}, and nothing counts it here",
        help="give the engine that keeps the counts: `generate(…, vm=vm)`",
    )


class _NoTools:
    """A planning run calls none."""

    def spec(self, name: str) -> ToolSpec | None:
        return None

    def schemas(self) -> Mapping[str, ToolSchema]:
        return {}
