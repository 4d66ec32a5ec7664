"""Alerts over HTTP: the report of a drift monitor, as JSON, to an address that somebody watches.

What is sent is what `nano-vm drift --json` says: measures, names of programs and steps, ids of runs. Nothing of a run's
data.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from nano_vm.errors import InputError, RuntimeFault

if TYPE_CHECKING:
    from nano_vm.observe.escalation import AnyReport

SECONDS_MAX = 10.0
TRIES = 3


class _Stay(urllib.request.HTTPRedirectHandler):
    """A report that is sent on would arrive nowhere: it would be asked for, not posted."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_Stay)


def check_address(address: str) -> str:
    """Raises InputError USAGE for what is no http or https address."""
    try:
        parts = urlsplit(address)
        usable = parts.port is None or parts.port > 0
    except ValueError:
        parts, usable = urlsplit(""), False
    plain = address.isascii() and address.isprintable() and " " not in address
    if parts.scheme not in ("http", "https") or not parts.hostname or not usable or not plain:
        raise InputError(
            "USAGE", "an alert goes to an http or https address", help="--alert https://HOST/PATH"
        )
    return address


def post(address: str, document: dict[str, Any]) -> None:
    """Send a document, at most `TRIES` times: an alert may arrive twice, and says which run it is about.

    Raises:
        RuntimeFault: ALERT_FAILED. The address may hold a secret, so that only its host is named.
    """
    body = json.dumps(document).encode()
    request = urllib.request.Request(address, body, {"content-type": "application/json"}, method="POST")
    for left in reversed(range(TRIES)):
        try:
            with _OPENER.open(request, timeout=SECONDS_MAX):
                return
        except urllib.error.HTTPError as error:
            with error:
                what = f"status {error.code}"
            final = error.code < 500
        except (OSError, HTTPException, UnicodeError) as error:
            what, final = type(error).__name__, False
        if final or not left:
            raise RuntimeFault(
                "ALERT_FAILED",
                f"the alert did not arrive at {urlsplit(address).hostname}: {what}",
                facts={"host": urlsplit(address).hostname},
            )


class WebhookAlert:
    """An `alert` for `Escalation` that sends reports from a thread of its own: no run waits for a network.

    Args:
        address: where reports are posted.
        program: what to call the program in them.
    """

    def __init__(self, address: str, *, program: str = "") -> None:
        self._address = check_address(address)
        self._program = program
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="nano-vm-alert")
        self.failures: list[RuntimeFault] = []  # the newest hundred

    def __call__(self, report: AnyReport) -> None:
        self._thread.submit(self._send, {"program": self._program, **report.to_dict()})

    def _send(self, document: dict[str, Any]) -> None:
        try:
            post(self._address, document)
        except RuntimeFault as error:
            self.failures.append(error)
            del self.failures[:-100]

    def close(self) -> None:
        """Wait until everything was sent, or has failed."""
        self._thread.shutdown()
