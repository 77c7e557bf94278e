"""Encode a video chunk by chunk: features from the model's own tower, with one chunk in memory at each stage.

    frames = plan_video("lecture.mp4", fps=1)
    for chunk in encode_chunks(model, processor, frames, 64): ...      # chunk.features (n, D)

Decoding, the processor and the tower overlap. The features are those of the whole video: what a frame looks like to the
processor is asked of the whole, and the towers that are known here compute a frame from that frame alone.
"""

import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vidsieve.checks import check_number, describe
from vidsieve.encoded.until_decoder import decoder_arguments
from vidsieve.engines.hf import adapter_for, arguments, attach, contract, prompt
from vidsieve.engines.hf.families import Adapter
from vidsieve.engines.hf.loading import Sized, frames_joined, grid_of, prepare, prepare_video
from vidsieve.engines.hf.seams.vision import Vision, check_vision
from vidsieve.errors import UnsupportedCall, UnsupportedModel, VidsieveError, WrongArgument
from vidsieve.methods.compose import Pixels, Staged
from vidsieve.methods.pixels import PixelSelector
from vidsieve.stages import Stages, in_use
from vidsieve.types.frames import Frames
from vidsieve.video.chunks import read_chunks
from vidsieve.video.decode import spans

QUESTION = "?"  # processors want some text; the tower does not see it


class FeatureChunk(NamedTuple):
    """What the tower makes of a chunk of a video: n tokens of D features, in the order of the prompt.

    features: (n, D), on the model's device.  tokens: of each token frame, sum n.  grid: rows and columns of a frame's
    tokens; None if they form none.  others: per token, (layers, n, D), by the name of the decoder's argument
    (Qwen3-VL's deepstack).  trailing: (t, D), the model's own token at the end of a video (LLaVA-OneVision), of the
    last chunk; (0, D) otherwise.  total: tokens of the whole video.
    """

    features: Tensor
    tokens: tuple[int, ...]
    grid: tuple[int, int] | None
    others: dict[str, Tensor]
    trailing: Tensor
    total: int


def encode_chunks(
    model: Any,
    processor: Any,
    frames: Frames,
    size: int,
    *,
    first: int | None = None,
    vision: Vision = "auto",
    strict: bool = False,
    read: Callable[[Frames, int], Iterator[Frames]] | None = None,
    pixels: PixelSelector | None = None,
) -> Generator[FeatureChunk]:
    """Encode `frames`, `size` at a time. The model has a tower attached while this runs; closing the iterator ends it.

    frames: of `plan_video`, decoded as they are needed; or decoded ones.  size: a multiple of the frames that the
    processor joins to a temporal patch.  first: the same of the first chunk; None for `size`.
    vision: how the tower runs, as `attach` takes it.  strict: as `read_chunks`.
    read: what reads described frames, `size` at a time, the first ones too, in place of `read_chunks`, for what is no
    file.  pixels: chooses the groups of pixels of each chunk that the tower computes; None for all.
    Raises `UnsupportedModel` for a family whose tower is not known to compute each frame alone, `UnsupportedCall` for
    a processor that cannot be asked in chunks and for `pixels` where the tower takes none, `AlreadyAttached`,
    `VideoError` as `read_chunks` does.
    """
    if not isinstance(frames, Frames) or not len(frames):
        raise WrongArgument(f'expected frames, got {describe(frames)}; plan them first: plan_video("clip.mp4")')
    check_vision(vision)
    if first is not None and read is not None:
        raise WrongArgument("expected first or read, not both: what is read elsewhere comes `size` frames at a time")
    model = arguments.unwrap_model(model)
    adapter, joined = by_frame(model, processor)
    arguments.check_served(adapter, model, inside=False, before_tower=pixels is not None)
    for name, length in {"size": size, "first": size if first is None else first}.items():
        check_number(f"{name} is a whole number of frames, at least 1", length, 1, integer=True)
        if length % joined and length < len(frames):
            expected = f"expected {name} as a multiple of {joined} frames, which the processor joins"
            raise ValueError(f"{expected}; got {length}")
    process = _Chunks(adapter, model, processor, frames, joined)
    method = None if pixels is None else Staged({Pixels(): pixels})
    return _encoded(model, process, frames, size, first, method, vision, strict, read)


