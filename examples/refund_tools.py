"""Tools of the refund examples: an order book, and a payment provider that is a ledger file.

The ledger stands for the outside world. Every effect appends one line to it, so the file shows what really
happened, whatever became of the process. It is the file that the environment variable NANO_VM_LEDGER names.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from nano_vm import Reconciled, ToolContext, ToolError, tool


@dataclass
class Order:
    id: str
    amount: int
    currency: str
    refundable: bool


ORDERS = {
    order.id: order
    for order in (
        Order("A-1001", 40, "EUR", True),
        Order("A-1002", 240, "EUR", True),
        Order("A-1003", 75, "EUR", False),
    )
}


@tool(effect="pure")
def lookup_order(order_id: str) -> Order:
    """Find an order. Asking changes nothing, so asking again is always safe."""
    order = ORDERS.get(order_id)
    if order is None:
        raise ToolError(f"no order {order_id}", retryable=False, code="ORDER_UNKNOWN")
    return order


def find_out(order_id: str, amount: int, ctx: ToolContext) -> Reconciled:
    """What became of a payment call that was cut short: the provider knows it by its idempotency key."""
    line = find(ctx.idempotency_key)
    return Reconciled.not_executed() if line is None else Reconciled.succeeded(line)


@tool(effect="reconcilable", reconcile=find_out)
def reserve_funds(order_id: str, amount: int, ctx: ToolContext) -> dict:
    """Set the money aside before anybody is asked."""
    return book("reserve", order_id, amount, ctx.idempotency_key)


@tool(effect="reconcilable", reconcile=find_out)
def send_refund(order_id: str, amount: int, ctx: ToolContext) -> dict:
    """Pay the money back."""
    return book("refund", order_id, amount, ctx.idempotency_key)


@tool(effect="keyed")
def release_funds(order_id: str, reservation: str, ctx: ToolContext) -> dict:
    """Undo a reservation. The provider drops a second call under the same key."""
    return find(ctx.idempotency_key) or book("release", order_id, 0, ctx.idempotency_key)


@tool(effect="keyed")
def notify_customer(order_id: str, text: str, ctx: ToolContext) -> dict:
    """Send one message to the customer; the mail service drops a second one under the same key."""
    return find(ctx.idempotency_key) or book("notify", order_id, 0, ctx.idempotency_key)


# --- the outside world -----------------------------------------------------------------------------


def ledger() -> Path:
    return Path(os.environ.get("NANO_VM_LEDGER", "ledger.jsonl"))


def find(key: str) -> dict | None:
    """The line that was booked under an idempotency key."""
    if not ledger().exists():
        return None
    for text in ledger().read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        if line["key"] == key:
            return line
    return None


def book(effect: str, order_id: str, amount: int, key: str) -> dict:
    """Append one line, in one write."""
    line = {
        "effect": effect,
        "order": order_id,
        "amount": amount,
        "receipt": f"{effect}-{key[4:12]}",
        "key": key,
    }
    descriptor = os.open(ledger(), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, (json.dumps(line) + "\n").encode())
    finally:
        os.close(descriptor)
    return line
