"""For all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

import postgres_server

# How long an example takes says something about the machine, and nothing about what is tested.
settings.register_profile("nano-vm", deadline=None)
settings.load_profile("nano-vm")


@pytest.fixture(autouse=True, scope="session")
def nobodys_keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whoever runs the tests may have signing keys of their own: what is tested must not find them."""
    before = os.environ.get("NANO_VM_KEYS")
    os.environ["NANO_VM_KEYS"] = str(tmp_path_factory.mktemp("nobody") / "keys")
    yield
    if before is None:
        del os.environ["NANO_VM_KEYS"]
    else:
        os.environ["NANO_VM_KEYS"] = before


def pytest_sessionfinish() -> None:
    postgres_server.stop()
