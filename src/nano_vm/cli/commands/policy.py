"""Check policy files, or explain what a policy decides about one call and why. Nothing is executed.

  nano-vm policy check refunds.policy.yaml --tools refund_tools.py
  nano-vm policy explain refunds.policy.yaml refund --args '{"amount": 250}' --principal ana --role clerk

exit codes: 0 no errors, or allowed · 2 unreadable file · 3 errors · explain: 4 denied · 6 an approval is asked for
"""

from __future__ import annotations

import argparse
import math
import sys
from typing import TYPE_CHECKING, Any

from nano_vm.cli import exits
from nano_vm.cli.arguments import json_value, number, principal, whole
from nano_vm.cli.console import Console, printable
from nano_vm.cli.sarif import sarif
from nano_vm.errors import InputError
from nano_vm.program import document as documents
from nano_vm.program.diagnostic import render
from nano_vm.program.source import BYTES_MAX

if TYPE_CHECKING:
    from nano_vm.policy import Decision, Policy, PolicyReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("check", "explain"), help="what to do")
    parser.add_argument("file", metavar="FILE", help="the policy: YAML or JSON; - is standard input")
    parser.add_argument("name", metavar="TOOL", nargs="?", help="explain: the tool that is to be called")
    parser.add_argument(
        "--model", metavar="NAME", help="explain: the model that is to be called, instead of a tool"
    )
    parser.add_argument(
        "--args", metavar="JSON", default="{}", help="explain: the arguments: JSON, @FILE or -"
    )
    parser.add_argument(
        "--run",
        metavar="JSON",
        default="{}",
        help="explain: what is known of the run: `program`, `program_hash`, `id`, `started_at_ms`",
    )
    parser.add_argument(
        "--done",
        metavar="NAME",
        action="append",
        default=[],
        help="explain: a tool, or a step as step:ID, that has succeeded before (repeatable)",
    )
    parser.add_argument(
        "--private",
        metavar="NAME",
        action="append",
        default=[],
        help="explain: an argument that is private (repeatable)",
    )
    parser.add_argument(
        "--tokens", metavar="N", type=whole, default=0, help="explain: most tokens that the model call takes"
    )
    parser.add_argument(
        "--cost-usd", metavar="X", type=number, help="explain: what the model call costs at most"
    )
    parser.add_argument(
        "--tools",
        metavar="FILE",
        action="append",
        default=[],
        help="check: also tool and argument names against it",
    )
    parser.add_argument("--format", choices=("human", "json", "sarif"), default=None, help="(default: human)")


def execute(args: argparse.Namespace, console: Console) -> int:
    if args.format is not None:
        console.json_only = args.format != "human"
    if args.action == "check":
        if args.name is not None or args.model is not None:
            raise InputError("USAGE", "check takes one FILE", help="nano-vm policy check FILE")
        return _check(args, console)
    if (args.name is None) == (args.model is None):
        raise InputError(
            "USAGE", "explain needs a tool, or --model NAME", help="nano-vm policy explain FILE TOOL"
        )
    return _explain(args, console)


def _report(args: argparse.Namespace) -> PolicyReport:
    from nano_vm.policy.load import check_policy, read_policy

    schemas = None
    if args.tools:
        from nano_vm.cli.toolfiles import load_tools

        schemas = load_tools(args.tools).schemas()
    if args.file != "-":
        return check_policy(read_policy(args.file), schemas)
    data = sys.stdin.buffer.read(BYTES_MAX + 1)
    read = documents.from_json if data.lstrip()[:1] == b"{" else documents.from_yaml
    return check_policy(read(data, "<stdin>"), schemas)


# --- check --------------------------------------------------------------------------------------------------


def _check(args: argparse.Namespace, console: Console) -> int:
    report = _report(args)
    name = "<stdin>" if args.file == "-" else args.file
    if args.format == "sarif":
        console.document(sarif([(args.file, report)]))
    else:
        console.document(_document(name, report))
    name = printable(name)
    for finding in report.diagnostics:
        console.line(render(finding, report.source), "bad" if finding.severity == "error" else "warn")
    policy = report.policy
    if policy is None:
        console.line(f"{console.symbol('bad')} {name}: {_count(len(report.errors), 'error')}", "bad")
        return exits.INVALID
    warnings = f", {_count(len(report.warnings), 'warning')}" if report.warnings else ""
    what = f"{policy.name} {policy.version}, {_count(len(policy.rules), 'rule')}{warnings}"
    console.line(f"{console.symbol('good')} {name}: {what}", "good")
    if not console.quiet:
        console.line(f"  {policy.hash}", "dim")
    return exits.DONE


