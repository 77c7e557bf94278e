"""Real processors of every family, built offline around a byte-level tokenizer, and clips for them.

Video processors need torchvision; tests that use this module skip where it cannot be imported.
"""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from tokenizers.pre_tokenizers import ByteLevel
from transformers.video_utils import load_video

from tests.engines.hf import newer, tiny

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl")
GEMMA = ("gemma4", "gemma4_unified")
EVERY = (*FAMILIES, "glm4v", "glm46v", "video_llama_3", "llava_next_video", "video_llava", "smolvlm")
# Of families of newer.py: the classes of the processor, of its part for videos and of that for images.
_NEWER = {
    "cosmos3_edge": ("Cosmos3EdgeProcessor", "Cosmos3EdgeVideoProcessor", "Cosmos3EdgeImageProcessorPil"),
    "qwen2_5_omni_thinker": ("Qwen2_5OmniProcessor", "Qwen2VLVideoProcessor", "Qwen2VLImageProcessorPil"),
    "qwen3_omni_moe_thinker": ("Qwen3OmniMoeProcessor", "Qwen2VLVideoProcessor", "Qwen2VLImageProcessorPil"),
    "cosmos3_omni": ("Qwen3VLProcessor", "Qwen3VLVideoProcessor", "Qwen2VLImageProcessorPil"),
    "glm_ocr": ("Glm46VProcessor", "Glm46VVideoProcessor", "Glm46VImageProcessorPil"),
    "glmga": ("Glm46VProcessor", "GlmgaVideoProcessor", "GlmgaImageProcessorPil"),
    "glm5_next": ("Glm5NextProcessor", "Glm5NextVideoProcessor", "Glm5NextImageProcessorPil"),
    "exaone4_5": ("Exaone4_5_Processor", "Qwen2VLVideoProcessor", "Qwen2VLImageProcessorPil"),
    "hyperclovax_vision_v2": ("HyperCLOVAXVisionV2Processor", "Qwen2VLVideoProcessor", "Qwen2VLImageProcessorPil"),
    "cohere_compass": ("CohereCompassProcessor", "CohereCompassVideoProcessor", "CohereCompassImageProcessorPil"),
    "lfm3_vl": ("Lfm3VlProcessor", "Qwen3VLVideoProcessor", "Qwen2VLImageProcessorPil"),
    "dots3_note": ("Dots3NoteProcessor", "Qwen3VLVideoProcessor", "Qwen2VLImageProcessorPil"),
    "muse_glimmer": ("MuseGlimmerProcessor", "MuseGlimmerVideoProcessor", "MuseGlimmerImageProcessor"),
    "muse_spark": ("MuseSparkProcessor", "MuseGlimmerVideoProcessor", "MuseGlimmerImageProcessor"),
    "minicpmv4_6": ("MiniCPMV4_6Processor", "MiniCPMV4_6VideoProcessor", "MiniCPMV4_6ImageProcessorPil"),
    "minicpmv4_7": ("MiniCPMV4_7Processor", "MiniCPMV4_6VideoProcessor", "MiniCPMV4_6ImageProcessorPil"),
    "minicpm_ocr": ("MiniCPMOcrProcessor", "MiniCPMOcrVideoProcessor", "MiniCPMOcrImageProcessor"),
    "perception_lm": ("PerceptionLMProcessor", "PerceptionLMVideoProcessor", "PerceptionLMImageProcessor"),
}
NEWER = tuple(family for family in _NEWER if newer.exists(family) and family not in newer.UNTOLD)
EACH = (*EVERY, *(pytest.param(family, marks=pytest.mark.matrix) for family in NEWER))
_VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_SPECIAL = {
    **dict.fromkeys(("qwen2_5_omni", "qwen3_omni"), (*_VISION, "<|audio_pad|>")),
    **dict.fromkeys(("cosmos3", "exaone", "hyperclovax", "lfm3"), _VISION),
    "cohere": ("<|VISION_START|>", "<|VISION_END|>", "<|IMAGE_PAD|>", "<|VIDEO_PAD|>"),
    "dots3": ("<|imgstart|>", "<|imgend|>", "<|imgpad|>", "<|video_pad|>", "<|audio_comp_pad|>"),
    "minicpm": ("<image>", "</image>", "<|image_pad|>", "<|video_pad|>", "<slice>"),
    "perception": ("<unused_1>", "<unused_2>", "<|image|>", "<|video|>"),
    "muse": ("<|image_start|>", "<|image_end|>", "<|patch|>", "<|video|>", "<|audio|>"),
    "qwen": _VISION,
    "llava": ("<unused_1>", "<unused_2>", "<image>", "<video>"),
    "internvl": ("<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
    "glm": ("<|begin_of_image|>", "<|end_of_image|>", "<|image|>", "<|video|>", "<|begin_of_video|>"),
    "video_llama_3": _VISION,
    "video_llava": ("<unused_1>", "<unused_2>", "<image>", "<video>"),
    "gemma4": ("<|image>", "<image|>", "<|image|>", "<|video|>", "<|audio|>"),
    "smolvlm": ("<fake_token_around_image>", "<global-img>", "<image>", "<video>"),
}
_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'video' %}VIDEO{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _tokenizer(family: str) -> Any:
    marks = next(marks for name, marks in _SPECIAL.items() if family.startswith(name))
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *marks]
    vocabulary = {text: i for i, text in enumerate([*sorted(ByteLevel.alphabet()), *special])}
    extra = {}
    if family == "internvl":
        names = ("start_image_token", "end_image_token", "context_image_token", "video_token")
        extra["extra_special_tokens"] = dict(zip(names, marks, strict=True))
    if family.startswith("minicpm"):
        names = ("image_start_token", "image_end_token", "image_token", "video_token", "slice_start_token")
        others = dict.fromkeys(
            ("slice_end_token", "image_id_start_token", "image_id_end_token"), marks[1]
        )  # no id left
        extra["extra_special_tokens"] = {**dict(zip(names, marks, strict=True)), **others}
    if family == "perception_lm":
        extra["extra_special_tokens"] = dict(zip(("image_token", "video_token"), marks[2:], strict=True))
    if family in GEMMA:
        names = ("boi_token", "eoi_token", "image_token", "video_token", "audio_token")
        sounds = {"boa_token": marks[0], "eoa_token": marks[1]}  # of which no prompt here has any
        extra["extra_special_tokens"] = {**dict(zip(names, marks, strict=True)), **sounds}
    if "_omni_" in family:
        names = ("vision_bos_token", "vision_eos_token", "image_token", "video_token", "audio_token")
        audio = {"audio_bos_token": "<|im_start|>", "audio_eos_token": "<|im_end|>"}  # no id is left
        extra["extra_special_tokens"] = {**dict(zip(names, marks, strict=True)), **audio}
    tokenizer = transformers.Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[],
        unk_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        **extra,
    )
    missing = [mark for mark in special if mark not in tokenizer.all_special_tokens]
    tokenizer.add_special_tokens({"additional_special_tokens": missing})
    return tokenizer


