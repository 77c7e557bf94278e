"""batch.py on a Ray of its own: broken clips, a kill in the middle, workers that die, a pipeline of one's own."""

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
from vidsieve.encoded.batch import schema
from vidsieve.encoded.many import Request, encode_all
from vidsieve.encoded.video import EncodedVideo

pytestmark = pytest.mark.ray
parquet = pytest.importorskip("pyarrow.parquet", reason="the extra `ray` is not installed: make test-ray")
pytest.importorskip("ray", reason="the extra `ray` is not installed: make test-ray")

CLI = "import sys; from vidsieve.cli.main import main; sys.exit(main())"
COPIES = 4
WHOLE = 3 * COPIES + 1  # clips that are not broken
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


def command(world: Path, clips: Path, out: Path, *more: str, code: str = CLI, name: str = "batch") -> list[str]:
    options = ("--frames", "8", "--keep", "0.25", "--json", *(("--workers", "2") if name == "batch" else ()), *more)
    call = (name, str(clips), "--model", str(world / "model"), "--out", str(out))
    return [sys.executable, "-c", code, *call, *options]


def outcome(arguments: Sequence[str]) -> dict[str, Any]:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def table(out: Path) -> list[dict[str, Any]]:
    return parquet.read_table(out / "clips.parquet").to_pylist()


def written(out: Path) -> dict[str, tuple[int, int]]:
    """The files: their inodes and times, which a file written again would not keep."""
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in out.glob("*.vidsieve")}


def test_killed_in_the_middle_and_resumed(world: Path, tmp_path: Path) -> None:
    arguments = command(world, world / "clips", tmp_path)
    killed = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while len(written(tmp_path)) < 2 and time.monotonic() < deadline and killed.poll() is None:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL, "it ended before it could be killed"
    before = written(tmp_path)
    assert 2 <= len(before) < WHOLE
    assert not (tmp_path / "clips.parquet").exists()
    for name in before:
        EncodedVideo.load(tmp_path / name)  # whole
    for leftover in ("half.vidsieve.1.part", "half.trying"):
        (tmp_path / leftover).write_bytes(b"half")

    found = outcome(arguments)
    assert found["clips"] == WHOLE + 3
    assert found["already_there"] >= len(before)
    assert found["already_there"] + found["encoded"] == WHOLE
    after = written(tmp_path)
    assert len(after) == WHOLE
    assert {name: after[name] for name in before} == before  # nothing twice
    assert {file.name for file in tmp_path.iterdir()} == {*after, "clips.parquet"}  # and nothing left over

    rows = table(tmp_path)
    assert len(rows) == found["clips"] == len({row["clip"] for row in rows})  # nothing lost
    assert {row["file"] for row in rows} == {*after, None}
    errors = {Path(row["clip"]).name: row["error"] for row in rows if row["error"]}
    assert set(errors) == {"cut.mp4", "empty.mp4", "text.mp4"}
    assert "is empty (0 bytes)" in errors["empty.mp4"]
    assert {Path(row["clip"]).name for row in found["failed"]} == set(errors)
    names = {Path(row["clip"]).name for row in rows}
    assert names >= {r"caf\udce9.mp4", "night0.mp4", "clock1.mp4", "sea2.mp4"}
    alone = alone_rows(world, tmp_path / "alone")
    for row in rows:
        if row["error"]:
            assert row["file"] is row["kept"] is None
            continue
        stored = EncodedVideo.load(tmp_path / row["file"])
        assert row["kept"] == stored.selection.kept.tolist() == alone[content(row["clip"])]
        assert (row["tokens"], row["seconds"]) == ([*stored.tokens], [*stored.frames.seconds])

    again = outcome(arguments)  # only what is broken is tried again
    assert (again["already_there"], again["encoded"], len(again["failed"])) == (WHOLE, 0, 3)
    assert written(tmp_path) == after
    assert table(tmp_path) == rows

    damaged = tmp_path / min(after)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert outcome(arguments)["encoded"] == 1
    assert {name: at for name, at in written(tmp_path).items() if name != min(after)} == {
        name: at for name, at in after.items() if name != min(after)
    }
    assert table(tmp_path) == rows


def content(clip: str) -> str:
    """What a clip shows; copies of one clip differ in a digit."""
    stem = Path(clip).stem.rstrip("0123456789")
    return "sea" if stem.startswith("caf") else stem


def alone_rows(world: Path, out: Path) -> dict[str, list[int]]:
    """What `vidsieve encode` keeps of each clip that differs, in one process."""
    clips = [str(world / f"{name}.mp4") for name in ("night", "clock", "sea")]
    rows = encode_all(Request(clips, str(world / "model"), out, {"num_frames": 8}, keep=0.25))["rows"]
    kept = {content(row["clip"]): EncodedVideo.load(row["file"]).selection.kept.tolist() for row in rows}
    assert len({*map(str, kept.values())}) == 3
    return kept


