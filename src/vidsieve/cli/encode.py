"""Ask about stored clips (`vidsieve ask`)."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidsieve.encoded.many import SUFFIX, Note
from vidsieve.encoded.video import EncodedVideo
from vidsieve.engines.hf.loading import load
from vidsieve.errors import VidsieveError


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