def processor(family: str) -> Any:
    """The processor of a family, whose token ids are those of tiny.py."""
    tokenizer = _tokenizer(family)
    start, end, _, video = (tokenizer.convert_ids_to_tokens(i) for i in (tiny.START, tiny.END, tiny.IMAGE, tiny.VIDEO))
    pixels = {"shortest_edge": 32 * 32 * 4, "longest_edge": 32 * 32 * 40}
    square = {"height": 56, "width": 56}
    if family == "qwen2_5_vl":
        video_processor = transformers.Qwen2VLVideoProcessor(size=pixels, cap_pixels_per_frame=False)
        image_processor = transformers.Qwen2VLImageProcessorPil()
        made, chat = transformers.Qwen2_5_VLProcessor, _CHAT.replace("VIDEO", f"{start}{video}{end}")
        extra: dict[str, Any] = {}
    elif family == "qwen3_vl":
        video_processor = transformers.Qwen3VLVideoProcessor(size=pixels)
        image_processor = transformers.Qwen2VLImageProcessorPil(patch_size=16)
        made, chat = transformers.Qwen3VLProcessor, _CHAT.replace("VIDEO", f"{start}{video}{end}")
        extra = {}
    elif family == "llava_onevision":
        video_processor = transformers.LlavaOnevisionVideoProcessor(size=square)
        image_processor = transformers.LlavaOnevisionImageProcessorPil(size=square)
        made, chat = transformers.LlavaOnevisionProcessor, _CHAT.replace("VIDEO", video)
        extra = {"num_image_tokens": 16, "vision_feature_select_strategy": "full"}
    elif family in _NEWER:
        return _newer(family, tokenizer, pixels)
    elif family not in FAMILIES:
        return _other(family, tokenizer, pixels)
    else:
        video_processor = transformers.InternVLVideoProcessor(size=square, return_tensors="pt")
        image_processor = transformers.GotOcr2ImageProcessorPil(size=square)
        made, chat = transformers.InternVLProcessor, _CHAT.replace("VIDEO", video)
        extra = {"image_seq_length": 4}
    return made(
        image_processor=image_processor,
        tokenizer=tokenizer,
        video_processor=video_processor,
        chat_template=chat,
        **extra,
    )


