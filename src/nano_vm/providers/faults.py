"""What goes wrong with a model call, in one error type with few codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nano_vm.errors import RuntimeFault
from nano_vm.runtime.ports import Usage


class ModelError(RuntimeFault):
    """A model call that gave no usable answer.

    Codes: MODEL_HTTP (no contact, 429, 5xx: retryable), MODEL_TIMEOUT (retryable), MODEL_REFUSED (the request or key is
    not accepted), MODEL_REPLY (the answer is no completion, or broke off: retryable), MODEL_TRUNCATED (cut at the token
    limit).
    Facts: `host`, and where known `status`, `reason`, `retry_after` (seconds). `usage` is what the attempt consumed, as
    far as that is known: it is paid for like any other. `lost` says that nothing answered, or that contact broke off.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        help: str | None = None,
        facts: Mapping[str, Any] | None = None,
        usage: Usage | None = None,
        lost: bool = False,
    ) -> None:
        super().__init__(code, message, help=help, facts=facts)
        self.usage = usage
        self.lost = lost
