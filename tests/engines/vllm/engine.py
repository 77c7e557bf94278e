"""Tiny checkpoints that vLLM loads like any other, and an engine around one.

Weights are random, but not vLLM's dummies: attention is far from uniform, so an answer tells where tokens stand.
"""

import functools
import gc
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    TORCHDYNAMO_DISABLE="1",  # a minute of compiling for a few layers
    HF_HUB_OFFLINE="1",
)

from vllm import LLM, ModelRegistry, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.model_executor.models.interfaces import supports_multimodal_pruning

from tests.engines.hf import configs, processors, tiny
from vidsieve.engines.vllm import register, settings

# vLLM on CPU wants heads of 32.
_TEXT = {**configs.TEXT, "hidden_size": 128, "intermediate_size": 192, "head_dim": 32, "max_position_embeddings": 16384}
_TOWER = {**configs.QWEN_TOWER, "hidden_size": 64, "out_hidden_size": 128}
FAMILIES = ("qwen2_5_vl", "qwen3_vl")


END_OF_VIDEO = configs.VOCABULARY  # of GLM, for which tiny.py has no id left
# Of GLM too, which else starts with videos of 10 GB, as long as the context.
_LIMITS = {
    "video": {"count": 4, "num_frames": 16, "width": 112, "height": 112},
    "image": {"count": 4, "width": 168, "height": 112},
}


def _config(family: str) -> Any:
    if family == "internvl":
        return transformers.InternVLConfig(
            text_config={"model_type": "qwen2", **_TEXT},
            vision_config={
                **configs.TOWER,
                "hidden_size": 64,
                "intermediate_size": 96,
                "image_size": [56, 56],
                "patch_size": [14, 14],
            },
            image_token_id=tiny.IMAGE,
            image_seq_length=4,
            downsample_ratio=0.5,
            vision_feature_layer=-1,
        )
    if family == "llava_next_video":
        tower = {**configs.TOWER, "model_type": "clip_vision_model", "hidden_size": 64, "intermediate_size": 96}
        tower["patch_size"] = 7  # vLLM divides the size of a frame by its square
        return transformers.LlavaNextVideoConfig(
            text_config={"model_type": "llama", **_TEXT},
            vision_config=tower,
            image_token_index=tiny.IMAGE,
            video_token_index=tiny.VIDEO,
            image_grid_pinpoints=[[56, 56]],
            spatial_pool_mode="average",
            spatial_pool_stride=2,
        )
    if family == "glm4v":
        # transformers has biases whatever the configuration says, vLLM where it says so, as that of a checkpoint does.
        text = {**_TEXT, "vocab_size": END_OF_VIDEO + 8, "attention_bias": True}
        text["rope_parameters"] = configs.mrope(2, 3, 3, partial_rotary_factor=0.5)
        tower = {**_TOWER, "patch_size": 14, "image_size": 112}
        marks = {**configs.GLM_IDS, "video_end_token_id": END_OF_VIDEO}
        return transformers.Glm4vConfig(text_config=text, vision_config=tower, **marks)
    if family == "llava_onevision":
        tower = {**configs.TOWER, "model_type": "siglip_vision_model", "vision_use_head": False}
        return transformers.LlavaOnevisionConfig(
            text_config={"model_type": "qwen2", **_TEXT},
            vision_config={**tower, "hidden_size": 64, "intermediate_size": 96},
            vision_feature_select_strategy="full",
            vision_feature_layer=-1,
            image_grid_pinpoints=[[56, 56], [56, 112], [112, 56]],
            image_token_index=tiny.IMAGE,
            video_token_index=tiny.VIDEO,
            **configs.IDS,
        )
    if family.startswith("qwen2_5_vl"):
        tower = {**_TOWER, "patch_size": 14, "fullatt_block_indexes": [1], "window_size": 56, "tokens_per_second": 2}
        text = {**_TEXT, "rope_parameters": configs.mrope(4, 6, 6)}
        if family == "qwen2_5_vl_counting":  # positions of one dimension, as EXAONE 4.5 has
            text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
        return transformers.Qwen2_5_VLConfig(text_config=text, vision_config=tower, **configs.QWEN_IDS)
    tower = {**_TOWER, "patch_size": 16, "num_position_embeddings": 64}
    if family in ("qwen3_5", "qwen3_5_moe"):
        heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 2}
        text = {**_TEXT, **heads, "linear_key_head_dim": 128, "linear_value_head_dim": 128, "head_dim": 64}
        text["layer_types"] = ["linear_attention", "full_attention", "full_attention"]
        text["rope_parameters"] = configs.mrope(3, 3, 2, mrope_interleaved=True, partial_rotary_factor=0.25)
        if family == "qwen3_5":
            return transformers.Qwen3_5Config(text_config=text, vision_config=tower, **configs.QWEN_IDS)
        text |= {**configs.EXPERTS, "shared_expert_intermediate_size": 32}
        return transformers.Qwen3_5MoeConfig(text_config=text, vision_config=tower, **configs.QWEN_IDS)
    tower["deepstack_visual_indexes"] = [0, 1]
    text = {**_TEXT, "rope_parameters": configs.mrope(6, 5, 5, mrope_interleaved=True)}
    if family == "qwen3_vl_moe":
        text |= {**configs.EXPERTS, "norm_topk_prob": True}
        return transformers.Qwen3VLMoeConfig(text_config=text, vision_config=tower, **configs.QWEN_IDS)
    return transformers.Qwen3VLConfig(text_config=text, vision_config=tower, **configs.QWEN_IDS)


