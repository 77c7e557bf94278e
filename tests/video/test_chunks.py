"""A video read in chunks has the frames and pixels of one that is read whole, and no more of them in memory."""

import gc
import os
import warnings
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

av = pytest.importorskip("av")
np = pytest.importorskip("numpy")

from tests.clips import HEIGHT, WIDTH, cut, numbers, picture, write, written  # noqa: E402
from tests.video.test_files import damaged, turned  # noqa: E402
from vidsieve.errors import VideoError, WrongArgument  # noqa: E402
from vidsieve.types.frames import Frames  # noqa: E402
from vidsieve.video import plan_video, read_chunks, read_video, scaling  # noqa: E402
from vidsieve.video.chosen import Decoder  # noqa: E402
from vidsieve.video.decode import indexed  # noqa: E402
from vidsieve.video.wanted import Wanted  # noqa: E402

SAME = ("index", "seconds", "fps", "total", "duration", "source", "key_frames")


def assert_same(path: Path, length: int = 5, **arguments: Any) -> list[Frames]:
    whole, planned = read_video(path, **arguments), plan_video(path, **arguments)
    assert planned.pixels.is_meta
    assert planned.pixels.shape == whole.pixels.shape
    assert [getattr(planned, name) for name in SAME] == [getattr(whole, name) for name in SAME]
    chunks = list(read_chunks(planned, length))
    assert torch.equal(torch.cat([chunk.pixels for chunk in chunks]), whole.pixels)
    assert [len(chunk) for chunk in chunks[:-1]] == [length] * (len(chunks) - 1)
    assert sum((chunk.index for chunk in chunks), ()) == whole.index
    assert sum((chunk.seconds for chunk in chunks), ()) == whole.seconds
    assert all(chunk.duration == whole.duration and chunk.total == whole.total for chunk in chunks)
    return chunks


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_frames": 23},
        {"num_frames": 23, "size": 72},
        {"num_frames": 3, "size": (30, 20)},
        {"fps": 7},
        {"index": [0, 3, 3, 3, 3, 3, 3, 40, 99]},
        {"num_frames": 7, "sampling": "keyframes"},
        {"fps": 10, "start": 1.0, "end": 3.5},
        {"fps": 1000, "max_frames": 17},
    ],
    ids=repr,
)
def test_chunks_are_the_whole(clip: Path, arguments: dict[str, Any]) -> None:
    assert_same(clip, **arguments)
    assert_same(clip, length=1000, **arguments)


