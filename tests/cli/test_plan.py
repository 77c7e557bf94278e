"""plan.py: the size of the file that encoding will write, of models that store more than rows."""

from pathlib import Path

import pytest

pytest.importorskip("torchvision", reason="transformers' video processors need torchvision")
pytest.importorskip("av", reason="reading a video file needs av")

import vidsieve
from tests.clips import write
from tests.engines.hf import processors, tiny
from vidsieve import registry
from vidsieve.cli import plan
from vidsieve.methods.chunked import in_chunks
from vidsieve.video import plan_video

FRAMES = 24


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("video") / "clip.mp4", count=FRAMES)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of GLM's processors, by numpy 2
@pytest.mark.parametrize(
    ("family", "method", "keep"),
    [
        ("qwen2_5_vl", "vidsieve", 0.1),
        ("qwen2_5_vl", "vidsieve", 1.0),
        ("qwen3_vl", "vidsieve", 0.1),
        ("glm4v", "vidsieve", 0.1),
        ("internvl", "vidsieve", 0.1),
        ("llava_onevision", "moments", 0.1),
    ],
)
def test_the_size_of_the_file_is_known_but_for_the_number_of_segments(
    family: str, method: str, keep: float, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor, model = processors.processor(family), tiny.model(family)
    processors.skip_unless_told_of_frames(processor)
    monkeypatch.setattr(plan, "_described", lambda *_: (processor, model))
    monkeypatch.setattr(plan, "_seconds", lambda *_: {})
    frames = plan_video(clip, num_frames=FRAMES)
    said = plan.plan(frames, family, in_chunks(registry.method(method)(keep)), "cpu")["bytes"]
    encoded = vidsieve.encode(model, processor, clip, keep, method=method, num_frames=FRAMES)
    encoded.save(tmp_path / "file")
    size, segments, most = (tmp_path / "file").stat().st_size, len(encoded.selection.lengths), len(encoded.tokens)
    assert said["stored"] - 64 <= size <= said["stored_most"] + 64  # digits in the header
    if said["stored"] == said["stored_most"]:
        assert method == "moments"  # whose segments are of a length
    elif len(encoded.selection.spare.kept) in (0, segments):  # else some segment has no other token
        # One, in which all these tokens have room, up to one a frame.
        expected = said["stored"] + (said["stored_most"] - said["stored"]) * (segments - 1) / (most - 1)
        assert size == pytest.approx(expected, rel=0.02)
