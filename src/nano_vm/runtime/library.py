"""What an engine knows of programs and policies: compiled once, stored under their hashes, found again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nano_vm import canonical
from nano_vm.errors import NotFoundError, RuntimeFault
from nano_vm.journal.port import DEFAULT_TENANT, JournalStore
from nano_vm.policy.load import PolicySource, load_policy
from nano_vm.policy.model import Policy
from nano_vm.program.compiled import CompiledProgram
from nano_vm.program.model import Program
from nano_vm.runtime.arguments import check_count, check_hash
from nano_vm.runtime.compilations import compiled_before, compiled_for
from nano_vm.runtime.governing import read_policy
from nano_vm.runtime.labelling import Needs
from nano_vm.runtime.patience import patiently
from nano_vm.runtime.plans import Lane
from nano_vm.runtime.ports import Clock, ToolInvoker
from nano_vm.runtime.rulings import Rulings


class Library:
    """Programs and policies, as far as they are known here. The store has them all."""

    def __init__(self, tools: ToolInvoker, store: JournalStore, clock: Clock) -> None:
        self.tools = tools
        self.store = store
        self.clock = clock
        self.proves = True  # off in the tests of what happens where nothing was proved
        self.needs: dict[str, Needs] = {}  # by program hash
        self.lanes: dict[
            tuple[str, bool], Lane
        ] = {}  # how the lane takes a program's steps, without and with labels
        self._checked: dict[str, CompiledProgram] = {}  # by hash, those that were checked against the tools
        self.proved: set[tuple[Any, ...]] = (
            set()
        )  # programs with what they call, and the policy: see `prove_calls`
        self.policy: Policy | None = None
        self._policies: dict[str, Policy] = {}  # those that runs are pinned to, by hash
        self._policies_stored: set[str] = set()
        # By program, pinned policy and policy in force: see `Gate`.
        self.rulings: dict[tuple[str, str | None, str | None], Rulings] = {}
        self._compiled: dict[str, CompiledProgram] = {}
        self._stored: set[tuple[str, str]] = set()  # hashes of programs, and whose name for them is known

    # --- programs ---------------------------------------------------------------------------------------------

    def compile(self, program: Program | Mapping[str, Any]) -> tuple[Program, CompiledProgram]:
        """The compiled form; checked against the registered tools, once per program.

        Raises:
            ProgramError: with `diagnostics`, all findings.
        """
        if not isinstance(program, Program):
            program = Program.from_dict(dict(program) if isinstance(program, Mapping) else program)
        compiled = self._checked.get(program.hash)
        if compiled is None:
            compiled = compiled_for(program, self.tools.schemas(), proved=self.proves, policy=self.policy)
            self._compiled[program.hash] = self._checked[program.hash] = compiled
        return program, compiled

    def forget_compiled(self) -> None:
        """Programs are checked again: the tools have changed."""
        self._checked.clear()
        self.proved.clear()
        self.needs.clear()
        self.lanes.clear()

    def trim_programs(self, most: int) -> None:
        """Keep at most `most` programs compiled: for servers that are sent new ones all the time. Runs under way keep
        theirs. Raises InputError USAGE."""
        check_count("most", most)
        if len(self._compiled) > most:
            self._compiled.clear()
            self.needs.clear()
            self.forget_compiled()
        if len(self._stored) > 10 * most:
            self._stored.clear()

    def load_program(self, program_hash: str) -> CompiledProgram:
        """The compiled form of a stored program. Tools are not checked again: what runs was admitted before.

        Raises:
            NotFoundError: PROGRAM_NOT_FOUND. RuntimeFault: PROGRAM_CHANGED. InputError: USAGE.
        """
        check_hash("program_hash", program_hash)
        compiled = self._compiled.get(program_hash)
        if compiled is None:
            stored = self.store.program(program_hash)
            if canonical.digest(stored) == program_hash:
                compiled = compiled_before(program_hash)
            if compiled is None:
                compiled = compiled_for(self.stored_program(program_hash), None)
            self._compiled[program_hash] = compiled
        return compiled

    def stored_program(self, program_hash: str) -> Program:
        """A program as the store has it.

        Raises:
            NotFoundError: PROGRAM_NOT_FOUND. RuntimeFault: PROGRAM_CHANGED. InputError: USAGE.
        """
        check_hash("program_hash", program_hash)
        program = Program.from_dict(canonical.decode(self.store.program(program_hash))["program"])
        if program.hash != program_hash:
            raise RuntimeFault("PROGRAM_CHANGED", f"the stored program is not {program_hash}")
        return program

    def pin_calls(self, compiled: CompiledProgram, tenant: str = DEFAULT_TENANT) -> dict[str, str]:
        """Resolve the programs that `call` steps name, through the whole tree, to hashes.

        Raises:
            NotFoundError: PROGRAM_NOT_FOUND. RuntimeFault: CALL_RECURSION.
        """
        pinned: dict[str, str] = {}
        for name in compiled.calls:
            self._pin(name, (compiled.hash,), pinned, tenant)
        return pinned

    def _pin(self, name: str, above: tuple[str, ...], pinned: dict[str, str], tenant: str) -> None:
        if name in pinned:
            program_hash = pinned[name]
        elif name.startswith("sha256:"):
            program_hash = name
        else:
            found = self.store.program_named(name, tenant)
            if found is None:
                raise NotFoundError(
                    "PROGRAM_NOT_FOUND",
                    f"no stored program is named `{name}`",
                    help="store it first: vm.save_program(program), or `nano-vm run --program FILE`",
                )
            program_hash = found
        if program_hash in above:
            raise RuntimeFault("CALL_RECURSION", f"the program `{name}` calls itself")
        pinned[name] = program_hash
        for called in self.load_program(program_hash).calls:
            self._pin(called, (*above, program_hash), pinned, tenant)

    # --- policies ---------------------------------------------------------------------------------------------

    def set_policy(self, policy: PolicySource | None) -> None:
        """Put another policy in force, for all that is dispatched from now on. Runs stay pinned to theirs.

        Raises:
            PolicyError: it cannot be accepted; the one in force stays.
        """
        if policy is not None and not isinstance(policy, Policy):
            policy = load_policy(policy)
        self.policy = policy
        self.rulings.clear()
        self._checked.clear()  # what somebody has to approve is no longer untrusted

    def load_policy(self, policy_hash: str) -> Policy:
        """The policy that a run is pinned to. Raises RuntimeFault POLICY_MISSING, InputError USAGE."""
        check_hash("policy_hash", policy_hash)
        policy = self._policies.get(policy_hash)
        if policy is None:
            policy = self._policies[policy_hash] = read_policy(self.store, policy_hash)
        return policy

    async def keep_policy(self, policy: Policy) -> None:
        """Store a policy that something is decided by, so that it can be decided again."""
        if policy.hash not in self._policies_stored:
            now = self.clock.now_ms()
            await patiently(lambda: self.store.put_policy(policy.hash, policy.canonical, now))
            self._policies_stored.add(policy.hash)
            self._policies[policy.hash] = policy

    def is_kept(self, policy: Policy) -> bool:
        return policy.hash in self._policies_stored
