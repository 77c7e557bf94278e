"""video.py: the right frame, whatever the container says, and one clear line for a file that is no video."""

import os
from pathlib import Path

import pytest
import torch

av = pytest.importorskip("av")
np = pytest.importorskip("numpy")

from tests.clips import HEIGHT, WIDTH, numbers, write, written  # noqa: E402
from vidsieve.errors import MissingExtra, VideoError  # noqa: E402
from vidsieve.video.decode import read_video  # noqa: E402


def test_samples_evenly_from_the_first_frame_to_the_last(clip: Path) -> None:
    frames = read_video(clip, num_frames=12)
    assert frames.index == (0, 9, 18, 27, 36, 45, 54, 63, 72, 81, 90, 99)
    assert numbers(frames.pixels) == list(frames.index)
    assert (frames.total, frames.fps, frames.duration) == (100, pytest.approx(25), pytest.approx(4.0))
    assert frames.seconds == pytest.approx([i / 25 for i in frames.index])


def test_samples_at_a_rate(clip: Path) -> None:
    frames = read_video(clip, fps=2)
    assert frames.index == (0, 12, 25, 37, 50, 62, 75, 87)
    assert numbers(frames.pixels) == list(frames.index)


def test_a_rate_above_the_files_gives_each_frame_once(clip: Path) -> None:
    assert read_video(clip, fps=1000).index == tuple(range(100))


@pytest.mark.parametrize("index", [[3], [50, 2, 2, 99], list(range(40, 60)), [0, 11, 12, 13, 23, 24, 25, 98, 99]])
def test_gives_exactly_the_frames_asked_for_in_that_order(clip: Path, index: list[int]) -> None:
    frames = read_video(clip, index=index)
    assert frames.index == tuple(index)
    assert numbers(frames.pixels) == index


def test_more_frames_than_there_are_gives_all(clip: Path) -> None:
    assert read_video(clip, num_frames=500).index == tuple(range(100))


def test_64_frames_unless_told(clip: Path) -> None:
    assert len(read_video(clip)) == 64


