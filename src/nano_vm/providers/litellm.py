"""LiteLLM's providers (extra `[litellm]`): `LiteLLMAdapter("groq/llama-3.1-8b-instant")`.

LiteLLM is heavy - seconds and hundreds of megabytes - and fetches a price map from the network when it is imported,
unless it is told not to. So it is imported when an adapter is made, and told not to. It must not repeat anything by
itself: every attempt is ours.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nano_vm.errors import InputError, RuntimeFault
from nano_vm.providers.faults import ModelError
from nano_vm.providers.openai_reply import RETRIED_STATUS, ReplyFault, read_completion
from nano_vm.providers.prices import prices_from, usage_of
from nano_vm.runtime.ports import Completion, Message

_RESERVED = ("messages", "model", "stream", "n", "num_retries", "max_retries", "fallbacks")


class LiteLLMAdapter:
    """A `ModelClient` over `litellm.acompletion`.

    Args:
        model: as LiteLLM names models, such as `groq/llama-3.1-8b-instant`; used where a step names none.
        timeout_seconds: for one attempt as a whole.
        prices: as for `OpenAICompatibleAdapter`; LiteLLM's own table is not asked.
        options: further arguments of `acompletion`, such as `api_base` or `api_key`. Keys that LiteLLM finds in the
            environment need not be given.

    Raises:
        RuntimeFault: EXTRA_MISSING when litellm is not installed.
    """

    def __init__(
        self,
        model: str,
        timeout_seconds: float = 60,
        *,
        prices: Mapping[str, Any] | str | Path | None = None,
        **options: Any,
    ) -> None:
        if not model:
            raise InputError(
                "USAGE", "LiteLLM needs a model", help='LiteLLMAdapter("groq/llama-3.1-8b-instant")'
            )
        self._litellm = _litellm()
        self._model = model
        self._timeout = timeout_seconds
        self._prices = prices_from(prices)
        self._options = options

    def __repr__(self) -> str:
        return f"<LiteLLMAdapter {self._model}>"

    @property
    def default_model(self) -> str:
        return self._model

    def price(self, model: str | None) -> tuple[float, float] | None:
        """(input, output) in nano-dollars per token, or None where no price is known."""
        found = self._prices.get(model or self._model)
        return None if found is None else found.nano_per_token()

    async def complete(self, messages: list[Message], **params: Any) -> Completion:
        """One completion, in one attempt.

        Raises:
            ModelError.
        """
        model = params.get("model") or self._model
        given = {name: value for name, value in params.items() if name not in _RESERVED}
        try:
            async with asyncio.timeout(self._timeout):
                reply = await self._litellm.acompletion(
                    model=model,
                    messages=messages,
                    num_retries=0,
                    max_retries=0,
                    timeout=self._timeout,
                    **self._options,
                    **given,
                )
            answer = read_completion(reply.model_dump(), offered=bool(params.get("tools")))
        except TimeoutError:
            fault = ReplyFault("MODEL_TIMEOUT", f"no answer within {self._timeout:g} s", lost=True)
            raise self._error(fault, model) from None
        except ReplyFault as fault:
            raise self._error(fault, model) from None
        except Exception as error:
            # Not from it: its message may quote the request, and with it the key.
            raise self._error(_fault_of(error), model) from None
        return answer.completion(usage_of(answer.tokens, self._prices.get(model)), model)

    def _error(self, fault: ReplyFault, model: str) -> ModelError:
        return ModelError(
            fault.code,
            f"model `{model}` by LiteLLM: {fault.what}",
            help=fault.help,
            facts={"host": f"litellm:{model}", **fault.facts},
            usage=None if fault.tokens is None else usage_of(fault.tokens, self._prices.get(model)),
            lost=fault.lost,
        )


def _fault_of(error: Exception) -> ReplyFault:
    name = type(error).__name__
    if name == "Timeout":
        return ReplyFault("MODEL_TIMEOUT", "no answer in time", lost=True)
    status = getattr(error, "status_code", None)
    if name == "APIConnectionError" or type(status) is not int:
        return ReplyFault("MODEL_HTTP", f"no contact ({name})", lost=True)
    retryable = status >= 500 or status in RETRIED_STATUS
    code = "MODEL_HTTP" if retryable else "MODEL_REFUSED"
    help = "check the key" if status in (401, 403) else None
    return ReplyFault(code, f"HTTP {status} ({name})", help=help, facts={"status": status})


def _litellm() -> Any:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # read at import: no network for a price map
    try:
        import litellm
    except ImportError:
        raise RuntimeFault(
            "EXTRA_MISSING",
            "LiteLLM is not installed",
            help="pip install 'nano-vm[litellm]'",
            facts={"extra": "litellm"},
        ) from None
    litellm.telemetry = False
    litellm.suppress_debug_info = True
    return litellm
