"""A video that a thread decodes: frames are told of as they come, and errors and faults where they are waited for."""

import threading
import warnings
from pathlib import Path

import pytest
import torch

pytest.importorskip("av")

from tests.clips import cut, numbers, write
from vidsieve.errors import VideoError
from vidsieve.types.coming import Come, ComingFrames
from vidsieve.types.frames import Frames
from vidsieve.video import begin_video, read_video
from vidsieve.video.decode import indexed
from vidsieve.video.wanted import Wanted

LONG = 60  # seconds after which a test that hangs fails


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("video") / "clip.mp4")


def test_it_gives_what_read_video_gives(clip: Path) -> None:
    expected, found = read_video(clip, num_frames=9), begin_video(clip, num_frames=9).result()
    assert torch.equal(found.pixels, expected.pixels)
    for name in ("index", "seconds", "fps", "total", "duration", "source", "decoded", "key_frames"):
        assert getattr(found, name) == getattr(expected, name)


@pytest.mark.parametrize("threads", [1, 4])
def test_frames_that_are_told_of_are_decoded(clip: Path, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    seen: list[int] = []

    def come(frames: Frames, count: int) -> None:
        assert numbers(frames.pixels[:count]) == list(frames.index[:count])
        seen.append(count)

    frames = indexed(clip, Wanted(num_frames=20))(come)
    assert seen == list(range(1, 21))
    assert len(frames) == 20


def test_frames_in_another_order_are_not_told_of(clip: Path) -> None:
    seen: list[int] = []
    frames = indexed(clip, Wanted(index=[4, 4, 2]))(lambda frames, count: seen.append(count))
    assert numbers(frames.pixels) == [4, 4, 2]
    assert not seen
    indexed(clip, Wanted(index=[2, 4, 4]))(lambda frames, count: seen.append(count))
    assert seen == [1, 3]


def test_what_is_no_video_is_raised_at_once(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"absent.mp4: no such file"):
        begin_video(tmp_path / "absent.mp4")
    with pytest.raises(ValueError, match="give one of num_frames, fps and index"):
        begin_video(tmp_path / "absent.mp4", num_frames=3, fps=1)


def test_what_cannot_be_decoded_is_raised_where_it_is_waited_for(clip: Path) -> None:
    coming = begin_video(clip, index=[1000])
    assert list(coming.spans()) == []
    for _ in range(2):
        with pytest.raises(VideoError, match="has no frame 1000"):
            coming.result()


def test_a_file_that_is_cut_short_is_warned_of_once_where_it_is_waited_for(tmp_path: Path) -> None:
    short = cut(write(tmp_path / "whole.mkv"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        coming = begin_video(short, num_frames=9)
        assert sum(end - begin for _, begin, end in coming.spans()) in (0, 9)  # 0 if it had ended before
    with pytest.warns(UserWarning, match="is cut short"):
        coming.result()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        coming.result()
    with pytest.raises(VideoError, match="is cut short"):
        begin_video(short, num_frames=9, strict=True).result()


def frames_of(count: int) -> Frames:
    return Frames(torch.zeros(count, 2, 2, 3, dtype=torch.uint8), tuple(range(count)), (0.0,) * count, 1.0, count, 1.0)


@pytest.mark.parametrize(
    ("count", "joined", "expected"),
    [
        (64, 1, [(begin, begin + 8) for begin in range(0, 64, 8)]),
        (9, 1, [(0, 4), (4, 8), (8, 9)]),
        (9, 3, [(0, 6), (6, 9)]),
        (50, 2, [*((begin, begin + 8) for begin in range(0, 48, 8)), (48, 50)]),
        (2, 2, [(0, 2)]),
    ],
)
def test_spans_are_eighths_of_whole_patches(count: int, joined: int, expected: list[tuple[int, int]]) -> None:
    frames, looking = frames_of(count), threading.Event()

    def decode(come: Come) -> Frames:
        come(frames, count)
        assert looking.wait(LONG)
        return frames

    spans = []
    for some, begin, end in ComingFrames(decode).spans(joined):
        looking.set()
        assert some is frames
        spans.append((begin, end))
    assert spans == expected


def test_a_span_is_there_before_the_next_frame_is_decoded() -> None:
    frames, taken = frames_of(8), threading.Event()

    def decode(come: Come) -> Frames:
        come(frames, 4)
        assert taken.wait(LONG)
        come(frames, 7)
        come(frames, 8)
        return frames

    coming = ComingFrames(decode)
    spans = coming.spans()
    assert next(spans)[1:] == (0, 4)
    assert coming.ended is None
    taken.set()
    assert [span[1:] for span in spans] == [(4, 8)]
    assert coming.ended is not None


def test_a_decoder_that_begins_anew_is_followed() -> None:
    wrong, frames, taken = frames_of(8), frames_of(5), threading.Event()

    def decode(come: Come) -> Frames:
        come(wrong, 6)
        assert taken.wait(LONG)
        come(frames, 5)
        return frames

    spans = ComingFrames(decode).spans()
    assert next(spans) == (wrong, 0, 4)
    taken.set()
    assert list(spans) == [(frames, 0, 4), (frames, 4, 5)]
