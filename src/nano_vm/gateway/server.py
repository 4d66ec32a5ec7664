"""The MCP server: handlers of the protocol in front of the gateway's operations. Both eras of the protocol are served
by the same handlers; which one a client speaks the SDK finds out."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import mcp_types as types
from mcp.server.lowlevel import Server
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

from nano_vm import __version__, canonical
from nano_vm.errors import Fault, InputError, NanoVMError, NotFoundError
from nano_vm.gateway import asking, prompts, resources
from nano_vm.gateway.arguments import check_arguments
from nano_vm.gateway.catalog import CATALOG, ENTRIES, RUN_OUTPUT, ToolEntry
from nano_vm.gateway.faults import fault_of
from nano_vm.gateway.principals import READ, RUN, Principal
from nano_vm.gateway.programs import PUBLISHED, inputs_schema
from nano_vm.gateway.service import Gateway
from nano_vm.gateway.tasks import MODERN, TASK_AFTER_SECONDS, Tasks
from nano_vm.runtime.engine import Progress

NAME = "nano-vm"
PAGE = 200
PUBLISHED_MAX = 1_000  # tools that are listed; all of them can be called
PROGRESS_SECONDS = 0.1  # a client is told at most this often
KEY_META = "io.nano-vm/idempotencyKey"
RUN_TOOLS = frozenset({"run_program", "resume_run", "step_run", "cancel_run"})
QUESTIONS_MAX = 20  # forms in one call
FORM_SECONDS = 600.0
REQUEST_STATE_SECONDS = 3_600.0
INSTRUCTIONS = (
    "nano-vm runs declarative programs durably: every step is journaled before it acts and can be verified afterwards. "
    "Use list_programs to see what there is, run_program to start one (with an idempotency_key), get_trace to follow a "
    "run, resume_run to answer one that waits, verify_trace to check its journal."
)

Identify = Callable[[Any], Principal]


class Handlers:
    """The handlers of one server. `identify` says who sends a request."""

    def __init__(self, gateway: Gateway, identify: Identify) -> None:
        self.gateway = gateway
        self.identify = identify
        self.tasks = Tasks(self)

    # --- tools ------------------------------------------------------------------------------------------------

    async def list_tools(self, ctx: Any, params: Any) -> types.ListToolsResult:
        who = self.identify(ctx)
        tools = [_core_tool(entry) for entry in CATALOG]
        if who.may(READ):
            tools += self._published(who)
        start = _cursor(params)
        more = start + PAGE < len(tools)
        return types.ListToolsResult(
            tools=tools[start : start + PAGE], next_cursor=str(start + PAGE) if more else None
        )

    def _published(self, who: Principal) -> list[types.Tool]:
        gateway = self.gateway
        found = []
        for tool, (name, program_hash) in islice(gateway.programs.tools(who).items(), PUBLISHED_MAX):
            program = gateway.programs.read(who, program_hash)
            schema = inputs_schema(gateway.engine.load_program(program_hash))
            made = types.Tool(
                name=tool,
                title=name,
                description=program.to_dict().get("description") or f"Runs the program `{name}`.",
                input_schema=schema,
                output_schema=RUN_OUTPUT,
                annotations=types.ToolAnnotations(
                    read_only_hint=False, destructive_hint=True, idempotent_hint=False, open_world_hint=True
                ),
            )
            found.append(made)
        return found

    def input_schema(self, name: str) -> dict[str, Any] | None:
        """What the transport holds headers against; of published programs it has nothing to check."""
        return ENTRIES[name].arguments if name in ENTRIES else None

    async def call_tool(self, ctx: Any, params: types.CallToolRequestParams) -> Any:
        """A call, counted and timed under a name that no client can make up."""
        name = params.name if params.name in ENTRIES else "published"
        began, outcome = time.monotonic(), "refused"
        try:
            result = await self._call_tool(ctx, params)
            outcome = _outcome(result)
            return result
        finally:
            self.gateway.metrics.called(name, outcome, time.monotonic() - began)

    async def _call_tool(self, ctx: Any, params: types.CallToolRequestParams) -> Any:
        name, args = params.name, dict(params.arguments or {})
        who = self.identify(ctx)
        if not self.has_tool(name):
            raise MCPError(types.INVALID_PARAMS, f"unknown tool: {name[:100]}", {"tool": name[:100]})
        try:
            async with _Teller(ctx) as tell:
                if name in ENTRIES and name not in RUN_TOOLS:
                    return done(await self.gateway.call(who, name, args, tell))
                if params.request_state is not None:
                    view, decided = await self._answered(who, params)
                    if not decided:
                        return self.result_of(view)
                elif name in ENTRIES:
                    view = await self.gateway.call(who, name, self._bounded(ctx, args), tell)
                else:
                    view = await self._call_published(ctx, who, name, args, tell)
                return await self._concluded(ctx, who, view)
        except (asyncio.CancelledError, MCPError):
            raise
        except Exception as error:
            return failed(error)

    def has_tool(self, name: str) -> bool:
        return name in ENTRIES or name.startswith(PUBLISHED)

    def _bounded(self, ctx: Any, args: dict[str, Any]) -> dict[str, Any]:
        """Who knows tasks gets one soon instead of waiting."""
        if not Tasks.wanted(ctx):
            return args
        asked = args.get("wait_seconds")
        soon = min(asked, TASK_AFTER_SECONDS) if isinstance(asked, int | float) else TASK_AFTER_SECONDS
        return {**args, "wait_seconds": soon}

    async def _concluded(self, ctx: Any, who: Principal, view: dict[str, Any]) -> Any:
        """What becomes of a call whose run has ended, waits or goes on."""
        if Tasks.wanted(ctx) and view["status"] in ("RUNNING", "SUSPENDED"):
            return self.tasks.created(ctx, who, view)
        for _ in range(QUESTIONS_MAX):
            asked = asking.questions(who, view, asking.APPROVALS) if view["status"] == "SUSPENDED" else {}
            if not asked or not asking.supports_forms(ctx):
                break
            key, (wait, request) = next(iter(asked.items()))
            if ctx.protocol_version >= MODERN:
                state = canonical.encode({"key": key, "run": view["trace_id"]}).decode()
                return types.InputRequiredResult(input_requests={key: request}, request_state=state)
            if not ctx.session.can_send_request:
                break
            answer = await self._elicited(ctx, request)
            call = asking.arguments(who, view["trace_id"], wait, answer)
            if call is None:
                break
            view = await self.gateway.call(who, "resume_run", call)
        return self.result_of(view)

    async def _elicited(self, ctx: Any, request: types.ElicitRequest) -> types.ElicitResult | None:
        """Ask on the client's own channel, as clients of the older era are asked."""
        params = request.params
        assert isinstance(params, types.ElicitRequestFormParams)
        try:
            async with asyncio.timeout(FORM_SECONDS):
                answer: types.ElicitResult = await ctx.session.elicit_form(
                    params.message, params.requested_schema, ctx.request_id
                )
                return answer
        except (TimeoutError, MCPError):
            return None  # nobody answered: the run waits on

    async def _answered(
        self, who: Principal, params: types.CallToolRequestParams
    ) -> tuple[dict[str, Any], bool]:
        """The second round of a call: the answer goes to the run that the sealed state names. Nothing is started. The
        run, and False when the user has closed the form: who has decided nothing is not asked again."""
        state = canonical.decode((params.request_state or "").encode())
        run_id = self.gateway.record(who, state["run"]).run_id
        view = await self.gateway.view(run_id)
        asked = asking.questions(who, view, asking.APPROVALS)
        response = (params.input_responses or {}).get(state["key"])
        if response is None or state["key"] not in asked:
            return view, True
        call = asking.arguments(who, run_id, asked[state["key"]][0], response)
        if call is None:
            return view, False
        return await self.gateway.call(who, "resume_run", call), True

    def result_of(self, view: dict[str, Any]) -> types.CallToolResult:
        """A run as the result of a call; one that did not come to its end is an error that the model sees."""
        result = done(view)
        if view["status"] in ("FAILED", "BUDGET_EXCEEDED", "STALLED"):
            result.is_error = True
        return result

    async def _call_published(
        self, ctx: Any, who: Principal, name: str, args: dict[str, Any], tell: Any
    ) -> dict[str, Any]:
        who.must(RUN)
        gateway = self.gateway
        program_hash = gateway.programs.published(who, name)
        if program_hash is not None:
            program, compiled = await gateway.programs.find(who, program_hash)
            check_arguments(inputs_schema(compiled), args)
            key = (ctx.meta or {}).get(KEY_META)
            if key is not None and not isinstance(key, str):
                raise InputError("RUN_KEY", f"`{KEY_META}` is not a text", help="send a text")
            wait = TASK_AFTER_SECONDS if Tasks.wanted(ctx) else None
            return await gateway.run(who, program, compiled, args, key, wait, tell)
        raise NotFoundError(
            "PROGRAM_NOT_FOUND", "no saved program is published under that name", help="see tools/list"
        )

    # --- resources --------------------------------------------------------------------------------------------

    async def list_resources(self, ctx: Any, params: Any) -> types.ListResourcesResult:
        who = self.identify(ctx)
        found = resources.listing(self.gateway, who) if who.may(READ) else []
        start = _cursor(params)
        more = start + PAGE < len(found)
        return types.ListResourcesResult(
            resources=found[start : start + PAGE], next_cursor=str(start + PAGE) if more else None
        )

    async def list_templates(self, ctx: Any, params: Any) -> types.ListResourceTemplatesResult:
        return types.ListResourceTemplatesResult(resource_templates=resources.TEMPLATES)

    async def read_resource(self, ctx: Any, params: types.ReadResourceRequestParams) -> Any:
        who = self.identify(ctx)
        try:
            text = await resources.read(self.gateway, who, str(params.uri))
        except NotFoundError as error:
            code = types.INVALID_PARAMS if ctx.protocol_version >= MODERN else RESOURCE_NOT_FOUND
            raise MCPError(code, error.message, {"uri": str(params.uri), "code": error.code}) from None
        except NanoVMError as error:
            raise protocol_error(error) from None
        contents = types.TextResourceContents(uri=str(params.uri), mime_type="application/json", text=text)
        return types.ReadResourceResult(contents=[contents])

    # --- prompts and completion -------------------------------------------------------------------------------

    async def list_prompts(self, ctx: Any, params: Any) -> types.ListPromptsResult:
        return types.ListPromptsResult(prompts=prompts.PROMPTS)

    async def get_prompt(self, ctx: Any, params: types.GetPromptRequestParams) -> Any:
        who = self.identify(ctx)
        try:
            return await prompts.render(self.gateway, who, params.name, params.arguments or {})
        except NanoVMError as error:
            raise protocol_error(error) from None

    async def complete(self, ctx: Any, params: types.CompleteRequestParams) -> types.CompleteResult:
        """Names of programs and ids of runs."""
        who = self.identify(ctx)
        found: list[str] = []
        name, start = params.argument.name, params.argument.value
        if who.may(READ):
            if name in ("program", "name"):
                found = [entry[0] for entry in self.gateway.programs.listing(who)]
            elif name == "trace_id":
                found = [record.run_id for record in self.gateway.runs(who, limit=PAGE)]
        found = [value for value in found if value.startswith(start)]
        return types.CompleteResult(
            completion=types.Completion(values=found[:100], total=len(found), has_more=len(found) > 100)
        )


