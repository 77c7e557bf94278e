"""Compile what a model needs, so that the first video of a later process does not wait for it.

Triton compiles a kernel when it is first launched, and stores it in a folder that later processes load it from. So the
model is called as `vidsieve run` calls it, for one token, on drawn frames of each layout that is to come, and encodes
drawn videos as `vidsieve encode` does.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from vidsieve import ops, registry, writable
from vidsieve.cli import warm_encode
from vidsieve.engines.hf.attach import attach
from vidsieve.engines.hf.loading import check, load, prepare, usable_device
from vidsieve.errors import UnsupportedCall, UnsupportedModel, VidsieveError, WrongArgument
from vidsieve.methods.base import Attachable
from vidsieve.methods.chunked import in_chunks
from vidsieve.methods.compose import with_pixels
from vidsieve.methods.pixels import KCenter
from vidsieve.types.frames import Frames

FRAMES = (64,)
SIZES = ((576, 1024), (1024, 576), (768, 1024), (1024, 768))  # of 16:9 and 4:3, as `vidsieve run` reads a clip
QUESTION = "What happens?"
RATE = 2.0  # frames a second
SQUARE = 16  # pixels

Layout = tuple[int, tuple[int, int]]  # frames, and their height and width


@dataclass(frozen=True)
class Request:
    """The arguments of `vidsieve warm`, as `vidsieve run` takes them."""

    model: str
    method: str = "vidsieve"
    keep: float = 0.1
    frames: Sequence[int] = FRAMES
    sizes: Sequence[tuple[int, int]] = SIZES
    device: str | None = None
    dtype: str | None = None
    pixels: float | None = None


def warm(request: Request, note: Callable[[str], None] = lambda what: None) -> dict[str, Any]:
    """Compile what `request` needs: returns seconds and compiled kernels, as JSON values. note: gets the current step.

    Nothing is loaded where nothing is compiled; `reason` says why. Raises `VidsieveError` if the model cannot be
    loaded, the device or the folder of compiled kernels cannot be used, or frames do not fit into memory.
    """
    reducer = with_pixels(registry.method(request.method)(request.keep), request.pixels)
    device = usable_device(request.device)
    if reason := nothing_to_compile(device):
        check(request.model)
        return {"model": request.model, "device": str(device), "reason": reason, "layouts": [], "compiled": 0}
    cache = compiled_folder()
    note("loading the model")
    processor, model = load(request.model, request.device, request.dtype, bar=False)
    layouts = list(dict.fromkeys(product(request.frames, request.sizes)))
    before = stored_kernels(cache)
    found = call_each(model, processor, reducer, layouts, lambda: stored_kernels(cache), note)
    found |= encode_each(model, processor, request, lambda: stored_kernels(cache), note)
    return {
        "model": request.model,
        "model_type": model.config.model_type,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "method": request.method,
        "keep": request.keep,
        "folder": str(cache),
        "reason": "",
        **found,
        "compiled": stored_kernels(cache) - before,
    }


def encode_each(
    model: Any, processor: Any, request: Request, compiled: Callable[[], int], note: Callable[[str], None]
) -> dict[str, Any]:
    """Encode drawn videos of each size of `request`, as JSON values; `encode_reason` says why none is."""
    try:
        method = in_chunks(registry.method(request.method)(request.keep))
        sizes = list(dict.fromkeys(request.sizes))
        selector = None if request.pixels is None else KCenter(request.pixels)
        rows = warm_encode.call_each(model, processor, method, sizes, draw, compiled, note, selector)
    except (WrongArgument, UnsupportedCall, UnsupportedModel) as error:
        return {"encode": [], "encode_reason": str(error)}
    return {"encode": rows, "encode_reason": ""}


def nothing_to_compile(device: torch.device) -> str:
    """Say why no kernel is compiled for `device`; empty where some are."""
    asked = os.environ.get("VIDSIEVE_OPS", "auto")
    if device.type != "cuda":
        return f"kernels are for CUDA devices, and this is {device}"
    if asked in ("eager", "reference"):
        return f"VIDSIEVE_OPS={asked} asks for no kernels"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "TRITON_INTERPRET=1 has kernels interpreted"
    return ops.available()["triton"]


def compiled_folder() -> Path:
    """Find the folder that Triton stores compiled kernels in. Raises `VidsieveError` if it cannot be written to."""
    from triton import knobs

    try:
        return writable.folder(knobs.cache.dir)
    except VidsieveError as error:
        raise VidsieveError(
            f"compiled kernels cannot be stored (TRITON_CACHE_DIR names the folder): {error}"
        ) from error


def stored_kernels(folder: Path) -> int:
    """Count the compiled kernels in a folder of Triton's."""
    return sum(1 for _ in folder.glob("*/__grp__*.json"))


def call_each(
    model: Any,
    processor: Any,
    reducer: Attachable,
    layouts: Sequence[Layout],
    compiled: Callable[[], int],
    note: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Call `model` twice on frames of each of `layouts`, with `reducer` and the fast tower attached.

    Returns seconds and kernels of attaching, and of each layout; attaching tries the kernels of the tower.
    compiled: counts the compiled kernels.
    """
    none, start = compiled(), time.perf_counter()
    rows: list[dict[str, Any]] = []
    with attach(model, reducer, vision="auto") as trace:
        attached = {"attach_s": time.perf_counter() - start, "attach_compiled": compiled() - none}
        for frames, size in layouts:
            note(f"compiling for {frames} frames of {size[0]} x {size[1]}")
            inputs = prepare(processor, draw(frames, *size), QUESTION).to(model.device, model.dtype)
            before = compiled()
            try:
                seconds = [_seconds(model, inputs) for _ in range(2)]
            except torch.OutOfMemoryError as error:
                raise VidsieveError(
                    f"{frames} frames of {size[0]} x {size[1]} do not fit into the memory of {model.device}; "
                    "ask for fewer --frames, or a smaller --size"
                ) from error
            if not trace.videos:
                raise VidsieveError(f"the model was shown no video token of {frames} frames; expected a video model")
            tokens, new = trace.videos[-1].before, compiled() - before
            rows.append(
                {"frames": frames, "size": list(size), "tokens": tokens, "compiled": new}
                | {"first_s": seconds[0], "second_s": seconds[1]}
            )
        return {**attached, "tower": trace.tower, "layouts": rows}


def _seconds(model: Any, inputs: Any) -> float:
    """Generate one token, and return the seconds until the host knows it."""
    start = time.perf_counter()
    model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=1).tolist()
    return time.perf_counter() - start


def draw(count: int, height: int, width: int) -> Frames:
    """Draw `count` frames: squares that move to the left, and other ones that move down after a cut halfway."""
    y, x = torch.arange(height)[:, None] // SQUARE, torch.arange(width) // SQUARE
    pixels = torch.empty(count, height, width, 3, dtype=torch.uint8)
    for t in range(count):
        bright = (37 * y + 11 * (x + t)) % 256 if 2 * t < count else (91 * (y - t) + 53 * x) % 256
        pixels[t] = torch.stack([bright, 255 - bright, (bright + 128) % 256], -1)
    seconds = tuple(t / RATE for t in range(count))
    return Frames(pixels, tuple(range(count)), seconds, RATE, count, count / RATE)
