"""Spare the host its waits around the vision tower, where transformers asks the device for numbers that are known.

A wait after the tower costs what the tower takes: until then the host could have launched most of the prefill. What
the host computes before the tower, the device waits for.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vidsieve.engines.hf import contract
from vidsieve.engines.hf.intercept import Interceptions
from vidsieve.ops.threads import alone

# What positions are counted from. Pixels may come too, and are left where they are.
_SMALL = {"input_ids", "mm_token_type_ids", "attention_mask", "image_grid_thw", "video_grid_thw", "second_per_grid_ts"}

GRIDS = 8  # whose positions are remembered


class NoWaits:
    """Wrappers on the body and the decoder of `model`, which compute the same with fewer waits."""

    def __init__(self, model: Any, hooks: Interceptions) -> None:
        hooks.wrap(model.base_model, "get_rope_index", _on_the_host)
        if _known_positions(model.base_model):
            hooks.wrap(model.base_model, "get_vision_position_ids", _Positions().moved)
        hooks.wrap(model, "_get_logits_processor", _of_no_prompt)
        decoder = model.get_decoder()
        if _known_deepstack(decoder):
            hooks.wrap(decoder, "_deepstack_process", _add_where_visual)


def _on_the_host(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Compute positions on the host: hundreds of small operations, some of which the host would wait for."""
    given = contract.by_name(inner, args, kwargs)
    ids = given.get("input_ids")
    if not isinstance(ids, Tensor) or ids.device.type == "cpu":
        return inner(**given)
    known = {name: x.cpu() for name, x in given.items() if name in _SMALL and isinstance(x, Tensor)}
    with alone():  # each is of little more numbers than torch makes alone
        found = inner(**{**given, **known})
    return tuple(x.to(ids.device, non_blocking=True) if isinstance(x, Tensor) else x for x in found)


def _known_positions(body: Any) -> bool:
    """Whether the body adds the position at which a video begins to those within it, as is known here."""
    positions = getattr(type(body), "get_vision_position_ids", None)
    names = ["self", "start_position", "grid_thw", "temp_merge_size", "spatial_merge_size", "time_interval", "device"]
    return positions is not None and list(inspect.signature(positions).parameters) == names


class _Positions:
    """The positions within the last grids, which are the same for every frame of a video that is spelled by frames."""

    def __init__(self) -> None:
        self._found: dict[tuple[Any, ...], Tensor] = {}

    def moved(
        self, inner: Callable[..., Tensor], start_position: int | Tensor, grid_thw: Any, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Compute positions (3, N) of a grid, from those of the same grid at 0 where it came before."""
        rest = *args, *kwargs.items()
        if (
            torch.compiler.is_compiling()
            or type(grid_thw) is not Tensor
            or grid_thw.is_cuda
            or any(isinstance(x, Tensor) for x in (*args, *kwargs.values()))
        ):
            return inner(start_position, grid_thw, *args, **kwargs)
        key = *grid_thw.tolist(), *rest
        found = self._found.get(key)
        if found is None:
            if len(self._found) == GRIDS:
                self._found.clear()
            found = self._found[key] = inner(0, grid_thw, *args, **kwargs)
        return found + start_position


def _of_no_prompt(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Make the logits processors without the prompt, about which `generate` asks the device, where none reads it."""
    given = contract.by_name(inner, args, kwargs)
    config = given.get("generation_config")
    repeats = getattr(config, "encoder_repetition_penalty", None), getattr(config, "encoder_no_repeat_ngram_size", None)
    if "encoder_input_ids" in given and repeats[0] in (None, 1.0) and repeats[1] in (None, 0):
        given["encoder_input_ids"] = None
    return inner(**given)


def _known_deepstack(decoder: Any) -> bool:
    """Whether the decoder adds rows of features to those of its tokens that are visual, as is known here."""
    process = getattr(type(decoder), "_deepstack_process", None)
    names = ["self", "hidden_states", "visual_pos_masks", "visual_embeds"]
    return process is not None and list(inspect.signature(process).parameters) == names


def _add_where_visual(
    inner: Callable[..., Tensor], hidden_states: Tensor, visual_pos_masks: Tensor, visual_embeds: Tensor
) -> Tensor:
    """Add visual_embeds (V, D) to the V rows of hidden_states (B, L, D) that visual_pos_masks bool (B, L) marks.

    Indexing by a mask asks the device how many there are.
    """
    if not hidden_states.is_cuda or not len(visual_embeds):
        return inner(hidden_states, visual_pos_masks, visual_embeds)
    mask = visual_pos_masks.to(hidden_states.device)
    row = (mask.flatten().cumsum(0) - 1).clamp(min=0).view(mask.shape)
    added = hidden_states + visual_embeds.to(hidden_states.device, hidden_states.dtype)[row]
    return torch.where(mask[..., None], added, hidden_states)
