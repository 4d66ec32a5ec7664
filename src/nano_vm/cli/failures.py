"""Errors as the user sees them: STYLE's form on standard error, a document with `--json`, and an exit code."""

from __future__ import annotations

import traceback
from typing import Any

from nano_vm.cli import exits
from nano_vm.cli.console import Console, printable
from nano_vm.errors import CODES, NanoVMError

EXIT = "exit_code"  # in `facts`: an error that ends this command otherwise than its code says


def report(console: Console, error: BaseException) -> int:
    """Show an error. Returns the exit code."""
    if console.debug:
        console.complain("".join(traceback.format_exception(error)).rstrip())
    if isinstance(error, NanoVMError) and error.code in CODES:
        return _known(console, error)
    return _unknown(console, error)


def as_json(error: NanoVMError) -> dict[str, Any]:
    """An error as data."""
    place = error.place
    return {
        "code": error.code,
        "fault": error.fault.value,
        "retryable": error.retryable,
        "message": error.message,
        "help": error.help,
        "place": None if place is None else place._asdict(),
        "facts": error.facts,
    }


def _known(console: Console, error: NanoVMError) -> int:
    diagnostics = getattr(error, "diagnostics", None)
    if diagnostics:
        from nano_vm.program.diagnostic import render

        source = getattr(error, "source", None)
        for diagnostic in diagnostics:
            console.complain(render(diagnostic, source), "bad" if diagnostic.severity == "error" else "warn")
    else:
        console.complain(printable(str(error), keep_newlines=True), "bad")
    code = int(error.facts.get(EXIT, error.exit_code))
    _emit(console, {"error": as_json(error), "exit_code": code})
    return code


def _unknown(console: Console, error: BaseException) -> int:
    what = f"unexpected {type(error).__name__}"
    help = "this is a defect of nano-vm; what is stored is intact. Run it again with --debug and report the traceback"
    console.complain(f"INTERNAL {what}\n  help: {help}", "bad")
    document = {"code": "INTERNAL", "fault": "bug", "retryable": False, "message": what, "help": help}
    _emit(console, {"error": {**document, "place": None, "facts": {}}, "exit_code": exits.BUG})
    return exits.BUG


def _emit(console: Console, document: dict[str, Any]) -> None:
    if console.json_only:
        if console.documents:
            console.json_line(document)  # after JSONL, or after a document that was already complete
        else:
            console.document(document)
