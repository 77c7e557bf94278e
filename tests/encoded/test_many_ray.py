"""many.py on a Ray of its own: `vidsieve encode --workers`, killed, resumed, with workers that die."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests import synthetic_clip
from vidsieve.encoded.video import EncodedVideo

pytestmark = pytest.mark.ray
pytest.importorskip("pyarrow.parquet", reason="the extra `ray` is not installed: make test-ray")
pytest.importorskip("ray", reason="the extra `ray` is not installed: make test-ray")

CLI = "import sys; from vidsieve.cli.main import main; sys.exit(main())"
NAMES = ("a.mp4", "b.mp4", "c.mp4", "d.mp4", os.fsdecode(b"caf\xe9.mp4"))
DYING = """
import os, signal, sys
from vidsieve.encoded import many
from vidsieve.cli.main import main

class Dying(many.EncodeVideos):
    def __init__(self, request):
        super().__init__(request)
        encode = many._encoded
        def dying(loaded, clip, *more):
            if clip.endswith("b.mp4"):
                os.kill(os.getpid(), signal.SIGKILL)
            return encode(loaded, clip, *more)
        many._encoded = dying

many.EncodeVideos = Dying
sys.exit(main())
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/ and clips/: a clip by several names, one that is no text among them, and a broken file."""
    folder = tmp_path_factory.mktemp("ray")
    synthetic_clip.build_model(folder / "model")
    (folder / "clips").mkdir()
    clip = synthetic_clip.render_clip(folder / "clip.mp4")
    for name in NAMES:
        (folder / "clips" / name).hardlink_to(clip)
    (folder / "clips" / "text.mp4").write_text("no video at all")
    return folder


def command(world: Path, out: Path, *more: str, code: str = CLI) -> list[str]:
    model, clips = str(world / "model"), str(world / "clips")
    options = ("--frames", "8", "--keep", "0.25", "--json", *more)
    return [sys.executable, "-c", code, "encode", clips, "--model", model, "--out", str(out), *options]


def rows(arguments: list[str]) -> dict[str, dict[str, Any]]:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return {Path(row["clip"]).name: row for row in json.loads(done.stdout)["rows"]}


def written(out: Path) -> dict[str, tuple[int, int]]:
    """The files: their inodes and times, which a file written again would not keep."""
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in out.glob("*.vidsieve")}


def test_killed_in_the_middle_it_goes_on_and_gives_what_one_process_gives(world: Path, tmp_path: Path) -> None:
    out, alone = tmp_path / "out", tmp_path / "alone"
    arguments = command(world, out, "--workers", "2")
    killed = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not written(out) and time.monotonic() < deadline and killed.poll() is None:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL, "it ended before it could be killed"
    time.sleep(2)  # its workers follow
    before = written(out)
    assert before
    found = rows(arguments)
    assert found.keys() == {*NAMES, "text.mp4"}
    assert "is not a video" in found["text.mp4"]["error"]
    assert sum("already_there" in row for row in found.values()) == len(before)
    after = written(out)
    assert len(after) == len(NAMES)
    assert {name: after[name] for name in before} == before  # nothing twice
    assert {file.suffix for file in out.iterdir()} == {".vidsieve"}  # and nothing left over
    for name, row in rows(command(world, alone)).items():
        if "error" not in row:
            mine, theirs = EncodedVideo.load(row["file"]), EncodedVideo.load(found[name]["file"])
            assert mine.selection.kept.tolist() == theirs.selection.kept.tolist()


def test_workers_that_die_of_a_clip_do_not_take_others_with_them(world: Path, tmp_path: Path) -> None:
    # Ray only where it is asked for: by one worker and an address, too.
    found = rows(command(world, tmp_path, "--workers", "1", "--address", "local", code=DYING))
    assert {name for name, row in found.items() if "error" in row} == {"b.mp4", "text.mp4"}
    assert "2 workers died on it" in found["b.mp4"]["error"]
    assert not list(tmp_path.glob("*.trying"))
