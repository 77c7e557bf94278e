"""synthetic_clip.py: the clip is always the same, and the model loads as a real checkpoint does."""

from pathlib import Path

import pytest

from tests.synthetic_clip import FRAMES, HEIGHT, SCENE, SCENES, WIDTH, build_model, render_clip
from vidsieve.engines.hf.loading import load
from vidsieve.errors import MissingExtra
from vidsieve.video.decode import read_video

pytest.importorskip("av")
pytest.importorskip("transformers")


def test_the_clip_has_its_scenes_and_is_always_the_same(tmp_path: Path) -> None:
    clip = render_clip(tmp_path / "clip.mp4")
    frames = read_video(clip, size=None, num_frames=1000)
    assert frames.pixels.shape == (
        len(SCENES) * SCENE,
        HEIGHT,
        WIDTH,
        3,
    )
    assert frames.duration == pytest.approx(12.5)
    change = frames.pixels.float().diff(dim=0).abs().mean((1, 2, 3))
    cuts = sorted((change.topk(len(SCENES) - 1).indices + 1).tolist())
    assert cuts == [30, 60, 90, 120]
    assert (change > 0).float().mean() > 0.9  # something always moves
    assert render_clip(tmp_path / "again.mp4").read_bytes() == clip.read_bytes()


def test_no_token_frame_of_the_clip_joins_two_scenes(tmp_path: Path) -> None:
    index = [round(i * (len(SCENES) * SCENE - 1) / (FRAMES - 1)) for i in range(FRAMES)]
    scenes = [number // SCENE for number in index]
    assert scenes[::2] == scenes[1::2]


def test_the_model_loads_as_a_checkpoint_and_is_always_the_same(tmp_path: Path) -> None:
    first = build_model(tmp_path / "model")
    processor, model = load(str(first))
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
    assert processor.tokenizer.decode(processor.tokenizer("héllo")["input_ids"]) == "héllo"
    again = build_model(tmp_path / "again")
    for name in ("model.safetensors", "tokenizer.json", "processor_config.json"):
        assert (first / name).read_bytes() == (again / name).read_bytes()


def test_without_torchvision_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchvision", None)
    with pytest.raises(MissingExtra, match=r"torchvision.*pip install .*\[hf\]"):
        load(str(tmp_path))
