"""`--model`: a model from a few words. Keys come from the environment and are shown nowhere."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from nano_vm.errors import InputError

if TYPE_CHECKING:
    from nano_vm.runtime.ports import ModelClient

KEY_VARIABLES = ("NANO_VM_API_KEY", "OPENAI_API_KEY")
_FORMS = "mock:TEXT, mock:@FILE, script:FILE, openai:MODEL, or http(s)://HOST/v1#MODEL"


def load_model(spec: str | None, base_url: str | None = None) -> ModelClient | None:
    """The adapter that `--model` names; None without one.

    Raises:
        InputError: USAGE for a specification that says nothing, and what `load_script` raises.
        NanoVMError: EXTRA_MISSING when an HTTP endpoint is named and httpx is not installed.
    """
    if spec is None:
        if base_url is not None:
            raise InputError("USAGE", "--base-url without --model", help="add --model openai:MODEL")
        return None
    kind, colon, rest = spec.partition(":")
    if base_url is not None and kind != "openai":
        raise InputError(
            "USAGE", "--base-url goes with --model openai:MODEL only", help=f"--model takes {_FORMS}"
        )
    if kind == "mock" and colon and not rest.startswith("@"):
        from nano_vm.providers.mock import MockLLMAdapter

        return MockLLMAdapter(rest)
    if kind in ("mock", "script") and rest.removeprefix("@"):
        from nano_vm.providers.script import load_script

        return load_script(rest.removeprefix("@"))
    if kind in ("http", "https") and rest.startswith("//"):
        url, _, model = spec.partition("#")
        return _endpoint(url, model)
    if kind == "openai" and rest:
        return _endpoint(base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1", rest)
    raise InputError("USAGE", f"--model does not understand `{_safe(spec)}`", help=f"it takes {_FORMS}")


def _endpoint(url: str, model: str) -> ModelClient:
    from nano_vm.providers.openai_compatible import OpenAICompatibleAdapter

    key = next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), None)
    return OpenAICompatibleAdapter(url, model=model or None, api_key=key)


def _safe(spec: str) -> str:
    # Somebody may have put a password into an address.
    return spec if "@" not in spec else spec.partition(":")[0] + ":…"
