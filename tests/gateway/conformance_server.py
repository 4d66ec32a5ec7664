"""The gateway with the fixtures that the protocol's conformance suite asks for. `make conformance` starts it.

    python tests/gateway/conformance_server.py --port 0

The front is the gateway: its transport, limits, sealed state, tasks, shields and resources. Behind it stand fixture
tools of the official SDK (texts, images, logs, forms), and programs for what the suite wants of tasks: those are real
runs.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Annotated, Any

import mcp_types as types
from mcp.server.lowlevel import NotificationOptions
from mcp.server.mcpserver import Context, Elicit, MCPServer, Resolve
from mcp.server.streamable_http import EventMessage, EventStore
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError
from pydantic import BaseModel, Field

from nano_vm import ToolContext, ToolError, tool
from nano_vm.gateway import serving
from nano_vm.gateway.config import GatewayConfig, Limits
from nano_vm.gateway.programs import GatewayStore, Programs
from nano_vm.gateway.server import Handlers, build_server
from nano_vm.gateway.service import Gateway
from nano_vm.gateway.state import GatewayState
from nano_vm.gateway.tasks import EXTENSION, Tasks
from nano_vm.runtime.engine import Engine
from nano_vm.tools.registry import ToolSet

warnings.simplefilter("ignore", MCPDeprecationWarning)
logging.disable(
    logging.CRITICAL
)  # the fixture's errors are wanted, and drawing their tracebacks takes seconds

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)
WAV = base64.b64decode("UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQAAAAA=")
SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}
TASK_PROGRAMS = {"slow_compute", "failing_job", "protocol_error_job", "confirm_delete", "multi_input"}
ONLY_AS_TASK = {"failing_job", "test_tool_with_task"}

fixture = MCPServer("fixture")


# --- contents ---------------------------------------------------------------------------------------------------


def image() -> types.ImageContent:
    return types.ImageContent(type="image", data=base64.b64encode(PNG).decode(), mime_type="image/png")


def embedded(uri: str, text: str, mime_type: str = "text/plain") -> types.EmbeddedResource:
    contents = types.TextResourceContents(uri=uri, mime_type=mime_type, text=text)
    return types.EmbeddedResource(type="resource", resource=contents)


def text(value: str) -> types.TextContent:
    return types.TextContent(type="text", text=value)


@fixture.tool()
def greet(name: str = "") -> str:
    """Greets."""
    return f"Hello, {name}!"


@fixture.tool()
def test_simple_text() -> str:
    """A text."""
    return "This is a simple text response for testing."


@fixture.tool()
def test_image_content() -> list[types.ImageContent]:
    """An image."""
    return [image()]


@fixture.tool()
def test_audio_content() -> list[types.AudioContent]:
    """A sound."""
    return [types.AudioContent(type="audio", data=base64.b64encode(WAV).decode(), mime_type="audio/wav")]


@fixture.tool()
def test_embedded_resource() -> list[types.EmbeddedResource]:
    """A resource."""
    return [embedded("test://embedded-resource", "This is an embedded resource content.")]


@fixture.tool()
def test_multiple_content_types() -> list[types.ContentBlock]:
    """All of them."""
    mixed = embedded("test://mixed-content-resource", '{"test":"data","value":123}', "application/json")
    return [text("Multiple content types test:"), image(), mixed]


@fixture.tool()
def test_error_handling() -> str:
    """Fails."""
    raise ValueError("This tool intentionally returns an error for testing")


@fixture.tool()
async def test_tool_with_logging(ctx: Context) -> str:
    """Logs."""
    for message in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await ctx.info(message)
        await asyncio.sleep(0.05)
    return "done"


@fixture.tool()
async def test_logging_tool(ctx: Context) -> str:
    """Logs once."""
    await ctx.info("a log entry")
    return "done"


@fixture.tool()
async def test_tool_with_progress(ctx: Context) -> str:
    """Reports progress."""
    for progress in (0, 50, 100):
        await ctx.report_progress(progress, 100)
        await asyncio.sleep(0.05)
    return "done"


@fixture.tool()
async def test_reconnection(ctx: Context) -> str:
    """Closes its stream before it answers."""
    await ctx.close_sse_stream()
    await asyncio.sleep(0.1)
    return "Reconnection test completed"


@fixture.tool()
async def test_trigger_tool_change(ctx: Context) -> str:
    """Says that the tools have changed."""
    await ctx.notify_tools_changed()
    return "told"


@fixture.tool()
async def test_trigger_prompt_change(ctx: Context) -> str:
    """Says that the prompts have changed."""
    await ctx.notify_prompts_changed()
    return "told"


# --- asking the client ------------------------------------------------------------------------------------------


@fixture.tool()
async def test_sampling(prompt: str, ctx: Context) -> str:
    """Asks the client's model."""
    message = types.SamplingMessage(role="user", content=text(prompt))
    answer = await ctx.session.create_message([message], max_tokens=100)
    return f"LLM response: {answer.content.text}"


