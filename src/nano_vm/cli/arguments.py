"""Options that several commands share, and what their values mean."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from nano_vm.errors import InputError

STORE_DEFAULT = "nano-vm.db"
STORE_VARIABLE = "NANO_VM_STORE"
# Options before the command that take a value: needed to find the command.
VALUE_OPTIONS = ("--store", "--durability", "--principal", "--as", "--role", "--tenant", "--key-file")


class Parser(argparse.ArgumentParser):
    """An argument parser that raises our errors and exits with our codes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, add_help=True, **options)

    def error(self, message: str) -> NoReturn:
        raise InputError("USAGE", _lowered(message), help=f"see `{self.prog} --help`")


def _lowered(message: str) -> str:
    # argparse quotes user text in single quotes; ours stands in backticks.
    return (message[:1].lower() + message[1:]).replace("'", "`")


def global_defaults() -> argparse.Namespace:
    return argparse.Namespace(
        store=None,
        durability="full",
        json=False,
        debug=False,
        quiet=False,
        principal=None,
        role=[],
        key_file=None,
        tenant=None,
    )


def add_global(parser: argparse.ArgumentParser) -> None:
    """Options that every command takes, before or after its name."""
    group = parser.add_argument_group("options of every command")
    keep = argparse.SUPPRESS  # what was said before the command stands
    if "--store" not in parser._option_string_actions:  # `bench --store` says which kind
        group.add_argument(
            "--store",
            metavar="PATH",
            default=keep,
            help=f"the database: a file or postgresql://… (default: ${STORE_VARIABLE}, else ./{STORE_DEFAULT})",
        )
    group.add_argument(
        "--durability",
        choices=("full", "normal"),
        default=keep,
        help="full: synced to disk in every commit (default); normal: survives a dying process only",
    )
    group.add_argument(
        "--json", action="store_true", default=keep, help="one JSON document on standard output"
    )
    group.add_argument("--quiet", action="store_true", default=keep, help="no progress and no notes")
    group.add_argument("--debug", action="store_true", default=keep, help="tracebacks of errors")
    group.add_argument(
        "--key-file",
        metavar="FILE",
        default=keep,
        help="the vault's key-encryption key (default: $NANO_VM_VAULT_KEY, else the database's name and `.key`)",
    )
    # `trace --as` says for whom a run is shown.
    short = [] if "--as" in parser._option_string_actions else ["--as"]
    group.add_argument(
        "--principal",
        *short,
        metavar="ID",
        default=keep,
        help="who acts; recorded in the journal. nano-vm does not authenticate: it takes your word for it",
    )
    group.add_argument(
        "--tenant", metavar="NAME", default=keep, help="whose runs: nothing of other tenants is seen"
    )
    group.add_argument(
        "--role",
        metavar="ROLE",
        action="append",
        default=keep,
        help="a role the principal holds (repeatable): one of yours, or viewer, operator, approver, auditor, admin",
    )


def add_tools(parser: argparse.ArgumentParser) -> None:
    """`--tools` and `--model`: what a run needs to go on."""
    parser.add_argument(
        "--tools",
        metavar="FILE",
        action="append",
        default=[],
        help="a Python file (or module) with tools: its @tool functions, else its public functions (repeatable)",
    )
    parser.add_argument(
        "--model",
        metavar="SPEC",
        help="mock:TEXT, mock:@FILE, script:FILE, openai:MODEL, http(s)://HOST/v1#MODEL, litellm:MODEL, or pool:FILE",
    )
    parser.add_argument("--base-url", metavar="URL", help="endpoint for --model openai:MODEL")
    parser.add_argument("--prices", metavar="FILE", help="what models cost: YAML or JSON")
    parser.add_argument("--cache", action="store_true", help="give kept answers to what was asked before")
    parser.add_argument("--record", metavar="TAPE", help="write the model's answers down")
    parser.add_argument("--replay", metavar="TAPE", help="answer from a recorded tape, without a model")
    parser.add_argument(
        "--policy",
        metavar="FILE",
        help="what runs may do: new runs are pinned to it, others have to be allowed by it as well as by their own",
    )


def store_path(args: argparse.Namespace) -> str:
    """The database: a file, or the address of a PostgreSQL database, which may hold a password."""
    path: str = args.store or os.environ.get(STORE_VARIABLE) or STORE_DEFAULT
    return path