def by_frame(model: Any, processor: Any) -> tuple[Adapter, int]:
    """Get the adapter of `model`, and how many frames the processor joins to a temporal patch.

    Raises `UnsupportedModel` for a family whose tower is not known to compute each of these alone, or whose processor
    would not, `UnsupportedVersion` for a release that does not tell the positions of a prompt of it.
    """
    adapter = adapter_for(model)
    if adapter.not_encoded:
        raise UnsupportedModel(
            f"model type {model.config.model_type!r} cannot be encoded: {adapter.not_encoded}; attach a method instead"
        )
    if not adapter.by_frame:
        raise UnsupportedModel(
            f"model type {model.config.model_type!r} cannot be encoded in chunks: nothing says that its tower computes "
            "a frame from that frame alone; where it does, say so: Adapter(..., by_frame=True)"
        )
    contract.check_positions(model)
    return adapter, frames_joined(processor) if adapter.layout == "grid" else 1


def pinned(model: Any, processor: Any, frames: Frames) -> tuple[Any, tuple[int, int] | None]:
    """Copy `processor` to one that gives any frames the size that it gives `frames`; with that height and width.

    The processor itself, and None, for one that gives any video the same.
    """
    return Sized(processor, frames).pinned() if adapter_for(model).layout == "grid" else (processor, None)


def processing(model: Any, processor: Any, frames: Frames, device: torch.device) -> Callable[[Frames], Any]:
    """Get what makes the inputs of any chunk of `frames`, as `encode_chunks` does for a model on `device`.

    Raises as `encode_chunks` does.
    """
    adapter, joined = by_frame(model, processor)
    chunks = _Chunks(adapter, model, processor, frames, joined, device)
    return lambda chunk: chunks.processed(chunk)[0].to(model.dtype)


