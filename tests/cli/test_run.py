"""run, show, demo: from a clip to an answer, a result and a picture."""

import json
import os
import re
from pathlib import Path

import pytest

from tests.cli.commands import command
from tests.clips import write
from vidsieve import registry
from vidsieve.cli import answer, demo, main, report, run

pytest.importorskip("av")
pytest.importorskip("transformers")
pytest.importorskip("rich")


@pytest.fixture(scope="module")
def result(world: Path) -> dict:
    assert main.main(command(world, "--out", str(world / "out"), "--keep", "0.25")) == 0
    return json.loads((world / "out" / "result.json").read_text())


def test_run_writes_a_result_whose_numbers_agree(result: dict) -> None:
    assert (result["tokens_before"], result["tokens_after"]) == (4 * 192, 192)
    assert len(result["kept"]) == result["tokens_after"] == sum(result["budgets"])
    assert result["kept"] == sorted(set(result["kept"]))
    assert sum(result["tokens"]) == result["tokens_before"]
    assert result["grid"] == [12, 16]
    assert result["frames"]["index"] == [0, 21, 43, 64, 85, 106, 128, 149]
    assert result["prompt_before"] - result["prompt_after"] == result["tokens_before"] - result["tokens_after"]
    assert (result["method"], result["keep"]) == ("vidsieve", 0.25)
    assert isinstance(result["answer"], str)
    assert isinstance(result["answer_unreduced"], str)
    stages = result["stages_ms"]
    reduction = {"segment", "budget", "relevance", "select"}
    split = {"decode", "process", "vision", "prefill", "first_token", "rest"}
    assert split | reduction <= set(stages)
    assert all(milliseconds >= 0 for milliseconds in stages.values())
    assert set(result["stages_ms_unreduced"]) == split
    for some in (stages, result["stages_ms_unreduced"]):
        assert some["vision"] > 0
        assert some["first_token"] == pytest.approx(sum(some[n] for n in ("decode", "process", "vision", "prefill")))
    assert sum(stages[name] for name in reduction) < stages["prefill"]
    assert set(result["memory"]) == {"kv_bytes"}  # the peak is measured on CUDA only
    saved = result["memory"]["kv_bytes"] / result["memory_unreduced"]["kv_bytes"]
    assert saved == result["prompt_after"] / result["prompt_before"]
    assert result["versions"]["torch"]


def test_run_draws_a_picture_and_says_how_long_that_took(world: Path, result: dict) -> None:
    assert sorted(path.name for path in (world / "out").iterdir()) == ["overlay.png", "result.json"]
    assert (world / "out" / "overlay.png").stat().st_size > 1000
    assert result["stages_ms"]["draw"] > 0


def test_the_picture_has_what_was_asked_answered_and_gained(world: Path, result: dict) -> None:
    assert re.fullmatch(
        r"first token (\d+\.\dx (sooner|later)|equally soon) from the file, .* from the pixels, KV cache -\d\d %",
        result["gain"],
    )
    drawn = run.overlay(result)
    assert drawn.gain == result["gain"]
    assert drawn.texts == [
        ("question", "What moves?"),
        ("every token", result["answer_unreduced"]),
        ("reduced", result["answer"]),
    ]
    alone = run.overlay(result | {"answer_unreduced": None, "gain": None})
    assert (alone.gain, [name for name, _ in alone.texts]) == ("", ["question", "reduced"])


