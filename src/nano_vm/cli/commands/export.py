"""Write a self-contained evidence bundle that anybody can verify offline.

  nano-vm export ID -o run.bundle                      the run, its programs, journals, child runs and receipt
  nano-vm export ID -o part.bundle --disclose STEP…    the chosen steps alone, with proofs of their place

The bundle is signed when there is a key (`nano-vm keys generate`), and then proves its place in the store's log. A
whole bundle holds inputs and outputs in clear. `nano-vm verify run.bundle` checks it.
"""

from __future__ import annotations

import argparse

from nano_vm.cli import evidence_files, exits
from nano_vm.cli.console import Console, printable
from nano_vm.cli.session import Session
from nano_vm.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", metavar="ID", help="the run's trace id")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="where to write the bundle")
    parser.add_argument("--disclose", metavar="STEP", nargs="+", default=[], help="show these steps only")
    parser.add_argument(
        "--key", metavar="NAME", help="the key to sign with (default: the only one, if there is one)"
    )
    parser.add_argument("--unsigned", action="store_true", help="do not sign, even with a key")
    parser.add_argument(
        "--origin", metavar="NAME", help="name of the log in the checkpoint (default: made from it)"
    )
    evidence_files.add_keys(parser)


def execute(args: argparse.Namespace, console: Console) -> int:
    from nano_vm import canonical
    from nano_vm.evidence.bundle import export, export_steps

    if args.unsigned and args.key:
        raise InputError("USAGE", "either --key or --unsigned", help="leave one of them out")
    key = None if args.unsigned else evidence_files.signing_key(args)
    with Session(args) as session:
        store, opened = session.store, session.engine.read
        if args.disclose:
            steps = list(dict.fromkeys(args.disclose))
            made = export_steps(store, args.run_id, steps, key=key, opened=opened)
        else:
            made = export(store, args.run_id, key=key, origin=args.origin, opened=opened)
    evidence_files.write_file(args.output, [made.data])
    digest = canonical.digest(made.data)
    console.document(
        {
            "file": args.output,
            "bytes": len(made.data),
            "digest": digest,
            "runs": made.runs,
            "entries": made.entries,
            "signed_by": made.signed_by,
        }
    )
    what = f"{len(args.disclose)} steps of run" if args.disclose else "run"
    console.line(f"{what} {printable(args.run_id)}: {made.entries} entries of {len(made.runs)} runs")
    console.line(f"  bundle  {printable(args.output)}, {len(made.data)} bytes, {digest}")
    if made.signed_by is None:
        console.note(
            "  not signed: whoever gets it has to take your word (`nano-vm keys generate` makes a key)",
            "warn",
        )
    else:
        console.line(f"  signed  by `{made.signed_by}`")
    return exits.DONE