@dataclass(frozen=True)
class _Layout:
    """How a prompt lays out a video. at: columns of its tokens.  tokens, grid: as of a chunk.

    last: whether it is the last chunk.
    """

    at: Tensor
    tokens: tuple[int, ...]
    grid: tuple[int, int] | None
    last: bool = False

    @classmethod
    def of(cls, adapter: Adapter, config: Any, processor: Any, frames: Frames) -> "_Layout":
        """Ask the processor about frames without pixels. `at` is left empty where a grid says all else.

        The prompt of an hour takes seconds to write.
        """
        if adapter.layout != "grid":
            bare = replace(frames, pixels=frames.pixels.to("meta"))
            return cls.read(adapter, config, processor, prepare(processor, bare, QUESTION))
        made = grid_of(processor, frames)
        if made is None:
            raise UnsupportedCall(f"{type(processor).__name__} makes no grid of these frames")
        count, high, wide = made.patches
        merge = getattr(config.vision_config, adapter.merge, 1) if made.merge is None else made.merge
        grid = (high // merge, wide // merge)
        tokens = (grid[0] * grid[1],) * count
        return cls(torch.empty(0, dtype=torch.int64), tokens, grid)

    @classmethod
    def read(cls, adapter: Adapter, config: Any, processor: Any, inputs: Mapping[str, Any]) -> "_Layout":
        found = prompt.find(adapter, config, prompt.read(adapter, inputs["input_ids"], None, inputs))
        if not found.spans:
            raise VidsieveError(f"{type(processor).__name__} makes no video token of these frames")
        [span] = found.spans
        return cls(torch.from_numpy(span.at), span.frames, span.grid)


class _Chunks:
    """Makes the model's inputs of the chunks of one video, as the processor would make them of the whole."""

    def __init__(
        self,
        adapter: Adapter,
        model: Any,
        processor: Any,
        frames: Frames,
        joined: int,
        device: torch.device | None = None,
    ) -> None:
        """device: for which pixels are processed; None for the model's."""
        self.adapter, self._processor, self._joined = adapter, processor, joined
        self._config, self._dtype, self._device = model.config, model.dtype, device or model.device
        self._whole = _Layout.of(adapter, self._config, processor, frames)
        self._left, self._done = len(frames), 0  # frames, token frames
        self._sized = Sized(processor, frames) if adapter.layout == "grid" else lambda chunk: processor
        self._prompts: dict[int, tuple[Any, _Layout]] = {}  # by the frames of a chunk

    @property
    def total(self) -> int:
        """Count the tokens of the whole video."""
        return sum(self._whole.tokens)

    def __call__(self, chunk: Frames) -> tuple[Any, _Layout]:
        """Get the inputs of the next chunk, and where its tokens are in them."""
        inputs, layout = self.processed(chunk)
        inputs = inputs.to(self._dtype)  # here: half the bytes wait
        self._left -= len(chunk)
        expected = self._whole.tokens[self._done :]
        if self._left:
            expected = expected[: len(chunk) // self._joined]
        got = layout.tokens[: len(expected)]  # a lone frame may be there twice
        if got != expected or layout.grid != self._whole.grid:
            raise UnsupportedCall(
                f"{type(self._processor).__name__} makes frames of {_told(got)} tokens of a chunk, and of "
                f"{_told(expected)} of the whole video, so it cannot be encoded in chunks"
            )
        self._done += len(expected)
        return inputs, replace(layout, at=layout.at[: sum(expected)], tokens=expected, last=not self._left)

    def processed(self, chunk: Frames) -> tuple[Any, _Layout]:
        """Get the processor's inputs of a chunk. The prompt of one is that of all with as many tokens.

        A tower does not see it, and writing it takes longer than the pixels.
        """
        processor, known = self._sized(chunk), self._prompts.get(len(chunk))
        if known is not None:
            made = prepare_video(processor, chunk, self._device)
            if made["video_grid_thw"].tolist() == known[0]["video_grid_thw"].tolist():
                return type(known[0])({**known[0], **made}), known[1]
        inputs = prepare(processor, chunk, QUESTION, self._device)
        layout = _Layout.read(self.adapter, self._config, self._processor, inputs)
        if self.adapter.layout == "grid":
            words = {name: x for name, x in inputs.items() if not name.startswith("pixel_values")}
            self._prompts[len(chunk)] = type(inputs)(words), layout
        return inputs, layout


def _told(tokens: tuple[int, ...]) -> str:
    return " or ".join(map(str, sorted(set(tokens)))) or "no"


def _encoded(
    model: Any,
    process: _Chunks,
    frames: Frames,
    size: int,
    first: int | None,
    method: Staged | None,
    vision: Vision,
    strict: bool,
    read: Callable[[Frames, int], Iterator[Frames]] | None,
) -> Generator[FeatureChunk]:
    faults: list[str] = []  # told here: filters of warnings belong to the caller's thread

    positions: dict[int, Tensor] = {}
    with attach(model, method, vision=vision), Stages(model.device) as stages:
        if read is not None:
            chunks = read(frames, size)
        elif frames.pixels.is_meta:
            chunks = read_chunks(frames, size, first=first, strict=strict, warn=faults.append, check=stages.check)
        else:
            chunks = _split(frames, size, first)
        # Two are decoded ahead, for the time that takes varies most, and pixels are bytes until they are processed.
        for inputs, layout in stages.ahead(map(process, stages.ahead(chunks, waiting=2))):
            while faults:
                warnings.warn(faults.pop(0), stacklevel=2)
            in_use(inputs.values())
            yield _features(model, process.adapter, inputs, layout, process.total, positions)
            del inputs  # before the next are waited for


def _split(frames: Frames, size: int, first: int | None = None) -> Iterator[Frames]:
    for begin, end in spans(len(frames), size, first):
        yield frames.part(begin, end)


@torch.no_grad()
def _features(
    model: Any, adapter: Adapter, inputs: Any, layout: _Layout, total: int, positions: dict[int, Tensor]
) -> FeatureChunk:
    """Run the model up to its decoder, and take what it would be given of the video.

    positions: of prompts of so many tokens, gathered here and given to the next such call: a model that has none counts
    them while the device waits, and only its decoder, which does not run here, would look at them.
    """
    known = positions.get(inputs["input_ids"].shape[1])
    given = decoder_arguments(model, {**inputs.to(model.device), **({} if known is None else {"position_ids": known})})
    embeds = given["inputs_embeds"][0]  # (L, D)
    if adapter.layout == "grid" and given.get("position_ids") is not None:
        positions[len(embeds)] = given["position_ids"]
    at = layout.at.to(embeds.device)
    others = {
        name: torch.stack([rows[: len(at)] for rows in given[name]])
        for name in adapter.per_visual
        if given.get(name) is not None
    }
    after = int(layout.at[-1]) + 1
    trailing = embeds[after : after + adapter.trailing * layout.last].clone()  # a view would keep all of them
    return FeatureChunk(embeds[at], layout.tokens, layout.grid, others, trailing, total)