_WHOLE = re.compile(r"-?[0-9]{1,300}")
_NUMBER = re.compile(r"-?([0-9]{1,300}(\.[0-9]{0,300})?|\.[0-9]{1,300})([eE][+-]?[0-9]{1,4})?")


def whole(text: str) -> int:
    """The `type` of options that take a whole number: plain digits, and none of what else `int` understands."""
    if not _WHOLE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"`{text[:100]}` is no whole number")
    return int(text)


def number(text: str) -> float:
    """The `type` of options that take a number, which is finite."""
    if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise argparse.ArgumentTypeError(f"`{text[:100]}` is no number")
    return float(text)


def is_address(path: str) -> bool:
    return path.startswith(("postgresql://", "postgres://"))


def shown_store(args: argparse.Namespace) -> str:
    """The database as it may be shown: without a password. Raises InputError USAGE for an address that is none."""
    path = store_path(args)
    if not is_address(path):
        return path
    from nano_vm.stores.postgres.connection import Address

    return Address(path).name


def beside_store(args: argparse.Namespace) -> str:
    """What the names of files that belong to the database begin with: they lie beside it, and those of a PostgreSQL
    database in the working directory, under its name.

    Raises:
        InputError: USAGE for an address that is none.
        StoreError: STORE_IO, STORE_FOREIGN for what cannot be a database.
    """
    path = store_path(args)
    if not is_address(path):
        return _fit(path)
    from nano_vm.stores.postgres.connection import Address

    return Address(path).database


def gateway_store(args: argparse.Namespace) -> str:
    """The database of a gateway, beside which it keeps what it knows.

    Raises:
        InputError: USAGE for an address. StoreError: STORE_IO, STORE_FOREIGN for what cannot be a database.
    """
    path = store_path(args)
    if is_address(path):
        raise InputError(
            "USAGE",
            "the gateway keeps what it knows in a SQLite file",
            help="name a file with --store, or `store` in its configuration",
        )
    return _fit(path)


def _fit(path: str) -> str:
    from nano_vm.stores.sqlite_schema import refuse_no_file

    refuse_no_file(Path(path))
    return path


def principal(args: argparse.Namespace) -> dict[str, Any] | None:
    """Who acts, as the engine takes it.

    Raises:
        InputError: USAGE for roles that nobody holds.
    """
    if args.principal is None:
        if args.role:
            raise InputError("USAGE", "a role needs somebody who holds it", help="add --principal ID")
        return None
    if not args.principal:
        raise InputError("USAGE", "the principal is empty", help="--principal ID")
    tenant = {} if args.tenant is None else {"tenant": args.tenant}
    return {"id": args.principal, "roles": list(dict.fromkeys(args.role)), **tenant}


def json_value(text: str, option: str) -> Any:
    """JSON given on the command line; `@FILE` reads a file, `-` standard input.

    Raises:
        InputError: USAGE when it is not JSON or cannot be read.
    """
    source = f"the value of {option}"
    if text == "-":
        text, source = sys.stdin.read(), "standard input"
    elif text.startswith("@"):
        source = f"`{text[1:]}`"
        try:
            text = Path(text[1:]).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise InputError(
                "USAGE", f"cannot read {source}: {reason.lower()}", help=f"{option} @FILE names a JSON file"
            ) from error
    try:
        return json.loads(text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_pairs)
    except (ValueError, RecursionError) as error:
        where = (
            f" (line {error.lineno}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        )
        raise InputError(
            "USAGE", f"{source} is not JSON{where}", help="strings are quoted: '\"text\"'; files: @FILE"
        ) from error


def value_or_text(text: str) -> Any:
    """The value of `k=v`: JSON if it is JSON, else the text itself."""
    try:
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_pairs)
    except (ValueError, RecursionError):
        return text


def assignments(pairs: Sequence[str], option: str) -> dict[str, Any]:
    """`name=value` options as a dict.

    Raises:
        InputError: USAGE for a missing `=` or a name given twice.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InputError("USAGE", f"`{pair}` is not name=value", help=f"{option} amount=250")
        if name in found:
            raise InputError("USAGE", f"`{name}` is given twice", help=f"one {option} per name")
        found[name] = value_or_text(value)
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError("a number beyond all that a float can be")
    return value


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("the same key twice")
    return found
