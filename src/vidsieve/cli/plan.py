"""Say what a clip would take before anything runs: tokens, memory, and seconds of each stage (`vidsieve plan`).

Nothing of the model but its configuration and its processor is read. Frames and tokens are exact. Seconds are
estimates: decoding and the processor are timed on the first frames, the model's are its FLOPs at the speed of one
matrix product on the device, which attention, norms and launches stay below.
"""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from vidsieve.encoded import file
from vidsieve.encoded.chunks import processing
from vidsieve.encoded.encode import chunk_of, lengths
from vidsieve.encoded.fingerprint import Fingerprint, full_name
from vidsieve.engines.hf.families import adapter_for
from vidsieve.engines.hf.loading import check, frames_joined, loading, prepare, usable_device, without_bars
from vidsieve.engines.hf.vision.tower import find_tower
from vidsieve.engines.torchvision import make_importable
from vidsieve.methods.base import kept_count
from vidsieve.methods.budget import MarginalGain
from vidsieve.methods.prune import Prune
from vidsieve.telemetry import flops
from vidsieve.types.frames import Frames
from vidsieve.types.selection import Rows, Selection
from vidsieve.types.statistics import TokenStatistics
from vidsieve.types.tokens import VideoTokens
from vidsieve.video.chunks import read_chunks

QUESTION = "What happens in this video?"
ROWS, ROUNDS = 2048, 5  # of the matrix product that stands for the device's speed