def test_one_frame(clip: Path) -> None:
    assert read_video(clip, num_frames=1).index == (0,)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("bframes.mp4", "libx264", {"g": "50", "bf": "4"}),
        ("open_gop.mp4", "libx264", {"g": "10", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}),
        ("intra.mp4", "libx264", {"g": "1", "bf": "0"}),
        ("one_key.mkv", "libx264", {"g": "1000", "x264-params": "scenecut=0"}),
        ("stream.ts", "libx264", {}),
        ("vp9.webm", "libvpx-vp9", {"g": "30", "deadline": "realtime", "cpu-used": "8"}),
        ("vp8_hidden.webm", "libvpx", {"g": "30", "auto-alt-ref": "1", "lag-in-frames": "8"}),
        ("mpeg4.avi", "mpeg4", {}),
        ("no_stamps.avi", "libx264", {}),
        ("old.mpg", "mpeg2video", {}),
    ],
)
def test_the_frame_is_right_in_every_container(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    path = write(tmp_path / name, codec=codec, **options)
    everything = read_video(path, num_frames=1000)
    assert everything.total == 100
    assert numbers(everything.pixels) == list(range(100))
    for index in ([0, 31, 32, 77, 99], [98], [13]):
        assert numbers(read_video(path, index=index).pixels) == index


def test_variable_frame_rate_and_a_start_other_than_zero(tmp_path: Path) -> None:
    gaps = [40] * 30 + [200] * 30 + [10] * 40
    pts = [5000 + sum(gaps[:i]) for i in range(100)]
    path = write(tmp_path / "vfr.mkv", pts=pts)
    frames = read_video(path, fps=5)
    assert numbers(frames.pixels) == list(frames.index)
    assert frames.index[:9] == (0, 5, 10, 15, 20, 25, 30, 31, 32)
    assert frames.seconds == pytest.approx([(pts[i] - 5000) / 1000 for i in frames.index], abs=2e-3)
    assert numbers(read_video(path, num_frames=9).pixels) == list(read_video(path, num_frames=9).index)


def test_resizes_in_proportion_and_never_enlarges(clip: Path) -> None:
    assert read_video(clip, num_frames=2, size=72).pixels.shape == (2, 24, 72, 3)
    assert read_video(clip, num_frames=2, size=4000).pixels.shape == (2, HEIGHT, WIDTH, 3)
    assert read_video(clip, num_frames=2, size=(30, 20)).pixels.shape == (2, 30, 20, 3)
    assert read_video(clip, num_frames=2, size=None).pixels.shape == (2, HEIGHT, WIDTH, 3)


def audio_only(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def no_frames(path: Path) -> Path:
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        container.start_encoding()
    return path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda d, c: d / "absent.mp4", "no such file"),
        (lambda d, c: d, "is a directory"),
        (lambda d, c: written(d / "empty.mp4", b""), "is empty"),
        (lambda d, c: written(d / "text.mp4", b"once upon a time\n" * 50), "is not a video"),
        (lambda d, c: written(d / "cut.mp4", c.read_bytes()[: c.stat().st_size // 2]), "cut off before"),
        (lambda d, c: written(d / "zeros.mp4", bytes(5000)), "is not a video"),
        (lambda d, c: audio_only(d / "sound.m4a"), "has no video stream"),
        (lambda d, c: no_frames(d / "hollow.mkv"), "not a single frame"),
    ],
    ids=["missing", "directory", "empty", "text", "truncated", "zeros", "audio", "no-frames"],
)
def test_what_is_no_video_gets_one_clear_line(tmp_path: Path, clip: Path, make, says: str) -> None:
    path = make(tmp_path, clip)
    with pytest.raises(VideoError) as caught:
        read_video(path)
    message = str(caught.value)
    assert says in message
    assert str(path) in message
    assert "\n" not in message


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path, clip: Path) -> None:
    path = written(tmp_path / "locked.mp4", clip.read_bytes())
    path.chmod(0)
    with pytest.raises(VideoError, match="no permission"):
        read_video(path)


def test_a_frame_beyond_the_end_is_an_error(clip: Path) -> None:
    with pytest.raises(VideoError, match="has no frame 100, only 0 to 99"):
        read_video(clip, index=[5, 100])
    with pytest.raises(VideoError, match="has no frame -1"):
        read_video(clip, index=[-1])


@pytest.mark.parametrize(
    "arguments",
    [
        *({"num_frames": wrong} for wrong in (0, 1.5, True, "x")),
        *({"fps": wrong} for wrong in (0, float("nan"), float("inf"), "x")),
        *({"num_frames": 4, "fps": 1}, {"index": []}, {"index": [1.5]}),
        *({"size": wrong} for wrong in (0, 1.5, True, (30, 0), (30, 20, 3))),
    ],
)
def test_arguments_that_make_no_sense(clip: Path, arguments: dict) -> None:
    with pytest.raises(ValueError, match=r"expected|give one|num_frames is a whole|fps is frames a second"):
        read_video(clip, **arguments)


def test_without_pyav_the_extra_is_named(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(MissingExtra, match=r"pip install .*\[video\]"):
        read_video(clip)


def test_progress_is_silent_where_standard_error_is_no_terminal(
    clip: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vidsieve.video.decode.LONG_CLIP", 0)
    read_video(clip, num_frames=3, progress=True)
    assert capfd.readouterr() == ("", "")


def test_progress_shows_on_a_terminal(
    clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vidsieve.video.decode.LONG_CLIP", 0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    read_video(clip, num_frames=3, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "decoding" in err


def real_clips() -> list[Path]:
    return sorted(Path(os.environ.get("VIDSIEVE_CLIPS", "/nonexistent")).glob("*.mp4"))


@pytest.mark.skipif(not real_clips(), reason="set VIDSIEVE_CLIPS to a folder of real .mp4 clips")
@pytest.mark.parametrize("path", real_clips(), ids=lambda path: path.stem)
def test_seeking_finds_the_frames_that_decoding_everything_finds(path: Path) -> None:
    frames = read_video(path, num_frames=5, size=(48, 64))
    found = {}
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for number, frame in enumerate(container.decode(video=0)):
            if number in frames.index:
                found[number] = torch.from_numpy(
                    frame.reformat(64, 48, format="rgb24", interpolation="AREA").to_ndarray()
                )
    assert frames.total == number + 1
    assert torch.equal(frames.pixels, torch.stack([found[i] for i in frames.index]))
