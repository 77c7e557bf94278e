"""Ask about stored clips (`vidsieve ask`)."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidsieve import registry
from vidsieve.encoded.many import SUFFIX, Note
from vidsieve.encoded.video import EncodedVideo
from vidsieve.engines.hf import arguments, attach
from vidsieve.engines.hf.loading import load
from vidsieve.engines.hf.replayed import check_inside
from vidsieve.errors import VidsieveError


@dataclass(frozen=True)
class Questions:
    """The arguments of `vidsieve ask`.

    model: None for the one that the files name.  keep: None for all that is stored.  method: the name of one inside the
    model that picks `keep` of the video's tokens for each question; None to keep those that a smaller file would have.
    """

    files: Sequence[Path]
    questions: Sequence[str]
    model: str | None = None
    keep: float | None = None
    device: str | None = None
    dtype: str | None = None
    max_new_tokens: int = 128
    method: str | None = None


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
    stages = None if asked.method is None else arguments.method(registry.method(asked.method)(asked.keep))
    if stages is not None:
        check_inside(stages)
        _check_drops(asked.method, stages, videos)
    elif asked.keep is not None:
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
    with nullcontext() if stages is None else attach(model, stages, vision="stock"):
        for question in asked.questions or _typed():
            note("answering")
            rows.append(_answer(shown, model, processor, question, asked))
            note("")
            if show:
                show(rows[-1])
    if not rows and not sys.stdin.isatty():
        raise VidsieveError("no question came: give --question, or one a line on standard input")
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


def _check_drops(method: str | None, stages: Any, videos: Sequence[EncodedVideo]) -> None:
    """Raise `VidsieveError` for stages of which none keeps less than is stored: every answer would be the same."""
    least = min(getattr(stage, "keep", None) or 0.0 for stage in stages.stages.values())
    held = max(len(video.selection) / video.selection.original_count for video in videos)
    if least >= held:
        raise VidsieveError(
            f"{method} would drop nothing: it keeps {least:.3g} of a video's tokens at the least, and {held:.3g} of "
            "them are stored; give a smaller --keep, or store more"
        )


def _answer(shown: Any, model: Any, processor: Any, question: str, asked: Questions) -> dict[str, Any]:
    """Answer one question. An error of the processor, as for one that holds a placeholder, is raised or the answer."""
    begin = time.perf_counter()
    options = {"do_sample": False, "num_beams": 1, "max_new_tokens": asked.max_new_tokens}
    try:
        answer = shown.ask(model, processor, question, **options)
    except ValueError as error:
        if asked.questions:
            raise
        return {"question": question, "error": " ".join(str(error).split())}
    return {"question": question, "answer": answer, "seconds": time.perf_counter() - begin}


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
