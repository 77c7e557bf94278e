"""A drawn clip of usual size, and a model for it that answers any question, if only with noise.

`render_clip` draws five scenes with moving shapes. `build_model` saves a Qwen2.5-VL of real classes and files, eight
layers deep, with random weights and a tokenizer of bytes: what loads it loads a real checkpoint, and what it answers
means nothing.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vidsieve.checks import require
from vidsieve.engines.torchvision import make_importable
from vidsieve.evaluation.needles.tiny import CHAT_TEMPLATE, SPECIALS

WIDTH, HEIGHT = 448, 336  # 16 x 12 tokens of 28 pixels
RATE = 12
SCENE = 30  # frames, 2.5 s
OVERSAMPLE = 2  # drawn larger, then shrunk: smooth edges

FRAMES = 50  # ten a scene, so that no token frame joins two scenes


class _Canvas:
    """Draws in fractions of the picture's height; x runs from 0 to 4/3."""

    def __init__(self, background: str) -> None:
        pil = require("PIL.Image", "viz")
        size = WIDTH * OVERSAMPLE, HEIGHT * OVERSAMPLE
        light = pil.linear_gradient("L").point(lambda value: 40 - value // 6).resize(size)  # a flat colour is unnatural
        self.image: Any = pil.composite(pil.new("RGB", size, "white"), pil.new("RGB", size, background), light)
        self.pen: Any = require("PIL.ImageDraw", "viz").Draw(self.image)

    def _at(self, *places: float) -> tuple[float, ...]:
        return tuple(place * HEIGHT * OVERSAMPLE for place in places)

    def disc(self, x: float, y: float, radius: float, fill: str) -> None:
        self.pen.ellipse(self._at(x - radius, y - radius, x + radius, y + radius), fill)

    def box(self, x: float, y: float, width: float, height: float, fill: str) -> None:
        self.pen.rectangle(self._at(x, y, x + width, y + height), fill)

    def shape(self, *corners: float, fill: str) -> None:
        self.pen.polygon(self._at(*corners), fill)

    def line(self, *corners: float, fill: str, width: float) -> None:
        self.pen.line(self._at(*corners), fill, round(width * HEIGHT * OVERSAMPLE))

    def pixels(self) -> Any:
        """uint8 (H, W, 3)."""
        return self.image.reduce(OVERSAMPLE)


def _night(canvas: _Canvas, t: float) -> None:
    for star in range(40):
        canvas.disc((star * 0.7549 % 1) * 1.33, (star * 0.5698 % 1) * 0.7, 0.004 + 0.003 * (star % 3), "#dfe7ff")
    x, y = 0.25 + 0.7 * t, 0.35 - 0.15 * math.sin(math.pi * t)
    canvas.disc(x, y, 0.1, "#f6ecc4")
    for right, down, radius in ((-0.04, -0.03, 0.022), (0.03, 0.035, 0.03), (0.045, -0.035, 0.014)):
        canvas.disc(x + right, y + down, radius, "#dccf9f")
    canvas.shape(0, 0.86, 0.3, 0.66, 0.62, 0.84, 0.95, 0.6, 1.34, 0.82, 1.34, 1, 0, 1, fill="#0a1024")


def _road(canvas: _Canvas, t: float) -> None:
    canvas.disc(1.08, 0.2, 0.11, "#ffd34d")
    canvas.box(0, 0.58, 1.34, 0.42, "#6fae5a")
    canvas.box(0, 0.7, 1.34, 0.17, "#4b4f58")
    for dash in range(7):
        canvas.box(0.06 + 0.2 * dash, 0.78, 0.1, 0.014, "#e9e4c9")
    for tree in (0.15, 0.5, 0.92):
        canvas.box(tree, 0.5, 0.03, 0.12, "#6b4a2f")
        canvas.disc(tree + 0.015, 0.44, 0.085, "#3f7f44")
    x = -0.25 + 1.5 * t
    canvas.shape(x + 0.06, 0.66, x + 0.11, 0.58, x + 0.24, 0.58, x + 0.3, 0.66, fill="#b9dcf2")
    canvas.box(x, 0.65, 0.36, 0.09, "#d7373f")
    for wheel in (0.08, 0.28):
        canvas.disc(x + wheel, 0.75, 0.042, "#16181d")
        canvas.disc(x + wheel, 0.75, 0.018, "#c9ccd3")


def _clock(canvas: _Canvas, t: float) -> None:
    canvas.box(0, 0.82, 1.34, 0.18, "#8a6a4f")
    canvas.disc(0.667, 0.42, 0.27, "#3b3f4a")
    canvas.disc(0.667, 0.42, 0.245, "#f7f4ec")
    for hour in range(12):
        angle = math.pi * hour / 6
        canvas.disc(0.667 + 0.21 * math.sin(angle), 0.42 - 0.21 * math.cos(angle), 0.01, "#3b3f4a")
    angle = 2 * math.pi * t
    canvas.line(0.667, 0.42, 0.667 + 0.1, 0.42 + 0.07, fill="#3b3f4a", width=0.018)
    canvas.line(0.667, 0.42, 0.667 + 0.19 * math.sin(angle), 0.42 - 0.19 * math.cos(angle), fill="#d7373f", width=0.01)


def _balls(canvas: _Canvas, t: float) -> None:
    colours = ("#ff6b5e", "#ffd34d", "#55c98a", "#4ea3ff", "#c07bff", "#ff9de0")
    for ball, colour in enumerate(colours):
        bounce = abs(math.sin(math.pi * (1.6 * t + 0.17 * ball)))
        x = 0.13 + 0.215 * ball
        canvas.disc(x, 0.92, 0.03 + 0.03 * (1 - bounce), "#0f4f52")
        canvas.disc(x, 0.84 - 0.6 * bounce, 0.075, colour)
        canvas.disc(x - 0.025, 0.815 - 0.6 * bounce, 0.016, "#ffffff")


def _sea(canvas: _Canvas, t: float) -> None:
    canvas.disc(0.95, 0.5, 0.16, "#ff8d5c")
    canvas.box(0, 0.56, 1.34, 0.44, "#274b7a")
    for wave in range(9):
        x = (wave * 0.37 + 0.2 * t) % 1.5 - 0.15
        canvas.line(x, 0.62 + 0.04 * wave, x + 0.14, 0.62 + 0.04 * wave, fill="#4d79ae", width=0.01)
    x, y = 1.1 - 0.85 * t, 0.62 + 0.012 * math.sin(9 * t)
    canvas.shape(x, y, x + 0.3, y, x + 0.24, y + 0.08, x + 0.06, y + 0.08, fill="#5a3524")
    canvas.shape(x + 0.15, y - 0.36, x + 0.15, y - 0.03, x + 0.01, y - 0.03, fill="#fdf6e3")
    canvas.shape(x + 0.165, y - 0.3, x + 0.165, y - 0.03, x + 0.28, y - 0.03, fill="#e9dcc0")


SCENES: tuple[tuple[str, Callable[[_Canvas, float], None]], ...] = (
    ("#101a3c", _night),
    ("#9fd3f5", _road),
    ("#c9b79c", _clock),
    ("#156a6e", _balls),
    ("#ffc48a", _sea),
)


def render_clip(path: str | os.PathLike[str]) -> Path:
    """Write the clip, always the same: five scenes of 2.5 s, 448 x 336, 12 frames a second, H.264."""
    av = require("av", "video")
    with av.open(os.fspath(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"qp": "20"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.thread_count = 1  # with threads, or with `crf`, the bytes differ from run to run
        for background, scene in SCENES:
            for frame in range(SCENE):
                canvas = _Canvas(background)
                scene(canvas, frame / SCENE)
                container.mux(stream.encode(av.VideoFrame.from_image(canvas.pixels())))
        container.mux(stream.encode())
    return Path(path)


def build_model(folder: str | os.PathLike[str]) -> Path:
    """Save a tiny Qwen2.5-VL with its processor into `folder`, which `from_pretrained` then loads; always the same."""
    require("transformers", "hf")
    make_importable()
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = _byte_tokenizer()
    token = dict(zip(SPECIALS, tokenizer.convert_tokens_to_ids(list(SPECIALS)), strict=True))
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "bos_token_id": None,
            "eos_token_id": token["<|im_end|>"],
            "pad_token_id": token["<|endoftext|>"],
            "hidden_size": 256,  # the rank of a scene's features; a budget beyond it would be filled blindly
            "intermediate_size": 512,
            "num_hidden_layers": 8,  # so that stages at quarters of the depth are at four layers
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 12, 12]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "out_hidden_size": 256,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
        },
        image_token_id=token["<|image_pad|>"],
        video_token_id=token["<|video_pad|>"],
        vision_start_token_id=token["<|vision_start|>"],
        vision_end_token_id=token["<|vision_end|>"],
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    _randomize(model)
    letters = set(tokenizer.convert_tokens_to_ids([*"abcdefghijklmnopqrstuvwxyz", "Ġ"]))
    model.generation_config.update(
        do_sample=False,
        eos_token_id=token["<|im_end|>"],
        pad_token_id=token["<|endoftext|>"],
        # Random weights like any byte; only letters are fit for a terminal.
        suppress_tokens=[i for i in range(len(tokenizer)) if i not in letters],
    )
    model.save_pretrained(folder)
    size = {"shortest_edge": 4 * 28 * 28, "longest_edge": 256 * WIDTH * HEIGHT}  # pixels of a whole clip
    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size, cap_pixels_per_frame=False),
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    return Path(folder)


def _byte_tokenizer() -> Any:
    """One token a byte, and the special ones."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    vocabulary = {token: number for number, token in enumerate([*sorted(ByteLevel.alphabet()), *SPECIALS])}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[],
        unk_token=SPECIALS[0],
        pad_token=SPECIALS[0],
        eos_token="<|im_end|>",
        padding_side="left",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIALS[1:])})
    return tokenizer


def _randomize(model: torch.nn.Module) -> None:
    """Weights large enough that different inputs give different features and answers."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.ndim >= 2:
                scale = 1.2 / math.sqrt(parameter[0].numel())
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
