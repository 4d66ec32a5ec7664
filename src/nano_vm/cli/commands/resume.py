"""Give a waiting run the event, answer or approval it waits for, and drive it on.

  nano-vm resume ID --approve --principal ana --role supervisor --tools refund_tools.py
  nano-vm resume ID --deny --comment "too much" --principal ana --role supervisor
  nano-vm resume ID --name payment_settled --event '{"amount": 250}'

An approval is of the action that is shown, and of no other. `nano-vm approvals` lists what waits for one. With --nonce
it serves no later question about the same action: a command that is repeated approves nothing twice.
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
from nano_vm.runtime.approvals import approve, meant_by, several
from nano_vm.runtime.repetition import Said


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", metavar="ID", help="the run's trace id")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--event", metavar="JSON", help="the event's data: JSON, @FILE, or - for standard input"
    )
    what.add_argument("--approve", action="store_true", help="approve what is shown")
    what.add_argument("--deny", action="store_true", help="refuse it")
    parser.add_argument("--action", metavar="DIGEST", help="the action you have seen: no other is approved")
    parser.add_argument(
        "--nonce", metavar="NONCE", help="the question you have seen: no later one is answered"
    )
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
    if not answers and (args.action or args.nonce or args.comment):
        what = "--action, --nonce and --comment belong to an answer"
        raise InputError("USAGE", what, help="add --approve or --deny")
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
            said = show_asked(session, console)
            return act(session, console, args.run_id, lambda: _answer(session, said))
        return act(session, console, args.run_id, lambda: _resume(session, data))


def show_asked(session: Session, console: Console) -> Said:
    """Say what exactly is answered, before it is. What comes to wait meanwhile is not.

    Raises:
        RejectedError: AMBIGUOUS.
    """
    args = session.args
    said = Said(
        bool(args.approve), args.comment, args.step, args.item, args.action, args.nonce, args.event_id
    )
    asked = meant_by(session.engine, session.store.record(args.run_id), said)
    for found in asked:
        for line in describe(found):
            console.note(line)
    if said.action is not None or said.nonce is not None:
        return said  # seen elsewhere
    if len(asked) > 1 and said.event_id is None:
        raise several(args.run_id, [found.step for found in asked])
    if len(asked) != 1:
        return said._replace(anew=bool(asked))  # nothing was shown that could be answered
    (found,) = asked
    return said._replace(step=found.step, item=found.item, action=found.action, nonce=found.nonce)


async def _answer(session: Session, said: Said) -> Trace:
    trace = await approve(session.engine, session.args.run_id, said, session.principal)
    return await wait_through(session, trace) if session.args.wait else trace


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
