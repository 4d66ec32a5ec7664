"""Approvals that are asked for, as lines of text."""

from __future__ import annotations

from collections.abc import Iterator

from nano_vm.cli.console import compact, printable
from nano_vm.cli.views import moment
from nano_vm.runtime.approvals import PendingApproval

ARGS_CHARS_MAX = (
    20_000  # an approver sees them whole; what is longer ends in `…`, and is in the JSON document
)


def describe(found: PendingApproval) -> Iterator[str]:
    """What is to be approved, by whom, and until when."""
    lane = "" if found.item is None else f"[{found.item}]"
    yield f"approval  {printable(found.run_id)}  {printable(found.program)}  step {found.step}{lane}"
    if found.action:
        yield f"  calls     {printable(found.tool)} {compact(found.shown.get('args'), ARGS_CHARS_MAX)}"
        yield f"  action    {found.action}"
        rules = ", ".join(str(rule) for rule in found.shown.get("rules", ()))
        yield f"  asked by  {printable(rules)}"
        starter = found.shown.get("started_by")
        yield f"  run by    {printable(str(starter)) if starter else 'nobody is known'}"
    else:
        yield "  calls     nothing in particular: the wait is bound to no action"
    yield f"  needs     {printable(', and '.join(' or '.join(group) for group in found.groups))}"
    if found.due_ms:
        yield f"  until     {moment(found.due_ms)}"
