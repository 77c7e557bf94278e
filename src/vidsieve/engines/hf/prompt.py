"""Find the videos of a prompt, their frames, and the tokens of the question.

Everything here runs on the host, on copies of the token ids and of the arguments that describe the videos: B rows of L
tokens. They are numpy arrays, whose operations take a few microseconds where torch's take ten: the device waits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import repeat
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidsieve.engines.hf.columns import Columns
from vidsieve.engines.hf.families import Adapter
from vidsieve.engines.hf.layouts import LAYOUTS, Array, VideoSpan, of_stored
from vidsieve.engines.hf.replayed import StoredVideo
from vidsieve.errors import UnsupportedCall

_FRAMES = ("video_position_ids", "num_frames_per_video")
_SIZES = ("video_grid_thw", "video_grids", "video_merge_sizes", "target_sizes_videos")
_DESCRIBING = (*_SIZES, "video_compression_mask", *_FRAMES)
_READ = (*_DESCRIBING, "attention_mask")  # arguments of the body that are read
_SHOWING = ("pixel_values_videos", "mm_encoder_outputs")  # arguments with which a placeholder is a video, not text
_SHOWING_IMAGES = ("pixel_values", "image_hidden_states")  # and where a video's frames are passed as images


@dataclass(frozen=True, eq=False)
class PromptLayout:
    """The videos and questions in a batch of prompts.

    not_padding: bool (B, L), true on tokens.  spans: of its videos, row after row.
    questions: for each row, int64 (M,) columns of the question.  prompt_ends: for each row, the column where the answer
    begins that is being trained; L without an answer, 0 if the answer is all the text after the video.
    """

    not_padding: Array
    spans: tuple[VideoSpan, ...] = ()
    questions: tuple[Array, ...] = ()
    prompt_ends: tuple[int, ...] = ()

    @classmethod
    def none(cls) -> "PromptLayout":
        """Make the layout of no prompt."""
        return cls(np.zeros((0, 0), dtype=bool))

    @cached_property
    def unpadded(self) -> bool:
        """Whether there is no padding."""
        return bool(self.not_padding.all())

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Tokens in each row."""
        return tuple(self.not_padding.sum(1).tolist())

    @cached_property
    def holes(self) -> tuple[int, ...]:
        """Padding after the first token of each row, which is kept in place."""
        return tuple((np.logical_or.accumulate(self.not_padding, 1) & ~self.not_padding).sum(1).tolist())

    @property
    def lasts(self) -> tuple[Array, ...]:
        """For each row, the column of the prompt's last token, before any answer: int64 (1,), or (0,)."""
        rows = zip(self.not_padding, self.prompt_ends, strict=True)
        found = (not_padding[:end].tobytes().rfind(1) for not_padding, end in rows)
        return tuple(np.array([last] if last >= 0 else [], dtype=np.int64) for last in found)

    @cached_property
    def stable_suffix(self) -> int:
        """How many of the last columns are kept in every row, whatever is dropped: those after the last video."""
        return int(self.not_padding.shape[1]) - 1 - max((int(span.at[-1]) for span in self.spans), default=-1)

    def columns(self, known: Array, device: torch.device) -> Columns:
        """Make `Columns` on `device` of columns (n,) on the host, without waiting for the device."""
        begin, n = int(known[0]), len(known)
        consecutive = int(known[-1]) - begin == n - 1
        return Columns(begin, n, device, None if consecutive else torch.from_numpy(known).to(device, non_blocking=True))

    def valid_on(self, device: torch.device) -> Tensor | None:
        """Copy to `device` 0 for padding, else 1: int64 (B, L); None without padding."""
        return None if self.unpadded else torch.from_numpy(self.not_padding).to(device, torch.int64, non_blocking=True)


@dataclass(frozen=True, eq=False)
class HostInputs:
    """Copies on the host of the inputs that say where videos are.

    ids: (B, L), None if only the placeholders are known.  placeholder: bool (B, L), true on the adapter's token; None
    if `ids` say it.  answer: bool (B, L), true on the tokens of a training target.  arguments: those of the body that
    describe the videos.  proposed: how many of the last columns are candidate tokens (assisted decoding).
    positions: (B or 1, L) of the call, which show where a sample begins; None without any. Those of the text of a
    prompt with stored videos, which also show where tokens are missing.
    """

    ids: Array | None
    placeholder: Array | None
    answer: Array | None
    arguments: Mapping[str, Any]
    proposed: int = 0
    positions: Array | None = None


