"""Frames of a video that has no end yet, from servers of its own on loopback."""

import functools
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("av")
pytest.importorskip("numpy")

import av

from tests.clips import numbers, picture, write, written
from vidsieve.errors import VideoError
from vidsieve.video import live, read_video
from vidsieve.video.live import _Clock

FIFTHS = [*range(0, 100, 5)]  # what 5 a second are of 25
UNSURE = r"ended after [34]\.\d s, or its server stopped, which looks the same from here"
PACKET = 188  # bytes, of MPEG-TS


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("live") / "clip.ts", 100, g="25")


def taken(address: Any, fps: float = 5, **options: Any) -> tuple[list[int], list[float]]:
    """The numbers that the frames say, and their seconds."""
    shown: list[int] = []
    seconds: list[float] = []
    for frames, times in live(address, fps, **{"patience": 0.2} | options):
        assert len(frames) == len(times) == 1
        shown += numbers(frames)
        seconds += times
    return shown, seconds


def test_a_file_that_is_complete_ends(clip: Path) -> None:
    shown, seconds = taken(clip)
    assert shown == FIFTHS
    assert seconds == pytest.approx([number / 25 for number in shown])
    assert taken(clip, 1000)[0] == list(range(100))
    [(frames, _), *_] = live(clip, 0.1, patience=0.2, size=72)
    assert frames.equal(read_video(clip, index=[0], size=72).pixels)
    assert taken(clip, 0.1)[0] == [0]


def test_a_file_that_grows_is_followed(clip: Path, tmp_path: Path) -> None:
    data, path = clip.read_bytes(), tmp_path / "growing.ts"
    path.write_bytes(data[:1000])

    def grow() -> None:
        with path.open("ab") as file:
            for begin in range(1000, len(data), 7001):
                time.sleep(0.02)
                file.write(data[begin : begin + 7001])
                file.flush()

    thread = threading.Thread(target=grow)
    thread.start()
    shown, _ = taken(path, patience=1.0)
    thread.join()
    assert shown == FIFTHS


@pytest.mark.parametrize(
    ("stamps", "expected"),
    [
        ([90, 100, 110], [0, 1, 2]),
        ([None, None, None], [0, 1, 2]),
        ([50, 60, 7, 17], [0, 1, 2, 3]),
        ([50, None, 70], [0, 1, 2]),
        ([0, 10, 10, 20], [0, 1, 1, 2]),
        ([0, 500], [0, 50]),
    ],
)
def test_time_goes_on_where_stamps_go_back_or_are_missing(stamps: list[int | None], expected: list[float]) -> None:
    clock = _Clock()
    assert [clock.at(SimpleNamespace(pts=pts, duration=10), 0.1, 1) for pts in stamps] == pytest.approx(expected)
    clock = _Clock()
    assert [clock.at(SimpleNamespace(pts=None, duration=0), 0.1, 4.0) for _ in range(3)] == [0, 0.25, 0.5]


def test_damaged_packets_are_left_out_with_a_warning(clip: Path, tmp_path: Path) -> None:
    data = bytearray(clip.read_bytes())
    for at in range(40 * PACKET, 44 * PACKET, PACKET):
        data[at + 1] |= 0x80  # "cannot be relied on"
    path = written(tmp_path / "damaged.ts", bytes(data))
    with pytest.warns(UserWarning, match=r"damaged.ts: frames that were damaged on the way are left out"):
        shown, seconds = taken(path, 25)
    assert shown == sorted(set(shown))  # what is shown is true
    assert seconds == pytest.approx([number / 25 for number in shown])
    assert 0 < 100 - len(shown) <= 50  # up to a key frame, of which there is one in 25
    assert shown[-1] == 99


class Pieces(BaseHTTPRequestHandler):
    """Sends a clip in pieces, in the way that the address says."""

    protocol_version = "HTTP/1.1"
    data = b""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        data = self.data[: len(self.data) // (1 if "whole" in self.path else 2)]
        self.close_connection = True
        self.send_response(200)
        chunked = "chunked" in self.path
        self.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(len(self.data)))))
        self.end_headers()
        for begin in range(0, len(data), 5000):
            piece = data[begin : begin + 5000]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
            time.sleep(0.002)
        if "stalled" in self.path:
            time.sleep(1.0)
        elif chunked and "whole" in self.path:
            self.wfile.write(b"0\r\n\r\n")


def serving(handler: Callable[..., Any]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=functools.partial(server.serve_forever, 0.05))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def pieces(clip: Path) -> Iterator[str]:
    yield from serving(type("Pieces", (Pieces,), {"data": clip.read_bytes()}))


def test_over_http_in_pieces(pieces: str) -> None:
    assert taken(f"{pieces}/whole.ts", patience=5)[0] == FIFTHS
    with pytest.warns(UserWarning, match=UNSURE):
        assert taken(f"{pieces}/whole-chunked.ts", patience=5)[0] == FIFTHS
    with pytest.warns(UserWarning, match=r"ended after 1\.\d s, or its server stopped"):
        dropped = taken(f"{pieces}/dropped-chunked.ts", patience=5)[0]
    assert dropped == FIFTHS[: len(dropped)]
    assert len(dropped) > 5


