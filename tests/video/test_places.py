"""Where a video may lie, and one clear line for where it may not."""

import functools
import os
import threading
import traceback
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

pytest.importorskip("av")
pytest.importorskip("numpy")

from tests.clips import cut, numbers, write, written
from vidsieve.errors import VideoError
from vidsieve.video import plan_video, read_chunks
from vidsieve.video.decode import read_video
from vidsieve.video.live import live


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("places") / "clip.mp4", 30)


@pytest.mark.parametrize("name", ["a:b.mp4", "http:b.mp4", "file:b.mp4", "100%d.mp4", "a b#c?d.mp4", "-.mp4"])
def test_a_name_is_a_name_whatever_is_in_it(
    tmp_path: Path, clip: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / name, clip.read_bytes())
    monkeypatch.chdir(tmp_path)
    for path in (name, tmp_path / name, (tmp_path / name).as_uri(), os.fsencode(name)):
        frames = read_video(path, index=[3, 17])
        assert numbers(frames.pixels) == [3, 17]
        assert frames.source == os.fsdecode(path)


@pytest.mark.skipif(os.name != "posix", reason="elsewhere every name is text")
def test_a_name_that_is_no_text(tmp_path: Path, clip: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.mp4")
    try:
        path.write_bytes(clip.read_bytes())
    except OSError:
        pytest.skip("this file system has no such names")
    assert read_video(path).total == 30


class Server(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(clip: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, directory=clip.parent)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_over_http(clip: Path, served: str) -> None:
    frames = read_video(f"{served}/clip.mp4", num_frames=7)
    assert torch.equal(frames.pixels, read_video(clip, num_frames=7).pixels)
    assert frames.source == f"{served}/clip.mp4"
    write(clip.parent / "raw.h264", 30)
    assert numbers(read_video(f"{served}/raw.h264", index=[29, 4]).pixels) == [29, 4]
    with pytest.raises(VideoError, match=r"absent.mp4: cannot be read as a video \(.*404.*\)"):
        read_video(f"{served}/absent.mp4")


def test_what_opens_an_address_is_neither_told_nor_kept(clip: Path, served: str) -> None:
    place = served.replace("//", "//me:se%20cret@")
    opens = f"{place}/clip.mp4?token=hidden&x=/a#b"
    planned = plan_video(opens, num_frames=4)
    for frames in (read_video(opens, num_frames=4), planned, next(read_chunks(planned, 4))):
        assert frames.source == f"{served}/clip.mp4"
    assert torch.equal(next(read_chunks(planned, 4)).pixels, read_video(clip, num_frames=4).pixels)
    for read in (read_video, plan_video, lambda name: next(live(name, 1))):
        with pytest.raises(VideoError) as caught:
            read(f"{place}/absent.mp4?token=hidden")
        assert str(caught.value).startswith(f"{served}/absent.mp4: cannot be read as a")
    short = cut(write(clip.parent / "whole.mkv")).name
    with pytest.warns(UserWarning, match=f"^{served}/{short}: is cut short"):
        read_video(f"{place}/{short}?token=hidden")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("", "got an empty name"),
        ("-", "standard input cannot be gone through twice"),
        ("s3://bucket/clip.mp4", "s3:// cannot be read"),
        ("rtsp://camera/1", "rtsp:// cannot be read"),
        ("file://elsewhere/clip.mp4", "names the host 'elsewhere'"),
        ("file:///absent/clip.mp4", "no such file"),
        ("absent:clip.mp4", "no such file"),
        ("nul\0.mp4", "cannot be opened"),
        ("x" * 5000, "cannot be opened"),
        (".", "is a directory"),
        ("http://127.0.0.1:1/clip.mp4", "cannot be read as a video"),
    ],
)
def test_no_such_place(path: str, says: str) -> None:
    with pytest.raises(VideoError) as caught:
        read_video(path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoError, match=r"is a pipe or device, which cannot be gone through twice"):
        read_video(tmp_path / "pipe.mp4")


@pytest.mark.parametrize("read", [read_video, plan_video, lambda address: next(live(address, 1))])
@pytest.mark.parametrize("scheme", ["http", "rtsp"])
def test_no_traceback_shows_what_opens_an_address(read: Callable[[str], object], scheme: str) -> None:
    with pytest.raises(VideoError) as caught:
        read(f"{scheme}://user:word@127.0.0.1:1/clip.mp4?key=hidden")
    shown, error = [], caught.value
    while error is not None:
        shown += traceback.format_exception_only(error)
        error = error.__cause__ or error.__context__
    assert f"{scheme}://127.0.0.1:1/clip.mp4" in shown[0]
    assert not [line for line in shown if "word" in line or "hidden" in line]
