"""Encode many clips by workers of Ray, as `vidsieve encode` does each, and write a table of them. docs/batch.md.

    found = run(Request(["clips/"], "Qwen/Qwen2.5-VL-7B-Instruct", Path("stored"), {"fps": 1}))

`EncodeClips` is the same for a pipeline of your own.
"""

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import signature
from itertools import islice
from pathlib import Path
from typing import Any

from vidsieve import writable
from vidsieve.checks import require
from vidsieve.encoded import cluster, file
from vidsieve.encoded.clips import ignored
from vidsieve.encoded.fingerprint import full_name
from vidsieve.encoded.many import SUFFIX, EncodeVideos, Request, by_name, check_some, encode_each
from vidsieve.errors import VidsieveError, WrongArgument, redacted
from vidsieve.video.chunks import plan_video
from vidsieve.video.demux import is_path

Row = dict[str, Any]


class EncodeClips(EncodeVideos):
    """Encodes batches of clips for `ray.data.Dataset.map_batches`: clips in, rows out, encoded videos on disk.

        dataset.map_batches(
            EncodeClips,
            fn_constructor_args=("Qwen/Qwen2.5-VL-7B-Instruct", "/data/stored"),
            fn_constructor_kwargs={"keep": 0.1, "fps": 1},
            batch_size=8, num_gpus=1, compute=ray.data.ActorPoolStrategy(size=4),
        )

    A batch has a column "clip" of paths and addresses. Returns a table of `schema()`. A clip that is stored is not
    encoded again, and one that fails for any reason is a row with its error. No row has user, password or query of an
    address.
    """

    def __init__(
        self,
        model: str,
        out: str | os.PathLike[str],
        keep: float = 0.1,
        *,
        method: str = "vidsieve",
        pixels: float | None = None,
        max_pixels: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
        **sample: Any,
    ) -> None:
        """Load a model.

        out: a folder, by its absolute path, for workers may have working directories of their own.
        pixels: as `vidsieve.encode` takes it.
        max_pixels: of a decoded frame; larger ones are scaled down in proportion.
        sample: which frames, as `vidsieve.encode` has it: num_frames, fps, start, end, max_frames, sampling, strict.
        """
        folder = Path(out)
        if not folder.is_absolute():
            raise WrongArgument(f"expected out as an absolute path, got {str(out)!r}; give os.path.abspath(out)")
        signature(plan_video).bind("", **sample)
        by_name(method, keep)
        writable.folder(folder).mkdir(parents=True, exist_ok=True)
        super().__init__(Request((), full_name(model), folder, sample, max_pixels, method, keep, device, dtype, pixels))

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> Any:
        clips = [os.path.abspath(clip) if is_path(clip) else clip for clip in map(str, batch["clip"])]
        return _table(map(self.row, clips))


def run(
    request: Request,
    address: str | None = None,
    workers: int | None = None,
    note: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Encode the clips that are not stored, and write the table. Returns counts and lists of the clips.

    address, workers: as `cluster.encoded` takes them.
    Raises what `encode_each` raises, and `VidsieveError` if no clip could be encoded. A clip that fails is no error:
    `failed` lists it, and `ignored` lists the other files of folders.
    """
    cluster.check(request.device)
    _check_folder(request.out)
    _set_aside(request.out)
    rows = encode_each(request, True, address, workers, note)
    note("writing the table")
    table = write_table(request.out / "clips.parquet", rows)
    check_some(rows)
    failed = [{"clip": row["clip"], "error": row["error"]} for row in rows if "error" in row]
    there = sum("already_there" in row for row in rows)
    return {
        "clips": len(rows),
        "encoded": len(rows) - len(failed) - there,
        "already_there": there,
        "failed": failed,
        "ignored": {name: why for one in request.clips for name, why in ignored(one, request.out).items()},
        "table": str(table),
        "folder": str(request.out),
    }


def _check_folder(out: Path) -> None:
    """Raise `VidsieveError` for a folder of a job of before clips were stored as encoded videos."""
    if (out / "job.json").exists() and (out / "features").is_dir():
        raise VidsieveError(
            f"{out} holds features of the format before, which vidsieve.encoded.stored reads; choose another folder"
        )


def _set_aside(out: Path) -> None:
    """Rename damaged files, and say so, so that their clips are encoded again."""
    for path in out.glob(f"*{SUFFIX}"):
        try:
            file.describe(path)
        except file.Damaged:
            path.replace(path.with_suffix(".damaged"))
            now = f"its clip is encoded again, and it is now called {path.stem}.damaged"
            print(f"{path}: is damaged; {now}", file=sys.stderr)
        except VidsieveError:  # of another version: its clip will be a row that says so
            continue


def write_table(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write the table of the `rows` of `encode_each`, in their order, completely or not at all."""
    parquet, left = require("pyarrow.parquet", "ray"), iter(rows)
    part = path.with_suffix(".part")
    with parquet.ParquetWriter(part, schema()) as writer:
        while some := list(islice(left, 4096)):
            writer.write_table(_table(some))
    os.replace(part, path)
    return path


def _table(rows: Iterable[Mapping[str, Any]]) -> Any:
    return require("pyarrow", "ray").Table.from_pylist([_described(row) for row in rows], schema=schema())


def _described(row: Mapping[str, Any]) -> Row:
    """Make a row of the table of one of `encode_each`. A name that is no UTF-8 is written with escapes."""
    clip = redacted(row["clip"]).encode(errors="backslashreplace").decode()
    if "error" in row:
        return {"clip": clip, "error": row["error"].encode(errors="backslashreplace").decode()}
    path = Path(row["file"])
    return {"clip": clip, "file": path.name, **file.describe(path)}


def schema() -> Any:
    """Make the pyarrow schema of a row. docs/batch.md explains the columns."""
    arrow = require("pyarrow", "ray")
    numbers, text, integer, number = arrow.list_(arrow.int32()), arrow.string(), arrow.int64(), arrow.float64()
    return arrow.schema(
        {
            "clip": text,
            "error": text,
            "file": text,
            "tokens_before": integer,
            "tokens_after": integer,
            "kept": numbers,
            "tokens": numbers,
            "grid": numbers,
            "frames": numbers,
            "seconds": arrow.list_(number),
            "fps": number,
            "total": integer,
            "duration": number,
        }
    )
