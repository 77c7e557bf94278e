"""Encode clips chunk by chunk and store what is kept (`vidsieve encode`); ask about stored clips (`vidsieve ask`)."""

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vidsieve import registry, writable
from vidsieve.cli.report import printable
from vidsieve.encoded.clips import find
from vidsieve.encoded.encode import Progress, encode
from vidsieve.encoded.job import sweep_parts
from vidsieve.encoded.video import EncodedVideo
from vidsieve.engines.hf.loading import check, load
from vidsieve.errors import VidsieveError
from vidsieve.methods.chunked import in_chunks
from vidsieve.types.frames import Frames
from vidsieve.video.chunks import plan_video
from vidsieve.video.demux import is_path

SUFFIX = ".vidsieve"
Note = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """The arguments of `vidsieve encode`.

    sample: those of `plan_video` that say which frames are taken.
    max_pixels: of a decoded frame; larger ones are scaled down in proportion.
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


def encode_all(request: Request, note: Note = lambda what: None) -> dict[str, Any]:
    """Encode each clip that is not stored in the folder `out` yet. Returns JSON values: a row for each clip.

    A clip that fails is a row with its error, and the others go on. A file is written under another name and renamed,
    so one that exists is whole. Raises `VidsieveError` if every clip failed, or one cannot be written, or the model not
    loaded.
    """
    in_chunks(registry.method(request.method)(request.keep))  # refused before anything is loaded
    check(request.model)
    clips = _listed(request.clips)
    writable.folder(request.out).mkdir(parents=True, exist_ok=True)
    sweep_parts(request.out)
    try:
        rows = list(_rows(clips, request, note))
    except KeyboardInterrupt:
        stored = sum(_file(request.out, clip).exists() for clip in clips)
        raise KeyboardInterrupt(
            f"{stored} of {len(clips)} clips are stored in {request.out}; the same command goes on with the others"
        ) from None
    failed = [row for row in rows if "error" in row]
    if len(failed) == len(rows):
        raise VidsieveError(
            failed[0]["error"] if len(rows) == 1 else f"none of {len(rows)} clips: {failed[0]['error']}"
        )
    return {"rows": rows, "folder": str(request.out), "method": request.method, "keep": request.keep}


def _rows(clips: Sequence[str], request: Request, note: Note) -> Iterator[dict[str, Any]]:
    """Yield the row of each clip once it is stored, or has failed. What is no fault of the clip is raised."""
    loaded = None
    if not all(_file(request.out, clip).exists() for clip in clips):
        note("loading the model")
        loaded = load(request.model, request.device, request.dtype, bar=False)
    for number, clip in enumerate(clips, 1):
        begin, file = time.perf_counter(), _file(request.out, clip)
        name = printable(Path(clip).name)
        count = name if len(clips) == 1 else f"{number} of {len(clips)}, {name}"
        try:
            there = loaded is None or file.exists()
            if there:
                encoded = _stored(clip, file, request)
            else:
                encoded = _encoded(loaded, clip, request, partial(_told, note, count))
        except (VidsieveError, OSError, ValueError, RuntimeError) as error:
            yield {"clip": clip, "error": " ".join(str(error).split()) or type(error).__name__}
            continue
        if not there:
            encoded.save(file)  # a disk that is full is so for every clip
        more = {"already_there": True} if there else {"seconds": time.perf_counter() - begin}
        yield _row(clip, file, encoded) | more


def _listed(sources: Sequence[str]) -> list[str]:
    """List the clips of paths and addresses, of folders, and of text files with one a line."""
    clips: list[str] = []
    for source in sources:
        listed = is_path(source) and (Path(source).is_dir() or source.endswith(".txt"))
        clips += find(source) if listed else [os.path.abspath(source) if is_path(source) else source]
    return list(dict.fromkeys(clips))


def _file(out: Path, clip: str) -> Path:
    """Name the file of a clip: by the clip's name, then a digest of its path, for two may have one name."""
    stem = "".join(letter if letter.isprintable() else "_" for letter in Path(clip).stem)
    short = stem.encode()[:60].decode(errors="ignore")  # file systems count bytes
    return out / f"{short}-{hashlib.sha256(os.fsencode(clip)).hexdigest()[:8]}{SUFFIX}"


