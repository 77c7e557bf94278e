"""From a file to the first token: benchmarks/results/from_file_<device>.json.

    python -m benchmarks.from_file                           Qwen2.5-VL-7B's shapes, 64 frames; wants a GPU and av
    python -m benchmarks.from_file --shrink --seconds 20 --rounds 1 --device cpu
    python -m benchmarks.from_file --bundled                 the model of the package on a CPU; wants no GPU

What a user waits for when a model is loaded: an mp4 is decoded, goes through the processor, and `generate` gives one
token. The model has random weights, the clip is made here: 720p H.264 at 30 frames a second with a key frame every 250,
noise that moves and a cut every 5 seconds. Variants take turns; their first calls, which compile, are not counted.

- stock: `read_video`, the processor of transformers, the model, every token
- in turn: `read_video`, `prepare`, the model with the method attached, 10 %
- overlapped: the same while `begin_video` decodes: attached, prepared and, but for the last frames, through the tower
- encode: `vidsieve.encode` and `ask`, whose stages overlap, 10 %
- key frames: as in turn, as overlapped and as encode, of key frames alone
Beside them `decode`: the decoder alone, which no exact sampling can be sooner than.
"""

import argparse
import copy
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from benchmarks.first_token import make
from benchmarks.long import video_processor

import vidsieve
from vidsieve import registry
from vidsieve.engines.hf.loading import load, prepare
from vidsieve.engines.torchvision import make_importable
from vidsieve.evaluation.card import commit, processor, quantiles
from vidsieve.evaluation.needles.tiny import BUNDLED
from vidsieve.video import begin_video, plan_video, read_video
from vidsieve.video.wanted import LONGEST_SIDE, Size

RESULTS = Path(__file__).parent / "results"
RATE, SCENE, KEY_FRAMES = 30, 5, "250"
KEEP, SIDE, FRAMES = 0.1, 392, 128  # pixels of a frame; pairs of frames are 64 x 196 = 12 544 tokens
QUESTION = "What happens after the second speaker?"


