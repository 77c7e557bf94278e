"""Run the vision tower by fewer kernels: exact, and undone bit for bit.

A tower of transformers calls its attention once for each frame or window, and waits for the device to lay itself out.
Here it gets its layout as arguments (vision/layout.py), one attention call a layer (vision/packed.py), and on CUDA
fewer kernels for what stands around that (vision/fused.py). A call that must be stock is: see `why_stock`.
"""

from collections.abc import Callable
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from vidsieve import ops
from vidsieve.checks import describe
from vidsieve.engines.hf import contract
from vidsieve.engines.hf.families import adapter_for
from vidsieve.engines.hf.intercept import Interceptions, OfOneModel
from vidsieve.engines.hf.tracked import NonFiniteCheck
from vidsieve.engines.hf.vision.ahead import FeaturesAhead, features_ahead
from vidsieve.engines.hf.vision.batched import BatchedPixels
from vidsieve.engines.hf.vision.calls import Grids, TowerCall, TowerCalls
from vidsieve.engines.hf.vision.cpu import FewFrames
from vidsieve.engines.hf.vision.fused import FusedModules
from vidsieve.engines.hf.vision.layout import Layouts, TowerLayout
from vidsieve.engines.hf.vision.memory_layout import ChannelsLastPooling, ContiguousEmbeddings
from vidsieve.engines.hf.vision.packed import SegmentedAttention
from vidsieve.engines.hf.vision.tower import (
    PIXELS,
    Reason,
    find_tower,
    takes_host_grids,
    vision_tower,
    why_not,
    why_stock,
)
from vidsieve.engines.hf.vision.waits import NoWaits
from vidsieve.errors import UnsupportedCall
from vidsieve.methods.pixels import PixelSelector, selection_of
from vidsieve.telemetry.trace import Trace

Vision = Literal["auto", "fused", "packed", "stock"]


def check_vision(vision: Any) -> None:
    """Raise `ValueError` unless `vision` names a way to run the tower."""
    if vision not in get_args(Vision):
        raise ValueError(f"expected vision to be one of {', '.join(get_args(Vision))}, got {describe(vision)}")