RESOURCE_NOT_FOUND = -32002


def build_server(gateway: Gateway, identify: Identify, handlers: Handlers | None = None) -> Server[Any]:
    """A server object for any transport."""
    handlers = handlers or Handlers(gateway, identify)
    server: Server[Any] = Server(
        NAME,
        version=__version__,
        title="nano-vm",
        instructions=INSTRUCTIONS,
        on_list_tools=handlers.list_tools,
        on_call_tool=handlers.call_tool,
        on_list_resources=handlers.list_resources,
        on_list_resource_templates=handlers.list_templates,
        on_read_resource=handlers.read_resource,
        on_list_prompts=handlers.list_prompts,
        on_get_prompt=handlers.get_prompt,
        on_completion=handlers.complete,
        get_tool_input_schema=handlers.input_schema,
    )
    for method in handlers.tasks.methods():
        server.add_request_handler(method.method, method.params_type, method.handler)
    server.extensions[handlers.tasks.identifier] = handlers.tasks.settings()
    server.middleware.append(_shield)
    # What a client sends back of our own is sealed, and bound to the principal, the request and a time.
    key = gateway.state.secret("request-state")
    security = RequestStateSecurity(
        keys=[key],
        ttl=REQUEST_STATE_SECONDS,
        bind_principal=lambda ctx: canonical.encode(identify(ctx).to_dict()).decode(),
    )
    server.middleware.append(RequestStateBoundary(security, default_audience=NAME))
    return server


