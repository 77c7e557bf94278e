"""sampling="keyframes": key frames, as the plain decoder shows them, at their own times, and no other is decoded."""

from pathlib import Path

import pytest
import torch

av = pytest.importorskip("av")
pytest.importorskip("numpy")

from tests.clips import HEIGHT, WIDTH, decoded, numbers, rgb, write  # noqa: E402
from tests.video.test_files import ODD, joined, mid_group  # noqa: E402
from vidsieve.errors import VideoError  # noqa: E402
from vidsieve.video.decode import read_video  # noqa: E402

OPEN = {"g": "10", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("closed.mp4", "libx264", {"g": "20", "x264-params": "scenecut=0"}),
        ("open.mp4", "libx264", OPEN),
        ("stream.ts", "libx264", {"x264-params": "scenecut=0"}),
        ("pairs.mp4", "libx264", {"g": "2", "bf": "0"}),
        ("vfr.mkv", "libx264", {"pts": [5000 + 40 * i + 7 * (i % 5) + 900 * (i > 50) for i in range(100)]}),
        ("vp9.webm", "libvpx-vp9", {"g": "30", "deadline": "realtime", "cpu-used": "8"}),
    ],
)
def test_key_frames_are_those_of_the_plain_decoder(tmp_path: Path, name: str, codec: str, options: dict) -> None:
    path = write(tmp_path / name, codec=codec, **options)
    truth = [(i, frame) for i, frame in enumerate(decoded(path))]
    keys = [(i, frame) for i, frame in truth if frame.key_frame]
    frames = read_video(path, sampling="keyframes")
    assert len(keys) > 2
    assert frames.index == tuple(i for i, _ in keys)
    assert torch.equal(frames.pixels, torch.stack([rgb(frame, HEIGHT, WIDTH) for _, frame in keys]))
    first = truth[0][1].pts
    assert frames.seconds == pytest.approx([float((frame.pts - first) * frame.time_base) for _, frame in keys])
    assert (frames.total, frames.key_frames, frames.decoded) == (100, len(keys), len(keys))


def test_fewer_are_chosen_evenly_among_the_key_frames(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mp4", g="10", **{"x264-params": "scenecut=0"})
    frames = read_video(path, num_frames=4, sampling="keyframes", size=72)
    assert frames.index == (0, 30, 60, 90)
    assert numbers(read_video(path, num_frames=4, sampling="keyframes").pixels) == [0, 30, 60, 90]
    assert frames.pixels.shape == (4, 24, 72, 3)
    assert frames.decoded == 4
    assert read_video(path, num_frames=1, sampling="keyframes").index == (0,)
    assert read_video(path, num_frames=50, sampling="keyframes").index == tuple(range(0, 100, 10))


@pytest.mark.parametrize("other", [{"fps": 2}, {"index": [3]}])
def test_other_ways_to_choose_are_refused(clip: Path, other: dict) -> None:
    with pytest.raises(ValueError, match=r'sampling="keyframes" takes num_frames, not fps or index'):
        read_video(clip, sampling="keyframes", **other)
    with pytest.raises(ValueError, match=r'expected sampling "even" or "keyframes", got "?\'?key'):
        read_video(clip, sampling="key")  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [ODD["raw-h264"], ODD["one-stamp-for-three"], joined, mid_group])
def test_a_file_whose_key_frames_are_not_known_is_refused_in_one_line(tmp_path: Path, make) -> None:
    path = make(tmp_path)
    with pytest.raises(VideoError, match=r'lists no key frames that can be relied on.*sampling="even"') as caught:
        read_video(path, sampling="keyframes")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(read_video(path, num_frames=5)) == 5


def test_the_prompt_has_the_times_of_the_key_frames(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tests.engines.hf import processors
    from vidsieve.engines.hf import prepare

    pts = [40 * i + 9000 * (i >= 60) for i in range(100)]
    path = write(tmp_path / "gap.mkv", pts=pts, g="20", **{"x264-params": "scenecut=0"})
    frames = read_video(path, sampling="keyframes", size=(64, 96))
    assert frames.index == (0, 20, 40, 60, 80)
    assert frames.seconds == pytest.approx([0, 0.8, 1.6, 11.4, 12.2])
    processor = processors.processor("qwen3_vl")
    text = processor.tokenizer.decode(prepare(processor, frames, "What?")["input_ids"][0])
    for middle in ("0.4", "6.5", "12.2"):  # of two frames each; the last stands twice
        assert f"<{middle} seconds>" in text
