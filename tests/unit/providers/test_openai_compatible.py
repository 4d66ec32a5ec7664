"""The adapter against a real server on the loopback interface that misbehaves in every way we know."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from nano_vm.errors import CODES, InputError
from nano_vm.providers.openai_compatible import BODY_BYTES_MAX, ModelError, OpenAICompatibleAdapter
from nano_vm.providers.openai_reply import StreamReader
from nano_vm.runtime.ports import Completion, ToolCall, Usage

KEY = "sk-very-secret-key"
MESSAGES = [{"role": "user", "content": "hello"}]


def good(text: Any = "yes", **more: Any) -> dict[str, Any]:
    return {
        "model": "m-1",
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop", **more}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14},
    }


def call(id: Any = "c1", name: Any = "pay", arguments: Any = '{"amount": 5}') -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def calling(*calls: Any) -> dict[str, Any]:
    answer = good(None, finish_reason="tool_calls")
    answer["choices"][0]["message"]["tool_calls"] = list(calls)
    return answer


TOOLS = [{"type": "function", "function": {"name": "pay", "parameters": {"type": "object"}}}]


class Server(ThreadingHTTPServer):
    """Answers with what `answers` says, one after another, the last one for ever."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[Callable[[Handler], None]] = []
        self.requests: list[dict[str, Any]] = []
        self.connections: set[Any] = set()
        self.release = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.server.connections.add(self.client_address)
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.requests.append(
            {"path": self.path, "headers": dict(self.headers.items()), "body": json.loads(body)}
        )
        answers = self.server.answers
        (answers.pop(0) if len(answers) > 1 else answers[0])(self)

    def log_message(self, *_: Any) -> None:
        pass

    def say(self, status: int, body: bytes, kind: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


def reply(value: Any, status: int = 200, **headers: str) -> Callable[[Handler], None]:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return lambda handler: handler.say(status, body, **headers)


def hang(handler: Handler) -> None:
    handler.server.release.wait(60)
    handler.close_connection = True


def dribble(handler: Handler) -> None:
    """Headers at once, then a byte now and then, for ever."""
    handler.send_response(200)
    handler.end_headers()
    while not handler.server.release.wait(0.02):
        try:
            handler.wfile.write(b" ")
        except OSError:
            return


def cut(handler: Handler) -> None:
    """Promises more than it sends."""
    handler.send_response(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.wfile.write(json.dumps(good()).encode()[:40])
    handler.close_connection = True


def refused_and_cut(handler: Handler) -> None:
    handler.send_response(401)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"err')
    handler.close_connection = True


def hang_up(handler: Handler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.release.set()
        server.shutdown()
        thread.join()


def ask(server: Server, *answers: Callable[[Handler], None], **options: Any) -> Completion:
    server.answers = list(answers)
    params = options.pop("params", {})
    settings = {"model": "m", "api_key": KEY, **options}
    return asyncio.run(OpenAICompatibleAdapter(server.url, **settings).complete(MESSAGES, **params))


def test_a_good_answer_brings_text_usage_and_model(server: Server) -> None:
    found = ask(
        server, reply(good()), params={"temperature": 0, "max_tokens": 5, "stream": True, "model": "other"}
    )
    assert (found.text, found.model) == ("yes", "m-1")
    assert (found.usage.prompt_tokens, found.usage.completion_tokens, found.usage.cost_usd) == (11, 3, None)
    (request,) = server.requests
    assert request["path"] == "/v1/chat/completions"
    assert request["headers"]["authorization"] == f"Bearer {KEY}"
    assert request["body"] == {
        "model": "other",
        "messages": MESSAGES,
        "temperature": 0,
        "max_tokens": 5,
        "stream": False,
    }


def test_without_a_key_none_is_sent(server: Server) -> None:
    ask(server, reply(good()), api_key=None)
    assert "authorization" not in {name.lower() for name in server.requests[0]["headers"]}


def test_cost_comes_from_the_price_table_to_the_nano_dollar(server: Server) -> None:
    adapter = OpenAICompatibleAdapter(server.url, model="m", prices={"m": (0.15, 0.6)})
    assert adapter.price("m") == adapter.price(None) == (150.0, 600.0)
    assert adapter.price("unknown") is None
    found = ask(server, reply(good()), prices={"m": (0.15, 0.6)})
    assert found.usage.cost_usd == pytest.approx((11 * 150 + 3 * 600) / 1e9, abs=1e-13)
    stated = good()
    stated["usage"]["cost"] = 0.25
    assert ask(server, reply(stated)).usage.cost_usd == 0.25


def test_text_in_parts_is_joined(server: Server) -> None:
    parts = [{"type": "text", "text": "y"}, {"type": "text", "text": "es"}]
    assert ask(server, reply(good(parts))).text == "yes"


BAD = [
    (reply({"error": {"code": "overloaded"}}, 500), "MODEL_HTTP"),
    (reply(b"<html>", 503), "MODEL_HTTP"),
    (reply({"error": {"message": f"bad key {KEY}", "code": "rate_limit"}}, 429), "MODEL_HTTP"),
    (reply({"error": {"message": f"Incorrect API key: {KEY}", "code": KEY + " "}}, 401), "MODEL_REFUSED"),
    (reply({"error": "no"}, 400), "MODEL_REFUSED"),
    (reply([], 404), "MODEL_REFUSED"),
    (reply(b"", 302, location="http://127.0.0.1:1/"), "MODEL_REFUSED"),
    (reply(json.dumps(good()).encode()[:30]), "MODEL_REPLY"),
    (reply(b"<html>login</html>"), "MODEL_REPLY"),
    (reply(b"\xff\xfe"), "MODEL_REPLY"),
    (reply(b""), "MODEL_REPLY"),
    (reply(b"[" * 100_000), "MODEL_REPLY"),
    (reply([]), "MODEL_REPLY"),
    (reply({}), "MODEL_REPLY"),
    (reply({"choices": []}), "MODEL_REPLY"),
    (reply({"choices": "yes"}), "MODEL_REPLY"),
    (reply({"choices": ["yes"]}), "MODEL_REPLY"),
    (reply({"choices": [{"message": "yes"}]}), "MODEL_REPLY"),
    (reply(good(None)), "MODEL_REPLY"),
    (reply(good(7)), "MODEL_REPLY"),
    (reply(good([{"type": "image"}])), "MODEL_REPLY"),
    (reply({**good(), "usage": [1]}), "MODEL_REPLY"),
    (reply({**good(), "usage": {"prompt_tokens": "many"}}), "MODEL_REPLY"),
    (reply({**good(), "usage": {"prompt_tokens": -5}}), "MODEL_REPLY"),
    (reply({**good(), "usage": {"prompt_tokens": 10**30}}), "MODEL_REPLY"),
    (reply(good(finish_reason="length")), "MODEL_TRUNCATED"),
    (reply(good(finish_reason="MAX_TOKENS")), "MODEL_TRUNCATED"),
    (reply(good(finish_reason="error")), "MODEL_REPLY"),  # half an answer looks like a whole one
    (reply(good(finish_reason="insufficient_system_resource")), "MODEL_REPLY"),
    (reply(good(finish_reason=["stop"])), "MODEL_REPLY"),
    (reply(good(finish_reason="content_filter")), "MODEL_REFUSED"),
    (reply(b" " * (BODY_BYTES_MAX + 1)), "MODEL_REPLY"),
    (reply({"error": {"code": 429, "message": f"slow down {KEY}"}}), "MODEL_HTTP"),
    (reply({"error": {"code": 401, "message": f"who is {KEY}"}}), "MODEL_REFUSED"),
    (reply({"error": f"bad {KEY}"}), "MODEL_HTTP"),
    (reply({"choices": [{"error": {"code": "boom"}, "message": {"content": "yes"}}]}), "MODEL_HTTP"),
    (reply(gzip.compress(json.dumps(good()).encode()), content_encoding="gzip"), "MODEL_REPLY"),
    (reply(calling(call())), "MODEL_REPLY"),  # nobody offered a tool
    (reply({"error": {"code": KEY}}, 429), "MODEL_HTTP"),  # the key where a code should be
    (reply({"error": {"type": KEY[:-2]}}, 400), "MODEL_REFUSED"),
    (reply({"error": {"type": KEY}}), "MODEL_HTTP"),
    (refused_and_cut, "MODEL_REFUSED"),
    (reply(b" " * (BODY_BYTES_MAX + 1), 401), "MODEL_REFUSED"),
    (cut, "MODEL_REPLY"),
    (hang_up, "MODEL_HTTP"),
]


BAD_CALLS = [
    "yes",
    ["yes"],
    [{}],
    [{"function": "pay"}],
    [call(name=7)],
    [call(name="")],
    [call(name="p" * 257)],
    [call(name="pay\n")],
    [call(arguments=7)],
    [call(arguments="x" * (1024 * 1024 + 1))],
    [{**call(), "id": 7}],
    [call(), call()],
    [call(id=str(number)) for number in range(5_000)],
]


@pytest.mark.parametrize("calls", BAD_CALLS)
def test_malformed_tool_calls_are_a_reply_error_that_states_what_it_cost(server: Server, calls: Any) -> None:
    answer = calling()
    answer["choices"][0]["message"]["tool_calls"] = calls
    with pytest.raises(ModelError) as caught:
        ask(server, reply(answer), params={"tools": TOOLS})
    assert caught.value.code == "MODEL_REPLY"
    assert caught.value.usage == Usage(prompt_tokens=11, completion_tokens=3)


def test_proposed_tool_calls_come_back_as_the_model_wrote_them(server: Server) -> None:
    answer = calling(
        call(), call(id="c2", name="nosuch", arguments="{not json"), call(id=None, arguments={"a": 1})
    )
    found = ask(server, reply(answer), params={"tools": TOOLS, "tool_choice": "auto"})
    assert found.text == ""
    assert found.tool_calls == (
        ToolCall("c1", "pay", '{"amount": 5}'),
        ToolCall("c2", "nosuch", "{not json"),
        ToolCall("call_2", "pay", '{"a":1}'),
    )
    assert server.requests[0]["body"]["tools"] == TOOLS
    assert server.requests[0]["body"]["tool_choice"] == "auto"


def test_text_and_tool_calls_may_come_together(server: Server) -> None:
    answer = calling(call())
    answer["choices"][0]["message"]["content"] = "Let me pay."
    found = ask(server, reply(answer), params={"tools": TOOLS})
    assert (found.text, len(found.tool_calls)) == ("Let me pay.", 1)


# --- streams ------------------------------------------------------------------------------------------------------


def event(delta: Any = None, finish: Any = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    return b"data: " + json.dumps({"model": "m-1", "choices": [choice], **more}).encode() + b"\n\n"


USED = b'data: {"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 3}}\n\n'
DONE = b"data: [DONE]\n\n"


def stream(*parts: bytes, kind: str = "text/event-stream") -> Callable[[Handler], None]:
    """Sends the parts one by one, and closes the connection: the end of such a body is its end."""

    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("content-type", kind)
        handler.end_headers()
        for part in parts:
            handler.wfile.write(part)
            handler.wfile.flush()
        handler.close_connection = True

    return answer


def streamed(server: Server, *parts: bytes, **options: Any) -> Completion:
    return ask(server, stream(*parts), stream=True, **options)


def test_a_stream_is_put_together(server: Server) -> None:
    whole = (
        event({"role": "assistant", "content": "y"})
        + b": ping\r\n\r\n"
        + event({"content": "es"})
        + event(None, "stop")
    )
    for parts in (
        [whole, USED, DONE],
        [bytes([b]) for b in whole + USED + DONE],
        [whole, USED],
        [(whole + USED).rstrip()],
    ):
        found = streamed(server, *parts, prices={"m": (0.15, 0.6)})
        assert (found.text, found.model) == ("yes", "m-1")
        assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (11, 3)
        assert found.usage.cost_usd == pytest.approx(3.45e-6)
    assert server.requests[0]["body"]["stream"] is True
    assert server.requests[0]["body"]["stream_options"] == {"include_usage": True}


def test_an_endpoint_may_stream_or_not_whatever_it_was_asked(server: Server) -> None:
    assert ask(server, stream(event({"content": "yes"}, "stop"), DONE)).text == "yes"
    assert ask(server, reply(good()), stream=True).text == "yes"


def test_tool_calls_are_put_together_from_their_parts(server: Server) -> None:
    parts = [
        {"index": 0, "id": "c1", "type": "function", "function": {"name": "pay", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"amo'}},
        {"index": 1, "id": "c2", "function": {"name": "look", "arguments": None}},
        {"index": 0, "function": {"arguments": 'unt": 5}'}},
    ]
    events = [event({"tool_calls": [part]}) for part in parts]
    found = streamed(server, *events, event(None, "tool_calls"), DONE, params={"tools": TOOLS})
    assert found.tool_calls == (ToolCall("c1", "pay", '{"amount": 5}'), ToolCall("c2", "look", "{}"))


BAD_STREAMS = [
    ([event({"content": "ye"})], "MODEL_REPLY"),  # it looks like an answer
    ([event({"content": "ye"}), DONE], "MODEL_REPLY"),
    ([], "MODEL_REPLY"),
    ([DONE], "MODEL_REPLY"),
    ([event({"content": "yes"}, "length")], "MODEL_TRUNCATED"),
    ([event({"content": "yes"}, "content_filter")], "MODEL_REFUSED"),
    ([event({"content": "ye"}, "abort")], "MODEL_REPLY"),
    ([event({"content": "y"}), b'data: {"error": {"code": 503, "message": "gone"}}\n\n'], "MODEL_HTTP"),
    ([event({"content": "y"}), b'data: {"error": {"code": 400}}\n\n'], "MODEL_REFUSED"),
    ([b"data: {cut\n\n"], "MODEL_REPLY"),
    ([b"data: \xff\xfe\n\n"], "MODEL_REPLY"),
    ([b"data: [1]\n\n"], "MODEL_REPLY"),
    ([b'data: {"choices": 7}\n\n'], "MODEL_REPLY"),
    ([b'data: {"choices": [7]}\n\n'], "MODEL_REPLY"),
    ([b'data: {"choices": [{"delta": 7}]}\n\n'], "MODEL_REPLY"),
    ([event({"content": 7})], "MODEL_REPLY"),
    ([event({"content": "yes"}, "stop", usage={"prompt_tokens": "many"})], "MODEL_REPLY"),
    ([event({"tool_calls": 7})], "MODEL_REPLY"),
    ([event({"tool_calls": [7]})], "MODEL_REPLY"),
    ([event({"tool_calls": [{"index": -1}]})], "MODEL_REPLY"),
    ([event({"tool_calls": [{"index": 5_000}]})], "MODEL_REPLY"),
    ([event({"tool_calls": [{"function": {"arguments": {}}}]})], "MODEL_REPLY"),
    ([event({"tool_calls": [call()]}, "tool_calls")], "MODEL_REPLY"),
    ([b"<html>" * 10], "MODEL_REPLY"),
    ([b":" * (1024 * 1024)] * 9, "MODEL_REPLY"),
]


def test_a_line_may_come_byte_by_byte_however_long_it_is() -> None:
    reader = StreamReader(offered=False)
    words = "word " * 400_000
    for byte in event({"content": words}, "stop") + DONE:
        reader.feed(bytes((byte,)))
    assert reader.done
    assert reader.answer().text == words


@pytest.mark.parametrize(("parts", "code"), BAD_STREAMS)
def test_a_bad_stream_is_an_error_with_a_code(server: Server, parts: list[bytes], code: str) -> None:
    with pytest.raises(ModelError) as caught:
        streamed(server, *parts)
    assert caught.value.code == code
    assert KEY not in str(caught.value) + repr(caught.value.facts)


def test_silence_in_the_middle_of_a_stream_ends_it(server: Server) -> None:
    def pause(handler: Handler) -> None:
        stream(event({"content": "ye"}))(handler)
        hang(handler)

    with pytest.raises(ModelError) as caught:
        ask(server, pause, stream=True, idle_timeout_seconds=0.1)
    assert caught.value.code == "MODEL_TIMEOUT"


def test_further_headers_are_sent_and_never_shown(server: Server) -> None:
    adapter = OpenAICompatibleAdapter(server.url, model="m", headers={"Api-Key": KEY})
    server.answers = [reply(good())]
    asyncio.run(adapter.complete(MESSAGES))
    assert server.requests[0]["headers"]["api-key"] == KEY
    assert KEY not in repr(adapter)
    for headers in ({"a b": "c"}, {"a": f"{KEY}\r\nx: y"}):
        with pytest.raises(InputError) as caught:
            OpenAICompatibleAdapter(server.url, headers=headers)
        assert caught.value.code == "USAGE"
        assert KEY not in str(caught.value)


def test_connections_are_kept_within_a_loop_and_closed_with_it(server: Server) -> None:
    adapter = OpenAICompatibleAdapter(server.url, model="m")
    server.answers = [reply(good())]

    async def twice() -> None:
        await adapter.complete(MESSAGES)
        await adapter.complete(MESSAGES)

    asyncio.run(twice())
    asyncio.run(twice())
    gc.collect()  # what was not closed would say so now
    assert len(server.requests) == 4
    assert len(server.connections) == 2

    async def closing() -> None:
        await twice()
        await adapter.aclose()
        await adapter.aclose()
        await twice()

    asyncio.run(closing())
    assert len(server.connections) == 4


@pytest.mark.parametrize(("answer", "code"), BAD)
def test_a_bad_answer_is_an_error_with_a_code_and_without_the_key(
    server: Server, answer: Callable[[Handler], None], code: str
) -> None:
    with pytest.raises(ModelError) as caught:
        ask(server, answer)
    error = caught.value
    assert error.code == code
    assert error.retryable is CODES[code].retryable
    assert error.facts["host"].startswith("127.0.0.1:")
    assert KEY not in str(error) + repr(error.facts) + repr(error.__context__)
    assert error.__cause__ is None
    assert len(server.requests) == 1


def test_a_reply_that_names_no_tokens_has_not_said_that_it_was_free(server: Server) -> None:
    prices = {"m": (1, 1), "own": (0, 0)}
    silent = good()
    del silent["usage"]
    told = [
        ask(server, reply(answer), model=model, prices=prices).usage.cost_usd
        for model in prices
        for answer in (silent, good())
    ]
    assert told == [None, pytest.approx(14e-6), None, 0]


@pytest.mark.parametrize("cost", [10**400, 1e300, -1, "much", True], ids=lambda cost: str(cost)[:6])
def test_a_cost_that_cannot_be_is_not_known(server: Server, cost: Any) -> None:
    usage = {"prompt_tokens": 11, "completion_tokens": 3, "cost": cost}
    found = ask(server, reply({**good(), "usage": usage}))
    assert found.usage == Usage(prompt_tokens=11, completion_tokens=3)


def test_what_a_cut_answer_has_cost_is_known(server: Server) -> None:
    with pytest.raises(ModelError) as caught:
        ask(server, reply(good(finish_reason="length")))
    assert caught.value.usage == Usage(prompt_tokens=11, completion_tokens=3)


@pytest.mark.parametrize("answer", [hang, dribble])
def test_a_silent_or_dribbling_endpoint_times_out(server: Server, answer: Callable[[Handler], None]) -> None:
    with pytest.raises(ModelError) as caught:
        ask(server, answer, timeout_seconds=0.2)
    assert caught.value.code == "MODEL_TIMEOUT"


def test_nobody_there_is_an_error() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ModelError) as caught:
        asyncio.run(OpenAICompatibleAdapter(f"http://127.0.0.1:{port}/v1", model="m").complete(MESSAGES))
    assert caught.value.code == "MODEL_HTTP"


def test_a_key_in_place_of_a_model_is_not_told(server: Server) -> None:
    assert ask(server, reply({**good(), "model": f"m-{KEY}"})).model == "m"


def test_one_call_is_one_request_whatever_comes_of_it(server: Server) -> None:
    with pytest.raises(ModelError) as caught:
        ask(server, reply({}, 429, retry_after="7"), reply(good()))
    assert caught.value.facts["retry_after"] == 7
    assert len(server.requests) == 1


def test_no_model_is_refused_before_anything_is_sent(server: Server) -> None:
    with pytest.raises(ModelError) as caught:
        ask(server, reply(good()), model=None)
    assert caught.value.code == "MODEL_REFUSED"
    assert server.requests == []


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host/v1",
        "ftp://host",
        "http://",
        "http://me:pw@host/v1",
        "http://host/v1?key=1",
        "http://h:x/",
        "http://\u2603.example/v1",
    ],
)
def test_an_address_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(InputError) as caught:
        OpenAICompatibleAdapter(url)
    assert caught.value.code == "USAGE"
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize("key", ["a b", "a\nb", "", "kéy"])
def test_a_key_that_no_header_carries_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(InputError) as caught:
        OpenAICompatibleAdapter("http://host/v1", api_key=key)
    assert caught.value.code == "USAGE"
    assert not key or key not in str(caught.value)


def test_the_key_is_not_in_the_adapters_text() -> None:
    assert KEY not in repr(OpenAICompatibleAdapter("http://host/v1", api_key=KEY))


def test_without_httpx_the_extra_is_named() -> None:
    program = (
        "import sys\nsys.modules['httpx'] = None\n"
        "from nano_vm import OpenAICompatibleAdapter\n"
        "from nano_vm.errors import NanoVMError\n"
        "try:\n    OpenAICompatibleAdapter('http://host/v1')\n"
        "except NanoVMError as error:\n"
        "    sys.exit(0 if error.code == 'EXTRA_MISSING' and 'nano-vm[http]' in error.help else 1)\n"
        "sys.exit(2)\n"
    )
    source = str(Path(__file__).resolve().parents[3] / "src")
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": source}, timeout=60, check=False
    )
    assert done.returncode == 0


def test_a_program_runs_on_it_and_the_journal_holds_usage_but_no_key(server: Server, tmp_path: Path) -> None:
    from nano_vm import ExecutionVM, SqliteStore

    server.answers = [reply({}, 500), reply(good(" yes "))]
    adapter = OpenAICompatibleAdapter(server.url, model="m", api_key=KEY, prices={"m": (1, 1)})
    program = {
        "name": "p",
        "steps": [
            {
                "id": "ask",
                "type": "llm",
                "prompt": "well?",
                "allowed_outputs": ["yes", "no"],
                "on_error": "retry",
                "retry": {"initial": 0.001, "cap": 0.001},
            }
        ],
    }
    with SqliteStore(tmp_path / "runs.db") as store:
        trace = ExecutionVM(llm=adapter, store=store).run_sync(program)
        assert trace.final_output == "yes"
        assert trace.total_tokens() == 14
        assert trace.total_cost_usd() == pytest.approx(14e-6)
        assert [failure["error"] for failure in trace.steps[0].failures] == ["MODEL_HTTP"]
    for path in tmp_path.iterdir():
        if path.is_file():
            assert KEY.encode() not in path.read_bytes()


@pytest.mark.parametrize("kind", ["adapter", "pool"])
def test_every_bad_answer_is_a_journaled_failure_of_its_type_and_no_byte_of_the_key_is_stored(
    server: Server, tmp_path: Path, kind: str
) -> None:
    from nano_vm import ExecutionVM, Provider, ProviderPool, SqliteStore

    header = "hdr-very-secret-too"
    adapter = OpenAICompatibleAdapter(server.url, model="m", api_key=KEY, headers={"x-key": header})
    program = {"name": "p", "steps": [{"id": "ask", "type": "llm", "prompt": "well?"}]}
    shown = ""
    with SqliteStore(tmp_path / "runs.db", durability="normal") as store:
        for answer, code in BAD:
            server.answers = [answer]
            client = adapter if kind == "adapter" else ProviderPool([Provider("a", adapter)], attempts=1)
            vm = ExecutionVM(llm=client, store=store)
            trace = vm.run_sync(program)
            assert trace.error is not None
            assert (trace.status.value, trace.error["type"]) == ("FAILED", code)
            assert vm.verify(trace.trace_id)
            shown += json.dumps(trace.to_dict()) + repr(trace.events)
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for secret in (KEY, header):
        assert secret not in shown
        assert secret.encode() not in stored
