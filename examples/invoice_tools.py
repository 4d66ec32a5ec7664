"""The one tool of the invoice programs."""

from __future__ import annotations

from nano_vm import ToolContext, tool


@tool(effect="keyed")
def write_invoice(customer: str, hours: float, ctx: ToolContext) -> dict:
    """The number derives from the key, so that writing it again gives the same invoice."""
    return {"number": f"{customer}-{ctx.idempotency_key[4:10]}", "amount": hours * 80}
