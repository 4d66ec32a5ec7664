"""The store's log: sign what it holds now, and find out later whether anything has vanished.

  nano-vm log checkpoint [-o FILE]   a signed checkpoint; keep it where nobody who can write the database can write
  nano-vm log verify FILE…           the log is still the one that these checkpoints were made of
  nano-vm log consistency FILE       the same, and the proof that the log only grew
  nano-vm log prove ID               proof that a run's last head is in the log
  nano-vm log show                   the leaves

A run that was deleted, changed or replaced since a checkpoint is found: exit code 5.
"""

from __future__ import annotations

import argparse
import base64
from typing import TYPE_CHECKING

from nano_vm.cli import evidence_files, exits
from nano_vm.cli.console import Console, printable
from nano_vm.cli.session import open_store
from nano_vm.errors import InputError
from nano_vm.evidence.note import NOTE_BYTES_MAX, check_origin, sign_checkpoint, verify_note

if TYPE_CHECKING:
    from nano_vm.evidence.log import Log

ACTIONS = ("checkpoint", "verify", "consistency", "prove", "show")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=ACTIONS, help="what to do")
    parser.add_argument("subjects", metavar="FILE|ID", nargs="*", help="checkpoints, or the run to prove")
    parser.add_argument("-o", "--output", metavar="FILE", help="write the checkpoint or proof here")
    parser.add_argument(
        "--key",
        metavar="NAME|FILE",
        action="append",
        help="the key to sign with, or a key that may have signed (default: the only one; every kept one)",
    )
    parser.add_argument(
        "--origin", metavar="NAME", help="name of the log (default: made from its first leaf)"
    )
    evidence_files.add_keys(parser)


def execute(args: argparse.Namespace, console: Console) -> int:
    from nano_vm.evidence.log import Log

    _check_usage(args)
    store = open_store(args)
    try:
        log = Log(store)
        run = store.record(args.subjects[0]).run_id if args.action == "prove" else None
    finally:
        store.close()
    if args.action == "show":
        return _show(log, console)
    if args.action in ("verify", "consistency"):
        return _compare(args, console, log)
    return _sign(args, console, log, run)


def _check_usage(args: argparse.Namespace) -> None:
    wanted = {"prove": (1, 1), "consistency": (1, 1), "verify": (1, 1_000)}.get(args.action, (0, 0))
    if not wanted[0] <= len(args.subjects) <= wanted[1]:
        what = (
            "a run's id"
            if args.action == "prove"
            else "the file of a checkpoint"
            if wanted[0]
            else "nothing more"
        )
        raise InputError("USAGE", f"`log {args.action}` takes {what}", help="see `nano-vm log --help`")


def _sign(args: argparse.Namespace, console: Console, log: Log, run: str | None) -> int:
    """A checkpoint of the log as it is, alone or behind a proof (C2SP tlog-proof)."""
    if args.key and len(args.key) > 1:
        raise InputError("USAGE", "one key signs", help="name one --key")
    index = -1 if run is None else log.last_of(run)
    key = evidence_files.key_files(args).signing(args.key[0] if args.key else None)
    checkpoint = log.checkpoint(None if args.origin is None else check_origin(args.origin))
    text = note = sign_checkpoint(checkpoint, key)
    document = {
        "origin": checkpoint.origin,
        "size": checkpoint.size,
        "root": checkpoint.root.hex(),
        "note": note,
    }
    if index >= 0:
        nodes = log.inclusion(index, checkpoint.size)
        hashes = "".join(base64.b64encode(node).decode() + "\n" for node in nodes)
        text = f"c2sp.org/tlog-proof@v1\nindex {index}\n{hashes}\n{note}"
        leaf = log.leaves[index].to_dict()
        document |= {"index": index, "leaf": leaf, "proof": [node.hex() for node in nodes]}
    if args.output:
        evidence_files.write_file(args.output, [text.encode()])
        console.line(f"{args.action} of {checkpoint.size} leaves written to {printable(args.output)}")
    else:
        console.line(text.removesuffix("\n"))
    console.document(document)
    return exits.DONE


def _compare(args: argparse.Namespace, console: Console, log: Log) -> int:
    """Raises VerificationError CHECKPOINT_MISMATCH when something has vanished or was changed since."""
    keys = evidence_files.expected_keys(args)
    found = []
    for path in args.subjects:
        data = evidence_files.read_file(path, NOTE_BYTES_MAX)
        old, key = verify_note(data.decode("utf-8", "replace"), keys)
        nodes = log.consistency(old)
        found.append(
            {"file": path, "origin": old.origin, "size": old.size, "proof": [n.hex() for n in nodes]}
        )
        console.line(
            f"{printable(path)}: {old.size} leaves, signed by `{key.name}`: all still there, unchanged"
        )
        if args.action == "consistency":
            for node in nodes:
                console.line(f"  {base64.b64encode(node).decode()}")
    now = log.checkpoint()
    console.line(f"the log has {now.size} leaves now, root {now.root.hex()}", "good")
    console.document({"ok": True, "size": now.size, "root": now.root.hex(), "checkpoints": found})
    return exits.DONE


def _show(log: Log, console: Console) -> int:
    console.document({"origin": log.origin, "leaves": [leaf.to_dict() for leaf in log.leaves]})
    for index, leaf in enumerate(log.leaves):
        console.line(f"{index:>7}  {leaf.kind:<6}  {printable(leaf.run)}  entry {leaf.seq}  {leaf.digest}")
    return exits.DONE
