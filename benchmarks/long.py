"""An hour of video: encoded in bounded memory, stored, asked. benchmarks/results/long_<device>.json.

    python -m benchmarks.long                                  Qwen2.5-VL-7B's shapes; wants a GPU
    python -m benchmarks.long --shrink --seconds 30 120 --size 64 --kept 200 --device cpu

The real model class with random weights and the processor of Qwen2.5-VL. The frames of the video, `--fps` a second, are
made as they are asked for, noise with a square that moves and a cut every 20 seconds, so no decoder is timed.
A row for each length, which keeps the same share, and one for each shorter length that keeps as many tokens as the
longest: what then grows with the length is not what one asked for (`same_count`, beside the rows). Each is encoded
twice, for the first time compiles kernels (`first_wall_s`): peak memory of the device and of the process meanwhile,
beyond what they held before (`held_bytes`, `process_before_bytes`), and of the process as a whole; the time alone of
making frames, of the processor and of the tower, and of all three at once; the file, and the peak of the process while
it is written. Then a question about the longest, in turns: the time to the first token, beside a prefill of as many
tokens of text.
"""

import argparse
import json
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from benchmarks.first_token import make
from torch import Tensor

from vidsieve import registry
from vidsieve.cli.demo import copy_model
from vidsieve.encoded.chunks import encode_chunks
from vidsieve.encoded.encode import select
from vidsieve.encoded.video import EncodedVideo
from vidsieve.engines.hf import attach
from vidsieve.engines.hf.loading import prepare
from vidsieve.engines.torchvision import make_importable
from vidsieve.evaluation.card import commit, processor, quantiles
from vidsieve.methods.chunked import in_chunks
from vidsieve.types.frames import Frames

RESULTS = Path(__file__).parent / "results"
SCENE = 20  # seconds until the picture changes
ROUNDS = 5
WORDS = 10, 80  # tokens of text
QUESTION = "What happens after the second speaker?"


def video_processor(folder: Path, side: int) -> Any:
    """Qwen2.5-VL's processor for frames of `side` pixels, with the tokenizer of the bundled model."""
    found = transformers.AutoProcessor.from_pretrained(copy_model(folder))
    pixels = {"shortest_edge": side * side, "longest_edge": side * side}
    kind = type(found.video_processor)
    found.video_processor = kind(
        patch_size=14, merge_size=2, temporal_patch_size=2, size=pixels, do_sample_frames=False
    )
    return found


def described(seconds: int, fps: float, side: int) -> Frames:
    """The frames of a video that is not there."""
    count = round(seconds * fps)
    pixels = torch.empty(count, side, side, 3, dtype=torch.uint8, device="meta")
    times = tuple(i / fps for i in range(count))
    return Frames(pixels, tuple(range(count)), times, fps, count, float(seconds), "synthetic")


