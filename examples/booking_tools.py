"""Tools of the saga: a booking service that gives each idempotency key one booking. Atlantis has no cars."""

from __future__ import annotations

from nano_vm import ToolContext, tool

LOG: list[str] = []
_BOOKED: dict[str, dict] = {}


@tool(effect="keyed")
def book(what: str, traveller: str, city: str, ctx: ToolContext) -> dict:
    """Book one leg of a trip."""
    if what == "car" and city == "Atlantis":
        LOG.append("no car")
        raise LookupError("all cars are under water")
    if ctx.idempotency_key not in _BOOKED:
        _BOOKED[ctx.idempotency_key] = {"reference": f"{what}-{city}".lower()}
        LOG.append(f"book {what}")
    return _BOOKED[ctx.idempotency_key]


@tool(effect="idempotent")
def cancel_booking(reference: str) -> bool:
    """Cancelling what is cancelled changes nothing."""
    LOG.append(f"cancel {reference.split('-')[0]}")
    return True


@tool(effect="idempotent")
def tell_traveller(traveller: str, text: str) -> bool:
    LOG.append(text)
    return True
