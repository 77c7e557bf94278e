"""Prefill of a video LLM with and without reduction: benchmarks/results/prefill_<device>.json.

    python benchmarks/prefill.py        Qwen2.5-VL-7B's shapes; wants a GPU
    python benchmarks/prefill.py --frames 16 --tokens 36 --hidden 128 --heads 4 --kv-heads 2 --intermediate 256
    python benchmarks/plot.py           the figure

The real model class with random weights made on the device; the vision tower is left out: the video's features are made
beforehand, scenes with cuts in which half of the places are still, and handed to the model where its tower's would be.
So a time is that of everything else from token ids to the first logits: finding the videos, embedding, positions, every
reduction, the decoder. Variants take turns within a round; medians and quantiles are over rounds.

A variant's `overhead_ms` is what stands between the layers: on the device's own clock, from the end of what came before
the hooks to the start of what comes after, summed over the body, the decoder (before and after) and all its layers,
plus the reading of attention within a layer; less what the same marks show where there are no hooks, which is what
`full` has for it. The FLOPs are those that the trace counts, of the decoder's layers. Peak
memory is of one prefill beyond what was held before it, weights and features. Weights are random, so what is kept means
nothing; how much is kept is checked, and a variant that missed its cost by more than 1 % is reported without a time.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import Tensor

from vidsieve import presets
from vidsieve._card import commit, processor, quantiles
from vidsieve.reducer import Attachable

RESULTS = Path(__file__).parent / "results"
VIDEO, IMAGE, START, END, WORDS = 1000, 1001, 1002, 1003, 1000
BEFORE, QUESTION = 20, 40  # tokens of text around the video
COST = 0.3
VARIANTS: dict[str, Attachable | None] = {
    "full": None,
    "before-10": presets.vidsieve(0.1),
    "framefusion-cost-30": presets.framefusion(COST),
    "hieravid-30": presets.hieravid(0.3),
}


def model(options: argparse.Namespace, device: torch.device) -> Any:
    """Qwen2.5-VL with random weights and next to no vision tower."""
    half = options.hidden // options.heads // 2
    plane = 3 * half // 8  # of a head's frequencies, for rows and for columns; the rest is for time
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [half - 2 * plane, plane, plane]}
    text = {
        "vocab_size": 1024,
        "hidden_size": options.hidden,
        "intermediate_size": options.intermediate,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads,
        "num_key_value_heads": options.kv_heads,
        "max_position_embeddings": 131072,
        "rope_parameters": rope,
        "pad_token_id": 0,
    }
    tower = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": options.hidden}
    ids = {"video_token_id": VIDEO, "image_token_id": IMAGE, "vision_start_token_id": START, "vision_end_token_id": END}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=tower, **ids)
    config._attn_implementation = "sdpa"
    with device:
        made = transformers.AutoModelForImageTextToText.from_config(config, dtype=getattr(torch, options.dtype))
    return made.eval()


def features(options: argparse.Namespace, device: torch.device) -> Tensor:
    """(T * P, D): a scene every eight frames, in which every other place is still and the rest moves."""
    generator = torch.Generator(device).manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    motion = torch.tensor([0.2, 1.2], device=device).repeat(options.tokens)[: options.tokens, None]
    frames: list[Tensor] = []
    scene = noise(0)
    for t in range(options.frames):
        if t % 8 == 0:
            scene = noise(options.tokens, options.hidden)
        frames.append(0.02 * (scene + motion * noise(options.tokens, options.hidden)))
    return torch.cat(frames).to(getattr(torch, options.dtype))


def inputs(options: argparse.Namespace, device: torch.device) -> dict[str, Tensor]:
    """A prompt of text, one video and a question; its pixels are empty, for the features are given."""
    rows = max(n for n in range(1, math.isqrt(options.tokens) + 1) if options.tokens % n == 0)
    n = options.frames * options.tokens
    words = torch.randint(1, WORDS, (BEFORE + QUESTION,), generator=torch.Generator().manual_seed(0)).tolist()
    ids = [*words[:BEFORE], START, *[VIDEO] * n, END, *words[BEFORE:]]
    kinds = [0] * (BEFORE + 1) + [2] * n + [0] * (QUESTION + 1)
    made = {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        "mm_token_type_ids": torch.tensor([kinds]),
        "video_grid_thw": torch.tensor([[options.frames, 2 * rows, 2 * options.tokens // rows]]),
        "pixel_values_videos": torch.zeros(1),
    }
    return {name: x.to(device) for name, x in made.items()}


class Clock:
    """Milliseconds between pairs of marks on the device's own clock."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.marks: list[Any] = []

    def mark(self, *_: Any) -> None:
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(1e3 * time.perf_counter())

    def total(self) -> float:
        pairs = zip(self.marks[::2], self.marks[1::2], strict=True)
        if self.cuda:
            torch.cuda.synchronize()
            return sum(a.elapsed_time(b) for a, b in pairs)
        return sum(b - a for a, b in pairs)


