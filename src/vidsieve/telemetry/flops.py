"""What a prefill costs, counted from the decoder's own layers. method.md, eq. 17.

A layer's share is its matrix products: each weight multiplies each token once, of a mixture of experts those that a
token is routed to, and softmax attention multiplies each query with each key up to it, twice. Norms, rotary embeddings
and the recurrence of linear attention are left out; they are a per mille of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class LayerCost:
    """FLOPs of one decoder layer: `linear` a token, `pair` for each query and key."""

    linear: float
    pair: float

    def flops(self, tokens: int, past: int = 0) -> float:
        """A causal pass over `tokens`, after `past` in the cache."""
        return self.linear * tokens + self.pair * tokens * (past + (tokens + 1) / 2)


def layer_costs(decoder: nn.Module) -> tuple[LayerCost, ...]:
    """The costs of the layers of `decoder`, a text model of transformers."""
    config: Any = decoder.config
    layers: Any = decoder.layers
    return tuple(_layer_cost(layer, config) for layer in layers)


def _layer_cost(layer: nn.Module, config: Any) -> LayerCost:
    routed = getattr(config, "num_experts_per_tok", None) or 1
    linear = 0.0
    for module in layer.modules():
        if isinstance(module, nn.Linear):  # quantised ones too, whatever their weight looks like
            linear += 2 * module.in_features * module.out_features
            continue
        for weight in module.parameters(recurse=False):
            if weight.ndim == 2:  # the router
                linear += 2 * weight.numel()
            elif weight.ndim == 3 and hasattr(module, "num_experts"):
                linear += 2 * weight.numel() * routed / len(weight)
    attention = getattr(layer, "self_attn", None)
    heads = config.num_attention_heads
    width = heads * (getattr(attention, "head_dim", None) or config.hidden_size // heads)
    return LayerCost(linear, 4 * width if attention is not None else 0.0)


def total(costs: Sequence[LayerCost], tokens: int, past: Sequence[int]) -> float:
    """FLOPs of all of `costs` on `tokens`, each after its own `past`."""
    return sum(cost.flops(tokens, seen) for cost, seen in zip(costs, past, strict=True))


def affordable(costs: Sequence[LayerCost], budget: float, past: Sequence[int], most: int) -> int:
    """The number of tokens, at most `most`, whose cost comes closest to `budget`."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if total(costs, middle, past) <= budget else (low, middle - 1)
    if low < most and total(costs, low + 1, past) - budget < budget - total(costs, low, past):
        return low + 1
    return low
