"""A clip to read."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.clips import write  # needs an extra that a test may be skipped without

    return write(tmp_path_factory.mktemp("video") / "clip.mp4")
