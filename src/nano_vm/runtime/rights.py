"""Who may do what with runs: roles of the house, and tenants.

nano-vm does not authenticate. Whoever calls says who acts, and answers for it; what follows from it is enforced here
and, for tenants, in the queries of the store. Roles of one's own (for approvals) give no right of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from nano_vm.errors import CapabilityDeniedError, InputError
from nano_vm.journal.port import DEFAULT_TENANT, check_tenant

READ, VERIFY, START, ACT, APPROVE = "read", "verify", "start", "act", "approve"
ERASE = "erase"

# Role -> rights. ACT: resume with an event, step, cancel, resolve, fork. APPROVE asks for the roles of the approval,
# and four eyes, besides. An admin also keeps policies, programs and keys, which no run does.
RIGHTS: Final[Mapping[str, frozenset[str]]] = {
    "viewer": frozenset({READ}),
    "operator": frozenset({READ, VERIFY, START, ACT, APPROVE}),
    "approver": frozenset({READ, APPROVE}),
    "auditor": frozenset({READ, VERIFY}),
    "admin": frozenset({READ, VERIFY, START, ACT, APPROVE, ERASE}),
}
ACCESS = ("open", "required")


def principal_of(
    principal: str | Mapping[str, Any] | None, tenant: str = DEFAULT_TENANT
) -> dict[str, Any] | None:
    """A principal as it is journaled: {"id", "roles", "tenant"}. Whoever names no tenant belongs to `tenant`."""
    if principal is None:
        return None
    if isinstance(principal, str):
        return {"id": principal, "roles": [], "tenant": tenant}
    who = dict(principal) if isinstance(principal, Mapping) else {}
    unknown = set(who) - {"id", "roles", "tenant"}
    roles = who.get("roles", [])
    own = who.get("tenant", tenant)
    sound = type(roles) in (list, tuple) and all(type(role) is str for role in roles) and type(own) is str
    if unknown or type(who.get("id")) is not str or not sound:
        raise InputError(
            "PRINCIPAL",
            "a principal is an id, or an object of `id`, `roles` and `tenant`",
            help='{"id": "ana"}',
        )
    return {"id": who["id"], "roles": list(roles), "tenant": own}


def tenant_of(principal: str | Mapping[str, Any] | None, given: str | None) -> str | None:
    """The tenant that a call is about: the one given, else the principal's, None when neither is named.

    Raises:
        InputError: TENANT. CapabilityDeniedError: CAPABILITY_DENIED when both are named and differ.
    """
    own = principal.get("tenant") if isinstance(principal, Mapping) else None
    if given is not None:
        check_tenant(given)
    if own is not None:
        check_tenant(own)
        if given is not None and own != given:
            raise CapabilityDeniedError(
                "CAPABILITY_DENIED",
                f"a principal of tenant `{own}` has no part in tenant `{given}`",
                help="act as somebody of that tenant",
            )
    return own if given is None else given


def check_right(access: str, principal: str | Mapping[str, Any] | None, right: str) -> None:
    """Refuse what the principal's roles do not allow.

    With `access` "open" whoever holds no role of `RIGHTS` may do everything: for programs that have no users of their
    own. With "required" nobody may do anything without one.

    Raises:
        CapabilityDeniedError: CAPABILITY_DENIED (facts: right, roles).
    """
    if may(access, principal, right):
        return
    who = principal_of(principal)
    held = _held(who)
    needed = [role for role, rights in RIGHTS.items() if right in rights]
    name = "nobody in particular" if who is None else f"`{who['id']}`"
    raise CapabilityDeniedError(
        "CAPABILITY_DENIED",
        f"{name} may not {_VERBS[right]}",
        help=f"that takes one of the roles: {', '.join(needed)}",
        facts={"right": right, "roles": held},
    )


def may(access: str, principal: str | Mapping[str, Any] | None, right: str) -> bool:
    """Whether `check_right` lets it pass."""
    held = _held(principal_of(principal))
    return any(right in RIGHTS[role] for role in held) or (not held and access == "open")


def _held(who: dict[str, Any] | None) -> list[str]:
    return [] if who is None else [role for role in who["roles"] if role in RIGHTS]


_VERBS = {
    READ: "read runs",
    VERIFY: "verify runs",
    START: "start runs",
    ACT: "act on runs",
    APPROVE: "approve",
    ERASE: "erase",
}
