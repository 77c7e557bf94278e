"""Store the reduced prompt of one clip as tensors, and restore the decoder's arguments from them. docs/batch.md.

tensors, row = encode(processor, model, reducer, frames, question)      # what vidsieve batch stores of a clip
model.generate(**restore(model, tensors), max_new_tokens=32)            # without the video or a vision tower
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from vidsieve.checks import describe, require
from vidsieve.encoded.until_decoder import decoder_arguments
from vidsieve.engines.hf import adapter_for, arguments, attach
from vidsieve.engines.hf.loading import prepare
from vidsieve.errors import UnsupportedCall, VidsieveError, WrongArgument
from vidsieve.methods.base import Attachable
from vidsieve.methods.compose import Pixels, Staged
from vidsieve.types.frames import Frames

Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class StoredPrompt:
    """The reduced prompt of one video and one question, as the decoder receives it: M tokens, V of them visual.

    features: (V, D), in the model's type: of the K kept tokens, and of one more if a model ends a video with a token of
    its own.  kept: int64 (K,), indices among the video's N tokens.  visual_index: int64 (V,), of each among the M.
    ids: int64 (M,).  suffix_start: index among the M of the text after the video.  position_ids: (M,) or (R, M), as the
    decoder takes them.  others: its other arguments, by name: (M,) per token, (layers, V, D) per visual token
    (Qwen3-VL's deepstack).
    """

    features: Tensor
    kept: Tensor
    visual_index: Tensor
    ids: Tensor
    suffix_start: int
    position_ids: Tensor
    others: Mapping[str, Tensor]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Make it of `tensors`, named as in a file."""
        others = {name: x for name, x in tensors.items() if name not in _STORED}
        own = {field: tensors[name] for name, field in _STORED.items()}
        return cls(**own | {"suffix_start": int(tensors["end"])}, others=others)  # type: ignore[arg-type]

    def tensors(self) -> dict[str, Tensor]:
        """Get all tensors on the CPU, named as in a file."""
        own = {name: getattr(self, field) for name, field in _STORED.items()}
        own["end"] = torch.tensor(self.suffix_start)
        return {name: x.cpu().contiguous() for name, x in (own | dict(self.others)).items()}

    def with_suffix(self, tail: Tensor, per_token: Iterable[str]) -> Self:
        """Replace the text after the video by token ids `tail`, int64 (n,).

        per_token: names of `others` that have a row for each token.
        """
        head = self.suffix_start
        following = self.position_ids[..., head : head + 1] + torch.arange(len(tail))
        longer = {
            name: torch.cat([self.others[name][:head], self.others[name].new_zeros(len(tail))])
            for name in per_token
            if name in self.others
        }
        return replace(
            self,
            ids=torch.cat([self.ids[:head], tail]),
            position_ids=torch.cat([self.position_ids[..., :head], following], -1),
            others={**self.others, **longer},
        )


_STORED = {  # names in a file: the fields
    "features": "features",
    "kept": "kept",
    "place": "visual_index",
    "ids": "ids",
    "end": "suffix_start",
    "position_ids": "position_ids",
}


@torch.no_grad()
def encode(
    processor: Any, model: Any, reducer: Attachable, frames: Frames, question: str
) -> tuple[dict[str, Tensor], Row]:
    """Encode and reduce `frames`: the tensors of an `StoredPrompt`, on the CPU and named as in a file, and the row.

    Raises `VidsieveError` if the prompt has no video token, `UnsupportedCall` for what does not reduce before the
    language model.
    """
    if isinstance(reducer, Staged) and [place for place in reducer.stages if not isinstance(place, Pixels)] != [0]:
        raise UnsupportedCall(
            f"what is stored is what the language model would be given, and {reducer!r} does not reduce that; "
            "expected a reducer, or stages at Pixels() and 0"
        )
    if reason := adapter_for(arguments.unwrap_model(model)).not_stored:
        raise UnsupportedCall(f"features of {type(model).__name__} cannot be stored: {reason}")
    inputs = prepare(processor, frames, question).to(model.device, model.dtype)
    with (attachment := attach(model, reducer)) as trace:
        given = _given_to_decoder(attachment, inputs)
    if not trace.videos:
        raise VidsieveError(f"{type(model).__name__} was shown no video token; nothing could be reduced")
    video, token, adapter = trace.videos[0], attachment.target.token, attachment.target.adapter
    kept = video.reduction.kept.cpu()  # (K,)
    ids = inputs["input_ids"][0].cpu()  # (L,)
    stays = torch.ones(len(ids), dtype=torch.bool)
    stays[video.at] = False
    stays[video.at[kept]] = True
    suffix_start = int(stays[: int((ids == token).nonzero()[-1]) + 1].sum())
    ids = ids[stays]  # (M,)
    visual_index = (ids == token).nonzero().flatten()  # (V,)
    embeds = given["inputs_embeds"][0]  # (M, D)
    positions = given.get("position_ids")
    positions = torch.arange(len(ids)) if positions is None else positions[..., 0, :]
    others = {name: given[name][0] for name in adapter.per_token if given.get(name) is not None}
    for name in adapter.per_visual:
        if given.get(name) is not None:
            others[name] = torch.stack([rows.cpu() for rows in given[name]])
    features = embeds[visual_index.to(embeds.device)]
    encoded = StoredPrompt(features, kept, visual_index, ids, suffix_start, positions, others)
    return encoded.tensors(), {
        "tokens_before": video.before,
        "tokens_after": video.after,
        "kept": video.kept,
        "tokens": list(video.frames),
        "grid": list(video.grid) if video.grid else None,
        "frames": list(frames.index),
        "seconds": list(frames.seconds),
        "fps": frames.fps,
        "total": frames.total,
        "duration": frames.duration,
    }


def restore(model: Any, tensors: Mapping[str, Tensor], tail: Tensor | None = None) -> dict[str, Any]:
    """Restore the arguments of `model.get_decoder()` from stored tensors. The vision tower is not needed.

    tail: int64 (n,), token ids after the video instead of the stored ones: another question.
    Raises `WrongArgument` for tensors or a tail that are none.
    """
    adapter = adapter_for(model)
    if not isinstance(tensors, Mapping):
        raise WrongArgument(f"expected stored tensors, got {describe(tensors)}; tensors, row = stored.read(file)")
    if tail is not None and not (isinstance(tail, Tensor) and tail.ndim == 1 and not tail.is_floating_point()):
        raise WrongArgument(
            f"expected tail as token ids, int64 (n,), got {describe(tail)}; text becomes them by "
            'processor.tokenizer(text, return_tensors="pt").input_ids[0]'
        )
    encoded = StoredPrompt.of(tensors)
    if tail is not None:
        encoded = encoded.with_suffix(tail, adapter.per_token)
    embedding, others = model.get_input_embeddings(), encoded.others
    embeds = embedding(encoded.ids.to(embedding.weight.device))  # (M, D)
    device = embeds.device
    embeds[encoded.visual_index.to(device)] = encoded.features.to(embeds)
    return {
        "inputs_embeds": embeds[None],
        "position_ids": encoded.position_ids[..., None, :].to(device),
        "attention_mask": torch.ones(1, len(encoded.ids), dtype=torch.long, device=device),
        **{name: others[name][None].to(device) for name in adapter.per_token if name in others},
        **{name: list(others[name].to(embeds)) for name in adapter.per_visual if name in others},
    }


def _given_to_decoder(attachment: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Get the decoder's arguments for a prompt, reduced by the attached reducer, which records the videos."""

    def record(decoder: Any, args: Any, arguments: dict[str, Any]) -> None:
        attachment.input.after_decoder(decoder, args, arguments, {})

    return decoder_arguments(attachment.model, inputs, record)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], Row]:
    """Read the tensors of one features file, and its row. Raises `VidsieveError` as `read_row` does."""
    row = read_row(path)  # first, for its error messages
    return require("safetensors.torch", "hf").load_file(path), row


