"""Show a run's receipt: what it came to, without anything that could be erased.

nano-vm receipt ID                the receipt as JSON, in canonical bytes
nano-vm receipt ID --narrative    in plain sentences
nano-vm receipt ID --sign         as a DSSE envelope over an in-toto statement, signed with your key
"""

from __future__ import annotations

import argparse

from nano_vm import canonical
from nano_vm.cli import evidence_files, exits
from nano_vm.cli.console import Console, printable
from nano_vm.cli.session import Session
from nano_vm.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", metavar="ID", help="the run's trace id")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--narrative", action="store_true", help="plain sentences")
    form.add_argument("--sign", action="store_true", help="a signed envelope")
    parser.add_argument("--key", metavar="NAME", help="the key to sign with (default: the only one)")
    evidence_files.add_keys(parser)


def execute(args: argparse.Namespace, console: Console) -> int:
    from nano_vm.evidence.narrative import narrative
    from nano_vm.evidence.receipt import receipt

    if args.key and not args.sign:
        raise InputError("USAGE", "--key names the key to sign with", help="add --sign")
    with Session(args) as session:
        trace = session.engine.trace(args.run_id)
        made = receipt(trace)
        head = trace.head
    if args.sign:
        from nano_vm.evidence.sign import sign, statement

        key = evidence_files.signing_key(args, required=True)
        assert key is not None
        made = sign(statement(made, [(made["trace_id"], head)]), key)
    if console.json_only:
        console.document(made)
    elif args.narrative:
        console.line(printable(narrative(made).rstrip("\n"), keep_newlines=True))
    else:
        console.line(canonical.encode(made).decode())
    return exits.DONE
