"""Tiny, randomly initialised models of every supported family, and prompts for them made by hand.

All share one vocabulary of 256 bytes and eight special tokens, so the processors of processors.py fit them too.
"""

import functools
import inspect
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from tests.engines.hf import configs, newer
from tests.engines.hf.configs import *  # noqa: F403  # tests call the tokens by this module
from tests.engines.hf.configs import END, IMAGE, PAD, SPARE, START, TURN, VIDEO
from vidsieve.engines.hf.families import table

Inputs = dict[str, Tensor]
KINDS_OF_PROMPTS = ("a video", "two videos", "an image and a video", "padded on the left", "text beside it")
PER_TOKEN = ("input_ids", "attention_mask", *newer.KINDS)  # inputs (B, L)
# Of families whose images have no grid: the tokens of one, the argument that has its pixels, and how they are stacked.
IMAGES_OF = {"perception_lm": (4, "pixel_values", (1,)), "llava_next_video": (36, "pixel_values", (2,))}
named = "pixel_values" in inspect.signature(transformers.VideoLlavaModel.forward).parameters
IMAGES_OF["video_llava"] = (16, "pixel_values" if named else "pixel_values_images", ())
FIRST = tuple(configs.CONFIGS)
FAMILIES = (*FIRST, *(family for family in newer.NEWER if newer.exists(family)))


def marks(family: str) -> tuple[pytest.MarkDecorator, ...]:
    """The marks of a test of `family`: of a newer one, test_newer.py has what runs every time."""
    return (pytest.mark.matrix,) if family in newer.NEWER else ()


def served(family: str, inside: bool) -> bool:
    """Whether stages inside the model are served, if that is what is asked for."""
    rows = {row["type"]: row for row in table()}
    return not inside or not rows[family]["inside"]


every_family_inside = pytest.mark.parametrize(
    "family", [pytest.param(f, marks=marks(f)) for f in FAMILIES if served(f, inside=True)]
)
every_family = pytest.mark.parametrize("family", [pytest.param(f, marks=marks(f)) for f in FAMILIES])


@functools.cache
def model(family: str, attention: str = "sdpa") -> Any:
    """The model of a family: the same weights at every call, and no early end of a generation."""
    return fresh(family, attention)


