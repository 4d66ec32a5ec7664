"""Which runs track labels, and which need keys: decided once, when a run starts, for it and all runs below it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from nano_vm.errors import RuntimeFault
from nano_vm.program.compiled import CompiledProgram, ToolAction

if TYPE_CHECKING:
    from nano_vm.runtime.engine import Engine


class Needs(NamedTuple):
    """What a run needs: `labels` are tracked; values are `sealed`, that is stored encrypted only."""

    labels: bool
    sealed: bool


def needs_of(engine: Engine, compiled: CompiledProgram, pinned: Iterable[str] = ()) -> Needs:
    """What a run of this program needs, `pinned` being the hashes of the programs it calls at any depth. A child's
    needs are its parent's: a value keeps its label on the way there and back."""
    needs = _own_needs(engine, compiled)
    for called in pinned:
        below = _own_needs(engine, engine.load_program(called))
        needs = Needs(needs.labels or below.labels, needs.sealed or below.sealed)
    return needs


def _own_needs(engine: Engine, compiled: CompiledProgram) -> Needs:
    known = engine.needs.get(compiled.hash)
    if known is None:
        specs = [engine.tools.spec(tool) for tool in tools_of(compiled)]
        schemas = [spec.schema for spec in specs if spec is not None]
        known = engine.needs[compiled.hash] = Needs(
            compiled.labelled or any(schema.is_labelled for schema in schemas),
            compiled.sealed or any(schema.output_label == "secret" for schema in schemas),
        )
    return known


def tools_of(compiled: CompiledProgram) -> set[str]:
    """The tools that a program may call, compensations included."""
    found = set()
    for step in compiled.steps:
        if type(step.action) is ToolAction:
            found.add(step.action.tool)
        if step.compensation is not None:
            found.add(step.compensation.tool)
    return found


def require_keys(engine: Engine, needs: Needs) -> None:
    """Private and secret values are stored encrypted, or the run does not start.

    Raises:
        RuntimeFault: NO_KEYS when the engine has nothing to encrypt them with.
    """
    if needs.sealed and getattr(engine, "keys", None) is None:
        raise RuntimeFault(
            "NO_KEYS",
            "the program has private or secret values, and there are no keys to store them under",
            help="give the engine a key store, or remove `private` and `label: secret`",
        )
