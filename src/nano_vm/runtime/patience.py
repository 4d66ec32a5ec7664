"""Waiting for a store that a transactional tool of this very process keeps busy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from nano_vm.errors import StoreError

_T = TypeVar("_T")
PATIENCE_S = 30.0
_PAUSE_S = 0.005
_BY_OTHERS = frozenset({"sqlite", "sqlstate"})  # facts of an error that came from the database


async def patiently(call: Callable[[], _T]) -> _T:
    """`call()`, tried again while a tool's transaction of this process locks the store: it goes on only while we wait.

    Raises:
        StoreError: STORE_LOCKED after `PATIENCE_S`, or at once when somebody else holds the database: for them the call
            itself has waited as long as the store was told to. Everything else at once.
    """
    deadline = 0.0
    while True:
        try:
            return call()
        except StoreError as error:
            now = asyncio.get_running_loop().time()
            deadline = deadline or now + PATIENCE_S
            if error.code != "STORE_LOCKED" or now > deadline or _BY_OTHERS & error.facts.keys():
                raise
        await asyncio.sleep(_PAUSE_S)
