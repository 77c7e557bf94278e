"""The ground truth: no hooks, no cache, nothing of vidsieve.models.

One unpadded prompt's embeddings are merged with its video features by hand, its positions are asked of the model, the
dropped tokens are deleted, and the answer is decoded by plain passes of the decoder over the whole sequence.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.models import tiny
from vidsieve.reducer import Reducer
from vidsieve.tokens import Prompt, VideoTokens


@dataclass
class Merged:
    """What the decoder would get: embeddings (L, D), positions (3, L) or (L,), deepstack (L, D) each, video (L,)."""

    embeddings: Tensor
    positions: Tensor
    visual: Tensor
    deepstack: list[Tensor]
    video: Tensor

    def keep(self, stays: Tensor) -> "Merged":
        return Merged(
            self.embeddings[stays],
            self.positions[..., stays],
            self.visual[stays],
            [rows[stays] for rows in self.deepstack],
            self.video[stays],
        )


def _flat(features: Any) -> Tensor:
    return features if isinstance(features, Tensor) else torch.cat(list(features))


@torch.no_grad()
def merge(model: Any, inputs: tiny.Inputs) -> Merged:
    """For qwen2_vl, qwen2_5_vl, qwen3_vl, llava_onevision and internvl."""
    family, body, ids = model.config.model_type, model.base_model, inputs["input_ids"]
    embeddings = model.get_input_embeddings()(ids[0]).clone()  # (L, D)
    positions = torch.arange(ids.shape[1])
    visual = (ids[0] == tiny.VIDEO) | (ids[0] == tiny.IMAGE)
    deepstack: list[Tensor] = []
    if family.startswith("qwen"):
        for token, pixels, grid, features in (
            (tiny.IMAGE, "pixel_values", "image_grid_thw", body.get_image_features),
            (tiny.VIDEO, "pixel_values_videos", "video_grid_thw", body.get_video_features),
        ):
            if pixels not in inputs:
                continue
            seen = features(inputs[pixels], inputs[grid], return_dict=True)
            embeddings[ids[0] == token] = _flat(seen.pooler_output)
            for layer, rows in enumerate(getattr(seen, "deepstack_features", None) or ()):
                if layer == len(deepstack):
                    deepstack.append(torch.zeros_like(embeddings))
                deepstack[layer][ids[0] == token] = _flat(rows)
        grids = {
            name: inputs[name] for name in ("image_grid_thw", "video_grid_thw", "second_per_grid_ts") if name in inputs
        }
        positions = body.get_rope_index(ids, mm_token_type_ids=inputs["mm_token_type_ids"], **grids)[0][:, 0]
    elif family == "llava_onevision":
        seen = body.get_video_features(
            inputs["pixel_values_videos"],
            vision_feature_layer=model.config.vision_feature_layer,
            vision_feature_select_strategy=model.config.vision_feature_select_strategy,
            return_dict=True,
        ).pooler_output  # (videos, N, D), with the newline in transformers >= 5.18
        if seen.shape[0] * seen.shape[1] < visual.sum():
            seen = torch.cat([seen, body.image_newline.expand(len(seen), 1, -1)], 1)
        embeddings[visual] = seen.flatten(0, 1)
    elif family == "internvl":
        embeddings[visual] = body.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output.flatten(
            0, 1
        )
    return Merged(embeddings, positions, visual, deepstack, tiny.is_video(family, ids)[0])


@torch.no_grad()
def reduce(model: Any, inputs: tiny.Inputs, reducer: Reducer, videos: int = 1, question: int | None = None) -> Merged:
    """`inputs` merged, and each of its equally long videos reduced; the question is the last `question` tokens."""
    merged = merge(model, inputs)
    prompt = Prompt(merged.embeddings[-question:]) if question else None
    stays = torch.ones_like(merged.video)
    for at in merged.video.nonzero().flatten().chunk(videos):
        reduction = reducer.reduce(VideoTokens(merged.embeddings[at], (len(at),)), prompt)
        stays[at] = False
        stays[at[reduction.kept]] = True
        if reduction.merges:
            for stream in (merged.embeddings, *merged.deepstack):
                old = stream[at].clone()
                for row, kept in enumerate(reduction.kept.tolist()):
                    stream[at[kept]] = old[reduction.source == row].mean(0)
    return merged.keep(stays)


@torch.no_grad()
def decode(model: Any, merged: Merged, steps: int) -> tuple[list[int], Tensor]:
    """The greedy answer, and the logits (steps, V) of every step."""
    tokens, rows = [], []
    for _ in range(steps):
        extra = {}
        if merged.deepstack:
            stacked = [rows[merged.visual] for rows in merged.deepstack]
            extra = {"visual_pos_masks": merged.visual[None], "deepstack_visual_embeds": stacked}
        hidden = model.get_decoder()(
            inputs_embeds=merged.embeddings[None],
            position_ids=merged.positions[..., None, :],
            attention_mask=torch.ones(1, len(merged.embeddings), dtype=torch.long),
            use_cache=False,
            **extra,
        ).last_hidden_state
        rows.append(model.lm_head(hidden[0, -1]))
        tokens.append(int(rows[-1].argmax()))
        merged = append(model, merged, tokens[-1:])
    return tokens, torch.stack(rows)


def append(model: Any, merged: Merged, tokens: list[int]) -> Merged:
    """`merged` followed by text; positions go on from its last."""
    new = model.get_input_embeddings()(torch.tensor(tokens))
    steps = merged.positions[..., -1:] + 1 + torch.arange(len(tokens))
    none = torch.zeros(len(tokens), dtype=torch.bool)
    return Merged(
        torch.cat([merged.embeddings, new]),
        torch.cat([merged.positions, steps], -1),
        torch.cat([merged.visual, none]),
        [torch.cat([rows, torch.zeros_like(new)]) for rows in merged.deepstack],
        torch.cat([merged.video, none]),
    )
