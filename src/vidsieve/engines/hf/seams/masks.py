"""What the layers after a stage see: a mask of their own cache's length, and positions without gaps."""

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
    """Give `layer`, whose sequence is that of `update`, the mask of what it sees, and let the cache remember it.

    config: of the decoder.
    """
    cache, given, run = contract.cache_of(arguments), arguments.get("attention_mask"), sequence.run(layer)
    reduces = update is not None or sequence.first is not None
    if layer == run and cache is not None and reduces:
        mask = seen(sequence, layer, cache, hidden)
        remember(cache, sequence.reduced_prefix(mask, sequence.padded, attach_state), layer)
    if layer_type(config, layer) == "linear_attention":
        if update is not None:
            arguments["attention_mask"] = update.kept.valid.to(hidden.device) if sequence.padded else None
        return
    if not reduces and given is None and not sequence.prefixes[run].has_padding:
        return  # what needs no mask in layer 0 needs none here
    if run not in sequence.masks:
        full = reduces and not sequence.padded
        sequence.masks[run] = create_causal_mask(
            config=config,
            inputs_embeds=hidden,
            attention_mask=None if full else seen(sequence, layer, cache, hidden),
            layer_idx=layer,
            **{contract.CACHE: cache},
        )
    arguments["attention_mask"] = sequence.masks[run]


def seen(sequence: SequenceState, layer: int, cache: Any, hidden: Tensor) -> Tensor:
    """The mask (B, past + L) of all that this layer's cache holds after the pass over `hidden` (B, L, D): int64."""
    past, present = physical_length(cache, layer), sequence.present(layer)
    if present is not None and not past:
        return present.valid
    prefixes = sequence.prefixes
    prefix = next((prefixes[first] for first in sorted(prefixes, reverse=True) if first <= layer), None)
    mask = held_mask(prefix, sequence.mask, past + hidden.shape[1], len(hidden), hidden.device)
    if present is None:
        return mask.long()
    return torch.cat([mask[:, :past].to(present.valid), present.valid], 1).long()


def order(sequence: SequenceState, layer: int, hidden: Tensor, cache: Any) -> Tensor:
    """Position ids (B, M) without gaps: the rotary part is done, and these only tell packed sequences apart."""
    run = sequence.run(layer)
    if run not in sequence.orders:
        places = torch.arange(hidden.shape[1], device=hidden.device) + physical_length(cache, layer)
        sequence.orders[run] = places[None].expand(len(hidden), -1)
    return sequence.orders[run]


def layer_type(config: Any, layer: int) -> str:
    """What kind of attention a layer has."""
    kinds = getattr(config, "layer_types", None)
    return kinds[layer] if kinds else "full_attention"
