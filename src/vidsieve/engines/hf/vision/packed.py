"""Give a tower one attention call for all of its segments, in place of one call for each.

A tower hands all segments over at once, with their bounds, to an attention whose name says "flash".
"""

import copy
import sys
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vidsieve.engines.hf.intercept import Interceptions
from vidsieve.engines.hf.vision.calls import TowerCalls
from vidsieve.engines.hf.vision.tower import attentions


class PackedAttention:
    """The attention of all segments of `tower`, one call a layer; in a call that is to be stock, the tower's own."""

    def __init__(self, tower: nn.Module, calls: TowerCalls, hooks: Interceptions) -> None:
        self._calls = calls
        found = attentions(tower)
        self._plain = found[0].config
        self._eager = sys.modules[type(found[0]).__module__].eager_attention_forward
        name = f"vidsieve-flash-packed-{id(self)}"
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
        cu_seq_lens_q: Tensor,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Compute attention as transformers asks for it: query, key, value (1, H, N, d), returned (1, N, H, d)."""
        call = self._calls.current
        if call is None:
            return self._stock(module, query, key, value, scaling, cu_seq_lens_q, kwargs), None
        query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
        return call.attend(query, key, value, cu_seq_lens_q, scaling)[None], None

    def _stock(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        bounds: Tensor,
        kwargs: dict[str, Any],
    ) -> Tensor:
        """What the tower computes without vidsieve: each segment on its own, by the attention of its configuration."""
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self._plain._attn_implementation, self._eager)
        kwargs = {name: x for name, x in kwargs.items() if name not in _OF_ALL_SEGMENTS}
        lengths = bounds.diff().tolist()
        parts = zip(*(torch.split(x, lengths, dim=2) for x in (query, key, value)), strict=True)
        out = [attend(module, *part, attention_mask=None, scaling=scaling, **kwargs)[0] for part in parts]
        return torch.cat(out, dim=1)


_OF_ALL_SEGMENTS = {"cu_seq_lens_k", "max_length_q", "max_length_k"}
