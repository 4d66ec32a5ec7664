"""Engines that are broken on purpose, for the processes that chaos starts."""

from __future__ import annotations

from pathlib import Path

import pytest


def repeat_blindly(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Every process that is started from here on repeats calls of unknown outcome, whatever they are."""
    broken = folder / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(
        "from nano_vm.kernel import transition\n"
        "from nano_vm.runtime import intents\n"
        "from nano_vm.runtime.tooling import EFFECTS\n"
        "intents.REPEATABLE = frozenset(EFFECTS)\n"
        "transition._ONCE = frozenset()\n"
    )
    patch.syspath_prepend(str(broken))
