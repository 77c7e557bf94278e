"""One clip as the decoder would receive it, reduced, as tensors to keep; and the way back. docs/batch.md.

tensors, row = encode(processor, model, reducer, frames, question)      # what vidsieve batch stores of a clip
model.generate(**restore(model, tensors), max_new_tokens=32)            # without the video or a vision tower
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidsieve.checks import describe, require
from vidsieve.engines.hf import adapter_for, attach
from vidsieve.engines.hf.intercept import Interceptions
from vidsieve.engines.hf.loading import prepare
from vidsieve.errors import VidsieveError, WrongArgument
from vidsieve.methods.base import Reducer
from vidsieve.types.frames import Frames

Row = dict[str, Any]


@torch.no_grad()
def encode(
    processor: Any, model: Any, reducer: Reducer, frames: Frames, question: str
) -> tuple[dict[str, Tensor], Row]:
    """The prompt of one video and one question as the decoder would receive it, reduced, and the video's layout.

    M tokens remain, V of them visual with D features: the K kept, and one more where a model ends a video with a token
    of its own. On CPU, features in the model's dtype:
      features (V, D).  kept int64 (K,), indices among the video's N tokens.  place int64 (V,), of each among the M.
      ids int64 (M,).  position_ids (M,) or (R, M), as the decoder wants them.
      end int64 (), where in M the text after the video begins.
      What else the decoder takes: (M,) for a token, (layers, V, D) for a visual token (Qwen3-VL's deepstack).
    """
    inputs = prepare(processor, frames, question).to(model.device, model.dtype)
    with (attachment := attach(model, reducer)) as trace:
        given = _given_to_decoder(attachment, inputs)
    if not trace.videos:
        raise VidsieveError(f"{type(model).__name__} was shown no video token; nothing could be reduced")
    video = trace.videos[0]
    kept = video.reduction.kept.cpu()  # (K,)
    ids = inputs["input_ids"][0].cpu()  # (L,)
    stays = torch.ones(len(ids), dtype=torch.bool)
    stays[video.at] = False
    stays[video.at[kept]] = True
    end = stays[: int((ids == attachment.target.token).nonzero()[-1]) + 1].sum()
    ids = ids[stays]  # (M,)
    place = (ids == attachment.target.token).nonzero().flatten()  # (V,)
    embeds = given["inputs_embeds"][0]  # (M, D)
    positions = given.get("position_ids")
    tensors = {
        "features": embeds[place.to(embeds.device)],
        "kept": kept,
        "place": place,
        "ids": ids,
        "end": end,
        "position_ids": torch.arange(len(ids)) if positions is None else positions[..., 0, :],
    }
    tensors |= {name: given[name][0] for name in attachment.target.adapter.per_token if given.get(name) is not None}
    for name in attachment.target.adapter.per_visual:
        if given.get(name) is not None:
            tensors[name] = torch.stack([rows.cpu() for rows in given[name]])
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, {
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
    """What `model.get_decoder()` takes for stored tensors. `model` needs its embeddings and no vision tower.

    tail: int64 (n,), token ids to follow the video in place of the stored ones: another question.
    """
    adapter = adapter_for(model)
    if not isinstance(tensors, Mapping):
        raise WrongArgument(f"expected stored tensors, got {describe(tensors)}; tensors, row = stored.read(file)")
    if tail is not None and not (isinstance(tail, Tensor) and tail.ndim == 1 and not tail.is_floating_point()):
        raise WrongArgument(
            f"expected tail as token ids, int64 (n,), got {describe(tail)}; text becomes them by "
            'processor.tokenizer(text, return_tensors="pt").input_ids[0]'
        )
    ids, place, positions = tensors["ids"], tensors["place"], tensors["position_ids"]
    per_token = {name: tensors[name] for name in adapter.per_token if name in tensors}
    if tail is not None:
        head = int(tensors["end"])
        following = positions[..., head : head + 1] + torch.arange(len(tail))
        ids, positions = torch.cat([ids[:head], tail]), torch.cat([positions[..., :head], following], -1)
        per_token = {name: torch.cat([x[:head], x.new_zeros(len(tail))]) for name, x in per_token.items()}
    embedding = model.get_input_embeddings()
    embeds = embedding(ids.to(embedding.weight.device))  # (M, D)
    device = embeds.device
    embeds[place.to(device)] = tensors["features"].to(embeds)
    return {
        "inputs_embeds": embeds[None],
        "position_ids": positions[..., None, :].to(device),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long, device=device),
        **{name: x[None].to(device) for name, x in per_token.items()},
        **{name: list(tensors[name].to(embeds)) for name in adapter.per_visual if name in tensors},
    }


class _Given(Exception):
    """Ends a forward pass once the decoder's arguments are known."""


def _given_to_decoder(attachment: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The decoder's arguments for a prompt, as the attached reducer leaves them. The decoder itself does not run."""
    given: dict[str, Any] = {}

    def stop(decoder: Any, args: tuple[Any, ...], arguments: dict[str, Any]) -> None:
        given.update(arguments)
        attachment.input.after_decoder(decoder, args, arguments, {})  # which records the videos
        raise _Given

    with suppress(_Given), Interceptions() as hooks:
        hooks.before(attachment.target.decoder, stop)  # after the attachment's own
        attachment.model(**inputs, use_cache=False)
    if given:
        return given
    raise VidsieveError(
        f"{type(attachment.model).__name__} answered without calling its decoder; nothing could be stored"
    )


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], Row]:
    """The tensors of one features file, and its row."""
    row = read_row(path)  # which says what is wrong
    return require("safetensors.torch", "hf").load_file(path), row


def read_row(path: str | os.PathLike[str]) -> Row:
    """The row of one features file; its tensors are not read. Raises `VidsieveError` for one that is not whole."""
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
    """The columns of a row, for pyarrow. docs/batch.md says what each is."""
    arrow = require("pyarrow", "ray")
    numbers, text, whole, real = arrow.list_(arrow.int32()), arrow.string(), arrow.int64(), arrow.float64()
    return arrow.schema(
        {
            "clip": text,
            "question": text,
            "error": text,
            "file": text,
            "tokens_before": whole,
            "tokens_after": whole,
            "kept": numbers,
            "tokens": numbers,
            "grid": numbers,
            "frames": numbers,
            "seconds": arrow.list_(real),
            "fps": real,
            "total": whole,
            "duration": real,
        }
    )
