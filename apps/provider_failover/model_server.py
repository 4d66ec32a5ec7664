"""A model server on loopback: OpenAI-style chat completions over real HTTP, with answers that follow from the prompt.

It stands in for a provider, so it can also do what providers do: be slow, answer 503 from some request on, or hold a
request open for ever - until somebody kills it.

    python model_server.py --name primary --from-request 2 --then hold
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_COUNTING = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with _COUNTING:
            self.server.requests += 1
            number = self.server.requests
        settings = self.server.settings
        if settings.from_request and number >= settings.from_request:
            if settings.then == "hold":
                # The answer has begun: whoever asked is in the middle of a request.
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", "10000")
                self.end_headers()
                self.wfile.write(b'{"choices": [')
                self.wfile.flush()
                print("holding", flush=True)
                threading.Event().wait()
            self.say(503, {"error": {"code": "overloaded", "message": "try again later"}})
            return
        time.sleep(settings.latency_ms / 1_000)
        prompt = request["messages"][-1]["content"]
        text = answer(settings.name, prompt)
        usage = {"prompt_tokens": len(prompt) // 4 + 1, "completion_tokens": len(text) // 4 + 1}
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        self.say(200, {"model": request["model"], "choices": [choice], "usage": usage})

    def say(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, settings: argparse.Namespace) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.settings = settings
        self.requests = 0


def answer(name: str, prompt: str) -> str:
    """What any of our providers says. They agree on what matters, and each has its own way with words."""
    numbers = [int(number) for number in re.findall(r"\d+", prompt)]
    if prompt.startswith("Assess"):
        amount, income = numbers[0], numbers[1]
        risk = "low" if amount * 4 <= income else "medium" if amount <= income else "high"
        return json.dumps({"risk": risk, "affordable": amount <= income})
    if prompt.startswith("Decide"):
        good = "Risk: high" not in prompt and "Affordable: true" in prompt and numbers[-1] >= 600
        return "approve" if good else "decline"
    return f"Good news from us at {name}: your credit was granted."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True)
    parser.add_argument("--latency-ms", type=float, default=0)
    parser.add_argument("--from-request", type=int, default=0, help="misbehave from this request on; 0 never")
    parser.add_argument("--then", choices=("fail", "hold"), default="fail")
    server = Server(parser.parse_args())
    print(f"listening {server.server_port}", flush=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    server.serve_forever()


def _end_with_parent() -> None:
    """Whoever started us holds our standard input open; when it closes, we are done."""
    sys.stdin.read()
    import os

    os._exit(0)


if __name__ == "__main__":
    main()
