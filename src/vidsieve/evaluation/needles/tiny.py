"""The files of vidsieve-tiny: a Qwen2.5-VL small enough to be trained on the suite within minutes.

    processor, model = build()
    model.save_pretrained(folder); processor.save_pretrained(folder)

Configuration, a tokenizer of whole words with the chat template of the family, and processors for video and images, all
of Hugging Face classes, so that whatever loads a checkpoint of the family loads this one.
"""

import re
from pathlib import Path
from typing import Any

import torch

from vidsieve.checks import require
from vidsieve.engines.torchvision import make_importable
from vidsieve.evaluation.needles.layout import Size
from vidsieve.evaluation.needles.questions import TEMPLATES, WORDS

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] in ('video', 'image') %}<|vision_start|><|{{ part['type'] }}_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
UNKNOWN = "<|unknown|>"
BUNDLED = Path(__file__).parent / "checkpoint"  # of vidsieve-tiny
MERGE = 2  # patches along each side of a visual token

TEXT = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
VISION = {"hidden_size": 128, "intermediate_size": 352, "depth": 4, "num_heads": 4}
# Positions stay below 64: with the usual base of 10 000 the angles of rows and columns would hardly differ. With this
# one the slowest frequency of time, of half of all, turns once in 16 steps, and the slowest of all by 0.1 a column.
ROPE_THETA = 10.0
INITIAL = 0.04  # standard deviation of the first weights


def build_tokenizer() -> Any:
    """One token a word; lower case. Words that the suite does not know become UNKNOWN."""
    require("transformers", "hf")
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    text = " ".join(TEMPLATES.values()).replace("{}", " ").lower()
    words = sorted({*re.findall(r"\w+|[^\w\s]+", text), *WORDS, "system", "user", "assistant"})
    vocabulary = {word: number for number, word in enumerate([*SPECIALS, UNKNOWN, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        pad_token=SPECIALS[0],
        eos_token="<|im_end|>",
        additional_special_tokens=list(SPECIALS[1:]),
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_processor(size: Size = Size()) -> Any:
    """Tokenizer, chat template and processors; pictures of the suite's size are left as they are."""
    require("transformers", "hf")
    make_importable()
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    pixels = size.side * size.side
    options = {
        "patch_size": size.token // MERGE,
        "temporal_patch_size": 2,
        "merge_size": MERGE,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "size": {"shortest_edge": pixels, "longest_edge": pixels},
    }
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**options),
        tokenizer=build_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(**options, cap_pixels_per_frame=False),
        chat_template=CHAT_TEMPLATE,
    )


def build(
    size: Size = Size(), seed: int = 0, text: dict[str, int] | None = None, vision: dict[str, int] | None = None
) -> tuple[Any, Any]:
    """Processor and model with random weights that depend on `seed` alone. text, vision: other sizes than the usual."""
    processor = build_processor(size)
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = processor.tokenizer
    token = dict(zip(SPECIALS, tokenizer.convert_tokens_to_ids(list(SPECIALS)), strict=True))
    text, vision = TEXT | (text or {}), VISION | (vision or {})
    quarter = text["hidden_size"] // text["num_attention_heads"] // 8
    config = Qwen2_5_VLConfig(
        text_config={
            **text,
            "vocab_size": 8 * -(-len(tokenizer) // 8),
            "bos_token_id": None,
            "eos_token_id": token["<|im_end|>"],
            "pad_token_id": token["<|endoftext|>"],
            "max_position_embeddings": 32768,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": ROPE_THETA,
                "mrope_section": [2 * quarter, quarter, quarter],
            },
            "initializer_range": INITIAL,
        },
        vision_config={
            **vision,
            "out_hidden_size": text["hidden_size"],
            "patch_size": size.token // MERGE,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "tokens_per_second": 1,
            "window_size": size.side,
            "fullatt_block_indexes": list(range(vision["depth"])),
            "initializer_range": INITIAL,
        },
        image_token_id=token["<|image_pad|>"],
        video_token_id=token["<|video_pad|>"],
        vision_start_token_id=token["<|vision_start|>"],
        vision_end_token_id=token["<|vision_end|>"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.update(
        do_sample=False,
        eos_token_id=token["<|im_end|>"],
        pad_token_id=token["<|endoftext|>"],
    )
    return processor, model
