"""Encode clips chunk by chunk into a folder, a file each (`vidsieve encode`): in this process, or in workers of Ray."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from vidsieve import registry, writable
from vidsieve.checks import printable, require
from vidsieve.encoded import cluster
from vidsieve.encoded.clips import find
from vidsieve.encoded.encode import Progress, chosen_by, encode
from vidsieve.encoded.fingerprint import full_name
from vidsieve.encoded.video import EncodedVideo
from vidsieve.encoded.whole import sweep_parts
from vidsieve.engines.hf import arguments
from vidsieve.engines.hf.loading import check, load
from vidsieve.engines.hf.replayed import check_inside
from vidsieve.errors import UnsupportedCall, VideoError, VidsieveError, WrongArgument, redacted
from vidsieve.methods.chunked import in_chunks
from vidsieve.methods.prune import Prune
from vidsieve.types.frames import Frames
from vidsieve.video.chunks import plan, plan_video
from vidsieve.video.demux import is_path, locate
from vidsieve.video.wanted import Wanted

SUFFIX = ".vidsieve"
Note = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """The arguments of `vidsieve encode`.

    sample: those of `plan_video` that say which frames are taken.
    max_pixels: of a decoded frame; larger ones are scaled down in proportion.
    pixels: the share of the groups of pixels that the vision tower computes; None for all.
    """

    clips: Sequence[str]
    model: str
    out: Path
    sample: dict[str, Any]
    max_pixels: int | None = None
    method: str = "vidsieve"
    keep: float = 0.1
    device: str | None = None
    dtype: str | None = None
    pixels: float | None = None

    def file(self, clip: str) -> Path:
        """Name the file of a clip: by the clip's name, then a digest of its path, for two may have one name."""
        stem = "".join(letter if letter.isprintable() else "_" for letter in Path(redacted(clip)).stem)
        short = stem.encode()[:60].decode(errors="ignore")  # file systems count bytes
        return self.out / f"{short}-{hashlib.sha256(os.fsencode(clip)).hexdigest()[:16]}{SUFFIX}"


# What may be the fault of a clip. What else is raised is a fault of the program, and of every clip.
FAULTS = (VidsieveError, OSError, ValueError, MemoryError, torch.OutOfMemoryError)


def encode_all(
    request: Request, address: str | None = None, workers: int | None = None, note: Note = lambda what: None
) -> dict[str, Any]:
    """Encode each clip that is not stored in the folder `out` yet. Returns JSON values: a row for each clip.

    address: of a Ray cluster that encodes them.  workers: copies of the model, by Ray if there are several; without
    both, one clip after another in this process, and Ray need not be installed.
    Raises what `encode_each` raises, and `VidsieveError` if every clip failed.
    """
    rows = encode_each(request, address is not None or (workers or 1) > 1, address, workers, note)
    check_some(rows)
    return {"rows": rows, "folder": str(request.out), "method": request.method, "keep": request.keep}


def encode_each(
    request: Request, spread: bool, address: str | None, workers: int | None, note: Note
) -> list[dict[str, Any]]:
    """Encode each clip that is not stored in the folder `out` yet, by Ray or, unless `spread`, in this process.

    A clip that fails is a row with its error, and the others go on. A file is written under another name and renamed,
    so one that exists is whole. Raises `VidsieveError` if one cannot be written, or the model not loaded, or what
    `cluster.encoded` or `by_name` raise.
    """
    if spread:
        cluster.check(request.device)
    by_name(request.method, request.keep)  # refused before anything is loaded
    clips = _listed(request.clips)
    if spread or not all(map(_is_missing, clips)):  # else that is what is told, and nobody asks the Hub
        check(request.model)
        writable.folder(request.out).mkdir(parents=True, exist_ok=True)
    sweep_parts(request.out, SUFFIX)
    try:
        rows = _spread(clips, request, address, workers, note) if spread else list(_rows(clips, request, note))
    except KeyboardInterrupt:
        stored = sum(request.file(clip).exists() for clip in clips)
        raise KeyboardInterrupt(
            f"{stored} of {len(clips)} clips are stored in {request.out}; the same command goes on with the others"
        ) from None
    return [row | {"clip": redacted(row["clip"])} for row in rows]


