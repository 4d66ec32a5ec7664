"""Scored routing: which provider to ask first.

    score = health_weight · (1 − health) + latency_weight · latency / L + cost_weight · cost / C

The least score is asked first; equal scores keep the declared order. `health` is the faded share of successes (0 to 1),
`latency` the faded mean latency and `cost` the price of one input and one output token together; L and C are the
greatest latency and cost among the providers, so that each term is from 0 to its weight. A provider without a price
counts as the dearest; one that nobody has asked yet has no latency, and so gets its chance.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from nano_vm.providers.health import Health


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """What counts in scored routing; 0 for what does not."""

    health: float = 2.0
    latency: float = 1.0
    cost: float = 1.0


def scores(
    prices: Mapping[str, tuple[float, float] | None],
    known: Mapping[str, Health],
    weights: Weights,
    now_ms: int,
) -> dict[str, float]:
    """The score of each provider in `prices`; less is better."""
    faded = {name: known.get(name, Health()).faded(now_ms) for name in prices}
    costs = {name: price[0] + price[1] for name, price in prices.items() if price is not None}
    dearest = max(costs.values(), default=0.0)
    slowest = max((latency for _, latency in faded.values()), default=0.0)
    found = {}
    for name, (health, latency) in faded.items():
        score = weights.health * (1.0 - health)
        if slowest > 0:
            score += weights.latency * latency / slowest
        if dearest > 0:
            score += weights.cost * costs.get(name, dearest) / dearest
        found[name] = score
    return found