async def form(ctx: Context, message: str, schema: dict[str, Any]) -> types.ElicitResult:
    return await ctx.session.elicit_form(message, schema, ctx.request_id)


@fixture.tool()
async def test_elicitation(message: str, ctx: Context) -> str:
    """Asks the user."""
    field = {"type": "string", "description": "User's response"}
    schema = {
        "type": "object",
        "properties": {"username": field, "email": field},
        "required": ["username", "email"],
    }
    answer = await form(ctx, message, schema)
    return f"User response: action={answer.action}, content={json.dumps(answer.content)}"


@fixture.tool()
async def test_elicitation_sep1034_defaults(ctx: Context) -> str:
    """Asks with defaults."""
    properties = {
        "name": {"type": "string", "default": "John Doe"},
        "age": {"type": "integer", "default": 30},
        "score": {"type": "number", "default": 95.5},
        "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
        "verified": {"type": "boolean", "default": True},
    }
    answer = await form(ctx, "Defaults", {"type": "object", "properties": properties, "required": []})
    return f"Elicitation completed: action={answer.action}, content={json.dumps(answer.content)}"


@fixture.tool()
async def test_elicitation_sep1330_enums(ctx: Context) -> str:
    """Asks with choices."""
    plain = ["option1", "option2", "option3"]
    titled = [
        {"const": f"value{n}", "title": f"{name} Option"}
        for n, name in ((1, "First"), (2, "Second"), (3, "Third"))
    ]
    chosen = [
        {"const": f"value{n}", "title": f"{name} Choice"}
        for n, name in ((1, "First"), (2, "Second"), (3, "Third"))
    ]
    properties = {
        "untitledSingle": {"type": "string", "enum": plain},
        "titledSingle": {"type": "string", "oneOf": titled},
        "legacyEnum": {
            "type": "string",
            "enum": ["opt1", "opt2", "opt3"],
            "enumNames": ["Option One", "Option Two", "Option Three"],
        },
        "untitledMulti": {"type": "array", "items": {"type": "string", "enum": plain}},
        "titledMulti": {"type": "array", "items": {"anyOf": chosen}},
    }
    answer = await form(ctx, "Choices", {"type": "object", "properties": properties, "required": []})
    return f"Elicitation completed: action={answer.action}, content={json.dumps(answer.content)}"


class Ok(BaseModel):
    ok: bool = Field(description="Whether to go on")


async def ask_ok(ctx: Context) -> Elicit[Ok]:
    return Elicit("Go on?", Ok)


@fixture.tool()
async def test_streaming_elicitation(answer: Annotated[Ok, Resolve(ask_ok)]) -> str:
    """Asks in either era."""
    return f"ok={answer.ok}"


def need(ctx: Context, name: str) -> None:
    capabilities = ctx.client_capabilities
    if capabilities is None or getattr(capabilities, name) is None:
        raise MCPError(-32021, f"the client did not declare {name}", {"requiredCapabilities": {name: {}}})


@fixture.tool()
async def test_missing_capability(ctx: Context) -> str:
    """Needs sampling."""
    need(ctx, "sampling")
    return "done"


def elicit(message: str, **properties: Any) -> types.ElicitRequest:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return types.ElicitRequest(params=types.ElicitRequestFormParams(message=message, requested_schema=schema))


def sample(prompt: str, tokens: int) -> types.CreateMessageRequest:
    message = types.SamplingMessage(role="user", content=text(prompt))
    return types.CreateMessageRequest(
        params=types.CreateMessageRequestParams(messages=[message], max_tokens=tokens)
    )


STRING = {"type": "string"}
NAME = elicit("What is your name?", name=STRING)


def ask(requests: dict[str, Any], state: str | None = None) -> types.InputRequiredResult:
    return types.InputRequiredResult(input_requests=requests, request_state=state)


def content_of(ctx: Context, key: str) -> dict[str, Any] | None:
    answer = (ctx.input_responses or {}).get(key)
    if isinstance(answer, types.ElicitResult) and answer.action == "accept":
        return dict(answer.content or {})
    return None


