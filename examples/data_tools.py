"""Tools of the data pipeline: pure functions, so none of them needs an intent in the journal."""

from __future__ import annotations

from nano_vm import tool


@tool(effect="pure")
def sort_numbers(numbers: list[float]) -> list[float]:
    return sorted(numbers)


@tool(effect="pure")
def square(number: float) -> float:
    return number * number


@tool(effect="pure")
def add_up(numbers: list[float]) -> float:
    return sum(numbers)


@tool(effect="pure")
def maximum(numbers: list[float]) -> float | None:
    return max(numbers, default=None)


@tool(effect="pure")
def format_report(total: float, largest: float | None) -> str:
    return f"total {total}, largest {largest}"