def write_clip(path: Path, seconds: int, height: int = 720, width: int = 1280) -> None:
    """An H.264 file of pictures that move to the side, another each scene."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=RATE, options={"g": KEY_FRAMES, "preset": "veryfast", "crf": "23"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(seconds * RATE):
            scene, step = divmod(number, SCENE * RATE)
            if not step:
                grains = np.random.default_rng(scene).integers(0, 256, (height // 8, width // 8 + 40, 3), np.uint8)
                picture = grains.repeat(8, 0).repeat(8, 1)
            view = np.ascontiguousarray(picture[:, 2 * step : 2 * step + width])
            file.mux(stream.encode(av.VideoFrame.from_ndarray(view, format="rgb24")))
        file.mux(stream.encode())


class Variants:
    """The ways from `clip` to a token."""

    def __init__(self, model: Any, made: Any, clip: Path, frames: int, size: Size) -> None:
        self.model, self.made, self.clip, self.frames, self.size = model, made, clip, frames, size
        self.stock_processor, theirs = copy.copy(made), copy.copy(made.video_processor)
        theirs.__class__ = type("Stock", (type(theirs),), {})  # `prepare` leaves another class as it is
        self.stock_processor.video_processor = theirs

    def decode(self) -> None:
        read_video(self.clip, num_frames=self.frames, size=self.size)

    def stock(self) -> None:
        frames = read_video(self.clip, num_frames=self.frames, size=self.size)
        self._generate(prepare(self.stock_processor, frames, QUESTION))

    def in_turn(self, sampling: Any = "even") -> None:
        frames = read_video(self.clip, num_frames=self.frames, size=self.size, sampling=sampling)
        inputs = prepare(self.made, frames, QUESTION, self.model.device)
        with vidsieve.attach(self.model, registry.method("vidsieve")(KEEP)):
            self._generate(inputs)

    def overlapped(self, sampling: Any = "even") -> None:
        coming = begin_video(self.clip, num_frames=self.frames, size=self.size, sampling=sampling)
        with vidsieve.attach(self.model, registry.method("vidsieve")(KEEP)):
            self._generate(prepare(self.made, coming, QUESTION, model=self.model))

    def encode(self, sampling: Any = "even") -> None:
        encoded = vidsieve.encode(
            self.model, self.made, self.clip, KEEP, num_frames=self.frames, size=self.size, sampling=sampling
        )
        with encoded.on(self.model):
            self._generate(encoded.inputs(self.model, self.made, QUESTION))

    def _generate(self, inputs: Any) -> None:
        given = {name: x.to(self.model.device) for name, x in inputs.items()}
        given |= {name: x.to(self.model.dtype) for name, x in given.items() if x.is_floating_point()}
        self.model.generate(**given, do_sample=False, max_new_tokens=1).tolist()

    def all(self) -> dict[str, Callable[[], None]]:
        return {
            "decode": self.decode,
            "stock": self.stock,
            "in turn": self.in_turn,
            "overlapped": self.overlapped,
            "encode": self.encode,
            "key frames, in turn": lambda: self.in_turn("keyframes"),
            "key frames, overlapped": lambda: self.overlapped("keyframes"),
            "key frames, encode": lambda: self.encode("keyframes"),
        }


def measure(variants: Variants, seconds: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each of them."""
    ways = variants.all()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            begin = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - begin)
            print(f"{seconds} s, {name}, turn {turn}: {times[name][-1]:.2f} s", file=sys.stderr)
    rows = []
    for name, found in times.items():
        low, middle, high = quantiles([1e3 * value for value in found[1:]])
        rows.append({"seconds": seconds, "variant": name, "median_ms": middle, "q20_ms": low, "q80_ms": high})
    stock = next(row["median_ms"] for row in rows if row["variant"] == "stock")
    return [row | {"sooner_than_stock": round(stock / row["median_ms"], 2)} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=int, nargs="+", default=[60, 600], help="of the clips (60 600)")
    parser.add_argument("--clip", type=Path, help="a video of yours, in place of clips made here")
    parser.add_argument("--rounds", type=int, default=5, help="(5)")
    parser.add_argument("--shrink", action="store_true", help="small layers, to see that it runs")
    parser.add_argument("--bundled", action="store_true", help="the model of the package, which reads 64 frames")
    parser.add_argument("--device", help="(cuda where there is one)")
    parser.add_argument("--out", type=Path, help="(results/from_file_<device>.json)")
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available() and not options.bundled
    device = torch.device(options.device or ("cuda" if on_gpu else "cpu"))
    make_importable()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        frames, size = (64, LONGEST_SIDE) if options.bundled else (FRAMES, (SIDE, SIDE))
        if options.bundled:
            made, model = load(str(BUNDLED), device.type, bar=False)
        else:
            made = video_processor(Path(folder), SIDE)
            dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
            model = make("qwen2_5_vl", options.shrink, dtype, device, made.tokenizer)
        for seconds in options.seconds if options.clip is None else [round(plan_video(options.clip).duration)]:
            clip = options.clip or Path(folder) / f"{seconds}.mp4"
            if options.clip is None:
                write_clip(clip, seconds)
            rows += measure(Variants(model, made, clip, frames, size), seconds, options.rounds)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    card = {
        "command": "python -m benchmarks.from_file " + shlex.join(sys.argv[1:]),
        "commit": commit(),
        "device": name,
        "model": "of the package" if options.bundled else "qwen2_5_vl, random weights",
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "frames": frames,
        "av": av.__version__,
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }
    out = options.out or RESULTS / f"from_file_{name.split()[-1].lower()}.json"
    out.write_text(json.dumps({"card": card, "rows": rows}, indent=1) + "\n")
    for row in rows:
        print(f"{row['seconds']:5} s  {row['variant']:23} {row['median_ms']:9.0f} ms  {row['sooner_than_stock']:.1f}x")


if __name__ == "__main__":
    main()
