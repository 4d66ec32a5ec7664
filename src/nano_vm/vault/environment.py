"""Secrets from environment variables: for containers whose platform puts them there."""

from __future__ import annotations

import os

from nano_vm.errors import NotFoundError
from nano_vm.vault.secrets import REFERENCE, VALUE_CHARS_MIN, check_id


class EnvironmentSecrets:
    """`vault://secret/<id>` is the variable `<prefix><ID>`: upper case, with `_` for what a name cannot have.

    Nothing is stored, so nothing can be listed, rotated or erased here.
    """

    def __init__(self, prefix: str = "NANO_VM_SECRET_") -> None:
        self._prefix = prefix

    def open_secret(self, secret_id: str, *, tenant: str, tool: str) -> str:
        """Raises InputError SECRET_ID; NotFoundError SECRET_NOT_FOUND."""
        check_id(secret_id)
        name = self._prefix + "".join(c if c.isalnum() else "_" for c in secret_id).upper()
        value = os.environ.get(name)
        if value is None or len(value) < VALUE_CHARS_MIN:
            raise NotFoundError(
                "SECRET_NOT_FOUND",
                f"there is no secret `{REFERENCE}{secret_id}`: ${name} is not set, or too short",
                facts={"secret": secret_id},
            )
        return value
