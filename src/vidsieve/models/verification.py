"""A self-test for a user's own model: reduced by hooks, against reduced by hand.

By hand: one hook-free pass is watched to learn what the decoder is given; the dropped tokens are deleted from that, and
the answer is decoded by plain, cache-free passes over the whole sequence. Whatever the hooks, masks, positions and
caches do has to come out the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vidsieve.models.seam_input import attach
from vidsieve.models.trace import Trace, VideoRecord
from vidsieve.reducer import Reducer


@dataclass(frozen=True, eq=False)
class Verification:
    """What `verify` found.

    rows: prompts.  steps: tokens generated for each.  same: how many of the rows * steps tokens agree.
    difference: the largest of any logit.  tolerance: the largest allowed.  trace: of the reduced run.
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
    model: Any, inputs: Mapping[str, Any], reducer: Reducer, steps: int = 8, tolerance: float = 1e-4
) -> Verification:
    """Generate `steps` tokens from the processor's `inputs`, greedily, with `reducer` attached and by hand.

    The tolerance suits float32; half precision needs a few 1e-2. Raises what attaching or generating raises, and
    `ValueError` for a model in training mode or inputs in which no video was found.
    """
    if model.training:
        raise ValueError("expected a model in evaluation mode, call model.eval() first")
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
    given = _watch(model, inputs)
    same, difference = 0, 0.0
    for row in range(len(tokens)):
        videos = [video for video in trace.calls[0].videos if video.row == row]
        expected = _by_hand(model, given, inputs["attention_mask"][row], row, videos, tokens[row])  # (steps, V)
        difference = max(difference, float((expected - logits[row]).abs().max()))
        same += int((expected.argmax(-1) == logits[row].argmax(-1)).sum())
    return Verification(len(tokens), steps, same, difference, tolerance, trace)


def _watch(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What the decoder of the plain model is given for the whole prompt."""
    seen: list[dict[str, Any]] = []
    watching = model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(dict(kwargs)), with_kwargs=True
    )
    try:
        model.generate(**inputs, max_new_tokens=1, do_sample=False, num_beams=1)
    finally:
        watching.remove()
    return seen[0]


def _by_hand(
    model: Any, given: dict[str, Any], mask: Tensor, row: int, videos: list[VideoRecord], tokens: Tensor
) -> Tensor:
    """Logits (steps, V) of one prompt, unpadded and reduced by hand, continued by `tokens` (steps,)."""
    embeds = given["inputs_embeds"][row]  # (L, D)
    positions = given.get("position_ids")
    positions = torch.arange(len(embeds), device=embeds.device) if positions is None else positions
    if positions.ndim > 1:
        positions = positions[-3:] if positions.ndim == 3 else positions  # row 0 of four is no rotary position
        positions = positions[..., min(row, positions.shape[-2] - 1), :]  # (3, L) or (L,)
    visual, stacked = given.get("visual_pos_masks"), []
    if visual is not None:
        here = torch.zeros_like(visual)
        here[row] = visual[row]
        for rows in given["deepstack_visual_embeds"]:
            full = embeds.new_zeros(len(embeds), rows.shape[-1])  # (L, D)
            full[visual[row]] = rows[here[visual]].to(full)
            stacked.append(full)

    keep = mask.to(embeds.device).bool().clone()  # (L,)
    streams = [embeds.clone(), *stacked]
    for video in videos:
        at, kept = video.at.to(embeds.device), video.reduction.kept
        for stream in streams:
            stream[at[kept]] = video.reduction.apply(stream[at])
        keep[at] = False
        keep[at[kept]] = True
    embeds, *stacked = [stream[keep] for stream in streams]  # (M, D)
    positions = positions[..., keep]
    visual = visual[row, keep] if visual is not None else None

    rows = []
    for token in tokens:
        extra: dict[str, Any] = {}
        if visual is not None:
            padded = torch.cat([visual, visual.new_zeros(len(embeds) - len(visual))])
            extra = {"visual_pos_masks": padded[None], "deepstack_visual_embeds": [s[visual] for s in stacked]}
        hidden = model.get_decoder()(
            inputs_embeds=embeds[None],
            position_ids=positions[..., None, :],
            attention_mask=torch.ones(1, len(embeds), dtype=torch.long, device=embeds.device),
            use_cache=False,
            **extra,
        ).last_hidden_state
        rows.append(model.get_output_embeddings()(hidden[0, -1]))
        embeds = torch.cat([embeds, model.get_input_embeddings()(token[None])])
        positions = torch.cat([positions, positions[..., -1:] + 1], -1)
    return torch.stack(rows)
