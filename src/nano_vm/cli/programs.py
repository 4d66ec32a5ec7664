"""Program files: reading, checking, and showing what is wrong with them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from nano_vm.cli.console import Console
from nano_vm.compiler import Report
from nano_vm.errors import ProgramError
from nano_vm.policy.check import check
from nano_vm.policy.model import Policy
from nano_vm.program import document as documents
from nano_vm.program.diagnostic import render, to_error
from nano_vm.program.model import Program
from nano_vm.program.source import BYTES_MAX
from nano_vm.program.tool_schema import ToolSchema


def read_document(path: str) -> documents.Document:
    """A program file; `-` is standard input.

    Raises:
        ProgramError: PROGRAM_UNREADABLE.
    """
    if path != "-":
        return documents.from_file(path)
    data = sys.stdin.buffer.read(BYTES_MAX + 1)
    text = data.lstrip()
    return documents.from_json(data, "<stdin>") if text[:1] == b"{" else documents.from_yaml(data, "<stdin>")


def check_file(
    path: str,
    tools: Mapping[str, ToolSchema] | None = None,
    programs: Mapping[str, Program] | None = None,
    policy: Policy | None = None,
) -> Report:
    """Everything that is wrong with a program file. Raises ProgramError PROGRAM_UNREADABLE."""
    return check(read_document(path), tools, programs, policy)


def admit(
    console: Console,
    path: str,
    tools: Mapping[str, ToolSchema],
    programs: Mapping[str, Program] | None,
) -> Program:
    """A program that may run; its warnings are shown.

    Raises:
        ProgramError: with `diagnostics` and the `source` they point into.
    """
    document = read_document(path)
    report = check(document, tools, programs)
    if not report.ok:
        error = to_error(list(report.diagnostics))
        error.source = report.source  # type: ignore[attr-defined]
        raise error
    for finding in report.warnings:
        console.note(render(finding, report.source), "warn")
    return Program(document)


def findings_json(report: Report) -> list[dict[str, Any]]:
    return [finding.to_dict() for finding in report.diagnostics]


__all__ = ["ProgramError", "Report", "admit", "check_file", "findings_json", "read_document"]