def test_frames_that_came_before_a_loss_are_shown(pieces: str, clip: Path) -> None:
    half = written(clip.with_name("half.ts"), clip.read_bytes()[: clip.stat().st_size // 2])
    came = [numbers(frames)[0] for frames, _ in live(half, 25, patience=0.1)]
    shown: list[int] = []
    with pytest.raises(VideoError, match="was lost"):
        shown.extend(numbers(frames)[0] for frames, _ in live(f"{pieces}/dropped.ts", 25, patience=5))
    assert shown == came


@pytest.mark.parametrize(
    ("path", "says"),
    [("dropped.ts", "Input/output error"), ("stalled.ts", "nothing came for 0.5 s"), ("stalled-chunked.ts", "nothing")],
)
def test_a_connection_that_is_lost_ends_in_a_line(pieces: str, path: str, says: str) -> None:
    shown: list[int] = []
    with pytest.raises(VideoError, match=rf"{path}: was lost after 1.\d s \({says}.*\); open it again") as caught:
        shown.extend(numbers(frames)[0] for frames, _ in live(f"{pieces}/{path}", 5, patience=0.5))
    assert shown == FIFTHS[: len(shown)]
    assert len(shown) > 5
    assert "\n" not in str(caught.value)


def segmented(folder: Path) -> list[str]:
    """The clip as HLS; gives the lines of its playlist."""
    with av.open(str(folder / "list.m3u8"), "w", format="hls", options={"hls_time": "1", "hls_list_size": "0"}) as file:
        stream = file.add_stream("libx264", rate=25, options={"g": "25"})
        stream.height, stream.width, stream.pix_fmt = 48, 144, "yuv420p"
        for number in range(100):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
        file.mux(stream.encode())
    return (folder / "list.m3u8").read_text().splitlines()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_a_playlist(tmp_path: Path) -> None:
    lines = segmented(tmp_path)
    assert lines[-1] == "#EXT-X-ENDLIST"
    path = tmp_path / "growing.m3u8"
    ends = [i + 1 for i, line in enumerate(lines) if line.endswith(".ts")]
    path.write_text("\n".join(lines[: ends[1]]) + "\n")

    def grow() -> None:
        for end in (*ends[2:], len(lines)):
            time.sleep(0.3)
            path.with_suffix(".part").write_text("\n".join(lines[:end]) + "\n")
            path.with_suffix(".part").replace(path)

    for address in serving(functools.partial(Quiet, directory=tmp_path)):
        assert taken(f"{address}/list.m3u8", patience=5)[0] == FIFTHS
        thread = threading.Thread(target=grow)
        thread.start()
        with pytest.warns(UserWarning, match=UNSURE):
            assert taken(f"{address}/growing.m3u8", patience=5)[0] == FIFTHS
        thread.join()
        path.write_text("\n".join(lines[:-1]) + "\n")  # and no more comes
        with pytest.raises(VideoError, match=r"was lost after \d.\d s \(nothing came for 0.5 s\)"):
            taken(f"{address}/growing.m3u8", patience=0.5)


PUSH = """
import sys, time, av, numpy as np
def picture(number):
    row = np.repeat(np.array([number >> bit & 1 for bit in range(9)], np.uint8) * 255, 16)
    return np.broadcast_to(row[None, :, None], (48, 144, 3)).copy()
for attempt in range(100):
    time.sleep(0.05)
    try:
        with av.open(sys.argv[1], "w", format="rtsp", options={"rtsp_transport": "tcp"}) as file:
            stream = file.add_stream("libx264", rate=25, options={"g": "12", "tune": "zerolatency"})
            stream.width, stream.height, stream.pix_fmt = 144, 48, "yuv420p"
            for number in range(60):
                frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
                frame.pts = number
                file.mux(stream.encode(frame))
            file.mux(stream.encode())
        break
    except av.error.ConnectionRefusedError:
        pass
"""


@pytest.mark.skipif("rtsp" not in av.formats_available, reason="this build of FFmpeg reads no RTSP")
def test_over_rtsp() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"rtsp://127.0.0.1:{free.getsockname()[1]}/live"
    with subprocess.Popen([sys.executable, "-c", PUSH, address]) as pushing:
        with pytest.warns(UserWarning, match="ended after 2.[34] s, or its server stopped"):
            shown, seconds = taken(address, patience=20, options={"rtsp_flags": "listen"})
        assert pushing.wait(20) == 0
    assert shown == FIFTHS[:12]
    assert seconds == pytest.approx([number / 25 for number in shown], abs=2e-3)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("http://127.0.0.1:9/a.ts", "cannot be read as a live video"),
        ("rtsp://127.0.0.1:9/a", "cannot be read as a live video"),
        ("s3://bucket/a", "s3:// cannot be read"),
        ("absent.ts", "no such file"),
        ("-", "standard input"),
    ],
)
def test_what_cannot_be_opened_is_told_in_a_line(address: str, says: str) -> None:
    with pytest.raises(VideoError, match=says) as caught:
        list(live(address, 1, patience=2))
    assert str(caught.value).startswith(address)
    assert "\n" not in str(caught.value)


def test_what_is_no_video_and_no_number(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"text.ts: cannot be read as a live video \(Invalid data"):
        taken(written(tmp_path / "text.ts", b"no video " * 50))
    with pytest.raises(ValueError, match="fps is frames a second, above 0; got 0"):
        live(clip, 0)
    with pytest.raises(ValueError, match="patience is in seconds, above 0; got -1"):
        live(clip, 1, patience=-1)


def test_one_who_leaves_closes_the_file(clip: Path) -> None:
    frames = live(clip, 5, patience=60)
    next(frames)
    frames.close()  # type: ignore[attr-defined]
    assert list(frames) == []
