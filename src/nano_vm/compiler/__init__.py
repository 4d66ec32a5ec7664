"""load -> resolve -> check -> lower. `spec/compile.md` is the normative text."""

from nano_vm.compiler.dump import dump
from nano_vm.compiler.pipeline import Report, check, compile_program
from nano_vm.compiler.report import as_human, as_json, as_sarif

__all__ = [
    "Report",
    "as_human",
    "as_json",
    "as_sarif",
    "check",
    "compile_program",
    "dump",
]
