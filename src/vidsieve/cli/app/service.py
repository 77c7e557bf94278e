"""Answer what a page asks: one request after another, each about one clip. It knows nothing of Gradio."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from vidsieve.checks import require
from vidsieve.cli import demo, report
from vidsieve.cli.run import Request, run
from vidsieve.encoded.clips import SUFFIXES
from vidsieve.engines.hf.loading import check, load
from vidsieve.errors import VidsieveError, WrongArgument
from vidsieve.evaluation.needles.tiny import BUNDLED
from vidsieve.video.wanted import Sampling


@dataclass(frozen=True)
class Settings:
    """The arguments of `vidsieve app`. models: names beside the bundled one; the others: as `Request` takes them."""

    models: Sequence[str] = ()
    frames: int = 64
    sampling: Sampling = "even"
    device: str | None = None
    dtype: str | None = None
    max_new_tokens: int = 128


@dataclass(frozen=True)
class Asked:
    """One request. clip: None if there is none yet.  film: whether to draw the moving picture too."""

    clip: str | None
    question: str
    model: str = str(BUNDLED)
    method: str = "vidsieve"
    keep: float = 0.1
    film: bool = False


@dataclass(frozen=True)
class Reply:
    """What a page shows.

    error: why there is no answer, in one line; nothing else is there then.  warnings: faults of the clip.
    rows: a name, the value with every token and the value with those kept, which `titles` name.
    spans: when most of the kept tokens are shown.  pictures: paths, by kind: "png", "mp4".
    """

    error: str = ""
    warnings: tuple[str, ...] = ()
    tokens: str = ""
    gain: str = ""
    answer_unreduced: str = ""
    answer: str = ""
    titles: tuple[str, str] = ("", "")
    rows: tuple[tuple[str, str, str], ...] = ()
    spans: str = ""
    pictures: dict[str, Path] = field(default_factory=dict)


class Service:
    """Answers requests of several threads, one at a time, with models that are loaded once.

    Raises what `load` raises for a model that cannot be used.
    """

    def __init__(self, settings: Settings, note: Callable[[str], None] = lambda what: None) -> None:
        require("av", "video")
        self.settings = settings
        self.answered = 0
        self._turn = Lock()
        self._stopped = False
        self._models: dict[str, tuple[Any, Any]] = {}
        for name in settings.models:  # before the first is loaded, which may take minutes
            check(name)
        for name in (str(BUNDLED), *settings.models):
            note(f"loading {self.label(name)}")
            self._models[name] = load(name, settings.device, settings.dtype, bar=False)

    @property
    def models(self) -> list[tuple[str, str]]:
        """What each model is called on the page, and its name; the first one is preferred."""
        bundled, *others = self._models
        return [(self.label(name), name) for name in (*others, bundled)]

    @staticmethod
    def label(name: str) -> str:
        return "vidsieve-tiny (bundled)" if name == str(BUNDLED) else name

    def ask(self, asked: Asked, out: str | os.PathLike[str], note: Callable[[str], None] = lambda what: None) -> Reply:
        """Answer a request. Pictures go to the folder `out`. What `vidsieve run` says in one line is `Reply.error`."""
        note("waiting for the model")

        def going_on(what: str) -> None:
            if self._stopped:
                raise VidsieveError("the command was stopped")
            note(what)

        with self._turn:
            try:
                reply = self._ask(asked, out, going_on)
            except report.FAILURES as error:
                return Reply(error=_told(error, asked))
            self.answered += 1
            return reply

    def stop(self, seconds: float) -> None:
        """End the request that is being answered at its next step, and wait for that as long; refuse all others."""
        self._stopped = True
        if self._turn.acquire(timeout=seconds):
            self._turn.release()

    def _ask(self, asked: Asked, out: str | os.PathLike[str], note: Callable[[str], None]) -> Reply:
        if asked.clip is None:
            raise WrongArgument("expected a clip; upload one, or take the sample")
        if Path(asked.clip).suffix.lower() not in SUFFIXES:  # a playlist would show other files of this machine
            raise WrongArgument(f"{asked.clip}: expected a clip that ends in {', '.join(SUFFIXES)}")
        loaded = self._models.get(asked.model)
        if loaded is None:
            raise VidsieveError(f"no model {asked.model!r}; there are {', '.join(self._models)}")
        request = Request(
            asked.clip,
            asked.question,
            asked.model,
            asked.method,
            asked.keep,
            self.settings.frames,
            max_new_tokens=self.settings.max_new_tokens,
            sampling=self.settings.sampling,
        )
        faults: list[str] = []
        result = run(request, note, out, ("mp4",) if asked.film else (), loaded, faults.append)
        return Reply(
            warnings=tuple(_named(fault, asked) for fault in faults),
            tokens=report.tokens(result),
            gain=result["gain"],
            answer_unreduced=result["answer_unreduced"],
            answer=result["answer"],
            titles=("every token", report.reduced_title(result)),
            rows=tuple(report.rows(result)),
            spans=report.spans(result["spans"]),
            pictures={kind: Path(path) for kind, path in result["pictures"].items()},
        )


def _told(error: BaseException, asked: Asked) -> str:
    return _named(report.one_line(error), asked)


def _named(text: str, asked: Asked) -> str:
    """Name the clip as the visitor does, not by where its upload lies."""
    return text.replace(asked.clip, Path(asked.clip).name) if asked.clip else text


def sample(folder: Path) -> tuple[Path, str, str]:
    """Render the sample clip into `folder`: its path, a question about it, and the right answer."""
    return demo.render_clip(folder / "sample.mp4"), *demo.question()
