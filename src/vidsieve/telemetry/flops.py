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
    """FLOPs of one decoder layer: `linear` a token, `pair` for each query and key.

    window: the most keys that a query sees; None for all before it.
    """

    linear: float
    pair: float
    window: int | None = None

    def flops(self, tokens: int, past: int = 0) -> float:
        """A causal pass over `tokens`, after `past` in the cache."""
        growing = tokens if self.window is None else max(0, min(tokens, self.window - past))
        pairs = growing * (past + (growing + 1) / 2) + (tokens - growing) * (self.window or 0)
        return self.linear * tokens + self.pair * pairs


def layer_costs(decoder: nn.Module) -> tuple[LayerCost, ...]:
    """The costs of the layers of `decoder`, a text model of transformers."""
    config: Any = decoder.config
    layers: Any = decoder.layers
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * len(layers)
    return tuple(_layer_cost(layer, config, kind) for layer, kind in zip(layers, kinds, strict=False))


def _layer_cost(layer: nn.Module, config: Any, kind: str) -> LayerCost:
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
    attention: Any = getattr(layer, "self_attn", None)
    if attention is None:
        return LayerCost(linear, 0.0)
    config = getattr(attention, "config", config)  # of this layer, where layers differ
    heads = getattr(attention, "num_heads", None) or config.num_attention_heads
    size = getattr(attention, "head_dim", None)
    latent = getattr(attention, "qk_head_dim", None)  # DeepSeek's keys are of another size than its values
    both = latent + attention.v_head_dim if latent else 2 * (size or config.hidden_size // heads)
    window = config.sliding_window if kind == "sliding_attention" else None
    return LayerCost(linear, 2.0 * heads * both, window)


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