def shows(adapter: Adapter, arguments: Mapping[str, Any]) -> bool:
    """Whether a call with these arguments can have a video. If not, a placeholder is quoted text."""
    images = adapter.token == "image_token_id"
    for name in _SHOWING + _SHOWING_IMAGES * images:
        shown = arguments.get(name)
        if isinstance(shown, dict):
            shown = next((x for kind, x in shown.items() if x is not None and (images or kind == "video")), None)
        if shown is not None:
            return True
    return False


def encodes(arguments: Mapping[str, Any]) -> bool:
    """Whether a call with these arguments brings pictures of its own: pixels, or what a vision tower made of them."""
    given = [arguments.get(name) for name in _SHOWING + _SHOWING_IMAGES]
    each = [one for some in given for one in (some.values() if isinstance(some, dict) else (some,))]
    return any(one is not None for one in each)


def placeholder_in(embeds: Tensor, body: Any, token: int) -> Tensor:
    """Find where `embeds` (B, L, D) are those of the id `token`: bool (B, L)."""
    found: Tensor = (embeds == body.get_input_embeddings()(torch.tensor(token, device=embeds.device))).all(-1)
    return found


def read(
    adapter: Adapter,
    ids: Tensor | None,
    placeholder: Tensor | None,
    arguments: Mapping[str, Any],
    described: Mapping[str, Any] = MappingProxyType({}),
    answer: Tensor | None = None,
    proposed: int = 0,
    stored: bool = False,
) -> HostInputs:
    """Copy these to the host, with one wait for all of them.

    described: the `description` of videos that the body gets encoded.  stored: whether the prompt is one of
    `EncodedVideo.inputs`.
    """
    arguments = {**described, **{name: value for name, value in arguments.items() if value is not None}}
    arguments |= (found := description(arguments))
    names = (*_READ, "mm_token_type_ids") if adapter.token == "image_token_id" else _READ
    known = [name for name in names if isinstance(arguments.get(name), Tensor) and arguments[name].ndim <= 2]
    positions = arguments.get("position_ids")
    if isinstance(positions, Tensor) and positions.ndim == 3:
        # Three do not separate samples, in transformers either. Those of text are alike in all but the first of four.
        positions = positions[-1] if stored else positions[0] if len(positions) == 4 else None
    given = ids, placeholder, answer, positions, *(arguments[name] for name in known)
    copies = [None if x is None else x.to("cpu", non_blocking=x.is_cuda) for x in given]
    for device in {x.device for x in given if x is not None and x.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    arrays = [x if x is None else (x.float() if x.dtype == torch.bfloat16 else x).numpy() for x in copies]
    on_host = dict(zip(known, arrays[4:], strict=True))
    return HostInputs(arrays[0], arrays[1], arrays[2], found | on_host, proposed, arrays[3])


def find(
    adapter: Adapter,
    config: Any,
    host_inputs: HostInputs,
    copies: int = 1,
    end_of_turn: frozenset[int] = frozenset(),
    marks: frozenset[int] = frozenset(),  # other special ids, which are not part of a question
    stored: Sequence[StoredVideo] = (),
) -> PromptLayout:
    """Find the videos and questions of a batch.

    copies: rows for the same prompt (beams, returned sequences), of which encoded videos are described once.
    stored: the videos of each prompt, where they were reduced before they came; `host_inputs` were then read as such.
    Raises `UnsupportedCall` if the placeholders do not fit the arguments that describe the videos, or for packed
    samples.
    """
    placed, arguments = host_inputs.placeholder, host_inputs.arguments
    if placed is None:
        placed = np.equal(host_inputs.ids, getattr(config, adapter.token))  # type: ignore[arg-type]  # one of the two is
    video = placed if stored else _video_mask(adapter, config, placed, host_inputs)
    columns = [np.flatnonzero(row) for row in video]  # for every row, where a video has its tokens
    for row, at in enumerate(columns if copies > 1 else ()):
        if not np.array_equal(at, columns[row - row % copies]):
            raise UnsupportedCall(
                f"expected {copies} equal rows for each prompt, as generate makes them, but row {row} has videos "
                "elsewhere; pass pixels in place of mm_encoder_outputs to a call of your own"
            )
    if stored:
        spans = tuple(of_stored(stored, columns))
    else:
        cut = LAYOUTS[adapter.layout]
        ids = {} if host_inputs.ids is None else {"input_ids": host_inputs.ids[::copies]}
        spans = tuple(cut(adapter, config, columns[::copies], {**arguments, **ids})) if any(map(len, columns)) else ()
    if not spans:
        return PromptLayout(placed)
    if copies > 1:
        spans = tuple(replace(span, row=copies * span.row + n) for span in spans for n in range(copies))
    not_padding = _not_padding(placed, arguments.get("attention_mask"))
    after = [int(found[-1]) + 1 if len(found) else 0 for found in columns]
    if stored:
        text = not_padding & ~placed
        _refuse_packed(text, host_inputs.positions, masked=True)  # gaps are where tokens were dropped
        positions = np.broadcast_to(host_inputs.positions, text.shape)  # type: ignore[arg-type]  # there are some
        after = list(map(_after_stored, after, text, positions))
    else:
        _refuse_packed(not_padding, host_inputs.positions, masked="attention_mask" in arguments)
    image = getattr(config, "image_token_id", -1)
    prompt = slice(not_padding.shape[1] - host_inputs.proposed)
    ids_of, answer_of = (repeat(None) if x is None else x[:, prompt] for x in (host_inputs.ids, host_inputs.answer))
    rows = zip(ids_of, placed[:, prompt], not_padding[:, prompt], answer_of, after, strict=False)
    questions = tuple(_question(*row, image, end_of_turn, marks) for row in rows)
    return PromptLayout(
        not_padding, spans, questions, tuple(map(_prompt_end, not_padding[:, prompt], answer_of, after))
    )


def marks_of(config: Any) -> frozenset[int]:
    """Collect the special token ids that the configuration of a model names."""
    named = vars(config).items()
    return frozenset(mark for name, mark in named if name.endswith("_token_id") and isinstance(mark, int))


def description(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Select the `arguments` that describe videos; of pixels, only the shape; of places, the last of each frame."""
    found = {name: arguments[name] for name in _DESCRIBING if arguments.get(name) is not None}
    places = found.get("video_position_ids")
    if places is not None and places.ndim > 2:  # (frames, patches, 2); in older releases (videos, frames, patches, 2)
        if places.ndim == 4:
            found["num_frames_per_video"] = torch.full(places.shape[:1], places.shape[1])
        found["video_position_ids"] = places.amax(-2).flatten(0, -2)
    if (pixels := arguments.get("pixel_values_videos")) is not None:
        found["pixel_values_videos"] = pixels.to("meta")
    return found


def encodings(arguments: Mapping[str, Any]) -> tuple[int, ...]:
    """Count the tokens of each encoded video or frame that the body gets instead of pixels (transformers >= 5.18)."""
    encoded = (arguments.get("mm_encoder_outputs") or {}).get("video")
    if encoded is None:
        return ()
    tokens = encoded.pooler_output
    return (tokens.shape[1],) * len(tokens) if isinstance(tokens, Tensor) else tuple(map(len, tokens))


def copies_of(encoded: tuple[int, ...], arguments: Mapping[str, Any]) -> int:
    """How many rows of a call share each video of a generation, which has `encoded` them; 0 where it shows others.

    A logits processor may call the model too, while it generates. Such a call says itself what it shows.
    """
    shown = encodings(arguments)
    if not encoded or arguments.get("video_grid_thw") is not None:
        return 0
    copies = len(shown) // len(encoded)
    return copies if sorted(shown) == sorted(encoded * copies) else 0


def _not_padding(placeholder: Array, attention_mask: object) -> Array:
    """Find which columns are not padding: bool (B, L)."""
    if isinstance(attention_mask, np.ndarray) and attention_mask.ndim == 2:
        not_padding: Array = attention_mask[:, -placeholder.shape[1] :] != 0
        return not_padding
    return np.ones_like(placeholder)


def _refuse_packed(not_padding: Array, positions: Array | None, masked: bool) -> None:
    """Raise `UnsupportedCall` if positions (B or 1, L) of a row restart: without a mask, at any step other than 1."""
    if positions is None or positions.shape[-1] != not_padding.shape[1]:
        return
    for row, (given, tokens) in enumerate(zip(np.broadcast_to(positions, not_padding.shape), not_padding, strict=True)):
        column = np.flatnonzero(tokens)
        anew = column[1:][(np.diff(given[column]) < 0) if masked else (np.diff(given[column]) != 1)]
        if len(anew):
            raise UnsupportedCall(
                f"expected one sample a row, but the positions of row {row} begin anew at column {anew[0]}: packed "
                "samples would see one another once reduced; pass them as rows, padded, or detach"
            )


def _video_mask(adapter: Adapter, config: Any, placeholder: Array, host_inputs: HostInputs) -> Array:
    """Find the placeholders of videos, if images may use the same id: bool (B, L)."""
    arguments = host_inputs.arguments
    if adapter.between is not None:
        if host_inputs.ids is None:
            raise UnsupportedCall(
                f"expected input_ids, in which {' and '.join(adapter.between)} mark a video, got inputs_embeds alone"
            )
        begins, ends = ((host_inputs.ids == getattr(config, mark)).cumsum(1) for mark in adapter.between)
        marked: Array = placeholder & (begins > ends)
        return marked
    if adapter.token != "image_token_id":
        return placeholder
    kinds = arguments.get("mm_token_type_ids")  # 0 text, 1 image, 2 video
    if kinds is not None:
        in_video: Array = _of_columns(kinds, placeholder.shape[1], host_inputs.proposed) == 2
        if adapter.layout == "grid" or in_video.any():
            return placeholder & in_video
    elif adapter.layout == "grid" and arguments.get("video_grid_thw") is None:
        return np.zeros_like(placeholder)
    return placeholder


def _of_columns(kinds: Array, length: int, proposed: int) -> Array:
    """Get the kinds of the last `length` tokens: (B, length). Candidates at their end are text, and have no kind yet.

    Raises `UnsupportedCall` if there are too few.
    """
    if kinds.shape[1] == length - proposed:
        return np.pad(kinds, ((0, 0), (0, proposed)))
    if kinds.shape[1] < length:
        raise UnsupportedCall(
            f"expected mm_token_type_ids of {length} tokens, got {kinds.shape[1]}; pass one for each of input_ids"
        )
    return kinds[:, -length:]


def _prompt_end(not_padding: Array, answered: Array | None, after_video: int) -> int:
    """Find the column where the prompt ends: see `PromptLayout.prompt_ends`."""
    if answered is None or not answered[after_video:].any():
        return len(not_padding)
    end = after_video + int(answered[after_video:].argmax())
    return end if not_padding[after_video:end].any() else 0


def _after_stored(after: int, text: Array, positions: Array) -> int:
    """Find the column after the last token of a video that a row (L,) had, which may have been dropped with its frame.

    after: the column after the last one that is there, 0 in a row without.  text: bool, true on text.
    """
    column = np.flatnonzero(text[after:]) + after
    gaps = np.flatnonzero(np.diff(positions[column]) != 1)
    return int(column[gaps[-1] + 1]) if after and len(gaps) else after


def _question(
    ids: Array | None,  # (L,)
    placed: Array,  # (L,) bool, placeholders of videos, or of images if those are the same
    not_padding: Array,  # (L,) bool
    answered: Array | None,  # (L,) bool, true on the answer
    after_video: int,  # the column after the last token of a video
    image: int,  # the placeholder of images
    end_of_turn: frozenset[int],
    marks: frozenset[int],  # special ids, which are not part of a question
) -> Array:
    """Find the columns of the question: text after the last visual token up to the end of the turn, else all text.

    Text that a chat template appends without closing the turn cannot be distinguished from the question: included.
    """

    def asked(begin: int, ends: frozenset[int]) -> list[int]:
        text = not_padding[begin:] & ~placed[begin:]
        if answered is not None:
            text &= ~answered[begin:]
        tokens = repeat(None) if ids is None else ids[begin:].tolist()
        found = []
        for column, (token, said) in enumerate(zip(tokens, text.tolist(), strict=False), begin):
            if token in ends:
                break
            if said and token != image and token not in marks and token not in end_of_turn:
                found.append(column)
        return found

    images = placed[after_video:] if ids is None else placed[after_video:] | (ids[after_video:] == image)
    after_visual = after_video + images.tobytes().rfind(1) + 1
    columns = asked(after_visual, end_of_turn) or asked(0, frozenset())
    return np.array(columns, dtype=np.int64)
