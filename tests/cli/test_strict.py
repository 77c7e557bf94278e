"""A clip that is cut short: read as far as it goes, with a warning, or refused where one asks for that."""

import warnings
from pathlib import Path
from threading import Event
from typing import Any

import pytest

pytest.importorskip("av")
pytest.importorskip("transformers")
pytest.importorskip("torchvision")

from tests.cli.commands import command
from tests.clips import cut, write
from vidsieve.cli import main, run
from vidsieve.encoded.batch import EncodeClips
from vidsieve.video import begin

LONG = 60  # seconds after which a test that hangs fails


@pytest.fixture(scope="module")
def world(world: Path) -> Path:
    """The first part of a clip beside the others, as cut.mp4."""
    cut(write(world / "whole.mp4", container={"movflags": "faststart"}))
    return world


def cut_short(world: Path, *more: str) -> list[str]:
    return command(world, "--frames", "4", "--max-new-tokens", "1", "--only-reduced", *more, clip="cut.mp4")


def test_run(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert main.main(cut_short(world)) == 0
    said = [str(one.message) for one in told] + capsys.readouterr().err.splitlines()
    assert sum("cut.mp4: is cut short" in line for line in said) == 1
    assert main.main(cut_short(world, "--strict")) == 1
    assert "cut.mp4: is cut short" in capsys.readouterr().err


def test_a_library_that_silences_its_own_warnings_does_not_silence_this(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    silent, decoded = Event(), Event()
    indexed, load = begin.indexed, run.load

    def decoding(*arguments: Any) -> Any:
        decode = indexed(*arguments)

        def meanwhile(come: Any) -> Any:
            silent.wait(LONG)
            try:
                return decode(come)
            finally:
                decoded.set()

        return meanwhile

    def loading(*arguments: Any, **options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            silent.set()
            assert decoded.wait(LONG)
        return load(*arguments, **options)

    monkeypatch.setattr(begin, "indexed", decoding)
    monkeypatch.setattr(run, "load", loading)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert main.main(cut_short(world)) == 0
    said = [str(one.message) for one in told] + capsys.readouterr().err.splitlines()
    assert sum("cut.mp4: is cut short" in line for line in said) == 1


def test_encode(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", str(world / "model"), "--frames", "4", "--out"]
    encode = ["encode", str(world / "cut.mp4"), *options, str(tmp_path / "strict"), "--strict"]
    assert main.main(encode) == 1
    assert "cut.mp4: is cut short" in capsys.readouterr().err
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert main.main(encode[:-1]) == 0
    said = [str(one.message) for one in told] + capsys.readouterr().err.splitlines()
    assert sum("cut.mp4: is cut short" in line for line in said) == 1


def test_workers_of_batch_take_it(world: Path, tmp_path: Path) -> None:
    model, clip = str(world / "model"), str(world / "cut.mp4")
    with pytest.warns(UserWarning, match=r"cut.mp4: is cut short"):
        assert "error" not in EncodeClips(model, tmp_path / "lax", num_frames=4).row(clip)
    row = EncodeClips(model, tmp_path / "strict", num_frames=4, strict=True).row(clip)
    assert "cut.mp4: is cut short" in row["error"]