def test_what_is_counted_by_decoding_is_read_in_chunks_too(tmp_path: Path) -> None:
    assert_same(write(tmp_path / "no_stamps.avi"), num_frames=12)
    assert_same(write(tmp_path / "same.mkv", pts=[i // 3 for i in range(100)], bf="0"), num_frames=12)


def test_a_turned_clip_is_planned_as_it_is_shown(tmp_path: Path) -> None:
    path = turned(write(tmp_path / "upright.mp4"), tmp_path / "turned.mp4", (0, 1, -1, 0))
    assert plan_video(path).pixels.shape[1:3] == (WIDTH, HEIGHT)
    assert_same(path, num_frames=7)


def test_chunks_decode_no_more_frames_than_the_whole(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_video(clip, num_frames=40)
    sent: list[int] = []
    frames = Decoder.frames
    monkeypatch.setattr(
        Decoder, "frames", lambda self, numbers, *to: sent.append(len(numbers)) or frames(self, numbers, *to)
    )
    planned = plan_video(clip, num_frames=40)
    chunks = list(read_chunks(planned, 8))
    assert sent == [0, 40]  # the first frame alone, for its size; then one decoder for all chunks
    assert sum(chunk.decoded for chunk in chunks) == whole.decoded
    assert planned.decoded == 0


def test_one_chunk_is_in_memory(clip: Path) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    for chunk in read_chunks(plan_video(clip, num_frames=30), 5):
        assert [one for one in alive if one() is not None] == []
        alive.append(weakref.ref(chunk.pixels))
        del chunk
    assert len(alive) == 6


@pytest.mark.parametrize(
    ("start", "end", "first", "last"),
    [
        (0, None, 0, 99),
        (1.0, None, 25, 99),
        (1.01, None, 25, 99),
        (0, 2.0, 0, 49),
        (0, 2.01, 0, 50),
        (3.97, 9.0, 99, 99),
    ],
)
def test_a_range_is_what_is_on_screen_in_it(clip: Path, start: float, end: float | None, first: int, last: int) -> None:
    frames = plan_video(clip, num_frames=1000, start=start, end=end)
    assert frames.index == tuple(range(first, last + 1))
    assert frames.seconds == pytest.approx([i / 25 for i in frames.index])
    assert (frames.total, frames.duration) == (100, pytest.approx(4))
    assert plan_video(clip, fps=1000, start=start, end=end).index == frames.index


def test_a_rate_in_a_range_counts_from_its_start(clip: Path) -> None:
    assert read_video(clip, fps=2, start=1.0, end=3.0).index == (25, 37, 50, 62)
    assert read_video(clip, fps=2, start=0.5).index == (12, 25, 37, 50, 62, 75, 87)
    assert read_video(clip, num_frames=5, start=1.0, end=3.0).index == (25, 37, 49, 62, 74)


def test_a_cap_spreads_what_a_rate_would_read(clip: Path) -> None:
    assert read_video(clip, fps=25, max_frames=5).index == (0, 25, 50, 74, 99)
    assert read_video(clip, fps=1, max_frames=5).index == (0, 25, 50, 75)
    assert len(read_video(clip, max_frames=9)) == 9


@pytest.mark.parametrize(
    "arguments",
    [
        *({"start": wrong} for wrong in (-1, float("nan"), "x", True)),
        *({"end": wrong} for wrong in (0, float("nan"), "x")),
        *({"max_frames": wrong} for wrong in (0, 1.5)),
        *({"start": 2, "end": 2}, {"start": 1, "index": [3]}, {"max_frames": 1, "index": [3]}),
        {"index": [3, 2]},  # not in chunks
    ],
    ids=repr,
)
def test_arguments_that_make_no_sense(clip: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"start is in|end is in|max_frames is|already says|numbers that rise"):
        plan_video(clip, **arguments)


def test_a_range_without_a_frame_is_told(clip: Path) -> None:
    with pytest.raises(VideoError, match=r"ends after 4\.0 s, before the start at 4 s"):
        read_video(clip, start=4)
    with pytest.raises(VideoError, match=r"has no key frame from 0\.1 s to 0\.4 s"):
        read_video(clip, sampling="keyframes", start=0.1, end=0.4)


def test_the_first_chunk_may_be_shorter(clip: Path) -> None:
    planned, whole = plan_video(clip, num_frames=23), read_video(clip, num_frames=23)
    for first, lengths in ((2, [2, 8, 8, 5]), (15, [15, 8]), (23, [23]), (99, [23])):
        chunks = list(read_chunks(planned, 8, first=first))
        assert [len(chunk) for chunk in chunks] == lengths
        assert torch.equal(torch.cat([chunk.pixels for chunk in chunks]), whole.pixels)
    with pytest.raises(ValueError, match="first is a whole number of frames, at least 1"):
        read_chunks(planned, 8, first=0)


def test_only_a_plan_is_read_in_chunks(clip: Path) -> None:
    for wrong in (read_video(clip, num_frames=2), str(clip)):
        with pytest.raises(WrongArgument, match="expected frames of plan_video"):
            read_chunks(wrong, 4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="size is a whole number of frames"):
        read_chunks(plan_video(clip), 0)


def test_a_plan_without_its_index_is_read_if_the_file_is_the_same(clip: Path, tmp_path: Path) -> None:
    planned = plan_video(clip, num_frames=12)
    plain = Frames(planned.pixels, *(getattr(planned, name) for name in SAME[:-1]))
    assert numbers(torch.cat([chunk.pixels for chunk in read_chunks(plain, 5)])) == list(planned.index)
    other = write(tmp_path / "other.mp4", count=60)
    with pytest.raises(VideoError, match=r"is not the file that was planned: it has 60 frames in 2\.4 s, expected 100"):
        list(read_chunks(replace(plain, source=str(other)), 5))
    with pytest.raises(VideoError, match="no such file"):
        list(read_chunks(replace(plain, source=str(tmp_path / "gone.mp4")), 5))


def test_a_file_that_changed_under_its_plan_is_told(clip: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "clip.mp4", clip.read_bytes())
    planned = plan_video(path, num_frames=30)
    write(path, count=40)
    with pytest.raises(VideoError, match="has changed since it was planned; plan it again"):
        list(read_chunks(planned, 5))


def test_a_file_replaced_by_one_with_the_same_times_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mp4")
    planned = plan_video(path, num_frames=30)
    write(path, draw=lambda number, *shape: 255 - picture(number, *shape))
    with pytest.raises(VideoError, match=r"clip.mp4: has changed since it was planned; plan it again"):
        next(read_chunks(planned, 5))
    chunks = read_chunks(plan_video(path, num_frames=30), 5)
    assert len(next(chunks)) == 5
    os.utime(path, ns=(0, 0))
    with pytest.raises(VideoError, match="has changed since it was planned; plan it again"):
        list(chunks)
    later = indexed(path, Wanted(num_frames=3))
    os.utime(path)
    with pytest.raises(VideoError, match="has changed since it was planned"):
        later()


def test_frames_lost_to_damage_are_shown_as_the_one_before_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan_video(damaged(tmp_path), num_frames=100)
    told: list[str] = []
    scale, stamps = scaling.Scaling.__call__, planned.found.pts  # type: ignore[attr-defined]

    def marked(self: scaling.Scaling, frame: Any) -> tuple[Any, bool]:
        picture, corrupt = scale(self, frame)
        picture = picture.copy()
        picture[0, 0] = stamps.index(frame.pts)  # which are lost depends on the decoder's threads: this reading counts
        return picture, corrupt

    monkeypatch.setattr(scaling.Scaling, "__call__", marked)
    chunks = list(read_chunks(planned, 8, warn=told.append))
    assert [len(chunk) for chunk in chunks] == [8] * 12 + [4]
    assert sum((chunk.index for chunk in chunks), ()) == planned.index == tuple(range(100))
    assert sum((chunk.seconds for chunk in chunks), ()) == planned.seconds
    pixels = torch.cat([chunk.pixels for chunk in chunks])
    assert numbers(pixels)[:50] == list(range(50))
    shown = pixels[:, 0, 0, 0].tolist()
    lost = [number for number in range(100) if number not in shown]
    assert len(lost) == 100 - len(set(shown)) > 0
    assert all(shown[number] == shown[number - 1] for number in lost)
    assert f"{len(lost)} of 100 frames are lost to damage; the one before is shown instead" in told[0]
    with pytest.raises(VideoError, match=r"frames are (lost|damaged)"):
        list(read_chunks(planned, 8, strict=True))


def test_what_is_cut_short_is_told_with_the_plan_and_damage_with_the_last_chunk(tmp_path: Path) -> None:
    short = cut(write(tmp_path / "whole.mkv"))
    with pytest.warns(UserWarning, match="is cut short"):
        planned = plan_video(short, num_frames=12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told: list[str] = []
        chunks = list(read_chunks(planned, 5, warn=told.append))
    assert [len(chunk) for chunk in chunks] == [5, 5, 2]
    assert all("damaged" in fault for fault in told)
    for read in (lambda: plan_video(short, strict=True), lambda: list(read_chunks(planned, 5, strict=True))):
        with pytest.raises(VideoError, match="is cut short"):
            read()


@pytest.mark.parametrize(
    ("make", "count", "least"),
    [(lambda folder: write(folder / "a.mp4", g="100", **{"x264-params": "scenecut=0"}), 2, 10), (damaged, 100, 250)],
)
def test_a_read_can_be_ended_while_frames_are_skipped_or_counted(
    make: Any, count: int, least: int, tmp_path: Path
) -> None:
    class Unwanted(Exception):
        pass

    def check() -> None:
        seen.append(None)
        if len(seen) == last:
            raise Unwanted

    planned, seen, last = plan_video(make(tmp_path), num_frames=count), [], 0
    assert list(read_chunks(planned, 2, warn=lambda fault: None, check=check))
    assert len(seen) > least
    last = len(seen)
    seen.clear()
    with pytest.raises(Unwanted):
        list(read_chunks(planned, 2, warn=lambda fault: None, check=check))


def test_no_decoded_picture_waits_for_garbage_to_be_collected(tmp_path: Path) -> None:
    upright = write(tmp_path / "a.mp4")
    for path in (upright, turned(upright, tmp_path / "b.mp4", (0, 1, -1, 0))):
        gc.collect()
        gc.disable()
        try:
            chunks = read_chunks(plan_video(path, num_frames=20), 4)
            assert sum(len(chunk) for chunk in chunks) == 20
            assert sum(type(one) is av.VideoFrame for one in gc.get_objects()) <= 1
        finally:
            gc.enable()
