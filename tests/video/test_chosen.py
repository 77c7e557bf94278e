"""What is left undecoded changes no bit of the frames that are wanted."""

import os
import random
import struct
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

av = pytest.importorskip("av")
np = pytest.importorskip("numpy")

from tests.clips import decoded, rgb, write  # noqa: E402
from tests.video.test_decode import real_clips  # noqa: E402
from vidsieve.errors import VideoError  # noqa: E402
from vidsieve.video import begin_video, chosen, decode, demux, plan_video, read_chunks  # noqa: E402
from vidsieve.video.chosen import Decoder, Miscounted, plan  # noqa: E402
from vidsieve.video.decode import read_video  # noqa: E402
from vidsieve.video.demux import Index, _Packet, _spare, by_packets, opened, video_stream  # noqa: E402
from vidsieve.video.references import UNKNOWN, rank_reader  # noqa: E402
from vidsieve.video.wanted import Sampling  # noqa: E402

COUNT = 90
X264 = {"g": "40", "bf": "4", "refs": "4", "crf": "35"}
X265 = "log-level=none:keyint=30:scenecut=0:pools=1:frame-threads=1"


def busy(number: int, height: int, width: int) -> np.ndarray:
    """A frame that is predicted from others with a rest: a texture that moves, brightens, and changes in places."""
    rows, columns = np.mgrid[:height, :width] + 2 * number
    noise = np.random.default_rng(number // 7).integers(0, 90, (height, width))
    grey = 60 + 50 * np.sin(rows / 5) * np.cos(columns / 7) + noise * (rows % 29 < 9) + number // 2
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, 2)


def side_by_side(patch: pytest.MonkeyPatch, threads: int) -> None:
    """Let that many decoders work side by side, however few frames each gets."""
    patch.setattr(chosen, "WORTH", 1)
    patch.setattr(torch, "get_num_threads", lambda: threads)


