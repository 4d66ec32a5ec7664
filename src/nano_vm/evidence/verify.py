"""Verifying a bundle: offline, with the bundle's bytes and the keys one expects, and nothing else.

Every check is reported when it has passed, in order; the first that fails is raised, with what passed before it. No
store, no runtime and no network is imported from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from nano_vm import canonical
from nano_vm.errors import InputError, NanoVMError, NotFoundError, RuntimeFault, VerificationError
from nano_vm.evidence import container, note, sign
from nano_vm.evidence.bundle import (
    compile_stored,
    policies_of,
    program_of,
    tenant_of,
)
from nano_vm.evidence.container import Contents, LogLine
from nano_vm.evidence.family import Calls, Member, child_mismatch, verify_family
from nano_vm.evidence.keys import PublicKey, key_of_text
from nano_vm.evidence.receipt import receipt
from nano_vm.journal import merkle
from nano_vm.journal.disclosure import Disclosure, verify_disclosure
from nano_vm.journal.entry import Entry
from nano_vm.journal.ledger import Ledger
from nano_vm.journal.replay import Verified, verify_run
from nano_vm.journal.storelog import ANNEX, FINISH, START, LogLeaf
from nano_vm.journal.stretch import Watcher
from nano_vm.journal.trace import Trace
from nano_vm.policy.load import stored_policy
from nano_vm.policy.model import Policy
from nano_vm.policy.recheck import Recheck
from nano_vm.program.compiled import CompiledProgram


class Check(NamedTuple):
    """One check that passed. `warns` marks what it leaves open; `run` is set where a bundle holds several."""

    name: str
    detail: str
    run: str | None = None
    warns: bool = False


class VerifiedBundle(NamedTuple):
    """A bundle that verifies. `signer` is the expected key that signed it; None when that is not known."""

    kind: str
    run: str
    receipt: dict[str, Any]
    checks: list[Check]
    signer: PublicKey | None


def is_bundle(head: bytes) -> bool:
    """Whether bytes begin as a bundle does."""
    return head.startswith(b'{"bundle":')


def verify_bundle(
    data: bytes, keys: Sequence[PublicKey] = (), *, accept_unsigned: bool = False
) -> VerifiedBundle:
    """Check everything that can be checked of a bundle, or of a signed receipt: its envelope alone.

    Args:
        keys: the keys that may have signed it. With any, a signature by one of them is required. Without, a signature
            is only checked against the key that came in the bundle, which says nothing about who made it.
        accept_unsigned: a bundle without a signature is acceptable although keys are given.

    Raises:
        VerificationError: facts `check` (the check that failed), `passed` (those before it, as [name, detail]), and
            where one is to blame `seq` (first bad entry), `run`, `line`.
        RuntimeFault: EXTRA_MISSING when there is a signature to check and the extra `sign` is not installed.
    """
    checking = _Checking(keys, accept_unsigned)
    try:
        return checking.signed_receipt(data) if data.startswith(b'{"payload":') else checking.bundle(data)
    except NanoVMError as error:
        error.facts.setdefault("check", checking.at)
        if checking.run is not None:
            error.facts.setdefault("run", checking.run)
        within = error.facts.get("passed", [])
        error.facts["passed"] = [[check.name, check.detail] for check in checking.checks] + within
        raise


class _Checking:
    """One verification: what has passed, and where it stands."""

    def __init__(self, keys: Sequence[PublicKey], accept_unsigned: bool) -> None:
        self.keys = keys
        self.accept_unsigned = accept_unsigned
        self.checks: list[Check] = []
        self.at = "container"
        self.run: str | None = None
        self.signer: PublicKey | None = None

    def bundle(self, data: bytes) -> VerifiedBundle:
        contents = container.read(data)
        lines = data.count(b"\n")
        self._passed(f"{lines} lines in canonical form, {canonical.digest(data)}")
        made = self._run(contents) if contents.kind == container.RUN else self._disclosure(contents)
        self._signature(contents, made)
        return VerifiedBundle(contents.kind, contents.run, made, self.checks, self.signer)

    def signed_receipt(self, data: bytes) -> VerifiedBundle:
        """An envelope by itself: who vouches for what. There is no key in it, so one has to be expected."""
        self.at = "signature"
        try:
            envelope = canonical.decode(data.rstrip(b"\n"))
        except InputError:
            envelope = None
        if type(envelope) is not dict or canonical.encode(envelope) != data.rstrip(b"\n"):
            raise VerificationError("SIGNATURE_INVALID", "this is no envelope in canonical form")
        signatures = envelope.get("signatures")
        first = signatures[0] if type(signatures) is list and signatures else None
        named = first.get("keyid") if type(first) is dict else None
        self.signer = next((key for key in self.keys if key.keyid == named), None)
        if self.signer is None:
            raise VerificationError(
                "SIGNER_UNKNOWN",
                "the receipt is signed with none of the keys that are expected",
                help="get the signer's key from the signer, and `nano-vm keys trust` it, or name it with --key FILE",
            )
        told = canonical.decode(sign.open_envelope(envelope, self.signer))
        kind = told.get("predicateType") if type(told) is dict else None
        if kind != sign.RECEIPT_TYPE or type(told.get("predicate")) is not dict:
            raise VerificationError("SIGNATURE_INVALID", "what was signed is no receipt")
        made: dict[str, Any] = told["predicate"]
        self._passed(f"by `{self.signer.name or named}`, key {named}")
        self.at = "receipt"
        self._passed("taken as it is: the journal would be needed to recompute it", warns=True)
        return VerifiedBundle("receipt", str(made.get("trace_id")), made, self.checks, self.signer)

    def _passed(self, detail: str, run: str | None = None, *, warns: bool = False) -> None:
        self.checks.append(Check(self.at, detail, run, warns))

    # --- a whole run --------------------------------------------------------------------------------------------------
    def _run(self, contents: Contents) -> dict[str, Any]:
        programs = self._programs(contents)
        policies = self._policies(contents)
        if not contents.journals or contents.journals[0][0] != contents.run:
            raise VerificationError(
                "BUNDLE_MALFORMED", "the exported run is not the first", facts={"line": 1}
            )
        erased = 0
        trace: Trace | None = None
        several = len(contents.journals) > 1
        members: dict[str, Member] = {}
        for run, entries in contents.journals:
            self.run = run
            self.at = "chain"
            program = self._program_of(programs, entries)
            # The exported run is folded once, for its transitions and for its receipt.
            ledger = Ledger(program) if run == contents.run else None
            recheck = self._recheck(program, policies, run, entries)
            calls = Calls(program)
            watchers = (recheck, calls) if program.calls else (recheck,)
            verified = self._fold(contents, program, run, entries, ledger, watchers)
            members[run] = Member(program, entries, verified.state, calls.given, recheck.closed)
            if recheck.decisions or recheck.unchecked:
                rest = f", {recheck.unchecked} about what cannot be read" if recheck.unchecked else ""
                verified.steps.append(
                    ("decisions", f"{recheck.decisions} made again from the policies{rest}")
                )
            if ledger is not None:
                trace = Trace(program, run, partial(list, entries), folded=(verified.state, ledger))
            self.checks += [
                Check(name, detail, run if several else None, name in ("closed", "shared"))
                for name, detail in verified.steps
            ]
            erased += sum(entry.payload is None and b'"commitment"' in entry.facts for entry in entries)
        self.run = None
        self._children(contents, members)
        assert trace is not None
        made = self._receipt(contents, trace)
        self.at = "erased"
        if erased:
            detail = f"{erased} payloads are gone: what was decided from them cannot be re-checked any more"
            self._passed(detail, warns=True)
        self._log(contents)
        return made

    def _fold(
        self,
        contents: Contents,
        program: CompiledProgram,
        run: str,
        entries: Sequence[Entry],
        ledger: Ledger | None,
        watchers: Sequence[Watcher],
    ) -> Verified:
        try:
            return verify_run(
                program,
                None,
                entries,
                run,
                ledger=ledger,
                watchers=watchers,
                notes=contents.recall.get(run),
            )
        except RuntimeFault as fault:
            if fault.code != "NO_KEYS":
                raise
            # Offline there are no keys: what the bundle says of its sealed values does not lead where the journal goes.
            facts = {**fault.facts, "code": fault.code}
            raise VerificationError("REPLAY_MISMATCH", fault.message, facts=facts) from None

    def _programs(self, contents: Contents) -> dict[str, CompiledProgram]:
        self.at = "programs"
        programs = {}
        hashes = []
        for stored in contents.programs:
            hashes.append(canonical.digest(stored))
            programs[hashes[-1]] = compile_stored(stored)
        if hashes != sorted(set(hashes)):
            raise VerificationError("BUNDLE_MALFORMED", "the programs are not in order", facts={"line": 2})
        used = {program_of(entries) for _, entries in contents.journals}
        if used != set(hashes):
            raise VerificationError(
                "PROGRAM_CHANGED", "the programs are not those that the runs are pinned to"
            )
        self._passed(", ".join(f"`{program.name}` is {key}" for key, program in programs.items()))
        return programs

    def _policies(self, contents: Contents) -> dict[str, Policy]:
        self.at = "policies"
        hashes = [canonical.digest(body) for body in contents.policies]
        if hashes != policies_of(contents.journals):
            raise VerificationError("POLICY_UNKNOWN", "the policies are not those that the journals name")
        policies: dict[str, Policy] = {}
        for policy_hash, body in zip(hashes, contents.policies, strict=True):
            try:
                policies[policy_hash] = stored_policy(body)
            except NanoVMError:
                raise VerificationError(
                    "POLICY_UNKNOWN",
                    f"what is kept as {policy_hash} is no policy",
                    facts={"policy": policy_hash},
                ) from None
        if policies:
            self._passed(", ".join(policies))
        return policies

    def _recheck(
        self,
        program: CompiledProgram,
        policies: dict[str, Policy],
        run: str,
        entries: Sequence[Entry],
    ) -> Recheck:
        """Who decides again what the run's policies decided."""

        def find(policy_hash: str) -> Policy:
            if policy_hash not in policies:
                raise NotFoundError("POLICY_NOT_FOUND", f"the bundle has no policy {policy_hash}")
            return policies[policy_hash]

        closed = any(not entry.salt and b'"commitment"' in entry.facts for entry in entries)
        return Recheck(program, find, tenant_of(run), closed)

    def _program_of(self, programs: dict[str, CompiledProgram], entries: Sequence[Entry]) -> CompiledProgram:
        return programs[program_of(entries)]

    def _children(self, contents: Contents, members: dict[str, Member]) -> None:
        """The other runs are the children that the journals name, in the order they are named."""
        self.at = "children"
        if len(members) != len(contents.journals):
            raise child_mismatch(contents.run, "a run is there twice")
        verify_family(contents.run, members)
        if len(members) > 1:
            self._passed(f"{len(members) - 1} child runs, each as its parent knows it")

    def _receipt(self, contents: Contents, trace: Trace) -> dict[str, Any]:
        self.at = "receipt"
        made = receipt(trace)
        try:
            written = canonical.encode(made)
        except InputError:  # numbers that no honest run comes to
            written = None
        if written != contents.receipt:
            raise VerificationError("RECEIPT_MISMATCH", "the receipt is not what the journal comes to")
        self._passed(f"{made['status']}, recomputed byte for byte, {canonical.digest(contents.receipt)}")
        return made

    # --- chosen steps -------------------------------------------------------------------------------------------------
    def _disclosure(self, contents: Contents) -> dict[str, Any]:
        self.at = "receipt"
        claimed: dict[str, Any] = canonical.decode(contents.receipt)
        root, size = _claims(claimed, contents.run)
        self.at = "entries"
        last = -1
        payloads = 0
        for line in contents.shown:
            has_payload = line.salt != ""
            payload = bytes(line.payload) if has_payload else None  # type: ignore[arg-type]
            entry = Entry(line.seq, line.digest, bytes(line.facts), bytes.fromhex(line.salt), payload)
            if line.seq <= last or line.size != size:
                raise VerificationError(
                    "BUNDLE_MALFORMED", "the entries are out of order", facts={"seq": line.seq}
                )
            last = line.seq
            verify_disclosure(
                Disclosure(entry=entry, size=size, proof=_nodes(line.proof)), contents.run, root
            )
            payloads += has_payload
        if not contents.shown or contents.programs or contents.logs:
            raise VerificationError(
                "BUNDLE_MALFORMED", "this is not what a disclosure holds", facts={"line": 1}
            )
        self._passed(
            f"{len(contents.shown)} of {size} entries, {payloads} with what they recorded, under {root}"
        )
        self.at = "receipt"
        self._passed(
            "taken as it is: the entries that are not shown would be needed to recompute it", warns=True
        )
        return claimed

    # --- log and signature --------------------------------------------------------------------------------------------
    def _log(self, contents: Contents) -> None:
        self.at = "log"
        if not contents.logs:
            return
        if contents.signature is None or len(contents.logs) != len(contents.journals):
            raise VerificationError(
                "BUNDLE_MALFORMED", "a checkpoint belongs to a signature, and one to each run"
            )
        key = self._expected(contents)
        checkpoint, _ = note.verify_note(contents.logs[0].checkpoint, [key])
        if len(note.parse_note(contents.logs[0].checkpoint).signatures) != 1:
            raise VerificationError("NOTE_MALFORMED", "the checkpoint in a bundle has one signature")
        for line, (run, entries) in zip(contents.logs, contents.journals, strict=True):
            if line.checkpoint != contents.logs[0].checkpoint:
                raise VerificationError("CHECKPOINT_MISMATCH", "the runs are under different checkpoints")
            _check_leaf(line, checkpoint, run, entries)
        self._passed(
            f"in the log `{checkpoint.origin}` of {checkpoint.size} leaves, root {checkpoint.root.hex()}"
        )

    def _expected(self, contents: Contents) -> PublicKey:
        """The key that the bundle is signed with, which must be among those expected, if any are."""
        assert contents.signature is not None
        carried = key_of_text(contents.signature.key)
        if not self.keys:
            return carried
        for key in self.keys:
            if key.raw == carried.raw:
                self.signer = key
                return key
        raise VerificationError(
            "SIGNER_UNKNOWN",
            f"the bundle is signed with {carried.keyid}, which is none of the keys that are expected",
            help="get the signer's key from the signer, not from the bundle, and `nano-vm keys trust` it",
            facts={"keyid": carried.keyid},
        )

    def _signature(self, contents: Contents, made: dict[str, Any]) -> None:
        self.at = "signature"
        if contents.signature is None:
            if self.keys and not self.accept_unsigned:
                raise VerificationError(
                    "SIGNATURE_MISSING",
                    "the bundle is not signed, and a signature is expected",
                    help="--unsigned accepts it; anybody could have made it",
                )
            self._passed("none: whoever made the bundle could have made up all of it", warns=True)
            return
        key = self._expected(contents)
        payload = sign.open_envelope(contents.signature.envelope, key)
        heads = [(run, entries[-1].digest) for run, entries in contents.journals]
        kind = sign.RECEIPT_TYPE
        if contents.kind == container.DISCLOSURE:
            heads, kind = [(contents.run, made["hashes"]["head"])], sign.DISCLOSURE_TYPE
        expected = sign.statement(
            made,
            heads,
            kind,
            contents=f"sha256:{contents.held}",
            checkpoint=contents.logs[0].checkpoint if contents.logs else None,
        )
        if payload != expected:
            raise VerificationError("SIGNATURE_INVALID", "what was signed is not what the bundle holds")
        if self.signer is None:
            detail = (
                f"made with the key {key.keyid} that came in the bundle: it proves nothing about who signed"
            )
        else:
            detail = f"by `{self.signer.name or self.signer.keyid}`, key {key.keyid}"
        self._passed(detail, warns=self.signer is None)


