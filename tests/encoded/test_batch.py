"""batch.py without Ray: the rows of its workers and of the table, and what is refused before anything is loaded."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import vidsieve
from tests import synthetic_clip
from vidsieve.checks import pip_install
from vidsieve.cli import main
from vidsieve.cli.report import show_batch
from vidsieve.encoded import batch, many
from vidsieve.encoded.batch import EncodeClips
from vidsieve.errors import MissingExtra
from vidsieve.video.decode import read_video

pytest.importorskip("av")
pytest.importorskip("transformers")

FOUND = {"clips": 3, "encoded": 1, "already_there": 0, "failed": [], "ignored": {}, "table": "t", "folder": "f"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a drawn clip.mp4, half of it as cut.mp4, and model/."""
    folder = tmp_path_factory.mktemp("batch")
    clip = synthetic_clip.render_clip(folder / "clip.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(clip[: len(clip) // 2])
    synthetic_clip.build_model(folder / "model")
    return folder


@pytest.fixture(autouse=True)
def tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables that are lists of rows: pyarrow comes with Ray."""
    lists = SimpleNamespace(Table=SimpleNamespace(from_pylist=lambda rows, schema: rows))
    monkeypatch.setattr(batch, "schema", dict)
    monkeypatch.setitem(sys.modules, "pyarrow", lists)


def worker(world: Path, out: Path, **options: Any) -> EncodeClips:
    return EncodeClips(str(world / "model"), out, **{"num_frames": 8} | options)


def test_a_row_says_what_its_file_holds_which_is_what_encode_makes(world: Path, tmp_path: Path) -> None:
    clip, encoder = str(world / "clip.mp4"), worker(world, tmp_path, keep=0.25)
    [row] = encoder({"clip": [clip]})
    processor, model = encoder.loaded
    encoded = vidsieve.encode(model, processor, clip, 0.25, num_frames=8)
    frames = read_video(clip, num_frames=8)
    assert row == {
        "clip": clip,
        "file": encoder.request.file(clip).name,
        "tokens_before": sum(encoded.tokens),
        "tokens_after": round(0.25 * sum(encoded.tokens)),
        "kept": encoded.selection.kept.tolist(),
        "tokens": list(encoded.tokens),
        "grid": list(encoded.grid or ()),
        "frames": list(frames.index),
        "seconds": list(frames.seconds),
        "fps": frames.fps,
        "total": frames.total,
        "duration": frames.duration,
    }
    stored = vidsieve.EncodedVideo.load(tmp_path / row["file"])
    assert stored.selection.kept.tolist() == row["kept"]
    expected = encoded.ask(model, processor, "What moves?", max_new_tokens=6)
    assert stored.ask(model, processor, "What moves?", max_new_tokens=6) == expected


def test_a_clip_that_fails_is_a_row_and_the_others_are_done(world: Path, tmp_path: Path) -> None:
    clips = [str(world / name) for name in ("cut.mp4", "clip.mp4", "absent.mp4")]
    address = "rtsp://user:word@host/live?key=hidden"
    rows = worker(world, tmp_path)({"clip": [*clips, (world / "clip.mp4").as_uri(), address]})
    assert [row["clip"] for row in rows] == [*clips, (world / "clip.mp4").as_uri(), "rtsp://host/live"]
    assert "is damaged" in rows[0]["error"]
    assert rows[2] == {"clip": clips[2], "error": f"{clips[2]}: no such file"}
    assert rows[4]["error"] == "rtsp://host/live: rtsp:// cannot be read, only files and http(s)://; download it first"
    assert {path.name for path in tmp_path.iterdir()} == {rows[1]["file"], rows[3]["file"]}  # and nothing half done


def test_whatever_is_wrong_with_a_clip_the_others_are_done(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, whole = many.encode, str(world / "clip.mp4")

    def wrong(*args: Any, **options: Any) -> Any:
        if args[2] != whole:
            raise IndexError("list index\nout of range")
        return first(*args, **options)

    monkeypatch.setattr(many, "encode", wrong)
    rows = worker(world, tmp_path)({"clip": [str(world / "cut.mp4"), whole]})
    assert [row.get("error") for row in rows] == ["list index out of range", None]


def test_a_stored_clip_is_not_encoded_again(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, clips = worker(world, tmp_path), {"clip": [str(world / "clip.mp4")]}
    first = encoder(clips)
    monkeypatch.setattr(many, "encode", None)
    assert encoder(clips) == first
    monkeypatch.chdir(world)
    assert encoder({"clip": ["clip.mp4"]}) == first


def test_a_name_that_is_no_text_is_written_with_escapes() -> None:
    row = {"clip": "/a/caf\udce9.mp4", "error": "/a/caf\udce9.mp4: is empty"}
    assert batch._described(row) == {"clip": r"/a/caf\udce9.mp4", "error": r"/a/caf\udce9.mp4: is empty"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"out": "stored"}, r"expected out as an absolute path, got 'stored'; give os\.path\.abspath\(out\)"),
        ({"method": "cdpruner"}, r"needs the whole video or a prompt.*ask any question of what is stored"),
        ({"frames": 8}, "unexpected keyword argument 'frames'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_worker_refuses_before_it_loads_anything(tmp_path: Path, options: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        EncodeClips(**{"model": "absent", "out": tmp_path / "out"} | options)
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_set_aside_and_said_to_be(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder, clips = worker(world, tmp_path), {"clip": [str(world / "clip.mp4")]}
    [row] = encoder(clips)
    file = tmp_path / row["file"]
    whole = file.read_bytes()
    for data in (b"", whole[:-1], b"x" * len(whole)):
        file.write_bytes(data)
        [broken] = encoder(clips)
        assert f"{file}: is damaged" in broken["error"]
        capsys.readouterr()
        batch._set_aside(tmp_path)
        assert capsys.readouterr().err.startswith(f"{file}: is damaged; its clip is encoded again, ")
        assert [path.name for path in tmp_path.iterdir()] == [f"{file.stem}.damaged"]
        assert encoder(clips) == [row]
        assert file.read_bytes() == whole
        batch._set_aside(tmp_path)
        assert capsys.readouterr().err == ""


def test_a_file_of_a_newer_version_is_left_where_it_is(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, clips = worker(world, tmp_path), {"clip": [str(world / "clip.mp4")]}
    [row] = encoder(clips)
    monkeypatch.setattr("vidsieve.encoded.file.FORMAT", 0)
    batch._set_aside(tmp_path)
    assert "newer than 0" in encoder(clips)[0]["error"]
    assert [path.name for path in tmp_path.iterdir()] == [row["file"]]


@pytest.fixture
def with_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray, as far as it is looked for before anything else."""
    for name in ("ray", "ray.data", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())


@pytest.mark.usefixtures("with_ray")
def test_a_job_of_before_is_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "features").mkdir()
    (tmp_path / "job.json").write_text("{}")
    assert main.main(["batch", "clips", "-m", "absent", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"vidsieve: error: {tmp_path} holds features of the format before, which vidsieve.encoded.stored reads; "
        "choose another folder\n"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"features", "job.json"}


@pytest.mark.usefixtures("with_ray")
@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("fastv", "let fastv pick of what is stored for each question: vidsieve ask FILE --method fastv"),
        (
            "pyramiddrop",
            "let pyramiddrop pick of what is stored for each question: vidsieve ask FILE --method pyramiddrop",
        ),
        ("cdpruner", "ask any question of what is stored: vidsieve ask FILE"),
        ("hieravid", "ask any question of what is stored: vidsieve ask FILE"),
    ],
)
def test_a_method_that_cannot_be_stored_says_what_to_do(
    method: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refusals = []
    for command in ("batch", "encode"):
        assert main.main([command, "c", "-m", "absent", "--out", str(tmp_path / "out"), "--method", method]) == 1
        refusals.append(capsys.readouterr().err)
    assert refusals[0] == refusals[1]
    able = r"store by one that can \(vidsieve, .*\)"
    assert re.fullmatch(f"vidsieve: error: {method} cannot store clips: .*; {able}, and {says}\n", refusals[0])
    assert not list(tmp_path.iterdir())


def test_encode_and_batch_take_the_same_clips_in_the_same_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[many.Request] = []

    def noted(request: many.Request, *_: Any) -> dict[str, Any]:
        asked.append(request)
        return {}

    monkeypatch.setattr(batch, "run", noted)
    monkeypatch.setattr(many, "encode_all", noted)
    options = [
        *("--fps", "2", "--max-frames", "9", "--start", "1", "--end", "1:02", "--max-pixels", "4096"),
        *("--sampling", "keyframes", "--method", "uniform", "--keep", "25%", "--device", "cpu"),
        *("--dtype", "float32", "--strict"),
    ]
    for more in ([], options):
        for command in ("batch", "encode"):
            out = ["--out", str(tmp_path)]
            assert main.main([command, "a.mp4", "clips", "--model", "m", *out, *more, "--json"]) == 0
    plain, _, full, _ = asked
    assert asked == [plain, plain, full, full]
    assert (plain.clips, plain.sample["strict"], full.sample["strict"]) == (["a.mp4", "clips"], False, True)
    assert (full.sample["sampling"], full.sample["end"], full.keep) == ("keyframes", 62.0, 0.25)


def test_what_failed_is_listed_with_its_clip(capsys: pytest.CaptureFixture[str]) -> None:
    failed = [{"clip": "/a.mp4", "error": "/a.mp4: is empty"}, {"clip": "/b\n.mp4", "error": "CUDA out of memory"}]
    show_batch(FOUND | {"failed": failed})
    assert capsys.readouterr().out.splitlines()[1:3] == ["  /a.mp4: is empty", "  /b\\n.mp4: CUDA out of memory"]


def test_what_is_no_clip_is_listed_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    ignored = {"gone.mkv": "it is no file", **{f"{i}.jpg": "it ends otherwise" for i in range(21)}}
    show_batch(FOUND | {"ignored": ignored})
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == [
        "22 files ignored",
        "  it ends otherwise: " + ", ".join(f"{i}.jpg" for i in range(10)) + " and 11 more",
    ]
    assert lines[3] == "  it is no file: gone.mkv"


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=f"needs ray.*{re.escape(pip_install('ray'))}"):
        batch.run(many.Request(["clips"], "absent", tmp_path, {}))
