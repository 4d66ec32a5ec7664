"""The entry of `nano-vm`: finds the command, imports its module, and turns what happens into an exit code."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from nano_vm.cli import exits, failures
from nano_vm.cli.arguments import VALUE_OPTIONS, Parser, add_global, global_defaults
from nano_vm.cli.console import Console, OutputLost
from nano_vm.errors import InputError

# Command -> what it does. The module of the same name in `commands` is imported only when the command is chosen.
COMMANDS: dict[str, str] = {
    "run": "run a program",
    "check": "check program files without running anything",
    "policy": "check a policy, or explain what it decides and why",
    "plan": "have a model write a program, and check it",
    "resume": "give a waiting run its event or approval",
    "approvals": "list what waits for somebody's approval",
    "runs": "list runs",
    "trace": "show what a run did and what it waits for",
    "replay": "fold a run's journal again and compare every transition",
    "verify": "prove that journals, or a bundle, are untouched and every transition is right",
    "receipt": "show what a run came to, as a receipt",
    "envelopes": "show, for each step that succeeded, its policy and the state it left",
    "export": "write a run as an evidence bundle that anybody can verify",
    "log": "sign the store's log, and find what has vanished from it",
    "keys": "make and keep keys for signing and verifying evidence",
    "fork": "start a new run from the middle of another",
    "cancel": "end a run; what must be undone is undone",
    "recover": "take up runs that a dead process left, and fire due timers",
    "resolve": "say what became of an unknown outcome",
    "diff": "compare two runs",
    "erase": "destroy what opens private values, for good",
    "watch": "follow runs as they go",
    "eventlog": "write runs as an event log for process mining",
    "measure": "hold traces of other systems against the measures of runs",
    "graph": "draw a program or a run",
    "drift": "say whether the runs of a program still go as they should",
    "providers": "show the providers of a pool and their circuits",
    "schema": "print the JSON Schema of programs and policies",
    "doctor": "examine the installation and the database",
    "vault": "keep confidential values, and the keys of private ones",
    "studio": "look at runs and act on them in a browser",
    "worker": "take up runs and fire timers until stopped",
    "mcp": "serve programs and runs to MCP clients",
    "token": "make, list and revoke the gateway's tokens",
    "bench": "measure the engine at work, and check what it did",
    "chaos": "break the engine on purpose, and count what happened",
    "demo": "see a refund survive a kill, and a review eight attacks",
    "completion": "print a completion script for your shell",
}


def entrypoint() -> None:
    """What the `nano-vm` script calls."""
    _stand_in()
    code = main(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _silence()
    except OSError:
        _silence()
        code = code or exits.FAILED
    sys.exit(code)


def _stand_in() -> None:
    """Stand in for streams that were closed before we began, first of all: the next file that is opened, a database
    say, would get their numbers, and what is printed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if number == 0 else "w"))


def _silence() -> None:
    """Whoever read our output has gone; the interpreter would complain about it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(argv: Sequence[str]) -> int:
    """Run one command. Returns its exit code; raises nothing."""
    before, command, after = split(argv)
    console = Console(
        json_only="--json" in argv, quiet="--quiet" in argv, debug="--debug" in argv
    )  # until the options are parsed
    try:
        args = global_defaults()
        top = top_parser()
        top.parse_args(before, args)
        if command is None:
            top.print_help(sys.stderr)
            raise InputError("USAGE", "no command is given", help=f"one of: {', '.join(COMMANDS)}")
        module = command_module(command)
        parser = command_parser(command, module)
        parser.parse_args(after, args)
        console = Console(json_only=args.json, quiet=args.quiet, debug=args.debug)
        check_role(command, args)
        # With --json standard output holds JSON alone: what tools print goes elsewhere.
        with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
            code: int = module.execute(args, console)
        return code
    except SystemExit as ending:  # argparse has shown help or the version
        return ending.code if isinstance(ending.code, int) else exits.USAGE
    except KeyboardInterrupt:
        console.complain("interrupted")
        return exits.INTERRUPTED
    except BrokenPipeError:
        _silence()
        return exits.FAILED
    except OutputLost as lost:
        return _lost(console, lost)
    except Exception as error:
        try:
            return failures.report(console, error)
        except BrokenPipeError:
            _silence()
            return exits.FAILED
        except OutputLost as lost:
            return _lost(console, lost)


def _lost(console: Console, lost: OutputLost) -> int:
    console.complain(f"standard output cannot be written: {str(lost).lower()}", "bad")
    _silence()
    return exits.FAILED


# What a command does with runs, for whoever acts in one of the roles of the house (`nano_vm.runtime.rights`).
_RIGHTS = {
    "run": "start",
    "resume": "read",  # what is answered decides: the engine looks
    "fork": "act",
    "cancel": "act",
    "recover": "act",
    "worker": "act",
    "resolve": "act",
    "approvals": "read",
    "runs": "read",
    "trace": "read",
    "receipt": "read",
    "diff": "read",
    "watch": "read",
    "verify": "verify",
    "replay": "verify",
    "export": "verify",
}


def check_role(command: str, args: argparse.Namespace) -> None:
    """Refuse what the roles that were named do not allow. Without such a role everything is allowed: the command line
    does not know who sits before it."""
    right = _RIGHTS.get(command)
    if right is not None and args.role:
        from nano_vm.cli.arguments import principal
        from nano_vm.runtime.rights import check_right

        check_right("open", principal(args), right)


def split(argv: Sequence[str]) -> tuple[list[str], str | None, list[str]]:
    """The options before the command, the command, and everything after it."""
    place = 0
    while place < len(argv):
        token = argv[place]
        if not token.startswith("-"):
            return list(argv[:place]), token, list(argv[place + 1 :])
        place += 2 if token in VALUE_OPTIONS else 1
    return list(argv), None, []


def command_module(command: str) -> ModuleType:
    """The module of a command: `SUMMARY` is in `COMMANDS`, it has `add_arguments(parser)` and `execute(args, console)`.

    Raises:
        InputError: USAGE for a command that does not exist.
    """
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        help = f"did you mean `{close[0]}`?" if close else f"one of: {', '.join(COMMANDS)}"
        raise InputError("USAGE", f"unknown command `{command[:60]}`", help=help)
    return importlib.import_module(f"nano_vm.cli.commands.{command}")


def command_parser(command: str, module: ModuleType) -> Parser:
    parser = Parser(
        prog=f"nano-vm {command}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    add_global(parser)
    return parser


def top_parser() -> Parser:
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items())
    parser = Parser(
        prog="nano-vm",
        usage="nano-vm [options] COMMAND …",
        description="Deterministic, durable, governed execution of workflows: the system decides, the model computes.",
        epilog=f"commands:\n{listing}\n\n`nano-vm COMMAND --help` says more. `nano-vm demo refund` shows it all.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    from nano_vm import __version__

    parser.add_argument("--version", action="version", version=f"nano-vm {__version__}")
    add_global(parser)
    return parser
