"""Errors as clients get them: code, message, help and facts; never a traceback, never a payload."""

from __future__ import annotations

import logging
from typing import Any

from nano_vm.errors import CODES, NanoVMError

log = logging.getLogger("nano_vm.gateway")
FINDINGS_MAX = 100


def fault_of(error: BaseException) -> dict[str, Any]:
    """An error as data. What is not ours is INTERNAL: its text stays in the log of the server."""
    if not isinstance(error, NanoVMError) or error.code not in CODES:
        log.error("unexpected %s", type(error).__name__, exc_info=error)
        return {
            "code": "INTERNAL",
            "fault": "bug",
            "retryable": False,
            "message": f"unexpected {type(error).__name__}",
            "help": "this is a defect of nano-vm; what is stored is intact. The log of the server says more",
            "facts": {},
        }
    found: dict[str, Any] = {
        "code": error.code,
        "fault": error.fault.value,
        "retryable": error.retryable,
        "message": error.message,
        "help": error.help,
        "facts": error.facts,
    }
    if error.place is not None:
        found["place"] = error.place._asdict()
    diagnostics = getattr(error, "diagnostics", None)
    if diagnostics:
        found["findings"] = [finding.to_dict() for finding in diagnostics[:FINDINGS_MAX]]
    return found
