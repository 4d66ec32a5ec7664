"""A model client from a few words: what `--model` and the `use` of a pool's providers understand.

Keys come from the environment and are shown nowhere.
"""

from __future__ import annotations

import os
from pathlib import Path

from nano_vm.errors import InputError
from nano_vm.providers.health import Memory
from nano_vm.runtime.ports import ModelClient

KEY_VARIABLES = ("NANO_VM_API_KEY", "OPENAI_API_KEY")
FORMS = (
    "mock:TEXT, mock:@FILE, script:FILE, openai:MODEL, http(s)://HOST/v1#MODEL, litellm:MODEL, or pool:FILE"
)


def client_named(
    spec: str, *, base_url: str | None = None, prices: str | Path | None = None, memory: Memory | None = None
) -> ModelClient:
    """The client that a specification names.

    Args:
        base_url: where `openai:MODEL` is.
        prices: a price table, for endpoints.
        memory: where a pool keeps its records.

    Raises:
        InputError: USAGE for a specification that says nothing, and what `load_script` and `load_pool` raise.
        RuntimeFault: EXTRA_MISSING.
    """
    kind, colon, rest = spec.partition(":")
    if kind == "mock" and colon and not rest.startswith("@"):
        from nano_vm.providers.mock import MockLLMAdapter

        return MockLLMAdapter(rest)
    if kind in ("mock", "script") and rest.removeprefix("@"):
        from nano_vm.providers.script import load_script

        return load_script(rest.removeprefix("@"))
    if kind in ("http", "https") and rest.startswith("//"):
        url, _, model = spec.partition("#")
        return _endpoint(url, model, prices)
    if kind == "openai" and rest:
        url = base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        return _endpoint(url, rest, prices)
    if kind == "litellm" and rest:
        from nano_vm.providers.litellm import LiteLLMAdapter

        return LiteLLMAdapter(rest, prices=prices)
    if kind == "pool" and rest:
        from nano_vm.providers.pool_file import load_pool

        return load_pool(rest, named=client_named, memory=memory)
    raise InputError("USAGE", f"--model does not understand `{_safe(spec)}`", help=f"it takes {FORMS}")


def _endpoint(url: str, model: str, prices: str | Path | None) -> ModelClient:
    from nano_vm.providers.openai_compatible import OpenAICompatibleAdapter

    key = next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), None)
    return OpenAICompatibleAdapter(url, model=model or None, api_key=key, prices=prices)


def _safe(spec: str) -> str:
    # Somebody may have put a password into an address.
    return spec if "@" not in spec else spec.partition(":")[0] + ":…"