def _document(name: str, report: PolicyReport) -> dict[str, Any]:
    policy = report.policy
    return {
        "file": name,
        "ok": report.ok,
        "policy": None
        if policy is None
        else {
            "name": policy.name,
            "version": policy.version,
            "hash": policy.hash,
            "rules": len(policy.rules),
        },
        "errors": len(report.errors),
        "warnings": len(report.warnings),
        "findings": [finding.to_dict() for finding in report.diagnostics],
        "exit_code": exits.DONE if report.ok else exits.INVALID,
    }


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


# --- explain ------------------------------------------------------------------------------------------------


def _explain(args: argparse.Namespace, console: Console) -> int:
    from nano_vm.policy.decide import Request, explain
    from nano_vm.policy.load import policy_error

    report = _report(args)
    policy = report.policy
    if policy is None:
        raise policy_error(report)
    given = json_value(args.args, "--args")
    if type(given) is not dict:
        raise InputError(
            "USAGE", "--args is an object of arguments by name", help="--args '{\"amount\": 250}'"
        )
    kind, name = ("tool", args.name) if args.model is None else ("model", args.model)
    done = frozenset(each if each.startswith(("step:", "tool:")) else f"tool:{each}" for each in args.done)
    who = principal(args)
    request = Request(
        kind=kind,
        name=name,
        args=given if kind == "tool" else {"model": name, "params": {}, **given},
        principal=None if who is None else {"tenant": "default", **who},
        run=_run(args.run),
        done=done,
        private=frozenset(args.private),
        tokens=args.tokens,
        cost_nanousd=None if args.cost_usd is None else math.ceil(args.cost_usd * 1_000_000_000),
    )
    decision, verdicts = explain(policy, request)
    code = {"allow": exits.DONE, "ask": exits.SUSPENDED, "deny": exits.DENIED}[decision.decision]
    console.document(
        {
            "decision": decision.decision,
            "rule": decision.rule,
            "reason": decision.reason,
            "detail": decision.detail,
            "policy": {"name": policy.name, "hash": policy.hash},
            "rules": [verdict._asdict() for verdict in verdicts],
            "approvals": [
                {
                    "rule": ask.rule,
                    "roles": list(ask.approval.roles),
                    "four_eyes": ask.approval.four_eyes,
                    "count": ask.approval.count,
                    "expiry_ms": ask.approval.expiry_ms,
                }
                for ask in decision.asks
            ],
            "exit_code": code,
        }
    )
    _tell(console, policy, decision, kind, name)
    for verdict in verdicts:
        detail = f" ({verdict.detail})" if verdict.detail else ""
        source = next((rule.source for rule in policy.rules if rule.id == verdict.rule), None)
        when = f"  when {source}" if source else ""
        console.line(f"  {verdict.rule}: {verdict.decision}, {verdict.outcome}{detail}{when}", "dim")
    return code


_OF_A_RUN = {"id": str, "program": str, "program_hash": str, "started_at_ms": int}


def _run(given: str) -> dict[str, Any]:
    """What conditions read as `$run`. What nobody has said is not there: a condition that asks for it denies."""
    run = json_value(given, "--run")
    if type(run) is not dict or any(type(value) is not _OF_A_RUN.get(name) for name, value in run.items()):
        raise InputError(
            "USAGE",
            f"--run is an object of {', '.join(_OF_A_RUN)}",
            help='--run \'{"program": "refund"}\'',
        )
    return run


_WHY = {
    "RULE": "the rule says so",
    "DEFAULT": "no rule applies, and the policy's default holds",
    "REQUIRES": "has not succeeded before",
    "LIMIT": "is reached",
    "CONDITION": "its condition cannot be evaluated",
}


def _tell(console: Console, policy: Policy, decision: Decision, kind: str, name: str) -> None:
    style = {"allow": "good", "ask": "warn", "deny": "bad"}[decision.decision]
    words = {"allow": "allowed", "ask": "needs an approval", "deny": "denied"}[decision.decision]
    detail = f"{decision.detail} " if decision.detail else ""
    console.line(
        f"{kind} {name}: {words} by `{decision.rule}` of {policy.name}: {detail}{_WHY[decision.reason]}",
        style,
    )
    for ask in decision.asks:
        approval = ask.approval
        eyes = ", not by whoever started the run" if approval.four_eyes else ""
        console.line(f"  {ask.rule}: {approval.count} of {', '.join(approval.roles)}{eyes}")
