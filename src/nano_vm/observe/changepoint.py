"""Bayesian online change-point detection (Adams and MacKay, 2007) for numbers that come one after the other.

The numbers are standardised: with nothing changed they have mean 0 and variance 1. They are taken five at a time, since
their means are nearly normal whatever the numbers are. The mean may change at any moment with the same small
probability; a new one is normal around 0 with variance `NEW**2`. After each batch the detector holds the probability of
every *run length*: how many batches have come since the last change.
"""

from __future__ import annotations

from math import exp, sqrt

BATCH = 5
HAZARD = 1 / 200  # the probability, at any batch, that the mean changes there
NEW = 3.0  # standard deviations of a batch's mean
LENGTHS_MAX = 1_000  # run lengths that are told apart: the likeliest ones
NEGLIGIBLE = 1e-9


class ChangePoints:
    """Feed numbers with `observe`; ask with `since`."""

    def __init__(self) -> None:
        self.seen = 0
        self._batch: list[float] = []
        # By run length: its probability, and the sum of the batches it is made of.
        self._runs: list[tuple[int, float, float]] = [(0, 1.0, 0.0)]

    def observe(self, value: float) -> None:
        """Take one more number."""
        self.seen += 1
        self._batch.append(value)
        if len(self._batch) == BATCH:
            self._take(sum(self._batch) / sqrt(BATCH))  # a mean, in its own standard deviations
            self._batch.clear()

    def _take(self, value: float) -> None:
        grown = [
            (length + 1, mass * (1 - HAZARD) * _likelihood(value, length, total), total + value)
            for length, mass, total in self._runs
        ]
        # The batch may be the first after a change: then nothing that came before it tells of it.
        grown.append((1, HAZARD * _likelihood(value, 0, 0.0), value))
        grown.sort(key=lambda run: -run[1])
        whole = sum(mass for _, mass, _ in grown[:LENGTHS_MAX]) or 1.0
        self._runs = [
            (length, mass / whole, total)
            for length, mass, total in grown[:LENGTHS_MAX]
            if mass / whole > NEGLIGIBLE
        ]

    def since(self, count: int) -> float:
        """The probability that the mean changed within the last `count` numbers."""
        batches = count // BATCH
        return sum(mass for length, mass, _ in self._runs if 0 < length <= batches)


def _likelihood(value: float, length: int, total: float) -> float:
    """How likely the next batch is in a regime that has shown `length` batches with this sum. The regime that was there
    at the start is no exception: it is learned like any other."""
    precision = length + 1 / NEW**2
    mean, variance = total / precision, 1 / precision + 1
    return exp(-((value - mean) ** 2) / (2 * variance)) / sqrt(variance)
