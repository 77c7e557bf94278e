"""Configurations of tiny models, one of every family: as few layers and channels as show what the family does."""

import functools
from collections.abc import Callable
from typing import Any

import transformers

BYTES = 256
PAD, TURN, END_OF_TURN, START, END, IMAGE, VIDEO, SPARE = range(BYTES, BYTES + 8)
VOCABULARY = BYTES + 8

TEXT = {
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
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
QWEN_TOWER = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 64,
}
QWEN3_TOWER = {**QWEN_TOWER, "patch_size": 16, "num_position_embeddings": 64}
IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO}
QWEN_IDS = {**IDS, "vision_start_token_id": START, "vision_end_token_id": END}
GLM_IDS = {
    **IDS,
    "image_start_token_id": START,
    "image_end_token_id": END,
    "video_start_token_id": SPARE,
    "video_end_token_id": SPARE,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def mrope(*section: int, **extra: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(section), **extra}


def _qwen2_vl() -> Any:
    tower = {"embed_dim": 32, "hidden_size": 64, "num_heads": 2, "depth": 2, "mlp_ratio": 2, "patch_size": 14}
    text = {**TEXT, "rope_parameters": mrope(2, 3, 3)}
    return transformers.Qwen2VLConfig(text_config=text, vision_config=tower, **QWEN_IDS)


def _qwen2_5_vl() -> Any:
    tower = {**QWEN_TOWER, "patch_size": 14, "fullatt_block_indexes": [1], "window_size": 56, "tokens_per_second": 2}
    text = {**TEXT, "rope_parameters": mrope(2, 3, 3)}
    return transformers.Qwen2_5_VLConfig(text_config=text, vision_config=tower, **QWEN_IDS)


def _qwen3_vl(experts: bool = False) -> Any:
    config = transformers.Qwen3VLMoeConfig if experts else transformers.Qwen3VLConfig
    tower = {**QWEN3_TOWER, "deepstack_visual_indexes": [0, 1]}
    text = {**TEXT, "head_dim": 16, "rope_parameters": mrope(4, 2, 2, mrope_interleaved=True)}
    return config(text_config={**text, **(EXPERTS if experts else {})}, vision_config=tower, **QWEN_IDS)


def _qwen3_5(experts: bool = False) -> Any:
    config = transformers.Qwen3_5MoeConfig if experts else transformers.Qwen3_5Config
    linear = {f"linear_{part}_head_dim": 16 for part in ("key", "value")}
    linear |= {f"linear_num_{part}_heads": 2 for part in ("key", "value")}
    layers = ["linear_attention", "full_attention", "full_attention"]
    rope = mrope(1, 1, 0, mrope_interleaved=True, partial_rotary_factor=0.25)
    text = {**TEXT, **linear, "head_dim": 16, "layer_types": layers, "rope_parameters": rope}
    if experts:
        text |= {**EXPERTS, "shared_expert_intermediate_size": 32}
    return config(text_config=text, vision_config=QWEN3_TOWER, **QWEN_IDS)


def _glm4v(experts: bool = False) -> Any:
    config = transformers.Glm4vMoeConfig if experts else transformers.Glm4vConfig
    tower = {**QWEN_TOWER, "patch_size": 14, "image_size": 112}
    rope = mrope(2, 3, 3, partial_rotary_factor=1.0)
    text = {**TEXT, "rope_parameters": rope}
    if experts:
        text |= {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1}
        text |= {"topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1, "head_dim": 16}
    return config(text_config=text, vision_config=tower, **GLM_IDS)


def _glm46v() -> Any:
    tower = {**QWEN_TOWER, "patch_size": 14, "image_size": 112, "model_type": "glm4v_vision"}
    text = {**TEXT, "rope_parameters": mrope(2, 3, 3, partial_rotary_factor=1.0), "model_type": "glm4v_text"}
    return transformers.Glm46VConfig(text_config=text, vision_config=tower, **GLM_IDS)


def _video_llama_3() -> Any:
    tower = {key: value for key, value in TOWER.items() if key != "image_size"}
    return transformers.VideoLlama3Config(text_config={"model_type": "qwen2", **TEXT}, vision_config=tower, **IDS)


def _llava_onevision() -> Any:
    return transformers.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **TEXT},
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **TOWER},
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        image_grid_pinpoints=[[56, 56], [56, 112], [112, 56]],
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        **IDS,
    )


def _llava_next_video() -> Any:
    return transformers.LlavaNextVideoConfig(
        text_config={"model_type": "llama", **TEXT},
        vision_config={"model_type": "clip_vision_model", **TOWER},
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[56, 56]],
        spatial_pool_mode="average",
        spatial_pool_stride=2,
    )


def _video_llava() -> Any:
    return transformers.VideoLlavaConfig(
        text_config={"model_type": "llama", **TEXT},
        vision_config={"model_type": "clip_vision_model", **TOWER},
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_seq_length=16,
        video_seq_length=17 * 8,
    )


def _internvl() -> Any:
    return transformers.InternVLConfig(
        text_config={"model_type": "qwen2", **TEXT},
        vision_config={**TOWER, "image_size": [56, 56], "patch_size": [14, 14]},
        image_token_id=IMAGE,
        image_seq_length=4,
        downsample_ratio=0.5,
        vision_feature_layer=-1,
    )


def _smolvlm() -> Any:
    return transformers.SmolVLMConfig(
        text_config={"model_type": "llama", **TEXT},
        vision_config=TOWER,
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=PAD,
    )


CONFIGS: dict[str, Callable[[], Any]] = {
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
