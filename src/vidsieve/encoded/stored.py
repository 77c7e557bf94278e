"""Read what `vidsieve batch` stored before it stored encoded videos: the reduced prompt of a clip and its question.

tensors, row = read("features/clip-0123456789abcdef.safetensors")
model.generate(**restore(model, tensors), max_new_tokens=32)            # without the video or a vision tower

With K kept tokens, V visual ones, M tokens in the prompt and D features, `tensors` has features (V, D); kept int64
(K,), indices among the video's N tokens; place int64 (V,), of each visual token among the M; ids int64 (M,); end, index
among the M of the text after the video; position_ids (M,) or (R, M); and what else the decoder takes, by the names of
its arguments: (M,) per token, (layers, V, D) per visual token (Qwen3-VL's deepstack, which `generate` cannot pass on:
call `model.get_decoder()(**restore(model, tensors))` there).
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidsieve.checks import describe, require
from vidsieve.engines.hf import adapter_for
from vidsieve.errors import VidsieveError, WrongArgument

Row = dict[str, Any]


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
    per_token = {name: tensors[name] for name in adapter.per_token if name in tensors}  # (M,)
    ids, positions = tensors["ids"], tensors["position_ids"]
    if tail is not None:
        end, count = int(tensors["end"]), len(tail)
        ids = torch.cat([ids[:end], tail])
        positions = torch.cat([positions[..., :end], positions[..., end : end + 1] + torch.arange(count)], -1)
        per_token = {name: torch.cat([x[:end], x.new_zeros(count)]) for name, x in per_token.items()}
    embedding = model.get_input_embeddings()
    embeds = embedding(ids.to(embedding.weight.device))  # (M, D)
    device = embeds.device
    embeds[tensors["place"].to(device)] = tensors["features"].to(embeds)
    return {
        "inputs_embeds": embeds[None],
        "position_ids": positions[..., None, :].to(device),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long, device=device),
        **{name: x[None].to(device) for name, x in per_token.items()},
        **{name: list(tensors[name].to(embeds)) for name in adapter.per_visual if name in tensors},
    }


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
            f"{path}: is damaged, or vidsieve did not write it ({error}); encode its clip again, into another folder"
        ) from error