@functools.cache
def hugging_face(family: str) -> Any:
    """The model of a family as transformers runs it, the same weights at every call."""
    model = transformers.AutoModelForImageTextToText.from_config(_config(family)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if weight.ndim >= 2:
                weight.copy_(torch.randn(weight.shape, generator=generator) * (1.2 / weight.shape[-1] ** 0.5))
            elif "bias" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
    model.generation_config.eos_token_id = None
    return model


@functools.cache
def real_processor(family: str) -> Any:
    """The processor of a family. Images are normalised like videos, as vLLM takes for granted."""
    if family == "glm4v":  # checkpoints of GLM-4.6V have this model, and a processor of their own
        processor = processors.processor("glm46v")
        tokenizer = processor.tokenizer
        tokenizer.add_special_tokens(
            {"additional_special_tokens": ["<|end_of_video|>"]}, replace_extra_special_tokens=False
        )
        assert tokenizer.convert_tokens_to_ids("<|end_of_video|>") == END_OF_VIDEO
        processor.video_end_id = END_OF_VIDEO
        return processor
    if not family.startswith("qwen"):
        processor = processors.processor(family)
        if family == "llava_next_video":
            processor.patch_size = 7
        return processor
    processor = processors.processor("qwen2_5_vl" if family.startswith("qwen2_5") else "qwen3_vl")
    processor.video_processor.size = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112 * 1024}
    for name in ("image_mean", "image_std"):
        setattr(processor.image_processor, name, getattr(processor.video_processor, name))
    return processor


def checkpoint(family: str, folder: Path) -> Path:
    """A checkpoint of `hugging_face(family)` with its processor."""
    path = folder / family
    if not path.exists():
        hugging_face(family).save_pretrained(path)
        if family.startswith("llava"):
            _rename_tower(path / "model.safetensors")
        processor = real_processor(family)
        processor.save_pretrained(path)
    return path


def _rename_tower(path: Path) -> None:
    """Name the weights of SigLIP or CLIP as checkpoints do, and vLLM expects."""
    weights = load_file(path)
    names = {n: n.replace("vision_tower.", "vision_tower.vision_model.") for n in weights if "vision_model." not in n}
    save_file({names.get(name, name): weight for name, weight in weights.items()}, path, metadata={"format": "pt"})


