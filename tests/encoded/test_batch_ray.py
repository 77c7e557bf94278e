"""batch.py on a Ray cluster of its own: broken clips, a kill in the middle, workers that die."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests import synthetic_clip
from vidsieve.cli.run import Request, run
from vidsieve.encoded.batch import QUESTION
from vidsieve.encoded.stored import read

pytestmark = pytest.mark.ray
parquet = pytest.importorskip("pyarrow.parquet", reason="the extra `ray` is not installed: make test-ray")
pytest.importorskip("ray", reason="the extra `ray` is not installed: make test-ray")

CLI = "import sys; from vidsieve.cli.main import main; sys.exit(main())"
COPIES = 4
CLIPS = sorted(Path(os.environ.get("VIDSIEVE_CLIPS", "/nonexistent")).glob("*.mp4"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/ and clips/: copies of three clips that differ, three broken files, and a name that is no text."""
    folder = tmp_path_factory.mktemp("ray")
    synthetic_clip.build_model(folder / "model")
    clips = folder / "clips"
    clips.mkdir()
    scenes = synthetic_clip.SCENES
    with pytest.MonkeyPatch.context() as patch:
        for name, some in (("night", scenes[:2]), ("clock", scenes[2:4]), ("sea", scenes[4:])):
            patch.setattr(synthetic_clip, "SCENES", some)
            clip = synthetic_clip.render_clip(folder / f"{name}.mp4").read_bytes()
            for copy in range(COPIES):
                (clips / f"{name}{copy}.mp4").write_bytes(clip)
    (clips / "cut.mp4").write_bytes(clip[: len(clip) // 2])
    (clips / "empty.mp4").write_bytes(b"")
    (clips / "text.mp4").write_text("no video at all")
    (clips / os.fsdecode(b"caf\xe9.mp4")).write_bytes(clip)
    return folder


def command(world: Path, clips: Path, out: Path, *more: str, code: str = CLI) -> list[str]:
    model = str(world / "model")
    options = ("--frames", "8", "--keep", "0.25", "--workers", "2", "--json", *more)
    return [sys.executable, "-c", code, "batch", str(clips), "--model", model, "--out", str(out), *options]


def outcome(arguments: Sequence[str]) -> dict[str, Any]:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def table(out: Path) -> list[dict[str, Any]]:
    return parquet.read_table(out / "clips.parquet").to_pylist()


def written(out: Path) -> dict[str, tuple[int, int]]:
    """The features files: their inodes and times, which a file written again would not keep."""
    files = (out / "features").glob("*.safetensors")
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def test_killed_in_the_middle_and_resumed(world: Path, tmp_path: Path) -> None:
    arguments = command(world, world / "clips", tmp_path)
    killed = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while len(written(tmp_path)) < 2 and time.monotonic() < deadline and killed.poll() is None:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL, "it ended before it could be killed"
    before = written(tmp_path)
    assert 2 <= len(before) < 3 * COPIES
    assert not (tmp_path / "clips.parquet").exists()
    for name in before:
        read(tmp_path / "features" / name)  # whole
    for leftover in ("half.safetensors.1.part", "half.trying"):
        (tmp_path / "features" / leftover).write_bytes(b"half")

    found = outcome(arguments)
    assert found["clips"] == 3 * COPIES + 4
    assert found["already_there"] >= len(before)
    assert found["already_there"] + found["encoded"] == 3 * COPIES
    after = written(tmp_path)
    assert len(after) == 3 * COPIES
    assert {name: after[name] for name in before} == before  # nothing twice
    assert len(list((tmp_path / "features").iterdir())) == len(after)  # and nothing left over

    rows = table(tmp_path)
    assert len(rows) == found["clips"] == len({row["clip"] for row in rows})  # nothing lost
    errors = {Path(row["clip"]).name: row["error"] for row in rows if row["error"]}
    assert set(errors) == {"cut.mp4", "empty.mp4", "text.mp4", r"caf\xe9.mp4"}
    assert "is not a name in UTF-8" in errors[r"caf\xe9.mp4"]
    assert "is empty (0 bytes)" in errors["empty.mp4"]
    assert {Path(row["clip"]).name for row in found["failed"]} == set(errors)
    for row in rows:
        if row["error"]:
            assert row["file"] is row["kept"] is None
            continue
        expected = kept_by_run(world, Path(row["clip"]))
        tensors, stored = read(tmp_path / "features" / row["file"])
        assert row["kept"] == stored["kept"] == tensors["kept"].tolist() == expected
        assert row == {"error": None, **stored}

    again = outcome(arguments)  # only what is broken is tried again
    assert (again["already_there"], again["encoded"], len(again["failed"])) == (3 * COPIES, 0, 4)
    assert written(tmp_path) == after
    assert table(tmp_path) == rows

    damaged = tmp_path / "features" / min(after)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert outcome(arguments)["encoded"] == 1
    assert {name: at for name, at in written(tmp_path).items() if name != min(after)} == {
        name: at for name, at in after.items() if name != min(after)
    }
    assert table(tmp_path) == rows


_kept: dict[str, list[int]] = {}


def kept_by_run(world: Path, clip: Path) -> list[int]:
    """What `vidsieve run` keeps of a clip; copies of one clip are run once."""
    content = clip.stem.rstrip("0123456789")
    if content not in _kept:
        model = str(world / "model")
        request = Request(str(clip), QUESTION, model, keep=0.25, frames=8, max_new_tokens=1, compare=False)
        _kept[content] = run(request)["kept"]
    return _kept[content]


DYING = """
import os, signal, sys
from vidsieve.encoded import batch
from vidsieve.cli.main import main

class Dying(batch._EncodeListed):
    def _row(self, task, decoding):
        if "clock1" in task.clip and decoding.exception() is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._row(task, decoding)

batch._EncodeListed = Dying
sys.exit(main())
"""


def test_workers_that_die_of_a_clip_do_not_take_others_with_them(world: Path, tmp_path: Path) -> None:
    clips = tmp_path / "clips.txt"
    clips.write_text("\n".join(str(path) for path in sorted((world / "clips").glob("clock*.mp4"))))
    found = outcome(command(world, clips, tmp_path / "out", "--workers", "1", code=DYING))
    assert found["encoded"] == COPIES - 1
    assert [Path(row["clip"]).name for row in found["failed"]] == ["clock1.mp4"]
    assert "2 workers died on it" in found["failed"][0]["error"]


def test_nothing_but_broken_clips_is_an_error(world: Path, tmp_path: Path) -> None:
    clips = tmp_path / "clips.txt"
    clips.write_text("absent.mp4\n")
    done = subprocess.run(command(world, clips, tmp_path / "out", "--workers", "1"), capture_output=True, text=True)
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["message"] in done.stderr
    assert "error: none of 1 clips could be encoded; the first says: " in done.stderr
    assert "absent.mp4: no such file" in done.stderr


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--device", "cuda:1"), "expected device cpu or cuda, got 'cuda:1'"),
        (("--workers", "4096"), "expected a processor for each of 4096 workers"),
        (("--address", "127.0.0.1:1"), "no Ray cluster answers at '127.0.0.1:1'"),
        (("--model", "absent"), "model 'absent': no such folder"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(world: Path, tmp_path: Path, more: tuple[str, ...], says: str) -> None:
    arguments = command(world, world / "clips", tmp_path, *more)
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert says in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert says in json.loads(done.stdout)["error"]["message"]


def test_ctrl_c_says_how_many_are_stored(world: Path, tmp_path: Path) -> None:
    stopped = subprocess.Popen(
        command(world, world / "clips", tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 200
    while len(written(tmp_path)) < 2 and time.monotonic() < deadline and stopped.poll() is None:
        time.sleep(0.01)
    stopped.send_signal(signal.SIGINT)
    _, err = stopped.communicate(timeout=120)
    assert stopped.returncode == 130
    assert re.search(rf"vidsieve: interrupted; \d+ of {3 * COPIES + 3} clips are stored", err.splitlines()[-1])


@pytest.mark.skipif(not CLIPS, reason="set VIDSIEVE_CLIPS to a folder of real .mp4 clips")
def test_real_clips_beside_broken_ones(world: Path, tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    for clip in CLIPS:
        (clips / clip.name).symlink_to(clip)
    for name in ("empty.mp4", "text.mp4"):
        (clips / name).symlink_to(world / "clips" / name)
    (clips / "cut.mp4").write_bytes(CLIPS[0].read_bytes()[: CLIPS[0].stat().st_size // 2])
    found = outcome(command(world, clips, tmp_path / "out"))
    assert (found["encoded"], len(found["failed"])) == (len(CLIPS), 3)
    rows = [row for row in table(tmp_path / "out") if not row["error"]]
    assert {Path(row["clip"]).name for row in rows} == {clip.name for clip in CLIPS}
    assert all(row["tokens_after"] == round(0.25 * row["tokens_before"]) for row in rows)
