"""Compiled programs that the engines of a process share.

A compiled program is data that nobody changes, and a function of the program's hash and of the tools it was checked
against: an engine that is made for a single run need not compile anew what another one has compiled.
"""

from __future__ import annotations

from collections.abc import Mapping

from nano_vm.compiler import compile_program
from nano_vm.policy.check import compile_checked
from nano_vm.policy.model import Policy
from nano_vm.program.compiled import CompiledProgram
from nano_vm.program.model import Program
from nano_vm.program.tool_schema import ToolSchema

COMPILED_MAX = 256

_Key = tuple[str, tuple[tuple[str, int], ...] | None, str]
# The schemas are kept, so that their ids stay theirs.
_compiled: dict[_Key, tuple[CompiledProgram, tuple[ToolSchema, ...]]] = {}


def compiled_for(
    program: Program,
    tools: Mapping[str, ToolSchema] | None,
    *,
    proved: bool = False,
    policy: Policy | None = None,
) -> CompiledProgram:
    """The compiled form of a program, checked against `tools` if given; `proved`: also where its values may flow, in a
    run under this policy.

    Raises:
        ProgramError: with `diagnostics`, all findings; nothing is kept of a program that has errors.
    """
    key = _key(program.hash, tools, ("" if not proved else "proved" if policy is None else policy.hash))
    known = _compiled.get(key)
    if known is None:
        compiled = (
            compile_checked(program, tools, policy=policy) if proved else compile_program(program, tools)
        )
        known = (compiled, () if tools is None else tuple(tools.values()))
        _compiled[key] = known
        while len(_compiled) > COMPILED_MAX:
            try:
                del _compiled[next(iter(_compiled))]
            except (KeyError, RuntimeError, StopIteration):
                break  # another thread makes room
    return known[0]


def compiled_before(program_hash: str) -> CompiledProgram | None:
    """The compiled form of a program that was compiled in this process without tools, else None."""
    known = _compiled.get((program_hash, None, ""))
    return None if known is None else known[0]


def _key(program_hash: str, tools: Mapping[str, ToolSchema] | None, proved: str) -> _Key:
    if tools is None:
        return program_hash, None, proved
    return program_hash, tuple([(name, id(schema)) for name, schema in tools.items()]), proved
