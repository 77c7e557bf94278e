"""Encode a video in one piece: any method before the language model, all pixels in memory at once."""

from typing import Any

import torch

from vidsieve.encoded import stored
from vidsieve.encoded.chunks import by_frame
from vidsieve.encoded.fingerprint import Fingerprint
from vidsieve.encoded.video import EncodedVideo
from vidsieve.engines.hf import adapter_for
from vidsieve.engines.hf.arguments import unwrap_model
from vidsieve.methods.base import Attachable
from vidsieve.types.frames import Frames
from vidsieve.types.selection import Selection

_QUESTION = "What happens in this video?"


def encode_frames(
    model: Any, processor: Any, frames: Frames, reducer: Attachable, question: str = _QUESTION
) -> EncodedVideo:
    """Encode `frames` by the model's tower, with what `reducer` keeps of them, onto the CPU.

    question: for a method that looks at one.
    `at` refuses the result, for a reduction does not say in which order its tokens were picked.
    Raises what `stored.encode` raises, `UnsupportedModel` for a family that does not answer from stored rows.
    """
    by_frame(unwrap_model(model), processor)
    tensors, row = stored.encode(processor, model, reducer, frames, question)
    kept = tensors["kept"]
    features = tensors["features"]  # (K + t, D)
    count, others = len(kept), {name: tensors[name] for name in adapter_for(model).per_visual if name in tensors}
    selection = Selection(
        kept=kept,
        features=features[:count],
        others=others,
        step=torch.full((count,), -1, dtype=torch.int32),
        segment=torch.zeros(count, dtype=torch.int32),
        lengths=torch.tensor([row["tokens_before"]]),
    )
    keep = count / row["tokens_before"]
    return EncodedVideo(
        frames,
        selection,
        features[count:],
        tuple(row["tokens"]),
        tuple(row["grid"]) if row["grid"] else None,
        Fingerprint.of(unwrap_model(model), keep, repr(reducer)),
    )