def mrtr(requests: dict[str, Any], state: str | None = None, done: str = "done"):
    """A tool that asks once and is content with answers to all of it."""

    async def run(ctx: Context) -> types.CallToolResult | types.InputRequiredResult:
        given = ctx.input_responses or {}
        if not set(requests) <= set(given) or (state is not None and ctx.request_state != state):
            return ask(requests, state)
        return types.CallToolResult(content=[text(f"{done} {[str(given[key]) for key in requests]}")])

    return run


def add(name: str, function: Any) -> None:
    fixture.add_tool(function, name=name, description="Asks before it answers.")


add(
    "test_input_required_result_sampling",
    mrtr({"capital_question": sample("What is the capital of France?", 100)}),
)
add(
    "test_input_required_result_list_roots",
    mrtr({"client_roots": types.ListRootsRequest(params=types.RequestParams())}),
)
CONFIRM = {"confirm": elicit("Please confirm", ok={"type": "boolean"})}
add("test_input_required_result_request_state", mrtr(CONFIRM, "round-1", "state-ok"))
add("test_input_required_result_tampered_state", mrtr(CONFIRM, "round-1"))
add(
    "test_input_required_result_multiple_inputs",
    mrtr(
        {
            "user_name": NAME,
            "greeting": sample("Generate a greeting", 50),
            "client_roots": types.ListRootsRequest(params=types.RequestParams()),
        },
        "many",
    ),
)


@fixture.tool()
async def test_input_required_result_elicitation(
    ctx: Context,
) -> types.CallToolResult | types.InputRequiredResult:
    """Asks for a name."""
    content = content_of(ctx, "user_name")
    if content is None:
        return ask({"user_name": NAME})
    return types.CallToolResult(content=[text(f"Hello, {content.get('name')}!")])


@fixture.tool()
async def test_input_required_result_multi_round(
    ctx: Context,
) -> types.CallToolResult | types.InputRequiredResult:
    """Asks twice."""
    first, second = content_of(ctx, "step1"), content_of(ctx, "step2")
    if ctx.request_state is None or (first is None and second is None):
        return ask({"step1": elicit("Step 1: What is your name?", name=STRING)}, json.dumps({"round": 1}))
    state = json.loads(ctx.request_state)
    if state["round"] == 1:
        then = json.dumps({"round": 2, "name": (first or {}).get("name")})
        return ask({"step2": elicit("Step 2: What is your favorite color?", color=STRING)}, then)
    return types.CallToolResult(content=[text(f"{state['name']} likes {(second or {}).get('color')}")])


@fixture.tool()
async def test_input_required_result_capabilities(
    ctx: Context,
) -> types.CallToolResult | types.InputRequiredResult:
    """Asks what the client can answer."""
    capabilities = ctx.client_capabilities or types.ClientCapabilities()
    requests: dict[str, Any] = {}
    if capabilities.elicitation is not None:
        requests["user_name"] = NAME
    if capabilities.sampling is not None:
        requests["greeting"] = sample("Generate a greeting", 50)
    if not requests or set(requests) <= set(ctx.input_responses or {}):
        return types.CallToolResult(content=[text("done")])
    return ask(requests)


# --- resources and prompts --------------------------------------------------------------------------------------


@fixture.resource("test://static-text", name="static-text", description="A text.", mime_type="text/plain")
def static_text() -> str:
    return "This is the content of the static text resource."


@fixture.resource(
    "test://static-binary", name="static-binary", description="An image.", mime_type="image/png"
)
def static_binary() -> bytes:
    return PNG


@fixture.resource("test://watched-resource", name="watched", description="A text.", mime_type="text/plain")
def watched() -> str:
    return "watched"


@fixture.resource(
    "test://template/{id}/data", name="template", description="Data.", mime_type="application/json"
)
def template(id: str) -> str:
    return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})


def said(*contents: Any) -> list[Any]:
    return [types.PromptMessage(role="user", content=content) for content in contents]


@fixture.prompt()
def test_simple_prompt() -> str:
    """A prompt."""
    return "This is a simple prompt for testing."


@fixture.prompt()
def test_prompt_with_arguments(arg1: str, arg2: str) -> str:
    """A prompt with arguments."""
    return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"


