"""The ground truth: no hooks, no cache, nothing of vidsieve.engines.hf.

One unpadded prompt's embeddings are merged with its video features by hand, its positions are asked of the model, the
dropped tokens are deleted, and the answer is decoded by plain passes of the decoder over the whole sequence.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.engines.hf import tiny
from vidsieve.methods.base import Reducer
from vidsieve.types.tokens import Prompt, Provenance, VideoTokens


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
                    stream[at[kept]] = old[reduction.assigned_to == row].mean(0)
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


@dataclass
class Decision:
    """One stage by hand: which of its video tokens stay, what was folded into which, and with what weights."""

    at: Tensor
    kept: Tensor
    source: Tensor
    weight: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """`x` (L, D) with the means written and the dropped rows deleted; what follows `at` may be longer by now."""
        x, old = x.clone(), x[self.at]
        for row, kept in enumerate(self.kept.tolist()):
            members = self.source == row
            if members.sum() > 1:
                w = self.weight[members, None]
                x[self.at[kept]] = (old[members] * w).sum(0) / w.sum()
        return x[self.stays(len(x))]

    def stays(self, length: int) -> Tensor:
        stays = torch.ones(length, dtype=torch.bool)
        stays[self.at] = False
        stays[self.at[self.kept]] = True
        return stays


@torch.no_grad()
def staged(
    family: str,
    inputs: tiny.Inputs,
    stages: dict[int, Reducer],
    steps: int,
    question: int,
    frames: int = 4,
    said: list[int] | None = None,
) -> tuple[list[int], Tensor, list[int]]:
    """The greedy answer to one prompt, its logits (steps, V), and how many tokens each layer saw of the prompt.

    Each layer is called by itself, on hidden states that are sliced between layers; without a cache, with a full causal
    mask, and with eager attention, whose weights the stages read. The question is the last `question` tokens, after
    which the prompt may go on with what was `said` since.
    """
    model = tiny.model(family, "eager")
    merged, decisions, seen, answer, rows = merge(model, inputs), {}, [], [], []
    _layers(model, merged, stages, decisions, question, frames, seen)
    merged = append(model, merged, said) if said else merged
    for _ in range(steps):
        hidden = _layers(model, merged, stages, decisions, question, frames, seen)
        rows.append(model.lm_head(model.get_decoder().norm(hidden[-1:]))[0])
        answer.append(int(rows[-1].argmax()))
        merged = append(model, merged, answer[-1:])
    return answer, torch.stack(rows), seen[: len(model.get_decoder().layers)]


def _layers(
    model: Any,
    merged: Merged,
    stages: dict[int, Reducer],
    decisions: dict[int, Decision],
    question: int,
    frames: int,
    seen: list[int],
) -> Tensor:
    decoder = model.get_decoder()
    hidden, deepstack = merged.embeddings, list(merged.deepstack)
    cos, sin = (x.squeeze(-3) for x in decoder.rotary_emb(hidden[None], merged.positions[..., None, :]))
    video, visual, place = merged.video, merged.visual, torch.arange(len(hidden))
    at = video.nonzero()[:, 0]
    whole = VideoTokens(hidden[at], (len(at) // frames,) * frames)
    left, attention = whole, None
    for i, layer in enumerate(decoder.layers):
        if i in stages:
            if i not in decisions:
                at = video.nonzero()[:, 0]
                attended = None
                if attention is not None:
                    attended = {"last": attention[:, -1:], "question": attention[:, -question:]}
                    attended = {kind: rows.mean((0, 1))[at] for kind, rows in attended.items()}
                if i:
                    kept, count = torch.arange(len(whole)), torch.ones(len(whole), dtype=torch.long)
                    origin = left.provenance or Provenance(whole, kept, lambda count=count: count)
                    left = VideoTokens.left_of(origin, hidden[at], attended)
                reduction = stages[i].reduce(left, Prompt(hidden[-question:]))
                weight = torch.ones(len(left)) if left.multiplicity is None else left.multiplicity.float()
                decisions[i] = Decision(at, reduction.kept, reduction.assigned_to, weight)
                left = left.reduced(reduction)
            decision = decisions[i]
            stays = decision.stays(len(hidden))
            hidden, deepstack = decision.apply(hidden), [decision.apply(x) for x in deepstack]
            cos, sin = (x[..., stays, :] for x in (cos, sin))
            video, visual, place = (x[stays] for x in (video, visual, place))
        seen.append(len(hidden))
        length = len(hidden)
        mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
        given = {"attention_mask": mask, "position_embeddings": (cos.unsqueeze(-3), sin.unsqueeze(-3))}
        attention = layer.self_attn(hidden_states=layer.input_layernorm(hidden[None]), **given)[1][0]  # (H, L, L)
        hidden = layer(hidden[None], **given)[0]
        if i < len(deepstack):
            hidden = torch.where(visual[:, None], hidden + deepstack[i], hidden)
    return hidden
