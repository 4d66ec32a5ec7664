"""Which runs track labels, and which need keys: decided once, when a run starts, for it and all runs below it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from nano_vm.errors import RuntimeFault
from nano_vm.policy.check import governance, tools_in, under_called
from nano_vm.program.compiled import CompiledProgram
from nano_vm.program.diagnostic import ERROR, sort, to_error
from nano_vm.program.model import Program

if TYPE_CHECKING:
    from nano_vm.runtime.engine import Engine
    from nano_vm.runtime.library import Library


class Needs(NamedTuple):
    """What a run needs: `labels` are tracked; values are `sealed`, that is stored encrypted only."""

    labels: bool
    sealed: bool


def needs_of(engine: Library, compiled: CompiledProgram, pinned: Iterable[str] = ()) -> Needs:
    """What a run of this program needs, `pinned` being the hashes of the programs it calls at any depth. A child's
    needs are its parent's: a value keeps its label on the way there and back."""
    needs = _own_needs(engine, compiled)
    for called in pinned:
        below = _own_needs(engine, engine.load_program(called))
        needs = Needs(needs.labels or below.labels, needs.sealed or below.sealed)
    return needs


def _own_needs(engine: Library, compiled: CompiledProgram) -> Needs:
    known = engine.needs.get(compiled.hash)
    if known is None:
        specs = [engine.tools.spec(tool) for tool in tools_in(compiled)]
        schemas = [spec.schema for spec in specs if spec is not None]
        known = engine.needs[compiled.hash] = Needs(
            compiled.labelled or any(schema.is_labelled for schema in schemas),
            compiled.sealed or any(schema.output_label == "secret" for schema in schemas),
        )
    return known


def prove_calls(
    engine: Engine,
    program: Program,
    compiled: CompiledProgram,
    pinned: Mapping[str, str],
    *,
    labels: bool,
) -> None:
    """Look into the programs that a program calls: only now is it known which these are. Values are followed into them
    where `labels` are tracked, and the policy in force is held against them.

    Raises:
        ProgramError: TAINTED_PARAMETER, SECRET_IN_PROMPT, DENIED_TOOL or GUARD_MISSED, with `diagnostics`.
    """
    policy = engine.policy
    known = (program.hash, "" if policy is None else policy.hash, *sorted(pinned.items()))
    if known in engine.proved:
        return

    def lookup(name: str) -> CompiledProgram | None:
        return engine.load_program(pinned[name]) if name in pinned else None

    def find(name: str) -> Program | None:
        return engine.stored_program(pinned[name]) if name in pinned else None

    schemas = engine.tools.schemas()
    findings = list(governance(program.document, compiled, schemas, lookup, policy)) if labels else []
    if policy is not None:
        findings += under_called(policy, program.document, compiled, find, lookup, schemas)
    findings = sort(findings)
    if any(finding.severity == ERROR for finding in findings):
        raise to_error(findings)
    engine.proved.add(known)


def require_keys(engine: Engine, needs: Needs) -> None:
    """Private and secret values are stored encrypted, or the run does not start.

    Raises:
        RuntimeFault: NO_KEYS when the engine has nothing to encrypt them with.
    """
    if needs.sealed and engine.keys is None and engine.make_keys is not None:
        engine.keys = engine.make_keys()
    if needs.sealed and engine.keys is None:
        raise RuntimeFault(
            "NO_KEYS",
            "the program has private or secret values, and there are no keys to store them under",
            help="give the engine a vault: ExecutionVM(vault=Vault.beside(…)), or `nano-vm vault init`",
        )
