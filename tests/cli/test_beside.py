"""The clip is decoded while the model is loaded; errors and Ctrl-C of either are told, and wait for nothing."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import pytest

pytest.importorskip("av")
pytest.importorskip("transformers")
pytest.importorskip("torchvision")

from tests.cli.commands import command
from vidsieve.cli import main, run
from vidsieve.errors import VideoError, VidsieveError

Change = Callable[[str, Any], None]
LONG = 60  # seconds after which a test that hangs fails


@pytest.fixture
def stuck() -> Iterator[Event]:
    """Decoding that waits for this event; set at the end, so that no thread is left."""
    event = Event()
    yield event
    event.set()


def decoding(monkeypatch: pytest.MonkeyPatch, before: Callable[[], Any]) -> None:
    """Have `before` called in the thread that decodes."""
    indexed = run.indexed

    def changed(*arguments: Any) -> Any:
        decode = indexed(*arguments)
        return lambda: (before(), decode())[1]

    monkeypatch.setattr(run, "indexed", changed)


def loading(monkeypatch: pytest.MonkeyPatch, before: Callable[[], Any]) -> None:
    load = run.load
    monkeypatch.setattr(run, "load", lambda *a, **k: (before(), load(*a, **k))[1])


def raising(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def test_both_run_at_the_same_time(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    met = Barrier(2)  # which one alone never passes
    decoding(monkeypatch, lambda: met.wait(LONG))
    loading(monkeypatch, lambda: met.wait(LONG))
    assert main.main(command(world, "--only-reduced")) == 0
    assert "of decoding while the model was loaded, which took" in capsys.readouterr().out


def test_an_error_of_the_decoder_is_told(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    decoding(monkeypatch, raising(VideoError("clip.mp4: frame 3 is gone")))
    assert main.main(command(world)) == 1
    assert capsys.readouterr().err == "vidsieve: error: clip.mp4: frame 3 is gone\n"


@pytest.mark.parametrize(("error", "code"), [(VidsieveError("no such model"), 1), (KeyboardInterrupt(), 130)])
def test_an_error_of_loading_does_not_wait_for_the_decoder(
    world: Path, monkeypatch: pytest.MonkeyPatch, stuck: Event, error: BaseException, code: int
) -> None:
    decoding(monkeypatch, lambda: stuck.wait(LONG))
    loading(monkeypatch, raising(error))
    assert main.main(command(world)) == code
    assert not stuck.is_set()


def test_what_is_no_video_is_told_before_a_model_is_loaded(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loading(monkeypatch, raising(AssertionError("loaded")))
    assert main.main(command(world, clip="absent.mp4")) == 1
    assert capsys.readouterr().err == f"vidsieve: error: {world / 'absent.mp4'}: no such file\n"


@pytest.mark.skipif(os.name != "posix", reason="signals of this kind are POSIX")
@pytest.mark.parametrize("load", ["time.sleep(100)", "None, None"], ids=["while-loading", "while-waiting"])
def test_control_c_ends_the_process_while_the_clip_is_decoded(world: Path, load: str) -> None:
    script = (
        "import signal, sys, threading, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell may have started all this deaf to it
        "from vidsieve.cli import main, run\n"
        "run.indexed = lambda *_: lambda: threading.Event().wait(100)\n"
        "def load(*_, **__):\n"
        "    print('loading', flush=True)\n"
        f"    return {load}\n"
        "run.load = load\n"
        f"sys.exit(main.main({command(world)!r}))\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"loading\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=LONG)
    assert process.returncode == 130
    assert b"vidsieve: interrupted\n" in err
