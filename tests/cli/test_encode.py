"""encode, ask, plan: a clip is encoded chunk by chunk, stored, and asked about without it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import vidsieve
from tests.clips import write
from vidsieve.cli import main
from vidsieve.engines.hf.loading import load

pytest.importorskip("av")
pytest.importorskip("transformers")


def called(capsys: pytest.CaptureFixture[str], *command: Any) -> Any:
    """The JSON that a command prints."""
    capsys.readouterr()
    assert main.main([*map(str, command), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


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


def test_the_same_command_goes_on_and_other_settings_are_refused(
    world: Path, stored: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [row] = stored["rows"]
    before = Path(row["file"]).stat().st_mtime_ns
    (tmp_path / "clip.vidsieve.1.part").write_bytes(b"what a killed run left")
    again = ["encode", world / "clip.mp4", "--model", world / "model", "--out", tmp_path]
    found = called(capsys, *again, "--frames", 12, "--keep", "25%")
    assert found["rows"][0]["already_there"]
    assert Path(row["file"]).stat().st_mtime_ns == before
    assert not list(tmp_path.glob("*.part"))
    for other in (["--frames", "10", "--keep", "25%"], ["--frames", "12", "--keep", "10%"]):
        assert main.main([*map(str, again), *other]) == 1
        assert "choose another folder" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--method", "cdpruner"], "needs the whole video or a prompt"),
        (["--method", "fastv"], "expected Prune("),
        (["--frames", "4", "--fps", "1"], "not allowed with"),
        (["--start", "1:75"], "expected seconds"),
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
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("What happens?\n\nWho?\n"))
    found = called(capsys, "ask", stored["rows"][0]["file"], "--max-new-tokens", 2, "--keep", "10%")
    assert [row["question"] for row in found["rows"]] == ["What happens?", "Who?"]
    assert found["tokens"] == 115


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
    features = vidsieve.EncodedVideo.load(row["file"]).selection.features
    assert plan["bytes"]["stored"] == features.nbytes
    assert features.dtype == torch.float32
    assert plan["prompt_before"] - plan["prompt_after"] == row["tokens_before"] - row["tokens_after"]
    assert all(seconds > 0 for seconds in plan["seconds"].values())
