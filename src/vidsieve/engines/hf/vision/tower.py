"""Find the vision tower of a model, and check that it is one whose calls are known."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn
from transformers import vision_utils

from vidsieve.checks import describe
from vidsieve.errors import UnsupportedModel

_NAMES = ("visual", "vision_tower", "vision_model", "video_tower")
# What a tower may compute from its grids, and with which parameters each of these functions is known.
_LAYOUT = {
    "get_vision_cu_seqlens": ("grid_thw", "merge_temporal", "kwargs"),
    "get_vision_attention_seqlens": ("grid_thw", "config", "merge_temporal", "kwargs"),
    "get_vision_position_ids": ("grid_thw", "spatial_merge_size", "include_temporal", "kwargs"),
    "get_vision_window_index": ("grid_thw", "spatial_merge_size", "window_size", "patch_size", "kwargs"),
    "get_vision_bilinear_indices_and_weights": ("grid_thw", "num_grid_per_side", "spatial_merge_size", "kwargs"),
    "get_vision_interpolation_indices_and_weights": (
        *("grid_thw", "num_grid_per_side", "mode", "align_corners", "spatial_merge_size", "padding", "kwargs"),
    ),
}
_OPTIONAL = {"merge_temporal", "include_temporal", "padding"}  # at their defaults in every tower that is served
_LINEAR = (nn.Linear,)


def vision_tower(model: Any) -> nn.Module:
    """Get the vision tower of a video language model. Raises `UnsupportedModel` where there is none."""
    body = getattr(model, "base_model", model)
    for name in _NAMES:
        tower = getattr(body, name, None)
        if isinstance(tower, nn.Module):
            return tower
    raise UnsupportedModel(f"expected a model with a vision tower ({', '.join(_NAMES)}), got {describe(model)}")


def layout_functions(tower: nn.Module) -> set[str]:
    """Name the functions of transformers by which `tower` computes its layout from its grids."""
    names = inspect.unwrap(type(tower).forward).__code__.co_names
    return {name for name in names if name.startswith("get_vision_") and hasattr(vision_utils, name)}


def attentions(tower: nn.Module) -> list[Any]:
    """List the attention modules of `tower`."""
    return [
        module
        for module in tower.modules()
        if "Attention" in type(module).__name__
        and getattr(module, "is_causal", True) is False
        and "config" in module.__dict__
    ]


def packed_attentions(tower: nn.Module) -> list[Any]:
    """List those that hand each segment of the tower to the attention function on its own."""
    found = attentions(tower)
    return [module for module in found if "cu_seqlens" in inspect.signature(type(module).forward).parameters]


@dataclass(frozen=True)
class Reason:
    """Why a tower is left as it is.  expected: whether nothing is lost by that."""

    text: str
    expected: bool = False


def why_not(tower: nn.Module) -> Reason | None:
    """Say why `tower` cannot be packed; None if it can."""
    functions = layout_functions(tower)
    if not functions or not packed_attentions(tower):
        return Reason("its frames are one batch already", expected=True)
    if unknown := _unknown(functions, vision_utils):
        return Reason(f"this release of transformers lays it out in a way that is not known here ({unknown})")
    implementation = str(getattr(tower.config, "_attn_implementation", ""))
    if "flash" in implementation or "flex" in implementation or "paged" in implementation:
        return Reason(f"its attention is {implementation}")
    for module in tower.modules():
        if hasattr(module, "_hf_hook"):
            return Reason("its weights are offloaded or on several devices")
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            return Reason("it is compiled")
    for name, weight in tower.named_parameters():
        if weight.device.type == "meta":
            return Reason("its weights are offloaded or on several devices")
        if type(weight) is not nn.Parameter or not weight.is_floating_point() or weight.element_size() < 2:
            return Reason(f"its weights are quantized ({name}: {weight.dtype})")
    if other := next(_other_linears(tower), None):
        return Reason(f"its weights are quantized or adapted ({other})")
    return None


def _unknown(functions: set[str], module: ModuleType) -> str:
    """Name a function, or a parameter of one, that is not in `_LAYOUT`; empty if there is none."""
    for name in sorted(functions):
        if name not in _LAYOUT:
            return name
        parameters = inspect.signature(getattr(module, name)).parameters
        others = [p for p in parameters if p not in _LAYOUT[name]]
        missing = [p for p in _LAYOUT[name] if p not in parameters and p not in _OPTIONAL]
        if others or missing:
            return f"{name}({', '.join(parameters)})"
    return ""


def _other_linears(tower: nn.Module) -> Iterator[str]:
    """Name the types of modules that multiply by a weight in a way of their own."""
    for module in tower.modules():
        if "Linear" in type(module).__name__ and type(module) not in _LINEAR:
            yield type(module).__name__


def takes_host_grids(tower: nn.Module) -> bool:
    """Whether a tower that is given its layout reads nothing of its grids on the device."""
    return not hasattr(tower, "embeddings") and "merge_sizes" not in inspect.signature(type(tower).forward).parameters


def gradients_wanted(tower: nn.Module, pixels: Any) -> bool:
    """Whether a call of `tower` has to be differentiable."""
    if not torch.is_grad_enabled():
        return False
    inputs = isinstance(pixels, torch.Tensor) and pixels.requires_grad
    return inputs or any(weight.requires_grad for weight in tower.parameters())
