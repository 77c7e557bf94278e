"""Decode, encode and reduce many clips once each, and store the result on disk. docs/batch.md.

    found = run("clips/", Job("Qwen/Qwen2.5-VL-7B-Instruct", "out"))

The stored prompt is what the decoder would receive, reduced: to use it needs no vision tower, no video and no second
selection. There is one file per clip, `out/features/*.safetensors`, written under another name and then renamed. So a
file that exists is complete, and its clip is done. `out/clips.parquet` has one row for each of these files, and one for
each clip that failed.

Ray Data distributes the work over one machine or many (`cluster`). It runs `EncodeClips`, which other pipelines can
use too.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from vidsieve.checks import check_question, require
from vidsieve.encoded import cluster
from vidsieve.encoded.clips import find, ignored
from vidsieve.encoded.job import QUESTION as QUESTION
from vidsieve.encoded.job import Job as Job
from vidsieve.encoded.job import refused as refused
from vidsieve.encoded.job import write_whole
from vidsieve.encoded.stored import Row, encode, read_row, schema
from vidsieve.engines.hf.loading import check, load
from vidsieve.errors import VidsieveError, redacted
from vidsieve.types.frames import Frames
from vidsieve.video.decode import read_video


class EncodeClips:
    """Encodes batches of clips for `ray.data.Dataset.map_batches`: clips in, rows out, features on disk.

        pool = ray.data.ActorPoolStrategy(size=4)
        dataset.map_batches(EncodeClips, fn_constructor_args=(job,), batch_size=8, num_gpus=1, compute=pool)

    A batch has a column "clip" of paths and may have a column "question". Returns a table of `schema()`. A clip whose
    features exist is not encoded again, and one that fails for any reason is a row with its error. No row has user,
    password or query of an address.
    """

    def __init__(self, job: Job) -> None:
        job.claim()
        self.job = job
        self.processor, self.model = load(job.model, job.device, job.dtype)

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> Any:
        clips = [str(clip) for clip in batch["clip"]]
        questions = batch.get("question", [self.job.question] * len(clips))
        pyarrow = require("pyarrow", "ray")
        rows = list(self.rows(zip(clips, questions, strict=True)))
        return pyarrow.Table.from_pylist(rows, schema=schema())

    def rows(self, work: Iterable[tuple[str, str]]) -> Iterator[Row]:
        """Encode each (clip, question), and yield its row. While one is encoded the next is decoded."""
        tasks = [_Task(clip, question, self.job.file(clip, question)) for clip, question in work]
        # A worker that died was processing two clips. Taken one by one, they show which of them was the cause.
        alone = any(task.mark.exists() for task in tasks)
        with ThreadPoolExecutor(1) as pool:
            following: Future[Frames | None] | None = None
            for task, later in zip(tasks, [*tasks[1:], None], strict=True):
                decoding = following or pool.submit(self._decode, task)
                following = pool.submit(self._decode, later) if later and not alone else None
                yield self._row(task, decoding)

    def _decode(self, task: "_Task") -> Frames | None:
        """Read the frames of a clip; None if it is done."""
        check_question(task.question)  # a column of them may lack one
        if task.file.exists():
            return None
        task.attempt()
        return read_video(task.clip, num_frames=self.job.frames, strict=self.job.strict, sampling=self.job.sampling)

    def _row(self, task: "_Task", decoding: "Future[Frames | None]") -> Row:
        try:
            frames = decoding.result()
            if frames is not None:
                save = require("safetensors.torch", "hf").save
                tensors, found = encode(self.processor, self.model, self.job.reducer, frames, task.question)
                row = {"clip": redacted(task.clip), "question": task.question, "file": task.file.name, **found}
                write_whole(task.file, save(tensors, {"vidsieve": json.dumps(row)}))
            row = read_row(task.file)
        except Exception as error:  # whatever it is, the other clips must not suffer
            message = redacted(" ".join(str(error).split())) or type(error).__name__
            asked = task.question if isinstance(task.question, str) else None  # what a column of text can hold
            row = {"clip": self._shown(task.clip), "question": asked, "error": message}
        task.mark.unlink(missing_ok=True)
        return row

    def _shown(self, clip: str) -> str:
        return redacted(clip)


class _EncodeListed(EncodeClips):
    """Encodes clips of `run`, which knows them by their addresses, and shows none as it is."""

    def _shown(self, clip: str) -> str:
        return clip


@dataclass(frozen=True)
class _Task:
    """A clip, a question, and the features file, which exists once the clip is done."""

    clip: str
    question: str
    file: Path

    @property
    def mark(self) -> Path:
        """A file that exists while a worker processes the clip, and after one died on it."""
        return self.file.with_suffix(".trying")

    def attempt(self) -> None:
        cluster.attempt(self.mark, self.clip)


def run(
    source: str | os.PathLike[str],
    job: Job,
    address: str | None = None,
    workers: int | None = None,
    note: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Encode the clips of `source` that are not done, and write the table. Returns counts and lists of the clips.

    address, workers: as `cluster.encoded` takes them.
    Raises `VidsieveError` if no clip could be encoded. A clip that fails is no error: `failed` lists it, and `ignored`
    lists the other files of the folder.
    """
    cluster.check(job.device)
    found = find(source)
    check(job.model)
    job.claim()
    job.sweep(lambda what: print(what, file=sys.stderr))
    clips = [clip for clip in found if _is_name(clip)]
    todo = [clip for clip in clips if not job.file(clip, job.question).exists()]
    broken: list[Row] = []
    if todo:
        items = [{"clip": clip} for clip in todo]
        tasks = cluster.encoded(_EncodeListed, job, items, ["clip"], address, workers, note)
        with _counted(job, clips), closing(tasks):
            for rows in tasks:
                broken += [row for row in rows if row["error"] is not None]
    order = {clip: number for number, clip in enumerate(clips)}
    broken.sort(key=lambda row: order[row["clip"]])
    missing = {clip for clip in clips if not job.file(clip, job.question).exists()} - {row["clip"] for row in broken}
    cluster.check_written(job.features, len(missing))
    failed = [*(_nameless(clip, job) for clip in found if not _is_name(clip)), *broken]
    note("writing the table")
    table = write_table(job, failed)
    if len(failed) == len(found):
        raise VidsieveError(f"none of {len(found)} clips could be encoded; the first says: {failed[0]['error']}")
    return {
        "clips": len(found),
        "encoded": len(todo) - len(broken),
        "already_there": len(clips) - len(todo),
        "failed": [{"clip": redacted(row["clip"]), "error": row["error"]} for row in failed],
        "ignored": ignored(source, job.out),
        "table": str(table),
        "features": str(job.features),
    }


