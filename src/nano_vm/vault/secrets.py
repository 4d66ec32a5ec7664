"""Secrets by reference: kept, listed, changed and opened, each under a data key of its own."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from nano_vm.errors import CapabilityDeniedError, InputError, NotFoundError, VaultError
from nano_vm.runtime.arguments import check_all
from nano_vm.vault import cipher
from nano_vm.vault.cabinet import Cabinet
from nano_vm.vault.erasures import Erasures
from nano_vm.vault.files import Files, SecretFile
from nano_vm.vault.kek import KeyWrapper
from nano_vm.vault.keys import DataKey, Keys

REFERENCE = "vault://secret/"
VALUE_CHARS_MIN = 4  # of a shorter secret nothing could be told apart from other text
VALUE_CHARS_MAX = 64 * 1024
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z").match


class SecretInfo(NamedTuple):
    """What may be told of a secret: never its value."""

    reference: str
    tools: list[str]
    key: str
    created_at_ms: int
    changed_at_ms: int
    held: bool


class Secrets:
    """The part of a `Vault` that keeps secrets."""

    def __init__(
        self,
        cabinet: Cabinet,
        key: KeyWrapper | Sequence[KeyWrapper],
        renew: Callable[[], Sequence[KeyWrapper]] | None = None,
    ) -> None:
        self._cabinet = cabinet
        self._files = Files(cabinet)
        self.keys = Keys(cabinet, list(key) if isinstance(key, Sequence) else [key], renew)
        self.erasures = Erasures(cabinet)

    def put(
        self,
        secret_id: str,
        value: str,
        *,
        tenant: str = "default",
        tools: Sequence[str] = (),
        at_ms: int | None = None,
    ) -> str:
        """Keep a secret, or change it, under a data key of its own. Returns its reference.

        Args:
            secret_id: 1 to 128 letters, digits, `.`, `_`, `-`; not secret itself.
            value: 4 to 65,536 characters.
            tools: the tools that may open it; by default every tool that declares a secret parameter.

        Raises:
            InputError: SECRET_ID, SECRET_VALUE, USAGE.
        """
        check_id(secret_id)
        check_all("tools", tools, str, 'tools=["charge"]')  # a text would be a list of its letters
        if type(value) is not str or not VALUE_CHARS_MIN <= len(value) <= VALUE_CHARS_MAX:
            raise InputError(
                "SECRET_VALUE",
                f"a secret is a text of {VALUE_CHARS_MIN} to {VALUE_CHARS_MAX:,} characters",
                help="a shorter one could not be told apart from other text, nor kept out of it",
            )
        try:
            plain = value.encode()
        except UnicodeEncodeError:
            raise InputError("SECRET_VALUE", "a secret with an unpaired surrogate") from None
        now = now_ms(at_ms)
        with self._cabinet.lock():
            handle = self.keys.handle("secret", tenant, secret_id)
            old = self._files.secret(handle)
            if old is not None:
                self._files.check_hold(handle)  # the old value would be destroyed
            key_id = self.keys.make("secret", tenant, handle, now)
            self._files.write_secret(
                handle,
                SecretFile(
                    id=secret_id,
                    tenant=tenant,
                    tools=sorted(set(tools)),
                    key=key_id,
                    created_at_ms=now if old is None else old.created_at_ms,
                    changed_at_ms=now,
                    sealed=self._seal_secret(tenant, secret_id, key_id, sorted(set(tools)), plain),
                ),
            )
            if old is not None:
                self.keys.destroy(old.key)  # and with it the old value
        return REFERENCE + secret_id

    def secrets(self, tenant: str = "default") -> list[SecretInfo]:
        """The secrets of a tenant, by id; no values."""
        found = []
        for handle in self._cabinet.names("secrets"):
            secret = self._files.secret(handle)
            if secret is not None and secret.tenant == tenant:
                found.append(
                    SecretInfo(
                        REFERENCE + secret.id,
                        secret.tools,
                        secret.key,
                        secret.created_at_ms,
                        secret.changed_at_ms,
                        self._cabinet.has("holds", handle),
                    )
                )
        return sorted(found)

    def open_secret(self, secret_id: str, *, tenant: str, tool: str) -> str:
        """A secret's value, for the call of one tool.

        Raises:
            NotFoundError: SECRET_NOT_FOUND. CapabilityDeniedError: SECRET_DENIED.
            VaultError: SECRET_ERASED.
        """
        secret = self._require(secret_id, tenant)
        if secret.tools and tool not in secret.tools:
            raise CapabilityDeniedError(
                "SECRET_DENIED",
                f"the tool `{tool}` may not open `{REFERENCE}{secret_id}`",
                help="`nano-vm vault put ID --tool NAME` says which tools may",
                facts={"secret": secret_id, "tool": tool},
            )
        try:
            return self._open(secret).decode()
        except VaultError as error:
            now = self._require(secret_id, tenant)
            if error.code != "SECRET_ERASED" or now.key == secret.key:
                raise
        # It was changed, or put under a new data key, after it had been read.
        return self.open_secret(secret_id, tenant=tenant, tool=tool)

    def secret_key(self, secret_id: str, *, tenant: str) -> str:
        """Id of the data key that a secret is under: what a journal says of it.

        Raises:
            NotFoundError: SECRET_NOT_FOUND.
        """
        return self._require(secret_id, tenant).key

    def rotate(self, secret_id: str, *, tenant: str = "default", at_ms: int | None = None) -> str:
        """Put a secret under a new data key and destroy the old one. Returns the new key's id.

        Raises:
            NotFoundError: SECRET_NOT_FOUND.
        """
        with self._cabinet.lock():
            secret = self._require(secret_id, tenant)
            plain = self._open(secret)
            handle = self.keys.handle("secret", tenant, secret_id)
            key_id = self.keys.make("secret", tenant, handle, now_ms(at_ms))
            sealed = self._seal_secret(tenant, secret_id, key_id, secret.tools, plain)
            changed = msgspec.structs.replace(secret, key=key_id, changed_at_ms=now_ms(at_ms), sealed=sealed)
            self._files.write_secret(handle, changed)
            self.keys.destroy(secret.key)
            return key_id

    def is_erased(self, key_id: str) -> bool:
        """Whether an erasure names the key."""
        return self.erasures.of_key(key_id) is not None

    # --- inside -----------------------------------------------------------------------------------------------
    def _living(self, key_id: str) -> DataKey | None:
        return None if self.is_erased(key_id) else self.keys.key(key_id)

    def _require(self, secret_id: str, tenant: str) -> SecretFile:
        check_id(secret_id)
        secret = self._files.secret(self.keys.handle("secret", tenant, secret_id))
        if secret is None or secret.id != secret_id or secret.tenant != tenant:
            raise NotFoundError(
                "SECRET_NOT_FOUND",
                f"there is no secret `{REFERENCE}{secret_id}`",
                help="`nano-vm vault list` shows those there are; an erased one is gone",
                facts={"secret": secret_id},
            )
        return secret

    def _seal_secret(self, tenant: str, secret_id: str, key_id: str, tools: list[str], plain: bytes) -> str:
        key = self.keys.key(key_id)
        assert key is not None
        bound = cipher.binding("secret", tenant, secret_id, key_id, tools)
        return base64.b64encode(cipher.seal(key.encrypting, plain, bound)).decode()

    def _open(self, secret: SecretFile) -> bytes:
        key = self._living(secret.key)
        if key is None:
            raise VaultError(
                "SECRET_ERASED",
                f"the key of `{REFERENCE}{secret.id}` has been destroyed",
                facts={"secret": secret.id},
            )
        bound = cipher.binding("secret", secret.tenant, secret.id, secret.key, secret.tools)
        try:
            sealed = base64.b64decode(secret.sealed, validate=True)
        except ValueError:
            raise cipher.broken() from None
        return cipher.unseal(key.encrypting, sealed, bound)


def check_id(secret_id: str) -> None:
    """Raises InputError SECRET_ID."""
    if type(secret_id) is not str or _ID(secret_id) is None:
        raise InputError(
            "SECRET_ID",
            "a secret's id has 1 to 128 letters, digits, `.`, `_` or `-`, and begins with a letter or digit",
            help=f"its reference is then {REFERENCE}card-token",
        )


def now_ms(at_ms: int | None) -> int:
    return int(time.time() * 1_000) if at_ms is None else at_ms