def fresh(family: str, attention: str = "sdpa") -> Any:
    """A new copy of `model(family)`, for tests that change it."""
    config = {**configs.CONFIGS, **newer.NEWER}[family]()
    config._attn_implementation = "eager" if family in newer.EAGER else attention
    with torch.random.fork_rng():  # what is drawn below is not all: recurrences and class embeddings draw their own
        torch.manual_seed(0)
        made = transformers.AutoModelForImageTextToText.from_config(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in sorted(made.named_parameters()):
            if weight.ndim >= 2:  # large enough that attention is far from uniform
                weight.copy_(torch.randn(weight.shape, generator=generator) * (1.2 / weight.shape[-1] ** 0.5))
            elif "bias" in name or "newline" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
    made.generation_config.eos_token_id = None
    made.generation_config.pad_token_id = PAD
    made.generation_config.do_sample = False
    if family in newer.NEWER:  # some embed a placeholder of their answer in a way of their own
        made.generation_config.suppress_tokens = [IMAGE, VIDEO, SPARE]
    return made


def prompt(family: str, seed: int = 0, text: int = 6, frames: int = 4, videos: int = 1, images: int = 0) -> Inputs:
    """One prompt: five random bytes of text, images, videos, `text` bytes of question."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def words(count: int) -> list[int]:
        return torch.randint(3, 250, (count,), generator=generator).tolist()

    ids, inputs = words(5), {}
    if family in newer.GRIDS or family.startswith(("qwen", "glm", "video_llama")):
        grid = newer.GRIDS.get(family, newer.Grid())
        high, wide = 4, 6
        size = high * (wide + 2 * grid.newline) // 4
        shape = grid.pixels(family)
        mark = IMAGE if family.startswith("glm") else VIDEO
        kinds = [0] * len(ids)
        for _ in range(images):
            ids += [START, *[IMAGE] * size, END]
            kinds += [0, *[1] * size, 0]
        for _ in range(videos):
            ids += grid.begin
            kinds += [0] * len(grid.begin)
            for run in [frames * size] if grid.one_run else [size] * frames:
                stamp = words(3)
                ids += [*stamp, START, *[mark] * run, END]
                kinds += [0] * 4 + [2] * run + [0]
            ids += grid.end
            kinds += [0] * len(grid.end)
        if images:
            inputs["pixel_values"] = noise(images * high * wide, *shape)
            inputs["image_grid_thw"] = torch.tensor([[1, high, wide]] * images)
            if family == "video_llama_3":
                inputs["image_merge_sizes"] = torch.tensor([2] * images)
        if videos:
            rows = [[t, high, wide] for t in grid.rows(frames)] * videos
            inputs["pixel_values_videos"] = noise(sum(t * high * wide for t, _, _ in rows), *shape)
            inputs["video_grid_thw"] = torch.tensor(rows)
        if family == "video_llama_3":
            inputs["video_merge_sizes"] = torch.tensor([2] * videos)
            inputs["video_compression_mask"] = torch.ones(videos * frames * size, dtype=torch.bool)
        elif grid.typed:
            inputs["mm_token_type_ids"] = torch.tensor([kinds + [0] * text])
        if "omni_" in family and videos:
            inputs["video_second_per_grid"] = torch.tensor([0.5] * videos)
        if family == "ernie4_5_vl_moe":
            inputs["moe_mm_token_type_ids"] = inputs["mm_token_type_ids"]
    elif family.startswith("gemma4"):
        kinds, size = [0] * len(ids), 6
        for kind, mark, runs in ((1, IMAGE, images), *[(2, VIDEO, frames)] * videos):
            for _ in range(runs):
                ids += [*words(5), START, *[mark] * size, END]
                kinds += [0] * 6 + [kind] * size + [0]
        if images:
            inputs["pixel_values"] = noise(images, *newer.gemma_pixels(family))
            inputs["image_position_ids"] = newer.gemma_places(family).expand(images, -1, -1)
        if videos:
            stacked = (videos, frames) if newer.STACKED else (videos * frames,)
            inputs["pixel_values_videos"] = noise(*stacked, *newer.gemma_pixels(family))
            inputs["video_position_ids"] = newer.gemma_places(family).expand(*stacked, -1, -1)
            if not newer.STACKED:
                inputs["num_frames_per_video"] = torch.tensor([frames] * videos)
        inputs["mm_token_type_ids"] = torch.tensor([kinds + [0] * text])
    elif family == "molmo2":
        kinds, size = [0] * len(ids), 6
        for _ in range(videos * frames):
            ids += [*words(3), START, *[VIDEO] * size, END]
            kinds += [0] * 3 + [1] * (size + 2)
        inputs["mm_token_type_ids"] = torch.tensor([kinds + [0] * text])
        if videos:
            inputs["pixel_values_videos"] = noise(videos * frames, 24, 3 * 14**2)
            inputs["video_token_pooling"] = newer.pooled(videos * frames)
            inputs["video_grids"] = torch.tensor([[frames, 2, 3]] * videos)
        if images:  # which transformers refuses beside a video
            inputs["pixel_values"] = noise(images, 24, 3 * 14**2)
    elif family.startswith("minicpm"):
        kinds = [0] * len(ids)
        for kind, name, mark, count, runs in ((1, "", IMAGE, images, 1), (2, "_videos", VIDEO, videos, frames)):
            for _ in range(count):
                ids += [*words(3), *[START, *[mark] * 6, END] * runs]
                kinds += [*[0] * 3, *[0, *[kind] * 6, 0] * runs]
            if count:
                inputs[f"pixel_values{name}"] = noise(1, 3, 14, 14 * 96 * count * runs)
                inputs[f"target_sizes{name}"] = torch.tensor([[8, 12]] * count * runs)
        if family == "minicpmv4_7":
            inputs["mm_token_type_ids"] = torch.tensor([kinds + [0] * text])
    elif family in ("internvl", "smolvlm"):
        for _ in range(images):  # of two tiles: a single one would be taken for a frame
            ids += [SPARE, *[IMAGE] * 4, *[END, SPARE] * (family == "smolvlm"), *[IMAGE] * 4, END]
        for _ in range(videos * frames):
            ids += [*words(3), START, *[IMAGE] * 4, END]
        pixels = noise(2 * images + videos * frames, 3, 56, 56)
        inputs["pixel_values"] = pixels if family == "internvl" else pixels[None]
    else:
        frames = 8 if family == "video_llava" else frames
        size = {"video_llava": 17}.get(family, 4)
        if images:
            tokens, name, shape = IMAGES_OF[family]
            ids += [*[IMAGE] * tokens * images, *words(1)]
            inputs[name] = noise(images, *shape, 3, 56, 56)
            if family == "llava_next_video":
                inputs["image_sizes"] = torch.tensor([[56, 56]] * images)
        for _ in range(videos):
            ids += [VIDEO] * (size * frames + (family == "llava_onevision")) + words(1)
        if videos:
            inputs["pixel_values_videos"] = noise(videos, frames, 3, 56, 56)
    inputs["input_ids"] = torch.tensor([ids + words(text)])
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return inputs


def text_prompt(family: str) -> Inputs:
    """A prompt of text alone, with the arguments that the family wants of every prompt."""
    ids = torch.tensor([[7, 8, 9, 10]])
    kinds = [name for name in newer.KINDS if name in prompt(family)]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **{name: torch.zeros_like(ids) for name in kinds}}


def kinds_of_prompts(family: str) -> dict[str, list[Inputs]]:
    """The prompts of a batch for each of `KINDS_OF_PROMPTS`, and one that has them "all"."""
    images = 0 if family in newer.NO_IMAGE_BESIDE else 1
    one, longer, text = prompt(family), prompt(family, seed=4, text=11), text_prompt(family)
    of_each = ([one], [prompt(family, videos=2)], [prompt(family, images=images, seed=2)], [one, longer], [one, text])
    all_kinds = [prompt(family, images=images, videos=2), longer, text]
    return {**dict(zip(KINDS_OF_PROMPTS, of_each, strict=True)), "all": all_kinds}


def batch(*prompts: Inputs) -> Inputs:
    """Prompts side by side, padded on the left."""
    longest = max(one["input_ids"].shape[1] for one in prompts)
    joined = {}
    for name in prompts[0].keys() | prompts[-1].keys():
        parts = [one[name] for one in prompts if name in one]
        if name in PER_TOKEN:
            value = PAD if name == "input_ids" else 0
            parts = [torch.nn.functional.pad(part, (longest - part.shape[1], 0), value=value) for part in parts]
        elif name == "pixel_values" and parts[0].ndim == 5 and "pixel_values_videos" not in prompts[0]:
            most = max(part.shape[1] for part in parts)  # frames of SmolVLM; those of zeros are none
            parts = [torch.cat([part, part.new_zeros(1, most - part.shape[1], *part.shape[2:])], 1) for part in parts]
        joined[name] = torch.cat(parts, -1 if "target_sizes_videos" in prompts[0] and parts[0].ndim == 4 else 0)
    if "video_token_pooling" in joined:  # counts the patches of all frames of a call
        joined["video_token_pooling"] = newer.pooled(len(joined["pixel_values_videos"]))
    return joined


def is_placeholder(family: str, ids: Tensor) -> Tensor:
    """Where a row of the features of a video goes in hand-made prompts, by definition: bool like `ids`."""
    where = ids == (IMAGE if family.startswith(("glm", "internvl", "smolvlm")) else VIDEO)
    if family == "glm5_next":  # an image has no such marks
        where &= (ids == SPARE).cumsum(1) > (ids == TURN).cumsum(1)
    return where


def is_video(family: str, ids: Tensor) -> Tensor:
    """Where the video tokens of hand-made prompts are, by definition: bool like `ids`."""
    where = is_placeholder(family, ids)
    if family == "llava_onevision":  # the last of every run is the newline
        where[:, :-1] &= ids[:, 1:] == VIDEO
    if family in ("internvl", "smolvlm"):  # other marks stand before the tiles of an image
        before = torch.where(where, 0, torch.arange(ids.shape[1])).cummax(1).values
        where &= ids.gather(1, before) == START
    if family == "hy_v4_vl":  # as is the last of every row
        where &= (where.cumsum(1) - 1) % 4 < 3
    return where
