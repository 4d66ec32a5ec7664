"""What models cost: a table that its user can edit.

# prices.yaml - US dollars per million tokens
gpt-4o-mini: {input: 0.15, output: 0.60, cached_input: 0.075}
my-local-model: {input: 0, output: 0}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from nano_vm.errors import InputError, Place
from nano_vm.program import document as documents
from nano_vm.providers.openai_reply import Tokens
from nano_vm.runtime.ports import Usage

PRICE_MAX = 1_000_000  # dollars per million tokens; more is a mistake


class Price(NamedTuple):
    """US dollars per million tokens. `cached_input`: of prompt tokens that were at hand; None charges `input`."""

    input: float
    output: float
    cached_input: float | None = None

    def cost_usd(self, tokens: Tokens) -> float:
        """Rounded far below a nano-dollar, so that floating point never adds one."""
        cached_price = self.input if self.cached_input is None else self.cached_input
        fresh = (tokens.prompt - tokens.cached) * self.input
        return round((fresh + tokens.cached * cached_price + tokens.completion * self.output) / 1e6, 13)

    def nano_per_token(self) -> tuple[float, float]:
        """(input, output) in nano-dollars per token, as `ModelClient.price` gives them: the worst case."""
        return self.input * 1_000, self.output * 1_000


def usage_of(tokens: Tokens, price: Price | None) -> Usage:
    """What a reply consumed, as adapters report it. One that names no tokens has not said that it was free."""
    told = bool(tokens.prompt or tokens.completion)
    cost = price.cost_usd(tokens) if price is not None and told else tokens.cost_usd
    return Usage(prompt_tokens=tokens.prompt, completion_tokens=tokens.completion, cost_usd=cost)


PriceTable: TypeAlias = Mapping[str, Price]


def prices_from(given: Mapping[str, Any] | str | Path | None) -> PriceTable:
    """A price table from a mapping or a YAML or JSON file: model -> {input, output, cached_input} or (input, output).

    Raises:
        InputError: PRICES, with the place, for what is no table.
    """
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return {_model(name): _price(name, entry, Place()) for name, entry in given.items()}
    path = Path(given)
    if not path.is_file():
        raise InputError(
            "PRICES", f"there is no price table `{path}`", help="check the path", place=Place(str(path))
        )
    document = documents.from_file(path)
    for finding in document.findings:
        raise InputError("PRICES", finding.message, place=finding.place, help=finding.help)
    if not isinstance(document.data, dict):
        raise InputError("PRICES", "a price table is a mapping of models", place=Place(str(path)), help=_HELP)
    return {
        name: _price(name, entry, Place(str(path), path=f"/{name}")) for name, entry in document.data.items()
    }


_HELP = "one line per model, in dollars per million tokens: `gpt-4o-mini: {input: 0.15, output: 0.60}`"


def _model(name: Any) -> str:
    if not isinstance(name, str):
        raise InputError("PRICES", f"a {type(name).__name__} names no model", help=_HELP)
    return name


def _price(name: Any, entry: Any, place: Place) -> Price:
    if isinstance(entry, Price):
        found: Mapping[str, Any] = entry._asdict()
    elif isinstance(entry, Mapping):
        found = entry
    elif isinstance(entry, tuple | list) and len(entry) in (2, 3):
        found = dict(zip(("input", "output", "cached_input"), entry, strict=False))
    else:
        raise InputError("PRICES", f"the price of `{name}` is not understood", place=place, help=_HELP)
    unknown = sorted(str(key) for key in found if key not in ("input", "output", "cached_input"))
    if unknown:
        raise InputError("PRICES", f"`{unknown[0]}` is no part of a price", place=place, help=_HELP)
    values = [found.get("input"), found.get("output"), found.get("cached_input")]
    for part, value in zip(("input", "output", "cached_input"), values, strict=True):
        if value is None and part == "cached_input":
            continue
        if type(value) not in (int, float) or not 0 <= value <= PRICE_MAX:  # type: ignore[operator]
            raise InputError(
                "PRICES",
                f"the `{part}` price of `{name}` is not a number of dollars",
                place=place,
                help=_HELP,
            )
    return Price(*values)  # type: ignore[arg-type]
