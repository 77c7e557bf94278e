"""EXPERIMENTAL. Remember a stream of frames in a bounded number of tokens, and ask about it at any time. docs/long.md.

memory = vidsieve.Stream(model, processor, tokens=4096)
for frames, seconds in live("rtsp://camera/1", fps=2):
    memory.add(frames, seconds)
memory.ask("Who came in?")
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import isfinite
from threading import Lock
from typing import Any, overload

import torch
from torch import Tensor

from vidsieve.checks import describe, show
from vidsieve.encoded.chunks import FeatureChunk, by_frame, encode_chunks, pinned
from vidsieve.encoded.encode import chunkwise
from vidsieve.encoded.fingerprint import Fingerprint
from vidsieve.encoded.video import EncodedVideo, Turns
from vidsieve.engines.hf import arguments
from vidsieve.engines.hf.loading import long_enough
from vidsieve.errors import UnsupportedCall, WrongArgument
from vidsieve.methods.base import Reducer
from vidsieve.methods.stream import StreamMemory
from vidsieve.types.frames import Frames
from vidsieve.types.selection import Selection

CHUNK = 16  # frames that are encoded at a time
_SECONDS = "seconds"  # beside the features of each token, so that they are forgotten together


def _time(second: Any) -> float:
    try:
        return float(second)
    except (TypeError, ValueError) as error:
        raise WrongArgument(f"expected a number of seconds as time stamp, got {describe(second)}") from error


@dataclass(frozen=True, eq=False)
class _State:
    """What is known of a stream. Replaced, never changed, so that a call that fails leaves it as it was.

    memory: of the frames that are encoded.  waiting: (w, H, W, 3), those that are not, as many as fill no chunk, with
    their `seconds`.  count: frames so far.  first, last: the times of the first and of the last.
    """

    memory: StreamMemory
    waiting: Tensor
    seconds: tuple[float, ...] = ()
    count: int = 0
    first: float = 0.0
    last: float = 0.0


class Stream:
    """At most `tokens` tokens of a stream of frames that never ends.

    It holds besides the features of one unfinished segment, a chunk of 16 frames at most, and what is remembered twice
    while more is joined to it. The same frames give the same tokens however they were cut into calls. Calls from
    several threads wait for one another: frames that are added while an answer is generated are added after it.
    """

    def __init__(self, model: Any, processor: Any, tokens: int = 4096, method: str | Reducer = "vidsieve") -> None:
        """
        tokens: kept at most, of all the stream.  method: a name, or a method whose `keep` is not read.
        Raises `WrongArgument` for a method that cannot select in chunks, or needs to know the length of the video,
        `UnsupportedModel` for a family whose tower is not known to compute each frame alone.
        """
        self._model, self._processor = arguments.unwrap_model(model), processor
        _, self._joined = by_frame(self._model, processor)
        reducer = chunkwise(method, 1.0 if isinstance(method, str) else None)
        self._state = _State(StreamMemory(tokens, reducer), torch.empty(0, 0, 0, 3, dtype=torch.uint8))
        self._name = f"Stream(tokens={tokens}, method={reducer!r})"
        self._shape: tuple[int, ...] = ()  # of a frame; from the first ones on, as are
        self._size: tuple[int, int] | None = None  # what the processor makes of it,
        self._pinned: Any = processor  # the one that does so to any number of them,
        self._made: FeatureChunk | None = None  # and what is alike of all chunks: one token frame, without features
        self._snapshot: EncodedVideo | None = None  # until more is added
        self._chunk = -(-CHUNK // self._joined) * self._joined
        self._lock = Lock()

    def add(self, frames: Tensor, seconds: Sequence[float]) -> None:
        """Add the next frames: uint8 (T, H, W, 3), RGB, any number of them, of one size for all the stream.

        seconds: T time stamps from 0 on that rise, also from call to call.
        They are encoded 16 at a time, or when a question comes, at the size that the processor gives the first temporal
        patch alone: shrink frames before that, if that is more than you want (`live(size=448)`).
        Raises `WrongArgument` for frames of another type or size, and for time stamps that do not rise; and what
        `encode_chunks` raises. A call that raises adds nothing.
        """
        with self._lock:
            times = self._checked(self._state, frames, seconds)
            if times:
                self._state, self._snapshot = self._grown(self._state, frames, times), None

    def snapshot(self) -> EncodedVideo:
        """Get what is remembered now, which later calls of `add` do not change: to save, or to ask in ways of your own.

        It shows the model a video of those token frames alone that still have a token, so that a prompt does not grow
        with the stream. Their time stamps are true, in families that write them (Qwen3-VL, GLM, SmolVLM). Temporal
        positions are those of this shorter video: families that count frames leave no gap for what is forgotten, and
        Qwen2.5-VL's lie at even distances, of the mean time from one frame that is shown to the next.
        Frames that do not fill a temporal patch wait for the next ones, and are not in it.
        `at` refuses it: which tokens a smaller memory would hold depends on all that was forgotten.
        Raises `WrongArgument` before there is a token frame.
        """
        with self._lock:
            return self._snapped()

    @overload
    def ask(self, question: str, history: Turns = ..., **generate: Any) -> str: ...

    @overload
    def ask(self, question: Sequence[str], history: Turns = ..., **generate: Any) -> list[str]: ...

    def ask(self, question: str | Sequence[str], history: Turns = (), **generate: Any) -> str | list[str]:
        """Answer a question, or several as one batch, from what is remembered now, as `EncodedVideo.ask` does."""
        with self._lock:
            return self._snapped().ask(self._model, self._processor, question, history, **generate)

    def __len__(self) -> int:
        """How many frames were added."""
        return self._state.count

    def __repr__(self) -> str:
        return f"{self._name} of {len(self)} frames"

    def _checked(self, state: _State, frames: Any, seconds: Any) -> tuple[float, ...]:
        """Get the time stamps. Raises `WrongArgument` for arguments that `add` does not take."""
        if not isinstance(frames, Tensor) or frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
            raise WrongArgument(f"expected frames uint8 (T, H, W, 3), RGB, got {describe(frames)}")
        if not isinstance(seconds, Iterable):
            raise WrongArgument(f"expected a time stamp for each of {len(frames)} frames, got {describe(seconds)}")
        times = tuple(map(_time, seconds))
        if len(times) != len(frames):
            raise WrongArgument(f"expected a time stamp for each of {len(frames)} frames, got {len(times)}")
        for last, now in pairwise((state.last if state.count else -1.0, *times)):
            if not isfinite(now) or now < 0 or now <= last:
                after = f"above {last:g}, the one before" if last >= 0 else "from 0 on"
                raise WrongArgument(f"expected time stamps in seconds that rise, got {now:g}; expected one {after}")
        shape, first = tuple(frames.shape[1:3]), tuple(state.waiting.shape[1:3])
        if not all(shape):
            raise WrongArgument(f"expected frames with pixels, got {show(frames)}")
        if state.count and shape != first:
            raise WrongArgument(
                f"expected frames of {first[0]} x {first[1]}, as all of this stream, got {shape[0]} x {shape[1]}; "
                "resize them, or begin another Stream"
            )
        return times

    def _grown(self, state: _State, frames: Tensor, times: tuple[float, ...]) -> _State:
        """Encode the chunks that are full now, one after another."""
        if not state.count:
            state = replace(state, waiting=torch.empty(0, *frames.shape[1:], dtype=torch.uint8), first=times[0])
        memory, waiting, seconds, begin = state.memory.copy(), state.waiting, state.seconds, 0
        while len(seconds) + len(times) - begin >= self._chunk:
            here = slice(begin, begin := begin + self._chunk - len(seconds))
            self._remember(memory, torch.cat([waiting, frames[here].cpu()]), (*seconds, *times[here]))
            waiting, seconds = waiting[:0], ()
        return _State(
            memory,
            torch.cat([waiting, frames[begin:].cpu()]),  # a copy: the caller may write over his
            (*seconds, *times[begin:]),
            state.count + len(times),
            state.first,
            times[-1],
        )

    @torch.no_grad()
    def _remember(self, memory: StreamMemory, pixels: Tensor, seconds: tuple[float, ...]) -> None:
        """Encode whole temporal patches, and add them to `memory`."""
        frames = Frames(pixels, tuple(range(len(pixels))), seconds, 0.0, len(pixels), 0.0, "the stream")
        if self._shape != pixels.shape[1:3]:  # at first, and after a first call that failed
            few, self._made = self._joined, None
            first = replace(frames, pixels=pixels[:few], index=frames.index[:few], seconds=seconds[:few])
            self._pinned, self._size = pinned(self._model, self._processor, first)
            self._shape = tuple(pixels.shape[1:3])
        [chunk] = encode_chunks(self._model, self._pinned, frames, len(frames))
        count = len(frames) // self._joined  # a lone frame is in the chunk twice in some families
        size = chunk.tokens[0]
        if chunk.tokens[:count] != (size,) * count or (self._made and self._made.tokens != (size,)):
            raise UnsupportedCall(
                f"{type(self._processor).__name__} gives frames of one size different numbers of tokens"
            )
        x = chunk.features[: size * count]
        times = torch.tensor(seconds, dtype=torch.float64, device=x.device).view(count, self._joined).T
        others = {name: rows[:, : len(x)] for name, rows in chunk.others.items()}
        others[_SECONDS] = times.repeat_interleave(size, 1)[..., None]  # (joined, n, 1)
        memory.add(x, (size,) * count, others)
        self._made = FeatureChunk(x[:0], (size,), chunk.grid, {}, chunk.trailing, size)

    def _snapped(self) -> EncodedVideo:
        if self._snapshot is None:
            state = self._state
            whole = len(state.waiting) // self._joined * self._joined
            memory = state.memory.copy()
            if whole:
                self._remember(memory, state.waiting[:whole], state.seconds[:whole])
            if self._made is None or not memory.original_count:
                raise WrongArgument(
                    f"expected at least {self._joined} frames, which make a token frame, got {state.count}; add more "
                    "before you ask"
                )
            self._snapshot = self._video(state, memory.selection(), self._made)
        return self._snapshot

    def _video(self, state: _State, found: Selection, made: FeatureChunk) -> EncodedVideo:
        """Make the video of the token frames that `found` has tokens of."""
        [size], joined = made.tokens, self._joined
        kept, others = found.kept.cpu(), dict(found.others)
        times = others.pop(_SECONDS)[..., 0].cpu()  # (joined, K)
        shown, place = torch.unique(kept // size, return_inverse=True)  # (F,), (K,)
        one = torch.zeros_like(shown).scatter(0, place, torch.arange(len(kept)))  # a token of each
        seconds = tuple(times[:, one].T.flatten().tolist())
        index = tuple((shown[:, None] * joined + torch.arange(joined)).flatten().tolist())
        pixels = torch.empty(len(index), *state.waiting.shape[1:], dtype=torch.uint8, device="meta")
        length = state.last - state.first
        rate = (state.count - 1) / length if length else 0.0
        frames = Frames(pixels, index, seconds, rate, state.count, length, "the stream")
        frames = long_enough(self._processor, frames)
        tokens = (size,) * (len(frames) // joined)
        count = len(kept)
        selection = Selection(
            kept=place * size + kept % size,
            features=found.features,
            others=others,
            step=torch.full((count,), -1, dtype=torch.int32),
            segment=torch.zeros(count, dtype=torch.int32),
            lengths=torch.tensor([sum(tokens)]),
        )
        fingerprint = Fingerprint.of(self._model, count / found.original_count, self._name)
        return EncodedVideo(frames, selection, made.trailing, tokens, made.grid, fingerprint, self._size)
