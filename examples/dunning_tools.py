"""Tools of the dunning loop. The bank refuses S-1 twice before it pays; S-2 never pays."""

from __future__ import annotations

from nano_vm import ToolContext, tool

REFUSALS = {"S-1": 2, "S-2": 99}
ATTEMPTS: dict[str, list[str]] = {}  # the bank's memory: idempotency keys per subscription
EVENTS: list[str] = []


@tool(effect="keyed")
def collect_fee(subscription: str, ctx: ToolContext) -> dict:
    """One attempt to collect. Each turn of the loop is an occurrence of its own, with a key of its own."""
    keys = ATTEMPTS.setdefault(subscription, [])
    if ctx.idempotency_key not in keys:
        keys.append(ctx.idempotency_key)
    attempt = keys.index(ctx.idempotency_key) + 1
    return {"attempt": attempt, "paid": attempt > REFUSALS.get(subscription, 0)}


@tool(effect="idempotent")
def send_reminder(subscription: str, attempt: int) -> bool:
    EVENTS.append(f"remind {subscription} {attempt}")
    return True


@tool(effect="idempotent")
def set_service(subscription: str, state: str) -> str:
    EVENTS.append(f"{state} {subscription}")
    return state
