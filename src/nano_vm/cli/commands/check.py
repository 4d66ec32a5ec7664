"""Check program files; nothing is executed.

  nano-vm check refund.yaml --tools refund_tools.py --policy refund.policy.yaml

exit codes: 0 no errors (warnings are shown), 2 unreadable file or tools, 3 errors
"""

from __future__ import annotations

import argparse
from typing import Any

from nano_vm.cli import exits
from nano_vm.cli.console import Console, printable
from nano_vm.cli.programs import check_file, findings_json
from nano_vm.cli.sarif import sarif
from nano_vm.compiler import Report
from nano_vm.program.diagnostic import render
from nano_vm.program.model import Program


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", metavar="FILE", nargs="+", help="programs: YAML or JSON; - is standard input"
    )
    parser.add_argument(
        "--tools",
        metavar="FILE",
        action="append",
        default=[],
        help="also check tool names and arguments against it",
    )
    parser.add_argument(
        "--program", metavar="FILE", action="append", default=[], help="a program that call steps name"
    )
    parser.add_argument(
        "--policy", metavar="FILE", help="also find denied tools, and ways that miss what a policy requires"
    )
    parser.add_argument("--format", choices=("human", "json", "sarif"), default=None, help="(default: human)")


def execute(args: argparse.Namespace, console: Console) -> int:
    form = args.format or ("json" if args.json else "human")
    console.json_only = form != "human"
    schemas = None
    if args.tools:
        from nano_vm.cli.toolfiles import load_tools

        schemas = load_tools(args.tools).schemas()
    programs: dict[str, Program] | None = None
    if args.program:
        programs = {}
        for path in args.program:
            called = Program.from_file(path)
            programs[called.name] = called
            programs[called.hash] = called
    policy = None
    if args.policy:
        from nano_vm.policy import load_policy

        policy = load_policy(args.policy)
    reports = [(path, check_file(path, schemas, programs, policy)) for path in args.files]
    if form == "human":
        _show(console, reports)
    elif form == "sarif":
        console.document(sarif(reports))
    else:
        console.document(_document(reports))
    return exits.DONE if all(report.ok for _, report in reports) else exits.INVALID


def _show(console: Console, reports: list[tuple[str, Report]]) -> None:
    for path, report in reports:
        for finding in report.diagnostics:
            console.line(render(finding, report.source), "bad" if finding.severity == "error" else "warn")
        errors, warnings = len(report.errors), len(report.warnings)
        name = "<stdin>" if path == "-" else printable(path)
        if report.compiled is not None:
            what = f"{report.compiled.name} {report.compiled.version}, {len(report.compiled.steps)} steps"
            rest = f", {_count(warnings, 'warning')}" if warnings else ""
            console.line(f"{console.symbol('good')} {name}: {what}{rest}", "good")
            if not console.quiet:
                console.line(f"  {report.compiled.hash}", "dim")
        else:
            console.line(
                f"{console.symbol('bad')} {name}: {_count(errors, 'error')}, {_count(warnings, 'warning')}",
                "bad",
            )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _document(reports: list[tuple[str, Report]]) -> dict[str, Any]:
    files = []
    for path, report in reports:
        compiled = report.compiled
        files.append(
            {
                "file": "<stdin>" if path == "-" else path,
                "ok": report.ok,
                "program": None if compiled is None else {"name": compiled.name, "hash": compiled.hash},
                "errors": len(report.errors),
                "warnings": len(report.warnings),
                "findings": findings_json(report),
            }
        )
    ok = all(report.ok for _, report in reports)
    return {"ok": ok, "files": files, "exit_code": exits.DONE if ok else exits.INVALID}
