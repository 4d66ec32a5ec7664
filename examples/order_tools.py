"""Tools of the order pipeline. `charge_card` is `keyed`: the payment provider honours the key it is given."""

from __future__ import annotations

from nano_vm import ToolContext, ToolError, tool

PRICES = {"tea": 4, "cup": 9}
CHARGES: dict[str, dict] = {}  # the payment provider's memory, by idempotency key
SENT: list[tuple[str, str]] = []
CARD_LIMIT = 500


@tool(effect="pure")
def quote_items(items: list[dict]) -> dict:
    """Price and availability."""
    known = [item for item in items if item["sku"] in PRICES]
    return {
        "total": sum(PRICES[item["sku"]] * item["quantity"] for item in known),
        "missing": [item["sku"] for item in items if item["sku"] not in PRICES],
    }


@tool(effect="keyed")
async def charge_card(order_id: str, amount: int, ctx: ToolContext) -> dict:
    """Charge once per idempotency key."""
    if amount > CARD_LIMIT:
        raise ToolError("over the card's limit", retryable=False, code="CARD_DECLINED")
    return CHARGES.setdefault(ctx.idempotency_key, {"id": f"ch_{order_id}", "amount": amount})


@tool(effect="idempotent")
async def send(to: str, text: str) -> bool:
    """A message; twice is a nuisance, not a harm."""
    SENT.append((to, text))
    return True
