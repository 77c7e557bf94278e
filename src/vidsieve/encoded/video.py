"""Ask encoded videos: once encoded and reduced, they answer any number of questions without pixels or a vision tower.

encoded = EncodedVideo.load("lecture.vidsieve")
encoded.ask(model, processor, "Who speaks?")
with encoded.on(model):
    model.generate(**encoded.inputs(model, processor, "Who speaks?"), num_beams=4)
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, overload

import torch
from torch import Tensor

from vidsieve.checks import check_question, describe, show
from vidsieve.encoded import file
from vidsieve.encoded.fingerprint import Fingerprint
from vidsieve.encoded.prompts import Inputs, Prompts
from vidsieve.engines.hf.arguments import unwrap_model
from vidsieve.engines.hf.replay import Replay
from vidsieve.engines.hf.replayed import StoredVideo
from vidsieve.errors import UnsupportedCall, WrongArgument
from vidsieve.types.frames import Frames
from vidsieve.types.selection import Selection
from vidsieve.types.spans import Span, seconds_of, spans

Turns = Sequence[tuple[str, str]]
_LENGTHS = ("max_new_tokens", "max_length", "generation_config", "max_time")
MAX_NEW_TOKENS = 128  # of an answer, as `vidsieve run` has it


class Askable(ABC):
    """One encoded video, or several that are shown together."""

    @property
    @abstractmethod
    def videos(self) -> "tuple[EncodedVideo, ...]":
        """The videos, in the order of the prompt."""

    def inputs(self, model: Any, processor: Any, question: str | Sequence[str], history: Turns = ()) -> Inputs:
        """Make the arguments of `model.generate` for a question, or for several as one batch, padded on the left.

        history: the questions and answers before it, oldest first, the same for every question of a batch.
        Gives `input_ids` and `attention_mask` (B, M) and `position_ids` (B, M) or (R, B, M) on the model's device, for
        calls within `on(model)`. To go on from a cache, pass the positions as well.
        Raises `WrongArgument` for another model than the one that encoded the video, or what is no question,
        `UnsupportedCall` if the processor would make another number of tokens of it.
        """
        questions = _questions(question)
        before = [text for turn in history for text in turn]
        self._checked(model)
        return self._prompts(model, processor, [(*before, asked) for asked in questions])

    @cached_property
    def _prompts(self) -> Prompts:
        stays = torch.cat([video.stays for video in self.videos])
        shown = [(video.frames, video.grid) for video in self.videos]
        return Prompts([frames for frames, _ in shown], stays, [grid for _, grid in shown], self.videos[0].size)

    def on(self, model: Any) -> AbstractContextManager[None]:
        """Get a context in which `model` reads the encoded video wherever a prompt of `inputs` has its placeholders.

        Calls with pixels of their own, and of text alone, are what they are without it. One video at a time: while a
        model is within it, other threads may call the model but not enter. Everything is undone at the end.
        Raises what `vidsieve.engines.hf.replay.Replay` raises, and `WrongArgument` for another model.
        """
        self._checked(model)
        device = unwrap_model(model).get_input_embeddings().weight.device
        if self.__dict__.get("_placed", (None,))[0] != device:  # moved once, not for each question
            self.__dict__["_placed"] = (device, *self._rows(device))
        return Replay(model, *self.__dict__["_placed"][1:])

    def _rows(self, device: torch.device) -> tuple[Tensor, dict[str, Tensor], list[StoredVideo]]:
        """Collect what is written over the placeholders, (V, D), and in later layers, (layers, V, D); the videos."""
        rows = [x.to(device) for video in self.videos for x in (video.selection.features, video.trailing)]
        others = {
            name: torch.cat([video.selection.others[name].to(device) for video in self.videos], 1)
            for name in self.videos[0].selection.others
        }
        return torch.cat(rows), others, [video.described(device) for video in self.videos]

    @overload
    def ask(self, model: Any, processor: Any, question: str, history: Turns = ..., **generate: Any) -> str: ...

    @overload
    def ask(
        self, model: Any, processor: Any, question: Sequence[str], history: Turns = ..., **generate: Any
    ) -> list[str]: ...

    def ask(
        self, model: Any, processor: Any, question: str | Sequence[str], history: Turns = (), **generate: Any
    ) -> str | list[str]:
        """Answer a question, or several as one batch, in their order.

        history: as `inputs` takes it.  generate: arguments of `model.generate`, such as `max_new_tokens` (128 by
        default), `do_sample`, `num_beams` or `streamer`.
        Raises what `inputs` and `on` raise, `UnsupportedCall` for arguments that give another number of answers.
        """
        several = [name for name in ("num_return_sequences", "return_dict_in_generate") if generate.get(name, 1) != 1]
        if generate.get("return_dict_in_generate") or several:
            raise UnsupportedCall(
                "ask gives the text of one answer a question; for others, call model.generate(**encoded.inputs(...)) "
                "within encoded.on(model)"
            )
        if not any(name in generate for name in _LENGTHS):
            generate["max_new_tokens"] = MAX_NEW_TOKENS
        inputs = self.inputs(model, processor, question, history)
        with self.on(model):
            out = model.generate(**inputs, **generate, num_return_sequences=1, return_dict_in_generate=False)
        text = processor.tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        answers = [answer.strip() for answer in text]
        return answers[0] if isinstance(question, str) else answers

    def __add__(self, other: "Askable") -> "EncodedVideos":
        """Show both in one prompt, this one first. Raises `WrongArgument` for videos of different models."""
        if not isinstance(other, Askable):
            return NotImplemented
        return EncodedVideos((*self.videos, *other.videos))

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the fields alone, not what is held for the next question."""
        return {name: value for name, value in vars(self).items() if name not in ("_prompts", "_placed")}

    def _checked(self, model: Any) -> "tuple[EncodedVideo, ...]":
        """Get the videos, if `model` encoded them."""
        for video in self.videos:
            video.fingerprint.check(unwrap_model(model))
        return self.videos