PROMPT = types.Prompt(name="test_input_required_result_prompt", description="Asks before it answers.")
PICTURE = types.Prompt(name="test_prompt_with_image", description="A prompt with an image.")
EMBEDDING = types.Prompt(
    name="test_prompt_with_embedded_resource",
    description="A prompt with a resource.",
    arguments=[types.PromptArgument(name="resourceUri", description="What is embedded.", required=True)],
)


# --- programs for the tasks extension: real runs ----------------------------------------------------------------


@tool(effect="idempotent")
async def compute(seconds: float, label: str, ctx: ToolContext) -> str:
    left = seconds
    while left > 0:
        ctx.heartbeat()
        await asyncio.sleep(min(left, 0.05))
        left -= 0.05
    return f"computed {label}"


@tool(effect="idempotent")
async def fail(code: str) -> str:
    await asyncio.sleep(1.2)
    raise ToolError("the job failed", code=code, retryable=False)


def task_program(name: str, properties: dict[str, Any], *steps: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "description": name,
        "inputs": {"type": "object", "properties": properties},
        "steps": [*steps],
    }


SECONDS = {"seconds": {"type": "number", "default": 0}, "label": {"type": "string", "default": ""}}
PROGRAMS = [
    task_program(
        "slow_compute",
        SECONDS,
        {"id": "work", "type": "tool", "tool": "compute", "args": {"seconds": "$seconds", "label": "$label"}},
    ),
    task_program("failing_job", {}, {"id": "work", "type": "tool", "tool": "fail", "args": {"code": "JOB"}}),
    task_program(
        "protocol_error_job", {}, {"id": "work", "type": "tool", "tool": "fail", "args": {"code": "PROTOCOL"}}
    ),
    task_program(
        "confirm_delete",
        {"filename": {"type": "string", "default": ""}},
        {"id": "ok", "type": "wait", "event": "confirm"},
    ),
    task_program(
        "multi_input",
        {},
        {
            "id": "both",
            "type": "parallel",
            "parallel_steps": [{"id": name, "type": "wait", "event": name} for name in ("one", "two")],
        },
    ),
]


class FixtureTasks(Tasks):
    def settled(self, view: dict[str, Any]) -> dict[str, Any]:
        if (view["error"] or {}).get("type") == "PROTOCOL":
            return {"status": "failed", "error": {"code": -32603, "message": "the job broke"}}
        return super().settled(view)


class FixtureHandlers(Handlers):
    """The gateway's handlers; what they do not have they ask the fixture for."""

    def __init__(self, gateway: Gateway, identify: Any) -> None:
        super().__init__(gateway, identify)
        self.tasks = FixtureTasks(self)

    def has_tool(self, name: str) -> bool:
        return name in TASK_PROGRAMS or super().has_tool(name)

    async def behind(self, method: str, ctx: Any, params: Any) -> Any:
        entry = fixture._lowlevel_server.get_request_handler(method)
        assert entry is not None
        return await entry.handler(ctx, params)

    async def list_tools(self, ctx: Any, params: Any) -> Any:
        ours = await super().list_tools(ctx, params)
        theirs = await self.behind("tools/list", ctx, types.PaginatedRequestParams())
        schema = types.Tool(
            name="json_schema_2020_12_tool", description="Its schema is rich.", input_schema=SCHEMA
        )
        asks = types.Tool(
            name="test_tool_with_task", description="Asks, then works.", input_schema={"type": "object"}
        )
        headers = types.Tool(
            name="test_header_param",
            description="Mirrors an argument in a header.",
            input_schema={
                "type": "object",
                "properties": {"region": {"type": "string", "x-mcp-header": "Region"}},
            },
        )
        return types.ListToolsResult(tools=[*theirs.tools, schema, asks, headers, *ours.tools])

    def input_schema(self, name: str) -> dict[str, Any] | None:
        if name == "test_header_param":
            return {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}}
        return super().input_schema(name)

    async def call_tool(self, ctx: Any, params: types.CallToolRequestParams) -> Any:
        name = params.name
        if name in ONLY_AS_TASK and not Tasks.wanted(ctx):
            required = {"requiredCapabilities": {"extensions": {EXTENSION: {}}}}
            raise MCPError(-32021, "this tool is a task", required)
        if name == "test_tool_with_task":
            return await self.ask_then_work(ctx, params)
        if name in ("json_schema_2020_12_tool", "test_header_param"):
            return types.CallToolResult(content=[text("done")])
        if self.has_tool(name):
            return await super().call_tool(ctx, params)
        return await self.behind("tools/call", ctx, params)

    async def ask_then_work(self, ctx: Any, params: types.CallToolRequestParams) -> Any:
        answer = (params.input_responses or {}).get("user_name")
        if not isinstance(answer, types.ElicitResult) or answer.action != "accept":
            return ask({"user_name": NAME}, "asked")
        work = {
            "name": "slow_compute",
            "arguments": {"seconds": 2, "label": (answer.content or {}).get("name")},
        }
        return await super().call_tool(ctx, types.CallToolRequestParams(**work))

    async def list_resources(self, ctx: Any, params: Any) -> Any:
        return await self.behind("resources/list", ctx, types.PaginatedRequestParams())

    async def list_templates(self, ctx: Any, params: Any) -> Any:
        return await self.behind("resources/templates/list", ctx, types.PaginatedRequestParams())

    async def read_resource(self, ctx: Any, params: Any) -> Any:
        if str(params.uri).startswith(("test://static", "test://watched", "test://template")):
            return await self.behind("resources/read", ctx, params)
        return await super().read_resource(ctx, params)

    async def list_prompts(self, ctx: Any, params: Any) -> Any:
        theirs = await self.behind("prompts/list", ctx, types.PaginatedRequestParams())
        return types.ListPromptsResult(prompts=[*theirs.prompts, PROMPT, PICTURE, EMBEDDING])

    async def get_prompt(self, ctx: Any, params: types.GetPromptRequestParams) -> Any:
        if params.name == PICTURE.name:
            return types.GetPromptResult(messages=said(image(), text("Please analyze the image above.")))
        if params.name == EMBEDDING.name:
            resource = embedded(
                (params.arguments or {})["resourceUri"], "Embedded resource content for testing."
            )
            return types.GetPromptResult(
                messages=said(resource, text("Please process the embedded resource above."))
            )
        if params.name != PROMPT.name:
            return await self.behind("prompts/get", ctx, params)
        answer = (params.input_responses or {}).get("user_context")
        if not isinstance(answer, types.ElicitResult):
            return ask({"user_context": elicit("What context should the prompt use?", context=STRING)})
        return types.GetPromptResult(messages=said(text(f"Context: {(answer.content or {}).get('context')}")))


