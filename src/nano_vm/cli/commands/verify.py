"""Prove that the database and the journals are untouched and that every transition is right.

  nano-vm verify            every run, and the database itself
  nano-vm verify ID…        these runs
  nano-vm verify FILE…      evidence bundles (`nano-vm export`) and signed receipts (`nano-vm receipt --sign`), offline:
                            no database is opened

exit codes: 0 everything verifies, 5 something does not (the first bad entry is named)
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from nano_vm.cli import evidence_files, exits
from nano_vm.cli.console import Console, printable
from nano_vm.cli.failures import as_json
from nano_vm.errors import InputError, NanoVMError, NotFoundError
from nano_vm.journal.port import RunQuery

if TYPE_CHECKING:
    from nano_vm.cli.session import Session
    from nano_vm.evidence.keys import PublicKey

PAGE = 500
DETAILED_MAX = 10  # of more runs only the outcome is shown, not each step
_MEANINGS = {
    "decisions": "the policies decide as recorded",
    "limits": "what limits have counted is still counted",
    "own limits": "no decision under a limit per run has seen less than the journal shows",
    "chain": "every entry has its digest, its place and the entry before it",
    "commitments": "every payload is the one committed to",
    "transitions": "the kernel takes every entry, from the start",
    "verdicts": "every condition comes out as recorded",
    "closed": "what can no longer be read is named",
    "ending": "nothing but annexes follows the end",
    "record": "the run's record agrees with its journal",
    "container": "the bundle is written in the one way it can be",
    "programs": "the programs are those that the runs are pinned to",
    "policies": "the policies are those that the journals name",
    "children": "the child runs are those that their parents know",
    "receipt": "the receipt is what the journal comes to",
    "log": "the runs are in the store's log, under a signed checkpoint",
    "signature": "who vouches for it",
    "entries": "each shown entry stands where it says",
    "erased": "what is gone",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_ids", metavar="ID|FILE", nargs="*", help="runs (default: all), or bundles")
    parser.add_argument("--all", action="store_true", help="every run in the database")
    parser.add_argument(
        "--key",
        metavar="NAME|FILE",
        action="append",
        help="bundles: a key that may have signed (default: every key that is kept; see `nano-vm keys`)",
    )
    parser.add_argument("--unsigned", action="store_true", help="bundles: accept one without a signature")
    evidence_files.add_keys(parser)


def execute(args: argparse.Namespace, console: Console) -> int:
    if args.all and args.run_ids:
        raise InputError("USAGE", "either --all or run ids", help="leave one of them out")
    files = [name for name in args.run_ids if os.path.isfile(name)]
    if files:
        return _bundles(args, console, files)
    from nano_vm.cli.session import Session

    with Session(args) as session:
        run_ids = list(dict.fromkeys(args.run_ids)) or all_runs(session)
        proof = Proof(console, detailed=len(run_ids) <= DETAILED_MAX)
        if not args.run_ids:
            proof.store(session)
        for run_id in run_ids:
            proof.run(session, run_id)
        return proof.conclude()


def _bundles(args: argparse.Namespace, console: Console, files: list[str]) -> int:
    """Bundles, without a database, a tool, a model or a network."""
    if len(files) != len(args.run_ids):
        other = next(name for name in args.run_ids if name not in files)
        raise InputError(
            "USAGE", f"`{other[:100]}` is no file, and the others are", help="either runs or bundles"
        )
    keys = evidence_files.expected_keys(args)
    proof = Proof(console, detailed=len(files) <= DETAILED_MAX)
    for name in dict.fromkeys(files):
        proof.bundle(name, keys, accept_unsigned=args.unsigned)
    return proof.conclude()


def all_runs(session: Session) -> list[str]:
    """Ids of all runs, children included, newest first."""
    found: list[str] = []
    after = None
    while page := session.store.records(RunQuery(after=after, limit=PAGE)):
        found += [record.run_id for record in page]
        after = page[-1].run_id
    return found


class Proof:
    """A proof, step by step, each shown as it is made."""

    def __init__(self, console: Console, *, detailed: bool) -> None:
        self.console = console
        self.detailed = detailed and not console.quiet
        self.number = 0
        self.problems: list[str] = []
        self.runs: list[dict[str, Any]] = []
        self.failures = 0

    def store(self, session: Session) -> None:
        """The file itself: its structure, and the seal or hash of every row."""
        self.problems = session.store.integrity()
        for problem in self.problems:
            self.failures += 1
            self._bad("store", printable(problem))
        if not self.problems:
            self._good("store", "the database file and every row of it are sound")

    def run(self, session: Session, run_id: str) -> None:
        """One run's journal.

        Raises:
            NotFoundError: RUN_NOT_FOUND.
        """
        session.store.record(run_id)
        if self.detailed:
            self.console.line(f"run {printable(run_id)}", "bold")
        try:
            verified = session.engine.verify(run_id)
        except NanoVMError as error:
            self._failed(run_id, error)
            return
        self._passed(verified.steps)
        if not self.detailed and not self.console.quiet:
            self.console.line(f"      {self.console.symbol('good')} run {printable(run_id)}")
        status = verified.state.status.value
        steps = [{"check": name, "detail": detail} for name, detail in verified.steps]
        self.runs.append({"trace_id": run_id, "ok": True, "status": status, "steps": steps, "error": None})

    def bundle(self, path: str, keys: Sequence[PublicKey], *, accept_unsigned: bool) -> None:
        """One evidence bundle.

        Raises:
            RuntimeFault: BUNDLE_FILE; EXTRA_MISSING when there is a signature that cannot be checked here.
        """
        from nano_vm.evidence.container import BYTES_MAX
        from nano_vm.evidence.verify import verify_bundle

        data = evidence_files.read_file(path, BYTES_MAX)
        if self.detailed:
            self.console.line(f"bundle {printable(path)}", "bold")
        try:
            verified = verify_bundle(data, keys, accept_unsigned=accept_unsigned)
        except NanoVMError as error:
            self._failed(path, error)
            return
        for check in verified.checks:
            where = f"run {printable(check.run)}: " if check.run is not None else ""
            text = f"{where}{_MEANINGS.get(check.name, '')}: {printable(check.detail)}"
            self._good(check.name, text, "unknown" if check.warns else "good")
        if not self.detailed and not self.console.quiet:
            self.console.line(f"      {self.console.symbol('good')} bundle {printable(path)}")
        self.runs.append(
            {
                "trace_id": verified.run,
                "bundle": path,
                "kind": verified.kind,
                "ok": True,
                "status": verified.receipt.get("status"),
                "signer": None if verified.signer is None else verified.signer.keyid,
                "steps": [{"check": c.name, "detail": c.detail, "warns": c.warns} for c in verified.checks],
                "error": None,
            }
        )

    def _failed(self, run_id: str, error: NanoVMError) -> None:
        lost = isinstance(error, NotFoundError)  # what the run was made of is gone
        if error.exit_code != exits.VERIFICATION and error.fault.value != "tampering" and not lost:
            raise error
        self.failures += 1
        passed = error.facts.get("passed", [])
        if not self.detailed:
            self.console.line(f"run {printable(run_id)}", "bold")
        self._passed(passed)
        named = "seq" in error.facts and "entry" not in error.message
        where = f"entry {error.facts['seq']}: " if named else ""
        self._bad(str(error.facts.get("check", "journal")), f"{error.code} {where}{printable(error.message)}")
        self.runs.append(
            {
                "trace_id": run_id,
                "ok": False,
                "status": None,
                "steps": [{"check": name, "detail": detail} for name, detail in passed],
                "error": as_json(error),
            }
        )

    def _passed(self, steps: Iterable[Sequence[str]]) -> None:
        for name, detail in steps:
            self._good(name, f"{_MEANINGS.get(name, '')}: {detail}")

    def _good(self, name: str, text: str, symbol: str = "good") -> None:
        self.number += 1
        if self.detailed:
            self._show(symbol, name, text)

    def _bad(self, name: str, text: str) -> None:
        self.number += 1
        self._show("bad", name, text)

    def _show(self, symbol: str, name: str, text: str) -> None:
        mark = self.console.style(self.console.symbol(symbol), "warn" if symbol == "unknown" else symbol)
        self.console.line(f"{self.number:>4}. {mark} {name:<11}  {text}")

    def conclude(self) -> int:
        code = exits.VERIFICATION if self.failures else exits.DONE
        self.console.document(
            {"ok": not self.failures, "store": self.problems, "runs": self.runs, "exit_code": code}
        )
        count = f"{len(self.runs)} run" + ("" if len(self.runs) == 1 else "s")
        if self.failures:
            self.console.line(f"NOT VERIFIED: {self.failures} of {self.number} checks fail", "bad")
        else:
            self.console.line(f"VERIFIED: {count}, {self.number} checks", "good")
        return code
