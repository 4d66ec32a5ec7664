"""Findings as SARIF 2.1.0, for editors and code review."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from nano_vm.program.diagnostic import Diagnostic

SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


class Findings(Protocol):
    """Whatever has findings: the report of a program or of a policy."""

    @property
    def diagnostics(self) -> Sequence[Diagnostic]: ...


def _uri(path: str) -> str:
    """A reference as RFC 3986 has it: of a name with a blank or a `#` others would read another one."""
    if path == "-":
        return "stdin"
    return (
        Path(path).absolute().as_uri()
        if os.path.isabs(path)
        else quote(os.fsencode(path.replace(os.sep, "/")))
    )


def sarif(reports: Sequence[tuple[str, Findings]]) -> dict[str, Any]:
    """Returns one run with the findings of all files; `-` stands for standard input."""
    from nano_vm import __version__
    from nano_vm.errors import CODES

    results, rules = [], {}
    for path, report in reports:
        for finding in report.diagnostics:
            place = finding.place
            rules[finding.code] = {
                "id": finding.code,
                "shortDescription": {
                    "text": CODES[finding.code].summary if finding.code in CODES else finding.code
                },
            }
            physical: dict[str, Any] = {"artifactLocation": {"uri": _uri(path)}}
            if place.line:
                physical["region"] = {
                    "startLine": place.line,
                    "startColumn": max(place.column, 1),
                    "endColumn": max(place.column, 1) + finding.length,
                }
            text = finding.message if finding.help is None else f"{finding.message}\nhelp: {finding.help}"
            results.append(
                {
                    "ruleId": finding.code,
                    "level": finding.severity,
                    "message": {"text": text},
                    "locations": [
                        {
                            "physicalLocation": physical,
                            "logicalLocations": [{"fullyQualifiedName": place.path or "/"}],
                        }
                    ],
                }
            )
    driver = {"name": "nano-vm", "version": __version__, "rules": [rules[code] for code in sorted(rules)]}
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
    document: dict[str, Any] = json.loads(
        json.dumps({"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]})
    )
    return document
