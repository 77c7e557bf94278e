"""Files that are not as they should be: what is read is what the decoder, run from end to end, makes of them."""

import random
import warnings
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

av = pytest.importorskip("av")
np = pytest.importorskip("numpy")

from tests.clips import HEIGHT, WIDTH, cut, decoded, numbers, picture, rgb, write, written  # noqa: E402
from vidsieve.errors import VideoError  # noqa: E402
from vidsieve.video import chosen, demux  # noqa: E402
from vidsieve.video.chosen import Decoder, Miscounted  # noqa: E402
from vidsieve.video.decode import read_video  # noqa: E402


def joined(folder: Path) -> Path:
    part = write(folder / "part.ts").read_bytes()
    return written(folder / "joined.ts", part + part)


def mid_group(folder: Path) -> Path:
    """A recording that begins between two key frames."""
    whole = write(folder / "whole.ts").read_bytes()
    return written(folder / "late.ts", whole[len(whole) // 3 // 188 * 188 :])


def joined_mid_group(folder: Path) -> Path:
    """Two recordings whose stamps only go forward, the second of which begins between two key frames."""
    first = write(folder / "first.ts").read_bytes()
    later = write(folder / "later.ts", pts=[60_000 + 40 * i for i in range(100)]).read_bytes()
    return written(folder / "both.ts", first + later[len(later) // 3 // 188 * 188 :])


def damaged(folder: Path) -> Path:
    """A file in which some packets cannot be decoded at all."""
    data = bytearray(write(folder / "whole.mp4").read_bytes())
    begin = data.index(b"mdat") + len(data) // 2
    for i in range(begin, begin + len(data) // 8, 50):
        data[i] ^= 0xFF
    return written(folder / "damaged.mp4", bytes(data))


ODD = {
    "joined": joined,
    "joined-mid-group": joined_mid_group,
    "mid-group": mid_group,
    "2000-a-second": lambda folder: write(folder / "fast.mkv", rate=2000),
    "one-stamp-for-three": lambda folder: write(folder / "same.mkv", pts=[i // 3 for i in range(100)], bf="0"),
    "cut-in-a-packet": lambda folder: cut(write(folder / "whole.nut")),
    "raw-h264": lambda folder: write(folder / "raw.h264"),
    "raw-mjpeg": lambda folder: write(folder / "raw.mjpeg", codec="mjpeg"),
}


@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
def test_frames_are_those_of_the_decoder_in_its_order(tmp_path: Path, make) -> None:
    path = make(tmp_path)
    truth = torch.stack([rgb(frame, HEIGHT, WIDTH) for frame in decoded(path)])
    everything = read_video(path, num_frames=1000)
    assert everything.total == len(truth) > 40
    assert torch.equal(everything.pixels, truth)
    assert list(everything.seconds) == sorted(everything.seconds)
    some = [len(truth) - 1, 3, 57, 0]
    assert torch.equal(read_video(path, index=some).pixels, everything.pixels[some])
    few = read_video(path, num_frames=5)
    assert torch.equal(few.pixels, everything.pixels[list(few.index)])


def test_what_is_joined_goes_on_in_time(tmp_path: Path) -> None:
    frames = read_video(joined(tmp_path), fps=5)
    assert (frames.total, frames.duration, frames.fps) == (200, pytest.approx(8), pytest.approx(25))
    assert frames.index == tuple(range(0, 200, 5))
    assert frames.seconds == pytest.approx([i / 5 for i in range(40)])
    assert numbers(frames.pixels) == 2 * list(range(0, 100, 5))


def test_a_raw_stream_has_the_rate_that_it_says(tmp_path: Path) -> None:
    frames = read_video(write(tmp_path / "raw.h264"), fps=5)
    assert (frames.duration, frames.index) == (pytest.approx(4), tuple(range(0, 100, 5)))


def turned(clip: Path, to: Path, matrix: tuple[int, int, int, int]) -> Path:
    """The clip with another display matrix (a, b, c, d)."""
    data = bytearray(clip.read_bytes())
    at = data.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    data[at : at + 36] = b"".join(v.to_bytes(4, "big", signed=True) for v in (a, b, 0, c, d, 0, 0, 0, 1 << 30))
    return written(to, bytes(data))


def corner(number: int, height: int, width: int) -> "np.ndarray":
    """Another picture however it is turned or mirrored."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 3, : width // 2], image[height // 2 :, : width // 8] = 250, 120
    return image


ORIENTATIONS = {  # what ffmpeg's autorotation does, by filters: hflip, vflip, transpose=...
    "upright": ((1, 0, 0, 1), lambda x: x),
    "hflip": ((-1, 0, 0, 1), lambda x: x[:, ::-1]),
    "hflip,vflip": ((-1, 0, 0, -1), lambda x: np.rot90(x, 2)),
    "vflip": ((1, 0, 0, -1), lambda x: x[::-1]),
    "cclock_flip": ((0, 1, 1, 0), lambda x: x.swapaxes(0, 1)),
    "clock": ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),
    "clock_flip": ((0, -1, -1, 0), lambda x: np.rot90(x, -1)[::-1]),
    "cclock": ((0, -1, 1, 0), lambda x: np.rot90(x)),
}


@pytest.mark.parametrize(("matrix", "expected"), ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_turned_and_mirrored_clips_come_upright(tmp_path: Path, matrix, expected) -> None:
    clip = write(tmp_path / "clip.mp4", 3, draw=corner)
    plain = read_video(clip, index=[1]).pixels[0].numpy()
    path = turned(clip, tmp_path / "turned.mp4", matrix)
    assert np.array_equal(read_video(path, index=[1]).pixels[0].numpy(), expected(plain))
    sides = (24, 72) if matrix[0] else (72, 24)
    assert read_video(path, index=[1], size=72).pixels.shape == (1, *sides, 3)


def test_a_slanted_clip_is_refused(tmp_path: Path, clip: Path) -> None:
    with pytest.raises(VideoError, match=r"turned by -?45 degrees, expected a multiple of 90"):
        read_video(turned(clip, tmp_path / "slanted.mp4", (1, 1, -1, 1)))


@pytest.mark.parametrize("sar", [Fraction(4, 3), Fraction(8, 9)])
@pytest.mark.parametrize("name", ["wide.mp4", "wide.mkv", "wide.ts"])
def test_pixels_come_square(tmp_path: Path, sar: Fraction, name: str) -> None:
    path = write(tmp_path / name, 30, sar=sar)
    truth, width = list(decoded(path)), round(WIDTH * sar)
    frames = read_video(path, index=[0, 17], size=None)
    assert torch.equal(frames.pixels, torch.stack([rgb(truth[i], HEIGHT, width) for i in (0, 17)]))
    assert read_video(path, num_frames=1, size=72).pixels.shape == (1, round(72 * HEIGHT / width), 72, 3)


def test_pixels_are_square_before_they_are_turned(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mp4", 3, sar=Fraction(2))
    path = turned(path, tmp_path / "turned.mp4", (0, 1, -1, 0))
    assert read_video(path, num_frames=1).pixels.shape == (1, 2 * WIDTH, HEIGHT, 3)


@pytest.mark.parametrize(("first", "then"), [((HEIGHT, WIDTH), (96, 288)), ((96, 288), (HEIGHT, WIDTH))])
def test_one_size_for_all_frames(tmp_path: Path, first: tuple[int, int], then: tuple[int, int]) -> None:
    parts = [write(tmp_path / f"{shape[0]}.ts", 40, shape=shape).read_bytes() for shape in (first, then)]
    path = written(tmp_path / "grows.ts", b"".join(parts))
    truth = list(decoded(path))
    assert {(frame.height, frame.width) for frame in truth} == {first, then}
    frames = read_video(path, num_frames=1000)
    assert torch.equal(frames.pixels, torch.stack([rgb(frame, *first) for frame in truth]))
    assert torch.equal(read_video(path, index=[60]).pixels, frames.pixels[[60]])


def test_damaged_frames_are_told_of_and_lost_ones_not_counted(tmp_path: Path) -> None:
    path = damaged(tmp_path)
    stamps = [frame.pts * frame.time_base for frame in decoded(path)]
    with pytest.warns(UserWarning, match=r"damaged.mp4: \d+ of \d+ frames are damaged"):
        frames = read_video(path, num_frames=100)
    assert len(frames) == frames.total == len(stamps) < 100
    assert frames.seconds == pytest.approx(stamps)
    assert numbers(frames.pixels)[:50] == list(range(50))
    with pytest.raises(VideoError, match=r"damaged.mp4: \d+ of \d+ frames are damaged"):
        read_video(path, num_frames=100, strict=True)


def test_a_frame_that_comes_too_late_is_left_out_and_told_and_moves_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.mp4")
    order = [*range(11), 45, 14, *range(46, 95), 97, 95, 96, 98, 99]  # as a decoder gave them

    def disordered(*_: object) -> Iterator[Any]:
        frames = list(decoded(path))
        return iter([frames[number] for number in order])

    monkeypatch.setattr(demux, "pictures", disordered)
    monkeypatch.setattr(chosen, "pictures", disordered)

    def miscounted(self: Decoder, *_: object) -> Iterator[Any]:
        raise Miscounted("not what is listed")
        yield

    monkeypatch.setattr(Decoder, "_run", miscounted)
    with pytest.warns(
        UserWarning, match="a.mp4: 2 of 67 frames came after ones that are shown later, and are left out"
    ):
        frames = read_video(path, num_frames=100)
    kept = [*range(11), 14, *range(46, 95), 95, 96, 98, 99]
    assert numbers(frames.pixels) == kept
    assert frames.seconds == pytest.approx([number / 25 for number in kept])
    with pytest.raises(VideoError, match="2 of 67 frames came after"):
        read_video(path, strict=True)


def test_frames_of_files_damaged_anywhere_are_shown_at_their_time(tmp_path: Path) -> None:
    whole, path = write(tmp_path / "whole.mp4", bf="3").read_bytes(), tmp_path / "a.mp4"
    begin, end, lost = whole.index(b"mdat") + 4, whole.index(b"moov") - 4, 0
    for seed in range(12):
        rng, data = random.Random(seed), bytearray(whole)
        first = rng.randint(begin, end * 3 // 4)
        for i in range(first, min(first + end // 5, end), rng.choice([1, 7, 50])):
            data[i] ^= 0xFF
        path.write_bytes(data)
        found = demux.by_packets(f"file:{path}", "a")
        counted = demux.by_decoding(f"file:{path}", "a", found)
        stamps = []
        with demux.opened(f"file:{path}") as file:
            stream = file.streams.video[0]
            for came, frame in enumerate(demux.pictures(file, stream, counted.intact)):
                if came not in counted.late:
                    stamps.append(float(frame.pts * stream.time_base))
        assert counted.seconds == pytest.approx(stamps)
        assert all(a < b for a, b in pairwise(counted.seconds))
        lost += len(counted) < 100
    assert lost


def test_a_file_whose_beginning_is_damaged_does_not_begin_earlier(tmp_path: Path) -> None:
    data = bytearray(write(tmp_path / "whole.mp4").read_bytes())
    begin = data.index(b"mdat") + 4
    data[begin : begin + 3000] = bytes(3000)
    path = written(tmp_path / "a.mp4", bytes(data))
    with pytest.warns(UserWarning, match=r"a.mp4: its first \d\.\d\d s cannot be decoded"):
        frames = read_video(path, num_frames=100)
    assert frames.seconds[0] > 0
    assert frames.duration == pytest.approx(4)
    whole = [number for number in range(100) if number in {round(25 * at) for at in frames.seconds}]
    assert numbers(frames.pixels) == whole
    with pytest.raises(VideoError, match=r"its first .* s cannot be decoded"):
        read_video(path, strict=True)


@pytest.mark.parametrize("name", ["whole.mp4", "whole.mkv"])
def test_what_is_left_of_a_cut_file_is_read_and_told(tmp_path: Path, name: str) -> None:
    first = {"movflags": "faststart"} if name.endswith("mp4") else {}  # an index at the end would be gone
    path = cut(write(tmp_path / name, container=first))
    with pytest.warns(UserWarning, match=r"is cut short: only \d+ frames \(\d\.\d s\) are there") as told:
        frames = read_video(path, num_frames=1000)
    assert len(told) == 1
    assert 30 < frames.total < 80
    assert numbers(frames.pixels)[:30] == list(range(30))
    assert numbers(frames.pixels) == sorted(set(numbers(frames.pixels)))  # at the end one may lack what it is made from
    with pytest.raises(VideoError, match="is cut short"):
        read_video(path, strict=True)
    assert numbers(read_video(path, index=[0, 20]).pixels) == [0, 20]  # these are there
    with pytest.raises(VideoError, match="has no frame 99"):
        read_video(path, index=[99])


def boxes(path: Path) -> dict[str, tuple[int, int]]:
    """Where each box of an MP4 file begins and ends."""
    data, found, at = path.read_bytes(), {}, 0
    while at < len(data):
        end = at + int.from_bytes(data[at : at + 4], "big")
        found[data[at + 4 : at + 8].decode()] = at, end
        at = end
    return found


@pytest.mark.parametrize(
    ("box", "share"), [("mdat", 0.001), ("mdat", 0.5), ("moov", 0.0), ("moov", 0.001), ("moov", 0.5)]
)
def test_a_file_that_is_cut_off_before_its_index_is_said_to_be(tmp_path: Path, box: str, share: float) -> None:
    whole = write(tmp_path / "whole.mp4")
    begin, end = boxes(whole)[box]
    path = written(tmp_path / "cut.mp4", whole.read_bytes()[: begin + round(share * (end - begin))])
    says = r"cut.mp4: is damaged: cut off before the end of its index \(moov\), without which .*; fetch it again"
    with pytest.raises(VideoError, match=says):
        read_video(path)
    with pytest.raises(VideoError, match=says):
        read_video(path.as_uri())


def test_a_file_whose_first_box_never_ends_and_one_of_a_large_box(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.mp4").read_bytes()
    begin, end = boxes(tmp_path / "whole.mp4")["mdat"]
    endless = written(tmp_path / "endless.mp4", whole[:begin] + b"\0\0\0\0mdat" + whole[begin + 8 : end])
    size = (end - begin + 8).to_bytes(8, "big")
    large = written(tmp_path / "large.mp4", whole[:begin] + b"\0\0\0\1mdat" + size + whole[begin + 8 : end])
    stuck = written(tmp_path / "stuck.mp4", whole[:begin] + b"\0\0\0\2mdat" + whole[begin + 8 : end])
    for path in (endless, large, stuck):
        with pytest.raises(VideoError, match="cut off before"):
            read_video(path)


def test_a_sound_that_outlasts_its_pictures_is_no_cut(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sung.mkv"), "w") as file:
        stream, sound = file.add_stream("libx264", rate=25), file.add_stream("aac", rate=8000)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for number in range(25):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
        file.mux(stream.encode())
        for second in range(5):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 8000, 8000 * second
            file.mux(sound.encode(frame))
        file.mux(sound.encode())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_video(tmp_path / "sung.mkv", strict=True).total == 25


def with_streams(path: Path, *covers: bool) -> Path:
    """A video stream for each of `covers`, the i-th of frames that say 10 i and on; a cover is one picture."""
    from av.stream import Disposition

    with av.open(str(path), "w") as file:
        streams = []
        for cover in covers:
            stream = file.add_stream("mjpeg" if cover else "libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuvj420p" if cover else "yuv420p"
            if cover:
                stream.disposition = Disposition.attached_pic
            streams.append(stream)
        for i, (stream, cover) in enumerate(zip(streams, covers, strict=True)):
            for number in range(1 if cover else 5):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture(10 * i + number), format="rgb24")))
            file.mux(stream.encode())
    return path


def test_the_first_video_stream_that_is_no_cover(tmp_path: Path) -> None:
    assert numbers(read_video(with_streams(tmp_path / "two.mkv", False, False)).pixels) == [0, 1, 2, 3, 4]
    assert numbers(read_video(with_streams(tmp_path / "covered.mp4", True, False)).pixels) == [10, 11, 12, 13, 14]
    with pytest.raises(VideoError, match=r"has no video stream \(only a cover picture\)"):
        read_video(with_streams(tmp_path / "cover.mp4", True))


def test_the_frames_are_in_memory_once(tmp_path: Path) -> None:
    import tracemalloc  # which numpy tells of what it takes

    path = write(tmp_path / "clip.mp4", shape=(240, 720))
    read_video(path, num_frames=2)
    tracemalloc.start()
    frames = read_video(path, num_frames=100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert frames.pixels.nbytes <= peak < 1.2 * frames.pixels.nbytes


def test_a_codec_that_nobody_decodes_is_told(tmp_path: Path) -> None:
    data = write(tmp_path / "clip.mp4", 5).read_bytes()
    with pytest.raises(VideoError, match=r"codec that FFmpeg here has no decoder for|cannot be decoded"):
        read_video(written(tmp_path / "odd.mp4", data.replace(b"avc1", b"zzzz")))


def test_pyav_19_is_not_asked_for_what_it_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(av, "__version__", "19.0.2")
    monkeypatch.setattr(av, "open", lambda source, **options: asked.append(options))
    demux.open_container("clip.mp4", timeout=None)
    assert asked == [{"timeout": None}]


def test_tags_of_any_encoding_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "tagged.avi"
    with av.open(str(path), "w") as file:
        file.metadata["title"] = "Cafe-XYZ"
        stream = file.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuvj420p"
        for number in range(3):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
        file.mux(stream.encode())
    data = path.read_bytes()
    assert b"Cafe-XYZ" in data
    latin = written(tmp_path / "latin.avi", data.replace(b"Cafe-XYZ", b"Caf\xe9-XYZ"))
    assert numbers(read_video(latin).pixels) == [0, 1, 2]


def test_pixels_of_an_absurd_shape_are_refused(tmp_path: Path) -> None:
    data = write(tmp_path / "clip.mp4", 5, sar=Fraction(2, 1)).read_bytes()
    two, many = (b"pasp" + times.to_bytes(4, "big") + (1).to_bytes(4, "big") for times in (2, 30000))
    assert two in data
    with pytest.raises(VideoError, match="times as wide as high, which is a damaged header"):
        read_video(written(tmp_path / "wide.mp4", data.replace(two, many)))


@pytest.mark.parametrize("fps", [0.7, 3, 25, 24.9, 60, 1e12, 1e300])
def test_frames_by_rate_are_those_on_screen_at_each_step(clip: Path, fps: float) -> None:
    whole = read_video(clip, num_frames=1000)
    steps = [step / fps for step in range(int(whole.duration * fps + 1))] if fps < 100 else list(whole.seconds)
    steps = [at for at in steps if at < whole.duration - 1e-6]
    on_screen = {max(i for i, begins in enumerate(whole.seconds) if begins <= at + 1e-6) for at in steps}
    assert list(read_video(clip, fps=fps).index) == sorted(on_screen)


def test_streams_that_come_up_while_a_file_is_read_end_it_without_an_error() -> None:
    class Grown:
        """As PyAV, which after the last packet looks for streams that were not there when it began."""

        def demux(self, *streams: Any) -> Iterator[Any]:
            yield from (SimpleNamespace(size=3, is_corrupt=False) for _ in range(4))
            raise IndexError("list index out of range")

    assert len(list(demux.packets(Grown(), None))) == 4
