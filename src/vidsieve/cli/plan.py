"""Say what a clip would take before anything runs: tokens, memory, and seconds of each stage (`vidsieve plan`).

Nothing of the model but its configuration and its processor is read. Frames and tokens are exact. Seconds are
estimates: decoding and the processor are timed on the first frames, the model's are its FLOPs at the speed of one
matrix product on the device, which attention, norms and launches stay below.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vidsieve.encoded.encode import chunk_of
from vidsieve.engines.hf.families import adapter_for
from vidsieve.engines.hf.loading import check, prepare, usable_device
from vidsieve.engines.hf.vision.tower import find_tower
from vidsieve.engines.torchvision import make_importable
from vidsieve.methods.base import kept_count
from vidsieve.telemetry import flops
from vidsieve.types.frames import Frames
from vidsieve.video.chunks import read_chunks

QUESTION = "What happens in this video?"
ROWS, ROUNDS = 2048, 5  # of the matrix product that stands for the device's speed


def plan(
    frames: Frames,
    model: str,
    keep: float,
    device: str | None = None,
    dtype: str | None = None,
    note: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Estimate what encoding `frames`, a video that is planned (`plan_video`), and a question about it would take.

    Returns JSON values: counts of frames and tokens, bytes, and seconds by stage.
    Raises `VidsieveError` for a model that cannot be found or is not supported, or a device that cannot be used.
    """
    where, on = check(model), usable_device(device)
    make_importable()
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    note("reading the model's configuration")
    processor = AutoProcessor.from_pretrained(model, **where)
    config = AutoConfig.from_pretrained(model, **where)
    named = "float32" if on.type == "cpu" else str(getattr(config, "dtype", None) or "bfloat16").removeprefix("torch.")
    precision = getattr(torch, dtype if dtype not in (None, "auto") else named)
    with torch.device("meta"):
        described = AutoModelForImageTextToText.from_config(config, dtype=precision)
    note("asking the processor")
    inputs = prepare(processor, frames, QUESTION)
    token = getattr(config, adapter_for(described).token)
    ids = inputs["input_ids"][0]
    before = int((ids == token).sum()) - adapter_for(described).trailing
    kept = kept_count(keep, before)
    note("timing the decoder and the processor")
    first = next(iter(read_chunks(frames, chunk_of(frames, on))))
    decode, processing = (
        _timed(lambda: next(iter(read_chunks(frames, chunk_of(frames, on))))),
        _timed(lambda: prepare(processor, first, QUESTION)),
    )
    chunks = len(frames) / len(first)
    note("timing the device")
    costs = flops.layer_costs(described.get_decoder())
    speed = _flops_per_second(on, precision, config.get_text_config().hidden_size)
    left = len(ids) - before + kept
    tower = _tower_flops(described, inputs)
    item = precision.itemsize
    width = config.get_text_config().hidden_size
    return {
        "clip": frames.source,
        "model": model,
        "model_type": config.model_type,
        "device": str(on),
        "dtype": str(precision).removeprefix("torch."),
        "frames": len(frames),
        "duration": frames.duration,
        "size": list(frames.pixels.shape[1:3]),
        "keep": keep,
        "tokens_before": before,
        "tokens_after": kept,
        "prompt_before": len(ids),
        "prompt_after": left,
        "bytes": {
            "weights": item * sum(x.numel() for x in described.parameters()),
            "stored": item * kept * width,
            "kv_before": item * len(ids) * _kv_width(described),
            "kv_after": item * left * _kv_width(described),
        },
        "seconds": {
            "decode": decode * chunks,
            "process": processing * chunks,
            "tower": tower / speed,
            "first_token": flops.total(costs, left, [0] * len(costs)) / speed,
            "first_token_before": flops.total(costs, len(ids), [0] * len(costs)) / speed,
        },
    }


def _timed(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
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

    def product() -> None:
        rows @ weight
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    product()
    seconds = sorted(_timed(product) for _ in range(ROUNDS))[ROUNDS // 2]
    return 2 * ROWS * width * width / seconds