def plan(
    frames: Frames,
    model: str,
    method: Prune,
    device: str | None = None,
    dtype: str | None = None,
    note: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Estimate what encoding `frames`, a video that is planned (`plan_video`), and a question about it would take.

    method: from `in_chunks`.
    Returns JSON values: counts of frames and tokens, bytes, and seconds by stage. The file has `stored` bytes at least
    and `stored_most` at most: how many depends on how many segments its scenes make.
    Raises `VidsieveError` for a model that cannot be found or is not supported, or a device that cannot be used.
    """
    note("reading the model's configuration")
    on = usable_device(device)
    processor, described = _described(model, on, dtype)
    note("asking the processor")
    inputs = prepare(processor, frames, QUESTION)
    adapter, ids = adapter_for(described), inputs["input_ids"][0]
    before = int((ids == getattr(described.config, adapter.token)).sum()) - adapter.trailing
    kept = kept_count(method.keep, before)
    prompt = len(ids), len(ids) - before + kept
    note("timing the decoder, the processor and the device")
    seconds = _seconds(frames, processor, described, inputs, prompt, on)
    item = described.dtype.itemsize
    stored = [_stored(frames, processor, described, before, method, model, cut) for cut in (False, True)]
    return {
        "clip": frames.source,
        "model": model,
        "model_type": described.config.model_type,
        "device": str(on),
        "dtype": str(described.dtype).removeprefix("torch."),
        "frames": len(frames),
        "duration": frames.duration,
        "size": list(frames.pixels.shape[1:3]),
        "keep": method.keep,
        "tokens_before": before,
        "tokens_after": kept,
        "prompt_before": prompt[0],
        "prompt_after": prompt[1],
        "bytes": {
            "weights": item * sum(x.numel() for x in described.parameters()),
            "stored": stored[0],
            "stored_most": stored[1],
            "kv_before": item * prompt[0] * _kv_width(described),
            "kv_after": item * prompt[1] * _kv_width(described),
        },
        "seconds": seconds,
    }


def _stored(frames: Frames, processor: Any, described: Any, before: int, method: Prune, name: str, cut: bool) -> int:
    """Count the bytes of the file of a video of `before` tokens: as one scene, or, if `cut`, where each frame is one.

    Each segment has a spare row in the file (`Selection`).
    """
    count, kept = -(-len(frames) // frames_joined(processor)), kept_count(method.keep, before)
    sizes = tuple(before // count + (i < before % count) for i in range(count))
    alike = TokenStatistics(persistence=torch.full((before,), -1.0 if cut else 1.0))
    offsets = method.segmenter(VideoTokens(torch.zeros(before, 1), sizes), alike).offsets
    lengths = torch.tensor(sorted({*offsets.tolist()})).diff()
    config, adapter = described.config, adapter_for(described)
    width = config.get_text_config().hidden_size
    layers = getattr(getattr(config, "vision_config", None), "deepstack_visual_indexes", None) or ()

    def rows(n: int) -> Rows:
        features = torch.empty(n, width, dtype=described.dtype, device="meta")
        others = {argument: features.expand(len(layers), n, width) for argument in adapter.per_visual if layers}
        numbers = torch.empty(n, dtype=torch.int64, device="meta")
        return Rows(numbers, features, others, numbers.int(), numbers.int())

    gains = lengths.float() if isinstance(method.budget, MarginalGain) else None
    spare = rows(min(len(lengths), before - kept))
    selection = Selection(*rows(kept), lengths, gains, getattr(method.budget, "floor", 0.0), before, spare)
    fingerprint = replace(Fingerprint.of(described, method.keep, repr(method)), name=full_name(name))
    return file.length(frames, selection, rows(adapter.trailing).features, sizes, None, fingerprint)


def _described(model: str, device: torch.device, dtype: str | None) -> tuple[Any, Any]:
    """Load the processor, and make the model without its weights, on "meta"."""
    where = check(model)
    make_importable()
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    with loading(model), without_bars():
        config = AutoConfig.from_pretrained(model, **where)
        processor = AutoProcessor.from_pretrained(model, **where)
    own = str(getattr(config, "dtype", None) or "bfloat16").removeprefix("torch.")
    usual = "float32" if device.type == "cpu" else own
    with torch.device("meta"):
        precision = getattr(torch, dtype if dtype not in (None, "auto") else usual)
        described = AutoModelForImageTextToText.from_config(config, dtype=precision)
    return processor, described


def _seconds(
    frames: Frames, processor: Any, described: Any, inputs: Any, prompt: tuple[int, int], device: torch.device
) -> dict[str, float]:
    """Estimate the seconds of each stage, and to the first token of a prompt of so many tokens, whole and reduced."""
    _, size = lengths(chunk_of(frames, device), processor)
    first = _first(frames, size)
    chunks = len(frames) / len(first)
    process = processing(described, processor, frames, device)
    process(first)  # the first has a prompt to write, and a GPU to start
    costs = flops.layer_costs(described.get_decoder())
    speed = _flops_per_second(device, described.dtype, described.config.get_text_config().hidden_size)
    whole, reduced = (flops.total(costs, tokens, [0] * len(costs)) / speed for tokens in prompt)
    return {
        "decode": chunks * _timed(lambda: _first(frames, size), device),
        "process": chunks * _timed(lambda: process(first), device),
        "tower": _tower_flops(described, inputs) / speed,
        "first_token": reduced,
        "first_token_before": whole,
    }


def _first(frames: Frames, size: int) -> Frames:
    with closing(read_chunks(frames, size)) as chunks:
        return next(chunks)


def _timed(work: Callable[[], Any], device: torch.device) -> float:
    begin = time.perf_counter()
    work()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - begin


def _kv_width(model: Any) -> int:
    """Count the numbers that a token holds in the caches of attention."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    layers = sum(hasattr(layer, "self_attn") for layer in model.get_decoder().layers)
    return int(2 * layers * head * (getattr(config, "num_key_value_heads", None) or heads))


def _tower_flops(model: Any, inputs: Any) -> float:
    """Count the products of weights of the vision tower on the pixels of `inputs`; attention is left out."""
    tower, vision = find_tower(model), model.config.vision_config
    pixels = next((x for name, x in inputs.items() if name.startswith("pixel_values")), None)
    if tower is None or pixels is None:
        return 0.0
    side = vision.patch_size if isinstance(vision.patch_size, int) else vision.patch_size[0]
    patches = pixels.numel() / (
        3 * side * side * (getattr(vision, "temporal_patch_size", 1) if pixels.ndim == 2 else 1)
    )
    weights = sum(module.weight.numel() for module in tower.modules() if isinstance(module, nn.Linear))
    return float(2 * weights * patches)


def _flops_per_second(device: torch.device, dtype: torch.dtype, width: int) -> float:
    """Measure the speed of a matrix product of (ROWS, width) by (width, width): the median of a few."""
    rows, weight = (
        torch.ones(ROWS, width, device=device, dtype=dtype),
        torch.ones(width, width, device=device, dtype=dtype),
    )

    _timed(lambda: rows @ weight, device)
    seconds = sorted(_timed(lambda: rows @ weight, device) for _ in range(ROUNDS))[ROUNDS // 2]
    return 2 * ROWS * width * width / seconds
