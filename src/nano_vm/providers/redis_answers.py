"""Cached answers in Redis, for many machines (extra `[redis]`).

    cache = ModelCache(adapter, RedisAnswers("redis://127.0.0.1:6379/0"))

A Redis that cannot be reached is a cache that has nothing: it fails no run.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import AsyncGenerator
from typing import Any

from nano_vm.errors import InputError, RuntimeFault

PREFIX = "nano-vm:answer:"
TIMEOUT_S = 1.0
_STAMP_BYTES = 8  # before each answer: when it was made


class RedisAnswers:
    """Where a `ModelCache` keeps answers.

    Args:
        url: `redis://[:PASSWORD@]HOST:PORT/DB`; the password is shown nowhere.
        max_age_seconds: Redis itself forgets answers after that long; None keeps them, as far as its own limits allow.
        prefix: of all keys.

    Raises:
        RuntimeFault: EXTRA_MISSING when redis is not installed.
        InputError: USAGE for an address that is none.
    """

    def __init__(self, url: str, *, max_age_seconds: int | None = None, prefix: str = PREFIX) -> None:
        try:
            import redis.asyncio
        except ImportError:
            raise RuntimeFault(
                "EXTRA_MISSING",
                "a cache in Redis needs redis",
                help="pip install 'nano-vm[redis]'",
                facts={"extra": "redis"},
            ) from None
        self._redis = redis.asyncio
        self._errors: tuple[type[Exception], ...] = (redis.RedisError, OSError, TimeoutError)
        self._url = url
        self._max_age = max_age_seconds
        self._prefix = prefix
        self._clients: weakref.WeakKeyDictionary[
            asyncio.AbstractEventLoop, tuple[Any, AsyncGenerator[Any, None]]
        ] = weakref.WeakKeyDictionary()
        self.failures = 0  # how often Redis could not be reached
        try:
            redis.asyncio.Redis.from_url(url)
        except ValueError:
            raise InputError("USAGE", "the address of Redis is none", help="redis://HOST:6379/0") from None

    def __repr__(self) -> str:
        return "<RedisAnswers>"

    async def get(self, key: str, made_after_ms: int) -> bytes | None:
        """The answer under `key`, if it was made later than that."""
        found = await self._try("get", self._prefix + key)
        if not isinstance(found, bytes) or len(found) < _STAMP_BYTES:
            return None
        made_at = int.from_bytes(found[:_STAMP_BYTES], "big")
        return found[_STAMP_BYTES:] if made_at > made_after_ms else None

    async def put(self, key: str, body: bytes) -> None:
        """Keep an answer; the newest one stands."""
        stamp = (time.time_ns() // 1_000_000).to_bytes(_STAMP_BYTES, "big")
        await self._try("set", self._prefix + key, stamp + body, ex=self._max_age)

    async def drop(self, key: str) -> None:
        """Forget an answer."""
        await self._try("delete", self._prefix + key)

    async def clear(self) -> None:
        """Forget all answers under our prefix."""
        client = await self._client()
        try:
            async for key in client.scan_iter(match=self._prefix + "*", count=1_000):
                await client.delete(key)
        except self._errors:
            self.failures += 1

    async def _try(self, command: str, *args: Any, **options: Any) -> Any:
        client = await self._client()
        try:
            return await getattr(client, command)(*args, **options)
        except self._errors:
            self.failures += 1
            return None

    async def _client(self) -> Any:
        """The connections of the running loop; they close with it (as those of `OpenAICompatibleAdapter` do)."""
        loop = asyncio.get_running_loop()
        kept = self._clients.get(loop)
        if kept is not None:
            return kept[0]

        async def hold() -> AsyncGenerator[Any, None]:
            client = self._redis.Redis.from_url(
                self._url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S
            )
            try:
                yield client
            finally:
                await client.aclose()

        generator = hold()
        client = await anext(generator)
        self._clients[loop] = client, generator
        return client
