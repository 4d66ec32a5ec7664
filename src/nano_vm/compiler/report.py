"""Reports as text: for people, for programs (JSON), and for code scanners (SARIF 2.1.0)."""

from __future__ import annotations

import json
from typing import Any

from nano_vm.compiler.pipeline import Report
from nano_vm.errors import CODES
from nano_vm.program.diagnostic import ERROR, Diagnostic, render

_SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def as_human(report: Report) -> str:
    """Returns all findings with source lines and carets, and a last line that counts them."""
    blocks = [render(finding, report.source) for finding in report.diagnostics]
    errors, warnings = len(report.errors), len(report.warnings)
    name = report.file or "program"
    if not report.diagnostics:
        total = f"{name}: no findings"
    else:
        total = f"{name}: {_count(errors, 'error')}, {_count(warnings, 'warning')}"
    return "\n\n".join([*blocks, total])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def as_json(report: Report) -> str:
    """Returns `{"ok", "file", "errors", "warnings", "findings": [...]}`; findings as `Diagnostic.to_dict`."""
    body = {
        "ok": report.ok,
        "file": report.file,
        "errors": len(report.errors),
        "warnings": len(report.warnings),
        "findings": [finding.to_dict() for finding in report.diagnostics],
    }
    return json.dumps(body, indent=2, ensure_ascii=False)


def as_sarif(report: Report, version: str = "0") -> str:
    """Returns a SARIF 2.1.0 log with one run; `version` is that of the tool."""
    codes = sorted({finding.code for finding in report.diagnostics})
    rules = [
        {
            "id": code,
            "shortDescription": {"text": CODES[code].summary if code in CODES else code},
        }
        for code in codes
    ]
    driver = {
        "name": "nano-vm",
        "version": version,
        "informationUri": "https://pypi.org/project/nano-vm/",
        "rules": rules,
    }
    run: dict[str, Any] = {
        "tool": {"driver": driver},
        # Columns here count characters; SARIF's default is UTF-16 units.
        "columnKind": "unicodeCodePoints",
        "results": [_result(finding, codes.index(finding.code)) for finding in report.diagnostics],
    }
    return json.dumps(
        {"$schema": _SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2, ensure_ascii=False
    )


def _result(finding: Diagnostic, rule: int) -> dict[str, Any]:
    place = finding.place
    text = finding.message if finding.help is None else f"{finding.message}\nhelp: {finding.help}"
    location: dict[str, Any] = {}
    if place.file is not None or place.line:
        physical: dict[str, Any] = {"artifactLocation": {"uri": _uri(place.file)}}
        if place.line:
            physical["region"] = {
                "startLine": place.line,
                "startColumn": max(1, place.column),
                "endColumn": max(1, place.column) + finding.length,
            }
        location["physicalLocation"] = physical
    if place.path or place.step:
        location["logicalLocations"] = [{"fullyQualifiedName": place.path, "name": place.step or place.path}]
    return {
        "ruleId": finding.code,
        "ruleIndex": rule,
        "level": "error" if finding.severity == ERROR else "warning",
        "message": {"text": text},
        "locations": [location] if location else [],
    }


def _uri(file: str | None) -> str:
    name = (file or "program").replace("\\", "/")
    safe = "-._~/"
    return "".join(
        c if c.isascii() and (c.isalnum() or c in safe) else "".join(f"%{b:02X}" for b in c.encode())
        for c in name
    )
