"""Find the vision tower of a model, and check that it is one whose calls are known."""

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
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
_CALLED = {"get_vision_cu_seqlens", "get_vision_position_ids"}  # by layout.py, whatever the tower itself calls
_OPTIONAL = {"merge_temporal", "include_temporal", "padding"}  # at their defaults in every tower that is served
_LINEAR = (nn.Linear,)
PIXELS = ("hidden_states", "pixel_values", "pixel_values_videos")  # the argument of a tower that holds the patches


def find_tower(model: Any) -> nn.Module | None:
    """Get the vision tower of a video language model; None where it has none of a known name."""
    body = getattr(model, "base_model", model)
    found = (getattr(body, name, None) for name in _NAMES)
    return next((tower for tower in found if isinstance(tower, nn.Module)), None)


def vision_tower(model: Any) -> nn.Module:
    """Get the vision tower of a video language model. Raises `UnsupportedModel` where there is none."""
    if (tower := find_tower(model)) is not None:
        return tower
    raise UnsupportedModel(f"expected a model with a vision tower ({', '.join(_NAMES)}), got {describe(model)}")


def layout_functions(tower: nn.Module) -> set[str]:
    """Name the functions of transformers by which `tower` computes its layout from its grids."""
    names = inspect.unwrap(type(tower).forward).__code__.co_names
    return {name for name in names if name.startswith("get_vision_")}


def weights_of(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    """Go through the parameters of `modules` themselves, without those of what is within them."""
    return (weight for module in modules for weight in module._parameters.values() if weight is not None)


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
    forwards = {type(module).forward for module in found}  # few, and a signature takes long to find
    packed = {forward for forward in forwards if "cu_seqlens" in inspect.signature(forward).parameters}
    return [module for module in found if type(module).forward in packed]


@dataclass(frozen=True)
class Reason:
    """Why a tower is left as it is.  expected: whether nothing is lost by that."""

    text: str
    expected: bool = False


def why_not(tower: nn.Module) -> Reason | None:
    """Say why `tower` cannot be packed; None if it can."""
    modules = [*tower.modules()]
    if any(map(_is_compiled, modules)):
        return Reason("it is compiled, and would not see what is attached later; attach first")
    told = "merge_sizes" in inspect.signature(type(tower).forward).parameters
    merges = told or hasattr(tower.config, "spatial_merge_size")
    packed = bool(packed_attentions(tower))
    if not merges and packed:
        return Reason("its patches become tokens in a way that is not known here")
    functions = layout_functions(tower)
    if not packed:
        return Reason("its frames are one batch already", expected=True)
    if unknown := _unknown(functions | _CALLED, vision_utils) if functions else "by no function that is known":
        return Reason(f"this release of transformers lays it out in a way that is not known here ({unknown})")
    implementation = str(getattr(tower.config, "_attn_implementation", ""))
    if "flash" in implementation or "flex" in implementation or "paged" in implementation:
        return Reason(f"its attention is {implementation}")
    if any("_hf_hook" in module.__dict__ for module in modules):
        return Reason("its weights are offloaded or on several devices")
    for weight in weights_of(modules):
        if weight.is_meta:
            return Reason("its weights are offloaded or on several devices")
        if type(weight) is not nn.Parameter or not weight.is_floating_point() or weight.element_size() < 2:
            name = next(name for name, x in tower.named_parameters() if x is weight)
            return Reason(f"its weights are quantized ({name}: {weight.dtype})")
    if other := next(filter(_is_other_linear, map(type, modules)), None):
        return Reason(f"its weights are quantized or adapted ({other.__name__})")
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


def _is_other_linear(kind: type[nn.Module]) -> bool:
    """Whether modules of this type multiply by a weight in a way of their own."""
    return "Linear" in kind.__name__ and kind not in _LINEAR


def takes_host_grids(tower: nn.Module) -> bool:
    """Whether a tower that is given its layout reads nothing of its grids on the device."""
    return not hasattr(tower, "embeddings") and "merge_sizes" not in inspect.signature(type(tower).forward).parameters


def why_stock(tower: nn.Module, arguments: dict[str, Any]) -> str:
    """Why a call with these `arguments` must run as the tower's own; empty if it need not."""
    if why := _why_differentiated(tower, next((arguments[name] for name in PIXELS if name in arguments), None)):
        return why
    if tower.training and any(_dropout(attention) for attention in attentions(tower)):
        return "its attention drops weights at random; .eval() on the tower makes it fast"
    if arguments.get("output_attentions") or getattr(tower.config, "output_attentions", False):
        return "its attentions are wanted"
    if given := [name for name in ("cu_seqlens", "position_ids", "window_index") if arguments.get(name) is not None]:
        return f"{', '.join(given)} came with the call"
    return ""


def _why_differentiated(tower: nn.Module, pixels: Any) -> str:
    """Why a call of `tower` has to be differentiable, or is done again by what comes back; empty if it has not."""
    if not torch.is_grad_enabled():
        return ""
    wanted = isinstance(pixels, torch.Tensor) and pixels.requires_grad
    if wanted or any(weight.requires_grad for weight in tower.parameters()):
        return "gradients are wanted; torch.no_grad() or requires_grad_(False) on the tower makes it fast"
    if tower.training and any(getattr(module, "gradient_checkpointing", False) for module in tower.modules()):
        return "its layers are computed again for gradients (checkpointing); .eval() on the tower makes it fast"
    return ""


def _dropout(attention: Any) -> float:
    """The share of its weights that an attention drops in training."""
    found = getattr(attention, "attention_dropout", getattr(attention, "dropout", 0.0))
    return found if isinstance(found, float) else 0.0


def _is_compiled(module: nn.Module) -> bool:
    """Whether `module` is compiled, and so never looks at hooks that are added later."""
    return "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None