async def _shield(ctx: Any, call_next: Any) -> Any:
    """No error leaves with a traceback, or with a text that is not ours."""
    if ctx.method.startswith("tasks/") and ctx.protocol_version < MODERN:
        raise MCPError(types.METHOD_NOT_FOUND, "Method not found", ctx.method)
    try:
        return await call_next(ctx)
    except (MCPError, ValidationError, asyncio.CancelledError):
        raise
    except NanoVMError as error:
        raise protocol_error(error) from None
    except Exception as error:
        raise MCPError(types.INTERNAL_ERROR, fault_of(error)["message"]) from None


def _outcome(result: Any) -> str:
    if isinstance(result, types.CallToolResult):
        return "error" if result.is_error else "ok"
    return "task" if isinstance(result, dict) else "input_required"


def done(result: dict[str, Any]) -> types.CallToolResult:
    """A result as structured content, and as text for clients that know no other."""
    text = canonical.encode(result).decode()
    return types.CallToolResult(
        content=[types.TextContent(type="text", text=text)], structured_content=result, is_error=False
    )


def failed(error: Exception) -> types.CallToolResult:
    """An error of the tool: what the model can act on."""
    fault = fault_of(error)
    text = f"{fault['code']} {fault['message']}"
    if fault.get("help"):
        text += f"\nhelp: {fault['help']}"
    for finding in fault.get("findings", [])[:20]:
        text += f"\n{finding['code']} line {finding.get('line', 0)}: {finding['message']}"
    return types.CallToolResult(
        content=[types.TextContent(type="text", text=text)],
        structured_content={"error": canonical.decode(canonical.encode(fault))},
        is_error=True,
    )