def prefill(whole: Any, given: dict[str, Tensor], method: Attachable | None, device: torch.device, hooks: bool) -> Any:
    """One prefill: its milliseconds, those in hooks if asked for, its trace, its cache and its peak memory."""
    clock = Clock(device)
    with ExitStack() as stack, torch.no_grad():

        def marks() -> None:
            decoder = whole.get_decoder()
            for module in (whole.base_model, decoder, *decoder.layers):
                stack.callback(module.register_forward_pre_hook(lambda *_: clock.mark()).remove)
            stack.callback(decoder.register_forward_hook(lambda *_: clock.mark()).remove)

        if hooks:
            marks()
        trace = stack.enter_context(nullcontext() if method is None else method(whole))
        if hooks:
            marks()
        around = Clock(device)
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        around.mark()
        out = whole(**given, use_cache=True, logits_to_keep=1)
        around.mark()
        spent = around.total()
        peak = torch.cuda.max_memory_allocated() - before if device.type == "cuda" else None
        held = [layer.keys.shape[2] for layer in out.past_key_values.layers]
        stored = sum(layer.keys.nbytes + layer.values.nbytes for layer in out.past_key_values.layers)
        between = clock.total() + (trace.stages_ms.get("attention", 0.0) if trace else 0.0)
        finite = bool(out.logits.isfinite().all())
        return SimpleNamespace(
            ms=spent, hooks_ms=between, held=held, stored=stored, peak=peak, trace=trace, finite=finite
        )


def check(name: str, found: Any, tokens: int) -> str:
    """What is wrong with a prefill; empty where nothing is."""
    if not found.finite:
        return "logits hold NaN or inf"
    if name == "full":
        return "" if set(found.held) == {tokens} else f"the cache holds {found.held}"
    if "cost" in name and abs(found.trace.cost - COST) > 0.01 * COST:
        return f"spent {found.trace.cost:.4f} of the FLOPs instead of {COST}"
    [video] = found.trace.videos
    if found.held[-1] != tokens - video.before + video.after:
        return f"{video.after} tokens left, but the last layer holds {found.held[-1]}"
    return ""


def measure(
    whole: Any, given: dict[str, Tensor], rounds: int, device: torch.device, tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    wrong: dict[str, str] = {}
    last: dict[str, Any] = {}
    times: dict[str, list[float]] = {}
    hooks: dict[str, list[float]] = {}
    tokens = given["input_ids"].shape[1]
    for name, method in VARIANTS.items():
        tell(name)
        for _ in range(2):  # warm-up, and compilation of the kernels
            last[name] = prefill(whole, given, method, device, hooks=False)
        wrong[name] = check(name, last[name], tokens)
        times[name], hooks[name] = [], []
    for turn in range(rounds):
        tell(f"round {turn + 1} of {rounds}")
        for name, method in VARIANTS.items():
            times[name].append(prefill(whole, given, method, device, hooks=False).ms)
            hooks[name].append(prefill(whole, given, method, device, hooks=True).hooks_ms)
    bare = quantiles(hooks["full"])[1]
    rows = []
    whole_flops = last["before-10"].trace.flops[0]
    for name, found in last.items():
        low, middle, high = (None,) * 3 if wrong[name] else quantiles(times[name])
        overhead = quantiles(hooks[name] if name == "full" else [ms - bare for ms in hooks[name]])
        trace = found.trace
        spent = trace.flops[1] if trace else whole_flops
        rows.append(
            {
                "variant": name,
                "method": repr(VARIANTS[name]) if trace else None,
                "wrong": wrong[name] or None,
                "median_ms": middle,
                "q20_ms": low,
                "q80_ms": high,
                "overhead_q20_ms": overhead[0],
                "overhead_ms": overhead[1],
                "overhead_q80_ms": overhead[2],
                "stages_ms": {stage: round(ms, 3) for stage, ms in trace.stages_ms.items()} if trace else {},
                "flops": spent,
                "flops_share": round(spent / whole_flops, 4),
                "peak_bytes": found.peak,
                "kv_bytes": found.stored,
                "tokens_held": found.held,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, value in (("frames", 64), ("tokens", 196), ("layers", 28), ("hidden", 3584), ("heads", 28),
                        ("kv-heads", 4), ("intermediate", 18944), ("rounds", 10)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value, help=f"({value})")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="(bfloat16; float32 on cpu)")
    parser.add_argument("--device", help="(cuda where there is one)")
    parser.add_argument("--out", type=Path, help="(results/prefill_<device>.json)")
    options = parser.parse_args()
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    options.dtype = options.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()

    torch.manual_seed(0)
    whole, given, video = model(options, device), inputs(options, device), features(options, device)
    encoded = SimpleNamespace(pooler_output=(video,))
    whole.base_model.get_video_features = lambda *_, **__: encoded
    rows = measure(whole, given, options.rounds, device, lambda text: print(text, file=sys.stderr, flush=True))
    sizes = ("frames", "tokens", "layers", "hidden", "heads", "kv_heads", "intermediate", "rounds")
    shown = " ".join(f"--{size.replace('_', '-')} {getattr(options, size)}" for size in sizes)
    card = {
        "command": f"python benchmarks/prefill.py {shown}",
        "device": name,
        "threads": torch.get_num_threads(),
        "dtype": options.dtype,
        "attention": "sdpa",
        "prompt": given["input_ids"].shape[1],
        **{package: version(package) for package in ("torch", "transformers", "vidsieve")},
        "commit": commit(),
    }
    kind = "cpu" if device.type == "cpu" else name.split()[-1].lower()
    out = options.out or RESULTS / f"prefill_{kind}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"card": card, "rows": rows}, indent=1) + "\n")
    for row in rows:
        ms = row["wrong"] or f"{row['median_ms']:9.1f} ms ({row['q20_ms']:.1f} to {row['q80_ms']:.1f})"
        peak = "" if row["peak_bytes"] is None else f", peak {row['peak_bytes'] / 2**30:.2f} GiB"
        print(
            f"{row['variant']:20} {ms}, hooks {row['overhead_ms']:.2f} ms, {row['flops_share']:.3f} of the FLOPs{peak}"
        )


if __name__ == "__main__":
    main()
