"""The planner: from an intent to a program, in exactly one model call.

The answer is untrusted. It becomes a `Program` only when the validator, the policy and the planner's own rules find
nothing wrong with it; otherwise `PlanRejected` carries everything that they found. Nothing is repaired or asked again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from nano_vm import canonical
from nano_vm.compiler import Report
from nano_vm.errors import InputError, NanoVMError, RuntimeFault
from nano_vm.planner.asking import Asker
from nano_vm.planner.prompt import system_prompt
from nano_vm.planner.rules import FORBIDDEN, PlanRules
from nano_vm.policy.check import check
from nano_vm.policy.model import Policy
from nano_vm.program import document as documents
from nano_vm.program.diagnostic import ERROR, Diagnostic, sort
from nano_vm.program.fields import STEP_TYPES
from nano_vm.program.model import Program
from nano_vm.program.tool_schema import ToolSchema
from nano_vm.runtime.arguments import check_all, check_client, check_mapping, check_part
from nano_vm.runtime.gates import unfenced
from nano_vm.runtime.ports import Completion, ModelClient, ToolInvoker

if TYPE_CHECKING:
    from nano_vm.runtime.engine import Engine

INTENT_CHARS_MAX = 20_000
PLAN_CHARS_MAX = 256 * 1024
STEP_TYPES_PLANNED = tuple(kind for kind in STEP_TYPES if kind != "call")
_INPUTS = 'inputs={"order_id": {"type": "string"}}'
PLAN_FILE = "plan"  # what findings call it


class PlanRejected(NanoVMError):
    """A plan that did not become a program. `report` has all findings, with lines and columns in `report.source`, which
    is what the model wrote. Code: PLAN_REJECTED."""

    report: Report

    def __init__(self, code: str, message: str, *, report: Report | None = None, **details: Any) -> None:
        super().__init__(code, message, **details)
        self.report = report if report is not None else Report(())


class Planner:
    """Writes programs.

    Args:
        llm: any model client; it is asked once per plan.
        tools: what plans may use: a `ToolSet` (`vm.tools`), or name -> schema.
        policy: a plan uses no tool that it denies, and misses no guard that it requires; what depends on arguments it
            decides when the plan runs.
        model, params: passed to the client.
        step_types: what plans may consist of; without `call` by default, since a plan should not choose programs.
        steps_max: how many steps a plan may have.
        max_steps, max_tokens, max_cost_usd, max_duration_seconds: the most its budgets may be; what a plan does not
            say is put in.
        call_max_tokens, call_max_cost_usd: what the planner's own call may take at most, prompt and answer, held before
            it as a run's budgets are; needs an engine (`generate(…, vm=vm)`). None for no limit.

    Example:
        planner = Planner(llm, vm.tools)
        program = await planner.generate("Refund the order if it is damaged", inputs={"order_id": {}})
    """

    def __init__(
        self,
        llm: ModelClient,
        tools: ToolInvoker | Mapping[str, ToolSchema] | None = None,
        *,
        policy: Policy | None = None,
        model: str | None = None,
        params: Mapping[str, Any] | None = None,
        step_types: tuple[str, ...] = STEP_TYPES_PLANNED,
        steps_max: int = 50,
        max_steps: int = 100,
        max_tokens: int | None = None,
        max_cost_usd: float | None = None,
        max_duration_seconds: float | None = None,
        call_max_tokens: int | None = None,
        call_max_cost_usd: float | None = None,
    ) -> None:
        check_client("llm", llm)
        check_mapping("params", params, 'params={"temperature": 0}')
        check_all("step_types", step_types, str, 'step_types=("llm", "tool")')
        if tools is not None and not isinstance(tools, Mapping):
            check_part("tools", tools, "schemas", "tools=vm.tools")
        unknown = sorted(set(step_types) - set(STEP_TYPES))
        if unknown or not step_types:
            raise InputError("USAGE", "there are no such step types", help=f"types: {', '.join(STEP_TYPES)}")
        self.llm = llm
        self.last: Completion | None = None  # the last plan's completion: its text, usage and model
        self._tools = tools
        self._policy = policy
        asked = {**(params or {}), **({} if model is None else {"model": model})}
        self._asker = Asker(llm, asked, policy, call_max_tokens, call_max_cost_usd)
        self._types = tuple(step_types)
        self._steps_max = steps_max
        limits = {
            "max_steps": max_steps,
            "max_tokens": max_tokens,
            "max_cost_usd": max_cost_usd,
            "max_duration_seconds": max_duration_seconds,
        }
        self._budgets: dict[str, int | float] = {
            name: most for name, most in limits.items() if most is not None
        }

    async def generate(
        self,
        intent: str,
        *,
        inputs: Mapping[str, Any] | None = None,
        done: Mapping[str, Any] | None = None,
        vm: Engine | None = None,
        principal: str | Mapping[str, Any] | None = None,
        tenant: str | None = None,
    ) -> Program:
        """One program for one intent, in exactly one model call.

        With `vm` that call is a run of its own in the engine's store, of the program `planning`: the engine's policy
        and the planner's both have to allow it, their limits by principal, day and so on count it before it is made,
        and what it took is on record (spec/policy.md, "Plans"). Without `vm` nothing is recorded, and a policy that
        limits the model denies it.

        Args:
            intent: what is to be done, in words; data, not rules.
            inputs: name -> JSON Schema of what the run will be given (`{}` for anything). None when nothing is known:
                then the plan may declare what it needs.
            done: facts for the model about what has happened before; JSON data.
            vm: the engine to ask in.
            principal, tenant: who asks, as for `vm.run`; with `vm` only.

        Raises:
            PlanRejected: PLAN_REJECTED; nothing was run.
            InputError: USAGE for an intent that is empty or too long, and for arguments of another kind.
            CapabilityDeniedError: CAPABILITY_DENIED; a policy does not allow the model, a limit is reached, or the
                principal may not start runs. RejectedError: BUDGET_EXCEEDED; the call may take more than
                `call_max_tokens` or `call_max_cost_usd`. In both cases no model was asked.
            RuntimeFault: PLAN_FAILED; the model did not answer (with `vm`). SHUTTING_DOWN.
            Exception: without `vm`, whatever the client raises.
        """
        if not isinstance(intent, str) or not intent.strip() or len(intent) > INTENT_CHARS_MAX:
            help = f"1 to {INTENT_CHARS_MAX} characters"
            raise InputError("USAGE", "the intent is empty, or too long", help=help)
        check_mapping("inputs", inputs, _INPUTS)
        for name, schema in (inputs or {}).items():
            check_mapping(f"inputs.{name}", schema, _INPUTS, needed=True)
        check_part("vm", vm, "drive", "vm=ExecutionVM(…)")
        tools = self._schemas()
        system = system_prompt(
            self._types, tools, inputs, FORBIDDEN, self._steps_max, int(self._budgets["max_steps"])
        )
        task = (
            intent
            if done is None
            else f"{intent}\n\nWhat has happened before:\n{canonical.encode(done).decode()}"
        )
        messages = [{"role": "system", "content": system}, {"role": "user", "content": task}]
        if vm is None:
            self.last = completion = await self._asker.ask(messages)
        else:
            self.last = completion = await self._asker.ask_in(vm, messages, principal, tenant)
        return self._admit(completion, tools, inputs)

    def generate_sync(self, intent: str, **options: Any) -> Program:
        """`generate` for code without an event loop."""
        if asyncio._get_running_loop() is not None:
            raise RuntimeFault(
                "LOOP_RUNNING", "an event loop is running here", help="write `await planner.generate(…)`"
            )
        return asyncio.run(self.generate(intent, **options))

    def _schemas(self) -> Mapping[str, ToolSchema]:
        if self._tools is None:
            return {}
        return self._tools if isinstance(self._tools, Mapping) else self._tools.schemas()

    def _admit(
        self, completion: Completion, tools: Mapping[str, ToolSchema], inputs: Mapping[str, Any] | None
    ) -> Program:
        if completion.tool_calls:
            raise PlanRejected("PLAN_REJECTED", "the model called tools instead of writing a program")
        text = completion.text
        if len(text) > PLAN_CHARS_MAX:
            raise PlanRejected("PLAN_REJECTED", f"the plan is longer than {PLAN_CHARS_MAX} characters")
        document = documents.from_json(unfenced(text), PLAN_FILE)
        data = document.data
        if isinstance(data, dict):
            data = {**self._budgets, **data}
            if inputs is not None:
                # What the run is given, and what it counts as, is the caller's to say.
                needed = sorted(name for name, schema in inputs.items() if "default" not in schema)
                data["inputs"] = {"type": "object", "properties": dict(inputs), "required": needed}
        rules = PlanRules(
            types=self._types,
            steps_max=self._steps_max,
            budgets=self._budgets,
            inputs=None if inputs is None else list(inputs),
            tools=tools,
        )
        if document.findings:
            report = Report(tuple(document.findings), None, document.text, PLAN_FILE)
        else:
            report = check(documents.from_data(data), tools, policy=self._policy)
        placed = [_placed(document, finding) for finding in report.diagnostics]
        findings = sort([*placed, *rules.inspect(document)])
        report = Report(tuple(findings), report.compiled, document.text, PLAN_FILE)
        errors = [finding for finding in findings if finding.severity == ERROR]
        if errors:
            first = errors[0]
            count = "1 error" if len(errors) == 1 else f"{len(errors)} errors, the first"
            raise PlanRejected(
                "PLAN_REJECTED",
                f"the plan has {count}: {first.code} {first.message}",
                place=first.place,
                help=first.help,
                facts={"findings": [finding.to_dict() for finding in findings[:100]]},
                report=report,
            )
        return Program.from_dict(data)


def _placed(document: documents.Document, finding: Diagnostic) -> Diagnostic:
    """A finding about the finished program, at its place in what the model wrote."""
    if finding.place.line or document.text is None:
        return finding
    place, length = document.place(finding.place.path, step=finding.place.step, field=finding.place.field)
    return msgspec.structs.replace(finding, place=place, length=length)
