"""Tools of the refund program.

Each writes a line to `ledger.jsonl` beside this file (or to $NANO_VM_LEDGER) when it has an effect outside. The ledger
stands for the bank and the post: it only grows, and no process can take back what it says.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from nano_vm import Reconciled, ToolContext, tool

HERE = Path(__file__).parent
LEDGER = Path(os.environ.get("NANO_VM_LEDGER", HERE / "ledger.jsonl"))
SLOW_BANK = HERE / "slow_bank"  # while this file is there, the bank does its work but does not answer

ORDERS = {"A-1001": {"customer": "c-7", "paid": 480}, "A-1002": {"customer": "c-9", "paid": 60}}


def _book(did: str, key: str, **facts: Any) -> dict[str, Any]:
    line = {"did": did, **facts, "key": key, "pid": os.getpid()}
    with LEDGER.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return {"did": did, **facts}


def _booked(key: str) -> dict[str, Any] | None:
    if not LEDGER.exists():
        return None
    for text in LEDGER.read_text(encoding="utf-8").splitlines():
        line: dict[str, Any] = json.loads(text)
        if line.pop("key") == key:
            del line["pid"]
            return line
    return None


def ask_the_bank(order_id: str, amount: float, ctx: ToolContext) -> Reconciled:
    """What became of a call whose answer was lost? The bank knows it by its idempotency key."""
    found = _booked(ctx.idempotency_key)
    return Reconciled.succeeded(found) if found is not None else Reconciled.not_executed()


@tool(effect="idempotent")
def look_up_order(order_id: str, ctx: ToolContext) -> dict[str, Any]:
    """Customer and paid amount of an order."""
    _book("order read", ctx.idempotency_key, order=order_id)
    return ORDERS[order_id]


@tool(effect="reconcilable", reconcile=ask_the_bank)
def reserve_money(order_id: str, amount: float, ctx: ToolContext) -> dict[str, Any]:
    """Set the money aside at the bank."""
    done = _book("money reserved", ctx.idempotency_key, order=order_id, amount=amount)
    while SLOW_BANK.exists():
        time.sleep(0.02)
    return done


@tool(effect="reconcilable", reconcile=ask_the_bank)
def pay_refund(order_id: str, amount: float, ctx: ToolContext) -> dict[str, Any]:
    """Pay the money out."""
    return _book("refund paid", ctx.idempotency_key, order=order_id, amount=amount)


@tool(effect="reconcilable", reconcile=ask_the_bank)
def release_money(order_id: str, amount: float, ctx: ToolContext) -> dict[str, Any]:
    """Give the reserved money free again."""
    return _book("money released", ctx.idempotency_key, order=order_id, amount=amount)


@tool(effect="idempotent")
def write_to_customer(order_id: str, text: str, ctx: ToolContext) -> dict[str, Any]:
    """Send a letter; the post drops a second one with the same key."""
    return _booked(ctx.idempotency_key) or _book(
        "letter sent", ctx.idempotency_key, order=order_id, text=text
    )