def differing(path: Path, indices: list[list[int]], size: tuple[int, int]) -> list[list[int]]:
    """Frame numbers whose pixels are not those of the decoder run from end to end, a list a reading.

    Read by one decoder and by three side by side, in turns.
    """
    truth = [rgb(frame, *size) for frame in decoded(path)]
    wrong = []
    for i, index in enumerate(indices):
        with pytest.MonkeyPatch.context() as patch:
            side_by_side(patch, 1 + 2 * (i // 5 % 2))
            pixels = read_video(path, index=index, size=size).pixels
        wrong.append([n for n, got in zip(index, pixels, strict=True) if not torch.equal(got, truth[n])])
    return wrong


def fuzzed(total: int, rounds: int = 12) -> list[list[int]]:
    draw = random.Random(5)
    counts = [1, 2, 5, 20, total]
    return [draw.choices(range(total), k=counts[i % len(counts)]) for i in range(rounds)]


@pytest.mark.parametrize(
    ("name", "codec", "options", "spares"),
    [
        ("pyramid.mp4", "libx264", X264 | {"x264-params": "b-pyramid=normal:weightp=2:scenecut=0"}, True),
        ("strict.mkv", "libx264", X264 | {"x264-params": "b-pyramid=strict"}, True),
        ("open.ts", "libx264", X264 | {"g": "12", "x264-params": "open-gop=1:b-pyramid=normal"}, True),
        ("slices.mp4", "libx264", X264 | {"x264-params": "slices=4:b-adapt=0"}, True),
        ("fields.mp4", "libx264", X264 | {"x264-params": "interlaced=1"}, True),
        ("vfr.mkv", "libx264", X264 | {"pts": [900 + 40 * i + 13 * (i % 4) for i in range(COUNT)]}, True),
        ("few.mp4", "libx264", X264 | {"g": "7", "bf": "1"}, True),
        ("pieces.mp4", "libx264", X264 | {"g": "9", "container": {"movflags": "frag_keyframe+empty_moov"}}, True),
        ("no_cues.mkv", "libx264", X264 | {"g": "9", "container": {"live": "1"}}, True),
        ("late.mp4", "libx264", X264 | {"g": "9", "pts": [7000 + 40 * i for i in range(COUNT)]}, True),
        ("none.mp4", "libx264", X264 | {"bf": "0"}, False),
        ("hevc.mp4", "libx265", {"x265-params": f"{X265}:bframes=4:b-pyramid=1"}, True),
        ("layers.mp4", "libx265", {"x265-params": f"{X265}:bframes=4:b-pyramid=1:temporal-layers=3"}, True),
        ("open_hevc.ts", "libx265", {"x265-params": f"{X265}:bframes=3:open-gop=1"}, True),
        ("vp9.webm", "libvpx-vp9", {"g": "30", "deadline": "realtime", "cpu-used": "8"}, False),
        ("old.mpg", "mpeg2video", {"bf": "2"}, False),
    ],
)
def test_any_frames_are_those_of_the_decoder_run_from_end_to_end(
    tmp_path: Path, name: str, codec: str, options: dict, spares: bool
) -> None:
    path = write(tmp_path / name, COUNT, codec=codec, draw=busy, shape=(96, 144), **options)
    assert not any(differing(path, fuzzed(COUNT), (96, 144)))
    spare = by_packets(f"file:{path}", name).spare
    assert bool(spare) is spares
    without = by_packets(f"file:{path}", name, spare=False)
    assert without == by_packets(f"file:{path}", name)
    assert not without.spare
    last = max(set(range(COUNT)) - spare)
    assert read_video(path, index=[last]).decoded <= COUNT - len(spare)


def test_a_picture_that_is_wanted_is_decoded_though_it_is_spare(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mp4", COUNT, draw=busy, shape=(96, 144), **X264)
    spare = sorted(by_packets(f"file:{path}", "clip").spare)
    assert len(spare) > COUNT // 3
    assert not any(differing(path, [spare, spare[:1], spare[-1:]], (96, 144)))


def test_nothing_behind_the_last_packet_that_is_needed_is_decoded(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mp4", g="50", bf="0", **{"x264-params": "scenecut=0"})
    assert [read_video(path, index=[n]).decoded for n in (0, 10, 50, 73)] == [1, 11, 2, 25]  # and frame 0, for its size
    assert read_video(path, index=[73, 10]).decoded == 11 + 24


def test_a_run_begins_anew_where_a_key_frame_leaves_out_frames() -> None:
    keys = [(0, 0), (10, 100), (11, 110), (20, 200)]
    found = Index(range(30), 30.0, False, range(30), keys)
    runs = [(run.key[0], run.numbers) for run in plan(found, [25, 3, 9, 10, 19, 9])]
    assert runs == [(0, [3, 9, 10, 19, 25])]  # one after the other, or a key frame right behind
    runs = [(run.key[0], run.numbers) for run in plan(found, [25, 3, 9, 18])]
    assert runs == [(0, [3, 9]), (11, [18]), (20, [25])]
    assert [(run.key[0], run.numbers) for run in plan(found, [2, 12])] == [(0, [2]), (11, [12])]
    aside = [(run.key[0], run.work) for run in plan(found, [*range(8), 9, 10, 11, 12, 20, 21], 5)]
    assert aside == [(0, 19), (10, 6), (20, 4)]  # one frame is not worth a decoder


def stream(codec: str, extra: bytes) -> SimpleNamespace:
    return SimpleNamespace(codec_context=SimpleNamespace(name=codec, extradata=extra))


AVCC, HVCC = b"\1dd\0\xff", b"\1" + bytes(20) + b"\3" + b"\0"


@pytest.mark.parametrize(
    ("codec", "extra", "packet", "rank"),
    [
        ("h264", AVCC, b"\0\0\0\2\x01\x9e", (0, False)),
        ("h264", AVCC, b"\0\0\0\2\x06\x9e\0\0\0\2\x41\x9e", (0, True)),
        ("h264", AVCC, b"\0\0\0\2\x01\x9e\0\0\0\2\x41\x9e", UNKNOWN),  # two fields, one of which is needed
        ("h264", AVCC, b"\0\0\0\3\x01\x9e", UNKNOWN),  # longer than the packet
        ("h264", AVCC, b"\0\0\0\1\x0b", UNKNOWN),  # no picture
        ("h264", AVCC, b"", UNKNOWN),
        ("h264", b"\0\0\0\1\x67", b"\0\0\0\1\x09\xf0\0\0\1\x0b\0\0\1\x01\x9e", (0, False)),
        ("h264", b"", b"\0\0\1\x65\x88", (0, True)),
        ("hevc", HVCC, b"\0\0\0\2\x00\x01", (0, False)),
        ("hevc", HVCC, b"\0\0\0\2\x02\x03", (2, True)),
        ("hevc", HVCC, b"\0\0\0\2\x00\x01\0\0\0\2\x03\x09", (0, False)),  # a second view is not decoded
        ("hevc", HVCC, b"\0\0\0\2\x26\x01", (0, True)),
        ("av1", b"", b"\0\0\1\x01\x9e", UNKNOWN),
    ],
)
def test_ranks_are_read_from_headers(codec: str, extra: bytes, packet: bytes, rank: tuple[int, bool]) -> None:
    assert rank_reader(stream(codec, extra))(packet) == rank


@pytest.mark.parametrize(
    ("ranks", "spare"),
    [
        ([(0, True), (0, False), (0, True), (0, False)], [1, 3]),
        ([(0, True), (0, False), (1, True), (1, False)], [3]),  # the higher layer may be made from picture 1
        ([(0, True), (0, False), (1, True)], []),
        ([(0, True), (0, False), UNKNOWN], []),
    ],
)
def test_what_a_higher_layer_may_need_is_not_spare(ranks: list[tuple[int, bool]], spare: list[int]) -> None:
    assert _spare([_Packet(i, i, 1, i == 0, False, rank) for i, rank in enumerate(ranks)]) == spare


@pytest.mark.skipif(not real_clips(), reason="set VIDSIEVE_CLIPS to a folder of real .mp4 clips")
@pytest.mark.parametrize("path", real_clips(), ids=lambda path: path.stem)
def test_any_frames_of_real_clips(path: Path) -> None:
    total = len(by_packets(f"file:{path}", path.name))
    rounds = int(os.environ.get("VIDSIEVE_ROUNDS", "3"))
    assert not any(differing(path, [index for index in fuzzed(total, 5 * rounds) if len(index) < total], (90, 160)))


@pytest.mark.parametrize("sampling", ["even", "keyframes"])
def test_decoders_side_by_side_read_what_one_does(
    tmp_path: Path, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "clip.mp4", COUNT, draw=busy, shape=(96, 144), g="10", **{"x264-params": "scenecut=0"})
    read = partial(read_video, path, num_frames=40, sampling=sampling)
    alone = read()
    opens: list[str] = []
    opened = chosen.opened
    monkeypatch.setattr(chosen, "opened", lambda place: opens.append(place) or opened(place))
    for threads, least in ((1, 0), (3, 3), (50, 8)):
        side_by_side(monkeypatch, threads)
        opens.clear()
        frames = read()
        assert len(opens) == least  # beside the first decoder
        assert torch.equal(frames.pixels, alone.pixels)
        assert (frames.index, frames.seconds, frames.decoded) == (alone.index, alone.seconds, alone.decoded)
    chunks = list(read_chunks(plan_video(path, num_frames=40, sampling=sampling), 3))
    assert torch.equal(torch.cat([chunk.pixels for chunk in chunks]), alone.pixels)
    assert sum(chunk.decoded for chunk in chunks) == alone.decoded


def test_decoders_side_by_side_end_with_whom_they_work_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "clip.mp4", COUNT, g="10", **{"x264-params": "scenecut=0"})
    side_by_side(monkeypatch, 3)
    before = threading.active_count()
    chunks = read_chunks(plan_video(path, num_frames=COUNT), 2)
    next(chunks)
    chunks.close()
    assert threading.active_count() == before

    class Unwanted(Exception):
        """Nobody wants the rest."""

    def check() -> None:
        if threading.current_thread() is not threading.main_thread():
            raise Unwanted

    with pytest.raises(Unwanted):
        list(read_chunks(plan_video(path, num_frames=COUNT), 2, check=check))
    assert threading.active_count() == before


def test_the_first_decoder_too_ends_at_its_next_packet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "clip.mp4", COUNT, g="30", **{"x264-params": "scenecut=0"})
    side_by_side(monkeypatch, 3)
    before = threading.active_count()
    read = [0]
    packets = chosen.packets

    def noted(container: Any, stream: Any, check: demux.Check) -> Iterator[Any]:
        for packet in packets(container, stream, check):
            yield packet
            if container is first:
                read[0] += 1
                time.sleep(0.02)

    monkeypatch.setattr(chosen, "packets", noted)
    with opened(str(path)) as first:
        decoder = Decoder(first, video_stream(first, "clip"), decode.index_of(str(path)), str(path))
        made = decoder.frames([29, 30, 60], lambda frame: None, ordered=False)
        next(made)
        next(made)
        made.close()
        assert read[0] < 20
        assert threading.active_count() == before


def test_decoders_side_by_side_end_with_a_read_whose_error_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "clip.mp4", COUNT, g="10", **{"x264-params": "scenecut=0"})
    side_by_side(monkeypatch, 3)
    monkeypatch.setattr(chosen, "HELD", 1)

    @contextmanager
    def interrupting(show: bool, total: int) -> Iterator[Any]:
        left = iter(range(20))

        def advance() -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt

        yield advance

    monkeypatch.setattr(decode, "_progress_bar", interrupting)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt) as held:
        read_video(path, num_frames=COUNT)
    assert threading.active_count() == before, held