class FixturePrograms(Programs):
    def published_as(self, name: str) -> str | None:
        return name if name in TASK_PROGRAMS else super().published_as(name)


class Events(EventStore):
    """Streams of the older era that a client comes back to; in memory."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    async def store_event(self, stream_id: str, message: Any) -> str:
        self.events.append((stream_id, message))
        return str(len(self.events) - 1)

    async def replay_events_after(self, last_event_id: str, send_callback: Any) -> str | None:
        place = int(last_event_id)
        stream_id = self.events[place][0]
        for number, (stream, message) in enumerate(self.events[place + 1 :], place + 1):
            if stream == stream_id and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream_id


async def main(port: int, directory: str) -> None:
    store = GatewayStore(str(Path(directory) / "runs.db"), durability="normal")
    state = GatewayState(str(Path(directory) / "runs.db.gateway"))
    engine = Engine(llm=None, tools=ToolSet({"compute": compute, "fail": fail}), store=store)
    config = GatewayConfig(port=port, limits=Limits(requests_per_minute=100_000))
    gateway = Gateway(engine, store, state, config)
    gateway.programs = FixturePrograms(engine, store, state, config)
    who = serving.local_principal(config)
    for program in PROGRAMS:
        await gateway.call(who, "save_program", {"program": program})
    handlers = FixtureHandlers(gateway, lambda ctx: who)
    server = build_server(gateway, handlers.identify, handlers)
    behind = fixture._lowlevel_server
    for method in (
        "subscriptions/listen",
        "resources/subscribe",
        "resources/unsubscribe",
        "logging/setLevel",
    ):
        entry = behind.get_request_handler(method)
        if entry is not None:
            server.add_request_handler(method, entry.params_type, entry.handler)

    async def nothing(ctx: Any, params: Any) -> types.EmptyResult:
        return types.EmptyResult()

    server.add_request_handler("logging/setLevel", types.SetLevelRequestParams, nothing)
    server.add_request_handler("resources/subscribe", types.SubscribeRequestParams, nothing)
    server.add_request_handler("resources/unsubscribe", types.UnsubscribeRequestParams, nothing)
    assert NotificationOptions
    async with behind.lifespan(behind):
        await serving.serve_http(gateway, lambda url: print(url, flush=True), server, Events())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        asyncio.run(main(options.port, place))
