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
from vidsieve.encoded.clips import find
from vidsieve.encoded.encode import Progress, encode
from vidsieve.encoded.video import EncodedVideo
from vidsieve.engines.hf.loading import check, load
from vidsieve.errors import VidsieveError
from vidsieve.methods.chunked import in_chunks
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
    so one that exists is whole. Raises `VidsieveError` if every clip failed.
    """
    in_chunks(registry.method(request.method)(request.keep))  # refused before anything is loaded
    check(request.model)
    writable.folder(request.out).mkdir(parents=True, exist_ok=True)
    for left in request.out.glob(f"*{SUFFIX}.*.part"):  # of a run that was killed
        left.unlink(missing_ok=True)
    clips = _listed(request.clips)
    loaded: tuple[Any, Any] | None = None
    rows = []
    for number, clip in enumerate(clips, 1):
        count = Path(clip).name if len(clips) == 1 else f"{number} of {len(clips)}, {Path(clip).name}"
        file = _file(request.out, clip)
        try:
            if file.exists():
                rows.append(_row(clip, file, _stored(clip, file, request)) | {"already_there": True})
                continue
            if loaded is None:
                note("loading the model")
                loaded = load(request.model, request.device, request.dtype, bar=False)
            rows.append(_encoded(loaded, clip, file, request, partial(_told, note, count)))
        except (VidsieveError, OSError, ValueError, RuntimeError) as error:
            rows.append({"clip": clip, "error": " ".join(str(error).split()) or type(error).__name__})
    failed = [row for row in rows if "error" in row]
    if len(failed) == len(rows):
        raise VidsieveError(
            failed[0]["error"] if len(rows) == 1 else f"none of {len(rows)} clips: {failed[0]['error']}"
        )
    return {"rows": rows, "folder": str(request.out), "method": request.method, "keep": request.keep}


def _listed(sources: Sequence[str]) -> list[str]:
    """List the clips of paths and addresses, of folders, and of text files with one a line."""
    clips: list[str] = []
    for source in sources:
        listed = is_path(source) and (Path(source).is_dir() or source.endswith(".txt"))
        clips += find(source) if listed else [os.path.abspath(source) if is_path(source) else source]
    return list(dict.fromkeys(clips))


def _file(out: Path, clip: str) -> Path:
    """Name the file of a clip: by the clip's name, then a digest of its path, for two may have one name."""
    return out / f"{Path(clip).stem[:60]}-{hashlib.sha256(clip.encode()).hexdigest()[:8]}{SUFFIX}"


def _stored(clip: str, file: Path, request: Request) -> EncodedVideo:
    """Read what is stored. Raises `VidsieveError` if it is of other frames, or by another method or keep."""
    encoded = EncodedVideo.load(file)
    method = repr(in_chunks(registry.method(request.method)(request.keep)))
    frames = plan_video(clip, **sampled(clip, request.sample, request.max_pixels))
    asked = (method, frames.index, tuple(frames.pixels.shape))
    found = (encoded.fingerprint.method, encoded.frames.index, tuple(encoded.frames.pixels.shape))
    if found != asked:
        raise VidsieveError(
            f"{file} holds {len(found[1])} frames of this clip, {found[2][1]} x {found[2][2]}, by {found[0]}; "
            f"asked for are {len(asked[1])}, {asked[2][1]} x {asked[2][2]}, by {method}; choose another folder"
        )
    return encoded


def sampled(clip: str, sample: dict[str, Any], max_pixels: int | None) -> dict[str, Any]:
    """The arguments of `plan_video` for frames of at most `max_pixels`."""
    if max_pixels is None:
        return sample
    height, width = plan_video(clip, **sample).pixels.shape[1:3]
    scale = min(1.0, (max_pixels / (height * width)) ** 0.5)
    return {**sample, "size": (max(1, int(height * scale)), max(1, int(width * scale)))}


def _told(note: Note, clip: str, what: str) -> None:
    note(f"{clip}: {what}")


def _encoded(loaded: tuple[Any, Any], clip: str, file: Path, request: Request, note: Note) -> dict[str, Any]:
    (processor, model), begin = loaded, time.perf_counter()

    def told(done: Progress) -> None:
        left = done.seconds_left
        note(f"{done.frames} of {done.total} frames, {int(left // 60)}:{int(left % 60):02d} left")

    note("reading which frames there are")
    sample = sampled(clip, request.sample, request.max_pixels)
    encoded = encode(model, processor, clip, request.keep, method=request.method, progress=told, **sample)
    encoded.save(file)
    return _row(clip, file, encoded) | {"seconds": time.perf_counter() - begin}


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

    show: called with each row as soon as it is there. Returns JSON values.
    """
    note("reading the file")
    videos = [EncodedVideo.load(file) for file in asked.files]
    if asked.keep is not None:
        videos = [video.at(asked.keep) for video in videos]
    name = asked.model or videos[0].fingerprint.name
    if not name:
        raise VidsieveError(f"{asked.files[0]} does not say which model encoded it; name it with --model")
    note("loading the model")
    processor, model = load(name, asked.device, asked.dtype, bar=False)
    shown = sum_of(videos)
    rows = []
    note("answering")
    for question in asked.questions or _typed():
        begin = time.perf_counter()
        answer = shown.ask(
            model, processor, question, do_sample=False, num_beams=1, max_new_tokens=asked.max_new_tokens
        )
        rows.append({"question": question, "answer": answer, "seconds": time.perf_counter() - begin})
        if show:
            show(rows[-1])
    return {
        "files": [str(file) for file in asked.files],
        "model": name,
        "tokens": sum(len(video.selection) for video in videos),
        "rows": rows,
    }


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
