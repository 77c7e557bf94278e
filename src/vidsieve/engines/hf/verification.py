"""Verify a model of the user: compare reduction by hooks with reduction by hand.

By hand: one pass without a reducer records the arguments of the decoder, the dropped tokens are deleted from these, and
the answer is decoded without hooks and cache, by passes over the complete sequence. For stages inside the model each
layer is called separately, and its hidden states are sliced before the next. Tokens and logits must be equal.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask

from vidsieve.checks import describe
from vidsieve.engines.hf import arguments
from vidsieve.engines.hf.attach import attach
from vidsieve.engines.hf.families import adapter_for
from vidsieve.engines.hf.intercept import Interceptions
from vidsieve.engines.hf.seams.masks import layer_type
from vidsieve.errors import WrongArgument
from vidsieve.methods.base import Attachable
from vidsieve.methods.compose import Pixels, Staged
from vidsieve.methods.pixels import PixelSelector
from vidsieve.telemetry.trace import Trace, VideoRecord
from vidsieve.types.reduction import Reduction


@dataclass(frozen=True, eq=False)
class Verification:
    """The result of `verify`.

    rows: prompts.  steps: tokens generated for each.  same: how many of the rows * steps tokens agree.
    difference: the largest difference of a logit.  tolerance: the largest allowed.  trace: of the reduced run.
    """

    rows: int
    steps: int
    same: int
    difference: float
    tolerance: float
    trace: Trace

    @property
    def ok(self) -> bool:
        return self.same == self.rows * self.steps and self.difference <= self.tolerance

    def __bool__(self) -> bool:
        return self.ok

    def __repr__(self) -> str:
        return (
            f"<Verification {'ok' if self.ok else 'FAILED'}: {self.same} of {self.rows * self.steps} tokens equal, "
            f"largest logit difference {self.difference:.1e} (allowed {self.tolerance:.0e}); {self.trace!r}>"
        )


@torch.no_grad()
def verify(
    model: Any, inputs: Mapping[str, Any], reducer: Attachable, steps: int = 8, tolerance: float = 1e-4
) -> Verification:
    """Generate `steps` tokens from the processor's `inputs`, greedily, with `reducer` attached and by hand.

    What a selector before the vision tower leaves out is left out by hand too: it decides what the features are.

    The tolerance suits float32; half precision needs a few 1e-2. Raises what attaching or generating raises, and
    `ValueError` for a model in training mode, for padding on the right, or for inputs in which no video was found.
    """
    adapter_for(arguments.unwrap_model(model))
    if not isinstance(inputs, Mapping):
        raise WrongArgument(f"expected inputs as the processor gives them, {{name: tensor}}, got {describe(inputs)}")
    if missing := [name for name in ("input_ids", "attention_mask") if name not in inputs]:
        raise WrongArgument(f"expected inputs as the processor gives them; they have no {', '.join(missing)}")
    if model.training:
        raise ValueError("expected a model in evaluation mode, call model.eval() first")
    if not inputs["attention_mask"][:, -1].all():
        raise ValueError("expected prompts that are padded on the left, as generate does, got padding on the right")
    method = arguments.method(reducer)
    pixels = method.pixels if isinstance(method, Staged) else None
    if isinstance(method, Staged) and method.after_pixels is None:
        raise ValueError(f"expected a reducer, got {reducer!r}, which drops no token: there is nothing to verify")
    with attach(model, reducer) as trace:
        answer = model.generate(
            **inputs,
            max_new_tokens=steps,
            min_new_tokens=steps,
            do_sample=False,
            num_beams=1,
            return_dict_in_generate=True,
            output_logits=True,
        )
    if not trace.videos:
        raise ValueError("found no video in the inputs, so there is nothing to verify")
    logits = torch.stack(answer.logits, 1)  # (B, steps, V)
    tokens = answer.sequences[:, -steps:]  # (B, steps)
    given, merged = _watch(model, inputs, pixels)
    same, difference = 0, 0.0
    for row in range(len(tokens)):
        videos = [video for video in trace.calls[0].videos if video.row == row]
        expected = _by_hand(model, given, merged, inputs["attention_mask"][row], row, videos, tokens[row])  # (steps, V)
        difference = max(difference, float((expected - logits[row]).abs().max()))
        same += int((expected.argmax(-1) == logits[row].argmax(-1)).sum())
    return Verification(len(tokens), steps, same, difference, tolerance, trace)


def _watch(model: Any, inputs: Mapping[str, Any], pixels: PixelSelector | None) -> tuple[dict[str, Any], Any]:
    """Record the arguments of the decoder for the unreduced prompt, of the groups that `pixels` lets the tower see.

    Returned with the output of the body. Where that makes the masks, the kinds of tokens that it got are among them.
    """
    seen: list[dict[str, Any]] = []
    outputs: list[Any] = []
    kinds = adapter_for(model).mask_kinds
    with Interceptions() as hooks:
        if pixels is not None:
            hooks.enter_context(attach(model, Staged({Pixels(): pixels})))
        if kinds is not None:
            hooks.before(model.base_model, lambda module, args, kwargs: seen.append({kinds: kwargs.get(kinds)}))
        hooks.before(model.get_decoder(), lambda module, args, kwargs: seen.append(dict(kwargs)))
        hooks.after(model.base_model, lambda module, args, kwargs, output: outputs.append(output))
        model.generate(**inputs, max_new_tokens=1, do_sample=False, num_beams=1)
    return seen[0] if kinds is None else seen[0] | seen[1], outputs[0]


def _by_hand(
    model: Any, given: dict[str, Any], merged: Any, mask: Tensor, row: int, videos: list[VideoRecord], tokens: Tensor
) -> Tensor:
    """Compute the logits (steps, V) of one prompt, unpadded and reduced by hand, continued by `tokens` (steps,)."""
    embeds = given["inputs_embeds"][row]  # (L, D)
    adapter, positions = adapter_for(model), given.get("position_ids")
    positions = torch.arange(len(embeds), device=embeds.device) if positions is None else positions
    if positions.ndim > 1:
        positions = positions[-3:] if positions.ndim == 3 else positions  # row 0 of four is no rotary position
        positions = positions[..., min(row, positions.shape[-2] - 1), :]  # (3, L) or (L,)
    visual, stacked = given.get("visual_pos_masks"), _deepstack(given, embeds, row)
    others = {  # (L,) or (L, ...)
        name: given[name][row]
        for name in (*adapter.per_token, *([adapter.mask_kinds] if adapter.mask_kinds else []))
        if name != "visual_pos_masks" and given.get(name) is not None
    }
    not_padding = mask.to(embeds.device).bool()  # (L,)
    clips = [_Clip(not_padding[: int(video.at[-1]) + 1].cumsum(0)[video.at.to(embeds.device)] - 1) for video in videos]
    embeds, *stacked = [stream[not_padding] for stream in (embeds, *stacked)]
    positions = positions[..., not_padding]
    others = {name: x[not_padding] for name, x in others.items()}
    end = positions[..., -1:]  # which the answer goes on from, also where that token is dropped
    visual = visual[row, not_padding] if visual is not None else None
    stages: dict[int, list[Reduction]] = {}
    for video in videos:
        for stage in video.stages:
            stages.setdefault(stage.layer, []).append(stage.reduction)
    if first := stages.pop(0, None):
        stays, (embeds, *stacked) = _reduce(clips, first, [embeds, *stacked])
        positions = positions[..., stays]
        others = {name: x[stays] for name, x in others.items()}
        visual = visual[stays] if visual is not None else None

    rows = []
    for step, token in enumerate(tokens, 1):
        if visual is not None:
            visual = torch.cat([visual, visual.new_zeros(len(embeds) - len(visual))])
        if stages:
            hidden = _through_layers(model.get_decoder(), embeds, positions, visual, stacked, stages, clips)
        else:
            extra: dict[str, Any] = {name: x[None] for name, x in others.items()}
            if visual is not None:
                extra |= {"visual_pos_masks": visual[None], "deepstack_visual_embeds": [s[visual] for s in stacked]}
            # A body that makes the masks makes them of merged embeddings too.
            module = model.get_decoder() if adapter.mask_kinds is None else model.base_model
            hidden = module(
                inputs_embeds=embeds[None],
                position_ids=positions[..., None, :],
                attention_mask=torch.ones(1, len(embeds), dtype=torch.long, device=embeds.device),
                use_cache=False,
                **extra,
            ).last_hidden_state[0]
        rows.append(_head(model, merged, hidden[-1]))
        embeds = torch.cat([embeds, model.get_input_embeddings()(token[None])])
        stacked = [torch.cat([stream, torch.zeros_like(embeds[:1])]) for stream in stacked]
        positions = torch.cat([positions, end + step], -1)
        others = {name: torch.cat([x, _of_answer(model, name, token)[None].to(x)]) for name, x in others.items()}
    return torch.stack(rows)


def _of_answer(model: Any, name: str, token: Tensor) -> Tensor:
    """Make what an argument that follows the sequence has for a token of the answer: its id, its kind, or more."""
    if name == "per_layer_inputs":
        inputs: Tensor = model.get_decoder().get_per_layer_inputs(token[None, None], None)[0, 0]
        return inputs
    return token if name.endswith("input_ids") else torch.zeros_like(token)


def _deepstack(given: dict[str, Any], embeds: Tensor, row: int) -> list[Tensor]:
    """Spread the visual rows of later layers over a prompt: (L, D) for each of those layers."""
    visual, stacked = given.get("visual_pos_masks"), []
    if visual is not None:
        here = torch.zeros_like(visual)
        here[row] = visual[row]
        for rows in given["deepstack_visual_embeds"]:
            full = embeds.new_zeros(len(embeds), rows.shape[-1])
            full[visual[row]] = rows[here[visual]].to(full)
            stacked.append(full)
    return stacked


def _head(model: Any, merged: Any, hidden: Tensor) -> Tensor:
    """Compute the logits (V,) of `hidden` (D,) as the model does, which may scale or cap them.

    merged: an output of the body, in the form that the model expects.
    """
    if model.base_model is model:
        logits: Tensor = model.get_output_embeddings()(hidden)
        return logits
    given = type(merged)(**{**merged, "last_hidden_state": hidden[None, None]})
    with Interceptions() as hooks:
        hooks.put(model.base_model, "forward", lambda *args, **kwargs: given)
        logits = model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=hidden.device)).logits
    return logits[0, 0]


@dataclass
class _Clip:
    """The columns of the remaining tokens of one video, and how many original tokens each represents."""

    at: Tensor
    count: Tensor | None = None


def _reduce(clips: list[_Clip], reductions: list[Reduction], streams: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Reduce `streams` (L, D), update the columns in `clips`, and return which of the L tokens are kept: bool (L,)."""
    stays = torch.ones(len(streams[0]), dtype=torch.bool, device=streams[0].device)
    streams = [stream.clone() for stream in streams]
    for clip, reduction in zip(clips, reductions, strict=True):
        at = clip.at[reduction.kept]
        for stream in streams:
            stream[at] = reduction.apply(stream[clip.at], clip.count)
        stays[clip.at] = False
        stays[at] = True
        old = torch.ones_like(clip.at) if clip.count is None else clip.count
        folded = reduction.assigned_to >= 0
        clip.count = torch.zeros_like(at).index_add_(0, reduction.assigned_to[folded], old[folded])
        clip.at = at
    moved = stays.cumsum(0) - 1
    for clip in clips:
        clip.at = moved[clip.at]
    return stays, [stream[stays] for stream in streams]


