"""Tiny, randomly initialised models of every supported family, and prompts for them made by hand.

All share one vocabulary of 256 bytes and eight special tokens, so the processors of processors.py fit them too.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor

BYTES = 256
PAD, TURN, END_OF_TURN, START, END, IMAGE, VIDEO, SPARE = range(BYTES, BYTES + 8)
VOCABULARY = BYTES + 8
Inputs = dict[str, Tensor]

_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "pad_token_id": PAD,
    "bos_token_id": TURN,
    "eos_token_id": END_OF_TURN,
}
_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
_QWEN_TOWER = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 64,
}
_QWEN3_TOWER = {**_QWEN_TOWER, "patch_size": 16, "num_position_embeddings": 64}
_IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO}
_QWEN_IDS = {**_IDS, "vision_start_token_id": START, "vision_end_token_id": END}
_GLM_IDS = {
    **_IDS,
    "image_start_token_id": START,
    "image_end_token_id": END,
    "video_start_token_id": SPARE,
    "video_end_token_id": SPARE,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def _mrope(*section: int, **extra: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(section), **extra}


def _qwen2_vl() -> Any:
    tower = {"embed_dim": 32, "hidden_size": 64, "num_heads": 2, "depth": 2, "mlp_ratio": 2, "patch_size": 14}
    text = {**_TEXT, "rope_parameters": _mrope(2, 3, 3)}
    return transformers.Qwen2VLConfig(text_config=text, vision_config=tower, **_QWEN_IDS)


def _qwen2_5_vl() -> Any:
    tower = {**_QWEN_TOWER, "patch_size": 14, "fullatt_block_indexes": [1], "window_size": 56, "tokens_per_second": 2}
    text = {**_TEXT, "rope_parameters": _mrope(2, 3, 3)}
    return transformers.Qwen2_5_VLConfig(text_config=text, vision_config=tower, **_QWEN_IDS)


def _qwen3_vl(experts: bool = False) -> Any:
    config = transformers.Qwen3VLMoeConfig if experts else transformers.Qwen3VLConfig
    tower = {**_QWEN3_TOWER, "deepstack_visual_indexes": [0, 1]}
    text = {**_TEXT, "head_dim": 16, "rope_parameters": _mrope(4, 2, 2, mrope_interleaved=True)}
    return config(text_config={**text, **(_EXPERTS if experts else {})}, vision_config=tower, **_QWEN_IDS)


def _qwen3_5(experts: bool = False) -> Any:
    config = transformers.Qwen3_5MoeConfig if experts else transformers.Qwen3_5Config
    linear = {f"linear_{part}_head_dim": 16 for part in ("key", "value")}
    linear |= {f"linear_num_{part}_heads": 2 for part in ("key", "value")}
    layers = ["linear_attention", "full_attention", "full_attention"]
    rope = _mrope(1, 1, 0, mrope_interleaved=True, partial_rotary_factor=0.25)
    text = {**_TEXT, **linear, "head_dim": 16, "layer_types": layers, "rope_parameters": rope}
    if experts:
        text |= {**_EXPERTS, "shared_expert_intermediate_size": 32}
    return config(text_config=text, vision_config=_QWEN3_TOWER, **_QWEN_IDS)


def _glm4v(experts: bool = False) -> Any:
    config = transformers.Glm4vMoeConfig if experts else transformers.Glm4vConfig
    tower = {**_QWEN_TOWER, "patch_size": 14, "image_size": 112}
    rope = _mrope(2, 3, 3, partial_rotary_factor=1.0)
    text = {**_TEXT, "rope_parameters": rope}
    if experts:
        text |= {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1}
        text |= {"topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1, "head_dim": 16}
    return config(text_config=text, vision_config=tower, **_GLM_IDS)


def _glm46v() -> Any:
    tower = {**_QWEN_TOWER, "patch_size": 14, "image_size": 112, "model_type": "glm4v_vision"}
    text = {**_TEXT, "rope_parameters": _mrope(2, 3, 3, partial_rotary_factor=1.0), "model_type": "glm4v_text"}
    return transformers.Glm46VConfig(text_config=text, vision_config=tower, **_GLM_IDS)


def _video_llama_3() -> Any:
    tower = {key: value for key, value in _TOWER.items() if key != "image_size"}
    return transformers.VideoLlama3Config(text_config={"model_type": "qwen2", **_TEXT}, vision_config=tower, **_IDS)


def _llava_onevision() -> Any:
    return transformers.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **_TEXT},
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **_TOWER},
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        image_grid_pinpoints=[[56, 56], [56, 112], [112, 56]],
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        **_IDS,
    )


def _llava_next_video() -> Any:
    return transformers.LlavaNextVideoConfig(
        text_config={"model_type": "llama", **_TEXT},
        vision_config={"model_type": "clip_vision_model", **_TOWER},
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[56, 56]],
        spatial_pool_mode="average",
        spatial_pool_stride=2,
    )


def _video_llava() -> Any:
    return transformers.VideoLlavaConfig(
        text_config={"model_type": "llama", **_TEXT},
        vision_config={"model_type": "clip_vision_model", **_TOWER},
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_seq_length=16,
        video_seq_length=17 * 8,
    )


def _internvl() -> Any:
    return transformers.InternVLConfig(
        text_config={"model_type": "qwen2", **_TEXT},
        vision_config={**_TOWER, "image_size": [56, 56], "patch_size": [14, 14]},
        image_token_id=IMAGE,
        image_seq_length=4,
        downsample_ratio=0.5,
        vision_feature_layer=-1,
    )


def _smolvlm() -> Any:
    return transformers.SmolVLMConfig(
        text_config={"model_type": "llama", **_TEXT},
        vision_config=_TOWER,
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=PAD,
    )


_CONFIGS: dict[str, Callable[[], Any]] = {
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen3_vl_moe": functools.partial(_qwen3_vl, experts=True),
    "qwen3_5": _qwen3_5,
    "qwen3_5_moe": functools.partial(_qwen3_5, experts=True),
    "glm4v": _glm4v,
    "glm4v_moe": functools.partial(_glm4v, experts=True),
    "glm46v": _glm46v,
    "video_llama_3": _video_llama_3,
    "llava_onevision": _llava_onevision,
    "llava_next_video": _llava_next_video,
    "video_llava": _video_llava,
    "internvl": _internvl,
    "smolvlm": _smolvlm,
}
FAMILIES = tuple(_CONFIGS)
PATCH = {"qwen3_vl": 16, "qwen3_vl_moe": 16, "qwen3_5": 16, "qwen3_5_moe": 16}


@functools.cache
def model(family: str, attention: str = "sdpa") -> Any:
    """The model of a family: the same weights at every call, and no early end of a generation."""
    return fresh(family, attention)


def fresh(family: str, attention: str = "sdpa") -> Any:
    """A new copy of `model(family)`, for tests that change it."""
    config = _CONFIGS[family]()
    config._attn_implementation = attention
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
    return made


def prompt(family: str, seed: int = 0, text: int = 6, frames: int = 4, videos: int = 1, images: int = 0) -> Inputs:
    """One prompt: five random bytes of text, images, videos, `text` bytes of question."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def words(count: int) -> list[int]:
        return torch.randint(3, 250, (count,), generator=generator).tolist()

    ids, inputs = words(5), {}
    if family.startswith(("qwen", "glm", "video_llama")):
        patch, high, wide = PATCH.get(family, 14), 4, 6
        stacked = 1 if family == "video_llama_3" else 2  # frames in a temporal patch
        size, width = high * wide // 4, 3 * stacked * patch * patch
        mark = IMAGE if family.startswith("glm") else VIDEO
        kinds = [0] * len(ids)
        for _ in range(images):
            ids += [START, *[IMAGE] * size, END]
            kinds += [0, *[1] * size, 0]
        for _ in range(videos):
            runs = [frames * size] if family in ("qwen2_vl", "qwen2_5_vl") else [size] * frames
            for run in runs:
                stamp = words(3)
                ids += [*stamp, START, *[mark] * run, END]
                kinds += [0] * 4 + [2] * run + [0]
        if images:
            inputs["pixel_values"] = noise(images * high * wide, width)
            inputs["image_grid_thw"] = torch.tensor([[1, high, wide]] * images)
        if videos:
            inputs["pixel_values_videos"] = noise(videos * frames * high * wide, width)
            inputs["video_grid_thw"] = torch.tensor([[frames, high, wide]] * videos)
        if family == "video_llama_3":
            inputs["video_merge_sizes"] = torch.tensor([2] * videos)
            inputs["video_compression_mask"] = torch.ones(videos * frames * size, dtype=torch.bool)
        else:
            inputs["mm_token_type_ids"] = torch.tensor([kinds + [0] * text])
    elif family in ("internvl", "smolvlm"):
        for _ in range(frames):
            ids += [*words(3), START, *[IMAGE] * 4, END]
        pixels = noise(frames, 3, 56, 56)
        inputs["pixel_values"] = pixels if family == "internvl" else pixels[None]
    else:
        frames = 8 if family == "video_llava" else frames
        size = {"video_llava": 17}.get(family, 4)
        for _ in range(videos):
            ids += [VIDEO] * (size * frames + (family == "llava_onevision")) + words(1)
        inputs["pixel_values_videos"] = noise(videos, frames, 3, 56, 56)
    inputs["input_ids"] = torch.tensor([ids + words(text)])
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return inputs


def batch(*prompts: Inputs) -> Inputs:
    """Prompts side by side, padded on the left."""
    longest = max(one["input_ids"].shape[1] for one in prompts)
    joined = {}
    for name in prompts[0].keys() | prompts[-1].keys():
        parts = [one[name] for one in prompts if name in one]
        if name in ("input_ids", "attention_mask", "mm_token_type_ids"):
            value = PAD if name == "input_ids" else 0
            parts = [torch.nn.functional.pad(part, (longest - part.shape[1], 0), value=value) for part in parts]
        joined[name] = torch.cat(parts)
    return joined


def is_video(family: str, ids: Tensor) -> Tensor:
    """Where the video tokens of hand-made prompts are, by definition: bool like `ids`."""
    where = ids == (IMAGE if family.startswith(("glm", "internvl", "smolvlm")) else VIDEO)
    if family == "llava_onevision":  # the last of every run is the newline
        where[:, :-1] &= ids[:, 1:] == VIDEO
    return where