def _stored(clip: str, file: Path, request: Request) -> EncodedVideo:
    """Read what is stored. Raises `VidsieveError` if it is of other frames, or by another model, method or keep."""
    encoded = EncodedVideo.load(file)
    dtype = str(encoded.selection.features.dtype).removeprefix("torch.")
    frames = plan_video(clip, **sampled(clip, request.sample, request.max_pixels))
    asked = {
        "by the model": request.model,
        "by": repr(in_chunks(registry.method(request.method)(request.keep))),
        "in": dtype if request.dtype in (None, "auto") else request.dtype,
        "as": _described(frames),
    }
    made = encoded.fingerprint
    found = {"by the model": made.name, "by": made.method, "in": dtype, "as": _described(encoded.frames)}
    for how, what in asked.items():
        if found[how] != what:
            raise VidsieveError(
                f"{file} holds this clip {how} {found[how]}; asked for is {how} {what}; choose another folder"
            )
    if (frames.index, frames.seconds, frames.total) != (
        encoded.frames.index,
        encoded.frames.seconds,
        encoded.frames.total,
    ):
        raise VidsieveError(f"{file} holds other frames of this clip than are asked for; choose another folder")
    return encoded


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
    return encode(model, processor, clip, request.keep, method=request.method, progress=told, **sample)


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


@dataclass(frozen=True)
class Questions:
    """The arguments of `vidsieve ask`.

    model: None for the one that the files name.  keep: None for all that is stored.
    """

    files: Sequence[Path]
    questions: Sequence[str]
    model: str | None = None
    keep: float | None = None
    device: str | None = None
    dtype: str | None = None
    max_new_tokens: int = 128


def ask_all(
    asked: Questions, note: Note = lambda what: None, show: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """Answer questions about stored clips, shown in one prompt; those of standard input where there are none.

    note: is told "" while somebody may type, when nothing is to be drawn.
    show: called with each row as soon as it is there. Returns JSON values.
    """
    note("reading the file")
    files = [_only(file) for file in asked.files]
    videos = [EncodedVideo.load(file) for file in files]
    if asked.keep is not None:
        videos = [video.at(asked.keep) for video in videos]
    name = asked.model or videos[0].fingerprint.name
    if not name:
        raise VidsieveError(f"{files[0]} does not say which model encoded it; name it with --model")
    if asked.model is None:  # a file of somebody else may name any
        print(f"model: {name}, as {files[0].name} says", file=sys.stderr)
    note("loading the model")
    processor, model = load(name, asked.device, asked.dtype, bar=False)
    shown = sum_of(videos)
    rows = []
    note("")
    for question in asked.questions or _typed():
        note("answering")
        begin = time.perf_counter()
        options = {"do_sample": False, "num_beams": 1, "max_new_tokens": asked.max_new_tokens}
        try:
            answer = shown.ask(model, processor, question, **options)
            rows.append({"question": question, "answer": answer, "seconds": time.perf_counter() - begin})
        except ValueError as error:  # of the processor, as for a question that holds a placeholder
            if asked.questions:
                raise
            rows.append({"question": question, "error": " ".join(str(error).split())})
        note("")
        if show:
            show(rows[-1])
    return {
        "files": [str(file) for file in files],
        "videos": [
            {
                "file": str(file),
                "clip": video.frames.source,
                "tokens": len(video.selection),
                "spans": [span._asdict() for span in video.spans],
            }
            for file, video in zip(files, videos, strict=True)
        ],
        "model": name,
        "tokens": sum(len(video.selection) for video in videos),
        "rows": rows,
    }


def _only(path: Path) -> Path:
    """Get a stored clip: the file, or the one that a folder holds."""
    if not path.is_dir():
        return path
    found = sorted(path.glob(f"*{SUFFIX}"))
    if len(found) != 1:
        raise VidsieveError(f"{path} holds {len(found)} stored clips; expected one, or the names of files in it")
    return found[0]


def sum_of(videos: Sequence[EncodedVideo]) -> Any:
    """Show several encoded videos in one prompt; one of them is itself."""
    first, *rest = videos
    shown: Any = first
    for video in rest:
        shown = shown + video
    return shown


def _typed() -> Iterator[str]:
    """Read questions from standard input, one a line, until it ends or a line is empty on a terminal."""
    while True:
        if sys.stdin.isatty():
            print("question> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line or (sys.stdin.isatty() and not line.strip()):
            return
        if line.strip():
            yield line.strip()