@pytest.mark.filterwarnings("default:no font on this machine")
def test_a_question_that_no_font_here_can_write_is_told_of_in_one_line(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vidsieve.video.lettering.FONTS", ())
    asked = command(world, "--only-reduced", "--out", str(tmp_path))
    asked[asked.index("What moves?")] = "\u4ec0\u4e48\u5728\u52a8?"
    assert main.main(asked) == 0
    out, err = capsys.readouterr()
    assert err.startswith("vidsieve: warning: no font on this machine has \u4ec0\u4e48\u5728\u52a8: ")
    assert err.count("\n") == 1
    assert "\u4ec0\u4e48\u5728\u52a8?" in out
    assert main.main(command(world, "--only-reduced", "--out", str(tmp_path))) == 0
    assert capsys.readouterr().err == ""


def test_a_film_is_drawn_on_request(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(command(world, "--only-reduced", "--film", "--out", str(tmp_path))) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["overlay.mp4", "overlay.png", "result.json"]
    out = capsys.readouterr().out
    assert [line.split()[:1] for line in out.splitlines()].count(["draw"]) == 1
    assert out.endswith(f"picture: {tmp_path / 'overlay.png'}\npicture: {tmp_path / 'overlay.mp4'}\n")
    assert main.main(["show", str(tmp_path), "--gif", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pictures"]["gif"] == str(tmp_path / "overlay.gif")


def test_keep_everything_answers_as_without(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(command(world, "--keep", "1", "--json")) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["tokens_after"] == result["tokens_before"]
    assert result["answer"] == result["answer_unreduced"]


def test_run_prints_for_people(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(command(world, "--method", "uniform")) == 0
    out = capsys.readouterr().out
    assert "768 video tokens -> 77 kept (10.0 %)" in out
    assert "every token" in out
    rows = [line.split("  ")[0].strip() for line in out.splitlines()]
    assert rows.index("decode") < rows.index("vision") < rows.index("prefill") < rows.index("first token")
    assert re.search(r"^first token .* from the file, .* from the pixels, KV cache -\d\d %$", out, re.MULTILINE)
    assert "What moves?" in out


@pytest.mark.parametrize("method", registry.methods())
def test_every_method_runs_at_what_it_is_known_for(
    world: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(command(world, "--method", method, "--only-reduced", "--json")) == 0
    result = json.loads(capsys.readouterr().out)
    if not registry.method(method).inside:
        assert result["tokens_after"] == 77
    else:
        assert result["stages"][-1]["tokens_after"] == result["tokens_after"] < result["tokens_before"]
        assert result["cost"] == pytest.approx(0.3, abs=0.01) or result["keep_of"] == "tokens"


def test_the_gain_says_what_was_measured_and_no_more() -> None:
    stages = {"decode": 40.0, "process": 10.0}
    result = {
        "stages_ms": stages | {"first_token": 150.0},
        "stages_ms_unreduced": stages | {"first_token": 1260.0},
        "memory": {"kv_bytes": 11, "peak_bytes": 64},
        "memory_unreduced": {"kv_bytes": 100, "peak_bytes": 100},
    }
    said = "first token 8.4x sooner from the file, 12.1x sooner from the pixels"
    assert run.gain(result) == f"{said}, KV cache -89 %, peak memory -36 %"
    assert run.gain(result | {"memory": {"peak_bytes": 100}}) == f"{said}, peak memory 0 %"
    assert run.gain(result | {"memory": {}, "memory_unreduced": {}}) == said
    equal = result | {"stages_ms_unreduced": stages | {"first_token": 153.0}, "memory": {}}
    assert run.gain(equal) == "first token equally soon from the file, equally soon from the pixels"
    slower = result | {"stages_ms": stages | {"first_token": 2470.0}, "memory": {}}
    assert run.gain(slower) == "first token 2.0x later from the file, 2.0x later from the pixels"


def test_an_empty_answer_is_said_to_be_empty(capsys: pytest.CaptureFixture[str]) -> None:
    for answer_, shown in (("", "(empty)"), (" \n", "(empty)"), (" pink", "pink")):
        report.show_answer({"question": "What colour?", "answer": answer_, "seconds": 0.05})
        assert capsys.readouterr().out == f"What colour?\n  {shown}  (50.0 ms)\n"


def test_the_tower_of_every_family_is_found() -> None:
    from tests.engines.hf import tiny
    from vidsieve.engines.hf.vision.tower import find_tower

    for family in tiny.FIRST:
        model = tiny.model(family)
        tower = find_tower(model)
        assert tower is not None, family
        assert any(tower is module for module in model.modules()), family


def test_the_time_of_the_tower_is_what_it_takes(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vidsieve.engines.hf import load, prepare
    from vidsieve.video import read_video

    processor, model = load(str(world / "model"))
    inputs = prepare(processor, read_video(world / "clip.mp4", num_frames=4), "What?")
    clock = iter(range(10_000))  # a second a look; two looks without the tower, two for the tower
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    found = answer.answer(model, processor, inputs, 2)
    assert found.stages_ms == {"vision": 1000.0, "prefill": 2000.0, "rest": 1000.0}
    assert found.trace is None
    assert not model.model.visual._forward_hooks
    assert not model.model.visual._forward_pre_hooks


@pytest.mark.gpu
def test_on_cuda_the_peak_of_memory_is_measured_too(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(command(world, "--device", "cuda", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    for kind in ("", "_unreduced"):
        stages, memory = found[f"stages_ms{kind}"], found[f"memory{kind}"]
        assert 0 < stages["vision"] < stages["first_token"]
        assert stages["prefill"] > 0
        assert memory["peak_bytes"] > memory["kv_bytes"] > 0
    assert main.main(command(world, "--device", "cuda")) == 0
    assert re.search(r"KV cache -\d+ %, peak memory [-+]?\d+ %$", capsys.readouterr().out, re.MULTILINE)


def test_show_draws_the_same_picture_again(world: Path, result: dict, tmp_path: Path) -> None:
    assert main.main(["show", str(world / "out"), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "overlay.png").read_bytes() == (world / "out" / "overlay.png").read_bytes()


def test_show_finds_a_clip_that_moved_with_its_result(
    world: Path, result: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clip.mp4").write_bytes((world / "clip.mp4").read_bytes())
    (tmp_path / "result.json").write_text(json.dumps(result | {"clip": "/gone/clip.mp4"}))
    assert main.main(["show", str(tmp_path / "result.json"), "--json"]) == 0
    pictures = json.loads(capsys.readouterr().out)["pictures"]
    assert pictures["png"] == str(tmp_path / "overlay.png")
    (tmp_path / "clip.mp4").unlink()
    assert main.main(["show", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "vidsieve: error: /gone/clip.mp4: no such file\n"


@pytest.mark.parametrize(
    ("text", "says"), [(None, "no such file"), ("no json", "is not a result.json"), ("[1]", "it has no clip")]
)
def test_show_refuses_what_is_no_result(
    tmp_path: Path, text: str | None, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "result.json").write_text(text)
    assert main.main(["show", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert err.count("\n") == 1


def test_demo_ends_by_saying_where_the_picture_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["demo", "--out", str(tmp_path / "demo")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("576 video tokens -> 58 kept (10.1 %)") for line in lines)
    _, right = demo.question()
    assert [line.split()[-1] for line in lines if line.startswith(("every token", "reduced"))] == [right, right]
    assert lines[-1] == f"picture: {tmp_path / 'demo' / 'overlay.png'}"
    assert (tmp_path / "demo" / "overlay.png").exists()


CLIPS = sorted(Path(os.environ.get("VIDSIEVE_CLIPS", "/nonexistent")).glob("*.mp4"))


@pytest.mark.skipif(not CLIPS, reason="set VIDSIEVE_CLIPS to a folder of real .mp4 clips")
def test_run_on_a_real_clip(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "-q",
        "?",
        "-m",
        str(world / "model"),
        "--frames",
        "4",
        "--max-new-tokens",
        "2",
        "--only-reduced",
        "--film",
    ]
    assert main.main(["run", str(CLIPS[0]), *arguments, "--json", "--out", str(tmp_path)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["tokens_after"] == round(0.1 * result["tokens_before"])
    assert Path(result["pictures"]["mp4"]).exists()


def test_keep_may_be_in_percent(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(command(world, "--keep", "25%", "--only-reduced", "--json")) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["keep"], result["tokens_after"]) == (0.25, 192)


def test_key_frames_are_sampled_recorded_and_said(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "clip.mp4", g="12", **{"x264-params": "scenecut=0"})
    line = command(world, "--only-reduced", "--out", str(tmp_path / "out"))
    line[1] = str(tmp_path / "clip.mp4")
    assert main.main(line) == 0
    out = capsys.readouterr().out
    sample = json.loads((tmp_path / "out" / "result.json").read_text())["frames"]
    assert (sample["sampling"], sample["key_frames"]) == ("even", 9)
    saved = 100 * (1 - 8 / sample["decoded"])
    advice = f"{sample['decoded']} frames were decoded for these 8: by that count, --sampling keyframes (8 frames, at "
    assert f"{advice}uneven distances) would save {saved:.0f} % of the decoding" in out
    assert main.main([*line, "--sampling", "keyframes"]) == 0
    out = capsys.readouterr().out
    assert "clip.mp4: 8 of 9 key frames among 100 frames" in out
    assert "by that count" not in out
    sample = json.loads((tmp_path / "out" / "result.json").read_text())["frames"]
    assert (sample["sampling"], sample["decoded"]) == ("keyframes", 8)
    assert sample["index"] == [0, 12, 24, 36, 60, 72, 84, 96]


def test_no_advice_where_key_frames_are_too_few(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(command(world, "--only-reduced", "--frames", "16")) == 0  # of which it has 5
    assert "--sampling" not in capsys.readouterr().out


def test_a_share_of_the_pixels_is_recorded_with_what_the_tower_did(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main([*command(world, "--only-reduced", "--pixels", "50%"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pixels"] == 0.5
    assert found["tower"] == "packed, 384 of 768 groups of pixels computed"
    assert len(found["computed"]) == 384
    assert run.overlay(found).computed.tolist() == found["computed"]
    assert found["tokens_before"] == 768
    assert "KCenter(keep=0.5" in found["reducer"]