def clip(seed: int = 0, frames: int = 16, size: int = 112) -> tuple[Any, dict[str, Any]]:
    """A video as vLLM wants it: scenes of noise with a drifting patch, and what is known of the file."""
    random = np.random.default_rng(seed)
    video = np.empty((frames, size, size, 3), dtype=np.uint8)
    for frame in range(frames):
        if frame % 5 == 0:
            scene = random.integers(0, 255, (size // 8 + 1,) * 2 + (3,)).repeat(8, 0).repeat(8, 1)[:size, :size]
        video[frame] = scene
        video[frame, 4 * frame % 64 :][:32, 20:60] = random.integers(0, 255, 3)
    return video, {
        "fps": 2.0,
        "duration": frames / 2.0,
        "total_num_frames": frames,
        "frames_indices": list(range(frames)),
        "video_backend": "opencv",
        "do_sample_frames": False,
    }


_MARK = {"video": tiny.VIDEO, "image": tiny.IMAGE}


def prompt(family: str, *media: str, question: str = "What moves?", before: str = "You see:") -> str:
    """A prompt with `media`, each "video" or "image"."""
    media = media or ("video",)
    if family.startswith("llava"):
        marks = "".join(f"<{kind}>" for kind in media)
    elif family == "internvl":
        marks = "".join({"image": "<IMG_CONTEXT>", "video": "<video>"}[kind] for kind in media)
    elif family == "glm4v":
        marks = "".join(f"<|begin_of_{kind}|><|{kind}|><|end_of_{kind}|>" for kind in media)
    else:
        decode = functools.partial(real_processor(family).tokenizer.decode, skip_special_tokens=False)
        marks = "".join(decode([tiny.START, _MARK[kind], tiny.END]) for kind in media)
    return f"<|im_start|>user\n{before}{marks}{question}<|im_end|>\n<|im_start|>assistant\n"


def request(family: str, *videos: Any, question: str = "What moves?", **extra: Any) -> dict[str, Any]:
    """One request about some clips, by default one."""
    videos = videos or (clip(),)
    text = prompt(family, *["video"] * len(videos), question=question)
    return {"prompt": text, "multi_modal_data": {"video": list(videos)}, **extra}


def mixed(family: str) -> dict[str, Any]:
    """An image, a video, an image, another video, in one prompt."""
    images = [np.random.default_rng(seed).integers(0, 255, (112, 168, 3), dtype=np.uint8) for seed in (5, 6)]
    return {
        "prompt": prompt(family, "image", "video", "image", "video"),
        "multi_modal_data": {"video": [clip(1, 8), clip(2, 6)], "image": images},
    }


def ids(out: Any) -> list[int]:
    return list(out.outputs[0].token_ids)


def log_probabilities(out: Any) -> list[float]:
    """Of the tokens of an answer."""
    return [step[token].logprob for step, token in zip(out.outputs[0].logprobs, ids(out), strict=True)]


def pads(out: Any, token: int = tiny.VIDEO) -> int:
    """Tokens of videos in a prompt."""
    return sum(each == token for each in out.prompt_token_ids)


class Engine:
    """A vLLM engine in this process. method: VIDSIEVE_VLLM, not set if empty, None for vLLM without vidsieve."""

    def __init__(self, path: Path, rate: float = 0.0, method: str | None = "", **options: Any) -> None:
        os.environ["VIDSIEVE_VLLM"] = "off" if method is None else method
        if method == "":
            del os.environ["VIDSIEVE_VLLM"]
        settings.configured.cache_clear()
        from vllm.model_executor.model_loader import utils

        utils._MODEL_ARCH_BY_HASH.clear()
        vars(ModelRegistry).pop("resolve_model_cls", None)  # vLLM's own look-up is back
        register()
        settled = {
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 8192,
            "max_num_seqs": 16,
            "max_num_batched_tokens": 8192,
            "limit_mm_per_prompt": _LIMITS if path.name == "glm4v" else {"video": 4, "image": 4},
            "block_size": 32,
            "seed": 0,
            "enable_prefix_caching": True,
            **({"video_pruning_rate": rate} if rate else {}),
        }
        self.llm = LLM(model=str(path), **{**settled, **options})
        if "pipeline_parallel_size" in options:
            return  # its models are in other processes
        self.runner = self.llm.llm_engine.model_executor.driver_worker.worker.model_runner
        self.model = self.runner.get_model()
        self.positions: dict[str, Any] = {}  # of each request, as the last step with its prompt left them
        self.kept: list[torch.Tensor] = []  # of each video encoded, in that order
        self.features: list[torch.Tensor] = []  # that it was chosen by
        self._watch()

    def _watch(self) -> None:
        gather, reduce = self.runner._gather_mm_embeddings, getattr(self.model, "_reduce_each", None)

        def gathered(*args: Any, **kwargs: Any) -> Any:
            out = gather(*args, **kwargs)
            for name in self.runner.input_batch.req_ids:
                where = self.runner.requests[name].mrope_positions  # None where they just count
                self.positions[name.partition("-")[0]] = where if where is None else where.clone()
            return out

        def reduced(*args: Any) -> Any:
            out = reduce(*args)
            self.features += args[0]
            self.kept += [reduction.kept for reduction in out]
            return out

        self.runner._gather_mm_embeddings = gathered
        if reduce is not None:
            self.model._reduce_each = reduced
        if not getattr(self.model, "sieves", False):
            # vLLM's CPU runner forgets to look, and fails; on a GPU it does look.
            prunes = supports_multimodal_pruning(self.model) and self.model.is_multimodal_pruning_enabled
            self.runner.is_multimodal_pruning_enabled = prunes

    def ask(self, requests: list[dict[str, Any]], tokens: int = 4) -> list[Any]:
        sampling = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, logprobs=3)
        return self.llm.generate(requests, sampling, use_tqdm=False)

    def close(self) -> None:
        vars(self).clear()
        gc.collect()
        cleanup_dist_env_and_memory()