def _other(family: str, tokenizer: Any, pixels: dict[str, int]) -> Any:
    video = tokenizer.convert_ids_to_tokens(tiny.VIDEO)
    chat, small = _CHAT.replace("VIDEO", video), {"shortest_edge": 56}
    square = {"size": small, "crop_size": {"height": 56, "width": 56}}
    parts: dict[str, Any] = {"tokenizer": tokenizer, "chat_template": chat}
    if family in ("glm4v", "glm46v"):
        name = "Glm4v" if family == "glm4v" else "Glm46V"
        budget = {"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 64}
        parts["video_processor"] = getattr(transformers, f"{name}VideoProcessor")(size=budget)
        parts["image_processor"] = getattr(transformers, f"{name}ImageProcessorPil")()
        parts["chat_template"] = _CHAT.replace("VIDEO", f"<|begin_of_video|>{video}")
        glm = getattr(transformers, f"{name}Processor")(**parts)
        glm.video_start_id, glm.video_end_id = tiny.SPARE, tiny.END_OF_TURN  # there is no id left for an end
        return glm
    if family == "video_llama_3":
        budget = {"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 64}
        parts["video_processor"] = transformers.VideoLlama3VideoProcessor(size=budget)
        parts["image_processor"] = transformers.VideoLlama3ImageProcessorPil()
        return transformers.VideoLlama3Processor(**parts)
    if family == "smolvlm":
        parts["video_processor"] = transformers.SmolVLMVideoProcessor(
            size={"longest_edge": 112}, max_image_size={"longest_edge": 56}
        )
        parts["image_processor"] = transformers.SmolVLMImageProcessorPil()
        return transformers.SmolVLMProcessor(**parts, image_seq_len=4)
    if family in GEMMA:
        name, size = ("Gemma4", 4) if family == "gemma4" else ("Gemma4Unified", 2)
        of = {"patch_size": size, "pooling_kernel_size": 2}
        parts["video_processor"] = getattr(transformers, f"{name}VideoProcessor")(**of)
        parts["image_processor"] = getattr(transformers, f"{name}ImageProcessor{'Pil' * (size == 4)}")(**of)
        parts["feature_extractor"] = getattr(transformers, f"{name}AudioFeatureExtractor")()
        return getattr(transformers, f"{name}Processor")(**parts)
    parts |= {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    if family == "llava_next_video":
        parts["video_processor"] = transformers.LlavaNextVideoVideoProcessor(**square)
        parts["image_processor"] = transformers.LlavaNextImageProcessorPil()
        return transformers.LlavaNextVideoProcessor(**parts)
    parts["video_processor"] = transformers.VideoLlavaVideoProcessor(**square)
    parts["image_processor"] = transformers.CLIPImageProcessorPil()
    return transformers.VideoLlavaProcessor(**parts)


def _newer(family: str, tokenizer: Any, pixels: dict[str, int]) -> Any:
    made, videos, images = (getattr(transformers, name) for name in _NEWER[family])
    start, end, _, video = (tokenizer.convert_ids_to_tokens(i) for i in (tiny.START, tiny.END, tiny.IMAGE, tiny.VIDEO))
    shown = f"{start}{video}{end}"
    if family.startswith(("muse", "perception", "minicpm")):
        shown = video
    elif family.startswith("glm"):
        shown = f"<|begin_of_video|>{video}"
    chat = _CHAT
    options: dict[str, Any] = {"max_video_frame_tokens": 6} if family.startswith("muse") else {"size": pixels}
    if family == "glm5_next":  # which tells videos by marks at both ends: that of a turn, which turns then have not
        chat, shown = chat.replace("<|im_start|>", ""), f"<|begin_of_video|>{video}<|im_start|>"
        options = {"max_image_tokens": 100}
    if videos is transformers.Qwen2VLVideoProcessor:
        options |= {"cap_pixels_per_frame": False, "patch_size": 16 if family.startswith("qwen3") else 14}
    if family == "dots3_note":
        options |= {"patch_size": 14, "temporal_patch_size": 1}
    extra: dict[str, Any] = {}
    if family.startswith("minicpm"):
        options = {"scale_resolution": 112, "max_slice_nums": 1, "downsample_mode": "16x"}
    if family == "perception_lm":
        options, extra = {"size": {"height": 56, "width": 56}}, {"patch_size": 14, "pooling_ratio": 2}
    if "_omni_" in family or family in ("dots3_note", "muse_spark"):
        extra["feature_extractor"] = transformers.WhisperFeatureExtractor()
    processor = made(
        image_processor=images(),
        tokenizer=tokenizer,
        video_processor=videos(**options),
        chat_template=chat.replace("VIDEO", shown),
        **extra,
    )
    if family == "glm5_next":
        processor.video_start_id, processor.video_end_id = tiny.SPARE, tiny.TURN
    return processor


def skip_unless_told_of_frames(processor: Any) -> None:
    """Skip a test of Video-LLaVA on transformers 5.14, whose processor cannot be given frames that are sampled."""
    taken = inspect.signature(processor.__call__).parameters.values()
    if not any(one.kind is one.VAR_KEYWORD or one.name == "video_metadata" for one in taken):
        pytest.skip(f"{type(processor).__name__} of this release takes no video_metadata, so prepare() cannot call it")


def inputs(processor: Any, clip: Path, question: str, frames: int = 8) -> Any:
    """What the processor makes of a clip and a question about it."""

    def spread(metadata: Any, **_: Any) -> Any:
        return np.linspace(0, metadata.total_num_frames - 1, frames).round().astype(int)

    video, metadata = load_video(str(clip), backend="pyav", sample_indices_fn=spread)
    content = [{"type": "video"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return processor(
        text=[text], videos=[video], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt"
    )