def _through_layers(
    decoder: Any,
    embeds: Tensor,  # (L, D)
    positions: Tensor,  # (3, L) or (L,)
    visual: Tensor | None,  # (L,) bool
    stacked: list[Tensor],  # (L, D) each
    stages: dict[int, list[Reduction]],
    clips: list[_Clip],
) -> Tensor:
    """Compute the last hidden states (M, D) of one sequence, whose videos are reduced before the layers of `stages`."""
    clips, hidden = [replace(clip) for clip in clips], embeds
    rope = decoder.rotary_emb(embeds[None], positions[..., None, :])
    for i, layer in enumerate(decoder.layers):
        if i in stages:
            stays, (hidden, *stacked) = _reduce(clips, stages[i], [hidden, *stacked])
            rope = tuple(x[..., stays, :] for x in rope)
            visual = visual[stays] if visual is not None else None
        ones = torch.ones(1, len(hidden), dtype=torch.long, device=hidden.device)
        mask = None
        if layer_type(decoder.config, i) == "full_attention":
            mask = create_causal_mask(decoder.config, hidden[None], ones, None)
        hidden = layer(hidden[None], attention_mask=mask, position_embeddings=rope)[0]
        if visual is not None and i < len(stacked):
            hidden = torch.where(visual[:, None], hidden + stacked[i], hidden)
    out: Tensor = decoder.norm(hidden)
    return out
