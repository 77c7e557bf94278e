"""Make the prompts of encoded videos: the processor's own, less the placeholders of dropped tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from vidsieve.engines.hf import adapter_for
from vidsieve.engines.hf.arguments import unwrap_model
from vidsieve.engines.hf.intercept import Interceptions
from vidsieve.engines.hf.loading import prepare_turns
from vidsieve.errors import UnsupportedCall
from vidsieve.types.frames import Frames

Inputs = dict[str, Tensor]


def prompts(
    model: Any, processor: Any, videos: Sequence[Frames], stays: Tensor, conversations: Sequence[Sequence[str]]
) -> Inputs:
    """Make `input_ids`, `attention_mask` (B, M) and `position_ids` (B, M) or (R, B, M), padded on the left.

    videos: on meta, as the processor has them all before the first question.  stays: bool (N,), which visual tokens of
    the unreduced prompt are left.  conversations: B, of question, answer, question, ..., question each.
    Raises `UnsupportedCall` if the processor makes another number of visual tokens of the videos than N.
    """
    model = unwrap_model(model)
    rows = [_prompt(model, processor, videos, stays, turns) for turns in conversations]
    longest = max(row["input_ids"].shape[-1] for row in rows)
    fill = {"input_ids": _padding(model, processor)}

    def padded(name: str, row: Inputs) -> Tensor:
        return pad(row[name], (longest - row[name].shape[-1], 0), value=fill.get(name, 0))

    return {name: torch.cat([padded(name, row) for row in rows], -2).to(model.device) for name in rows[0]}


@torch.no_grad()
def _prompt(model: Any, processor: Any, videos: Sequence[Frames], stays: Tensor, turns: Sequence[str]) -> Inputs:
    """Make the arguments of one prompt, (1, M) or (R, 1, M), on the CPU."""
    given = prepare_turns(processor, videos, turns)
    given = {name: x for name, x in given.items() if not (isinstance(x, Tensor) and x.is_meta)}
    ids = given.pop("input_ids")  # (1, L)
    token = getattr(model.config, adapter_for(model).token)
    visual = (ids[0] == token).nonzero().flatten()
    if len(visual) != len(stays):
        raise UnsupportedCall(
            f"{type(processor).__name__} makes {len(visual)} visual tokens of {_named(videos)}, which was encoded as "
            f"{len(stays)}; use the processor, and its settings, that it was encoded with, or encode it again"
        )
    left = torch.ones(ids.shape[1], dtype=torch.bool)
    left[visual] = stays
    mask = given.setdefault("attention_mask", torch.ones_like(ids))
    positions = _positions(model, ids, given)[..., left]
    if positions.ndim == 3 and len(positions) == 4:  # row 0 counts tokens: a gap in it would begin another sequence
        positions = torch.cat([torch.arange(positions.shape[-1]).expand_as(positions[:1]), positions[1:]])
    return {"input_ids": ids[:, left], "attention_mask": mask[:, left], "position_ids": positions}


def _positions(model: Any, ids: Tensor, given: dict[str, Any]) -> Tensor:
    """Ask the model for the positions of an unreduced prompt, (1, L) or (R, 1, L), and leave it as it was."""
    body = model.base_model
    with Interceptions() as before:
        if "rope_deltas" in body.__dict__:
            before.put(body, "rope_deltas", body.rope_deltas)
        # Of the class: the instance may be hooked, to refuse prompts without positions.
        positions: Tensor = type(model)._prepare_position_ids_for_generation(model, ids, given)
    return positions


def _padding(model: Any, processor: Any) -> int:
    """Choose the id to pad with: any will do that is no placeholder."""
    for owner in (processor.tokenizer, model.generation_config):
        for name in ("pad_token_id", "eos_token_id"):
            if isinstance(found := getattr(owner, name, None), int):
                return found
    return 0


def _named(videos: Sequence[Frames]) -> str:
    return " and ".join(frames.source or "the video" for frames in videos)
