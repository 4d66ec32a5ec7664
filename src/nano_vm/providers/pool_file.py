"""A pool, written down: `--model pool:FILE` (YAML or JSON).

routing: ordered                 # or scored
attempts: 3
breaker: {failures: 3, cooldown_seconds: 10}
providers:
  - name: primary
    url: https://api.example.com/v1
    model: large-1
    key_env: PRIMARY_API_KEY     # the variable that holds the key: files hold no secrets
    price: {input: 2.5, output: 10}
  - name: spare
    use: mock:yes                # or any other form of --model
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nano_vm.errors import InputError, Place
from nano_vm.program import document as documents
from nano_vm.program.diagnostic import did_you_mean
from nano_vm.providers.health import Breaker, Memory
from nano_vm.providers.pool import Provider, ProviderPool
from nano_vm.providers.routing import Weights
from nano_vm.runtime.ports import ModelClient

Named = Callable[[str], ModelClient]  # makes a client from a form of --model

_TEXT, _NUMBER, _WHOLE, _FLAG, _MAP = (
    "a text",
    "a number above 0",
    "a whole number from 1 on",
    "true or false",
    "a mapping",
)
_TOP = {"routing": _TEXT, "attempts": _WHOLE, "breaker": _MAP, "weights": _MAP, "providers": "a list"}
_BREAKER = {
    "failures": _WHOLE,
    "cooldown_seconds": _NUMBER,
    "cooldown_max_seconds": _NUMBER,
    "probe_seconds": _NUMBER,
}
_WEIGHTS = {"health": "a number from 0 on", "latency": "a number from 0 on", "cost": "a number from 0 on"}
_PROVIDER = {
    "name": _TEXT,
    "url": _TEXT,
    "use": _TEXT,
    "model": _TEXT,
    "models": _MAP,
    "key_env": _TEXT,
    "headers_env": _MAP,
    "timeout_seconds": _NUMBER,
    "idle_timeout_seconds": _NUMBER,
    "stream": _FLAG,
    "price": _MAP,
    "requests_per_minute": _WHOLE,
}
_OF_A_URL = ("key_env", "headers_env", "timeout_seconds", "idle_timeout_seconds", "stream", "price")


def load_pool(
    path: str | Path,
    *,
    named: Named,
    memory: Memory | None = None,
    environment: Mapping[str, str] | None = None,
) -> ProviderPool:
    """The pool that a file describes.

    Args:
        named: makes the client of a provider that says `use`.
        memory: where the providers' records are kept.
        environment: where keys come from; `os.environ` by default.

    Raises:
        InputError: POOL, with the place. RuntimeFault: EXTRA_MISSING.
    """
    return _File(Path(path), named, os.environ if environment is None else environment).pool(memory)


class _File:
    def __init__(self, path: Path, named: Named, environment: Mapping[str, str]) -> None:
        if not os.path.isfile(path):  # also for a name that no file can have
            raise InputError(
                "POOL", f"there is no file `{path}`", help="check the path", place=Place(str(path))
            )
        self._document = documents.from_file(path)
        self._named = named
        self._environment = environment
        for finding in self._document.findings:
            raise InputError("POOL", finding.message, place=finding.place, help=finding.help)

    def pool(self, memory: Memory | None) -> ProviderPool:
        top = self._fields(self._document.data, "", _TOP)
        listed = top.get("providers")
        if not isinstance(listed, list) or not listed:
            raise self._error("", "no providers are listed", "providers: [{name: …, url: …, model: …}]")
        providers = [self._provider(entry, f"/providers/{n}") for n, entry in enumerate(listed)]
        breaker = self._fields(top.get("breaker", {}), "/breaker", _BREAKER)
        times = {
            field: int(breaker[name] * 1_000)
            for name, field in (
                ("cooldown_seconds", "cooldown_ms"),
                ("cooldown_max_seconds", "cooldown_max_ms"),
                ("probe_seconds", "probe_ms"),
            )
            if name in breaker
        }
        if "failures" in breaker:
            times["failures"] = breaker["failures"]
        weights = self._fields(top.get("weights", {}), "/weights", _WEIGHTS)
        try:
            return ProviderPool(
                providers,
                routing=top.get("routing", "ordered"),
                attempts=top.get("attempts", 3),
                breaker=Breaker(**times),
                weights=Weights(**{name: float(value) for name, value in weights.items()}),
                memory=memory,
            )
        except InputError as error:
            raise self._error("", error.message, error.help) from error

    def _provider(self, entry: Any, pointer: str) -> Provider:
        fields = self._fields(entry, pointer, _PROVIDER)
        if "name" not in fields:
            raise self._error(pointer, "a provider without a name", "name: primary")
        if ("url" in fields) == ("use" in fields):
            raise self._error(pointer, "a provider has either `url` or `use`", "use: mock:yes")
        for name in _OF_A_URL:
            if "use" in fields and name in fields:
                raise self._error(f"{pointer}/{name}", f"`{name}` goes with `url`", None)
        models = fields.get("models", {})
        if not all(isinstance(name, str) for pair in models.items() for name in pair):
            raise self._error(f"{pointer}/models", "`models` maps names of models to names", None)
        try:
            if fields.get("use", "").startswith("pool:"):
                raise self._error(f"{pointer}/use", "a pool in a pool", "list its providers here")
            client = self._endpoint(fields, pointer) if "url" in fields else self._named(fields["use"])
            return Provider(
                fields["name"],
                client,
                model=fields.get("model"),
                models=models,
                requests_per_minute=fields.get("requests_per_minute"),
            )
        except InputError as error:
            if error.place is not None and str(error.place):
                raise
            raise self._error(pointer, error.message, error.help) from error

    def _endpoint(self, fields: dict[str, Any], pointer: str) -> ModelClient:
        from nano_vm.providers.openai_compatible import OpenAICompatibleAdapter

        headers = {
            header: self._secret(variable, f"{pointer}/headers_env")
            for header, variable in fields.get("headers_env", {}).items()
        }
        key = self._secret(fields["key_env"], f"{pointer}/key_env") if "key_env" in fields else None
        prices = None
        if "price" in fields:
            # The price is the provider's, whatever it calls its models.
            names = {fields.get("model") or "", *fields.get("models", {}).values()} - {""}
            prices = dict.fromkeys(names, fields["price"])
        return OpenAICompatibleAdapter(
            fields["url"],
            model=fields.get("model"),
            api_key=key,
            timeout_seconds=fields.get("timeout_seconds", 60),
            idle_timeout_seconds=fields.get("idle_timeout_seconds"),
            stream=fields.get("stream", False),
            prices=prices,
            headers=headers,
        )

    def _secret(self, variable: Any, pointer: str) -> str:
        if not isinstance(variable, str) or not variable:
            raise self._error(
                pointer, "a key is named by the variable that holds it", "key_env: PRIMARY_API_KEY"
            )
        value = self._environment.get(variable)
        if not value:
            raise self._error(pointer, f"the variable `{variable}` is not set", f"export {variable}=…")
        return value

    def _fields(self, value: Any, pointer: str, known: Mapping[str, str]) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._error(pointer, "this should be a mapping", None)
        for name, given in value.items():
            wanted = known.get(name)
            if wanted is None:
                help = did_you_mean(name, known) or f"one of: {', '.join(known)}"
                raise self._error(f"{pointer}/{name}", f"unknown field `{name}`", help, key=True)
            if not _fits(given, wanted):
                raise self._error(f"{pointer}/{name}", f"`{name}` should be {wanted}", None)
        return value

    def _error(self, pointer: str, message: str, help: str | None, *, key: bool = False) -> InputError:
        return InputError("POOL", message, place=self._document.place(pointer, key=key)[0], help=help)


def _fits(value: Any, wanted: str) -> bool:
    if wanted == _TEXT:
        return isinstance(value, str) and bool(value)
    if wanted == _MAP:
        return isinstance(value, dict)
    if wanted == _FLAG:
        return isinstance(value, bool)
    if wanted == _WHOLE:
        return type(value) is int and 0 < value < 1_000_000_000
    if wanted == "a list":
        return isinstance(value, list)
    return type(value) in (int, float) and (value >= 0 if "from 0" in wanted else value > 0) and value < 1e9
