"""One table of codes: everything that is raised is in it, everything in it is raised, and the page shows it."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path
from typing import NamedTuple

import pytest

from nano_vm.errors import CODES, Fault, NanoVMError

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "nano_vm"
EXIT_CODES = {0, 1, 2, 3, 4, 5, 6, 7, 70}
ERRORS = {
    "NanoVMError",
    "ProgramError",
    "PolicyError",
    "InputError",
    "ConflictError",
    "RejectedError",
    "StoreError",
    "NotFoundError",
    "VerificationError",
    "CapabilityDeniedError",
    "RuntimeFault",
    "VaultError",
    "Rejection",
    "Diagnostic",
    "Problem",
    "SchemaFinding",
    "ExprError",
}


class Codes(NamedTuple):
    """What a look at all modules tells."""

    made: list[tuple[str, str]]  # where an error is made, and with which code
    texts: set[str]  # of all modules but the one that holds the table


@pytest.fixture(scope="module")
def codes() -> Codes:
    found = Codes([], set())
    for path in sorted(PACKAGE.rglob("*.py")):
        has_table = path == PACKAGE / "errors.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and not has_table:
                found.texts.add(node.value)
            if not (isinstance(node, ast.Call) and node.args):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            first = node.args[0]
            if name in ERRORS and isinstance(first, ast.Constant) and type(first.value) is str:
                found.made.append((f"{path.name}:{node.lineno}", first.value))
    return found


def test_every_code_that_an_error_is_made_with_is_in_the_table(codes: Codes) -> None:
    assert len(codes.made) > 100
    assert [place for place in codes.made if place[1] not in CODES] == []


def test_every_code_in_the_table_is_used(codes: Codes) -> None:
    assert sorted(set(CODES) - codes.texts) == []


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_code_says_what_it_means(code: str) -> None:
    entry = CODES[code]
    assert code.isupper()
    assert isinstance(entry.fault, Fault)
    assert entry.exit_code in EXIT_CODES - {0, 6}
    assert entry.summary
    assert not entry.summary.endswith(".")
    assert (entry.fault is Fault.BUG) == (entry.exit_code == 70)
    assert (entry.fault is Fault.TAMPERING) <= (entry.exit_code == 5)


def test_an_error_survives_a_process_boundary_with_its_facts() -> None:
    error = NanoVMError("USAGE", "no such flag", help="see --help", facts={"flag": "--x"})
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.code, copy.help, copy.facts) == (
        NanoVMError,
        "USAGE",
        "see --help",
        {"flag": "--x"},
    )
