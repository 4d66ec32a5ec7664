"""Have a model write a program, in one call. What it wrote is checked; nothing is run.

  nano-vm plan "refund order $order_id if it is damaged" --tools refund_tools.py --input order_id --model openai:MODEL
  nano-vm plan "finish the report" --extend RUN --tools report_tools.py --model openai:MODEL

--extend takes up a run that is BUDGET_EXCEEDED or STALLED: the plan is run at once, as a run of its own.

The call is a run of the program `planning`: limits of a policy count it, and `nano-vm runs` lists what it took.

exit codes: 0 a program, 1 the model did not answer, 2 usage, 3 the plan was rejected (every finding is shown), 4
denied by policy, 7 the call may take more than it is allowed to · --extend: as for run
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nano_vm.cli import exits
from nano_vm.cli.acting import interrupted_exit
from nano_vm.cli.arguments import add_tools, number, whole
from nano_vm.cli.console import Console
from nano_vm.cli.driving import Interrupted, supervise
from nano_vm.cli.live import showing
from nano_vm.cli.outputs import write_whole
from nano_vm.cli.session import Session
from nano_vm.cli.views import conclude
from nano_vm.errors import InputError
from nano_vm.program.diagnostic import render

if TYPE_CHECKING:
    from nano_vm.planner.plan import Planner, PlanRejected


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("intent", metavar="INTENT", help="what is to be done, in words; @FILE reads a file")
    add_tools(parser)
    parser.add_argument(
        "--input",
        metavar="NAME",
        action="append",
        default=[],
        help="an input that runs will have (repeatable)",
    )
    parser.add_argument("--output", metavar="FILE", help="write the program there (JSON)")
    parser.add_argument(
        "--max-steps", metavar="N", type=whole, default=100, help="the most steps a run may take (100)"
    )
    parser.add_argument("--max-tokens", metavar="N", type=whole, help="the most tokens a run may use")
    parser.add_argument("--max-cost-usd", metavar="USD", type=number, help="the most a run may cost")
    parser.add_argument(
        "--call-max-tokens", metavar="N", type=whole, help="the most tokens the call for the plan may use"
    )
    parser.add_argument(
        "--call-max-cost-usd", metavar="USD", type=number, help="the most the call for the plan may cost"
    )
    parser.add_argument("--extend", metavar="RUN", help="go on with an interrupted run, and run the plan")


def execute(args: argparse.Namespace, console: Console) -> int:
    from nano_vm.planner.plan import PlanRejected

    if args.extend is not None and (args.output or args.input):
        raise InputError(
            "USAGE", "--extend runs the plan on what the run knows", help="leave --input and --output out"
        )
    for option in ("max_steps", "max_tokens", "max_cost_usd", "call_max_tokens", "call_max_cost_usd"):
        value = getattr(args, option)
        if value is not None and not 0 < value < 1e9:
            raise InputError(
                "USAGE", f"--{option.replace('_', '-')} is not above 0", help="leave it out, or raise it"
            )
    intent = _intent(args.intent)
    with Session(args, create=args.extend is None, drives=True) as session:
        if session.model is None:
            raise InputError("MODEL_MISSING", "a plan needs a model", help="add --model openai:MODEL")
        planner = _planner(args, session)
        try:
            if args.extend is not None:
                return _extend(args, console, session, planner, intent)
            inputs: dict[str, Any] | None = {name: {} for name in args.input} or None
            program = planner.generate_sync(
                intent, inputs=inputs, vm=session.engine, principal=session.principal, tenant=args.tenant
            )
        except PlanRejected as rejected:
            return _rejected(console, rejected)
    document = program.to_dict()
    if args.output:
        _write(args.output, document)
    console.document({"ok": True, "hash": program.hash, "program": document, "usage": _usage(planner)})
    if args.output:
        console.line(f"{console.symbol('good')} {args.output}: {program.name}, {program.hash}", "good")
    else:
        console.line(json.dumps(document, indent=2, ensure_ascii=False))
    return exits.DONE


def _planner(args: argparse.Namespace, session: Session) -> Planner:
    from nano_vm.planner.plan import Planner
    from nano_vm.policy import load_policy

    assert session.model is not None
    return Planner(
        session.model,
        session.tools,
        policy=load_policy(args.policy) if args.policy else None,
        max_steps=args.max_steps,
        max_tokens=args.max_tokens,
        max_cost_usd=args.max_cost_usd,
        call_max_tokens=args.call_max_tokens,
        call_max_cost_usd=args.call_max_cost_usd,
    )


def _extend(
    args: argparse.Namespace, console: Console, session: Session, planner: Planner, intent: str
) -> int:
    from nano_vm.planner.replan import replan_on_interrupt

    with showing(console) as listen:
        if listen is not None:
            session.engine.listeners.append(lambda _, progress: listen(progress))
        try:
            trace = supervise(
                session,
                lambda: replan_on_interrupt(
                    session.engine, planner, args.extend, intent, principal=session.principal
                ),
            )
        except Interrupted as interrupted:
            return interrupted_exit(console, session, interrupted, None, lines=False)
    return conclude(console, args, session.engine.load_program(trace.program_hash), trace)


def _rejected(console: Console, rejected: PlanRejected) -> int:
    report = rejected.report
    findings = [finding.to_dict() for finding in report.diagnostics]
    error: dict[str, Any] = {"code": rejected.code, "message": rejected.message}
    document = {"ok": False, "error": error, "findings": findings, "plan": report.source}
    console.document({**document, "exit_code": exits.INVALID})
    for finding in report.diagnostics:
        console.line(render(finding, report.source), "bad" if finding.severity == "error" else "warn")
    if not console.json_only:
        console.complain(f"{rejected.code} {rejected.message}", "bad")
    return exits.INVALID


def _usage(planner: Planner) -> dict[str, Any]:
    usage = planner.last.usage if planner.last is not None else None
    if usage is None:
        return {}
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cost_usd": usage.cost_usd,
    }


def _intent(text: str) -> str:
    if not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(
            "USAGE", f"cannot read `{text[1:]}`: {reason.lower()}", help="@FILE names a text file"
        ) from error


def _write(path: str, document: dict[str, Any]) -> None:
    try:
        write_whole(path, [json.dumps(document, indent=2, ensure_ascii=False).encode(), b"\n"])
    except OSError as error:
        raise InputError(
            "USAGE", f"cannot write `{path}`: {(error.strerror or '').lower()}", help="--output FILE"
        ) from error
