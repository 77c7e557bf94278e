"""Give a tower one attention call for all of its segments, in place of one call for each.

A tower that packs its segments hands them over at once, with their bounds, to an attention whose name says "flash".
"""

import copy
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vidsieve.engines.hf.intercept import Interceptions
from vidsieve.engines.hf.vision.calls import TowerCalls
from vidsieve.engines.hf.vision.tower import attentions, packed_attentions


class SegmentedAttention:
    """The attention of all segments of `tower` in one call a layer; in a call that is to be stock, the tower's own.

    bounds_of: gets the bounds int32 (S + 1,) of the segments from the arguments of the attention.
    """

    def __init__(
        self, tower: nn.Module, calls: TowerCalls, bounds_of: Callable[[dict[str, Any]], Tensor], hooks: Interceptions
    ) -> None:
        self._calls, self._bounds_of = calls, bounds_of
        found = attentions(tower)
        self._plain = found[0].config
        self._eager = sys.modules[type(found[0]).__module__].eager_attention_forward
        packs = "flash-" * bool(packed_attentions(tower))  # for which a tower hands over all segments at once
        name = f"vidsieve-{packs}segmented-{id(self)}"
        hooks.attention(name, self.attend)
        named = copy.copy(self._plain)
        named._attn_implementation_internal = name
        for attention in found:
            hooks.put(attention, "config", named)

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        *,
        scaling: float,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute attention as transformers asks for it: query, key, value (1, H, N, d), returned (1, N, H, d)."""
        call = self._calls.current
        if call is None:
            return self._stock(module, (query, key, value), attention_mask, scaling, kwargs)
        query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
        return call.attend(query, key, value, self._bounds_of(kwargs), scaling)[None], None

    def _stock(
        self,
        module: nn.Module,
        rows: tuple[Tensor, Tensor, Tensor],
        attention_mask: Tensor | None,
        scaling: float,
        kwargs: dict[str, Any],
    ) -> tuple[Tensor, Tensor | None]:
        """What the tower computes without vidsieve: each segment on its own, by the attention of its configuration."""
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self._plain._attn_implementation, self._eager)
        bounds = kwargs.get("cu_seq_lens_q")
        if bounds is None:
            found: tuple[Tensor, Tensor | None] = attend(module, *rows, attention_mask, scaling=scaling, **kwargs)
            return found
        kwargs = {name: x for name, x in kwargs.items() if name not in _OF_ALL_SEGMENTS}
        lengths = bounds.diff().tolist()
        parts = zip(*(torch.split(x, lengths, dim=2) for x in rows), strict=True)
        return torch.cat(
            [attend(module, *part, attention_mask, scaling=scaling, **kwargs)[0] for part in parts], 1
        ), None


_OF_ALL_SEGMENTS = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}
