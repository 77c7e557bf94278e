"""The settings of a batch job, and where it writes."""

import hashlib
import json
import os
import secrets
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vidsieve import registry, writable
from vidsieve.checks import check_question
from vidsieve.encoded.stored import read_row
from vidsieve.errors import VidsieveError, redacted
from vidsieve.methods.base import Attachable
from vidsieve.methods.compose import with_pixels
from vidsieve.video.wanted import Sampling

if sys.platform != "win32":
    import fcntl

QUESTION = "What happens in this video?"


def refused(method: str) -> str | None:
    """Say why a method cannot make features to store; None if it can."""
    if not registry.method(method).inside:
        return None
    before = ", ".join(registry.methods(inside=False))
    return f"{method} cannot make features to store: only what reduces before the language model does, {before}"


@dataclass(frozen=True)
class Job:
    """The settings of a batch job: model, method, and the folder `out` for the features.

    device, dtype: None for those that fit the machine and the checkpoint.
    question: for methods that look at the question, and part of the stored prompt with every method.
    strict: a clip that is cut short or damaged fails.  sampling: as `read_video` takes it.
    pixels: the share of the groups of pixels that the vision tower computes; None for all.
    Raises `VidsieveError` for a method that reduces inside the model, `WrongArgument` for a blank question.
    """

    model: str
    out: str
    method: str = "vidsieve"
    keep: float = 0.1
    frames: int = 64
    question: str = QUESTION
    device: str | None = None
    dtype: str | None = None
    strict: bool = False
    sampling: Sampling = "even"
    pixels: float | None = None

    def __post_init__(self) -> None:
        if why := refused(self.method):
            raise VidsieveError(why)
        check_question(self.question)

    @property
    def reducer(self) -> Attachable:
        """What reduces each clip."""
        return with_pixels(registry.method(self.method)(self.keep), self.pixels)

    @property
    def features(self) -> Path:
        return Path(self.out) / "features"

    def file(self, clip: str, question: str) -> Path:
        """Name the features file of a clip: by the clip's name, then a digest of its path and question."""
        digest = hashlib.sha256(f"{clip}\0{question}".encode()).hexdigest()[:16]
        return self.features / f"{Path(redacted(clip)).stem[:40]}-{digest}.safetensors"

    def claim(self) -> None:
        """Write the settings of this job to the folder `out`.

        Raises `VidsieveError` if it cannot be written or belongs to a job with other settings.
        """
        settings = {
            "model": self.model,
            "reducer": repr(self.reducer),
            "frames": self.frames,
            "dtype": self.dtype,
            "strict": self.strict or None,  # as in a folder of before there was the choice
            "sampling": None if self.sampling == "even" else self.sampling,
        }
        path = writable.folder(self.features).parent / "job.json"
        self.features.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_whole(path, (json.dumps(settings, indent=1) + "\n").encode())
        try:
            found = dict(json.loads(path.read_text()))
        except (TypeError, ValueError) as error:
            raise VidsieveError(
                f"{path}: is damaged, so nobody knows what job {self.out} holds; choose another folder"
            ) from error
        for name, value in settings.items():
            if found.get(name) != value:
                raise VidsieveError(
                    f"{self.out} holds a job whose {name} is {found.get(name)!r}, not {value!r}; choose another folder"
                )

    def sweep(self, note: Callable[[str], None]) -> None:
        """Delete the partial files of a killed run, and rename damaged ones, so that their clips are encoded again."""
        sweep_parts(self.features)
        for left in self.features.glob("*.trying"):
            left.unlink(missing_ok=True)
        for file in self.features.glob("*.safetensors"):
            try:
                read_row(file)
            except VidsieveError:
                file.replace(file.with_suffix(".damaged"))
                note(f"{file}: is damaged; its clip is encoded again, and it is now called {file.stem}.damaged")


def write_whole(path: Path, *parts: bytes | memoryview) -> None:
    """Write `parts`, one after another, to `path` completely or not at all, so that nobody reads half a file."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            if sys.platform != "win32":
                fcntl.flock(file, fcntl.LOCK_EX)  # which ends with the process, and tells `sweep_parts` of it
            for data in parts:
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:  # a full disk, Ctrl-C
        part.unlink(missing_ok=True)
        raise


def sweep_parts(folder: Path) -> None:
    """Delete what `write_whole` left in `folder` where it was killed; not what another process is writing."""
    for part in folder.glob("*.part"):
        with suppress(FileNotFoundError, PermissionError, BlockingIOError), part.open("rb") as file:
            if sys.platform != "win32":
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()