def read_row(path: str | os.PathLike[str]) -> Row:
    """Read the row of one features file, not its tensors. Raises `VidsieveError` if it is missing or damaged."""
    safetensors = require("safetensors", "hf")
    if not Path(path).is_file():
        raise VidsieveError(
            f"{path}: {'is a folder' if Path(path).exists() else 'no such file'}; expected one features file"
        )
    try:
        with safetensors.safe_open(path, "pt") as file:
            return dict(json.loads(file.metadata()["vidsieve"]))
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise VidsieveError(
            f"{path}: is damaged, or vidsieve did not write it ({error}); move it away, and its clip is encoded again"
        ) from error


def schema() -> Any:
    """Make the pyarrow schema of a row. docs/batch.md explains the columns."""
    arrow = require("pyarrow", "ray")
    numbers, text, integer, number = arrow.list_(arrow.int32()), arrow.string(), arrow.int64(), arrow.float64()
    return arrow.schema(
        {
            "clip": text,
            "question": text,
            "error": text,
            "file": text,
            "tokens_before": integer,
            "tokens_after": integer,
            "kept": numbers,
            "tokens": numbers,
            "grid": numbers,
            "frames": numbers,
            "seconds": arrow.list_(number),
            "fps": number,
            "total": integer,
            "duration": number,
        }
    )
