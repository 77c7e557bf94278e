"""batch.py without Ray: what is stored of a clip, and that it is enough to go on from."""

import json
import os
import pickle
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests import synthetic_clip
from tests.engines.hf import processors, tiny
from vidsieve.checks import pip_install
from vidsieve.cli import main
from vidsieve.cli.report import show_batch
from vidsieve.cli.run import Request, run
from vidsieve.encoded import batch, stored
from vidsieve.encoded.batch import EncodeClips, Job
from vidsieve.engines.hf import attach
from vidsieve.engines.hf.loading import prepare
from vidsieve.errors import MissingExtra, VidsieveError
from vidsieve.methods import presets
from vidsieve.video.decode import read_video

pytest.importorskip("av")
pytest.importorskip("transformers")

QUESTION = "What moves?"
REST = {"ignored": {}, "table": "t", "features": "f"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a drawn clip.mp4, half of it as cut.mp4, and model/."""
    folder = tmp_path_factory.mktemp("batch")
    clip = synthetic_clip.render_clip(folder / "clip.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(clip[: len(clip) // 2])
    synthetic_clip.build_model(folder / "model")
    return folder


def job(world: Path, out: Path, **options: Any) -> Job:
    return Job(str(world / "model"), str(out), frames=8, question=QUESTION, **options)


@pytest.mark.parametrize("method", ["vidsieve", "cdpruner"])
def test_it_keeps_what_a_run_keeps_and_the_stored_prompt_gives_its_answer(
    world: Path, tmp_path: Path, method: str
) -> None:
    clip = str(world / "clip.mp4")
    encoder = EncodeClips(job(world, tmp_path, method=method, keep=0.25))
    (row,) = encoder.rows([(clip, QUESTION)])
    expected = run(
        Request(clip, QUESTION, str(world / "model"), method, 0.25, 8, max_new_tokens=12, compare=False),
    )
    for name in ("kept", "tokens_before", "tokens_after", "tokens", "grid"):
        assert row[name] == expected[name], name
    assert row["frames"] == expected["frames"]["index"]
    assert row["seconds"] == expected["frames"]["seconds"]

    tensors, kept_row = stored.read(encoder.job.features / row["file"])
    assert kept_row == row
    assert tensors["kept"].tolist() == row["kept"]
    assert tensors["features"].shape == (len(row["kept"]), 256)
    output = encoder.model.generate(**stored.restore(encoder.model, tensors), do_sample=False, max_new_tokens=12)
    assert encoder.processor.batch_decode(output, skip_special_tokens=True)[0].strip() == expected["answer"]


def test_key_frames_alone_are_encoded_on_request(world: Path, tmp_path: Path) -> None:
    clip = world / "clip.mp4"
    keyed = job(world, tmp_path, sampling="keyframes")
    (row,) = EncodeClips(keyed).rows([(str(clip), QUESTION)])
    frames = read_video(clip, num_frames=8, sampling="keyframes")
    assert (row["frames"], row["seconds"]) == (list(frames.index), list(frames.seconds))
    with pytest.raises(VidsieveError, match="whose sampling is 'keyframes', not None"):
        job(world, tmp_path).claim()


@pytest.mark.parametrize("more", [[], ["--sampling", "keyframes"]])
def test_the_command_takes_the_sampling(world: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]) -> None:
    asked = []
    monkeypatch.setattr(batch, "run", lambda clips, job, *_: asked.append(job.sampling) or {})
    assert main.main(["batch", str(world), "--model", "m", "--out", str(world / "out"), *more, "--json"]) == 0
    assert asked == [more[-1] if more else "even"]


def test_what_reduces_inside_the_model_has_nothing_to_store() -> None:
    with pytest.raises(VidsieveError, match=r"fastv cannot make features to store: .*cdpruner"):
        Job("model", "out", "fastv")


def spread(family: str, world: Path) -> tuple[Any, Any, Any]:
    return processors.processor(family), tiny.model(family), read_video(world / "clip.mp4", num_frames=8)


def first_logits(model: Any, arguments: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return model.get_output_embeddings()(model.get_decoder()(**arguments).last_hidden_state[:, -1])


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl"])
@pytest.mark.parametrize("keep", [0.25, 1.0])
def test_what_is_stored_is_all_that_the_decoder_needs(family: str, keep: float, world: Path) -> None:
    processor, model, frames = spread(family, world)
    reducer = presets.vidsieve(keep)
    tensors, _ = stored.encode(processor, model, reducer, frames, QUESTION)
    with torch.no_grad(), attach(model, reducer):
        expected = model(**prepare(processor, frames, QUESTION)).logits[:, -1]
    torch.testing.assert_close(first_logits(model, stored.restore(model, tensors)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl"])
def test_another_question_is_answered_without_the_video(family: str, world: Path) -> None:
    processor, model, frames = spread(family, world)
    reducer = presets.vidsieve(0.25)  # which does not look at the question, so both keep the same
    tensors, _ = stored.encode(processor, model, reducer, frames, QUESTION)
    another = prepare(processor, frames, "And which colour is it, then?")
    last = (another["input_ids"][0] == tensors["ids"][tensors["place"][-1]]).nonzero().flatten()[-1]
    tail = another["input_ids"][0, last + 1 :]
    with torch.no_grad(), attach(model, reducer):
        expected = model(**another).logits[:, -1]
    found = first_logits(model, stored.restore(model, tensors, tail))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (first_logits(model, stored.restore(model, tensors)) - expected).abs().max() > 1e-3


def test_a_clip_that_fails_is_a_row_and_the_others_are_done(world: Path, tmp_path: Path) -> None:
    encoder = EncodeClips(job(world, tmp_path))
    clips = [str(world / name) for name in ("cut.mp4", "clip.mp4", "absent.mp4")]
    rows = list(encoder.rows([(clip, QUESTION) for clip in clips]))
    assert [row["clip"] for row in rows] == clips
    assert "is damaged" in rows[0]["error"]
    assert "error" not in rows[1]
    assert rows[2]["error"] == f"{clips[2]}: no such file"
    assert [path.name for path in encoder.job.features.iterdir()] == [rows[1]["file"]]  # and nothing half done


def test_no_row_has_what_opens_an_address(world: Path, tmp_path: Path) -> None:
    address = "http://user:word@127.0.0.1:1/clip.mp4?key=hidden"
    (row,) = EncodeClips(job(world, tmp_path)).rows([(address, QUESTION)])
    assert row["clip"] == "http://127.0.0.1:1/clip.mp4"
    assert row["error"].startswith("http://127.0.0.1:1/clip.mp4: cannot be read as a video")


def test_a_column_of_questions_that_lacks_one_fails_there_alone(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = EncodeClips(job(world, tmp_path))
    monkeypatch.setattr(batch, "schema", dict)
    monkeypatch.setitem(
        sys.modules, "pyarrow", SimpleNamespace(Table=SimpleNamespace(from_pylist=lambda rows, schema: rows))
    )
    rows = encoder({"clip": [str(world / "clip.mp4")] * 3, "question": [None, QUESTION, float("nan")]})
    said = "expected a question, such as 'What happens?'; got "
    assert [row.get("error") for row in rows] == [f"{said}None", None, f"{said}nan"]
    assert [row["question"] for row in rows] == [None, QUESTION, None]


def test_a_failure_while_encoding_is_a_row_too(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = EncodeClips(job(world, tmp_path))

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(batch, "encode", full)
    (row,) = encoder.rows([(str(world / "clip.mp4"), QUESTION)])
    assert row["error"] == "CUDA out of memory. Tried to allocate"


def test_a_done_clip_is_not_encoded_again(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = EncodeClips(job(world, tmp_path))
    work = [(str(world / "clip.mp4"), QUESTION)]
    first = list(encoder.rows(work))
    monkeypatch.setattr(batch, "read_video", None)
    assert list(encoder.rows(work)) == first
    assert "is not callable" in next(encoder.rows([(work[0][0], "Another question?")]))["error"]


def test_a_clip_that_workers_died_on_is_tried_alone_and_then_given_up(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = EncodeClips(job(world, tmp_path))
    copy = tmp_path / "copy.mp4"
    copy.write_bytes((world / "clip.mp4").read_bytes())
    work = [(str(copy), QUESTION), (str(world / "clip.mp4"), QUESTION)]
    died_on = batch._Task(*work[0], encoder.job.file(*work[0]))
    died_on.attempt()
    happened: list[str] = []
    decode, encode = batch.read_video, batch.encode
    monkeypatch.setattr(batch, "read_video", lambda *a, **k: happened.append("decode") or decode(*a, **k))
    monkeypatch.setattr(batch, "encode", lambda *a, **k: happened.append("encode") or encode(*a, **k))
    rows = encoder.rows(work)
    assert "error" not in next(rows)
    assert happened == ["decode", "encode"]  # the second clip was not in hand
    assert "error" not in next(rows)

    encoder.job.file(*work[0]).unlink()
    died_on.attempt()
    died_on.attempt()
    assert "2 workers died on it" in next(encoder.rows(work))["error"]
    assert not died_on.mark.exists()
    assert "error" not in next(encoder.rows(work))


def test_a_write_that_fails_leaves_nothing(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = EncodeClips(job(world, tmp_path))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    (row,) = encoder.rows([(str(world / "clip.mp4"), QUESTION)])
    assert "No space left" in row["error"]
    assert not list(encoder.job.features.glob("*.safetensors"))


def test_the_callable_travels(world: Path, tmp_path: Path) -> None:
    kind, arguments = pickle.loads(pickle.dumps((EncodeClips, (job(world, tmp_path),))))
    assert kind is EncodeClips
    assert arguments == (job(world, tmp_path),)


def test_a_folder_belongs_to_one_job(world: Path, tmp_path: Path) -> None:
    job(world, tmp_path).claim()
    job(world, tmp_path).claim()
    assert json.loads((tmp_path / "job.json").read_text())["frames"] == 8
    with pytest.raises(VidsieveError, match=r"whose reducer is 'Prune\(keep=0.1, .*choose another folder"):
        job(world, tmp_path, keep=0.2).claim()


@pytest.mark.parametrize("content", ["", "no json", "7"])
def test_a_folder_whose_job_nobody_knows_is_left_alone(world: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "job.json").write_text(content)
    with pytest.raises(VidsieveError, match=r"job\.json: is damaged.*choose another folder"):
        job(world, tmp_path).claim()
    assert (tmp_path / "job.json").read_text() == content


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-1], lambda data: b"x" * len(data)])
def test_a_damaged_file_is_said_to_be_and_its_clip_encoded_again(world: Path, tmp_path: Path, damage: Any) -> None:
    encoder = EncodeClips(job(world, tmp_path))
    work = [(str(world / "clip.mp4"), QUESTION)]
    (row,) = encoder.rows(work)
    file = encoder.job.features / row["file"]
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    (broken,) = encoder.rows(work)
    assert f"{file}: is damaged" in broken["error"]
    said: list[str] = []
    encoder.job.sweep(said.append)
    assert [f"{file}: is damaged" in what for what in said] == [True]
    assert [path.name for path in encoder.job.features.iterdir()] == [f"{file.stem}.damaged"]
    assert list(encoder.rows(work)) == [row]
    assert file.read_bytes() == whole
    encoder.job.sweep(said.append)
    assert len(said) == 1


def test_what_failed_is_listed_with_its_clip(capsys: pytest.CaptureFixture[str]) -> None:
    failed = [{"clip": "/a.mp4", "error": "/a.mp4: is empty"}, {"clip": "/b.mp4", "error": "CUDA out of memory"}]
    show_batch({"clips": 3, "encoded": 1, "already_there": 0, "failed": failed, **REST})
    assert capsys.readouterr().out.splitlines()[1:3] == ["  /a.mp4: is empty", "  /b.mp4: CUDA out of memory"]


def test_what_is_no_clip_is_listed_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out" / "features").mkdir(parents=True)
    for name in ("b.mp4", "notes.txt", "out/clips.parquet", "out/features/b-1.safetensors"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "gone.mkv").symlink_to(tmp_path / "nowhere")
    ignored = batch.ignored(tmp_path, tmp_path / "out")
    assert ignored.keys() == {"notes.txt", "gone.mkv"}
    assert batch.ignored(tmp_path / "notes.txt", tmp_path / "out") == {}
    more = {f"{i}.jpg": ignored["notes.txt"] for i in range(20)}
    show_batch({"clips": 1, "encoded": 1, "already_there": 0, "failed": [], **REST, "ignored": ignored | more})
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "22 files ignored"
    assert lines[2] == "  it is no file, or a link that leads nowhere: gone.mkv"
    assert lines[3].startswith("  its name does not end as a video's does: notes.txt, 0.jpg, ")
    assert lines[3].endswith("8.jpg and 11 more")


def test_ctrl_c_says_how_many_are_stored(world: Path, tmp_path: Path) -> None:
    mine = job(world, tmp_path)
    mine.claim()
    mine.file("/a.mp4", QUESTION).touch()
    says = "1 of 2 clips are stored in"
    with pytest.raises(KeyboardInterrupt, match=says), batch._counted(mine, ["/a.mp4", "/b.mp4"]):
        raise KeyboardInterrupt


def test_find_walks_a_folder_and_reads_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.mp4", "a/c.MKV", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    clips = [str(tmp_path / "a/c.MKV"), str(tmp_path / "b.mp4")]
    assert batch.find(tmp_path) == clips
    (tmp_path / "list.txt").write_text(f"\ufeff# mine\n\nb.mp4\n{clips[0]}\nb.mp4\nabsent.mp4\n")
    monkeypatch.chdir(tmp_path)
    assert batch.find("list.txt") == [clips[1], clips[0], str(tmp_path / "absent.mp4")]


def test_addresses_in_a_list_reach_the_reader_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:").mkdir()
    (tmp_path / "s3:" / "here.mp4").write_bytes(b"x")
    kept = ["http://host/a//clip.mp4?x=1", "FILE:///x/../y.mp4", "rtsp://host/live", "-"]
    names = ["a:b.mp4", "http:b.mp4", "s3://here.mp4"]
    (tmp_path / "list.txt").write_text("\n".join([*kept, *names]))
    paths = ["a:b.mp4", "http:b.mp4", "s3:/here.mp4"]
    assert batch.find("list.txt") == [*kept, *(str(tmp_path / path) for path in paths)]


def test_an_address_that_cannot_be_read_is_a_row_that_says_what_to_do(world: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"rtsp://host/live\n{(world / 'clip.mp4').as_uri()}\n")
    encoder = EncodeClips(job(world, tmp_path / "out"))
    refused, encoded = encoder.rows([(clip, QUESTION) for clip in batch.find(tmp_path / "list.txt")])
    assert refused["error"] == "rtsp://host/live: rtsp:// cannot be read, only files and http(s)://; download it first"
    assert "error" not in encoded


def test_a_features_file_is_not_named_after_what_opens_an_address(world: Path, tmp_path: Path) -> None:
    mine = job(world, tmp_path)
    first, other = (mine.file(f"http://me:secret@host/a.mp4?key={key}", QUESTION) for key in ("sesame", "x"))
    assert first != other
    assert re.fullmatch(r"a-[0-9a-f]{16}\.safetensors", first.name)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("absent", None, "no such file; expected a folder of clips"),
        ("empty.txt", b"# none\n", "has no clip in it; expected one path or address a line"),
        ("clip.mp4", b"\xff\xfe\x00", "is no text; expected a folder of clips"),
    ],
)
def test_find_says_what_it_expected(name: str, content: bytes | None, says: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(VidsieveError, match=says):
        batch.find(tmp_path / name)
    (tmp_path / "folder").mkdir()
    with pytest.raises(VidsieveError, match=r"expected files that end in \.avi"):
        batch.find(tmp_path / "folder")


def test_without_ray_the_extra_is_named(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=f"needs ray.*{re.escape(pip_install('ray'))}"):
        batch.run(world, job(world, tmp_path))