@dataclass(frozen=True, eq=False)
class EncodedVideo(Askable):
    """One video, as a model's tower sees it, reduced to K of its N tokens.

    frames: which frames of which file; their pixels are on meta.  selection: the kept tokens and their features.
    trailing: (t, D), tokens of the model's own at the end of a video (LLaVA-OneVision), else (0, D).
    tokens: of each token frame before the reduction, which sum to N.  grid: rows and columns of a token frame, None
    if it has none.  fingerprint: the model, and what reduced the video.  size: the height and width that the processor
    is told to give every frame (a stream, whose length it does not know); None where it chooses, as it did.
    strict: whether a file that is cut short or damaged would have been an error, and none was.
    Raises `WrongArgument` for parts that do not belong together.
    """

    frames: Frames
    selection: Selection
    trailing: Tensor
    tokens: tuple[int, ...]
    grid: tuple[int, int] | None
    fingerprint: Fingerprint
    size: tuple[int, int] | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        total, width = sum(self.tokens), self.selection.features.shape[1]
        if self.selection.original_count != total:
            raise WrongArgument(f"expected a selection of {total} tokens, got one of {self.selection.original_count}")
        kept = self.selection.kept.cpu()
        if not len(kept) or kept[0] < 0 or kept[-1] >= total or (kept.diff() <= 0).any():
            raise WrongArgument(f"expected the indices of kept tokens sorted, unique and within [0, {total})")
        if self.trailing.ndim != 2 or self.trailing.shape[1] != width:
            raise WrongArgument(f"expected trailing (t, {width}), got {show(self.trailing)}")
        about = {field.name: getattr(self.frames, field.name) for field in fields(Frames)}
        # Of frames that were planned or decoded, nothing but their description is needed again.
        object.__setattr__(self, "frames", Frames(**about | {"pixels": self.frames.pixels.to("meta")}))

    @property
    def videos(self) -> "tuple[EncodedVideo, ...]":
        return (self,)

    @property
    def stays(self) -> Tensor:
        """Which visual tokens of an unreduced prompt are left: bool (N + t,)."""
        total = sum(self.tokens)
        stays = torch.zeros(total + len(self.trailing), dtype=torch.bool)
        stays[self.selection.kept.cpu()] = True
        stays[total:] = True
        return stays

    def described(self, device: torch.device) -> StoredVideo:
        """Describe it on `device` to the stages of a method inside the model."""
        known = not (self.selection.step < 0).any()  # else they may be means, as after a merge
        like = self.selection.features.new_empty(0, device=device)
        return StoredVideo.of(self.selection.kept, self.tokens, self.grid, len(self.trailing), not known, like)

    @property
    def seconds(self) -> Tensor:
        """When each kept token is shown: float64 (K,)."""
        return seconds_of(self.selection.kept, self.tokens, self.frames.seconds)

    @property
    def spans(self) -> tuple[Span, ...]:
        """Where most of the kept tokens are, the fullest part first: (start, end, share), in seconds."""
        return spans(self.selection.kept, self.tokens, self.frames.seconds)

    def at(self, keep: float) -> "EncodedVideo":
        """Keep fewer tokens: those that would have been kept of the whole video at once.

        Raises `ValueError` for a share that is not above 0 and at most the one that is stored, `UnsupportedCall` for a
        video of which nobody knows the order in which its tokens were picked.
        """
        if (self.selection.step < 0).any():
            raise UnsupportedCall(
                "the order in which the tokens of this video were picked is not known, so it cannot be cut; encode it "
                "again with the keep that you want"
            )
        made = self.fingerprint
        method = made.method.replace(f"keep={made.keep!r}", f"keep={keep!r}", 1)
        fingerprint = replace(made, keep=keep, method=method)
        return replace(self, selection=self.selection.at(keep), fingerprint=fingerprint)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to one file, completely or not at all. Raises `VidsieveError` if that cannot be."""
        file.write(path, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "EncodedVideo":
        """Read a file that `save` wrote, onto the CPU. It cannot run code.

        Raises `VidsieveError` if there is none, or it is damaged, of another kind, or of another version of the format.
        """
        return file.read(path, cls)

    def __repr__(self) -> str:
        return (
            f"EncodedVideo({len(self.selection)} of {sum(self.tokens)} tokens, {self.fingerprint.model_type}, "
            f"{self.fingerprint.method}, {self.frames!r})"
        )


@dataclass(frozen=True, eq=False)
class EncodedVideos(Askable):
    """Several encoded videos, or parts of one, that a prompt shows one after another: first + second."""

    several: tuple[EncodedVideo, ...]

    def __post_init__(self) -> None:
        first, *rest = self.several
        for video in rest:
            if differs := first.fingerprint.differs(video.fingerprint):
                raise WrongArgument(f"expected videos that one model encoded; the first was by {differs}")
            if video.size != first.size:
                raise WrongArgument(
                    f"expected videos with frames of one size, got {_told(first.size)} and {_told(video.size)}; what a "
                    "stream remembers is shown alone, or with more of frames of its size"
                )

    @property
    def videos(self) -> tuple[EncodedVideo, ...]:
        return self.several

    def at(self, keep: float) -> "EncodedVideos":
        """Keep fewer tokens of each video, as `EncodedVideo.at` does."""
        return EncodedVideos(tuple(video.at(keep) for video in self.several))


def _told(size: tuple[int, int] | None) -> str:
    return "one that the processor chose" if size is None else "{} x {}".format(*size)


def _questions(question: Any) -> Sequence[str]:
    if isinstance(question, str):
        question = [question]
    if not isinstance(question, list | tuple) or not question:
        raise WrongArgument(f"expected a question or a list of them, got {describe(question)}")
    for asked in question:
        check_question(asked)
    return question
