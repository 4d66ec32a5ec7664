"""AES-256-GCM (NIST SP 800-38D) from the `cryptography` package, imported when it is first needed.

A sealed value is one byte of version, 12 random bytes of nonce, the ciphertext and its 16-byte tag. What it belongs to
- tenant, kind, name, place - is additional authenticated data: it is not stored with it, and a value that is moved
elsewhere does not open.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable
from hashlib import sha256
from typing import Any

from nano_vm import canonical
from nano_vm.errors import RuntimeFault, VaultError

KEY_BYTES = 32
NONCE_BYTES = 12
_VERSION = b"\x01"
_TAG_BYTES = 16

chance: Callable[[int], bytes] = os.urandom
"""Every random byte of the vault - keys, nonces, ids - from the operating system. Simulations draw them from a seed."""


def new_key() -> bytes:
    """32 random bytes."""
    return chance(KEY_BYTES)


def binding(kind: str, *parts: Any) -> bytes:
    """What a sealed value is bound to, as bytes: canonical JSON, so that no two lists of parts look alike."""
    return canonical.encode(["nano-vm vault 1", kind, *parts])


def seal(key: bytes, plain: bytes, bound: bytes) -> bytes:
    """Encrypt `plain` under a 32-byte key, bound to `bound`.

    Raises:
        RuntimeFault: EXTRA_MISSING.
    """
    nonce = chance(NONCE_BYTES)
    sealed: bytes = _aead(key).encrypt(nonce, plain, bound)
    return _VERSION + nonce + sealed


def unseal(key: bytes, sealed: bytes, bound: bytes) -> bytes:
    """What was sealed.

    Raises:
        VaultError: SEAL_BROKEN when it was changed, is bound to something else, or another key sealed it.
        RuntimeFault: EXTRA_MISSING.
    """
    if sealed[:1] != _VERSION or len(sealed) < 1 + NONCE_BYTES + _TAG_BYTES:
        raise broken()
    aead = _aead(key)
    from cryptography.exceptions import InvalidTag

    try:
        plain: bytes = aead.decrypt(sealed[1 : 1 + NONCE_BYTES], sealed[1 + NONCE_BYTES :], bound)
    except InvalidTag:
        raise broken() from None
    return plain


def keyed_digest(key: bytes, data: bytes) -> str:
    """HMAC-SHA-256 (RFC 2104), 64 hexadecimal digits: nobody without the key can try out what `data` was."""
    return hmac.new(key, data, sha256).hexdigest()


def broken() -> VaultError:
    return VaultError(
        "SEAL_BROKEN",
        "a sealed value does not open: it was changed or moved, or another key sealed it",
        help="restore the vault and the database from back-ups of the same time",
    )


def _aead(key: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise RuntimeFault(
            "EXTRA_MISSING",
            "the vault needs the package `cryptography`",
            help="pip install 'nano-vm[vault]'",
        ) from None
    return AESGCM(key)
