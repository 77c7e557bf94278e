"""Engines for the tests of this folder, which collect without vLLM too."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture
def start(checkpoints: Path) -> Iterator[Callable[..., Any]]:
    """Engines, closed at the end of the test; one at a time."""
    from tests.engines.vllm import engine

    running: list[engine.Engine] = []

    def starting(family: str, *args: Any, **options: Any) -> engine.Engine:
        while running:
            running.pop().close()
        running.append(engine.Engine(engine.checkpoint(family, checkpoints), *args, **options))
        return running[0]

    yield starting
    while running:
        running.pop().close()


@pytest.fixture
def log() -> Iterator[list[str]]:
    """What vidsieve writes into vLLM's log."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("vllm.vidsieve")
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)
