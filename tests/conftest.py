"""For all tests."""

from __future__ import annotations

from hypothesis import settings

# How long an example takes says something about the machine, and nothing about what is tested.
settings.register_profile("nano-vm", deadline=None)
settings.load_profile("nano-vm")
