"""Resources: `trace://ID`, `receipt://ID` and `program://NAME`, as JSON."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, unquote

import mcp_types as types

from nano_vm import canonical
from nano_vm.errors import NotFoundError
from nano_vm.gateway.principals import READ, Principal
from nano_vm.gateway.service import STEPS_DEFAULT, Gateway

RUNS_LISTED = 50
_JSON = "application/json"

TEMPLATES = [
    types.ResourceTemplate(
        uri_template="trace://{trace_id}",
        name="trace",
        title="Trace of a run",
        description="What a run did: status, steps, waits, hashes.",
        mime_type=_JSON,
    ),
    types.ResourceTemplate(
        uri_template="receipt://{trace_id}",
        name="receipt",
        title="Receipt of a run",
        description="What can be shown to others about a run.",
        mime_type=_JSON,
    ),
    types.ResourceTemplate(
        uri_template="program://{name}",
        name="program",
        title="A saved program",
        description="A program as its author wrote it.",
        mime_type=_JSON,
    ),
]


def listing(gateway: Gateway, who: Principal) -> list[types.Resource]:
    """The saved programs, and the latest runs."""
    found = [
        types.Resource(
            uri=f"program://{quote(name, safe='')}", name=name, title=f"Program {name}", mime_type=_JSON
        )
        for name, _, _ in gateway.programs.listing(who)
    ]
    for record in gateway.runs(who, limit=RUNS_LISTED):
        title = f"{record.program_name}: {record.status}"
        found.append(
            types.Resource(uri=f"trace://{record.run_id}", name=record.run_id, title=title, mime_type=_JSON)
        )
    return found


async def read(gateway: Gateway, who: Principal, uri: str) -> str:
    """The resource's JSON text.

    Raises:
        NotFoundError: RESOURCE_NOT_FOUND, RUN_NOT_FOUND, PROGRAM_NOT_FOUND. CapabilityDeniedError: ROLE_REQUIRED.
    """
    scheme, _, rest = uri.partition("://")
    value: Any
    rest = unquote(rest)
    if scheme == "trace" and rest:
        value = await gateway.trace(who, rest, 0, STEPS_DEFAULT, True)
    elif scheme == "receipt" and rest:
        value = await gateway.receipt(who, rest)
    elif scheme == "program" and rest:
        who.must(READ)
        value = gateway.programs.read(who, rest).to_dict()
    else:
        raise NotFoundError(
            "RESOURCE_NOT_FOUND",
            "there is no such resource",
            help="trace://ID, receipt://ID or program://NAME",
        )
    return canonical.encode(value).decode()
