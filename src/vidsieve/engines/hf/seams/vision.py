"""Run the vision tower by fewer kernels: exact, and undone bit for bit.

A tower of transformers calls its attention once for each frame or window, and waits for the device to lay itself out.
Here it gets its layout as arguments (vision/layout.py), one attention call a layer (vision/packed.py), and on CUDA
fewer kernels for what stands around that (vision/fused.py). A call that must be stock is: see `_why_stock`.
"""

from typing import Any, Literal, get_args

import torch
from torch import nn

from vidsieve import ops
from vidsieve.checks import describe
from vidsieve.engines.hf import contract
from vidsieve.engines.hf.intercept import Interceptions
from vidsieve.engines.hf.vision.calls import TowerCall, TowerCalls
from vidsieve.engines.hf.vision.fused import FusedModules
from vidsieve.engines.hf.vision.layout import Layouts
from vidsieve.engines.hf.vision.packed import PackedAttention
from vidsieve.engines.hf.vision.pooling import ChannelsLastPooling
from vidsieve.engines.hf.vision.tower import Reason, gradients_wanted, vision_tower, why_not
from vidsieve.errors import UnsupportedCall
from vidsieve.telemetry.trace import Trace

Vision = Literal["auto", "fused", "packed", "stock"]


def check_vision(vision: Any) -> None:
    """Raise `ValueError` unless `vision` names a way to run the tower."""
    if vision not in get_args(Vision):
        raise ValueError(f"expected vision to be one of {', '.join(get_args(Vision))}, got {describe(vision)}")


class VisionSeam:
    """Hooks on the vision tower of `model`. `trace.tower` says how each call ran, and why.

    vision: "stock" leaves the tower as it is. "packed" gives it its layout and one attention call a layer. "fused" adds
    fused kernels. "auto" does what can be done. Raises `UnsupportedCall` if "packed" or "fused" cannot be.
    """

    def __init__(self, model: Any, vision: Vision, trace: Trace, hooks: Interceptions) -> None:
        self._trace = trace
        if vision == "stock":
            trace.tower = "stock, as asked for"
            return
        tower = vision_tower(model)
        reason = why_not(tower)
        if reason is None and vision == "fused" and (unfit := _why_unfused(tower)):
            reason = Reason(unfit)
        if reason is not None:
            if vision != "auto":
                raise UnsupportedCall(
                    f"vision={vision!r} cannot be: {reason.text}; vision='auto' does what can be done"
                )
            trace.tower, trace.tower_slow = f"stock, because {reason.text}", not reason.expected
            ChannelsLastPooling(model.base_model, hooks)
            return
        trace.tower = "not called yet"
        self._calls, self._layouts = TowerCalls(), Layouts(tower)
        self._fused = vision != "packed" and not _why_unfused(tower)
        if self._fused:
            modules = FusedModules(tower, self._calls, hooks)
            if modules.refused and vision == "fused":
                raise UnsupportedCall(
                    f"vision='fused' cannot be: {', '.join(sorted(modules.refused))} of this release of transformers "
                    "compute something else than is known here; vision='auto' leaves those as they are"
                )
            self._fused = bool(modules.replaced)
        PackedAttention(tower, self._calls, hooks)
        hooks.before(tower, self._before)
        hooks.after(tower, self._after)

    def _before(self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        arguments = contract.by_name(tower, args, kwargs)
        if why := _why_stock(tower, arguments):
            self._trace.tower, self._trace.tower_slow = f"stock, because {why}", True
            self._calls.enter(None)
            return None
        fused = self._fused and not torch.is_autocast_enabled(arguments["grid_thw"].device.type)
        self._trace.tower, self._trace.tower_slow = "fused" if fused else "packed", False
        layout = self._layouts.of(arguments["grid_thw"], arguments.get("merge_sizes"))
        self._calls.enter(TowerCall(layout, fused))
        return args, {**kwargs, **layout.arguments}

    def _after(self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self._calls.leave()


def _why_unfused(tower: nn.Module) -> str:
    """Why the kernels cannot run; empty where they can."""
    weight = next(tower.parameters())
    if not weight.is_cuda or weight.dtype not in (torch.float16, torch.bfloat16):
        return f"its weights are {weight.dtype} on {weight.device.type}, and the kernels are for half precision on CUDA"
    return "" if (why := ops.available()["triton"]) == "" else why


def _why_stock(tower: nn.Module, arguments: dict[str, Any]) -> str:
    """Why this call must run as the tower's own; empty if it need not."""
    if gradients_wanted(tower, arguments.get("hidden_states", arguments.get("pixel_values"))):
        return "gradients are wanted; torch.no_grad() or requires_grad_(False) on the tower makes it fast"
    if arguments.get("output_attentions") or getattr(tower.config, "output_attentions", False):
        return "its attentions are wanted"
    if given := [name for name in ("cu_seqlens", "position_ids", "window_index") if arguments.get(name) is not None]:
        return f"{', '.join(given)} came with the call"
    return ""
