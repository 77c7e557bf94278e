"""Make a tower sooner on a CPU: its blocks see a few frames at a time, and its convolution is a product.

What one operation hands to the next is then still in a core's cache, and small enough that malloc keeps its memory:
stock fetches every page of it anew. A way is taken only if, on the first call of its shape, it gave the bits of the
module's own.
"""

from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from vidsieve.engines.hf.intercept import Interceptions, OfOneModel
from vidsieve.engines.hf.vision.calls import TowerCalls
from vidsieve.engines.hf.vision.tower import packed_attentions

ROWS = 640  # at a time, or one segment
REMEMBERED = 256  # shapes

Run = Callable[[], Tensor]

# Of each tower, by shape: the number of the first other way that gives the same bits, 0 where none does.
_same_bits: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], int]] = WeakKeyDictionary()


class FewFrames(OfOneModel):
    """Forwards of the blocks, MLPs and patch embeddings of `tower`, used in the calls of `calls` on a CPU."""

    def __init__(self, tower: nn.Module, calls: TowerCalls, hooks: Interceptions) -> None:
        self._calls = calls
        self._same_bits = _same_bits.setdefault(tower, {})  # also of a tower that is detached after every call
        attentions = set(packed_attentions(tower))
        for module in tower.modules():
            if attentions & set(module.children()):
                hooks.wrap(module, "forward", partial(self._block, module))
                if isinstance(mlp := getattr(module, "mlp", None), nn.Module):
                    hooks.wrap(mlp, "forward", partial(self._mlp, mlp))
            elif type(module) in (nn.Conv2d, nn.Conv3d):
                hooks.wrap(module, "forward", partial(self._projection, module))

    def _block(self, block: nn.Module, inner: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Run a block on (N, D), a few segments at a time."""
        call, bounds, angles = self._calls.current, kwargs.get("cu_seqlens"), kwargs.get("position_embeddings")
        own = partial(inner, *args, **kwargs)
        if call is None or call.source is not None or len(args) != 1 or bounds is None:
            return own()
        x: Tensor = args[0]
        if x.ndim != 2 or not isinstance(angles, tuple) or any(len(angle) != len(x) for angle in angles):
            return own()
        parts = _parts(bounds.tolist())
        if len(parts) < 2:
            return own()

        def few() -> Tensor:
            found = []
            for first, last, rows in parts:
                part = {"cu_seqlens": bounds[first : last + 1] - rows.start}
                part["position_embeddings"] = tuple(angle[rows] for angle in angles)
                found.append(inner(x[rows], **{**kwargs, **part}))
            return _joined(found)

        return self._run(block, x, [rows.stop - rows.start for *_, rows in parts], own, few)

    def _mlp(self, mlp: nn.Module, inner: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Run an MLP on (N, D) a few rows at a time, where groups of pixels are left out of the segments."""
        call, own = self._calls.current, partial(inner, *args, **kwargs)
        if call is None or call.source is None or len(args) != 1 or kwargs or args[0].ndim != 2:
            return own()
        if len(args[0]) <= ROWS:
            return own()
        parts = torch.split(args[0], ROWS)
        return self._run(mlp, args[0], [*map(len, parts)], own, lambda: _joined([inner(part) for part in parts]))

    def _projection(self, conv: Any, inner: Callable[..., Tensor], x: Tensor) -> Tensor:
        """Multiply patches (N, C, ...) of the size of the kernel by it, in the order in which oneDNN adds them up.

        Where a product adds up otherwise, as on an AMD EPYC, hand oneDNN the patches in its own order, in which it else
        puts them by itself, and more slowly.
        """
        own = partial(inner, x)
        if self._calls.current is None or x.shape[2:] != conv.kernel_size or conv.groups != 1 or any(conv.padding):
            return own()

        def product() -> Tensor:
            weight = _channels_last(conv.weight)
            found = [functional.linear(_channels_last(part), weight, conv.bias) for part in torch.split(x, ROWS)]
            return _joined(found).view(len(x), -1, *(1 for _ in conv.kernel_size))

        def ordered() -> Tensor:
            order = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
            weight = conv.weight.contiguous(memory_format=order)
            found: Tensor = conv._conv_forward(x.contiguous(memory_format=order), weight, conv.bias)
            return found.contiguous()

        return self._run(conv, x, [], own, product, ordered)

    def _run(self, module: nn.Module, x: Tensor, lengths: list[int], own: Run, *others: Run) -> Tensor:
        """Run, in place of a module's `own` forward on x (N, ...), the first of `others` that gives the same bits."""
        if not _plain(module, x):
            return own()
        weights = tuple((weight.shape, weight.dtype) for weight in module.parameters())
        key = *map(type, module.modules()), weights, x.shape, x.dtype, *lengths, *_settings()
        known = self._same_bits.get(key)
        if known:
            return others[known - 1]()
        found = own()
        tells = known is None and 2 * int(x.count_nonzero()) > x.numel()  # sums of few numbers agree in any order
        if tells and bool(found.isfinite().all()):
            if len(self._same_bits) >= REMEMBERED:
                self._same_bits.clear()
            same = (number for number, other in enumerate(others, 1) if torch.equal(found, other()))
            self._same_bits[key] = next(same, 0)
        return found


def _parts(bounds: list[int]) -> list[tuple[int, int, slice]]:
    """Divide segments into runs of at most `ROWS` rows: first, one after the last, rows."""
    found, first = [], 0
    for last in range(1, len(bounds)):
        if last + 1 == len(bounds) or bounds[last + 1] - bounds[first] > ROWS:
            found.append((first, last, slice(bounds[first], bounds[last])))
            first = last
    return found


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts)


def _plain(module: nn.Module, x: Tensor) -> bool:
    """Whether nobody watches the parts of a module, and nothing but their weights decides what they compute."""
    if x.device.type != "cpu" or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    return not any(
        part._forward_hooks or part._forward_pre_hooks for child in module.children() for part in child.modules()
    )


def _settings() -> tuple[Any, ...]:
    """What decides in which order a product adds up, apart from its shape."""
    return torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.backends.mkldnn.enabled


def _channels_last(x: Tensor) -> Tensor:
    """Flatten (N, C, ...) to (N, ... * C)."""
    return x.movedim(1, -1).flatten(1)
