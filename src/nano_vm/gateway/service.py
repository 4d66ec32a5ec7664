"""What the tools do: every operation for a principal, on one engine. Knows nothing of MCP.

A run is never tied to the call that started it: it is driven by a task of its own, and the call waits for it as long as
it may. So neither a client that leaves, nor one that reads slowly, nor a program that takes for ever holds anything up.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

from nano_vm import canonical
from nano_vm.errors import Fault, InputError, NanoVMError, NotFoundError, RuntimeFault
from nano_vm.evidence.narrative import narrative
from nano_vm.evidence.receipt import receipt
from nano_vm.gateway import views
from nano_vm.gateway.catalog import ENTRIES
from nano_vm.gateway.config import GatewayConfig
from nano_vm.gateway.faults import fault_of, log
from nano_vm.gateway.metrics import Metrics
from nano_vm.gateway.principals import ANSWER, PROVE, READ, RUN, WRITE, Principal
from nano_vm.gateway.programs import TENANT, GatewayStore, Programs, inputs_schema
from nano_vm.gateway.state import GatewayState
from nano_vm.journal.entry import open_event
from nano_vm.journal.port import RunQuery, RunRecord, qualified
from nano_vm.journal.trace import Trace
from nano_vm.kernel import events as ev
from nano_vm.kernel.state import RunStatus
from nano_vm.program.compiled import CompiledProgram
from nano_vm.program.model import Program
from nano_vm.program.schema_faults import faults
from nano_vm.runtime.approvals import PendingApproval, pending
from nano_vm.runtime.engine import Engine, Progress

if TYPE_CHECKING:
    from nano_vm.gateway.mounts import Mounts

LIST_DEFAULT = 50
STEPS_DEFAULT = 200
Tell = Callable[[Progress], None]


class Gateway:
    """The operations behind the tools. One for each process.

    Args:
        engine: runs the programs; its store is `store`.
        state: names, tokens and pins.
        config: limits and what may be done.
    """

    def __init__(
        self, engine: Engine, store: GatewayStore, state: GatewayState, config: GatewayConfig
    ) -> None:
        store.tenants = state
        self.engine = engine
        self.store = store
        self.state = state
        self.config = config
        self.programs = Programs(engine, store, state, config)
        self.mounts: Mounts | None = None
        self.metrics = Metrics()
        self.driving: dict[asyncio.Task[Trace], str] = {}  # run id by the task that drives it
        self.started_total = 0
        self._operations: dict[str, tuple[str, Callable[..., Awaitable[dict[str, Any]]]]] = {
            "run_program": (RUN, self._run_program),
            "resume_run": (ANSWER, self._resume_run),
            "step_run": (RUN, self._step_run),
            "cancel_run": (RUN, self._cancel_run),
            "get_trace": (READ, self._get_trace),
            "get_receipt": (READ, self._get_receipt),
            "verify_trace": (PROVE, self._verify_trace),
            "debug_trace": (READ, self._debug_trace),
            "list_runs": (READ, self._list_runs),
            "validate_program": (READ, self._validate_program),
            "save_program": (WRITE, self._save_program),
            "list_programs": (READ, self._list_programs),
            "get_program": (READ, self._get_program),
            "delete_program": (WRITE, self._delete_program),
        }

    async def call(
        self, who: Principal, name: str, args: dict[str, Any], tell: Tell | None = None
    ) -> dict[str, Any]:
        """One tool of the catalogue.

        Raises:
            CapabilityDeniedError: ROLE_REQUIRED. InputError: GATEWAY_ARGUMENT. What the operation raises.
        """
        operation, do = self._operations[name]
        who.must(operation)
        check_arguments(ENTRIES[name].arguments, args)
        return await do(who, _whole(ENTRIES[name].arguments, args), tell)

    # --- runs -------------------------------------------------------------------------------------------------

    async def _run_program(self, who: Principal, args: dict[str, Any], tell: Tell | None) -> dict[str, Any]:
        program, compiled = await self.programs.to_run(who, args)
        key, inputs = args.get("idempotency_key"), args.get("inputs")
        if args.get("paused"):
            run_id = self._new_run_id(who)
            work = self._begin_held(who, run_id, program, inputs, key)
            return self.shown(await asyncio.shield(self._drive(work, run_id, _context_for(who.tenant))))
        return await self.run(who, program, compiled, inputs, key, args.get("wait_seconds"), tell)

    async def run(
        self,
        who: Principal,
        program: Program,
        compiled: CompiledProgram,
        inputs: Any,
        key: str | None,
        wait_seconds: float | None,
        tell: Tell | None,
    ) -> dict[str, Any]:
        """Start a run, or join the one that the key has started, and wait for it as long as the call may."""
        run_id, task = self.launch(who, program, inputs, key, tell)
        return await self._waited(task, run_id, wait_seconds, lambda: self._keyed(who, compiled, key))

    async def _begin_held(
        self, who: Principal, run_id: str, program: Program, inputs: Any, key: str | None
    ) -> Trace:
        """Start a run that is taken step by step."""
        self.state.hold(run_id)  # before it is there: nobody is to be quicker
        begun = False
        try:
            trace = await self.engine.start(
                program,
                inputs,
                idempotency_key=key,
                trace_id=run_id,
                principal=who.to_dict(),
                tenant=who.tenant,
            )
            begun = trace.trace_id == run_id
        finally:
            if not begun and not self._is_there(run_id):
                self.state.let_go(run_id)
        return trace

    def _is_there(self, run_id: str) -> bool:
        try:
            self.store.record(run_id)
        except NotFoundError:
            return False
        except NanoVMError:
            pass  # nobody knows: then it stays held
        return True

    def _new_run_id(self, who: Principal) -> str:
        return qualified(self.engine.new_run_id(self.engine.clock.now_ms()), who.tenant)

    def launch(
        self, who: Principal, program: Program, inputs: Any, key: str | None, tell: Tell | None = None
    ) -> tuple[str, asyncio.Task[Trace]]:
        """Start a run in a task of its own. With a key the run may be another than the one of this id."""
        run_id = self._new_run_id(who)
        context = _context_for(who.tenant)
        run = self.engine.run(
            program,
            inputs,
            idempotency_key=key,
            trace_id=run_id,
            principal=who.to_dict(),
            tenant=who.tenant,
            listener=tell,
        )
        return run_id, self._drive(run, run_id, context)

    def _drive(
        self, work: Coroutine[Any, Any, Trace], run_id: str, context: contextvars.Context | None = None
    ) -> asyncio.Task[Trace]:
        if len(self.driving) >= self.config.limits.runs:
            work.close()
            raise RuntimeFault(
                "GATEWAY_BUSY",
                f"{self.config.limits.runs} runs are under way",
                help="try again in a moment; nothing was started",
            )
        task = asyncio.get_running_loop().create_task(work, context=context)
        self.driving[task] = run_id
        self.started_total += 1
        task.add_done_callback(self._driven)
        return task

    def _driven(self, task: asyncio.Task[Trace]) -> None:
        run_id = self.driving.pop(task)
        if not task.cancelled():
            error = task.exception()
            if error is not None and not isinstance(error, NanoVMError):
                log.error("driving run %s failed", run_id, exc_info=error)

    async def _waited(
        self,
        task: asyncio.Task[Trace],
        run_id: str,
        wait_seconds: float | None,
        other: Callable[[], str | None] = lambda: None,
    ) -> dict[str, Any]:
        """The run when it is done or waits; else how it stands when the time is over."""
        most = self.config.limits.wait_seconds
        left = most if wait_seconds is None else min(wait_seconds, most)
        await asyncio.wait((task,), timeout=left)
        while not task.done():
            try:
                return self.shown(await self._trace(run_id))
            except NotFoundError:
                known = other()
                if known is not None:
                    run_id = known
                else:  # it is about to be created
                    await asyncio.wait((task,), timeout=0.05)
        return self.shown(task.result())

    def _keyed(self, who: Principal, compiled: CompiledProgram, key: str | None) -> str | None:
        record = None if key is None else self.store.find_key(who.tenant, compiled.name, key)
        return None if record is None else record.run_id

    def shown(self, trace: Trace) -> dict[str, Any]:
        view = views.run_view(trace)
        if any(wait.get("nonce") for wait in view["waiting"]):
            asked = {each.nonce: each for each in self.asked(trace.trace_id)}
            for wait in view["waiting"]:
                found = asked.get(wait.get("nonce"))
                wait.update({} if found is None else views.question_view(found))
        message = _MESSAGES.get(view["status"])
        if message is not None:
            view["message"] = message
        return view

    async def _resume_run(self, who: Principal, args: dict[str, Any], tell: Tell | None) -> dict[str, Any]:
        run_id = self.record(who, args["trace_id"]).run_id
        given = [name for name in ("event", "approve", "resolution") if name in args]
        if len(given) != 1:
            raise InputError(
                "GATEWAY_ARGUMENT",
                "a run is answered by `event`, `approve` or `resolution`",
                help="pass exactly one of them; get_trace shows what the run waits for",
                facts={"argument": given[1] if given else "event"},
            )
        engine, principal = self.engine, who.to_dict()
        work: Callable[[], Coroutine[Any, Any, Trace]]
        if "resolution" in args:
            who.must(RUN)
            if "step" not in args:
                raise InputError(
                    "GATEWAY_ARGUMENT",
                    "`resolution` needs the step whose outcome is unknown",
                    help="pass `step`; get_trace shows it",
                    facts={"argument": "step"},
                )
            work = partial(
                engine.resolve,
                run_id,
                args["step"],
                args["resolution"],
                args.get("value"),
                item=args.get("item"),
                principal=principal,
            )
        elif "approve" in args:
            work = partial(
                engine.approve,
                run_id,
                args["approve"],
                step=args.get("step"),
                item=args.get("item"),
                action=args.get("action"),
                nonce=args.get("nonce"),
                comment=args.get("comment"),
                principal=principal,
                event_id=args.get("event_id"),
            )
        else:
            work = partial(
                engine.resume,
                run_id,
                args["event"],
                event_id=args.get("event_id"),
                name=args.get("name"),
                step=args.get("step"),
                item=args.get("item"),
                principal=principal,
            )
        return await self._waited(
            self._drive(self._told(run_id, work), run_id), run_id, args.get("wait_seconds")
        )

    async def _told(self, run_id: str, work: Callable[[], Coroutine[Any, Any, Trace]]) -> Trace:
        """Tell a run something, after which it goes on by itself. Where it does not take that, it stays as it stood,
        and is held as before."""
        held = self.state.is_held(run_id)
        if held:
            self.state.let_go(run_id)  # before it goes on: if we die, others are to drive it
        try:
            return await work()
        except NanoVMError as error:
            if held and error.fault is Fault.CALLER and not self._is_over(run_id):
                self.state.hold(run_id)
            raise

    def _is_over(self, run_id: str) -> bool:
        return RunStatus(self.store.record(run_id).status).is_terminal

    async def _step_run(self, who: Principal, args: dict[str, Any], tell: Tell | None) -> dict[str, Any]:
        run_id = self.record(who, args["trace_id"]).run_id
        if args.get("finish"):
            self.state.let_go(run_id)
            work = self._to_end(run_id)
        else:
            work = self._steps(run_id, args.get("steps", 1))
        return await self._waited(self._drive(work, run_id), run_id, args.get("wait_seconds"))

    async def _steps(self, run_id: str, steps: int) -> Trace:
        trace = await self.engine.step(run_id)
        for _ in range(steps - 1):
            if trace.status.value != "RUNNING":
                break
            trace = await self.engine.step(run_id)
        if trace.status.is_terminal:
            self.state.let_go(run_id)
        return trace

    def take_up(self, run_id: str) -> asyncio.Task[Trace]:
        """Drive on a run that nobody drives, in a task of its own."""
        return self._drive(self._to_end(run_id), run_id)

    async def _to_end(self, run_id: str) -> Trace:
        taken = await self.engine.take_up(run_id)
        return taken if taken is not None else await self._trace(run_id)

    async def _cancel_run(self, who: Principal, args: dict[str, Any], tell: Tell | None) -> dict[str, Any]:
        run_id = self.record(who, args["trace_id"]).run_id
        return await self.cancel(who, run_id, args.get("reason", ""), args.get("wait_seconds"))

    async def cancel(
        self, who: Principal, run_id: str, reason: str, wait_seconds: float | None = None
    ) -> dict[str, Any]:
        work = partial(self.engine.cancel, run_id, reason, principal=who.to_dict())
        return await self._waited(self._drive(self._told(run_id, work), run_id), run_id, wait_seconds)

    # --- looking ----------------------------------------------------------------------------------------------

    def record(self, who: Principal, run_id: str) -> RunRecord:
        """The record of a run of the principal's tenant.

        Raises:
            NotFoundError: RUN_NOT_FOUND, for a run of another tenant as for none.
        """
        try:
            record = self.store.record(run_id)
        except NotFoundError:
            record = None
        if record is None or record.tenant != who.tenant:
            raise NotFoundError(
                "RUN_NOT_FOUND", "there is no run of that id", help="list_runs shows the runs there are"
            )
        return record

    def starter(self, run_id: str) -> str | None:
        """Id of the principal who started the run, as its journal says."""
        entries = self.store.read(run_id, 0, 1)
        who = getattr(open_event(entries[0]), "principal", ev.UNSET) if entries else ev.UNSET
        return who["id"] if isinstance(who, dict) else None

    async def _trace(self, run_id: str) -> Trace:
        """The trace, folded: what is read from it afterwards costs nothing."""

        def fold() -> Trace:
            trace = self.engine.trace(run_id)
            _ = trace.status
            return trace

        return await asyncio.to_thread(fold)

    async def view(self, run_id: str) -> dict[str, Any]:
        """How a run stands."""
        return self.shown(await self._trace(run_id))

    def asked(self, run_id: str) -> list[PendingApproval]:
        """What exactly the run waits for somebody to approve, as the journal holds it."""
        return pending(self.engine, self.store.record(run_id))

    async def trace(
        self, who: Principal, run_id: str, offset: int, limit: int, outputs: bool
    ) -> dict[str, Any]:
        who.must(READ)
        run_id = self.record(who, run_id).run_id
        trace = await self._trace(run_id)
        return await asyncio.to_thread(views.trace_view, trace, offset, limit, outputs)

    async def _get_trace(self, who: Principal, args: dict[str, Any], tell: Tell | None) -> dict[str, Any]:
        limit = args.get("limit", STEPS_DEFAULT)
        return await self.trace(
            who, args["trace_id"], args.get("offset", 0), limit, args.get("outputs", True)
        )

    async def receipt(self, who: Principal, run_id: str) -> dict[str, Any]:
        who.must(READ)
        record = self.record(who, run_id)
        trace = await self._trace(record.run_id)
        return await asyncio.to_thread(receipt, trace)

    async def _get_receipt(self, who: Principal, args: dict[str, Any], tell: Tell | None) -> dict[str, Any]:
        made = await self.receipt(who, args["trace_id"])
        return {"trace_id": args["trace_id"], "receipt": made, "narrative": narrative(made)}

    async def _verify_trace(self, who: Principal, args: dict[str, Any], tell: Tell | None) -> dict[str, Any]:
        run_id = self.record(who, args["trace_id"]).run_id
        try:
            verified = await asyncio.to_thread(self.engine.verify, run_id)
        except NanoVMError as error:
            if error.fault.value != "tampering":
                raise
            return {"trace_id": run_id, "verified": False, "problem": fault_of(error)}
        trace = await self._trace(run_id)
        return {
            "trace_id": run_id,
            "verified": True,
            "status": verified.state.status.value,
            "entries": len(trace.entries),
            "head": trace.head,
            "trace_hash": trace.trace_hash,
            "checks": [{"check": name, "detail": detail} for name, detail in verified.steps],
            "problem": None,
        }

    async def _debug_trace(self, who: Principal, args: dict[str, Any], tell: Tell | None) -> dict[str, Any]:
        run_id = self.record(who, args["trace_id"]).run_id
        trace = await self._trace(run_id)
        return await asyncio.to_thread(views.debug_view, trace)

    def runs(self, who: Principal, **filters: Any) -> list[RunRecord]:
        who.must(READ)
        return self.store.records(RunQuery(tenant=who.tenant, parent="", **filters))

    async def _list_runs(self, who: Principal, args: dict[str, Any], tell: Tell | None) -> dict[str, Any]:
        limit = args.get("limit", LIST_DEFAULT)
        after = args.get("after")
        if after is not None:
            self.record(who, after)
        records = self.runs(
            who,
            status=args.get("status"),
            program_name=args.get("program"),
            after=after,
            limit=limit + 1,
        )
        more = len(records) > limit
        shown = records[:limit]
        return {
            "runs": [views.record_view(record) for record in shown],
            "next_after": shown[-1].run_id if more else None,
        }

    # --- programs ---------------------------------------------------------------------------------------------

    async def _validate_program(
        self, who: Principal, args: dict[str, Any], tell: Tell | None
    ) -> dict[str, Any]:
        try:
            document = await self.programs.document(args)
        except NanoVMError as error:
            if not getattr(error, "diagnostics", None):
                raise
            return {"ok": False, "findings": fault_of(error)["findings"], "hash": None}
        report = await self.programs.report(document)
        return {
            "ok": report.ok,
            "findings": [finding.to_dict() for finding in report.diagnostics],
            "hash": None if report.compiled is None else report.compiled.hash,
        }

    async def _save_program(self, who: Principal, args: dict[str, Any], tell: Tell | None) -> dict[str, Any]:
        program, report = await self.programs.save(who, args)
        return {
            "name": program.name,
            "hash": program.hash,
            "findings": [finding.to_dict() for finding in report.diagnostics],
            "tool": self._tool_of(program.name, self.tools(who)),
        }

    def published_as(self, name: str) -> str | None:
        """The name of the tool that a program of that name is published as; None when it is not."""
        chosen = self.config.publish
        if chosen == "none" or (not isinstance(chosen, str) and name not in chosen):
            return None
        tool = PUBLISHED + "".join(char if char.isascii() and char.isalnum() else "_" for char in name)
        return tool if len(tool) <= TOOL_NAME_CHARS_MAX else None

    def tools(self, who: Principal) -> dict[str, tuple[str, str]]:
        """The saved programs that are published: tool -> (name, hash). Of several whose names make the same tool it is
        the one that is named like it, else the first."""
        found: dict[str, tuple[str, str]] = {}
        for name, program_hash, _ in self.programs.listing(who):
            tool = self.published_as(name)
            if tool is not None and (tool not in found or tool == PUBLISHED + name):
                found[tool] = (name, program_hash)
        return found

    def published(self, who: Principal, tool: str) -> str | None:
        """The hash of the program that a tool runs."""
        name = tool.removeprefix(PUBLISHED)
        if self.published_as(name) == tool:  # nearly always the name itself
            try:
                return self.programs.hash_of(who, name)
            except NotFoundError:
                pass
        found = self.tools(who).get(tool)
        return None if found is None else found[1]

    def _tool_of(self, name: str, tools: dict[str, tuple[str, str]]) -> str | None:
        """The tool that runs the program of that name, if one does."""
        tool = self.published_as(name)
        return tool if tool is not None and tools.get(tool, ("",))[0] == name else None

    async def _list_programs(self, who: Principal, args: dict[str, Any], tell: Tell | None) -> dict[str, Any]:
        limit, after = args.get("limit", LIST_DEFAULT), args.get("after", "")
        names = [entry for entry in self.programs.listing(who) if entry[0] > after]
        tools = self.tools(who)
        found = []
        for name, program_hash, at_ms in names[:limit]:
            compiled = self.engine.load_program(program_hash)
            program = self.programs.read(who, name)
            found.append(
                {
                    "name": name,
                    "hash": program_hash,
                    "version": program.version,
                    "description": program.to_dict().get("description"),
                    "saved_at": views.moment(at_ms),
                    "inputs": inputs_schema(compiled),
                    "tool": self._tool_of(name, tools),
                }
            )
        return {"programs": found, "next_after": names[limit - 1][0] if len(names) > limit else None}

    async def _get_program(self, who: Principal, args: dict[str, Any], tell: Tell | None) -> dict[str, Any]:
        program = self.programs.read(who, args["program"])
        return {"name": program.name, "hash": program.hash, "program": program.to_dict()}

    async def _delete_program(
        self, who: Principal, args: dict[str, Any], tell: Tell | None
    ) -> dict[str, Any]:
        program_hash = self.programs.hide(who, args["name"])
        return {"name": args["name"], "hash": program_hash, "hidden": True}


PUBLISHED = "program_"
TOOL_NAME_CHARS_MAX = 64
_MESSAGES = {
    "RUNNING": "the run goes on by itself; ask with get_trace",
    "SUSPENDED": "the run waits; `waiting` says for what, and `answer_with` is the call that answers it",
}


def _context_for(tenant: str) -> contextvars.Context:
    context = contextvars.copy_context()
    context.run(TENANT.set, tenant)
    return context


def _whole(schema: dict[str, Any], args: dict[str, Any]) -> dict[str, Any]:
    """The arguments, with 2 for 2.0: to a JSON Schema both are integers."""
    kinds = {name: known.get("type") for name, known in schema["properties"].items()}
    return {
        name: int(value) if kinds[name] == "integer" and type(value) is float else value
        for name, value in args.items()
    }


def check_arguments(schema: dict[str, Any], args: dict[str, Any]) -> None:
    """Raises InputError GATEWAY_ARGUMENT, naming the first argument that does not fit; VALUE_STRING."""
    try:
        fault = next(iter(faults(canonical.encode(schema), args)), None)
    except UnicodeEncodeError:  # the validator cannot even say what is wrong with it
        canonical.encode(args)
        raise
    if fault is not None:
        path = "/" + "/".join(str(part) for part in fault.instance_path)
        kind = fault.kind.name
        facts: dict[str, Any] = {"path": path, "keyword": kind}
        if kind == "required":
            message = f"an argument is missing: {fault.message}"
        elif kind == "additionalProperties":
            known = ", ".join(schema.get("properties", {}))
            message = f"an argument that the tool does not have; it has: {known or 'none'}"
        else:
            message = f"the argument at `{path}` does not fit the tool's schema: {kind}"
        raise InputError("GATEWAY_ARGUMENT", message, help="see the tool's inputSchema", facts=facts)
