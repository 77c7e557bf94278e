"""Features of a video before the model asks for them: the tower runs on some of its frames while others are decoded.

Only a tower that computes a temporal patch from it alone does so. Its work lies on a stream of its own, so that the
prompt can be looked at meanwhile, and `generate` gets the features where it would call the tower with the same pixels.
"""

import inspect
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from vidsieve.engines.hf.families import adapter_for
from vidsieve.engines.hf.intercept import OfOneModel
from vidsieve.engines.hf.vision.tower import takes_host_grids, why_stock
from vidsieve.errors import UnsupportedModel
from vidsieve.stages import in_use, launched, own_stream, wait_for

_ASKED = ("pixel_values_videos", "video_grid_thw")  # what a tower is asked with whose temporal patches are rows
_BESIDE = {"return_dict", "use_cache"}  # older releases hand on the latter, which means nothing to a tower
_PARTS = ("pooler_output", "deepstack_features")  # of what the model's `get_video_features` returns


def _tensors(part: Any) -> Iterator[Tensor]:
    """Go through the features of one video in a part: by release, a tensor, a tuple of one, or a list of either."""
    if isinstance(part, Tensor):
        yield part
    else:
        yield from chain.from_iterable(map(_tensors, part))


def _filled(part: Any, rows: Iterator[Tensor]) -> Any:
    """Make a part like this one of other features."""
    return next(rows) if isinstance(part, Tensor) else type(part)(_filled(one, rows) for one in part)


class GrowingFeatures:
    """The features of one video, of which some temporal patches come after the other.

    count: how many.  grid: rows and columns of one, in patches.  state: of the modules that make them.
    """

    def __init__(self, body: Any, tower: nn.Module, count: int, grid: tuple[int, int], state: Any) -> None:
        self._body, self._count, self._grid, self.state = body, count, grid, state
        self._device, self._takes_host_grids = next(tower.parameters()).device, takes_host_grids(tower)
        self._whole: list[Tensor] = []  # (count, tokens, D): what goes before the first layer, then those within it
        self._kind: Any = None
        self._parts: dict[str, Any] = {}  # of the first of them

    @torch.no_grad()
    def add(self, pixels: Tensor, at: Tensor) -> None:
        """Compute those of the temporal patches `at` int64 (n,), of which these are the pixels (n * patches, C)."""
        made = launched(self._device)
        with own_stream(self._device, "tower"):
            wait_for(made, self._device)
            in_use((pixels, at))
            grid = torch.tensor([[len(at), *self._grid]])  # on the host, which else would wait for what came before
            if not self._takes_host_grids:
                grid = grid.to(self._device)
            found = self._body.get_video_features(pixels, grid, return_dict=True)
            parts = {name: found[name] for name in _PARTS if found.get(name) is not None}
            rows = [x.reshape(len(at), -1, x.shape[-1]) for x in _tensors(parts.values())]
            if not self._whole:
                self._kind, self._parts = type(found), parts
                self._whole = [x.new_empty(self._count, *x.shape[1:]) for x in rows]
            for whole, x in zip(self._whole, rows, strict=True):
                whole.index_copy_(0, at, x)

    def output(self) -> tuple[Any, torch.Event | None]:
        """Make what the model's `get_video_features` returns of all, and what marks that it is computed."""
        with own_stream(self._device, "tower"):
            made = launched(self._device)
        rows = iter([whole.flatten(0, 1) for whole in self._whole])
        return self._kind(**{name: _filled(part, rows) for name, part in self._parts.items()}), made


class _Known(NamedTuple):
    """What was made of pixels and a grid of these versions, by modules in this state. made: marks that it is done."""

    grid: Tensor
    versions: tuple[int, int]
    state: Any
    output: Any
    made: torch.Event | None


class FeaturesAhead(OfOneModel):
    """What the tower of one model has made of pixels with which it is yet to be called, as long as there are these."""

    def __init__(self, model: Any, tower: nn.Module, modules: list[nn.Module]) -> None:
        """modules: the tower, and what may stand between it and the language model."""
        self._model, self._tower, self._modules = model, tower, modules
        self._known = WeakTensorKeyDictionary()  # by the identity of the pixels

    def begin(self, count: int, grid: Any) -> GrowingFeatures | None:
        """Begin a video of `count` temporal patches with the `video_grid_thw` of a prompt; None where it cannot be."""
        device = next(self._tower.parameters()).device
        if not isinstance(grid, Tensor) or torch.is_inference_mode_enabled() or torch.is_autocast_enabled(device.type):
            return None
        [[frames, *size], *others] = grid.tolist()
        state = _state_of(self._modules)
        with torch.no_grad():
            stock = why_stock(self._tower, {})
        if stock or others or frames != count or state is None:
            return None
        return GrowingFeatures(self._model.base_model, self._tower, count, tuple(size), state)

    def keep(self, features: GrowingFeatures, pixels: Tensor, grid: Tensor) -> None:
        """Keep features for calls with these pixels and this grid."""
        self._known[pixels] = _Known(grid, (pixels._version, grid._version), features.state, *features.output())

    def forget(self) -> None:
        """Give back the memory of all features."""
        self._known.clear()

    def of(self, given: dict[str, Any]) -> Any:
        """Get what `get_video_features` is asked for, where it is known; else None."""
        pixels = given.get("pixel_values_videos")
        if torch.compiler.is_compiling() or not isinstance(pixels, Tensor):
            return None
        known: _Known | None = self._known.get(pixels)  # type: ignore[no-untyped-call]
        if known is None or known.versions != (pixels._version, known.grid._version):
            return None
        asked = {name for name, value in given.items() if value is not None and value is not False}
        plain = given.get("return_dict") is not False and asked - _BESIDE == {*_ASKED}
        if not plain or torch.is_autocast_enabled(pixels.device.type) or why_stock(self._tower, given):
            return None
        grid = given["video_grid_thw"]
        if grid is not known.grid and not torch.equal(grid.cpu(), known.grid.cpu()):
            return None
        if known.state != _state_of(self._modules):
            return None
        wait_for(known.made, pixels.device)
        in_use(_tensors(known.output.values()))
        return type(known.output)(**known.output)  # not itself, in which somebody may write


def _state_of(modules: Iterable[nn.Module]) -> list[tuple[int, ...]] | None:
    """List what differs once `modules` compute something else: what is in them, hooks, where weights lie, writes there.

    None where writes are not counted. Writes by `weight.data` never are.
    """
    state = []
    for module in modules:
        weights = [x for x in (*module._parameters.values(), *module._buffers.values()) if x is not None]
        if any(x.is_inference() for x in weights):
            return None
        within = (*map(id, module._modules.values()), *module._forward_pre_hooks, *module._forward_hooks)
        state.append((*within, *(number for x in weights for number in (x.data_ptr(), x._version))))
    return state


def features_ahead(model: Any, tower: nn.Module) -> FeaturesAhead | None:
    """Get what keeps features of `tower`; None if nothing says that it computes a temporal patch from that alone."""
    try:
        adapter = adapter_for(model)
    except UnsupportedModel:
        return None
    names = inspect.signature(model.base_model.get_video_features).parameters
    asked = [name for name, one in names.items() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    if not (adapter.by_frame and adapter.layout == "grid" and not adapter.trailing and asked == list(_ASKED)):
        return None
    answering = {*model.get_decoder().modules()}
    modules = [module for module in model.base_model.modules() if module not in answering]
    if any(hasattr(module, "active_adapter") for module in modules):  # of PEFT: another may be chosen at any time
        return None
    return FeaturesAhead(model, tower, modules)
