"""Give a waiting run the event, answer or approval it waits for, and drive it on.

  nano-vm resume ID --approve --principal ana --role supervisor --tools refund_tools.py
  nano-vm resume ID --deny --comment "too much" --principal ana --role supervisor
  nano-vm resume ID --name payment_settled --event '{"amount": 250}'

An approval is of the action that is shown, and of no other. `nano-vm approvals` lists what waits for one.
The same event (by --event-id, else by its content) is answered alike when it is sent again.
exit codes: as for run; 1 or 4 when the run does not take the event
"""

from __future__ import annotations

import argparse
from typing import Any

from nano_vm.cli.acting import act
from nano_vm.cli.approving import describe
from nano_vm.cli.arguments import add_tools, json_value, whole
from nano_vm.cli.console import Console
from nano_vm.cli.driving import wait_through
from nano_vm.cli.session import Session
from nano_vm.errors import InputError
from nano_vm.journal.trace import Trace
from nano_vm.runtime.approvals import pending


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", metavar="ID", help="the run's trace id")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--event", metavar="JSON", help="the event's data: JSON, @FILE, or - for standard input"
    )
    what.add_argument("--approve", action="store_true", help="approve what is shown")
    what.add_argument("--deny", action="store_true", help="refuse it")
    parser.add_argument("--action", metavar="DIGEST", help="the action you have seen: no other is approved")
    parser.add_argument("--comment", metavar="TEXT", help="kept with the approval or refusal")
    parser.add_argument("--name", metavar="NAME", help="the event's name, when several are waited for")
    parser.add_argument("--step", metavar="STEP", help="the step that waits, when several do")
    parser.add_argument("--item", metavar="N", type=whole, help="which element, when the step of a map waits")
    parser.add_argument("--event-id", metavar="ID", help="identity of the event (default: its content)")
    parser.add_argument("--wait", action="store_true", help="sleep through timers instead of suspending")
    add_tools(parser)


def execute(args: argparse.Namespace, console: Console) -> int:
    data: Any = None
    answers = args.approve or args.deny
    if not answers and (args.action or args.comment):
        raise InputError(
            "USAGE", "--action and --comment belong to an answer", help="add --approve or --deny"
        )
    if answers:
        if args.name is not None:
            raise InputError("USAGE", "an approval has no --name", help="name the step with --step")
    elif args.event is not None:
        data = json_value(args.event, "--event")
    else:
        raise InputError("USAGE", "what happened?", help="--event JSON, --approve or --deny")
    with Session(args, drives=True) as session:
        session.require_run(args.run_id)
        if answers:
            show_asked(session, console)
            return act(session, console, args.run_id, lambda: _answer(session))
        return act(session, console, args.run_id, lambda: _resume(session, data))


def show_asked(session: Session, console: Console) -> None:
    """Say what exactly is answered, before it is."""
    args = session.args
    for found in pending(session.engine, session.store.record(args.run_id)):
        if args.step in (None, found.step) and args.item in (None, found.item):
            for line in describe(found):
                console.note(line)


async def _answer(session: Session) -> Trace:
    args = session.args
    trace = await session.engine.approve(
        args.run_id,
        bool(args.approve),
        step=args.step,
        item=args.item,
        action=args.action,
        comment=args.comment,
        principal=session.principal,
        event_id=args.event_id,
    )
    return await wait_through(session, trace) if args.wait else trace


async def _resume(session: Session, data: Any) -> Trace:
    args = session.args
    trace = await session.engine.resume(
        args.run_id,
        data,
        event_id=args.event_id,
        name=args.name,
        step=args.step,
        item=args.item,
        principal=session.principal,
    )
    return await wait_through(session, trace) if args.wait else trace
