"""Encode a video in one piece: any method before the language model, all pixels in memory at once."""

from typing import Any

import torch

from vidsieve.encoded.chunks import by_frame
from vidsieve.encoded.fingerprint import Fingerprint
from vidsieve.encoded.until_decoder import reduced_arguments
from vidsieve.encoded.video import EncodedVideo
from vidsieve.engines.hf import attach
from vidsieve.engines.hf.arguments import unwrap_model
from vidsieve.engines.hf.loading import prepare
from vidsieve.errors import UnsupportedCall, VidsieveError
from vidsieve.methods.base import Attachable
from vidsieve.methods.compose import Pixels, Staged
from vidsieve.types.frames import Frames
from vidsieve.types.selection import Selection

_QUESTION = "What happens in this video?"


@torch.no_grad()
def encode_frames(
    model: Any, processor: Any, frames: Frames, reducer: Attachable, question: str = _QUESTION
) -> EncodedVideo:
    """Encode `frames` by the model's tower, with what `reducer` keeps of them, onto the CPU.

    question: for a method that looks at one.
    `at` refuses the result, for a reduction does not say in which order its tokens were picked.
    Raises `VidsieveError` if the prompt has no video token, `UnsupportedCall` for what does not reduce before the
    language model, `UnsupportedModel` for a family that does not answer from stored rows.
    """
    if isinstance(reducer, Staged) and [place for place in reducer.stages if not isinstance(place, Pixels)] != [0]:
        raise UnsupportedCall(
            f"what is stored is what the language model would be given, and {reducer!r} does not reduce that; "
            "expected a reducer, or stages at Pixels() and 0"
        )
    adapter, _ = by_frame(unwrap_model(model), processor)
    inputs = prepare(processor, frames, question).to(model.device, model.dtype)
    with (attachment := attach(model, reducer)) as trace:
        given = reduced_arguments(attachment, inputs)
    if not trace.videos:
        raise VidsieveError(f"{type(model).__name__} was shown no video token; nothing could be reduced")
    video, ids = trace.videos[0], inputs["input_ids"][0].cpu()  # (L,)
    kept = video.reduction.kept.cpu()  # (K,)
    stays = torch.ones(len(ids), dtype=torch.bool)
    stays[video.at] = False
    stays[video.at[kept]] = True
    visual = (ids[stays] == attachment.target.token).nonzero().flatten()  # (K + t,)
    embeds = given["inputs_embeds"][0]  # (M, D)
    features = embeds[visual.to(embeds.device)].cpu()
    count = len(kept)
    selection = Selection(
        kept=kept,
        features=features[:count],
        others={name: torch.stack([x.cpu() for x in given[name]]) for name in adapter.per_visual if given.get(name)},
        step=torch.full((count,), -1, dtype=torch.int32),
        segment=torch.zeros(count, dtype=torch.int32),
        lengths=torch.tensor([video.before]),
    )
    fingerprint = Fingerprint.of(unwrap_model(model), count / video.before, repr(reducer))
    return EncodedVideo(frames, selection, features[count:], video.frames, video.grid, fingerprint)
