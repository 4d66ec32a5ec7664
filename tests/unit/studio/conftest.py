"""One filled database for tests that only look, and one of its own for each that acts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from unit.studio.studio_stage import Stage


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """Looked at only."""
    from unit.studio.studio_stage import Stage

    stage = Stage(tmp_path_factory.mktemp("studio"))
    stage.fill()
    return stage


@pytest.fixture
def looked_at(filled: Stage) -> Stage:
    from unit.studio.studio_stage import use

    use(filled.settings())
    return filled


@pytest.fixture
def own(filled: Stage, tmp_path: Path) -> Iterator[Stage]:
    """A copy to act on."""
    from unit.studio.studio_stage import Stage, use

    directory = tmp_path / "own"
    shutil.copytree(filled.path.parent, directory)
    stage = Stage.again(directory)
    use(stage.settings())
    yield stage
    stage.close()