def check_some(rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise `VidsieveError` if every clip failed."""
    errors = [row["error"] for row in rows if "error" in row]
    if errors and len(errors) == len(rows):
        raise VidsieveError(errors[0] if len(rows) == 1 else f"none of {len(rows)} clips: {errors[0]}")


def by_name(name: str, keep: float) -> Prune:
    """Make a method as it selects chunk after chunk. Raises `WrongArgument`, with what to do instead, if it cannot."""
    method = registry.method(name)(keep)
    try:
        return in_chunks(method)
    except WrongArgument as error:
        why, _, _ = str(error).partition("; expected")
        able = ", ".join(other for other, made in registry.methods().items() if _is_able(made(), in_chunks))
        then = f"let {name} pick of what is stored for each question: vidsieve ask FILE --method {name}"
        if not _is_able(arguments.method(method), check_inside):
            then = "ask any question of what is stored: vidsieve ask FILE"
        raise WrongArgument(f"{name} cannot store clips: {why}; store by one that can ({able}), and {then}") from error


def _is_able(method: Any, check: Callable[[Any], object]) -> bool:
    try:
        check(method)
    except (UnsupportedCall, WrongArgument):
        return False
    return True


def _rows(clips: Sequence[str], request: Request, note: Note) -> Iterator[dict[str, Any]]:
    """Yield the row of each clip once it is stored, or has failed. What is no fault of the clip is raised."""
    loaded = None
    for number, clip in enumerate(clips, 1):
        name = printable(Path(redacted(clip)).name)
        told = partial(_told, note, name if len(clips) == 1 else f"{number} of {len(clips)}, {name}")
        if loaded is None and not request.file(clip).exists():
            if failed := _failed(clip, request, told):
                yield failed
                continue
            note("loading the model")
            loaded = load(request.model, request.device, request.dtype, bar=False)
        yield _one(clip, request, loaded, told)


def _is_local(clip: str) -> bool:
    return urlsplit(clip).scheme == "file" or is_path(clip)


def _is_missing(clip: str) -> bool:
    """Whether a clip is to be on this machine, and is no file that can be read."""
    try:
        locate(clip)
    except VidsieveError:
        return True
    return False


def _failed(clip: str, request: Request, note: Note) -> dict[str, Any] | None:
    """Make the row of a clip of this machine without such frames, before a model is loaded for it; None if it has."""
    try:
        if _is_local(clip):
            locate(clip)  # nothing is told of what is missing or empty but that
            note("reading which frames there are")
            plan(clip, Wanted(**request.sample), lambda fault: None)  # told of when it is encoded
    except FAULTS as error:
        return _row_of_fault(clip, error)
    return None


def _row_of_fault(clip: str, error: BaseException) -> dict[str, Any]:
    return {"clip": clip, "error": redacted(" ".join(str(error).split())) or type(error).__name__}


def _one(
    clip: str,
    request: Request,
    loaded: Any,
    note: Note,
    begin: Callable[[], None] = lambda: None,
    faults: tuple[type[Exception], ...] = FAULTS,
) -> dict[str, Any]:
    """Make the row of a clip, which the model that is `loaded` encodes unless it is stored.

    begin: is called before that.  faults: what is taken for a fault of the clip; anything else is raised.
    """
    started, file = time.perf_counter(), request.file(clip)
    there = loaded is None or file.exists()
    gone = ""
    try:
        if there:
            encoded, gone = _stored(clip, file, request)
        else:
            begin()
            encoded = _encoded(loaded, clip, request, note)
    except faults as error:
        return _row_of_fault(clip, error)
    if not there:
        encoded.save(file)  # a disk that is full is so for every clip
    more = {"already_there": True} if there else {"seconds": time.perf_counter() - started}
    return _row(clip, file, encoded) | more | ({"not_compared": redacted(gone)} if gone else {})


def _spread(
    clips: Sequence[str], request: Request, address: str | None, workers: int | None, note: Note
) -> list[dict[str, Any]]:
    """Make the row of each clip, in their order; workers of Ray encode those that are not stored."""
    # Workers have a directory of their own.
    request = replace(request, out=request.out.resolve(), model=full_name(request.model))
    for left in request.out.glob("*.trying"):
        left.unlink(missing_ok=True)
    rows = {clip: _one(clip, request, None, note) for clip in clips if request.file(clip).exists()}
    if cluster.is_here(address):
        fails = ((clip, _failed(clip, request, note)) for clip in clips if clip not in rows)
        rows |= {clip: row for clip, row in takewhile(lambda pair: pair[1] is not None, fails) if row}
    items = [{"clip": json.dumps(clip)} for clip in clips if clip not in rows]
    if items:
        with closing(cluster.encoded(EncodeVideos, request, items, ["row"], address, workers, note)) as tasks:
            made = [json.loads(row["row"]) for task in tasks for row in task]
        for row in made:
            row.pop("already_there", None)  # what a worker stored that died later is of this job too
            rows[row["clip"]] = row
        cluster.check_written(
            request.out, sum("error" not in row and not request.file(row["clip"]).exists() for row in made)
        )
    return [rows[clip] for clip in clips]


class EncodeVideos:
    """Encodes batches of clips for `cluster.encoded`: names as JSON in, rows as JSON out, for a name may be no text.

    A clip on which two workers died fails, and so does one that anything is wrong with.
    """

    def __init__(self, request: Request) -> None:
        self.request, self.loaded = request, load(request.model, request.device, request.dtype, bar=False)

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> Any:
        arrow = require("pyarrow", "ray")
        rows = [self.row(json.loads(clip)) for clip in batch["clip"]]
        texts = {
            "row": [json.dumps(row) for row in rows],
            "error": [json.dumps(row["error"]) if "error" in row else None for row in rows],
        }
        return arrow.table({name: arrow.array(column, arrow.string()) for name, column in texts.items()})

    def row(self, clip: str) -> dict[str, Any]:
        """Encode a clip."""
        mark = self.request.file(clip).with_suffix(".trying")
        try:
            begin = partial(cluster.attempt, mark, clip)
            # Whatever is wrong with one, the thousands of others must not suffer.
            return _one(clip, self.request, self.loaded, lambda what: None, begin, (Exception,))
        finally:
            mark.unlink(missing_ok=True)


def _listed(sources: Sequence[str]) -> list[str]:
    """List the clips of paths and addresses, of folders, and of text files with one a line."""
    clips: list[str] = []
    for source in sources:
        listed = is_path(source) and (Path(source).is_dir() or source.endswith(".txt"))
        clips += find(source) if listed else [os.path.abspath(source) if is_path(source) else source]
    return list(dict.fromkeys(clips))


def _stored(clip: str, file: Path, request: Request) -> tuple[EncodedVideo, str]:
    """Read what is stored, and why its frames could not be compared with those asked for, as where the clip is gone.

    Raises `VidsieveError` if it is of other frames, or by another model, method or keep, or damage may be in it.
    """
    encoded = EncodedVideo.load(file)
    if encoded.frames.source != redacted(clip):  # two names may have one digest
        raise VidsieveError(f"{file} holds {encoded.frames.source}, not this clip; choose another folder")
    if request.sample.get("strict") and not encoded.strict:
        raise VidsieveError(f"{file} was stored without strict, so what is damaged may be in it; choose another folder")
    dtype = str(encoded.selection.features.dtype).removeprefix("torch.")
    made = encoded.fingerprint
    found = {
        "by the model": full_name(made.name),
        "at keep": f"{made.keep:g}",
        "by": made.method,
        "in": dtype,
        "as": _described(encoded.frames),
    }
    asked = {
        "by the model": full_name(request.model),
        "at keep": f"{request.keep:g}",
        "by": chosen_by(by_name(request.method, request.keep), request.pixels),
        "in": dtype if request.dtype in (None, "auto") else request.dtype,
    }
    frames, gone = encoded.frames, ""
    try:
        frames = plan_video(clip, **sampled(clip, request.sample, request.max_pixels))
    except VideoError as error:
        if _is_local(clip) and not _is_missing(clip):
            raise
        gone = str(error)
    asked["as"] = _described(frames)
    for how, what in asked.items():
        if found[how] != what:
            raise VidsieveError(
                f"{file} holds this clip {how} {found[how]}; asked for: {how} {what}; choose another folder"
            )
    if (frames.index, frames.seconds, frames.total) != (
        encoded.frames.index,
        encoded.frames.seconds,
        encoded.frames.total,
    ):
        raise VidsieveError(f"{file} holds other frames of this clip than are asked for; choose another folder")
    return encoded, gone


def _described(frames: Frames) -> str:
    count, height, width, _ = frames.pixels.shape
    return f"{count} frames of {height} x {width}, {frames.seconds[0]:.2f} s to {frames.seconds[-1]:.2f} s"


def sampled(clip: str, sample: dict[str, Any], max_pixels: int | None) -> dict[str, Any]:
    """The arguments of `plan_video` for frames of at most `max_pixels`."""
    if max_pixels is None:
        return sample
    height, width = plan_video(clip, **sample).pixels.shape[1:3]
    scale = min(1.0, (max_pixels / (height * width)) ** 0.5)
    return {**sample, "size": (max(1, int(height * scale)), max(1, int(width * scale)))}


def _told(note: Note, clip: str, what: str) -> None:
    note(f"{clip}: {what}")


def _encoded(loaded: Any, clip: str, request: Request, note: Note) -> EncodedVideo:
    processor, model = loaded

    def told(done: Progress) -> None:
        left = done.seconds_left
        note(f"{done.frames} of {done.total} frames, {int(left // 60)}:{int(left % 60):02d} left")

    note("reading which frames there are")
    sample = sampled(clip, request.sample, request.max_pixels)
    return encode(
        model, processor, clip, request.keep, method=request.method, pixels=request.pixels, progress=told, **sample
    )


def _row(clip: str, file: Path, encoded: EncodedVideo) -> dict[str, Any]:
    return {
        "clip": clip,
        "file": str(file),
        "bytes": file.stat().st_size,
        "frames": len(encoded.frames),
        "duration": encoded.frames.duration,
        "tokens_before": sum(encoded.tokens),
        "tokens_after": len(encoded.selection),
    }
