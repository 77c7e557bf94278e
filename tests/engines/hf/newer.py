"""Configurations of the tiny models of families that came later: configs.py has the others."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from tests.engines.hf.configs import (
    END,
    EXPERTS,
    GLM_IDS,
    IDS,
    IMAGE,
    QWEN3_TOWER,
    QWEN_IDS,
    QWEN_TOWER,
    SPARE,
    START,
    TEXT,
    TOWER,
    TURN,
    VIDEO,
    VOCABULARY,
    mrope,
)

WINDOW = {"fullatt_block_indexes": [1], "window_size": 56}
AUDIO = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 48, "num_mel_bins": 16}
AUDIO |= {"output_dim": 64}
LATENT = {"q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}


def _qwen2_5_omni() -> Any:
    tower = {**QWEN_TOWER, **WINDOW, "patch_size": 14}
    text = {**TEXT, "rope_parameters": mrope(2, 3, 3)}
    return transformers.Qwen2_5OmniThinkerConfig(
        text_config=text,
        vision_config=tower,
        audio_config={**AUDIO, "n_window": 4, "max_source_positions": 32},
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        audio_token_index=SPARE,
        **QWEN_IDS,
    )


def _qwen3_omni_moe() -> Any:
    tower = {**QWEN3_TOWER, "deepstack_visual_indexes": [0, 1]}
    text = {**TEXT, **EXPERTS, "head_dim": 16, "rope_parameters": mrope(4, 2, 2, mrope_interleaved=True)}
    return transformers.Qwen3OmniMoeThinkerConfig(
        text_config=text, vision_config=tower, audio_config=AUDIO, audio_token_id=SPARE, **QWEN_IDS
    )


def _ernie4_5_vl_moe() -> Any:
    tower = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 14}
    text = {**TEXT, "rope_parameters": mrope(3, 3, 2), "moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1}
    text |= {"moe_intermediate_size": [32, 16]}
    return transformers.Ernie4_5_VLMoeConfig(text_config=text, vision_config=tower, **GLM_IDS)


def _exaone4_5() -> Any:
    tower = {**QWEN_TOWER, **WINDOW, "patch_size": 14, "num_key_value_heads": 1}
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    text = {**TEXT, "model_type": "exaone4", "layer_types": layers, "sliding_window": 24, "head_dim": 16}
    return transformers.Exaone4_5_Config(text_config=text, vision_config=tower, **IDS)


def _glm_ocr() -> Any:
    tower = {**QWEN_TOWER, "patch_size": 14, "image_size": 112}
    text = {**TEXT, "rope_parameters": mrope(2, 3, 3, partial_rotary_factor=1.0), "head_dim": 16}
    return transformers.GlmOcrConfig(text_config=text, vision_config=tower, **GLM_IDS)


def _glmga() -> Any:
    tower = {**QWEN_TOWER, "patch_size": 14, "image_size": 112, "model_type": "glm4v_vision"}
    text = {**TEXT, "rope_parameters": mrope(2, 3, 3, partial_rotary_factor=1.0), "model_type": "glm4v_text"}
    return transformers.GlmgaConfig(text_config=text, vision_config=tower, **GLM_IDS)


def _glm5_next() -> Any:
    tower = {**QWEN_TOWER, "patch_size": 14, "image_size": 112, "projection_intermediate_size": 48}
    text = {**TEXT, **LATENT, "qk_rope_head_dim": 0, "moe_intermediate_size": 32, "n_routed_experts": 4}
    text |= {"num_experts_per_tok": 2, "index_topk": 16, "index_head_dim": 16, "index_n_heads": 16, "index_kpool": 4}
    text |= {"linear_head_dim": 16, "linear_num_heads": 2, "hc_mult": 2, "num_key_value_heads": 4}
    text |= {"mlp_layer_types": ["dense", "sparse", "sparse"], "indexer_types": ["full", "full", "shared"]}
    text |= {"layer_types": ["linear_attention", "full_attention", "full_attention"]}
    ids = {**GLM_IDS, "video_end_token_id": TURN}
    return transformers.Glm5NextConfig(text_config=text, vision_config=tower, **ids)


def _qwen4_exp() -> Any:
    linear = {f"linear_{part}_head_dim": 16 for part in ("key", "value")}
    linear |= {f"linear_num_{part}_heads": 2 for part in ("key", "value")}
    rope = mrope(1, 1, 0, mrope_interleaved=True, partial_rotary_factor=0.25)
    text = {**TEXT, **EXPERTS, **linear, "head_dim": 16, "rope_parameters": rope, "shared_expert_intermediate_size": 32}
    text |= {"layer_types": ["linear_attention", "full_attention", "full_attention"], "hc_count": 2}
    text |= {"hc_lowrank": 8, "ple_layer_ids": [1], "ple_embed_dim": 64, "ngram_vocab_size_base": 64}
    text |= {"heads_per_ngram": 2, "make_ngram_vocab_size_divisible_by": 8, "split_ngram_parts": 4}
    text |= {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 16}
    text |= {"indexer_compress_ratio": 4}
    return transformers.Qwen4ExpConfig(text_config=text, vision_config=QWEN3_TOWER, **QWEN_IDS)


def _kimi_k25() -> Any:
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower |= {"pos_emb_height": 8, "pos_emb_width": 8, "patch_size": 14}
    text = {**TEXT, **LATENT, "model_type": "deepseek_v3", "num_key_value_heads": 4, "n_routed_experts": 4}
    text |= {"num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1}
    text |= {"first_k_dense_replace": 1, "n_shared_experts": 1}
    return transformers.Kimi_K25Config(text_config=text, vision_config=tower, projection_hidden_size=32, **QWEN_IDS)


def _lfm3_vl() -> Any:
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower |= {"num_key_value_heads": 1, "layer_types": ["conv", "full_attention"]}
    text = {**TEXT, "model_type": "lfm3", "layer_types": ["conv", "full_attention", "full_attention"]}
    return transformers.Lfm3VlConfig(text_config=text, vision_config=tower, projector_hidden_size=48, **QWEN_IDS)


def _hyperclovax_vision_v2() -> Any:
    tower = {**QWEN_TOWER, **WINDOW, "patch_size": 14, "model_type": "qwen2_5_vl_vision"}
    return transformers.HyperCLOVAXVisionV2Config(
        text_config={"model_type": "hyperclovax", **TEXT}, vision_config=tower, **IDS
    )


def _cosmos3_edge() -> Any:
    tower = {**{key: value for key, value in TOWER.items() if key != "image_size"}, "patch_size": 16, "num_patches": 16}
    text = {**TEXT, "head_dim": 16, "rope_parameters": mrope(2, 3, 3)}
    return transformers.Cosmos3EdgeConfig(text_config=text, vision_config=tower, projector_hidden_size=48, **QWEN_IDS)


def _cosmos3_omni() -> Any:
    tower = {**QWEN3_TOWER, "deepstack_visual_indexes": [0, 1], "model_type": "qwen3_vl_vision"}
    rope = mrope(4, 2, 2, mrope_interleaved=True)
    text = {**TEXT, "head_dim": 16, "rope_parameters": rope, "model_type": "qwen3_vl_text"}
    return transformers.Cosmos3OmniConfig(text_config=text, vision_config=tower, **QWEN_IDS)


def _muse(name: str) -> Any:
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower |= {"pos_emb_height": 8, "pos_emb_width": 8, "layer_types": ["window_attention", "full_attention"]}
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    text = {**TEXT, "head_dim": 16, "layer_types": layers, "sliding_window": 24, "layer_rope_theta": [1e4, 0, 1e4]}
    sizes = {"out_hidden_size": 128, "projector_hidden_size": 48}
    if name == "MuseGlimmer":
        return transformers.MuseGlimmerConfig(text_config=text, vision_config=tower, **sizes, **IDS)
    text |= {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "moe_hidden_size": 32}
    audio = {"patch_sizes": [2, 2], "hidden_sizes": [8, 16], "depths": [1, 1], "num_hidden_layers": 2}
    audio |= {"out_hidden_size": 64}
    return transformers.MuseSparkConfig(
        text_config=text, vision_config=tower, audio_config=audio, audio_token_id=SPARE, **sizes, **IDS
    )


def _cohere_compass() -> Any:
    tower = {**QWEN3_TOWER, "deepstack_visual_indexes": [0, 1]}
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    rope = mrope(4, 2, 2, mrope_interleaved=True)
    text = {**TEXT, "layer_types": layers, "sliding_window": 24, "logit_scale": 0.5}
    text |= {"rope_parameters": {"sliding_attention": rope, "full_attention": None}}
    return transformers.CohereCompassConfig(text_config=text, vision_config=tower, **QWEN_IDS)


def _hy_v4_vl() -> Any:
    tower = {**{key: value for key, value in TOWER.items() if key != "image_size"}, "patch_size": 16}
    tower |= {"out_hidden_size": 64, "max_image_size": 128}
    text = {**TEXT, **LATENT, "rope_parameters": mrope(2, 1, 1), "moe_intermediate_size": 32, "n_routed_experts": 4}
    text |= {"num_experts_per_tok": 2, "index_topk": 16, "index_head_dim": 16, "index_n_heads": 16, "hc_mult": 2}
    text |= {"indexer_types": ["full", "full", "shared"]}
    return transformers.HYV4VLConfig(text_config=text, vision_config=tower, **IDS)


def gemma4(**text: Any) -> Any:
    """Small ones have inputs of each layer and share keys; large ones let the tokens of a frame see one another."""
    tower = {**TOWER, "num_key_value_heads": 2, "head_dim": 16, "patch_size": 4, "pooling_kernel_size": 2}
    tower = {name: value for name, value in tower.items() if name != "image_size"}
    text = {**GEMMA, "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 0, **text}
    return transformers.Gemma4Config(text_config=text, vision_config=tower, audio_config=None, **GEMMA_IDS)


def gemma4_unified(**text: Any) -> Any:
    tower = {"patch_size": 2, "pooling_kernel_size": 2, "mm_embed_dim": 32, "mm_posemb_size": 16}
    tower |= {"output_proj_dims": 32}
    text = {**GEMMA, **text}
    return transformers.Gemma4UnifiedConfig(text_config=text, vision_config=tower, audio_config=None, **GEMMA_IDS)


def _dots3_note() -> Any:
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower |= {"moe_intermediate_size": 16, "num_local_experts": 2, "adapter_in_dim": 32, "adapter_out_dim": 64}
    tower |= {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 1}
    text = {**TEXT, **LATENT, "moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2}
    text |= {"num_key_value_heads": 4, "index_topk": 16, "index_head_dim": 16, "index_n_heads": 16}
    text |= {"sliding_window": 24, "layer_types": ["indexed_attention", "sliding_attention", "indexed_attention"]}
    text |= {"shared_experts_intermediate_size": 32, "swa_num_attention_heads": 2, "swa_num_key_value_heads": 2}
    text |= {"swa_q_lora_rank": 24, "swa_kv_lora_rank": 16, "swa_head_dim": 24, "swa_qk_nope_head_dim": 16}
    text |= {"swa_v_head_dim": 16, "head_dim": 24}
    audio = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    audio |= {"feature_size": 16, "downsample_hidden_size": 8, "adapter_input_size": 32, "adapter_out_dim": 64}
    return transformers.Dots3NoteConfig(
        text_config=text, vision_config=tower, audio_config=audio, audio_token_id=SPARE, **IDS
    )


def molmo2() -> Any:
    tower = {**{name: TOWER[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads")}}
    heads = {"num_key_value_heads": 2, "head_dim": 16}
    tower |= {**heads, "num_hidden_layers": 2, "image_size": [56, 84], "patch_size": 14}
    adapter = {**heads, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, "text_hidden_size": 64}
    adapter |= {"vision_feature_layer": [1, 0]}
    text = {**TEXT, "head_dim": 16, "additional_vocab_size": 0}
    ids = {"image_patch_id": VIDEO, "frame_start_token_id": START, "frame_end_token_id": END}
    ids |= {"image_start_token_id": SPARE, "low_res_image_start_token_id": SPARE, "image_end_token_id": SPARE}
    return transformers.Molmo2Config(text_config=text, vision_config=tower, adapter_config=adapter, **ids)


def _perception_lm() -> Any:
    tower = {**TOWER, "model_type": "clip_vision_model", "model_args": {"embed_dim": 32}}  # not timm's, which it has
    text = {"model_type": "llama", **TEXT}
    return transformers.PerceptionLMConfig(text_config=text, vision_config=tower, projector_pooling_ratio=2, **IDS)


def _minicpm(name: str = "MiniCPMV4_6", **more: Any) -> Any:
    linear = {f"linear_{part}_head_dim": 16 for part in ("key", "value")}
    linear |= {f"linear_num_{part}_heads": 2 for part in ("key", "value")}
    rope = mrope(1, 1, 0, mrope_interleaved=True, partial_rotary_factor=0.25)
    text = {**TEXT, **linear, "model_type": "qwen3_5_text", "head_dim": 16, "rope_parameters": rope}
    text |= {"layer_types": ["linear_attention", "full_attention", "full_attention"]}
    config = getattr(transformers, f"{name}Config")
    return config(text_config=text, vision_config=TOWER, insert_layer_id=0, downsample_mode="16x", **IDS, **more)


GEMMA = {**TEXT, "num_hidden_layers": 4, "head_dim": 16, "global_head_dim": 24, "sliding_window": 24}
GEMMA |= {"layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]}
GEMMA_IDS = {**IDS, "tie_word_embeddings": False, "audio_token_id": SPARE, "boi_token_id": START, "eoi_token_id": END}
GEMMA_SMALL = {"hidden_size_per_layer_input": 8, "num_kv_shared_layers": 2}

SLICE_IDS = {"image_start_id": START, "image_end_id": END, "slice_start_id": SPARE, "slice_end_id": END}
SLICE_IDS |= {"newline_id": 10}

NEWER: dict[str, Callable[[], Any]] = {
    "qwen2_5_omni_thinker": _qwen2_5_omni,
    "qwen3_omni_moe_thinker": _qwen3_omni_moe,
    "ernie4_5_vl_moe": _ernie4_5_vl_moe,
    "exaone4_5": _exaone4_5,
    "glm_ocr": _glm_ocr,
    "glmga": _glmga,
    "glm5_next": _glm5_next,
    "qwen4_exp": _qwen4_exp,
    "kimi_k25": _kimi_k25,
    "lfm3_vl": _lfm3_vl,
    "hyperclovax_vision_v2": _hyperclovax_vision_v2,
    "cosmos3_edge": _cosmos3_edge,
    "cosmos3_omni": _cosmos3_omni,
    "muse_glimmer": lambda: _muse("MuseGlimmer"),
    "muse_spark": lambda: _muse("MuseSpark"),
    "cohere_compass": _cohere_compass,
    "hy_v4_vl": _hy_v4_vl,
    "dots3_note": _dots3_note,
    "gemma4": lambda: gemma4(**GEMMA_SMALL),
    "gemma4_unified": gemma4_unified,
    "molmo2": molmo2,
    "perception_lm": _perception_lm,
    "minicpmv4_6": _minicpm,
    "minicpmv4_7": lambda: _minicpm("MiniCPMV4_7", **SLICE_IDS),
    "minicpm_ocr": lambda: _minicpm("MiniCPMOcr"),
}


@dataclass(frozen=True)
class Grid:
    """What a prompt and its pixels look like, of a family that takes `video_grid_thw`.

    patch: pixels of its side.  stacked: frames in the channels of a patch.  square: whether a patch is no flat row.
    one_run: whether a video is one run of placeholders.  typed: whether it takes `mm_token_type_ids`.
    newline: whether every row of a frame ends with a token.  begin, end: tokens around a video.
    parts: how many rows of `video_grid_thw` a video has.  merged: frames of the pixels that become one.
    """

    patch: int = 14
    stacked: int = 2
    square: bool = False
    one_run: bool = False
    typed: bool = True
    newline: bool = False
    begin: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    parts: int = 1
    merged: int = 1

    def pixels(self, family: str) -> tuple[int, ...]:
        return (3, self.patch, self.patch) if self.square else (3 * self.stacked * self.patch**2,)

    def rows(self, frames: int) -> list[int]:
        return [frames // self.parts * self.merged] * self.parts


GRIDS = {
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen4_exp"), Grid(16)),
    **dict.fromkeys(("cohere_compass", "cosmos3_omni"), Grid(16)),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), Grid(one_run=True)),
    "video_llama_3": Grid(stacked=1),
    "qwen2_5_omni_thinker": Grid(one_run=True, typed=False),
    "qwen3_omni_moe_thinker": Grid(16, one_run=True, typed=False),
    "ernie4_5_vl_moe": Grid(stacked=1, one_run=True, merged=2),
    "exaone4_5": Grid(one_run=True, typed=False),
    "glm5_next": Grid(begin=(SPARE,), end=(TURN,), typed=False),
    "kimi_k25": Grid(stacked=1, square=True, typed=False, parts=4, merged=2),
    "lfm3_vl": Grid(16, typed=False),
    "hyperclovax_vision_v2": Grid(one_run=True, typed=False),
    "cosmos3_edge": Grid(16, stacked=1),
    "muse_glimmer": Grid(typed=False),
    "muse_spark": Grid(typed=False),
    "hy_v4_vl": Grid(16, stacked=1, one_run=True, newline=True),
    "dots3_note": Grid(stacked=1, one_run=True, typed=False),
}
# Of Gemma 4, videos of one length were stacked in older releases; in newer ones their frames follow one another.
STACKED = tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 18)


def gemma_places(family: str) -> Tensor:
    """The column and row of each patch of a frame, two rows of three tokens, and -1 where it is padded."""
    merged = 1 if family == "gemma4_unified" else 2
    rows, columns = torch.meshgrid(torch.arange(2 * merged), torch.arange(3 * merged), indexing="ij")
    places = torch.stack([columns.flatten(), rows.flatten()], 1)
    return torch.nn.functional.pad(places, (0, 0, 0, 2 * merged**2), value=-1)


def gemma_pixels(family: str) -> tuple[int, int]:
    """Patches of a frame, with padding, and numbers in a patch."""
    return len(gemma_places(family)), 3 * 4**2


def pooled(frames: int) -> Tensor:
    """Of Molmo 2, the patches that make each token, among those of all frames: 4 by 6, of which 2 by 2 are one."""
    patches = torch.arange(frames * 24).view(frames, 2, 2, 3, 2)
    return patches.transpose(2, 3).reshape(-1, 4)


EAGER = ("hy_v4_vl",)  # for which transformers has no other attention


def exists(family: str) -> bool:
    """Whether this release of transformers has the family, and can run it on a video."""
    if family == "kimi_k25" and transformers.__version__.startswith("5.17."):  # splits features as if not pooled
        return False
    if family == "perception_lm" and STACKED:  # its tower has to be timm's, which is not installed here
        return False
    return family.removesuffix("_thinker") in transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES


# Transformers itself refuses an image and a video in one call of these.
NO_IMAGE_BESIDE = ("glm4v", "glm4v_moe", "glm46v", "glm_ocr", "glmga", "molmo2")
ROUNDED = ("exaone4_5", "lfm3_vl", "hy_v4_vl")  # of which a packed tower differs from a stock one by a last bit
KINDS = ("mm_token_type_ids", "moe_mm_token_type_ids")
# What the model itself says of a whole prompt, with a cache or without, padded or not, differs by up to 3e-4: its
# recurrence is in float32 whatever its weights are, and cut into chunks.
TOLERANCE = {"glm5_next": 1e-3}
RELEASE = tuple(int(part) for part in transformers.__version__.split(".")[:2])
# Which do not tell the positions of a prompt before their forward counts them, so nothing is stored of their videos.
UNTOLD = ("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker") if RELEASE < (5, 17) else ()
# Whose beams are wrong in stock, or fail, from pixels and from embeddings.
NO_BEAMS = ("exaone4_5", "qwen3_omni_moe_thinker") if RELEASE < (5, 24) else ()
