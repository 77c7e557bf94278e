"""encode, ask, plan: a clip is encoded chunk by chunk, stored, and asked about without it."""

import fcntl
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import vidsieve
from tests.clips import write
from vidsieve.cli import ask, main
from vidsieve.encoded import chunks, many
from vidsieve.engines.hf.loading import load
from vidsieve.errors import VidsieveError

pytest.importorskip("av")
pytest.importorskip("transformers")


def called(capsys: pytest.CaptureFixture[str], *command: Any) -> Any:
    """The JSON that a command prints."""
    capsys.readouterr()
    assert main.main([*map(str, command), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What a command ends with on standard error, after lines of progress."""
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def stored(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    model, clip = world / "model", world / "clip.mp4"
    found = called(capsys, "encode", clip, "--model", model, "--frames", 12, "--keep", "25%", "--out", tmp_path)
    return dict(found)


def test_a_clip_is_stored_and_asked_without_it(
    world: Path, stored: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    [row] = stored["rows"]
    assert (row["tokens_before"], row["tokens_after"], row["frames"]) == (6 * 192, 288, 12)
    encoded = vidsieve.EncodedVideo.load(row["file"])
    assert len(encoded.selection.kept) == 288
    found = called(capsys, "ask", row["file"], "-q", "What happens?", "-q", "Who?", "--max-new-tokens", 4)
    processor, model = load(str(world / "model"), bar=False)
    arguments = {"do_sample": False, "num_beams": 1, "max_new_tokens": 4}
    expected = [encoded.ask(model, processor, question, **arguments) for question in ("What happens?", "Who?")]
    assert [row["answer"] for row in found["rows"]] == expected
    assert found["model"] == str(world / "model")  # which the file names
    [video] = found["videos"]
    assert (video["clip"], video["tokens"]) == (str(world / "clip.mp4"), 288)
    frames = encoded.frames.seconds
    for span in video["spans"]:
        assert {span["start"], span["end"]} <= {*frames}
        shown = (encoded.seconds >= span["start"]) & (encoded.seconds <= span["end"])
        assert span["share"] == pytest.approx(shown.sum() / 288)
    assert 0.5 <= sum(span["share"] for span in video["spans"]) <= 1 + 1e-9


def test_after_the_answers_it_says_when_what_is_kept_is_shown(
    stored: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    file = stored["rows"][0]["file"]
    shown = r"\d:\d\d(-\d:\d\d)? \(\d+ %\)"
    for files, of in (([file], ""), ([file, file], " of clip.mp4")):
        capsys.readouterr()
        assert main.main(["ask", *files, "-q", "Who?", "--max-new-tokens", "2"]) == 0
        lines = capsys.readouterr().out.splitlines()[-len(files) :]
        for line in lines:
            assert re.fullmatch(f"most of the kept tokens{of}: {shown}(, {shown})*", line)


def test_a_method_inside_the_model_picks_of_what_is_stored(
    world: Path, stored: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, traces = stored["rows"][0]["file"], []

    def noted(*given: Any, **options: Any) -> Any:
        attachment = vidsieve.attach(*given, **options)
        traces.append(attachment.trace)
        return attachment

    monkeypatch.setattr(ask, "attach", noted)
    asked = ["ask", file, "-q", "What happens?", "-q", "Who?", "--max-new-tokens", 4]
    found = called(capsys, *asked, "--method", "pyramiddrop", "--keep", "20%")
    processor, model = load(str(world / "model"), bar=False)
    with vidsieve.attach(model, "pyramiddrop", keep=0.2) as trace:
        shown, arguments = vidsieve.EncodedVideo.load(file), {"do_sample": False, "num_beams": 1, "max_new_tokens": 4}
        expected = [shown.ask(model, processor, question, **arguments) for question in ("What happens?", "Who?")]
    assert [row["answer"] for row in found["rows"]] == expected
    assert [video.kept for video in traces[0].videos] == [video.kept for video in trace.videos]
    assert trace.videos[0].after < round(0.2 * 6 * 192)
    for name in ("vidsieve", "hieravid"):  # before anything is loaded
        monkeypatch.setattr(ask, "load", None)
        assert main.main([*map(str, asked), "--method", name]) == 1
        assert "acts before the layers of the language model" in last_line(capsys)
    assert main.main(["ask", file, "-q", "Who?", "--keep", "50%"]) == 1
    assert last_line(capsys).endswith(
        f"{file} holds 0.25 of the video's tokens, and --keep asks for 0.5; give less, or encode the clip again with a "
        "larger --keep"
    )
    for given in (["fastv"], ["fastv", "--keep", "25%"], ["pyramiddrop", "--keep", "70%"]):  # a quarter is stored
        assert main.main([*map(str, asked), "--method", *given]) == 1
        assert re.search(rf"{given[0]} would drop nothing: .*give a smaller --keep", last_line(capsys))


def test_the_same_command_goes_on_and_other_settings_are_refused(
    world: Path, stored: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [row] = stored["rows"]
    before = Path(row["file"]).stat().st_mtime_ns
    (tmp_path / "clip.vidsieve.1.part").write_bytes(b"what a killed run left")
    again = ["encode", world / "clip.mp4", "--model", world / "model", "--out", tmp_path]
    copied = shutil.copytree(world / "model", tmp_path / "copied")
    for model in (world / "model", f"{world}/./model/", os.path.relpath(world / "model")):
        found = called(capsys, *again, "--frames", 12, "--keep", "25%", "--model", model)
        assert found["rows"][0]["already_there"]
    assert Path(row["file"]).stat().st_mtime_ns == before
    assert not list(tmp_path.glob("*.part"))
    for other, says in {
        ("--frames", "10"): "holds this clip as 12 frames of 336 x 448, .* asked for: as 10 frames",
        ("--frames", "12", "--keep", "10%"): "holds this clip at keep 0.25; asked for: at keep 0.1",
        ("--frames", "12", "--method", "moments"): "holds this clip by Prune.*keep=0.25.*; asked for: by Prune",
        (
            "--frames",
            "12",
            "--pixels",
            "50%",
        ): r"holds this clip by Prune.*; asked for: by Prune.* after KCenter\(keep=0.5",
        ("--frames", "12", "--dtype", "bfloat16"): "holds this clip in float32; asked for: in bfloat16",
        ("--frames", "12", "--model", str(copied)): "holds this clip by the model .*; asked for: by the model",
    }.items():
        assert main.main([*map(str, again), "--keep", "25%", *other]) == 1
        error = capsys.readouterr().err
        assert re.search(says, error)
        assert error.endswith("; choose another folder\n")


def test_what_was_stored_without_strict_is_not_taken_for_whole(world: Path, tmp_path: Path) -> None:
    clips = clips_of(world, tmp_path / "clips", ("a.mp4",))
    request = many.Request([str(clips)], str(world / "model"), tmp_path / "out", {"num_frames": 4})
    strict = replace(request, sample={"num_frames": 4, "strict": True})
    file = Path(many.encode_all(request)["rows"][0]["file"])
    with pytest.raises(VidsieveError, match=r"was stored without strict, so .* may be in it; choose another folder"):
        many.encode_all(strict)
    file.unlink()
    many.encode_all(strict)
    assert vidsieve.EncodedVideo.load(file).strict
    for again in (strict, request):
        assert many.encode_all(again)["rows"][0]["already_there"]


def test_what_is_stored_of_a_clip_that_is_gone_is_there(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = clips_of(world, tmp_path / "clips", ("a.mp4",))
    command = ["encode", clips / "a.mp4", "--model", world / "model", "--out", tmp_path / "out", "--frames", 4]
    called(capsys, *command)
    (clips / "a.mp4").unlink()
    [row] = called(capsys, *command)["rows"]
    assert row["already_there"]
    assert row["not_compared"] == f"{clips / 'a.mp4'}: no such file"
    assert main.main([*map(str, command)]) == 0
    assert "was there, and the clip cannot be compared" in capsys.readouterr().out
    assert main.main([*map(str, command), "--keep", "5%"]) == 1
    assert "holds this clip at keep 0.1" in last_line(capsys)
    (clips / "a.mp4").hardlink_to(world / "clip.mp4")
    assert main.main([*map(str, command), "--start", "500"]) == 1
    assert "before the start at 500 s" in last_line(capsys)


def test_another_clip_whose_name_has_the_same_digest_is_not_taken_for_one(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = clips_of(world, tmp_path / "clips", ("a.mp4", "b.mp4"))
    monkeypatch.setattr(many.Request, "file", lambda request, clip: request.out / "a-1.vidsieve")
    request = many.Request([str(clips)], str(world / "model"), tmp_path / "out", {"num_frames": 4})
    first, other = many.encode_all(request)["rows"]
    assert "error" not in first
    assert other["error"] == f"{request.file('')} holds {clips / 'a.mp4'}, not this clip; choose another folder"


def clips_of(world: Path, folder: Path, names: Sequence[str] = ("a.mp4", "b.mp4", "c.mp4")) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).hardlink_to(world / "clip.mp4")
    return folder


def test_a_folder_of_a_model_has_one_name(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip, model = str(world / "clip.mp4"), f"{world}/./model/"
    request = many.Request([clip], model, tmp_path, {"num_frames": 4})
    assert "already_there" not in many.encode_all(request)["rows"][0]
    assert vidsieve.EncodedVideo.load(request.file(clip)).fingerprint.name == str(world / "model")
    for other in (model, os.path.relpath(model), str(world / "model")):
        assert "already_there" in many.encode_all(replace(request, model=other))["rows"][0]


def test_interrupted_it_says_how_many_are_stored_and_goes_on(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, calls = os.fsync, itertools.count()

    def interrupt(file: int) -> None:
        if next(calls) == 1:
            raise KeyboardInterrupt
        fsync(file)

    monkeypatch.setattr(os, "fsync", interrupt)
    clips, out = clips_of(world, tmp_path / "clips"), tmp_path / "out"
    command = ["encode", clips, "--model", world / "model", "--frames", 4, "--out", out]
    assert main.main([*map(str, command)]) == 130
    assert last_line(capsys) == (
        f"vidsieve: interrupted; 1 of 3 clips are stored in {out}; the same command goes on with the others"
    )
    assert [file.suffix for file in out.iterdir()] == [".vidsieve"]
    assert not [thread for thread in threading.enumerate() if thread.name == "vidsieve-stage"]
    rows = called(capsys, *command)["rows"]
    assert ["already_there" in row for row in rows] == [True, False, False]


def test_killed_while_it_writes_it_goes_on(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips, out = clips_of(world, tmp_path / "clips"), tmp_path / "out"
    command = ["encode", clips, "--model", world / "model", "--frames", 4, "--out", out]
    script = (
        "import itertools, os, signal, sys\n"
        "from vidsieve.cli import main\n"
        "fsync, calls = os.fsync, itertools.count()\n"
        "os.fsync = lambda file: fsync(file) if next(calls) != 1 else os.kill(os.getpid(), signal.SIGKILL)\n"
        f"main.main({[*map(str, command)]!r})\n"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == -signal.SIGKILL
    assert sorted(file.suffix for file in out.iterdir()) == [".part", ".vidsieve"]
    with (out / "x.vidsieve.1.part").open("wb") as other:  # of another process, which writes it now
        fcntl.flock(other, fcntl.LOCK_EX)
        rows = called(capsys, *command)["rows"]
    assert ["already_there" in row for row in rows] == [True, False, False]
    assert [file.name for file in out.glob("*.part")] == ["x.vidsieve.1.part"]
    assert len({vidsieve.EncodedVideo.load(file).frames.source for file in out.glob("*.vidsieve")}) == 3


def test_a_full_disk_ends_it_in_a_line(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    clips, out = clips_of(world, tmp_path / "clips"), tmp_path / "out"
    monkeypatch.setattr(os, "fsync", full)
    assert main.main(["encode", str(clips), "--model", str(world / "model"), "--frames", "4", "--out", str(out)]) == 1
    error = last_line(capsys)
    assert error.startswith(f"vidsieve: error: cannot write {out}")
    assert error.endswith("(No space left on device); nothing is left of it")
    assert not list(out.iterdir())


def test_a_model_that_cannot_be_loaded_is_no_fault_of_the_clips(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips, out = clips_of(world, tmp_path / "clips"), tmp_path / "out"
    command = ["encode", clips, "--model", world / "model", "--out", out, "--device", "nonsense"]
    assert main.main([*map(str, command)]) == 1
    assert last_line(capsys).startswith("vidsieve: error: device 'nonsense' cannot be used here")


def test_any_name_of_a_clip(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("two\nlines.mp4", os.fsdecode(b"\xff.mp4"), "\N{VIDEO CAMERA}" * 62 + ".mp4", "-h '.mp4")
    clips, out = clips_of(world, tmp_path / "clips", names), tmp_path / "out"
    command = [*map(str, ["encode", clips, "--model", world / "model", "--frames", 4, "--out", out])]
    assert main.main(command) == 0
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 2 * len(names) + 1
    printed.encode()
    rows = called(capsys, *command)["rows"]
    assert all(row["already_there"] for row in rows)
    assert {vidsieve.EncodedVideo.load(row["file"]).frames.source for row in rows} == {row["clip"] for row in rows}
    (tmp_path / "bad").mkdir()
    for name in names:
        (tmp_path / "bad" / name).write_bytes(b"no video")
        assert main.main(["encode", str(tmp_path / "bad" / name), *command[2:]]) == 1
        assert re.search("vidsieve: error: .*(bad|text).*is not a video", last_line(capsys))


def test_a_damaged_file_says_what_to_do(
    world: Path, stored: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(stored["rows"][0]["file"])
    data = file.read_bytes()
    again = ["encode", world / "clip.mp4", "--model", world / "model", "--out", tmp_path, "--frames", 12]
    for tenth in range(10):
        file.write_bytes(data[: len(data) * tenth // 10])
        for command in (["ask", file, "-q", "Who?"], [*again, "--keep", "25%"]):
            assert main.main([*map(str, command)]) == 1
            error = capsys.readouterr().err
            assert error.startswith(f"vidsieve: error: {file}: is damaged")
            assert error.endswith("; move it away, and encode the clip again\n")
            assert error.count("\n") == 1


def test_a_clip_that_fails_does_not_stop_the_others(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "broken.mp4").write_bytes(b"no video")
    write(tmp_path / "clips" / "whole.mp4")
    command = ["encode", tmp_path / "clips", "--model", world / "model", "--frames", 4, "--out", tmp_path / "out"]
    rows = called(capsys, *command)["rows"]
    assert [("error" in row, Path(row["clip"]).name) for row in rows] == [(True, "broken.mp4"), (False, "whole.mp4")]
    assert len(list((tmp_path / "out").iterdir())) == 1


@pytest.fixture
def bad(tmp_path: Path) -> dict[str, Path]:
    """Clips of which no frame can be had, by what is said of them."""
    av = pytest.importorskip("av")
    folder = tmp_path / "bad"
    folder.mkdir()
    found = {"no such file": "absent.mp4", "is empty (0 bytes)": "empty.mp4", "is not a video": "text.mp4"}
    paths = {says: folder / name for says, name in found.items()}
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("hello\n" * 100)
    with av.open(str(folder / "audio.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        sound = av.AudioFrame.from_ndarray(torch.zeros(1, 1024).numpy(), "fltp", "mono")
        sound.sample_rate = 48000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    return paths | {"has no video stream (only audio)": folder / "audio.mp4"}


def test_no_model_is_loaded_before_a_clip_is_known_to_have_frames(
    world: Path,
    bad: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads: list[str] = []
    monkeypatch.setattr(many, "load", lambda name, *more, **named: loads.append(name) or load(name, *more, **named))
    more = ["--model", str(world / "model"), "--frames", "4", "--out", str(tmp_path / "out")]
    for says, clip in bad.items():
        assert main.main(["encode", str(clip), *more]) == 1
        *told, error = capsys.readouterr().err.splitlines()
        assert error.startswith(f"vidsieve: error: {clip}: {says}")
        assert told == ([] if says in ("no such file", "is empty (0 bytes)") else told[:1])
    assert main.main(["encode", bad["no such file"].as_uri(), *more]) == 1
    assert main.main(["encode", str(bad["no such file"]), *more, "--model", "no/such"]) == 1
    assert last_line(capsys).endswith("absent.mp4: no such file")  # before the Hub is asked
    assert main.main(["encode", str(bad["no such file"]), *more[:-1], str(tmp_path / "none")]) == 1
    assert not (tmp_path / "none").exists()
    assert main.main(["encode", str(world / "clip.mp4"), *more, "--start", "500"]) == 1
    assert "before the start at 500 s" in last_line(capsys)
    assert main.main(["encode", *map(str, bad.values()), *more]) == 1
    assert last_line(capsys).startswith(f"vidsieve: error: none of 4 clips: {bad['no such file']}: no such file")
    assert loads == []
    rows = called(capsys, "encode", *bad.values(), world / "clip.mp4", *bad.values(), *more)["rows"]
    assert ["error" in row for row in rows] == [True] * 4 + [False]
    absent = tmp_path / "bad" / "late.mp4"
    rows = called(capsys, "encode", world / "clip.mp4", absent, *more, "--frames", 5, "--out", tmp_path / "o")["rows"]
    assert ["error" in row for row in rows] == [False, True]
    assert loads == [str(world / "model")] * 2


def test_no_worker_is_started_before_a_clip_of_this_machine_is_known_to_have_frames(
    world: Path, bad: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def encoded(worker: Any, request: many.Request, items: Any, *more: Any) -> Any:
        asked.append([json.loads(item["clip"]) for item in items])
        yield [{"row": json.dumps({"clip": clip, "error": "seen"}), "error": None} for clip in asked[-1]]

    monkeypatch.setattr(many.cluster, "check", lambda device: None)
    monkeypatch.setattr(many.cluster, "encoded", encoded)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    paths, clip = [str(path) for path in bad.values()], str(world / "clip.mp4")
    for clips, workers_get, address in (
        (paths, None, None),
        ([*paths[:2], clip, *paths[2:]], [clip, *paths[2:]], None),
        (paths, paths, "cluster:1"),  # whose machines have other files
    ):
        request = many.Request(clips, str(world / "model"), tmp_path / "out", {"num_frames": 4})
        asked.clear()
        with pytest.raises(vidsieve.errors.VidsieveError, match=f"none of {len(clips)} clips"):
            many.encode_all(request, address, 2)
        assert asked == ([] if workers_get is None else [workers_get])


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_what_opens_an_address_is_neither_told_nor_stored(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "clip.mp4")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{server.server_port}"
        clips = [f"http://me:secret@{host}/{name}.mp4?key=sesame" for name in ("clip", "absent")]
        more = ["--model", world / "model", "--frames", 4, "--out", tmp_path / "out"]
        commands = [["encode", *clips, *more], ["encode", clips[1], *more], ["plan", clips[0], *more[:4]]]
        codes = [main.main([*map(str, command)]) for command in commands * 2]
        printed = capsys.readouterr()
        rows = called(capsys, *commands[0])["rows"]
        server.shutdown()
    assert codes == [0, 1, 0] * 2
    assert [row["clip"] for row in rows] == [f"http://{host}/{name}.mp4" for name in ("clip", "absent")]
    [file] = (tmp_path / "out").iterdir()
    written = file.name + str(rows) + printed.out + printed.err + file.read_bytes().decode("latin1")
    assert f"http://{host}/absent.mp4: cannot be read as a video" in printed.err
    assert not re.search("secret|sesame", written)
    assert file.name.startswith("clip-")


def test_one_machine_needs_no_ray(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    command = ["encode", world / "clip.mp4", "--model", world / "model", "--frames", 4, "--out", tmp_path]
    assert len(called(capsys, *command, "--workers", 1)["rows"]) == 1
    for asked in (["--workers", "2"], ["--address", "127.0.0.1:1"]):
        assert main.main([*map(str, command), *asked]) == 1
        assert last_line(capsys).startswith("vidsieve: error: this needs ray, which could not be imported")


def test_a_clip_on_which_two_workers_died_fails(world: Path, tmp_path: Path) -> None:
    clip = str(world / "clip.mp4")
    request = many.Request([clip], str(world / "model"), tmp_path, {"num_frames": 4})
    worker, mark = many.EncodeVideos(request), request.file(clip).with_suffix(".trying")
    mark.write_text("x")
    assert "error" not in worker.row(clip)
    assert [file.suffix for file in tmp_path.iterdir()] == [".vidsieve"]
    mark.write_text("xx")
    assert "already_there" in worker.row(clip)
    request.file(clip).unlink()
    mark.write_text("xx")
    assert "2 workers died on it" in worker.row(clip)["error"]
    assert not list(tmp_path.iterdir())


def test_a_fault_of_the_program_is_no_fault_of_a_clip(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clips, out = clips_of(world, tmp_path / "clips"), tmp_path / "out"
    command = [*map(str, ["encode", clips, "--model", world / "model", "--frames", 4, "--out", out])]
    first = many.encode

    def wrong(*args: Any, **options: Any) -> Any:
        if "b.mp4" in args[2]:
            raise fault
        return first(*args, **options)

    monkeypatch.setattr(many, "encode", wrong)
    fault: Exception = torch.OutOfMemoryError("CUDA out of memory")
    assert ["error" in row for row in called(capsys, *command)["rows"]] == [False, True, False]
    fault = RuntimeError("The size of tensor a must match")
    assert main.main(command) == 1
    assert last_line(capsys) == "vidsieve: error: The size of tensor a must match"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--method", "cdpruner"], "needs the whole video or a prompt"),
        (["--method", "fastv"], "fastv cannot store clips: a Staged selects of a whole video"),
        (["--frames", "4", "--fps", "1"], "not allowed with"),
        (["--start", "1:75"], "expected seconds"),
        (["--start", "1e308:00"], "expected seconds"),
        (["--start", ":".join("0" * 200)], "expected seconds"),
        (["--start", "500"], "before the start at 500 s"),
    ],
)
def test_what_cannot_be_encoded_is_told_in_a_line(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], line: str
) -> None:
    command = ["encode", world / "clip.mp4", "--model", world / "model", "--out", tmp_path, *options]
    try:
        code = main.main([*map(str, command)])
    except SystemExit as stop:
        code = stop.code
    assert code in (1, 2)
    error = capsys.readouterr().err
    assert line in error
    assert "Traceback" not in error


def test_questions_come_from_standard_input(
    stored: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("What happens?\n\nWhat is <|video_pad|>?\nWho?\n"))
    folder = Path(stored["rows"][0]["file"]).parent  # which holds this clip alone
    found = called(capsys, "ask", folder, "--max-new-tokens", 2, "--keep", "10%")
    assert [("answer" in row, row["question"]) for row in found["rows"]] == [
        (True, "What happens?"),
        (False, "What is <|video_pad|>?"),
        (True, "Who?"),
    ]
    assert found["tokens"] == 115


def test_no_question_at_all_is_told(
    stored: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert main.main(["ask", stored["rows"][0]["file"]]) == 1
    assert last_line(capsys) == "vidsieve: error: no question came: give --question, or one a line on standard input"


def test_nothing_is_drawn_over_a_question_that_is_typed(
    stored: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    lines = iter(["What happens?\n", "Who?\n", ""])

    class Typed(io.StringIO):
        def readline(self, size: int | None = -1, /) -> str:
            assert told[-1] == ""
            return next(lines)

    def show(row: dict[str, Any]) -> None:
        assert told[-1] == ""

    monkeypatch.setattr("sys.stdin", Typed())
    asked = ask.Questions([Path(stored["rows"][0]["file"])], [], max_new_tokens=2)
    assert len(ask.ask_all(asked, told.append, show)["rows"]) == 2
    assert told.count("answering") == 2


def test_a_part_of_a_clip_in_smaller_pixels(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["encode", world / "clip.mp4", "--model", world / "model", "--out", tmp_path, "--fps", "2"]
    [row] = called(capsys, *command, "--start", "1", "--end", "0:03", "--max-pixels", 40_000)["rows"]
    frames = vidsieve.EncodedVideo.load(row["file"]).frames
    assert frames.seconds == pytest.approx((1, 1.5, 2, 2.5), abs=0.1)
    assert frames.pixels.shape[1] * frames.pixels.shape[2] <= 40_000


def test_a_plan_counts_what_encoding_gives(
    world: Path, stored: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", world / "model", "--frames", 12, "--keep", "25%", "--device", "cpu"]
    plan, [row] = called(capsys, "plan", world / "clip.mp4", *options), stored["rows"]
    assert {name: plan[name] for name in ("tokens_before", "tokens_after", "frames")} == {
        name: row[name] for name in ("tokens_before", "tokens_after", "frames")
    }
    _, model = load(str(world / "model"), bar=False)
    assert plan["bytes"]["weights"] == sum(x.nbytes for x in model.parameters())
    selection = vidsieve.EncodedVideo.load(row["file"]).selection
    assert selection.features.dtype == torch.float32
    assert len(selection.lengths) == 6  # each frame a scene
    assert plan["bytes"]["stored_most"] == pytest.approx(row["bytes"], abs=64)
    assert plan["bytes"]["stored"] < row["bytes"]
    assert plan["prompt_before"] - plan["prompt_after"] == row["tokens_before"] - row["tokens_after"]
    assert all(seconds > 0 for seconds in plan["seconds"].values())


@pytest.mark.parametrize("method", ["cdpruner", "fastv", "framefusion"])
def test_a_plan_refuses_what_encoding_refuses(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    options = [str(world / "clip.mp4"), "--model", str(world / "model"), "--method", method]
    assert main.main(["encode", *options, "--out", str(tmp_path)]) == 1
    refusal = last_line(capsys)
    assert main.main(["plan", *options]) == 1
    assert last_line(capsys) == refusal


def test_a_plan_times_what_encoding_does(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    kind = chunks._Chunks
    processed = kind.processed
    monkeypatch.setattr(kind, "processed", lambda self, chunk: asked.append(self) or processed(self, chunk))
    called(capsys, "plan", world / "clip.mp4", "--model", world / "model", "--device", "cpu")
    assert len(asked) == 2  # the first of which writes a prompt
    assert {made._device for made in asked} == {torch.device("cpu")}


def test_a_plan_of_a_processor_that_cannot_be_loaded_is_refused_in_a_line(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(world / "model", tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).write_text("{")
    assert main.main(["plan", str(world / "clip.mp4"), "--model", str(model), "--device", "cpu"]) == 1
    assert last_line(capsys).startswith(f"vidsieve: error: model '{model}' cannot be loaded: ")
