"""A video that a thread decodes: frames are told of as they come, and errors and faults where they are waited for."""

import threading
import warnings
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("av")

from tests.clips import cut, numbers, write
from vidsieve.errors import VideoError
from vidsieve.stages import Stopped
from vidsieve.types.coming import Come, ComingFrames
from vidsieve.types.frames import Frames
from vidsieve.video import begin_video, demux, read_video
from vidsieve.video.decode import indexed
from vidsieve.video.scaling import Scaling
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

    def come(frames: Frames, place: int) -> None:
        assert numbers(frames.pixels[place : place + 1]) == [frames.index[place]]
        seen.append(place)

    frames = indexed(clip, Wanted(num_frames=20))(come)
    assert seen[0] == 0
    assert sorted(seen) == list(range(20))
    assert threads > 1 or seen == sorted(seen)
    assert numbers(frames.pixels) == list(frames.index)


def test_a_frame_that_is_wanted_twice_is_told_of_twice(clip: Path) -> None:
    seen: list[int] = []
    frames = indexed(clip, Wanted(index=[4, 4, 2]))(lambda frames, place: seen.append(place))
    assert numbers(frames.pixels) == [4, 4, 2]
    assert seen == [2, 0, 1]


def test_what_is_wrong_with_the_arguments_is_raised_at_once(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"absent.mp4: no such file"):
        begin_video(tmp_path / "absent.mp4")
    with pytest.raises(ValueError, match="give one of num_frames, fps and index"):
        begin_video(tmp_path / "absent.mp4", num_frames=3, fps=1)


