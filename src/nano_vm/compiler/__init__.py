"""load -> resolve -> check -> lower. `spec/compile.md` is the normative text."""

from nano_vm.compiler.pipeline import ProgramValidator, Report, check, compile_program

__all__ = ["ProgramValidator", "Report", "check", "compile_program"]
