"""A folder to run commands in."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a drawn clip.mp4 and a random model/, which takes longer to make than most tests here take."""
    from tests import synthetic_clip  # draws with extras that a test may be skipped without

    folder = tmp_path_factory.mktemp("cli")
    synthetic_clip.render_clip(folder / "clip.mp4")
    synthetic_clip.build_model(folder / "model")
    return folder