def test_frames_that_are_enlarged_wait_within_the_same_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "clip.mp4", COUNT, g="10", **{"x264-params": "scenecut=0"})
    side_by_side(monkeypatch, 2)
    most: list[int] = []

    class Noted(chosen.Stages):
        def ahead(self, *sources: Any, waiting: int = 1) -> Any:
            most.append(waiting)
            return super().ahead(*sources, waiting=waiting)

    monkeypatch.setattr(chosen, "Stages", Noted)
    own, large = (48, 144), (480, 1440)
    monkeypatch.setattr(chosen, "HELD", 2 * 5 * 3 * own[0] * own[1])
    for size in (own, large):
        read_video(path, num_frames=COUNT, size=size)
    assert most == [5, 5, 1, 1]
    most.clear()
    for size in (own, large):
        begin_video(path, num_frames=COUNT, size=size).result()  # as they come
    assert most == [10, 1]


@pytest.mark.parametrize("at", [0, 4, 10])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_packet_of_two_frames_is_counted_however_many_are_read(
    tmp_path: Path, at: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _with_two_in_a_packet(tmp_path / "clip.webm", at)
    side_by_side(monkeypatch, threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a frame that is left out
        every = read_video(path, num_frames=100)
        assert every.total == 11
        for number in range(11):
            assert torch.equal(read_video(path, index=[number]).pixels[0], every.pixels[number]), number
        chunks = list(read_chunks(plan_video(path, num_frames=100), 4))
        assert torch.equal(torch.cat([chunk.pixels for chunk in chunks]), every.pixels)


@pytest.mark.parametrize("threads", [1, 3])
def test_damage_between_the_frames_that_are_read_is_told(
    tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = {"draw": busy, "shape": (96, 144)}
    path = write(tmp_path / "clip.mkv", COUNT, g="10", bf="0", **{"x264-params": "scenecut=0"}, **shape)
    with av.open(str(path)) as source:
        data = next(bytes(packet) for packet in source.demux(video=0) if packet.pts == 40 * 22)
    whole = path.read_bytes()
    assert whole.count(data) == 1
    at = whole.index(data) + len(data) // 2
    path.write_bytes(whole[:at] + bytes(8) + whole[at + 8 :])
    assert [n for n, frame in enumerate(decoded(path)) if frame.is_corrupt] == [22]
    side_by_side(monkeypatch, threads)
    index = [5, 15, 25, 35]  # 25 is made from 22
    with pytest.warns(UserWarning, match="1 of the frames between those read are damaged"):
        read_video(path, index=index)
    with pytest.raises(VideoError, match="1 of the frames between those read are damaged"):
        list(read_chunks(plan_video(path, index=index), 2, strict=True))
    read_video(path, index=[5, 15, 21, 35])  # none of which is


def _with_two_in_a_packet(path: Path, at: int) -> Path:
    """Write 12 frames of VP9, of which two lie in packet `at`: a superframe, of which both are shown."""
    whole = write(path.with_suffix(".mkv"), 12, codec="libvpx-vp9", g="30", **{"lag-in-frames": "0"})
    with av.open(str(whole)) as source:
        frames = [bytes(packet) for packet in source.demux(video=0) if packet.size]
        assert len(frames) == 12
        two = frames[at : at + 2]
        mark = bytes([0b11001001])  # two frames, whose sizes are of two bytes
        frames[at : at + 2] = [b"".join(two) + mark + struct.pack("<HH", *map(len, two)) + mark]
        with av.open(str(path), "w") as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for number, data in enumerate(frames):
                packet = av.Packet(data)
                packet.stream, packet.time_base = stream, Fraction(1, 25)
                packet.pts = packet.dts = number
                packet.is_keyframe = number == 0
                target.mux(packet)
    return path


def test_a_frame_that_another_decoder_lacks_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "clip.mp4", COUNT, g="10", **{"x264-params": "scenecut=0"})
    side_by_side(monkeypatch, 3)
    found = by_packets(f"file:{path}", "clip")
    other = replace(found, pts=[*found.pts[:85], *(stamp + 1 for stamp in found.pts[85:])])
    with opened(f"file:{path}") as container:
        decoder = Decoder(container, video_stream(container, "clip"), other, str(path))
        numbers: list[int] = []
        with pytest.raises(Miscounted, match=r"frame 8[0-9] of 90 cannot be decoded"):
            numbers += [number for number, _ in decoder.frames(range(COUNT), lambda frame: frame.pts)]


def test_no_packet_before_the_key_frame_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = demux.packets
    seen: list[int] = []

    def noted(*args: Any) -> Iterator[Any]:
        for packet in read(*args):
            seen.append(packet.pts)
            yield packet

    monkeypatch.setattr(chosen, "packets", noted)
    for name in ("clip.mp4", "clip.mkv", "pieces.mp4"):
        container = {"movflags": "frag_keyframe+empty_moov"} if name == "pieces.mp4" else None
        options = {"g": "30", "bf": "3", "x264-params": "scenecut=0"}
        path = write(tmp_path / name, COUNT, container=container, **options)
        seen.clear()
        assert read_video(path, sampling="keyframes").index == (0, 30, 60)
        assert len(seen) == 3, name
