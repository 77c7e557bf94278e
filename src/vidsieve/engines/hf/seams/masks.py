"""Make the masks and position ids of the layers after a stage, whose caches have lengths of their own."""

from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask

from vidsieve.engines.hf import contract
from vidsieve.engines.hf.cache import AttachState, held_mask, physical_length, remember
from vidsieve.engines.hf.forward import SequenceState
from vidsieve.engines.hf.tracked import SequenceUpdate

Arguments = dict[str, Any]


def adapt(
    sequence: SequenceState,
    update: SequenceUpdate | None,
    config: Any,
    attach_state: AttachState,
    layer: int,
    hidden: Tensor,
    arguments: Arguments,
) -> None:
    """Give `layer`, whose sequence is that of `update`, its mask, and store the reduced prefix on the cache.

    config: of the decoder.
    """
    cache, given, run = contract.cache_of(arguments), arguments.get("attention_mask"), sequence.run(layer)
    reduces = update is not None or sequence.first is not None
    if layer == run and cache is not None and reduces:
        mask = cache_mask(sequence, layer, cache, hidden)
        remember(cache, sequence.reduced_prefix(mask, sequence.padded, attach_state), layer)
    if layer_type(config, layer) == "linear_attention":
        if update is not None:
            arguments["attention_mask"] = update.kept.valid.to(hidden.device) if sequence.padded else None
        return
    if not reduces and given is None and not sequence.prefixes[run].has_padding:
        return  # without a mask in layer 0, none is needed here
    if run not in sequence.masks:
        full = reduces and not sequence.padded
        sequence.masks[run] = create_causal_mask(
            config=config,
            inputs_embeds=hidden,
            attention_mask=None if full else cache_mask(sequence, layer, cache, hidden),
            layer_idx=layer,
            **{contract.CACHE: cache},
        )
    arguments["attention_mask"] = sequence.masks[run]


def cache_mask(sequence: SequenceState, layer: int, cache: Any, hidden: Tensor) -> Tensor:
    """Make the mask of the tokens in the cache of `layer` after a pass over `hidden` (B, L, D): int64 (B, past + L)."""
    past, present = physical_length(cache, layer), sequence.present(layer)
    if present is not None and not past:
        return present.valid
    prefixes = sequence.prefixes
    prefix = next((prefixes[first] for first in sorted(prefixes, reverse=True) if first <= layer), None)
    mask = held_mask(prefix, sequence.mask, past + hidden.shape[1], len(hidden), hidden.device)
    if present is None:
        return mask.long()
    return torch.cat([mask[:, :past].to(present.valid), present.valid], 1).long()


def dense_position_ids(sequence: SequenceState, layer: int, hidden: Tensor, cache: Any) -> Tensor:
    """Make position ids (B, M) without gaps: the rotation is done, and gaps would be read as packed sequences."""
    run = sequence.run(layer)
    if run not in sequence.position_ids:
        places = torch.arange(hidden.shape[1], device=hidden.device) + physical_length(cache, layer)
        sequence.position_ids[run] = places[None].expand(len(hidden), -1)
    return sequence.position_ids[run]


def layer_type(config: Any, layer: int) -> str:
    """Get the kind of attention of a layer."""
    kinds = getattr(config, "layer_types", None)
    return kinds[layer] if kinds else "full_attention"
