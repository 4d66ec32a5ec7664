"""Ed25519 keys and the files they live in.

A directory holds `NAME.key`, a private key that only its owner can read (PKCS #8, PEM, mode 0600), and `NAME.pub`, a
public key (SubjectPublicKeyInfo, PEM). A `.pub` without a `.key` is somebody else's, and trusted. Public
keys need no cryptography to be read; signing and verifying needs the extra `[sign]`.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import re
import stat
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nano_vm.errors import InputError, NotFoundError, RuntimeFault, VerificationError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEYS_VARIABLE = "NANO_VM_KEYS"
FILE_BYTES_MAX = 64 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# RFC 8410: the DER of every Ed25519 public key begins with these bytes, and 32 bytes of key follow.
_SPKI = bytes.fromhex("302a300506032b6570032100")


class PublicKey(NamedTuple):
    """A key to verify with. `name` is what its owner or the one who trusts it calls it; it proves nothing."""

    raw: bytes
    name: str = ""

    @property
    def der(self) -> bytes:
        """SubjectPublicKeyInfo."""
        return _SPKI + self.raw

    @property
    def keyid(self) -> str:
        """SHA-256 of `der`, as 64 hexadecimal digits."""
        return sha256(self.der).hexdigest()

    @property
    def text(self) -> str:
        """The 32 bytes in base64."""
        return base64.b64encode(self.raw).decode()

    @property
    def pem(self) -> str:
        body = base64.b64encode(self.der).decode()
        return f"-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n"

    def verify(self, signature: bytes, message: bytes) -> None:
        """Check a signature.

        Raises:
            VerificationError: SIGNATURE_INVALID. RuntimeFault: EXTRA_MISSING.
        """
        with _needs_extra():
            from cryptography.exceptions import InvalidSignature
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except (InvalidSignature, ValueError):
            raise VerificationError(
                "SIGNATURE_INVALID",
                "the signature was not made with this key over these bytes",
                facts={"keyid": self.keyid},
            ) from None


class SigningKey:
    """A key to sign with."""

    def __init__(self, private: Ed25519PrivateKey, name: str) -> None:
        self._private = private
        self.name = name
        self.public = PublicKey(private.public_key().public_bytes_raw(), name)

    def __repr__(self) -> str:
        return f"<SigningKey {self.name!r} {self.public.keyid[:16]}>"  # never the key itself

    def sign(self, message: bytes) -> bytes:
        """64 bytes (RFC 8032)."""
        return self._private.sign(message)


class KeyFiles:
    """The keys in a directory, by default `$NANO_VM_KEYS`, else `~/.config/nano-vm/keys`."""

    def __init__(self, directory: str | os.PathLike[str] | None = None) -> None:
        self.directory = Path(directory) if directory is not None else default_directory()

    def generate(self, name: str) -> SigningKey:
        """Make a key pair. Raises InputError KEY_NAME or KEY_EXISTS, RuntimeFault KEY_FILE or EXTRA_MISSING."""
        with _needs_extra():
            from cryptography.hazmat.primitives import serialization
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        self._check_free(name)
        private = Ed25519PrivateKey.generate()
        pem = private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        key = SigningKey(private, name)
        self._write(f"{name}.key", pem, 0o600)
        try:
            self._write(f"{name}.pub", key.public.pem.encode(), 0o644)
        except RuntimeFault:
            (self.directory / f"{name}.key").unlink(missing_ok=True)  # nobody has it: the name is free again
            raise
        return key

    def trust(self, name: str, key: PublicKey) -> None:
        """Keep somebody's public key. Raises InputError KEY_NAME or KEY_EXISTS, RuntimeFault KEY_FILE."""
        self._check_free(name)
        self._write(f"{name}.pub", key.pem.encode(), 0o644)

    def distrust(self, name: str) -> None:
        """Forget somebody's public key; a key of one's own stays. Raises NotFoundError KEY_NOT_FOUND, InputError
        KEY_NAME, RuntimeFault KEY_FILE."""
        path = self._existing(name, ".pub")
        if path.with_suffix(".key").exists():
            raise InputError("KEY_NAME", f"`{name}` is a key of your own", help="delete its files yourself")
        try:
            path.unlink()
        except OSError as error:
            raise _file_error(path, error) from None

    def names(self) -> list[tuple[str, bool]]:
        """(name, whether it is one's own and can sign), by name."""
        try:
            found = [path.name for path in self.directory.iterdir()]
        except OSError:
            return []
        own = {name.removesuffix(".key") for name in found if name.endswith(".key")}
        known = own | {name.removesuffix(".pub") for name in found if name.endswith(".pub")}
        return [(name, name in own) for name in sorted(known) if _NAME.fullmatch(name)]

    def public(self, name: str) -> PublicKey:
        """Raises NotFoundError KEY_NOT_FOUND, InputError KEY_NAME, RuntimeFault KEY_FILE; for a key of one's own that a
        crash has left without its public half also as `signing`."""
        if (
            not (self.directory / f"{_checked(name)}.pub").exists()
            and (self.directory / f"{name}.key").exists()
        ):
            return self.signing(name).public
        return read_public(self._existing(name, ".pub"), name)

    def all_public(self) -> list[PublicKey]:
        """Every key that is trusted here, one's own included."""
        return [self.public(name) for name, _ in self.names()]

    def signing(self, name: str | None = None) -> SigningKey:
        """The named key, or the only one that can sign.

        Raises:
            NotFoundError: KEY_NOT_FOUND. InputError: KEY_NAME (several, and none is named). RuntimeFault: KEY_FILE,
                KEY_PERMISSIONS, EXTRA_MISSING.
        """
        if name is None:
            own = [known for known, signs in self.names() if signs]
            if len(own) > 1:
                raise InputError("KEY_NAME", f"there are several keys: {', '.join(own)}", help="--key NAME")
            name = own[0] if own else "default"
        path = self._existing(name, ".key")
        with _needs_extra():
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
            from cryptography.hazmat.primitives.serialization import load_pem_private_key
        try:
            private = load_pem_private_key(_read_private(path), None)
        except (ValueError, TypeError):
            private = None
        if not isinstance(private, Ed25519PrivateKey):
            raise RuntimeFault("KEY_FILE", f"`{path.name}` holds no Ed25519 key that can be read") from None
        return SigningKey(private, name)

    def _existing(self, name: str, suffix: str) -> Path:
        path = self.directory / f"{_checked(name)}{suffix}"
        if not path.exists():
            raise NotFoundError(
                "KEY_NOT_FOUND",
                f"there is no {'key' if suffix == '.key' else 'public key'} `{name}` in `{self.directory}`",
                help="`nano-vm keys list` shows those that there are; `nano-vm keys generate` makes one",
                facts={"name": name},
            )
        return path

    def _check_free(self, name: str) -> None:
        _checked(name)
        if any((self.directory / f"{name}{suffix}").exists() for suffix in (".key", ".pub")):
            raise InputError("KEY_EXISTS", f"there is a key `{name}` already", help="choose another name")

    def _write(self, name: str, data: bytes, mode: int) -> None:
        """A new file, whole or not there, and durable when this returns."""
        path = self.directory / name
        draft = self.directory / f".{name}.{os.getpid()}"
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft.unlink(missing_ok=True)  # of a process that died here
            try:
                fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
                with os.fdopen(fd, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.link(draft, path)
            finally:
                draft.unlink(missing_ok=True)
            _sync_directory(self.directory)
            _sync_directory(self.directory.parent)
        except OSError as error:
            raise _file_error(path, error) from None


def _sync_directory(directory: Path) -> None:
    """The name has to survive a power loss as well as the contents. Where a file system does not sync any, the file is
    whole either way."""
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def default_directory() -> Path:
    named = os.environ.get(KEYS_VARIABLE)
    if named:
        return Path(named)
    config = os.environ.get("XDG_CONFIG_HOME")
    return (Path(config) if config else Path.home() / ".config") / "nano-vm" / "keys"


def read_public(path: Path, name: str = "") -> PublicKey:
    """A public key from a PEM file. Raises RuntimeFault KEY_FILE."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX)
    except OSError as error:
        raise _file_error(path, error) from None
    return parse_public(data.decode("utf-8", "replace"), name or path.stem)


def parse_public(text: str, name: str = "") -> PublicKey:
    """A public key from PEM, or from its 32 bytes in base64 or hexadecimal. Raises RuntimeFault KEY_FILE."""
    body = text.strip()
    if body.startswith("-----BEGIN PUBLIC KEY-----") and body.endswith("-----END PUBLIC KEY-----"):
        der = _base64("".join(body.splitlines()[1:-1]))
        if der is not None and der.startswith(_SPKI) and len(der) == len(_SPKI) + 32:
            return PublicKey(der[len(_SPKI) :], name)
    elif re.fullmatch(r"[0-9a-f]{64}", body):
        return PublicKey(bytes.fromhex(body), name)
    else:
        raw = _base64(body)
        if raw is not None and len(raw) == 32:
            return PublicKey(raw, name)
    raise RuntimeFault(
        "KEY_FILE", "this is no Ed25519 public key", help="a PEM file, as `nano-vm keys export` writes it"
    )


def key_of_text(text: str) -> PublicKey:
    """A key as bundles hold it: its 32 bytes in base64, and no other way to write them.

    Raises:
        VerificationError: SIGNATURE_INVALID.
    """
    raw = _base64(text)
    if raw is None or len(raw) != 32:
        raise VerificationError("SIGNATURE_INVALID", "the key in the bundle is no Ed25519 key")
    return PublicKey(raw)


def _base64(text: str) -> bytes | None:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if base64.b64encode(raw).decode() == text else None


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InputError(
            "KEY_NAME", f"`{name[:64]}` cannot be the name of a key", help="letters, digits, `.`, `_`, `-`"
        )
    return name


def _read_private(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise RuntimeFault(
                    "KEY_PERMISSIONS",
                    f"others can read the private key `{path.name}`",
                    help=f"chmod 600 {path}; if others may have read it, make a new key",
                )
            return file.read(FILE_BYTES_MAX)
    except OSError as error:
        raise _file_error(path, error) from None


def _file_error(path: Path, error: OSError) -> RuntimeFault:
    why = (error.strerror or type(error).__name__).lower()
    return RuntimeFault("KEY_FILE", f"the key file `{path}` cannot be used: {why}", help="see --keys DIR")


@contextlib.contextmanager
def _needs_extra() -> Iterator[None]:
    try:
        yield
    except ImportError:
        raise RuntimeFault(
            "EXTRA_MISSING",
            "signatures need the extra `sign`",
            help="pip install 'nano-vm[sign]'",
            facts={"extra": "sign"},
        ) from None
