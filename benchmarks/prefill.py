"""Prefill of a video LLM with and without reduction: benchmarks/results/prefill_<device>.json.

    python benchmarks/prefill.py        Qwen2.5-VL-7B's shapes; wants a GPU
    python benchmarks/prefill.py --frames 16 --tokens 36 --hidden 128 --heads 4 --kv-heads 2 --intermediate 256
    python benchmarks/plot.py           the figure

The real model class with random weights made on the device; the vision tower is left out: the video's features are made
beforehand, scenes with cuts in which half of the places are still, and handed to the model where its tower's would be.
Positions are given, as `generate` gives them. So a time is that of everything else from token ids to the first logits:
finding the videos, embedding, every reduction, the decoder. A method is attached once and asked again and again, as by
a server: its first prefills, in which kernels are compiled and the reduction is captured, are not counted. Variants
take turns, a few prefills each; medians and quantiles are over all of them.

A variant's `overhead_ms` is what stands between the layers: on the device's own clock, from the end of what came before
the hooks to the start of what comes after, summed over the body, the decoder (before and after) and all its layers,
plus the reading of attention within a layer; less what the same marks show where there are no hooks, which is what
`full` has for it. The FLOPs are those that the trace counts, of the decoder's layers. Peak memory is of one prefill
beyond what was held before it: weights and features; `kept_bytes` is what the attached method holds from one prefill to
the next. Weights are random, so what is kept means nothing; how much is kept is checked, and a variant that missed its
cost by more than 1 % is reported without a time.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import Tensor

from vidsieve.engines.hf import contract
from vidsieve.engines.torchvision import make_importable
from vidsieve.evaluation.card import commit, processor, quantiles
from vidsieve.methods import ConditionalDPP, MarginalGain, Novelty, Prune, Within, presets
from vidsieve.methods.base import Attachable

RESULTS = Path(__file__).parent / "results"
VIDEO, IMAGE, START, END, WORDS = 1000, 1001, 1002, 1003, 1000
BEFORE, QUESTION = 20, 40  # tokens of text around the video
COST = 0.3
WARM_UP, TURN = 6, 5  # prefills before any is counted, and pairs of them in a row
VARIANTS: dict[str, Attachable | None] = {
    "full": None,
    "before-10": presets.vidsieve(0.1),
    "novelty-10": Prune(0.1, Within(), MarginalGain(floor=0), Novelty(), ConditionalDPP()),
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


def positions(whole: Any, given: dict[str, Tensor]) -> Tensor:
    """(4, 1, L), as `generate` gives them: a row that counts the tokens, and three of places in time and the frame."""
    asked = {name: given[name] for name in ("mm_token_type_ids", "video_grid_thw", "attention_mask")}
    rotary, _ = whole.base_model.get_rope_index(given["input_ids"], **asked)
    count = torch.arange(rotary.shape[-1], device=rotary.device)
    return torch.cat([count.expand(1, 1, -1), rotary])


class Clock:
    """Milliseconds between pairs of marks on the device's own clock, while it is on."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.on = True
        self.marks: list[Any] = []

    def mark(self, *_: Any) -> None:
        if not self.on:
            return
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(1e3 * time.perf_counter())

    def total(self) -> float:
        """Of all pairs so far, which are forgotten."""
        pairs = list(zip(self.marks[::2], self.marks[1::2], strict=True))
        self.marks.clear()
        if self.cuda:
            torch.cuda.synchronize()
            return sum(a.elapsed_time(b) for a, b in pairs)
        return sum(b - a for a, b in pairs)


@contextmanager
def attached(whole: Any, method: Attachable | None, between: Clock) -> Iterator[Any]:
    """`method` on the model, with marks of `between` around its hooks; yields its trace."""
    with ExitStack() as stack:

        def marks() -> None:
            decoder = whole.get_decoder()
            for module in (whole.base_model, decoder, *decoder.layers):
                stack.callback(module.register_forward_pre_hook(lambda *_: between.mark()).remove)
            stack.callback(decoder.register_forward_hook(lambda *_: between.mark()).remove)

        marks()
        trace = stack.enter_context(nullcontext() if method is None else method(whole))
        marks()
        yield trace