def _check_leaf(line: LogLine, checkpoint: note.Checkpoint, run: str, entries: Sequence[Entry]) -> None:
    leaf = line.leaf
    seq = leaf.get("seq")
    known = type(seq) is int and 0 <= seq < len(entries) and set(leaf) == {"digest", "kind", "run", "seq"}
    if not known or leaf["run"] != run or leaf["digest"] != entries[leaf["seq"]].digest:
        raise VerificationError(
            "CHECKPOINT_MISMATCH", "the leaf of the log is not of this run", facts={"run": run}
        )
    if leaf["kind"] not in (START, FINISH, ANNEX):
        raise VerificationError(
            "CHECKPOINT_MISMATCH", "the leaf is of no kind that logs have", facts={"run": run}
        )
    hashed = LogLeaf(leaf["digest"], leaf["kind"], run, leaf["seq"]).hash
    merkle.verify_inclusion(hashed, line.index, checkpoint.size, _nodes(line.proof), checkpoint.root)


def _claims(claimed: Any, run: str) -> tuple[str, int]:
    """What a disclosure takes from its receipt: the root of the disclosure tree and the number of entries."""
    try:
        root, size, trace_id, head = (
            claimed["hashes"]["disclosure_root"],
            claimed["entries"],
            claimed["trace_id"],
            claimed["hashes"]["head"],
        )
    except (KeyError, TypeError):
        root = size = trace_id = head = None
    if type(root) is not str or type(size) is not int or type(head) is not str or trace_id != run:
        raise VerificationError("RECEIPT_MISMATCH", "the receipt is not one of this run")
    return root, size


def _nodes(proof: Sequence[str]) -> tuple[bytes, ...]:
    try:
        nodes = tuple(bytes.fromhex(node) for node in proof)
    except ValueError:
        nodes = ()
    if len(nodes) != len(proof) or any(
        len(node) != 32 or node.hex() != text for node, text in zip(nodes, proof, strict=False)
    ):
        raise VerificationError("PROOF_INVALID", "the proof holds something that is no digest")
    return nodes
