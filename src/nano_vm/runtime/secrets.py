"""Opening secrets for the one call that is entitled to them, and keeping them out of everything it leaves behind.

A value like `vault://secret/card-token` is a reference: it may stand anywhere, and is opened only for parameters that
their tool declares as secret, after the intent - which names the reference - is durable. What comes back from the call,
an exception's text and traceback included, is searched for the opened values and their usual encodings, and has the
reference in their place.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from msgspec import UNSET

from nano_vm import canonical
from nano_vm.errors import NanoVMError
from nano_vm.runtime.tooling import Secret, ToolError

if TYPE_CHECKING:
    from nano_vm.runtime.calls import RunFacts
    from nano_vm.runtime.outcomes import Outcome
    from nano_vm.runtime.ports import SecretSource, ToolSpec

REFERENCE: Final = "vault://secret/"


def reference_fault(
    spec: ToolSpec, args: Mapping[str, Any], source: SecretSource | None
) -> tuple[str, str] | None:
    """Why a tool's secret parameters cannot be filled: code and message, before the intent; None when they can be."""
    for name in spec.secrets:
        value = args.get(name)
        if value is None:
            continue  # an optional one that was left out
        if type(value) is not str or not value.startswith(REFERENCE):
            return (
                "SECRET_EXPECTED",
                f"`{name}` of `{spec.name}` takes a reference like {REFERENCE}card-token",
            )
        if source is None:
            return "VAULT_MISSING", f"`{name}` of `{spec.name}` is a secret, and the engine has no vault"
    return None


def references_in(spec: ToolSpec, args: Mapping[str, Any]) -> list[str]:
    """The references that a call will open, in order: what its intent says."""
    return sorted({args[name] for name in spec.secrets if type(args.get(name)) is str})


class Opened:
    """The secrets opened for one call."""

    def __init__(self) -> None:
        self._traces: list[
            tuple[str, str]
        ] = []  # (what a secret may look like, its reference), longest first

    def fill(
        self, run: RunFacts, spec: ToolSpec, arguments: dict[str, Any], source: SecretSource | None
    ) -> dict[str, Any]:
        """The arguments with secrets in place of their references.

        Raises:
            ToolError: with the vault's code; not retryable unless reading the vault failed.
        """
        filled = dict(arguments)
        failure: NanoVMError | None = None
        for name in sorted(spec.secrets):
            reference = arguments.get(name)
            if type(reference) is not str or source is None:
                continue
            try:
                value = source.open_secret(
                    reference.removeprefix(REFERENCE), tenant=run.tenant, tool=spec.name
                )
            except NanoVMError as error:
                failure = error
                break
            self._traces += [(trace, reference) for trace in _traces_of(value)]
            filled[name] = Secret(reference, value) if name in spec.wrapped else value
        if failure is not None:
            # Outside of the handler: what the vault ran into is no part of what the tool's failure was caused by.
            raise ToolError(failure.message, retryable=failure.retryable, code=failure.code)
        self._traces.sort(key=lambda trace: len(trace[0]), reverse=True)
        return filled

    def scrub(self, outcome: Outcome) -> Outcome:
        """The outcome without the values."""
        event, payload = outcome
        error = getattr(event, "error", UNSET)
        if type(error) is str:
            event.error = self._text(error)
        if payload is None:
            return outcome
        event.payload, payload = canonical.normalize(self._data(canonical.decode(payload)))
        return outcome._replace(payload=payload)

    def _data(self, value: Any) -> Any:
        if type(value) is str:
            return self._text(value)
        if type(value) is dict:
            return {self._text(key): self._data(item) for key, item in value.items()}
        if type(value) is list:
            return [self._data(item) for item in value]
        if type(value) in (int, float):
            text = json.dumps(value)
            return value if self._text(text) == text else self._text(text)
        return value

    def _text(self, text: str) -> str:
        for trace, reference in self._traces:
            if trace in text:
                text = text.replace(trace, reference)
        return text


def _traces_of(value: str) -> set[str]:
    """The texts by which a value may be recognised: itself, as it stands inside JSON, a Python literal or an address,
    in hexadecimal, and in base64 wherever in the encoded bytes it begins."""
    raw = value.encode()
    found = {
        value,
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
        repr(value)[1:-1],
        repr(raw)[2:-1],
        quote(value, safe=""),
        quote(value),
        raw.hex(),
        raw.hex().upper(),
    }
    for before in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            # Of the first and the last group some bits belong to the neighbours: only what is the value's own counts.
            text = encode(bytes(before) + raw).decode().rstrip("=")
            own = text[(0, 2, 3)[before] :]
            if (before + len(raw)) % 3:
                own = own[:-1]
            if len(own) >= 6:
                found.add(own)
    return {trace for trace in found if len(trace) >= 4}