@contextmanager
def _counted(job: Job, clips: Sequence[str]) -> Iterator[None]:
    """Add to a KeyboardInterrupt how many clips are stored."""
    try:
        yield
    except KeyboardInterrupt:
        stored = sum(job.file(clip, job.question).exists() for clip in clips)
        raise KeyboardInterrupt(
            f"{stored} of {len(clips)} clips are stored in {job.features}; the same command goes on with the others"
        ) from None


def _is_name(path: str) -> bool:
    """Whether a path is text, which Ray and Parquet need and a file system does not."""
    return not any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in path)


def _nameless(clip: str, job: Job) -> Row:
    shown = os.fsencode(clip).decode(errors="backslashreplace").replace("\0", "\\x00")
    return {"clip": shown, "question": job.question, "error": f"{shown}: is not a name in UTF-8; rename the file"}


def write_table(job: Job, failed: Sequence[Row] = ()) -> Path:
    """Write clips.parquet: a row for each features file, sorted by name, and for each clip that `failed`."""
    parquet = require("pyarrow.parquet", "ray")
    arrow = require("pyarrow", "ray")
    path = Path(job.out) / "clips.parquet"
    rows = (read_row(file) for file in sorted(job.features.glob("*.safetensors")))
    part = path.with_suffix(".part")
    with parquet.ParquetWriter(part, schema()) as writer:
        while some := list(islice(rows, 4096)):
            writer.write_table(arrow.Table.from_pylist(some, schema=schema()))
        shown = [row | {"clip": redacted(row["clip"])} for row in failed]
        writer.write_table(arrow.Table.from_pylist(shown, schema=schema()))
    os.replace(part, path)
    return path
