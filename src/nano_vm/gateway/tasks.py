"""Long runs as tasks (SEP-2663, the extension `io.modelcontextprotocol/tasks`).

A task is a run: it is durable before its id leaves, and everything a client asks of it is read from the run's journal,
so tasks survive the gateway and are the same for every gateway on the database. The id of a task is the run's id sealed
for the principal who got it: nobody can guess one, and one that was taken from somebody else opens nothing.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import TYPE_CHECKING, Any

import mcp_types as types
from mcp.server.extension import Extension, MethodBinding
from mcp.server.mcpserver.server import require_client_extension
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import MCP_NAME_HEADER, decode_header_value
from pydantic import Field

from nano_vm import canonical
from nano_vm.errors import NanoVMError, NotFoundError
from nano_vm.gateway import asking
from nano_vm.gateway.faults import fault_of
from nano_vm.gateway.principals import READ, RUN, Principal

if TYPE_CHECKING:
    from nano_vm.gateway.server import Handlers

EXTENSION = "io.modelcontextprotocol/tasks"
MODERN = "2026-07-28"
TASK_AFTER_SECONDS = 1.0  # a run that is done sooner is answered at once
ACK_SECONDS = 5.0  # how long an update waits for the run to have taken it
POLL_MS = 1_000
HEADER_MISMATCH = -32020


class TaskParams(types.RequestParams):
    task_id: str = Field(alias="taskId")


class UpdateParams(TaskParams):
    input_responses: dict[str, Any] = Field(alias="inputResponses")


class Tasks(Extension):
    """The methods of the extension, in front of the gateway's runs."""

    identifier = EXTENSION

    def __init__(self, handlers: Handlers) -> None:
        self._handlers = handlers
        self._gateway = handlers.gateway
        self._key = handlers.gateway.state.secret("tasks")

    def methods(self) -> list[MethodBinding]:
        modern = frozenset({MODERN})
        return [
            MethodBinding("tasks/get", TaskParams, self.get, modern),
            MethodBinding("tasks/update", UpdateParams, self.update, modern),
            MethodBinding("tasks/cancel", TaskParams, self.cancel, modern),
        ]

    @staticmethod
    def wanted(ctx: Any) -> bool:
        """Whether the client has said, for this request, that it knows tasks."""
        capabilities = ctx.session.client_capabilities
        extensions = capabilities.extensions if capabilities is not None else None
        return ctx.protocol_version >= MODERN and EXTENSION in (extensions or {})

    # --- ids --------------------------------------------------------------------------------------------------

    def id_of(self, who: Principal, run_id: str) -> str:
        return f"{run_id}~{self._seal(who, run_id)}"

    def run_of(self, who: Principal, task_id: str) -> str:
        """The run of a task of the principal. Raises MCPError -32602."""
        run_id, _, seal = task_id.rpartition("~")
        good = hmac.compare_digest(seal.encode(), self._seal(who, run_id).encode())
        if not run_id or not good:
            raise _unknown()
        try:
            return self._gateway.record(who, run_id).run_id
        except NotFoundError:
            raise _unknown() from None

    def _seal(self, who: Principal, run_id: str) -> str:
        text = canonical.encode([run_id, who.tenant, who.id])
        return base64.urlsafe_b64encode(hmac.digest(self._key, text, hashlib.sha256)[:18]).decode()

    # --- methods ----------------------------------------------------------------------------------------------

    def created(self, ctx: Any, who: Principal, view: dict[str, Any]) -> dict[str, Any]:
        """The answer to a call whose run goes on: durable already, because it was read from the store."""
        task = self._detailed(ctx, who, view)
        for name in ("inputRequests", "result", "error"):
            task.pop(name, None)
        return {**task, "resultType": "task"}

    async def get(self, ctx: Any, params: TaskParams) -> dict[str, Any]:
        who, run_id = self._admitted(ctx, params, READ)
        try:
            view = await self._gateway.view(run_id)
        except NanoVMError as error:
            record = self._gateway.record(who, run_id)
            task = self._base(who, run_id, record.created_at_ms, record.updated_at_ms)
            data = canonical.decode(canonical.encode(fault_of(error)))
            error_data = {"code": types.INTERNAL_ERROR, "message": error.message, "data": data}
            return {**task, "resultType": "complete", "status": "failed", "error": error_data}
        return {**self._detailed(ctx, who, view), "resultType": "complete"}

    async def update(self, ctx: Any, params: UpdateParams) -> dict[str, Any]:
        """Take the answers to what the task asked. One that nothing asked (any more) is passed over."""
        who, run_id = self._admitted(ctx, params, READ)
        view = await self._gateway.view(run_id)
        asked = asking.questions(who, view, asking.ANYTHING)
        for key, raw in params.input_responses.items():
            if key not in asked:
                continue
            call = asking.arguments(who, run_id, asked[key][0], _elicited(raw))
            if call is not None:
                try:
                    await self._gateway.call(who, "resume_run", {**call, "wait_seconds": ACK_SECONDS})
                except NanoVMError as error:
                    raise MCPError(
                        types.INVALID_PARAMS,
                        f"{error.code} {error.message}",
                        {"key": key, "code": error.code},
                    ) from None
        return {"resultType": "complete"}

    async def cancel(self, ctx: Any, params: TaskParams) -> dict[str, Any]:
        who, run_id = self._admitted(ctx, params, RUN)
        record = self._gateway.record(who, run_id)
        if record.status in ("RUNNING", "SUSPENDED"):
            await self._gateway.cancel(who, run_id, "the task was cancelled", 0)
        return {"resultType": "complete"}

    def _admitted(self, ctx: Any, params: TaskParams, operation: str) -> tuple[Principal, str]:
        """Who asks, and the run. A task stays its principal's; what may be done with it follows from the roles of now.

        Raises MCPError. CapabilityDeniedError: ROLE_REQUIRED.
        """
        require_client_extension(ctx, EXTENSION)
        headers = getattr(ctx.request, "headers", None)
        if headers is not None and decode_header_value(headers.get(MCP_NAME_HEADER)) != params.task_id:
            raise MCPError(HEADER_MISMATCH, "the mcp-name header does not match the request's taskId")
        who = self._handlers.identify(ctx)
        run_id = self.run_of(who, params.task_id)
        who.must(operation)
        return who, run_id

    # --- documents --------------------------------------------------------------------------------------------

    def _base(self, who: Principal, run_id: str, created_ms: int, updated_ms: int) -> dict[str, Any]:
        from nano_vm.gateway.views import moment

        return {
            "taskId": self.id_of(who, run_id),
            "createdAt": moment(created_ms),
            "lastUpdatedAt": moment(updated_ms),
            "ttlMs": None,  # evidence does not expire
            "pollIntervalMs": POLL_MS,
        }

    def _detailed(self, ctx: Any, who: Principal, view: dict[str, Any]) -> dict[str, Any]:
        record = self._gateway.record(who, view["trace_id"])
        task = self._base(who, record.run_id, record.created_at_ms, record.updated_at_ms)
        status = view["status"]
        if status == "CANCELLED":
            return {**task, "status": "cancelled"}
        if status == "RUNNING":
            return {**task, "status": "working"}
        if status == "SUSPENDED":
            return {**task, **self._waiting(ctx, who, view)}
        return {**task, **self.settled(view)}

    def settled(self, view: dict[str, Any]) -> dict[str, Any]:
        """How a run that has ended is told; the call's own result, as if it had waited."""
        result = self._handlers.result_of(view)
        return {
            "status": "completed",
            "result": {
                **result.model_dump(by_alias=True, mode="json", exclude_none=True),
                "resultType": "complete",
            },
        }

    def _waiting(self, ctx: Any, who: Principal, view: dict[str, Any]) -> dict[str, Any]:
        asked = asking.questions(who, view, asking.ANYTHING) if asking.supports_forms(ctx) else {}
        names = ", ".join(f"`{wait['step']}` ({wait['kind']})" for wait in view["waiting"])
        message = f"the run waits: {names}"
        if not asked:
            return {"status": "working", "statusMessage": f"{message}; resume_run answers it"}
        requests = {
            key: request.model_dump(by_alias=True, mode="json", exclude_none=True)
            for key, (_, request) in asked.items()
        }
        return {"status": "input_required", "statusMessage": message, "inputRequests": requests}


def _elicited(raw: Any) -> types.ElicitResult | None:
    try:
        return types.ElicitResult.model_validate(raw)
    except ValueError:
        raise MCPError(types.INVALID_PARAMS, "an input response is not the answer to a form") from None


def _unknown() -> MCPError:
    return MCPError(types.INVALID_PARAMS, "there is no such task")
