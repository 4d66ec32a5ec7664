"""What the support agent may do, and what only its program does."""

from __future__ import annotations

from typing import Annotated

import msgspec

from nano_vm import ToolContext, ToolError, tool

ORDERS = {"A-1001": {"status": "delayed", "total": 59.0}, "A-1002": {"status": "delivered", "total": 12.5}}


@tool(effect="pure")
def find_order(order_id: str) -> dict:
    """Look up an order by its number."""
    if order_id not in ORDERS:
        raise ToolError("there is no such order", code="NO_SUCH_ORDER")
    return ORDERS[order_id]


@tool(effect="keyed")
def give_credit(order_id: str, euros: Annotated[float, msgspec.Meta(gt=0, le=20)], ctx: ToolContext) -> dict:
    """Give the customer of an order a credit of at most 20 euros."""
    return {"order_id": order_id, "euros": euros, "receipt": ctx.idempotency_key[4:12]}


@tool(effect="keyed")
def send_reply(text: str) -> dict:
    return {"sent": text}


@tool(effect="keyed")
def open_ticket(question: str) -> dict:
    return {"ticket": "T-1", "question": question}