def test_encode_and_batch_go_on_with_the_files_of_one_another(world: Path, tmp_path: Path) -> None:
    one, all_of_them = world / "clips" / "night0.mp4", tmp_path / "clips.txt"
    all_of_them.write_text("\n".join(str(path) for path in sorted((world / "clips").glob("night*.mp4"))))
    out = tmp_path / "out"
    [first] = outcome(command(world, one, out, name="encode"))["rows"]
    begun = written(out)
    found = outcome(command(world, all_of_them, out))
    assert (found["clips"], found["already_there"], found["encoded"]) == (COPIES, 1, COPIES - 1)
    after = written(out)
    assert {name: after[name] for name in begun} == begun
    assert Path(first["file"]).name in {row["file"] for row in table(out)}
    rows = outcome(command(world, all_of_them, out, name="encode"))["rows"]
    assert all(row["already_there"] for row in rows)
    assert written(out) == after

    ask = [sys.executable, "-c", CLI, "ask", rows[-1]["file"], "-q", "What moves?", "--max-new-tokens", "2", "--json"]
    [answered] = outcome(ask)["rows"]
    assert answered["question"] == "What moves?"
    assert "answer" in answered

    other = subprocess.run(command(world, all_of_them, out, "--keep", "0.1"), capture_output=True, text=True)
    assert other.returncode == 1
    assert "holds this clip at keep 0.25; asked for: at keep 0.1" in other.stderr.splitlines()[-1]
    assert {row["error"] is None for row in table(out)} == {False}
    assert written(out) == after


OWN = """
import json, sys
import ray
from vidsieve.encoded.batch import EncodeClips

model, out, *clips = sys.argv[1:]
ray.init("local", include_dashboard=False, log_to_driver=False)
rows = ray.data.from_items([{"clip": clip} for clip in clips]).map_batches(
    EncodeClips,
    fn_constructor_args=(model, out),
    fn_constructor_kwargs={"keep": 0.25, "num_frames": 8, "device": "cpu"},
    batch_size=2,
    compute=ray.data.ActorPoolStrategy(size=1),
)
print(json.dumps(rows.take_all()))
"""


def test_a_pipeline_of_ones_own_writes_the_same_files_and_rows(world: Path, tmp_path: Path) -> None:
    clips = [str(world / "clips" / name) for name in ("night0.mp4", "text.mp4", "clock0.mp4")]
    arguments = [sys.executable, "-c", OWN, str(world / "model"), str(tmp_path), *clips]
    rows = {row["clip"]: row for row in outcome(arguments)}
    assert next(iter(rows.values())).keys() == {*schema().names}
    assert {clip for clip, row in rows.items() if row["error"]} == {clips[1]}
    found = outcome(command(world, world / "clips" / "night0.mp4", tmp_path))
    assert (found["already_there"], found["encoded"]) == (1, 0)
    assert table(tmp_path) == [rows[clips[0]]]


DYING = """
import os, signal, sys
from vidsieve.encoded import many
from vidsieve.cli.main import main

class Dying(many.EncodeVideos):
    def __init__(self, request):
        super().__init__(request)
        encode = many._encoded
        def dying(loaded, clip, *more):
            if "clock1" in clip:
                os.kill(os.getpid(), signal.SIGKILL)
            return encode(loaded, clip, *more)
        many._encoded = dying

many.EncodeVideos = Dying
sys.exit(main())
"""


def test_workers_that_die_of_a_clip_do_not_take_others_with_them(world: Path, tmp_path: Path) -> None:
    clips = tmp_path / "clips.txt"
    clips.write_text("\n".join(str(path) for path in sorted((world / "clips").glob("clock*.mp4"))))
    found = outcome(command(world, clips, tmp_path / "out", "--workers", "1", code=DYING))
    assert found["encoded"] == COPIES - 1
    assert [Path(row["clip"]).name for row in found["failed"]] == ["clock1.mp4"]
    assert "2 workers died on it" in found["failed"][0]["error"]
    assert [row["error"] is None for row in table(tmp_path / "out")] == [True, False, True, True]
    assert not list((tmp_path / "out").glob("*.trying"))


def test_nothing_but_broken_clips_is_an_error(world: Path, tmp_path: Path) -> None:
    clips = tmp_path / "clips.txt"
    clips.write_text("absent.mp4\nmissing.mp4\n")
    done = subprocess.run(command(world, clips, tmp_path / "out", "--workers", "1"), capture_output=True, text=True)
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["message"] in done.stderr
    assert "error: none of 2 clips: " in done.stderr
    assert "absent.mp4: no such file" in done.stderr
    assert [Path(row["clip"]).name for row in table(tmp_path / "out")] == ["absent.mp4", "missing.mp4"]


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
    assert re.search(rf"vidsieve: interrupted; \d+ of {WHOLE + 3} clips are stored", err.splitlines()[-1])


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
