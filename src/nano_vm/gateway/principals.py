"""Who calls, and what they may do. A role of the table opens operations; every other role only answers waits."""

from __future__ import annotations

from typing import Any

import msgspec

from nano_vm.errors import CapabilityDeniedError

READ, RUN, WRITE, ANSWER, PROVE = "read", "run", "write", "answer", "prove"

# Role -> operations. `admin` is for whoever keeps the gateway; approvals ask for the wait's own roles besides.
ROLES: dict[str, frozenset[str]] = {
    "viewer": frozenset({READ}),
    "operator": frozenset({READ, RUN, WRITE, ANSWER, PROVE}),
    "approver": frozenset({READ, ANSWER}),
    "auditor": frozenset({READ, PROVE}),
    "admin": frozenset({READ, RUN, WRITE, ANSWER, PROVE}),
}


class Principal(msgspec.Struct, frozen=True):
    """Somebody who has been identified: by a token, or as the user who started the gateway."""

    id: str
    roles: tuple[str, ...] = ()
    tenant: str = "default"

    def to_dict(self) -> dict[str, Any]:
        """As the engine takes a principal."""
        return {"id": self.id, "roles": list(self.roles), "tenant": self.tenant}

    def may(self, operation: str) -> bool:
        return any(operation in ROLES.get(role, ()) for role in self.roles)

    def must(self, operation: str) -> None:
        """Raises CapabilityDeniedError ROLE_REQUIRED."""
        if not self.may(operation):
            able = sorted(role for role, operations in ROLES.items() if operation in operations)
            raise CapabilityDeniedError(
                "ROLE_REQUIRED",
                f"this needs one of the roles {', '.join(f'`{role}`' for role in able)}",
                help="use a token that holds one; `nano-vm token create --role ROLE` makes it",
                facts={"roles": able},
            )
