"""Make and keep the keys that sign evidence, and those of others that you trust.

nano-vm keys generate [NAME]       a new key pair (Ed25519); the private key's file is yours alone
nano-vm keys list                  all keys
nano-vm keys export NAME           the public key, to give to those who verify
nano-vm keys trust FILE --name N   keep somebody's public key; `verify` then expects it
nano-vm keys distrust NAME         forget it
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nano_vm.cli import evidence_files, exits
from nano_vm.cli.console import Console, printable
from nano_vm.errors import InputError
from nano_vm.evidence.keys import KeyFiles, read_public
from nano_vm.evidence.note import check_origin, verifier_key

ACTIONS = ("generate", "list", "export", "trust", "distrust")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=ACTIONS, help="what to do")
    parser.add_argument("subject", metavar="NAME|FILE", nargs="?", help="the key, or the file to trust")
    parser.add_argument(
        "--name", metavar="NAME", help="trust: what to call the key (default: the file's name)"
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="export: write here instead of standard output"
    )
    parser.add_argument(
        "--note",
        metavar="ORIGIN",
        help="export: as the verifier key of a log, `origin+hash+key` (C2SP signed-note)",
    )
    evidence_files.add_keys(parser)


def execute(args: argparse.Namespace, console: Console) -> int:
    files = evidence_files.key_files(args)
    if args.action != "list" and args.action != "generate" and args.subject is None:
        raise InputError(
            "USAGE", f"`keys {args.action}` needs a name or a file", help="see `nano-vm keys --help`"
        )
    if args.action == "list":
        return _list(files, console)
    if args.action == "generate":
        key = files.generate(args.subject or "default")
        console.document({"name": key.name, "keyid": key.public.keyid, "directory": str(files.directory)})
        console.line(f"key `{key.name}`, {key.public.keyid}")
        console.line(
            f"  private  {files.directory / (key.name + '.key')}: keep it safe, there is no other copy"
        )
        console.line(f"  public   {files.directory / (key.name + '.pub')}: give it to those who verify")
    elif args.action == "export":
        return _export(args, files, console)
    elif args.action == "trust":
        trusted = read_public(Path(args.subject), args.name or "")
        files.trust(trusted.name, trusted)
        console.document({"name": trusted.name, "keyid": trusted.keyid})
        console.line(f"trusted: `{trusted.name}`, {trusted.keyid}")
    else:
        files.distrust(args.subject)
        console.document({"name": args.subject})
        console.line(f"no longer trusted: `{printable(args.subject)}`")
    return exits.DONE


def _list(files: KeyFiles, console: Console) -> int:
    rows = [(name, signs, files.public(name).keyid) for name, signs in files.names()]
    console.document(
        {"keys": [{"name": name, "signs": signs, "keyid": keyid} for name, signs, keyid in rows]}
    )
    for name, signs, keyid in rows:
        console.line(f"{name:<20}  {'yours' if signs else 'trusted':<8}  {keyid}")
    if not rows:
        console.line(f"no keys in {files.directory}; `nano-vm keys generate` makes one")
    return exits.DONE


def _export(args: argparse.Namespace, files: KeyFiles, console: Console) -> int:
    key = files.public(args.subject)
    text = key.pem if args.note is None else verifier_key(check_origin(args.note), key) + "\n"
    if args.output:
        evidence_files.write_file(args.output, [text.encode()])
    elif not console.json_only:
        console.line(text.rstrip("\n"))
    console.document({"name": key.name, "keyid": key.keyid, "key": text})
    return exits.DONE