def test_what_is_no_video_is_raised_before_it_is_decoded(tmp_path: Path, clip: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    coming = begin_video(text)
    for _ in range(2):
        with pytest.raises(VideoError, match=r"text.mp4: is not a video that can be decoded"):
            coming.wait_until_known()
    with pytest.raises(VideoError, match=r"text.mp4: is not a video that can be decoded"):
        coming.result()
    begin_video(clip).wait_until_known()


def test_it_is_known_which_frames_there_are_before_they_are_decoded() -> None:
    waited, frames = threading.Event(), frames_of(2)

    def decode(come: Come) -> Frames:
        assert waited.wait(LONG)
        return frames

    coming = ComingFrames(lambda check: decode)
    coming.wait_until_known()
    assert coming.ended is None
    waited.set()
    assert coming.result() is frames


def test_what_cannot_be_decoded_is_raised_where_it_is_waited_for(clip: Path) -> None:
    coming = begin_video(clip, index=[1000])
    assert list(coming.spans(8, 4)) == []
    for _ in range(2):
        with pytest.raises(VideoError, match="has no frame 1000"):
            coming.result()


def test_a_file_that_is_cut_short_is_warned_of_once_where_it_is_waited_for(tmp_path: Path) -> None:
    short = cut(write(tmp_path / "whole.mkv"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        coming = begin_video(short, num_frames=9)
        assert sum(len(places) for _, places in coming.spans(8, 4)) in (0, 9)  # 0 if it had ended before
    with pytest.warns(UserWarning, match="is cut short"):
        coming.result()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        coming.result()
    with pytest.raises(VideoError, match="is cut short"):
        begin_video(short, num_frames=9, strict=True).result()


def frames_of(count: int) -> Frames:
    return Frames(torch.zeros(count, 2, 2, 3, dtype=torch.uint8), tuple(range(count)), (0.0,) * count, 1.0, count, 1.0)


def told(come: Come, frames: Frames, places: Iterable[int]) -> None:
    for place in places:
        come(frames, place)


@pytest.mark.parametrize(
    ("count", "joined", "lengths"),
    [(64, 1, [8] * 8), (9, 1, [4, 4, 1]), (9, 3, [6, 3]), (50, 2, [8] * 6 + [2]), (2, 2, [2]), (7, 2, [4, 3])],
)
@pytest.mark.parametrize("backwards", [False, True])
def test_spans_are_eighths_of_whole_patches(count: int, joined: int, lengths: list[int], backwards: bool) -> None:
    frames, looking = frames_of(count), threading.Event()
    order = list(range(count))[:: -1 if backwards else 1]

    def decode(come: Come) -> Frames:
        told(come, frames, order)
        assert looking.wait(LONG)
        return frames

    spans = []
    for some, places in ComingFrames(lambda check: decode).spans(8, 4, joined):
        looking.set()
        assert some is frames
        assert places == sorted(places)
        assert all(
            {*range(g * joined, min(count, (g + 1) * joined))} <= {*places} for g in {p // joined for p in places}
        )
        spans.append(places)
    every = list(chain(*spans))
    assert sorted(every) == list(range(count))
    assert backwards or every == list(range(count))
    assert sorted(map(len, spans), reverse=True) == sorted(lengths, reverse=True) or backwards


def test_a_span_is_there_before_the_next_frame_is_decoded() -> None:
    frames, taken = frames_of(8), threading.Event()

    def decode(come: Come) -> Frames:
        told(come, frames, [5, 0, 7, 2])
        assert taken.wait(LONG)
        told(come, frames, [1, 3, 6, 4])
        return frames

    coming = ComingFrames(lambda check: decode)
    spans = coming.spans(8, 4)
    assert next(spans)[1] == [0, 2, 5, 7]
    assert coming.ended is None
    taken.set()
    assert [places for _, places in spans] == [[1, 3, 4, 6]]
    assert coming.ended is not None


def test_frames_that_are_joined_come_together() -> None:
    frames, taken = frames_of(8), threading.Event()

    def decode(come: Come) -> Frames:
        told(come, frames, [0, 2, 4, 6, 7, 1])
        assert taken.wait(LONG)
        told(come, frames, [3, 5])
        return frames

    spans = ComingFrames(lambda check: decode).spans(8, 4, 2)
    assert next(spans)[1] == [0, 1, 6, 7]
    taken.set()
    assert [places for _, places in spans] == [[2, 3, 4, 5]]


def test_a_decoder_that_begins_anew_is_followed() -> None:
    wrong, frames, taken = frames_of(8), frames_of(5), threading.Event()

    def decode(come: Come) -> Frames:
        told(come, wrong, range(6))
        assert taken.wait(LONG)
        told(come, frames, range(5))
        return frames

    spans = ComingFrames(lambda check: decode).spans(8, 4)
    assert next(spans) == (wrong, [0, 1, 2, 3])
    taken.set()
    assert list(spans) == [(frames, [0, 1, 2, 3]), (frames, [4])]


def test_a_block_that_fails_ends_decoding(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    left, scale = threading.Event(), Scaling.__call__
    scaled: list[int] = []

    def late(self: Scaling, frame: Any) -> Any:
        scaled.append(frame.pts)
        assert len(scaled) == 1 or left.wait(LONG)
        return scale(self, frame)

    monkeypatch.setattr(Scaling, "__call__", late)
    with suppress(ZeroDivisionError), begin_video(clip, num_frames=20) as coming:
        coming.wait_until_known()
        _ = 1 // 0
    left.set()
    with pytest.raises(Stopped):
        coming.result()
    assert len(scaled) < 20
    with begin_video(clip, num_frames=20) as coming:
        pass
    assert len(coming.result()) == 20


def test_the_packets_of_a_file_are_read_no_further(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, left, listed = threading.Event(), threading.Event(), demux._listed

    def late(*args: Any) -> Any:
        entered.set()
        assert left.wait(LONG)
        return listed(*args)

    monkeypatch.setattr(demux, "_listed", late)
    coming = begin_video(clip)
    assert entered.wait(LONG)
    coming.stop()
    left.set()
    with pytest.raises(Stopped):
        coming.wait_until_known()