def frames_of(video: Frames, size: int) -> Iterator[Frames]:
    """Make the frames of a described video, `size` at a time: noise, a square that moves through it, and cuts."""
    side, scene = video.pixels.shape[1], max(1, round(SCENE * video.fps))
    for begin in range(0, len(video), size):
        numbers = range(begin, min(begin + size, len(video)))
        pixels = torch.stack([_picture(side, number // scene, number % scene) for number in numbers])
        part = slice(begin, begin + len(numbers))
        yield Frames(
            pixels, video.index[part], video.seconds[part], video.fps, video.total, video.duration, video.source
        )


def _picture(side: int, scene: int, step: int) -> Tensor:
    noise = torch.randint(256, (side // 8 + 1, side // 8 + 1, 3), generator=torch.Generator().manual_seed(scene))
    picture = noise.to(torch.uint8).repeat_interleave(8, 0).repeat_interleave(8, 1)[:side, :side]
    size = side // 4
    left = step * (side - size) // max(1, 3 * SCENE)
    picture[size : 2 * size, left : left + size] = 255
    return picture


class Memory:
    """Peak memory from now on, beyond what is held now: of the device, and of the process, looked at every 20 ms."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.most, self._over = device, _resident(), threading.Event()
        self.before = self.most
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.allocated, self.reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(0.02):
            self.most = max(self.most, _resident())

    def end(self) -> dict[str, int | None]:
        self._over.set()
        self._thread.join()
        cuda = self.device.type == "cuda"
        return {
            "peak_bytes": torch.cuda.max_memory_allocated() - self.allocated if cuda else None,
            "reserved_bytes": torch.cuda.max_memory_reserved() - self.reserved if cuda else None,
            "held_bytes": self.allocated if cuda else None,
            "rss_bytes": self.most - self.before,
            "process_before_bytes": self.before,
            "process_peak_bytes": self.most,
            "process_after_bytes": _resident(),
        }


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def timed(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds of `work`, and what it gives."""
    begin = time.perf_counter()
    found = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin, found


def encoded(model: Any, made: Any, video: Frames, method: Any, chunk: int, device: torch.device) -> tuple[dict, Any]:
    """Encode a video: the row, and the encoded video. Each stage alone is timed on the first chunks."""
    few = described(max(1, round(4 * chunk / video.fps)), video.fps, video.pixels.shape[1])
    chunks = [*frames_of(few, chunk)]
    making = timed(lambda: [*frames_of(few, chunk)], device)[0]
    processing, inputs = timed(lambda: [prepare(made, part, "?", device) for part in chunks], device)
    ready = [given.to(device, model.dtype) for given in inputs]
    names = ("pixel_values_videos", "video_grid_thw")
    with attach(model, vision="auto"), torch.no_grad():
        for _ in range(2):
            tower = timed(
                lambda: [model.base_model.get_video_features(*(one[n] for n in names)) for one in ready], device
            )[0]
    scale = len(video) / len(few)
    alone = {"make_s": making * scale, "process_s": processing * scale, "tower_s": tower * scale}
    for held in (chunks, inputs, ready):
        held.clear()

    def encode() -> EncodedVideo:
        return select(model, made, video, encode_chunks(model, made, video, chunk, read=frames_of), method, _tell)

    first = timed(encode, device)[0]
    memory = Memory(device)
    wall, stored = timed(encode, device)
    peaks = memory.end()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "video.vidsieve"
        memory = Memory(device)
        saving, _ = timed(lambda: stored.save(file), device)
        saved = memory.end()
        size = file.stat().st_size
        loading, again = timed(lambda: EncodedVideo.load(file), device)
    kept, width = stored.selection.features.shape
    print(file=sys.stderr)
    return {
        "seconds": video.duration,
        "frames": len(video),
        "tokens": sum(stored.tokens),
        "kept": kept,
        "first_wall_s": first,
        "wall_s": wall,
        **alone,
        "wall_of_slowest": wall / max(alone.values()),
        **peaks,
        "file_bytes": size,
        "file_of_rows": size / (kept * width * 2),
        "save_s": saving,
        "save_rss_bytes": saved["rss_bytes"],
        "load_s": loading,
    }, again


def _tell(done: Any) -> None:
    print(f"\r{done.frames} of {done.total} frames, {done.seconds_left:.0f} s left   ", end="", file=sys.stderr)


def asked(model: Any, made: Any, stored: EncodedVideo, device: torch.device) -> dict[str, Any]:
    """A question, in turns with a prefill of as many tokens of text by the model alone."""
    making, given = timed(lambda: stored.inputs(model, made, QUESTION), device)
    again, _ = timed(lambda: stored.inputs(model, made, "And what before?"), device)
    length = given["input_ids"].shape[1]
    words = {"input_ids": torch.randint(*WORDS, (1, length), device=device)}
    words["attention_mask"] = torch.ones_like(words["input_ids"])

    def first(inputs: Any) -> float:
        return 1e3 * timed(lambda: model.generate(**inputs, do_sample=False, max_new_tokens=1).tolist(), device)[0]

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("the vision tower was called for a stored video")

    times: dict[str, list[float]] = {"stored": [], "text": []}
    tower = model.base_model.visual
    hook = tower.register_forward_pre_hook(refused)
    for turn in range(ROUNDS + 2):
        with stored.on(model):
            one = first(given)
        other = first(words)
        if turn >= 2:  # the first ones compile
            times["stored"].append(one)
            times["text"].append(other)
    hook.remove()
    row: dict[str, Any] = {"prompt": length, "inputs_ms": 1e3 * making, "inputs_again_ms": 1e3 * again}
    for name, found in times.items():
        low, middle, high = quantiles(found)
        row[name] = {"q20_ms": low, "median_ms": middle, "q80_ms": high}
    return row


def tokens_of(seconds: int, options: argparse.Namespace) -> int:
    """Count the tokens of a video, before any is dropped."""
    return (options.side // 28) ** 2 * round(seconds * options.fps) // 2


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=int, nargs="+", default=[600, 3600], help="of the videos (600 3600)")
    parser.add_argument("--fps", type=float, default=2.0, help="(2)")
    parser.add_argument("--side", type=int, default=448, help="pixels of a frame in each direction (448)")
    parser.add_argument("--kept", type=int, default=16000, help="tokens that stay of the longest (16000)")
    parser.add_argument("--chunk", type=int, default=64, help="frames (64)")
    parser.add_argument("--shrink", action="store_true", help="small layers, to see that it runs")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="(bfloat16; float32 on cpu)")
    parser.add_argument("--device", help="(cuda where there is one)")
    parser.add_argument("--out", type=Path, help="(results/long_<device>.json)")
    options = parser.parse_args()
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    options.dtype = options.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    make_importable()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        made = video_processor(Path(folder), options.side)
        model = make("qwen2_5_vl", options.shrink, getattr(torch, options.dtype), device, made.tokenizer)
        longest = max(options.seconds)
        share = options.kept / tokens_of(longest, options)
        named = registry.method("vidsieve")
        warm = described(max(1, round(2 * options.chunk / options.fps)), options.fps, options.side)
        encoded(model, made, warm, in_chunks(named(share)), options.chunk, device)
        runs = [(seconds, share) for seconds in sorted(options.seconds)]
        runs[:0] = [(seconds, options.kept / tokens_of(seconds, options)) for seconds, _ in runs if seconds < longest]
        for seconds, keep in runs:
            video = described(seconds, options.fps, options.side)
            row, stored = encoded(model, made, video, in_chunks(named(keep)), options.chunk, device)
            rows.append({"same_count": keep != share, **row})
            print(json.dumps(rows[-1]), file=sys.stderr)
            if seconds < longest:
                del stored
        question = asked(model, made, stored, device)
        print(json.dumps(question), file=sys.stderr)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    command = f"python -m benchmarks.long --seconds {' '.join(map(str, options.seconds))} --fps {options.fps:g}"
    command += f" --side {options.side} --kept {options.kept} --chunk {options.chunk} --dtype {options.dtype}"
    card = {
        "command": command,
        "commit": commit(),
        "device": name,
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "triton": version("triton"),
    }
    out = options.out or RESULTS / f"long_{name.split()[-1].lower()}.json"
    out.write_text(json.dumps({"card": card, "rows": rows, "question": question}, indent=1) + "\n")
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
