"""The clip is decoded while the model is loaded, and processed while it is decoded; errors and Ctrl-C are told, and
wait for nothing."""

import json
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
from vidsieve.engines.hf import loading as prepared
from vidsieve.errors import VideoError, VidsieveError
from vidsieve.video import begin

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
    indexed = begin.indexed

    def changed(*arguments: Any) -> Any:
        decode = indexed(*arguments)
        return lambda come: (before(), decode(come))[1]

    monkeypatch.setattr(begin, "indexed", changed)


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


def test_frames_are_processed_while_others_are_decoded(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    processed, indexed, prepare_video = Event(), begin.indexed, prepared.prepare_video

    def changed(*arguments: Any) -> Any:
        def decode(come: Any) -> Any:
            def told(frames: Any, count: int) -> None:
                come(frames, count)
                assert count < 4 or processed.wait(LONG)

            return indexed(*arguments)(told)

        return decode

    def processing(processor: Any, frames: Any, *device: Any) -> Any:
        made = prepare_video(processor, frames, *device)
        if not frames.pixels.is_meta:
            processed.set()
        return made

    monkeypatch.setattr(begin, "indexed", changed)
    monkeypatch.setattr(prepared, "cores_are_left", lambda: True)
    monkeypatch.setattr(prepared, "prepare_video", processing)
    assert main.main(command(world, "--json")) == 0
    beside = json.loads(capsys.readouterr().out)
    assert processed.is_set()
    monkeypatch.undo()
    assert main.main(command(world, "--json")) == 0
    alone = json.loads(capsys.readouterr().out)
    for name in ("kept", "answer", "answer_unreduced", "tokens", "frames"):
        assert beside[name] == alone[name]
    stages = beside["stages_ms"]
    assert all(stages[name] > 0 for name in ("decode", "process"))
    assert beside["loading_ms"]["waited"] > 0
    assert stages["first_token"] == pytest.approx(sum(stages[n] for n in ("decode", "process", "vision", "prefill")))


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
@pytest.mark.parametrize("rest", ["time.sleep(100)", "return loaded"], ids=["while-loading", "while-waiting"])
def test_control_c_ends_the_process_while_the_clip_is_decoded(world: Path, rest: str) -> None:
    script = (
        "import signal, sys, threading, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell may have started all this deaf to it
        "from vidsieve.cli import main, run\n"
        "from vidsieve.video import begin\n"
        "begin.indexed = lambda *_: lambda come: threading.Event().wait(100)\n"
        "load = run.load\n"
        "def loading(*arguments, **options):\n"
        "    loaded = load(*arguments, **options)\n"
        "    print('loading', flush=True)\n"
        f"    {rest}\n"
        "run.load = loading\n"
        f"sys.exit(main.main({command(world)!r}))\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"loading\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=LONG)
    assert process.returncode == 130
    assert b"vidsieve: interrupted\n" in err
