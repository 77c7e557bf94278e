"""torchcodec gives the frames that PyAV gives, and refuses what it could only guess at."""

import sys
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.clips import HEIGHT, WIDTH, cut, numbers, write, written
from tests.video.test_decode import real_clips
from tests.video.test_files import ORIENTATIONS, corner, turned
from vidsieve.errors import MissingExtra, VideoError
from vidsieve.video import read_video, torchcodec


def why_not() -> str:
    try:
        torchcodec.load()
    except MissingExtra as error:
        return str(error)
    return ""


WHY = why_not()
here = pytest.mark.skipif(bool(WHY), reason=WHY)


HOW: list[dict[str, object]] = [{"num_frames": 9}, {"fps": 5.0}, {"index": [70, 3, 3]}, {"sampling": "keyframes"}]


def same(path: Path, **how: object) -> None:
    plain, other = read_video(path, **how), read_video(path, **how, decoder="torchcodec")
    assert torch.equal(plain.pixels, other.pixels)
    assert (plain.index, plain.seconds, plain.duration) == (other.index, other.seconds, other.duration)


@here
@pytest.mark.parametrize("how", HOW, ids=str)
@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.mov"])
def test_the_same_frames_bit_for_bit(tmp_path: Path, name: str, how: dict[str, object]) -> None:
    same(write(tmp_path / name), size=None, **how)


@here
def test_the_same_frames_at_a_variable_rate_and_a_late_start(tmp_path: Path) -> None:
    stamps = [500 + 40 * i + (13 if i % 3 else 0) for i in range(60)]
    same(write(tmp_path / "clip.mkv", 60, pts=stamps), num_frames=17)


@here
@pytest.mark.parametrize("codec", ["libx265", "libvpx-vp9", "mpeg4"])
def test_the_same_frames_of_other_codecs(tmp_path: Path, codec: str) -> None:
    same(write(tmp_path / "clip.mkv", 40, codec=codec), num_frames=11)


@here
@pytest.mark.skipif(not real_clips(), reason="set VIDSIEVE_CLIPS to a folder of real .mp4 clips")
@pytest.mark.parametrize("path", real_clips(), ids=lambda path: path.stem)
def test_the_same_frames_of_real_clips(path: Path) -> None:
    if path.stem.startswith("cuts"):  # its pixels are not square, so it is scaled
        plain, other = (read_video(path, num_frames=6, decoder=name) for name in ("pyav", "torchcodec"))
        assert (plain.index, plain.seconds) == (other.index, other.seconds)
        assert (plain.pixels.int() - other.pixels.int()).abs().float().mean() < 2
    else:
        same(path, num_frames=6, size=None)


@here
def test_scaled_frames_are_close_and_square(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mp4", 30, sar=Fraction(4, 3))
    for size in (None, 72, (31, 91)):
        plain, other = (read_video(path, num_frames=5, size=size, decoder=name) for name in ("pyav", "torchcodec"))
        assert other.pixels.shape == plain.pixels.shape
        assert (plain.pixels.int() - other.pixels.int()).abs().float().mean() < 4


@here
@pytest.mark.parametrize("name", ORIENTATIONS)
def test_what_is_turned_comes_upright_and_what_is_mirrored_is_refused(tmp_path: Path, name: str) -> None:
    path = turned(write(tmp_path / "clip.mp4", 3, draw=corner), tmp_path / "turned.mp4", ORIENTATIONS[name][0])
    if name in ("upright", "hflip,vflip", "clock", "cclock"):
        same(path, index=[1])
    else:
        with pytest.raises(VideoError, match='is mirrored, and torchcodec can only turn pictures; decoder="pyav"'):
            read_video(path, decoder="torchcodec")


@here
def test_a_file_that_is_cut_short_is_told(tmp_path: Path) -> None:
    path = cut(write(tmp_path / "clip.mkv"))
    with pytest.warns(UserWarning, match="is cut short"):
        same(path, num_frames=5)


@here
def test_a_frame_of_another_time_is_refused(tmp_path: Path) -> None:  # where it seeks wrong, as in transport streams
    with pytest.raises(VideoError, match=r'a frame of 0\.560000 s where frame 3 is of 0\.200000 s; decoder="pyav"'):
        read_video(write(tmp_path / "clip.ts"), index=[3], decoder="torchcodec")


@here
def test_what_it_could_only_guess_at_is_refused(tmp_path: Path) -> None:
    parts = [write(tmp_path / f"{h}.ts", 40, shape=(h, w)).read_bytes() for h, w in ((HEIGHT, WIDTH), (96, 288))]
    with pytest.raises(VideoError, match='decoder="pyav" reads it'):
        read_video(written(tmp_path / "grows.ts", b"".join(parts)), num_frames=1000, decoder="torchcodec")


@here
@pytest.mark.gpu
def test_a_gpu_decodes_the_same_frames(tmp_path: Path) -> None:
    plain = read_video(write(tmp_path / "clip.mp4"), num_frames=9)
    other = read_video(tmp_path / "clip.mp4", num_frames=9, decoder="torchcodec", device="cuda")
    assert other.pixels.is_cuda
    assert numbers(other.pixels.cpu()) == numbers(plain.pixels) == list(plain.index)


def test_arguments_that_make_no_sense(clip: Path) -> None:
    with pytest.raises(ValueError, match='expected decoder "pyav" or "torchcodec", got \'opencv\''):
        read_video(clip, decoder="opencv")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="torchcodec does not say which frames are damaged"):
        read_video(clip, decoder="torchcodec", strict=True)
    with pytest.raises(ValueError, match="PyAV decodes on the CPU; for device 'cuda'"):
        read_video(clip, device="cuda")


@pytest.mark.parametrize(
    "fault", [ImportError("gone"), RuntimeError("Could not load libtorchcodec.\nTried:"), OSError("no .so")], ids=repr
)
def test_where_it_is_missing_or_does_not_load_one_line_says_so(
    clip: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    class Broken(ModuleType):
        def find_spec(self, name: str, *_: object) -> None:
            if name.startswith("torchcodec"):
                raise fault

    for name in [name for name in sys.modules if name.partition(".")[0] == "torchcodec"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken("broken"), *sys.meta_path])
    says = r"pip install .*\[torchcodec\]" if isinstance(fault, ImportError) else "does not load beside torch"
    with pytest.raises(MissingExtra, match=says) as caught:
        read_video(clip, decoder="torchcodec")
    assert "\n" not in str(caught.value)