def prefill(whole: Any, given: dict[str, Tensor], trace: Any, between: Clock, marked: bool) -> Any:
    """One prefill: its milliseconds, those in hooks if they are marked, its record, its cache and its peak memory."""
    device = given["input_ids"].device
    around = Clock(device)
    between.on = marked
    before = None
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    with torch.no_grad():
        around.mark()
        out = whole(**given, use_cache=True, logits_to_keep=1)
        around.mark()
    spent = around.total()
    call = trace.calls[-1] if trace else None
    return SimpleNamespace(
        ms=spent,
        hooks_ms=between.total() + (call.stages_ms.get("attention", 0.0) if call else 0.0),
        held=[layer.keys.shape[2] for layer in out[contract.CACHE].layers],
        stored=sum(layer.keys.nbytes + layer.values.nbytes for layer in out[contract.CACHE].layers),
        peak=None if before is None else torch.cuda.max_memory_allocated() - before,
        call=call,
        finite=bool(out.logits.isfinite().all()),
    )


def check(name: str, found: Any, tokens: int) -> str:
    """What is wrong with a prefill; empty where nothing is."""
    if not found.finite:
        return "logits hold NaN or inf"
    if name == "full":
        return "" if set(found.held) == {tokens} else f"the cache holds {found.held}"
    if "cost" in name and abs(found.call.cost - COST) > 0.01 * COST:
        return f"spent {found.call.cost:.4f} of the FLOPs instead of {COST}"
    [video] = found.call.videos
    if found.held[-1] != tokens - video.before + video.after:
        return f"{video.after} tokens left, but the last layer holds {found.held[-1]}"
    return ""


def held_now(device: torch.device) -> int | None:
    """Bytes of tensors, and those that graphs keep for themselves; None on CPU."""
    if device.type == "cpu":
        return None
    torch.cuda.synchronize()
    torch.cuda.empty_cache()  # which takes away what graphs that are gone kept
    graphs = [part for part in torch.cuda.memory_snapshot() if tuple(part["segment_pool_id"]) != (0, 0)]
    idle = sum(part["total_size"] - part["allocated_size"] for part in graphs)
    return int(torch.cuda.memory_allocated() + idle)


def measure(
    whole: Any, given: dict[str, Tensor], rounds: int, device: torch.device, tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    wrong: dict[str, str] = {}
    last: dict[str, Any] = {}
    kept: dict[str, int | None] = {}
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    hooks: dict[str, list[float]] = {name: [] for name in VARIANTS}
    tokens = given["input_ids"].shape[1]
    for done in range(0, rounds, TURN):
        for name, method in VARIANTS.items():
            tell(f"{name}: {done} of {rounds} rounds")
            between = Clock(device)
            last.pop(name, None)
            held = held_now(device)
            with attached(whole, method, between) as trace:
                for _ in range(WARM_UP):
                    last[name] = prefill(whole, given, trace, between, marked=False)
                wrong[name] = wrong.get(name) or check(name, last[name], tokens)
                for _ in range(min(TURN, rounds - done)):
                    times[name].append(prefill(whole, given, trace, between, marked=False).ms)
                    hooks[name].append(prefill(whole, given, trace, between, marked=True).hooks_ms)
                kept[name] = None if held is None else held_now(device) - held
    bare = quantiles(hooks["full"])[1]
    rows = []
    whole_flops = last["before-10"].call.flops[0]
    for name, found in last.items():
        low, middle, high = (None,) * 3 if wrong[name] else quantiles(times[name])
        overhead = quantiles(hooks[name] if name == "full" else [ms - bare for ms in hooks[name]])
        call = found.call
        spent = call.flops[1] if call else whole_flops
        rows.append(
            {
                "variant": name,
                "method": repr(VARIANTS[name]) if call else None,
                "wrong": wrong[name] or None,
                "median_ms": middle,
                "q20_ms": low,
                "q80_ms": high,
                "overhead_q20_ms": overhead[0],
                "overhead_ms": overhead[1],
                "overhead_q80_ms": overhead[2],
                "stages_ms": {stage: round(ms, 3) for stage, ms in call.stages_ms.items()} if call else {},
                "flops": spent,
                "flops_share": round(spent / whole_flops, 4),
                "peak_bytes": found.peak,
                "kept_bytes": kept[name],
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

    make_importable()
    torch.manual_seed(0)
    whole, given, video = model(options, device), inputs(options, device), features(options, device)
    given["position_ids"] = positions(whole, given)
    encoded = transformers.modeling_outputs.BaseModelOutputWithPooling(pooler_output=(video,))
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
