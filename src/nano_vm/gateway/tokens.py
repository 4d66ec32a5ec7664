"""Bearer tokens: made once, shown once, kept as a digest (SPEC §13).

A token is `nvm_<id>_<secret>`; the secret is 32 random bytes, so a plain SHA-256 is enough: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from typing import Any

from nano_vm.errors import InputError, NotFoundError
from nano_vm.gateway.principals import Principal
from nano_vm.gateway.state import GatewayState
from nano_vm.journal.port import check_tenant

DAY_MS = 86_400_000
_FORM = re.compile(r"nvm_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@:-]{0,99}")


def create(
    state: GatewayState,
    principal: str,
    roles: tuple[str, ...],
    tenant: str = "default",
    label: str = "",
    days: float = 90.0,
) -> tuple[str, dict[str, Any]]:
    """A new token and what is kept of it.

    Args:
        days: how long it is valid.

    Raises:
        InputError: GATEWAY_TOKEN.
    """
    for what, value in (("principal", principal), *(("role", role) for role in roles)):
        if not _NAME.fullmatch(value):
            raise InputError(
                "GATEWAY_TOKEN",
                f"`{value[:40]}` cannot be a {what}",
                help="letters, digits and . _ @ : -, at most 100",
            )
    try:
        check_tenant(tenant)
    except InputError as error:
        raise InputError("GATEWAY_TOKEN", f"`{tenant[:40]}` cannot be a tenant", help=error.message) from None
    if not roles:
        raise InputError("GATEWAY_TOKEN", "a token without a role may do nothing", help="--role operator")
    if not 0 < days <= 3_650:
        raise InputError("GATEWAY_TOKEN", "a token is valid for 0 to 3650 days", help="--days 90")
    now = time.time_ns() // 1_000_000
    token_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    expires = now + int(days * DAY_MS)
    with state.write() as con:
        con.execute(
            "INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0)",
            (
                token_id,
                _digest(token_id, secret),
                principal,
                tenant,
                " ".join(roles),
                label[:200],
                now,
                expires,
            ),
        )
    return f"nvm_{token_id}_{secret}", _row(
        token_id, principal, tenant, " ".join(roles), label, now, expires, 0
    )


def listing(state: GatewayState) -> list[dict[str, Any]]:
    """All tokens, oldest first; never the tokens themselves."""
    rows = state.read(
        "SELECT id, principal, tenant, roles, label, created_at_ms, expires_at_ms, revoked_at_ms FROM tokens "
        "ORDER BY created_at_ms, id"
    )
    return [_row(*row) for row in rows]


def revoke(state: GatewayState, token_id: str) -> dict[str, Any]:
    """Make a token worthless from now on. Raises NotFoundError TOKEN_NOT_FOUND."""
    if any(row["id"] == token_id for row in listing(state)):
        with state.write() as con:
            con.execute(
                "UPDATE tokens SET revoked_at_ms = ? WHERE id = ? AND revoked_at_ms = 0",
                (time.time_ns() // 1_000_000, token_id),
            )
    for row in listing(state):
        if row["id"] == token_id:
            return row
    raise NotFoundError(
        "TOKEN_NOT_FOUND", "there is no token of that id", help="`nano-vm token list` shows their ids"
    )


def verify(state: GatewayState, token: str) -> tuple[Principal, int] | None:
    """Who holds the token, and when it expires (epoch milliseconds); None when it is not valid."""
    found = _FORM.fullmatch(token)
    if found is None:
        return None
    token_id, secret = found.groups()
    rows = state.read(
        "SELECT digest, principal, tenant, roles, expires_at_ms, revoked_at_ms FROM tokens WHERE id = ?",
        (token_id,),
    )
    digest = rows[0][0] if rows else bytes(32)
    if not hmac.compare_digest(digest, _digest(token_id, secret)):
        return None
    _, principal, tenant, roles, expires, revoked = rows[0]
    if revoked or expires <= time.time_ns() // 1_000_000:
        return None
    return Principal(principal, tuple(roles.split()), tenant), expires


def _digest(token_id: str, secret: str) -> bytes:
    return hashlib.sha256(f"nano-vm token {token_id} {secret}".encode()).digest()


def _row(
    token_id: str,
    principal: str,
    tenant: str,
    roles: str,
    label: str,
    created: int,
    expires: int,
    revoked: int,
) -> dict[str, Any]:
    now = time.time_ns() // 1_000_000
    return {
        "id": token_id,
        "principal": principal,
        "tenant": tenant,
        "roles": roles.split(),
        "label": label,
        "created_at_ms": created,
        "expires_at_ms": expires,
        "revoked_at_ms": revoked or None,
        "valid": not revoked and expires > now,
    }
