"""Files of evidence on the command line: bundles and checkpoints read and written, and the keys that options name."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from pathlib import Path

from nano_vm.cli.outputs import write_whole
from nano_vm.errors import NotFoundError, RuntimeFault
from nano_vm.evidence.keys import KeyFiles, PublicKey, SigningKey, read_public


def add_keys(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keys",
        metavar="DIR",
        help="where keys are kept (default: $NANO_VM_KEYS, else ~/.config/nano-vm/keys)",
    )


def key_files(args: argparse.Namespace) -> KeyFiles:
    return KeyFiles(args.keys)


def signing_key(args: argparse.Namespace, *, required: bool = False) -> SigningKey | None:
    """The key that `--key` names, else the only one there is, else none.

    Raises:
        NotFoundError: KEY_NOT_FOUND for a key that is named, or required. Else as `KeyFiles.signing`.
    """
    files = key_files(args)
    if args.key is None and not required and not any(signs for _, signs in files.names()):
        return None
    return files.signing(args.key)


def expected_keys(args: argparse.Namespace) -> list[PublicKey]:
    """The keys that `--key` names, each the name of a kept key or a PEM file; without any, all that are kept.

    Raises:
        NotFoundError: KEY_NOT_FOUND. RuntimeFault: KEY_FILE.
    """
    files = key_files(args)
    if not args.key:
        return files.all_public()
    known = {name for name, _ in files.names()}
    found = []
    for text in args.key:
        if text in known:
            found.append(files.public(text))
        elif os.path.exists(text):
            found.append(read_public(Path(text)))
        else:
            raise NotFoundError(
                "KEY_NOT_FOUND",
                f"`{text}` is neither a kept key nor a file",
                help="see `nano-vm keys list`",
                facts={"name": text},
            )
    return found


def read_file(path: str, limit: int) -> bytes:
    """Raises RuntimeFault BUNDLE_FILE for a file that cannot be read, or is larger than `limit` bytes."""
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise _cannot(path, "read", error) from None
    if len(data) > limit:
        raise RuntimeFault("BUNDLE_FILE", f"`{path}` is larger than {limit} bytes")
    return data


def write_file(path: str, parts: Iterable[bytes]) -> None:
    """As `outputs.write_whole`. Raises RuntimeFault BUNDLE_FILE."""
    try:
        write_whole(path, parts)
    except OSError as error:
        raise _cannot(path, "written", error) from None


def _cannot(path: str, done: str, error: OSError) -> RuntimeFault:
    why = (error.strerror or type(error).__name__).lower()
    return RuntimeFault("BUNDLE_FILE", f"`{path}` cannot be {done}: {why}", facts={"path": path})
