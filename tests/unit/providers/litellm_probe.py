"""Run in an environment that has litellm: the adapter against the server at `sys.argv[1]`. Prints what came of it."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

KEY = "sk-very-secret-key"
reached: list[str] = []


def watch(event: str, details: tuple[Any, ...]) -> None:
    if event == "socket.connect" and isinstance(details[1], tuple):
        reached.append(str(details[1][0]))
    elif event == "socket.getaddrinfo":
        reached.append(str(details[0]))


def main() -> None:
    sys.addaudithook(watch)
    from nano_vm import LiteLLMAdapter
    from nano_vm.providers.faults import ModelError

    adapter = LiteLLMAdapter(
        "openai/m", api_base=sys.argv[1], api_key=KEY, prices={"openai/m": (1, 2)}, timeout_seconds=20
    )
    at_import = list(reached)
    tools = [
        {"type": "function", "function": {"name": "pay", "parameters": {"type": "object", "properties": {}}}}
    ]

    async def ask(**params: Any) -> dict[str, Any]:
        try:
            found = await adapter.complete([{"role": "user", "content": "hello"}], **params)
        except ModelError as error:
            text = str(error) + repr(error.facts) + repr(error.__context__ if error.__cause__ else None)
            return {
                "code": error.code,
                "lost": error.lost,
                "status": error.facts.get("status"),
                "leaks": KEY in text,
            }
        return {
            "text": found.text,
            "calls": [[call.name, call.arguments] for call in found.tool_calls],
            "usage": [found.usage.prompt_tokens, found.usage.completion_tokens, found.usage.cost_usd],
        }

    async def all_of_them() -> list[dict[str, Any]]:
        return [await ask(), await ask(tools=tools), await ask(), await ask(), await ask(), await ask()]

    answers = asyncio.run(all_of_them())
    hosts = sorted({host for host in reached if host not in ("127.0.0.1", "localhost", "::1")})
    print(json.dumps({"at_import": at_import, "elsewhere": hosts, "answers": answers}))


if __name__ == "__main__":
    main()
