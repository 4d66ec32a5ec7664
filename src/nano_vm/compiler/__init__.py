"""load -> resolve -> check -> lower. `spec/compile.md` is the normative text."""

from nano_vm.compiler.dump import dump
from nano_vm.compiler.pipeline import ProgramValidator, Report, check, compile_program
from nano_vm.compiler.report import as_human, as_json, as_sarif

__all__ = [
    "ProgramValidator",
    "Report",
    "as_human",
    "as_json",
    "as_sarif",
    "check",
    "compile_program",
    "dump",
]