def protocol_error(error: NanoVMError) -> MCPError:
    """An error where the protocol has no room for a result."""
    fault = fault_of(error)
    blamed = types.INVALID_PARAMS if error.fault in (Fault.AUTHOR, Fault.CALLER) else types.INTERNAL_ERROR
    return MCPError(blamed, f"{error.code} {error.message}", canonical.decode(canonical.encode(fault)))


def _core_tool(entry: ToolEntry) -> types.Tool:
    hints = types.ToolAnnotations(
        read_only_hint=entry.reads,
        destructive_hint=False if entry.reads else entry.destroys,
        idempotent_hint=entry.reads or entry.repeats,
        open_world_hint=entry.reaches,
    )
    return types.Tool(
        name=entry.name,
        title=entry.title,
        description=entry.description,
        input_schema=entry.arguments,
        output_schema=entry.output,
        annotations=hints,
    )


def _cursor(params: Any) -> int:
    cursor = getattr(params, "cursor", None)
    if cursor is None:
        return 0
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 10):
        raise MCPError(types.INVALID_PARAMS, "the cursor is not one of ours", {"cursor": cursor[:100]})
    return int(cursor)


class _Teller:
    """Progress for the client that asked for it: the last news, at most every `PROGRESS_SECONDS`. A client that does
    not read holds up this sender and nothing else."""

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx
        self._wanted = bool((ctx.meta or {}).get("progress_token") is not None)
        self._count = 0
        self._news = ""
        self._stirred = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Callable[[Progress], None] | None:
        if not self._wanted:
            return None
        self._task = asyncio.get_running_loop().create_task(self._send())
        return self._hear

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await self._task

    def _hear(self, progress: Progress) -> None:
        self._count += 1
        step = getattr(progress.event, "step", None)
        self._news = f"{progress.type} {step}" if isinstance(step, str) else progress.type
        self._stirred.set()

    async def _send(self) -> None:
        while True:
            await self._stirred.wait()
            self._stirred.clear()
            await self._ctx.session.report_progress(float(self._count), None, self._news)
            await asyncio.sleep(PROGRESS_SECONDS)


__all__ = ["Handlers", "build_server"]
