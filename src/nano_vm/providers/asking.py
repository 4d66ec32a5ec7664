"""Asking a model client of any shape, for the clients that stand before others: pool, cache, cassette."""

from __future__ import annotations

import inspect
from typing import Any

from nano_vm.runtime.arguments import check_client
from nano_vm.runtime.completions import accepted_by, awaited, completion_of
from nano_vm.runtime.ports import Completion, Message, ModelCall, ModelClient


class Client:
    """A client and what it takes. Parameters it does not take are not passed on."""

    def __init__(self, inner: ModelClient) -> None:
        check_client("the client", inner)
        self.inner = inner
        self._accepted = accepted_by(inner.complete)
        self._takes_call = "model_call" in inspect.signature(inner.complete).parameters

    @property
    def default_model(self) -> str:
        """What is asked where a call names no model: it belongs to what an answer is the answer to."""
        named = getattr(self.inner, "default_model", None)
        return named if isinstance(named, str) else type(self.inner).__qualname__

    async def ask(
        self, messages: list[Message], params: dict[str, Any], model_call: ModelCall | None
    ) -> Completion:
        """One completion, in the one form.

        Raises:
            Exception: whatever the client raises; TypeError for an answer that is none.
        """
        if self._accepted is not None:
            params = {name: value for name, value in params.items() if name in self._accepted}
        if self._takes_call and model_call is not None:
            params = {**params, "model_call": model_call}
        return completion_of(await awaited(self.inner.complete(messages, **params)))

    async def forget(self, messages: list[Message], params: dict[str, Any]) -> None:
        """Tell the client that its answer was not accepted, if it wants to know."""
        forget = getattr(self.inner, "forget", None)
        if forget is not None:
            await forget(messages, **params)

    def price(self, model: str | None) -> tuple[float, float] | None:
        price = getattr(self.inner, "price", None)
        found: tuple[float, float] | None = price(model) if price is not None else None
        return found

    def price_known(self, model: str | None) -> tuple[float, float] | None:
        known = getattr(self.inner, "price_known", None)
        found: tuple[float, float] | None = known(model) if known is not None else self.price(model)
        return found


class Front:
    """What stands before one client: which model is asked, and what that costs, the client behind says."""

    def __init__(self, inner: ModelClient) -> None:
        self._client = Client(inner)

    @property
    def inner(self) -> ModelClient:
        return self._client.inner

    @property
    def default_model(self) -> str | None:
        return self._client.default_model

    def price(self, model: str | None) -> tuple[float, float] | None:
        """What a call costs that is passed on."""
        return self._client.price(model)

    def price_known(self, model: str | None) -> tuple[float, float] | None:
        return self._client.price_known(model)
