"""What Hugging Face answers to the prompts that the servers of these tests get."""

from typing import Any

import torch

from tests.engines.vllm import engine
from vidsieve import Reducer
from vidsieve.engines.hf import attach


def inputs(family: str, request: dict[str, Any]) -> Any:
    """What a request to vLLM is to Hugging Face."""
    processor = engine.real_processor(family)
    data = request["multi_modal_data"]
    videos = [video if isinstance(video, tuple) else (video, {}) for video in data.get("video", [])]
    known = [{k: v for k, v in known.items() if k != "do_sample_frames"} for _, known in videos]
    return processor(
        text=[request["prompt"]],
        images=data.get("image"),
        videos=[torch.from_numpy(video).permute(0, 3, 1, 2) for video, _ in videos] or None,
        **({"video_metadata": known} if any(known) else {}),
        do_sample_frames=False,
        return_tensors="pt",
    )


def answer(
    family: str, request: dict[str, Any], reducer: Reducer, tokens: int = 4
) -> tuple[list[int], Any, list[list[int]]]:
    """The ids of the answer, log probabilities (tokens, V) at each of its steps, and what was kept of each video."""
    model = engine.hugging_face(family)
    given = inputs(family, request)
    options = {"max_new_tokens": tokens, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with attach(model, reducer) as trace:
        out = model.generate(**given, **options)
    ids = out.sequences[0, given["input_ids"].shape[1] :].tolist()
    return ids, torch.cat(out.logits).log_softmax(-1), [video.kept for video in trace.videos]


def positions(family: str, request: dict[str, Any]) -> torch.Tensor:
    """(3, N), every token of the unpruned prompt."""
    given = inputs(family, request)
    names = ("mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    known = {name: given[name] for name in names if name in given}
    return engine.hugging_face(family).model.get_rope_index(given["input_ids"], **known)[0][:, 0]


@torch.no_grad()
def closed(family: str, request: dict[str, Any], kept: torch.Tensor, pad: int, tokens: int = 4) -> list[int]:
    """The ids of the answer to the embedded prompt less what was dropped, whose positions are its indices."""
    model, given, seen = engine.hugging_face(family), inputs(family, request), []
    watch = model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    model(**given)
    watch.remove()
    is_video = given["input_ids"][0] == pad
    stays = ~is_video
    stays[is_video.nonzero()[kept, 0]] = True
    out = model.generate(inputs_embeds=seen[0][:, stays], max_new_tokens=tokens, do_sample=False)
    return out[0].tolist()  # type: ignore[no-any-return]