class VisionSeam(OfOneModel):
    """Hooks on the vision tower of `model`. `trace.tower` says how each call ran, and why.

    vision: "stock" leaves the tower as it is. "packed" gives it its layout and one attention call a layer. "fused" adds
    fused kernels. "auto" does what can be done.  pixels: chooses the groups of pixels of a video that the tower
    computes; None for all. Raises `UnsupportedCall` if "packed", "fused" or `pixels` cannot be.
    """

    def __init__(
        self, model: Any, vision: Vision, pixels: PixelSelector | None, trace: Trace, hooks: Interceptions
    ) -> None:
        self._trace, self._pixels = trace, pixels
        self.ahead: FeaturesAhead | None = None
        if vision == "stock" and pixels is None:
            trace.tower = "stock, as asked for"
            return
        if vision == "auto" and pixels is None and find_tower(model) is None:  # a family of the user
            trace.tower = "stock, because it has a name that is not known here"
            return
        self._tower = tower = vision_tower(model)
        NoWaits(model, hooks)
        reason = Reason("vision='stock' leaves the tower as it is") if vision == "stock" else why_not(tower)
        if reason is None and vision == "fused" and (unfit := _why_unfused(tower)):
            raise UnsupportedCall(f"vision='fused' cannot be: {unfit}; 'auto' does what can be done")
        if reason is None:
            self._install(model, tower, vision, hooks)
        else:
            self._leave(model, tower, vision, reason, hooks)

    def _leave(self, model: Any, tower: nn.Module, vision: Vision, reason: Reason, hooks: Interceptions) -> None:
        """Leave a tower that cannot be packed as it is, but for what is laid out around it, and for `pixels`."""
        trace, pixels = self._trace, self._pixels
        if pixels is not None and not reason.expected:
            raise UnsupportedCall(f"{pixels!r} cannot act before the vision tower: {reason.text}")
        adapter = adapter_for(model)
        if pixels is not None and adapter.layout != "clips" and not adapter.frame_tokens:
            raise UnsupportedCall(
                f"{pixels!r} cannot act before the vision tower of {type(model).__name__}: nothing tells which of "
                "its images are the frames of one video; reduce after the tower"
            )
        if vision != "auto":
            raise UnsupportedCall(f"vision={vision!r} cannot be: {reason.text}; 'auto' does what can be done")
        trace.tower, trace.tower_slow = f"stock, because {reason.text}", not reason.expected
        ContiguousEmbeddings(tower, hooks)
        ChannelsLastPooling(model.base_model, hooks)
        if pixels is not None:
            BatchedPixels(model, tower, pixels, trace, hooks)

    def _install(self, model: Any, tower: nn.Module, vision: Vision, hooks: Interceptions) -> None:
        """Install what packs the tower, and what fuses it."""
        self._trace.tower = "not called yet"
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
        weight = next(tower.parameters())
        on_cpu = weight.device.type == "cpu"
        exact = on_cpu and FusedModules(tower, self._calls, hooks, exact=True).replaced
        self._exact_in = weight.dtype if exact else None  # where it is moved, or converted, they were not tried
        SegmentedAttention(tower, self._calls, lambda kwargs: cast(Tensor, kwargs["cu_seq_lens_q"]), hooks)
        if on_cpu:
            FewFrames(tower, self._calls, hooks)
        self._takes_host_grids = takes_host_grids(tower)
        if self._pixels is None:
            self.ahead = features_ahead(model, tower)
        if self.ahead is not None:
            hooks.callback(self.ahead.forget)
        hooks.wrap(model.base_model, "get_video_features", self._video)
        hooks.before(tower, self._before)
        if (expands := getattr(tower, "post_layernorm", None)) is not None:  # what follows it wants all patches
            hooks.after(expands, self._expand_patches)
        self._expands_tokens = expands is None
        hooks.after(tower, self._after)

    def _video(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Note the grids of videos, and let transformers read them on the host.

        It splits the features by numbers that it asks the device for, and so waits for the whole tower.
        """
        given = contract.by_name(inner, args, kwargs)
        grid = given.get("video_grid_thw")
        if grid is None:
            return inner(**given)
        if self.ahead is not None and (known := self.ahead.of(given)) is not None:
            return known
        host = grid.cpu()
        self._calls.videos = tuple((t, h, w) for t, h, w in host.tolist())
        if self._takes_host_grids and not why_stock(self._tower, given):
            given["video_grid_thw"] = host
        try:
            return inner(**given)
        finally:
            self._calls.videos = None

    def _before(self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._calls.enter(None)
        arguments = contract.by_name(tower, args, kwargs)
        pixels_name = next(iter(arguments)) if args else next(n for n in PIXELS if n in arguments)
        patches = arguments[pixels_name]
        if why := why_stock(tower, arguments):
            if self._pixels is not None and self._calls.videos is not None:
                raise UnsupportedCall(f"{self._pixels!r} cannot act before this call of the vision tower, where {why}")
            self._trace.tower, self._trace.tower_slow = f"stock, because {why}", True
            return None
        plain, weight = not torch.is_autocast_enabled(patches.device.type), next(tower.parameters())
        exact = weight.dtype is self._exact_in and weight.device.type == "cpu"
        fused, replaced = self._fused and plain, (self._fused or exact) and plain
        layout = self._layouts.of(arguments["grid_thw"], patches.device, arguments.get("merge_sizes"))
        operations = ops.VisionOperations.chosen_for(weight)
        self._trace.tower, self._trace.tower_slow = "fused" if fused else "packed", False
        videos = self._calls.videos
        if self._pixels is None or videos is None:
            self._calls.enter(TowerCall(layout, replaced, operations=operations))
            return args, {**kwargs, **layout.arguments}
        kept, source, nonfinite = self._select(patches, layout, videos)
        self._trace.tower += f", {len(kept)} of {len(source)} groups of pixels computed"
        made = layout.of_kept(kept)
        rows = layout.patch_rows(source, made)
        call = TowerCall(layout, replaced, source, rows, self._pixels.holds_keys, nonfinite, operations=operations)
        self._calls.enter(call)
        return (), {**arguments, **made, pixels_name: patches[layout.patches_of(kept)]}

    def _select(self, patches: Tensor, layout: TowerLayout, videos: Grids) -> tuple[Tensor, Tensor, NonFiniteCheck]:
        """Choose groups of the patches (N, C): those that run, int64 (K,), and for each the row of what it repeats."""
        selector = cast(PixelSelector, self._pixels)
        unit, begin, before = layout.unit, 0, 0
        kept, sources, selections = [], [], []
        for frames, rows, columns in videos:
            places = rows * columns // unit
            groups = patches[begin * unit : (begin + frames * places) * unit].view(frames, places, -1)
            selection = selection_of(selector, groups)
            kept.append(selection.kept + begin)
            sources.append(selection.source + before)
            selections.append(selection)
            begin, before = begin + frames * places, before + len(selection)
        self._trace.pixels = tuple(selections)
        nonfinite = NonFiniteCheck()
        nonfinite.start(selections)
        return torch.cat(kept), torch.cat(sources), nonfinite

    def _expand_patches(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        call = self._calls.current
        return output if output is None or call is None else call.expand_patches(output)

    def _after(self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        call = self._calls.leave()
        if call is None or call.nonfinite_check is None or output is None:
            return
        call.nonfinite_check.check()  # the device looked before it began with the tower
        last = every = output.last_hidden_state
        if self._expands_tokens:
            output.last_hidden_state = every = call.expand_patches(last)
            output.pooler_output = call.expand(output.pooler_output)
            if getattr(output, "deepstack_features", None):
                output.deepstack_features = [call.expand(features) for features in output.deepstack_features]
        if (states := output.get("hidden_states")) is not None:
            output.hidden_states = tuple(every if x is last else call.expand_patches(x) for x in states)


def _why_unfused(tower: nn.Module) -> str:
    """Why the kernels cannot run; empty where they can."""
    weight = next(tower.parameters())
    if not weight.is_cuda or weight.dtype not in (torch.float16, torch.bfloat16):
        return f"its weights are {weight.dtype} on {weight.device.type}, and the kernels are for half precision on CUDA"
    return "" if (why := ops.available()["triton"]) == "" else why
