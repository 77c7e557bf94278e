"""The ground truth of nearly every family: the whole model, given a prompt that was cut by hand.

No hooks, no cache, nothing of vidsieve.engines.hf. The tower computes the features of whole videos. Of what is dropped
these features, the placeholders, and what else has a value for each token are deleted, and the model's own forward
makes of the rest what it makes of every prompt: embeddings, masks, whatever its decoder takes. Each token of the answer
is a pass over all before it.
"""

import inspect
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engines.hf import newer, tiny
from vidsieve.methods.base import Reducer
from vidsieve.types.reduction import Reduction
from vidsieve.types.tokens import VideoTokens

RENAMED = {"second_per_grids": "video_second_per_grid"}  # an argument of get_rope_index: the same of the model
DESCRIBED = ("video_grid_thw", "video_merge_sizes", "target_sizes_videos")  # what a tower is told of its videos
# Families whose videos are encoded as images are, and the argument that has their pixels.
AS_IMAGES = {"smolvlm": "pixel_values", "internvl": "pixel_values", "perception_lm": "pixel_values_videos"}


@dataclass(frozen=True)
class CutPrompt:
    """One prompt without padding.

    inputs: arguments of the model, (1, L) if in `tiny.PER_TOKEN`.  positions: those of the whole prompt, (L,) or
    (3, L).  features: None without a video, or what the tower is to have made of its `pixels`.
    """

    inputs: tiny.Inputs
    positions: Tensor
    features: Any = None
    pixels: Tensor | None = None


@torch.no_grad()
def cut(family: str, inputs: tiny.Inputs, reducer: Reducer) -> CutPrompt:
    """Drop what `reducer` drops of each video of a prompt, and fold into one another what it folds."""
    body, ids = tiny.model(family).base_model, inputs["input_ids"]
    positions, pixels = _positions(body, inputs), inputs.get(AS_IMAGES.get(family, "pixel_values_videos"))
    if pixels is None:
        return CutPrompt(inputs, positions)
    encode = getattr(body, _encode(family))
    described = {name: inputs[name] for name in DESCRIBED if name in inputs}
    whole = encode(pixels, **described, return_dict=True)
    streams = [whole.pooler_output, *(getattr(whole, "deepstack_features", None) or ())]
    listed = [not isinstance(x, Tensor) for x in streams]  # one for each video
    streams = [torch.cat(list(x)) if several else x for x, several in zip(streams, listed, strict=True)]
    streams = [x.flatten(0, -2) for x in streams]  # (N, D) each
    placeholder = tiny.is_placeholder(family, ids)[0]
    patch = tiny.is_video(family, ids)[0, placeholder]  # (N,), false where a row of a frame ends, and on images
    stays = torch.ones_like(patch)
    for at in patch.nonzero()[:, 0].chunk(_videos(family, inputs)):
        reduction = reducer.reduce(VideoTokens(streams[0][at], (len(at),)))
        streams = [_folded(x, at, reduction) for x in streams]
        stays[at] = False
        stays[at[reduction.kept]] = True
    features, *deepstack = ([x[stays]] if several else x[stays] for x, several in zip(streams, listed, strict=True))
    left = ~placeholder
    left[placeholder] = stays
    if whole.pooler_output[0].ndim > 1 and not listed[0]:  # (videos or frames, n, D)
        features = features[None]
    whole.pooler_output = features
    if deepstack:
        whole.deepstack_features = deepstack
    cut_inputs = {name: x[:, left] if name in tiny.PER_TOKEN else x for name, x in inputs.items()}
    if "video_compression_mask" in inputs:  # of what the tower makes
        cut_inputs["video_compression_mask"] = inputs["video_compression_mask"][stays]
    return CutPrompt(cut_inputs, positions[..., left], whole, pixels)


def _encode(family: str) -> str:
    return "get_image_features" if family in AS_IMAGES else "get_video_features"


def _videos(family: str, inputs: tiny.Inputs) -> int:
    """Count the videos of a prompt: all its parts, or frames, are one where nothing tells them apart."""
    if family in ("smolvlm", "internvl") or newer.GRIDS.get(family, newer.Grid()).parts > 1:
        return 1
    if "target_sizes_videos" in inputs:
        return len(inputs["target_sizes_videos"]) // 4
    return len(inputs["video_grid_thw"] if "video_grid_thw" in inputs else inputs["pixel_values_videos"])


def _positions(body: Any, inputs: tiny.Inputs) -> Tensor:
    """Ask the model for the positions of a whole prompt: (3, L), or (L,) if it has one for each token."""
    places = torch.arange(inputs["input_ids"].shape[1])
    if not hasattr(body, "get_rope_index"):
        return places
    if "pixel_values_videos" not in inputs:
        return places.expand(3, -1)
    names = {name: RENAMED.get(name, name) for name in inspect.signature(body.get_rope_index).parameters}
    given = {name: inputs[ours] for name, ours in names.items() if ours in inputs}
    positions: Tensor = body.get_rope_index(**given)[0][:, 0]
    return positions


def _folded(x: Tensor, at: Tensor, reduction: Reduction) -> Tensor:
    """Write the means of what is folded together over the kept rows of a video, which is `at` in `x` (N, D)."""
    if reduction.merges:
        x, old = x.clone(), x[at]
        for row, kept in enumerate(reduction.kept.tolist()):
            x[at[kept]] = old[reduction.assigned_to == row].mean(0)
    return x


@torch.no_grad()
def logits(family: str, prompt: CutPrompt, answer: list[int]) -> Tensor:
    """Compute the logits (n, V) that each of the n tokens of an answer is chosen by."""
    model, rows = tiny.model(family), []
    body, name = model.base_model, _encode(family)
    encode = getattr(body, name)

    def encoded(*args: Any, **kwargs: Any) -> Any:
        given = [one.data_ptr() for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
        ours = prompt.pixels is not None and prompt.pixels.data_ptr() in given  # or they are of an image
        return prompt.features if ours else encode(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        if prompt.features is not None:
            patch.setattr(body, name, encoded)
            if hasattr(body, "inputs_merger"):  # SmolVLM before 5.18, which wants whole frames
                patch.setattr(body, "inputs_merger", _scattered)
        for step in range(len(answer)):
            said = followed(prompt, answer[:step])
            out = model(**said.inputs, position_ids=said.positions[..., None, :], use_cache=False)
            rows.append(out.logits[0, -1])
    return torch.stack(rows)


def _scattered(input_ids: Tensor, inputs_embeds: Tensor, image_hidden_states: Tensor) -> Tensor:
    return inputs_embeds.masked_scatter((input_ids == tiny.IMAGE)[..., None], image_hidden_states)


def followed(prompt: CutPrompt, answer: list[int]) -> CutPrompt:
    """Put an answer after a prompt: text, whose positions go on from the last."""
    ids = torch.tensor([answer], dtype=torch.long)
    more = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    kinds = torch.zeros_like(ids)
    inputs = {
        name: torch.cat([x, more.get(name, kinds)], 1) if name in tiny.PER_TOKEN else x
        for name, x in prompt.inputs.items()
    }
    positions = prompt.positions[..., -1:] + 1 + torch.arange(len(answer))
    return replace(prompt, inputs=inputs, positions=torch.cat([prompt.positions, positions], -1))
