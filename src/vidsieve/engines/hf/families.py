"""Describe each model family by an `Adapter`, which is data. docs/adding_a_model.md adds one.

Everything else is the same for every Hugging Face video LLM: `model.base_model` receives token ids with one placeholder
a video token, writes the video features over the placeholders, and calls `model.get_decoder()` with `inputs_embeds`.
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from vidsieve.checks import describe
from vidsieve.errors import UnsupportedModel


@dataclass(frozen=True)
class Adapter:
    """How one model family lays video tokens out in a prompt.

    model_types: the `config.model_type` values this adapter serves.
    layout: how the number of frames of a video, and of tokens in each, is determined.
        "grid"   the argument `grids` (T, H, W in patches) and the vision tower's spatial merge size.
        "parts"  the same, but a row of it describes a part of a video; the parts of one prompt are one video.
        "frames" the `video_position_ids` argument (the place of each patch of a frame), and the frames of each video.
        "clips"  one block per video, all of one length; `pixel_values_videos` has the number of frames.
        "runs"   every unbroken run of placeholders is one frame; the runs of a prompt are one video.
        "slices" every run is a slice of a frame, of the patches in `target_sizes_videos`; `input_ids` say where frames
            begin, and videos do where more than the two marks around a frame stand between frames.
    token: the config attribute that holds the id of the placeholder.
    grids: the argument with T, H and W of each video ("grid", "parts").
    merge: attribute of the vision config with the patches, or (rows, columns) of them, that make a token ("grid",
        "frames"); empty if each does.
    merged_frames: attribute of the vision config with the T that make a frame; "all" of a row's ("grid", "parts").
    row_end: tokens after each row of a frame that are not patches, and so are always kept ("grid").
    between: config attributes with the ids around a video, where images use the same placeholder ("grid").
    trailing: tokens at the end of each video that are not patches, and so are always kept ("clips").
    square: whether a frame's tokens, where a square number, form a square grid ("clips", "runs").
    frame_tokens: config attribute with the tokens of a frame; runs of any other length are images ("runs"). Selectors
        before the tower need it there.
    gap: fewest tokens between two frames; runs closer together are the tiles of one image ("runs").
    per_token: decoder arguments (B, L, ...) that follow the sequence, besides embeddings, positions and mask.
    unchanged: decoder arguments that do not follow the sequence, besides those that transformers' own decoders take.
    mask_kinds: argument of the body (B, L) with the kind of each token, of which, where the body makes the masks of the
        decoder, these are made; None where the decoder makes its own.
    by_frame: whether the tower computes each frame (or temporal patch) from it alone, so that a video may be encoded in
        chunks.
    per_visual: decoder arguments that are lists of (V, D), a row for each of the V true columns of `visual_pos_masks`.
    tower: how `vision="auto"` runs its tower: "packed", one attention call a layer; "batched", as it is, since frames
        are one batch; "stock", as it is.
    not_inside, not_before_tower, not_encoded: why stages inside the model, selectors before its tower, and videos that
        are encoded, stored and asked later are refused; empty where they are served.
    tested: the releases of transformers that were tested.
    """

    model_types: tuple[str, ...]
    layout: Literal["grid", "parts", "frames", "clips", "runs", "slices"] = "grid"
    token: str = "video_token_id"
    grids: str = "video_grid_thw"
    merge: str = "spatial_merge_size"
    merged_frames: str | None = None
    row_end: int = 0
    between: tuple[str, str] | None = None
    trailing: int = 0
    square: bool = False
    frame_tokens: str | None = None
    gap: int = 1
    per_token: tuple[str, ...] = ("visual_pos_masks",)
    per_visual: tuple[str, ...] = ("deepstack_visual_embeds",)
    unchanged: tuple[str, ...] = ()
    mask_kinds: str | None = None
    by_frame: bool = False
    tower: Literal["packed", "batched", "stock"] = "packed"
    not_inside: str = ""
    not_before_tower: str = ""
    not_encoded: str = ""
    tested: tuple[str, ...] = ("5.14.1", "5.17.0", "5.24.0")

    @property
    def no_chunks(self) -> str:
        """Why its videos are not encoded chunk by chunk and answered from; empty where they are."""
        return self.not_encoded or ("" if self.by_frame else _APART)


_ADAPTERS: dict[str, Adapter] = {}
_MASKS = "the masks of its decoder are made outside it, of kinds of tokens that are not stored"
_BOTH_WAYS = "its video tokens see later ones too, by masks that no stage makes"
_WINDOWS = "some of its layers see a window, and whether dropped tokens count towards its width is not defined"
_CHOSEN = "its layers choose the keys that they, or layers after them, see"
_UNPROVEN = "what its tower makes of fewer groups of pixels has not been compared with the same by hand"
_MIXED = "frames, tiles of images and padding come as one list, and which of them its tower sees is not worked out here"
_ARGUMENTS = "its decoder takes an argument for every token, which is not stored"
_APART = "nobody has compared its answers from stored features yet, nor its tower chunk by chunk with the whole"
_PARTS = "several videos of a prompt cannot be told apart in what would be stored"
# Model types that take videos and cannot be served, with the reason.
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        ("qwen2_5_omni", "qwen3_omni_moe"),
        "it speaks what its thinker writes; give model.thinker, which sees the video, instead",
    ),
    "instructblipvideo": "its Q-Former makes a fixed number of queries of each frame, and none is of a place in it",
    "minimax_m3_vl": "its sparse layers take a position for a place in the cache; what is kept has positions with gaps",
    "nemotron_h_omni": "its body is the whole model, which calls a decoder with a head; hooks need these apart",
    **dict.fromkeys(
        (
            *("videoprism", "videoprism_vision_model", "vjepa2", "xclip", "videomt", "embedding_gemma2"),
            *("pe_video", "pe_video_encoder", "pe_audio_video", "pe_audio_video_encoder"),
        ),
        "it is an encoder: no language model reads what it makes of a video",
    ),
}


def register(adapter: Adapter) -> None:
    """Serve the model types of `adapter` from now on, replacing what served them before."""
    for model_type in adapter.model_types:
        _ADAPTERS[model_type] = adapter


for _adapter in (
    Adapter(
        ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "video_llama_3"), by_frame=True
    ),
    # The frames of a GLM video use the image placeholder; `mm_token_type_ids` distinguishes them from images.
    Adapter(("glm4v", "glm4v_moe", "glm46v"), token="image_token_id", by_frame=True),
    Adapter(("glmga", "glm_ocr"), token="image_token_id", by_frame=True),
    # The same, but what stands between two marks is a video, whatever `mm_token_type_ids` say.
    Adapter(
        ("glm5_next",),
        token="image_token_id",
        between=("video_start_token_id", "video_end_token_id"),
        by_frame=True,
        not_inside=_CHOSEN,
        tested=("5.17.0", "5.24.0"),
    ),
    Adapter(("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker", "cosmos3_omni"), by_frame=True),
    Adapter(("hyperclovax_vision_v2",), by_frame=True, tested=("5.24.0",)),
    Adapter(("cosmos3_edge",), by_frame=True, tower="stock", not_before_tower=_UNPROVEN, tested=("5.17.0", "5.24.0")),
    Adapter(("exaone4_5",), by_frame=True, not_inside=_WINDOWS),
    Adapter(("cohere_compass",), by_frame=True, not_inside=_WINDOWS, tested=("5.17.0", "5.24.0")),
    Adapter(("dots3_note",), by_frame=True, not_inside=_WINDOWS, tested=("5.24.0",)),
    Adapter(
        ("lfm3_vl",),
        by_frame=True,
        not_inside="some of its layers are convolutions",
        not_before_tower=_UNPROVEN,
        tested=("5.24.0",),
    ),
    Adapter(
        ("qwen4_exp",),
        per_token=("ple_input_ids",),
        not_inside=_CHOSEN,
        not_encoded=_ARGUMENTS,
        tested=("5.17.0", "5.24.0"),
    ),
    # The resampler after its tower makes one frame of two.
    Adapter(
        ("ernie4_5_vl_moe",),
        merged_frames="temporal_merge_size",
        per_token=("moe_mm_token_type_ids",),
        not_inside="its layers take moe_mm_token_type_ids, which no stage shortens",
        not_before_tower=_UNPROVEN,
        not_encoded=_ARGUMENTS,
    ),
    # Of each part, some frames long, the tower takes the mean over time.
    Adapter(
        ("kimi_k25",),
        layout="parts",
        merge="merge_kernel_size",
        merged_frames="all",
        tower="stock",
        not_before_tower=_UNPROVEN,
        not_encoded=_PARTS,
        tested=("5.14.1", "5.24.0"),
    ),
    Adapter(
        ("muse_glimmer",),
        merge="merge_size",
        by_frame=True,
        tower="stock",
        not_inside=_WINDOWS,
        not_before_tower=_UNPROVEN,
        tested=("5.17.0", "5.24.0"),
    ),
    Adapter(
        ("muse_spark",),
        merge="merge_size",
        by_frame=True,
        tower="stock",
        not_inside=_WINDOWS,
        not_before_tower=_UNPROVEN,
        tested=("5.24.0",),
    ),
    Adapter(
        ("hy_v4_vl",),
        row_end=1,
        not_inside=_CHOSEN,
        not_before_tower=_UNPROVEN,
        not_encoded="the tokens that end a row of a frame would be taken for video",
        tested=("5.24.0",),
    ),
    # The smaller ones have an input of each layer for every token, and layers that share keys, for which the decoder is
    # told how many of the last rows are asked for. The larger ones let the tokens of a frame see one another.
    Adapter(
        ("gemma4",),
        layout="frames",
        merge="pooling_kernel_size",
        per_token=("per_layer_inputs", "labels"),
        unchanged=("logits_to_keep",),
        mask_kinds="mm_token_type_ids",
        tower="batched",
        not_inside=_WINDOWS,
        not_before_tower=_UNPROVEN,
        not_encoded=_ARGUMENTS,
    ),
    # Without a tower: its patches are embedded as they are.
    Adapter(
        ("gemma4_unified",),
        layout="frames",
        merge="",
        per_token=("labels",),
        unchanged=("logits_to_keep",),
        mask_kinds="mm_token_type_ids",
        tower="batched",
        not_inside=_WINDOWS,
        not_before_tower="it has no vision tower",
        not_encoded=_MASKS,
    ),
    # All of a video sees all of it. Its grids are of tokens.
    Adapter(
        ("molmo2",),
        grids="video_grids",
        merge="",
        mask_kinds="mm_token_type_ids",
        tower="batched",
        not_inside=_BOTH_WAYS,
        not_before_tower=_UNPROVEN,
        not_encoded=_MASKS,
        tested=("5.24.0",),
    ),
    Adapter(("llava_onevision",), layout="clips", trailing=1, square=True, by_frame=True, tower="batched"),
    Adapter(("llava_next_video",), layout="clips", square=True, by_frame=True, tower="batched"),
    Adapter(
        ("perception_lm",),
        layout="clips",
        square=True,
        by_frame=True,
        tower="batched",
        not_before_tower=_UNPROVEN,
        tested=("5.24.0",),
    ),
    # 257 tokens a frame, the first of them a class token: no grid.
    Adapter(("video_llava",), layout="clips", by_frame=True, tower="batched"),
    # One image tile is indistinguishable from one frame; an image of several tiles is one longer run.
    Adapter(
        ("internvl",),
        layout="runs",
        token="image_token_id",
        frame_tokens="image_seq_length",
        square=True,
        by_frame=True,
        tower="batched",
    ),
    # Between tiles of an image are at most four tokens; between frames a time stamp and two markers.
    Adapter(
        ("smolvlm",),
        layout="runs",
        token="image_token_id",
        gap=5,
        square=True,
        by_frame=True,
        tower="batched",
        not_before_tower=_MIXED,
    ),
    Adapter(("minicpmv4_6",), layout="slices", by_frame=True, tower="stock", not_before_tower=_UNPROVEN),
    Adapter(
        ("minicpmv4_7", "minicpm_ocr"),
        layout="slices",
        by_frame=True,
        tower="stock",
        not_before_tower=_UNPROVEN,
        tested=("5.24.0",),
    ),
):
    register(_adapter)


def model_types() -> tuple[str, ...]:
    """List the model types that have an adapter, sorted."""
    return tuple(sorted(_ADAPTERS))


def table() -> list[dict[str, Any]]:
    """List, for each model type, its layout and what is served; where something is not, the reason."""
    return [
        {
            "type": model_type,
            "layout": one.layout,
            "inside": one.not_inside,
            "tower": one.tower,
            "before tower": one.not_before_tower,
            "encode": one.no_chunks,
            "tested": list(one.tested),
        }
        for model_type, one in sorted(_ADAPTERS.items())
    ]


def adapter_for(model: nn.Module) -> Adapter:
    """Find the adapter of `model`. Raises `UnsupportedModel` if there is none."""
    config: Any = getattr(model, "config", None)
    model_type = getattr(config, "model_type", None)
    if model_type in _ADAPTERS:
        return _ADAPTERS[model_type]
    if model_type in REFUSED:
        raise UnsupportedModel(f"{describe(model)}, of type {model_type!r}, cannot be served: {REFUSED[model_type]}")
    found = f"model type {model_type!r}" if model_type else f"{describe(model)}, which has no config.model_type"
    if model_type and not hasattr(config, "vision_config"):
        found += ", without a vision tower: of a part, as model.language_model is one, give the whole model instead"
    raise UnsupportedModel(
        f"expected one of the {len(_ADAPTERS)} types of model of `vidsieve models`, as qwen2_5_vl; got {found}. "
        "A new type is one entry: vidsieve.engines.hf.register(Adapter(...)), see docs/adding_a_model.md"
    )
