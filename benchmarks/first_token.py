"""From pixels to the first token, with and without a fast vision tower: benchmarks/results/first_token_<device>.json.

    python -m benchmarks.first_token                    Qwen2.5-VL-7B, Qwen3-VL-8B, LLaVA-OneVision-7B; wants a GPU
    python -m benchmarks.first_token --shrink --frames 4 --rounds 1 --device cpu

What a user waits for once the processor is done: `generate` of one token, from pixels on the device, with the real
model class and random weights. 64 temporal patches of 28 x 28 patches are 12 544 tokens. Variants take turns, and each
is attached once and asked again and again, as by a server: its first calls, in which kernels are compiled and the
reduction is captured, are not counted. Medians and quantiles are over all turns.

Before a variant is timed, its tower is compared, on fewer frames, with a stock tower in float32: `error` is the norm of
the difference over that of the truth, and `stock_error` is what a stock tower in the same precision has. A variant that
encodes every pixel and is over 5 % farther off than stock, or one that keeps another number of tokens than it should,
is reported with the reason and no time.
Peak memory is of one call beyond what was held before it: weights, pixels and what is attached; `held_bytes` is what
the attached variant itself holds. `kernels` are launches on the device, `busy_ms` is their sum, both of one call after
all that are timed.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import vidsieve
from vidsieve import registry
from vidsieve.engines.torchvision import make_importable
from vidsieve.evaluation.card import commit, processor, quantiles
from vidsieve.methods import KCenter, Pixels, RunLength, Staged

RESULTS = Path(__file__).parent / "results"
VIDEO, IMAGE, START, END, WORDS = 1000, 1001, 1002, 1003, 1000
KEEP, BEFORE, QUESTION = 0.1, 20, 40  # of tokens; tokens of text around the video
CHECKED = 4  # frames that towers are compared on
FARTHER = 1.05  # times the error of stock that a tower may have
WARM_UP, TURN = 3, 3  # calls before any is counted, and in a row

_METHOD = registry.method("vidsieve")(KEEP)
VARIANTS: dict[str, tuple[Any, str]] = {  # the method, and how the tower runs
    "stock, every token": (None, "stock"),
    "packed, every token": (None, "packed"),
    "fused, every token": (None, "auto"),
    "10 %, stock tower": (_METHOD, "stock"),
    "10 %, packed tower": (_METHOD, "packed"),
    "10 %, fused tower": (_METHOD, "auto"),
    "10 %, 50 % of the pixels": (Staged({Pixels(): KCenter(0.5), 0: _METHOD}), "auto"),
    "10 %, 25 % of the pixels": (Staged({Pixels(): KCenter(0.25), 0: _METHOD}), "auto"),
    "10 %, 50 %, run length": (Staged({Pixels(): RunLength(0.5), 0: _METHOD}), "auto"),
    "10 %, 25 %, run length": (Staged({Pixels(): RunLength(0.25), 0: _METHOD}), "auto"),
}


def _text(layers: int, hidden: int, heads: int, groups: int, inner: int, **more: Any) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads,
        "num_key_value_heads": groups, "intermediate_size": inner, "vocab_size": 1024,
        "max_position_embeddings": 131072, "pad_token_id": 0, **more,
    }  # fmt: skip


def _mrope(*section: int, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1e6, "mrope_section": list(section), **more}


_IDS = {"video_token_id": VIDEO, "image_token_id": IMAGE}
_TOKENS = {
    "video_token_id": "<|video_pad|>",
    "image_token_id": "<|image_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}  # of Qwen's tokenizers
_MARKS = {**_IDS, "vision_start_token_id": START, "vision_end_token_id": END}


def qwen2_5_vl(shrink: bool) -> Any:
    """Qwen2.5-VL-7B's shapes."""
    text = _text(28, 3584, 28, 4, 18944, rope_parameters=_mrope(16, 24, 24))
    tower = {"depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420, "out_hidden_size": 3584}
    if shrink:
        text |= _text(2, 64, 4, 2, 96, rope_parameters=_mrope(2, 3, 3))
        tower |= {"depth": 2, "hidden_size": 64, "num_heads": 4, "intermediate_size": 100, "out_hidden_size": 64}
        tower["fullatt_block_indexes"] = [1]
    return transformers.Qwen2_5_VLConfig(text_config=text, vision_config=tower, **_MARKS)


def qwen3_vl(shrink: bool) -> Any:
    """Qwen3-VL-8B's shapes."""
    text = _text(36, 4096, 32, 8, 12288, head_dim=128, rope_parameters=_mrope(24, 20, 20, mrope_interleaved=True))
    tower = {"depth": 27, "hidden_size": 1152, "num_heads": 16, "intermediate_size": 4304, "out_hidden_size": 4096}
    if shrink:
        text |= _text(3, 64, 4, 2, 96, head_dim=16, rope_parameters=_mrope(4, 2, 2, mrope_interleaved=True))
        tower |= {"depth": 2, "hidden_size": 64, "num_heads": 4, "intermediate_size": 96, "out_hidden_size": 64}
        tower |= {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}
    return transformers.Qwen3VLConfig(text_config=text, vision_config=tower, **_MARKS)


def llava_onevision(shrink: bool) -> Any:
    """LLaVA-OneVision-7B's shapes."""
    text = {"model_type": "qwen2", **_text(28, 3584, 28, 4, 18944)}
    tower = {"model_type": "siglip_vision_model", "vision_use_head": False, "hidden_size": 1152, "patch_size": 14}
    tower |= {"num_hidden_layers": 26, "num_attention_heads": 16, "intermediate_size": 4304, "image_size": 384}
    if shrink:
        text |= _text(2, 64, 4, 2, 96)
        tower |= {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "hidden_size": 64}
        tower["image_size"] = 56
    ids = {**_IDS, "image_token_index": IMAGE, "video_token_index": VIDEO, "image_grid_pinpoints": [[384, 384]]}
    return transformers.LlavaOnevisionConfig(
        text_config=text, vision_config=tower, vision_feature_select_strategy="full", vision_feature_layer=-1, **ids
    )


MODELS = {"qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl, "llava_onevision": llava_onevision}


def make(
    name: str, shrink: bool, dtype: torch.dtype, device: torch.device, tokenizer: Any = None, config: Any = None
) -> Any:
    """The model with random weights, which never ends a generation early.

    tokenizer: whose tokens mark a video.  config: in place of that of `name`.
    """
    config = MODELS[name](shrink) if config is None else config
    if tokenizer is not None:
        for attribute, token in _TOKENS.items():
            setattr(config, attribute, tokenizer.convert_tokens_to_ids(token))
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    with device:
        made = transformers.AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()
    made.generation_config.eos_token_id = None
    made.generation_config.pad_token_id = 0
    return made.requires_grad_(False)


def inputs(config: Any, frames: int, side: int, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Text, a video of noise and a question. side: patches of a frame, in each direction, where that may be chosen."""
    generator = torch.Generator(device).manual_seed(0)
    words = torch.randint(1, WORDS, (BEFORE + QUESTION,), generator=torch.Generator().manual_seed(0)).tolist()
    made: dict[str, Tensor] = {}
    tower = config.vision_config
    if config.model_type == "llava_onevision":
        tokens = (-(-(tower.image_size // tower.patch_size) // 2)) ** 2
        runs = [frames * tokens + 1]
        shape: tuple[int, ...] = (1, frames, 3, tower.image_size, tower.image_size)
    else:
        tokens = side**2 // 4
        runs = [frames * tokens] if config.model_type == "qwen2_5_vl" else [tokens] * frames
        made["video_grid_thw"] = torch.tensor([[frames, side, side]], device=device)
        shape = frames * side**2, 6 * tower.patch_size**2
    made["pixel_values_videos"] = torch.randn(shape, generator=generator, device=device).to(dtype)
    ids, kinds = words[:BEFORE], [0] * BEFORE
    for run in runs:
        ids += [START, *[VIDEO] * run, END]
        kinds += [0, *[2] * run, 0]
    ids += words[BEFORE:]
    kinds += [0] * QUESTION
    made["input_ids"] = torch.tensor([ids], device=device)
    made["attention_mask"] = torch.ones_like(made["input_ids"])
    if config.model_type != "llava_onevision":
        made["mm_token_type_ids"] = torch.tensor([kinds], device=device)
    return made


def variants_of(name: str) -> list[str]:
    """The variants that a model has: a tower whose frames are one batch cannot be packed."""
    return [variant for variant, (_, vision) in VARIANTS.items() if vision != "packed" or name != "llava_onevision"]


@contextmanager
def attached(model: Any, variant: str) -> Iterator[Any]:
    """The variant on the model; yields its trace, None for a stock model."""
    method, vision = VARIANTS[variant]
    if method is None and vision == "stock":
        yield None
        return
    with vidsieve.attach(model, method, vision=vision) as trace:
        yield trace


def features(model: Any, given: dict[str, Tensor]) -> Tensor:
    """What the model makes of the pixels before its language model."""
    described = [given[name] for name in ("pixel_values_videos", "video_grid_thw") if name in given]
    found = model.base_model.get_video_features(*described, return_dict=True).pooler_output
    return torch.cat(list(found)) if isinstance(found, (list, tuple)) else found.flatten(0, -2)


def difference(found: Tensor, true: Tensor) -> float:
    """The norm of the difference over that of the truth."""
    return float((found.double() - true.double()).norm() / true.double().norm())


def errors(model: Any, name: str, side: int, dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """Of each variant's tower, on a few frames, against a stock tower in float32."""
    few = inputs(model.config, CHECKED, side, dtype, device)
    body = model.base_model
    precise = copy.deepcopy(body, {id(body.language_model): torch.nn.Identity()}).float()  # not a second decoder
    true = features(_Body(precise), {**few, "pixel_values_videos": few["pixel_values_videos"].float()})
    del precise
    found = {}
    for variant in variants_of(name):
        with attached(model, variant):
            found[variant] = difference(features(model, few), true)
    return found


class _Body:
    """A model that is nothing but its body."""

    def __init__(self, body: Any) -> None:
        self.base_model = body


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(call: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    begin = time.perf_counter()
    call()
    synchronize(device)
    return 1e3 * (time.perf_counter() - begin)


def launches(call: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Kernels of one call, and how long the device was busy with them."""
    if device.type != "cuda":
        return {"kernels": None, "busy_ms": None, "longest": None}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        synchronize(device)
    spent: dict[str, float] = {}
    count = 0
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            count += 1
            spent[event.name[:80]] = spent.get(event.name[:80], 0.0) + event.time_range.elapsed_us() / 1e3
    longest = sorted(spent.items(), key=lambda item: -item[1])[:8]
    return {
        "kernels": count,
        "busy_ms": round(sum(spent.values()), 2),
        "longest": {name: round(ms, 2) for name, ms in longest},
    }


def measure(name: str, options: argparse.Namespace, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row for each variant of one model."""
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    model = make(name, options.shrink, dtype, device)
    side = 8 if options.shrink else options.side
    with torch.no_grad():
        off = errors(model, name, side, dtype, device)
    given = inputs(model.config, options.frames, side, dtype, device)
    prompt = given["input_ids"].shape[1]
    tokens = int((given["input_ids"] == VIDEO).sum()) - (name == "llava_onevision")

    def first_token() -> None:
        model.generate(**given, max_new_tokens=1, do_sample=False)

    times: dict[str, list[float]] = {variant: [] for variant in variants_of(name)}
    rows: dict[str, dict[str, Any]] = {}
    for done in range(0, options.rounds, TURN):
        for variant in variants_of(name):
            tell(f"{name}, {variant}: {done} of {options.rounds}")
            synchronize(device)
            free = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
            with attached(model, variant) as trace:
                for _ in range(WARM_UP):
                    first_token()
                if variant not in rows:
                    rows[variant] = describe(variant, trace, tokens, prompt, off)
                    rows[variant] |= memory(first_token, free, device)
                times[variant] += [milliseconds(first_token, device) for _ in range(min(TURN, options.rounds - done))]
    for variant, row in rows.items():  # after all times: once it has been on, a profiler makes every launch take longer
        with attached(model, variant):
            for _ in range(WARM_UP):
                first_token()
            row |= launches(first_token, device)
    for variant, row in rows.items():
        low, middle, high = quantiles(times[variant]) if row["wrong"] is None else (None,) * 3
        row |= {"model": name, "variant": variant, "from": "pixels"}
        row |= {"median_ms": middle, "q20_ms": low, "q80_ms": high}
    return list(rows.values())


def describe(variant: str, trace: Any, tokens: int, prompt: int, off: dict[str, float]) -> dict[str, Any]:
    """What a variant did, and what is wrong with it; None if nothing is."""
    method, _ = VARIANTS[variant]
    stock = off["stock, every token"]
    row: dict[str, Any] = {"error": off[variant], "stock_error": stock, "wrong": None}
    row["tower"] = "stock" if trace is None else trace.tower
    after = tokens
    if method is not None:
        [video] = trace.calls[-1].videos
        after = video.after
    row |= {"tokens": tokens, "tokens_after": after, "prompt": prompt}
    exact = getattr(method, "pixels", None) is None  # without, a tower that computes less is farther off
    if exact and off[variant] > FARTHER * stock + 1e-6:
        row["wrong"] = f"its tower is {off[variant]:.3g} from float32, stock {stock:.3g}"
    if after != (tokens if method is None else round(KEEP * tokens)):
        row["wrong"] = f"{after} of {tokens} tokens were left"
    return row


def memory(call: Callable[[], object], free: int, device: torch.device) -> dict[str, Any]:
    """Bytes that a call takes at its peak, and that what is attached holds."""
    if device.type != "cuda":
        return {"peak_bytes": None, "held_bytes": None}
    synchronize(device)
    held = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    synchronize(device)
    return {"peak_bytes": torch.cuda.max_memory_allocated(device) - free, "held_bytes": held - free}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", action="append", choices=MODELS, help="(all)")
    parser.add_argument("--frames", type=int, default=64, help="temporal patches (64)")
    parser.add_argument("--side", type=int, default=28, help="patches of a frame in each direction (28)")
    parser.add_argument("--rounds", type=int, default=9, help="calls of each variant (9)")
    parser.add_argument("--shrink", action="store_true", help="small layers, to see that it runs")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="(bfloat16; float32 on cpu)")
    parser.add_argument("--device", help="(cuda where there is one)")
    parser.add_argument("--out", type=Path, help="(results/first_token_<device>.json)")
    options = parser.parse_args()
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    options.dtype = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    on_cpu = torch.device(options.device).type == "cpu"
    device = processor() if on_cpu else torch.cuda.get_device_name(options.device)

    make_importable()
    shown = f"--frames {options.frames} --side {options.side} --rounds {options.rounds} --dtype {options.dtype}"
    card = {
        "command": f"python -m benchmarks.first_token {shown}{' --shrink' * options.shrink}",
        "commit": commit(),
        "device": device,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "triton": None if on_cpu else version("triton"),
        "cuda": torch.version.cuda,
    }
    kind = "cpu" if on_cpu else next(word.lower() for word in device.split() if any(c.isdigit() for c in word))
    out = options.out or RESULTS / f"first_token_{kind}.json"
    rows: list[dict[str, Any]] = []
    for name in options.model or MODELS:
        rows += measure(name, options, lambda text: print(text, file=sys.stderr, flush=True))
        out.write_text(json.dumps({"card": card, "rows": rows}, indent=1) + "\n")
        if not on_cpu:
            torch.cuda.empty_cache()
    print(table(rows))
    print(f"wrote {out}", file=sys.stderr)


def table(rows: list[dict[str, Any]]) -> str:
    """Medians, and how many times sooner each variant is than stock and than packed with every token."""
    lines = [f"{'model':16} {'variant':24} {'ms':>9} {'stock/':>7} {'packed/':>8} {'kernels':>8} {'peak MiB':>9}"]
    for row in rows:
        of = {other["variant"]: other["median_ms"] for other in rows if other["model"] == row["model"]}
        if row["wrong"]:
            lines.append(f"{row['model']:16} {row['variant']:24} {row['wrong']}")
            continue
        sooner = [
            f"{base / row['median_ms']:.2f}" if (base := of.get(name)) else "-"
            for name in ("stock, every token", "packed, every token")
        ]
        peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}"
        lines.append(
            f"{row['model']:16} {row['variant']:24} {row['median_ms']:9.1f} {sooner[0]:>7} {sooner[1]:>8} "
            f"{row['kernels'] or '-':>8} {peak:>9}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
